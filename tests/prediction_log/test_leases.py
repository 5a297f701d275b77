"Leases: each process has one of its own, and its death frees it."
import subprocess
import sys

import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.prediction_log.leases import acquire_lease, lease_is_held, maintenance_lease, owns_lease, release_lease
from mlops_nb.prediction_log.writer import PredictionLogWriter

HOLDER = """
import sys
from mlops_nb.prediction_log.leases import acquire_lease
print(acquire_lease(sys.argv[1], 2), flush=True)
sys.stdin.read()
"""


def test_leases_are_freed_by_death(tmp_path):
    held = acquire_lease(tmp_path, 2)
    child = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
    try:
        assert {held, int(child.stdout.readline())} == {0, 1}
        assert lease_is_held(tmp_path, 0) and lease_is_held(tmp_path, 1) and not lease_is_held(tmp_path, 2)
        with pytest.raises(UserError, match="all 2 leases are held"): acquire_lease(tmp_path, 2, timeout_seconds=0.05)
        with pytest.raises(UserError, match="lease 1 is held"): PredictionLogWriter(tmp_path, 1)
    finally: child.kill(); child.wait()
    assert acquire_lease(tmp_path, 2) == 1
    for lease_id in (0, 1): release_lease(tmp_path, lease_id)


def test_the_range_of_leases_is_the_callers(tmp_path):
    assert [acquire_lease(tmp_path, range(500, 502)) for _ in range(2)] == [500, 501]
    with pytest.raises(UserError, match="all 2 leases are held"):
        acquire_lease(tmp_path, range(500, 502), timeout_seconds=0)
    assert owns_lease(tmp_path, 500) and not owns_lease(tmp_path, 502)
    for lease_id in (500, 501): release_lease(tmp_path, lease_id)


def test_a_folder_that_cannot_be_is_said_as_such(tmp_path):
    (tmp_path / "log").write_text("a file in its place")
    with pytest.raises(NotADirectoryError): acquire_lease(tmp_path / "log", 2)


def test_one_at_a_time_does_maintenance(tmp_path):
    with maintenance_lease(tmp_path), pytest.raises(UserError, match="wait until it is done"):
        maintenance_lease(tmp_path, 0).__enter__()
    with maintenance_lease(tmp_path, 0): pass
