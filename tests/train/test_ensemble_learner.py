"The learner ensemble, from trials to one model, and the training that is done once more on all rows."
import shutil
from types import SimpleNamespace

import msgspec
import numpy as np
import polars as pl
import pytest
from support import trained_project as modelling

from mlops_nb.config.params import Params, read_params, write_params
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.prepare import read_split
from mlops_nb.model.ensemble import Ensemble
from mlops_nb.model.predictor import MODEL_LOADERS, model_file
from mlops_nb.train import trial_ensemble
from mlops_nb.train.ensemble_selection import (
    MEMBER_SCORES_FILE,
    RECIPE_FILE,
    EnsembleRecipe,
    RecipeMember,
    read_member_scores,
    read_recipe,
)
from mlops_nb.train.stage import TrainingReport, open_trained_predictor, read_held_out_scores, run_train
from mlops_nb.train.trial_ensemble import choose_ensemble
from mlops_nb.train.tuning import run_study, run_tune

SMALL_NET = {"d_hidden": [16, 32], "d_embedding": [4, 8], "n_bins": [4, 8], "n_blocks": [1, 2]}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch): monkeypatch.setenv("MLOPS_NB_RUN_THREADS", "1")


def change(root, **sections):
    "Other values in some sections of the params."
    p = msgspec.to_builtins(read_params(root / "params.yaml"))
    for name, values in sections.items(): p[name] = p[name] | values
    write_params(msgspec.convert(p, Params), root / "params.yaml")
    return root


def project(root, task="binary", learners=("gbdt", "ensemble"), n_trials=5, **how):
    modelling.trained(root, task, **how)
    return change(root, tune=dict(n_trials=n_trials, net=SMALL_NET), train=dict(learners=[*learners]))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    root = project(tmp_path_factory.mktemp("ensemble") / "p", learners=("gbdt", "net", "ensemble"))
    run_tune(root)
    return root


def copy(root, to): return shutil.copytree(root, to / "p")


def recipe(root, *members, link="logit"):
    "A recipe as `tune` might have written it."
    found = [RecipeMember(learner, i, params, weight, 5) for i, (learner, params, weight) in enumerate(members)]
    text = msgspec.json.encode(EnsembleRecipe(link, found, len(found), .5, .6, .1, .01))
    (root / RECIPE_FILE).write_bytes(text)
    n_train, n = (len(read_split(root, split)) for split in ("train", "valid"))
    np.savez(root / MEMBER_SCORES_FILE, rows=n_train + np.arange(n), raw=np.zeros((len(found), n)), n_folds=0)


def report(root, learner): return read_json(root / f"artifacts/models/{learner}/training.json", TrainingReport)


def test_the_recipe_names_trials_and_the_model_is_made_by_it(tuned, tmp_path):
    root = copy(tuned, tmp_path)
    found = read_recipe(root)
    assert found.link == "logit" and 2 <= found.n_candidates <= 10
    assert sum(m.weight for m in found.members) == pytest.approx(1)
    assert found.loss <= found.single_loss + 1e-12
    assert all(m.iterations >= 1 for m in found.members)
    assert read_member_scores(root).raw.shape == (len(found.members), len(read_split(root, "valid")))
    run_train(root, "ensemble")
    file = model_file(root / "artifacts/models/ensemble")
    members = report(root, "ensemble").iterations
    assert members == len(found.members)
    model = MODEL_LOADERS[file.name](file.read_bytes())
    valid = read_split(root, "valid")
    predictor = open_trained_predictor(root, "ensemble")
    assert np.array_equal(predictor.predict(valid), model.predict(predictor.encode_frame(valid)))


def test_the_same_rows_give_the_same_recipe_and_model(tuned, tmp_path):
    root, before = copy(tuned, tmp_path), file_hashes(tuned / "artifacts/tuning")
    shutil.rmtree(root / "artifacts/tuning")
    run_tune(root) # the trials are there
    assert file_hashes(root / "artifacts/tuning") == before
    shutil.rmtree(root / ".mlops/scores") # of trials that ended before an ensemble was wanted
    run_tune(root)
    assert file_hashes(root / "artifacts/tuning") == before
    run_train(root, "ensemble")
    first = file_hashes(root / "artifacts/models/ensemble")
    run_train(root, "ensemble")
    assert file_hashes(root / "artifacts/models/ensemble") == first


