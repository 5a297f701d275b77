"""report.evidence_limits: every limit is said in words, and what weakens the evidence is told apart from facts."""
from types import SimpleNamespace

import pytest

from mlops_nb.config.params import CostParams, GbdtParams
from mlops_nb.data.prepare import EXCLUSION_REASONS, IMMATURE_REASON, LATE_REASON, SplitSummary
from mlops_nb.data.splits import SplitCheck
from mlops_nb.report.evidence_limits import evidence_limits, limits_table


def limits(task="binary", n_entities=None, power="A loss of 0.02 would be seen in 6% of cases.", costs=CostParams(),
           training=None, **changed):
    classes = dict(binary=["no", "yes"], multiclass=["a", "b", "c"]).get(task)
    target = {c: 10 * (i + 1) for i, c in enumerate(classes)} if classes else dict(mean=1.0, std=1.0, min=0.0, max=2.0)
    test = SplitSummary(rows=sum(target.values()) if classes else 50, sha256="", target=target)
    check = SplitCheck(0, repeated_rows=0, repeated_across_splits=0)
    facts = dict(task=task, classes=classes, used=200, as_of=None, excluded_rows={}, split_check=check,
                 parts=dict(test=test), leaks=[])
    evaluation = SimpleNamespace(n_entities=dict(test=n_entities) if n_entities else {}, task=task,
                                 decision_settings=SimpleNamespace(costs=costs))
    found = evidence_limits(evaluation, SimpleNamespace(**facts | changed), SimpleNamespace(power=power), training)
    return {x.name: x for x in found}


@pytest.mark.parametrize("task, rows, events", [
    ("binary", 30, "10 of these rows (33.3 %) are of the rarest class, “no”."),
    ("multiclass", 60, "10 of these rows (16.7 %) are of the rarest class, “a”."), ("regression", 50, None)])
def test_rows_and_events_of_each_task(task, rows, events):
    found = limits(task)
    assert found["Test rows"].found == f"{rows} of 200 used rows."
    assert found["Events"].found == events if events else "Events" not in found
    assert not any(x.weakens for x in found.values()) and "Bold" not in limits_table(list(found.values())).text


def test_entities_in_several_splits_weaken_the_evidence():
    assert "names no entity" in limits()["Entities"].found
    check = SplitCheck(0, overlapping_entities=0, repeated_rows=0, repeated_across_splits=0)
    assert limits(split_check=check)["Entities"].found == "Each test row is about another entity."
    check.overlapping_entities = 1
    several = limits(n_entities=12, split_check=check)["Entities"]
    assert several.found.startswith("12 in the test rows;") and "1 entity is in several splits" in several.found
    assert several.weakens


def test_rows_with_late_labels_are_counted():
    excluded = {EXCLUSION_REASONS[0]: 7, IMMATURE_REASON: 1200, LATE_REASON: 1}
    found = limits(as_of="2026-06-30T00:00:00", excluded_rows=excluded)["Late labels"].found
    assert found == ("1,200 rows left out: the label was not known on 30 June 2026. "
                     "1 row purged: the label came after the next split begins.")
    assert "0 rows left out" in limits(as_of="2026-06-30")["Late labels"].found
    assert "states no label_delay" in limits()["Late labels"].found


@pytest.mark.parametrize("repeated, across, said, weakens", [
    (0, 0, "None among the used rows.", False), (801, 508, "508 of validation or test stand in an earlier split", True),
    (1, 0, "1 row repeats another in all but the target; 0 of", False), (None, None, "Nobody counted them.", True)])
def test_duplicates(repeated, across, said, weakens):
    found = limits(split_check=SplitCheck(0, repeated_rows=repeated, repeated_across_splits=across))["Duplicates"]
    assert said in found.found and found.weakens == weakens


def test_suspected_leaks_count_until_a_person_accepts_them():
    leak = lambda column, accepted="", blocks=True: SimpleNamespace(column=column, accepted=accepted, blocks=blocks)
    both = limits(leaks=[leak("<b>"), leak("<b>"), leak("plan", "known on the day.")])
    assert both["Suspected leaks"].weakens
    assert both["Suspected leaks"].found == ("<b>: see the rule “leaks” of the gate below. "
                                             "Accepted: plan (known on the day).")
    page = limits_table(list(both.values())).text
    assert "<b>&lt;b&gt;: see" in page and "Bold: this weakens them." in page
    accepted = limits(leaks=[leak("plan", "known on the day")])["Suspected leaks"]
    assert accepted.found.startswith("None but those accepted.") and not accepted.weakens
    assert limits(leaks=None)["Suspected leaks"].weakens
    by_name = limits(leaks=[leak("duration", blocks=False)])["Suspected leaks"]
    assert by_name.found == "None found. By its name perhaps known only afterwards: duration." and not by_name.weakens


def test_unknown_power_is_no_evidence():
    assert not limits()["Detectable loss"].weakens
    assert limits(power="")["Detectable loss"].found == "Unknown: no comparison has an interval."
    assert limits(power="")["Detectable loss"].weakens


@pytest.mark.parametrize("learner, limit, setting", [
    ("gbdt", 30, "train.gbdt.n_estimators=null"), ("net", 30, "train.net.max_epochs=60"),
    ("gbdt", GbdtParams(n_estimators=None).max_iterations, "train.gbdt.learning_rate=0.1")])
def test_a_training_that_its_limit_ended_names_the_setting_to_raise(learner, limit, setting):
    def length(n): return limits(training=SimpleNamespace(learner=learner, iterations=n, max_iterations=limit,
                                                          params=dict(learning_rate=0.05)))["Training length"]
    assert length(limit).weakens and f"dvc exp run -S {setting}`" in length(limit).found
    assert not length(limit - 1).weakens


def test_costs_that_nobody_set_are_asked_for():
    assert "set evaluate.costs in params.yaml" in limits()["Costs"].found
    assert "Costs" not in limits(costs=CostParams(false_negative=5)) and "Costs" not in limits("regression")
