"The stages evaluate and explain on small projects of all three tasks."
import json
import shutil

import lightgbm as lgb
import msgspec
import numpy as np
import polars as pl
import pytest

from mlops_nb.config.params import EncoderParams, EvaluateParams, ExplainParams, Params, write_params
from mlops_nb.config.schema import Column, Schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.core.manifest import write_manifest
from mlops_nb.evaluate.metrics import METRICS, row_loss
from mlops_nb.evaluate.stage import Evaluation, describe_scores, run_evaluate, evaluate_scores, read_evaluation
from mlops_nb.explain import attributions as explaining
from mlops_nb.explain.attributions import (
    AttributionBaseline, checked_contributions, explain_row, run_explain, read_explanation, sample_rows,
    top3_share,
)
from mlops_nb.model.lightgbm_text import gain_importance
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.predictor import Predictor
from mlops_nb.model.policy import Policy

TASKS = ["binary", "multiclass", "regression"]
CLASSES = {"binary": ["stays", "leaves"], "multiclass": ["low", "mid", "high"], "regression": None}
FEATURES = """import mlops_nb.model.features as fx

@fx.feature
def paid_so_far(tenure, charge):
    "Charges times months"
    return tenure * charge
"""


def contract(task):
    return Schema("subscribers", task, target="outcome", classes=CLASSES[task], segments=["plan", "tenure"], columns=dict(
        plan=Column("category"), tenure=Column("integer"), charge=Column("number", nullable=True), since=Column("timestamp"),
        outcome=Column("number")))


def rows(task, n, source, seed):
    rng = np.random.default_rng(seed)
    plan, tenure = rng.choice(["basic", "family", "plus"], n), rng.integers(0, 72, n)
    charge = np.where(rng.random(n) < 0.1, np.nan, rng.normal(60, 20, n))
    z = 1 - tenure / 18 + 1.5 * (plan == "plus") + 0.02 * np.nan_to_num(charge)
    p = 1 / (1 + np.exp(-z))
    y = {"binary": rng.random(n) < p, "multiclass": (rng.random(n) < p).astype(int) + (rng.random(n) < p),
         "regression": z + rng.normal(0, 1, n)}[task].astype(float)
    return pl.DataFrame(dict(plan=plan, tenure=tenure, charge=pl.Series(charge, nan_to_null=True), outcome=y, _target=y,
                             paid_so_far=tenure * charge, _source=source, _row=np.arange(n), p=p)).with_columns(
        since=pl.datetime(2026, 1, 1) + pl.duration(days="_row"))


def make(root, task, sizes=(1500, 800, 900), rounds=30, **options):
    "A project as the stages before evaluate leave it."
    schema = contract(task)
    parts = {p: rows(task, n, f"{p}.csv", i) for i, (p, n) in enumerate(zip(("train", "valid", "test"), sizes, strict=True))}
    for folder in ("artifacts/prepared", "artifacts/models/gbdt", "artifacts/models/baseline"): (root / folder).mkdir(parents=True)
    params = Params(evaluate=EvaluateParams(n_resamples=40), explain=ExplainParams(max_rows=300))
    params.prepare.features_file = "features.py"
    (root / "features.py").write_text(FEATURES)
    write_params(params, root / "params.yaml")
    write_schema(schema, root / "schema.yaml")
    for part, frame in parts.items(): frame.drop("p").write_parquet(root / f"artifacts/prepared/{part}.parquet")
    encoder = Encoder.fit(parts["train"], schema, load_features(root / "features.py"), EncoderParams())
    (root / "artifacts/models/gbdt/encoder.json").write_bytes(encoder.to_json())
    objective = dict(objective=task, num_class=3 if task == "multiclass" else 1, num_leaves=6, verbosity=-1, num_threads=1) | options
    data = lgb.Dataset(encoder.transform(parts["train"]), parts["train"]["_target"].to_numpy(), categorical_feature=encoder.categorical)
    lgb.train(objective, data, rounds).save_model(root / "artifacts/models/gbdt/model.txt")
    write_baseline(root, task, parts)
    return root


def write_baseline(root, task, parts):
    y = parts["train"]["_target"].to_numpy()
    shares = np.bincount(y.astype(int), minlength=3) / len(y) if task == "multiclass" else y.mean()
    scores = [f.select("_source", "_row", part=pl.lit(p), constant=pl.Series([shares] * len(f))) for p, f in parts.items() if p != "train"]
    pl.concat(scores).write_parquet(root / "artifacts/models/baseline/scores.parquet")


