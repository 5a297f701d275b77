"What the tests of controllers share."
import pytest
from support.controlled_project import end


@pytest.fixture
def controllers():
    "Ended with the test, however it goes."
    running = []
    yield running
    for process in running: end(process)
