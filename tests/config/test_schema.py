"The contract: its file, how values are read, targets, differences, hash, pandera."
import hashlib
from datetime import datetime

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.schemas import schemas

from mlops_nb.config.schema import (
    Column,
    Schema,
    expression_columns,
    read_schema,
    schema_hash,
    to_pandera,
    write_schema,
)
from mlops_nb.core.errors import UserError


def copy(schema): return msgspec.convert(msgspec.to_builtins(schema), Schema)


def of(target="y", task="regression", **columns):
    return Schema("d", task, target, {k: Column(v) if isinstance(v, str) else v for k, v in columns.items()})


# the file

@settings(deadline=None, max_examples=150)
@given(schema=schemas(), note=st.text(max_size=30))
def test_the_file_round_trips(tmp_path_factory, schema, note):
    path = tmp_path_factory.mktemp("schema") / "schema.yaml"
    again = read_schema(write_schema(schema, path, dict.fromkeys(schema.columns, note)))
    assert again == schema and schema_hash(again) == schema_hash(schema) and list(again.columns) == list(schema.columns)


@pytest.mark.parametrize("edit, says", [
    (("type: integer", "type: int"), "section 'columns.a': type is 'int', but one of integer, number"),
    (("type: integer", "type: integer\n    nulable: true"),
     "section 'columns.a': there is no key 'nulable'; did you mean 'nullable'?"),
    (("    type: integer\n", "    nullable: true\n"), "section 'columns.a': the key 'type' is missing"),
    (("type: integer", "type: integer\n    range: [5, 1]"), "section 'columns.a': the range .* begins after its end"),
    (("type: integer", "type: integer\n    range: ['2012-01-01', null]"), "the range .* does not fit the type integer"),
    (("type: integer", "type: integer\n    range: [5]"), "section 'columns.a': range is \\[5\\]"),
    (("type: integer", "type: integer\n    domain: [x]"), "section 'columns.a': the type integer has no domain"),
    (("type: category", "type: category\n    range: [0, 1]"), "section 'columns.b': the type category has no range"),
    (("target: b", "target: c"), "target names the column 'c'"),
    (("target: b", "target: a +"), "neither a column nor a SQL expression"),
    (("segments: []", "segments: [z]"), "segments names the column 'z'"),
    (("entity: null", "entity: z"), "entity names the column 'z'"),
    (("filter: null", "filter: z > 1"), "filter names the column 'z'"),
    (("classes: [u, v]", "classes: null"), "needs 'classes'"),
    (("classes: [u, v]", "classes: [u, v, w]"), "a binary task has two classes"),
    (("dataset: d", "datset: d"), "there is no key 'datset'; did you mean 'dataset'?")])
def test_a_mistake_in_the_contract_is_one_sentence_with_its_place(tmp_path, edit, says):
    schema = Schema("d", "binary", "b", {"a": Column("integer"), "b": Column("category")}, classes=["u", "v"])
    path = write_schema(schema, tmp_path / "s.yaml")
    assert edit[0] in path.read_text()
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(UserError, match=says) as error: read_schema(path)
    assert "\n" not in str(error.value)


# expressions

def test_expressions_name_their_columns():
    assert expression_columns("(a - b) / a") == ["a", "b"]
    assert expression_columns('"emp.var.rate" * 2') == ["emp.var.rate"]


@pytest.mark.parametrize("evil", ["select * from x", "(SELECT count(*) FROM read_csv('/etc/passwd'))",
                                  "a in (select 1)", "a; drop table b",
                                  "exists (select 1)", "", "avg(a)", "a > max(a)", "count(*)",
                                  "sum(a) over (partition by b)", "unnest(a)",
                                  "row_number() over (order by a)", "quantile_cont(a, 0.5)", "now() - a",
                                  "current_date", "a - - "])
def test_an_expression_reaches_nothing_but_one_row(evil):
    with pytest.raises(UserError, match="neither a column nor"): expression_columns(evil)


@pytest.mark.parametrize("good", [
    "a in (1, 2)", "a between 1 and 2", "case when a > 1 then 'x' else 'y' end", "coalesce(a, b)", "a = 'select'",
    "extract(year from a)",
    "a like 'x%'", "cast(a as float)", "a is not null", '"select" + a', "greatest(a, b)"])
def test_an_expression_may_compute(good): assert "a" in expression_columns(good)


