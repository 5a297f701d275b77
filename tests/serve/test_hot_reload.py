"Release plans that change while a process serves: swaps under load, rejected bundles and plans, lookup tables."
import asyncio
import gc
import json
import logging
import shutil
import threading
import weakref
from pathlib import Path

import polars as pl
import pytest
from support import server as serving
from support.served_endpoint import LIMIT, answer, ask, counted, expected, plan, some, until, watched, write_table
from typer.testing import CliRunner

from mlops_nb.bundle.signatures import SIGNING_KEY_VARIABLE, generate_signing_key, read_signing_key, sign_bundle
from mlops_nb.bundle.store import lookup_table_path, store_bundle
from mlops_nb.config.settings import Settings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.model_commands import models_app
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.release.deploy import sign_stored_bundle
from mlops_nb.release.release_plan import (
    ReleasePlan,
    RoutingRule,
    Variant,
    find_champion,
    last_good_path,
    plan_path,
    promote_bundle,
    record_path,
    write_plan,
)
from mlops_nb.release.rollback import restore_release, roll_back
from mlops_nb.serve.endpoint import MAX_INLINE_ROWS
from mlops_nb.serve.hot_reload import ModelManager
from mlops_nb.serve.http_messages import Request


def test_models_are_swapped_under_load_and_nobody_notices(project, made, served, predictors):
    "Threads with loops and tasks of their own ask all the time; every answer is whole and by a variant that was live."
    _, a, b = made
    manager = served(Variant("v1", a))
    endpoint, rows = manager.endpoints["rows"], some(100)
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
                if (got.variant, got.bundle) not in known or got.scores != right[got.bundle][first:first + n]:
                    wrong.append(got)
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
    assert asked[0] > 1200 and counted(manager.resources.metrics.plan_reloads, "rows",
                                       "ok") == 13 and not manager.rejected_plans
    until(lambda: not manager._draining, "drained")
    assert not any(v.in_flight for v in endpoint.variants.values()) and set(manager._models) == {v.bundle
        for v in endpoint.variants.values()}


def test_a_request_that_is_under_way_is_answered_by_whom_it_asked(project, made, served, predictors):
    _, a, b = made
    manager = served(Variant("old", a))
    endpoint, gate, rows = manager.endpoints["rows"], threading.Event(), some(MAX_INLINE_ROWS + 1)
    held, model = {"active_plan": endpoint.active_plan}, weakref.ref(manager._models[a])
    held["predict_encoded"] = manager._models[a].predictor.predict_encoded
    manager._models[a].predictor.predict_encoded = lambda X: (gate.wait(LIMIT), held["predict_encoded"](X))[1]

    async def main():
        task = asyncio.create_task(answer(endpoint, rows))
        while not held["active_plan"].in_flight: await asyncio.sleep(.01)
        plan(project, Variant("new", b), revision=2)
        while endpoint.plan.revision == 1: await asyncio.sleep(.01)
        now = await answer(endpoint, rows[:1])
        await asyncio.to_thread(watched, manager, 7)  # longer than a plan that nobody holds is kept
        assert manager._draining and a in manager._models and not task.done()  # it is waited for
        gate.set()
        return now, await task

    now, late = asyncio.run(main())
    assert (now.variant, late.variant, late.scores) == ("new", "old", expected(predictors[a], rows))
    until(lambda: not manager._draining and a not in manager._models, "drained")
    held.clear()
    del late
    until(lambda: (gc.collect(), model() is None)[1], "given back")


def test_a_bundle_that_several_name_is_opened_once(project, made, served, tmp_path):
    _, a, b = made
    write_plan(project / "releases/other.json", ReleasePlan("other", 1, [Variant("x", a), Variant("y", a[:12], 0)]))
    manager = served(Variant("v", a, .5), Variant("w", a, .5), Variant("s", b, mode="shadow"))
    models = {id(v.model) for e in manager.endpoints.values() for v in e.variants.values()}
    assert len(models) == 2 and set(manager._models) == {a, b} and set(manager.endpoints) == {"rows", "other"}
    model = manager.endpoints["rows"].variants["v"].model
    plan(project, Variant("v", a), revision=2)
    until(lambda: b not in manager._models, "let go")
    assert manager.endpoints["rows"].variants["v"].model is model
    labels = ("rows", "s", b, "shadow"), ("rows", "v", a, "live")
    assert [counted(manager.resources.metrics.bundle_processes, *x) for x in labels] == [0, 1]


