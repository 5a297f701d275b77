"""report.threshold_explorer: figures at the threshold in use, and the numbers from which a page computes others."""
import json
import re
from html import unescape

import pytest
from support.browser import measure_pages
from support.html_pages import self_contained
from support.small_evaluation import small_evaluation

from mlops_nb.config.params import CostParams
from mlops_nb.evaluate.metrics import DecisionSettings
from mlops_nb.report.html import render_page, sanitize_html
from mlops_nb.report.page_script import THRESHOLD_SCRIPT
from mlops_nb.report.threshold_explorer import threshold_explorer, threshold_figures


def shown(text): # What stands at each mark of the script
    return {k: unescape(v) for k, v in re.findall(r'<span data-show="(\w+)">([^<]*)</span>', text)}


def curve_of(text): return json.loads(unescape(re.search(r'data-threshold-curve="([^"]*)"', text)[1]))


def test_the_page_shows_what_the_decisions_came_to():
    e, tables = small_evaluation("binary")
    page, counts = threshold_explorer(e, tables).text, e.decision_costs.confusion_counts
    figures, data = shown(page), curve_of(page)
    assert [figures[k] for k in ("tp", "fp", "tn", "fn")] == [str(counts[k]) for k in (
        "true_positive", "false_positive", "true_negative", "false_negative")]
    assert figures["accuracy"] == f"{100 * e.metrics['test']['accuracy'].value:.1f} %"
    assert (data["tp"][data["chosen"]], data["fp"][data["chosen"]]) == (counts["true_positive"],
                                                                        counts["false_positive"])
    assert data["events"] + data["others"] == sum(counts.values())
    assert data["thresholds"] == sorted(data["thresholds"]) and len(data["thresholds"]) == len(data["tp"])


def test_every_mark_is_one_that_the_script_fills():
    page = threshold_explorer(*small_evaluation("binary")).text
    filled = set(re.findall(r"(\w+): (?:number|percent)\(", THRESHOLD_SCRIPT)) | {"threshold"}
    assert shown(page).keys() <= filled
    assert 'id="threshold-line"' in page and "data-controls hidden" in page


def test_costs_are_errors_until_somebody_sets_them():
    e, tables = small_evaluation("binary")
    page = threshold_explorer(e, tables).text
    assert "Errors per 1,000 rows" in page and "set evaluate.costs" in page
    e.decision_settings = DecisionSettings(e.decision_settings.threshold, CostParams(true_positive=-20))
    page, n = threshold_explorer(e, tables).text, sum(e.decision_costs.confusion_counts.values())
    c = e.decision_costs.confusion_counts
    spent = 1000 * (c["false_positive"] + c["false_negative"] - 20 * c["true_positive"]) / n
    assert "Cost per 1,000 rows" in page and curve_of(page)["costs"] == [-20, 1, 1, 0]
    assert float(shown(page)["cost"].replace("−", "-").replace(",", "")) == pytest.approx(spent, abs=0.51)


def test_names_of_classes_are_text_and_the_script_is_constant():
    e, tables = small_evaluation("binary")
    e.classes = ["<b>no</b>", "\"><script>alert(1)</script>"]
    html = sanitize_html(threshold_explorer(e, tables).text)
    page = render_page("Report", html)
    self_contained(page)
    assert "<script>alert" not in page and "<b>no" not in page and page.count("<script>") == 1
    assert curve_of(page) == curve_of(threshold_explorer(e, tables).text)
    assert not render_page("Report", "<p>Nothing to move.</p>").count("<script>")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_only_a_binary_task_has_a_threshold(task): assert not threshold_explorer(*small_evaluation(task)).text


def test_scores_that_are_no_numbers_have_none(): assert not threshold_explorer(small_evaluation("binary")[0], {}).text


MOVE = """(page, width) => {
  const slider = page.querySelector('input'), found = {hidden: page.querySelector('[data-controls]').hidden};
  const read = () => Object.fromEntries([...page.querySelectorAll('[data-show]')].map(
    e => [e.dataset.show, e.textContent]));
  for (const i of [0, 1, 7, Number(slider.max) - 1, Number(slider.max)]) {
    slider.value = i; slider.dispatchEvent(new page.defaultView.Event('input'));
    found[i] = read();
  }
  found.said = slider.getAttribute('aria-valuetext');
  page.querySelector('button').click();
  return {...found, reset: read(), width: page.documentElement.scrollWidth};
}"""


def test_the_browser_computes_what_python_does_at_every_position(tmp_path):
    e, tables = small_evaluation("binary")
    e.decision_settings = DecisionSettings(e.decision_settings.threshold, CostParams(true_positive=-20.5))
    page = render_page("Report", sanitize_html(threshold_explorer(e, tables).text))
    (tmp_path / "page.html").write_text(page)
    found = measure_pages(tmp_path, dict(page=tmp_path / "page.html"), 390, MOVE)["page"]
    assert not found.pop("hidden") and found.pop("width") <= 390 # the policy lets the script run; nothing sticks out
    assert found.pop("said") == "above all scores" and found.pop("reset") == shown(page)
    rows = tables["threshold_curve"].reverse().to_dicts()
    for i, texts in found.items():
        expected = threshold_figures(e, rows[int(i)])
        assert texts == {k: expected[k] for k in texts}, i
