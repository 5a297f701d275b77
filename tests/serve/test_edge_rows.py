"Edge rows: written as a client writes them, and answered or refused as the schema says."
from datetime import datetime
from typing import get_args, get_type_hints

import msgspec
import polars as pl
import pytest
from support import server as serving

from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.vectors import read_vector
from mlops_nb.model.predictor import Predictor
from mlops_nb.serve import edge_rows as edge_rows_module
from mlops_nb.serve.edge_rows import edge_rows, expected_answers, golden_rows, received_answers, value_as_sent
from mlops_nb.serve.request_validation import RequestDecoder


@pytest.mark.parametrize("how", [{}, dict(format="%d.%m.%Y %H:%M:%S"), dict(format="epoch s"), dict(format="epoch ms"),
                                 dict(time_zone="Europe/Vienna"),
                                 dict(format="%Y/%m/%d %H:%M:%S", time_zone="America/New_York")])
@pytest.mark.parametrize("at", [datetime(2026, 1, 31, 23, 30), datetime(1969, 7, 20, 20, 17, 40),
                                datetime(2026, 7, 1, 0, 0, 1)])
def test_a_time_is_read_back_as_it_was(how, at):
    column = Column("timestamp", **how)
    schema = Schema(dataset="d", task="regression", target="y", columns={"t": column, "y": Column("number")})
    sent = pl.DataFrame({"t": [value_as_sent(at, column)]})
    assert sent.select(schema.parse_expr("t", pl.String()))["t"].to_list() == [at]


@pytest.mark.parametrize("type", get_args(get_type_hints(Column)["type"]))
def test_there_is_a_value_of_each_type(type):
    column = Column(type, size=2 if type == "vector" else None)
    value = edge_rows_module._any_value("a", column)
    assert value is not None
    if type == "vector": assert read_vector(value, column.form)


def test_the_golden_examples_of_a_bundle_are_answered_as_they_were(bundle, predictor):
    rows, answers = golden_rows(bundle, predictor)
    assert len(rows) > 20 and expected_answers(RequestDecoder(predictor), msgspec.json.encode(rows)) == answers


def test_an_edge_row_is_answered_or_refused_as_the_schema_says(bundle, predictor):
    [row, *_], _ = golden_rows(bundle, predictor)
    decoder, columns = RequestDecoder(predictor), predictor.schema.columns
    found = {what: expected_answers(decoder, msgspec.json.encode([r])) for what, r in edge_rows(predictor, row)}
    assert {what.split(":")[0] for what in found} == {*predictor.request_columns, "an unknown column"}
    assert found["an unknown column"] is None
    for name in predictor.request_columns:
        c = columns[name]
        assert (found[f"{name}: missing"] is not None) == (c.nullable or c.on_violation == "null"), name
        if c.domain: assert (found[f"{name}: new"] is not None) == (c.on_new_category == "unknown"), name
        if c.type in ("integer", "number"): assert found[f"{name}: text"] is None or c.on_violation == "null", name
    assert sum(a is None for a in found.values()) and sum(a is not None for a in found.values())


def test_scores_of_several_classes_come_in_the_order_of_the_schema(tmp_path):
    predictor = Predictor.open(serving.bundle(tmp_path, "multiclass", n=300))
    classes = predictor.schema.classes
    reply = [dict(score=dict(zip(reversed(classes), range(len(classes)))), decision=classes[0])]
    assert received_answers(reply, predictor) == [([*reversed(range(len(classes)))], classes[0])]
    rows, answers = golden_rows(tmp_path / "artifacts/bundle", predictor)
    assert expected_answers(RequestDecoder(predictor), msgspec.json.encode(rows)) == answers


def test_what_a_computed_column_is_made_of_is_filled_in(bundle, predictor, tmp_path):
    "Golden examples lack a column that only serves to compute another one."
    (tmp_path / "b").mkdir()
    pl.read_parquet(bundle / "golden.parquet").drop("x").write_parquet(tmp_path / "b/golden.parquet")
    rows, _ = golden_rows(tmp_path / "b", predictor)
    assert all("x" in r for r in rows) and expected_answers(RequestDecoder(predictor), msgspec.json.encode(rows))
