"Charts of the runs: round ticks that lie apart, and nothing that is no number."
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlops_nb.report.run_charts import RunPoint, round_ticks, run_chart

SIZES = st.floats(-1e9, 1e9).map(lambda x: float(f"{x:.9g}"))


@settings(deadline=None, max_examples=80)
@given(SIZES, SIZES)
def test_ticks_are_few_and_inside(a, b):
    low, high = sorted((a, b))
    assume(high - low > 1e-9 * max(1, abs(low), abs(high)))
    ticks = round_ticks(low, high)
    assert 1 <= len(ticks) <= 6 and ticks == sorted(set(ticks))
    air = (high - low) * 1e-6
    assert low - air <= ticks[0] and ticks[-1] <= high + air


@pytest.mark.parametrize("values", [[1, 1], [0, 0, 0], [None, 0.5, float("nan"), 0.6], [-1e9, 1e9], [1e-12, 2e-12],
                                    [0.5, float("inf"), 0.4]])
def test_odd_metrics_are_drawn_or_left_out(values):
    svg = run_chart("M", [RunPoint(f"day {i}", v) for i, v in enumerate(values)]).text
    assert "nan" not in svg and "inf" not in svg and svg.count("<circle") == sum(
        v is not None and abs(v) < float("inf") for v in values)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert all(0 <= y <= 150 for y in heights)


def test_fewer_than_two_runs_are_no_course():
    assert run_chart("M", []).text == run_chart("M", [RunPoint("a", 1.0), RunPoint("b", None)]).text == ""


def test_points_say_what_became_of_the_run_not_only_by_colour():
    svg = run_chart("M", [RunPoint("1 May", 0.1, 0.05, 0.2, "released"), RunPoint("<2 May>", 0.2, kind="failed"),
                          RunPoint("3 May", 0.3, same_rows=False)], "Higher is better.").text
    assert "1 May: 0.100, released" in svg and "&lt;2 May&gt;: 0.200, failed" in svg and "<2" not in svg
    assert svg.count("stroke-dasharray") == 1 and "M went from 0.100 to 0.300" in svg
    assert svg.count('fill="var(--blue)"') == 1 and svg.count('fill="var(--paper)"') == 1
