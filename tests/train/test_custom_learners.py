"""Learners of the project itself: one project with a forest and a gradient-boosted model in it, from the params to the
bundle, and whatever such a function may do wrong."""
import re
import shutil

import numpy as np
import polars as pl
import pytest
from support import trained_project as modelling

from mlops_nb.bundle.bundle import check_golden_examples
from mlops_nb.bundle.onnx_export import export_onnx
from mlops_nb.bundle.stage import pack_bundle
from mlops_nb.config.params import own_learners, read_params
from mlops_nb.core.errors import UserError
from mlops_nb.explain.attributions import checked_contributions
from mlops_nb.model.booster import Booster
from mlops_nb.model.onnx_model import OnnxModel
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.compression import compress_model
from mlops_nb.release.model_profile import profile_models
from mlops_nb.train.custom_learners import (
    CustomFit,
    load_learners,
    run_custom_learner,
    try_custom_model,
    write_custom_fit,
)
from mlops_nb.train.dataset import TrainingPart
from mlops_nb.train.stage import TrainingReport, open_trained_predictor, run_train
from mlops_nb.train.trials import open_search_context, suggest_params
from mlops_nb.train.tuning import set_time_budget

LEARNERS = '''
import sys

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mlops_nb.train.custom_learners import learner


@learner("forest", space=dict(max_depth=(3, 20), min_samples_leaf=(1, 64, "log"), criterion=["gini", "entropy"]))
def forest(X, y, sample_weight, params, seed):
    model = ExtraTreesClassifier(8, random_state=seed, n_jobs=-1, **params)
    pipeline = make_pipeline(SimpleImputer(), VarianceThreshold(), model)
    return pipeline.fit(X, y, extratreesclassifier__sample_weight=sample_weight)


def logistic(X, y): return make_pipeline(SimpleImputer(), LogisticRegression(max_iter=50)).fit(np.asarray(X), y)


@learner("nothing")
def nothing(X, y): logistic(X, y)


@learner("raises")
def raises(X, y): raise ValueError("no such thing")


@learner("leaves")
def leaves(X, y): sys.exit(3)


@learner("dies")
def dies(X, y):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)


@learner("changes")
def changes(X, y):
    X[np.isnan(X)] = 0
    return logistic(X, y)


@learner("no_weights")
def no_weights(X, y): return logistic(X, y)


class Broken:
    classes_ = np.array([0, 1])

    def predict_proba(self, X): return np.full((len(X), 2), np.nan)


@learner("nan")
def nan(X, y): return Broken()


@learner("hard")
def hard(X, y):
    from sklearn.svm import LinearSVC
    return make_pipeline(SimpleImputer(), LinearSVC()).fit(X, y)


@learner("own_step")
def own_step(X, y):
    from sklearn.preprocessing import FunctionTransformer
    return make_pipeline(SimpleImputer(), FunctionTransformer(np.abs), LogisticRegression()).fit(X, y)


from sklearn.base import BaseEstimator, TransformerMixin


class RunningMean(TransformerMixin, BaseEstimator):
    "Its answer depends on what it was asked before."
    def fit(self, X, y=None):
        self.seen_ = []
        return self

    def transform(self, X):
        self.seen_.append(X.mean(0))
        return X - np.mean(self.seen_, 0)


@learner("remembers")
def remembers(X, y):
    return make_pipeline(SimpleImputer(), RunningMean(), LogisticRegression()).fit(X, y)


@learner("endless")
def endless(X, y):
    while True: print("x" * 100_000)
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = modelling.trained(tmp_path_factory.mktemp("own") / "p", n=600)
    (root / "artifacts/learners.py").write_text(LEARNERS)
    text = (root / "params.yaml").read_text().replace("  - gbdt\n", "  - forest\n")
    (root / "params.yaml").write_text(text.replace("  learners:", "  forest: {max_depth: 5}\n  learners:", 1))
    run_train(root, "forest")
    return modelling.judged(root)


def test_its_section_is_read_and_its_file_trained(project):
    params = read_params(project / "params.yaml").train
    assert own_learners(params) == ["forest"] and params.forest == {"max_depth": 5}
    assert [p.name for p in sorted((project / "artifacts/models/forest").iterdir())] == [
        "encoder.json", "model.onnx", "training.json"]


def test_the_first_budget_adds_no_ensemble_where_all_learners_are_own_ones(project, tmp_path):
    root = shutil.copytree(project, tmp_path / "p")
    assert set_time_budget(root, "5m") == ["train.refit is true"]
    assert read_params(root / "params.yaml").train.learners == ["forest"]


def test_a_row_and_a_batch_give_the_same_bits(project):
    p = open_trained_predictor(project, "forest")
    test = pl.read_parquet(project / "artifacts/prepared/test.parquet").head(80)
    alone = [p.predict_one(row) for row in test.select(p.inputs).to_dicts()]
    assert np.array(alone).tobytes() == p.predict(test).tobytes()


def test_the_graph_answers_like_the_estimator_at_its_thresholds(project):
    from mlops_nb.core.typed_yaml import read_json
    parity = read_json(project / "artifacts/models/forest/training.json", TrainingReport).parity
    assert parity.n_threshold_rows > 300 and parity.max_difference < 1e-6 < parity.tolerance
    assert parity.made_from.startswith("SimpleImputer + VarianceThreshold + ExtraTreesClassifier (scikit-learn ")


def test_contributions_add_up_and_have_an_error(project):
    p = open_trained_predictor(project, "forest")
    test = pl.read_parquet(project / "artifacts/prepared/test.parquet").head(8)
    parts, error = checked_contributions(p, test)
    assert error < 1e-6 and p.raw_units == "probability"
    apart = p.model.contribution_errors(p.encode_frame(test)).standard_errors
    assert apart.shape == parts.shape and 0 < apart.max() < .1
    assert np.array_equal(p.contributions(test[3:4])[0], parts[3, 0])  # in any company


def test_the_bundle_is_verified_described_and_exported(project, tmp_path):
    bundle = pack_bundle(project)
    assert check_golden_examples(bundle) is None
    card = (bundle / "card.md").read_text()
    assert "The model was exported from SimpleImputer + VarianceThreshold + ExtraTreesClassifier" in card
    assert export_onnx(bundle, tmp_path).checks[0].max_difference < 1e-6
    p = Predictor.open(bundle)
    assert "ONNX, made from SimpleImputer + VarianceThreshold + ExtraTreesClassifier" in repr(p)
    with pytest.raises(UserError, match="holds an ONNX model, which cannot be made smaller"):
        compress_model(None, bundle, p, None, None, None)
    test = pl.read_parquet(project / "artifacts/prepared/test.parquet").head(50)
    assert profile_models([p], [bundle], [{}], test)[0].row_seconds > 0


AUDIT = """
import os, sys
_log = os.open(os.environ["UNPICKLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def _hook(event, args):
    if event == "pickle.find_class": os.write(_log, f"{args[0]}.{args[1]}\\n".encode())
    if event == "import" and args[0] in ("joblib", "cloudpickle", "sklearn"): os.write(_log, f"{args[0]}\\n".encode())
sys.addaudithook(_hook)
"""


def test_what_serves_unpickles_nothing(project, tmp_path):
    "An audit hook in each process of a server sees every class that any pickle names."
    from support import server as serving
    for folder in ("hook", "served"): (tmp_path / folder).mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(AUDIT)
    log = tmp_path / "unpickled"
    root = serving.project(tmp_path / "served", made=pack_bundle(project))
    with serving.Server(root, PYTHONPATH=str(tmp_path / "hook"), UNPICKLED=str(log)) as server:
        status, _, body = server.post(serving.PREDICT, {"instances": serving.instances(3)})
        told, _, _ = server.post(serving.EXPLAIN, {"instances": serving.instances(1)})
    assert (status, told) == (200, 200), body
    assert log.exists(), "the hook was there"
    # the worker of the server is told by multiprocessing what to run: classes of its own and of this package
    assert not [line for line in log.read_text().splitlines()
                if not line.startswith(("multiprocessing", "granian", "mlops_nb.serve", "pathlib", "functools",
                                        "builtins"))]


def test_the_tuning_tries_its_space(project):
    import optuna
    search = open_search_context(modelling_project(project), "forest")
    assert search.search_space == dict(max_depth=[3, 20], min_samples_leaf=[1, 64, "log"],
                                       criterion=["gini", "entropy"])
    values = suggest_params(optuna.create_study().ask(), search.search_space, {"max_depth": 5})
    assert {type(v) for v in values.values()} == {int, str} and 3 <= values["max_depth"] <= 20


def modelling_project(root):
    from mlops_nb.config.project import Project
    return Project.open(root)


rng = np.random.default_rng(0)
X = rng.normal(size=(120, 2))
PARTS = [TrainingPart(X[:80], (X[:80, 0] > 0) * 1.), TrainingPart(X[80:], (X[80:, 0] > 0) * 1.)]
PARTS[0].X[:9, 1] = np.nan


def job(project, name):
    return CustomFit(name, str(project / "artifacts/learners.py"), "binary", 2, ["a", "b"], [], {}, 0)


def why(project, folder, name, weights=None):
    "What the process of a learner would tell the stage."
    write_custom_fit(folder, job(project, name), PARTS[0]._replace(weights=weights), PARTS[1])
    return try_custom_model(folder)


@pytest.mark.parametrize("name, says", [
    ("nothing", "it returned nothing; end it with"), ("raises", "failed with ValueError: no such thing .line 29 of"),
    ("leaves", "it failed with SystemExit: 3"),
    ("changes", "it changed X in place"), ("nan", "it gives no number .NaN or infinity. for 40 of 40"),
    ("hard", "has no predict_proba"), ("own_step", "the step 'functiontransformer' of the pipeline"),
    ("remembers", "the step 'runningmean' of the pipeline, RunningMean, cannot be written as ONNX"),
    ("gone", "train.learners names 'gone'")])
def test_what_it_does_wrong_is_a_sentence(project, tmp_path, name, says):
    assert re.search(says, why(project, tmp_path, name))


def test_one_without_weights_is_refused_where_they_are_asked_for(project, tmp_path):
    assert "takes no sample_weight" in why(project, tmp_path, "no_weights", np.ones(80))


def test_one_that_takes_its_process_down_ends_nothing_else(project):
    with pytest.raises(UserError, match="learner 'dies': its process ended with status -9"):
        run_custom_learner(job(project, "dies"), *PARTS, project)


def test_one_that_prints_without_end_is_ended(project, capsys):
    with pytest.raises(UserError, match="was not done after 4 seconds and was ended"):
        run_custom_learner(job(project, "endless"), *PARTS, project, 4)
    assert len(capsys.readouterr().err) < 10_000


def test_an_argument_that_nobody_gives_is_named(tmp_path):
    (tmp_path / "l.py").write_text("from mlops_nb.train.custom_learners import learner\n"
                                   "@learner('a')\ndef a(X, y, sample_weights): ...\n")
    with pytest.raises(UserError, match="'sample_weights', which nobody gives it; did you mean 'sample_weight'?"):
        load_learners(tmp_path / "l.py")


def test_a_model_of_elsewhere_is_refused(tmp_path):
    with pytest.raises(UserError, match="onnxruntime .* refuses the ONNX model"): OnnxModel(b"\x08\x09damaged")


OWN_OBJECTIVE = '''
import lightgbm as lgb
import numpy as np

