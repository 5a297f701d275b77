"Columns of plain numbers are found together, and read as they would be one by one."
import random

import polars as pl
import pytest
from msgspec.structs import replace

from mlops_nb.config import format_inference

WRITERS = [lambda r: str(r.randint(0, 50)), lambda r: f"{r.uniform(-9, 9):.3f}", lambda r: f"{r.uniform(1, 900):.3f}",
           lambda r: f"{r.uniform(0, 5000):.2f}", lambda r: r.choice(["", "1", "2.0", " 3 "]),
           lambda r: f"0{r.randint(0, 9)}",
           lambda r: str(r.randint(0, 10**17)), lambda r: r.choice(["?", "1.5"]), lambda r: f"{r.random():.4e}",
           lambda r: f"{r.randint(1, 999)},{r.randint(0, 99):02d}", lambda r: f"{r.randint(1, 5)}.0", lambda r: "",
           lambda r: f"{r.randint(2000, 2020)}{r.randint(1, 12):02d}{r.randint(1, 28):02d}",
           lambda r: f"+{r.random():.5f}"]


def plain(readings):
    "The readings without the question that is asked of plain numbers only: may they be versions?"
    return {n: replace(r, checks=[c for c in r.checks if "versions" not in c]) for n, r in readings.items()}


@pytest.mark.parametrize("seed", range(6))
def test_they_are_read_as_if_each_were_weighed_by_itself(seed, monkeypatch):
    r, columns = random.Random(seed), {}
    for name in ("a", "b", "c", "d", "e", "created_at"):
        mixed = r.sample(WRITERS, r.choice([1, 1, 1, 2]))
        columns[name] = [r.choice(mixed)(r) for _ in range(120)]
    frame = pl.DataFrame(columns).lazy()
    together = format_inference.infer_text_formats(frame)
    monkeypatch.setattr(format_inference, "_find_plain_numbers", lambda read, names: ({}, False, set()))
    assert plain(together) == plain(format_inference.infer_text_formats(frame))


def test_a_later_batch_can_end_it():
    batches = [pl.DataFrame(dict(a=["1", "2"], b=["1.5", None], c=["3", "x"])),
               pl.DataFrame(dict(a=["3", "four"], b=["2", ""], c=["1", "2"]))]
    found, has_point, _ = format_inference._find_plain_numbers(lambda names: iter(batches), ["a", "b", "c"])
    assert found == {"b": "number"} and has_point


@pytest.mark.parametrize("value", ["12", "1.250", "0.250", "$1,250.00", "(1.234,50)", "12 %", "1'000.5", "5-", "1e5",
                                   "01,5", "-0,7"])
def test_a_format_sees_the_shape_of_a_value_and_not_its_digits(value):
    other = "".join(str((int(ch) + 3) % 9 + 1) if ch.isdigit() and ch != "0" else ch for ch in value)
    assert format_inference.propose_number_formats(value) == format_inference.propose_number_formats(other)
    assert format_inference._number_formats.__wrapped__(value) == format_inference.propose_number_formats(value)


@pytest.mark.parametrize("value", ["2024-02-01", "2/1/2024 10:30", "31.12.99", "20210131", "99999999", "1 Feb 2024",
                                   "1612137600"])
def test_so_does_a_format_of_times_where_digits_do_not_matter(value):
    for epoch in (False, True):
        direct = format_inference._time_formats.__wrapped__(value, epoch)
        assert format_inference.propose_time_formats(value, epoch) == direct
