"Counts of log records against a loop over the rows: inputs, features, scores, segments; what is odd in a log."
from collections import Counter

import polars as pl
import pytest
from msgspec.structs import replace
from support.counted_project import at_hour, requests

from mlops_nb.examples.subscribers import subscribers
from mlops_nb.monitor.bin_counts import cell_numbers
from mlops_nb.monitor.record_counts import count_labels, count_records, open_bundle_cells
from mlops_nb.prediction_log.segments import Feedback, feedback_frame, record_frame


@pytest.fixture(scope="module")
def cells(bundle): return open_bundle_cells(bundle)


def numbered(records): # as the log does it
    records = [*records]
    for i, r in enumerate(records): r.seq = i
    return record_frame(0, records)


def of(counts, kind, name=None, segment=("", ""), variant="champion", bundle=None):
    found = counts.filter(kind=kind, name=name or kind, segment_column=segment[0], segment_value=segment[1],
                          variant=variant)
    if bundle is not None: found = found.filter(bundle=bundle)
    return dict(found.group_by("cell").agg(pl.col("n").sum()).iter_rows())


def counted_by_hand(reference, values): return Counter(cell_numbers(reference, values).tolist())


def test_inputs_features_scores_and_segments(cells):
    rows = subscribers(300, 1)
    found = count_records(numbered(requests(300, "b", per_request=3)), {"b": cells})
    columns = cells.baseline.data.columns
    assert {*columns} == {"plan", "tenure", "charge", "left", "paid_so_far"} and not found.problems
    rows = rows.with_columns(paid_so_far=pl.col("tenure") * pl.col("charge"))
    for name in ("plan", "tenure", "charge", "paid_so_far"):
        assert of(found.counts, "column", name) == counted_by_hand(columns[name], rows[name])
        plus = rows.filter(plan="plus")
        assert of(found.counts, "column", name, ("plan", "plus")) == counted_by_hand(columns[name], plus[name])
    assert of(found.counts, "column", "left") == {} # the target is no input
    assert sum(of(found.counts, "score").values()) == sum(of(found.counts, "decision").values()) == 300
    assert sum(of(found.counts, "latency").values()) == 100 # a request once
    assert of(found.counts, "outcome") == {1: 300} and of(found.counts, "source") == {1: 300}
    by_tenure = found.counts.filter(segment_column="tenure", kind="decision")
    assert by_tenure["n"].sum() == 300 and by_tenure["segment_value"].n_unique() == 4
    assert found.counts["hour"].unique().to_list() == [at_hour(0).replace(tzinfo=None)]


def test_a_column_that_vanished_and_one_that_changed_its_type(cells):
    records = [*requests(50, "b")]
    for r in records: r.columns = {"plan": [5], "tenure": [str(t) for t in r.columns["tenure"]]}
    found = count_records(numbered(records), {"b": cells})
    assert of(found.counts, "column", "charge") == {0: 50}
    assert of(found.counts, "column", "plan") == {len(cells.baseline.data.columns["plan"].counts) - 1: 50}
    tenure = cells.baseline.data.columns["tenure"]
    assert of(found.counts, "column", "tenure") == counted_by_hand(tenure, subscribers(50, 1)["tenure"])
    assert of(found.counts, "column", "paid_so_far") == {0: 50} and not found.problems


def test_features_that_fail_are_left_out_and_said(cells):
    def breaks(frame): raise ZeroDivisionError("no rows like these")
    broken = cells._replace(features=replace(cells.features, functions={"paid_so_far": breaks}))
    found = count_records(numbered(requests(20, "b")), {"b": broken})
    assert of(found.counts, "column", "paid_so_far") == {}
    assert sum(of(found.counts, "column", "plan").values()) == 20
    assert len(found.problems["b"]) == 1 and "its features cannot be computed" in found.problems["b"][0]


def test_two_models_with_other_schemas_in_one_hour(cells):
    "Each is counted in its own cells, though their rows stand in one table."
    other = [*requests(40, "other", seed=2)]
    for r in other: r.columns, r.score, r.decision = {"plan": [7]}, [[.2, .3, .5]], None
    found = count_records(numbered([*requests(60, "b"), *other]), {"b": cells, "other": None})
    alone = count_records(numbered(requests(60, "b")), {"b": cells})
    mine = found.counts.filter(bundle="b")
    for kind, name in [("column", c) for c in ("plan", "tenure", "charge")] + [("score", "score"), ("outcome", None)]:
        assert of(mine, kind, name) == of(alone.counts, kind, name) != {}
    unknown = found.counts.filter(bundle="other")
    assert {*unknown["kind"]} == {"source", "latency", "own_latency", "outcome"} and of(unknown, "outcome") == {1: 40}


def test_failures_shadows_probes_tables_and_reviews(cells):
    records = [*requests(10, "b", failed="challenger"), *requests(20, "b", seed=2, mode="shadow", variant="rival"),
               *requests(5, "b", seed=3, mode="probe"), *requests(7, "b", seed=4, source="table", columns={}),
               *requests(4, "b", seed=5, decision=[None]),
               *requests(3, "b", seed=6, mode="shadow", variant="rival", failed="rival", score=[None], decision=None)]
    found = count_records(numbered(records), {"b": cells}).counts
    assert of(found, "outcome") == {1: 17, 3: 4, 5: 5}
    assert of(found, "outcome", variant="challenger", bundle="") == {2: 10}
    assert of(found, "outcome", variant="rival") == {2: 3, 4: 20}
    assert of(found, "source") == {1: 14, 2: 7} and sum(of(found, "score").values()) == 21
    assert sum(of(found, "column", "plan").values()) == 14 # neither probes nor what a table answered
    assert of(found, "decision")[0] == 4 and sum(of(found, "latency").values()) == 21
    assert sum(found.filter(segment_column="plan", kind="score", variant="champion")["n"]) == 14


def test_no_rows_at_all(cells): assert count_records(record_frame(0, []), {"b": cells}).counts.height == 0


def test_labels(cells):
    sent, at = [("true", "outcome"), ("false", "person"), (None, "person"), (7, "system")], at_hour(2).timestamp()
    labels = [Feedback(id=f"r{i}", time=int(at * 1e6) + i, endpoint="churn", label=x, source=source)
              for i, (x, source) in enumerate(sent)]
    found = count_labels(feedback_frame(0, labels), "b", cells)
    left = cells.baseline.data.columns["left"]
    assert of(found, "label", "left", bundle="b") == {0: 1, 1: 1, 2: 1, len(left.counts) - 1: 1}
    assert of(found, "label", "source", variant="", bundle="") == {1: 1, 2: 2, 3: 1}
    assert {*count_labels(feedback_frame(0, labels), "", None)["name"]} == {"source"}