def champion_of(root, store, change=None):
    "What the model of a project would be as a bundle: enough for a champion."
    bundle = store / "bundle"
    shutil.copytree(root / "artifacts/models/gbdt", bundle)
    shutil.copy(root / "features.py", bundle)
    schema = contract(read_evaluation(root).task)
    if change: change(schema)
    write_json(bundle / "schema.json", schema)
    shutil.copy(root / "artifacts/evaluation/policy.json", bundle)
    write_manifest(bundle)
    return bundle.rename(store / Predictor.open(bundle).id)


@pytest.fixture(scope="module", params=TASKS)
def project(request, tmp_path_factory):
    "An evaluated and explained project."
    root = make(tmp_path_factory.mktemp(request.param), request.param)
    run_evaluate(root)
    run_explain(root)
    return root


# ── evaluate ──


def test_files_and_metrics(project):
    found, flat = read_evaluation(project), json.loads((project / "artifacts/metrics.json").read_text())
    names = {f.name for f in (project / "artifacts/evaluation").iterdir()}
    always = {"predictions.parquet", "policy.json", "evaluation.json", "slices.parquet", "discovered_slices.parquet",
              "fairness.parquet", "residuals.parquet", "calibration_curve.parquet"}
    moved = found.recalibration and found.recalibration.method != "none"
    assert names == always | ({"cost_curve.parquet"} if found.task == "binary" else set()) | ({"calibration_curve_uncalibrated.parquet"} if moved else set())
    assert (found.threshold is not None) == (found.task == "binary") and (found.recalibration is None) == (found.task == "regression")
    assert flat.keys() == {"test", "valid"} and flat["test"].keys() == METRICS[found.task].keys()
    for part, metrics in found.metrics.items():
        for m, e in metrics.items(): assert flat[part][m] == e.value and e.low <= e.value <= e.high, (part, m)
    assert (found.decision_costs is not None) == (found.task == "binary") and (found.confusion_matrix is None) == (found.task == "regression")
    assert {s.column for s in found.slices} == {"plan", "tenure"} and found.excess_log_loss is None


def test_evaluation_is_documented_json(project):
    found = read_evaluation(project)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation, strict=True) == found
    assert [c.kind for c in found.comparisons] == ["baseline"] and found.comparisons[0].metrics[found.primary_metric].gain.value > 0


def test_metrics_can_be_recomputed_from_the_predictions(project):
    found = read_evaluation(project)
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet")
    assert kept.group_by("part").len().sort("part").rows() == [("test", 900), ("valid", 800)]
    assert kept.select("_source", "_row").n_unique() == 1700
    test = kept.filter(part="test")
    s = test.select(pl.col("^score.*$")).to_numpy()
    s = s[:, 0] if s.shape[1] == 1 else s
    loss = row_loss(found.task, test["_target"].to_numpy(), s)
    if found.task == "regression": assert np.sqrt((loss**2).mean()) == pytest.approx(found.metrics["test"]["rmse"].value)
    else: assert loss.mean() == pytest.approx(found.metrics["test"]["log_loss"].value)


def test_decisions_are_the_predictors(project):
    found = read_evaluation(project)
    if found.task == "regression": pytest.skip("a regression decides nothing")
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(part="test")
    right = (kept["decision"] == pl.Series([found.classes[int(t)] for t in kept["_target"]])).mean()
    assert right == pytest.approx(found.metrics["test"]["accuracy"].value)
    assert np.trace(found.confusion_matrix) == pytest.approx(right * 900) and np.sum(found.confusion_matrix) == 900
    policy = read_json(project / "artifacts/evaluation/policy.json", Policy)
    assert policy.classes == found.classes and policy.threshold == (found.decision_settings.threshold if found.task == "binary" else None)


def test_same_inputs_same_bytes(project):
    before = file_hashes(project / "artifacts")
    run_evaluate(project)
    run_explain(project)
    assert file_hashes(project / "artifacts") == before


def test_a_champion_that_is_the_same_model_is_exactly_as_good(project, tmp_path):
    champion = champion_of(project, tmp_path)
    run_evaluate(project, champion)
    c = read_evaluation(project).comparisons[-1]
    assert (c.kind, c.bundle_id) == ("champion", champion.name) and "the same" in c.message
    for d in c.metrics.values(): assert (d.gain.value, d.gain.low, d.gain.high, d.share_worse) == (0, 0, 0, 0)
    run_evaluate(project)


