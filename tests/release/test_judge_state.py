"What the judge keeps between two looks."
import numpy as np
import pytest

from mlops_nb.release import judge_state
from mlops_nb.release.judge_state import CountedCustomers, JudgeState, read_judge_state, write_judge_state


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
