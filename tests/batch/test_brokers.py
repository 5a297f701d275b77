"What all brokers share."
import pytest

from mlops_nb.batch.brokers import redact_url


@pytest.mark.parametrize(("url", "shown"), [
    ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379"), ("rediss://user:secret@cache:6380", "rediss://cache:6380"),
    ("nats://secret-token@broker.example", "nats://broker.example"), ("redis:///0", "redis://")])
def test_an_address_is_shown_without_what_may_be_secret(url, shown):
    assert redact_url(url) == shown
