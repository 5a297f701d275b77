"Pruning never deletes what anything names, deletes nothing where that is not known, and survives being killed."
import json
import os
import shutil
import time

import pytest

from mlops_nb.bundle.store import lookup_table_path
from mlops_nb.config.params import ReleaseParams
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.release.lineage import bundle_origin
from mlops_nb.release.release_plan import (
    ReleasePlan,
    Variant,
    keep_last_good,
    promote_bundle,
    read_plan,
    record_path,
    write_plan,
)
from mlops_nb.release.retention import (
    describe_prune,
    list_pins,
    needed_bundles,
    pin_bundle,
    prune_store,
    unpin_bundle,
)
from mlops_nb.release.strategies import Release, Step

A, B, C, D, E, F = (c * 64 for c in "abcdef")


def store(root, *ids, where="bundles"):
    "Folders that stand for bundles; retention opens none."
    for id in ids:
        (root / where / id).mkdir(parents=True)
        write_json(root / where / id / "provenance.json", dict(git_commit=id[:40], params=dict(seed=1)))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n")
    store(tmp_path, A, B, C, D, E, F)
    return tmp_path


def deleted(root, **how): return [b.bundle for b in prune_store(root, **{"keep_days": 0} | how).deleted]


def reasons(root, bundle): return "; ".join(needed_bundles(root).get(bundle, []))


def test_what_anything_names_is_kept_and_the_rest_deleted(root):
    plan = root / "releases/churn.json"
    for bundle in (A, B): promote_bundle(plan, "churn", bundle)
    promote_bundle(root / "releases/other.json", "other", C)  # another endpoint, the same store
    pin_bundle(root, D[:9], "for the audit", by="ana")
    write_json(root / "artifacts/bundle/manifest.json", dict(id=E))
    assert deleted(root, dry_run=True) == [F] and (root / "bundles" / F).is_dir()
    report = prune_store(root, keep_days=0)
    assert [b.bundle for b in report.deleted] == [F] and report.freed_bytes > 0
    assert sorted(p.name for p in (root / "bundles").iterdir()) == [A, B, C, D, E]
    text = describe_prune(report)
    for part in ("previous of churn", "champion of churn", "champion of other", "pinned by ana: for the audit",
                 "of the last run", f"deleted {F[:12]}"): assert part in text, part
    assert deleted(root) == []


def test_the_last_good_plan_and_gits_record_keep_what_they_name(root):
    plan = root / "releases/churn.json"
    for bundle in (A, B): promote_bundle(plan, "churn", bundle)
    plan.unlink()
    shutil.rmtree(root / "releases/history")
    keep_last_good(plan, ReleasePlan("churn", 3, [Variant("champion", C)]))
    assert record_path(plan).exists() and deleted(root) == [D, E, F]
    assert "last good plan" in reasons(root, C) and "was released" in reasons(root, A)


def test_an_open_release_keeps_its_bundle_and_what_it_goes_back_to(root):
    base = ReleasePlan("churn", 1, [Variant("champion", A), Variant("previous", B, 0.)])
    write_plan(root / "releases/churn.json", ReleasePlan("churn", 2, [Variant("champion", A)]))
    release = Release(id="r1", endpoint="churn", environment="development", bundle=C, champion=A, base=base,
                      steps=[Step("canary", .05), Step("canary", 1.)], started_at="2026-11-03T12:00:00+00:00",
                      started_by="ana", first_revision=1, revision=2, params=ReleaseParams())
    ledger = open_ledger(root)
    ledger.append("release.started", "r1", release)
    assert deleted(root, dry_run=True) == [D, E, F] and "open release r1" in reasons(root, B)
    ledger.append("release.rolled_back", "r1", dict(reason="x", revision=3))
    assert deleted(root) == [B, C, D, E, F]


def test_a_plan_of_any_environment_keeps_a_bundle_in_all_stores(root):
    write_plan(root / "environments/production/releases/churn.json", ReleasePlan("churn", 1, [Variant("champion", B)]))
    store(root, B, C, where="environments/production/bundles")
    assert deleted(root) == [A, C, D, E, F, C]
    assert [p.name for p in (root / "environments/production/bundles").iterdir()] == [B]
    assert "(production)" in reasons(root, B)