def test_a_bundle_alone(made, served, tmp_path, predictors):
    root, a, _ = made
    manager = ModelManager(root / "bundles" / a, read_settings(tmp_path, {}))
    manager.start()
    [endpoint] = manager.endpoints.values()
    assert asyncio.run(answer(endpoint, some(1))).scores == expected(predictors[a], some(1))
    manager.stop()


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


def strange(project, made, place):
    "A bundle whose hashes are right, and whose code leaves a trace where it is run."
    folder = project / "bundles" / place
    shutil.copytree(project / "bundles" / made[2], folder)
    code = folder / "features.py"
    code.write_text(f"open({str(project / 'was run')!r}, 'w').close()\n" + code.read_text())
    write_manifest(folder)
    return [Variant("b", place)]


def emptied(project, made):
    for file in (project / "bundles" / made[2]).iterdir(): file.unlink()
    return [Variant("b", made[2])]


REFUSED = [(damaged, "changed after the bundle was made"), (missing, "holds no bundle"),
           (renamed, "another than its name says"),
           (emptied, "is not a bundle"), (lambda p, m: [Variant("b", changed(p, m[2]))], "when the bundle was packed"),
           (lambda p, m: [Variant("a", m[1]), Variant("s", changed(p, m[2]), mode="shadow")],
            "when the bundle was packed"),
           (lambda p, m: [Variant("b", "")], "holds no bundle"),
           (lambda p, m: strange(p, m, "../elsewhere/evil"), "holds no bundle"),
           (lambda p, m: strange(p, m, "0" * 64), "another than its name says")]


