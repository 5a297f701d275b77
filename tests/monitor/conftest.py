"Stores of monitoring, each empty, and a bundle."
import uuid

import pytest
from support import counted_project

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


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    "The folder of a bundle with a baseline, as `support.counted_project` packs it."
    return counted_project.pack(tmp_path_factory.mktemp("bundle"))
