"""Releases of bundles that hold nothing: a project, its driver, and a process that is killed on the way.

`python -m support.stub_releases ROOT ENDING BUNDLE [N]` (from `tests`) drives a release to its end and kills itself
right before its N-th effect.
"""
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import mlops_nb.core.files as files
import mlops_nb.release.releases as releases
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import Ledger
from mlops_nb.release.release_plan import Variant, promote_bundle, read_plan, replace_plan

A, B, C = ("abc"[i] * 64 for i in range(3))
CONTRACTS = {A: ("binary", ["no", "yes"]), B: ("binary", ["no", "yes"]), C: ("multiclass", ["a", "b", "c"])}
CANARY = dict(strategy="canary", steps=[5, 50, 100], min_step_hours=0, min_units=1)


def write_release_params(root, **release):
    "As JSON, which is YAML too; all else has its default: a file that is read in a tenth of the time."
    (root / "params.yaml").write_text(json.dumps({"release": release}))


def make_project(root: Path, **release) -> Path:
    "A project in which the bundle A answers, and one variant of its own."
    root.mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").write_text("[release]\nendpoint = rows\n")
    write_release_params(root, **CANARY | release)
    plan = promote_bundle(plan_of(root), "rows", A)
    replace_plan(plan_of(root), type(plan)("rows", 0, [*plan.variants, Variant("mine", A, 0.0)]))
    return root


def plan_of(root): return root / "releases/rows.json"


class Verdict(releases.Struct):
    action: str
    reason: str = "by the test"
    void: bool = False


def scripted_judge(ending):
    "A judge that promotes each step, or ends the second one as it is told to."
    def judge(root, release):
        if ending == "promoted" or release.step == 0: return Verdict("promote")
        return Verdict("roll_back", void=ending == "void")
    return judge


def _find_bundle(name, store):
    found = [b for b in CONTRACTS if b.startswith(name)]
    if not found: raise UserError(f"There is no bundle {name} in {store}.")
    return store / found[0]


def _schema_of(folder):
    task, classes = CONTRACTS[folder.name]
    return SimpleNamespace(task=task, classes=classes, quantiles=None, entity="customer")


def use_stubs(setattr, ending="promoted"):
    "Let releases take bundles that hold nothing, and no registry."
    setattr(releases, "find_bundle", _find_bundle)
    setattr(releases, "_schema_of", _schema_of)
    setattr(releases, "require_trusted", lambda *_: None)
    setattr(releases, "reconcile_registry", lambda root: "")
    setattr(releases, "_diagnose", lambda root, release: None)
    setattr(releases, "_judge", scripted_judge(ending))


def before_each_effect(setattr, hook):
    "Call `hook` before each file is replaced, each entry is written and the registry is touched."
    def hooked(f):
        def call(*args, **kwargs):
            hook()
            return f(*args, **kwargs)
        return call
    setattr(files, "os", SimpleNamespace(**{**vars(os), "replace": hooked(os.replace)}))
    setattr(Path, "replace", hooked(Path.replace))
    setattr(Ledger, "append", hooked(Ledger.append))
    setattr(releases, "reconcile_registry", hooked(releases.reconcile_registry))


def drive(root, bundle=B):
    "What a person does: start, and watch; both again after a crash."
    done = [r for r in releases.list_releases(root) if r.status != "open"]
    if done: return done[-1]
    try: releases.start_release(root, bundle, by="ana")
    except UserError as e:
        if "has an open release" not in str(e): raise
    return releases.watch_release(root, every_seconds=0)


def outcome(root):
    "What a release left: the plan without its revision, and the entries of the ledger."
    plan = read_plan(plan_of(root))
    entries = releases.open_ledger(root).entries()
    id = entries[0].subject
    facts = [(e.kind, e.data.get("step"), e.data.get("action"), e.data.get("reason"), e.key.replace(id, "ID"))
             for e in entries]
    return [(v.name, v.bundle, v.weight) for v in plan.variants], plan.sticky_key, plan.salt, plan.release, facts


def main(root, ending, bundle, n=None):
    use_stubs(setattr, ending)
    if n is not None:
        left = [int(n)]
        def hook():
            left[0] -= 1
            if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)
        before_each_effect(setattr, hook)
    if bundle == "-": releases.watch_release(Path(root), every_seconds=0.05)
    elif ending == "start": releases.start_release(Path(root), bundle)
    else: drive(Path(root), bundle)


if __name__ == "__main__":
    try: main(*sys.argv[1:])
    except UserError as e: sys.exit(f"error: {e}")
