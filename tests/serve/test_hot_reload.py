"What a process serves: swaps under load, bundles and plans that are refused, shadows, tables, the cache, batches, deadlines, the log."
import asyncio
import gc
import json
import logging
import shutil
import threading
import time
import weakref

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import server as serving

import mlops_nb.serve.hot_reload as hot_reload_module
from mlops_nb.batch.batch_scoring import score_lookup_table
from mlops_nb.bundle.bundle import golden_examples
from mlops_nb.bundle.store import store_bundle, lookup_table_path
from mlops_nb.config.settings import read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.core.manifest import write_manifest
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.records import PredictionLogWriter, LogWriteError, read_log
from mlops_nb.release.release_plan import ReleasePlan, RoutingRule, Variant, plan_path, write_plan
from mlops_nb.serve.hot_reload import ModelManager
from mlops_nb.serve.endpoint import MAX_INLINE_ROWS, DeadlineExceeded, NotPrecomputed
from mlops_nb.serve.metrics import Metrics
from mlops_nb.serve.model_runtime import MAX_BATCH_ROWS, MAX_SHADOW_QUEUE_ROWS, MicroBatcher, ScoreCache, ShadowQueue, LookupTable

LIMIT = 20  # seconds that anything may be waited for


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A store with two models of the same contract: `.ids`, `.store` and their predictors."
    root = tmp_path_factory.mktemp("made")
    for name, n in (("a", 400), ("b", 500)): store_bundle(serving.bundle(root / name, n=n), root / "bundles")
    a = Predictor.open(root / "a/artifacts/bundle").id
    [b] = [p.name for p in (root / "bundles").iterdir() if p.name != a]
    return root, a, b


@pytest.fixture(scope="module")
def predictors(made): return {i: Predictor.open(made[0] / "bundles" / i) for i in made[1:]}


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    monkeypatch.setattr(hot_reload_module, "POLL_SECONDS", .01)
    shutil.copytree(made[0] / "bundles", tmp_path / "p/bundles")
    (tmp_path / "p/settings.ini").write_text("[release]\nendpoint = rows\n")
    return tmp_path / "p"


def plan(project, *variants, revision=1, **how):
    return write_plan(plan_path(project, read_settings(project, {})), ReleasePlan("rows", revision, [*variants], **how))


@pytest.fixture
def served(project, made, tmp_path):
    "Starts a `Live` on the project; all of them are stopped at the end."
    started = []

    def start(*variants, log=True, settings="", **how):
        if settings: (project / "settings.ini").write_text(f"[release]\nendpoint = rows\n{settings}")
        if variants or how: plan(project, *(variants or [Variant("a", made[1])]), **how)
        k = len(started)
        live = ModelManager(project, None, Metrics(tmp_path / f"log{k}", 0), PredictionLogWriter(tmp_path / f"log{k}", 0) if log is True else log or None)
        started.append(live)
        live.start()
        return live

    yield start
    for live in started:
        live.stop()
        if isinstance(live.log, PredictionLogWriter): live.log.close()


def until(true, what="that"):
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, f"not {what}"
        time.sleep(.005)


INSTANCES = serving.instances(200)


def some(n, first=0, **more): return [{**INSTANCES[(first + i) % 200], "id": f"c{first + i}", **more} for i in range(n)]


def expected(predictor, rows):
    return predictor.predict(pl.DataFrame(rows, schema_overrides={"x": pl.Float64, "place": pl.String, "when": pl.String})).tolist()


async def answer(endpoint, rows, **how):
    contract = endpoint.decoder
    return await endpoint.predict(contract.from_json(json.dumps(rows).encode()), contract, **{"id": "r", **how})


def ask(live, rows, **how): return asyncio.run(answer(live.endpoints["rows"], rows, **how))


def counted(family, *labels): return family(*labels).get()


# ---------------------------------------------------------------- swaps


def test_models_are_swapped_under_load_and_nobody_notices(project, made, served, predictors):
    "Threads with loops of their own and tasks in each ask all the time; every answer is whole and by somebody who was live."
    _, a, b = made
    live = served(Variant("v1", a))
    endpoint, rows = live.endpoints["rows"], some(100)
    right = {i: expected(p, rows) for i, p in predictors.items()}
    known, wrong, asked, done = {("v1", a)}, [], [0], threading.Event()

    async def asking(seed):
        i = seed
        while not done.is_set():
            i += 1
            n = (1, 1, 1, 7, 80)[i % 5]  # alone, some, and enough for a thread
            first = i * 31 % (100 - n + 1)
            try: got = await answer(endpoint, rows[first:first + n], id=f"{seed}-{i}")
            except Exception as e: wrong.append(e)
            else:
                asked[0] += 1
                if (got.variant, got.bundle) not in known or got.scores != right[got.bundle][first:first + n]: wrong.append(got)
            await asyncio.sleep(0)

    async def crowd(seed): await asyncio.gather(*(asking(seed + k) for k in range(4)))

    threads = [threading.Thread(target=lambda s=s: asyncio.run(crowd(s))) for s in (0, 1000)]
    for t in threads: t.start()
    try:
        for revision in range(2, 14):
            bundle, name = (a, b)[revision % 2 == 0], f"v{revision}"
            known.add((name, bundle))
            two = [Variant("other", (a, b)[revision % 2], .5)] if revision % 3 == 0 else []
            known |= {("other", i) for i in (a, b)}
            plan(project, Variant(name, bundle, .5 if two else 1.), *two, revision=revision)
            until(lambda revision=revision: endpoint.plan.revision == revision or wrong, f"at revision {revision}")
            before = asked[0]
            until(lambda before=before: asked[0] > before + 100 or wrong, "asking")
    finally:
        done.set()
        for t in threads: t.join(LIMIT)
    assert not wrong, wrong[:3]
    assert asked[0] > 1200 and counted(live.metrics.plan_reloads, "rows", "ok") == 13 and not live.rejected_plans
    until(lambda: not live._draining, "drained")
    assert not any(v.in_flight for v in endpoint.variants.values()) and set(live._models) == {v.bundle for v in endpoint.variants.values()}


