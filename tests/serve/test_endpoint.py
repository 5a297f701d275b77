"From rows to a logged answer: variants, fallback, shadows, cache, lookup tables, deadlines, log, explanations."
import asyncio
import json
import shutil
import threading
import time

import numpy as np
import polars as pl
import pytest
from support import server as serving
from support.served_endpoint import LIMIT, answer, ask, counted, expected, plan, some, until, write_table

from mlops_nb.batch.batch_scoring import score_lookup_table
from mlops_nb.bundle.bundle import golden_examples
from mlops_nb.bundle.store import lookup_table_path, store_bundle
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.model.booster import Booster
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.row_counts import dropped_shadow_rows
from mlops_nb.prediction_log.writer import LogWriteError
from mlops_nb.release.release_plan import ReleaseStep, RoutingRule, Variant, plan_path
from mlops_nb.serve import time_limit
from mlops_nb.serve.endpoint import MAX_INLINE_ROWS, DeadlineExceeded, NotPrecomputed
from mlops_nb.serve.http_messages import Request
from mlops_nb.serve.model_runtime import MAX_SHADOW_QUEUE_ROWS
from mlops_nb.serve.time_limit import ProcessingTimeout


def test_each_row_of_a_request_gets_its_own_variant_and_its_own_line(project, made, served, predictors):
    _, a, b = made
    manager = served(Variant("a", a, .5), Variant("b", b, .5), sticky_key="id", rules=[RoutingRule({"id": "c3"}, "b")])
    rows = some(40) + some(MAX_INLINE_ROWS + 20, 40)
    got = [ask(manager, rows[i:j], id=f"r{i}") for i, j in ((0, 1), (0, 40), (20, len(rows)))]
    alone = {r["id"]: ask(manager, [r], id="x" + r["id"]) for r in rows[:50]}
    for g, (i, j) in zip(got, ((0, 1), (0, 40), (20, len(rows))), strict=True):
        names = g.variants or [g.variant] * (j - i)
        assert len(g.scores) == len(g.decisions) == len(names) == j - i and names[0] == g.variant
        for r, s, d, v in zip(rows[i:j], g.scores, g.decisions, names, strict=True):
            if r["id"] in alone:
                assert (v, s, d) == (alone[r["id"]].variant, alone[r["id"]].scores[0], alone[r["id"]].decisions[0])
            assert s == expected(predictors[{"a": a, "b": b}[v]], [r])[0]
    assert alone["c3"].variant == "b" and {*got[1].variants} == {"a", "b"}
    log = read_log(manager.resources.log.folder, "rows").filter(pl.col("id") == "r0",
                                                                pl.len().over("row", "variant") > 0).collect()
    several = log.filter(pl.col("time") == log["time"].max()).sort("row")
    assert several["row"].to_list() == [*range(40)] and several["variant"].to_list() == got[1].variants
    assert several["score"].to_list() == got[1].scores and several["entity"].to_list() == [r["id"] for r in rows[:40]]
    assert several["columns.x"].to_list() == [r["x"] for r in rows[:40]]


def test_somebody_can_be_asked_by_name(made, served):
    manager = served(Variant("a", made[1]), Variant("b", made[2], 0))
    assert ask(manager, some(3), variant="b").bundle == made[2] and ask(manager, some(3)).bundle == made[1]
    with pytest.raises(UserError, match="no variant 'c'; there are a, b"): ask(manager, some(1), variant="c")


def test_where_another_variant_fails_the_leading_one_answers(project, made, served, caplog):
    manager = served(Variant("a", made[1], .6), Variant("b", made[2], .4), rules=[RoutingRule({}, "b")])
    def broken(columns, X): raise ValueError("a feature failed")
    manager.endpoints["rows"].variants["b"].predictor.predict_and_decide = broken
    for n in (1, MAX_INLINE_ROWS + 1): assert ask(manager, some(n)).bundle == made[1]
    assert counted(manager.resources.metrics.variant_errors, "rows",
                   "b") == 2 and sum("a feature failed" in r.getMessage() for r in caplog.records) == 1
    with pytest.raises(ValueError): ask(manager, some(1), variant="b")
    manager.endpoints["rows"].variants["a"].predictor.predict_and_decide = broken
    with pytest.raises(ValueError): ask(manager, some(1))
    assert not manager.endpoints["rows"].active_plan.in_flight


