"Groups that nobody named: the search, what is left out, and what a find is worth."
from functools import reduce
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind

from mlops_nb.evaluate import slice_discovery as module
from mlops_nb.evaluate.metrics import EvaluatedRows, row_loss
from mlops_nb.evaluate.slice_discovery import (
    bin_columns,
    count_comparisons,
    count_groups,
    discover_slices,
    discovered_slice_table,
    drop_overlapping,
    error_measures,
    predicted_and_observed,
    rows_in_slice,
    search_slices,
    slice_p_value,
)
from mlops_nb.evaluate.slices import bin_column
from mlops_nb.stats.bootstrap import Resampling

COLUMNS = ["plan", "age", "bill", "known"]


def world(task, n=4000, seed=0, fault=1.0, more=0):
    "Rows and scores of a model that is right, but where the plan is basic and the age is missing."
    rng = np.random.default_rng(seed)
    age = pl.Series(np.where(rng.random(n) < .25, np.nan, rng.integers(18, 80, n)), nan_to_null=True)
    frame = pl.DataFrame({"plan": rng.choice(["basic", "plus", "family"], n), "age": age, "bill": rng.normal(50, 20, n),
                          "known": rng.random(n) < .5} | {f"x{i}": rng.normal(size=n) for i in range(more)})
    odds = (frame["bill"].to_numpy() - 50) / 20
    true = odds + 1.5 * fault * ((frame["plan"] == "basic") & age.is_null()).to_numpy()
    if task == "regression": return frame.with_columns(_target=true + rng.normal(0, .5, n)), odds
    if task == "binary":
        return frame.with_columns(_target=(rng.random(n) < 1 / (1 + np.exp(-true))).astype(float)), 1 / (
            1 + np.exp(-odds)
        )

    def shares(z): return (e := np.exp(np.column_stack([z, z / 2, 0 * z]))) / e.sum(1, keepdims=True)
    p = shares(3 * odds)
    truth = np.where(true != odds, rng.integers(0, 3, n), [rng.choice(3, p=q) for q in p])
    return frame.with_columns(_target=pl.Series(truth, dtype=pl.Float64)), p


def discover(task, valid, v, test, t, columns=COLUMNS, min_rows=100, resampling=Resampling(5)):
    rows = {split: EvaluatedRows(task, frame["_target"].to_numpy(), s, resampling=resampling)
            for split, frame, s in (("valid", valid, v), ("test", test, t))}
    return discover_slices(rows, {"valid": valid, "test": test}, columns, min_rows)


def look(task, columns=COLUMNS, n=4000, seed=0, fault=1.0, more=0, **options):
    return discover(task, *world(task, n, seed, fault, more), *world(task, n, seed + 1, fault, more), columns,
                    **{"resampling": Resampling(20)} | options)


def sure(found, *measures):
    return [x for x in found.slices if x.p_value < 0.05 and (not measures or x.measure in measures)]


@pytest.mark.parametrize(
    ("task", "direction"),
    [("binary", "under_predicted"), ("regression", "under_predicted"), ("multiclass", "over_predicted")],
)
def test_a_planted_fault_is_found_by_its_name(task, direction):
    found = look(task)
    assert [x.where for x in sure(found, "under_predicted", "over_predicted")] == ["plan = basic and age = (missing)"]
    (x,) = sure(found, "under_predicted", "over_predicted")
    assert x.measure == direction and x.gap.low > 0
    assert (
        f"{'too low' if direction == 'under_predicted' else 'too high'} in 1, most where {x.where} ({x.n_rows:,} rows"
        in found.message
    )


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_figures_are_those_of_the_test_rows(task):
    found, (test, s) = look(task), world(task, seed=1)
    y = test["_target"].to_numpy()
    (predicted, observed), loss = predicted_and_observed(task, y, s), row_loss(task, y, s)
    spots = [(x, [part.split(" = ") for part in x.where.split(" and ")]) for x in found.slices if " to " not in x.where]
    assert len(spots) > 2
    for x, values in spots:
        conditions = [pl.col(c).is_null() if v == "(missing)" else pl.col(c).cast(pl.String) == v for c, v in values]
        rows = test.select(reduce(pl.Expr.and_, conditions).fill_null(False)).to_series().to_numpy()
        error = {"loss": loss, "under_predicted": observed - predicted, "over_predicted": predicted - observed}[
            x.measure
        ]
        assert (x.n_rows, x.share) == (rows.sum(), pytest.approx(rows.mean()))
        assert (x.error.value, x.rest) == (pytest.approx(error[rows].mean()), pytest.approx(error[~rows].mean()))
        assert (x.predicted, x.observed) == (
            pytest.approx(predicted[rows].mean()),
            pytest.approx(observed[rows].mean()),
        )
        assert x.gap.value == pytest.approx(x.error.value - x.rest) and x.gap.low <= x.gap.value <= x.gap.high