def test_a_request_that_is_under_way_is_answered_by_whom_it_asked(project, made, served, predictors):
    _, a, b = made
    live = served(Variant("old", a))
    endpoint, gate, rows = live.endpoints["rows"], threading.Event(), some(MAX_INLINE_ROWS + 1)
    held, model = {"state": endpoint.active_plan}, weakref.ref(live._models[a])
    held["predict_encoded"] = live._models[a].predictor.predict_encoded
    live._models[a].predictor.predict_encoded = lambda X: (gate.wait(LIMIT), held["predict_encoded"](X))[1]

    async def main():
        task = asyncio.create_task(answer(endpoint, rows))
        while not held["active_plan"].in_flight: await asyncio.sleep(.01)
        plan(project, Variant("new", b), revision=2)
        while endpoint.plan.revision == 1: await asyncio.sleep(.01)
        now = await answer(endpoint, rows[:1])
        await asyncio.sleep(1.3)
        assert live._draining and a in live._models and not task.done()  # it is waited for
        gate.set()
        return now, await task

    now, late = asyncio.run(main())
    assert (now.variant, late.variant, late.scores) == ("new", "old", expected(predictors[a], rows))
    until(lambda: not live._draining and a not in live._models, "drained")
    held.clear()
    del late
    until(lambda: (gc.collect(), model() is None)[1], "given back")


def test_a_bundle_that_several_name_is_opened_once(project, made, served, tmp_path):
    _, a, b = made
    write_plan(project / "releases/other.json", ReleasePlan("other", 1, [Variant("x", a), Variant("y", a[:12], 0)]))
    live = served(Variant("v", a, .5), Variant("w", a, .5), Variant("s", b, mode="shadow"))
    models = {id(v.model) for e in live.endpoints.values() for v in e.variants.values()}
    assert len(models) == 2 and set(live._models) == {a, b} and set(live.endpoints) == {"rows", "other"}
    model = live.endpoints["rows"].variants["v"].model
    plan(project, Variant("v", a), revision=2)
    until(lambda: b not in live._models, "let go")
    assert live.endpoints["rows"].variants["v"].model is model
    labels = ("rows", "s", b, "shadow"), ("rows", "v", a, "live")
    assert [counted(live.metrics.bundle_processes, *x) for x in labels] == [0, 1]


def test_a_bundle_alone(made, served, tmp_path, predictors):
    root, a, _ = made
    live = ModelManager(root / "bundles" / a, read_settings(tmp_path, {}))
    live.start()
    [endpoint] = live.endpoints.values()
    assert asyncio.run(answer(endpoint, some(1))).scores == expected(predictors[a], some(1))
    live.stop()


# ---------------------------------------------------------------- what is refused


def changed(project, bundle, old="leaf_value=-", new="leaf_value=+"):
    "A copy of a bundle whose model is another, sealed anew; its id."
    work = project / "work"
    shutil.copytree(project / "bundles" / bundle, work)
    text = (work / "model.txt").read_text()
    (work / "model.txt").write_text(text.replace(old, new, 1))
    name = write_manifest(work)
    work.rename(project / "bundles" / name)
    return name


def damaged(project, made):
    file = project / "bundles" / made[2] / "model.txt"
    file.write_text(file.read_text().replace("leaf_value=-", "leaf_value=+", 1))
    return [Variant("b", made[2])]


def missing(project, made):
    shutil.rmtree(project / "bundles" / made[2])
    return [Variant("a", made[1], .5), Variant("b", made[2], .5)]


def renamed(project, made):
    (project / "bundles" / made[2]).rename(project / "bundles" / ("0" * 64))
    return [Variant("b", "0" * 64)]


def emptied(project, made):
    for file in (project / "bundles" / made[2]).iterdir(): file.unlink()
    return [Variant("b", made[2])]


