"The reports slo, cost and duty: rendered for an empty project and for one where something happened."
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from support.html_pages import self_contained

from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import end_run, queue_run, record_step
from mlops_nb.monitor.alert_updates import update_alerts
from mlops_nb.monitor.findings import Finding
from mlops_nb.monitor.store import open_monitor_store
from mlops_nb.report.operations_tables import cost_conclusion, slo_conclusion, slo_rows
from mlops_nb.report.runner import run_notebook
from mlops_nb.report.schedule_pages import page_values

REPORTS = Path(__file__).parents[2] / "nbs" / "reports"
NOW = datetime.now(UTC)
PRICES = "[prices]\ncpu_hour = 10\ngpu_hour = 2\ngib_hour = 0\ngib_month = 1\ncurrency = EUR\n"


def project(root, prices=""):
    root.mkdir(exist_ok=True)
    (root / "settings.ini").write_text(f"[release]\nendpoint = churn\n{prices}")
    (root / "schema.yaml").touch()
    return root


def render(root, name, **parameters):
    page = root / "out" / f"{name}.html"
    run_notebook(REPORTS / f"{name}.ipynb", page, dict(root=str(root)) | parameters, cwd=root)
    self_contained(text := page.read_text())
    return text


def eventful(root):
    ledger, store = open_ledger(root), open_monitor_store(root)
    finding = Finding(rule="latency", subject="p99", severity="page", started_at=NOW, summary="p99 is 900 ms.",
                      runbook="outage", next_command="mlops-nb slo status")
    update_alerts(root, [finding], NOW)
    queue_run(ledger, "r1", dict(trigger="retrain", reason="new data"), by="controller")
    attempt = ledger.begin_attempt("r1", "host")
    with record_step(ledger, "r1", attempt, "step train") as facts: facts["cpu_seconds"] = 3600.0
    end_run(ledger, "r1", attempt, "failed", "Step train failed: no column x")
    paused = dict(until=(NOW + timedelta(days=3)).isoformat(), why="stocktaking")
    ledger.append("schedule.paused", "weekly", paused, by="ana")
    rows = pl.DataFrame(dict(slo=["latency"] * 3 + ["quality"], objective=[99.0] * 3 + [90.0],
                             measured_at=[(NOW - timedelta(days=d)).replace(tzinfo=None) for d in (5, 3, 1, 1)],
                             good=[100.0] * 4, bad=[0.0, 1.0, 2.0, 0.0], budget_left=[0.9, 0.4, -0.1, None]))
    with store.transaction() as t: t.append("slo_budgets", rows)
    return root


@pytest.fixture(scope="module")
def happened(tmp_path_factory): return eventful(project(tmp_path_factory.mktemp("happened") / "p", PRICES))


def test_slo_report(happened):
    found = page_values(render(happened, "slo"))
    assert "The budget of latency is used up" in found["Conclusion"] and "Failed" in found["Conclusion"]
    assert any("Left at the start" in k and v == "90.0 %" for k, v in found.items()), found


def test_cost_report(happened):
    text = render(happened, "cost")
    found = page_values(text)
    assert "1 run took 1" in found["Conclusion"] and "10.00 EUR" in found["Conclusion"], found["Conclusion"]
    assert "retrain" in text and "train" in text and "Commit to full traffic" in text


def test_duty_report(happened):
    text = render(happened, "duty")
    assert "1 of them urgent" in text and "p99 is 900 ms." in text and "outage" in text and "stocktaking" in text
    assert "no column x" in text


@pytest.mark.parametrize("name, said", [("slo", "nothing is known of any"), ("cost", "There was no run"),
                                        ("duty", "No alert is open")])
def test_where_nothing_happened_it_says_so(tmp_path, name, said):
    assert said in render(project(tmp_path / "p"), name)


def test_a_cost_without_prices_is_unknown(tmp_path):
    root = eventful(project(tmp_path / "p"))
    text = render(root, "cost")
    assert "what they cost is unknown, since settings.ini has no prices" in text


def test_an_objective_without_events_is_unknown_and_last():
    rows = slo_rows(pl.DataFrame(dict(slo=["a", "b"], objective=[9.0, 9.0], good=[None, 1.0], bad=[None, 0.0],
                                      budget_left=[None, 0.7], measured_at=[NOW, NOW])))
    assert [r["slo"] for r in rows] == ["b", "a"]
    assert slo_conclusion(rows, 0) == ("No budget is used up; b has the least left, 70.0 %; 1 objective had events, 0 "
                                       "incidents in the period.", True)
    assert slo_conclusion([], 0)[1] is None and cost_conclusion([], []) == "There was no run in the period."


def test_a_project_that_lacks_the_notebook_gets_it(tmp_path):
    root = project(tmp_path / "p")
    (root / "nbs" / "reports").mkdir(parents=True)
    run_notebook(root / "nbs/reports/duty.ipynb", root / "duty.html", cwd=root)
    assert (root / "nbs/reports/duty.ipynb").exists() and (root / "duty.html").exists()
    shutil.rmtree(root)


def test_a_ledger_in_postgresql_is_read_and_its_password_stays_out_of_the_page(tmp_path, in_postgres, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", in_postgres)
    root = project(tmp_path / "p")
    queue_run(ledger := open_ledger(root), "r1", dict(trigger="retrain", reason="new data"), by="controller")
    end_run(ledger, "r1", ledger.begin_attempt("r1", "host"), "failed", "There is no column x.")
    ledger.append("release.promoted", "r7", dict(reason="All rules held."), by="judge")
    text = render(root, "duty")
    assert "run r1" in text and "There is no column x." in text and "promoted All rules held." in text
    assert os.environ["PGPASSWORD"] not in text
