"Rows with another answer: the nearest real one, and the one with the fewest changes."
import lightgbm as lgb
import numpy as np
import polars as pl
import pytest
from support.trained_project import rows

from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.explain.counterfactuals import (
    build_reference_rows,
    nearest_counterfactuals,
    read_reference_rows,
    sparse_counterfactual,
)
from mlops_nb.explain.what_if import parse_values, read_row, what_if
from mlops_nb.model.policy import Policy
from mlops_nb.pipeline import run_stage
from mlops_nb.scaffold import init_project
from mlops_nb.train.stage import open_trained_predictor


def row_of(predictor, root, i=0): return read_row(predictor, i + 1, root / "artifacts/prepared/test.parquet")


def other(predictor, a, b, by):
    "Is the answer for frame `b` another one than for the one row `a`?"
    if predictor.schema.task == "regression": return np.abs(predictor.predict(b) - predictor.predict(a)) >= by
    return predictor.decide(predictor.predict(b)) != predictor.decide(predictor.predict(a))


def brute(row, frame, spreads):
    "Gower's distance, value by value."
    def one(a, b, s, number):
        if a == b: return 0
        return 1 if a is None or b is None or not number else min(abs(a - b) / s, 1)
    kinds = [t.is_numeric() or t.is_temporal() for t in frame.dtypes]
    plain = [x.with_columns(pl.col(pl.Datetime).to_physical()).rows() for x in (row, frame)]
    return [sum(map(one, plain[0][0], r, spreads, kinds)) / len(kinds) for r in plain[1]]


def test_the_nearest_row_is_the_nearest_with_another_answer(asked):
    predictor, root, near = asked
    for i in range(5):
        row, by = row_of(predictor, root, i), .7
        away, differs = np.array(brute(row, near.rows, near.ranges)), other(predictor, row, near.rows, by)
        found = what_if(predictor, row, {}, near, by)
        assert differs.any() and found.nearest_counterfactual.distance == pytest.approx(away[differs].min())
        assert (
            found.nearest_counterfactual.source
            == near.sources[int(np.flatnonzero(differs & (away <= away[differs].min() + 1e-12))[0])]
        )


def test_the_fewest_changes_change_the_answer_and_none_can_be_spared(asked):
    predictor, root, near = asked
    for i in range(5):
        row, by = row_of(predictor, root, i), .7
        here, ids = row.row(0, named=True), nearest_counterfactuals(predictor, row, near, by)
        found = sparse_counterfactual(predictor, row, near, ids, by)
        made = {c.column: c.after for c in found.changes}
        raw = {
            c: next(near.rows[c][j] for j in ids if found.source.endswith(near.sources[j])) for c in made
        }  # the values of one real row
        assert {c: str(v) for c, v in raw.items()} == {c: str(v) for c, v in made.items()}
        tries = [here | raw, *(here | {k: v for k, v in raw.items() if k != c} for c in made)]
        enough = other(predictor, row, pl.DataFrame(tries, schema=row.schema), by)
        assert enough[0] and not enough[1:].any()
        assert len(made) <= len(what_if(predictor, row, {}, near, by).nearest_counterfactual.changes)


def test_rows_that_the_contract_forbids_are_no_neighbours(asked):
    predictor, *_ = asked
    frame = rows(40, task=predictor.schema.task).with_columns(_source=pl.lit("f.csv"), _row=pl.int_range(40))
    bad = frame.with_columns(x=pl.when(pl.col("_row") < 10).then(99.0).otherwise("x"),
                             count=pl.when(pl.col("_row") == 20).then(None).otherwise("count"))
    kept = build_reference_rows(predictor, bad)
    assert (
        len(kept.rows) == len(kept.sources) == len(kept.scores) == 29
        and kept.rows["x"].max() <= 10
        and "f.csv, row 1" not in kept.sources
    )
    with pytest.raises(UserError, match="none of the rows fits the schema"):
        build_reference_rows(predictor, frame.with_columns(x=pl.lit(99.0)))
    assert len(build_reference_rows(predictor, frame, max_rows=7).rows) == 7


# real data


@pytest.mark.realdata
@pytest.mark.slow
def test_customers_of_a_telecom_and_what_would_keep_them(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_RUN_THREADS", "1")
    root = tmp_path / "telco"
    init_project(root, str(next(real_data("telco_churn").glob("*.csv"))), "Churn", exclude=["customerID"])
    for stage in ("validate", "prepare", "baseline", "train", "evaluate"):
        run_stage(stage, root, "gbdt" if stage == "train" else None)
    predictor = open_trained_predictor(root)
    predictor.policy = read_json(root / "artifacts/evaluation/policy.json", Policy)
    near, test = read_reference_rows(root, predictor), pl.read_parquet(root / "artifacts/prepared/test.parquet")
    for i in np.flatnonzero(predictor.predict(test) > .7)[:5]:
        row = test[[int(i)]].select(near.rows.columns)
        found = what_if(predictor, row, {}, near)
        assert (
            found.before.decision == "Yes"
            and found.nearest_counterfactual.prediction.decision
            == found.sparse_counterfactual.prediction.decision
            == "No"
        )
        assert 1 <= len(found.sparse_counterfactual.changes) <= len(found.nearest_counterfactual.changes)
        again = parse_values(predictor.schema, {c.column: c.after for c in found.sparse_counterfactual.changes}).row(
            0, named=True
        )  # the contract allows it
        after = what_if(predictor, row, again, near)
        assert (
            after.after.decision == "No"
            and after.after.score == found.sparse_counterfactual.prediction.score
            and after.nearest_counterfactual.prediction.decision == "Yes"
        )
    theirs = lgb.Booster(model_file=root / "artifacts/models/gbdt/model.txt").predict(
        predictor.encode_frame(test), pred_contrib=True
    )
    assert len(test) > 1000 and np.abs(predictor.contributions(test) - theirs).max() < 1e-11
