"Redis Streams as a broker: what NATS does not have."
import asyncio

import msgspec
import pytest
from support.stream_group import once, run_until

from mlops_nb.batch import stream_scoring
from mlops_nb.batch.redis_broker import RedisBroker
from mlops_nb.config.settings import StreamSettings
from mlops_nb.core.errors import UserError


@pytest.mark.parametrize("service", ["redis"], indirect=True)
def test_a_target_that_cannot_be_written_refuses_nobody(group, monkeypatch, caplog):
    monkeypatch.setattr(stream_scoring, "_MAX_RETRY_SECONDS", .1)
    g, rows, fixed = group(max_deliveries=1), [("a", 1), ("b", 2)], []
    g.put(rows)
    async def answer(id, body): return msgspec.json.encode(dict(id=id, twice=2 * int(body)))
    with g.service.client() as c:
        largest = f"{2**64 - 1}-{2**64 - 1}"  # no id is larger, so nothing can be added
        c.xadd(g.names["target"], {"last": 1}, id=largest)
        def done():
            failures = sum("trying again" in record.message for record in caplog.records)
            if failures >= 3 and not fixed: fixed.append(c.delete(g.names["target"]))  # tried alone twice by then
            return fixed and g.service.left(g.names) == 0
        assert run_until(g, answer, done).dead_lettered == 0
    once(g, rows)
    assert not g.refused


@pytest.mark.parametrize("service", ["redis"], indirect=True)
def test_what_is_no_stream_is_a_sentence(service):
    with service.client() as c: c.set("text", "x")
    broker = RedisBroker(StreamSettings(url=service.url, source="text"), "test")
    with pytest.raises(UserError, match="wrong kind of value"): asyncio.run(broker.open())
