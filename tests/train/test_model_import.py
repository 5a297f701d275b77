"A model of elsewhere becomes a learner: what is taken in as it is, what is opened once, and what is refused."
import os
import pickle
import re
import time

import joblib
import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from support.tracking_store import ready_store

from mlops_nb.config.project import Project
from mlops_nb.core.errors import UserError
from mlops_nb.examples.subscribers import write_prepared_subscribers
from mlops_nb.model.booster import Booster
from mlops_nb.model.onnx_model import OnnxModel
from mlops_nb.train.custom_learners import load_learners
from mlops_nb.train.dataset import read_training_parts
from mlops_nb.train.learners import resolve_init_model
from mlops_nb.train.model_import import _from_pickle, import_model
from mlops_nb.train.onnx_conversion import ModelInterface, compare_with_estimator, export_model


@pytest.fixture(scope="module")
def root(tmp_path_factory): return write_prepared_subscribers(tmp_path_factory.mktemp("import"))


@pytest.fixture(scope="module")
def parts(root):
    return [*read_training_parts(Project.open(root), resolve_init_model(Project.open(root), "gbdt").encoder)]


@pytest.fixture(scope="module")
def interface(root):
    return ModelInterface("binary", resolve_init_model(Project.open(root), "gbdt").encoder.feature_names, 2)


@pytest.fixture(scope="module")
def logistic(parts): return make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500)).fit(parts[0].X, parts[0].y)


@pytest.fixture(scope="module")
def onnx_file(logistic, interface, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "theirs.onnx"
    path.write_bytes(export_model(logistic, interface)[1])
    return path


def learned(root, cell, name):
    "What the learner of a printed cell returns, called as the pipeline calls it: in the project's folder."
    path = root / f"{name}.py"
    path.write_text(cell)
    before = os.getcwd()
    os.chdir(root)
    try: return load_learners(path)[name](None, None)
    finally: os.chdir(before)


def test_an_onnx_file_is_kept_as_it_is_and_an_altered_one_is_refused(root, onnx_file, logistic, parts, interface):
    cell = import_model(str(onnx_file), "plain", root)
    data = learned(root, cell, "plain")
    assert data == onnx_file.read_bytes()
    valid = parts[1].X[:200]
    model = OnnxModel(compare_with_estimator(data, export_model(data, interface)[1], valid, interface, valid[:4]))
    np.testing.assert_allclose(model.predict(valid), logistic.predict_proba(valid)[:, 1], atol=1e-6)
    (root / "imported/plain.onnx").write_bytes(data + b" ")
    with pytest.raises(UserError, match="is another file than the one that was taken in"): learned(root, cell, "plain")


def test_a_text_of_lightgbm_is_kept_and_one_of_other_columns_is_refused(root, parts, tmp_path):
    import lightgbm as lgb
    X, y = parts[0].X, parts[0].y
    train = lambda X: lgb.train(dict(objective="binary", num_threads=1, verbose=-1), lgb.Dataset(X, y), 5)
    train(X).save_model(tmp_path / "theirs.txt")
    data = learned(root, import_model(str(tmp_path / "theirs.txt"), "boosted", root), "boosted")
    np.testing.assert_allclose(Booster(data.decode()).predict(X), train(X).predict(X), rtol=1e-12)
    train(X[:, :2]).save_model(tmp_path / "narrow.txt")
    with pytest.raises(UserError, match=f"reads 2 columns and gives 1 scores, and the project has {X.shape[1]} col"):
        import_model(str(tmp_path / "narrow.txt"), "narrow", root)
    assert not (root / "imported/narrow.txt").exists()


@pytest.mark.parametrize("data, says", [(b"not a model", "no ONNX model, or damaged"), (b"", "no output of numbers")])
def test_a_damaged_file_is_a_sentence(root, tmp_path, data, says):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UserError, match=says): import_model(str(tmp_path / "m.onnx"), "damaged", root)


class Runs:
    "A pickle that runs code when it is opened."
    def __init__(self, code): self.code = code
    def __reduce__(self): return exec, (self.code,)


def test_a_pickle_is_not_opened_unless_it_is_trusted(root, tmp_path):
    path = tmp_path / "theirs.joblib"
    path.write_bytes(pickle.dumps(Runs(f"open({str(tmp_path / 'ran')!r}, 'w')")))
    with pytest.raises(UserError, match="is a pickle, and opening it runs whatever code is in it.*say --trust"):
        import_model(str(path), "theirs", root)
    assert not (tmp_path / "ran").exists()


def test_a_trusted_pickle_is_converted_with_the_classes_in_the_order_of_the_schema(root, parts, tmp_path, interface):
    classes = Project.open(root).schema.classes
    backwards = sorted(classes) != classes  # as scikit-learn sorts words
    X, y = parts[0].X, np.array(classes)[parts[0].y.astype(int)]
    model = make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500)).fit(X, y)
    joblib.dump(model, tmp_path / "theirs.joblib")
    data = learned(root, import_model(str(tmp_path / "theirs.joblib"), "theirs", root, trust=True), "theirs")
    kept = OnnxModel(data)
    assert kept.spec.parity.made_from.startswith("SimpleImputer + LogisticRegression (scikit-learn ")
    event = model.predict_proba(parts[1].X)[:, 0 if backwards else 1]
    np.testing.assert_allclose(kept.predict(parts[1].X), event, atol=1e-6)


def test_a_pickle_sees_no_secret_and_has_limits_of_memory(parts, interface, tmp_path, monkeypatch):
    monkeypatch.setenv("TEAM_TOKEN", "hunter2")
    path = tmp_path / "greedy.joblib"
    path.write_bytes(pickle.dumps(Runs(
        f"import os\nopen({str(tmp_path / 'seen')!r}, 'w').write(repr(dict(os.environ)))\nbytearray(9 * 2**30)")))
    with pytest.raises(UserError, match="cannot be taken in: it failed with MemoryError"):
        _from_pickle(path, interface, ["a", "b"], parts[1].X, True)
    assert "hunter2" not in (tmp_path / "seen").read_text() != ""


def test_a_pickle_that_never_opens_is_ended(parts, interface, tmp_path):
    path, began = tmp_path / "slow.joblib", time.monotonic()
    path.write_bytes(pickle.dumps(Runs("import time\nwhile True: time.sleep(1)")))
    with pytest.raises(UserError, match="it was not open after 2 seconds"):
        _from_pickle(path, interface, ["a", "b"], parts[1].X, True, 2)
    assert time.monotonic() - began < 120


def test_a_version_of_the_registry_of_mlflow(root, onnx_file):
    from mlflow import MlflowClient
    uri = f"sqlite:///{ready_store(Project.open(root).root.resolve()) / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_registered_model("other")
    version = client.create_model_version("other", str(onnx_file.parent)).version
    client.set_registered_model_alias("other", "champion", version)
    for n, source in enumerate(("models:/other@champion", f"models:/other/{version}")):
        assert learned(root, import_model(source, f"other{n}", root), f"other{n}") == onnx_file.read_bytes()
    with pytest.raises(UserError, match=re.escape("does not give models:/other@gone: ")):
        import_model("models:/other@gone", "gone", root)
