"Tuning: never worse than before it, exact in its budget, shared by processes, and a kill costs only what was running."
import json
import os
import random
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import optuna
import polars as pl
import psutil
import pytest
from optuna.trial import TrialState
from sklearn.metrics import root_mean_squared_error
from support import trained_project as modelling

from mlops_nb.config.params import read_params, write_params
from mlops_nb.config.project import Project
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.prepare import read_split
from mlops_nb.train import learners, trials
from mlops_nb.train import tuning as tune
from mlops_nb.train.stage import TrainingReport, open_trained_predictor, run_train
from mlops_nb.train.study import (
    counted_trials,
    enqueue_first_trial,
    expected_improvement,
    fail_stale_trials,
    is_repeated,
    open_storage,
    open_study,
    worker_identity,
)
from mlops_nb.train.trials import open_search_context
from mlops_nb.train.tuning import read_tuning_results, run_study, run_trials

JOURNAL = ".mlops/tuning.journal"
SEARCHED = {"learning_rate", "num_leaves", "min_child_samples", "colsample_bytree", "subsample", "reg_lambda",
            "max_cat_to_onehot", "extra_trees"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch): monkeypatch.setenv("MLOPS_NB_RUN_THREADS", "1")


def project(root, task="binary", learner="gbdt", counts=False, **how):
    modelling.trained(root, task, learner=learner, counts=counts)
    return change(root, **{"n_trials": 8} | how)


def change(root, **how):
    p = read_params(root / "params.yaml")
    write_params(msgspec.convert(msgspec.to_builtins(p) | {"tune": msgspec.to_builtins(p.tune) | how}, type(p)),
                 root / "params.yaml")
    return root


def table(root): return pl.read_parquet(root / "artifacts/tuning/trials.parquet")


@pytest.mark.parametrize("task, learner",
                         [("binary", "gbdt"), ("multiclass", "gbdt"), ("regression", "gbdt"), ("binary", "net"),
                                           ("regression", "net")])
def test_what_is_found_is_used_and_never_worse_on_the_valid_rows(tmp_path, task, learner):
    narrow = {"d_hidden": [16, 32], "d_embedding": [4, 8], "n_bins": [4, 8], "n_blocks": [1, 2]}
    root = project(tmp_path, task, learner, net=narrow)
    before = read_json(root / f"artifacts/models/{learner}/training.json", TrainingReport)
    assert tune.run_tune(root)["trials"] == 8
    found = read_tuning_results(root)[learner]
    assert found.untuned_loss == before.best_loss, "the first trial is the very training of params.yaml"
    assert found.best_loss <= found.untuned_loss and found.complete + found.pruned == 8
    run_train(root, learner)
    after = read_json(root / f"artifacts/models/{learner}/training.json", TrainingReport)
    assert after.best_loss == found.best_loss, "the stage train gets what the trial got"
    assert {k: after.params[k] for k in found.best_params} == found.best_params
    space = msgspec.to_builtins(getattr(read_params(root / "params.yaml").tune, learner))
    for name, (low, high, *_) in [(n, r) for n, r in space.items() if not tune.is_categorical(r)]:
        values = table(root).filter(pl.col("parameter") == name, pl.col("trial") > 0)["value"]
        assert len(values) == 7 and low <= values.min() and values.max() <= high


def test_both_objectives_are_tried_where_nothing_is_below_0(tmp_path):
    root = project(tmp_path, "regression", counts=True)
    tune.run_tune(root)
    found, tried = read_tuning_results(root)["gbdt"], table(root).filter(parameter="objective")
    assert tried["value"].to_list()[0] == 1, "a place in the list; the first is that of params.yaml"
    assert set(tried["value"]) == {0, 1}
    if found.param_importances: assert set(found.param_importances) == SEARCHED | {"objective"}
    run_train(root)
    after = read_json(root / "artifacts/models/gbdt/training.json", TrainingReport)
    assert after.params["objective"] == found.best_params.get("objective", "poisson")
    # trials of both objectives are compared by the squared error, whatever their trees were stopped by
    test = read_split(root, "valid")
    error = root_mean_squared_error(test["_target"], open_trained_predictor(root, "gbdt").predict(test))
    assert found.best_loss == pytest.approx(error, rel=1e-6)
    loss = "poisson_deviance" if after.params["objective"] == "poisson" else "rmse"
    assert after.eval_metric == loss and (after.best_loss == found.best_loss) == (loss == "rmse")
    change(root, n_trials=3, gbdt={"objective": ["squared"]})
    tune.run_tune(root)
    later = table(root).filter(parameter="objective")["value"].to_list()
    # that of params.yaml is none of the choices, and the last study's best comes without its objective
    assert later == [None, 0, 0]
    change(root, n_trials=3, gbdt={"objective": ["poisson"]})
    tune.run_tune(root)
    assert set(table(root)["parameter"]) == SEARCHED, "it is what train says anyway"


