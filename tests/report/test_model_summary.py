"The head of the index: the model in use by the release plan, as `mlops-nb status` says it."
import pytest
from support.shop_project import nb_inside

from mlops_nb.core.typed_yaml import write_json
from mlops_nb.release.release_plan import promote_bundle
from mlops_nb.release.rollback import describe_model_in_use
from mlops_nb.report.history import KeyMetric, RunRecord
from mlops_nb.report.model_summary import describe_changes, model_summary, release_marks
from mlops_nb.report.stage import write_pipeline_index
from mlops_nb.report.status import project_status
from mlops_nb.stats.bootstrap import Estimate

FIRST, SECOND = "a" * 64, "b" * 64


@pytest.fixture
def project(tmp_path):
    "Two releases with the records and a page of their runs."
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n")
    for bundle, auc, day, weak in ((FIRST, 0.80, 1, []), (SECOND, 0.82, 2, ["plan = <b>: AUC 0.700."])):
        gain = Estimate(0.02, -0.01, 0.05) if bundle == SECOND else None
        write_json(tmp_path / "reports/pipeline" / bundle[:12] / "run.json", RunRecord(
            bundle[:12], f"2026-01-0{day}T10:00:00", "All 9 rules held.", True,
            [KeyMetric("roc_auc", auc, "higher", gain)], dict(used=100 * day),
            pages=dict(Evaluation="evaluation.html"), weak_segments=weak,
            params={"train.seed": str(day), "train.learners": "gbdt"}))
        (tmp_path / "reports/pipeline" / bundle[:12] / "evaluation.html").touch()
        promote_bundle(tmp_path / "releases/churn.json", "churn", bundle, reason=f"All {day + 8} rules held.")
    return tmp_path


def summary(root): return model_summary(root, root / "reports/index.html").text


def test_verdict_segments_and_changes_of_the_model_in_use(project):
    text = summary(project)
    assert describe_model_in_use(project) in text and "All 10 rules held. AUC 0.820 on test rows" in text
    assert 'class="verdict pass"' in text and "plan = &lt;b&gt;: AUC 0.700." in text
    assert f'href="pipeline/{SECOND[:12]}/evaluation.html"' in text
    assert "0.0200 better (−0.0100 to 0.0500) on the same test rows, not statistically significant." in text
    assert "Parameters: train.seed 1 → 2." in text and "Rows used: 100 → 200." in text and FIRST[:12] in text


def test_a_roll_back_changes_page_and_command_together(project):
    promote_bundle(project / "releases/churn.json", "churn", FIRST, action="rollback", reason="too many <calls>")
    status, text = project_status(project), summary(project)
    assert status.model in text and status.gate == "All 9 rules held." and status.gate in text
    assert "No group that was looked at is significantly worse" in text
    assert f"The model before was {SECOND[:12]} (too many &lt;calls&gt;)." in text
    assert "0.0200 better" not in text and "AUC 0.800: −0.0200, each on its own test rows." in text
    assert release_marks(project) == {FIRST[:12]: "in use", SECOND[:12]: "released"}
    page = write_pipeline_index(project).read_text()
    assert f"{FIRST[:12]} <b class=\"keep\">(in use)</b>" in page and "Newest run" in page


def test_what_is_not_known_is_said_and_not_left_out(project, tmp_path):
    for run in (project / "reports/pipeline").glob("*/run.json"): run.unlink()
    text = summary(project)
    assert "Not recorded for this model." in text and "has no record of its run here" in text
    assert "All 10 rules held." in text and 'class="verdict "' in text, "no record, no verdict of ours"
    (project / "releases/churn.json").write_text("{")
    assert "release restore" in summary(project) and "verdict fail" in summary(project)


def test_the_first_release_and_none(project):
    (project / "settings.ini").write_text("[release]\nendpoint = other\n")
    assert "nothing was deployed yet" in summary(project) and release_marks(project) == {}
    promote_bundle(project / "releases/other.json", "other", FIRST, reason="All 9 rules held.")
    assert "This is the first release." in summary(project)


def test_runs_without_parameters_or_features_are_compared_as_far_as_they_go():
    old = RunRecord("a", "2026-01-01", "", metrics=[KeyMetric("rmse", 2.0, "lower")])
    new = RunRecord("b", "2026-01-02", "", metrics=[KeyMetric("mae", 1.0, "lower")], params={"x": "1"})
    assert describe_changes(new, old) == []


def test_restoring_a_torn_plan_writes_the_page_anew(project):
    (project / "releases/churn.json").write_text("{")
    assert "cannot be told" in write_pipeline_index(project).read_text()
    assert nb_inside("release", "restore", cwd=project).returncode == 0
    page = (project / "reports/index.html").read_text()
    assert describe_model_in_use(project) in page and "cannot be told" not in page
