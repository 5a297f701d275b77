"Releases and the logs that their servers would have written, for tests of the judge."
from datetime import UTC, datetime, timedelta

import numpy as np

from mlops_nb.config.params import ReleaseParams
from mlops_nb.config.schema import write_schema
from mlops_nb.config.settings import Settings, write_settings
from mlops_nb.examples.subscribers import subscriber_schema
from mlops_nb.prediction_log.segments import Feedback, PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.release.release_plan import ReleasePlan, Variant
from mlops_nb.release.strategies import Release, Step

START = datetime(2026, 11, 2, 8, tzinfo=UTC)


def at_hour(hours): return START + timedelta(hours=hours)


def microseconds(hours): return int(at_hour(hours).timestamp() * 1e6)


def release_of(share=.1, kind="canary", step=0, steps=(), hours=0, sticky_key=None, **params):
    "A release of which a step began some hours after the start."
    params = ReleaseParams(**params)
    steps = [Step(k, s, params.min_step_hours, params.min_units) for k, s in steps or [(kind, share)]]
    base = ReleasePlan("churn", 4, [Variant("champion", "a" * 64)])
    return Release(id="r1", endpoint="churn", environment="development", bundle="b" * 64, champion="a" * 64, base=base,
                   steps=[*steps, Step(kind, 1.)], step=step, started_at=at_hour(0).isoformat(), started_by="ana",
                   step_since=at_hour(hours).isoformat(), first_revision=4, revision=5, params=params,
                   sticky_key=sticky_key)


def project(folder):
    "A folder with what the judge reads of a project."
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings()
    settings.release.endpoint = "churn"
    write_settings(folder, settings)
    write_schema(subscriber_schema(), folder / "schema.yaml")
    return folder


class Traffic:
    "Requests to a champion and a challenger, as the log has them."
    def __init__(self, root, seed=0, share=.1, lease_id=0):
        self.log, self.rng = PredictionLogWriter(root / "predictions", lease_id), np.random.default_rng(seed)
        self.share, self.n, self.lease_id = share, 0, lease_id

    def answer(self, hour, challenger, **other):
        "One record."
        self.n += 1
        share = self.share if challenger else 1 - self.share
        name = "challenger" if challenger else "champion"
        self.log.append(PredictionRecord(**dict(
            id=f"{self.lease_id}-{self.n}", time=microseconds(hour), endpoint="churn", variant=name, bundle=name,
            revision=5, share=share, own_us=100, columns={}, score=[.5], decision=["no"]) | other))

    def send(self, n, hour=1., failures=(0., 0.), slower=1., entities=None, share=None, shift=0., threshold=(.3, .3),
             **other):
        "Some requests; `failures` of both, `slower` and `shift`: latency and scores of the challenger."
        mine = self.rng.random(n) < (self.share if share is None else share)
        failed, took = self.rng.random(n) < np.where(mine, *reversed(failures)), self.rng.lognormal(8, .5, n)
        scores = np.clip(self.rng.beta(2, 6, n) + shift * mine, 0, 1)
        acts = np.where(scores >= np.where(mine, *reversed(threshold)), "leaves", "stays").tolist()
        for i, (own, fails, us, score) in enumerate(zip(*map(np.ndarray.tolist, (mine, failed, took, scores)))):
            name = "challenger" if own else "champion"
            stood_in = dict(failed=name, variant="previous" if name == "champion" else "champion") if fails else {}
            entity = {} if entities is None else dict(entity=[entities[i]])
            self.answer(hour, own, own_us=int(us * (slower if own else 1)), score=[score], decision=[acts[i]],
                        **stood_in, **entity, **other)

    def send_shadowed(self, n, hour=1., failures=0., shift=0., left_out=0., threshold=.3):
        "Requests to the champion, and the challenger in shadow."
        scores = self.rng.beta(2, 6, n)
        both = np.c_[scores, np.clip(scores + shift + self.rng.normal(0, .02, n), 0, 1)].tolist()
        for one, other in both:
            decide = lambda s, limit: ["leaves" if s >= limit else "stays"]
            self.answer(hour, False, share=1., score=[one], decision=decide(one, .3))
            if self.rng.random() < left_out: continue
            self.n -= 1 # the same request
            fails = self.rng.random() < failures
            what = dict(score=[None], decision=None, failed="challenger") if fails else dict(
                score=[other], decision=decide(other, threshold))
            self.answer(hour, True, share=1., mode="shadow", **what)

    def label(self, hour, label, number=None, **other):
        "The label of a request; by default of the last one."
        self.log.append(Feedback(**dict(id=f"{self.lease_id}-{number or self.n}", time=microseconds(hour),
                                        endpoint="churn", label=label) | other))

    def send_labelled(self, n, hour=1., noise=(.1, .1), shadow=False, **other):
        "Requests whose truth is known an hour later; `noise`: how far the scores of the two are from it."
        truth, mine = self.rng.beta(1, 1, n), self.rng.random(n) < self.share
        scores = np.clip(truth[:, None] + self.rng.normal(0, 1, (n, 2)) * noise, 0, 1).tolist()
        came = np.where(self.rng.random(n) < truth, "leaves", "stays").tolist()
        for own, both, label in zip(mine.tolist(), scores, came):
            if shadow:
                self.answer(hour, False, share=1., score=both[:1], **other)
                self.n -= 1
                self.answer(hour, True, share=1., score=both[1:], mode="shadow", **other)
            else: self.answer(hour, own, score=[both[own]], decision=["leaves" if both[own] > .5 else "stays"], **other)
            self.label(hour + 1, label)

    def close(self): self.log.close()
