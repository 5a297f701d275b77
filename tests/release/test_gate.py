"The gate: what each rule lets through, and that nothing without evidence passes."
import json
import shutil
from statistics import NormalDist
from types import SimpleNamespace

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.trained_project import trained

from mlops_nb.bundle.stage import choose_anchor, run_bundle
from mlops_nb.config.params import GateParams, read_params, write_params
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.leakage import LeakFinding
from mlops_nb.data.prepare import read_dataset_info
from mlops_nb.data.splits import SplitCheck
from mlops_nb.evaluate.comparison import Comparison, MetricDifference, metric_difference, paired_differences
from mlops_nb.evaluate.decision_threshold import measure_calibration
from mlops_nb.evaluate.metrics import (
    METRICS,
    PRIMARY_METRIC,
    DecisionSettings,
    EvaluatedRows,
    metric_label,
    weighted_metric,
)
from mlops_nb.evaluate.slices import Slice, evaluate_slices, lacks_skill
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.explain.stage import run_explain
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.gate import (
    GateReport,
    check_at_least,
    check_at_most,
    check_clean_process,
    check_comparisons,
    check_leaks,
    check_scores,
    check_segments,
    check_single_row_parity,
    check_split,
    check_test_rows,
    check_thresholds,
    describe_power,
    evaluate_gate,
    require_passed_gate,
    run_gate,
)
from mlops_nb.stats.bootstrap import Estimate, Resampling, Units
from mlops_nb.train.baselines import run_baselines

TASKS = ["binary", "multiclass", "regression"]


@pytest.fixture(scope="module", params=TASKS)
def packed(request, tmp_path_factory):
    "A project whose stages have run as far as the bundle."
    root = trained(tmp_path_factory.mktemp(request.param) / "p", request.param)
    run_baselines(root)
    run_evaluate(root)
    run_explain(root)
    run_bundle(root)
    return root


@pytest.fixture
def project(packed, tmp_path):
    "A copy that a test may damage."
    return shutil.copytree(packed, tmp_path / "p")


def with_gate(root, **gate):
    params = read_params(root / "params.yaml")
    params.gate = GateParams(**gate)
    write_params(params, root / "params.yaml")
    return root


# ---------------------------------------------------------------- single rules


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(-1e6, 1e6))
def test_a_figure_is_held_against_its_bound_from_the_right_side(figure, bound):
    assert check_at_least("a", figure, bound, "A").passed == (np.isfinite(figure) and figure >= bound)
    assert check_at_most("a", figure, bound, "A").passed == (np.isfinite(figure) and figure <= bound)


@pytest.mark.parametrize("check", [check_at_least, check_at_most])
@pytest.mark.parametrize("figure", [None, float("nan"), float("inf"), -float("inf")])
def test_no_evidence_is_not_a_pass(check, figure):
    rule = check("a", figure, 0.0, "The figure")
    assert not rule.passed and rule.value is None and "could not be computed" in rule.message


def test_thresholds_take_their_direction_from_the_metric():
    rules = check_thresholds("binary", {"roc_auc": 0.8, "log_loss": 0.3}, {"roc_auc": 0.9, "log_loss": 0.4})
    assert [r.passed for r in rules] == [True, False]
    assert not check_thresholds("binary", {"roc_auc": 0.8}, {})[0].passed
    with pytest.raises(UserError, match="did you mean 'rmse'"): check_thresholds("regression", {"rmsa": 1}, {})


@pytest.mark.parametrize("bias, passed", [(-1000.0, False), (-0.4, True), (0.4, True), (0.6, False), (None, False)])
def test_a_bound_on_the_bias_holds_on_both_sides(bias, passed):
    assert check_thresholds("regression", {"bias": 0.5}, {"bias": bias})[0].passed == passed


def test_a_segment_whose_figure_cannot_be_computed_fails():
    unknown = Slice("region", "north", 500, Estimate(None), 0.3, Estimate(None), None, 0.5, Estimate(None), {}, {})
    no_interval = Slice("plan", "basic", 500, Estimate(0.3), 0.3, Estimate(0.0), 0.5, 0.5, Estimate(0.0), {}, {})
    no_rest = Slice("sex", "f", 500, Estimate(0.3, 0.2, 0.4), None, Estimate(None), 0.5, None, Estimate(None), {}, {})
    rules = check_segments([segment("south", 0.0), unknown, no_interval, no_rest], 0.5, "log_loss")
    assert [(r.name, r.passed) for r in rules] == [
        ("segment: region", False), ("segment: plan", False), ("segment: sex", False)]
    assert all("could not be computed" in r.message and r.value is None for r in rules)