REFUSED = [(damaged, "changed after the bundle was sealed"), (missing, "holds no bundle"), (renamed, "another than its name says"),
           (emptied, "is not a bundle"), (lambda p, m: [Variant("b", changed(p, m[2]))], "when the bundle was packed"),
           (lambda p, m: [Variant("a", m[1]), Variant("s", changed(p, m[2]), mode="shadow")], "when the bundle was packed"),
           (lambda p, m: [Variant("b", "")], "holds no bundle")]


@pytest.mark.parametrize("spoil, words", REFUSED)
def test_what_fails_its_check_is_never_swapped_in(project, made, served, caplog, spoil, words):
    live = served(Variant("a", made[1]))
    path = plan_path(project, live.settings)
    with caplog.at_level(logging.ERROR, "mlops_nb.serve"):
        plan(project, *spoil(project, made), revision=2)
        until(lambda: live.rejected_plans, "refused")
        time.sleep(.1)  # it is looked at again and again, and told once
    assert words in live.rejected_plans[str(path)] and [words in r.getMessage() for r in caplog.records] == [True]
    assert counted(live.metrics.plan_reloads, "rows", "rejected") == 1 and counted(live.metrics.plan_reloads, "rows", "ok") == 1
    assert live.endpoints["rows"].plan.revision == 1 and ask(live, some(1)).bundle == made[1]
    plan(project, Variant("a2", made[1]), revision=3)
    until(lambda: live.endpoints["rows"].plan.revision == 3, "in force")
    assert not live.rejected_plans


@pytest.mark.parametrize("text, words", [('{"endpoint": "rows", "rev', "cannot be read"), ("", "cannot be read"),
                                         (b"\xff\xfe", "cannot be read"),
                                         ('{"endpoint": "rows", "revision": 2, "variants": []}', "add up"), ("{}", "endpoint")])
def test_a_torn_plan_changes_nothing(project, made, served, text, words):
    live = served(Variant("a", made[1]))
    path = plan_path(project, live.settings)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    until(lambda: live.rejected_plans, "refused")
    assert words in live.rejected_plans[str(path)] and ask(live, some(1)).variant == "a"
    plan(project, Variant("b", made[2]), revision=2)
    until(lambda: not live.rejected_plans and ask(live, some(1)).variant == "b", "in force")


def test_a_plan_that_the_models_cannot_follow(project, made, served, tmp_path):
    live = served(Variant("a", made[1]))
    other = store_bundle(serving.bundle(tmp_path / "regression", "regression", n=300), project / "bundles").name
    for revision, (variants, how, words) in enumerate([
            ([Variant("a", made[1]), Variant("r", other, 0)], {}, "predicts another target than 'a'"),
            ([Variant("a", made[1])], dict(sticky_key="plaice"), "did you mean 'place'?"),
            ([Variant("a", made[1])], dict(rules=[RoutingRule({"x": "much"}, "a")]), "rule 1 of the plan of 'rows'")], 2):
        plan(project, *variants, revision=revision, **how)
        until(lambda words=words: words in "".join(live.rejected_plans.values()), words)
        assert live.endpoints["rows"].plan.revision == 1
    write_json(project / "releases/elsewhere.json", ReleasePlan("rows", 9, [Variant("a", made[1])]))
    until(lambda: "call the file rows.json" in "".join(live.rejected_plans.values()), "refused")


def test_a_bundle_that_arrives_after_its_plan(project, made, served):
    shutil.move(project / "bundles" / made[2], project / "later")
    live = served(Variant("b", made[2]))
    assert not live.endpoints and live.rejected_plans
    store_bundle(project / "later", project / "bundles")
    until(lambda: "rows" in live.endpoints, "in force")
    assert ask(live, some(1)).bundle == made[2] and not live.rejected_plans


def test_a_bundle_that_is_put_right(project, made, served):
    live = served(Variant("a", made[1]))
    file = project / "bundles" / made[2] / "model.txt"
    good = file.read_text()
    plan(project, *damaged(project, made), revision=2)
    until(lambda: live.rejected_plans, "refused")
    file.write_text(good)
    until(lambda: ask(live, some(1)).variant == "b", "in force")


def test_a_plan_taken_away_ends_its_endpoint_and_a_folder_that_is_gone_does_not(project, made, served):
    write_plan(project / "releases/other.json", ReleasePlan("other", 1, [Variant("x", made[2])]))
    live = served(Variant("a", made[1]))
    (project / "releases/other.json").unlink()
    until(lambda: "other" not in live.endpoints, "ended")
    until(lambda: made[2] not in live._models, "let go")
    (project / "releases").rename(project / "gone")
    time.sleep(.1)
    assert ask(live, some(1)).variant == "a"
    (project / "gone").rename(project / "releases")
    time.sleep(.1)
    assert ask(live, some(1)).variant == "a" and not live.rejected_plans


# ---------------------------------------------------------------- routing and several variants


