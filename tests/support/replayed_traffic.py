"""The prediction log of a deployed model, day by day, on a clock of its own: what customers ask, what is answered,
and the labels when they are due. An incident is another pool of rows to draw from, or hours in which nobody answers."""
import heapq
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs

from mlops_nb.config.settings import LogSettings
from mlops_nb.examples.subscribers import leave_probability, subscribers
from mlops_nb.model.predictor import Predictor
from mlops_nb.monitor.run import run_monitor
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.segments import Feedback, PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def season(at):
    "How busy an hour is: nights and weekends are quiet."
    day = .35 + .65 * np.sin(np.pi * np.clip((at.hour - 5) / 18, 0, 1))
    return day * (.6 if at.weekday() >= 5 else 1)


class ReplayedTraffic:
    """`pool` has the rows that customers ask about, and `_chance`: the true probability of the second class. Labels
    come after a part of `label_delay`."""
    def __init__(self, root, bundle, pool, endpoint="churn", rows_per_hour=40, label_delay=timedelta(days=5), seed=0,
                 lease=0):
        self.predictor, self.bundle = Predictor.open(bundle), Path(bundle).name
        self.endpoint, self.pool = endpoint, pool
        self.log = PredictionLogWriter(Path(root) / "predictions", lease, LogSettings(segment_mib=512))
        self.rows_per_hour, self.label_delay = rows_per_hour, label_delay
        self.rng, self.labels, self.n = np.random.default_rng(seed), [], 0

    def day(self, at, pool=None, silent=()):
        """The requests of the day that begins at `at`, hour by hour: gives how many requests each hour had. In the
        hours of `silent` nobody gets an answer."""
        sizes = [self.rng.poisson(self.rows_per_hour * season(at + HOUR * h)) * (h not in silent) for h in range(24)]
        pool = self.pool if pool is None else pool
        rows, first = pool[self.rng.integers(0, pool.height, sum(sizes))], 0
        scored, inputs = self.predictor.score_frame(rows), rows.select(self.predictor.required_columns)
        happens = self.rng.random(rows.height) < rows["_chance"].to_numpy()
        came = np.array(self.predictor.schema.classes)[happens.astype(int)]
        for h, n in enumerate(sizes):
            self._deliver_labels(at + HOUR * h)
            parts = np.array_split(np.arange(first, first + n), min(n, 6)) if n else []
            for i, part in enumerate(parts):
                self._answer(at + HOUR * (h + (i + self.rng.random()) / 7), inputs[part], scored[part], came[part])
            first += n
            yield len(parts), n

    def _answer(self, at, asked, scored, came):
        self.n += 1
        id, time = f"q{self.n}", int(at.timestamp() * 1e6)
        self.log.append(PredictionRecord(
            id=id, time=time, endpoint=self.endpoint, variant="champion", bundle=self.bundle, revision=1,
            columns=asked.with_columns(cs.temporal().dt.to_string("iso")).to_dict(as_series=False),
            score=scored["score"].to_list(), decision=scored["decision"].to_list(),
            entity=[f"c{self.n}-{i}" for i in range(len(came))],
            latency_us=int(self.rng.lognormal(7.6, .3)), own_us=200))
        for row, label in enumerate(came):
            late = self.label_delay * (.7 + .3 * self.rng.random())
            heapq.heappush(self.labels, (time + int(late.total_seconds() * 1e6), id, row, str(label)))

    def _deliver_labels(self, at):
        until = int(at.timestamp() * 1e6)
        while self.labels and self.labels[0][0] < until:
            time, id, row, label = heapq.heappop(self.labels)
            self.log.append(Feedback(id=id, time=time, endpoint=self.endpoint, row=row, label=label))


def days(start, end):
    at = start.astimezone(UTC)
    while at < end:
        yield at
        at += DAY


def subscriber_pools(n=20_000, seed=100):
    """Rows of the example as they are, and as four incidents make them: billing sends nothing any more, a quarter has a
    plan that did not exist before, only customers of many years ask, and what `plus` meant is now true of `basic`."""
    usual = subscribers(n, seed)
    with_chance = lambda rows, like=None: rows.with_columns(_chance=leave_probability(rows if like is None else like))
    moved, swapped = pl.Series(np.random.default_rng(seed).random(n) < .25), {"plus": "basic", "basic": "plus"}
    return {
        "usual": with_chance(usual),
        "broken column": with_chance(usual.with_columns(charge=pl.lit(None, pl.Float64))),
        "new category": with_chance(usual.with_columns(
            plan=pl.when(moved).then(pl.lit("student")).otherwise("plan"))),
        "covariate shift": with_chance(usual.with_columns(tenure=71 - pl.col("tenure") // 3)),
        "concept drift": with_chance(usual, usual.with_columns(pl.col("plan").replace(swapped)))}


class Counters:
    "The counters of a server, and of a probe that asks it once a minute, in a file where the monitor finds them."
    def __init__(self, root, endpoint):
        self.path, of = Path(root) / ".mlops" / "replay.prom", f'endpoint="{endpoint}"'
        asked, took = f'{of},route="predict"', "mlops_nb_request_duration_seconds"
        self.requests = [f'mlops_nb_requests_total{{{asked},status="200"}}', f"{took}_count{{{asked}}}",
                         f'{took}_bucket{{{asked},le="0.1"}}', f'{took}_bucket{{{asked},le="+Inf"}}']
        self.probes = [f'mlops_nb_probe_requests_total{{{of},result="{result}"}}' for result in ("failed", "ok")]
        self.rows = ["mlops_nb_answered_rows_total"]
        self.counts = dict.fromkeys([*self.requests, *self.probes, *self.rows, "mlops_nb_unlogged_rows_total"], 0)
        self.hour(0, 0)

    def hour(self, requests, rows, answers=True):
        for name in self.requests: self.counts[name] += requests
        for name in self.rows: self.counts[name] += rows
        self.counts[self.probes[answers]] += 60
        kinds = {"mlops_nb_request_duration_seconds": "histogram"} | {
            c.split("{")[0]: "counter" for c in self.counts if "duration" not in c}
        lines = [line for name, kind in kinds.items() for line in (
            f"# TYPE {name} {kind}", *(f"{c} {n}" for c, n in self.counts.items() if c.startswith(name)))]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join([*lines, ""]))


def replay(root, traffic, start, n_days, planned, pools, outage=(), look=lambda run: None):
    """Days of traffic with a monitoring run at the end of each. `planned`: day -> (pool, number of days). On the day of
    the `outage` (day, hours) nobody gets an answer in these hours, and the monitor runs every hour until it is over."""
    counters, pool, until = Counters(root, traffic.endpoint), None, 0
    for i, at in enumerate(days(start, start + n_days * DAY)):
        if i in planned: pool, until = pools[planned[i][0]], i + planned[i][1]
        if i == until: pool = None
        silent = outage[1] if outage and outage[0] == i else ()
        for h, (requests, rows) in enumerate(traffic.day(at, pool, silent)):
            counters.hour(requests, rows, h not in silent)
            if silent and h <= max(silent) + 2 or h == 23: look(run_monitor(root, at + HOUR * (h + 1)))
        if i % 7 == 6: compact_log(traffic.log.folder)
