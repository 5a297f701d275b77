"Stores of monitoring, each empty."
import uuid

import pytest

from mlops_nb.monitor.store import MonitorStore


@pytest.fixture
def duckdb_store(tmp_path): return MonitorStore(f"duckdb:///{tmp_path}/monitor/monitor.duckdb")


@pytest.fixture
def postgresql_store(postgres, monkeypatch):
    import psycopg
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    name = f"monitor_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres.url, autocommit=True) as db: db.execute(f"CREATE DATABASE {name}")
    return MonitorStore(f"{postgres.url.rpartition('/')[0]}/{name}")


@pytest.fixture(params=["duckdb_store", "postgresql_store"])
def store(request): return request.getfixturevalue(request.param)
