"Notices: once by key, bounded, and news to each trigger until it has asked for a run."
from threading import Thread

import pytest
from support.triggered_project import data, finish, outcome, project, runs

from mlops_nb.control.notices import MAX_NOTICE_BYTES, newest_notices, record_notice
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger

TRIGGER = "retrain: {when: {any: [{notice: {source: warehouse}}]}}"


@pytest.mark.parametrize("source, facts, key, sentence", [
    ("", {}, "", "no name of a source"), ("a/b", {}, "", "no name"), ("x" * 64, {}, "", "no name"),
    ("a\n", {}, "", "no name"), ("w", {"x": "y" * MAX_NOTICE_BYTES}, "", "too large"), ("w", {}, "k" * 201, "shorter")])
def test_what_is_refused(tmp_path, source, facts, key, sentence):
    (tmp_path / "settings.ini").touch()
    with pytest.raises(UserError, match=sentence): record_notice(tmp_path, source, facts, key=key)
    assert not open_ledger(tmp_path).entries()


def test_the_same_key_is_the_same_notice(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    (tmp_path / "settings.ini").touch()
    threads = [Thread(target=record_notice, args=(tmp_path, "w", {"n": i}, "ana", "day 1")) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    record_notice(tmp_path, "v", key="day 1")
    found = open_ledger(tmp_path).entries(kinds=("notice.received",))
    assert sorted(e.subject for e in found) == ["v", "w"] and newest_notices(open_ledger(tmp_path)).keys() == {"v", "w"}


def test_a_notice_asks_for_one_run(tmp_path):
    root = project(tmp_path / "p", TRIGGER)
    assert outcome(root) == ("not_due", "when")
    data(root, a=1)
    record_notice(root, "other")
    assert outcome(root) == ("not_due", "when")
    for _ in range(3): record_notice(root, "warehouse", {"rows": 1}, "loader", key="1")
    assert outcome(root) == ("fired", "notice") and outcome(root) == ("not_due", "when")
    finish(root)
    record_notice(root, "warehouse", key="1")
    assert outcome(root) == ("not_due", "when"), "it was answered"
    record_notice(root, "warehouse", key="2")
    assert outcome(root) == ("same_run", "notice") and outcome(root) == ("not_due", "when"), "nothing had changed"
    assert len(runs(root)) == 1


def test_a_notice_that_comes_during_a_run_has_the_next_one(tmp_path):
    root = project(tmp_path / "p", TRIGGER)
    outcome(root)
    data(root, a=1)
    record_notice(root, "warehouse")
    assert outcome(root)[0] == "fired"
    data(root, a=1, b=2)
    record_notice(root, "warehouse")
    assert outcome(root) == ("suppressed", "running")
    finish(root, "failed")
    assert outcome(root) == ("fired", "notice") and len(runs(root)) == 2


def test_a_notice_between_the_look_and_the_entry_is_not_lost(tmp_path, monkeypatch):
    "It comes while the run is asked for, which goes by facts from before it."
    from mlops_nb.control import trigger_evaluation
    root = project(tmp_path / "p", TRIGGER)
    outcome(root)
    data(root, a=1)
    record_notice(root, "warehouse", key="1")
    plain = trigger_evaluation.request_run
    def request(*args, **more):
        found = plain(*args, **more)
        record_notice(root, "warehouse", key="2")
        return found
    with monkeypatch.context() as m:
        m.setattr(trigger_evaluation, "request_run", request)
        assert outcome(root)[0] == "fired"
    assert outcome(root) == ("suppressed", "running")
