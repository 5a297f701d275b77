"""Report pages: HTML that needs nothing else, the index, and a list of runs that is always true."""
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.html_pages import self_contained

from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.report import stage as pipeline
from mlops_nb.report.figures import figure_html, subplots
from mlops_nb.report.formatting import format_number, format_percent
from mlops_nb.report.history import (
    KeyMetric,
    RunRecord,
    format_gain,
    format_metric_change,
    read_runs,
    write_index,
)
from mlops_nb.report.html import PageHeader, render_markdown, render_notebook, render_page, sanitize_html
from mlops_nb.report.html_fragments import histogram_counts, table
from mlops_nb.stats.bootstrap import Estimate

# ---- cleaning

HOSTILE = ["<script>alert(1)</script>", "<SCRIPT src=//x>1</SCRIPT>", "<img src=x onerror=alert(1)>",
           '<img src="https://x/y.png">',
           "<svg onload=a()>", "<iframe src='https://x'></iframe>", "<a href='javascript:a()'>x</a>",
           "<link rel=stylesheet href=//x>",
           "<style>@import 'https://x';</style>", "<div style=\"background:url('https://x')\">",
           "<use xlink:href='https://x#y'/>",
           "<form action=//x><input></form>", "<base href=//x>", "<object data=//x></object>", "<img srcset='//x 2x'>",
           "<style>p{background:url(//x/y)}</style>", "<meta http-equiv=refresh content='0;url=//x'>",
           "<embed src=//x>", "<video poster=//x src=//x>", "<a href=' JaVaScRiPt:a()'>x</a>",
           "<script><script></script>",
           "<a<object data=//x></object>"]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20),
                          st.sampled_from(["<p>", "</p>", "<", ">", "&lt;script&gt;", "<!--", "-->", '"'])),
                          max_size=8))
def test_nothing_that_acts_or_loads_comes_through(pieces):
    self_contained(render_page("t", sanitize_html("".join(pieces))))


@pytest.mark.parametrize("html", ["<p class=n>a &lt; b &amp; c</p>", '<table border="1"><tr><td>1</td></tr></table>',
                                  '<img src="data:image/png;base64,AA==" alt="x">', '<a href="#x">x</a>',
                                  '<a href="../y.html">y</a>', "a &#233; b", '<use xlink:href="#m"></use>'])
def test_harmless_html_keeps_its_meaning(html):
    assert sanitize_html(html).replace('"', "") == html.replace('"', "")


def test_markdown_shows_html_as_text_and_drops_remote_images():
    out = render_markdown("<b>x</b> ![a *plot*](https://x/y.png) ![in](attachment:p.png)\n\n[l](https://x)",
                          {"p.png": {"image/png": "AA=="}})
    assert "&lt;b&gt;" in out and "x/y.png" not in out and "plot" in out and 'src="data:image/png;base64,AA=="' in out


# ---- rendering

def cell(kind, source, outputs=(), **meta): return dict(cell_type=kind, source=source, metadata=meta,
                                                        outputs=list(outputs))
def data(**kinds): return dict(output_type="display_data", data={k.replace("_", "/", 1): v for k, v in kinds.items()},
                               metadata={})


def test_every_kind_of_output(tmp_path):
    svg = {"image/svg+xml": ['<svg xmlns="http://www.w3.org/2000/svg">', "<script>x</script><path d='M0 0'/></svg>"]}
    cells = [cell("markdown", ["# A <title>\n", "\n", "Words."]), cell("markdown", "## Sales"),
             cell("code", "SECRET_CODE", [
        dict(output_type="stream", name="stdout", text="a < b"),
        dict(output_type="stream", name="stderr", text="WARNING: hush"),
        data(image_png="AAAA\n", text_plain="<Figure>"), data(text_markdown="*soft*"), data(text_plain="x > y"),
        dict(output_type="display_data", data=svg),
        data(text_html="<b onclick=x>bold</b><script src='https://cdn/x.js'></script>", text_plain="no"),
        data(application_json="{}")]), cell("raw", "RAW"),
        cell("code", "previous = 'x <y>'  # why", tags=["injected-parameters"])]
    (tmp_path / "n.ipynb").write_text(json.dumps(dict(cells=cells)))
    header = PageHeader("P & Q", "r", "d", "m", "../b/n.html", "../i.html")
    text = render_notebook(tmp_path / "n.ipynb", tmp_path / "out/n.html", header).read_text()
    found = self_contained(text)
    for part in ("A &lt;title&gt;</h1>", "a &lt; b", "<details>", "hush", 'alt="Figure: Sales"', "<em>soft</em>",
                 "x &gt; y", "<b>bold</b>",
                 "P &amp; Q",
                 "previous = &#x27;x &lt;y&gt;&#x27;"): assert part in text, part
    for part in ("SECRET_CODE", "RAW", "cdn", "# why", "w3.org"): assert part not in text
    assert found.links == ["#main", "../i.html", "../b/n.html"] and text.count("<h1") == 1


