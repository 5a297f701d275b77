"What the tests of controllers share."
import pytest
from support.controlled_project import end


@pytest.fixture
def controllers():
    "Ended with the test, however it goes; a test that failed shows what they had said."
    running = []
    yield running
    for process in running: end(process)
    for log in {process.log for process in running}: print(log.read_text()[-5000:])
