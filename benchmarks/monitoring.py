"Drift without false alarms: alarms in years in which nothing changes, delays when something does, and other rules."
import json
import math
import subprocess
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from multiprocessing import get_context

import numpy as np
import polars as pl
from common import ENV, ROOT, TAXI, THREADS, quick, report, row, workplace
from scipy.signal import lfilter
from serving import environment, version_of

from mlops_nb.config.params import SimulateParams
from mlops_nb.config.schema import Column, Schema, read_schema
from mlops_nb.examples.simulator import simulate_snapshots
from mlops_nb.monitor.bin_counts import cell_numbers
from mlops_nb.monitor.drift import DriftState, judge_window
from mlops_nb.stats.distances import effect_distance, jensen_shannon_divergence, population_stability_index, shares
from mlops_nb.stats.drift_test import fit_baseline
from mlops_nb.stats.e_detector import calibrate_threshold, count_alarms
from mlops_nb.stats.window_distances import borrow_past, fit_healthy_past

HEAD = ("stream and method", "figure", "false alarms in a quarter", "median delay", "9 in 10 within", "target", "met")
QUARTER, PAST, MONDAY = 2184, 8 * 168, datetime(2026, 1, 5)
FLOOR, DATA = .1, TAXI.parent
PEER = "evidently==0.7.23", "pandas<3", "pyarrow"


# Streams: counts by hour of several columns, (hours, columns, cells).

def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def rows_of_hours(n, day, night):
    hour = np.arange(n) % 24
    return np.where((hour >= 1) & (hour < 6), night, day)