def test_what_a_command_printed_is_put_together_again(tmp_path):
    pieces = [("stdout", "No release is"), ("stderr", "watch: 1 s\r"), ("stdout", " open.\n"),
              ("stderr", "watch: 2 s\n")]
    streams = [dict(output_type="stream", name=name, text=text) for name, text in pieces]
    (tmp_path / "n.ipynb").write_text(json.dumps(dict(cells=[cell("code", "", streams)])))
    text = render_notebook(tmp_path / "n.ipynb", tmp_path / "n.html").read_text()
    assert "No release is open." in text and text.count("Messages while") == 1
    assert "watch: 2 s" in text and "watch: 1 s" not in text


def test_a_figure_is_the_same_each_time_and_needs_no_network():
    def draw():
        fig, axes = subplots(rows=1, columns=2)
        for ax in axes: ax.plot([1, 2], [3, 4]); ax.set_title("a < b")
        return figure_html(fig, "A <claim> & more", 'a "note"').text
    assert draw() == draw() and "http" not in draw() and "A &lt;claim&gt; &amp; more" in draw()
    self_contained(render_page("t", sanitize_html(draw())))
    assert 'role="img" aria-label="A &lt;claim&gt; &amp; more"' in sanitize_html(draw())


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.none(), st.integers(-10**18, 10**18), st.floats()))
def test_numbers_are_written_and_never_nan(x):
    assert re.fullmatch(r"–|−?[\d,]+(\.\d+)?(e[+−]\d+)?", format_number(x))
    if isinstance(x, float) and not 1e300 < abs(x) < float("inf"):
        assert "nan" not in format_percent(x) and "inf" not in format_percent(x)


def test_three_digits_are_kept():
    assert [format_number(x) for x in (0.99951, 9.996, 99.96, 999.6, -0.0004567,
                                       1e-9)] == ["1.00", "10.0", "100", "1,000", "−0.000457", "1e−09"]


def test_texts_of_the_data_are_escaped_in_tables():
    assert "<b>" not in table([{"<b>": "<i>", "n": 1}, {"<b>": None, "n": None}]).text.replace("<b>bold", "")


def test_histograms_of_odd_columns():
    import datetime as dt

    import polars as pl
    for values in ([], [None], [1.5], [float("nan"), 1.0], [True, False, None], ["a"], [2**60, -2**60],
                   [dt.datetime(2026, 1, 1)] * 3,
                   [1e300, -1e300, 0.0] * 9, [float("inf"), 1.0, 2.0] * 9):
        h = histogram_counts(pl.Series(values))
        assert all(c >= 0 for c in h)
    assert sum(histogram_counts(pl.Series(range(1000)))) == 1000


# ---- contents and sections

def test_sections_have_names_and_the_contents_lead_to_them():
    body = "<h2>Costs &amp; <em>gains</em></h2><h3>Costs</h3><h2>Costs &amp; gains</h2><h2>日本</h2><h2>!</h2>"
    text = render_page("t", body)
    found, ids = self_contained(text), re.findall(r'<h[23] id="([^"]*)"', text)
    assert len(set(ids)) == 5 and "" not in ids
    wanted = [f"#{i}" for i in ids if i != "costs"]
    assert found.links == ["#main", *wanted, *wanted] # beside the report, and folded away for a phone
    assert "Contents" not in render_page("t", "<h2>One</h2><p>x</p><h2>Two</h2>")


def test_a_section_whose_outputs_are_empty_is_left_out(tmp_path):
    html = lambda text: data(text_html=text)
    cells = [cell("markdown", "# T\n\nBegin."), cell("code", "x", [html("")]), cell("markdown", "## Empty\n\nWhy."),
             cell("code", "a", [html("")]), cell("code", "b"), cell("markdown", "## Full"),
             cell("code", "c", [html(""), html("<p>3</p>")]), cell("markdown", "## Drawn"),
             cell("code", "d", [html("<svg></svg>")]), cell("markdown", "## Prose\n\nStays."), cell("code", "e")]
    (tmp_path / "n.ipynb").write_text(json.dumps(dict(cells=cells)))
    text = render_notebook(tmp_path / "n.ipynb", tmp_path / "n.html").read_text()
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == ["Full", "Drawn", "Prose"]
    assert "Why." not in text and "Stays." in text and "Begin." in text


# ---- the list of runs

def add(folder, name, time, value=0.5, passed=True, pages=("evaluation",)):
    pages_of = {p.title(): f"{p}.html" for p in pages}
    write_json(folder / name / "run.json", RunRecord(name, time, f"<{name}> done.", passed,
                                                     [KeyMetric("roc_auc", value, "higher")], pages=pages_of))
    for p in pages: (folder / name / f"{p}.html").write_text("x")