def test_a_champion_that_cannot_be_used_is_a_sentence(project, tmp_path):
    champion = champion_of(project, tmp_path)
    (champion / "model.txt").write_text("tampered")
    run_evaluate(project, champion)
    c = read_evaluation(project).comparisons[-1]
    assert c.metrics == {} and "cannot score these rows" in c.message and "changed" in c.message and str(tmp_path) not in c.message
    run_evaluate(project)


def test_a_champion_whose_column_is_gone(tmp_path):
    old, new = make(tmp_path / "old", "binary"), make(tmp_path / "new", "binary")
    run_evaluate(old)
    (tmp_path / "store").mkdir()
    champion = champion_of(old, tmp_path / "store")
    schema = contract("binary")
    del schema.columns["charge"]
    write_schema(schema, new / "schema.yaml")
    write_params(Params(evaluate=EvaluateParams(n_resamples=10)), new / "params.yaml")
    for part in ("train", "valid", "test"):
        path = new / f"artifacts/prepared/{part}.parquet"
        pl.read_parquet(path).drop("charge", "paid_so_far").write_parquet(path)
    frame = pl.read_parquet(new / "artifacts/prepared/train.parquet")
    encoder = Encoder.fit(frame, schema, load_features(None), EncoderParams())
    (new / "artifacts/models/gbdt/encoder.json").write_bytes(encoder.to_json())
    data = lgb.Dataset(encoder.transform(frame), frame["_target"].to_numpy(), categorical_feature=encoder.categorical)
    lgb.train(dict(objective="binary", verbosity=-1, num_threads=1), data, 5).save_model(new / "artifacts/models/gbdt/model.txt")
    run_evaluate(new, champion)
    c = read_evaluation(new).comparisons[-1]
    assert c.message == f"The champion {champion.name[:12]} cannot score these rows: it needs columns that are gone: charge."
    assert c.metrics == {}


def test_another_champion_has_an_interval(tmp_path):
    weak, strong = make(tmp_path / "weak", "regression", rounds=1), make(tmp_path / "strong", "regression")
    run_evaluate(weak)
    (tmp_path / "store").mkdir()
    run_evaluate(strong, champion_of(weak, tmp_path / "store"))
    d = read_evaluation(strong).comparisons[-1].metrics["rmse"]
    assert d.gain.low > 0 and d.share_worse == 0 and d.other_value > d.value


def test_regret_of_simulated_data(tmp_path):
    root = make(tmp_path / "p", "binary")
    test = rows("binary", 900, "test.csv", 2)
    (root / "truth").mkdir()
    test.select("_source", "_row", probability="p").sample(fraction=1, shuffle=True, seed=0).write_parquet(root / "truth/truth.parquet")
    run_evaluate(root)
    p, q = test["p"].to_numpy(), pl.read_parquet(root / "artifacts/evaluation/predictions.parquet").filter(part="test")["score"].to_numpy()
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert read_evaluation(root).excess_log_loss == pytest.approx(expected) and expected > 0
    test.head(5).select("_source", "_row", probability="p").write_parquet(root / "truth/truth.parquet")
    run_evaluate(root)
    assert read_evaluation(root).excess_log_loss is None


def test_scores_that_are_no_numbers_leave_nulls(monkeypatch, tmp_path):
    root = make(tmp_path / "p", "binary")
    honest = Predictor.predict

    def broken(self, frame):
        s = honest(self, frame).copy()
        s[3] = np.nan
        return s
    monkeypatch.setattr(Predictor, "predict", broken)
    run_evaluate(root)
    found = read_evaluation(root)
    assert found.score_summary["test"].n_not_finite == 1 and found.decision_costs is None and found.calibration.expected_calibration_error is None
    assert all(e.value is None for e in found.metrics["test"].values())
    assert json.loads((root / "artifacts/metrics.json").read_text())["test"]["roc_auc"] is None


def test_constant_scores_are_seen():
    assert describe_scores(np.full(7, 0.3)).n_unique == 1
    assert describe_scores(np.full((7, 3), 1 / 3)).n_unique == 1
    assert describe_scores(np.full(2, np.nan)).min is None


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [1, 3])
def test_tiny_test_sets(task, n, tmp_path):
    root = make(tmp_path / "p", task, (500, 5, n))
    run_evaluate(root)
    run_explain(root)
    found = read_evaluation(root)
    assert found.slices == [] and found.score_summary["test"].n_rows == n
    if task == "binary" and n == 1: assert found.metrics["test"]["roc_auc"].value is None
    assert len(read_explanation(root).worst_predicted) == n


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_one_class_in_the_test_part(task, tmp_path):
    root = make(tmp_path / "p", task)
    path = root / "artifacts/prepared/test.parquet"
    pl.read_parquet(path).filter(pl.col("_target") == 0).write_parquet(path)
    run_evaluate(root)
    found = read_evaluation(root)
    undefined = {m for m, e in found.metrics["test"].items() if e.value is None}
    assert undefined == ({"roc_auc", "average_precision", "recall"} if task == "binary" else {"roc_auc_ovr"})
    assert found.calibration.slope is None


