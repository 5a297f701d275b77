"What the processes of a server counted, read from their files."
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.prediction_log.audit import RowCounts
from mlops_nb.prediction_log.row_counts import dropped_shadow_rows, read_row_counts
from mlops_nb.serve.metrics import Metrics


def test_row_counts_for_the_audit_are_those_of_all_leases_and_damage_is_said(tmp_path):
    for lease_id, rows in ((0, 30), (7, 2)):
        metrics = Metrics(tmp_path, lease_id)
        metrics.answered_rows.inc(rows)
    metrics.unlogged_rows.inc(2)
    assert read_row_counts(tmp_path) == {0: RowCounts(answered=30), 7: RowCounts(answered=2, unlogged=2)}
    metrics.folder.joinpath("counter_3.db").write_bytes(b"\xff\0\0\0" * 9)
    metrics.folder.joinpath("counter_4.db").touch()  # its process is just making it
    counts = read_row_counts(tmp_path)
    assert "counter_3.db is damaged" in counts[3].problem and set(counts) == {0, 3, 7}
    assert read_row_counts(tmp_path / "elsewhere") == {}
    metrics.folder.joinpath("counter_5.db").symlink_to("gone") # as if it was removed after it was listed
    assert set(read_row_counts(tmp_path)) == {0, 3, 7} and b"answered_rows_total 32.0" in metrics.render()


def test_rows_that_a_shadow_missed_are_counted_over_all_leases_for_each_release(tmp_path):
    for lease_id in (0, 7):
        dropped = Metrics(tmp_path, lease_id).shadow_dropped_rows
        for n, labels in enumerate([("churn", "new", "r1"), ("churn", "new", "r2"), ("churn", "old", "r1"),
                                    ("fraud", "new", "r1"), ("churn", "new", "")], 1): dropped(*labels).inc(10**n)
    assert dropped_shadow_rows(tmp_path, "churn", "new", "r1") == 20
    assert dropped_shadow_rows(tmp_path, "churn", "new", "") == 200_000
    assert dropped_shadow_rows(tmp_path, "churn", "new") == 200_220
    assert dropped_shadow_rows(tmp_path, "churn", "none") == dropped_shadow_rows(tmp_path / "no", "churn", "new") == 0
    tmp_path.joinpath("metrics", "counter_3.db").write_bytes(b"\xff\0\0\0" * 9)
    with pytest.raises(UserError, match="counter_3.db is damaged"): dropped_shadow_rows(tmp_path, "churn", "new")