@pytest.mark.parametrize("task, gbdt", [("regression", {}), ("binary", {}), ("regression", {"objective": None}),
                                        ("regression", {"objective": ["poisson"]})])
def test_objectives_are_no_choice_below_0_or_of_classes(tmp_path, task, gbdt):
    assert set(open_search_context(Project.open(project(tmp_path, task, gbdt=gbdt)), "gbdt").search_space) == SEARCHED


def test_trees_that_go_on_keep_their_objective(tmp_path):
    root = project(tmp_path, "regression", counts=True, n_trials=2)
    (root / "artifacts/models/gbdt").rename(root / "earlier")
    p = read_params(root / "params.yaml")
    p.train.init_model = "earlier"
    write_params(p, root / "params.yaml")
    assert tune.run_tune(root)["trials"] == 2 and set(table(root)["parameter"]) == SEARCHED
    p.train.gbdt.objective = "squared"
    write_params(p, root / "params.yaml")
    with pytest.raises(UserError, match="adds up with the objective poisson, and train.gbdt.objective is squared"):
        tune.run_tune(root)


def test_without_trials_nothing_is_searched_and_the_params_stay(tmp_path):
    root = project(tmp_path, n_trials=0)
    assert tune.run_tune(root) == {"trials": 0} and read_tuning_results(root) == {} and not len(table(root))
    assert not (root / JOURNAL).exists()
    first = file_hashes(root / "artifacts/models/gbdt")
    run_train(root)
    assert file_hashes(root / "artifacts/models/gbdt") == first


KILLED = """
import sys, time
from mlops_nb.train import learners, tuning as tune
fit = learners.fit_gbdt
trees, first = 0, int(sys.argv[2])
def slow(*args, on_iteration, **kw):                       # 2 ms a tree, so that there is a moment to be killed in
    def wait(i, v):
        global trees
        trees += 1
        if trees == first: print("grown", flush=True)
        time.sleep(0.002 if trees < first + 15 else 600)   # it is killed however late
        on_iteration(i, v)
    return fit(*args, on_iteration=wait, **kw)
learners.fit_gbdt = slow
tune.run_tune(sys.argv[1])
"""


def test_killed_again_and_again_it_ends_with_the_same_trials(tmp_path):
    calm, killed = project(tmp_path / "calm", n_trials=12), project(tmp_path / "killed", n_trials=12)
    tune.run_tune(calm)
    dice, kills, kept = random.Random(3), 0, 0
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-c", KILLED, str(killed), str(dice.randrange(5, 25))],
                               stdout=subprocess.PIPE, env=dict(os.environ))
        run.stdout.readline()
        time.sleep(dice.uniform(0, 0.04))
        kills += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.communicate()
        if not (killed / JOURNAL).exists(): continue
        search = open_search_context(Project.open(killed), "gbdt")
        storage = open_storage(killed / JOURNAL)
        study = open_study(storage, search.study_name, search.search_space)
        done = [t for t in counted_trials(study) if t.state.name != "RUNNING"]
        assert len(done) >= kept, "a finished trial was lost"
        kept = len(done)
    assert kills >= 2
    tune.run_tune(killed)
    assert file_hashes(killed / "artifacts/tuning") == file_hashes(calm / "artifacts/tuning")


