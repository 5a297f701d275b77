"Metrics of the project (@metric): their intervals, and what is said of functions that do what they should not."
import numpy as np
import polars as pl
import pytest
from support.small_project import FEATURES, small_project

from mlops_nb.config.params import read_params, write_params
from mlops_nb.core.errors import UserError
from mlops_nb.evaluate.metrics import estimate_metrics
from mlops_nb.evaluate.model_selection import select_model
from mlops_nb.evaluate.project_metrics import GroupedStatistic, project_metrics
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.model.features import load_features
from mlops_nb.release.gate import check_thresholds
from mlops_nb.report.evaluation_tables import describe_metric, metrics_table
from mlops_nb.stats.bootstrap import Resampling, Units

PROFIT = """
import numpy as np
@fx.metric("profit", better="higher")
def profit(y, p, tenure):
    "Money earned a row"
    return np.where(p > .5, y * tenure - 5., 0)
"""
RATIO = """
@fx.metric("ratio", better="lower")
def ratio(y, p): return y.sum() / p.sum()
"""


def features(tmp_path, text):
    (tmp_path / "features.py").write_text(FEATURES + text)
    return load_features(tmp_path / "features.py")


def own(tmp_path, text, **columns): return project_metrics(features(tmp_path, text), pl.DataFrame(columns))


def rows(n, seed, entities=None):
    rng = np.random.default_rng(seed)
    if entities: # rows of one entity are alike
        p = rng.uniform(.1, .9, entities)
        y = (rng.random(entities) < p).astype(float)
        at = rng.integers(0, entities, n)
        return y[at], p[at], np.unique(at, return_inverse=True)[1]
    p = rng.uniform(.1, .9, n)
    return (rng.random(n) < p).astype(float), p, None


@pytest.mark.parametrize("entities", [None, 150])
def test_the_interval_of_a_figure_that_is_no_mean_covers(tmp_path, entities):
    "The true ratio of events to their expected number is 1."
    metrics, hit, n = own(tmp_path, RATIO), 0, 120
    for seed in range(n):
        y, p, clusters = rows(400, seed, entities)
        found = estimate_metrics("binary", y, p, resampling=Resampling(clusters=clusters), own=metrics)["ratio"]
        hit += found.low <= 1 <= found.high
    assert hit >= .95 * n - 3 * (n * .95 * .05)**.5


def test_groups_say_what_single_rows_do():
    x = np.random.default_rng(0).normal(size=150)
    at, units = GroupedStatistic(lambda rows: x[rows].mean(), len(x)), Units(len(x))
    np.testing.assert_allclose(at.without(units), (x.sum() - x) / (len(x) - 1))
    assert at(np.bincount([0, 0, 1], minlength=150).astype(float)) == pytest.approx((2 * x[0] + x[1]) / 3)
    assert np.isnan(at(np.full(150, .5)))


def test_a_figure_that_is_no_number_on_some_rows_has_no_interval(tmp_path):
    metrics = own(tmp_path, """
@fx.metric("odd", better="higher")
def odd(y, p): return p.mean() if y[0] == 1 and len(y) == 400 else float("nan")
""")
    y, p, _ = rows(400, 1)
    y[0] = 1
    found = estimate_metrics("binary", y, p, own=metrics)["odd"]
    assert found.value == pytest.approx(p.mean()) and found.low is None and found.high is None


@pytest.mark.parametrize("body, said", [
    ("return 1 / 0", "failed with ZeroDivisionError"), ("y[:] = 0", "read-only"), ("return y[:3]", "shape (3,)"),
    ("return 'much'", "failed with ValueError"), ("return y if len(y) == 400 else 1.", None),
    ("return 1. if len(y) == 400 else y", "always one number")])
def test_a_function_that_does_what_it_should_not(tmp_path, body, said):
    metrics = own(tmp_path, f"\n@fx.metric('bad', better='higher')\ndef bad(y, p): {body}\n")
    y, p, _ = rows(400, 2)
    if said is None: assert estimate_metrics("binary", y, p, own=metrics)["bad"].low is not None
    else:
        with pytest.raises(UserError) as e: estimate_metrics("binary", y, p, own=metrics)
        assert said in str(e.value) and "'bad'" in str(e.value)


