"Columns that give the target away are found, and honest ones are left alone."
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace

from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.schema_inference import infer_schema
from mlops_nb.data.leakage import bin_codes, find_leaks, is_identifier
from mlops_nb.data.leaks_across_rows import find_raw_leaks
from mlops_nb.model.features import Features

CLASSES = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": None}


def schema(task="binary", columns=(), **keys):
    types = {n: c if isinstance(c, Column) else Column(c) for n, c in dict(columns).items()}
    target = Column("number" if task == "regression" else "category")
    return Schema("d", task, "y", {"y": target, **types}, classes=CLASSES[task], **keys)


def target(rng, task, n, share=0.1):
    if task == "regression": return rng.lognormal(0, 1.5, n)
    return (rng.random(n) < share).astype(float) if task == "binary" else rng.integers(0, 3, n).astype(float)


def kinds(columns, y, types, task="binary", **keys):
    "What is found, by column."
    frame = pl.DataFrame({**columns, "_target": y})
    return {f.column: f.kind for f in find_leaks(frame.lazy(), schema(task, types, **keys))}


COPIES = dict(exact=lambda y, rng: y, inverted=lambda y, rng: -3 * y + 7,
              noisy=lambda y, rng: y + rng.normal(0, 0.05, len(y)),
              squared=lambda y, rng: (y + 1) ** 2, texts=lambda y, rng: np.array([f"v{v:.9f}" for v in y]))


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_the_target_is_found_whatever_its_scale(task, copy):
    rng = np.random.default_rng(1)
    y = target(rng, task, 2000)
    if task == "regression" and copy == "texts": y = np.round(np.clip(y, 0, 9))
    columns = dict(noise=rng.normal(size=2000), copied=COPIES[copy](y, rng))
    types = dict(noise="number", copied="category" if copy == "texts" else "number")
    assert kinds(columns, y, types, task) == {"copied": "target copy"}


def test_a_copy_with_two_wrong_labels_in_a_hundred_is_found():
    rng = np.random.default_rng(2)
    y = target(rng, "binary", 4000, 0.3)
    wrong = rng.random(4000) < 0.01
    assert kinds(dict(flag=(y == 1) ^ wrong), y, dict(flag="boolean")) == {"flag": "target copy"}


def test_missing_values_that_tell_the_target_are_found():
    rng = np.random.default_rng(3)
    y = target(rng, "binary", 3000)
    gone = (y == 1) ^ (rng.random(3000) < 0.005)
    values = pl.Series(rng.normal(size=3000)).to_frame("v").select(pl.when(~pl.Series(gone)).then("v")).to_series()
    found = find_leaks(pl.DataFrame(dict(v=values, _target=y)).lazy(), schema(columns=dict(v=Column("number", True))))
    assert [(f.column, f.kind) for f in found] == [("v", "missing values")]
    assert "Whether v is missing tells y" in found[0].message and "feature: false" in found[0].advice


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_column_filled_for_one_class_only_is_found_though_it_is_weak(task):
    rng = np.random.default_rng(4)
    y = target(rng, task, 5000)
    filled = (y == 1) & (rng.random(5000) < 0.3)
    columns = dict(reason=[r if f else None for r, f in zip(rng.choice(["price", "move"], 5000), filled)])
    frame = pl.DataFrame({**columns, "_target": y})
    found = find_leaks(frame.lazy(), schema(task, dict(reason=Column("category", True))))
    assert [f.kind for f in found] == ["after the outcome"] and found[0].strength < 0.6
    assert f"only where y is {CLASSES[task][1]}" in found[0].message


def test_a_rare_value_that_happens_to_be_of_one_class_is_no_finding():
    rng = np.random.default_rng(5)
    y = target(rng, "binary", 5000, 0.03)
    rare = [1.0 if i < 40 else None for i in range(5000)]
    y[:40] = 0 # by chance in 30 % of cases
    assert kinds(dict(rare=rare), y, dict(rare="number")) == {}


def times(rng, n): return [datetime(2024, 1, 1) + timedelta(minutes=int(m)) for m in rng.integers(0, 500_000, n)]


def test_a_timestamp_of_after_the_event_is_found_and_a_planned_one_is_not():
    rng = np.random.default_rng(6)
    y, at = target(rng, "binary", 3000), times(rng, 3000)
    paid = [t + timedelta(days=float(rng.normal(60 if late else 20, 15))) for t, late in zip(at, y)]
    planned = [t + timedelta(days=int(d)) for t, d in zip(at, rng.integers(10, 400, 3000))]
    types = dict(at="timestamp", paid="timestamp", planned="timestamp")
    assert kinds(dict(at=at, paid=paid, planned=planned), y, types, event_time="at") == {"paid": "after the outcome"}
    types["paid"] = Column("timestamp", feature=False)
    assert kinds(dict(at=at, paid=paid, planned=planned), y, types, event_time="at") == {}