def test_workers_share_one_budget_and_try_different_things(tmp_path):
    root = project(tmp_path, n_trials=9)
    study, _ = run_study(root, "gbdt", n_workers=3)
    trials = counted_trials(study)
    assert len(trials) == 9 and {t.state.name for t in trials} <= {"COMPLETE", "PRUNED"}
    assert len({t.user_attrs["worker"][1] for t in trials}) > 1, "one process did it all"
    tried = [tuple(t.params.values()) for t in trials]
    assert len(set(tried)) == 9
    assert run_study(root, "gbdt",
                     n_workers=2)[0].get_trials() == study.get_trials(), "the budget is used up: nothing happens"


def test_the_same_known_setting_put_in_front_twice_is_tried_once(tmp_path):
    "Two workers that look at the same moment both put the next one in front."
    study, search = run_study(project(tmp_path, n_trials=2), "gbdt")
    for _ in range(2): study.enqueue_trial({"num_leaves": 9})
    first, second = study.ask(), study.ask()
    assert not is_repeated(study, first) and is_repeated(study, second)
    study.tell(first, 1.0)
    assert is_repeated(study, second), "the first one was quick: it had ended when the other worker looked"
    study.tell(second, state=TrialState.FAIL)


def test_a_known_setting_that_was_lost_is_the_next_in_front(tmp_path):
    "What counts is which settings were tried, and not how many trials there are."
    study, _ = run_study(project(tmp_path, n_trials=1), "gbdt")
    known = study.user_attrs["first_trials"]
    assert len(known) >= 3
    def next_one():
        enqueue_first_trial(study)
        trial = study.ask()
        return trial, study.get_trials(deepcopy=False)[trial.number].system_attrs["fixed_params"]
    lost, values = next_one()
    assert values == known[1]
    later, values = next_one()
    assert values == known[2]
    study.tell(later, 1.0)
    study.tell(lost, state=TrialState.FAIL)
    again, values = next_one()
    assert values == known[1] and not is_repeated(study, again)


def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    root = project(tmp_path, n_trials=1000)
    script = tmp_path / "begin.py"
    script.write_text("import sys\nfrom pathlib import Path\nfrom mlops_nb.train.tuning import run_study\n"
                      "if __name__ == '__main__': run_study(Path(sys.argv[1]), 'gbdt', n_workers=2)\n")
    run = subprocess.Popen([sys.executable, str(script), str(root)], env=dict(os.environ))
    end = time.monotonic() + 60
    while not (root / JOURNAL).exists() or (root / JOURNAL).read_text().count('"worker"') < 3:
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.1)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    run.kill()
    run.wait()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    change(root, n_trials=6)
    search = open_search_context(Project.open(root), "gbdt")
    study = open_study(open_storage(root / JOURNAL), search.study_name, search.search_space)
    fail_stale_trials(study)
    assert not [t for t in study.get_trials() if t.state.name == "RUNNING"]


def test_a_second_machine_joins_only_the_same_study(tmp_path):
    here, there = project(tmp_path / "here", n_trials=4), project(tmp_path / "there", n_trials=4)
    for root in (here, there): (root / "settings.ini").write_text(f"[tune]\nstorage = {tmp_path / 'shared.journal'}\n")
    with pytest.raises(UserError, match="the journal holds no study .* but 0 of other data"):
        run_study(there, "gbdt", join=True)
    first, _ = run_study(here, "gbdt")
    change(here, n_trials=7), change(there, n_trials=7)
    second, _ = run_study(there, "gbdt", join=True)
    assert second.study_name == first.study_name and len(counted_trials(second)) == 7
    change(there, gbdt={"num_leaves": [3, 9]})
    with pytest.raises(UserError, match="but 1 of other data, params or search spaces"):
        run_study(there, "gbdt", join=True)
    assert len(counted_trials(first)) == 7, "nothing of it is lost"


