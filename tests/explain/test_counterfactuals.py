"What if: values typed by hand, before and after, distances, and rows with another answer."
import json

import lightgbm as lgb
import numpy as np
import polars as pl
import pytest
from support.trained_project import CLASSES, rows, schema, trained

from mlops_nb.bundle.bundle import open_trained_predictor
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.explain.counterfactuals import (
    sparse_counterfactual,
    parse_json_row,
    nearest_counterfactuals,
    read_row,
    parse_changes,
    read_reference_rows,
    build_reference_rows,
    print_what_if,
    what_if,
    parse_values,
)
from mlops_nb.model.policy import Policy
from mlops_nb.pipeline import run_stage
from mlops_nb.scaffold import init_project


@pytest.fixture(scope="module", params=[*((task, "gbdt") for task in CLASSES), ("binary", "net")], ids="-".join)
def asked(request, tmp_path_factory):
    "A predictor, the project it is of, and the rows to compare with."
    task, learner = request.param
    root = trained(tmp_path_factory.mktemp(task), task, learner=learner, n=600)
    predictor = open_trained_predictor(root, learner)
    predictor.policy = Policy(task, CLASSES[task], .5 if task == "binary" else None)
    return predictor, root, read_reference_rows(root, predictor)


def row_of(predictor, root, i=0): return read_row(predictor, i + 1, root / "artifacts/prepared/test.parquet")


def other(predictor, a, b, by):
    "Is the answer for frame `b` another one than for the one row `a`?"
    if predictor.schema.task == "regression": return np.abs(predictor.predict(b) - predictor.predict(a)) >= by
    return predictor.decide(predictor.predict(b)) != predictor.decide(predictor.predict(a))


# what a person wrote


@pytest.mark.parametrize("values, says", [
    ({"xx": 1}, "there is no column 'xx'; did you mean 'x'?"), ({"x": "high"}, "x: high is not a number"), ({"x": 11}, "x: 11 is above 10"),
    ({"x": "-10.5"}, "x: -10.5 is below -10"), ({"x": "inf"}, "x: inf is infinite"), ({"count": 2.5}, "count: 2.5 is not an integer"),
    ({"count": ""}, "count: missing"), ({"count": None}, "count: missing"), ({"known": "so"}, "known: so is not true or false"),
    ({"when": "soon"}, "when: soon is not a date or time"), ({"x": [1, 2]}, "give one value"),
    ({"count": 10**400}, "larger than any column")])
def test_what_cannot_be_is_refused(values, says):
    with pytest.raises(UserError) as e: parse_values(schema("binary"), values)
    assert says in str(e.value)


def test_a_category_outside_the_domain_is_a_typing_error():
    s = schema("binary")
    s.columns["place"].domain = ["Amsterdam", "Örebro"]
    with pytest.raises(UserError, match="Amsterdan is a new category; did you mean 'Amsterdam'?"): parse_values(s, {"place": "Amsterdan"})


def test_texts_are_read_as_a_delivery_is():
    got = parse_values(schema("binary"), {"x": " 2.5 ", "count": "7", "place": "?", "known": "yes", "when": "2026-03-01T10:00:00Z"})
    assert got.row(0)[:4] == (2.5, 7, None, True) and str(got["when"][0]) == "2026-03-01 10:00:00"
    assert parse_values(schema("binary"), {"x": 2.5, "known": False, "place": None}).row(0) == (2.5, False, None)


def test_changes_must_be_read_by_the_model(asked):
    predictor, *_ = asked
    assert parse_changes(predictor, ["place=a=b", "x="]) == {"place": "a=b", "x": None} and parse_changes(predictor, []) == {}
    for text, says in (("note=hm", "the model does not read 'note'"), ("x", "'x' is no change"), ("=1", "there is no column ''")):
        with pytest.raises(UserError, match=says): parse_changes(predictor, [text])


