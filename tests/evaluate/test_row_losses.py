"What an answer was worth once its label is known."
import polars as pl
import pytest
from msgspec.structs import replace

from mlops_nb.config.params import CostParams
from mlops_nb.evaluate.row_losses import row_costs, row_losses
from mlops_nb.examples.subscribers import subscriber_schema


def test_losses_and_costs():
    schema = subscriber_schema()
    three = replace(schema, task="multiclass", classes=["a", "b", "c"])
    assert row_losses(pl.Series([[.2, .3, .5], [1., 0, 0]]), pl.Series(["c", "z"]), three).to_list() == [
        pytest.approx(.19), None]
    number = replace(schema, task="regression", classes=None)
    assert row_losses(pl.Series([2., 3.]), pl.Series(["4", "no number"]), number).to_list() == [4, None]
    assert row_costs(pl.Series(["b"]), pl.Series(["b"]), three, CostParams()).to_list() == [None]
    costs = CostParams(true_positive=-3, false_positive=1, true_negative=0, false_negative=2)
    decisions = pl.Series(["leaves", "leaves", "stays", "stays", None, "leaves"])
    labels = pl.Series(["leaves", "stays", "stays", "leaves", "leaves", "odd"])
    assert row_costs(decisions, labels, schema, costs).to_list() == [-3, 1, 0, 2, None, None]