def test_names_and_columns(tmp_path):
    for taken in ("roc_auc", "poisson_deviance", "coverage", "loss", "auc", "scores"):
        with pytest.raises(UserError, match=f"'{taken}' is built in"):
            own(tmp_path, f'\n@fx.metric("{taken}", better="higher")\ndef f(y, p): return y\n')
    with pytest.raises(UserError, match="reads 'tenure', a column that these rows do not have; did you mean 'tenur'"):
        own(tmp_path, PROFIT, tenur=[1])
    with pytest.raises(UserError, match="must take `y` and `p`"):
        features(tmp_path, '\n@fx.metric("f", better="higher")\ndef f(p, y): return y\n')
    with pytest.raises(UserError, match="two metrics are named 'f'"):
        features(tmp_path, "".join(f'\n@fx.metric("f", better="higher")\ndef {n}(y, p): return y\n' for n in "ab"))


def test_from_the_notebook_to_gate_and_page(tmp_path):
    root = small_project(tmp_path, "binary", (600, 400, 400), 10)
    (root / "features.py").write_text(FEATURES + PROFIT + RATIO)
    p = read_params(root / "params.yaml")
    p.evaluate.selection_metric = "profit"
    write_params(p, root / "params.yaml")
    run_evaluate(root)
    e = read_evaluation(root)
    test = e.metrics["test"]["profit"]
    assert test.low < test.value < test.high and e.metrics["valid"]["ratio"].value > 0
    constant = next(c for c in e.comparisons if c.name == "constant")
    assert constant.metrics["profit"].gain.low is not None
    figures = {m: x.value for m, x in e.metrics["test"].items()}
    passed = {r.name: r.passed for r in check_thresholds("binary", dict(profit=-1e6, ratio=0), figures, e.own_metrics)}
    assert passed == {"threshold: profit": True, "threshold: ratio": False}
    with pytest.raises(UserError, match="did you mean 'profit'"):
        check_thresholds("binary", dict(profitt=1), figures, e.own_metrics)
    assert describe_metric(e, "profit") == ("Profit", "Money earned a row")
    assert "Money earned a row (higher is better)" in metrics_table(e).text
    p.evaluate.selection_metric = "profits"
    write_params(p, root / "params.yaml")
    with pytest.raises(UserError, match="evaluate.selection_metric.*did you mean 'profit'"): run_evaluate(root)


def test_the_project_s_metric_chooses_the_learner(tmp_path):
    y, p, _ = rows(400, 3)
    metrics = own(tmp_path, PROFIT, tenure=np.full(400, 9))
    scores = dict(ranks=p / 2, dares=np.where(y == 1, .6, .4) + .3 * (p < .3)) # one never acts, the other earns
    assert select_model("binary", "best", y, scores, metric="profit", own=metrics).learner == "dares"
    assert "profit" in select_model("binary", "best", y, scores, metric="profit", own=metrics).message.lower()


def test_cross_validation_has_it_beside_the_metrics_of_the_task(tmp_path):
    from mlops_nb.config.project import Project
    from mlops_nb.evaluate.cross_validation import read_cross_validation, run_cross_validation
    root = small_project(tmp_path / "p", "binary", (400, 200, 200), 3)
    path = Project.open(root).features_path
    path.write_text(path.read_text() + PROFIT)
    params = read_params(root / "params.yaml")
    params.cross_validation.n_folds, params.cross_validation.n_seeds, params.train.gbdt.n_estimators = 2, 2, 5
    params.evaluate.min_segment_rows = 50
    write_params(params, root / "params.yaml")
    run_cross_validation(root)
    found = read_cross_validation(root, "gbdt")
    assert found.fold_summary["profit"].n_runs == 2 and "profit" in found.seed_summary
    table = pl.read_parquet(root / "artifacts/cross_validation/gbdt/metrics.parquet")
    assert set(table.filter(metric="profit")["kind"]) == {"fold", "seed"}
