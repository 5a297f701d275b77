"""report.evaluation_tables: sentences and tables of each task, escaped, and with dashes for what is undefined."""
from types import SimpleNamespace

import pytest
from support.small_evaluation import small_evaluation
from support.small_project import TASKS

from mlops_nb.config.params import CostParams
from mlops_nb.evaluate.comparison import MetricDifference
from mlops_nb.evaluate.fairness import FairnessReport, GroupMetrics
from mlops_nb.evaluate.metrics import METRICS, DecisionSettings, metric_label
from mlops_nb.evaluate.slice_discovery import DiscoveredSlice, SliceDiscovery
from mlops_nb.release.gate import GateReport, GateResult
from mlops_nb.report.evaluation_tables import (
    describe_relative_gain,
    evaluation_conclusion,
    fairness_html,
    fairness_section,
    format_estimate,
    gate_table,
    key_metrics_table,
    metrics_table,
    slice_discovery_html,
    weak_segments_html,
)
from mlops_nb.report.history import KeyMetric, RunRecord
from mlops_nb.report.stage import key_metrics
from mlops_nb.stats.bootstrap import Estimate


@pytest.fixture(scope="module", params=TASKS)
def e(request): return small_evaluation(request.param)[0]


def gate(*passed):
    rules = [GateResult(f"rule {i}", None, None, p, "<b>") for i, p in enumerate(passed)]
    return GateReport(all(passed), "", "", rules)


def test_the_conclusion_says_the_rows_the_rivals_and_the_gate(e):
    text = evaluation_conclusion(e, gate(True, False, False))
    label = metric_label(e.primary_metric, in_sentence=True)
    assert text.startswith(f"On 400 test rows the model had not seen, its {label} of ")
    _, closest = min((c.metrics[e.primary_metric].gain.value, c.name) for c in e.comparisons if c.kind == "baseline")
    assert f"than the best simple model ({closest})" in text
    assert "is the same as the model in use (champion) on the same rows" in text
    assert text.endswith("2 of 3 rules of the gate failed, so nothing was deployed.")
    assert evaluation_conclusion(e, gate(True)).endswith("All 1 rules of the gate held.")


def test_a_model_without_rivals_stands_alone():
    alone = small_evaluation("binary")[0]
    alone.comparisons, alone.dataset = [], "simulated_churn"
    text = evaluation_conclusion(alone, gate(True))
    assert text.startswith("This is simulated data. On 400") and "stands alone, without a simple model" in text


@pytest.mark.parametrize("gain, said", [
    (Estimate(0.1, 0.05, 0.15), "is 12.5 % better than X"), (Estimate(-0.1, -0.15, -0.05), "is 12.5 % worse than X"),
    (Estimate(0.1, -0.05, 0.15), "is 12.5 % better than X (not statistically significant)"),
    (Estimate(0.1), "is 12.5 % better than X (not statistically significant)"), (Estimate(0.0), "is the same as X"),
    (Estimate(None), "cannot be compared with X")])
def test_a_comparison_in_half_a_sentence(gain, said):
    assert describe_relative_gain(MetricDifference(0.9, 0.8, gain), "X") == said
    assert describe_relative_gain(MetricDifference(0.9, 0.0, gain), "X") == "cannot be compared with X"


def test_key_metrics_name_the_rows_of_each_comparison(e):
    m = KeyMetric(e.primary_metric, 0.8, "higher", Estimate(0.02, 0.01, 0.03))
    run, old = (RunRecord(n, "", "", metrics=[m], test_rows=n) for n in ("new", "old"))
    both = key_metrics_table(e, run, old).text
    assert "Against the champion, same test rows" in both and "0.0200 better (0.0100 to 0.0300)" in both
    assert "no change, each on its own test rows" in both
    assert "previous run" not in key_metrics_table(e, run, None).text


def test_failed_rules_come_first_and_are_escaped():
    text = gate_table(gate(True, False)).text
    assert text.index("rule 1") < text.index("rule 0") and "&lt;b&gt;" in text and "2 rules, those" in text


