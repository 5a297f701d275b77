"""`init` on tables whose first column means nothing and knows everything: saved indexes and identifiers of all kinds,
in files as people have them. What is left is noise, so nothing may be learned, and nobody may be in two splits.
"""
import hashlib
import uuid
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.prepare import SPLIT_NAMES, read_dataset_info, read_split
from mlops_nb.pipeline import STAGES, run_stage
from mlops_nb.scaffold import choose_split, init_project

N = 900


@dataclass
class Noise:
    "A table of noise, sorted by the target, from which a fifth of the rows was filtered out."
    seed: int

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.churn = np.sort(self.rng.random(N) < 0.3)
        self.kept = np.sort(self.rng.choice(N, N * 4 // 5, replace=False))
        self.order = self.rng.permutation(len(self.kept))

    def table(self, name, values, shuffled=True):
        noise = dict(points=self.rng.integers(0, 100, N), income=self.rng.normal(3000, 500, N).round(2))
        frame = pl.DataFrame({name: values, **noise, "churn": np.where(self.churn, "yes", "no")})[self.kept]
        return frame[self.order] if shuffled else frame


ROW = np.arange(N)
COLUMNS = { # what stands in the rows before they are filtered and shuffled
    "saved index": ("Unnamed: 0", ROW), "saved twice": ("Unnamed: 0.1", ROW), "nameless": ("", ROW),
    "pandas in Parquet": ("__index_level_0__", ROW), "reset index": ("level_0", ROW), "SQL row number": ("rowid", ROW),
    "counts from 1000": ("nr", ROW + 1000), "counts in tens": ("position", ROW * 10),
    "UUIDs": ("key", [str(uuid.UUID(int=int(i) * 10**33 + 7)) for i in ROW]),
    "hashes": ("token", [hashlib.sha256(b"%d" % i).hexdigest() for i in ROW]),
    "order numbers": ("order", [f"A-{i:06}" for i in ROW]),
    "e-mail": ("contact", [f"p{i}@shop.example" for i in ROW]),
    "phone numbers as text": ("reached_at", [f"+43 664 {1_000_000 + 7919 * i}" for i in ROW]),
    "phone numbers as numbers": ("reached_at", 6_641_000_000 + 79_190 * ROW),
    "milliseconds": ("created", 1_700_000_000_000 + 60_013 * ROW), "customer": ("CustomerID", 7919 * ROW % 10_007)}


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("kind", COLUMNS)
def test_identifiers_and_saved_indexes_are_no_features(kind, shuffled, tmp_path):
    name, values = COLUMNS[kind]
    frame, path = Noise(1).table(name, values, shuffled), tmp_path / "table.csv"
    if kind == "pandas in Parquet":
        path = tmp_path / "table.parquet"
        frame.to_pandas().set_index(name).rename_axis(None).to_parquet(path)
    else: frame.write_csv(path)
    s = init_project(tmp_path / "new", str(path), "churn", dry_run=True).schema
    assert s.feature_columns == ["points", "income"] and s.entity is None


WHO = dict(number=("customer_id", lambda i: i * 37 + 1000),
           by_behaviour=("figure", lambda i: (i * 7919) % 1_000_003),
           uuid=("key", lambda i: str(uuid.UUID(int=i * 10**33 + 7))),
           mail=("contact", lambda i: f"p{i}@shop.example"),
           account=("account_no", lambda i: f"AT{i:010}"), lower=("customerid", lambda i: 5000 + i * 3))


def visits(rng, name, write, each=6):
    "Several visits of each customer, who leaves or stays, and nothing that tells which."
    customers = rng.permutation(N // each)
    leaves = rng.random(len(customers)) < 0.4
    rows = {name: [write(int(c)) for c in customers for _ in range(each)],
            "visit": np.tile(np.arange(each), len(customers)),
            "spend": rng.normal(20, 5, len(customers) * each).round(2),
            "churn": np.repeat(np.where(leaves, "yes", "no"), each)}
    return pl.DataFrame(rows)


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("kind", WHO)
def test_whom_several_rows_are_about_is_the_entity_and_the_split_goes_by_it(kind, shuffled, tmp_path):
    rng = np.random.default_rng(2)
    frame = visits(rng, *WHO[kind])
    if shuffled: frame = frame[rng.permutation(len(frame))]
    frame.write_csv(tmp_path / "visits.csv")
    report = init_project(tmp_path / "new", str(tmp_path / "visits.csv"), "churn", dry_run=True)
    assert report.schema.entity == WHO[kind][0] and report.split.method == "group"
    assert report.schema.feature_columns == ["visit", "spend"]


def test_a_split_that_was_asked_for_stays(tmp_path):
    frame = visits(np.random.default_rng(3), *WHO["number"])
    part = pl.Series(["train", "test", "valid"] * (len(frame) // 3))
    frame.with_columns(part=part).write_csv(tmp_path / "visits.csv")
    def init(**options):
        return init_project(tmp_path / "new", str(tmp_path / "visits.csv"), "churn", dry_run=True, **options)
    assert init(split=choose_split(ordered=True)).split.method == "order"
    assert init(split=choose_split(split_column="part")).split.column == "part"
    assert init(split=choose_split(group="visit")).split.column == "visit"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saved index", "visits"])
def test_nothing_is_deployed_that_knows_only_who_or_where_a_row_is(kind, tmp_path):
    rng = np.random.default_rng(4)
    frame = visits(rng, *WHO["number"]) if kind == "visits" else Noise(5).table("", ROW)
    frame.write_csv(tmp_path / "table.csv")
    root = tmp_path / "new"
    init_project(root, str(tmp_path / "table.csv"), "churn")
    names = list(STAGES)
    for stage in names[:names.index("gate") + 1]: run_stage(stage, root, "gbdt" if STAGES[stage].matrix else None)
    if kind == "visits":
        who = [set(read_split(root, s, ["customer_id"])["customer_id"]) for s in SPLIT_NAMES]
        assert not (who[0] & who[1] or who[0] & who[2] or who[1] & who[2])
    assert read_dataset_info(root).leaks == []
    gate = read_json(root / "artifacts/gate.json", dict)
    assert not gate["passed"] and 0.35 < read_json(root / "artifacts/metrics.json", dict)["test"]["roc_auc"] < 0.65
