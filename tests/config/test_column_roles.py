"What a column is for: saved indexes, identifiers, entities, codes and sensitive columns, by name and by behaviour."
import hashlib
import uuid

import numpy as np
import polars as pl
import pytest

from mlops_nb.config.column_roles import (
    handed_out,
    identifier_kind,
    is_code_name,
    is_sensitive_name,
    name_words,
    profile_forms,
)
from mlops_nb.config.schema_inference import infer_schema

N = 600
R = np.random.default_rng(1)
Y = R.integers(0, 2, N)


def propose(target="y", **columns):
    request = {k: columns.pop(k) for k in ("time", "entity", "exclude", "filter") if k in columns}
    return infer_schema(pl.DataFrame({"income": R.normal(size=N), **columns, "y": Y}).lazy(), "d", target, **request)


@pytest.mark.parametrize("name, words", [
    ("customer_id", ["customer", "id"]), ("CustomerID", ["customer", "id"]), ("customerId", ["customer", "id"]),
    ("PULocationID", ["pu", "location", "id"]), ("marital-status", ["marital", "status"]), ("emp.var.rate",
     ["emp", "var", "rate"]), ("SEX", ["sex"]), ("", []), ("_", []), ("größe2", ["größe2"])])
def test_words(name, words): assert name_words(name) == words


@pytest.mark.parametrize("kind, names", [
    ("index", ["", "Unnamed: 0", "Unnamed: 0.1", "Unnamed: 0.1.1", "__index_level_0__", "_c0"]),
    ("who", ["customer_id", "CustomerID", "userId", "patient_nbr", "kundennr", "src_user_id", "email", "e-mail",
             "phone_number", "account_no", "client", "msisdn", "Kundennummer", "id_cliente", "ID_client"]),
    ("thing", ["id", "order_id", "InvoiceNo", "PULocationID", "uuid", "loan_number", "transactionid"]),
    ("", ["paid", "valid", "grid", "covid", "humid", "phone_service", "customer_age", "user_type", "account", "index",
          "number_of_rooms", "num_lines", "country_code", "device", "key_rate", "income"])])
def test_kinds_of_names(kind, names): assert {n: identifier_kind(n) for n in names} == dict.fromkeys(names, kind)


def test_names_of_codes_and_of_sensitive_columns():
    codes = ["SEX", "EDUCATION", "MARRIAGE", "VendorID", "payment_type", "zip_code", "RatecodeID"]
    assert [n for n in [*codes, "education-num", "amount", "hour", "age"] if is_code_name(n)] == codes
    alike = ["age", "AGE", "customer_age", "age_group", "sex", "Gender", "race", "religion", "nationality",
             "marital-status", "native-country", "SeniorCitizen"]
    other = ["vehicle_age", "age_of_account", "average", "race_distance", "sexagesimal", "stage", "page"]
    assert [n for n in alike + other if is_sensitive_name(n)] == alike


# saved indexes

KEPT = np.sort(R.choice(1000, N, replace=False)) # what a filter leaves


@pytest.mark.parametrize("name", ["Unnamed: 0", "Unnamed: 0.1", "__index_level_0__", "level_0", "rowid", "index",
                                  "column_1", "row_number"])
@pytest.mark.parametrize("values", [KEPT, R.permutation(KEPT), KEPT[::-1], KEPT.astype(float)])
def test_a_saved_index_with_gaps_is_no_feature_in_any_order(name, values):
    found = propose(**{name: values})
    assert not found.schema.columns[name].feature and "saved row index" in found.comments[name]
    assert found.schema.entity is None and found.schema.feature_columns == ["income"]


def test_an_index_that_starts_anew_in_every_file_is_no_feature():
    pieces = np.tile(np.arange(150), 4)
    for name in ("Unnamed: 0", "index", "column_1"):
        assert propose(**{name: pieces}).schema.feature_columns == ["income"]


@pytest.mark.parametrize("name, values", [
    ("index", R.normal(102, 3, N).round(1)), ("index", R.integers(80, 120, N)), ("level_1", R.integers(0, 4, N)),
    ("column_1", R.integers(0, 90, N)), ("idx", R.choice(["a", "b"], N)), ("Unnamed: 7", R.normal(size=N))])
def test_a_name_alone_makes_no_index_of_a_measurement(name, values):
    assert name in propose(**{name: values}).schema.feature_columns


# numbers that were handed out