def test_the_last_studys_best_is_tried_in_a_new_space(tmp_path):
    root = project(tmp_path, n_trials=8)
    tune.run_tune(root)
    old = read_tuning_results(root)["gbdt"]
    change(root, n_trials=2, gbdt={"num_leaves": [3, 5], "learning_rate": None})
    tune.run_tune(root)
    rows, new = table(root), read_tuning_results(root)["gbdt"]
    assert new.study_name != old.study_name and set(rows["parameter"]) == SEARCHED - {"learning_rate"}
    if old.best_params:
        second = dict(rows.filter(trial=1).select("parameter", "value").iter_rows())
        assert second["num_leaves"] == min(max(old.best_params["num_leaves"], 3),
                                           5) and second["subsample"] == old.best_params["subsample"]
    assert len(optuna.get_all_study_names(open_storage(root / JOURNAL))) == 2


def test_known_settings_come_first(tmp_path):
    from mlops_nb.train.study import PORTFOLIO
    root = project(tmp_path, n_trials=5)
    study, _ = run_study(root, "gbdt")
    first, *others = [t.params for t in counted_trials(study)]
    known = [v for v in PORTFOLIO["gbdt"] if "objective" not in v] # of a regression
    assert first == {} and all(v.items() <= t.items() for v, t in zip(known, others, strict=True))


@pytest.mark.parametrize("learners", [["gbdt"], ["gbdt", "net"]])
def test_a_budget_is_one_time_for_all(tmp_path, learners):
    root = project(tmp_path, n_trials=0, budget="2s", net={"d_hidden": [16, 32], "n_blocks": [1, 2]})
    p = read_params(root / "params.yaml")
    p.train.learners = learners
    write_params(p, root / "params.yaml")
    for _ in range(2): # the second time it was spent, but for what was too short for a further trial
        spent = {s.learner: tune.trial_seconds(study) for study, s in tune.run_search(root)}
        assert {"gbdt"} <= {*spent} <= {*learners} and min(map(len, spent.values())) >= 1
        longest = max(t for took in spent.values() for t in took)
        assert sum(map(sum, spent.values())) <= 2 + longest * len(learners)
    assert {"gbdt"} <= {*read_found(root)} <= {*learners}


def read_found(root):
    tune.run_tune(root)
    return read_tuning_results(root)


def test_the_first_budget_brings_what_a_search_is_worth_most_with(tmp_path):
    root = project(tmp_path, n_trials=0)
    assert tune.set_time_budget(root, "5m") == ["train.learners is gbdt, ensemble", "train.refit is true"]
    params = read_params(root / "params.yaml")
    assert (params.tune.budget, params.train.learners, params.train.refit) == ("5m", ["gbdt", "ensemble"], True)
    params.train.learners, params.train.refit = ["gbdt"], False
    write_params(params, root / "params.yaml")
    assert tune.set_time_budget(root, "10m") == [], "what somebody has changed stays"
    later = read_params(root / "params.yaml")
    assert (later.tune.budget, later.train.learners, later.train.refit) == ("10m", ["gbdt"], False)
    with pytest.raises(UserError): tune.set_time_budget(root, "soon")


def test_a_budget_shorter_than_one_training_has_that_one(tmp_path):
    root = project(tmp_path, n_trials=0, budget="0s")
    assert tune.run_tune(root)["trials"] == 1
    assert read_tuning_results(root)["gbdt"].best_params == {}


def stop_second_trial(monkeypatch, iterations):
    "The time is over at an iteration of the second trial."
    told = iter(range(10**6))
    def is_over(watch): return watch.trial.number == 1 and next(told) >= iterations - 1
    monkeypatch.setattr(trials._Watch, "is_over", is_over)


@pytest.mark.parametrize("learner", ["gbdt", "net"])
def test_a_trial_that_the_time_ends_has_the_model_so_far(tmp_path, monkeypatch, learner):
    root = project(tmp_path, learner=learner, n_trials=2)
    p = read_params(root / "params.yaml")
    p.train.learners = [learner, "ensemble"]
    write_params(p, root / "params.yaml")
    stop_second_trial(monkeypatch, 3)
    study, search = run_study(root, learner)
    done = counted_trials(study)[1]
    assert done.state.name == "COMPLETE" and done.user_attrs["iterations"] <= 3
    fitted, = trials.fit_trial(search, done.params, 1, lambda i, loss: i == 3)
    assert fitted.iterations == 3 and (fitted.best_iteration, fitted.best_loss) == (done.user_attrs["iterations"],
                                                                                    done.value)
    model, valid = learners.open_fitted(learner, p.train, fitted), search.folds[0].parts[1]
    assert np.array_equal(np.load(trials.find_trial_scores(search, 1)), model.predict_raw(valid.X))


