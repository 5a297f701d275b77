"Groups of sensitive columns: the figures are fairlearn's and those made by hand, and what is said to be sure is."
import math
import warnings

import fairlearn.metrics as fm
import numpy as np
import polars as pl
import pytest
from scipy import stats
from support import trained_project as modelling
from support.project_checks import new_project

from mlops_nb.config.schema import Column, read_schema, schema_hash, write_schema
from mlops_nb.config.schema_diff import diff_schemas
from mlops_nb.core.errors import UserError
from mlops_nb.evaluate.fairness import (
    GATED_FAIRNESS_METRIC,
    FairnessGap,
    FairnessReport,
    difference_interval,
    fairness_table,
    independent_rows,
    largest_gap,
    measure_column_fairness,
    measure_fairness,
    pair_level,
    rate_interval,
    sensitive_groups,
    split_by_group_size,
)
from mlops_nb.evaluate.metrics import METRICS, DecisionSettings, EvaluatedRows
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.pipeline import run_stage
from mlops_nb.release.gate import check_fairness_gaps
from mlops_nb.stats.bootstrap import Estimate, Resampling
from mlops_nb.train.baselines import run_baselines

RATES = ("selection_rate", "true_positive_rate", "false_positive_rate")


def world(n=2000, seed=0, unfair=1.0, names=("a", "b")):
    "Rows of a few groups; the score of the first is worth less."
    rng = np.random.default_rng(seed)
    group, z = rng.choice(np.array(names, object), n), rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-2 * z))).astype(float)
    noise = np.where(group == names[0], 3 * unfair, 0) * rng.normal(size=n)
    return group, y, 1 / (1 + np.exp(-z - noise))


def by_hand(frame):
    "The rates of each group in polars: columns `group`, `y` and `act`."
    def rate(where): return pl.col("act").filter(where).mean()

    return frame.group_by("group").agg(
        pl.len().alias("n"),
        selection_rate=rate(pl.lit(True)),
        true_positive_rate=rate(pl.col("y") == 1),
        false_positive_rate=rate(pl.col("y") == 0),
    )


def same(found, frame, group, y, act):
    "A `Fairness` against the figures made by hand, and against fairlearn."
    hand = {r["group"]: r for r in by_hand(frame).iter_rows(named=True)}
    for g in found.groups:
        assert g.n_rows == hand[g.value]["n"]
        for name in RATES: assert g.metrics[name].value == pytest.approx(hand[g.value][name], abs=1e-12)
    some = np.isin(group, [g.value for g in found.groups])
    theirs = {name: getattr(fm, name)(y[some], act[some], sensitive_features=group[some])
              for name in ("demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference")}
    assert {name: found.gaps[name].estimate.value for name in theirs} == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("threshold", [.2, .5, .8])
def test_binary_figures_are_fairlearns_and_those_made_by_hand(threshold):
    group, y, s = world(names=("a", "b", "c"))
    rows = EvaluatedRows("binary", y, s, DecisionSettings(threshold=threshold), Resampling(20))
    found = measure_column_fairness(rows, "g", group)
    act = s >= threshold
    same(found, pl.DataFrame({"group": group.astype(str), "y": y, "act": act}), group, y, act)
    assert found.gaps["equalized_odds_difference"].metric in RATES[1:] and not found.small_groups


def test_classes_and_values_by_hand():
    rng = np.random.default_rng(0)
    group, y, s = (
        rng.choice(np.array(["a", "b"], object), 900),
        rng.integers(0, 3, 900).astype(float),
        rng.dirichlet(np.ones(3), 900),
    )
    rows = EvaluatedRows("multiclass", y, s, resampling=Resampling(20), classes=["x", "y", "z"])
    found = measure_column_fairness(rows, "g", group, min_rows=100)
    for g in found.groups:
        rows = group == g.value
        assert g.metrics["accuracy"].value == pytest.approx((s.argmax(1) == y)[rows].mean())
        assert g.metrics["recall of y"].value == pytest.approx((s.argmax(1) == 1)[rows & (y == 1)].mean())
    assert found.gaps["recall_difference"].estimate.value == pytest.approx(max(
        abs(np.subtract(*[(s.argmax(1) == k)[(group == g) & (y == k)].mean() for g in "ab"])) for k in range(3)))
    v = y + (group == "a") + rng.normal(size=900)
    rows = EvaluatedRows("regression", y, v, resampling=Resampling(20))
    found = measure_column_fairness(rows, "g", group, min_rows=100)
    biases = {g: (v - y)[group == g].mean() for g in "ab"}
    assert {g.value: g.metrics["bias"].value for g in found.groups} == pytest.approx(biases)
    gap = found.gaps["bias_difference"]
    assert (gap.highest, gap.lowest) == ("a", "b") and 0.5 < gap.estimate.low < biases["a"] - biases[
        "b"
    ] < gap.estimate.high


