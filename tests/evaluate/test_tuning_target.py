"A search by a metric of the task or of the project: what a trial is worth is what the evaluation says of its model."
import pytest
from support.small_project import small_project

from mlops_nb.config.params import read_params, write_params
from mlops_nb.config.project import Project
from mlops_nb.core.errors import UserError
from mlops_nb.evaluate.stage import run_evaluate
from mlops_nb.evaluate.tuning_target import run_tune_stage, tuning_target
from mlops_nb.train.stage import run_train
from mlops_nb.train.study import counted_trials
from mlops_nb.train.tuning import read_tuning_results, run_study

METRICS = """
import numpy as np
@fx.metric("profit", better="higher")
def profit(y, p, tenure): return np.where(p > .5, y * (72 - tenure) / 10 - 2, 0)

@fx.metric("missed", better="lower")
def missed(y, p): return float(np.sum(y * (1 - p)) / np.sum(y))

@fx.metric("never", better="higher")
def never(y, p): return float("nan")
"""


@pytest.fixture
def project(tmp_path):
    def made(metric, task="binary", **tune):
        root = small_project(tmp_path / task, task, (500, 300, 300), 5)
        path = Project.open(root).features_path
        path.write_text(path.read_text() + METRICS)
        params = read_params(root / "params.yaml")
        params.tune.n_trials, params.tune.metric, params.train.gbdt.n_estimators = 4, metric, 20
        for k, v in tune.items(): setattr(params.tune, k, v)
        write_params(params, root / "params.yaml")
        return root
    return made


@pytest.mark.parametrize("metric, better", [("profit", "higher"), ("missed", "lower"), ("roc_auc", "higher"),
                                            ("brier", "lower")])
def test_the_best_trial_is_worth_what_the_evaluation_says(project, metric, better):
    root = project(metric)
    assert run_tune_stage(root)["trials"] == 4
    found = read_tuning_results(root)["gbdt"]
    assert (found.metric, found.better, found.pruned) == (metric, better, 0)
    assert found.best_loss <= found.untuned_loss
    run_train(root)
    run_evaluate(root)
    from mlops_nb.evaluate.stage import read_evaluation
    said = read_evaluation(root).metrics["valid"][metric].value
    assert said == pytest.approx(-found.best_loss if better == "higher" else found.best_loss, rel=1e-9)


def test_several_workers_compare_by_it_too(project):
    root = project("profit")
    study, _ = run_study(root, "gbdt", n_workers=2, target=tuning_target(Project.open(root)))
    trials = counted_trials(study) # what a worker asked for beside the last one of the budget is given up
    assert len(trials) == 4 and all(t.value < 0 for t in trials)


def test_a_metric_that_is_no_number_says_so(project):
    root = project("never")
    with pytest.raises(UserError, match="never of gbdt is not a number on the validation rows"): run_tune_stage(root)


def test_another_metric_or_function_begins_another_study(project):
    root = project("profit")
    run_tune_stage(root)
    first = read_tuning_results(root)["gbdt"].study_name
    path = Project.open(root).features_path
    path.write_text(path.read_text().replace("/ 10 - 2", "/ 10 - 3"))
    run_tune_stage(root)
    second = read_tuning_results(root)["gbdt"].study_name
    assert first != second


@pytest.mark.parametrize("name", ["profits", "bias", "rmse"])
def test_a_metric_that_is_not_there_is_named_before_the_first_trial(project, name):
    root = project(name)
    with pytest.raises(UserError, match=f"'tune.metric' names '{name}', by which nothing can be chosen"):
        run_tune_stage(root)
    assert not (root / ".mlops/tuning.journal").exists()


def test_without_trials_the_metric_is_not_asked_for(project):
    assert run_tune_stage(project("profits", n_trials=0)) == {"trials": 0}


def test_the_study_of_a_metric_is_not_run_by_the_loss(project):
    with pytest.raises(ValueError, match="tune.metric asks for a target"): run_study(project("profit"), "gbdt")