def test_a_trial_that_the_time_ends_among_its_folds_is_broken_off(tmp_path, monkeypatch):
    root = project(tmp_path, n_trials=2)
    p = read_params(root / "params.yaml")
    p.train.n_folds = 2
    write_params(p, root / "params.yaml")
    stop_second_trial(monkeypatch, 3)
    assert [t.state.name for t in counted_trials(run_study(root, "gbdt")[0])] == ["COMPLETE", "PRUNED"]


def test_only_the_first_learner_may_take_longer_than_its_time(tmp_path, capsys):
    root = project(tmp_path, n_trials=0, budget="0s")
    p = read_params(root / "params.yaml")
    p.train.learners = ["gbdt", "net"]
    p.train.net = msgspec.structs.replace(p.train.net, max_epochs=1, ensemble_size=2, d_hidden=16)
    write_params(p, root / "params.yaml")
    for _ in range(2): # what was given up is tried again by the stage
        assert tune.run_tune(root)["trials"] == 1 and {*read_tuning_results(root)} == {"gbdt"}
        told = capsys.readouterr().err
        assert "net was left out: one training of it takes longer than its part of the time; a longer --budget" in told
        assert "tune: one training of gbdt took " in told and "longer than tune.budget (0s)" in told
    change(root, budget="1h", n_trials=2, net={"d_hidden": [16, 32], "n_blocks": [1, 2]})
    assert tune.run_tune(root)["trials"] == 4 and {*read_tuning_results(root)} == {"gbdt", "net"}


def test_an_ensemble_is_not_the_first_learner(tmp_path):
    root = project(tmp_path, n_trials=0, budget="0s")
    p = read_params(root / "params.yaml")
    p.train.learners = ["ensemble", "gbdt"]
    write_params(p, root / "params.yaml")
    assert tune.run_tune(root)["trials"] == 1 and {*read_tuning_results(root)} == {"gbdt"}


def test_expected_improvement_is_that_of_drawn_losses():
    losses, least = [.30, .31, .33, .36, .9, .8, .7, .6], .305
    better = losses[:4]
    drawn = np.random.default_rng(0).normal(np.mean(better), np.std(better, ddof=1), 10**6)
    assert expected_improvement(losses, least) == pytest.approx(np.maximum(least - drawn, 0).mean(), rel=.01)
    assert expected_improvement([.3], .4) == expected_improvement([.3, .3], .4) == expected_improvement([], 1) == 0


def studied(learner, losses, seconds):
    "A study with these losses, of trials that took so long, and the search that it belongs to."
    study = optuna.create_study()
    for loss in losses:
        study.add_trial(optuna.trial.create_trial(value=loss, user_attrs={"seconds": seconds}))
    return study, trials.SearchContext(learner, None, [], {}, "", None)


def test_the_time_goes_where_it_promises_most():
    lead = studied("lead", [.30, .31, .32], 10)
    assert tune._most_promising([lead, studied("near", [.31, .33, .36], 1)]) == "near", "it may win, and is quick"
    assert tune._most_promising([lead, studied("near", [.31, .33, .36], 100)]) == "lead"
    assert tune._most_promising([lead, studied("hopeless", [.5, .51, .52], .01)]) == "lead"
    assert tune._most_promising([studied("one", [.4], 1), studied("other", [.3], 1)]) == "other", "nothing to go by"


def test_a_learner_that_cannot_win_gets_its_part_of_a_quarter(tmp_path, monkeypatch):
    root = project(tmp_path, n_trials=0, budget="80s")
    p = read_params(root / "params.yaml")
    p.train.learners = ["gbdt", "net"]
    write_params(p, root / "params.yaml")
    told, losses = [], {"gbdt": [.30, .31, .32], "net": [.5, .51, .52]}
    def run_study(root, learner, seconds, **how):
        told.append((learner, round(seconds, 6)))
        return studied(learner, losses[learner], seconds / 3)
    monkeypatch.setattr(tune, "run_study", run_study)
    tune.run_search(root)
    assert told == [("gbdt", 10), ("net", 10), ("gbdt", 30), ("gbdt", 50), ("gbdt", 70)]


