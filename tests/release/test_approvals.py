"Approvals of a release: whose count, whose do not, and what a person is told who may not give one."
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
import pytest
from msgspec.structs import replace
from support import stub_releases as stub

from mlops_nb.config.api_keys import create_api_key, read_api_keys, revoke_api_key
from mlops_nb.config.settings import read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.release.approvals import (
    APPROVAL_DAYS,
    Approval,
    approval_rules,
    give_approval,
    is_proven,
    list_approvals,
    missing_approvals,
    withdraw_approval,
)
from mlops_nb.release.release_plan import read_plan
from mlops_nb.release.releases import advance_release, settle_release, start_release, what_holds_back

SETTINGS = """[people]
owners = ana, bo, cai
on_duty = cai, dee
[production]
approve = start: 2 of owners; 25: 1 of on_duty; 25: 1 of owners; 100: 1 of on_duty
"""


def release(*shares, **how):
    steps = [SimpleNamespace(share=s) for s in shares or (.01, .05, .25, .5, 1)]
    return SimpleNamespace(**dict(dict(id="r1", endpoint="rows", environment="production", bundle="b" * 64,
                                       started_by="eve", status="open", steps=steps), **how))


class Team:
    "A project with rules, and people with keys."
    def __init__(self, root):
        self.root, self.file, self.keys = root, root / ".mlops/keys.json", {}
        (root / "settings.ini").write_text(SETTINGS)
        for name in ("ana", "bo", "cai", "dee", "eve"): self.add(name)

    def add(self, name, scopes=("operate",), **how):
        self.keys[name] = create_api_key(self.file, name, list(scopes), **how)

    def approve(self, name, step="start", r=None, **how):
        return give_approval(self.root, r or release(), step, self.keys[name], **how)

    def withdraw(self, name, step="start"): return withdraw_approval(self.root, release(), step, self.keys[name])
    def missing(self, step="start", r=None, **how): return missing_approvals(self.root, r or release(), step, **how)
    def counted(self, **how): return [(a.by, a.step) for a in list_approvals(self.root, release(), **how)]


@pytest.fixture
def team(tmp_path): return Team(tmp_path)


def write(team, data, kind="approval.given", subject="r1"): open_ledger(team.root).append(kind, subject, data)


def test_any_k_of_the_group_will_do_each_once(team):
    [sentence] = team.missing()
    assert sentence == ("The step start of r1 needs 2 more of owners (ana, bo, cai): `mlops-nb release approve r1 "
                        "--step start`.")
    assert team.approve("bo") == team.approve("bo") and len(open_ledger(team.root).entries("r1")) == 1
    assert "needs 1 more of owners" in team.missing()[0]
    team.approve("cai")
    assert team.missing() == [] and team.counted() == [("bo", "start"), ("cai", "start")]
    assert len(team.missing("25")) == 2 # an approval is for one step
    team.approve("cai", "25 %") # who is in two groups counts in both
    assert team.missing("25") == [] and team.missing(2) == [] and len(team.missing(4)) == 1


@pytest.mark.parametrize("shares, rules", [
    ((.01, .05, .25, .5, 1), [["start"], [], ["25", "25"], [], ["100"]]),
    ((.01, .1, .5, 1), [["start"], [], ["25", "25"], ["100"]]), # no step has just 25 percent
    ((1,), [["start", "25", "25", "100"]]), # all at once
    ((0, 0, .3, .3, .25, 1), [["start"], [], ["25", "25"], [], [], ["100"]]), # a shadow first
    ((.25, .25), [["start", "25", "25"], []]), ((.29999999999999999 - .05, 1), [["start", "25", "25"], ["100"]])])
def test_a_rule_belongs_to_the_step_that_reaches_its_share(team, shares, rules):
    settings, r = read_settings(team.root, {}), release(*shares)
    assert [[rule.step for rule in approval_rules(settings, r, i)] for i in range(len(shares))] == rules


def test_an_environment_without_rules_needs_nobody(team):
    for environment in ("staging", "development", "elsewhere"):
        r = release(environment=environment)
        assert team.missing(0, r) == team.missing("25", r) == []
        with pytest.raises(UserError, match="asks for an approval of the step start; there are none."):
            team.approve("bo", r=r)


