"""A project that serves a small model of the example subscribers, and challengers of it: a better, a worse, a slow and
a crashing one. Nothing is trained for longer than a fraction of a second."""
import http.client
import json
import random
import threading
import time

import lightgbm as lgb
import msgspec

from mlops_nb.bundle.bundle import write_bundle
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import EncoderParams, Params, ReleaseParams, write_params
from mlops_nb.config.schema import write_schema
from mlops_nb.config.settings import read_settings
from mlops_nb.examples.subscribers import leave_probability, subscriber_schema, subscribers
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.release_plan import plan_path, promote_bundle
from mlops_nb.stats.drift_test import fit_baseline
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline, ScoredRows, add_scores

ENDPOINT = "churn"
FEATURE = '''import time
import numpy as np
import mlops_nb.model.features as fx


@fx.feature
def paid(tenure, charge):
    "What was paid so far"
{first}    return tenure * charge
'''
KINDS = {  # of a bundle: trees, labels that are the contrary of the truth, what its feature does first
    "champion": (20, False, ""), "better": (30, False, ""), "worse": (25, True, ""),
    "slow": (26, False, "    if len(tenure) == 1: time.sleep(.04) # a look-up for each request\n"),
    "crashing": (27, False, "    if (charge == 300).any(): raise ValueError('no such tariff')\n")}


def pack(folder, kind):
    "The bundle of a kind; each is another one."
    n_trees, contrary, first = KINDS[kind]
    path = folder / "features.py"
    folder.mkdir(parents=True)
    path.write_text(FEATURE.format(first=first))
    schema, features = subscriber_schema(), load_features(path)
    train, valid, test = (subscribers(3000, seed=s) for s in range(3))
    encoder = Encoder.fit(features.add_columns(train), schema, features, EncoderParams())
    left = train["left"].to_numpy()
    data = lgb.Dataset(encoder.transform(features.add_columns(train)), (left != contrary).astype(float),
                       categorical_feature=encoder.categorical)
    how = dict(objective="binary", num_leaves=7, verbosity=-1, num_threads=1, deterministic=True)
    text = lgb.train(how, data, n_trees).model_to_string()
    predictor = Predictor(schema, features, encoder, Booster(text), Policy("binary", schema.classes, threshold=.3))
    scored = [ScoredRows(rows, {"score": predictor.predict(rows)}, {"score": rows["left"].to_numpy().astype(float)})
              for rows in (valid, test)]
    baseline = add_scores(MonitoringBaseline(fit_baseline(train, schema), {}, {}), *scored)
    documents = dict(metrics={"test": {}, "valid": {}}, provenance={}, baseline=baseline)
    return write_bundle(folder / "bundle", predictor, "model.txt", text.encode(), test, f"# {kind}", documents)


def project(root, kinds=("champion", "better"), settings="", **release):
    """A folder as a deployment of the champion leaves it, with the other kinds in the store; gives their ids. `release`
    are parameters of releases."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").write_text(f"[release]\nendpoint = {ENDPOINT}\n{settings}")
    write_schema(subscriber_schema(), root / "schema.yaml")
    write_params(Params(release=msgspec.convert(release, ReleaseParams)), root / "params.yaml")
    ids = {kind: store_bundle(pack(root / "packed" / kind, kind), root / "bundles").name for kind in kinds}
    promote_bundle(plan_path(root, read_settings(root, {})), ENDPOINT, ids["champion"], reason="the first")
    return ids


class Customers(threading.Thread):
    """Customers who ask, each once or twice, and say later what came about: the light load under which a release is
    judged. Use it as a context."""
    def __init__(self, port, n=2000, pause=.002, seed=0):
        super().__init__(daemon=True)
        self.port, self.pause, self.seed, self.halt = port, pause, seed, threading.Event()
        rows = subscribers(n, seed=100 + seed)
        self.rows = [r | {"month": r["month"].isoformat()} for r in rows.drop("left").to_dicts()]
        for row in self.rows[::3]: row["charge"] = 300.  # a tariff that no golden example has
        self.chances, self.ids, self.refused = leave_probability(rows).tolist(), [], []  # answered, not answered

    def run(self):
        rng, connection, labels = random.Random(self.seed), None, []
        for n in range(10**9):
            if self.halt.is_set(): break
            i = n % len(self.rows)
            row = self.rows[i] | {"customer": f"c{self.seed}-{n}"}
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                id = f"{self.seed}-{n}"
                status, body = self.post(connection, "predict", {"id": id, "instances": [row]})
                if status != 200: self.refused.append((status, body))
                else: self.ids.append(id)
                labels.append({"id": id, "label": "leaves" if rng.random() < self.chances[i] else "stays"})
                if len(labels) == 20:
                    self.post(connection, "feedback", {"labels": labels})
                    labels = []
            except OSError:
                connection = None
            time.sleep(self.pause)

    def post(self, connection, verb, body):
        connection.request("POST", f"/v1/endpoints/{ENDPOINT}:{verb}", json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.halt.set()
        self.join(30)
