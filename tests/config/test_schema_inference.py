"A first contract from the data: types, bounds, what the model may see, the task; on awkward data and on real data."
import sys
from datetime import date, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory import peak_mib

from mlops_nb.config.schema import read_schema, schema_hash, write_schema
from mlops_nb.config.schema_inference import infer_range, infer_schema, infer_task, order_classes, profile_columns
from mlops_nb.config.values import KNOWN_MISSING
from mlops_nb.core.errors import UserError

N = 400
R = np.random.default_rng(0)


def propose(target="y", *, y=None, **columns):
    request = {k: columns.pop(k) for k in ("time", "entity", "exclude", "filter", "task") if k in columns}
    length = next((len(c) for c in columns.values()), N)
    y = ([0.5, 1.5] * length)[:length] if y is None else y
    return infer_schema(pl.DataFrame({**columns, "y": y}).lazy(), "d", target, **request)


def infer(target="y", **data): return propose(target, **data).schema


def column(values, **request): return infer(x=values, **request).columns["x"]


# types

@pytest.mark.parametrize("values, type", [
    ([1, 2, 3, 4] * 100, "integer"), ([1.0, 2.0] * 200, "number"), ([True, False] * 200, "boolean"),
    (["a", "b"] * 200, "category"),
    ([date(2024, 1, 1)] * N, "timestamp"), ([datetime(2024, 1, 1)] * N, "timestamp"),
    (["1", "2"] * 200, "integer"), ([" 1", "2.5 "] * 200, "number"), (["1e3", "-2"] * 200, "integer"),
    (["1", "2", "?", "4"] * 100, "integer"), (["1.5", "NA", "-", None] * 100, "number"),
    (["0.5", "0"] * 200, "category"),
    (["01234", "98765"] * 200, "category"), (["true", "False"] * 200, "boolean"),
    (["2024-01-31", "2024-02-01T10:00:00"] * 200, "timestamp"), (["31/01/2024", "01/02/2024"] * 200, "timestamp"),
    (["1/31/2024 5:03 PM", "?"] * 200, "timestamp"), (["31.01.2024 17:03", "01.02.2024 09:00"] * 200, "timestamp"),
    (["2024-01-31", "soon"] * 200, "category"), (["a", "1"] * 200, "category"), (["1-2", "3-4"] * 200, "category"),
    (pl.Series([1, 2] * 200, dtype=pl.UInt8), "integer"),
    (pl.Series(["a", "b"] * 200, dtype=pl.Categorical), "category"),
    (pl.Series(["1.5", "2"] * 200).cast(pl.Decimal(10, 2)), "number"), (pl.Series([None] * N, dtype=pl.Null), "number"),
    ([""] * N, "text"), (["?"] * N, "text"), ([f"P{i}" for i in range(N)], "text")])
def test_types(values, type):
    if isinstance(values, list) and values[:2] == ["0.5", "0"]:
        type = "number" # "0.5" begins with a zero, but is no code
    assert column(values).type == type


def test_nearly_numeric_text_is_numeric_and_the_rest_is_announced():
    found = propose(x=[str(i) for i in range(N - 3)] + ["12:5", "abc", "1.2.3"])
    s = found.schema
    assert s.columns["x"].type == "integer" and "3 unreadable values" in found.comments["x"]
    assert "such as '12:5', 'abc', '1.2.3'" in found.comments["x"]
    assert column([str(i) for i in range(N - 41)] + [f"a{chr(97 + i % 26)}b" for i in range(41)]).type == "text"


def test_a_word_that_comes_again_and_again_among_numbers_is_proposed_as_missing():
    found = propose(x=[str(i) for i in range(N - 40)] + ["abc"] * 40)
    assert (found.schema.columns["x"].type, found.schema.columns["x"].missing_values) == ("integer", ["abc"])
    assert "40 × 'abc' read as missing" in found.comments["x"]
    assert "CHECK: 'abc' taken for missing" in found.comments["x"]


