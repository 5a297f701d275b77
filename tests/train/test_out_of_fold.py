"Folds in the place of the valid rows: in trials, in the training and in what the evaluation calibrates by."
import msgspec
import numpy as np
import polars as pl
import pytest
from support.small_project import small_project

from mlops_nb.config.params import Params, read_params, write_params
from mlops_nb.config.project import Project
from mlops_nb.config.schema import read_schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.prepare import read_split
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.train import trials
from mlops_nb.train.baselines import run_baselines
from mlops_nb.train.ensemble_selection import read_recipe
from mlops_nb.train.learners import resolve_init_model
from mlops_nb.train.out_of_fold import fit_folds, out_of_fold_predictions, training_folds, validation_fold
from mlops_nb.train.stage import TrainingReport, open_trained_predictor, read_held_out_scores, run_train
from mlops_nb.train.study import counted_trials
from mlops_nb.train.trials import open_search_context
from mlops_nb.train.tuning import run_study, run_tune

SIZES = (300, 150, 200)
GBDT = dict(n_estimators=30, num_leaves=5)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch): monkeypatch.setenv("MLOPS_NB_RUN_THREADS", "1")


def change(root, **sections):
    p = msgspec.to_builtins(read_params(root / "params.yaml"))
    for name, values in sections.items(): p[name] = p[name] | values
    write_params(msgspec.convert(p, Params), root / "params.yaml")
    return root


def project(root, task="binary", method="random", sizes=SIZES, **train):
    small_project(root, task, sizes)
    p = msgspec.to_builtins(read_params(root / "params.yaml"))
    split = p["prepare"] | dict(split=p["prepare"]["split"] | dict(method=method))
    return change(root, prepare=split, train=dict(refit=True, gbdt=p["train"]["gbdt"] | GBDT) | train,
                  evaluate=dict(calibration=["platt"], n_resamples=50))


def with_columns(root, *columns, **schema_fields):
    "Other columns in the prepared rows, and other fields of the schema."
    for split in ("train", "valid", "test"):
        path = root / f"artifacts/prepared/{split}.parquet"
        pl.read_parquet(path).with_columns(*columns).write_parquet(path)
    schema = read_schema(root / "schema.yaml")
    for name, value in schema_fields.items(): setattr(schema, name, value)
    write_schema(schema, root / "schema.yaml")
    return root


def labelled(root): return pl.concat([read_split(root, split) for split in ("train", "valid")])


def folds_of(root, **how):
    opened = Project.open(root)
    return training_folds(opened, validation_fold(opened, resolve_init_model(opened, "gbdt")), **how)


def report(root): return read_json(root / "artifacts/models/gbdt/training.json", TrainingReport)


def test_every_row_is_judged_by_models_that_have_not_seen_it(tmp_path):
    root = project(tmp_path / "p")
    folds = folds_of(root)
    assert len(folds) == 15, "five folds, dealt three times"
    rows, n = [f.rows for f in folds], sum(SIZES[:2])
    for i in range(0, 15, 5): assert np.array_equal(np.sort(np.concatenate(rows[i : i + 5])), np.arange(n))
    assert {len(f.parts[0].y) + len(f.rows) for f in folds} == {n}
    y = labelled(root)["_target"].to_numpy()
    assert all(np.array_equal(f.parts[1].y, y[f.rows]) for f in folds)
    assert len(folds_of(root, repeated=False)) == 5


def test_what_cannot_be_learned_is_not_known_by_out_of_fold_scores(tmp_path):
    "The target is noise: each model knows its own rows by heart, and none of those that it judges."
    noise = pl.Series("_target", np.random.default_rng(5).integers(0, 2, sum(SIZES)).astype(float))
    root = project(tmp_path / "p", gbdt=dict(n_estimators=200, early_stopping_rounds=200, min_child_samples=1))
    for split, at in zip(("train", "valid", "test"), (0, 300, 450), strict=True):
        path = root / f"artifacts/prepared/{split}.parquet"
        frame = pl.read_parquet(path)
        frame.with_columns(noise[at : at + len(frame)]).write_parquet(path)
    run_train(root)
    y, held_out = labelled(root)["_target"].to_numpy(), read_held_out_scores(root, "gbdt")
    hit = lambda p: ((p > .5) == y).mean()
    assert hit(open_trained_predictor(root, "gbdt").predict(labelled(root))) > .7
    assert abs(hit(held_out.scores) - .5) < .08