def test_a_group_without_events_has_no_rate_of_0():
    group, y, s = world(names=("a", "b", "c"))
    y[(group == "c") & (np.cumsum(group == "c") > 20)] = 0 # at most twenty events are left, which are too few as well
    found = measure_column_fairness(EvaluatedRows("binary", y, s, resampling=Resampling(20)), "g", group)
    c = next(g for g in found.groups if g.value == "c")
    assert c.metrics["true_positive_rate"].value is None and c.metrics["false_positive_rate"].value is not None
    gap = found.gaps["equalized_odds_difference"]
    assert gap.metric == "false_positive_rate" or "c" not in (gap.highest, gap.lowest)


def test_what_is_the_same_for_all_is_seldom_called_sure():
    sure = 0
    for seed in range(40):
        group, y, s = world(1200, seed, unfair=0, names=tuple("abcd"))
        found = measure_column_fairness(EvaluatedRows("binary", y, s, resampling=Resampling(60)), "g", group)
        sure += found.gaps["equalized_odds_difference"].estimate.low > 0
    assert sure <= 5 # 2 are expected at most, and 6 or more come once in 100


def test_the_interval_holds_the_truth():
    "The selection rate of one group is 0.5 and of the other 0.4, of thousands of rows and of hundreds."
    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        group = np.array(["a", "b"], object)[(rng.random(800) < .3).astype(int)]
        s = (rng.random(800) < np.where(group == "a", .5, .4)).astype(float)
        rows = EvaluatedRows("binary", (rng.random(800) < 0.5) * 1.0, s, resampling=Resampling(60))
        e = measure_column_fairness(rows, "g", group).gaps["demographic_parity_difference"].estimate
        inside.append(e.low <= .1 <= e.high)
    assert np.mean(inside) >= .85


@pytest.mark.parametrize("rate, n", [(.005, (40, 4000)), (.03, (100, 1000)), (.98, (60, 60)), (.5, (40, 4000))])
def test_rates_near_0_and_1_raise_no_false_alarm(rate, n):
    "Two groups that are treated alike, of which one is small: the standard error of nothing is 0."
    false, tried = 0, 200
    for seed in range(tried):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.array(["a", "b"], object), n)
        acted, y = (rng.random(sum(n)) < rate).astype(float), np.arange(sum(n)) % 2.
        rows = EvaluatedRows("binary", y, acted, resampling=Resampling(2))
        found = measure_column_fairness(rows, "g", group, min_rows=40)
        false += found.gaps["demographic_parity_difference"].estimate.low > 0
    assert false <= 18 # 10 are expected at most, and more than 18 once in 200


@pytest.mark.parametrize("sizes", [(3000, 200), (900, 60), (200, 200), (60, 60)])
@pytest.mark.parametrize("level", [.975, .995])
def test_groups_that_are_alike_seldom_differ_whatever_their_rate(sizes, level):
    "By adding up the probabilities of all outcomes; of Wilson's intervals up to 2.9 times as many differ as may."
    def intervals(n): # (n + 1,) rates and the ends of their intervals
        return np.array([(e.value, e.low, e.high) for e in (rate_interval(x / n, n, level) for x in range(n + 1))]).T
    (a, l, u), (b, m, v) = map(intervals, sizes)
    apart = a[:, None] - b
    sure = (apart > np.hypot((a - l)[:, None], v - b)) | (-apart > np.hypot(b - m, (u - a)[:, None]))
    for rate in (.001, .003, .01, .03, .1, .3, .5):
        p, q = (stats.binom.pmf(np.arange(n + 1), n, rate) for n in sizes)
        assert p @ sure @ q <= 1.01 * (1 - level)


def test_the_interval_of_a_rate_is_exact_with_half_of_what_was_seen():
    for x, n, level in ((3, 50, .95), (49, 50, .99), (20, 400, .999)):
        e, tail = rate_interval(x / n, n, level), (1 - level) / 2
        assert stats.binom.sf(x, n, e.low) + stats.binom.pmf(x, n, e.low) / 2 == pytest.approx(tail)
        assert stats.binom.cdf(x - 1, n, e.high) + stats.binom.pmf(x, n, e.high) / 2 == pytest.approx(tail)
    assert rate_interval(0, 30).low == 0 and rate_interval(1, 30).high == 1
    assert rate_interval(.1, 30.5).low == pytest.approx(rate_interval(.1, 30).low, abs=.001)