def test_trees_and_a_net_in_one_file(tuned, tmp_path):
    root = copy(tuned, tmp_path)
    recipe(root, ("gbdt", {}, .5), ("net", {}, .25), ("gbdt", {"num_leaves": 4}, .25))
    run_train(root, "ensemble")
    run_train(root, "gbdt") # tuned, so it is another one
    model = open_trained_predictor(root, "ensemble").model
    assert isinstance(model, Ensemble) and len(model.models) == 2, "the trees are one"
    valid = read_split(root, "valid")
    predictor = open_trained_predictor(root, "ensemble")
    assert [predictor.predict_one(r) for r in valid.head(20).to_dicts()] == predictor.predict(valid)[:20].tolist()


@pytest.mark.parametrize("task, link", [("multiclass", "softmax"), ("regression", "identity")])
def test_other_tasks(tmp_path, task, link):
    root = project(tmp_path / "p", task, n_trials=4)
    change(root, tune=dict(gbdt=dict(objective=None)))
    run_tune(root)
    assert read_recipe(root).link == link
    run_train(root, "ensemble")
    assert np.isfinite(open_trained_predictor(root, "ensemble").predict(read_split(root, "test"))).all()


def test_models_that_add_logarithms_are_added_with_each_other(tmp_path):
    root = project(tmp_path / "p", "regression", n_trials=6, counts=True)
    change(root, tune=dict(gbdt=dict(objective=["poisson", "tweedie"])))
    run_tune(root)
    assert read_recipe(root).link == "log"
    run_train(root, "ensemble")
    assert open_trained_predictor(root, "ensemble").model.log_link


def of_two_links(monkeypatch, tmp_path, gain, splits=(10., 10.)):
    "The link that is chosen where predictions of logarithms are better by so many standard errors; each has one trial."
    rng = np.random.default_rng(0)
    y = np.exp(rng.normal(size=4000))
    error = rng.normal(size=4000)
    d = rng.normal(size=4000) # what the squared error of the second is lower by
    d = d - d.mean() + gain * d.std() / 4000**.5
    other = np.sqrt(np.maximum((error * 3)**2 + 100 - d, 0)) # its errors: all positive
    usual = np.sqrt((error * 3)**2 + 100)
    p = Params()
    p.tune.max_latency_us = 1.
    fold = SimpleNamespace(rows=np.arange(4000), parts=(None, SimpleNamespace(y=y)))
    project = SimpleNamespace(params=p, schema=SimpleNamespace(entity=None), root=tmp_path)
    search = SimpleNamespace(folds=[fold], project=project, learner="gbdt")
    trial = lambda i, value: SimpleNamespace(number=i, value=value, params={}, user_attrs=dict(row_splits=splits[i]))
    found = [trial_ensemble._Candidate("log", search, trial(1, 1.), np.log(y + other)),
             trial_ensemble._Candidate("identity", search, trial(0, 2.), y + usual)]
    monkeypatch.setattr(trial_ensemble, "_candidates", lambda *_: found)
    return choose_ensemble([(None, search)])[0].link


@pytest.mark.parametrize("gain, link", [(-5, "identity"), (1, "identity"), (1.6, "identity"), (1.7, "log"), (9, "log")])
def test_another_link_is_taken_where_it_is_surely_better(monkeypatch, tmp_path, gain, link):
    assert of_two_links(monkeypatch, tmp_path, gain) == link


@pytest.mark.parametrize("splits, link", [((10, 10), "log"), ((10, 1e6), "identity"), ((1e6, 10), "log"),
                                          ((1e6, 1e6), "log")])
def test_a_link_whose_trials_are_all_beyond_the_bound_stands_back(monkeypatch, tmp_path, splits, link):
    assert of_two_links(monkeypatch, tmp_path, 9, splits) == link


@pytest.mark.parametrize("learner", ["gbdt", "net", "ensemble"])
def test_once_more_on_all_rows(tuned, tmp_path, learner):
    root = copy(tuned, tmp_path)
    run_train(root, learner)
    before, valid = open_trained_predictor(root, learner), read_split(root, "valid")
    assert read_held_out_scores(root, learner) is None and report(root, learner).refit_rows is None
    change(root, train=dict(refit=True, n_folds=0))
    run_train(root, learner)
    after, rows = open_trained_predictor(root, learner), report(root, learner).rows
    held_out = read_held_out_scores(root, learner)
    # those of an ensemble are of the trials, before their trees became one model
    assert np.allclose(held_out.scores, before.predict(valid), rtol=1e-9, atol=0), "of the one that knew none"
    assert learner == "ensemble" or np.array_equal(held_out.scores, before.predict(valid))
    assert np.array_equal(held_out.rows, rows["train"] + np.arange(rows["valid"]))
    assert (report(root, learner).refit_rows, report(root, learner).n_folds) == (sum(rows.values()), 0)
    y = valid["_target"].to_numpy()
    loss = lambda p: -np.log(np.where(y == 1, p, 1 - p)).mean()
    assert loss(after.predict(valid)) < loss(before.predict(valid)), "it has learned from them"


