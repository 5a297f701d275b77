"""`mlops-nb up` in a new project: the first model is trained although its controller is killed, it answers, and a batch
of bad data changes nothing in production. The whole story is in benchmarks/controlled_day.py."""
import polars as pl
import pytest
from support.continuous_story import Customers, World, effects
from support.services import free_port

from mlops_nb.config.settings import read_settings
from mlops_nb.examples.subscribers import subscribers
from mlops_nb.monitor.alerts import read_alerts
from mlops_nb.scaffold import commit_project, init_project

TRIGGERS = "retrain:\n  when:\n    any:\n    - new_data: {min_rows: 50}\n"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "churn"
    subscribers(1500, n_months=3).write_parquet(tmp_path / "subscribers.parquet")
    report = init_project(root, str(tmp_path / "subscribers.parquet"), "left", time="month", entity="customer")
    (root / "triggers.yaml").write_text(TRIGGERS)
    params = root / "params.yaml" # a line is a good model of these rows
    params.write_text(params.read_text().replace("min_gain: 0.0  # share", "min_gain: -0.5  # share"))
    commit_project(root, report)
    return root


def test_it_runs_by_itself(root, monkeypatch):
    env = dict(MLOPS_NB_SERVE_PORT=str(free_port()), MLOPS_NB_CONSOLE_PORT=str(free_port()),
               MLOPS_NB_SERVE_WORKERS="1", MLOPS_NB_CONTROL_LEASE_SECONDS="10")
    for name, value in env.items(): monkeypatch.setenv(name, value)
    rows = subscribers(50, seed=7).drop("customer", "left").with_columns(pl.col("month").dt.to_string("iso")).to_dicts()
    with World(root, env) as world:
        world.start("up")
        with Customers(int(env["MLOPS_NB_SERVE_PORT"]), read_settings(root).release.endpoint, rows) as customers:
            world.kill_controller(world.until(lambda: world.executor_of(1, "step validate"), "the first run begins"))
            first = world.ended_run(1)
            assert (first.status, first.attempts) == ("succeeded", 2), first.message
            world.until(lambda: customers.answered or customers.refused, "the server answers")
            champion = world.champion
            world.deliver("bad.parquet", subscribers(300, seed=8).with_columns(tenure=-1), time_column="month")
            second = world.ended_run(2)
            assert second.status == "failed" and "tenure" in second.message, second.message
            assert second.trigger_name == "retrain" and world.champion == champion
            world.until(lambda: "run_failed" in {a.finding.rule for a in read_alerts(world.ledger).held()}, "it pages")
            answered = customers.answered
            world.until(lambda: customers.answered > answered, "the server answers on")
        assert not customers.refused
        done = effects(world.ledger)
        assert len(done) == len(set(done)) and len(world.runs) == 2