def test_rows_come_from_files_and_json(asked, tmp_path):
    predictor, root, _ = asked
    values = row_of(predictor, root).row(0, named=True)
    assert parse_json_row(predictor, json.dumps(values, default=str)).row(0, named=True) == values
    for number in (0, -1, 10_000):
        with pytest.raises(UserError, match=f"has no row {number}; its rows are 1 to"): row_of(predictor, root, number - 1)
    with pytest.raises(UserError, match="does not exist"): read_row(predictor, 1, tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot be read as Parquet"): read_row(predictor, 1, tmp_path / "torn.parquet")
    for text in ("[1]", "{", "1e999"):
        with pytest.raises(UserError, match="no JSON object"): parse_json_row(predictor, text)
    with pytest.raises(UserError, match="has no column"): parse_json_row(predictor, "{}")


# before and after


def test_the_answers_are_the_predictors(asked):
    predictor, root, near = asked
    row = row_of(predictor, root)
    found = what_if(predictor, row, {"count": 50, "place": "Örebro"}, near)
    assert {c.column: c.after for c in found.changes} == {"count": 50, "place": "Örebro"}
    changed = row.with_columns(count=pl.lit(50), place=pl.lit("Örebro"))
    for frame, answer, side in ((row, found.before, "contribution_before"), (changed, found.after, "contribution_after")):
        score = predictor.predict(frame)[0]
        assert answer.score == score.max()
        if predictor.schema.task != "regression": assert answer.decision == predictor.decide(score[None])[0]
        k = predictor.predict(row)[0].argmax() if score.ndim else ...
        assert np.isclose(predictor.predict_raw(frame)[0][k], answer.raw_score)
        assert np.isclose(found.base_value + sum(getattr(e, side) for e in found.effects), answer.raw_score)
    assert {e.feature for e in found.effects} == set(predictor.feature_names)
    moved = [abs(e.contribution_after - e.contribution_before) for e in found.effects]
    assert moved == sorted(moved, reverse=True)


def test_a_change_of_a_column_changes_the_features_made_from_it(asked):
    predictor, root, near = asked
    row = row_of(predictor, root).with_columns(x=pl.lit(1.0), count=pl.lit(4))
    seen = {e.feature: (e.before, e.after) for e in what_if(predictor, row, {"count": 2}, near).effects}
    assert seen["ratio"] == (.25, .5) and seen["count"] == (4, 2) and seen["known"][0] == seen["known"][1]


def test_without_a_change_nothing_moves(asked):
    predictor, root, near = asked
    found = what_if(predictor, row_of(predictor, root), {}, near)
    assert found.before == found.after and not found.changes and all(e.contribution_before == e.contribution_after for e in found.effects)


# rows with another answer


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
        assert found.nearest_counterfactual.source == near.sources[int(np.flatnonzero(differs & (away <= away[differs].min() + 1e-12))[0])]


def test_the_fewest_changes_change_the_answer_and_none_can_be_spared(asked):
    predictor, root, near = asked
    for i in range(5):
        row, by = row_of(predictor, root, i), .7
        here, ids = row.row(0, named=True), nearest_counterfactuals(predictor, row, near, by)
        found = sparse_counterfactual(predictor, row, near, ids, by)
        made = {c.column: c.after for c in found.changes}
        raw = {c: next(near.rows[c][j] for j in ids if found.source.endswith(near.sources[j])) for c in made} # the values of one real row
        assert {c: str(v) for c, v in raw.items()} == {c: str(v) for c, v in made.items()}
        tries = [here | raw, *(here | {k: v for k, v in raw.items() if k != c} for c in made)]
        enough = other(predictor, row, pl.DataFrame(tries, schema=row.schema), by)
        assert enough[0] and not enough[1:].any()
        assert len(made) <= len(what_if(predictor, row, {}, near, by).nearest_counterfactual.changes)


def test_where_no_row_has_another_answer_it_is_said(asked, capsys):
    predictor, root, near = asked
    same = predictor.decide(near.scores) == predictor.decide(near.scores)[0] if predictor.schema.task != "regression" else slice(None)
    lonely = type(near)(near.rows.filter(same) if not isinstance(same, slice) else near.rows, near.sources, near.scores[same], near.ranges)
    row = lonely.rows[:1]
    found = what_if(predictor, row, {}, lonely, 1e9)
    assert found.nearest_counterfactual is None and found.sparse_counterfactual is None
    print_what_if(found)
    assert "None of the rows that it was compared with has" in capsys.readouterr().out


def test_rows_that_the_contract_forbids_are_no_neighbours(asked):
    predictor, *_ = asked
    frame = rows(40, task=predictor.schema.task).with_columns(_source=pl.lit("f.csv"), _row=pl.int_range(40))
    bad = frame.with_columns(x=pl.when(pl.col("_row") < 10).then(99.0).otherwise("x"),
                             count=pl.when(pl.col("_row") == 20).then(None).otherwise("count"))
    kept = build_reference_rows(predictor, bad)
    assert len(kept.rows) == len(kept.sources) == len(kept.scores) == 29 and kept.rows["x"].max() <= 10 and "f.csv, row 1" not in kept.sources
    with pytest.raises(UserError, match="none of the rows fits the contract"): build_reference_rows(predictor, frame.with_columns(x=pl.lit(99.0)))
    assert len(build_reference_rows(predictor, frame, max_rows=7).rows) == 7


def test_what_is_printed_adds_up(asked, capsys):
    predictor, root, near = asked
    found = what_if(predictor, row_of(predictor, root), {"count": 50}, near)
    print_what_if(found, max_features=2)
    out = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line.split() for line in out.split("The nearest")[0].splitlines()}
    ends = ("others", "on average", "raw score", *predictor.feature_names)
    figures = {name: [float(x) for x in line[-3:]] for name, line in lines.items() if name.endswith(ends)}
    total = figures.pop("raw score")
    assert len(figures) == 4 and np.allclose(np.sum([*figures.values()], 0), total, atol=.005)
    assert "The nearest real row with" in out and "The fewest changes found" in out


