"Labels that come late: what was not known yet is in no split, of the stage and of cross-validation alike."
from datetime import datetime, timedelta

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.params import Params, PrepareParams, SplitParams, write_params
from mlops_nb.config.schema import Column, Schema, read_schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.data.label_delay import has_late_label, is_immature, label_delay
from mlops_nb.data.prepare import read_dataset_info, run_prepare
from mlops_nb.data.splits import SPLIT_NAMES

START = datetime(2024, 1, 1)
SCHEMA = Schema(dataset="d", task="binary", target="y", classes=["no", "yes"], event_time="at", entity="who",
                columns=dict(who=Column("category"), at=Column("timestamp"), x=Column("number"), y=Column("category")))
IMMATURE = "the label was not known when the data was taken"
LATE = "the label is known only after the next split begins"


def accepted(days=120, per_day=9, delay=60):
    "Rows of which the last `delay` days say 'no' because nothing else is known yet; a fifth of the others says 'yes'."
    rng, n = np.random.default_rng(0), days * per_day
    day = np.repeat(np.arange(days), per_day)
    event = (rng.random(n) < .2) & (day < days - delay)
    return pl.DataFrame(dict(who=[f"p{i}" for i in rng.integers(0, 50, n)], x=rng.normal(size=n),
                             at=[START + timedelta(days=int(d)) for d in day], y=np.where(event, "yes", "no"),
                             _source="a.csv", _row=np.arange(n)))


def prepared(root, schema, frame=None, **split):
    folder = root / "artifacts/accepted"
    folder.mkdir(parents=True, exist_ok=True)
    (accepted() if frame is None else frame).write_parquet(folder / "part-0.parquet")
    write_schema(schema, root / "schema.yaml")
    write_params(Params(prepare=PrepareParams(features_file=None, split=SplitParams(**split))), root / "params.yaml")
    run_prepare(root)
    return read_dataset_info(root), {s: pl.read_parquet(root / f"artifacts/prepared/{s}.parquet") for s in SPLIT_NAMES}


def test_no_split_learns_from_a_label_of_the_next_one(tmp_path):
    late = msgspec.structs.replace(SCHEMA, label_delay="5d")
    info, splits = prepared(tmp_path, late, accepted(delay=5))
    for a, b in (("train", "valid"), ("valid", "test")):
        assert splits[a]["at"].max() + timedelta(days=5) == splits[b]["at"].min() # not a day more than needed
    newest = START + timedelta(days=119)
    assert splits["test"]["at"].max() + timedelta(days=5) == newest and info.as_of == newest.isoformat()
    assert info.excluded_rows == {IMMATURE: 5 * 9, LATE: 2 * 4 * 9}
    assert info.used + sum(info.excluded_rows.values()) == info.accepted == 1080
    assert info.used == sum(map(len, splits.values()))


def test_labels_that_say_no_until_they_are_known_do_not_reach_the_test_split(tmp_path):
    plain, found = prepared(tmp_path, SCHEMA)
    assert found["test"]["_target"].sum() == 0 and plain.as_of is None # what would be seen without the delay
    late = msgspec.structs.replace(SCHEMA, label_delay="60d")
    frame = accepted(days=600)
    info, found = prepared(tmp_path, late, frame)
    assert info.excluded_rows[IMMATURE] == 60 * 9
    assert abs(found["test"]["_target"].mean() - .2) < .05


def test_without_a_delay_nothing_changes(tmp_path):
    _, before = prepared(tmp_path / "a", SCHEMA)
    info, _ = prepared(tmp_path / "b", msgspec.structs.replace(SCHEMA, event_time=None, label_delay="5d"),
                       method="order")
    assert info.used == info.accepted and info.as_of is None
    assert sum(map(len, before.values())) == 1080
    for a, b in (("train", "valid"), ("valid", "test")):
        assert before[a]["at"].max() + timedelta(days=1) == before[b]["at"].min()


def test_rows_side_by_side_in_time_lose_only_what_is_not_known_yet(tmp_path):
    late = msgspec.structs.replace(SCHEMA, label_delay="5d")
    info, found = prepared(tmp_path, late, accepted(delay=5), method="group")
    assert info.excluded_rows == {IMMATURE: 45} and pl.concat(found.values())["at"].max() == START + timedelta(days=114)


def test_a_delay_longer_than_a_split_is_one_sentence(tmp_path):
    late = msgspec.structs.replace(SCHEMA, label_delay="50d")
    with pytest.raises(UserError, match="the valid split would be empty.*known only after the next split begins"):
        prepared(tmp_path, late, accepted(delay=5))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(SPLIT_NAMES)), min_size=1, max_size=60),
       st.integers(1, 20))
def test_late_is_what_is_known_after_the_start_of_a_split_that_lies_behind(made, delay):
    made.sort(key=lambda r: r[0])
    times = pl.Series([START + timedelta(days=d) for d, _ in made])
    day, splits = np.array([d for d, _ in made]), np.array([s for _, s in made])
    late = has_late_label(times, splits, msgspec.structs.replace(SCHEMA, label_delay=f"{delay}d"))
    assert not late[splits == "test"].any()
    for a, b in (("train", "valid"), ("valid", "test"), ("train", "test")):
        if not (splits == a).any() or not (splits == b).any(): continue
        start = day[splits == b].min()
        if day[splits == a].max() < start: assert (day[(splits == a) & ~late] + delay <= start).all()
    assert not has_late_label(times, splits, SCHEMA).any()


def test_units_and_the_very_moment():
    times = pl.Series([START])
    for text, span in (("90s", timedelta(seconds=90)), ("2h", timedelta(hours=2)), ("1w", timedelta(days=7))):
        schema = msgspec.structs.replace(SCHEMA, label_delay=text)
        assert label_delay(schema) == span
        assert not is_immature(times, schema, START + span)[0]
        assert is_immature(times, schema, START + span - timedelta(microseconds=1))[0]


def test_a_delay_that_is_none_is_refused_with_the_schema(tmp_path):
    path = write_schema(SCHEMA, tmp_path / "schema.yaml")
    path.write_text(path.read_text().replace('label_delay: "0d"', "label_delay: soon"))
    with pytest.raises(UserError, match="label_delay"): read_schema(path)
