"Own estimators: five learners on five real data sets, and a pipeline of scikit-learn served beside two servers."
import json
import shutil
import sys

import msgspec
import numpy as np
import polars as pl
from common import ENV, HERE, MINUTES, TAXI, quick, report, row, run, stage_records, workplace
from learning import ADULT, BIKE, DATA, project
from serving import OURS, environment, in_turns, listed_rows, measured, released, said, tensor, version_of

from mlops_nb.config.params import read_params, write_params
from mlops_nb.core.typed_yaml import read_json

CONNECTIONS, BODIES = 16, 64
SETS = {"Adult": ADULT,
        "bank": (f"{DATA}/bank_marketing/bank-additional-full.csv", "--target", "y", "--ordered", "--exclude",
                 "duration"),
        "bike": BIKE,
        "telco": (f"{DATA}/telco_churn/Telco-Customer-Churn.csv", "--target", "Churn"),
        "taxi": (f"{TAXI}/green_tripdata_2021-0[34].parquet", "--target", MINUTES, "--filter",
                 "target BETWEEN 1 AND 60", "--time", "lpep_pickup_datetime", "--test-files",
                 "green_tripdata_2021-04.parquet")}
NAMES = {"gbdt": "built-in trees (LightGBM)", "xgb": "XGBoost", "cat": "CatBoost",
         "forest": "forest of scikit-learn, behind an imputer", "linear": "linear model behind one-hot columns"}
LEARNERS = '''
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForest{kind}
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlops_nb.train.custom_learners import learner


@learner("xgb")
def xgb(X, y, X_valid, y_valid, seed, n_threads):
    from xgboost import XGB{boosted}
    model = XGB{boosted}(n_estimators={rounds}, learning_rate=.05, early_stopping_rounds=50, random_state=seed,
                         n_jobs=n_threads)
    return model.fit(X, y, eval_set=[(X_valid, y_valid)], verbose=False)


@learner("cat")
def cat(X, y, X_valid, y_valid, seed, n_threads):
    from catboost import CatBoost{kind}
    model = CatBoost{kind}(iterations={rounds}, learning_rate=.1, early_stopping_rounds=50, random_seed=seed, verbose=0,
                           thread_count=n_threads, allow_writing_files=False)
    return model.fit(X, y, eval_set=(X_valid, y_valid))


@learner("forest")
def forest(X, y, seed):
    return make_pipeline(SimpleImputer(), RandomForest{kind}(100, min_samples_leaf=20, random_state=seed, n_jobs=-1)
                         ).fit(X, y)


@learner("linear")
def linear(X, y, categorical):
    codes = make_pipeline(SimpleImputer(strategy="constant", fill_value=-1), OneHotEncoder(handle_unknown="ignore"))
    columns = make_column_transformer((codes, categorical),
                                      remainder=make_pipeline(SimpleImputer(), StandardScaler()))
    return make_pipeline(columns, {linear}).fit(X, y)
'''


def learners_file(task, rounds):
    "The learners as a project has them after `dvc repro`."
    regression = task == "regression"
    return LEARNERS.format(kind="Regressor" if regression else "Classifier", rounds=rounds,
                           boosted="Regressor" if regression else "Classifier",
                           linear="Ridge()" if regression else "LogisticRegression(max_iter=300)")


def with_learners(root, text, names):
    "Own learners in a prepared project, without the notebook around them."
    (root / "artifacts/learners.py").write_text(text)
    params = read_params(root / "params.yaml")
    params.train.learners = [*names]
    write_params(params, root / "params.yaml")
    path, sections = root / "params.yaml", "".join(f"  {n}: {{}}\n" for n in names if n != "gbdt")
    path.write_text(path.read_text().replace("\ntrain:\n", f"\ntrain:\n{sections}", 1))