def segment(value, gap, rest=0.3, column="region", **gains):
    "Of a skill score `gap` below the rest's, give or take 0.1, where something simple does better by 0.2."
    around, gains = Estimate(gap, gap - 0.1, gap + 0.1), gains or {"recalibrated": Estimate(0.2, 0.15, 0.25)}
    return Slice(column, value, 500, Estimate(0.6), 0.4, Estimate(0.2, 0.1, 0.3), rest - gap, rest, around, gains, {})


def test_only_a_segment_that_is_surely_far_worse_fails():
    assert check_segments([segment("a", 0.2), segment("b", 0.0)], 0.5,
                          "log_loss")[0].passed, "0.1 of 0.3 for sure is under half"
    worst = check_segments([segment("a", 0.0), segment("b", 0.4)], 0.5, "log_loss")
    assert len(worst) == 1 and not worst[0].passed and "Log loss in region = b" in worst[0].message
    assert worst[0].message == (
        "Log loss in region = b is 0.6, 0.2 above the rest (95% CI 0.1 to 0.3); skill score -0.1, 0.3 on the rest (gap "
        "0.3 to 0.5, limit 0.15); a straight line through the predictions has 0.2 more there (at least 0.15).")
    assert len(check_segments([segment("a", 0.1), segment("x", 0.1, column="plan")], 0.5, "log_loss")) == 2
    assert check_segments([segment("a", 9.9)], None, "log_loss") == []
    useless = check_segments([segment("a", 0.31, rest=-0.1)], 0.5, "rmse")
    assert not useless[0].passed, "a rest without skill allows no gap"


HARD = np.arange(2000) < 1000 # rows of the region that is harder


def hard_region(task, seed=0):
    "Targets and true probabilities or values, of which the first half of the rows say little."
    rng, n = np.random.default_rng(seed), len(HARD)
    if task == "regression":
        known = rng.normal(size=n)
        return known + rng.normal(size=n) * np.where(HARD, 4, 1), known
    if task == "binary":
        p = 1 / (1 + np.exp(-rng.normal(size=n) * np.where(HARD, .3, 2)))
        return (rng.random(n) < p) * 1., p
    p = rng.dirichlet(np.ones(3), n)**np.where(HARD, 0.3, 3)[:, None]
    p /= p.sum(1, keepdims=True)
    return np.array([rng.choice(3, p=q) for q in p], float), p


def region_rule(task, y, scores, linear):
    frame = pl.DataFrame({"region": np.where(HARD, "hard", "easy")})
    slices, _ = evaluate_slices(EvaluatedRows(task, y, scores), frame, ["region"], others={"linear": linear})
    hard = next(s for s in slices if s.value == "hard")
    assert lacks_skill(hard, 0.5), "by what it lacks it would be refused"
    (rule,) = check_segments(slices, 0.5, PRIMARY_METRIC[task])
    assert f"{metric_label(PRIMARY_METRIC[task])} in region = hard is " in rule.message
    return rule


@pytest.mark.parametrize("task", ["binary", "regression", "multiclass"])
def test_the_best_possible_model_passes_where_a_segment_is_harder(task):
    for seed in range(5):
        y, p = hard_region(task, seed)
        rule = region_rule(task, y, p, linear=p.mean(0) + .8 * (p - p.mean(0)))
        assert rule.passed and rule.message.endswith(
            "nothing simpler does better there, so these rows are harder, not worse modelled.")


def easy_region(task, seed):
    "The rows that are easy, twice: both regions are the same."
    return (np.concatenate([x[~HARD]] * 2) for x in hard_region(task, seed))


FAULTS = {
    "shuffled": lambda task, p, rng: rng.permutation(p),
    "noise": lambda task, p, rng: {"binary": rng.random(len(p)), "regression": rng.normal(size=len(p)),
                                   "multiclass": rng.dirichlet(np.ones(3), len(p))}[task],
    "shifted": lambda task, p, rng: p + 1.5 if task == "regression" else .4 * p + .6 * (
        1 if task == "binary" else np.eye(3)[0])}


