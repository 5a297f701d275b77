"The commands of monitoring on two days of traffic: what each prints, and a sentence for what cannot be."
import json
import shutil
from datetime import UTC, datetime

import pytest
from support.release_project import project
from support.replayed_traffic import DAY, ReplayedTraffic, days, subscriber_pools
from support.shop_project import nb_inside, sentence

TOPICS = {"drift": "jensen_shannon", "quality": "baseline", "labels": "share_known", "slo": "There are no rows of this",
          "freshness": "model", "checks": "There are no rows of this", "traffic": "champion"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A project with two days of answers and labels, counted and judged once."
    root = tmp_path_factory.mktemp("monitored") / "p"
    ids, pool = project(root, ("champion",)), subscriber_pools(2000)["usual"]
    traffic = ReplayedTraffic(root, root / "bundles" / ids["champion"], pool, rows_per_hour=20, label_delay=DAY / 4)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for at in days(today - 3 * DAY, today - DAY): [*traffic.day(at)]
    traffic.log.close()
    return root, said("monitor", "run", "--no-report", cwd=root)


@pytest.fixture
def root(made, tmp_path): return shutil.copytree(made[0], tmp_path / "p")


def said(*words, cwd):
    done = nb_inside(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_counts_what_is_new_and_only_once(made, root):
    assert made[1].startswith("Counted ") and "no alert is open" in made[1]
    again = json.loads(said("monitor", "run", "--no-report", "--as-json", cwd=root))
    assert again["counted"]["rows"] == 0 and again["alerts"] == []


@pytest.mark.parametrize("topic", TOPICS)
def test_each_topic_is_printed(made, topic): assert TOPICS[topic] in said("monitor", "show", topic, cwd=made[0])


def test_sql_asks_anything_and_changes_nothing(made):
    n = json.loads(said("monitor", "show", "--sql", "SELECT sum(n) AS n FROM hourly_counts WHERE kind = 'outcome'",
                        "--as-json", cwd=made[0]))
    assert n[0]["n"] > 300
    wrong = sentence(nb_inside("monitor", "show", "--sql", "SELEC 1", cwd=made[0]))
    assert "does not understand the statement" in wrong and "free it" not in wrong
    assert "read-only" in sentence(nb_inside("monitor", "show", "--sql", "DELETE FROM counts", cwd=made[0]))


@pytest.mark.parametrize("words, says", [
    (("drif",), "There is nothing to show of 'drif'; did you mean 'drift'?"), ((), "Say what is to be shown"),
    (("slo", "--by", "plan"), "is for drift and quality"), (("drift", "--by", "plan"), "no segment column"),
    (("drift", "--window", "soon"), "write it like 30m, 8h or 7d")])
def test_what_cannot_be_shown_is_a_sentence(made, words, says):
    assert says in sentence(nb_inside("monitor", "show", *words, cwd=made[0]))


def test_alerts_incidents_and_labels_of_a_quiet_project(root):
    assert json.loads(said("alert", "list", "--as-json", cwd=root)) == []
    assert "There is no rota" in said("alert", "list", cwd=root)
    assert "0 alerts hold" in said("alert", "deliver", cwd=root)
    assert "There is no alert 'A9'" in sentence(nb_inside("alert", "ack", "A9", cwd=root))
    assert "random" in said("label", "stats", cwd=root)
    assert "no slo.yaml" in sentence(nb_inside("slo", "status", cwd=root))
    assert "slo.yaml" in said("slo", "init", cwd=root) and "availability-probe" in said("slo", "status", cwd=root)
    assert "dashboard.json" in said("slo", "rules", cwd=root)