def served(root, learner, to):
    "A folder that serves the trained model of a learner: its predictor, rows, bundle and endpoint."
    from mlops_nb.bundle.bundle import write_bundle
    from mlops_nb.config.settings import read_settings
    from mlops_nb.model.policy import Policy
    from mlops_nb.model.predictor import model_file
    from mlops_nb.train.stage import open_trained_predictor
    predictor = open_trained_predictor(root, learner)
    schema, file = predictor.schema, model_file(root / "artifacts/models" / learner)
    predictor.policy = Policy(schema.task, schema.classes, threshold=.5 if schema.task == "binary" else None)
    golden = pl.read_parquet(root / "artifacts/prepared/test.parquet").head(500).select(predictor.inputs)
    (to / "artifacts").mkdir(parents=True)
    text = (root / "settings.ini").read_text()
    (to / "settings.ini").write_text(text.replace("\nworkers = 0", "\nworkers = 1"))
    bundle = write_bundle(to / "artifacts/bundle", predictor, file.name, file.read_bytes(), golden, "# Benchmark",
                          dict(metrics={}, provenance={}, baseline={}))
    released(to)
    return predictor, golden, bundle, read_settings(to).release.endpoint


def size_of(folder): return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def parity_of(root, learner):
    "How far the exported model is off its estimator, in words."
    from mlops_nb.train.stage import TrainingReport
    found = read_json(root / "artifacts/models" / learner / "training.json", TrainingReport).parity
    if found is None: return "is LightGBM"
    return f"{found.max_difference:.1g} on {found.n_rows + found.n_threshold_rows:,} rows"


def form_of(root, learner):
    return "ONNX" if (root / "artifacts/models" / learner / "model.onnx").exists() else "trees"


def data_rows(tmp, name, each, rounds):
    "A row for each learner on one data set."
    from mlops_nb.evaluate.stage import read_evaluation
    root = project(tmp / name, *SETS[name])
    from mlops_nb.config.schema import read_schema
    task = read_schema(root / "schema.yaml").task
    with_learners(root, learners_file(task, rounds), NAMES)
    for stage in ("baseline", "tune", *(f"train {n}" for n in NAMES), "evaluate"):
        run("mlops-nb", "stage", *stage.split(), cwd=root)
    found = read_evaluation(root)
    took = {r["item"]: r["seconds"] for r in stage_records(root) if r["stage"] == "train"}
    for c in found.candidates:
        e = c.metrics["test"][found.primary_metric]
        to = tmp / f"{name} {c.learner}"
        predictor, golden, bundle, endpoint = served(root, c.learner, to)
        body = b"\n".join(msgspec.json.encode([r]) for r in golden.head(BODIES).select(
            predictor.request_columns).to_dicts())
        rate = measured(to, OURS, {}, f"/v1/endpoints/{endpoint}:predict", body, each, (CONNECTIONS,))[0][CONNECTIONS]
        yield row(f"{name}: {NAMES[c.learner]}", f"{found.primary_metric} {e.value:.4f} [{e.low:.4f}, {e.high:.4f}]",
                  f"{took[c.learner]:.1f} s", f"{size_of(bundle) / 1e6:.2f} MB, {form_of(root, c.learner)}",
                  f"{rate['rate']:,.0f}/s, p99 {rate['p99']:.2f} ms", parity_of(root, c.learner))
        shutil.rmtree(to)
    shutil.rmtree(root)


PEERS = { # name, packages, path, a row as its body, command, environment, bound of the ratio
    "mlserver_sklearn": ("MLServer", ["mlserver", "mlserver-sklearn", "scikit-learn"], "/v2/models/model/infer",
                         lambda x: json.dumps(dict(inputs=[tensor(x)], outputs=[dict(name="predict_proba")])).encode(),
                         ["mlserver", "start", "."], {}, 8),
    "bentoml_sklearn": ("BentoML", ["bentoml", "scikit-learn"], "/predict", listed_rows,
                        ["bentoml", "serve", "service:Model", "--port", "18081", "--host", "127.0.0.1"],
                        {"BENTOML_DO_NOT_TRACK": "1"}, 5)}


def peer(name, pipeline, tmp):
    "Folder, command, environment, path of a peer; and its name."
    package, packages, path, _, command, env, _ = PEERS[name]
    bin, folder = environment(name, *packages), tmp / f"{name} {pipeline}"
    shutil.copytree(HERE / "peers" / name, folder)
    for file in ("fit_pipeline.py", "pipelines.py"): shutil.copy(HERE / "peers" / file, folder)
    shutil.copy(tmp / "rows.npz", folder)
    run(bin / "python", "fit_pipeline.py", pipeline, cwd=folder)
    env = {"PATH": f"{bin}:{ENV['PATH']}", "OMP_NUM_THREADS": "1", **env}
    return f"{package} {version_of(bin, packages[0])}", (folder, [bin / command[0], *command[1:]], env, path)


