"What every test shares."
import gc
import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

pytest.register_assert_rewrite("support") # so that what fails there says what it found, too
from support.postgres_server import new_database, postgres_programs, postgres_server  # noqa: E402

from mlops_nb.core.structured_logs import JsonLogHandler  # noqa: E402

sys.dont_write_bytecode = False # where the shell asks for none, each of some hundred processes compiles all it imports
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.modules.setdefault("rfc3987_syntax", None) # as if not installed: jsonschema compiles its grammars for seconds
os.environ["MLOPS_NB_QUIET"] = "1" # progress depends on how fast a machine is
os.environ["OMP_WAIT_POLICY"] = "passive" # threads that wait awake take the time of the tests beside this one
REAL = Path(__file__).parents[2] / "shared" / "data"


# files that take longest, by processor time: begun last, one would leave the other processes with nothing to do. Only
# one of the first three makes the project of `finished`, for which the others would wait
LONG = ["end_to_end/test_real_data.py", "train/test_launcher.py", "test_cli.py", "end_to_end/test_experiments.py",
        "train/test_net_trainer.py", "end_to_end/test_learners.py", "end_to_end/test_monitoring.py",
        "release/test_deploy.py", "end_to_end/test_bad_input.py", "test_docs_run.py", "release/test_rollback.py",
        "end_to_end/test_shapes.py", "report/test_notebooks.py", "report/test_runner.py", "train/test_tuning.py",
        "test_runbooks.py", "train/test_custom_learners.py", "control/test_controller.py",
        "control/test_controller_faults.py", "end_to_end/test_continuous_training.py",
        "end_to_end/test_own_model.py", "end_to_end/test_multilabel.py", "control/test_waiting_runs.py",
        "console/test_operations_page.py",
        "control/test_scheduler.py", "model/test_net.py", "release/test_compression.py", "release/test_gate.py",
        "train/test_learners.py", "end_to_end/test_change_request.py", "batch/test_stream_scoring.py",
        "test_notebook.py", "test_pipeline.py", "model/test_booster.py", "train/test_gbdt.py",
        "train/test_baselines.py", "end_to_end/test_progressive_delivery.py", "serve/test_request_validation.py",
        "serve/test_server.py", "serve/test_fuzz.py", "monitor/test_drift.py", "monitor/test_slo_rules.py",
        "monitor/test_log_counts.py", "monitor/test_alerts.py", "monitor/test_label_queue.py"]


gc.disable() # until all is collected: what is imported stays, and the garbage collector would go through it each time


def pytest_collection_finish():
    "What there is by now is nobody's garbage."
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    "The files that take longest first, in that order; the others as they are found."
    place = {str(Path(__file__).parent / name): i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(str(item.path), len(LONG)))


@pytest.fixture(scope="session")
def real_data():
    "A function that gives the path of a real data set, or skips with the reason."
    def find(name):
        path = REAL / name
        if not path.exists(): pytest.skip(f"the real data set {name} is not at {path}")
        return path
    return find


@pytest.fixture
def small_disk(tmp_path, request):
    "A disk of its own, mounted for one test; as large as the `DISK` of the test's module says, e.g. 64m."
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={request.module.DISK}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True).returncode == 0
    if not mounted: pytest.skip("a small disk can only be mounted as root on Linux")
    try: yield disk
    finally: subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="session")
def postgres():
    "A real PostgreSQL server on the loopback, for the session: `.url` (without password) and `.password`."
    programs = postgres_programs()
    if programs is None: pytest.skip("PostgreSQL's initdb is not installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as server: yield server


@pytest.fixture
def in_sqlite(tmp_path):
    "The URL of a SQLite file that is not there yet."
    return f"sqlite:///{tmp_path}/deep/ledger.db"


@pytest.fixture
def in_postgres(postgres, monkeypatch):
    "The URL of a database of its own."
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    return new_database(postgres, f"ledger_{uuid.uuid4().hex[:8]}")


@pytest.fixture(params=["in_sqlite", "in_postgres"])
def uri(request):
    "A database of its own, once in SQLite and once in PostgreSQL."
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def log_ends_with_its_test():
    "A log that a command began in this process would go on in the next test, and make its folder again."
    yield
    logger = logging.getLogger("mlops_nb")
    for handler in [h for h in logger.handlers if isinstance(h, JsonLogHandler)]:
        logger.removeHandler(handler)
        handler.close()