@pytest.mark.parametrize("first, format", [("13/02/2024", "%d/%m/%Y"), ("02/13/2024", "%m/%d/%Y")])
def test_the_thirteenth_tells_day_from_month(first, format):
    assert column(["03/04/2024"] * (N - 1) + [first]).format == format # long after the first values
    found = propose(x=["03/04/2024", "05/06/2024"] * 200)
    s = found.schema
    assert s.columns["x"].type == "timestamp" and "day or month first" in found.comments["x"]


def test_dates_that_begin_late_are_found(): assert column([None] * 350 + ["13/02/2024"] * 50).type == "timestamp"


def test_years_of_two_digits_are_not_the_first_century():
    assert column(["13/02/24", "01/03/24"] * 200).format == "%d/%m/%y"


# missing

def test_markers_mean_missing_everywhere_and_words_only_where_they_do():
    s = infer(n=["1", "?"] * 200, c=["a", "N/A"] * 200, k=["None", "unknown"] * 200)
    assert s.missing_values == KNOWN_MISSING and not any(c.missing_values for c in s.columns.values())
    assert [s.columns[c].nullable for c in "nck"] == [True, True, False]
    assert s.columns["c"].domain == ["a"] and s.columns["k"].domain == ["None", "unknown"]


def test_a_word_that_is_missing_in_one_column_may_be_a_value_of_another():
    found = propose(n=["1", "2", "None", "4"] * 100, c=["a", "b", "None", "c"] * 100)
    s = found.schema
    assert s.columns["n"].missing_values == ["None"] and s.columns["n"].nullable
    assert s.columns["c"].domain == ["None", "a", "b", "c"] and not s.columns["c"].nullable
    assert "25.0% missing" in found.comments["n"]


@pytest.mark.parametrize("marker", KNOWN_MISSING)
def test_markers_that_programs_write(marker):
    found = propose(n=["1.5", "2", marker, "4"] * 100, t=["2024-01-31", marker, "2024-02-01", "2024-02-02"] * 100)
    assert [(c.type, c.nullable) for n, c in found.schema.columns.items() if n != "y"] == [("number", True),
                                                                                           ("timestamp", True)]


@pytest.mark.parametrize("others, values", [(["AT", "DE", "US"], ["AT", "DE", "NA", "US"]),
                                            (["Gd", "TA", "Ex"], ["Ex", "Gd", "TA"])])
def test_na_is_a_country_among_countries(others, values):
    found = propose(x=[*others, "NA"] * 100)
    assert found.schema.columns["x"].domain == values
    assert ("'NA' is a value here" in found.comments["x"]) == ("NA" in values)


def test_one_odd_number_in_another_column_takes_no_class_from_the_target():
    "As in a public data set on sleep, where `None` is a disorder."
    found = propose("disorder", pulse=[str(60 + i % 20) for i in range(N - 1)] + ["None"],
                    disorder=["None", "Apnea", "Insomnia", "None"] * 100)
    assert (found.schema.task, found.schema.classes) == ("multiclass", ["Apnea", "Insomnia", "None"])
    assert found.schema.columns["pulse"].missing_values == ["None"]


def test_rows_without_a_label_are_said():
    found = propose(x=[1, 2] * 200, y=["a", "b", "NULL", ""] * 100)
    assert "CHECK: 200 rows have no label ('NULL') and are left out" in found.comments["y"]


def test_a_number_that_stands_alone_is_proposed_as_missing():
    found = propose(age=[*range(20, 80), -999, -999] * 6, fare=([*map(str, range(40)), "999999"] * 10)[:372])
    assert found.schema.columns["age"].missing_values == ["-999"] and found.schema.columns["age"].nullable
    assert "CHECK: -999 taken for missing: far from all other values" in found.comments["age"]
    assert found.profiles["age"].min == 20 and found.schema.columns["fare"].missing_values == ["999999"]
    assert column([*range(900, 1000)] * 4).missing_values == []


def test_categories_that_differ_in_spelling_only_are_said():
    assert "'Yes' and 'yes' differ only in how they are spelled" in propose(x=["Yes", "yes", "No",
                                                                               "No"] * 100).comments["x"]


