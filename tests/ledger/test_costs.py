"Costs: each second counted once, whatever was killed; periods, triggers, prices; on both databases."
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.config.settings import PriceSettings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.costs import (
    ResourceUse,
    _outer_steps,
    cost_since,
    format_costs,
    format_money,
    resource_cost,
    run_costs,
    storage_costs,
)
from mlops_nb.ledger.ledger import Ledger, open_ledger
from mlops_nb.ledger.runs import end_run, queue_run, record_step

PRICES = PriceSettings(cpu_hour=0.04, gpu_hour=2.0, gib_hour=0.005)
START = datetime(2020, 1, 1, tzinfo=UTC)


def step(span, parent="", **used):
    none = dict.fromkeys(("seconds", "cpu_seconds", "peak_memory_mib", "gpu_seconds"))
    return none | dict(span=span, parent=parent) | used


def run(ledger, id, trigger="retrain", seconds=3600.0, cpu=3600.0):
    queue_run(ledger, id, dict(commit="c", data="d", params=id, trigger=trigger))
    attempt = ledger.begin_attempt(id, "x")
    begun = ledger.append("step.started", id, dict(step="step train", attempt=attempt, span=f"{id}s", parent="x"))
    ledger.append("step.ended", id, dict(status="done", seconds=seconds, cpu_seconds=cpu, peak_memory_mib=1024.0),
                  key=f"step/{begun.seq}/ended")
    end_run(ledger, id, attempt, "succeeded", "Released.")


def test_runs_and_triggers(uri):
    ledger = Ledger(uri, prices=PRICES)
    assert run_costs(ledger, START) == [] and cost_since(ledger, START) == 0
    for id, trigger in (("r1", "retrain"), ("r2", "nightly"), ("r3", "retrain")): run(ledger, id, trigger)
    queue_run(ledger, "r4", dict(commit="c", data="d", params="4", trigger="nightly"))  # has done nothing yet
    each = 0.04 + 0.005
    assert [(c.run, c.cost) for c in run_costs(ledger, START)] == [
        ("r1", pytest.approx(each)), ("r2", pytest.approx(each)), ("r3", pytest.approx(each)), ("r4", 0)]
    assert [c.run for c in run_costs(ledger, START, trigger="nightly")] == ["r2", "r4"]
    assert cost_since(ledger, START, "retrain") == pytest.approx(2 * each)
    assert cost_since(ledger, datetime.now(UTC) + timedelta(minutes=1)) == 0
    assert run_costs(ledger, START, datetime.now(UTC) - timedelta(minutes=1)) == []
    assert "all" in format_costs(run_costs(ledger, START)) and "0.09 EUR" in format_costs(run_costs(ledger, START))


def test_without_prices_a_cost_is_unknown(in_sqlite):
    ledger = Ledger(in_sqlite)
    run(ledger, "r1")
    [cost] = run_costs(ledger, START)
    assert (cost.cost, cost_since(ledger, START), cost.use.cpu_seconds) == (None, None, 3600)
    assert "unknown" in format_costs([cost]) and "[prices]" in format_costs([cost])
    assert format_costs([]) == "No runs were asked for in this time."
    assert [format_money(x, "EUR") for x in (None, 0, 0.001, 1234.5)] == [
        "unknown", "0.00 EUR", "under 0.01 EUR", "1,234.50 EUR"]


def test_what_a_real_step_used_is_there(in_sqlite):
    ledger = Ledger(in_sqlite, prices=PRICES)
    queue_run(ledger, "r1", dict(commit="c", data="d", params="p", trigger="retrain"))
    attempt = ledger.begin_attempt("r1", "x")
    with record_step(ledger, "r1", attempt, "step train"), record_step(ledger, "r1", attempt, "train gbdt"):
        sum(i * i for i in range(2_000_000))
    outer, inner = ledger.query("SELECT * FROM resources ORDER BY seq")
    assert inner["parent"] == outer["span"] and inner["cpu_seconds"] > 0 and inner["gpu_seconds"] is None
    [cost] = run_costs(ledger, START)
    assert [s.name for s in cost.steps] == ["train"] and cost.use.cpu_seconds == pytest.approx(outer["cpu_seconds"])