# real data


@pytest.mark.realdata
@pytest.mark.slow
def test_customers_of_a_telecom_and_what_would_keep_them(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_RUN_THREADS", "1")
    root = tmp_path / "telco"
    init_project(root, str(next(real_data("telco_churn").glob("*.csv"))), "Churn", exclude=["customerID"])
    for stage in ("validate", "prepare", "baseline", "train", "evaluate"): run_stage(stage, root, "gbdt" if stage == "train" else None)
    predictor = open_trained_predictor(root)
    predictor.policy = read_json(root / "artifacts/evaluation/policy.json", Policy)
    near, test = read_reference_rows(root, predictor), pl.read_parquet(root / "artifacts/prepared/test.parquet")
    for i in np.flatnonzero(predictor.predict(test) > .7)[:5]:
        row = test[[int(i)]].select(near.rows.columns)
        found = what_if(predictor, row, {}, near)
        assert found.before.decision == "Yes" and found.nearest_counterfactual.prediction.decision == found.sparse_counterfactual.prediction.decision == "No"
        assert 1 <= len(found.sparse_counterfactual.changes) <= len(found.nearest_counterfactual.changes)
        again = parse_values(predictor.schema, {c.column: c.after for c in found.sparse_counterfactual.changes}).row(0, named=True) # the contract allows it
        after = what_if(predictor, row, again, near)
        assert after.after.decision == "No" and after.after.score == found.sparse_counterfactual.prediction.score and after.nearest_counterfactual.prediction.decision == "Yes"
    theirs = lgb.Booster(model_file=root / "artifacts/models/gbdt/model.txt").predict(predictor.encode_frame(test), pred_contrib=True)
    assert len(test) > 1000 and np.abs(predictor.contributions(test) - theirs).max() < 1e-11