def test_a_column_whose_name_looks_like_an_expression_is_a_column():
    s = of("a-b", **{"a-b": "number", "a": "number", "b": "number"})
    assert s.target_columns == ["a-b"] and s.feature_columns == ["a", "b"]


def test_what_the_model_may_see():
    s = Schema("d", "regression", "b - a", {"a": Column("number"), "b": Column("number"), "who": Column("category"),
               "when": Column("integer"), "leak": Column("number", feature=False), "note": Column("text"),
               "comment": Column("text", feature=False), "at": Column("timestamp"),
               "x": Column("boolean")},
               entity="who", event_time="when")
    assert s.feature_columns == ["note", "x"]


def test_rows_where_the_filter_is_unknown_do_not_pass():
    s = of("b - a", a="number", b="number")
    s.filter = "target > 1 AND a > 0"
    frame = pl.DataFrame({"a": [1.0, 1, None, -1], "b": [5.0, 1, 3, 9]})
    assert frame.with_columns(s.target_expr()).filter(s.filter_expr())["b"].to_list() == [5]
    s.filter = None
    assert frame.filter(s.filter_expr()).height == 4


@pytest.mark.parametrize("values, classes", [(["no", "yes", None, "maybe"], ["no", "yes"]),
                                             ([0, 1, None, 7], ["0", "1"]),
                                             ([0.0, 1.0, None, 7.5], ["0", "1"]),
                                             ([False, True, None, None], ["false", "true"])])
def test_class_index(values, classes):
    s = of(task="binary", y="text")
    s.classes = classes
    assert pl.DataFrame({"y": values}).select(s.encoded_target_expr()).to_series().to_list() == [0.0, 1.0, None, None]


def test_regression_target_is_finite_or_null():
    frame = pl.DataFrame({"y": [1.5, float("nan"), float("inf"), None]})
    assert frame.select(of(y="number").encoded_target_expr()).to_series().to_list() == [1.5, None, None, None]


# reading values

def test_a_format_reads_what_iso_does_not():
    s = of(y=Column("timestamp", format="%d/%m/%Y"))
    got = pl.DataFrame({"y": ["03/04/2024", "2024-04-03"]}).select(s.parse_expr("y", pl.String()))
    assert got["y"].to_list() == [datetime(2024, 4, 3), None]


def test_missing_is_told_from_unreadable():
    s = of(y="number")
    s.missing_values = ["?"]
    texts, floats = ["", " ? ", None, "x", "1"], [float("nan"), float("inf"), None]
    for values, missing in ((texts, [True, True, True, False, False]), (floats, [True, False, True])):
        frame = pl.DataFrame({"y": values})
        assert frame.select(s.missing_expr("y", frame.schema["y"])).to_series().to_list() == missing





# pandera

def test_pandera_holds_types_missing_ranges_and_domains():
    import pandera.errors as pe
    s = of(n=Column("integer", range=(0, 10)), x=Column("number", nullable=True),
           t=Column("timestamp", range=("2020-01-01", "2020-12-31")),
           c=Column("category", domain=["u", "v"], on_new_category="quarantine"), free=Column("category", domain=["u"]),
           y="boolean")
    good = pl.DataFrame({"n": [1, 10], "x": [0.5, None], "t": [datetime(2020, 1, 1), datetime(2020, 12, 31)],
                         "c": ["u", "v"],
                         "free": ["u", "new"], "y": [True, False]}, schema_overrides={"t": pl.Datetime("us")})
    check = to_pandera(s)
    assert check.validate(good).equals(good)
    for bad in (pl.lit(11, pl.Int64).alias("n"), pl.lit(-1, pl.Int64).alias("n"), pl.lit(None, pl.Int64).alias("n"),
                pl.lit(1.0).alias("n"),
                pl.lit(datetime(2021, 1, 1)).cast(pl.Datetime("us")).alias("t"), pl.lit("w").alias("c")):
        with pytest.raises((pe.SchemaError, pe.SchemaErrors)): check.validate(good.with_columns(bad))
    with pytest.raises((pe.SchemaError, pe.SchemaErrors)): check.validate(good.drop("y"))


def test_a_word_for_missing_may_be_listed_twice():
    schema = Schema("t", "regression", "y", {"c": Column("category"), "y": Column("number")},
                    missing_values=["", "?", "?"])
    read = pl.DataFrame({"c": ["a ", " ", "?"]}).select(schema.parse_expr("c", pl.String()))
    assert read["c"].to_list() == ["a", None, None]