def test_whoever_started_it_does_not_count(team):
    mine = release(started_by="ana")
    with pytest.raises(UserError, match="ana started r1, and cannot approve it too"): team.approve("ana", r=mine)
    team.approve("ana") # ana approves a release of eve, whose starter is then said to be ana
    team.approve("bo")
    [sentence] = team.missing(r=mine)
    assert "needs 1 more of owners (bo, cai)" in sentence and team.missing() == []
    (team.root / "settings.ini").write_text(SETTINGS.replace("start: 2 of", "start: 3 of"))
    assert "besides ana, who started it, the group has only 2; name more in" in team.missing(r=mine)[0]


def test_a_withdrawn_approval_counts_no_more_and_can_be_given_again(team):
    first = team.approve("bo")
    team.approve("ana")
    assert team.withdraw("bo") == first and team.counted() == [("ana", "start")]
    with pytest.raises(UserError, match="No approval of the step start of r1 by bo stands"): team.withdraw("bo")
    write(team, msgspec.structs.asdict(first)) # a copy of what was withdrawn
    assert team.counted() == [("ana", "start")]
    assert team.approve("bo") != first and sorted(team.counted()) == [("ana", "start"), ("bo", "start")]


def test_an_approval_expires(team):
    now = datetime.now(UTC)
    team.approve("bo", now=now)
    team.approve("ana", now=now - timedelta(days=APPROVAL_DAYS, seconds=1))
    assert team.counted() == [("bo", "start")]
    assert team.counted(now=now + timedelta(days=APPROVAL_DAYS, seconds=-1)) == [("bo", "start")]
    assert team.counted(now=now + timedelta(days=APPROVAL_DAYS)) == []
    team.approve("ana") # the old one is over, so this is a new one
    assert team.missing() == []


def test_what_is_forged_does_not_count(team):
    good = team.approve("bo")
    ana, bo = (next(k for k in read_api_keys(team.file) if k.name == name) for name in ("ana", "bo"))
    assert is_proven(good, bo) and not is_proven(good, ana)
    for change in (dict(release="r2"), dict(bundle="c" * 64), dict(step="25"), dict(by="ana"), dict(key=ana.id),
                   dict(by="ana", key=ana.id), dict(at="2026-01-01T00:00:00+00:00"),
                   dict(expires_at="2099-01-01T00:00:00+00:00"), dict(proof=""), dict(proof="0" * 64),
                   dict(proof=good.proof.upper())):
        changed = replace(good, **change)
        assert not is_proven(changed, bo)
        write(team, msgspec.structs.asdict(changed))
    whole = msgspec.structs.asdict(good)
    for odd in ({}, {**whole, "proof": None}, {**whole, "step": 25}, {**whole, "expires_at": "soon"}, {"by": "ana"}):
        write(team, odd)
    assert team.counted() == [("bo", "start")]
    other = give_approval(team.root, release(id="r2"), "start", team.keys["ana"]) # a true one, of another release
    write(team, msgspec.structs.asdict(other))
    assert team.counted() == [("bo", "start")]
    same = release(bundle="c" * 64) # nor of another bundle under the same id
    assert list_approvals(team.root, same) == []


def test_a_time_that_is_none_never_counts(team):
    from mlops_nb.release.approvals import _proof_of
    bo = next(k for k in read_api_keys(team.file) if k.name == "bo")
    for over in ("soon", "", "2099-01-01T00:00:00"): # the last has no time zone
        a = Approval("r1", "b" * 64, "start", "bo", bo.id, "2026-01-01T00:00:00+00:00", over)
        write(team, msgspec.structs.asdict(replace(a, proof=_proof_of(a, bo))))
    assert team.counted() == []


def test_a_key_that_is_gone_or_changed_takes_its_approvals_along(team):
    for name in ("ana", "bo", "cai"): team.approve(name)
    revoke_api_key(team.file, "ana")
    team.add("ana") # another key of the same name
    assert [by for by, _ in team.counted()] == ["bo", "cai"]
    text = team.file.read_text()
    team.file.write_text(text.replace('"name": "bo"', '"name": "bob"'))
    assert [by for by, _ in team.counted()] == ["cai"]
    (team.root / "settings.ini").write_text(SETTINGS.replace("owners = ana, bo, cai", "owners = ana, bo"))
    assert "needs 2 more" in team.missing()[0] # cai left the group