def other_schema(project, bundle, **columns):
    "A copy of a bundle whose schema says something else of some columns; its id."
    work = project / "work"
    shutil.copytree(project / "bundles" / bundle, work)
    said = read_json(work / "schema.json", dict)
    for name, change in columns.items(): said["columns"][name] |= change
    write_json(work / "schema.json", said)
    name = write_manifest(work)
    work.rename(project / "bundles" / name)
    return name


def test_who_failed_first_is_on_record_and_a_variant_whose_flag_is_off_stands_in_for_nobody(project, made, served):
    other = other_schema(project, made[2], place={"nullable": False})
    manager = served(Variant("a", made[1], .25), Variant("b", made[2], .75), Variant("c", other, 0., flag="f"),
                     sticky_key="id")
    fail(manager, "a")
    ask(manager, some(20))
    found = dealt(manager).filter(pl.col("failed") == "a")
    assert found.height and {*found["variant"]} == {"b"} and {*found["share"]} == {.25}
    fail(manager, "a", "b")
    with pytest.raises(ValueError): ask(manager, some(20))
    assert counted(manager.resources.metrics.variant_errors, "rows", "b") == 1


def test_another_schema_takes_the_rows_as_they_are_only_if_its_inputs_have_the_same_types(project, made, served,
                                                                                          monkeypatch):
    same = other_schema(project, made[2], place={"nullable": False})
    manager = served(Variant("a", made[1], 1), Variant("same", same, 0))
    row = {**some(1)[0], "place": None}
    got = ask(manager, [row], variant="same")
    assert got.bundle == same
    stricter = other_schema(project, made[2], known={"type": "category", "nullable": False, "domain": ["yes"]})
    manager._load_plan(plan_path(project, manager.settings))
    # the encoder of the model wants a boolean, so its golden examples differ
    with pytest.raises(UserError): manager._load_model(stricter)
    endpoint = manager.endpoints["rows"]
    endpoint.variants["same"]._same_encoding.clear()  # as if its inputs were others
    with pytest.raises(UserError): ask(manager, [row], variant="same")
    plan(project, Variant("a", made[1], 1), Variant("same", same, 0), rules=[RoutingRule({}, "same")], revision=2)
    until(lambda: endpoint.plan.revision == 2, "in force")
    endpoint.variants["same"]._same_encoding.clear()
    assert ask(manager, [row]).variant == "a" and counted(manager.resources.metrics.variant_errors, "rows", "same") == 2
    assert ask(manager, [{**row, "place": "Amsterdam"}]).variant == "same"


def dealt(manager): return read_log(manager.resources.log.folder).sort("time", "row").collect()


def test_a_record_says_who_was_dealt_a_row_by_which_plan_and_with_which_probability(made, served):
    rules = [RoutingRule({"id": ["c3", "c5"]}, "b")]
    manager = served(Variant("a", made[1], .75), Variant("b", made[2], .25), Variant("s", made[2], mode="shadow"),
                     sticky_key="id", rules=rules, revision=1)
    for i, row in enumerate(some(20)): ask(manager, [row], id=f"r{i}")
    ask(manager, some(20), id="all")
    ask(manager, some(1), id="named", variant="b")
    until(lambda: (dealt(manager)["mode"] == "shadow").sum() == 41, "logged")
    log = dealt(manager)
    assert {*log["revision"]} == {1} and {*log["failed"]} == {""} and {*log.filter(mode="shadow")["share"]} == {1.}
    live = log.filter(mode="live")
    ruled = pl.col("entity").is_in(["c3", "c5"]) | (pl.col("id") == "named")
    expected_share = pl.when(ruled).then(1.).when(pl.col("variant") == "a").then(.75).otherwise(.25)
    assert live["share"].equals(live.select(expected_share).to_series()) and {.75, .25} < {*live["share"]}
    alone, together = (live.filter(pl.col("id").is_in(ids)).sort("entity") for ids in ([f"r{i}" for i in range(20)],
                                                                                       ["all"]))
    assert alone.select("entity", "variant", "share").equals(together.select("entity", "variant", "share"))
    assert (log["own_us"] > 0).all() and (live["own_us"] <= live["latency_us"]).all()


def fail(manager, *names):
    "Make these variants raise, and the others answer again."
    for v in manager.endpoints["rows"].variants.values():
        def broken(columns, X): raise ValueError("a feature failed")
        v.predictor.__dict__.pop("predict_and_decide", None)
        if v.name in names: v.predictor.predict_and_decide = broken