def test_each_row_of_a_request_gets_its_own_variant_and_its_own_line(project, made, served, predictors):
    _, a, b = made
    live = served(Variant("a", a, .5), Variant("b", b, .5), sticky_key="id", rules=[RoutingRule({"id": "c3"}, "b")])
    rows = some(40) + some(MAX_INLINE_ROWS + 20, 40)
    got = [ask(live, rows[i:j], id=f"r{i}") for i, j in ((0, 1), (0, 40), (20, len(rows)))]
    alone = {r["id"]: ask(live, [r], id="x" + r["id"]) for r in rows[:50]}
    for g, (i, j) in zip(got, ((0, 1), (0, 40), (20, len(rows))), strict=True):
        names = g.variants or [g.variant] * (j - i)
        assert len(g.scores) == len(g.decisions) == len(names) == j - i and names[0] == g.variant
        for r, s, d, v in zip(rows[i:j], g.scores, g.decisions, names, strict=True):
            if r["id"] in alone: assert (v, s, d) == (alone[r["id"]].variant, alone[r["id"]].scores[0], alone[r["id"]].decisions[0])
            assert s == expected(predictors[{"a": a, "b": b}[v]], [r])[0]
    assert alone["c3"].variant == "b" and {*got[1].variants} == {"a", "b"}
    log = read_log(live.log.folder, "rows").filter(pl.col("id") == "r0", pl.len().over("row", "variant") > 0).collect()
    several = log.filter(pl.col("time") == log["time"].max()).sort("row")
    assert several["row"].to_list() == [*range(40)] and several["variant"].to_list() == got[1].variants
    assert several["score"].to_list() == got[1].scores and several["entity"].to_list() == [r["id"] for r in rows[:40]]
    assert several["columns.x"].to_list() == [r["x"] for r in rows[:40]]


def test_somebody_can_be_asked_by_name(made, served):
    live = served(Variant("a", made[1]), Variant("b", made[2], 0))
    assert ask(live, some(3), variant="b").bundle == made[2] and ask(live, some(3)).bundle == made[1]
    with pytest.raises(UserError, match="no variant 'c'; there are a, b"): ask(live, some(1), variant="c")


def test_where_another_variant_fails_the_leading_one_answers(project, made, served, caplog):
    live = served(Variant("a", made[1], .6), Variant("b", made[2], .4), rules=[RoutingRule({}, "b")])
    def broken(columns, X): raise ValueError("a feature failed")
    live.endpoints["rows"].variants["b"].predictor.predict_and_decide = broken
    for n in (1, MAX_INLINE_ROWS + 1): assert ask(live, some(n)).bundle == made[1]
    assert counted(live.metrics.variant_errors, "rows", "b") == 2 and sum("a feature failed" in r.getMessage() for r in caplog.records) == 1
    with pytest.raises(ValueError): ask(live, some(1), variant="b")
    live.endpoints["rows"].variants["a"].predictor.predict_and_decide = broken
    with pytest.raises(ValueError): ask(live, some(1))
    assert not live.endpoints["rows"].active_plan.in_flight


def other_contract(project, bundle, **columns):
    "A copy of a bundle whose contract says something else of some columns; its id."
    work = project / "work"
    shutil.copytree(project / "bundles" / bundle, work)
    said = read_json(work / "schema.json", dict)
    for name, change in columns.items(): said["columns"][name] |= change
    write_json(work / "schema.json", said)
    name = write_manifest(work)
    work.rename(project / "bundles" / name)
    return name


def test_another_contract_takes_the_rows_as_they_are_only_if_its_inputs_have_the_same_types(project, made, served, monkeypatch):
    same = other_contract(project, made[2], place={"nullable": False})
    live = served(Variant("a", made[1], 1), Variant("same", same, 0))
    row = {**some(1)[0], "place": None}
    got = ask(live, [row], variant="same")
    assert got.bundle == same
    stricter = other_contract(project, made[2], known={"type": "category", "nullable": False, "domain": ["yes"]})
    live._load_plan(plan_path(project, live.settings))
    with pytest.raises(UserError): live._load_model(stricter)  # the encoder of the model wants a boolean, so its golden rows differ
    endpoint = live.endpoints["rows"]
    endpoint.variants["same"]._same_encoding.clear()  # as if its inputs were others
    with pytest.raises(UserError): ask(live, [row], variant="same")
    plan(project, Variant("a", made[1], 1), Variant("same", same, 0), rules=[RoutingRule({}, "same")], revision=2)
    until(lambda: endpoint.plan.revision == 2, "in force")
    endpoint.variants["same"]._same_encoding.clear()
    assert ask(live, [row]).variant == "a" and counted(live.metrics.variant_errors, "rows", "same") == 2
    assert ask(live, [{**row, "place": "Amsterdam"}]).variant == "same"


def test_rows_decoded_before_a_swap_are_answered_after_it(project, made, served, predictors):
    live = served(Variant("a", made[1]))
    endpoint, rows = live.endpoints["rows"], some(3)
    contract = endpoint.decoder
    decoded = contract.from_json(json.dumps(rows).encode())
    plan(project, Variant("b", made[2]), revision=2)
    until(lambda: endpoint.plan.revision == 2, "in force")
    got = asyncio.run(endpoint.predict(decoded, contract, id="r"))
    assert got.bundle == made[2] and got.scores == expected(predictors[made[2]], rows)


# ---------------------------------------------------------------- shadows