def test_a_learner_that_fails_is_said_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    root = project(tmp_path, n_trials=0, budget="1s")
    p = read_params(root / "params.yaml")
    p.train.learners = ["gbdt", "net"]
    write_params(p, root / "params.yaml")
    plain = tune.run_study
    def failing(root, learner, **how):
        if learner == "net": raise UserError("no memory is left.")
        return plain(root, learner, **how)
    monkeypatch.setattr(tune, "run_study", failing)
    assert [s.learner for _, s in tune.run_search(root)] == ["gbdt"]
    assert capsys.readouterr().err == "warning: net was left out: no memory is left.\n"
    monkeypatch.setattr(tune, "run_study", lambda *args, **how: failing(root, "net"))
    with pytest.raises(UserError, match="no learner could be trained"): tune.run_search(root)


def test_what_a_machine_slept_is_not_counted(tmp_path, monkeypatch):
    root = project(tmp_path, n_trials=2)
    study, _ = run_study(root, "gbdt")
    [one, other] = counted_trials(study)
    awake = one.user_attrs["seconds"]
    assert tune.trial_seconds(study) == [awake, other.user_attrs["seconds"]]
    assert awake <= one.duration.total_seconds() + .1


def test_a_working_time_ends_it_after_the_first_trial_at_least(tmp_path):
    root = project(tmp_path, n_trials=500, timeout_seconds=0.001)
    assert tune.run_tune(root)["trials"] == 1
    assert read_tuning_results(root)["gbdt"].best_params == {}


def test_poor_trials_are_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr("mlops_nb.train.study.PORTFOLIO", {}) # among random ones there are poor ones
    monkeypatch.setattr("mlops_nb.train.trials._FIRST_MILESTONE", 2)
    root = project(tmp_path, n_trials=25,
                   gbdt={"reg_lambda": [0.001, 100000.0, "log"], "learning_rate": [0.001, 0.3, "log"]})
    tune.run_tune(root)
    found = read_tuning_results(root)["gbdt"]
    assert found.pruned > 0 and set(found.param_importances) == SEARCHED
    assert sum(found.param_importances.values()) == pytest.approx(1)


def test_the_better_half_goes_on_at_each_milestone(tmp_path, monkeypatch):
    "Trees are compared where their number times the learning rate is 2, 4, 8 …; who ends before is not compared."
    monkeypatch.setattr("mlops_nb.train.study.PORTFOLIO", {})
    monkeypatch.setattr("mlops_nb.train.trials._FIRST_MILESTONE", 2) # these rows are few
    study, _ = run_study(project(tmp_path, n_trials=20, gbdt={"learning_rate": [0.05, 0.3, "log"]}), "gbdt")
    trials = sorted(counted_trials(study), key=lambda t: t.number)
    broken_off = [t for t in trials if t.state.name == "PRUNED"]
    assert broken_off and {step for t in trials for step in t.intermediate_values} <= {2, 4, 8, 16, 32}
    for t in trials:
        for step, loss in t.intermediate_values.items():
            at = [o.intermediate_values[step] for o in trials[:t.number + 1] if step in o.intermediate_values]
            ended = t in broken_off and step == t.last_step
            assert ended == (len(at) >= 3 and loss > np.quantile(at, .5) and t.number > 0), (t.number, step)


def test_a_trial_that_is_too_slow_to_serve_is_not_taken_and_that_is_said(tmp_path, capsys):
    root = project(tmp_path, n_trials=6, max_latency_us=None)
    study, _ = run_study(root, "gbdt")
    tune.run_tune(root)
    best = read_tuning_results(root)["gbdt"]
    assert best.best_params == study.best_params != {} and "max_latency_us" not in capsys.readouterr().err
    tune.run_tune(change(root, max_latency_us=.015 * study.best_trial.user_attrs["row_splits"] * .999))
    quick = read_tuning_results(root)["gbdt"]
    assert best.best_loss < quick.best_loss <= quick.untuned_loss
    assert f"the trees of trial {study.best_trial.number} take" in capsys.readouterr().err
    tune.run_tune(change(root, max_latency_us=1e-9))
    assert read_tuning_results(root)["gbdt"].best_params == {}, "what params.yaml says may always be taken"