def test_a_key_that_was_renamed_says_its_new_name(tmp_path):
    path = write_schema(of(y="number"), tmp_path / "schema.yaml")
    path.write_text(path.read_text().replace("missing_values:", "missing:"))
    with pytest.raises(UserError, match="missing is called missing_values now; rename it"): read_schema(path)


def test_only_an_inferred_schema_says_that_it_was_inferred(tmp_path):
    by_hand = write_schema(of(y="number"), tmp_path / "a.yaml").read_text()
    inferred = write_schema(of(y="number"), tmp_path / "b.yaml", {"y": "nothing missing"}).read_text()
    assert "inferred" not in by_hand and "It was inferred" in inferred and "# nothing missing" in inferred


def test_columns_read_together_are_read_as_each_by_itself():
    values = {"integer": ["1", " 2 ", "x", "-999", None, "3.0"], "number": ["1.5", "?", "inf", "-999", None, "nan"],
              "boolean": ["yes", "0", "?", "maybe", None, "T"], "category": [" a", "A ", "?", "b", None, ""],
              "timestamp": ["2021-01-01", "?", "2021-02-03 04:05", "x", None, ""],
              "text": [" a", "?", "", "b", None, "c"]}
    columns, raw = {}, {}
    for type, texts in values.items():
        for i in range(3): # two alike, and one with words of its own
            columns[f"{type}{i}"] = Column(type, nullable=True, missing_values=["b"] if i == 2 else [],
                                           domain=["a", "b"] if type == "category" and i else None)
            raw[f"{type}{i}"] = texts
    s = Schema("d", "regression", "number0", columns, missing_values=["?", "-999"])
    frame = pl.DataFrame(raw)
    typed = frame.select(s.parse_expr(n, pl.String()) for n in raw)
    assert frame.select(s.parse_exprs(frame.schema)).select(list(raw)).equals(typed)
    again = typed.select(s.parse_exprs(typed.schema)).select(list(raw)) # what was read is read as itself
    assert again.equals(typed) and typed["integer0"].to_list() == [1, 2, None, None, None, 3]
    odd = pl.DataFrame(dict(number0=[1.0, float("inf"), float("nan"), -999.0], integer0=[1, -999, None, 3]))
    assert odd.select(s.parse_exprs(odd.schema)).to_dict(as_series=False) == dict(number0=[1.0, None, None, None],
                                                                                  integer0=[1, None, None, 3])


ODD = ["1", "-0", "+5", "007", "1.50", "1e5", " 2", "inf", "nan", "NaN", "?", "", "None", "-999", "\u0663", "a", "a ",
       "9223372036854775808", "0x1", "1_000", "yes", None]


@given(columns=st.lists(st.tuples(st.sampled_from(["integer", "number", "category", "text"]),
                                  st.lists(st.sampled_from(ODD[:3] * 9 + ODD), min_size=3, max_size=3)),
                        min_size=1, max_size=4), words=st.sampled_from([[], ["?"], ["?", "-999"]]))
@settings(deadline=None, max_examples=60)
def test_columns_of_plain_numbers_are_read_as_by_their_expressions(columns, words):
    frame = pl.DataFrame({f"x{i}": values for i, (_, values) in enumerate(columns)}, infer_schema_length=None,
                         schema_overrides={f"x{i}": pl.String for i in range(len(columns))})
    schema = Schema("d", "regression", "x0", {f"x{i}": Column(type, domain=["a"] if type == "category" else None)
                                              for i, (type, _) in enumerate(columns)}, missing_values=words)
    assert schema.read_columns(frame).equals(frame.select(schema.parse_expr(n, pl.String()) for n in frame.columns))
    present = frame.select(schema.present_exprs(dict(frame.schema), "raw ")).rename(lambda n: n.removeprefix("raw "))
    one_by_one = frame.select(pl.when(~schema.missing_expr(n, pl.String())).then(pl.col(n)).alias(n)
                              for n in frame.columns)
    assert present.select(frame.columns).equals(one_by_one)