@pytest.mark.parametrize("spoil, words", REFUSED)
def test_what_fails_its_check_is_never_swapped_in(project, made, served, caplog, spoil, words):
    manager = served(Variant("a", made[1]))
    path = plan_path(project, manager.settings)
    with caplog.at_level(logging.ERROR, "mlops_nb.serve"):
        plan(project, *spoil(project, made), revision=2)
        until(lambda: manager.rejected_plans, "refused")
        watched(manager)  # it is looked at again and again, and told once
    assert words in manager.rejected_plans[str(path)] and [
        words in r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [True]
    assert counted(manager.resources.metrics.plan_reloads, "rows",
                   "rejected") == 1 and counted(manager.resources.metrics.plan_reloads, "rows", "ok") == 1
    assert manager.endpoints["rows"].plan.revision == 1 and ask(manager, some(1)).bundle == made[1]
    plan(project, Variant("a2", made[1]), revision=3)
    until(lambda: manager.endpoints["rows"].plan.revision == 3, "in force")
    assert not manager.rejected_plans and not (project / "was run").exists()


# ---- signatures


@pytest.fixture
def trusting(project):
    "A project that trusts one key, which it also signs with."
    public = generate_signing_key(project.parent / "team.pem", project)
    (project / "settings.ini").write_text(f"[release]\nendpoint = rows\ntrusted_keys = {public}\n"
                                          "signing_key_file = ../team.pem\n")
    return project


def traced(project, bundle):
    "A copy of a bundle that leaves a trace where its code is run, with a manifest that is right; its id."
    work = project / "work"
    shutil.copytree(project / "bundles" / bundle, work)
    code = (work / "features.py").read_text()
    (work / "features.py").write_text(f"open({str(project / 'was run')!r}, 'w').close()\n" + code)
    name = write_manifest(work)
    work.rename(project / "bundles" / name)
    return name


def test_a_running_server_runs_only_what_a_trusted_key_has_signed(trusting, made):
    project, a = trusting, made[1]
    sign_stored_bundle(project, a[:12])
    strange = traced(project, made[2])
    plan(project, Variant("a", a))
    with serving.Server(project) as s:
        def answers(): return s.post(serving.PREDICT, {"instances": serving.instances(1)})[2]["bundle"]
        assert answers() == a
        plan(project, Variant("a", a, .5), Variant("b", strange, .5), revision=2)
        s.until(lambda: f"{strange} is not signed, and trusted_keys in [release] asks" in s.output, "refused")
        generate_signing_key(project.parent / "stranger.pem", project)
        stranger = read_signing_key(project, Settings(), {
            SIGNING_KEY_VARIABLE: (project.parent / "stranger.pem").read_text()})
        sign_bundle(project / "bundles" / strange, stranger)
        s.until(lambda: "whom trusted_keys does not name" in s.output, "refused again")
        assert answers() == a and not (project / "was run").exists()
        sign_stored_bundle(project, strange)
        plan(project, Variant("b", strange), revision=3)
        s.until(lambda: answers() == strange, "followed")
    assert (project / "was run").exists()


def test_nothing_opens_an_unsigned_bundle_where_keys_are_trusted(trusting, made, served, monkeypatch):
    project, strange, said = trusting, traced(trusting, made[2]), "is not signed, and trusted_keys"
    manager = served(Variant("b", strange))
    assert not manager.endpoints and said in manager.rejected_plans[str(plan_path(project, manager.settings))]
    with pytest.raises(UserError, match=said): ModelManager(project / "bundles" / strange, manager.settings).start()
    with pytest.raises(UserError, match=said): find_champion(project)
    promote_bundle(plan_path(project, manager.settings), "rows", made[1])
    with pytest.raises(UserError, match=said): roll_back(project, strange)
    monkeypatch.chdir(project)
    given = ["score", "rows.parquet", "scores.parquet", "--bundle", str(project / "bundles" / strange)]
    assert said in str(CliRunner().invoke(models_app, given).exception)
    assert not (project / "was run").exists()


@pytest.mark.parametrize("text, words", [('{"endpoint": "rows", "rev', "cannot be read"), ("", "cannot be read"),
                                         (b"\xff\xfe", "cannot be read"),
                                         ('{"endpoint": "rows", "revision": 2, "variants": []}', "add up"),
                                         ("{}", "endpoint")])
def test_a_torn_plan_changes_nothing(project, made, served, text, words):
    manager = served(Variant("a", made[1]))
    path = plan_path(project, manager.settings)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    until(lambda: manager.rejected_plans, "refused")
    assert words in manager.rejected_plans[str(path)] and ask(manager, some(1)).variant == "a"
    plan(project, Variant("b", made[2]), revision=2)
    until(lambda: not manager.rejected_plans and ask(manager, some(1)).variant == "b", "in force")


def test_a_plan_that_the_models_cannot_follow(project, made, served, tmp_path):
    manager = served(Variant("a", made[1]))
    other = store_bundle(serving.bundle(tmp_path / "regression", "regression", n=300), project / "bundles").name
    for revision, (variants, how, words) in enumerate([
            ([Variant("a", made[1], .9), Variant("r", other, .1)], {}, "predicts another target than 'a'"),
            ([Variant("a", made[1])], dict(sticky_key="plaice"), "did you mean 'place'?"),
            ([Variant("a", made[1])], dict(rules=[RoutingRule({"x": "much"}, "a")]), "rule 1 of the plan of 'rows'")],
            2):
        plan(project, *variants, revision=revision, **how)
        until(lambda words=words: words in "".join(manager.rejected_plans.values()), words)
        assert manager.endpoints["rows"].plan.revision == 1
    write_json(project / "releases/elsewhere.json", ReleasePlan("rows", 9, [Variant("a", made[1])]))
    until(lambda: "call the file rows.json" in "".join(manager.rejected_plans.values()), "refused")


def test_a_bundle_that_answers_nobody_refuses_no_plan(project, made, served, tmp_path):
    "The bundle before may be missing, as in a clone, or have predicted another target."
    other = store_bundle(serving.bundle(tmp_path / "regression", "regression", n=300), project / "bundles").name
    manager = served(Variant("champion", made[1]), Variant("previous", "f" * 64, 0), Variant("older", other, 0),
                     Variant("kept", made[2], 0))
    assert list(manager.endpoints["rows"].variants) == ["champion", "kept"] and not manager.rejected_plans
    plan(project, Variant("champion", made[1]), Variant("previous", "f" * 64, 0), revision=2,
         rules=[RoutingRule({"x": 1}, "previous")])
    until(lambda: "is no bundle" in (said := "".join(manager.rejected_plans.values())) or "f" * 12 in said, "refused")


def test_a_bundle_that_arrives_after_its_plan(project, made, served):
    shutil.move(project / "bundles" / made[2], project / "later")
    manager = served(Variant("b", made[2]))
    assert not manager.endpoints and manager.rejected_plans
    store_bundle(project / "later", project / "bundles")
    until(lambda: "rows" in manager.endpoints, "in force")
    assert ask(manager, some(1)).bundle == made[2] and not manager.rejected_plans


def test_a_bundle_that_is_put_right(project, made, served):
    manager = served(Variant("a", made[1]))
    file = project / "bundles" / made[2] / "model.txt"
    good = file.read_text()
    plan(project, *damaged(project, made), revision=2)
    until(lambda: manager.rejected_plans, "refused")
    file.write_text(good)
    until(lambda: ask(manager, some(1)).variant == "b", "in force")


def test_a_release_that_git_brought_is_followed_and_its_record_is_no_second_one(project, made, served):
    plan, elsewhere = project / "releases/rows.json", project / "elsewhere/rows.json"
    manager = served(Variant("champion", made[1]))
    for bundle in (made[1], made[2], made[1], made[2]): promote_bundle(elsewhere, "rows", bundle)
    record_path(plan).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(record_path(elsewhere), record_path(plan)) # git pull
    until(lambda: ask(manager, some(1)).bundle == made[2], "followed")
    promote_bundle(plan, "rows", made[1]) # plan and record, one after the other
    until(lambda: ask(manager, some(1)).bundle == made[1], "followed again")
    watched(manager)
    assert counted(manager.resources.metrics.plan_reloads, "rows", "ok") == 3


def test_an_endpoint_ends_with_its_plan_and_the_last_good_one_and_not_with_its_folder(project, made, served):
    write_plan(project / "releases/other.json", ReleasePlan("other", 1, [Variant("x", made[2])]))
    manager = served(Variant("a", made[1]))
    (project / "releases/other.json").unlink()
    until(lambda: manager.rejected_plans, "told")
    assert "is gone" in "".join(manager.rejected_plans.values()) and "other" in manager.endpoints
    last_good_path(project / "releases/other.json").unlink()
    until(lambda: "other" not in manager.endpoints, "ended")
    until(lambda: made[2] not in manager._models, "let go")
    (project / "releases").rename(project / "gone")
    watched(manager)
    assert ask(manager, some(1)).variant == "a"
    (project / "gone").rename(project / "releases")
    watched(manager)
    assert ask(manager, some(1)).variant == "a" and not manager.rejected_plans


FAULTS = {"torn": lambda path: path.write_text('{"endpoint": "ro'), "gone": Path.unlink,
          "weights": lambda path: path.write_text(path.read_text().replace("0.5", "0.4")),
          "bundle": lambda path: path.write_text(path.read_text().replace('"revision": 3', '"revision": 4')
                                                 .replace('"bundle": "', '"bundle": "0')),
          "older": lambda path: path.write_text(path.read_text().replace('"revision": 3', '"revision": 2'))}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_good_plan_answers_whatever_becomes_of_the_file(project, made, served, fault):
    "In the process that runs and in one that is started then; the command of the sentence mends the file."
    _, a, b = made
    two = [Variant("a", a, .5), Variant("b", b, .5)]
    running = served(*two, revision=3)
    path = plan_path(project, running.settings)
    FAULTS[fault](path)
    until(lambda: running.rejected_plans, "refused")
    new = served()
    for manager in (running, new):
        assert manager.endpoints["rows"].plan == ReleasePlan("rows", 3, two)
        assert [*manager.rejected_plans] == [str(path)]
    if fault == "bundle": return # its sentence is about the bundle
    assert "`mlops-nb release restore rows`" in new.rejected_plans[str(path)] or fault == "weights"
    restore_release(project, "rows")
    for manager in (running, new):
        until(lambda manager=manager: not manager.rejected_plans, "mended")
        assert manager.endpoints["rows"].plan == ReleasePlan("rows", 4, two)


def test_an_older_plan_is_taken_only_by_force(project, made, served):
    manager = served(Variant("a", made[1]), revision=3)
    path = plan_path(project, manager.settings)
    write_json(path, ReleasePlan("rows", 2, [Variant("b", made[2])])) # as a checkout of an old file
    until(lambda: "older than 3" in "".join(manager.rejected_plans.values()), "refused")
    assert ask(manager, some(1)).variant == "a" and "restore rows --force`" in manager.rejected_plans[str(path)]
    restore_release(project, force=True)
    until(lambda: ask(manager, some(1)).variant == "b", "taken")
    assert manager.endpoints["rows"].plan.revision == 4
    until(lambda: not manager.rejected_plans, "forgotten")


def test_a_last_good_plan_that_cannot_be_kept_or_read_costs_no_answer(project, made, served, caplog):
    (project / "releases").mkdir()
    (project / "releases/last_good").write_text("in the way")
    manager = served(Variant("a", made[1]))
    path = plan_path(project, manager.settings)
    assert "last_good/rows.json cannot be written" in caplog.text
    path.unlink()
    watched(manager, 4)
    assert ask(manager, some(1)).variant == "a" # it was never kept, so its absence decides nothing
    (project / "releases/last_good").unlink()
    plan(project, Variant("a", made[1]), revision=2)
    until(lambda: last_good_path(path).exists(), "kept")
    last_good_path(path).write_text("{")
    assert served().endpoints["rows"].plan.revision == 2


def test_rows_decoded_before_a_swap_are_answered_after_it(project, made, served, predictors):
    manager = served(Variant("a", made[1]))
    endpoint, rows = manager.endpoints["rows"], some(3)
    decoder = endpoint.decoder
    decoded = decoder.from_json(json.dumps(rows).encode())
    plan(project, Variant("b", made[2]), revision=2)
    until(lambda: endpoint.plan.revision == 2, "in force")
    got = asyncio.run(endpoint.predict(decoded, decoder, Request(id="r")))
    assert got.bundle == made[2] and got.scores == expected(predictors[made[2]], rows)


def test_a_table_is_read_when_it_comes_and_forgotten_when_it_goes(project, made, served):
    manager = served(Variant("a", made[1]))
    model, endpoint = manager._models[made[1]], manager.endpoints["rows"]
    assert endpoint.decode_entities(b'[{"id": "c7"}]') is None
    write_table(project, made[1], some(9))
    until(lambda: model.lookup_table and len(model.lookup_table) == 9, "read")
    write_table(project, made[1], some(8))
    until(lambda: model.lookup_table and len(model.lookup_table) == 8, "read again")
    lookup_table_path(made[1], project / "tables").write_bytes(b"PAR1 torn")
    watched(manager)
    assert len(model.lookup_table) == 8  # a torn one changes nothing
    write_table(project, made[1], some(7))
    until(lambda: len(model.lookup_table) == 7, "read")
    lookup_table_path(made[1], project / "tables").unlink()
    until(lambda: model.lookup_table is None, "forgotten")


@pytest.mark.slow
def test_the_same_customer_meets_the_same_variant_in_every_process_and_after_a_restart(project, made):
    "Sticky, a rule, a flag that a request brings, a table and a shadow, through the server itself."
    _, a, b = made
    plan(project, Variant("a", a, .5), Variant("b", b, .5), Variant("beta", b, 0, flag="beta"),
         Variant("s", b, mode="shadow"), sticky_key="id",
         rules=[RoutingRule({}, "beta"), RoutingRule({"count": [50, None]}, "b")], allow_request_flags=True)
    for i in (a, b): write_table(project, i, some(5), .125)
    rows, path, met = some(40), "/v1/endpoints/rows:predict", []
    for _ in range(2):
        with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2) as s:
            many = s.post(path, {"instances": rows})[2]
            met.append([p.get("variant", many["variant"]) for p in many["predictions"]])
            # each on a connection of its own
            for _ in range(3): met.append([s.post(path, r)[2]["variant"] for r in rows])
            assert s.post(path, rows[0], {"x-flags": "beta"})[2]["variant"] == "beta"
            assert s.post(path, {**rows[0], "count": 50})[2]["variant"] == "b"
            s.until(lambda s=s: s.post(path, [{"id": "c3"}])[0] == 200, "a table")
            assert s.post(path, [{"id": "c3"}, {"id": "c1"}])[2]["predictions"][1]["score"] == .125
            assert s.post(path, rows[4], {"x-static": "prefer"})[2]["predictions"][0]["score"] == .125
            assert s.post(path, [{"id": "c39"}])[0] == 404
    assert {*met[0]} == {"a", "b"} and all(m == met[0] for m in met)
    log = read_log(project / "predictions", "rows").collect()
    assert log.filter(mode="shadow")["variant"].unique().to_list() == ["s"]
    several = log.filter(pl.col("id").is_in(log.filter(row=39,
        mode="live")["id"].implode())).filter(mode="live").sort("id", "row")
    assert several["row"].to_list() == [*range(40)] * 2 and several["variant"].to_list() == met[0] * 2