@pytest.mark.parametrize("part", ["valid", "test"])
def test_missing_and_empty_parts(part, tmp_path):
    root = make(tmp_path / "p", "binary")
    path = root / f"artifacts/prepared/{part}.parquet"
    pl.read_parquet(path).head(0).write_parquet(path)
    with pytest.raises(UserError, match="holds no row"): run_evaluate(root)
    path.unlink()
    with pytest.raises(UserError, match="run the stage prepare"): run_evaluate(root)
    assert not (root / "artifacts/evaluation").exists()


def test_missing_baseline(tmp_path):
    root = make(tmp_path / "p", "binary")
    (root / "artifacts/models/baseline/scores.parquet").unlink()
    with pytest.raises(UserError, match="run the stage baseline"): run_evaluate(root)


def test_the_threshold_comes_from_valid_and_not_from_test(tmp_path):
    schema, valid, test = contract("binary"), rows("binary", 300, "v", 0), rows("binary", 300, "t", 1)
    s = {"valid": valid["p"].to_numpy(), "test": test["p"].to_numpy()}
    flipped = test.with_columns(_target=1 - pl.col("_target"))
    a, b = (evaluate_scores(schema, EvaluateParams(n_resamples=5), valid, t, s) for t in (test, flipped))
    assert a.decision_settings == b.decision_settings and a.metrics["test"]["accuracy"].value == pytest.approx(1 - b.metrics["test"]["accuracy"].value)


# ── explain ──


def test_explanation_files(project):
    found, task = read_explanation(project), read_evaluation(project).task
    k = 3 if task == "multiclass" else 1
    assert found.n_rows == 300 // k and found.n_test_rows == 900 and found.additivity_error < 1e-6
    parts = pl.read_parquet(project / "artifacts/explanation/contributions.parquet")
    assert len(parts) == found.n_rows * k and parts.select("_source", "_row", "_class").n_unique() == len(parts)
    ranked = pl.read_parquet(project / "artifacts/explanation/importance.parquet")
    every = ranked.filter(pl.col("class").is_null())
    assert every["feature"].to_list()[0] == found.top_features[0] and every["mean_abs"].is_sorted(descending=True)
    for f, v in every.select("feature", "mean_abs").rows(): assert parts[f].abs().mean() == pytest.approx(v)
    assert len(ranked) == 4 * (1 + (k if k > 1 else 0))
    for name in ("dependence", "points"):
        assert set(pl.read_parquet(project / f"artifacts/explanation/{name}.parquet")["feature"]) == set(found.top_features)


def test_attribution_baseline(project):
    found = read_json(project / "artifacts/explanation/attribution_baseline.json", AttributionBaseline)
    parts = pl.read_parquet(project / "artifacts/explanation/contributions.parquet")
    for a in found.features:
        x = (parts.filter(pl.col("_class") == a.label) if a.label else parts)[a.feature].to_numpy()
        assert [a.mean, a.mean_abs, *a.quantiles] == pytest.approx([x.mean(), np.abs(x).mean(), *np.quantile(x, found.quantile_levels)])
    assert found.base_value == parts["_base"].unique(maintain_order=True).to_list()


def test_worst_predicted_are_the_largest_losses(project):
    found, evaluation = read_explanation(project), read_evaluation(project)
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(part="test")
    s = kept.select(pl.col("^score.*$")).to_numpy()
    loss = row_loss(evaluation.task, kept["_target"].to_numpy(), s[:, 0] if s.shape[1] == 1 else s)
    assert [w.row for w in found.worst_predicted] == np.argsort(-loss, kind="stable")[:10].tolist()
    assert [w.loss for w in found.worst_predicted] == pytest.approx(np.sort(loss)[::-1][:10])


