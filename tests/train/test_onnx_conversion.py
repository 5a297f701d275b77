"What a model of each library says by itself and in its exported form: on real rows, missing values and thresholds."
import numpy as np
import pytest
from support.estimator_data import LOGIT, TARGETS, X, interface

from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import Booster
from mlops_nb.model.onnx_model import OnnxModel
from mlops_nb.train.onnx_conversion import (
    compare_text_with_estimator,
    compare_with_estimator,
    export_model,
    model_scores,
)
from mlops_nb.train.tree_export import xgboost_to_text


def sklearn(task):
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestRegressor
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    model = RandomForestRegressor(5) if task == "regression" else ExtraTreesClassifier(5, max_depth=5)
    return make_pipeline(SimpleImputer(), VarianceThreshold(), model)


def linear(task):
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    return make_pipeline(SimpleImputer(), StandardScaler(), Ridge() if task == "regression" else LogisticRegression())


def xgboost(task):
    xgb = pytest.importorskip("xgboost")
    return (xgb.XGBRegressor if task == "regression" else xgb.XGBClassifier)(n_estimators=5, n_jobs=1)


def xgboost_in_a_pipeline(task):
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    return make_pipeline(SimpleImputer(), VarianceThreshold(), xgboost(task))


def catboost(task):
    cb = pytest.importorskip("catboost")
    kind = cb.CatBoostRegressor if task == "regression" else cb.CatBoostClassifier
    return kind(iterations=5, verbose=0, allow_writing_files=False, thread_count=1)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("make", [sklearn, linear, xgboost_in_a_pipeline])
def test_the_exported_form_answers_like_the_library(make, task):
    model = make(task).fit(X, TARGETS[task])
    file, data = export_model(model, interface(task))
    onnx = OnnxModel(compare_with_estimator(model, data, X, interface(task), X[:8]))
    theirs = model_scores(model, X, interface(task))
    assert file == "model.onnx" and np.abs(onnx.predict(X) - theirs).max() < 1e-5
    assert (onnx.spec.parity.n_threshold_rows > 50) == (make is not linear)
    alone = np.array([onnx.predict_one(x) for x in X[:30]])
    assert alone.tobytes() == onnx.predict(X)[:30].tobytes()


def lightgbm(task):
    import lightgbm as lgb
    return (lgb.LGBMRegressor if task == "regression" else lgb.LGBMClassifier)(n_estimators=5, n_jobs=1, verbose=-1)


def hist_boosting(task):
    from sklearn import ensemble as e
    kind = e.HistGradientBoostingRegressor if task == "regression" else e.HistGradientBoostingClassifier
    return kind(max_iter=5, max_leaf_nodes=7)


def gradient_boosting(task):
    from sklearn import ensemble as e
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    kind = e.GradientBoostingRegressor if task == "regression" else e.GradientBoostingClassifier
    return make_pipeline(SimpleImputer(strategy="median"), kind(n_estimators=5))


def imputed_xgboost(task):
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    return make_pipeline(SimpleImputer(strategy="constant", fill_value=.5), "passthrough", xgboost(task))


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("make", [lightgbm, hist_boosting, xgboost, catboost, gradient_boosting, imputed_xgboost])
def test_boosted_trees_travel_as_lightgbm_text_with_exact_contributions(make, task):
    model = make(task).fit(X, TARGETS[task])
    file, text = export_model(model, interface(task))
    ours = Booster(text.decode())
    assert file == "model.txt"
    compare_text_with_estimator(model, text.decode(), X, interface(task))  # at its thresholds too
    apart = 1e-5 if "xgboost" in make.__name__ else 1e-12  # XGBoost adds numbers of 32 bits
    np.testing.assert_allclose(ours.predict(X), model_scores(model, X, interface(task)), rtol=apart, atol=apart / 10)
    for rows in (X[:20], np.tile(X, (2, 1))):  # by walks, and by tables
        np.testing.assert_allclose(ours.contributions(rows).sum(-1), ours.predict_raw(rows), atol=1e-9)


@pytest.mark.parametrize("task", TARGETS)
def test_contributions_of_xgboost_are_those_of_shap(task):
    shap, xgb = pytest.importorskip("shap"), pytest.importorskip("xgboost")
    kind = xgb.XGBRegressor if task == "regression" else xgb.XGBClassifier
    model = kind(n_estimators=6, max_depth=4, num_parallel_tree=2, subsample=.7, n_jobs=1, random_state=0)
    text = export_model(model.fit(X, TARGETS[task]), interface(task))[1].decode()
    theirs = shap.TreeExplainer(model).shap_values(X)
    ours = Booster(text).contributions(X)[..., :-1]
    np.testing.assert_allclose(np.moveaxis(ours, 1, 2) if task == "multiclass" else ours, theirs, atol=1e-5)


