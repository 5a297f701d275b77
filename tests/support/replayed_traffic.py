"""The prediction log of a deployed model, hour by hour, on a clock of its own: what customers ask, what the model
answers, and the labels when they are due. Incidents change the rows, or stop them."""
import heapq
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs

from mlops_nb.config.settings import LogSettings
from mlops_nb.examples.subscribers import leave_probability, subscribers
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.segments import Feedback, PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter

HOUR = timedelta(hours=1)


def season(at):
    "How busy an hour is: nights and weekends are quiet."
    day = .35 + .65 * np.sin(np.pi * np.clip((at.hour - 5) / 18, 0, 1))
    return day * (.6 if at.weekday() >= 5 else 1)


class ReplayedTraffic:
    def __init__(self, root, bundle_id, endpoint="churn", rows_per_hour=40, label_delay=timedelta(days=5), seed=0):
        self.predictor = Predictor.open(Path(root) / "bundles" / bundle_id)
        self.log = PredictionLogWriter(Path(root) / "predictions", 0, LogSettings(segment_mib=512))
        self.endpoint, self.bundle, self.label_delay = endpoint, bundle_id, label_delay
        self.rows_per_hour, self.rng, self.labels, self.n = rows_per_hour, np.random.default_rng(seed), [], 0
        self.pool = subscribers(20_000, seed=100 + seed)

    def draw(self, n): return self.pool[self.rng.integers(0, self.pool.height, n)]

    def day(self, at, change=None, chances=leave_probability, silent=()):
        """The requests of the day that begins at `at`: `change` is done to the rows before they are asked, `chances`
        are the true probabilities of what comes about; in the hours of `silent` nobody gets an answer."""
        sizes = [self.rng.poisson(self.rows_per_hour * season(at + HOUR * h)) * (h not in silent) for h in range(24)]
        rows = self.draw(sum(sizes))
        asked = change(rows, self.rng) if change else rows
        scored, inputs = self.predictor.score_frame(asked), asked.select(self.predictor.required_columns)
        came, first = np.where(self.rng.random(asked.height) < chances(asked), "leaves", "stays"), 0
        for h, n in enumerate(sizes):
            self._deliver_labels(at + HOUR * h)
            for i, part in enumerate(np.array_split(np.arange(first, first + n), min(n, 6)) if n else ()):
                self._answer(at + HOUR * (h + (i + self.rng.random()) / 7), inputs[part], scored[part], came[part])
            first += n

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

    def close(self): self.log.close()


def broken_charge(rows, rng):
    "Billing sends nothing any more."
    return rows.with_columns(charge=pl.lit(None, pl.Float64))


def new_plan(rows, rng):
    "A quarter of the customers have a plan that did not exist before."
    moved = pl.Series(rng.random(len(rows)) < .25)
    return rows.with_columns(plan=pl.when(moved).then(pl.lit("student")).otherwise("plan"))


def young_customers(rows, rng):
    "A campaign brings new customers; what a month of tenure means stays as it was."
    return rows.with_columns(tenure=pl.col("tenure") // 3)


def loyal_plus(rows):
    "The truth after a competitor went: customers of `plus` stay, those of `basic` leave instead."
    return 1 / (1 + np.exp(rows["tenure"].to_numpy() / 12 - 1.5 * (rows["plan"] == "basic").to_numpy()))


def days(start, end):
    at = start.astimezone(UTC)
    while at < end:
        yield at
        at += 24 * HOUR