def test_identifiers_that_predict_are_found_and_others_are_not():
    rng = np.random.default_rng(7)
    y = target(rng, "binary", 4000, 0.3)
    order = np.argsort(np.argsort(y + 3 * rng.random(4000)))
    columns = dict(number=order, code=[f"c{i:06}" for i in order], other=rng.permutation(4000),
                   measured=(y * 900 + rng.normal(0, 1000, 4000)).astype(int))
    types = dict(number="integer", code="category", other="integer", measured="integer")
    assert kinds(columns, y, types) == {"number": "identifier", "code": "identifier"}


def test_a_handed_out_number_is_told_from_a_measured_one():
    rng = np.random.default_rng(8)
    sample = pl.Series(rng.choice(100_000, 20_000, replace=False))
    assert is_identifier(sample) and not is_identifier(pl.Series(rng.integers(0, 100_000, 20_000)))
    assert not is_identifier(pl.Series(rng.integers(0, 10 ** 12, 1000))), "too wide to say"
    assert not is_identifier(pl.Series(["a", "b"] * 500)) and not is_identifier(pl.Series([None] * 99, dtype=pl.Int64))


def test_an_entity_that_is_remembered_is_no_leak():
    rng = np.random.default_rng(9)
    who = np.repeat(np.arange(200), 20)
    y, size = (rng.random(200) < 0.4).astype(float)[who], rng.normal(size=200).round(6)[who]
    columns, types = dict(who=who.astype(str), size=size), dict(who="category", size="number")
    assert kinds(columns, y, types, entity="who") == {}


def test_columns_that_add_up_to_the_target_are_found_unless_something_is_left_over():
    rng = np.random.default_rng(10)
    a, b, other = rng.poisson(20, 800), rng.poisson(60, 800), rng.normal(size=800)
    columns, types = dict(a=a, b=b, other=other), dict(a="integer", b="integer", other="number")
    y = (a + b).astype(float)
    assert kinds(columns, y, types, "regression") == {"a": "sum", "b": "sum"}
    gaps = pl.Series([None if i % 5 else 1.0 for i in range(800)])
    types["gaps"] = Column("number", True)
    assert kinds(columns | {"gaps": gaps}, y, types, "regression").keys() == {"a", "b"}
    del types["gaps"]
    assert kinds(columns, y + rng.normal(size=800), types, "regression") == {}
    assert kinds(columns, 2.5 * a + 0.7 * b, types, "regression") == {}, "a formula, not a sum"


@pytest.mark.parametrize("task, noise", [("binary", 1.8), ("multiclass", 0.5), ("regression", 0.3)])
def test_an_honest_strong_column_is_not_flagged(task, noise):
    "AUC 0.92, and R² 0.9."
    rng = np.random.default_rng(11)
    y = rng.normal(size=20_000) if task == "regression" else target(rng, task, 20_000)
    strong = y * (3.6 if task == "binary" else 1) + noise * rng.normal(size=20_000)
    assert kinds(dict(strong=strong), y, dict(strong="number"), task) == {}


@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_columns_of_noise_give_no_finding(seed):
    rng = np.random.default_rng(seed)
    n = 1000
    y = target(rng, "binary", n, 0.05)
    columns = {f"x{i}": rng.normal(size=n) for i in range(120)} | {f"k{i}": rng.integers(0, 5, n) for i in range(40)}
    columns |= {f"c{i}": rng.choice([*"abcdefgh"], n) for i in range(20)}
    columns |= {f"id{i}": rng.permutation(n) for i in range(10)}
    columns |= {f"m{i}": pl.Series(np.where(rng.random(n) < 0.5, np.nan, 1.0)).fill_nan(None) for i in range(10)}
    columns |= {f"z{i}": (rng.random(n) < 0.01 * (i + 1)) * rng.integers(1, 9, n) for i in range(20)}
    types = {n: dict(x="number", m="number", c="category").get(n[0], "integer") for n in columns}
    assert kinds(columns, y, types) == {}


def test_a_name_is_no_hint_where_few_events_tell_the_target_by_chance():
    for seed in range(15):
        rng = np.random.default_rng(seed)
        y = target(rng, "binary", 400, 0.06)
        columns = {f"duration_{i}": rng.normal(size=400) for i in range(30)}
        assert kinds(columns, y, dict.fromkeys(columns, "number")) == {}, seed


def test_too_few_events_say_nothing():
    y = np.array([1.0] * 19 + [0.0] * 500)
    assert kinds(dict(flag=y), y, dict(flag="integer")) == {}
    assert kinds(dict(flag=y[:0]), y[:0], dict(flag="integer")) == {}
    assert kinds(dict(v=y[:40]), y[:40], dict(v="number"), "regression") == {}


def test_a_project_feature_is_judged_and_accepted_by_a_column_it_reads():
    rng = np.random.default_rng(12)
    y = target(rng, "binary", 2000)
    frame = pl.DataFrame(dict(a=rng.normal(size=2000), b=rng.normal(size=2000), trick=y, _target=y)).lazy()
    features = Features({"trick": None}, {"trick": "number"}, {"trick": ["a", "b"]})
    s = schema(columns=dict(a="number", b="number"))
    found, = find_leaks(frame, s, features)
    assert (found.column, found.accepted) == ("trick", "") and "(a, b)" in found.advice
    s.columns["b"] = replace(s.columns["b"], leak_accepted="known on the day")
    assert find_leaks(frame, s, features)[0].accepted == "known on the day"