def test_where_the_primary_fails_the_bundle_before_stands_in(made, served):
    manager = served(Variant("champion", made[1], 1.), Variant("previous", made[2], 0.))
    assert ask(manager, some(2)).variant == "champion"
    fail(manager, "champion")
    got = ask(manager, some(2))
    assert got.variant == "previous" and got.bundle == made[2]
    assert dealt(manager).select("variant", "failed", "share").rows()[2:] == [("previous", "champion", 1.)] * 2
    with pytest.raises(ValueError): ask(manager, some(1), variant="champion")
    fail(manager, "champion", "previous")
    with pytest.raises(ValueError): ask(manager, some(1))
    fail(manager)
    assert ask(manager, some(2)).variant == "champion"


def test_who_is_held_out_is_scored_and_not_decided_about(made, served, predictors):
    rows = [{**r, "x": 9.} for r in some(60)]
    manager = served(Variant("a", made[1], .5), Variant("b", made[2], .5), sticky_key="id", explore=.3)
    plain = ask(manager, rows, variant="a")
    got = ask(manager, rows, id="all")
    alone = [ask(manager, [r], id=f"r{i}") for i, r in enumerate(rows)]
    assert [g.variant for g in alone] == got.variants and [g.decisions[0] for g in alone] == got.decisions
    held = [i for i, v in enumerate(got.variants) if v == "held_out"]
    classes = predictors[made[1]].schema.classes
    assert 5 < len(held) < 40 and {got.decisions[i] for i in held} == {classes[0]}
    assert [got.scores[i] for i in held] == [plain.scores[i] for i in held]  # by the primary
    log = dealt(manager).filter(id="all", variant="held_out")
    assert log["row"].to_list() == held and {*log.select("bundle", "share", "failed").rows()} == {(made[1], .3, "")}
    assert {*log["decision"]} == {classes[0]} and counted(manager.resources.metrics.scored_rows, "rows",
                                                          "held_out") == 2 * len(held)
    fail(manager, "a")
    ask(manager, rows, id="fails")
    again = dealt(manager).filter(id="fails")
    assert {*again["variant"]} == {"b"} and {*again["failed"]} == {"a", "held_out", ""}
    assert not manager.endpoints["rows"].active_plan.in_flight


def test_who_is_held_out_may_get_a_decision_by_chance(made, served, predictors):
    manager = served(Variant("a", made[1]), sticky_key="id", explore=.9, explore_decision="random")
    got = ask(manager, some(200))
    drawn = [d for d, v in zip(got.decisions, got.variants, strict=True) if v == "held_out"]
    classes = predictors[made[1]].schema.classes
    assert len(drawn) > 150 and all(drawn.count(c) > 50 for c in classes)


def modes(manager):
    return read_log(manager.resources.log.folder).group_by("mode", "variant").agg(pl.len(), pl.col("score")).collect()


def test_a_shadow_is_logged_and_changes_no_answer(made, served, predictors):
    manager, rows = served(Variant("a", made[1]), Variant("s", made[2], mode="shadow")), some(5)
    got = [ask(manager, [r], id=f"r{i}") for i, r in enumerate(rows)]
    assert [g.scores for g in got] == [[s] for s in expected(predictors[made[1]], rows)] and {g.variant
                                                                                              for g in got} == {"a"}
    until(lambda: modes(manager)["len"].sum() == 10, "logged")
    found = {(m, v): s for m, v, _, s in modes(manager).iter_rows()}
    assert sorted(found["shadow", "s"]) == sorted(expected(predictors[made[2]], rows)) and len(found["live", "a"]) == 5


def test_a_shadow_that_raises_is_counted_and_its_record_says_so(made, served):
    manager = served(Variant("a", made[1]), Variant("s", made[2], mode="shadow"))
    def broken(columns, X): raise MemoryError
    manager.endpoints["rows"].variants["s"].predictor.predict_and_decide = broken
    for _ in range(5): ask(manager, some(1))
    until(lambda: modes(manager)["len"].to_list() == [5, 5], "logged")
    assert counted(manager.resources.metrics.shadow_errors, "rows", "s") == 5
    shadow = dealt(manager).filter(mode="shadow")
    assert shadow.select("variant", "failed", "score").rows() == [("s", "s", None)] * 5