def test_windows_of_time_judge_what_comes_later(tmp_path):
    root = with_columns(project(tmp_path / "p", method="time"),
                        pl.datetime(2026, 1, 1) + pl.duration(hours=pl.int_range(pl.len())), event_time="since")
    for split, days in (("train", 0), ("valid", 400), ("test", 800)):
        path = root / f"artifacts/prepared/{split}.parquet"
        pl.read_parquet(path).with_columns(pl.col("since") + pl.duration(days=days)).write_parquet(path)
    since, folds = labelled(root)["since"].to_numpy(), folds_of(root)
    assert len(folds) == 5, "there is one way to lay them out"
    seen = 0
    for f in folds[::-1]: # the newest comes first
        assert f.rows.min() >= len(f.parts[0].y) > seen
        assert since[:len(f.parts[0].y)].max() < since[f.rows].min()
        seen = len(f.parts[0].y)
    run_train(root)
    assert read_held_out_scores(root, "gbdt").rows.tolist() == [*range(len(folds[-1].parts[0].y), 450)]


def test_groups_are_whole(tmp_path):
    root = project(tmp_path / "p")
    with_columns(root, (pl.col("_row") // 7).cast(pl.String).alias("plan"), entity="plan")
    plan = labelled(root)["plan"].to_numpy()
    for f in folds_of(root): assert not {*plan[f.rows]} & {*np.delete(plan, f.rows)}


@pytest.mark.parametrize("task, k", [("binary", 2), ("multiclass", 3)])
def test_ten_rows_of_a_class(tmp_path, task, k):
    root = project(tmp_path / "p", task, sizes=(400, 200, 200))
    for split in ("train", "valid", "test"):
        path = root / f"artifacts/prepared/{split}.parquet"
        frame = pl.read_parquet(path)
        rare = pl.int_range(pl.len()) % 60 == 27 # ten of the labelled rows
        target = pl.when(rare).then(k - 1.).otherwise(pl.int_range(pl.len()) % (k - 1.))
        frame.with_columns(_target=target).write_parquet(path)
    assert (labelled(root)["_target"] == k - 1).sum() == 10
    folds = folds_of(root, repeated=False)
    assert [int((f.parts[1].y == k - 1).sum()) for f in folds] == [2] * 5
    run_train(root)
    assert np.isfinite(read_held_out_scores(root, "gbdt").scores).all()


def test_the_valid_rows_judge_where_no_fold_can_be_learned(tmp_path):
    root = project(tmp_path / "p", method="order", n_folds=2)
    path = root / "artifacts/prepared/train.parquet"
    frame = pl.read_parquet(path)
    last = pl.int_range(pl.len()).cast(pl.Float64) // 299 # the one row of its class
    frame.with_columns(_target=last).write_parquet(path)
    [whole] = folds_of(root)
    assert np.array_equal(whole.rows, 300 + np.arange(150))


def test_the_model_has_all_rows_and_the_evaluation_those_out_of_fold(tmp_path):
    root = project(tmp_path / "p")
    run_train(root)
    first = file_hashes(root / "artifacts/models/gbdt")
    run_train(root)
    assert file_hashes(root / "artifacts/models/gbdt") == first
    assert (report(root).n_folds, report(root).refit_rows) == (5, 450)
    run_baselines(root)
    run_evaluate(root)
    found, held_out = read_evaluation(root), read_held_out_scores(root, "gbdt")
    told = pl.read_parquet(root / "artifacts/evaluation/predictions.parquet").filter(split="valid")
    assert len(told) == 450 == found.score_summary["valid"].n_rows
    predictor = open_trained_predictor(root, "gbdt")
    policy = read_json(root / "artifacts/evaluation/policy.json", type(predictor.policy))
    assert np.array_equal(told[predictor.score_columns[0]].to_numpy(), policy.calibrate(held_out.scores))
    y = labelled(root)["_target"].to_numpy()
    loss = lambda p: -np.log(np.where(y == 1, p, 1 - p)).mean()
    said = found.metrics["valid"]["log_loss"].value
    assert said == pytest.approx(loss(policy.calibrate(held_out.scores)))
    assert loss(predictor.predict(labelled(root))) < said, "the model itself has learned from them"
    assert {c.name for c in found.comparisons} >= {"constant", "linear"}


def test_models_that_different_rows_have_judged_are_not_compared(tmp_path):
    root = project(tmp_path / "p", learners=["gbdt", "net"], net=dict(max_epochs=1, ensemble_size=2, d_hidden=8))
    for learner in ("gbdt", "net"): run_train(root, learner)
    run_baselines(root)
    change(root, train=dict(n_folds=0))
    run_train(root, "gbdt")
    with pytest.raises(UserError, match="judged by different rows; run the stages tune and train"): run_evaluate(root)


def test_trials_are_compared_and_added_up_by_all_rows(tmp_path):
    root = change(project(tmp_path / "p"), tune=dict(n_trials=4), train=dict(learners=["gbdt", "ensemble"]))
    run_tune(root)
    first = file_hashes(root / "artifacts/tuning")
    run_tune(root)
    assert file_hashes(root / "artifacts/tuning") == first
    study, search = run_study(root, "gbdt")
    y = np.concatenate([f.parts[1].y for f in search.folds])
    assert len(y) == 3 * 450
    for trial in counted_trials(study):
        if trial.state.name != "COMPLETE": continue
        train = trials.replace_params(search.project.params.train, "gbdt", trial.params)
        fitted = fit_folds("gbdt", search.folds, search.project.schema, train)
        p = out_of_fold_predictions("gbdt", search.folds, fitted, train)
        assert trial.value == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).mean(), rel=1e-6)
    assert read_recipe(root).n_candidates == sum(t.state.name == "COMPLETE" for t in counted_trials(study))
    run_train(root, "ensemble")
    assert len(read_held_out_scores(root, "ensemble").rows) == 450


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks(tmp_path, task):
    root = change(project(tmp_path / "p", task), tune=dict(n_trials=2))
    run_tune(root)
    run_train(root)
    run_baselines(root)
    run_evaluate(root)
    assert read_evaluation(root).score_summary["valid"].n_rows == 450