@pytest.mark.parametrize("values, nullable", [([1, None] * 200, True), ([1.0, float("nan")] * 200, True),
                                              (["a", " "] * 200, True),
                                              ([1, 2] * 200, False)])
def test_nullable_is_what_was_seen(values, nullable): assert column(values).nullable == nullable


# ranges

bounds = st.floats(-1e15, 1e15, allow_nan=False).map(lambda x: round(x, 4))


@settings(deadline=None, max_examples=300)
@given(a=bounds, b=bounds, distinct=st.integers(1, 100), t=st.floats(0, 1))
def test_a_range_leaves_room(a, b, distinct, t):
    low, high = sorted((a, b))
    found = infer_range(low, high, distinct, low + t * (high - low), (high - low) / 3)
    if found is None: return
    lower, upper = found
    slack = 0.999 * max(high - low, abs(high))
    assert upper is None or upper >= high + slack or distinct < 20 or upper == high == 0
    assert lower is None or (lower == 0 if low >= 0 else lower <= low - 0.999 * (high - low))
    assert distinct >= 20 or upper is None


@pytest.mark.parametrize("values, range", [
    (list(range(17, 91)) * 6, (0, 200)), ([0, 1] * 200, (0, None)), (list(range(2000, 2025)) * 20, (0, 5000)),
    ([*range(199), 10**9] * 2, (0, None)), ([-1.5, 2.5] * 200, None),
    ([float(i) for i in range(-200, 200)], (-600, 600)),
    ([*map(float, range(N)), float("inf")], (0, 800)), (["a", "b"] * 200, None),
    ([date(2024, 1, 1), date(2024, 1, 2)] * 200, None)])
def test_ranges(values, range): assert column(values).range == range


# what the model may see

@pytest.mark.parametrize("name, values, why", [
    ("anything", list(range(N)), "a running number"),
    ("customer_id", R.permutation(10**6)[:N], "an identifier by its name"),
    ("customerId", R.permutation(10**6)[:N], "an identifier by its name"),
    ("x", [f"P{i}" for i in range(N)], "an identifier?"),
    ("name", [f"Braund, Mr. Owen Harris {i}" for i in range(N)], "an identifier?"),
    ("x", [7] * N, "the same value"),
    ("x", [None] * N, "no value at all"), ("x", ["?"] * N, "no value at all"),
    ("x", [f"c{i // 3}" for i in range(N)], "too few rows"),
    ("paid", R.permutation(10**6)[:N], ""), ("valid", R.permutation(10**6)[:N], ""), ("x", R.normal(size=N), ""),
    ("x", list("ab") * 200, "")])
def test_columns_that_can_only_be_learned_by_heart(name, values, why):
    found = propose(**{name: values})
    s = found.schema
    assert s.columns[name].feature == (why == "") == (name in s.feature_columns) and why in found.comments[name]


@pytest.mark.parametrize("values", [[f"the customer said that it was number {i}" for i in range(N)],
                                    [f"故障中です{i}" for i in range(N)]])
def test_free_text_is_learned_from_and_a_person_asked(values):
    found = propose(x=values)
    assert found.schema.columns["x"].type == "text" and found.schema.feature_columns == ["x"]
    assert "CHECK: its words are learned from; is it written before the outcome is known?" in found.comments["x"]


def test_domains_of_at_most_a_hundred():
    assert column([f"c{i % 100:02d}" for i in range(4000)]).domain == [f"c{i:02d}" for i in range(100)]
    many = column([f"c{i % 101}" for i in range(4000)])
    assert many.domain is None and many.feature and many.type == "category"


def test_excluded_columns_the_target_and_its_parts_are_not_seen():
    found = propose("b - a", a=R.normal(size=N), b=R.normal(size=N), c=R.normal(size=N), d=R.normal(size=N),
                    exclude=["d"])
    s = found.schema
    assert s.feature_columns == ["c", "y"] and "excluded" in found.comments["d"] and s.task == "regression"


