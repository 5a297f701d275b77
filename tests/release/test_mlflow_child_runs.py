"Trials and folds as child runs in MLflow: once for each tuning, however many runs of the pipeline use it."
from types import SimpleNamespace

import polars as pl
import pytest
from support.tracking_store import ready_store
from typer.testing import CliRunner

from mlops_nb.cli import app
from mlops_nb.config.settings import Settings, TrackingSettings
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.release import mlflow_child_runs, mlflow_tracking
from mlops_nb.release.mlflow_tracking import tracking_client
from mlops_nb.train.tuning import TRIALS_SCHEMA


def write_tuning(root, n=3):
    "What the stage tune leaves: trials of one learner, the last broken off, with a choice that is not in the list."
    (root / "artifacts/tuning").mkdir(parents=True, exist_ok=True)
    rows = [("gbdt", i, i < n - 1, .5 - i / 100, p, v) for i in range(n)
            for p, v in (("learning_rate", .1), ("max_bin", None))]
    pl.DataFrame(rows, schema=TRIALS_SCHEMA, orient="row").write_parquet(root / "artifacts/tuning/trials.parquet")
    write_json(root / "artifacts/tuning/tuning.json", {"gbdt": dict(
        study_name="s", complete=n - 1, pruned=1, untuned_loss=.5, best_loss=.49, best_params={"learning_rate": .1},
        param_importances={})})


def test_a_tuning_is_logged_once_and_later_runs_name_it(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[tracking]\nexperiment = rows\n")
    write_tuning(ready_store(tmp_path))
    fold = dict(name="fold 1", metrics=dict(rmse=2., bias=None))
    write_json(tmp_path / "artifacts/cross_validation/gbdt/cross_validation.json", dict(
        learner="gbdt", folds=[fold, dict(name="fold 2", metrics=None)], seeds=[], seed_summary={},
        fold_summary=dict(rmse=dict(mean=2., std=0.))))
    client, experiment = tracking_client(tmp_path, Settings(tracking=TrackingSettings(experiment="rows")))
    pipeline = [client.create_run(experiment).info.run_id for _ in range(2)]
    for run_id in (pipeline[0], *pipeline):
        monkeypatch.setattr(mlflow_child_runs, "log_run", lambda root, run_id=run_id: run_id)
        mlflow_child_runs.log_child_runs(tmp_path)

    def below(run_id): return client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    parents = {r.info.run_name: r for r in below(pipeline[0])}
    assert sorted(parents) == ["cross-validation of gbdt", "tuning of gbdt"] and not below(pipeline[1])
    for run_id in pipeline:
        tags = client.get_run(run_id).data.tags
        assert tags["mlops_nb.tuning.gbdt"] == parents["tuning of gbdt"].info.run_id
        assert tags["mlops_nb.cross_validation.gbdt"] == parents["cross-validation of gbdt"].info.run_id
    tuning = parents["tuning of gbdt"]
    assert tuning.data.params == {"train.gbdt.learning_rate": "0.1"} and tuning.data.metrics["untuned_loss"] == .5
    trials = {r.info.run_name: r for r in below(tuning.info.run_id)}
    assert {n: r.info.status for n, r in trials.items()} == {
        "trial 0": "FINISHED", "trial 1": "FINISHED", "trial 2": "KILLED"}
    assert trials["trial 1"].data.metrics == {"loss": .49}
    assert trials["trial 1"].data.params == {"train.gbdt.learning_rate": "0.1"}
    validated, = below(parents["cross-validation of gbdt"].info.run_id)
    assert validated.data.metrics == {"root_mean_squared_error": 2.}
    assert parents["cross-validation of gbdt"].data.metrics["fold_mean.root_mean_squared_error"] == 2.

    write_tuning(tmp_path, n=4) # another tuning has runs of its own
    mlflow_child_runs.log_child_runs(tmp_path)
    assert [len(below(r.info.run_id)) for r in below(pipeline[1])] == [4]


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "http://ana:secret@mlflow.example.org/"])
def test_ui_says_where_the_table_of_runs_is(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("")
    monkeypatch.setenv("MLOPS_NB_TRACKING_URI", uri) # a password only goes there
    monkeypatch.setattr(mlflow_tracking, "tracking_client", lambda root, settings: (SimpleNamespace(), "7"))
    started = []
    monkeypatch.setattr("os.execv", lambda program, words: started.extend(words))
    said = CliRunner().invoke(app, ["ui", "--port", "5123"]).output
    local = uri.startswith("sqlite")
    server = "http://127.0.0.1:5123" if local else "http://mlflow.example.org"
    assert said.strip() == f"Open {server}/#/experiments/7?workflowType=machine_learning"
    assert bool(started) == local and (not local or started[-1] == "5123")