def test_links_resolve_and_texts_are_escaped(tmp_path):
    folder = tmp_path / "reports/pipeline"
    for i, name in enumerate(["aa", "bb", "cc"]):
        add(folder, name, f"2026-01-0{i + 1}T00:00:00", 0.8 + i / 100, pages=("evaluation", "data"))
    index = write_index(folder, tmp_path / "reports/index.html", "Runs", "P")
    found = self_contained(index.read_text())
    files = [link for link in found.links if not link.startswith("#")]
    for link in files: assert (index.parent / link).exists(), link
    assert len(files) == 6 and "&lt;cc&gt; done." in index.read_text()
    assert index.read_text().index("&lt;cc&gt;") < index.read_text().index("&lt;aa&gt;")
    assert "since bb: +0.0100, each on its own test rows" in index.read_text()


def test_the_index_shows_the_comparison_with_the_champion_where_there_was_one(tmp_path):
    add(tmp_path, "aa", "2026-01-01T00:00:00", 0.85)
    metrics = [KeyMetric("roc_auc", 0.8, "higher", Estimate(0.02, 0.01, 0.03)), KeyMetric("f1", 0.5, "higher")]
    write_json(tmp_path / "bb/run.json", RunRecord("bb", "2026-01-02T00:00:00", "x", None, metrics))
    text = write_index(tmp_path, tmp_path / "i.html", "Runs").read_text()
    assert "champion, same test rows: 0.0200 better (0.0100 to 0.0300)" in text
    assert "since aa" not in text and "0.0500" not in text # the change on other rows would contradict it


@pytest.mark.parametrize("rows, better, said", [
    ("same", "higher", "+0.100 better, on the same test rows"),
    ("same", "lower", "+0.100 worse, on the same test rows"), ("same", "zero", "+0.100, on the same test rows"),
    ("other", "higher", "+0.100, each on its own test rows"), ("", "higher", "+0.100, each on its own test rows")])
def test_a_change_is_judged_only_on_the_same_rows(rows, better, said):
    old, new = (RunRecord(n, "", "", metrics=[KeyMetric("m", v, better)], test_rows=r)
                for n, v, r in (("old", 0.7, rows and "same"), ("new", 0.8, rows)))
    assert format_metric_change(new.metrics[0], new, old) == said
    assert format_metric_change(KeyMetric("m", None, better), new, old) == "–"
    assert format_metric_change(KeyMetric("another", 1.0, better), new, old) == "–"


def test_a_gain_is_said_with_its_direction_and_interval():
    assert format_gain(Estimate(-1.15, -2.0, -0.3)) == "1.15 worse (−2 to −0.300)"
    assert format_gain(Estimate(0.5)) == "0.500 better" and format_gain(Estimate(0.0, 0.0, 0.0)) == "no difference"
    assert format_gain(None) == format_gain(Estimate(None)) == "–"


def test_the_list_is_the_same_bytes_when_written_again_and_empty_is_no_error(tmp_path):
    assert "Nothing has run yet" in write_index(tmp_path / "none", tmp_path / "i.html", "Runs").read_text()
    add(tmp_path / "p", "aa", "2026-01-01T00:00:00")
    first = write_index(tmp_path / "p", tmp_path / "i.html", "Runs").read_bytes()
    assert write_index(tmp_path / "p", tmp_path / "i.html", "Runs").read_bytes() == first


def test_runs_with_other_figures_share_a_table_and_unfinished_folders_do_not_count(tmp_path):
    add(tmp_path, "aa", "2026-01-01T00:00:00")
    write_json(tmp_path / "bb/run.json", RunRecord("bb", "2026-01-02T00:00:00", "x", None, [KeyMetric("rmse", None)]))
    add(tmp_path, ".cc.tmp", "2026-01-03T00:00:00")
    assert [r.name for _, r in read_runs(tmp_path)] == ["bb", "aa"]
    text = write_index(tmp_path, tmp_path / "i.html", "Runs").read_text()
    assert "AUC" in text and "Root mean squared error" in text


def test_releases_are_marked_and_metrics_drawn_over_the_runs(tmp_path):
    for i, name in enumerate(["aa", "bb", "cc"]): add(tmp_path, name, f"2026-01-0{i + 1}T00:00:00", 0.8, name != "bb")
    text = write_index(tmp_path, tmp_path / "i.html", "Runs", releases={"aa": "released", "cc": "in use"}).read_text()
    assert "AUC is 0.800, as in the first run" in re.sub("<[^>]*>", "", text)
    assert text.count("1 Jan 2026: 0.800, released") == 1 and "2 Jan 2026: 0.800, failed" in text
    assert "cc <b" in text and "(in use)" in text and "(released)" in text
    assert 'data-heading="Pages"' in text, "on a phone each figure stands behind its heading"