def quiet_stream(rng, hours, columns=8, cells=11, day=400, night=60, mood=.05):
    "Nothing changes: people differ by time of day, at week-ends, a little by the time of year, and by the day's mood."
    h = np.arange(hours)[:, None, None]
    week, year = 2 * np.pi * h / 24, 2 * np.pi * h / 8766
    usual, by_day, weekend, by_year = (rng.normal(0, s, (columns, cells)) for s in (.7, .2, .2, .03))
    moods = lfilter([math.sqrt(1 - .9**2)], [1, -.9], rng.normal(size=(hours + 200, columns, cells)), axis=0)[200:]
    logits = usual + by_day * np.sin(week) + weekend * (h // 24 % 7 >= 5) + by_year * np.sin(year) + mood * moods
    p = softmax(logits)
    training = np.stack([rng.multinomial(20_000, q) for q in softmax(logits[:PAST]).mean(0)])
    n = rng.poisson(rows_of_hours(hours, day, night))
    return training, rng.multinomial(np.broadcast_to(n[:, None], p.shape[:2]), p)


class Learned:
    "The past of each column and its threshold, as the monitor learns them."
    def __init__(self, training, past, alarm_windows):
        phases = np.arange(len(past)) % 168
        learned = [fit_healthy_past(t, past[:, j], phases, 168) for j, t in enumerate(training)]
        self.training, self.pasts, z = training, [p for p, _ in learned], np.stack([z for _, z in learned], 1)
        self.weights = np.full(len(training), 1 / len(training))
        self.threshold = calibrate_threshold(z, self.weights, alarm_windows, 24)

    def e_values(self, counts, first): # (hours, columns, cells) -> (hours, columns)
        phases = (first + np.arange(len(counts))) % 168
        return np.stack([p.tail.e_values(p.standardise(counts[:, j], phases)) for j, p in enumerate(self.pasts)], 1)

    def alarms(self, counts, e, first, stop=False): # hours at which an alarm begins; with the floor
        k = len(self.training)
        keys, floors, phases = [str(j) for j in range(k)], np.full(k, FLOOR), (first + np.arange(len(counts))) % 168
        state, found, had = DriftState(1, MONDAY, MONDAY, 8, self.threshold), [], False
        for t in range(len(counts)):
            def effect(j, since, t=t):
                part = slice(max((since - MONDAY) // timedelta(hours=1), 0), t + 1)
                return self.pasts[j].unusual_divergence(counts[part, j], phases[part])**.5
            judge_window(state, MONDAY + t * timedelta(hours=1), e[t], keys, self.weights, floors, effect)
            if state.drifted and not had:
                found.append(t)
                if stop: break
            had = bool(state.drifted)
        return found


def runs(over): return int((over & ~np.r_[False, over[:-1]]).sum()) # alarms that begin


def peers(training, counts):
    "(hours,) bool of rules that look at each hour alone: some column is over."
    p, q = shares(training), shares(counts)
    some = counts.sum(-1) >= 50
    any_of = lambda x: (np.nan_to_num(x) * some).max(1)
    divergence = jensen_shannon_divergence(training, counts)
    return {"PSI > 0.2": any_of(population_stability_index(training, counts)) > .2,
            "Jensen–Shannon divergence > 0.3 or L∞ > 0.3, as Vertex AI's defaults": (any_of(divergence) > .3) | (
                any_of(np.abs(p - q).max(-1)) > .3),
            "Jensen–Shannon distance > 0.1, each hour": any_of(divergence**.5) > .1}


STREAMS = {"400 rows an hour, 60 at night": {}, "150 rows an hour, 50 at night": dict(day=150, night=50),
           "4,000 rows an hour, 600 at night": dict(day=4000, night=600, mood=.02)}


def year(job): # of one champion: alarms in a quarter by method, and the threshold
    stream, seed, quarters = job
    training, counts = quiet_stream(np.random.default_rng([7, seed]), PAST + quarters * QUARTER, **STREAMS[stream])
    learned, later = Learned(training, counts[:PAST], QUARTER), counts[PAST:]
    e = learned.e_values(later, PAST)
    used, safe = count_alarms(e[None], learned.weights, np.array([learned.threshold, QUARTER]))[0]
    found = {"ours: alarms": len(learned.alarms(later, e, PAST)), "ours: evidence over the threshold": used,
             f"ours: evidence, threshold {QUARTER}": safe}
    found |= {name: runs(over) for name, over in peers(training, later).items()}
    return {name: n / quarters for name, n in found.items()}, learned.threshold


def quiet_rows(pool, champions, quarters):
    found = []
    for name, stream in STREAMS.items():
        n = champions if not stream else -(-champions // 10)
        years, thresholds = zip(*pool.map(year, [(name, seed, quarters) for seed in range(n)]))
        for method in years[0]:
            x = np.array([y[method] for y in years])
            ours, said = method == "ours: alarms", f"{x.mean():.{2 if method[:4] == 'ours' else 1}f}"
            if n > 1: said += f" ± {x.std(ddof=1) / math.sqrt(n):.2g}"
            bound = ("≤ 1.0" if stream else "0.3 to 1.0") if ours else ""
            found.append(row(f"no drift, {name}, {quarters * n} quarters; {method}",
                             f"threshold {np.median(thresholds):.0f} (median)" if ours else "", said, bound=bound,
                             met=bool((stream or x.mean() >= .3) and x.mean() <= 1) if ours else None))
    return found


# The same streams through another tool, in an environment of its own.

PEER_SCRIPT = """
import json, sys
import pandas as pd
from evidently import Report
from evidently.metrics import DriftedColumnsCount
training, later, stop = pd.read_parquet(sys.argv[1]), pd.read_parquet(sys.argv[2]), sys.argv[3] == "stop"
found = {}
for (stream, window), rows in later.groupby(["stream", "window"]):
    if stop and any(d["count"] for d in found.get(stream, [])): continue
    metrics = Report([DriftedColumnsCount()]).run(rows[training.columns], training).dict()["metrics"]
    found.setdefault(stream, []).append(metrics[0]["value"])
print(json.dumps(found))
"""


def peer_drift(job): # by stream: of each window {count, share} of drifted columns
    bin, training, later, stop = job
    with workplace() as tmp:
        training.write_parquet(tmp / "training.parquet")
        later.write_parquet(tmp / "later.parquet")
        done = subprocess.run([bin / "python", "-W", "ignore", "-c", PEER_SCRIPT, tmp / "training.parquet",
                               tmp / "later.parquet", "stop" if stop else "all"], capture_output=True, text=True,
                              env=ENV)
    if done.returncode: raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(counts, most=5000): # (columns, cells) -> a table of categories with these counts, in any order
    rng, cell = np.random.default_rng(0), np.array([f"cell {i}" for i in range(counts.shape[1])])
    return pl.DataFrame({f"c{j}": rng.permutation(np.repeat(cell, c))[:most] for j, c in enumerate(counts)})


def windows_of(counts, stream): # (hours, columns, cells) -> the rows of all hours
    return pl.concat([rows_of(c).with_columns(stream=pl.lit(stream), window=pl.lit(t)) for t, c in enumerate(counts)
                      if c[0].sum() >= 50])


def peer_quiet_rows(pool, bin, champions, hours):
    jobs, name = [], next(iter(STREAMS))
    for seed in range(champions):
        training, counts = quiet_stream(np.random.default_rng([7, seed]), PAST + hours)
        jobs.append((bin, rows_of(training), windows_of(counts[PAST:], str(seed)), False))
    windows = [np.array([[d["count"] > 0, d["share"] >= .5] for d in of]) for found in pool.map(peer_drift, jobs)
               for of in found.values()]
    rate = lambda i: np.mean([runs(w[:, i].astype(bool)) for w in windows]) * QUARTER / hours
    what = f"no drift, {name}, {champions} champions of {hours} hours; {name_of(bin)}"
    return [row(f"{what}, {of}", "", f"{rate(i):.1f}") for i, of in enumerate(["some column", "half of the columns"])]


def name_of(bin): return f"Evidently {version_of(bin, 'evidently')}"


# What changes: the simulator's switches.

SWITCHES = {"no switch": {},
            "covariate shift (1.0)": dict(covariate_shift=1.), "covariate shift (0.5)": dict(covariate_shift=.5),
            "broken column (data_gb)": dict(broken_column="data_gb"), "new category": dict(new_category=True),
            "seasonal growth (0.5)": dict(seasonal_growth=.5), "concept drift (1.0)": dict(concept_drift=1.)}
SCHEMA = read_schema(ROOT / "schema.yaml")


def snapshots(**switch):
    "The last months long after a switch; without one, the same months as they would have been."
    params = SimulateParams(n_subscribers=3000, n_months=24, seed=5, **switch)
    frames = [f for _, f, _ in simulate_snapshots(params)]
    return pl.concat(frames[-4:], how="vertical_relaxed").drop("churned", "outage_hours") # hours: one draw a month


def cell_shares(baseline, frame):
    "(columns, most cells) shares of the cells that rows fall into."
    most, found = max(len(r.counts) for r in baseline.columns.values()), []
    for name, reference in baseline.columns.items():
        found.append(np.bincount(cell_numbers(reference, frame[name]), minlength=most))
    return np.array(found)


def switched(job): # of one past: by switch and method, the hours until an alarm
    seed, training, steady, changed, hours = job
    rng = np.random.default_rng([8, seed])
    n = rng.poisson(rows_of_hours(PAST + hours, 400, 60))
    draw = lambda n, p: rng.multinomial(np.broadcast_to(n[:, None], (len(n), len(p))), p)
    learned, found = Learned(training, draw(n[:PAST], steady), QUARTER), {}
    for name, p in changed.items():
        later = draw(n[PAST:], p)
        alarms = learned.alarms(later, learned.e_values(later, PAST), PAST, stop=True)
        found[name, "ours"] = alarms[0] + 1 if alarms else math.inf
        for peer, over in peers(training, later).items():
            found[name, peer] = over.argmax() + 1 if over.any() else math.inf
    return found


def peer_switched(pool, bin, repeats, training, changed, hours):
    jobs, found = [], {}
    for p in changed.values():
        rng = np.random.default_rng([8, 0])
        n = np.maximum(rng.poisson(rows_of_hours(hours * repeats, 400, 60)), 50)
        later = rng.multinomial(np.broadcast_to(n[:, None], (len(n), len(p))), p)
        jobs.append((bin, rows_of(training), pl.concat([windows_of(later[r * hours:(r + 1) * hours], str(r))
                                                        for r in range(repeats)]), True))
    for name, of in zip(changed, pool.map(peer_drift, jobs)):
        found[name] = [len(ds) if ds[-1]["count"] else math.inf for ds in of.values()]
    return found


def switch_rows(pool, bin, repeats, hours=14 * 24, peer_hours=24):
    before = snapshots()
    baseline = fit_baseline(before, SCHEMA)
    baseline.columns = {c: r for c, r in baseline.columns.items() if c in before.columns}
    training = cell_shares(baseline, before)
    steady, found, delays = shares(training), [], {}
    changed = {name: shares(cell_shares(baseline, snapshots(**switch))) for name, switch in SWITCHES.items()}
    for of in pool.map(switched, [(seed, training, steady, changed, hours) for seed in range(repeats)]):
        for key, delay in of.items(): delays.setdefault(key, []).append(delay)
    for name, of in (peer_switched(pool, bin, 3, training, changed, peer_hours) if bin else {}).items():
        delays[name, name_of(bin) + ", some column"] = of
    said = lambda d, q: "not seen" if math.isinf(x := np.quantile(d, q, method="higher")) else f"{x:.0f} h"
    for (name, method), d in sorted(delays.items(), key=lambda x: [*changed].index(x[0][0])):
        largest = float(np.nanmax(jensen_shannon_divergence(steady * 1e9, changed[name] * 1e9)**.5))
        ours, seen = method == "ours", sum(map(math.isfinite, d))
        bound = ("" if not ours else "found within a day" if largest > 1.5 * FLOOR else
                 "no alarm" if largest < FLOOR / 2 else "")
        met = np.quantile(d, .9, method="higher") <= 24 if largest > FLOOR else not seen
        figure = f"{seen} of {len(d)}" + (f"; largest distance {largest:.2f}" if ours else "")
        found.append(row(f"{name}; {method}", figure, "", said(d, .5), said(d, .9), bound,
                         bool(met) if bound else None))
    return found


# Real data: windows of rows in the order of time, after the first part as training.

def bank():
    path = DATA / "bank_marketing/bank-additional-full.csv"
    frame = pl.read_csv(path, separator=";", infer_schema_length=None, glob=False).drop("duration", "y")
    return "bank marketing, 2008 to 2010, windows of 500 calls", frame, 8000, 500


def bike():
    frame = pl.read_csv(DATA / "bike_sharing/hour.csv", infer_schema_length=None, glob=False)
    return "bike sharing, 2011 to 2012, windows of a week", frame.drop(
        "instant", "dteday", "yr", "mnth", "season", "casual", "registered", "cnt"), 26 * 168, 168


def taxi():
    files, kept = sorted((DATA / "nyc_green_taxi").glob("*.parquet")), []
    for i, f in enumerate(files):
        frame = pl.read_parquet(f, glob=False).sort("lpep_pickup_datetime")
        numbers = [c for c, t in frame.schema.items() if t.is_numeric() or t == pl.Null]
        rest = [c for c, t in frame.schema.items() if t == pl.String]
        kept.append(frame.select(pl.col(numbers).cast(pl.Float64), *rest)[::20 if i else 4])
    return "New York taxi, 2021 to 2023, windows of 500 rides", pl.concat(kept, how="diagonal"), kept[0].height, 500


def peer_real(bin, frame, n_training, size):
    parts = [frame[:n_training], *(frame[i:i + size] for i in range(n_training, frame.height - size + 1, size))]
    some = [c for c in frame.columns if all(p[c].is_not_null().any() for p in parts)] # it refuses an empty column
    frame = frame.select(some)
    later = frame[n_training:][:(frame.height - n_training) // size * size]
    later = later.with_columns(stream=pl.lit(""), window=pl.int_range(later.height) // size)
    training = frame[:n_training].sample(min(n_training, 5000), seed=0)
    counts = np.array([d["count"] for d in peer_drift((bin, training, later, False))[""]])
    return row("", f"{(counts > 0).sum()} of {len(counts)} windows, {runs(counts > 0)} alarms")


def real_stream(name, frame, n_training, size):
    kind = lambda t: "number" if t.is_numeric() else "category"
    columns = {c: Column(kind(t), nullable=True) for c, t in frame.schema.items()}
    schema = Schema("t", "regression", "y", columns | {"y": Column("number")})
    baseline = fit_baseline(frame[:n_training].with_columns(y=pl.lit(0.)), schema)
    del baseline.columns["y"]
    cells = {c: cell_numbers(r, frame[c][n_training:]) for c, r in baseline.columns.items()}
    most, n = max(len(r.counts) for r in baseline.columns.values()), (frame.height - n_training) // size
    counts = np.zeros((n, len(cells), most), np.int64)
    for j, c in enumerate(cells.values()):
        np.add.at(counts, (np.arange(n * size) // size, j, c[:n * size]), 1)
    training = np.array([np.r_[r.counts, np.zeros(most - len(r.counts), int)] for r in baseline.columns.values()])
    return name, [*cells], training, counts


def real_rows(bin):
    found = []
    if not DATA.exists(): return [row("real data", "the folder of data sets is not here")]
    for data in (bank(), bike(), taxi()):
        name, columns, training, counts = real_stream(*data)
        pasts = [borrow_past(t, c.sum(1), 7)[0] for t, c in zip(training, counts.transpose(1, 0, 2))]
        z = [p.standardise(counts[:, j], np.zeros(len(counts), int)) for j, p in enumerate(pasts)]
        e = np.stack([p.tail.e_values(x) for p, x in zip(pasts, z)], 1)
        state, k, drifted = DriftState(24, MONDAY, MONDAY, 0, QUARTER / 24), len(columns), []
        for t in range(len(counts)):
            effects = np.nan_to_num(effect_distance(training, counts[t]))
            judge_window(state, MONDAY + t * timedelta(days=1), e[t], columns, np.full(k, 1 / k), np.full(k, FLOOR),
                         lambda j, since, effects=effects: effects[j])
            drifted.append([*state.drifted])
        over = np.array([bool(d) for d in drifted])
        first = f"from window {over.argmax() + 1} on: {', '.join(drifted[over.argmax()])}" if over.any() else "never"
        found.append(row(f"{name}; ours", f"{over.sum()} of {len(over)} windows, {runs(over)} alarms; {first}"))
        found += [row(f"{name}; {peer}", f"{x.sum()} of {len(x)} windows, {runs(x)} alarms")
                  for peer, x in peers(training, counts).items()]
        if bin: found.append(peer_real(bin, *data[1:]) | dict(what=f"{name}; {name_of(bin)}, some column"))
    return found


def main():
    small, rows = quick(), []
    with ProcessPoolExecutor(min(THREADS, 2), get_context("spawn")) as pool:
        rows += quiet_rows(pool, *((2, 1) if small else (100, 4)))
        try: bin = environment("evidently", *PEER)
        except SystemExit: bin = None
        if bin: rows += peer_quiet_rows(pool, bin, 2, 24 if small else 96)
        rows += switch_rows(pool, bin, 2 if small else 20, *((48, 3) if small else ()))
        rows += real_rows(bin)
    report(rows, NOTES + ([] if bin else ["Evidently could not be installed here, so its rows are missing."]), HEAD)


NOTES = [
    "No drift: champions with eight weeks of healthy past and a year after it by the hour, 8 columns of 11 cells. "
    "People differ by time of day and at the week-end, by the time of year (below the floor of 0.1), and each "
    "column has moods that fade over a day (an autoregressive process of 0.9 an hour). Alarms are counted when they "
    "begin, ± the standard error over champions; the budget is 1 in a quarter. An alarm needs evidence and the "
    "floor; the rows of evidence count detectors that cross the threshold and begin anew. With thousands of rows an "
    "hour the time of year is seen for certain and is below the floor, so the evidence crosses again and again and "
    "no alarm is raised.",
    "Nothing was chosen on these champions: the part of the budget that drawn futures may use (BUDGET_USED) was "
    "chosen on others, of the same kind of stream with other seeds. Streams of another kind may use another part of "
    "it.",
    "Peers look at each hour by itself, as their defaults are documented: some column is over the limit, in an hour "
    "of 50 rows or more. An alarm of theirs is a run of such hours. PSI and the thresholds of Vertex AI are "
    "computed here, their tools were not run. Evidently was run: its count of drifted columns, the first figure of "
    "its drift preset, of the rows of each hour against at most 5,000 rows of training, with cells as categories "
    "(real data: the values as they are); for fewer hours, for it takes longer. Hours of fewer than 50 rows are "
    "left out for it, and its nights have at least 50.",
    "Delays: hours of 400 rows (60 at night), from midnight on, drawn from the simulator's last four months, five "
    "or more after a switch; the past are the same months without it. Of ours, two weeks in 20 repetitions (another "
    "past each), of Evidently one day in 3. What is seen within an hour although there is no switch is no merit. A "
    "switch whose largest distance is between half a floor and 1.5 floors has no target. Concept drift changes who "
    "leaves, so, by who stays, the inputs a little; that the causes changed is not visible in any input: labels "
    "show it (quality).",
    "Real data: the first part is the training, no past is learned (borrowed from the training rows, threshold 91), "
    "and the windows after it come in the order of time. These data do change, so many alarms are no fault; one "
    "alarm that lasts is what a person can work with.",
]

if __name__ == "__main__": main()
