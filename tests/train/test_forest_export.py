"Forests, single trees, GradientBoosting and CatBoost as LightGBM text: the estimator's bits, exact contributions."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import ensemble as e
from sklearn import tree
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from support.estimator_data import FULL, LOGIT, TARGETS, X, interface

from mlops_nb.model.booster import Booster
from mlops_nb.train.forest_export import catboost_to_text, forest_to_text, gradient_boosting_to_text, threshold_up_to
from mlops_nb.train.onnx_conversion import (
    ModelInterface,
    compare_text_with_estimator,
    export_model,
    exported_parity,
    model_scores,
)
from mlops_nb.train.tree_export import split_imputer

rng = np.random.default_rng(1)
TREES = dict(RandomForest=e, ExtraTrees=e, DecisionTree=tree, ExtraTree=tree)


def made(name, task, **options):
    kind = getattr(TREES[name], name + ("Regressor" if task == "regression" else "Classifier"))
    return kind(max_depth=5, random_state=0, **({"n_estimators": 5} if TREES[name] is e else {}) | options)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("imputed", [True, False])
def test_trees_that_are_averaged_answer_as_they_do(name, task, imputed):
    "With an imputer before them, and with the side for missing values that they learned themselves."
    model = made(name, task)
    model = (make_pipeline(SimpleImputer(), model) if imputed else model).fit(X, TARGETS[task])
    file, text = export_model(model, interface(task))
    assert file == "model.txt"
    told = compare_text_with_estimator(model, text.decode(), X, interface(task))  # at the thresholds
    parity = exported_parity("model.txt", told.encode())
    assert name in parity.made_from and parity.n_threshold_rows > 50 and parity.max_difference < 1e-12
    assert exported_parity("model.txt", text) is None
    ours = Booster(told)
    np.testing.assert_allclose(ours.predict(X), model_scores(model, X, interface(task)), rtol=1e-12, atol=1e-14)
    assert ours.predict_one(X[3]) == pytest.approx(ours.predict(X[3:4])[0], abs=0)
    for rows in (X[:20], np.tile(X, (2, 1))):  # by walks, and by tables
        np.testing.assert_allclose(ours.contributions(rows).sum(-1), ours.predict(rows), atol=1e-9)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("name", TREES)
