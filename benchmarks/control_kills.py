"Controllers killed at every step and at random: what became of the runs."
import os
import sys
import time

from common import ROOT, quick, report, row, workplace

sys.path.insert(0, str(ROOT / "tests"))
from support.controlled_project import end, lines, repository, start_controller, until
from support.controller_kills import kill_at_entries, kill_at_random, new_run, settled
from support.postgres_server import new_database, postgres_programs, postgres_server

from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import list_runs

ENTRIES, KILLS = 33, 200 # what a run writes into the ledger, and one entry of the next; kills for each database
ENV = dict(STEP_SECONDS="0.1", MLOPS_NB_CONTROL_LEASE_SECONDS="5")


def trial(root, databases, n_controllers, entries, at_random):
    "Kill controllers, and let those that are left end all runs."
    os.environ |= ENV | dict(zip(("MLOPS_NB_LEDGER_URI", "MLOPS_NB_CONTROL_DATABASE"), databases, strict=True))
    clock, kills = time.perf_counter(), kill_at_entries(repository(root), entries)
    controllers = [start_controller(root) for _ in range(n_controllers)]
    try:
        kills += kill_at_random(root, controllers, at_random)
        wrong = settled(root, databases[1], controllers)
    finally:
        for c in controllers: end(c)
    return dict(kills=kills, at=len(set(lines(root / "kills"))), wrong=wrong, seconds=time.perf_counter() - clock,
                runs=list_runs(open_ledger(root), 10_000))


def away(root, server, control_uri, seconds):
    "PostgreSQL stops in the middle of a step, and once more while what a killed controller had begun is taken over."
    os.environ |= ENV | dict.fromkeys(("MLOPS_NB_LEDGER_URI", "MLOPS_NB_CONTROL_DATABASE"), control_uri)
    clock, gate = time.perf_counter(), repository(root) / "hold gate"
    gate.touch()
    controllers = [start_controller(root) for _ in range(3)]
    try:
        new_run(root, "one")
        until(lambda: "gate 1" in lines(root / "begun"))
        server.stop()
        time.sleep(seconds)
        gate.unlink()
        server.start()
        kill_at_random(root, controllers, 1)
        server.stop()
        server.start()
        wrong = settled(root, control_uri, controllers)
    finally:
        for c in controllers: end(c)
    return dict(kills=1, at=0, wrong=wrong, seconds=time.perf_counter() - clock,
                runs=list_runs(open_ledger(root), 10_000))


def line(what, found):
    ended = sum(r.status == "succeeded" for r in found["runs"])
    figure = f"{found['kills']} kills, {len(found['runs'])} runs, of which {ended} ended as they should"
    return row(what, figure, ratio=str(len(found["wrong"])), bound="0 effects twice, lost, or not as the ledger says",
               met=ended == len(found["runs"]) and not found["wrong"])


def main():
    entries, kills = (range(9, 11), 8) if quick() else (range(1, ENTRIES + 1), KILLS)
    rows, notes = [], []
    def add(what, found):
        rows.append(line(what, found))
        notes.append(f"{what}: {found['seconds']:.0f} s; at {found['at']} places of a run, the rest at random.")
        for sentence in found["wrong"]: print(sentence, file=sys.stderr)
    with workplace() as tmp:
        places = [f"sqlite:///{tmp}/{name}.db" for name in ("ledger", "control")]
        add("one controller at a time, then two; SQLite",
            trial(tmp / "sqlite", places, 2, entries, kills - 2 * len(entries)))
    if programs := postgres_programs():
        with workplace() as tmp, postgres_server(programs) as server:
            os.environ["PGPASSWORD"] = server.password
            places = [new_database(server, "control")] * 2
            add("three controllers; PostgreSQL", trial(tmp / "postgres", places, 3, (), kills))
            add("three controllers; PostgreSQL away for a minute, and again while work is taken over",
                away(tmp / "away", server, new_database(server, "away"), 5 if quick() else 60))
    report(rows, [
        *notes,
        "A kill is SIGKILL of a controller; another, or the next, goes on. The steps are commands of a tenth of a "
        "second in place of DVC's; git, worktrees, DBOS and the ledger are as always.",
        "Compared at the end: ends of runs, effects, commits of results, what was released, working trees, and DBOS's "
        "workflows."], ["what", "figure", "", "", "found", "bound", "met"])


if __name__ == "__main__": main()