def test_the_same_rows_give_the_same_findings_and_a_sample_suffices():
    rng = np.random.default_rng(13)
    y = target(rng, "binary", 60_000, 0.01)
    frame = pl.DataFrame(dict(copied=y + rng.normal(0, 0.1, 60_000), _target=y)).lazy()
    s = schema(columns=dict(copied="number"))
    assert find_leaks(frame, s) == find_leaks(frame, s) and len(find_leaks(frame, s, max_rows=2000)) == 1


def test_raw_data_is_read_as_the_schema_says_and_filtered():
    rng = np.random.default_rng(14)
    y = rng.choice(["no", "yes"], 1000)
    age = rng.integers(0, 2, 1000)
    told = np.where((age == 1) & (y == "yes"), "12,5", "?") # a copy where the filter lets the row through
    raw = pl.DataFrame(dict(y=y, age=age, told=told, target=rng.normal(size=1000))).lazy()
    s = schema(columns=dict(age="integer", told="category", target="number"), missing_values=["?"])
    assert [f.kind for f in find_raw_leaks(raw, s)] == ["after the outcome"]
    assert [f.kind for f in find_raw_leaks(raw, replace(s, filter="age = 0"))] == []


REAL = {"adult/adult.data": dict(target=" outcome"),
        "bank_marketing/bank-additional-full.csv": dict(target="y", separator=";", found={"duration": "name"}),
        "bike_sharing/hour.csv": dict(target="cnt", found={"casual": "sum", "registered": "sum"}),
        "telco_churn/Telco-Customer-Churn.csv": dict(target="Churn")}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_data_has_no_leak_but_the_known_one(real_data, name):
    "The duration of a call is known only after it; its AUC of 0.81 tells it from no honest column, its name does."
    how = dict(REAL[name])
    target, found = how.pop("target"), how.pop("found", {})
    frame = pl.read_csv(real_data(name), infer_schema_length=None, **how).lazy().filter(pl.col(target).is_not_null())
    s = infer_schema(frame, "d", target).schema
    assert {f.column: f.kind for f in find_raw_leaks(frame, s)} == found


def test_a_column_that_departs_from_its_common_value_for_one_class_only_is_found():
    "A refund of 0, a flag that is false, a state that is open: what is other was written after the event."
    rng = np.random.default_rng(15)
    y = target(rng, "binary", 5000, 0.1)
    told = (y == 1) & (rng.random(5000) < 0.4)
    columns = dict(refund=np.where(told, rng.integers(5, 50, 5000), 0), written=told,
                   state=np.where(told, "closed", "open"), honest=rng.random(5000) < 0.02 + 0.3 * y)
    types = dict(refund="integer", written="boolean", state="category", honest="boolean")
    assert kinds(columns, y, types) == dict.fromkeys(["refund", "written", "state"], "after the outcome")
    found = find_leaks(pl.DataFrame({**columns, "_target": y}).lazy(), schema(columns=types))
    assert found[0].message.startswith("refund is other than 0 only where y is yes, and in none of the other rows")
    few = np.where(np.arange(5000) < 40, 1, 0) * y
    assert kinds(dict(few=few), y, dict(few="integer")) == {}


def test_a_value_that_only_the_common_class_has_is_no_finding():
    "As of 83 adults who never finished the first year of school none earns much."
    rng = np.random.default_rng(16)
    y = target(rng, "binary", 20_000, 0.24)
    rare = (y == 0) & (rng.random(20_000) < 0.006)
    assert kinds(dict(school=np.where(rare, "none", "some")), y, dict(school="category")) == {}


@pytest.mark.parametrize("name, found", [("call_duration", "name"), ("days_to_churn", "name"), ("loan_months", None),
                                         ("previous_outcome", None), ("planned_duration", None)])
def test_a_name_of_what_comes_later_is_a_hint_where_the_column_tells_the_target(name, found):
    rng = np.random.default_rng(17)
    y = target(rng, "binary", 3000, 0.3)
    for noise, expected in ((1.2, found), (9, None)):
        frame = pl.DataFrame({name: y + noise * rng.normal(size=3000), "_target": y})
        s = replace(schema(columns={name: "number"}), target="churned")
        s.columns["churned"] = s.columns.pop("y")
        hint = find_leaks(frame.lazy(), s)
        assert [f.kind for f in hint] == [expected] * (expected is not None)
        assert not any(f.blocks for f in hint)


def test_bins_keep_missing_values_and_mass_points_apart():
    codes = bin_codes(pl.Series([None, *[0.0] * 500, *np.arange(1.0, 501.0)]))
    assert codes[0] == 0 and len(set(codes[1:501])) == 1 and codes[1] not in codes[501:]
    assert len(set(bin_codes(pl.Series([None, None], dtype=pl.Float64)))) == 1