@pytest.mark.parametrize("how, says", [
    (dict(scopes=["predict", "admin"]), "The key 'ana' lacks the scope operate"),
    (dict(expires_at=datetime(2026, 1, 1, tzinfo=UTC)), "The key 'ana' has expired"),
    (dict(endpoints=["other"]), "The key 'ana' is not for the endpoint rows")])
def test_a_key_that_is_not_for_this_approves_nothing(team, how, says):
    revoke_api_key(team.file, "ana")
    team.add("ana", **how)
    with pytest.raises(UserError, match=says): team.approve("ana")
    with pytest.raises(UserError, match=says): team.withdraw("ana")
    assert team.counted() == []


@pytest.mark.parametrize("who, step, says", [
    ("dee", "start", "dee is not in owners; the step start is theirs to approve"),
    ("eve", "25", "eve started r1"), ("bo", "50", "asks for an approval of the step 50; known are start, 25, 100"),
    ("bo", "first", "'first' is no step"), ("bo", 0, "'0' is no step"), ("bo", "100", "bo is not in on_duty")])
def test_an_approval_that_would_not_count_is_refused_with_a_reason(team, who, step, says):
    with pytest.raises(UserError, match=says): team.approve(who, step)
    assert open_ledger(team.root).entries() == []


@pytest.mark.parametrize("text", ["", "x", "a.b"])
def test_an_unknown_key_approves_nothing(team, text):
    with pytest.raises(UserError, match="keys.json has no such API key") as error:
        give_approval(team.root, release(), "start", text)
    assert "\n" not in str(error.value)


def test_a_release_that_is_over_takes_no_approval(team):
    for status in ("promoted", "rolled_back", "void", "withdrawn"):
        with pytest.raises(UserError, match=f"r1 is over .{status}."): team.approve("bo", r=release(status=status))


def test_no_secret_is_in_the_ledger(team):
    for name in ("ana", "bo"): team.approve(name)
    team.withdraw("bo")
    held = b"".join(p.read_bytes() for p in (team.root / ".mlops").glob("ledger.db*")).decode("latin-1")
    assert "approval.withdrawn" in held
    for secret in [t for text in team.keys.values() for t in (text, text.split(".")[1])] + [
            k.sha256 for k in read_api_keys(team.file)]: assert secret not in held


def test_a_release_waits_at_each_step_for_whoever_must_agree(tmp_path, monkeypatch):
    "The driver goes by what the ledger says at that moment: forged or withdrawn approvals open no step."
    stub.use_stubs(monkeypatch.setattr)
    root = stub.make_project(tmp_path / "p")
    rules = "start: 1 of owners; 25: 1 of owners"
    (root / "settings.ini").write_text("[release]\nendpoint = rows\nenvironment = production\n[people]\n"
                                       f"owners = ana, bo\n[production]\napprove = {rules}\n")
    key = create_api_key(root / ".mlops/keys.json", "bo", ["operate"])
    started = start_release(root, stub.B, by="ana")
    assert started.step < 0 and read_plan(stub.plan_of(root)).release is None  # nothing is changed yet
    forged = dict(release=started.id, bundle=stub.B, step="start", by="bo", key=key.split(".")[0], at="2026-01-01",
                  expires_at="2099-01-01T00:00:00+00:00", proof="0" * 64)
    open_ledger(root).append("approval.given", started.id, forged)
    assert settle_release(root, started).step < 0
    give_approval(root, started, "start", key)
    first = settle_release(root, started)
    assert first.step == 0
    promote = stub.Verdict("promote")
    assert advance_release(root, first, promote).step == 0  # the step to 50 percent reaches the rule of 25
    given = give_approval(root, first, 25, key)
    withdraw_approval(root, first, 25, key)
    open_ledger(root).append("approval.given", first.id, msgspec.structs.asdict(given))  # the line that was withdrawn
    assert advance_release(root, first, promote).step == 0
    assert "The step 25 of" in what_holds_back(root, first)[0]
    give_approval(root, first, 25, key)
    assert advance_release(root, first, promote).step == 1
    withdraw_approval(root, first, 25, key)  # too late for the step that has begun
    assert advance_release(root, first, promote).status == "promoted"
