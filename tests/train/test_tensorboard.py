"""What a training shows of itself: event files that TensorBoard reads, figures for MLflow, and no trace of time in
artifacts."""
import sys

import pytest
from support import trained_project as modelling
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.train.stage import TrainingReport, run_train
from mlops_nb.train.tensorboard import TensorBoardLogger


def curves(root, learner):
    "Name -> {iteration: value} of the only training there."
    folder, = (root / ".mlops/tensorboard" / learner).iterdir()
    assert len(folder.name) == 12
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload() # 0: all of them
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.fixture(scope="module", params=["gbdt", "net"])
def project(request, tmp_path_factory):
    return modelling.trained(tmp_path_factory.mktemp(request.param), learner=request.param)


def test_the_curves_are_those_of_the_training_and_a_second_run_does_not_double_them(project):
    learner = read_json(next(project.glob("artifacts/models/*/training.json")), TrainingReport)
    first = file_hashes(project / "artifacts")
    facts = run_train(project, learner.learner)
    assert file_hashes(project / "artifacts") == first
    drawn = curves(project, learner.learner)
    for part in ("train", "valid"):
        want = [(p.iteration, getattr(p, part)) for p in learner.loss_curve]
        assert drawn[f"log_loss/{part}"] == [(i, pytest.approx(v, rel=1e-6)) for i, v in want]
    points = [p.iteration for p in learner.loss_curve]
    for name in ("samples_per_second", "memory_mib"): assert [i for i, v in drawn[name] if v > 0] == points
    assert [f["iteration"] for f in facts["metrics_history"]] == points
    assert all(0 < v <= 1 for _, v in drawn.get("step_time_share", []))


def test_the_curves_of_counts_are_named_by_their_deviance(tmp_path):
    root = modelling.trained(tmp_path, "regression", counts=True)
    about = read_json(root / "artifacts/models/gbdt/training.json", TrainingReport)
    drawn = curves(root, "gbdt")
    assert about.eval_metric == "poisson_deviance" and not {"rmse/train", "loss/valid"} & drawn.keys()
    for part in ("train", "valid"):
        want = [(p.iteration, getattr(p, part)) for p in about.loss_curve]
        assert drawn[f"poisson_deviance/{part}"] == [(i, pytest.approx(v, rel=1e-6)) for i, v in want]
    assert len(drawn["rmse/valid"]) == len(about.loss_curve) # to compare with trainings of the other objective


class Killed(Exception): pass


def test_a_resumed_training_goes_on_in_its_curves(project, monkeypatch):
    learner = next(project.glob("artifacts/models/*/training.json")).parent.name
    before = curves(project, learner)["log_loss/valid"]
    checkpoints, log = project / ".mlops/checkpoints" / learner, TensorBoardLogger.log_metrics

    def dying(self, iteration, metrics):
        log(self, iteration, metrics)
        if iteration == before[3][0]: raise Killed
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", dying)
    with pytest.raises(Killed): run_train(project, learner)
    assert curves(project, learner)["log_loss/valid"] == before[:4]
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", log)
    resumed = checkpoints.exists() # so few trees have no checkpoint, and start again
    run_train(project, learner)
    assert resumed == (learner == "net") and curves(project, learner)["log_loss/valid"] == before


def test_without_tensorboard_a_training_is_only_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    root = modelling.trained(tmp_path, n=300)
    assert not (root / ".mlops/tensorboard").exists() and run_train(root)["metrics_history"]


def test_without_a_folder_figures_are_kept():
    with TensorBoardLogger() as board:
        board.open("key")
        board.log_metrics(3, {"log_loss/valid": 0.5})
    assert board.metrics_history == [{"iteration": 3, "log_loss/valid": 0.5}]