@pytest.mark.parametrize("lines, words", [
    ("task: quantile", "task is 'quantile'; write task: regression, and quantiles: \\[0.1, 0.5, 0.9\\]"),
    ("task: survival", "task is 'survival'; survival models are not supported"),
    ("task: regression\nquantiles: [0.1, 0.9]", "list two or more between 0 and 1, rising, 0.5 among them"),
    ("task: regression\nquantiles: [0.9, 0.5, 0.1]", "list two or more between 0 and 1, rising"),
    ("task: regression\nquantiles: [0.5, 0.5]", "list two or more"),
    ("task: regression\nquantiles: [0.1, 0.10000001, 0.5]", "list two or more"), # both would be score_0.1
    ("task: [binary]", "task"), ("task: {a: 1}", "task"),
    ("task: regression\nquantiles: [0.5]", "list two or more"), ("task: regression\nquantiles: []", "list two or more"),
    ("task: regression\nquantiles: [0, 0.5]", "list two or more"),
    ("task: regression\nquantiles: [0.5, 1.0]", "list two or more"),
    ("task: regression\nquantiles: a", "quantiles is 'a'"),
    ("task: binary\nclasses: ['0', '1']\nquantiles: [0.5, 0.9]", "a binary task has no quantiles")])
def test_quantiles_that_cannot_be_predicted_are_refused(tmp_path, lines, words):
    (tmp_path / "schema.yaml").write_text(f"dataset: d\n{lines}\ntarget: y\ncolumns:\n  y: {{type: number}}\n")
    with pytest.raises(UserError, match=words): read_schema(tmp_path / "schema.yaml")


def test_quantiles_are_part_of_the_schema(tmp_path):
    schema = Schema("d", "regression", "y", {"y": Column("number")}, quantiles=[0.05, 0.5, 0.975])
    assert read_schema(write_schema(schema, tmp_path / "schema.yaml")) == schema
    assert schema.score_names == ["0.05", "0.5", "0.975"]
    assert schema_hash(schema) != schema_hash(Schema("d", "regression", "y", {"y": Column("number")}))


LABELS = Schema("d", "multilabel", "", {n: Column(t, nullable=True) for n, t in
                                        dict(x="number", a="integer", b="category", c="boolean").items()},
                targets=["a", "b", "c"])


def test_labels_are_yes_no_or_not_known():
    frame = pl.DataFrame(dict(x=[1.] * 5, a=[1, 0, None, 2, None], b=["Yes", "no", None, "maybe", "n"],
                              c=[True, None, None, None, False]))
    found = frame.select(LABELS.encoded_target_expr()).to_series()
    nan = float("nan")
    assert np.array_equal(found.to_numpy(), [[1, 1, 1], [0, 0, nan], [nan] * 3, [nan] * 3, [nan, 0, 0]], equal_nan=True)
    assert found.is_null().to_list() == [False, False, True, True, False]
    assert frame.select(LABELS.target_expr()).to_series().is_null().to_list() == [False, False, True, False, False]
    assert LABELS.feature_columns == ["x"] and LABELS.score_columns == ["score_a", "score_b", "score_c"]


@pytest.mark.parametrize("text, found", [
    ("a, c", [1, 0, 1]), ("none", [0, 0, 0]), ('{"b": 1, "a": 0}', [0, 1, None]), ("a, d", None), ('{"d": 1}', None),
    ('{"a": 2}', None), ("{", None), ("", None), (None, None)])
def test_labels_of_a_row_are_read_back(text, found):
    said = LABELS.parse_labels(text)
    assert (said and [None if x != x else x for x in said]) == found


def test_a_schema_of_labels_comes_back(tmp_path):
    path = write_schema(LABELS, tmp_path / "schema.yaml")
    assert "target:" not in path.read_text() and "classes:" not in path.read_text()
    assert read_schema(path) == LABELS and schema_hash(read_schema(path)) == schema_hash(LABELS)
    one = LABELS.label_schema(1)
    assert (one.task, one.target, one.targets) == ("binary", "b", None) and one.feature_columns == ["x"]
    assert LABELS.columns["a"].feature # the other is a schema of its own


@pytest.mark.parametrize("task, targets, words", [
    ("multilabel", None, "needs 'targets'"), ("binary", ["a", "b"], "has no targets"),
    ("multilabel", ["a"], "two or more"),
    ("multilabel", ["a", "a"], "each once"), ("multilabel", ["a", "none"], "cannot be told apart"),
    ("multilabel", ["a", "b, c"], "cannot be told apart")])
def test_targets_that_are_none(task, targets, words):
    with pytest.raises(ValueError, match=words): Schema("d", task, "", {"a": Column("integer")}, targets=targets)


def test_the_hash_of_a_schema_without_labels_is_what_it_was():
    s = Schema("d", "regression", "x", {"x": Column("number")})
    assert schema_hash(s) == hashlib.sha256(msgspec.json.encode(
        {k: v for k, v in msgspec.to_builtins(s).items() if k != "targets"})).hexdigest()