def pipeline_rows(tmp, each, rounds):
    "Rows that hold our server against the peers' on the same pipeline and rows."
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 28)).round(4)
    y = (X[:, :5].sum(1) + X[:, 5] * X[:, 6] + rng.normal(size=len(X)) > 0).astype(int)
    np.savez(tmp / "rows.npz", X=X, y=y)
    columns = [f"c{i:03}" for i in range(28)]
    pl.DataFrame({**dict(zip(columns, X.T, strict=True)), "event": np.where(y, "yes", "no")}).write_parquet(
        tmp / "rows.parquet")
    root = project(tmp / "pipelines", tmp / "rows.parquet", "--target", "event")
    text = f"import sys\nsys.path.insert(0, {str(HERE / 'peers')!r})\nfrom pipelines import PIPELINES\n\n" \
        "from mlops_nb.train.custom_learners import learner\n\n" + "".join(
            f"\n@learner({n!r})\ndef {n}(X, y): return PIPELINES[{n!r}]().fit(X, y)\n" for n in ("logistic", "forest"))
    with_learners(root, text, ("logistic", "forest"))
    for pipeline in ("logistic", "forest"):
        run("mlops-nb", "stage", "train", pipeline, cwd=root)
        to = tmp / f"{pipeline} ours"
        endpoint = served(root, pipeline, to)[-1]
        bodies = lambda of: b"\n".join(of(x.tolist()) for x in X[:BODIES])
        ours = (to, OURS, {}, f"/v2/models/{endpoint}/infer",
                bodies(lambda x: json.dumps(dict(inputs=[tensor(x)])).encode()))
        others = {n: peer(n, pipeline, tmp) for n in PEERS}
        found = in_turns({"ours": ours, **{n: (*where, bodies(PEERS[n][3])) for n, (_, where) in others.items()}},
                         each, rounds)
        mine = found["ours"][0][CONNECTIONS]
        for n, (name, _) in others.items():
            theirs, bound = found[n][0][CONNECTIONS], PEERS[n][-1]
            times = mine["rate"] / theirs["rate"]
            yield row(f"{pipeline} pipeline of scikit-learn, 28 columns, {CONNECTIONS} connections", said(mine), name,
                      said(theirs), f"{times:.1f}×", f"≥ {bound}×", times >= bound)


def main():
    if not shutil.which("wrk"): raise SystemExit("the load comes from wrk; install it (Debian: apt-get install wrk).")
    each, rounds, boosting = (1, 1, 20) if quick() else (2, 3, 500)
    rows = []
    with workplace() as tmp:
        for name in SETS if not quick() else ["telco"]:
            rows += data_rows(tmp, name, each, boosting)
            print(f"{name} done", file=sys.stderr, flush=True)
        rows += pipeline_rows(tmp, each, rounds)
    report(rows, [
        "Learners: the test rows of each data set by the project's own split (Adult's official test file; bank, bike "
        "and taxi by time, of taxi March is learned from and April the test), the primary metric of the task with its "
        "95 % interval. Training is the stage: reading, fitting, and for the others than LightGBM a process of its "
        "own, the export and the proof that the exported model answers alike. Boosting has "
        f"{boosting} rounds at most and stops on the validation rows; nothing was "
        "tuned. Categories are codes for all but the linear model.",
        "Parity: the largest difference of a score between the estimator and what is served, relative above 1, on "
        "validation rows and on rows at and beside the thresholds of the trees; trees of 64 bits differ in the last "
        "digits, XGBoost and ONNX count in 32.",
        f"The server: one worker, one row of JSON a request, {CONNECTIONS} connections, wrk beside it on the same "
        "cores, with validation, logging and routing on.",
        "Pipelines: fitted on the same rows with the same versions and seed in the environment of each peer, which "
        f"opens a pickle of it; medians of {rounds} rounds in turn, a tensor of one row a request, probabilities as "
        "the answer."],
        ("what", "test metric; our rate", "training; peer", "bundle; its rate", "server; ratio", "parity; bound",
         "met"))


if __name__ == "__main__": main()
