"Rows that are there more than once: in one file, in a copy, in a longer export, and by chance."
import numpy as np
import polars as pl
import pytest

from mlops_nb.data import row_overlaps
from mlops_nb.data.ingest import ingest


def said(tmp_path, *files):
    "What is said when the last of these files (name -> column) is taken in after the others."
    for name, x in files:
        rows = pl.DataFrame(dict(x=x, y=[v * 7919 % 997 for v in x], z=[v * 31 % 499 for v in x]))
        rows.write_csv(tmp_path / f"{name}.csv")
    for name, _ in files: found = ingest(tmp_path / f"{name}.csv", tmp_path / "p").overlaps
    return found


def test_rows_twice_in_one_file_are_said(tmp_path):
    (sentence,) = said(tmp_path, ("a", [*range(100), *range(3)]))
    assert "3 of the 103 rows of a.csv" in sentence and said(tmp_path, ("b", range(200, 300))) == []


def test_few_answers_repeat_by_chance(tmp_path):
    answers = np.random.default_rng(0).integers(0, 5, (2, 300)).tolist()
    pl.DataFrame(dict(a=answers[0], b=answers[1])).write_csv(tmp_path / "a.csv")
    assert ingest(tmp_path / "a.csv", tmp_path / "p").overlaps == []


def test_a_longer_export_holds_a_shorter_one(tmp_path):
    (sentence,) = said(tmp_path, ("may", range(100)), ("year", range(1000)))
    assert "100% of the 100 rows of may.csv are in year.csv as well" in sentence


def test_exports_that_share_some_days(tmp_path):
    (sentence,) = said(tmp_path, ("may", range(100)), ("june", range(80, 200)))
    assert "20 of the 120 rows of june.csv are in may.csv as well" in sentence


def test_rows_that_repeat_by_chance_make_no_overlap(tmp_path):
    a, b = np.random.default_rng(0).integers(0, 300, (2, 200)).tolist()
    assert not [s for s in said(tmp_path, ("a", a), ("b", b)) if "as well" in s]


def test_the_order_of_columns_does_not_matter_and_many_files_are_compared_at_once(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(60): pl.DataFrame(dict(x=range(i * 10, i * 10 + 10))).write_csv(tmp_path / f"in/{i:02}.csv")
    pl.DataFrame(dict(x=range(600)), dict(x=pl.Int64)).write_csv(tmp_path / "in/all.csv")
    assert len(ingest(tmp_path / "in", tmp_path / "p").overlaps) == 60
    pl.DataFrame(dict(a=range(9), b=range(9, 18))).write_csv(tmp_path / "a.csv")
    pl.DataFrame(dict(b=range(9, 18), a=range(9))).write_csv(tmp_path / "b.csv")
    assert ingest(tmp_path / "a.csv", tmp_path / "q").overlaps == []
    assert len(ingest(tmp_path / "b.csv", tmp_path / "q").overlaps) == 1


@pytest.mark.parametrize("cells, n", [(10**6, 1), (150, 0)])
def test_no_more_is_read_than_a_bound(tmp_path, monkeypatch, cells, n):
    monkeypatch.setattr(row_overlaps, "MAX_COMPARED_CELLS", cells)
    assert len(said(tmp_path, ("a", range(70)), ("b", range(71)))) == n
