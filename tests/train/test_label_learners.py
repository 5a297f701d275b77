"Own learners with several labels: one fit a label, one model that answers for all of them."
import msgspec
import numpy as np
import pytest
from msgspec import structs
from train.test_label_boosting import ENCODER, SCHEMA, TRAIN, VALID

from mlops_nb.config.params import TrainParams
from mlops_nb.core.errors import UserError
from mlops_nb.model.predictor import MODEL_LOADERS
from mlops_nb.train import learners
from mlops_nb.train.dataset import FitResult, LossCurvePoint, TrainingPart
from mlops_nb.train.label_boosting import label_part
from mlops_nb.train.learners import FitOptions, fit_learner

# two labels do: each is a process of its own
TWO = structs.replace(SCHEMA, columns={n: c for n, c in SCHEMA.columns.items() if n != "l2"}, targets=["l0", "l1"])
PARTS = [TrainingPart(p.X[known], p.y[known, :2], None)
         for p in (TRAIN, VALID) for known in [~np.isnan(p.y[:, :2]).all(1)]]

OWN = '''
from mlops_nb.train.custom_learners import learner


@learner("linear")
def linear(X, y, sample_weight, seed):
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression(random_state=seed).fit(X, y, sample_weight)


@learner("boosted")
def boosted(X, y, seed):
    from lightgbm import LGBMClassifier
    return LGBMClassifier(n_estimators=20, random_state=seed, verbosity=-1, n_jobs=1).fit(X, y)
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "artifacts").mkdir()
    (folder / "artifacts/learners.py").write_text(OWN)
    return folder


def fit(name, root):
    section = name, dict, msgspec.field(default_factory=dict)
    own = msgspec.defstruct("Own", [section], bases=(TrainParams,), kw_only=True)
    return fit_learner(name, PARTS, TWO, ENCODER, own(), options=FitOptions(root=root))


@pytest.mark.parametrize("name, file", [("linear", "model.onnx"), ("boosted", "model.txt")])
def test_an_own_learner_is_fitted_for_each_label_on_its_known_rows(root, name, file):
    found, valid = fit(name, root), PARTS[1]
    X = valid.X
    model = MODEL_LOADERS[file](found.model)
    p = model.predict(X)
    assert found.file == file and p.shape == (len(X), 2) and p.sum(1).max() > 1.5
    for k in range(2):
        y, known = label_part(valid, k).y, ~np.isnan(valid.y[:, k])
        event = p[known, k][y == 1]
        assert np.mean(event[:, None] > p[known, k][y == 0]) > .75 # the AUC
        assert abs(p[known, k].mean() - y.mean()) < .06 # of unknown rows nothing was taken for 0
    assert all(np.array_equal(model.predict_one(x), row) for x, row in zip(X[:10], p, strict=False))
    shares = model.contributions(X[:5])
    assert shares.shape == (5, 2, 3) and np.allclose(shares.sum(-1), model.predict_raw(X[:5]), atol=1e-9)


def test_forms_that_differ_are_said(root, monkeypatch):
    one = FitResult(b"", 1, 1, .5, [LossCurvePoint(1, .5, .5)], file="model.txt")
    forms = iter(["model.txt", "model.onnx", "model.txt"])
    plain = learners._fit_custom
    monkeypatch.setattr(learners, "_fit_custom",
                        lambda *a: plain(*a) if a[2].targets else one._replace(file=next(forms)))
    with pytest.raises(UserError, match="leaves as model.onnx and model.txt for different labels"):
        learners._fit_custom_labels("own", (TRAIN, VALID), SCHEMA, ENCODER, TrainParams(), None, FitOptions())
