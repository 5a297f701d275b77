"Whose turn it is on the GPU of a machine."
import subprocess
import sys
import tempfile

import pytest

from mlops_nb.control import step_limits
from mlops_nb.control.step_limits import gpu_turn
from mlops_nb.control.step_process import StepCancelled

HOLD = """
import subprocess, sys, tempfile, time
from mlops_nb.control.step_limits import gpu_turn
tempfile.tempdir = sys.argv[1]
with gpu_turn(1, lambda: False):
    print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(step_limits, "_LOOK_SECONDS", 0.01)
    return tmp_path


def test_a_place_ends_with_its_process_whatever_that_has_started(places):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(places)], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(StepCancelled), gpu_turn(1, lambda: True): pytest.fail("it is taken")
        with gpu_turn(2, lambda: True): pass  # there is a second one
        asked = []
        def ends_while_we_wait():
            asked.append(1)
            if len(asked) == 2: holder.kill()
            return False
        with gpu_turn(1, ends_while_we_wait): assert holder.wait(60) and len(asked) >= 2
    finally:
        holder.kill()
        holder.communicate()
        subprocess.run(["kill", "-9", str(child)], check=True)


def test_a_training_that_fails_gives_its_place_back(places):
    with pytest.raises(ValueError), gpu_turn(1, lambda: True): raise ValueError
    with gpu_turn(1, lambda: True): pass