def test_a_large_table_is_searched_in_steps(tmp_path, monkeypatch):
    "A ninth of the rows, a third, all: of many trials few get so far, and the chosen one is trained on every row."
    monkeypatch.setattr(trials, "_STEP_ROWS", 30)
    root = change(project(tmp_path / "p", n_folds=0, sizes=(900, 150, 200)), tune=dict(n_trials=12, max_rows=600))
    learned, plain = [], trials.fit_folds
    monkeypatch.setattr(trials, "fit_folds", lambda l, folds, *a: learned.append(len(folds[0].parts[0].y))
                        or plain(l, folds, *a))
    study, search = run_study(root, "gbdt")
    counts = {n: learned.count(n) for n in (66, 200, 600)}
    assert sum(counts.values()) == len(learned) and counts[66] == 12 > counts[200] >= counts[600] >= 1
    assert len(search.folds[0].parts[0].y) == 600
    done = [t for t in counted_trials(study) if t.state.name == "COMPLETE"]
    assert len(done) <= counts[600] and "default_params" in done[0].user_attrs
    run_train(root)
    assert report(root).refit_rows == 1050


def test_a_sample_keeps_the_shares_of_the_classes():
    part = trials.TrainingPart(np.arange(3_000.)[:, None], (np.arange(3_000) % 300 == 0) * 1., np.arange(3_000.))
    some = trials.stratified_sample(part, 300)
    assert (len(some.y), some.y.sum()) == (300, 1) and np.array_equal(some.X[:, 0], some.weights)
    assert trials.stratified_sample(part, 3_000) is part


def test_open_search_context_names_another_study_with_folds(tmp_path):
    root = project(tmp_path / "p")
    with_folds = open_search_context(Project.open(root), "gbdt").study_name
    change(root, train=dict(n_folds=0))
    assert open_search_context(Project.open(root), "gbdt").study_name != with_folds