def test_rows_of_entities_are_worth_less():
    def worth(error, n_rarer): return independent_rows(.2, error, 1_000, 50, n_rarer)
    assert worth((.16 / 1_000)**.5, 50) == pytest.approx(1_000 * .95, rel=.05) # as if independent, but for 49 degrees
    assert worth((.16 / 100)**.5, 50) == pytest.approx(95, rel=.05) and worth(1e-9, 50) < 1_000
    assert worth((.16 / 400)**.5, 5) == pytest.approx(400 * (1.962 / 2.776)**2, rel=.05) # 4 degrees of freedom
    assert worth((.16 / 60)**.5, 5) == worth(.1, 1) == 50 # one for each entity at least


@pytest.mark.parametrize("task", sorted(METRICS.keys() - {"multilabel"})) # of which each label is a binary task
def test_nothing_is_drawn(task):
    rng = np.random.default_rng(0)
    people, group = np.arange(1200) // 4, rng.choice(["a", "b"], 1200).astype(object)
    y = rng.integers(0, 3 if task == "multiclass" else 2, 1200) * 1.
    scores = rng.dirichlet(np.ones(3), 1200) if task == "multiclass" else rng.random(1200)
    found = [measure_column_fairness(EvaluatedRows(task, y, scores, classes=["x", "y", "z"],
                                                   resampling=Resampling(n, seed=n, clusters=people)), "g", group)
             for n in (2, 50)]
    assert found[0] == found[1] and all(e.low < e.value < e.high for g in found[0].groups for e in g.metrics.values())


def test_few_people_with_a_rare_outcome_raise_no_false_alarm():
    "A person of whom one row is acted on has more of them, and of thirty people one or two are such."
    false = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        people = np.arange(6600) // 20
        group = np.where(people < 300, "a", "b").astype(object)
        act = (rng.random(6600) < rng.beta(.0467, 2.287, 330)[people]) * 1. # 2 %, correlated by 0.3 within a person
        rows = EvaluatedRows("binary", np.arange(6600) % 2., act, resampling=Resampling(50, seed=seed, clusters=people))
        gap = measure_column_fairness(rows, "g", group).gaps["demographic_parity_difference"]
        false += gap.estimate.low > 0
    assert false <= 3 # with thirty degrees of freedom for the thirty people it is twice that


def test_rows_of_one_person_are_one():
    "Two groups of forty people who are treated alike, twenty times each."
    sure = {"rows": 0, "people": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        people = np.arange(1600) // 20
        group, act = np.where(people < 40, "a", "b").astype(object), (rng.random(80) < .5).astype(float)[people]
        for name, clusters in (("rows", None), ("people", people)):
            rows = EvaluatedRows("binary", rng.integers(0, 2, 1600) * 1., act,
                              resampling=Resampling(50, seed=seed, clusters=clusters))
            found = measure_column_fairness(rows, "g", group)
            sure[name] += found.gaps["demographic_parity_difference"].estimate.low > 0
    assert sure["rows"] > 20 and sure["people"] <= 8 # 3 are expected, and more than 8 once in 200


def test_more_groups_make_wider_intervals():
    def at(rates, n=400):
        level = pair_level({"f": rates})
        z = stats.norm.ppf((1 + level) / 2)
        each = [Estimate(r, r - z * (r * (1 - r) / n) ** .5, r + z * (r * (1 - r) / n) ** .5) for r in rates]
        return largest_gap({"f": each}, list("abcd")).estimate
    two, four = at([.3, .1]), at([.3, .1, .2, .2])
    assert two.value == four.value == pytest.approx(.2) and four.low < two.low and four.high > two.high
    assert pair_level({"f": [.3, .1, .2, .2]}) == pytest.approx(1 - .05 / 6)
    assert pair_level({"f": [.3, .1, math.nan], "g": [.1, .2, .3]}) == pytest.approx(1 - .05 / 4)


def test_the_difference_of_two_rates_is_newcombes():
    "Method 10 on 56 of 70 and 48 of 80, as in table II of Newcombe (1998)."
    a, b = (Estimate(x / n, *stats.binomtest(x, n).proportion_ci(method="wilson")) for x, n in ((56, 70), (48, 80)))
    e = difference_interval(a, b)
    assert [e.value, e.low, e.high] == pytest.approx([.2, .0524, .3339], abs=1e-4)


def test_the_ratio_of_two_figures():
    a, b = Estimate(.2, .1, .4), Estimate(.4, .4, .4)
    e = difference_interval(a, b, ratio=True)
    assert [e.value, e.low, e.high] == pytest.approx([.5, .25, 1]) # b is known exactly: the interval of a, scaled
    assert difference_interval(a, Estimate(0., 0., .1), ratio=True).value is None
    nothing = difference_interval(Estimate(0., 0., .1), b, ratio=True)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, pytest.approx(.25))
    assert difference_interval(a, Estimate(.4, 0., .5), ratio=True).high is None # it may be anything
    assert difference_interval(a, Estimate(.4)).value is None


