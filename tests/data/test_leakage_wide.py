"Of many columns those that tell nothing are passed over, and none that tells something."
import numpy as np
import polars as pl
import pytest

from mlops_nb.config.schema import Column, Schema
from mlops_nb.data import leakage


def many_columns(task, n, seed):
    "Noise, columns that tell a little, and every kind of leak, among 180 columns."
    rng = np.random.default_rng(seed)
    share = 0.5 if seed % 2 or n < 200 else 0.1
    y = (rng.random(n) < share).astype(float) if task == "binary" else rng.gamma(2, 5, n)
    columns = {f"x{i}": rng.normal(size=n) for i in range(100)} | {f"k{i}": rng.integers(0, 9, n) for i in range(40)}
    columns |= {f"flag{i}": rng.integers(0, 2, n) for i in range(20)}
    columns |= {f"rare{i}": 1 * (rng.random(n) < .1) for i in range(5)}
    columns |= {f"weak{i}": y / y.std() + rng.normal(size=n) * (i + 1) for i in range(5)}
    columns |= dict(copy=y * 3 - 1, noisy=y / y.std() + rng.normal(size=n) * 0.05, number=np.arange(n),
                    flat=np.zeros(n), folded=np.abs(y - y.mean()) * rng.choice([-1, 1], n),
                    half=np.where(y > np.median(y), 5.0, 0.0),
                    final_amount=y / y.std() + rng.normal(size=n) * 0.4, gap=np.where(y > 0.5, 1.0, np.nan),
                    tells=(y > np.median(y)).astype(int), part=((y == y.max()) & (rng.random(n) < .5)).astype(int),
                    departed=np.where((y == y.max()) & (rng.random(n) < .6), rng.normal(size=n), 0.0))
    types = {c: Column("integer" if v.dtype.kind == "i" else "number", nullable=True) for c, v in columns.items()}
    classes = ["no", "yes"] if task == "binary" else None
    target = Column("category" if classes else "number")
    schema = Schema("d", task, "y", types | dict(y=target), classes=classes)
    return pl.DataFrame(columns | dict(_target=y)).with_columns(pl.col("gap").fill_nan(None)), schema


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("n", [150, 400, 3000])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_found_is_the_same_as_by_looking_at_each_column(task, n, seed, monkeypatch):
    frame, schema = many_columns(task, n, seed)
    judged, judge = [], leakage._judge_column
    monkeypatch.setattr(leakage, "_judge_column",
                        lambda rows, name, *rest: judged.append(name) or judge(rows, name, *rest))
    found = leakage.find_leaks(frame.lazy(), schema)
    assert len(judged) < (40 if task == "binary" else 65) and "copy" in judged
    monkeypatch.setattr(leakage, "_columns_worth_a_look", lambda rows, names, *rest: names)
    assert leakage.find_leaks(frame.lazy(), schema) == found
    if n == 3000: assert any(f.column == "copy" for f in found)
