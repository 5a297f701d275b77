"Pages of schedules: what a person sees, filters and compares, in a real browser and without JavaScript."
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.browser import measure_pages
from support.html_pages import Links

from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.report.figures import figure_html, subplots
from mlops_nb.report.history import RunRecord
from mlops_nb.report.html import render_page
from mlops_nb.report.html_fragments import table, verdict
from mlops_nb.report.page_script import SCHEDULE_SCRIPT, script_hash
from mlops_nb.report.schedule_pages import page_values, write_schedule_pages

START = datetime(2026, 11, 2, 6, tzinfo=UTC)


def page(left, rows=2):
    _, axes = subplots()
    axes.plot([0, left])
    figure = figure_html(axes.figure, f"The budget falls to {left} percent.")
    budgets = [{"SLO": f"slo-{i}", "Left": f"{left - i} %", "Bad": i} for i in range(rows)]
    return render_page("SLO report", verdict(f"{left} % is left.", left > 50).text + "<h2>Budgets</h2>"
                       + table(budgets).text + figure.text)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "scheduled"
    for week, left in enumerate((90, 70, 40)):
        at = START + timedelta(weeks=week)
        run = folder / "slo" / f"{at:%Y%m%dT%H%M%SZ}"
        run.mkdir(parents=True)
        (run / "slo.html").write_text(page(left, 2 + (week == 2)))
        (run / "slo.ipynb").write_text("{}")
        write_json(run / "run.json", RunRecord(run.name, at.isoformat(), "slo: done.", pages=dict(slo="slo.html")))
    for name, passed, said in (("scores", None, "scores: 3 new files."), ("scores<b>", False, "failed twice: <i>")):
        run = folder / name / f"{START:%Y%m%dT%H%M%SZ}"
        write_json(run / "run.json", RunRecord(run.name, START.isoformat(), said, passed))
    write_schedule_pages(folder)
    return folder


def test_values_of_a_page():
    found = page_values(page(70))
    assert found == {"Conclusion": "✓ Passed. 70 % is left.",
                     "Budgets · slo-0 · Left": "70 %", "Budgets · slo-0 · Bad": "0",
                     "Budgets · slo-1 · Left": "69 %", "Budgets · slo-1 · Bad": "1"}


@given(st.text())
def test_any_text_has_values_or_none(text):
    assert all(isinstance(v, str) and len(v) <= 200 for v in page_values(text).values())


def test_links_lead_to_files_and_nothing_acts_but_the_one_script(site):
    for index in site.rglob("index.html"):
        text = index.read_text()
        found = Links(text)
        assert not found.handlers and "<i>" not in text and not {"iframe", "form"} & set(found.tags)
        assert re.findall(r"<script>(.*?)</script>", text, re.S) == [SCHEDULE_SCRIPT]
        assert script_hash(SCHEDULE_SCRIPT) in text
        for link in found.links:
            if not link.startswith("#"): assert (index.parent / link.replace("%3C", "<")).exists(), link


def test_without_a_script_the_list_is_there_and_the_controls_are_not(site):
    text = (site / "slo" / "index.html").read_text()
    assert text.count("slo: done.") == 3 and "data-filter hidden" in text and " hidden>" in text


CLICK = """(page, width) => {
  const out = {wide: page.documentElement.scrollWidth > width + 1};
  const set = (selector, value) => {
    const c = page.querySelector(selector);
    c.value = value;
    c.dispatchEvent(new Event('input'));
  };
  const rows = () => [...page.querySelectorAll('[data-filter] + .scroll tbody tr')]
    .filter(r => r.getBoundingClientRect().height > 0).length;
  out.all = rows();
  set('[data-column="Outcome"]', 'failed');
  out.failed = rows();
  out.count = page.querySelector('[data-count]').textContent;
  set('[data-column="Outcome"]', '');
  if (page.querySelector('[data-column="Schedule"]')) {
    set('[data-column="Schedule"]', 'scores');
    out.scores = rows();
    set('[data-column="Schedule"]', '');
  }
  set('[data-column=""]', '3 new FILES');
  out.text = rows();
  const box = page.querySelector('[data-runs]');
  if (box) {
    const cells = () => [...box.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent));
    out.said = box.querySelector('[data-said]').textContent;
    out.cells = cells();
    out.figures = [...box.querySelectorAll('img')].map(i => [i.alt, i.getAttribute('src')]);
    set('[data-side="a"]', 2);
    out.said2 = box.querySelector('[data-said]').textContent;
    const every = box.querySelector('[data-all]');
    every.click();
    every.dispatchEvent(new Event('input'));
    out.every = cells().length;
  }
  return out;
}"""


@pytest.mark.parametrize("width", [1200, 390])
def test_a_person_filters_and_compares(site, tmp_path, width):
    pages = {"all": site / "index.html", "slo": site / "slo" / "index.html"}
    found = measure_pages(tmp_path, pages, width, CLICK)
    assert not found["all"]["wide"] and not found["slo"]["wide"]
    assert {k: found["all"][k] for k in ("all", "failed", "scores", "text")} == dict(all=5, failed=1, scores=1, text=1)
    assert found["all"]["count"] == "1 of 5 runs"
    slo = found["slo"]
    assert slo["said"] == "5 of 7 numbers differ." and slo["said2"].endswith("differ.") and slo["every"] == 7
    assert ["Budgets · slo-0 · Left", "70 %", "40 % (−30)"] in slo["cells"]
    assert ["Budgets · slo-2 · Left", "–", "38 %"] in slo["cells"]
    assert [alt for alt, _ in slo["figures"]] == ["the budget falls to 70 percent, 2026-11-09 06:00",
                                                  "the budget falls to 40 percent, 2026-11-16 06:00"]
    for alt, src in slo["figures"]: assert alt and (site / "slo" / src).exists()


def test_old_runs_are_removed_with_their_pages(tmp_path):
    for days in (1, 40):
        at = datetime.now(UTC) - timedelta(days=days)
        run = tmp_path / "slo" / f"{at:%Y%m%dT%H%M%SZ}"
        write_json(run / "run.json", RunRecord(run.name, at.isoformat(), "slo: done."))
    write_schedule_pages(tmp_path, retention_days=30)
    assert len(list(tmp_path.glob("slo/*/run.json"))) == 1
    write_schedule_pages(tmp_path)
    assert len(list(tmp_path.glob("slo/*/run.json"))) == 1


def test_nothing_yet(tmp_path):
    write_schedule_pages(tmp_path)
    assert "Nothing has run yet." in (tmp_path / "index.html").read_text()


def test_numbers_lie_beside_the_page(site):
    facts = read_json(next((site / "slo").glob("*/page.json")), dict)
    assert facts["figures"] and facts["values"]["Conclusion"]
