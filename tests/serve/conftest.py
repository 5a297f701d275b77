"Two models in a store and a manager that serves them in this process; one model behind a server with small limits."
import shutil

import pytest
from support import server as serving
from support.served_endpoint import plan

import mlops_nb.serve.hot_reload as hot_reload_module
from mlops_nb.bundle.store import store_bundle
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.release.release_plan import Variant
from mlops_nb.serve.hot_reload import ModelManager
from mlops_nb.serve.metrics import Metrics


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    "A folder with the store `bundles`, and the ids of two models of the same schema in it."
    root = tmp_path_factory.mktemp("made")
    for name, n in (("a", 400), ("b", 500)): store_bundle(serving.bundle(root / name, n=n), root / "bundles")
    a = Predictor.open(root / "a/artifacts/bundle").id
    [b] = [p.name for p in (root / "bundles").iterdir() if p.name != a]
    return root, a, b


@pytest.fixture(scope="session")
def predictors(made): return {i: Predictor.open(made[0] / "bundles" / i) for i in made[1:]}


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    monkeypatch.setattr(hot_reload_module, "POLL_SECONDS", .01)
    shutil.copytree(made[0] / "bundles", tmp_path / "p/bundles")
    (tmp_path / "p/settings.ini").write_text("[release]\nendpoint = rows\n")
    return tmp_path / "p"


@pytest.fixture
def served(project, made, tmp_path):
    "Starts a `ModelManager` on the project; all of them are stopped at the end."
    started = []

    def start(*variants, log=True, settings="", **how):
        if settings: (project / "settings.ini").write_text(f"[release]\nendpoint = rows\n{settings}")
        if variants or how: plan(project, *(variants or [Variant("a", made[1])]), **how)
        folder = tmp_path / f"log{len(started)}"
        manager = ModelManager(project, None, Metrics(folder, 0),
                               PredictionLogWriter(folder, 0) if log is True else log or None)
        started.append(manager)
        manager.start()
        return manager

    yield start
    for manager in started:
        manager.stop()
        if isinstance(manager.resources.log, PredictionLogWriter): manager.resources.log.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory): return serving.bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def predictor(bundle): return Predictor.open(bundle)


@pytest.fixture(scope="module")
def limited_server(bundle, tmp_path_factory):
    "Small limits, so that each can be met."
    limits = dict(MLOPS_NB_SERVE_MAX_BODY_MIB=1, MLOPS_NB_SERVE_MAX_ROWS=200, MLOPS_NB_SERVE_READ_TIMEOUT_SECONDS=1,
                  MLOPS_NB_SERVE_MAX_IN_FLIGHT=8)
    with serving.Server(serving.project(tmp_path_factory.mktemp("served"), made=bundle), **limits) as s: yield s
