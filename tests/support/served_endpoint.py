"What tests of endpoints and of hot reload share; the fixtures are in tests/serve/conftest.py."
import asyncio
import json
import time

import polars as pl

from mlops_nb.bundle.store import lookup_table_path
from mlops_nb.config.settings import read_settings
from mlops_nb.release.release_plan import ReleasePlan, plan_path, write_plan
from mlops_nb.serve.http_messages import Request
from support import server as serving

LIMIT = 20  # seconds that anything may be waited for
INSTANCES = serving.instances(200)


def plan(project, *variants, revision=1, **how):
    return write_plan(plan_path(project, read_settings(project, {})), ReleasePlan("rows", revision, [*variants], **how))


def until(true, what="that"):
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, f"not {what}"
        time.sleep(.005)


def watched(manager, times=2):
    "Wait until the manager has looked at its files `times` more, from beginning to end."
    seen, reconcile = [], manager.reconcile
    def look(): reconcile(); seen.append(True)
    manager.reconcile = look
    try: until(lambda: len(seen) >= times, "looked at")
    finally: del manager.reconcile


def some(n, first=0, **more): return [{**INSTANCES[(first + i) % 200], "id": f"c{first + i}", **more} for i in range(n)]


def expected(predictor, rows):
    return predictor.predict(pl.DataFrame(rows, schema_overrides={"x": pl.Float64, "place": pl.String,
                                                                  "when": pl.String})).tolist()


async def answer(endpoint, rows, variant=None, **request):
    decoder = endpoint.decoder
    return await endpoint.predict(decoder.from_json(json.dumps(rows).encode()), decoder,
                                  Request(**{"id": "r", **request}), variant)


def ask(manager, rows, variant=None, **request):
    return asyncio.run(answer(manager.endpoints["rows"], rows, variant, **request))


def counted(family, *labels): return family(*labels).get()


def write_table(project, bundle, rows, score=.25, by=None):
    path = lookup_table_path(bundle, project / "tables")
    path.parent.mkdir(exist_ok=True)
    names = [r["id"] if isinstance(r, dict) else r for r in rows]
    pl.DataFrame({"id": names, "score": score, "decision": "no"}).write_parquet(path, metadata={"bundle": by or bundle})