from mlops_nb.train.custom_learners import learner


def stock_cost(y, predicted):
    "Gradient and curvature of a squared error that counts nine times where too little was predicted"
    times = np.where(predicted < y, 9.0, 1.0)
    return times * (predicted - y), times


@learner("stock")
def stock(X, y, params, seed):
    return lgb.LGBMRegressor(objective=stock_cost, random_state=seed, verbosity=-1, **params).fit(X, y)
'''


def test_an_objective_of_ones_own_is_learned_and_travels_as_trees(tmp_path):
    rng = np.random.default_rng(0)
    train, valid = (TrainingPart(X := rng.normal(size=(n, 3)), X[:, 0] + rng.normal(size=n)) for n in (900, 400))
    (tmp_path / "learners.py").write_text(OWN_OBJECTIVE)
    fit = CustomFit("stock", str(tmp_path / "learners.py"), "regression", 0, ["a", "b", "c"], [],
                    {"learning_rate": .1, "n_estimators": 40, "num_leaves": 7}, 0)
    file, data = run_custom_learner(fit, train, valid, tmp_path)
    assert file == "model.txt"
    predicted = Booster(data.decode()).predict(valid.X)
    assert (predicted > valid.y).mean() > .75 # too much is cheap
    assert np.array_equal(Booster(data.decode()).predict_one(valid.X[0]), predicted[0])
