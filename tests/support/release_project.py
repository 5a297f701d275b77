"""A project that serves a small model of the example subscribers, and challengers of it: a better, a worse, a slow and
a crashing one. Nothing is trained for longer than a fraction of a second."""
import lightgbm as lgb
import numpy as np

from mlops_nb.bundle.bundle import write_bundle
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import EncoderParams, Params, write_params
from mlops_nb.config.schema import write_schema
from mlops_nb.config.settings import read_settings
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.examples.subscribers import subscriber_schema, subscribers
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
    "champion": (6, False, ""), "better": (60, False, ""), "worse": (30, True, ""),
    "slow": (30, False, "    if len(tenure) == 1: time.sleep(.04) # a look-up for each request\n"),
    "crashing": (30, False, "    if (np.asarray(tenure) % 7 == 3).any() and len(tenure) == 1: raise ValueError('no')\n")}


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
