"slo.yaml: what it may say, and what is said of one that is wrong."
import pytest

from mlops_nb.config.slo import SLO_PERIOD_DAYS, default_slo_yaml, read_slos, write_default_slos
from mlops_nb.core.errors import UserError

GOOD = """version: prometheus/v1
service: churn
labels: {team: retention}
slos:
  - name: availability
    objective: 99.9
    sli: {events: {error_query: 'sum(rate(a[{{.window}}]))', total_query: 'sum(rate(b[{{ .window }}]))'}}
    alerting: {name: Answers, page_alert: {labels: {route: night}}, ticket_alert: {disable: true}}
"""


def read(folder, text):
    (folder / "slo.yaml").write_text(text)
    return read_slos(folder)


def test_a_file_of_sloth_is_read(tmp_path):
    slo = read(tmp_path, GOOD).slos[0]
    assert (slo.error_budget, slo.min_bad_events, slo.alerting.ticket_alert.disable) == (.001, 1, True)
    assert SLO_PERIOD_DAYS == 30
    assert read_slos(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(("old", "new", "says"), [
    ("objective: 99.9", "objective: 100", "objective is 100"),
    ("objective: 99.9", "objective: 0", "objective is 0"),
    ("{{.window}}", "5m", "error_query has no {{.window}}"),
    ("name: availability", "name: 'a b'", "name is 'a b'"),
    ("name: Answers", "name: 'an alert'", "is no name of an alert"),
    ("alerting: {", "alerting: {annotations: {min_bad_events: '0'}, ", "min_bad_events is '0'"),
    ("version: prometheus/v1", "version: prometheus/v2", "version is 'prometheus/v2'"),
    ("sli: {events:", "sli: {plugin: {id: x}, events:", "there is no key 'plugin'"),
    ("    sli: {events", "    sli: {raw: {error_ratio_query: 'r[{{.window}}]'}, events", "give one of them"),
    ("service: churn", "service: churn\nowner: me", "there is no key 'owner'")])
def test_what_is_wrong_is_said(tmp_path, old, new, says):
    with pytest.raises(UserError) as error: read(tmp_path, GOOD.replace(old, new, 1))
    assert says in str(error.value) and "slo.yaml" in str(error.value)


def test_two_of_a_name_are_refused(tmp_path):
    item = GOOD[GOOD.index("  - name"):]
    with pytest.raises(UserError, match="several SLOs called availability"): read(tmp_path, GOOD + item)


def test_the_first_file_is_read_and_never_overwritten(tmp_path):
    path = write_default_slos(tmp_path, "churn")
    assert {s.name for s in read_slos(tmp_path).slos} >= {"availability", "availability-probe", "latency", "quality"}
    path.write_text(GOOD)
    with pytest.raises(UserError, match="is there already"): write_default_slos(tmp_path, "churn")
    assert path.read_text() == GOOD


def test_the_repository_has_the_default():
    from support.imports import ROOT
    assert (ROOT / "slo.yaml").read_text() == default_slo_yaml("simulated_churn")