@pytest.mark.parametrize("task", ["binary", "regression", "multiclass"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_is_bad_in_a_segment_is_refused(task, fault):
    for seed in range(5):
        y, p = easy_region(task, seed)
        p[HARD] = FAULTS[fault](task, p[HARD], np.random.default_rng(seed))
        rule = region_rule(task, y, p, linear=np.full(p.shape, 9.))
        assert not rule.passed and "a straight line through the predictions has" in rule.message


def test_a_model_that_ignores_what_a_simple_one_knows_is_refused():
    "A constant in the segment is calibrated, and the linear baseline still knows more."
    y, p = easy_region("binary", 0)
    rule = region_rule("binary", y, np.where(HARD, y[HARD].mean(), p), linear=p)
    assert not rule.passed and "the linear baseline has" in rule.message


def test_a_rare_event_is_no_reason_to_refuse_a_small_segment():
    "Three events among 300 rows are too few to say; none, where six are expected, cannot be computed and fails."
    y, region = np.zeros(3000), np.repeat(["big", "few", "none"], [2400, 300, 300])
    y[:57], y[2400:2403] = 1, 1
    scores = np.random.default_rng(0).random(3000) + y
    slices, small = evaluate_slices(EvaluatedRows("binary", y, scores), pl.DataFrame({"region": region}), ["region"])
    assert {s.value for s in slices} == {"none"} # beside "big" there are three events, too few to compare with
    assert (small[0].n_slices, small[0].n_rows) == (2, 2700)
    (rule,) = check_segments(slices, 0.5, "roc_auc")
    assert not rule.passed and "region = none could not be computed" in rule.message


@pytest.mark.parametrize("method, entities_checked", [
    ("files", True), ("column", True), ("time", False), ("random", False)])
def test_rows_and_entities_that_were_seen_before(method, entities_checked):
    def names(**found):
        return [r.name for r in check_split(SplitCheck(0, **found), method, 800, GateParams()) if not r.passed]
    assert names(repeated_across_splits=8, known_entity_share=.01) == []
    assert names(repeated_across_splits=9) == ["split: repeated rows"]
    assert names(repeated_across_splits=0, known_entity_share=.87) == (["split: entities"] if entities_checked else [])
    assert check_split(SplitCheck(0, repeated_across_splits=800), method, 800, GateParams(
        max_repeated_rows=None, max_known_entities=None)) == []


def calibrated(n, rate, seed, times=1.0):
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 2 / rate - 2, n)
    return measure_calibration("binary", (rng.random(n) < p) * 1.0, np.clip(p * times, 0, 1), ["no", "yes"])[0]


@pytest.mark.parametrize("n", [50, 100, 200, 2000])
def test_true_probabilities_are_seldom_refused(n):
    "They were in 95 of 100 cases at 50 rows, by a bound on the error itself."
    refused = sum(calibrated(n, .3, seed).excess_error > .25 for seed in range(100))
    assert refused <= 10 # 5 are expected at most


@pytest.mark.parametrize("times", [2.5, .001])
def test_wrong_probabilities_of_a_rare_event_are_refused(times):
    found = [calibrated(3000, .047, seed, times) for seed in range(20)]
    assert all(c.excess_error > .25 for c in found) and all(c.expected_calibration_error < .1 for c in found)


def test_a_class_that_is_never_decided_for_is_checked_as_well():
    "The rarest of three classes gets four times its probability, and is decided for nowhere."
    rng = np.random.default_rng(0)
    p = np.column_stack([np.full(4000, .8), np.full(4000, .17), np.full(4000, .03)]) * rng.uniform(.9, 1.1, (4000, 3))
    p /= p.sum(1, keepdims=True)
    y = np.array([rng.choice(3, p=q) for q in p], float)
    told = p.copy()
    told[:, 2], told[:, 1] = p[:, 2] * 4, p[:, 1] - 3 * p[:, 2]
    assert measure_calibration("multiclass", y, p, list("abc"))[0].excess_error < .25
    wrong = measure_calibration("multiclass", y, told, list("abc"))[0]
    assert wrong.excess_error > 1 and wrong.expected_calibration_error < .02


def test_a_regression_that_is_biased_by_level_is_found_and_the_truth_is_not():
    rng = np.random.default_rng(0)
    found = []
    for n in (60, 600):
        known = rng.normal(size=n)
        y = known + rng.normal(size=n)
        found.append([measure_calibration("regression", y, s)[0].excess_error for s in (known, 2 * known)])
    assert [t for t, _ in found] == [0, 0] and all(b > .05 for _, b in found)


def test_scores_that_say_nothing_or_are_no_numbers_fail():
    assert [r.passed for r in check_scores(np.array([0.1, 0.2]))] == [True, True]
    assert [r.passed for r in check_scores(np.array([0.1, np.nan]))][0] is False
    assert [r.passed for r in check_scores(np.full(5, 0.3))] == [True, False]
    assert [r.passed for r in check_scores(np.tile([0.2, 0.8], (5, 1)))] == [True, False]
    assert [r.passed for r in check_scores(np.array([]))] == [True, False]


def compared(evaluation, kind, low, value, theirs=0.5):
    "Against one other model whose figure is 0.2 better than the constant's."
    better = 1 if evaluation.better == "higher" else -1
    def metric(other, gain):
        return {evaluation.primary_metric: MetricDifference(other + better * value, other, gain)}

    evaluation.comparisons = [
        Comparison("constant", "baseline", "Words.", metrics=metric(theirs - better * 0.2, Estimate(0.3, 0.2, 0.4))),
        Comparison("other", kind, "Words.", metrics=metric(theirs, Estimate(value, low, value + 0.1)))]
    return evaluation


def verdict(evaluation, kind, low, value, **params):
    return check_comparisons(compared(evaluation, kind, low, value), GateParams(**params))[1]


def test_a_baseline_must_be_surely_beaten(packed):
    e = read_evaluation(packed)
    assert verdict(e, "baseline", 0.001, 0.01).passed
    assert not verdict(e, "baseline", -0.001, 0.01).passed, "the gain may be chance"
    assert not verdict(e, "baseline", 0.0, 0.0).passed, "as good as the baseline is not better"
    assert not verdict(e, "baseline", 0.01, 0.03, min_gain=0.1).passed, "less than a tenth of 0.2"
    assert not verdict(e, "baseline", None, 0.5).passed, "no interval is no evidence"


def test_a_team_may_deploy_a_model_that_is_as_good_as_the_linear_one(packed):
    e = read_evaluation(packed)
    refused, allowed = (verdict(e, "baseline", -0.01, 0.0, min_gain=g) for g in (0.0, -0.1))
    assert not refused.passed and "must be above 0." in refused.message and "min_gain below 0" in refused.message
    assert allowed.passed and allowed.bound == pytest.approx(-0.02) and "must be above -0.02." in allowed.message
    assert not verdict(e, "baseline", -0.03, 0.0, min_gain=-0.1).passed
    e.comparisons[0].metrics[e.primary_metric].gain = Estimate(0.01, -0.01, 0.03)
    assert not check_comparisons(e, GateParams(min_gain=-0.9))[0].passed, "a constant has no skill to lose a share of"


def test_a_champion_must_not_be_missed_by_more_than_a_share_of_its_skill(packed):
    e = read_evaluation(packed)
    assert verdict(e, "champion", -0.019, 0.0, max_skill_loss=0.1).passed
    assert not verdict(e, "champion", -0.021, 0.2, max_skill_loss=0.1).passed, "too little evidence"
    assert verdict(e, "champion", 0.0, 0.0, max_skill_loss=0.0).passed, "the champion itself"
    e.comparisons = [Comparison("champion", "champion", "The champion cannot score these rows.")]
    rule = check_comparisons(e, GateParams())[0]
    assert not rule.passed and "cannot score" in rule.message


def test_a_few_test_rows_are_no_evidence():
    def passed(y, classes): return [r.passed for r in check_test_rows(np.array(y), classes, GateParams())]
    assert passed([0.0, 1.0] * 4, ["no", "yes"]) == [False, False], "eight rows, all right"
    assert passed([0.0] * 300 + [1.0] * 29, ["no", "yes"]) == [True, False]
    assert passed([0.0] * 300 + [1.0] * 30, ["no", "yes"]) == [True, True]
    assert passed([1.0] * 300 + [0.0] * 30, ["a", "b", "c"]) == [True, False], "no row of c"
    assert passed([1.5] * 200, None) == [True] and passed([1.5] * 199, None) == [False]


def test_a_model_of_noise_does_not_pass():
    "Of 60 test sets on which the scores know nothing, the interval of the gain is above 0 in a few at most."
    passed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y, scores, linear = (rng.random(300) < 0.3) * 1.0, rng.random(300), rng.random(300)
        settings, known = DecisionSettings(), Resampling(n_resamples=100, seed=seed)
        comparisons = [Comparison(name, "baseline", "", metrics=paired_differences(
            "binary", y, scores, other, settings, settings, known))
            for name, other in (("constant", np.full(300, 0.3)), ("linear", linear))]
        e = SimpleNamespace(primary_metric="roc_auc", better="higher", confidence=0.95, comparisons=comparisons)
        passed += all(r.passed for r in check_comparisons(e, GateParams()))
    assert passed <= 3


def test_the_power_is_that_of_the_normal_distribution(packed):
    e = compared(read_evaluation(packed), "champion", -0.1, 0.0) # an interval 0.2 wide: a standard error of 0.051
    assert "the skill (0.1 " in describe_power(e, 1234, GateParams(max_skill_loss=0.5))
    assert "1,234 test rows" in describe_power(e, 1234, GateParams(max_skill_loss=0.5))
    for share, power in ((0.5, "50%"), (0.92, "95%"), (0.02, "3%")):
        assert f"in {power} of cases" in describe_power(e, 100, GateParams(max_skill_loss=share))
    e.comparisons = []
    assert describe_power(e, 100, GateParams()) == ""


def accepted_of_thirty(with_anchor):
    "Candidates that pass, of thirty that are each truly 0.005 of AUC worse than the one before; the last one's AUC."
    rng, n = np.random.default_rng(0), 3000
    y = (np.arange(n) % 5 == 0) * 1.0
    normal, d = NormalDist(), 2 ** 0.5 * NormalDist().inv_cdf(0.85)
    aucs = 0.85 - 0.005 * np.arange(31)
    extra = [(d / (2 ** 0.5 * normal.inv_cdf(a))) ** 2 - 1 for a in aucs] # variance that leads to this AUC
    scores = [y * d + rng.normal(size=n)]
    for now, then in zip(extra, extra[1:]): scores.append(scores[-1] + rng.normal(size=n) * (then - now) ** 0.5)
    flat = np.zeros(n)

    def against(name, kind, mine, other):
        at = [weighted_metric("binary", "roc_auc", y, s) for s in (mine, other)]
        found = metric_difference(METRICS["binary"]["roc_auc"], *at, Units(n), n, int(y.sum()))
        return Comparison(name, kind, "", name, {"roc_auc": found})
    champion, anchor, passed = 0, 0, []
    for i in range(1, 31):
        comparisons = [against("constant", "baseline", scores[i], flat),
                       against("champion", "champion", scores[i], scores[champion])]
        if with_anchor and anchor != champion:
            comparisons.append(against("anchor", "champion", scores[i], scores[anchor]))
        e = SimpleNamespace(primary_metric="roc_auc", better="higher", confidence=0.95, comparisons=comparisons)
        if all(r.passed for r in check_comparisons(e, GateParams(max_skill_loss=0.05))):
            kept = choose_anchor(msgspec.to_builtins(dict(primary_metric="roc_auc", comparisons=comparisons)))
            champion, anchor = i, i if kept is None else anchor
            passed.append(i)
    return len(passed), aucs[champion]


def test_many_small_losses_do_not_add_up():
    without, low = accepted_of_thirty(with_anchor=False)
    assert without >= 20 and low < 0.75, "each loss alone is within the tolerance"
    some, kept = accepted_of_thirty(with_anchor=True)
    assert some <= 3 and kept >= 0.85 - 0.05 * 0.35


# ---------------------------------------------------------------- the bundle


def test_a_clean_process_reproduces_the_golden_rows(packed):
    assert check_clean_process(packed / "artifacts/bundle").passed


def test_a_changed_bundle_fails_in_the_clean_process(project):
    model = project / "artifacts/bundle/model.txt"
    model.write_text(model.read_text().replace("leaf_value=", "leaf_value=1", 1))
    rule = check_clean_process(project / "artifacts/bundle")
    assert not rule.passed and "model.txt" in rule.message


def test_a_process_that_does_not_answer_fails(packed):
    rule = check_clean_process(packed / "artifacts/bundle", timeout_seconds=0.01)
    assert not rule.passed and "did not answer" in rule.message


def test_single_rows_and_a_batch_agree(packed):
    predictor, test = Predictor.open(packed / "artifacts/bundle"), pl.read_parquet(packed /
        "artifacts/prepared/test.parquet")
    assert check_single_row_parity(predictor, test).passed

    class Off(Predictor):
        def predict_one(self, row): return np.nextafter(super().predict_one(row), 2.0)

    predictor.__class__ = Off
    rule = check_single_row_parity(predictor, test, max_rows=10)
    assert not rule.passed and rule.value == 10, "one bit is enough"


# ---------------------------------------------------------------- the stage


def test_the_stage_judges_every_rule_and_is_deterministic(project):
    run_gate(project)
    first = (project / "artifacts/gate.json").read_bytes()
    verdict = read_json(project / "artifacts/gate.json", GateReport)
    names = [r.name for r in verdict.results]
    assert len(set(names)) == len(names)
    assert {"baseline: constant", "baseline: linear", "scores: finite", "scores: not constant", "calibration",
            "bundle: clean process",
            "parity: single row and batch"} <= set(names)
    assert verdict.passed == all(r.passed for r in verdict.results)
    run_gate(project)
    assert (project / "artifacts/gate.json").read_bytes() == first


def test_a_failed_rule_fails_the_gate_but_not_the_stage(project):
    primary = read_evaluation(project).primary_metric
    with_gate(project, thresholds={primary: {"roc_auc": 1.1, "log_loss": -1.0, "rmse": -1.0}[primary]})
    assert run_gate(project) == {"passed": False}
    with pytest.raises(UserError, match=f"The gate failed.*{primary} on the test set"): require_passed_gate(project)


def test_check_gate_speaks_only_of_a_verdict(project):
    (project / "artifacts/gate.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="does not exist"): require_passed_gate(project)
    (project / "artifacts/gate.json").write_text('{"passed": true, "bund')
    with pytest.raises(UserError, match="cannot be read"): require_passed_gate(project)


def test_a_leak_fails_the_gate_until_it_is_accepted_by_name(project):
    info = read_dataset_info(project)
    assert info.leaks == [], "the columns of the shared test project are honest"
    leaks = [LeakFinding(n, "target copy", 1.0, f"{n} alone predicts y.", "Take it away.") for n in ("x", "count")]

    def rule():
        write_json(project / "artifacts/prepared/dataset.json", info)
        return next(r for r in evaluate_gate(project).results if r.name == "leaks")

    assert rule().passed and rule().value == 0
    info.leaks = leaks
    assert not rule().passed and rule().message == "x alone predicts y. count alone predicts y. Take it away."
    leaks[0].accepted = "known on the day."
    assert not rule().passed and rule().value == 1
    leaks[1].accepted = "known as well"
    assert rule().passed and "x alone predicts y. It was accepted: known on the day. count" in rule().message


def test_a_telling_name_alone_is_said_and_refuses_no_model():
    said = "duration tells y (AUC 0.8), and may be known only afterwards."
    hint = LeakFinding("duration", "name", 0.6, said, "", blocks=False)
    alone = check_leaks([hint])
    assert alone.passed and alone.message == f"No column gives the target away. {hint.message}"
    copied = LeakFinding("x", "target copy", 1.0, "x alone predicts y.", "Take it away.")
    both = check_leaks([hint, copied])
    assert not both.passed and both.value == 1 and both.message == f"x alone predicts y. Take it away. {hint.message}"
    hint.accepted = "planned on the day before"
    assert "It was accepted: planned on the day before." in check_leaks([hint]).message


def test_leaks_that_nobody_looked_for_are_no_pass():
    assert not check_leaks(None).passed and check_leaks([]).passed


def test_nan_scores_fail(project):
    predictions = project / "artifacts/evaluation/predictions.parquet"
    frame = pl.read_parquet(predictions)
    score = next(c for c in frame.columns if c.startswith("score"))
    last = pl.int_range(pl.len()) == pl.len() - 1
    frame.with_columns(pl.when(last).then(float("nan")).otherwise(score).alias(score)).write_parquet(predictions)
    assert not next(r for r in evaluate_gate(project).results if r.name == "scores: finite").passed


def test_an_unknown_metric_is_a_sentence(project):
    with_gate(project, thresholds={"aucc": 0.5})
    with pytest.raises(UserError, match="has no metric 'aucc'"): run_gate(project)
    assert not (project / "artifacts/gate.json").exists()


def test_the_gate_reads_what_it_judges(project):
    "The verdict names the bundle that was there, so a later stage can see that it is about another one."
    run_gate(project)
    manifest = json.loads((project / "artifacts/bundle/manifest.json").read_text())
    assert manifest["files"] and read_json(project / "artifacts/gate.json", GateReport).bundle
    write_json(project / "artifacts/bundle/manifest.json", manifest | {"files": {}})
    with pytest.raises(UserError): run_gate(project)
