"Score cache, lookup tables, micro-batching and shadow queues, each alone."
import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.served_endpoint import until, write_table

from mlops_nb.bundle.store import lookup_table_path
from mlops_nb.core.errors import UserError
from mlops_nb.serve.model_runtime import (
    MAX_BATCH_ROWS,
    MAX_SHADOW_QUEUE_ROWS,
    LookupTable,
    MicroBatcher,
    ScoreCache,
    ShadowQueue,
)


def test_one_question_larger_than_the_queue_is_heard():
    heard = []
    shadow = ShadowQueue(heard.append)
    assert shadow.submit(MAX_SHADOW_QUEUE_ROWS * 2, "large")
    until(lambda: heard == ["large"] and shadow.submit(1, "next"), "heard")
    shadow.stop()


def test_the_cache_keeps_so_many_for_so_long():
    now = [0.]
    cache = ScoreCache(3, 10, lambda: now[0])
    for i in range(5):
        cache.put(("b", i), np.array([i]))
        now[0] += 1
    assert len(cache) == 3 and [cache.get(("b", i)) is None for i in range(5)] == [True, True, False, False, False]
    cache.put(("b", 2), np.array([9]))  # anew, so not the oldest any more
    cache.put(("b", 5), np.array([5]))
    assert cache.get(("b", 3)) is None and cache.get(("b", 2)).item() == 9
    now[0] = 13.9
    assert cache.get(("b", 4)) is not None
    now[0] = 14
    assert cache.get(("b", 4)) is None and len(cache) == 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 4]))), st.integers(1, 4))
def test_the_cache_never_tells_what_is_old_and_never_grows(steps, entries):
    now, last = [0], {}
    cache = ScoreCache(entries, 5, lambda: now[0])
    for key, wait in steps:
        now[0] += wait
        found = cache.get(key)
        if found is not None: assert last[key][0] == found and now[0] - last[key][1] < 5
        else:
            cache.put(key, len(last))
            last[key] = len(last), now[0]
            last[key] = cache.get(key), now[0]
        assert len(cache) <= entries


@pytest.mark.parametrize("rows, words", [(["a", "b", "a"], "several rows for one 'id'"),
                                         (["a", "b", "c", "d"], "4 rows, and 3 are kept at most")])
def test_tables_that_are_not_used(made, tmp_path, predictors, rows, words):
    write_table(tmp_path, made[1], rows)
    with pytest.raises(UserError, match=words):
        LookupTable(lookup_table_path(made[1], tmp_path / "tables"), predictors[made[1]], 3)
    write_table(tmp_path, made[1], ["a"], by=made[2])
    with pytest.raises(UserError, match="another bundle"):
        LookupTable(lookup_table_path(made[1], tmp_path / "tables"), predictors[made[1]], 3)


def test_the_name_decides_where_hashes_are_the_same(made, tmp_path, predictors):
    class Same(str):
        def __hash__(self): return 1
    write_table(tmp_path, made[1], [f"e{i}" for i in range(20)], np.arange(20.))
    found = LookupTable(lookup_table_path(made[1], tmp_path / "tables"), predictors[made[1]], 100)
    order = np.argsort(found._scores)
    found._hashes, found._entities, found._scores = np.r_[np.full(9, 1),
        np.full(11, 5)], found._entities.gather(order), found._scores[order]
    assert [found._find_row(Same(f"e{i}"))
            for i in range(9)] == [*range(9)] and found._find_row(Same("e9")) is None and found.lookup([None]) is None


def test_rows_that_wait_together_are_asked_together_and_get_their_own_answers():
    sizes, all_asked = [], threading.Event()

    def slow(X):
        sizes.append(len(X))
        assert all_asked.wait(60)
        return X @ np.array([[1., 10.], [2., 20.]])

    batch, rng = MicroBatcher(slow), np.random.default_rng(0)
    asked = [rng.normal(size=(n, 2)) for n in rng.integers(1, 40, 200)] + [rng.normal(size=(MAX_BATCH_ROWS + 5, 2))]

    async def main():
        tasks = [asyncio.create_task(batch.predict(X)) for X in asked]
        await asyncio.sleep(0)  # each has begun to wait
        all_asked.set()
        return await asyncio.gather(*tasks)
    for X, said in zip(asked, asyncio.run(main()), strict=True):
        assert np.allclose(said, X @ np.array([[1., 10.], [2., 20.]]))
    assert sum(sizes) == sum(map(len,
        asked)) and len(sizes) < 20 and sizes[0] == len(asked[0]) and max(sizes[:-1]) <= MAX_BATCH_ROWS
    assert asyncio.run(batch.predict(asked[0])).shape == (len(asked[0]), 2)  # in another loop, after a pause


def test_one_that_spoils_a_batch_spoils_only_itself():
    def picky(X):
        if (X < 0).any(): raise ValueError("negative")
        time.sleep(.01)
        return X[:, 0]

    async def main():
        return await asyncio.gather(*(batch.predict(np.full((1, 1), x)) for x in (1., 2., -3., 4.)),
                                    return_exceptions=True)
    batch = MicroBatcher(picky)
    said = asyncio.run(main())
    assert [s.tolist() for s in said if not isinstance(s, Exception)] == [[1.], [2.],
                                                                          [4.]] and str(said[2]) == "negative"


def test_who_gives_up_is_left_out_and_the_others_are_answered():
    seen, first_runs, given_up = [], threading.Event(), threading.Event()

    def slow(X):
        seen.extend(X[:, 0])
        first_runs.set()
        assert given_up.wait(60)
        return X[:, 0]

    async def main():
        tasks = [asyncio.create_task(batch.predict(np.full((1, 1), float(i)))) for i in range(4)]
        await asyncio.to_thread(first_runs.wait, 60)
        tasks[2].cancel()
        given_up.set()
        return await asyncio.gather(*tasks, return_exceptions=True)
    batch = MicroBatcher(slow)
    said = asyncio.run(main())
    assert isinstance(said[2], asyncio.CancelledError) and seen == [0., 1.,
        3.] and [said[i].item() for i in (0, 1, 3)] == [0., 1., 3.]