@pytest.mark.parametrize("damage", ["plan", "record", "ledger", "negative"])
def test_where_it_is_not_known_what_is_needed_nothing_is_deleted(root, damage):
    plan = root / "releases/churn.json"
    promote_bundle(plan, "churn", A)
    pin_bundle(root, B)
    if damage == "plan": plan.write_text('{"endp')
    if damage == "record": (plan.unlink(), record_path(plan).write_text("[{"))
    if damage == "ledger": (root / ".mlops/ledger.db").write_bytes(b"no database" * 999)
    with pytest.raises(UserError): prune_store(root, keep_days=-1 if damage == "negative" else 0)
    assert len(list((root / "bundles").iterdir())) == 6


def test_the_young_and_the_mentioned_are_kept(root, monkeypatch):
    import mlops_nb.release.retention as module
    old = time.time() - 100 * 86_400
    real = module._age_days
    stat = os.stat_result

    class Aged:
        "A folder whose times are those of a hundred days ago."
        def __init__(self, path): self.path = path

        def stat(self):
            s = list(self.path.stat())
            return stat([*s[:7], old, old, old])
    monkeypatch.setattr(module, "_age_days", lambda folder, mentions, now: real(
        folder if folder.name == A else Aged(folder), mentions, now))
    open_ledger(root).append("staging.passed", B)
    assert deleted(root, keep_days=90) == [C, D, E, F]
    assert sorted(p.name for p in (root / "bundles").iterdir()) == [A, B]
    assert "90 are kept" in describe_prune(prune_store(root, keep_days=90))


def test_what_was_deleted_is_still_explained_and_its_table_is_gone(root):
    table = lookup_table_path(A, root / "tables")
    table.parent.mkdir()
    table.touch()
    prune_store(root, keep_days=0)
    origin = bundle_origin(root, A)
    assert (origin.stored, origin.git_commit, origin.params) == (False, A[:40], dict(seed=1)) and not table.exists()


def test_killed_while_it_deletes_it_goes_on(root, monkeypatch):
    def killed(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr("mlops_nb.release.retention.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt): prune_store(root, keep_days=0)
    left = sorted(p.name for p in (root / "bundles").iterdir())
    assert left == [f".{A}.pruned", B, C, D, E, F]
    assert deleted(root) == [B, C, D, E, F] and not list((root / "bundles").iterdir())
    pruned = [e.subject for e in open_ledger(root).entries(kinds=("bundle.pruned",))]
    assert sorted(pruned) == [A, B, C, D, E, F]


def test_only_bundles_of_the_store_are_looked_at(root, tmp_path):
    (root / "bundles/released" / A).mkdir(parents=True)
    (root / "bundles/notes").mkdir()
    (root / "elsewhere").mkdir()
    (root / "bundles" / ("0" * 64)).symlink_to(root / "elsewhere")
    assert deleted(root) == [A, B, C, D, E, F]
    for left in (f"bundles/released/{A}", "elsewhere", "bundles/notes"): assert (root / left).is_dir()


def test_pins_are_given_once_taken_back_and_told(root):
    first = pin_bundle(root, A, "why", by="ana")
    assert pin_bundle(root, A, "again", by="ben").seq == first.seq and list_pins(root)[A].by == "ana"
    with pytest.raises(UserError, match="holds no bundle"): pin_bundle(root, "1" * 64)
    for wrong in ("", "1"):
        with pytest.raises(UserError, match="pinned bundles begin with"): unpin_bundle(root, wrong)
    assert unpin_bundle(root, A[:3], by="ben").by == "ben" and not list_pins(root)
    pin_bundle(root, A)
    assert [e.kind for e in open_ledger(root).entries(A)] == ["bundle.pinned", "bundle.unpinned", "bundle.pinned"]


def test_no_release_starts_meanwhile(root, monkeypatch):
    "The plan is written only after what it names was either kept or gone for good."
    import threading

    import mlops_nb.release.retention as module
    plan, done = root / "releases/churn.json", []
    promote_bundle(plan, "churn", A)
    real, begun = module._delete, threading.Event()

    def slow(*args):
        begun.set()
        done.append("deleted")
        real(*args)
    monkeypatch.setattr(module, "_delete", slow)

    def release():
        begun.wait(60)
        promote_bundle(plan, "churn", B)
        done.append("released")
    thread = threading.Thread(target=release)
    thread.start()
    prune_store(root, keep_days=0)
    thread.join(60)
    assert done == [*["deleted"] * 5, "released"] and read_plan(plan).variants[0].bundle == B
    assert json.loads(plan.read_text())["revision"] == 2 and read_json(plan, ReleasePlan).endpoint == "churn"
