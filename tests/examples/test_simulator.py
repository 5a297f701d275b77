"The simulated subscribers: deterministic, consistent over time, learnable, and honest about their probabilities."
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.params import SimulateParams
from mlops_nb.config.schema import read_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.data.ingest import ingest, read_raw_batches
from mlops_nb.evaluate.metrics import excess_log_loss
from mlops_nb.examples.simulator import corrupt_column, known_labels, simulate, simulate_snapshots

ROOT = Path(__file__).parents[2]
SMALL = dict(n_subscribers=1000, n_months=9)


def table(**switches):
    months = list(simulate_snapshots(SimulateParams(**SMALL | switches)))
    return pl.concat([f.with_columns(truth=p) for _, f, p in months])


def taken_in(root): return pl.concat([batch for _, batch in read_raw_batches(root)])


def late(frame): return frame.filter(pl.col("snapshot") >= datetime(2024, 7, 1))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, SimulateParams(n_subscribers=100, n_months=3, seed=seed))
    a, b, c = ({k: v for k, v in file_hashes(tmp_path / n).items()} for n in "abc")
    assert a == b != c and not any("simulate" in name for name in a)


def test_subscribers_persist_until_they_leave_and_never_return():
    data = table()
    assert data.select("subscriber_id", "snapshot").is_unique().all()
    lives = data.sort("snapshot").group_by("subscriber_id", maintain_order=True).agg(
        pl.col("snapshot").dt.month(), "churned", "tenure_months", "region", "joined")
    for month, churned, tenure, region, joined in lives.select("snapshot", "churned", "tenure_months", "region",
                                                               "joined").iter_rows():
        assert month == list(range(month[0], month[0] + len(month)))  # no gaps
        assert "yes" not in churned[:-1] and (churned[-1] == "yes" or month[-1] == SMALL["n_months"])
        assert tenure == list(range(tenure[0], tenure[0] + len(month))) and len(set(region)) == len(set(joined)) == 1
    assert (data["joined"].dt.offset_by("0d") <= data["snapshot"]).all()


def test_labels_come_from_the_written_probabilities():
    data = table(n_subscribers=4000)
    p, y = data["truth"].to_numpy(), (data["churned"] == "yes").to_numpy()
    z = (y.sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
    assert abs(z) < 4 and .03 < y.mean() < .15
    for lo, hi in ((0, .02), (.02, .1), (.1, .3), (.3, 1)):
        m = (p >= lo) & (p < hi)
        assert m.sum() > 50 and abs((y[m].sum() - p[m].sum()) / np.sqrt((p[m] * (1 - p[m])).sum())) < 4.5


def test_trees_see_more_than_a_line_and_less_than_the_truth():
    import lightgbm as lgb
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler
    data = table(n_subscribers=3000, n_months=12)
    dummies = [(pl.col(c) == v).alias(f"{c}_{v}") for c in ("region", "plan",
                                                            "contract") for v in data[c].unique().sort()]
    X = data.select(pl.selectors.numeric().exclude("truth"), "autopay", *dummies)
    y, train = (data["churned"] == "yes").to_numpy(), (data["snapshot"] < datetime(2024, 10, 1)).to_numpy()
    X, gaps = X.cast(pl.Float64).to_numpy(), X.select(pl.all().is_null()).to_numpy()
    trees = lgb.train(dict(objective="binary", learning_rate=.05, num_leaves=15, min_data_in_leaf=40, verbose=-1,
                           num_threads=1, seed=0),
                      lgb.Dataset(X[train], y[train]), 150).predict(X[~train])
    Z = StandardScaler().fit_transform(np.hstack([np.nan_to_num(X), gaps]))
    line = LogisticRegression(max_iter=300).fit(Z[train], y[train]).predict_proba(Z[~train])[:, 1]
    best, tree, linear = (roc_auc_score(y[~train], s) for s in (data["truth"].to_numpy()[~train], trees, line))
    assert .82 < best < .89 and linear + .03 < tree < best + .005, (best, tree, linear)
    assert 0 < excess_log_loss(trees, data["truth"].to_numpy()[~train]) < excess_log_loss(line,
        data["truth"].to_numpy()[~train])


def test_switches_act_late_and_only_where_they_should():
    calm = table(n_subscribers=3000)
    shifted, drifted, broken, new, seasonal = (table(n_subscribers=3000, **s) for s in (
        dict(covariate_shift=1.), dict(concept_drift=1.), dict(broken_column="data_gb"), dict(new_category=True),
        dict(seasonal_growth=.5)))
    for storm in (shifted, drifted, broken, new):
        early = storm.filter(pl.col("snapshot") < datetime(2024, 7, 1))
        assert early.equals(calm.filter(pl.col("snapshot") < datetime(2024, 7, 1)))
        assert not late(storm).equals(late(calm))
    joined = pl.col("tenure_months") == 0
    assert late(shifted).filter(joined)["age"].mean() < late(calm).filter(joined, pl.col("age") < 100)["age"].mean() - 5
    jump, calls = pl.col("bill_change") > .08, pl.col("support_calls") >= 2
    for who, direction in ((jump, 1), (calls, -1)):
        assert direction * (late(drifted).filter(who)["truth"].mean() - late(calm).filter(who)["truth"].mean()) > .01
    assert late(broken)["data_gb"].mean() * 50 < late(calm)["data_gb"].mean()
    assert (late(broken)["truth"] == late(calm)["truth"]).all()  # the bug is in the record, not in the world
    assert "unlimited_5g" in late(new)["plan"] and "unlimited_5g" not in calm["plan"]
    usage = seasonal.group_by("snapshot").agg((pl.col("data_gb") /
                                               pl.col("data_cap_gb")).mean()).sort("snapshot")["data_gb"]
    assert usage[3] > 1.2 * usage[0]


@pytest.mark.parametrize("column, says", [("dta_gb", "did you mean 'data_gb'"), ("joined", "cannot be broken")])
def test_a_column_that_cannot_be_broken(column, says):
    with pytest.raises(UserError, match="simulate.broken_column") as e: table(broken_column=column)
    assert says in str(e.value)


def test_broken_columns_of_each_type():
    frame = pl.DataFrame(dict(n=[250, None], x=[2.5, None], t=["a", None], b=[False, None]))
    assert corrupt_column(frame, "n")["n"].to_list() == [2, None] and corrupt_column(frame, "x")["x"][0] == .025
    assert (corrupt_column(frame, "t")["t"].to_list() == ["A", None]
            and corrupt_column(frame, "b")["b"].to_list() == [True, True])


def test_labels_are_known_thirty_days_later():
    data = table(n_months=3)
    assert known_labels(data, datetime(2024, 1, 30, 23, 59)).is_empty()
    assert known_labels(data, datetime(2024, 1, 31))["snapshot"].unique().to_list() == [datetime(2024, 1, 1)]
    assert known_labels(data, datetime(2024, 12, 1)).height == data.height


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=50))
def test_regret_is_never_negative_and_zero_only_for_the_truth(pairs):
    p, q = np.array(pairs).T
    assert excess_log_loss(p, p) == 0 and excess_log_loss(q, p) >= -1e-12
    if np.abs(p - q).max() > .01: assert excess_log_loss(q, p) > 0