def modes(live): return read_log(live.log.folder).group_by("mode", "variant").agg(pl.len(), pl.col("score")).collect()


def test_a_shadow_is_logged_and_changes_no_answer(made, served, predictors):
    live, rows = served(Variant("a", made[1]), Variant("s", made[2], mode="shadow")), some(5)
    got = [ask(live, [r], id=f"r{i}") for i, r in enumerate(rows)]
    assert [g.scores for g in got] == [[s] for s in expected(predictors[made[1]], rows)] and {g.variant for g in got} == {"a"}
    until(lambda: modes(live)["len"].sum() == 10, "logged")
    found = {(m, v): s for m, v, _, s in modes(live).iter_rows()}
    assert sorted(found["shadow", "s"]) == sorted(expected(predictors[made[2]], rows)) and len(found["live", "a"]) == 5


def test_a_shadow_that_raises_is_counted(made, served):
    live = served(Variant("a", made[1]), Variant("s", made[2], mode="shadow"))
    def broken(columns, X): raise MemoryError
    live.endpoints["rows"].variants["s"].predictor.predict_and_decide = broken
    for _ in range(5): ask(live, some(1))
    until(lambda: counted(live.metrics.shadow_errors, "rows", "s") == 5, "counted")
    assert modes(live)["len"].to_list() == [5]


def test_a_shadow_that_hangs_holds_nobody_up_and_is_dropped(project, made, served):
    live = served(Variant("a", made[1]), Variant("s", made[2], mode="shadow"))
    gate, rows = threading.Event(), some(2000)
    live.endpoints["rows"].variants["s"].predictor.predict_encoded = lambda X: gate.wait(LIMIT)
    for _ in range(MAX_SHADOW_QUEUE_ROWS // 2000 + 5): ask(live, rows)
    assert counted(live.metrics.shadow_dropped_rows, "rows", "s") == 5 * 2000
    plan(project, Variant("a", made[1]), revision=2)
    until(lambda: made[2] not in live._models, "swapped although it hangs")
    gate.set()


def test_one_question_larger_than_the_queue_is_heard():
    heard = []
    shadow = ShadowQueue(heard.append)
    assert shadow.submit(MAX_SHADOW_QUEUE_ROWS * 2, "large")
    until(lambda: heard == ["large"] and shadow.submit(1, "next"), "heard")
    shadow.stop()


# ---------------------------------------------------------------- the cache


def test_the_cache_keeps_so_many_for_so_long():
    now = [0.]
    cache = ScoreCache(3, 10, lambda: now[0])
    for i in range(5):
        cache.put(("b", i), np.array([i]))
        now[0] += 1
    assert len(cache) == 3 and [cache.get(("b", i)) is None for i in range(5)] == [True, True, False, False, False]
    cache.put(("b", 2), np.array([9]))  # anew, so not the oldest any more
    cache.put(("b", 5), np.array([5]))
    assert cache.get(("b", 3)) is None and cache.get(("b", 2)).item() == 9
    now[0] = 13.9
    assert cache.get(("b", 4)) is not None
    now[0] = 14
    assert cache.get(("b", 4)) is None and len(cache) == 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 4]))), st.integers(1, 4))
def test_the_cache_never_tells_what_is_old_and_never_grows(steps, entries):
    now, last = [0], {}
    cache = ScoreCache(entries, 5, lambda: now[0])
    for key, wait in steps:
        now[0] += wait
        found = cache.get(key)
        if found is not None: assert last[key][0] == found and now[0] - last[key][1] < 5
        else:
            cache.put(key, len(last))
            last[key] = len(last), now[0]
            last[key] = cache.get(key), now[0]
        assert len(cache) <= entries


def test_the_cache_is_by_bundle_and_row_and_off_unless_it_is_asked_for(project, made, served, predictors):
    live = served(Variant("a", made[1]), Variant("b", made[2], 0), settings="[serve]\ncache_entries = 2\n")
    rows = some(4)
    kinds = [ask(live, [rows[i]], variant=v).source for i, v in [(0, "a"), (0, "a"), (0, "b"), (0, "b"), (1, "a"), (0, "a")]]
    assert kinds == ["model", "cache", "model", "cache", "model", "model"] and len(live.cache) == 2
    assert ask(live, [rows[0]]).scores == expected(predictors[made[1]], rows[:1]) and ask(live, rows).source == "model"
    assert (counted(live.metrics.cache_requests, "rows", "hit"), counted(live.metrics.cache_requests, "rows", "miss")) == (3, 4)
    assert read_log(live.log.folder).filter(source="cache").collect().height == 3
    off = served()
    assert [ask(off, [rows[0]]).source for _ in range(2)] != ["model", "model"] or off.cache.max_entries == 0


# ---------------------------------------------------------------- tables


def table(project, bundle, rows, score=.25, by=None):
    path = lookup_table_path(bundle, project / "tables")
    path.parent.mkdir(exist_ok=True)
    names = [r["id"] if isinstance(r, dict) else r for r in rows]
    pl.DataFrame({"id": names, "score": score, "decision": "no"}).write_parquet(path, metadata={"bundle": by or bundle})