def test_all_attempts_count(in_sqlite):
    ledger = Ledger(in_sqlite, prices=PRICES)
    run(ledger, "r1")
    attempt = ledger.begin_attempt("r1", "y")
    killed = ledger.append("step.started", "r1", dict(step="step train", attempt=attempt, span="k", parent="x"))
    stage = ledger.append("step.started", "r1", dict(step="train", attempt=attempt, span="t", parent="k"))
    ledger.append("step.ended", "r1", dict(status="done", seconds=10, cpu_seconds=100.0), key=f"step/{stage.seq}/ended")
    assert killed.seq and run_costs(ledger, START)[0].use.cpu_seconds == 3700


@given(st.recursive(st.floats(0, 1e4), lambda deeper: st.lists(deeper, max_size=4), max_leaves=20),
       st.sets(st.integers(0, 40)))
def test_each_second_counts_once(tree, killed):
    "A tree of steps whose leaves use time; a step that ended counts what is within, one that was killed has no end."
    steps, count = [], iter(range(1000))

    def add(node, parent):
        number = next(count)
        at = len(steps)
        steps.append(None)
        used = node if isinstance(node, float) else sum(add(child, str(number)) for child in node)
        dead = number in killed and not isinstance(node, float)
        steps[at] = step(str(number), parent, **({} if dead else dict(cpu_seconds=used, seconds=1.0)))
        return used

    whole = add(tree, "outside")
    [(_, use)] = _outer_steps(steps)
    assert use.cpu_seconds == pytest.approx(whole)


@given(*[st.floats(0, 1e6)] * 3)
def test_a_cost_adds_up(cpu, gpu, memory):
    parts = [ResourceUse(cpu, 0, 0), ResourceUse(0, gpu, 0), ResourceUse(0, 0, memory)]
    assert resource_cost(sum(parts, ResourceUse()), PRICES) == pytest.approx(
        sum(resource_cost(p, PRICES) for p in parts))
    assert resource_cost(parts[1], PriceSettings(cpu_hour=1)) == 0


def test_prices_come_from_the_settings(tmp_path, monkeypatch):
    assert not read_settings(tmp_path).prices.is_known
    (tmp_path / "settings.ini").write_text("[prices]\ncpu_hour = 0.05\ngpu_hour =\ncurrency = CHF\n")
    prices = open_ledger(tmp_path).prices
    assert (prices.cpu_hour, prices.gpu_hour, prices.currency, prices.is_known) == (0.05, None, "CHF", True)
    monkeypatch.setenv("MLOPS_NB_PRICES_GPU_HOUR", "2.5")
    assert open_ledger(tmp_path).prices.gpu_hour == 2.5
    for wrong in ("-1", "cheap", "nan"):
        (tmp_path / "settings.ini").write_text(f"[prices]\ncpu_hour = {wrong}\n")
        with pytest.raises(UserError, match="cpu_hour"): read_settings(tmp_path)


def test_storage(tmp_path):
    assert storage_costs(tmp_path) == []
    (tmp_path / "bundles" / "a").mkdir(parents=True)
    (tmp_path / "bundles" / "a" / "model").write_bytes(bytes(1000))
    (tmp_path / "bundles" / "gone").symlink_to("nowhere")
    [found] = storage_costs(tmp_path)
    assert (found.path, found.cost_per_month) == ("bundles", None) and found.bytes >= 1000
    (tmp_path / "settings.ini").write_text("[prices]\ngib_month = 1073741824\n[release]\nstore = s3://x/y\n")
    assert storage_costs(tmp_path) == []  # what is not here cannot be measured here