def test_without_a_fault_nothing_is_sure():
    assert not [
        x
        for seed in range(0, 16, 2)
        for x in sure(look("binary", n=2000, seed=seed, fault=0), "under_predicted", "over_predicted")
    ]


def test_the_test_rows_judge_and_do_not_search():
    (valid, v), (test, t) = world("binary"), world("binary", seed=1)
    other = test.with_columns(_target=1 - pl.col("_target"))
    first, second = (discover("binary", valid, v, f, t) for f in (test, other))
    assert [(x.measure, x.where, x.n_rows) for x in first.slices] == [
        (x.measure, x.where, x.n_rows) for x in second.slices
    ]
    assert sure(first, "under_predicted") and not sure(second, "under_predicted")


def test_predictions_that_are_off_everywhere_are_no_spot():
    (valid, v), (test, t) = world("regression", fault=0), world("regression", seed=1, fault=0)
    found = discover("regression", valid, v - 9, test, t - 9)
    assert not sure(found, "under_predicted", "over_predicted")


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99))
def test_the_count_is_of_all_groups_by_one_or_two_columns(columns, n, least, seed):
    codes = np.random.default_rng(seed).integers(0, 3, (n, columns))
    groups = [{c: v} for c in range(columns) for v in range(3)]
    groups += [{a: v, b: u} for a, b in combinations(range(columns), 2) for v in range(3) for u in range(3)]
    assert count_comparisons(count_groups(codes, np.ones(n)), least) == sum(
        rows_in_slice(codes, g).sum() >= least for g in groups
    )


def test_every_find_was_counted_and_is_large_enough():
    codes, error = np.random.default_rng(0).integers(0, 4, (3000, 5)), np.random.default_rng(1).exponential(size=3000)
    groups = count_groups(codes, error)
    found = search_slices(groups, error, 150)
    assert 0 < len(found) <= count_comparisons(groups, 150)
    assert all(len(f) in (1, 2) and rows_in_slice(codes, f).sum() >= 150 for f in found)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [100, 3])
def test_the_finds_are_those_of_sliceline(seed, most):
    from sliceline.slicefinder import Slicefinder
    rng = np.random.default_rng(seed)
    n, least = int(rng.integers(400, 3000)), int(rng.integers(20, 60))
    codes, error = np.column_stack([rng.integers(0, k, n) for k in (2, 3, 5, 9, 4)]), rng.exponential(size=n)
    error[(codes[:, 1] == 2) & (codes[:, 2] == 1)] += seed
    visible = 3 * error.std() / (error.mean() - error.min()) / least**.5 / (n / least - 1)
    theirs = (
        Slicefinder(alpha=1 / (1 + visible), k=most, max_l=2, min_sup=least, verbose=False)
        .fit(codes, error - error.min())
        .top_slices_
    )
    theirs = [{c: int(v) for c, v in enumerate(spot) if v is not None} for spot in theirs]
    assert search_slices(count_groups(codes, error), error, least, most) == theirs and theirs


def test_of_the_same_rows_the_shorter_name_is_found_first():
    codes = np.random.default_rng(0).integers(0, 3, (1000, 1)) * [1, 0] # the second column is one group
    error = (codes[:, 0] == 1) * 1.0
    assert search_slices(count_groups(codes, error), error, 50) == [{0: 1}, {0: 1, 1: 0}]


def test_the_same_rows_by_another_name_are_said_once():
    codes = np.random.default_rng(0).integers(0, 3, (1000, 2))
    codes = np.column_stack([codes, codes[:, 0]])
    error = (codes[:, 0] == 1) * 1.0
    assert drop_overlapping([{0: 1}, {2: 1}, {0: 1, 1: 0}], codes, error, codes, 50) == [{0: 1}]
    assert drop_overlapping([{0: 1, 1: 0}, {0: 1}], codes, error, codes, 50) == [
        {0: 1, 1: 0},
        {0: 1},
    ]  # the wider one says more
    assert drop_overlapping([{0: 1}], codes, error, codes, 500) == [] # too few to judge


@pytest.mark.parametrize("tried", [1, 1000])
def test_p_is_the_worse_of_two_tests_times_all_that_was_tried(tried):
    rng = np.random.default_rng(0)
    error, rows = rng.normal(.2, 1, 900), np.arange(900) < 200
    error[rows] += .2
    p = (
        max(ttest_ind(error[rows], error[~rows], equal_var=False).pvalue, ttest_1samp(error[rows], 0).pvalue) / 2
    )  # they are above
    assert slice_p_value(error, rows, tried) == pytest.approx(min(1, p * tried))
    assert slice_p_value(error - 9, rows, tried) == 1 # above the others, and below zero
    assert slice_p_value(np.ones(900), rows, tried) == 1 and slice_p_value(rows * 1.0, rows, tried) == 0
    assert slice_p_value(error, rows, tried, np.arange(900)) == pytest.approx(min(1, p * tried))


