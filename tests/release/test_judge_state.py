"What the judge keeps between two looks."
import math

import numpy as np
import polars as pl
import pytest

from mlops_nb.config.params import CostParams, MarginParams, ReleaseParams
from mlops_nb.examples.subscribers import subscriber_schema
from mlops_nb.release import judge_state
from mlops_nb.release.judge_evidence import release_evidence
from mlops_nb.release.judge_state import (
    CountedCustomers,
    JudgeRules,
    JudgeState,
    ObservedLabels,
    read_judge_state,
    write_judge_state,
)


def test_customers_count_once_for_each_metric_in_whatever_order_they_come():
    rng, customers, counted = np.random.default_rng(0), CountedCustomers(), {"units": set(), "failures": set()}
    for _ in range(40):
        for metric, known in counted.items():
            some = np.unique(rng.integers(0, 500, 60).astype(np.uint64) << np.uint64(55))
            rng.shuffle(some)
            assert customers.claim(some, metric).tolist() == [s not in known for s in some.tolist()]
            known |= {*some.tolist()}


def test_beyond_the_limit_customers_do_not_count_and_are_numbered(monkeypatch):
    monkeypatch.setattr(judge_state, "MAX_CUSTOMERS", 10)
    customers, keys = CountedCustomers(), np.arange(25, dtype=np.uint64)
    assert customers.claim(keys[:8], "units").sum() == 8
    assert customers.claim(keys, "units").sum() == 2 and customers.n_left_out == 15
    assert customers.claim(keys[:3], "failures").sum() == 3 and len(customers.keys) == 80


@pytest.mark.parametrize("content", ["", "{", '{"release": "other"}', '{"release": "r1", "cursor": 3}'])
def test_a_state_that_is_damaged_or_of_another_release_is_counted_anew(tmp_path, content):
    path = tmp_path / "judge.json"
    path.write_text(content)
    assert read_judge_state(path, "r1") == JudgeState("r1")


def test_a_state_comes_back_as_it_was(tmp_path):
    state = JudgeState("r1", {"0": 12})
    state.customers.claim(np.arange(3, dtype=np.uint64), "units")
    write_judge_state(tmp_path / "judge.json", state)
    assert read_judge_state(tmp_path / "judge.json", "r1") == state


def selective(rng, i, n=1000):
    "An hour in which both variants are alike; of the challenger's units in the west hardly any label comes."
    mine, west, leaves = rng.random(n) < .5, rng.random(n) < .5, rng.random(n) < .2
    name, at = np.where(mine, "challenger", "champion"), np.arange(n)
    rows = pl.DataFrame({
        "id": [f"r{i}-{k}" for k in range(n)], "row": 0, "time": 3_600_000_000 * i + at, "lease_id": 0,
        "seq": i * n + at, "mode": "live", "revision": 5, "share": .5, "variant": name, "failed": "", "source": "model",
        "own_us": 100, "score": np.where(west, .5, .2), "decision": "stays",
        "columns.region": np.where(west, "west", "east"),
        "label": np.where(leaves, "leaves", "stays")}).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))
    return rows.drop("label"), rows.filter(pl.Series(rng.random(n) < np.where(west & mine, .3, .9)))


def judged(seed, segments, looks=12):
    rng, state = np.random.default_rng(seed), JudgeState("r1")
    rules = JudgeRules(4, share=.5, margins=MarginParams(loss=0., auc=None), segments=segments)
    for i in range(looks):
        records, labelled = selective(rng, i)
        state.count_records(records, rules)
        state.count_labels(labelled, rules, subscriber_schema(), CostParams())
    return state


def test_selective_labels_are_weighted_by_what_came_in_each_segment():
    "In the west losses are larger: without weights a challenger that is as good looks better."
    plain, weighted = ([judged(seed, of) for seed in range(3)] for of in ((), ("region",)))
    safe = [[s.effects["loss"][0].log_e_below >= math.log(20) for s in states] for states in (plain, weighted)]
    assert sum(safe[0]) >= 2 and sum(safe[1]) == 0
    assert sum(s.effects["loss"][0].log_e >= math.log(20) for s in weighted) <= 1
    assert all(s.effects["loss"][0].interval(.05)[1] > 0 for s in weighted)
    says = next(m.says for m in release_evidence(weighted[0], ReleaseParams()) if m.name == "loss")
    assert "weighted by what came in 2 segments" in says


def test_labels_that_cannot_be_weighted_yet_promote_nothing():
    state = judged(0, ("region",), looks=1)
    few, enough = (next(m for m in release_evidence(state, ReleaseParams(min_units=n)) if m.name == "loss")
                   for n in (500, 200))
    assert "loss" not in state.effects and few.passes
    assert not enough.passes and not enough.is_proven and "those of later hours count" in enough.says


def test_labels_that_come_all_at_once_count_but_for_their_first_hour():
    i = np.arange(8000)
    asked = pl.DataFrame(dict(segment=(i % 2).astype(str), is_challenger=i % 7 < 3, time=i // 1000 * 3_600_000_000))
    asked = asked.with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))
    seen = ObservedLabels()
    seen.add_units(asked)
    times = seen.take_labels(asked.filter(pl.Series((i % 2 == 0) | (i % 20 < 4)))) # half of one segment, all of another
    hours = np.repeat(np.arange(8), len(times) // 8)
    assert (times[hours == 0] == 0).all() and (times[hours > 0] > 0).all()
    assert set(times[hours == 7].round(1)) == {.6, 3.}


def test_a_state_with_segments_is_kept(tmp_path):
    state = judged(0, ("region",), looks=3)
    write_judge_state(tmp_path / "judge.json", state)
    assert read_judge_state(tmp_path / "judge.json", "r1").observed == state.observed


def test_weights_are_bounded_and_many_segments_are_one():
    i = np.arange(4000)
    asked = pl.DataFrame(dict(segment=(i % 80).astype(str), is_challenger=i % 7 < 3, time=0))
    asked = asked.with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))
    seen = ObservedLabels()
    seen.add_units(asked)
    labelled = asked.filter(pl.Series(np.arange(4000) % 80 != 3) | pl.Series(np.arange(4000) % 1000 < 90))
    later = labelled.with_columns(pl.col("time") + pl.duration(hours=2))
    assert (seen.take_labels(later) == 0).all() # no share is known yet
    times = seen.take_labels(later)
    assert len(seen.units) <= 51 and times.min() >= .2 and times.max() <= 5
