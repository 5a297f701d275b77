"Controllers that are killed while they work, one after another; afterwards the ledger is held against what is there."
import random
import time
from collections import Counter

from mlops_nb.control.controller import LEASE_LOST
from mlops_nb.control.run_workflow import request_run
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import RUN_ENDS, list_runs, read_run, run_status

from .controlled_project import end, git, lines, start_controller, until


def new_run(root, text):
    "Ask for a run of other data."
    (root / "data.dvc").write_text(f"version {text}\n")
    return request_run(root)[0]


def ended(root, run): return run_status(open_ledger(root), run) in RUN_ENDS


def kill_at_entries(root, numbers):
    """Kill a controller at its entries of these numbers, before it is written and after; the next controller ends what
    this one had begun, and is killed itself. Gives the number of kills."""
    whens = [f"{when} {number}" for number in numbers for when in ("before", "after")]
    for when in whens:
        run, process = new_run(root, when), start_controller(root, KILL_AT=when)
        def killed(process=process, when=when):
            nonlocal run
            if ended(root, run): run = new_run(root, f"{when} after {run}")
            return process.poll()
        assert until(killed) == -9
    return len(whens)


def keep_alive(root, controllers):
    "Start those again that found their lease gone, as a service manager does it; on a busy machine it may be."
    for i, c in enumerate(controllers):
        if c.poll() is None: continue
        assert c.returncode == LEASE_LOST, (root / "log.txt").read_text()[-3000:]
        controllers[i] = start_controller(root)


def kill_at_random(root, controllers, kills, seed=0, longest=1.0, work=2):
    "Kill one of several controllers at a random moment, so many times, with work for them at each."
    rng, runs = random.Random(seed), []
    for i in range(kills):
        open_runs = [r for r in runs if not ended(root, r)]
        if len(open_runs) < work: runs.append(new_run(root, f"random {seed} {i}"))
        begun = len(lines(root / "begun"))
        def more(begun=begun):
            keep_alive(root, controllers)
            return len(lines(root / "begun")) > begun
        until(more)
        time.sleep(rng.uniform(0, longest))
        victim = rng.randrange(len(controllers))
        end(controllers[victim])
        controllers[victim] = start_controller(root)
    return kills


def until_all_ended(root, controllers, seconds=180):
    def over():
        keep_alive(root, controllers)
        return all(r.status in RUN_ENDS for r in list_runs(open_ledger(root), 10_000))
    until(over, seconds)


def unfinished_workflows(uri):
    "Ids of the workflows that DBOS has as begun or waiting."
    from sqlalchemy import create_engine, text
    table = "dbos.workflow_status" if uri.startswith("postgresql") else "workflow_status"
    query = text(f"SELECT workflow_uuid FROM {table} WHERE status IN ('PENDING', 'ENQUEUED')")
    with create_engine(uri.replace("postgresql://", "postgresql+psycopg://")).connect() as db:
        return [*db.execute(query).scalars()]


def result_commits(root):
    "Run -> the commit of its results."
    found = git(root, "for-each-ref", "--format=%(refname:lstrip=-1) %(objectname)", "refs/mlops-nb/runs")
    return dict(line.split() for line in found.splitlines())


def disagreements(root, control_uri):
    "What the ledger says and is not so, or is so and the ledger does not say; a sentence each."
    ledger, refs, released = open_ledger(root), result_commits(root), Counter(lines(root / ".mlops" / "released"))
    runs = [read_run(ledger, r.id) for r in list_runs(ledger, 10_000)]
    entries = ledger.entries(kinds=("effect.done", "run.ended"))
    keys = Counter((e.subject, e.key.partition("/ended/")[0]) for e in entries)
    found = [f"{r.id} is {r.status}: {r.message}" for r in runs if r.status != "succeeded"]
    found += [f"{what} of {run} was written down {n} times" for (run, what), n in keys.items() if n != 1]
    found += [f"{r.id} has its results in {refs.get(r.id)}" for r in runs if r.facts.get("results") != refs.get(r.id)]
    found += [f"{r.id} was released {released[r.id]} times" for r in runs if released[r.id] != 1]
    found += [f"{name} is nobody's" for name in {*refs, *released} - {r.id for r in runs}]
    found += [f"the working tree {p.name} is left" for p in (root / ".mlops" / "runs").glob("r*")]
    return found + [f"DBOS has {id} as unfinished" for id in unfinished_workflows(control_uri)]


def settled(root, control_uri, controllers, seconds=180):
    "Wait until all runs have ended and what is there is as the ledger says; what is not so in that time."
    until_all_ended(root, controllers, seconds)
    limit = time.monotonic() + 30 # the last look at a run comes after its end
    while (found := disagreements(root, control_uri)) and time.monotonic() < limit: time.sleep(0.2)
    return found