def test_the_quirk_of_one_customer_is_no_weak_spot():
    "Thirty rows each of eighty customers, who differ from one another; forty of them are a slice by chance alone."
    found = {"rows": 0, "customers": 0}
    for seed in range(200):
        rng, customers = np.random.default_rng(seed), np.arange(2400) // 30
        error, rows = rng.normal(.2, 1, 80)[customers] + rng.normal(0, 1, 2400), customers < 40
        found["rows"] += slice_p_value(error, rows, 1) < .05
        found["customers"] += slice_p_value(error, rows, 1, customers) < .05
    assert found["customers"] <= 18 and found["rows"] > 30 # 10 are expected at most, and more than 18 once in 200
    few = error + 9 * (customers < 29)
    assert slice_p_value(few, customers < 29, 1) < 1e-9 and slice_p_value(few, customers < 29, 1, customers) == 1
    assert slice_p_value(few, customers < 30, 1, customers) < 1e-9


def test_bias_cancels_and_loss_does_not():
    y, s = np.array([0., 1.]), np.array([.3, .7])
    e = error_measures("binary", y, s)
    assert (
        e["under_predicted"].sum() == pytest.approx(0)
        and (e["under_predicted"] == -e["over_predicted"]).all()
        and (e["loss"] > 0).all()
    )
    predicted, observed = predicted_and_observed(
        "multiclass", np.array([0.0, 2.0]), np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    )
    assert predicted.tolist() == [.5, .6] and observed.tolist() == [1, 0]


def test_both_parts_are_cut_at_the_same_places():
    parts = [pl.DataFrame({"x": [1., 2., 3., 4.], "one": 1}), pl.DataFrame({"x": [None, 3., 9.], "one": 1})]
    names, (a, b) = bin_columns(parts, ["x", "one"])
    codes, same = bin_column(pl.concat(parts)["x"])
    assert same == ["1 to 2", "3", "4", "9", "(missing)"] and names == [
        ["x 1 to 2", "x = 3", "x = 4", "x = 9", "x = (missing)"]
    ]
    assert a[:, 0].tolist() + b[:, 0].tolist() == codes.tolist() # a column with one group is none


@pytest.mark.parametrize("columns", [["plan", "known"], ["bill", "age"], ["bill"]])
def test_inputs_of_one_kind(columns): assert look("regression", columns).n_comparisons > 0


def test_many_inputs_are_bounded(monkeypatch):
    seen = []
    monkeypatch.setattr(
        module, "count_groups", lambda codes, error: seen.append(codes.shape) or count_groups(codes, error)
    )
    found = look("binary", COLUMNS + [f"x{i}" for i in range(30)], more=30)
    assert set(seen) == {(4000, 20)} and "plan = basic and age = (missing)" in [
        x.where for x in sure(found, "under_predicted")
    ]


@pytest.mark.parametrize(("change", "said"), [
    ({"min_rows": 1900, "columns": ["plan"]}, "no group of the valid rows has 1,900 of them"),
    ({"n": 150}, "a split of 150 rows is too small for groups of 100 and a rest"),
    ({"columns": []}, "every input has the same value in all rows"),
    ({"columns": ["same"]}, "every input has the same value in all rows")])
def test_where_nothing_can_be_searched_it_says_why(change, said, monkeypatch):
    monkeypatch.setattr(
        f"{__name__}.world", lambda *a, real=world: (lambda f, s: (f.with_columns(same=1), s))(*real(*a))
    )
    found = look("binary", **change)
    assert (
        said in found.message
        and (found.slices, found.n_comparisons) == ([], 0)
        and discovered_slice_table(found).is_empty()
    )


def test_scores_that_are_no_numbers_and_a_loss_without_a_difference():
    (valid, v), (test, t) = world("regression", fault=0), world("regression", seed=1, fault=0)
    bad = discover("regression", valid, v, test, np.where(np.arange(4000) == 7, np.nan, t))
    assert "some scores are not finite" in bad.message
    perfect = discover("regression", valid, valid["_target"].to_numpy(), test, test["_target"].to_numpy())
    assert "the loss is the same in all rows" in perfect.message


def test_the_same_seed_gives_the_same_spots():
    assert look("multiclass", n=2000) == look("multiclass", n=2000, resampling=Resampling(20, threads=2))