def test_all_metrics_stand_beside_those_of_the_others(e):
    e.excess_log_loss = 0.0123 if e.task == "binary" else None
    e.metrics["valid"][e.primary_metric].value = None
    text = metrics_table(e).text
    assert "out-of-fold" not in text
    e.n_folds = 5
    assert "each scored by a model that had not learned from it (out-of-fold, 5 folds)" in metrics_table(e).text
    for heading in ("constant", "linear", "in use"): assert f"scope=col>{heading}</th>" in text
    assert text.count("<tr>") == 1 + len(METRICS[e.task]) and ">–<" in text and "None" not in text
    assert "of the same 400 test rows; the validation set has 300 others" in text
    assert ("0.0123 above the least" in text) == (e.task == "binary")


def test_slices_that_may_be_chance_are_folded_away():
    def found(where, p): return DiscoveredSlice("loss", where, 60, 0.2, Estimate(0.9), 0.4, Estimate(0.5), p, 0.3, 0.4,
                                                Estimate(None), None)
    e = SimpleNamespace(task="regression", primary_metric="rmse", confidence=0.95, own_metrics={},
                        slice_discovery=SliceDiscovery(9, [found("a = <x>", 1e-6), found("b", 0.4)], "Found <one>."))
    shown, folded = slice_discovery_html(e).text.split("<details>")
    assert "a = &lt;x&gt;" in shown and "&lt; 0.0001" in shown and "absolute error" in shown and "b</td>" in folded
    e.slice_discovery = SliceDiscovery(0, [], "Too few rows.")
    assert slice_discovery_html(e).text == "<p><b>Too few rows.</b></p>"


def test_groups_without_a_rate_get_a_dash():
    groups = [GroupMetrics("f", 90, dict(selection_rate=Estimate(None)))]
    text = fairness_html(FairnessReport("sex", groups, {"<x>": 1}, {}, "One group."), 0.9, 30).text
    assert ">–<" in text and "fewer than 30): &lt;x&gt; (1 row)." in text and "Gap metric" not in text


def test_estimates():
    assert [format_estimate(x) for x in (Estimate(0.5, 0.25, 0.75), Estimate(2), Estimate(None))] == [
        "0.500 (0.250 to 0.750)", "2", "–"]


def test_a_cost_that_nobody_set_is_called_the_error_rate():
    e = small_evaluation("binary")[0]
    text = metrics_table(e).text
    assert "Error rate" in text and "Cost per row" not in text and "money" not in text
    assert "cost" not in [m.name for m in key_metrics(e)]
    e.decision_settings = DecisionSettings(e.decision_settings.threshold, CostParams(false_negative=5))
    assert "Cost per row" in metrics_table(e).text and "cost" in [m.name for m in key_metrics(e)]


@pytest.mark.parametrize("found, said", [(["<a>: worse."], "&lt;a&gt;: worse."), ([], "No group that was looked at")])
def test_for_whom_the_model_is_worse(found, said):
    assert said in weak_segments_html(RunRecord("r", "", "", weak_segments=found)).text
    assert not weak_segments_html(RunRecord("r", "", "")).text


@pytest.mark.parametrize("n", [2, 8])
def test_many_groups_are_folded_away(n):
    groups = [GroupMetrics(f"g{i}", 60, {"roc_auc": Estimate(0.7)}) for i in range(n)]
    text = fairness_html(FairnessReport("sex", groups, {}, {}, "No gap."), 0.95, 50).text
    assert text.startswith("<p><b>No gap.</b></p>" + ("<details>" if n == 8 else "<p class"))


def test_the_first_reports_of_fairness_stand_open():
    reports = [FairnessReport(f"c{i}", [], {}, {}, f"Report {i}.") for i in range(8)]
    first, rest = fairness_section(reports, 0.95, 50).text.split("<details>")
    assert "Report 4." in first and "Report 5." in rest and "3 other columns and pairs" in rest
    assert "<details>" not in fairness_section(reports[:5], 0.95, 50).text
    assert "nobody has looked" in fairness_section([], 0.95, 50).text