def test_nobody_of_a_group_is_acted_on():
    group, y, s = world()
    with warnings.catch_warnings(action="error"):
        rows = EvaluatedRows("binary", y, np.where(group == "a", 0, s), resampling=Resampling(20))
        found = measure_column_fairness(rows, "g", group)
        nobody = measure_column_fairness(rows._replace(scores=s / 3), "g", group)
    ratio = found.gaps["demographic_parity_ratio"].estimate
    assert (ratio.value, ratio.low) == (0, 0) and 0 < ratio.high < .05
    assert found.gaps["demographic_parity_difference"].lowest == "a"
    assert (
        nobody.gaps["demographic_parity_difference"].estimate.value == 0
        and "demographic_parity_ratio" not in nobody.gaps
    )


def test_groups_of_every_type_and_of_two_columns():
    frame = pl.DataFrame({"age": [*range(99), None], "sex": ["f", "m"] * 50, "old": [True] * 60 + [None] * 40})
    found = sensitive_groups(frame, ["age", "sex", "old"])
    assert list(found) == ["age", "sex", "old", "age and sex", "age and old", "sex and old"]
    assert len(set(found["age"])) == 5 and set(found["old"]) == {"true", "(missing)"}
    assert found["age and sex"][-1] == "(missing), m" and list(sensitive_groups(frame, ["sex"])) == ["sex"]
    assert split_by_group_size(found["age and sex"], 1)[1] == {} and split_by_group_size(found["sex"], 51) == (
        [],
        {"f": 50, "m": 50},
    )


def test_few_rows_are_named_and_one_group_is_a_sentence():
    group, y, s = world(600)
    group[:30] = "few"
    frame = pl.DataFrame({"g": group.astype(str), "one": ["same"] * 600})
    rows = EvaluatedRows("binary", y, s, resampling=Resampling(20))
    g, one, *both = measure_fairness(rows, frame, ["g", "one"], 200)
    assert g.small_groups == {"few": 30} and {x.value for x in g.groups} == {"a", "b"}
    assert one.gaps == {} and one.message == "By one nothing can be compared: only same has enough rows."
    assert [f.column for f in both] == ["g and one"]
    (none,) = measure_fairness(rows, frame, ["g"], 500)
    assert (none.groups, none.gaps) == ([], {}) and "no group has enough rows" in none.message
    assert [f.column for f in measure_fairness(rows, frame, ["g", "one"], 500)] == ["g", "one"]  # and no pair of them
    first = np.arange(50)
    (tiny,) = measure_fairness(rows.take(first), frame.head(50), ["g"], 5) # 30 of one group, of 20 there is no rate
    assert tiny.gaps.keys() == {"roc_auc_difference"} and "for no figure a second group has enough rows" in tiny.message
    assert measure_fairness(rows, frame, []) == [] and fairness_table([none]).is_empty()


def test_scores_that_are_no_numbers_compare_nothing():
    group, y, s = world(600)
    s[3] = np.nan
    (found,) = measure_fairness(EvaluatedRows("binary", y, s), pl.DataFrame({"g": group.astype(str)}), ["g"])
    assert found.gaps == {} and found.message.endswith("some scores are not finite.")


# ---- the contract, the stage and the gate


