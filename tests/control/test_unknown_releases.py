"A run in a project that does not know whether a model was released: said before anything is trained, and then mended."
import shutil
import signal

from support.controlled_project import end, lines, repository, start_controller, until

from mlops_nb.control.run_workflow import request_run
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import read_run, requeue_run, run_status
from mlops_nb.release.gate import require_passed_gate


def test_the_advice_leads_to_a_released_model(tmp_path, in_sqlite, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", in_sqlite)
    root = repository(tmp_path / "p")
    shutil.rmtree(root / "releases")
    controller = start_controller(root)
    try:
        run = request_run(root, "on_demand", "first", "ana")[0]
        until(lambda: run_status(open_ledger(root), run) == "failed")
        said = read_run(open_ledger(root), run).message
        assert "`mlops-nb gate check --first`" in said and f"`mlops-nb runs resume {run}`" in said
        assert not lines(root / "begun"), "nothing was trained"
        assert "no model was released before" in require_passed_gate(root, first=True)
        requeue_run(open_ledger(root), run)
        until(lambda: run_status(open_ledger(root), run) == "succeeded")
    finally: end(controller, signal.SIGTERM)
    assert lines(root / ".mlops" / "released") == [run]