def test_known_entities_are_looked_up_and_others_computed(project, made, served, predictors):
    table(project, made[1], some(50), np.arange(50) / 50)
    live = served(Variant("a", made[1]))
    endpoint, prefer = live.endpoints["rows"], {"x-static": "prefer"}
    named = endpoint.decode_entities(b'{"instances": [{"id": "c7"}, {"id": "c0"}], "id": "mine"}')
    assert named == (["c7", "c0"], "mine")
    got = asyncio.run(endpoint.predict_entities(named[0], id="t"))
    assert (got.scores, got.decisions, got.source) == ([7 / 50, 0.], ["no", "no"], "table")
    assert ask(live, some(2), headers=prefer).source == "table" and ask(live, some(2)).source == "model"
    mixed = some(1) + some(1, 99)
    got = ask(live, mixed, headers=prefer)
    assert got.source == "model" and got.scores == expected(predictors[made[1]], mixed)
    with pytest.raises(NotPrecomputed, match="send the columns"): asyncio.run(endpoint.predict_entities(["c99"], id="u"))
    assert (counted(live.metrics.lookup_requests, "rows", "hit"), counted(live.metrics.lookup_requests, "rows", "miss")) == (2, 2)
    line = read_log(live.log.folder).filter(id="t").sort("row").collect()
    assert line["entity"].to_list() == ["c7", "c0"] and line["source"].to_list() == ["table"] * 2
    for body in (b'[{"id": "c7", "x": 1}]', b"[]", b"{", b'[{"x": 1}]', b'"c7"', b'[{"id": "c7"}, {"id": "c8", "x": 1}]', b"\xff",
                 b'[{"id": ["c7"]}]', b'[{"id": "c7"}],', b'{"instances": 7}'):
        assert endpoint.decode_entities(body) is None


def test_a_table_is_read_when_it_comes_and_forgotten_when_it_goes(project, made, served):
    live = served(Variant("a", made[1]))
    model, endpoint = live._models[made[1]], live.endpoints["rows"]
    assert endpoint.decode_entities(b'[{"id": "c7"}]') is None
    table(project, made[1], some(9))
    until(lambda: model.lookup_table and len(model.lookup_table) == 9, "read")
    table(project, made[1], some(8))
    until(lambda: model.lookup_table and len(model.lookup_table) == 8, "read again")
    lookup_table_path(made[1], project / "tables").write_bytes(b"PAR1 torn")
    time.sleep(.1)
    assert len(model.lookup_table) == 8  # a torn one changes nothing
    table(project, made[1], some(7))
    until(lambda: len(model.lookup_table) == 7, "read")
    lookup_table_path(made[1], project / "tables").unlink()
    until(lambda: model.lookup_table is None, "forgotten")


@pytest.mark.parametrize("rows, words", [(["a", "b", "a"], "several rows for one 'id'"),
                                         (["a", "b", "c", "d"], "4 rows, and 3 are kept at most")])
def test_tables_that_are_not_used(made, tmp_path, predictors, rows, words):
    table(tmp_path, made[1], rows)
    with pytest.raises(UserError, match=words): LookupTable(lookup_table_path(made[1], tmp_path / "tables"), predictors[made[1]], 3)
    table(tmp_path, made[1], ["a"], by=made[2])
    with pytest.raises(UserError, match="another bundle"): LookupTable(lookup_table_path(made[1], tmp_path / "tables"), predictors[made[1]], 3)


@pytest.mark.parametrize("task", ["multiclass", "regression", "referring"])
def test_what_was_scored_beforehand_is_what_would_be_computed(project, served, tmp_path, task):
    "As `mlops-nb score --table` writes it: several classes, a value, and a policy that leaves rows to a person."
    root = tmp_path / task
    made = serving.bundle(root, "binary" if task == "referring" else task, n=300)
    if task == "referring":
        write_json(made / "policy.json", {**read_json(made / "policy.json", dict), "reject_region": [.3, .6]})
        predictor = Predictor.open(write_manifest(made) and made)
        golden_examples(predictor, pl.read_parquet(root / "artifacts/prepared/test.parquet")).write_parquet(made / "golden.parquet")
        write_manifest(made)
    name, rows = store_bundle(made, project / "bundles").name, some(30)
    pl.DataFrame(rows, schema_overrides={"x": pl.Float64, "place": pl.String}).write_parquet(tmp_path / "rows.parquet")
    assert score_lookup_table(Predictor.open(made), tmp_path / "rows.parquet", lookup_table_path(name, project / "tables")) == 30
    live = served(Variant("a", name))
    computed, known = ask(live, rows[5:20]), asyncio.run(live.endpoints["rows"].predict_entities([r["id"] for r in rows[5:20]], id="t"))
    assert (known.source, computed.source) == ("table", "model")
    assert (known.scores, known.decisions, known.needs_review) == (computed.scores, computed.decisions, computed.needs_review)
    assert (known.needs_review is not None and any(known.needs_review)) == (task == "referring")