def test_time_entity_and_segments():
    who, when = [f"u{i // 40}" for i in range(N)], ["2024-01-31"] * N
    columns = {"a": list("uv") * 200, "b": list("uvwx") * 100, "c": [True, False] * 200, "d": list("pq") * 200}
    s = infer(who=who, when=when, **columns, entity="who", time="when")
    assert (s.entity, s.event_time, s.segments) == ("who", "when", ["a", "b",
                                                                    "c"]) and s.feature_columns == ["a", "b", "c", "d"]


def test_the_columns_of_ingestion_are_no_part_of_the_contract():
    assert list(infer(x=[1, 2] * 200, _source=["a"] * N, _row=list(range(N))).columns) == ["x", "y"]


# task

@pytest.mark.parametrize("y, task, classes", [
    ([0, 1] * 200, "binary", ["0", "1"]), ([-1, 1] * 200, "binary", ["-1", "1"]),
    ([1.0, 0.0] * 200, "binary", ["0", "1"]),
    ([True, False] * 200, "binary", ["false", "true"]), (["yes", "no"] * 200, "binary", ["no", "yes"]),
    (["Y", "N", "N", "N"] * 100, "binary", ["N", "Y"]),
    (["a", "b", "b", None] * 100, "binary", ["b", "a"]), ([10, 9, 8, 8] * 100, "multiclass", ["8", "9", "10"]),
    (["b", "a", "c", "?"] * 100, "multiclass", ["a", "b", "c"]),
    (list(range(20)) * 20, "multiclass", [str(i) for i in range(20)]),
    (list(range(25)) * 16, "regression", None), ([0.5, 1.5, 2.5, 3.0] * 100, "regression", None),
    (["1", "2", "NA", "3"] * 100, "multiclass", ["1", "2", "3"])])
def test_task_and_classes(y, task, classes):
    s = infer(x=R.normal(size=N), y=y)
    assert (s.task, s.classes) == (task, classes)


def test_the_task_may_be_chosen():
    assert infer(y=[1, 2, 3, 4] * 100, task="regression").classes is None
    assert len(infer(y=[i % 25 for i in range(N)], task="multiclass").classes) == 25


def test_exactly_twenty_and_twenty_one_classes():
    for k, task in ((20, "multiclass"), (21, "regression")):
        assert infer(y=[i % k for i in range(4200)], x=[0.5] * 4200).task == task


def test_a_filter_comes_before_the_classes():
    assert infer(y=[1, 2, 3, 4] * 100, filter="target <= 2").task == "binary"


@settings(deadline=None, max_examples=100)
@given(counts=st.dictionaries(st.text(max_size=5), st.integers(1, 100), min_size=2, max_size=5))
def test_the_order_of_classes_does_not_depend_on_the_order_of_rows(counts):
    turned = dict(reversed(counts.items()))
    assert order_classes(counts) == order_classes(turned) and sorted(order_classes(counts)) == sorted(counts)


def test_guess_task():
    assert infer_task(pl.Float64(), 3, False) == "regression" and infer_task(pl.String(), 3, True) == "multiclass"


# mistakes

@pytest.mark.parametrize("request_, says", [
    ({"target": "yy"}, "target \"yy\": there is no column 'yy'; did you mean 'y'?"),
    ({"target": "y - z"}, "there is no column 'z'"),
    ({"target": "y +"}, "neither a column nor a SQL expression"), ({"target": "y - c"}, "cannot be computed"),
    ({"target": "y > -100"}, "the same value in all 400 rows"), ({"target": "t"}, "is a Datetime"),
    ({"target": "empty"}, "has no value in any"),
    ({"target": "name"}, "400 different values, too many for classes"), ({"filter": "z > 1"}, "there is no column 'z'"),
    ({"filter": "target > 100"}, "no value in any of the rows that pass the filter"),
    ({"time": "tt"}, "time: there is no column 'tt'"),
    ({"time": "c"}, "holds no dates, but the type category, such as"),
    ({"entity": "who"}, "entity: there is no column 'who'"),
    ({"exclude": ["c", "d"]}, "exclude: there is no column 'd'"),
    ({"target": "c", "task": "regression"}, "is no number"),
    ({"target": "y", "task": "binary"}, "a binary task has two")])