def test_the_mark_is_kept_compared_and_not_guessed(tmp_path):
    schema = modelling.schema("binary")
    before = schema_hash(schema)
    schema.columns["known"].sensitive = True
    write_schema(schema, tmp_path / "schema.yaml")
    again = read_schema(tmp_path / "schema.yaml")
    assert again.sensitive_columns == ["known"] and schema_hash(again) != before
    (change,) = diff_schemas(modelling.schema("binary"), again)
    assert change.message == "The sensitive of 'known' is true; it was false."
    assert "sensitive: true" not in write_schema(modelling.schema("binary"), tmp_path / "other.yaml").read_text()


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_column_that_no_model_sees_is_judged(task, tmp_path, monkeypatch):
    def marked(task, plain=modelling.schema):
        schema = plain(task)
        schema.columns["known"] = Column("boolean", feature=False, sensitive=True)
        return schema
    monkeypatch.setattr(modelling, "schema", marked)
    root = modelling.trained(tmp_path / "p", task, n=3000)
    run_baselines(root)
    run_evaluate(root)
    (found,) = read_evaluation(root).fairness
    assert (
        found.column == "known"
        and {g.value for g in found.groups} == {"true", "false"}
        and found.message.startswith("By known, ")
    )
    table = pl.read_parquet(root / "artifacts/evaluation/fairness.parquet")
    assert set(table["group"]) == {"true", "false"} and set(table["metric"]) == set(found.groups[0].metrics)


def fair(low):
    return FairnessReport(
        "sex",
        [],
        {},
        {GATED_FAIRNESS_METRIC["binary"]: FairnessGap("true_positive_rate", "m", "f", Estimate(0.1, low, 0.2))},
        "",
    )


@pytest.mark.parametrize(
    ("low", "passed"), [(0.049, True), (-0.1, True), (0.051, False), (None, False), (math.nan, False)]
)
def test_the_gate_looks_at_what_is_sure(low, passed):
    (rule,) = check_fairness_gaps("binary", [fair(low)], .05)
    assert rule.passed == passed and rule.name == "fairness: sex"
    assert rule.message.startswith(
        "The equalized odds difference by sex (true positive rate, m against f), at the low end of its"
    )


def test_the_gate_on_what_cannot_be_compared():
    (rule,) = check_fairness_gaps("multiclass", [FairnessReport("sex", [], {}, {}, "")], .05)
    assert not rule.passed and "could not be computed" in rule.message
    assert check_fairness_gaps("binary", [fair(.9)], None) == check_fairness_gaps("regression", [], None) == []
    with pytest.raises(UserError, match="schema.yaml marks no column as `sensitive: true`; mark one"):
        check_fairness_gaps("binary", [], 0.05)
    with pytest.raises(UserError, match="a regression has no error rates; set it to null"):
        check_fairness_gaps("regression", [fair(0)], 0.05)


@pytest.mark.slow
@pytest.mark.realdata
def test_adult_by_sex_and_race(tmp_path, real_data):
    root = new_project(
        tmp_path / "adult", real_data("adult") / "adult.[dt]*", "rtrim(outcome, '.')", "--test-files", "adult.test"
    )
    schema = read_schema(root / "schema.yaml")
    assert {"sex", "race"} < {*schema.sensitive_columns} # proposed; two of them are enough here
    for name, column in schema.columns.items(): column.sensitive = name in ("sex", "race")
    schema.columns["race"].feature = False
    write_schema(schema, root / "schema.yaml")
    (root / "params.yaml").write_text(
        (root / "params.yaml").read_text().replace("n_estimators: 1000", "n_estimators: 60")
    )
    for stage in ("features", "validate", "prepare", "baseline"): run_stage(stage, root)
    run_stage("train", root, "gbdt")
    run_stage("evaluate", root)
    evaluation = read_evaluation(root)
    rows = pl.read_parquet(root / "artifacts/evaluation/predictions.parquet").filter(pl.col("split") == "test")
    raw = pl.read_csv(real_data("adult") / "adult.test", infer_schema=False, has_header=True)
    raw = raw.select(pl.all().str.strip_chars()).rename(str.strip).with_columns(_row=pl.int_range(pl.len()))
    rows = rows.join(raw, on="_row", how="left", maintain_order="left")
    assert (rows["outcome"].str.starts_with(">50K") == (rows["_target"] == 1)).all() and len(rows) == 16281
    race, sex, both = evaluation.fairness
    assert (race.column, sex.column, both.column) == ("race", "sex", "race and sex")
    y, act = rows["_target"].to_numpy(), (rows["decision"] == ">50K").to_numpy()
    for found, group in ((race, rows["race"]), (sex, rows["sex"]), (both, rows["race"] + ", " + rows["sex"])):
        few = {g: n for g, n in group.value_counts().iter_rows() if n < 200}
        assert found.small_groups == few
        if found is not both: # in which a group has too few events for a rate
            same(found, pl.DataFrame({"group": group, "y": y, "act": act}), group.to_numpy(), y, act)
    parity = sex.gaps["demographic_parity_difference"]
    assert (parity.highest, parity.lowest) == (
        "Male",
        "Female",
    ) and 0.12 < parity.estimate.low < parity.estimate.high < 0.25