def test_the_name_decides_where_hashes_are_the_same(made, tmp_path, predictors):
    class Same(str):
        def __hash__(self): return 1
    table(tmp_path, made[1], [f"e{i}" for i in range(20)], np.arange(20.))
    found = LookupTable(lookup_table_path(made[1], tmp_path / "tables"), predictors[made[1]], 100)
    order = np.argsort(found._scores)
    found._hashes, found._entities, found._scores = np.r_[np.full(9, 1), np.full(11, 5)], found._entities.gather(order), found._scores[order]
    assert [found._find_row(Same(f"e{i}")) for i in range(9)] == [*range(9)] and found._find_row(Same("e9")) is None and found.lookup([None]) is None


# ---------------------------------------------------------------- batches


def test_rows_that_wait_together_are_asked_together_and_get_their_own_answers():
    sizes = []

    def slow(X):
        sizes.append(len(X))
        time.sleep(.005)
        return X @ np.array([[1., 10.], [2., 20.]])

    batch, rng = MicroBatcher(slow), np.random.default_rng(0)
    asked = [rng.normal(size=(n, 2)) for n in rng.integers(1, 40, 200)] + [rng.normal(size=(MAX_BATCH_ROWS + 5, 2))]

    async def main(): return await asyncio.gather(*map(batch.predict, asked))
    for X, said in zip(asked, asyncio.run(main()), strict=True): assert np.allclose(said, X @ np.array([[1., 10.], [2., 20.]]))
    assert sum(sizes) == sum(map(len, asked)) and len(sizes) < 20 and sizes[0] == len(asked[0]) and max(sizes[:-1]) <= MAX_BATCH_ROWS
    assert asyncio.run(batch.predict(asked[0])).shape == (len(asked[0]), 2)  # in another loop, after a pause


def test_one_that_spoils_a_batch_spoils_only_itself():
    def picky(X):
        if (X < 0).any(): raise ValueError("negative")
        time.sleep(.01)
        return X[:, 0]

    async def main(): return await asyncio.gather(*(batch.predict(np.full((1, 1), x)) for x in (1., 2., -3., 4.)), return_exceptions=True)
    batch = MicroBatcher(picky)
    said = asyncio.run(main())
    assert [s.tolist() for s in said if not isinstance(s, Exception)] == [[1.], [2.], [4.]] and str(said[2]) == "negative"


def test_who_gives_up_is_left_out_and_the_others_are_answered():
    seen = []

    def slow(X):
        seen.extend(X[:, 0])
        time.sleep(.1)
        return X[:, 0]

    async def main():
        tasks = [asyncio.create_task(batch.predict(np.full((1, 1), float(i)))) for i in range(4)]
        await asyncio.sleep(.02)
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)
    batch = MicroBatcher(slow)
    said = asyncio.run(main())
    assert isinstance(said[2], asyncio.CancelledError) and seen == [0., 1., 3.] and [said[i].item() for i in (0, 1, 3)] == [0., 1., 3.]


@pytest.mark.slow
def test_a_net_answers_in_batches_what_it_answers_alone(project, served, tmp_path):
    pytest.importorskip("torch")
    net = store_bundle(serving.bundle(tmp_path / "net", n=300, learner="net"), project / "bundles")
    live, rows = served(Variant("net", net.name)), some(60)
    endpoint = live.endpoints["rows"]

    async def main():
        return await asyncio.gather(*(answer(endpoint, [r], id=f"r{i}") for i, r in enumerate(rows)), answer(endpoint, rows * 3))
    *alone, many = asyncio.run(main())
    right = expected(Predictor.open(net), rows)
    assert [a.scores[0] for a in alone] == right and many.scores == right * 3
    with pytest.raises(DeadlineExceeded): ask(live, rows, deadline=time.monotonic() - 1)


# ---------------------------------------------------------------- deadlines, threads and the log


def test_a_deadline_is_kept_whether_rows_are_many_or_few(made, served):
    live = served(Variant("a", made[1]))
    predictor, gate = live.endpoints["rows"].variants["a"].predictor, threading.Event()
    with pytest.raises(DeadlineExceeded): ask(live, some(1), deadline=time.monotonic() - .001)
    assert ask(live, some(1), deadline=time.monotonic() + LIMIT).scores
    real, predictor.predict_encoded = predictor.predict_encoded, lambda X: gate.wait(LIMIT)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded): ask_and_open(live, gate)
    assert time.monotonic() - started < LIMIT / 2
    predictor.predict_encoded = real
    assert len(ask(live, some(MAX_INLINE_ROWS * 3), deadline=time.monotonic() + LIMIT).scores) == MAX_INLINE_ROWS * 3
    assert not live.endpoints["rows"].active_plan.in_flight
    assert read_log(live.log.folder).select(pl.len()).collect().item() == 1 + MAX_INLINE_ROWS * 3  # who was too late is not on record


def ask_and_open(live, gate):
    async def main():
        try: return await answer(live.endpoints["rows"], some(MAX_INLINE_ROWS + 1), deadline=time.monotonic() + .1)
        finally: gate.set()
    return asyncio.run(main())


