"Answers of a champion and its shadow, side by side."
import polars as pl
import pytest
from support.prediction_logs import NOON, answer

from mlops_nb.prediction_log.segments import record_frame
from mlops_nb.release import shadow_pairs
from mlops_nb.release.shadow_pairs import WaitingHalves, match_pairs


def lines(*records): return record_frame(0, list(records)).with_columns(unit=pl.col("id"))


def sent(i, seconds=0, **other): return answer(f"r{i}", NOON + seconds * 10**6, revision=2, **other)


def shadow(i, seconds=0, **other): return sent(i, seconds, variant="challenger", mode="shadow", **other)


def pairs_of(*looks):
    waiting = WaitingHalves()
    return [match_pairs(waiting, lines(*look), 1)["id"].to_list() for look in looks], waiting


def test_each_half_is_used_once_whichever_comes_first():
    found, waiting = pairs_of([shadow(1), sent(2)], [sent(1), shadow(2), shadow(2)], [shadow(1), sent(2)])
    assert sorted(found[0] + found[1]) == ["r1", "r2"] and waiting.n_pairs == 2


def test_rows_of_one_request_are_pairs_of_their_own():
    found, _ = pairs_of([sent(1, rows=3), shadow(1, rows=3)])
    assert found == [["r1"] * 3]


def test_who_waits_too_long_was_left_out():
    _, waiting = pairs_of([sent(1), sent(2, 30)], [sent(3, 615)])
    assert waiting.n_left_out == 1 and [h["id"] for h in waiting.sent] == ["r2", "r3"]


def test_of_too_many_that_wait_the_oldest_are_left_out(monkeypatch):
    monkeypatch.setattr(shadow_pairs, "MAX_WAITING_HALVES", 3)
    _, waiting = pairs_of([sent(i) for i in range(8)])
    assert waiting.n_left_out == 5 and len(waiting.sent) == 3


@pytest.mark.parametrize("other", [dict(revision=1), dict(share=.5), dict(variant="challenger")])
def test_what_is_no_answer_of_the_champion_in_this_release_waits_for_nobody(other):
    _, waiting = pairs_of([answer("r1", NOON, **dict(revision=2) | other)])
    assert not waiting.sent


def test_scores_of_several_classes():
    found, waiting = pairs_of([sent(1, score=[[.2, .8]])], [shadow(1, score=[[.3, .7]])])
    assert found == [[], ["r1"]] and not waiting.sent
