"Each condition and each clause by its facts alone, also those that nobody could read."
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from mlops_nb.config.triggers import Condition, Trigger
from mlops_nb.control.trigger_conditions import (
    CodeFacts,
    MetricLoss,
    OpenFinding,
    SourceFacts,
    TriggerFacts,
    check_condition,
    condition_name,
    evaluate_trigger,
)

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
S3, ORDERS = {"url": "s3://b/x/", "at_least": 2}, {"url": "postgresql://db/shop", "table": "orders", "column": "at"}


def facts(**known): return TriggerFacts(**dict(at=NOON, since=NOON - HOUR) | known)


def source(condition, **known):
    key = "s3://b/x/" if "new_objects" in condition else "postgresql://db/shop orders"
    return dict(sources={key: SourceFacts(**known)})


@pytest.mark.parametrize("condition, known, holds", [
    ({"new_objects": S3}, source({"new_objects"}, new=2), True),
    ({"new_objects": S3}, source({"new_objects"}, new=1), False),
    ({"new_objects": S3}, source({"new_objects"}, waiting=True), True), ({"new_objects": S3}, {}, None),
    ({"new_objects": S3}, source({"new_objects"}, error="away"), None),
    ({"watermark": ORDERS}, source({}, new=1, text="orders.at is at 5"), True),
    ({"watermark": ORDERS}, source({}, text="orders.at is at 5"), False),
    ({"watermark": ORDERS}, source({}, error="away", new=1), None),
    ({"notice": {"source": "w"}}, dict(notices={"w": NOON.isoformat()}), True),
    ({"notice": {"source": "w"}}, dict(notices={"v": NOON.isoformat()}), False),
    ({"upstream": "repaired"}, dict(repaired=["volume"]), True), ({"upstream": "repaired"}, {}, False),
    ({"upstream": "repaired"}, dict(repaired=["volume"], findings=[OpenFinding("schema", "x")]), False),
    ({"upstream": "repaired"}, dict(repaired=["volume"], findings=[OpenFinding("drift", "x")]), True),
    ({"code": "changed"}, dict(code={"main": CodeFacts(commit="a", ran=False)}), True),
    ({"code": "changed"}, dict(code={"main": CodeFacts(commit="a")}), False),
    ({"code": "changed"}, dict(code={"main": CodeFacts(commit="a", ran=False, checked_out=False)}), False),
    ({"code": "changed"}, dict(code={"main": CodeFacts(error="there is no branch main")}), None),
    ({"code": {"branch": "dev"}}, dict(code={"dev": CodeFacts(commit="a", ran=False)}), True),
    ({"age": "shelf_life"}, dict(shelf_life="45d", model_since=NOON - timedelta(days=45)), True),
    ({"age": "shelf_life"}, dict(shelf_life="45d", model_since=NOON - timedelta(days=44)), False),
    ({"age": "shelf_life"}, dict(model_since=NOON - timedelta(days=999)), False)])
def test_conditions(condition, known, holds):
    c = msgspec.convert(condition, Condition)
    found, text = check_condition(c, facts(**known))
    assert found is holds and text.startswith(f"{condition_name(c)}: ")


DEGRADED = {"degraded": {"metric": "f1", "by": .02}}


@pytest.mark.parametrize("known, holds", [
    (dict(metrics={"f1": MetricLoss(worse=.02, until=NOON)}), True),
    (dict(metrics={"f1": MetricLoss(worse=.019, until=NOON)}), False),
    (dict(metrics={"f1": MetricLoss(worse=-.3, until=NOON)}), False),
    (dict(metrics={"recall": MetricLoss(worse=.3, until=NOON)}), False),
    (dict(findings=[OpenFinding("quality", "f1", .02)], metrics={"f1": MetricLoss(worse=.01, until=NOON)}), True),
    (dict(metrics_error="it is locked"), None),
    (dict(metrics_error="it is locked", findings=[OpenFinding("quality", "f1", .02)]), True)])
def test_a_metric_that_has_become_worse(known, holds):
    assert check_condition(msgspec.convert(DEGRADED, Condition), facts(**known))[0] is holds


def test_late_labels_are_looked_at_again_and_do_not_fire_again():
    "What was measured of a period before the last run asks for no other one, however bad it turns out to be."
    t = msgspec.convert(dict(when={"any": [DEGRADED]}), Trigger)
    before, after = (MetricLoss(worse=.3, until=NOON - 2 * HOUR), MetricLoss(worse=.3, until=NOON + HOUR))
    found = evaluate_trigger(t, facts(answered=NOON - HOUR, metrics={"f1": before}))
    assert found.outcome == "not_due" and "were answered by a run" in found.tree[1]
    assert evaluate_trigger(t, facts(answered=NOON - HOUR, metrics={"f1": after})).outcome == "fired"
    assert evaluate_trigger(t, facts(metrics={"f1": before})).outcome == "fired", "it was never asked for"


@pytest.mark.parametrize("how, conditions, outcome, clause", [
    ("any", [{"new_objects": S3}, {"new_data": {}}], "fired", "new_data"),
    ("all", [{"new_objects": S3}, {"new_data": {}}], "error", "new_objects"),
    ("any", [{"new_objects": S3}, {"drift": "found"}], "error", "new_objects"),
    ("all", [{"new_data": {}}, {"drift": "found"}], "not_due", "when")])
def test_what_is_unknown_never_fires_and_never_hides_what_holds(how, conditions, outcome, clause):
    found = evaluate_trigger(msgspec.convert(dict(when={how: conditions}), Trigger), facts(new_rows=1))
    assert (found.outcome, found.clause) == (outcome, clause)
    if outcome == "error": assert any(line.startswith("  ?   new_objects") for line in found.tree)


@pytest.mark.parametrize("cost, clause", [(39.99, None), (40.0, "budget"), (None, "budget")])
def test_a_budget_in_money(cost, clause):
    t = msgspec.convert(dict(when={"any": [{"new_data": {}}]}, budget={"cost": "40 EUR per 30d"}), Trigger)
    found = evaluate_trigger(t, facts(new_rows=1, cost=cost))
    assert (found.outcome, found.clause) == (("suppressed", clause) if clause else ("fired", "new_data"))
    assert ("not known of 40.00 EUR" if cost is None else f"{cost:.2f} of 40.00 EUR in 30d") in found.tree[-1]


def test_both_budgets_hold():
    t = msgspec.convert(dict(when={"any": [{"new_data": {}}]}, budget={"cost": "40 EUR per 30d", "runs": "1 per 7d"}),
                        Trigger)
    assert evaluate_trigger(t, facts(new_rows=1, cost=1.0)).outcome == "fired"
    assert evaluate_trigger(t, facts(new_rows=1, cost=1.0, asked_at=[NOON - HOUR])).clause == "budget"
    assert evaluate_trigger(t, facts(new_rows=1, cost=99.0)).clause == "budget"