def test_contributions_are_those_of_shap(name, task):
    shap = pytest.importorskip("shap")
    model = made(name, task).fit(FULL, TARGETS[task])
    theirs = shap.TreeExplainer(model).shap_values(FULL)
    ours = Booster(export_model(model, interface(task))[1].decode()).contributions(FULL)[..., :-1]
    if task == "binary": theirs = theirs[..., 1]
    if task == "multiclass": ours = np.moveaxis(ours, 1, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("task", TARGETS)
def test_contributions_of_gradient_boosting_and_catboost_are_those_of_shap(task):
    shap, cb = pytest.importorskip("shap"), pytest.importorskip("catboost")
    kind = cb.CatBoostRegressor if task == "regression" else cb.CatBoostClassifier
    model = kind(iterations=8, depth=4, verbose=0, allow_writing_files=False, thread_count=1).fit(FULL, TARGETS[task])
    ours = Booster(catboost_to_text(model))
    shares = model.get_feature_importance(cb.Pool(FULL), type="ShapValues")
    np.testing.assert_allclose(ours.contributions(FULL), shares, atol=.05)  # its leaves without rows count otherwise
    if task == "multiclass": return
    kind = e.GradientBoostingRegressor if task == "regression" else e.GradientBoostingClassifier
    model = kind(n_estimators=8, random_state=0).fit(FULL, TARGETS[task])
    theirs = shap.TreeExplainer(model).shap_values(FULL)
    np.testing.assert_allclose(Booster(gradient_boosting_to_text(model)).contributions(FULL)[:, :-1], theirs, atol=1e-6)


@given(st.lists(st.floats(-1e30, 1e30) | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
       st.floats(width=32, allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None)
def test_a_threshold_splits_unrounded_values_as_rounded_ones(marks, x):
    t = np.array([m for m in marks if abs(m) < 3e38] or [0.])
    near = np.r_[t, np.nextafter(t, -np.inf), np.nextafter(t, np.inf), x]
    for one in t:
        with np.errstate(over="ignore"):
            assert np.array_equal(near.astype(np.float32) <= one, near <= threshold_up_to(one[None]))


def test_where_a_tree_only_asks_for_what_is_missing_all_numbers_go_left():
    assert threshold_up_to(np.array([np.inf, 1.]))[0] > np.finfo(np.float32).max
    model = tree.DecisionTreeClassifier(max_depth=1).fit(np.where(np.isnan(X[:, :1]), np.nan, 1.), np.isnan(X[:, 0]))
    assert np.isinf(model.tree_.threshold[0]) and np.array_equal(Booster(forest_to_text(model)).predict(
        np.array([[np.nan], [3.]])), [1, 0])


@pytest.mark.parametrize("weights", [None, np.r_[np.zeros(200), rng.random(200)]])
def test_weights_and_leaves_without_weight(weights):
    model = e.RandomForestClassifier(5, random_state=0).fit(FULL, TARGETS["binary"], weights)
    ours = Booster(export_model(model, interface("binary"))[1].decode())
    np.testing.assert_allclose(ours.predict(FULL), model.predict_proba(FULL)[:, 1], atol=1e-14)
    np.testing.assert_allclose(ours.contributions(FULL[:9]).sum(1), ours.predict(FULL[:9]), atol=1e-9)


def test_what_a_text_cannot_say_stays_onnx():
    several = e.RandomForestRegressor(2).fit(FULL, FULL[:, :2])
    one_class = e.RandomForestClassifier(2).fit(FULL, np.zeros(400))
    wide = e.RandomForestClassifier(20).fit(FULL, np.arange(400) // 2)  # 200 classes times its leaves
    assert [forest_to_text(m) for m in (several, one_class, wide)] == [None] * 3
    y = TARGETS["binary"]
    exponential = e.GradientBoostingClassifier(loss="exponential", n_estimators=2).fit(FULL, y)
    assert gradient_boosting_to_text(exponential) is None
    own = e.GradientBoostingClassifier(init=tree.DecisionTreeClassifier(max_depth=1), n_estimators=2).fit(FULL, y)
    assert gradient_boosting_to_text(own) is None


@pytest.mark.parametrize("imputer", [SimpleImputer(add_indicator=True), SimpleImputer(missing_values=-1),
                                     SimpleImputer(strategy="constant", fill_value=0, keep_empty_features=True)])
def test_only_an_imputer_that_fills_columns_is_left_out(imputer):
    model = make_pipeline(imputer, tree.DecisionTreeClassifier()).fit(
        FULL if imputer.missing_values == -1 else X, TARGETS["binary"])
    final, fill = split_imputer(model)
    left_out = imputer.strategy == "constant"
    assert (fill is not None, final is not model) == (left_out, left_out)


QUIET = dict(verbose=0, allow_writing_files=False, thread_count=1, iterations=6)


@pytest.mark.parametrize("options", [dict(grow_policy="Depthwise"), dict(grow_policy="Lossguide", max_leaves=7),
                                     dict(nan_mode="Max"), dict(depth=1), dict(depth=9)])
@pytest.mark.parametrize("task", TARGETS)
def test_catboost_of_every_shape_has_its_bits(task, options):
    cb = pytest.importorskip("catboost")
    kind = cb.CatBoostRegressor if task == "regression" else cb.CatBoostClassifier
    model = kind(**QUIET, **options).fit(X, TARGETS[task])
    compare_text_with_estimator(model, catboost_to_text(model), X, interface(task))


@pytest.mark.parametrize("loss", ["Poisson", "MAE", "Tweedie:variance_power=1.5"])
def test_catboost_with_other_losses(loss):
    cb = pytest.importorskip("catboost")
    model = cb.CatBoostRegressor(**QUIET, loss_function=loss).fit(X, np.exp(LOGIT / 3))
    compare_text_with_estimator(model, catboost_to_text(model), X, interface("regression"))


def test_catboost_behind_an_imputer_and_on_codes_of_categories():
    cb = pytest.importorskip("catboost")
    codes = np.c_[X, rng.integers(0, 4, 400)]
    model = make_pipeline(SimpleImputer(), cb.CatBoostClassifier(**QUIET)).fit(codes, TARGETS["binary"])
    four = ModelInterface("binary", [*"abcd"], 2)
    file, text = export_model(model, four)
    assert file == "model.txt"
    compare_text_with_estimator(model, text.decode(), codes, four)


def test_catboost_that_encodes_categories_itself_is_no_text():
    cb, pd = pytest.importorskip("catboost"), pytest.importorskip("pandas")
    frame = pd.DataFrame(FULL).assign(c=rng.integers(0, 4, 400).astype(str))
    y = (rng.random(400) < frame.c.astype(int) / 4).astype(int)
    model = cb.CatBoostClassifier(**QUIET, one_hot_max_size=9, cat_features=["c"]).fit(frame, y)
    assert catboost_to_text(model) is None
    from mlops_nb.core.errors import UserError
    with pytest.raises(UserError, match="fit it without cat_features, on the codes that the encoder gives"):
        export_model(model, ModelInterface("binary", [*"abcd"], 2))
