"Terms are marked where a reader meets them, and the text of a page stays what it was."
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.report.glossary import GLOSSARY, glossary_html, mark_terms, term_id
from mlops_nb.report.html import render_page, sanitize_html

PIECES = ["AUC", "log loss ", "<p>", "</p>", "<svg><text>AUC</text></svg>", "<b title='AUC > recall'>", "&lt;AUC&gt;",
          "<a href='#recall'>", "</a>", "<code>", "</code>", "R²", "Cramér&#x27;s V", "Cramér's V", "<br>", "<br/>",
          "<", "<h2>", "</h2>", "gate.json", "<style>AUC</style>", "<summary>gate", "</summary>"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_only_marks_are_added(pieces):
    html = sanitize_html(" ".join(pieces))
    marked, used = mark_terms(html)
    assert re.sub(r'<span class="term"[^>]*>(.*?)</span>', r"\1", marked) == html
    assert set(used) <= set(GLOSSARY) and bool(used) == ('class="term"' in marked)


def test_what_is_marked_has_its_definition_on_the_page():
    page = render_page("t", "<p>The AUC, Cramér&#x27;s V and the champion.</p><h2>More</h2><td>the AUC</td>")
    ids = re.findall(r'aria-describedby="([^"]+)"', page)
    assert ids == ["term-auc", "term-cramér-s-v", "term-champion", "term-auc"]
    for term in set(ids): assert page.count(f'id="{term}"') == 1
    assert page.count('tabindex="0"') == 4 and "Terms on this page" not in render_page("t", "<p>Nothing.</p>")


def test_no_two_terms_share_a_place():
    assert len({term_id(t) for t in GLOSSARY}) == len(GLOSSARY) and glossary_html([]) == ""