def test_sums_of_32_bits_may_come_out_near_zero():
    "As those of counts, of which most are large and some are nearly none."
    xgb = pytest.importorskip("xgboost")
    y = np.where(X[:, 0] > 0, 900., 1.) + np.random.default_rng(0).normal(size=len(X)) * .1
    model = xgb.XGBRegressor(n_estimators=600, learning_rate=.05, n_jobs=1).fit(X, y)
    text = export_model(model, interface("regression"))[1].decode()
    theirs, ours = model_scores(model, X, interface("regression")), Booster(text).predict(X)
    assert np.abs((ours - theirs) / np.maximum(1, theirs)).max() > 1e-5, "else this proves nothing"
    compare_text_with_estimator(model, text, X, interface("regression"))


def test_xgboost_that_was_stopped_early_answers_with_its_best_rounds():
    xgb = pytest.importorskip("xgboost")
    model = xgb.XGBClassifier(n_estimators=60, learning_rate=.9, early_stopping_rounds=3, n_jobs=1)
    model.fit(X[:200], TARGETS["binary"][:200], eval_set=[(X[200:], TARGETS["binary"][200:])], verbose=False)
    text = export_model(model, interface("binary"))[1].decode()
    assert text.count("Tree=") == model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    compare_text_with_estimator(model, text, X, interface("binary"))


@pytest.mark.parametrize("options", [dict(booster="dart", rate_drop=.5), dict(missing=-1.),
                                     dict(objective="binary:hinge")])
def test_xgboost_that_a_text_cannot_say_stays_onnx(options):
    xgb = pytest.importorskip("xgboost")
    model = xgb.XGBClassifier(n_estimators=3, n_jobs=1, **options).fit(np.nan_to_num(X), TARGETS["binary"])
    assert xgboost_to_text(model) is None


def test_another_text_than_the_model_is_refused():
    xgb = pytest.importorskip("xgboost")
    model, other = (xgb.XGBRegressor(n_estimators=3, max_depth=d, n_jobs=1).fit(X, LOGIT) for d in (2, 3))
    with pytest.raises(UserError, match="the text of XGBRegressor answers otherwise than itself"):
        compare_text_with_estimator(model, xgboost_to_text(other), X, interface("regression"))


