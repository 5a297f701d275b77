"A project with a bundle, a baseline and a prediction log, as monitoring counts it: made in a second, without stages."
from datetime import UTC, datetime, timedelta

import numpy as np

from mlops_nb.bundle.bundle import write_bundle
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import EncoderParams
from mlops_nb.config.settings import Settings, write_settings
from mlops_nb.examples.subscribers import leave_probability, subscriber_schema, subscribers
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.segments import PredictionRecord
from mlops_nb.stats.drift_test import fit_baseline
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline, ScoredRows, add_scores, fit_segment_baselines

START = datetime(2026, 11, 2, tzinfo=UTC)
FEATURES = """import mlops_nb.model.features as fx

@fx.feature
def paid_so_far(tenure, charge): return tenure * charge
"""


def at_hour(hours): return START + timedelta(hours=hours)


def pack(folder, seed=0):
    "A bundle with a computed feature, and segments by plan and by tenure."
    import lightgbm as lgb
    schema, rows = subscriber_schema(), subscribers(1200, seed)
    schema.segments = ["plan", "tenure"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.py").write_text(FEATURES)
    features = load_features(folder / "features.py")
    known, left = features.add_columns(rows), rows["left"].to_numpy().astype(float)
    encoder = Encoder.fit(known, schema, features, EncoderParams())
    data = lgb.Dataset(encoder.transform(known), left, categorical_feature=encoder.categorical)
    text = lgb.train(dict(objective="binary", num_leaves=4, verbosity=-1, num_threads=1), data, 3).model_to_string()
    predictor = Predictor(schema, features, encoder, Booster(text), Policy("binary", schema.classes, threshold=.3))
    reference = fit_baseline(known, schema, dict(features.types))
    scored = ScoredRows(rows, {"score": leave_probability(rows)}, {"score": left})
    baseline = MonitoringBaseline(reference, {}, {}, segments=fit_segment_baselines(known, schema, reference, {}))
    documents = dict(metrics={}, provenance={}, baseline=add_scores(baseline, scored, scored))
    return write_bundle(folder / "bundle", predictor, "model.txt", text.encode(), rows, "# Subscribers", documents)


def project(root, bundle=None):
    "A folder with settings, and the bundle in its store. -> the bundle's id"
    root.mkdir(parents=True, exist_ok=True)
    settings = Settings()
    settings.release.endpoint = "churn"
    write_settings(root, settings)
    return store_bundle(bundle, root / "bundles").name if bundle else ""


def requests(n, bundle, hour=0., seed=1, per_request=1, **other):
    "Records of subscribers, `n` rows a second apart."
    rows, scores = subscribers(n, seed), np.random.default_rng(seed).random(n).round(3).tolist()
    inputs = {c: rows[c].to_list() for c in ("plan", "tenure", "charge")}
    for i in range(0, n, per_request):
        part = slice(i, i + per_request)
        yield PredictionRecord(**dict(
            id=f"{seed}-{i}", time=int(at_hour(hour).timestamp() * 1e6) + i * 1_000_000, endpoint="churn",
            variant="champion", bundle=bundle, columns={c: v[part] for c, v in inputs.items()}, score=scores[part],
            decision=["leaves" if s >= .3 else "stays" for s in scores[part]], latency_us=1500 + i, own_us=900) | other)