@pytest.mark.parametrize("values, why", [
    (np.arange(1000, 1000 + N), "a running number"), (KEPT, "a running number"), (KEPT[::-1], "a running number"),
    (np.cumsum(R.integers(1, 10**6, N)), "a running number"), (R.permutation(KEPT), "out of a narrow range"),
    (R.permutation(np.arange(5000, 5000 + N)), "out of a narrow range"),
    (R.choice(10_000, N, replace=False), "out of a narrow range"),
    (R.integers(10**9, 10**10, N), "10 digits"), (1_600_000_000 + R.integers(0, 10**8, N), "10 digits")])
def test_numbers_that_count_or_name_are_no_features(values, why):
    found = propose(figure=values)
    assert not found.schema.columns["figure"].feature and why in found.comments["figure"]
    assert found.comments["figure"].endswith("CHECK: is it an identifier?")


@pytest.mark.parametrize("values", [
    R.lognormal(10, 1, N).astype(int), R.integers(0, 10**6, N), R.integers(0, 10_000, N), R.integers(18, 90, N),
    R.normal(0, 1e6, N).astype(int), R.lognormal(21, 1, N).astype(int), np.sort(R.integers(0, 300, N)),
    np.repeat(np.arange(2000, 2020), N // 20), np.tile(np.arange(24), N // 24), R.choice(10**6, N, replace=False),
    np.sort(R.normal(size=N)), np.arange(N) + 0.5, np.sort(R.integers(0, 20_000, N))])
def test_measurements_stay_features(values):
    assert propose(figure=values).schema.feature_columns == ["income", "figure"]


def test_a_hundred_noisy_measurements_are_no_identifiers():
    "Of whole numbers drawn at random from any range none is taken for handed out (10 sizes, 200 draws each)."
    for span in np.geomspace(N, N * N, 10).astype(int):
        table = pl.DataFrame({f"x{i}": R.integers(0, span, N) for i in range(200)})
        forms = profile_forms(table, dict.fromkeys(table.columns, "integer"))
        assert not [handed_out(f) for f in forms.values() if handed_out(f)], span


def test_a_column_with_a_few_doubled_rows_is_still_handed_out():
    values = R.permutation(np.concatenate([np.arange(N - 6), np.arange(6)]))
    assert "narrow range" in propose(figure=values).comments["figure"]


# forms of text

FORMS = {"UUIDs": lambda i: str(uuid.UUID(int=i * 10**30)), "hashes": lambda i: hashlib.md5(b"%d" % i).hexdigest(),
         "e-mail addresses": lambda i: f"person{i}@mail.example", "long numbers": lambda i: f"+43 660 {i:03} 45 67",
         "numbered codes": lambda i: f"A-{i:06}"}


@pytest.mark.parametrize("form", FORMS)
def test_text_that_names_is_no_feature_and_no_free_text(form):
    found = propose(field=[FORMS[form](i) for i in range(N)])
    assert not found.schema.columns["field"].feature and form in found.comments["field"]
    assert found.schema.entity is None


@pytest.mark.parametrize("form", ["UUIDs", "e-mail addresses", "long numbers"])
@pytest.mark.parametrize("each", [4, 30])
def test_whom_rows_are_about_is_seen_by_the_form_of_text(form, each):
    found = propose(field=[FORMS[form](i // each * 7) for i in range(N // each * each)] + [FORMS[form](5)] * (N % each))
    expected = "field" if N // each > 20 else None
    assert found.schema.entity == expected and ("field" in found.schema.feature_columns) == (expected is None)


def test_words_and_dates_are_no_identifiers():
    found = propose(city=[f"town of {'abcdefghijklmnopqrstuvwxyz'[i % 26]}" for i in range(N)],
                    plan=R.choice(["A-1", "B-2"], N), icd=[f"E{i % 25}.{i % 4}" for i in range(N)])
    assert found.schema.feature_columns == ["income", "city", "plan", "icd"]


# identifiers that repeat

@pytest.mark.parametrize("each", [2, 6, 40])
@pytest.mark.parametrize("name", ["customer_id", "PatientID", "user", "account_no", "userid"])
def test_whom_rows_are_about_is_the_entity_and_no_feature(name, each):
    found = propose(**{name: np.repeat(R.choice(10**6, N // each, replace=False), each)})
    assert found.schema.entity == name and not found.schema.columns[name].feature
    assert "CHECK: the entity" in found.comments[name]


def test_an_identifier_with_gaps_that_became_a_float():
    values = pl.Series(np.repeat(R.choice(10**6, N // 6, replace=False), 6)).cast(pl.Float64)
    values = values.to_frame("v").select(pl.when(pl.int_range(N) % 10 != 0).then("v")).to_series()
    assert propose(customer_id=values).schema.entity == "customer_id"


def test_of_several_identifiers_the_customer_is_the_entity():
    customers, orders = np.arange(N) // 12, np.arange(N) // 3
    found = propose(order_id=orders * 7, customer_id=customers * 13, product_id=R.integers(0, 100, N) * 11)
    assert found.schema.entity == "customer_id" and found.schema.feature_columns == ["income"]
    assert propose(order_id=orders * 7, basket=R.integers(0, 9, N)).schema.entity == "order_id"


def test_what_the_user_named_is_not_proposed_anew():
    ids = np.arange(N) // 6 * 7
    assert propose(customer_id=ids, shop=R.choice(["a", "b"], N), entity="shop").schema.entity == "shop"
    found = propose(customer_id=ids, exclude=["customer_id"])
    assert found.schema.entity == "customer_id" and "excluded" in found.comments["customer_id"]


def test_a_device_with_many_rows_is_an_entity_and_no_code():
    found = propose(device_id=R.integers(0, 30, N) * 11)
    assert found.schema.entity == "device_id" and found.schema.columns["device_id"].type == "integer"
    assert "codes" not in found.comments["device_id"]


def test_places_and_few_values_stay_features():
    found = propose(location_id=R.integers(0, 40, N), device=R.integers(0, 9, N), customer_id=R.integers(0, 8, N))
    assert found.schema.entity is None and len(found.schema.feature_columns) == 4


# codes and sensitive columns

def test_codes_are_categories_but_not_where_an_expression_reads_them():
    columns = dict(SEX=R.integers(1, 3, N), EDUCATION=R.integers(0, 7, N), hour=R.integers(0, 24, N),
                   payment_type=pl.Series(R.integers(1, 5, N)).cast(pl.Float64), zip_code=R.integers(1000, 9999, N))
    found = propose(**columns)
    types = {n: found.schema.columns[n].type for n in columns}
    assert types == dict(SEX="category", EDUCATION="category", hour="integer", payment_type="category",
                         zip_code="integer")
    assert found.schema.columns["payment_type"].domain == ["1", "2", "3", "4"] and "codes" in found.comments["SEX"]
    assert propose(filter="SEX = 1", **columns).schema.columns["SEX"].type == "integer"
    assert propose("EDUCATION", **columns).schema.columns["EDUCATION"].type == "integer"


def test_sensitive_columns_are_proposed_and_marked():
    found = propose(age=R.integers(18, 90, N), Gender=R.choice(["f", "m"], N), plan=R.choice(["a", "b"], N))
    assert found.schema.sensitive_columns == ["age", "Gender"] and "CHECK: sensitive" in found.comments["age"]
    assert {"age", "Gender"} <= {*found.schema.feature_columns}


def test_the_target_is_judged_as_no_identifier():
    s = infer_schema(pl.DataFrame(dict(x=R.normal(size=N), price=R.permutation(N) + 1000)).lazy(), "d", "price").schema
    assert s.columns["price"].feature and s.task == "regression"


# real data: what was a feature stays one

REAL = {"adult/adult.data": ("outcome", 14, ["age", "marital-status", "race", "sex", "native-country"], []),
        "bank_marketing/bank-additional-full.csv": ("y", 20, ["age", "marital"], []),
        "bike_sharing/hour.csv": ("cnt", 14, [], []),
        "telco_churn/Telco-Customer-Churn.csv": ("Churn", 19, ["gender", "SeniorCitizen"], []),
        "nyc_green_taxi/green_tripdata_2021-01.parquet": ("tip_amount", 16, [],
                                                          ["VendorID", "RatecodeID", "payment_type", "trip_type"])}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_columns_keep_their_place(name, real_data):
    target, n_features, sensitive, codes = REAL[name]
    path = real_data(name.split("/")[0]) / name.split("/")[1]
    frame = (pl.read_parquet(path) if path.suffix == ".parquet" else
             pl.read_csv(path, separator=";" if "bank" in name else ",", infer_schema_length=None)).rename(str.strip)
    found = infer_schema(frame.lazy().filter(pl.col(target).is_not_null()), "d", target)
    s = found.schema
    assert (len(s.feature_columns), s.sensitive_columns, s.entity) == (n_features, sensitive, None)
    assert [n for n, c in s.columns.items() if "taken as codes" in found.comments[n]] == codes


@pytest.mark.parametrize("missing, feature", [(0, False), (3, False), (500, True), (997, False)])
def test_one_value_or_nothing_is_a_flag(missing, feature):
    frame = pl.LazyFrame({"x": ["yes"] * (1000 - missing) + [None] * missing, "y": [0, 1] * 500})
    schema = infer_schema(frame, "t", "y")
    assert schema.schema.columns["x"].feature == feature
    assert ("does a blank mean no?" in schema.comments["x"]) == feature
