"Calibrators: a single probability and an array get the same bits, and an answer is never 0, 1 or out of order."
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.model.calibrators import EPS, Calibrator, IsotonicCalibrator, PlattCalibrator, TemperatureCalibrator

TWO_CLASSES = [PlattCalibrator(0.5, -0.3), PlattCalibrator(900.0, 4.0), PlattCalibrator(1e-6, -40.0),
               IsotonicCalibrator([0.0, 0.2, 0.7, 1.0], [0.01, 0.1, 0.8, 0.95])]
probabilities = st.floats(0, 1) | st.sampled_from([0.0, 1.0, EPS, 1 - EPS, 5e-324])


@pytest.mark.parametrize("calibrator", TWO_CLASSES)
@given(p=probabilities)
def test_a_single_probability_and_an_array_get_the_same_bits(calibrator, p):
    one, many = calibrator.apply(p), calibrator.apply(np.array([0.5, p]))
    assert float(one) == many[1] and EPS <= one <= 1 - EPS


KNOTS = np.linspace(0, 1, 61) ** 3 # close to each other near 0
MANY_KNOTS = IsotonicCalibrator(KNOTS.tolist(), np.linspace(1e-6, 1 - 1e-6, 61).tolist())
UNEVEN = IsotonicCalibrator([0.1, 0.1 + 2**-54, 0.4, 0.4 + 2**-54, 0.9], [0.2, 0.3, 0.3, 0.6, 0.7])


@pytest.mark.parametrize("calibrator", [*TWO_CLASSES, MANY_KNOTS, UNEVEN])
def test_every_knot_its_neighbours_and_the_extremes_get_the_same_bits_alone_and_among_others(calibrator):
    at = np.array([*KNOTS, *UNEVEN.x_thresholds, 0.0, -0.0, 1.0, EPS, 1 - EPS, 5e-324, -5e-324, -1.0, 2.0,
                   np.inf, -np.inf, *np.random.default_rng(0).random(5000)])
    p = np.concatenate([at, np.nextafter(at, -1), np.nextafter(at, 2)])
    alone = np.array([calibrator.apply(x) for x in p.tolist()])
    assert alone.tobytes() == calibrator.apply(p).tobytes() == calibrator.apply(p.reshape(3, -1)).tobytes()
    if isinstance(calibrator, IsotonicCalibrator):
        expected = np.interp(np.clip(p, EPS, 1 - EPS), calibrator.x_thresholds, calibrator.y_thresholds)
        np.testing.assert_allclose(alone, expected, rtol=1e-15)


@pytest.mark.parametrize("calibrator", [*TWO_CLASSES, MANY_KNOTS])
def test_what_is_no_number_stays_none(calibrator):
    assert np.isnan([calibrator.apply(float("nan")), *calibrator.apply(np.array([np.nan]))]).all()


@pytest.mark.parametrize("calibrator", TWO_CLASSES)
def test_the_order_of_rows_stays(calibrator):
    p = np.linspace(0, 1, 1_001)
    assert (np.diff(calibrator.apply(p)) >= 0).all()


def test_a_line_of_slope_1_changes_nothing_and_a_half_takes_conviction_away():
    p = np.array([0.01, 0.3, 0.5, 0.99])
    assert PlattCalibrator(1.0, 0.0).apply(p) == pytest.approx(p)
    odds = PlattCalibrator(0.5, 0.0).apply(p) / (1 - PlattCalibrator(0.5, 0.0).apply(p))
    assert odds == pytest.approx((p / (1 - p)) ** 0.5)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0.05, 20))
def test_of_several_classes_the_sum_is_1_and_the_first_stays_the_first(p, temperature):
    p = np.array(p) + 1e-6
    p /= p.sum()
    q = TemperatureCalibrator(temperature).apply(p)
    assert q.sum() == pytest.approx(1) and q[p.argmax()] == q.max()
    assert TemperatureCalibrator(1.0).apply(p) == pytest.approx(p)


@pytest.mark.parametrize("calibrator", [*TWO_CLASSES, TemperatureCalibrator(1.7)])
def test_json_brings_back_the_same_kind_with_the_same_bits(calibrator):
    assert msgspec.json.decode(msgspec.json.encode(calibrator), type=Calibrator) == calibrator