def test_a_shadow_that_hangs_holds_nobody_up_and_is_dropped(project, made, served):
    manager = served(Variant("a", made[1]), Variant("s", made[2], mode="shadow"))
    gate, rows = threading.Event(), some(2000)
    manager.endpoints["rows"].variants["s"].predictor.predict_encoded = lambda X: gate.wait(LIMIT)
    for _ in range(MAX_SHADOW_QUEUE_ROWS // 2000 + 5): ask(manager, rows)
    def dropped(release=None): return dropped_shadow_rows(manager.resources.log.folder, "rows", "s", release)
    assert dropped() == dropped("") == 5 * 2000 and dropped("r1") == 0
    plan(project, Variant("a", made[1]), Variant("s", made[2], mode="shadow"), revision=2, release=ReleaseStep("r1", 0))
    until(lambda: manager.endpoints["rows"].plan.revision == 2, "in force")
    for _ in range(MAX_SHADOW_QUEUE_ROWS // 2000 + 2): ask(manager, rows)
    assert (dropped(), dropped(""), dropped("r1")) == (7 * 2000, 5 * 2000, 2 * 2000)
    plan(project, Variant("a", made[1]), revision=3)
    until(lambda: made[2] not in manager._models, "swapped although it hangs")
    gate.set()


def test_the_cache_is_by_bundle_and_row_and_off_unless_it_is_asked_for(project, made, served, predictors):
    manager = served(Variant("a", made[1]), Variant("b", made[2], 0), settings="[serve]\ncache_entries = 2\n")
    rows = some(4)
    kinds = [ask(manager, [rows[i]], variant=v).source
             for i, v in [(0, "a"), (0, "a"), (0, "b"), (0, "b"), (1, "a"), (0, "a")]]
    assert kinds == ["model", "cache", "model", "cache", "model", "model"] and len(manager.resources.cache) == 2
    assert ask(manager, [rows[0]]).scores == expected(predictors[made[1]], rows[:1]) and ask(manager,
                                                                                             rows).source == "model"
    assert (counted(manager.resources.metrics.cache_requests, "rows", "hit"),
            counted(manager.resources.metrics.cache_requests, "rows", "miss")) == (3, 4)
    assert read_log(manager.resources.log.folder).filter(source="cache").collect().height == 3
    off = served()
    assert [ask(off, [rows[0]]).source for _ in range(2)] != ["model", "model"] or off.resources.cache.max_entries == 0


def test_known_entities_are_looked_up_and_others_computed(project, made, served, predictors):
    write_table(project, made[1], some(50), np.arange(50) / 50)
    manager = served(Variant("a", made[1]))
    endpoint, prefer = manager.endpoints["rows"], {"x-static": "prefer"}
    named = endpoint.decode_entities(b'{"instances": [{"id": "c7"}, {"id": "c0"}], "id": "mine"}')
    assert named == (["c7", "c0"], "mine")
    got = asyncio.run(endpoint.predict_entities(named[0], Request(id="t")))
    assert (got.scores, got.decisions, got.source) == ([7 / 50, 0.], ["no", "no"], "table")
    assert ask(manager, some(2), headers=prefer).source == "table" and ask(manager, some(2)).source == "model"
    mixed = some(1) + some(1, 99)
    got = ask(manager, mixed, headers=prefer)
    assert got.source == "model" and got.scores == expected(predictors[made[1]], mixed)
    with pytest.raises(NotPrecomputed, match="send the columns"):
        asyncio.run(endpoint.predict_entities(["c99"], Request(id="u")))
    assert (counted(manager.resources.metrics.lookup_requests, "rows", "hit"),
            counted(manager.resources.metrics.lookup_requests, "rows", "miss")) == (2, 2)
    line = read_log(manager.resources.log.folder).filter(id="t").sort("row").collect()
    assert line["entity"].to_list() == ["c7", "c0"] and line["source"].to_list() == ["table"] * 2
    for body in (b'[{"id": "c7", "x": 1}]', b"[]", b"{", b'[{"x": 1}]', b'"c7"',
                 b'[{"id": "c7"}, {"id": "c8", "x": 1}]', b"\xff",
                 b'[{"id": ["c7"]}]', b'[{"id": "c7"}],', b'{"instances": 7}'):
        assert endpoint.decode_entities(body) is None


@pytest.mark.parametrize("task", ["multiclass", "regression", "referring"])
def test_what_was_scored_beforehand_is_what_would_be_computed(project, served, tmp_path, task):
    "As `mlops-nb score --table` writes it: several classes, a value, and a policy that leaves rows to a person."
    root = tmp_path / task
    made = serving.bundle(root, "binary" if task == "referring" else task, n=300)
    if task == "referring":
        write_json(made / "policy.json", {**read_json(made / "policy.json", dict), "reject_region": [.3, .6]})
        predictor = Predictor.open(write_manifest(made) and made)
        golden_examples(predictor,
            pl.read_parquet(root / "artifacts/prepared/test.parquet")).write_parquet(made / "golden.parquet")
        write_manifest(made)
    name, rows = store_bundle(made, project / "bundles").name, some(30)
    pl.DataFrame(rows, schema_overrides={"x": pl.Float64, "place": pl.String}).write_parquet(tmp_path / "rows.parquet")
    assert score_lookup_table(Predictor.open(made), tmp_path / "rows.parquet",
                              lookup_table_path(name, project / "tables")) == 30
    manager = served(Variant("a", name))
    computed, known = ask(manager, rows[5:20]), asyncio.run(manager.endpoints["rows"].predict_entities([r["id"]
        for r in rows[5:20]], Request(id="t")))
    assert (known.source, computed.source) == ("table", "model")
    assert (known.scores, known.decisions, known.needs_review) == (computed.scores, computed.decisions,
                                                                   computed.needs_review)
    assert (known.needs_review is not None and any(known.needs_review)) == (task == "referring")


@pytest.mark.slow
def test_a_net_answers_in_batches_what_it_answers_alone(project, served, tmp_path):
    pytest.importorskip("torch")
    net = store_bundle(serving.bundle(tmp_path / "net", n=300, learner="net"), project / "bundles")
    manager, rows = served(Variant("net", net.name)), some(60)
    endpoint = manager.endpoints["rows"]

    async def main():
        return await asyncio.gather(*(answer(endpoint, [r], id=f"r{i}") for i, r in enumerate(rows)),
                                    answer(endpoint, rows * 3))
    *alone, many = asyncio.run(main())
    right = expected(Predictor.open(net), rows)
    assert [a.scores[0] for a in alone] == right and many.scores == right * 3
    with pytest.raises(DeadlineExceeded): ask(manager, rows, deadline=time.monotonic() - 1)


def test_a_deadline_is_kept_whether_rows_are_many_or_few(made, served):
    manager = served(Variant("a", made[1]))
    predictor, gate = manager.endpoints["rows"].variants["a"].predictor, threading.Event()
    with pytest.raises(DeadlineExceeded): ask(manager, some(1), deadline=time.monotonic() - .001)
    assert ask(manager, some(1), deadline=time.monotonic() + LIMIT).scores
    real, predictor.predict_encoded = predictor.predict_encoded, lambda X: gate.wait(LIMIT)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded): ask_and_open(manager, gate)
    assert time.monotonic() - started < LIMIT / 2
    predictor.predict_encoded = real
    assert len(ask(manager, some(MAX_INLINE_ROWS * 3), deadline=time.monotonic() + LIMIT).scores) == MAX_INLINE_ROWS * 3
    assert not manager.endpoints["rows"].active_plan.in_flight
    # who was too late is not on record
    assert read_log(manager.resources.log.folder).select(pl.len()).collect().item() == 1 + MAX_INLINE_ROWS * 3


def ask_and_open(manager, gate):
    async def main():
        try: return await answer(manager.endpoints["rows"], some(MAX_INLINE_ROWS + 1), deadline=time.monotonic() + .1)
        finally: gate.set()
    return asyncio.run(main())


def test_the_event_loop_goes_on_while_many_rows_are_answered(made, served):
    manager = served(Variant("a", made[1]))
    gate, endpoint = threading.Event(), manager.endpoints["rows"]
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
    manager = served(Variant("a", made[1]))

    async def main():
        for i in range(10):
            await answer(manager.endpoints["rows"], some(2, i), id=f"r{i}", api_key_name="shop",
                         started=time.perf_counter() - 1)
            lines = [json.loads(x) for p in (manager.resources.log.folder / "segments").iterdir()
                     for x in p.read_text().splitlines()]
            assert [x["id"] for x in lines] == [f"r{j}" for j in range(i + 1)]
        return lines
    last = asyncio.run(main())[-1]
    assert (last["endpoint"], last["variant"], last["bundle"], last["api_key_name"], last["mode"]) == ("rows", "a",
        made[1], "shop", "live")
    assert last["entity"] == ["c9", "c10"] and last["columns"]["count"] == [r["count"] for r in some(2, 9)]
    assert last["score"] == expected(predictors[made[1]],
                                     some(2, 9)) and 1_000_000 <= last["latency_us"] < LIMIT * 1_000_000
    assert counted(manager.resources.metrics.scored_rows, "rows", "a") == 20


def test_an_answer_that_cannot_be_written_is_not_given(made, served):
    class Full:
        def append(self, record): raise LogWriteError("no space")
    manager = served(Variant("a", made[1]), log=Full())
    with pytest.raises(LogWriteError): ask(manager, some(1))
    assert not manager.endpoints["rows"].active_plan.in_flight
    assert counted(manager.resources.metrics.scored_rows, "rows", "a") == 0


def test_why_it_was_answered_so(made, served, predictors):
    manager, rows = served(Variant("a", made[1]), Variant("b", made[2], 0)), some(4)
    endpoint = manager.endpoints["rows"]
    decoder = endpoint.decoder
    decoded = decoder.from_json(json.dumps(rows).encode())
    for variant, bundle in ((None, made[1]), ("b", made[2])):
        said, p = asyncio.run(endpoint.explain(decoded, decoder, Request(id="r"), variant)), predictors[bundle]
        right = p.contributions(pl.DataFrame(rows, schema_overrides={"x": pl.Float64, "place": pl.String}))
        assert (said.bundle, said.feature_names, said.scores) == (bundle, p.feature_names, expected(p, rows))
        assert np.array_equal(said.contributions, right)
    assert not endpoint.active_plan.in_flight


def test_an_explanation_waits_for_a_postprocess_no_longer_than_a_prediction_does(made, served):
    endpoint = served(Variant("a", made[1])).endpoints["rows"]
    v, free = endpoint.variants["a"], threading.Event()

    def late(decisions):
        free.wait(LIMIT)
        return decisions

    v.predictor.features.postprocess["late"], v.model.postprocess_seconds = late, .05
    rows = endpoint.decoder.from_json(json.dumps(some(2)).encode())
    try:
        for ask_for in (endpoint.predict, endpoint.explain):
            with pytest.raises(ProcessingTimeout): asyncio.run(ask_for(rows, endpoint.decoder, Request(id="r")))
    finally:
        free.set()
        until(lambda: not time_limit._overdue)
    assert not endpoint.active_plan.in_flight


def test_many_rows_of_a_model_with_a_preprocess_alone_do_not_hold_up_the_event_loop(made, served):
    manager = served(Variant("a", made[1]))
    v, threads = manager.endpoints["rows"].variants["a"], []
    decide, v.model.preprocess_seconds = v.predictor.decide_scores, 1

    def decide_scores(*args):
        threads.append(threading.current_thread())
        return decide(*args)

    v.predictor.decide_scores = decide_scores
    for n in (MAX_INLINE_ROWS, MAX_INLINE_ROWS + 1): ask(manager, some(n))
    assert [t is threading.current_thread() for t in threads] == [True, False]


def test_the_units_are_those_of_the_variant_that_explains(project, served, tmp_path):
    "A Poisson model explains on the logarithm of the target, another regression beside it in the target's own units."
    plain = serving.bundle(tmp_path / "plain", "regression", n=300)
    shutil.copytree(plain, tmp_path / "poisson")
    text = (tmp_path / "poisson/model.txt").read_text()
    assert "objective=regression" in text
    poisson = Predictor.open(plain)
    poisson.model = Booster(text.replace("objective=regression", "objective=poisson"))
    assert poisson.raw_units != Predictor.open(plain).raw_units
    manager = served(Variant("plain", store_bundle(plain, project / "bundles").name),
                     Variant("poisson", store_bundle(plain, project / "bundles").name, 0))
    endpoint = manager.endpoints["rows"]
    endpoint.variants["poisson"].predictor = poisson
    decoder = endpoint.decoder
    rows = decoder.from_json(json.dumps(some(2)).encode())
    units = [asyncio.run(endpoint.explain(rows, decoder, Request(id="r"), v)).units for v in (None, "plain", "poisson")]
    assert units == ["units of the target", "units of the target",
                     poisson.raw_units] and "logarithm" in poisson.raw_units