def test_a_net_that_goes_on_from_another_keeps_its_shape(tmp_path):
    root = project(tmp_path, learner="net", n_trials=3)
    (root / "artifacts/models/net").rename(root / "earlier")
    p = read_params(root / "params.yaml")
    p.train.init_model = "earlier"
    write_params(p, root / "params.yaml")
    tune.run_tune(root)
    assert set(table(root)["parameter"]) == {"dropout", "learning_rate", "weight_decay"}
    run_train(root, "net")


# ---- what can be wrong with a journal

def test_a_torn_end_is_cut_off_and_the_rest_is_kept(tmp_path):
    root = project(tmp_path, n_trials=4)
    run_study(root, "gbdt")
    path = root / JOURNAL
    whole = path.read_bytes()
    for cut in (1, 30, len(whole.splitlines()[-1]) + 30):
        path.write_bytes(whole[:-cut])
        run_study(root, "gbdt")
        search = open_search_context(Project.open(root), "gbdt")
        trials = counted_trials(open_study(open_storage(path), search.study_name, search.search_space))
        assert [t.state.name in ("COMPLETE", "PRUNED") for t in trials] == 4 * [True]
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


@pytest.mark.parametrize("content",
                         ["to do: buy milk\nand bread", "[1, 2]\n", '{"a": 1}\n', '{"op_code":0}\n{"op_code":0}\n'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, content):
    root = project(tmp_path)
    (root / JOURNAL).parent.mkdir(exist_ok=True)
    (root / JOURNAL).write_text(content)
    with pytest.raises(UserError, match="is no journal of trials, or it is damaged"): run_study(root, "gbdt")
    assert (root / JOURNAL).read_text() == content


def test_an_error_in_a_trial_is_told_and_the_study_goes_on_later(tmp_path, monkeypatch):
    root = project(tmp_path, n_trials=5)
    fit, calls = learners.fit_gbdt, []

    def breaks(*a, **k):
        calls.append(1)
        if len(calls) == 3: raise OSError(28, "No space left on device")
        return fit(*a, **k)
    monkeypatch.setattr(learners, "fit_gbdt", breaks)
    with pytest.raises(OSError, match="No space left"): tune.run_tune(root)
    assert not (root / "artifacts/tuning").exists()
    assert tune.run_tune(root)["trials"] == 5 and len(calls) == 6


def test_a_trial_of_a_living_process_is_left_running(tmp_path):
    root = project(tmp_path, n_trials=3)
    search = open_search_context(Project.open(root), "gbdt")
    study = open_study(open_storage(root / JOURNAL), search.study_name, search.search_space)
    trial = study.ask()
    parent = psutil.Process(os.getppid())
    host = worker_identity()[0]
    trial.set_user_attr("worker", [host, parent.pid, parent.create_time()])
    assert fail_stale_trials(study) == 0
    trial.set_user_attr("worker", ["another machine", 1, 0.0])
    assert fail_stale_trials(study) == 0
    trial.set_user_attr("worker", [host, parent.pid, 0.0])
    assert fail_stale_trials(study) == 1 and fail_stale_trials(study) == 0
    run_trials(study, search)
    first = [t for t in counted_trials(study) if "default_params" in t.user_attrs]
    assert [t.state.name for t in first] == ["COMPLETE"], "the trial that was put in front is tried again"


def test_the_command(tmp_path):
    root = project(tmp_path, n_trials=3)
    done = subprocess.run(["mlops-nb", "tune", "--workers", "2"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gbdt: 3 trials, the best loss on the validation rows is 0." in done.stdout
    change(root, n_trials=0)
    done = subprocess.run(["mlops-nb", "tune"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "tune.n_trials in params.yaml is 0" in done.stderr
