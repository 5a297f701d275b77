"Contributions against shap, what is kept of them, and samples of rows."
import lightgbm as lgb
import msgspec
import numpy as np
import polars as pl
import pytest
from support.small_project import TASKS, small_project, small_schema

from mlops_nb.core.typed_yaml import read_json
from mlops_nb.evaluate.stage import run_evaluate
from mlops_nb.explain.attributions import (
    AttributionBaseline,
    checked_contributions,
    explain_row,
    sample_rows,
    top3_share,
)
from mlops_nb.explain.stage import read_explanation, run_explain
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.predictor import Predictor


@pytest.fixture(scope="module", params=TASKS)
def project(request, tmp_path_factory):
    "An evaluated and explained project."
    root = small_project(tmp_path_factory.mktemp(request.param), request.param)
    run_evaluate(root)
    run_explain(root)
    return root


def test_attribution_baseline(project):
    found = read_json(project / "artifacts/explanation/attribution_baseline.json", AttributionBaseline)
    parts = pl.read_parquet(project / "artifacts/explanation/contributions.parquet")
    for a in found.features:
        x = (parts.filter(pl.col("_class") == a.label) if a.label else parts)[a.feature].to_numpy()
        assert [a.mean, a.mean_abs, *a.quantiles] == pytest.approx(
            [x.mean(), np.abs(x).mean(), *np.quantile(x, found.quantile_levels)]
        )
    assert found.base_value == parts["_base"].unique(maintain_order=True).to_list()


def test_like_shap(project):
    import shap
    task = read_explanation(project).task
    bundled = lgb.Booster(model_file=project / "artifacts/models/gbdt/model.txt")
    encoder = Encoder.from_json((project / "artifacts/models/gbdt/encoder.json").read_bytes())
    test = pl.read_parquet(project / "artifacts/prepared/test.parquet").head(50)
    theirs = shap.TreeExplainer(bundled)(encoder.transform(test)).values
    predictor = Predictor(small_schema(task), load_features(project / "features.py"), encoder,
                          Booster((project / "artifacts/models/gbdt/model.txt").read_text()))
    parts, _ = checked_contributions(predictor, test)
    ours = parts[:, :, :-1].transpose(0, 2, 1) if task == "multiclass" else parts[:, 0, :-1]
    np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_samples():
    assert sample_rows(5, 10).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_rows(10_000, 100)
    assert len(set(drawn)) == 100 and (np.diff(drawn) > 0).all() and (drawn == sample_rows(10_000, 100)).all()


def test_top_three_of_two_features_is_everything(): assert top3_share(np.array([[1.0, -2.0, 50.0]])).tolist() == [1.0]


def test_an_example_holds_only_what_json_can(project):
    test = pl.read_parquet(project / "artifacts/prepared/test.parquet")
    task = read_explanation(project).task
    p = Predictor(small_schema(task), load_features(project / "features.py"),
                             Encoder.from_json((project / "artifacts/models/gbdt/encoder.json").read_bytes()),
                             Booster((project / "artifacts/models/gbdt/model.txt").read_text()))
    i = test["charge"].is_null().arg_max()
    e = explain_row(p, test.row(i, named=True), p.predict(test[[i]])[0], checked_contributions(p, test[[i]])[0][0])
    assert e.values["charge"] is None and e.values["paid_so_far"] is None
    assert b"NaN" not in msgspec.json.encode(e)