def test_the_event_loop_goes_on_while_many_rows_are_answered(made, served):
    live = served(Variant("a", made[1]))
    gate, endpoint = threading.Event(), live.endpoints["rows"]
    real = endpoint.variants["a"].predictor.predict_encoded
    endpoint.variants["a"].predictor.predict_encoded = lambda X: (len(X) == 1 or gate.wait(LIMIT), real(X))[1]

    async def main():
        many = asyncio.create_task(answer(endpoint, some(MAX_INLINE_ROWS + 1)))
        few = [await answer(endpoint, some(1)) for _ in range(5)]
        assert not many.done()
        gate.set()
        return few, await many
    few, many = asyncio.run(main())
    assert len(few) == 5 and len(many.scores) == MAX_INLINE_ROWS + 1


def test_the_answer_is_on_record_before_it_is_given(made, served, predictors):
    live = served(Variant("a", made[1]))

    async def main():
        for i in range(10):
            await answer(live.endpoints["rows"], some(2, i), id=f"r{i}", key="shop", started=time.perf_counter() - 1)
            lines = [json.loads(x) for p in (live.log.folder / "segments").iterdir() for x in p.read_text().splitlines()]
            assert [x["id"] for x in lines] == [f"r{j}" for j in range(i + 1)]
        return lines
    last = asyncio.run(main())[-1]
    assert (last["endpoint"], last["variant"], last["bundle"], last["api_key_name"], last["mode"]) == ("rows", "a", made[1], "shop", "live")
    assert last["entity"] == ["c9", "c10"] and last["columns"]["count"] == [r["count"] for r in some(2, 9)]
    assert last["score"] == expected(predictors[made[1]], some(2, 9)) and 1_000_000 <= last["latency_us"] < LIMIT * 1_000_000
    assert counted(live.metrics.scored_rows, "rows", "a") == 20


def test_an_answer_that_cannot_be_written_is_not_given(made, served):
    class Full:
        def append(self, record): raise LogWriteError("no space")
    live = served(Variant("a", made[1]), log=Full())
    with pytest.raises(LogWriteError): ask(live, some(1))
    assert not live.endpoints["rows"].active_plan.in_flight


def test_why_it_was_answered_so(made, served, predictors):
    live, rows = served(Variant("a", made[1]), Variant("b", made[2], 0)), some(4)
    endpoint = live.endpoints["rows"]
    contract = endpoint.decoder
    decoded = contract.from_json(json.dumps(rows).encode())
    for variant, bundle in ((None, made[1]), ("b", made[2])):
        said, p = asyncio.run(endpoint.explain(decoded, contract, variant=variant)), predictors[bundle]
        right = p.contributions(pl.DataFrame(rows, schema_overrides={"x": pl.Float64, "place": pl.String}))
        assert (said.bundle, said.columns, said.scores) == (bundle, p.feature_names, expected(p, rows))
        assert np.array_equal(said.contributions, right)
    assert not endpoint.active_plan.in_flight


# ---------------------------------------------------------------- over a socket


@pytest.mark.slow
def test_the_same_customer_meets_the_same_variant_in_every_process_and_after_a_restart(project, made):
    "Sticky, a rule, a flag that a request brings, a table and a shadow, through the server itself."
    _, a, b = made
    plan(project, Variant("a", a, .5), Variant("b", b, .5), Variant("beta", b, 0, flag="beta"), Variant("s", b, mode="shadow"), sticky_key="id",
         rules=[RoutingRule({}, "beta"), RoutingRule({"count": [50, None]}, "b")], allow_request_flags=True)
    for i in (a, b): table(project, i, some(5), .125)
    rows, path, met = some(40), "/v1/endpoints/rows:predict", []
    for _ in range(2):
        with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2) as s:
            many = s.post(path, {"instances": rows})[2]
            met.append([p.get("variant", many["variant"]) for p in many["predictions"]])
            for _ in range(3): met.append([s.post(path, r)[2]["variant"] for r in rows])  # each on a connection of its own
            assert s.post(path, rows[0], {"x-flags": "beta"})[2]["variant"] == "beta"
            assert s.post(path, {**rows[0], "count": 50})[2]["variant"] == "b"
            s.until(lambda s=s: s.post(path, [{"id": "c3"}])[0] == 200, "a table")
            assert s.post(path, [{"id": "c3"}, {"id": "c1"}])[2]["predictions"][1]["score"] == .125
            assert s.post(path, rows[4], {"x-static": "prefer"})[2]["predictions"][0]["score"] == .125
            assert s.post(path, [{"id": "c39"}])[0] == 404
    assert {*met[0]} == {"a", "b"} and all(m == met[0] for m in met)
    log = read_log(project / "predictions", "rows").collect()
    assert log.filter(mode="shadow")["variant"].unique().to_list() == ["s"]
    several = log.filter(pl.col("id").is_in(log.filter(row=39, mode="live")["id"].implode())).filter(mode="live").sort("id", "row")
    assert several["row"].to_list() == [*range(40)] * 2 and several["variant"].to_list() == met[0] * 2