def test_the_evaluation_measures_the_valid_rows_by_what_had_not_seen_them(tuned, tmp_path):
    from mlops_nb.evaluate.stage import run_evaluate
    from mlops_nb.train.baselines import run_baselines
    root = change(copy(tuned, tmp_path), train=dict(learners=["gbdt"], refit=True, n_folds=0),
                  evaluate=dict(calibration=[]))
    run_baselines(root)
    run_train(root, "gbdt")
    run_evaluate(root)
    told = pl.read_parquet(root / "artifacts/evaluation/predictions.parquet").filter(split="valid")
    predictor = open_trained_predictor(root, "gbdt")
    names = predictor.score_columns
    assert np.array_equal(told[names[0]].to_numpy(), read_held_out_scores(root, "gbdt").scores)


def test_a_bound_on_the_latency_counts_the_splits_on_the_way(tuned, tmp_path):
    "Members of trees stay within it together; a model that is beyond it alone is taken where all are."
    def splits(members):
        found = {t.number: t.user_attrs["row_splits"] for t in study.get_trials() if "row_splits" in t.user_attrs}
        return sum(found[m.trial] for m in members if m.learner == "gbdt")
    root = change(copy(tuned, tmp_path), train=dict(learners=["gbdt", "ensemble"]))
    study, search = run_study(root, "gbdt")
    whole, _ = choose_ensemble([(study, search)])
    least = min(t.user_attrs["row_splits"] for t in study.get_trials() if t.state.name == "COMPLETE")
    for bound in (.015 * least, .015 * (splits(whole.members) + least) / 2, 1e9):
        search.project.params.tune.max_latency_us = bound
        found, scores = choose_ensemble([(study, search)])
        assert .015 * splits(found.members) <= bound * (1 + 1e-12) and len(scores.raw) == len(found.members)
    assert found == whole, "nothing is beyond a large one"
    search.project.params.tune.max_latency_us = .001
    found, _ = choose_ensemble([(study, search)])
    assert [m.trial for m in found.members] == [study.best_trial.number] and found.n_candidates == 1


def test_rows_weigh_by_their_age_in_both(tmp_path, monkeypatch):
    "With a half-life the newest of all rows weighs 1, and so the valid rows weigh most."
    from mlops_nb.train import stage
    root, seen = project(tmp_path / "p"), []
    plain = stage.refit_learner
    monkeypatch.setattr(stage, "refit_learner", lambda *args: seen.append(args[2]) or plain(*args))
    schema = modelling.schema("binary")
    schema.event_time = "when"
    modelling.write_schema(schema, root / "schema.yaml")
    frames = {split: pl.read_parquet(root / f"artifacts/prepared/{split}.parquet") for split in ("train", "valid")}
    for split, frame in frames.items():
        filled = frame.with_columns(pl.col("when").fill_null(frame["when"].min()))
        filled.write_parquet(root / f"artifacts/prepared/{split}.parquet")
    change(root, tune=dict(n_trials=0),
           train=dict(learners=["gbdt"], refit=True, n_folds=0, sample_weight_half_life="30d"))
    run_train(root, "gbdt")
    [rows] = seen
    assert len(rows.y) == sum(map(len, frames.values())) == len(rows.weights) and rows.weights.max() == 1


@pytest.mark.parametrize("train, tune, says", [
    (dict(learners=["ensemble"]), {}, "names the ensemble alone"),
    (dict(learners=["gbdt", "ensemble"]), dict(n_trials=0), "'tune.n_trials' is 0"),
    (dict(learners=["gbdt", "ensemble"], ensemble=dict(max_members=0)), {}, "max_members")])
def test_params_that_cannot_be(tmp_path, train, tune, says):
    root = project(tmp_path / "p")
    with pytest.raises((UserError, msgspec.ValidationError), match=says): change(root, train=train, tune=tune)


def test_an_ensemble_of_quantiles_is_refused(tmp_path):
    root = project(tmp_path / "p", "regression")
    schema = modelling.schema("regression")
    schema.quantiles = [.1, .5, .9]
    modelling.write_schema(schema, root / "schema.yaml")
    with pytest.raises(UserError, match="ensemble of quantiles"): run_tune(root)
    change(root, train=dict(learners=["gbdt"], refit=True), tune=dict(n_trials=0))
    with pytest.raises(UserError, match="not there for quantiles"): run_train(root, "gbdt")