def test_what_does_not_fit_is_one_sentence(request_, says):
    frame = {"c": list("ab") * 200, "t": [datetime(2024, 1, 1)] * N, "empty": pl.Series([None] * N, dtype=pl.String),
             "name": [f"P{i}" for i in range(N)], "y": R.normal(size=N)}
    with pytest.raises(UserError, match=says) as error: infer(**{"target": "y", **frame, **request_})
    assert "\n" not in str(error.value)


def test_data_that_no_contract_can_describe():
    with pytest.raises(UserError, match="has no rows"): infer_schema(pl.LazyFrame({"y": []}), "d", "y")
    with pytest.raises(UserError, match="has no columns"): infer_schema(pl.LazyFrame({"_row": [1]}), "d", "y")
    with pytest.raises(UserError, match="the column 'x' holds values of the type List"): infer(x=[["a"]] * N)


def test_one_row_and_two_rows():
    with pytest.raises(UserError, match="the same value"): infer_schema(pl.LazyFrame({"x": [1], "y": [1]}), "d", "y")
    assert infer_schema(pl.LazyFrame({"x": [1, 2], "y": ["no", "yes"]}), "d", "y").schema.classes == ["no", "yes"]


# any data

cells = {"i": st.integers(-2**62, 2**62), "f": st.floats(),
         "s": st.text(max_size=6) | st.sampled_from(["?", "1", "2024-01-31", "0", "NA", "1e400"]),
         "b": st.booleans(), "d": st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_the_data_the_contract_is_valid_or_the_sentence_is_one(tmp_path_factory, data):
    refused = ("_source", "_row", "y", "*") # ingestion keeps * and ^x$ under other names
    name = st.text(min_size=1, max_size=6).filter(lambda n: n not in refused and not (n[0] == "^" and n[-1] == "$"))
    names = data.draw(st.lists(name, max_size=4, unique=True))
    rows = data.draw(st.integers(1, 12))
    frame = pl.DataFrame({n: data.draw(st.lists(st.none() | cells[data.draw(st.sampled_from(sorted(cells)))],
                                                min_size=rows, max_size=rows))
                          for n in names} | {"y": [i % 2 for i in range(rows)]}, strict=False)
    try: s = infer_schema(frame.lazy(), "d", "y").schema
    except UserError as e: assert rows == 1 and "same value" in str(e); return
    path = tmp_path_factory.mktemp("infer") / "schema.yaml"
    again = read_schema(write_schema(s, path))
    assert again == s and schema_hash(again) == schema_hash(s)
    parsed = frame.lazy().select(s.parse_expr(n, frame.schema[n]) for n in s.columns).collect()
    for n, c in s.columns.items(): # the data keeps its own contract
        values = parsed[n].drop_nulls()
        if c.range and c.range[0] is not None and len(values): assert values.min() >= c.range[0]
        if c.range and c.range[1] is not None and len(values): assert values.max() <= c.range[1]
        if c.domain is not None: assert set(values) <= set(c.domain)
        missing = frame.select(s.missing_expr(n, frame.schema[n])).to_series().any()
        assert c.nullable or not missing


def test_the_same_data_give_the_same_contract():
    frame = pl.DataFrame({"s": [f"c{i % 3000}" for i in range(60000)], "x": R.normal(size=60000),
                          "y": R.integers(0, 2, 60000)}).lazy()
    one, two = infer_schema(frame, "d", "y"), infer_schema(frame, "d", "y")
    assert one == two


MILLIONS = """
import polars as pl, sys
from mlops_nb.config.schema_inference import infer_schema
s = infer_schema(pl.scan_parquet(sys.argv[1]), 'd', 'y').schema
assert s.columns['c'].type == 'text' and not s.columns['c'].feature and s.columns['c'].domain is None, s
"""


def test_ten_million_categories_do_not_fill_the_memory(tmp_path):
    path = tmp_path / "x.parquet"
    n = 10_000_000
    (pl.LazyFrame({"i": pl.int_range(n, eager=True)}).select(c=pl.format("customer-number-{}", pl.col("i").hash()),
                                                             y=pl.col("i") % 2)
     .sink_parquet(path, row_group_size=500_000))
    # the texts alone are 400 MB, a hash table of them well over 1 GB
    assert peak_mib(sys.executable, "-c", MILLIONS, path) < 600


# real data

def csv(path, **how):
    "As ingestion delivers it: numbers where all are numbers, else stripped text."
    return pl.scan_csv(path, infer_schema_length=None,
                       **how).with_columns(pl.col(pl.String).str.strip_chars().replace("", None))


def numeric_where_possible(frame):
    for name in frame.columns:
        number = frame[name].cast(pl.Int64, strict=False)
        if number.null_count() == frame[name].null_count(): frame = frame.with_columns(number)
    return frame


@pytest.mark.realdata
def test_adult(real_data):
    parts = []
    for part in ("adult.data", "adult.test"):
        frame = pl.read_csv(real_data("adult") / part, infer_schema=False).rename(str.strip)
        frame = frame.with_columns(pl.all().str.strip_chars().replace("", None))
        parts.append(frame.filter(~pl.all_horizontal(pl.all().is_null())))
    s = infer_schema(numeric_where_possible(pl.concat(parts)).lazy(), "adult", "rtrim(outcome, '.')").schema
    assert (s.task, s.classes) == ("binary", ["<=50K", ">50K"]) and len(s.feature_columns) == 14
    assert [n for n, c in s.columns.items() if c.nullable] == ["workclass", "occupation", "native-country"]
    assert s.columns["capital-gain"].missing_values == [] # 99,999 is where larger gains were cut off
    assert s.columns["education-num"].type == "integer" and len(s.columns["native-country"].domain) == 41


@pytest.mark.realdata
def test_bank(real_data):
    s = infer_schema(csv(real_data("bank_marketing") / "bank-additional-full.csv", separator=";"), "bank", "y",
                     exclude=["duration"]).schema
    assert (s.task, s.classes) == ("binary", ["no", "yes"]) and len(s.feature_columns) == 19
    assert "unknown" in s.columns["job"].domain and [n for n, c in s.columns.items() if c.nullable] == ["pdays"]
    assert s.columns["pdays"].missing_values == ["999"] # not called before, as the data's own page says


@pytest.mark.realdata
def test_bike(real_data):
    s = infer_schema(csv(real_data("bike_sharing") / "hour.csv"), "bike", "cnt", time="dteday",
                     exclude=["casual", "registered"]).schema
    assert s.task == "regression" and s.columns["dteday"].type == "timestamp" and not s.columns["instant"].feature
    assert s.feature_columns == ["season", "yr", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit", "temp",
                                 "atemp", "hum",
                                 "windspeed"]
    first = csv(real_data("bike_sharing") / "hour.csv").filter(pl.col("yr") == 0)
    # a contract of the first year lets the second one pass, though it grew
    early = infer_schema(first, "bike", "cnt", time="dteday").schema
    second = csv(real_data("bike_sharing") / "hour.csv").filter(pl.col("yr") == 1).collect()
    for name, c in early.columns.items():
        low, high = c.range or (None, None)
        assert (low is None or second[name].min() >= low) and (high is None or second[name].max() <= high), name


@pytest.mark.realdata
def test_telco(real_data):
    s = infer_schema(csv(real_data("telco_churn") / "Telco-Customer-Churn.csv"), "telco", "Churn").schema
    assert (s.task, s.classes) == ("binary", ["No", "Yes"])
    assert len(s.feature_columns) == 19 and "customerID" not in s.feature_columns
    assert (s.columns["TotalCharges"].type, s.columns["TotalCharges"].nullable) == ("number", True)


@pytest.mark.realdata
def test_taxi(real_data):
    months = pl.scan_parquet([real_data("nyc_green_taxi") / f"green_tripdata_2021-0{m}.parquet" for m in (1, 2)])
    minutes = "(EXTRACT(EPOCH FROM lpep_dropoff_datetime) - EXTRACT(EPOCH FROM lpep_pickup_datetime)) / 60.0"
    s = infer_schema(months, "taxi", minutes, time="lpep_pickup_datetime", filter="target >= 1 AND target <= 60").schema
    assert s.task == "regression" and not s.columns["ehail_fee"].feature and s.columns["passenger_count"].nullable
    assert not {"lpep_pickup_datetime", "lpep_dropoff_datetime", "ehail_fee"} & set(s.feature_columns)
    later = pl.read_parquet(real_data("nyc_green_taxi") / "green_tripdata_2021-04.parquet")
    outside = pl.any_horizontal(pl.lit(False),
                                *(~pl.col(n).is_between(c.range[0] if c.range[0] is not None else -np.inf,
                                c.range[1] if c.range[1] is not None else np.inf) for n,
                                c in s.columns.items() if c.range))
    assert later.select(outside.fill_null(False).mean()).item() < 0.001 # next months are not quarantined


def test_what_observe_keeps_does_not_grow_with_the_rows():
    facts = profile_columns(pl.LazyFrame({"s": [f"c{i}" for i in range(50000)]}))["s"]
    assert facts.missing == 0 and 40000 < facts.distinct <= 50000


def test_an_estimate_of_distinct_values_never_says_more_than_is_possible(monkeypatch):
    monkeypatch.setattr("mlops_nb.config.schema_inference.MAX_COUNTED_CELLS", 0) # as with many millions of rows
    rows = 10_000
    frame = pl.DataFrame(dict(key=[f"k{i}" for i in range(rows)], number=range(rows), half=[i / 2 for i in range(rows)],
                              hour=[i % 3_000 for i in range(rows)], written=[str(i) for i in range(rows)],
                              gap=[None if i % 2 else i for i in range(rows)]))
    profiles = infer_schema(frame.lazy(), "d", "half").profiles
    assert not any(p.exact for p in profiles.values())
    assert all(p.distinct <= rows for p in profiles.values())
    assert profiles["hour"].distinct <= 3_000 and profiles["gap"].distinct <= 5_000


def test_distinct_values_of_small_data_are_counted_and_numbers_are_written_out():
    frame = pl.DataFrame(dict(key=[f"k{i}" for i in range(10_000)], year=[2013 + i % 5 for i in range(10_000)],
                              price=[35_064.5 * (i + 1) for i in range(10_000)]))
    comments = infer_schema(frame.lazy(), "d", "price").comments
    assert "10,000 distinct" in comments["key"] and "about" not in comments["key"]
    assert "5 distinct; 2013 to 2017" in comments["year"]
    assert "35064 to 350645000" in comments["price"]


# a time that is computed or proposed

PARTS = dict(year=["2024", "2023"] * 200, month=[str(1 + i % 12) for i in range(N)],
             day=[str(1 + i % 28) for i in range(N)])


def test_a_time_may_be_computed_from_its_parts():
    found = propose(time="DATE(year || '-' || month || '-' || day)", **PARTS)
    c = found.schema.columns["event_time"]
    assert found.schema.event_time == "event_time" and (c.type, c.feature) == ("timestamp", False)
    assert found.profiles["event_time"].min == datetime(2023, 2, 2)
    raw = pl.DataFrame({n: [v[0], "30"] for n, v in PARTS.items()})
    assert found.schema.with_computed(raw)["event_time"].to_list() == [datetime(2024, 1, 1), None] # no thirtieth month
    with pytest.raises(UserError, match="there is no column 'yeer'; did you mean 'year'?"):
        propose(time="DATE(yeer || '-' || month)", **PARTS)
    with pytest.raises(UserError, match="gives no time in any row"): propose(time="year + month", **PARTS)


def test_a_time_that_would_serve_is_proposed():
    said = propose(**PARTS).comments["year"]
    assert "--time \"strptime(concat(year, '-', month, '-', day), '%Y-%m-%d')\"" in said
    expression = said.split('--time "')[1].split('"')[0]
    assert propose(time=expression, **PARTS).schema.event_time == "event_time"
    days = [f"2024-01-{1 + i % 28:02}" for i in range(N)]
    assert "CHECK: would serve as the time of a row with --time 'day'" in propose(day=days).comments["day"]
    assert "--time" not in propose(day=days, time="day").comments["day"]


@pytest.mark.parametrize("first, units", [
    (("ms", "°C", None), {"temp": "in °C"}), (("1700000000000", "°C", None), {}), (("ms", "20", "5"), {}),
    ((None, "°C", "mm/s"), {"temp": "in °C", "speed": "in mm/s"})])
def test_a_row_of_units_below_the_header_is_said_and_noted(first, units):
    n = 60
    rows = dict(timestamp=[str(1_700_000_000_000 + i * 10_007) for i in range(n)],
                temp=[f"{20 + i / 7:.2f}" for i in range(n)], speed=[f"{i % 11}.5" for i in range(n)],
                y=["0", "1"] * (n // 2))
    found = propose(**{k: [v, *rows[k]] for k, v in zip(rows, (*first, None))})
    assert {k: c.doc for k, c in found.schema.columns.items() if c.doc} == units
    assert any("looks like a row of units" in c for c in found.comments.values()) == bool(units)


@pytest.mark.parametrize("values, said", [
    ([f"{i / 40:.2f} kg" if i % 3 else f"{i * 25} g" for i in range(N)], "numbers in several units (kg, g)"),
    ([f"€ {i + 1},50" if i % 3 else f"${i + 1}.50" for i in range(N)], "numbers in several units (€, $)"),
    ([f"{i} kg" for i in range(N)], ""), ([f"{i % 7} rooms" if i % 2 else f"{i} beds" for i in range(N)], "")])
def test_several_units_in_one_column_are_said(values, said):
    found = propose(x=values)
    assert ("several units" in found.comments["x"]) == bool(said) and said in found.comments["x"]
    if said: assert not found.schema.columns["x"].feature and found.roles["x"].reason == "numbers in several units"
    assert propose(x=values, exclude=["x"]).roles["x"].reason == "excluded"


@pytest.mark.parametrize("name, n_values, type, asked", [
    ("zone", 40, "category", False), ("zone", 255, "integer", True), ("fare", 255, "integer", False)])
def test_numbers_with_the_name_of_a_code_are_codes_where_they_are_few_and_else_asked_about(name, n_values, type, asked):
    found = propose(**{name: [i * 7919 % n_values for i in range(12 * n_values)]})
    assert found.schema.columns[name].type == type and ("amounts, or codes?" in found.comments[name]) == asked
    assert "codes?" not in propose(entity=name, **{name: [i % n_values for i in range(12 * n_values)]}).comments[name]


@pytest.mark.parametrize("task, words", [("survival", "survival models are not supported"),
                                         ("ranking", "ranking models are not supported"),
                                         ("multilabel", "name their columns by --targets"),
                                         ("regresion", "there is no task 'regresion'; did you mean 'regression'?")])
def test_a_task_that_is_not_here_is_answered_in_words(task, words):
    with pytest.raises(UserError, match=words): infer(x=[1.5, 2.5] * 200, task=task)


def test_quantile_is_a_regression_with_quantiles():
    y = R.normal(size=N).tolist()
    found = infer(x=y, y=y, task="quantile")
    assert (found.task, found.quantiles, found.score_names) == ("regression", [0.1, 0.5, 0.9], ["0.1", "0.5", "0.9"])
    assert infer(x=y, y=y).quantiles is None
    with pytest.raises(UserError, match="is no number, and a regression predicts one"):
        infer(x=y, y=["a", "b"] * 200, task="quantile")
