"The feedback loop: what chance explains, what it does not, and what cannot be known."
from datetime import UTC, datetime

import numpy as np
import polars as pl
from support.counted_project import project

from mlops_nb.examples.subscribers import subscriber_schema
from mlops_nb.monitor import feedback_loop
from mlops_nb.monitor.feedback_loop import acted_on_share, label_share_result, score_result, training_rows_result
from mlops_nb.release.release_plan import HELD_OUT


def test_held_out_rows_have_the_name_that_the_release_plan_gives_them():
    assert feedback_loop._HELD_OUT == HELD_OUT


def test_chance_raises_nothing():
    rng, cells = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.ones(12))
    found = [label_share_result("e", (4000, int(rng.binomial(4000, .4))), (250, int(rng.binomial(250, .4)))).ok and
             score_result("e", rng.multinomial(4000, cells), rng.multinomial(250, cells)).ok for _ in range(400)]
    assert sum(found) >= 399


def test_a_real_difference_is_found():
    rng = np.random.default_rng(0)
    found = [label_share_result("e", (4000, int(rng.binomial(4000, .4))), (400, int(rng.binomial(400, .6))))
             for _ in range(50)]
    assert all(not f.ok and f.value < 0 for f in found)


def test_training_rows_without_an_entity_are_not_known(tmp_path):
    project(tmp_path)
    found = training_rows_result(tmp_path, "churn", tmp_path / "predictions")
    assert found.ok and found.value is None and found.message.startswith("Not known")


def test_a_training_row_with_several_decisions_counts_once():
    schema = subscriber_schema()
    schema.entity = "who"
    log = pl.DataFrame(dict(entity=["a"] * 3 + ["b"], variant="champion", mode="live", decision=[schema.classes[1]] * 4,
                            action=[None] * 4, time=[datetime(2026, 9, 1, tzinfo=UTC)] * 4),
                       schema_overrides=dict(action=pl.String))
    assert acted_on_share(pl.DataFrame(dict(who=["a", "c"])), log.lazy(), schema) == .5