def test_hist_boosting_in_blocks_is_the_same():
    "A text of more than a megabyte is loaded in blocks, by the sizes that its header states."
    from sklearn.ensemble import HistGradientBoostingClassifier

    from mlops_nb.model.lightgbm_text import split_into_blocks
    model = HistGradientBoostingClassifier(max_iter=6).fit(X, TARGETS["multiclass"])
    text = export_model(model, interface("multiclass"))[1].decode()
    blocks = [Booster(b.decode()) for b in split_into_blocks(text, len(text) // 4)]
    assert len(blocks) > 2
    np.testing.assert_allclose(sum(b.predict_raw(X) for b in blocks), Booster(text).predict_raw(X), atol=1e-12)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_torch_module(n_outputs):
    torch = pytest.importorskip("torch")

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(3, n_outputs)

        def forward(self, x):
            z = self.linear(torch.nan_to_num(x))
            return torch.sigmoid(z)[:, 0] if n_outputs == 1 else torch.softmax(z, 1)
    module = Small()
    _, data = export_model(module, interface("binary"))
    onnx = OnnxModel(compare_with_estimator(module, data, X, interface("binary"), X[:8]))
    assert np.abs(onnx.predict(X) - model_scores(module, X, interface("binary"))).max() < 1e-6


def test_columns_of_what_was_missing_are_refused():
    "skl2onnx would leave them out, and the graph fail on its first row."
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    model = make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()).fit(X, TARGETS["binary"])
    with pytest.raises(UserError, match="the step 'simpleimputer' of the pipeline has add_indicator=True"):
        export_model(model, interface("binary"))


def test_a_torch_module_that_looks_at_the_values_of_its_rows_is_refused():
    "Traced, it would answer for all rows as it did for the example."
    torch = pytest.importorskip("torch")

    class Looks(torch.nn.Module):
        def forward(self, x): return torch.sigmoid(x[:, 0] if x.sum() > 0 else x[:, 1])
    with pytest.raises(UserError, match="torch cannot write Looks as ONNX: .*nothing that depends on the values"):
        export_model(Looks(), interface("binary"))


def test_a_class_without_rows_gets_no_probability():
    model = sklearn("binary").fit(X, np.where(TARGETS["binary"], 2, 0))
    onnx = OnnxModel(compare_with_estimator(model, export_model(model, interface("multiclass"))[1], X,
                                            interface("multiclass"), X[:8]))
    assert np.array_equal(onnx.predict(X)[:, 1], np.zeros(400)) and onnx.predict(X).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_classes_in_another_order_are_put_into_that_of_the_schema(task):
    model = linear(task).fit(X, TARGETS[task])
    before, final = model_scores(model, X, interface(task)), model.steps[-1][1]
    if task == "binary": final.coef_, final.intercept_ = -final.coef_, -final.intercept_
    else: final.coef_, final.intercept_ = final.coef_[::-1].copy(), final.intercept_[::-1].copy()
    final.classes_ = final.classes_[::-1].copy()
    np.testing.assert_allclose(model_scores(model, X, interface(task)), before, atol=1e-12)
    onnx = OnnxModel(compare_with_estimator(model, export_model(model, interface(task))[1], X, interface(task), X[:8]))
    np.testing.assert_allclose(onnx.predict(X), before, atol=1e-5)


def test_a_class_that_the_schema_lacks_is_refused():
    with pytest.raises(UserError, match="knows the class 7, and y holds the numbers 0 to 1"):
        export_model(sklearn("binary").fit(X, np.where(TARGETS["binary"], 7, 0)), interface("binary"))


def test_trees_behind_a_scaler_are_refused_or_equal_at_their_thresholds():
    "Whatever the rounding does, no model passes that answers otherwise."
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier
    wide = X * [1e-3, 1, 1e4] + [1, 0, 1e5]
    model = make_pipeline(SimpleImputer(), StandardScaler(), DecisionTreeClassifier()).fit(wide, TARGETS["binary"])
    data = export_model(model, interface("binary"))[1]
    try: onnx = OnnxModel(compare_with_estimator(model, data, wide, interface("binary"), wide[:8]))
    except UserError as e: assert "answers otherwise than itself" in str(e)
    else: assert np.abs(onnx.predict(wide) - model_scores(model, wide, interface("binary"))).max() < 1e-5


def test_a_graph_of_named_columns_and_one_of_another_width():
    from onnx import TensorProto, helper
    value = lambda n, *dims: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", *dims])

    def graph(inputs, nodes):
        g = helper.make_graph(nodes, "g", inputs, [value("probabilities", 1)])
        return helper.make_model(g, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    named = graph([value("c", 1), value("a", 1)], [helper.make_node("Sub", ["c", "a"], ["z"]),
                                                   helper.make_node("Sigmoid", ["z"], ["probabilities"])])
    rows = np.nan_to_num(X)
    onnx = OnnxModel(compare_with_estimator(named, export_model(named, interface("binary"))[1], rows,
                                            interface("binary"), rows[:8]))
    np.testing.assert_allclose(onnx.predict(rows), 1 / (1 + np.exp(rows[:, 0] - rows[:, 2])), atol=1e-6)
    with pytest.raises(UserError, match="has the input 'd', which is no column"):
        export_model(graph([value("d", 1), value("a", 1)], [helper.make_node("Sub", ["d", "a"], ["probabilities"])]),
                     interface("binary"))
    with pytest.raises(UserError, match="reads 5 columns, and the project has 3"):
        export_model(graph([value("m", 5)], [helper.make_node("Identity", ["m"], ["probabilities"])]),
                     interface("binary"))


def test_an_opset_of_tomorrow_is_a_sentence():
    from onnx import TensorProto, helper
    value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3])
    g = helper.make_graph([helper.make_node("Sigmoid", ["m"], ["probabilities"])], "g", [value("m")],
                          [value("probabilities")])
    late = helper.make_model(g, opset_imports=[helper.make_opsetid("", 99)], ir_version=10).SerializeToString()
    with pytest.raises(UserError, match="refuses the ONNX model: .*export it for an older opset"):
        compare_with_estimator(late, export_model(late, interface("multiclass"))[1], X, interface("multiclass"), X[:8])