def test_every_row_keeps_its_true_probability_through_ingest(tmp_path):
    params = SimulateParams(n_subscribers=300, n_months=4)
    simulate(tmp_path, params)
    rows = taken_in(tmp_path)
    both = rows.join(pl.read_parquet(tmp_path / "truth/truth.parquet"), on=["_source", "_row"])
    expected = pl.concat([f.with_columns(probability=p) for _, f, p in simulate_snapshots(params)])
    key = ["subscriber_id", "snapshot"]
    assert both.height == rows.height == expected.height
    assert both.sort(key)["probability"].equals(expected.sort(key)["probability"])
    assert set(rows["_source"]) == {f"simulated_churn_2024-0{m}.parquet" for m in (1, 2, 3, 4)}


def test_simulating_again_replaces_and_never_touches_other_data(tmp_path):
    simulate(tmp_path, SimulateParams(n_subscribers=100, n_months=5))
    simulate(tmp_path, SimulateParams(n_subscribers=100, n_months=2, seed=3))
    assert taken_in(tmp_path)["_source"].n_unique() == 2
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n3,4\n")
    ingest(tmp_path / "mine.csv", other)
    before = file_hashes(other)
    with pytest.raises(UserError, match="holds mine.csv, which is not simulated"):
        simulate(other, SimulateParams(n_subscribers=10, n_months=1))
    assert file_hashes(other) == before


def test_the_committed_contract_describes_it():
    schema, data = read_schema(ROOT / "schema.yaml"), table(n_subscribers=6000, n_months=12)
    assert list(schema.columns) == [c for c in data.columns if c != "truth"] and schema.label_delay == "30d"
    assert all(c.doc for c in schema.columns.values())
    bad = {}
    for name, c in schema.columns.items():
        read = data.select(schema.parse_expr(name, data.schema[name])).to_series()
        assert read.null_count() == data[name].null_count() and (c.nullable or not read.null_count()), name
        if c.domain: assert set(read.drop_nulls()) == set(c.domain), name
        if c.range and c.type != "timestamp":
            bad[name] = (~read.is_between(c.range[0], c.range[1]).fill_null(True)).sum()
    assert {n for n, k in bad.items() if k} == {"age", "monthly_bill"} and sum(bad.values()) < .005 * data.height