def test_best_explained_are_the_simplest_stories(project):
    found = read_explanation(project)
    shares = [e.top3_share for e in found.best_explained]
    assert shares == sorted(shares, reverse=True) and len(shares) == 10
    for e in found.best_explained + found.worst_predicted:
        sizes = [abs(r.contribution) for r in e.contributions]
        assert sizes == sorted(sizes, reverse=True) and e.base_value + sum(r.contribution for r in e.contributions) == pytest.approx(e.raw_score)
        assert sum(sizes[:3]) / sum(sizes) == pytest.approx(e.top3_share)
        assert e.values["plan"] in ("basic", "family", "plus") and isinstance(e.values["since"], str)


def test_like_shap(project):
    import shap
    task = read_evaluation(project).task
    bundled = lgb.Booster(model_file=project / "artifacts/models/gbdt/model.txt")
    encoder = Encoder.from_json((project / "artifacts/models/gbdt/encoder.json").read_bytes())
    test = pl.read_parquet(project / "artifacts/prepared/test.parquet").head(50)
    theirs = shap.TreeExplainer(bundled)(encoder.transform(test)).values
    predictor = Predictor(contract(task), load_features(project / "features.py"), encoder,
                          Booster((project / "artifacts/models/gbdt/model.txt").read_text()))
    parts, _ = checked_contributions(predictor, test)
    ours = parts[:, :, :-1].transpose(0, 2, 1) if task == "multiclass" else parts[:, 0, :-1]
    np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_contributions_that_do_not_add_up_stop_the_stage(project, monkeypatch):
    honest, before = Predictor.contributions, file_hashes(project / "artifacts")
    monkeypatch.setattr(Predictor, "contributions", lambda self, frame: honest(self, frame) * (1 + 1e-4))
    with pytest.raises(UserError, match="do not add up to the raw scores"): run_explain(project)
    monkeypatch.setattr(Predictor, "contributions", lambda self, frame: honest(self, frame) * np.nan)
    with pytest.raises(UserError, match="do not add up"): run_explain(project)
    assert file_hashes(project / "artifacts") == before


def test_gain_is_lightgbms(project):
    model = lgb.Booster(model_file=project / "artifacts/models/gbdt/model.txt")
    text = (project / "artifacts/models/gbdt/model.txt").read_text()
    np.testing.assert_allclose(gain_importance(text, model.num_feature()), model.feature_importance("gain"), rtol=1e-4)


def test_a_model_without_a_split_explains_nothing(tmp_path):
    root = make(tmp_path / "p", "binary", rounds=1, min_data_in_leaf=10**6)
    run_evaluate(root)
    run_explain(root)
    found = read_explanation(root)
    assert found.best_explained[0].top3_share is None and found.additivity_error == 0
    assert read_evaluation(root).score_summary["test"].n_unique == 1


def test_samples():
    assert sample_rows(5, 10).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_rows(10_000, 100)
    assert len(set(drawn)) == 100 and (np.diff(drawn) > 0).all() and (drawn == sample_rows(10_000, 100)).all()


def test_top_three_of_two_features_is_everything(): assert top3_share(np.array([[1.0, -2.0, 50.0]])).tolist() == [1.0]


def test_an_example_holds_only_what_json_can(project):
    test = pl.read_parquet(project / "artifacts/prepared/test.parquet")
    task = read_evaluation(project).task
    p = explaining.Predictor(contract(task), load_features(project / "features.py"),
                             Encoder.from_json((project / "artifacts/models/gbdt/encoder.json").read_bytes()),
                             Booster((project / "artifacts/models/gbdt/model.txt").read_text()))
    i = test["charge"].is_null().arg_max()
    e = explain_row(p, test.row(i, named=True), p.predict(test[[i]])[0], checked_contributions(p, test[[i]])[0][0])
    assert e.values["charge"] is None and e.values["paid_so_far"] is None
    assert b"NaN" not in msgspec.json.encode(e)


def test_pairs_and_lines_are_explained(project):
    found, folder = read_explanation(project), project / "artifacts/explanation"
    pairs, grid = (pl.read_parquet(folder / f"{n}.parquet") for n in ("interactions", "partial_dependence_2d"))
    n = min(6, len(found.top_features))
    assert len(pairs) == n * (n - 1) // 2 and {*pairs["feature"], *pairs["other_feature"]} == set(found.top_features[:6])
    assert {grid["feature"][0], grid["other_feature"][0]} == {*pairs.row(0)[:2]} and grid["value"].is_finite().all()
    for rows in (found.best_explained, found.worst_predicted):
        assert [e.local_surrogate is not None for e in rows] == [True] * 3 + [False] * 7
        assert all(set(t.column for t in e.local_surrogate.terms) <= {"plan", "tenure", "charge"} and e.local_surrogate.fidelity <= 1 for e in rows[:3])