def test_a_long_history_stays_a_page_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr("mlops_nb.report.history._MAX_RUNS", 20)
    monkeypatch.setattr("mlops_nb.report.history._MAX_CHARTED", 6)
    for i in range(30): add(tmp_path, f"r{i:03}", f"2026-01-01T00:{i:02}:00", i / 30, pages=())
    text = write_index(tmp_path, tmp_path / "i.html", "Runs").read_text()
    assert "The newest 20 of 30 are shown." in text and text.count("<tr>") == 21
    assert text.count("<circle") == 6


def test_a_record_of_an_older_version_is_read(tmp_path):
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa/run.json").write_text('{"name": "aa", "created_at": "2026-01-01T00:00:00", "message": "Done.",'
                                          '"metrics": [{"name": "roc_auc", "value": 0.8}]}')
    assert read_runs(tmp_path)[0][1].weak_segments is None
    assert "Done." in write_index(tmp_path, tmp_path / "i.html", "Runs").read_text()


def test_a_torn_record_is_named(tmp_path):
    add(tmp_path, "aa", "2026-01-01T00:00:00")
    (tmp_path / "aa/run.json").write_text('{"name": "aa", "ti')
    with pytest.raises(UserError, match="aa/run.json cannot be read"): read_runs(tmp_path)


# ---- publishing

@pytest.fixture
def fake(monkeypatch):
    "Notebooks that are done at once; `fake.fails` names the one that fails."
    class Fake: pass
    def run(notebook, html, parameters, **kwargs):
        Fake.calls.append((Path(notebook).stem, parameters, kwargs["header"]))
        if Path(notebook).stem == Fake.fails: raise UserError(f"{notebook} failed.")
        Path(html).write_text(render_page("x", "", kwargs["header"]))
    Fake.calls, Fake.fails = [], ""
    monkeypatch.setattr(pipeline, "run_notebook", run)
    monkeypatch.setattr(pipeline, "write_model_card_page", lambda bundle, html,
                        header: Path(html).write_text(render_page("x", "", header)))
    return Fake


def snapshot(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
                              if p.is_file()}


def test_publishing_the_same_run_again_adds_nothing(tmp_path, fake):
    for name, time in (("aa", "2026-01-01T00:00:00"), ("bb", "2026-01-02T00:00:00"), ("bb", "2026-01-03T00:00:00")):
        pipeline.publish_run(tmp_path, RunRecord(name, time, "done"), PageHeader(project="P", created="m"))
        seen = snapshot(tmp_path / "reports")
        pipeline.publish_run(tmp_path, RunRecord(name, "2026-02-01T00:00:00", "done"),
                             PageHeader(project="P", created="m"))
        again = snapshot(tmp_path / "reports")
        seconds = re.compile(rb'"duration_seconds": [\d.]+')
        assert {k: seconds.sub(b"", v) for k, v in seen.items()} == {k: seconds.sub(b"", v) for k, v in again.items()}
    assert [(r.name, r.previous_run) for _, r in read_runs(tmp_path / "reports/pipeline")] == [("bb", "aa"), ("aa", "")]
    for html in (tmp_path / "reports").rglob("*.html"):
        for link in self_contained(html.read_text()).links:
            assert link.startswith("#") or (html.parent / link).exists(), (html, link)
    assert fake.calls[-1][1] == {"previous": "reports/pipeline/aa/run.json"}


def test_a_failing_notebook_leaves_the_pages_of_before_and_no_rest(tmp_path, fake):
    pipeline.publish_run(tmp_path, RunRecord("aa", "2026-01-01T00:00:00", "done"), PageHeader())
    before = snapshot(tmp_path / "reports")
    fake.fails = "explanation"
    with pytest.raises(UserError, match="explanation.ipynb failed"):
        pipeline.publish_run(tmp_path, RunRecord("bb", "2026-01-02T00:00:00", "done"), PageHeader())
    assert snapshot(tmp_path / "reports") == before
    assert [p.name for p in (tmp_path / "reports/pipeline").iterdir()] == ["aa"]


def test_the_rest_of_a_killed_run_is_swept(tmp_path, fake):
    left = tmp_path / "reports/pipeline/.aa.x.tmp"
    left.mkdir(parents=True)
    (left / "run.json").write_text("{")
    pipeline.publish_run(tmp_path, RunRecord("aa", "2026-01-01T00:00:00", "done"), PageHeader())
    assert [p.name for p in (tmp_path / "reports/pipeline").iterdir()] == ["aa"]


def test_a_stage_that_has_not_run_is_named(tmp_path):
    with pytest.raises(UserError, match="gate.json does not exist; run the step"): pipeline.run_report(tmp_path)
