"""Days in which nobody types a command: new data, a killed controller, a bad batch, a real drift and a bad model; once
on the embedded databases with one controller, and once on PostgreSQL with three."""
import json
import os
import re
import sys
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import polars as pl
from common import ROOT, fewer_subscribers, fresh_copy, quick, report, run, workplace

sys.path.insert(0, str(ROOT / "tests"))
from support.continuous_story import Customers, World, commit, effects, instances, months
from support.postgres_server import new_database, postgres_programs, postgres_server
from support.replayed_traffic import DAY, ReplayedTraffic, replay
from support.services import free_port

from mlops_nb.config.settings import read_settings
from mlops_nb.monitor.alerts import read_alerts

N_SUBSCRIBERS, N_FIRST, N_MONTHS = 1500, 8, 11 # months that are there at the start, and all
HEAD = ("what", "expected", "SQLite, one controller", "PostgreSQL, three controllers", "", "", "met")
TRIGGERS = """
retrain:
  when:
    any:
    - new_data: {min_rows: 100}
    - code: changed
"""
PARAMS = {"n_months: 18": f"n_months: {N_FIRST}", "min_gain: 0.0  # share": "min_gain: -0.5  # share",
          "max_skill_loss: 0.02": "max_skill_loss: 0.5"} # with few rows, what is about as good may pass
EXPECTED = {"first model": "succeeded", "new data; the controller is killed while it trains": "succeeded in attempt 2",
            "answers then": "the new model", "a batch of which too many rows violate the schema": "failed",
            "answers then, still": "the model before", "alerts": "run_failed",
            "the batch, corrected and sent again": "succeeded", "other customers ask": "drift is found",
            "data of that time": "succeeded", "somebody commits params with which little is learned": "rejected",
            "answers in the end": "the model before", "requests without an answer": "0",
            "effects done twice": "0", "runs in the ledger, by the API of the page and on disk": "6, 6, 6",
            "runs that the next duty report has, with how they ended": "6"}
SCHEDULE = "\n[schedule.duty]\nnotebook = nbs/reports/duty.ipynb\ncron = * * * * *\nmissed = skip\n"


def new_project(place):
    "A clone with few subscribers and its triggers; nothing has run in it."
    place.mkdir()
    fresh_copy(place)
    run("git", "checkout", "-q", "-b", "main", cwd=place)
    fewer_subscribers(place, N_SUBSCRIBERS)
    change_params(place, PARAMS)
    (place / "triggers.yaml").write_text(TRIGGERS)
    with open(place / "settings.ini", "a") as f: f.write(SCHEDULE)
    run("mlops-nb", "simulate", cwd=place)
    commit(place, "the project")


def change_params(root, changes):
    path, text = root / "params.yaml", (root / "params.yaml").read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


def broken(rows):
    "A file whose producer has lost the sign of the bills."
    return rows.with_columns(monthly_bill=-1 - pl.col("monthly_bill").abs())


def replay_days(world, n_days, usual, planned, pools):
    "Traffic of the days before this one, counted and checked as in the hours in which it came."
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - n_days * DAY
    settings = read_settings(world.root)
    traffic = ReplayedTraffic(world.root, world.root / settings.release.store / world.champion, usual,
                              settings.release.endpoint, rows_per_hour=120, label_delay=timedelta(days=30), lease=9)
    replay(world.root, traffic, start, n_days, planned, pools)


def open_rules(world): return {a.finding.rule for a in read_alerts(world.ledger).held()}


def runs_of_report(world):
    "How many runs a duty report has that was begun after now, with how they ended."
    def reports(): return len(world.ledger.entries("duty", ("schedule.ended",)))
    n = reports()
    world.until(lambda: reports() > n + 1, "two duty reports")
    page = max((world.root / "reports" / "scheduled" / "duty").glob("*/duty.html")).read_text()
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    return sum(bool(re.search(rf"run {r.id} \S+ {r.status}\b", text)) for r in world.runs)


