"A git project with data as far as triggers look at it, and runs that end when a test says so."
from mlops_nb.control.trigger_evaluation import evaluate_triggers
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import end_run, list_runs, open_runs

from .controlled_project import git, repository


def project(root, triggers="retrain: {when: {any: [{new_data: {min_rows: 100}}]}}"):
    root = repository(root)
    with open(root / ".gitignore", "a") as f: f.write("/data/\n/exports/\n")
    (root / "triggers.yaml").write_text(triggers)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "triggers")
    return root


def data(root, **files):
    "New content of data/, as ingest writes it down."
    rows = [dict(name=name, sha256=f"{name:x<64}", rows=n) for name, n in files.items()]
    (root / "data").mkdir(exist_ok=True)
    write_json(root / "data" / "manifest.json", dict(files=rows))
    (root / "data.dvc").write_text(f"outs: {files}\n")


def outcome(root, at=None, name="retrain"):
    found = evaluate_triggers(root, at)[name]
    return found.outcome, found.clause


def finish(root, status="succeeded"):
    ledger = open_ledger(root)
    for run in open_runs(ledger): end_run(ledger, run, ledger.begin_attempt(run, "host-a"), status, "So.")


def runs(root): return list_runs(open_ledger(root), 1000)
