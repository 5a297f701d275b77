"Runbooks: each execution is an entry in the ledger, and what was not executed for 90 days is stale."
import json
from datetime import UTC, datetime, timedelta

import pytest
from support.shop_project import nb_inside, sentence

from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.report.runbooks import RUNBOOK_FOLDER, RUNBOOK_RUN, list_runbooks, record_runbook_run, run_runbook


def write(root, name, *sources):
    "A runbook of these code cells; the first holds its parameters."
    cells = [dict(cell_type="markdown", id="t", source=f"# How to {name}", metadata={})]
    for i, source in enumerate(sources):
        cells.append(dict(cell_type="code", id=f"c{i}", source=source, outputs=[], execution_count=None,
                          metadata=dict(tags=[] if i else ["parameters"])))
    path = root / RUNBOOK_FOLDER / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n")
    write(tmp_path, "call", "who = 'ana'", "assert who == 'ana', f'{who} does not answer'")
    return tmp_path


def test_a_run_that_worked_and_one_that_failed_are_both_in_the_ledger(root):
    page = run_runbook(root, "call")
    with pytest.raises(UserError, match="bob does not answer"): run_runbook(root, "call", dict(who="bob"))
    good, bad = open_ledger(root).entries("call", (RUNBOOK_RUN,))
    assert (good.data["passed"], bad.data["passed"]) == (True, False)
    assert root / good.data["page"] == page and page.exists() and "bob does not answer" in bad.data["error"]
    [known] = list_runbooks(root)
    assert (known.passed, known.is_stale, known.title) == (False, False, "How to call") and "bob" in known.error


def test_what_was_not_executed_for_90_days_is_stale_and_so_is_what_never_was(root):
    write(root, "never", "")
    record_runbook_run(root, "call")
    now = datetime.now(UTC)
    at = {days: {r.name: r.is_stale for r in list_runbooks(root, now + timedelta(days=days))} for days in (89, 91)}
    assert at == {89: dict(call=False, never=True), 91: dict(call=True, never=True)}
    said = nb_inside("runbook", "list", cwd=root).stdout.splitlines()
    assert "STALE" not in said[0] and "never executed" in said[1] and "STALE" in said[1]


def test_a_key_is_recorded_once(root):
    for _ in range(2): record_runbook_run(root, "call", key="weekly/20261129T000000Z")
    assert len(open_ledger(root).entries("call")) == 1


def test_a_wrong_name_or_parameter_is_answered_in_a_sentence(root):
    assert "did you mean 'call'" in sentence(nb_inside("runbook", "run", "cal", cwd=root))
    assert "write it as key=value" in sentence(nb_inside("runbook", "run", "call", "-p", "who", cwd=root))
    assert not open_ledger(root).entries()


def test_without_runbooks_the_list_says_where_they_would_be(tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n")
    assert nb_inside("runbook", "list", cwd=tmp_path).stdout == f"There are no runbooks in {RUNBOOK_FOLDER}.\n"