def runs_of_page(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/runs", timeout=30) as reply:
        return len(json.loads(reply.read())["runs"])


@contextmanager
def running(place, env, n_controllers):
    "`mlops-nb up` with further controllers, and customers who ask all the time."
    new_project(place)
    ports = free_port(), free_port()
    env = env | dict(MLOPS_NB_SERVE_PORT=str(ports[0]), MLOPS_NB_CONSOLE_PORT=str(ports[1]),
                     MLOPS_NB_SERVE_WORKERS="1", MLOPS_NB_CONTROL_LEASE_SECONDS="10")
    os.environ |= env # this process reads the same ledger
    rows = months(N_MONTHS, N_SUBSCRIBERS)[-1][1].with_columns(_chance=pl.lit(0.05))
    with World(place, env) as world:
        world.start("up")
        for _ in range(n_controllers - 1): world.start("control")
        with Customers(ports[0], read_settings(place).release.endpoint, instances(rows)) as customers:
            yield world, customers, ports[1]


def told_answers(world, before): return "the model before" if world.champion == before else "the new model"


def story(world, customers, console_port):
    "What happens, and what came of it, in the order of `EXPECTED`."
    later, shifted = (months(N_MONTHS, N_SUBSCRIBERS, **how)[N_FIRST:] for how in ({}, dict(covariate_shift=1.0)))
    yield world.ended_run(1).status
    world.until(lambda: customers.answered, "the server answers")
    before = world.champion
    world.deliver(*later[0])
    world.kill_controller(world.until(lambda: world.executor_of(2, "step train"), "the second run trains"))
    second = world.ended_run(2)
    yield f"{second.status} in attempt {second.attempts}"
    yield told_answers(world, before)
    before = world.champion
    world.deliver(later[1][0], broken(later[1][1]))
    yield world.ended_run(3).status
    yield told_answers(world, before)
    world.until(lambda: "run_failed" in open_rules(world), "it pages")
    yield ", ".join(sorted(open_rules(world)))
    world.deliver(*later[1], replace=True)
    yield world.ended_run(4).status
    usual, other = (pl.concat([rows for _, rows in found]).with_columns(_chance=pl.lit(0.05))
                    for found in (later, shifted))
    replay_days(world, 4, usual, {2: ("other", 2)}, dict(other=other))
    yield "drift is found" if "drift" in open_rules(world) else "no drift is found"
    world.deliver(*later[2])
    yield world.ended_run(5).status
    before = world.champion
    change_params(world.root, {"n_estimators: 2000": "n_estimators: 1", "num_leaves: 31": "num_leaves: 2"})
    commit(world.root, "one small tree is enough")
    yield world.ended_run(6).status
    yield told_answers(world, before)
    yield str(len(customers.refused))
    done = effects(world.ledger)
    yield str(len(done) - len(set(done)))
    yield f"{len(world.runs)}, {runs_of_page(console_port)}, {len([*(world.root / '.mlops' / 'logs').glob('r*.log')])}"
    yield str(runs_of_report(world))


def days(place, env, n_controllers):
    "The story; gives what came of each part, the seconds it took, and how many requests were answered."
    clock = time.perf_counter()
    with running(place, env, n_controllers) as (world, customers, console_port):
        found = []
        for what, came in zip(EXPECTED, story(world, customers, console_port), strict=True):
            print(f"{time.perf_counter() - clock:.0f} s, {what}: {came}", file=sys.stderr, flush=True)
            found.append(came)
        return found, time.perf_counter() - clock, customers.answered


def main():
    with workplace() as tmp: alone, seconds, answered = days(tmp / "p", {}, 1)
    shared, notes = ["not tried"] * len(EXPECTED), [f"SQLite: {seconds:.0f} s, {answered:,} requests were answered."]
    if not quick() and (programs := postgres_programs()):
        with workplace() as tmp, postgres_server(programs) as server:
            os.environ["PGPASSWORD"] = server.password
            url, names = new_database(server, "control"), ("MLOPS_NB_LEDGER_URI", "MLOPS_NB_CONTROL_DATABASE")
            shared, seconds, answered = days(tmp / "p", dict.fromkeys(names, url), 3)
        notes.append(f"PostgreSQL: {seconds:.0f} s, {answered:,} requests were answered.")
    rows = [dict(what=what, figure=expected, peer=one, peer_figure=three, ratio="", bound="",
                 met=one == expected and three in (expected, "not tried"))
            for (what, expected), one, three in zip(EXPECTED.items(), alone, shared, strict=True)]
    report(rows, [*notes, "After `mlops-nb up` nobody types a command: files arrive, code is committed, customers ask "
                  "five times a second, and a controller is killed. Four days of traffic before the present one are "
                  "replayed hour by hour, with monitoring at the end of each."], HEAD)


if __name__ == "__main__": main()
