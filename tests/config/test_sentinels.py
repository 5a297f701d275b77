"Numbers that stand for something else: what is far away and repeats is missing, what may be a value is asked about."
import polars as pl
import pytest

from mlops_nb.config.schema_inference import profile_columns
from mlops_nb.config.sentinels import find_sentinels

SKEWED = [0] * 900 + [594, 2_000, 3_000, 7_000, 15_000, 41_310] * 10


def found(values):
    frame = pl.LazyFrame({"x": values})
    return find_sentinels(frame, profile_columns(frame)).get("x")


@pytest.mark.parametrize("values, missing", [
    ([*range(20, 80), -999, -999], [-999]), ([*range(28), 999, 999], [999]), ([1200, 1800, 2500, 3300, 5200] * 9
     + [99_999, 88_888] * 2, [99_999, 88_888]), ([17.5, 18.25, 19.0, 20.5, 21.0, -999.0, -999.0], [-999])])
def test_what_stands_alone_and_repeats_is_missing(values, missing): assert found(values).missing == missing


def test_a_top_code_stays_a_value():
    kept = found(SKEWED + [99_999] * 5)
    assert kept.missing == [] and "99999 at the upper end: perhaps larger values were cut off" in kept.checks[0]
    assert found([-30, *SKEWED, *[99_999] * 5]).missing == [99_999] # nothing is cut off on one side of a balance


@pytest.mark.parametrize("values, named", [
    ([1, 2, 3, 4, 5, 9] * 20, "9"), ([1, 2, 9] * 20, "9"), ([1.0, 2.0, 3.0, 99.0] * 9, "99"),
    ([*range(18, 80), 99] * 4, "99"),
    ([-9, -8, *range(-2, 12)] * 9, "-9, -8"), ([-1, 3, 40] * 9, "-1"), ([1, 2, 3, 8, 9] * 9, "9, 8")])
def test_what_may_be_a_code_is_asked_about_and_kept(values, named):
    kept = found(values)
    assert kept.missing == [] and kept.checks[0].startswith(f"does {named} mean missing?")


@pytest.mark.parametrize("values", [[*range(10)] * 9, [*range(900, 1000)] * 4, [4, 6, 8] * 9, [*range(41), 99],
                                    [-1, 0, 1] * 9, [-3, -2, -1, 0, 5] * 9, [80, 90, 95, 97, 98, 99, 99, 99],
                                    [0, 1] * 9, [0.5, 9.0, 2.25, 9.0, 9.0]])
def test_ordinary_values_are_let_alone(values): assert found(values) is None
