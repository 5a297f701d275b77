"What each route answers, over a real socket: scores, tensors, contributions, labels, probes, metadata and pages."
import errno
import json
import os

import polars as pl
import pytest
from support import server as serving
from support.prediction_logs import label
from support.server import EXPLAIN, FEEDBACK, INFER, PREDICT, tensors

from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.reader import read_feedback
from mlops_nb.prediction_log.writer import LogWriteError, PredictionLogWriter
from mlops_nb.serve import handlers
from mlops_nb.serve.metrics import Metrics


def expected(predictor, rows): return predictor.predict(pl.DataFrame(rows, infer_schema_length=None)).tolist()


def test_rows_of_json_get_what_the_predictor_says(limited_server, predictor):
    rows = serving.instances(40)
    for body, n in (({"instances": rows}, 40), (rows[:3], 3), (rows[0], 1)):
        status, headers, found = limited_server.post(PREDICT, body)
        assert status == 200 and found["id"] == headers["x-request-id"]
        assert [p["score"] for p in found["predictions"]] == expected(predictor, rows)[:n]
        assert [p["decision"]
                for p in found["predictions"]] == predictor.decide(predictor.predict(pl.DataFrame(rows)))[:n].tolist()
        assert (found["endpoint"], found["variant"], found["bundle"]) == ("rows", "champion", predictor.id)


def test_many_rows_are_answered_in_a_thread_with_the_same_numbers(limited_server, predictor):
    rows = serving.instances(200, seed=8)
    assert [p["score"] for p in limited_server.post(PREDICT, rows)[2]["predictions"]] == expected(predictor, rows)


def test_tensors_get_the_same_numbers_from_every_path(limited_server, predictor):
    rows = serving.instances(5)
    for path in (INFER, "/v2/models/rows/versions/champion/infer",
                 f"/v2/models/rows/versions/{predictor.id[:12]}/infer"):
        status, _, found = limited_server.post(path, {"id": "mine", "inputs": tensors(rows)})
        assert status == 200 and found["id"] == "mine" and found["model_version"] == predictor.id[:12]
        assert {o["name"]: o["data"] for o in found["outputs"]}["score"] == expected(predictor, rows)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks(task, tmp_path):
    with serving.Server(serving.project(tmp_path, task)) as s:
        predictor, rows = Predictor.open(tmp_path / "training/artifacts/bundle"), serving.instances(6, task=task)
        wanted = expected(predictor, rows)
        found = s.post(PREDICT, rows)[2]["predictions"]
        why = s.post(EXPLAIN, rows)[2]
        if task == "regression":
            assert found == [{"score": w} for w in wanted]
            for w, e in zip(wanted, why["explanations"], strict=True):
                assert e["base_value"] + sum(e["contributions"].values()) == pytest.approx(w)
            assert s.post(FEEDBACK, {"labels": [{"id": "a", "label": 2}, {"id": "b", "label": 1.5},
                                                {"id": "c", "label": None}]})[0] == 200
            for label in ("2", True, 10**400):
                assert s.post(FEEDBACK, {"labels": [{"id": "a", "label": label}]})[0] == 400
        else:
            assert [[*p["score"].values()]
                    for p in found] == wanted and [*found[0]["score"]] == predictor.schema.classes
            assert [p["decision"] for p in found] == predictor.decide(predictor.predict(pl.DataFrame(rows))).tolist()
            for e in why["explanations"]:
                for k, shares in e["contributions"].items():
                    assert e["base_value"][k] + sum(shares.values()) == pytest.approx(e["raw_score"][k])
        assert why["units"] == predictor.raw_units != "log odds"
        assert s.get("/v2/models/rows")[2]["name"] == "rows"


def test_contributions_add_up_in_their_units(limited_server, predictor):
    rows = serving.instances(7)
    status, _, found = limited_server.post(EXPLAIN,
        {"instances": rows, "id": "why", "parameters": {"version": predictor.id[:10]}})
    assert (status, found["id"], found["units"], found["variant"]) == (200, "why", "log odds", "champion")
    raw = predictor.predict_raw(pl.DataFrame(rows)).tolist()
    for e, r, s in zip(found["explanations"], raw, expected(predictor, rows), strict=True):
        assert (e["raw_score"] == pytest.approx(r) == e["base_value"] + sum(e["contributions"].values())
                and e["score"] == s)
        assert [*e["contributions"]] == predictor.feature_names
    assert limited_server.post(EXPLAIN, {"instances": rows, "parameters": {"version": "nobody"}})[0] == 404


def test_feedback_is_taken_and_checked(limited_server):
    id = limited_server.post(PREDICT, serving.instances(1))[2]["id"]
    def counted(): return [limited_server.metric(f"mlops_nb_{m}_labels_total", endpoint="rows")
                           for m in ("feedback", "unknown")]
    before = counted()
    labels = [{"id": id, "label": "yes"}, {"id": id, "label": "yes", "row": 0}]
    _, headers, found = limited_server.post(FEEDBACK, {"labels": labels})
    assert found == {"id": headers["x-request-id"], "accepted": 2, "taken": 2, "unknown": 0}
    labels += [{"id": "never", "label": None}, {"id": id, "label": "no", "row": 1}] # it has one row
    for _ in range(2): # from its segment, and from the index that the compaction makes
        found = limited_server.post(FEEDBACK, {"labels": labels})[2]
        assert (found["accepted"], found["taken"], found["unknown"]) == (4, 2, 2)
        assert "id 'never', row 0" in found["message"]
        compact_log(limited_server.root / "predictions")
    assert counted() == [before[0] + 10, before[1] + 4]
    limited_server.post(FEEDBACK, {"labels": [{"id": id, "label": "yes", "action": "called", "source": "person"}]})
    assert read_feedback(limited_server.root / "predictions").filter(id=id, row=0).collect().select(
        "label", "action", "source").row(-1) == ("yes", "called", "person")
    def rejected(): return limited_server.metric("mlops_nb_rejected_labels_total", endpoint="rows")
    good, before = {"id": id, "label": "yes"}, rejected()
    status, _, found = limited_server.post(FEEDBACK, {"labels": [good, good | {"label": "yess"}, good | {"row": -1}]})
    assert (status, found["accepted"], [x["index"] for x in found["rejected"]]) == (200, 1, [1, 2])
    assert "did you mean 'yes'" in found["rejected"][0]["reason"]
    assert rejected() == before + 2
    wrong = [([good | {"source": "nobody"}], "source"), ([good | {"action": "x" * 101}], "action"),
             ([good | {"label": "yess"}], "did you mean 'yes'"), ([], "length"), ([{"id": id}], "label"),
             ([good | {"id": ""}], "id"),
             ([good | {"label": 1}], "no class"), ([good | {"row": -1}], "row"), ([good | {"rows": 1}], "rows"),
             ([good] * 201, "most 200")]
    for labels, words in wrong:
        status, _, found = limited_server.post(FEEDBACK, {"labels": labels})
        assert status == 400 and words in found["error"], found
    assert limited_server.post(FEEDBACK, {"labels": [good | {"row": 2**70}]})[0] == 400
    assert limited_server.post(FEEDBACK, {})[0] == limited_server.post(FEEDBACK,
        [good])[0] == limited_server.post(FEEDBACK, good)[0] == 400


@pytest.mark.parametrize("room", [0, 3])
def test_labels_of_which_only_the_first_found_room(tmp_path, monkeypatch, room):
    "What was done is said, and only that is called done."
    log, real, wrote = PredictionLogWriter(tmp_path, 0), os.write, []
    def write(fd, data):
        if len(wrote) == room: raise OSError(errno.ENOSPC, "No space left on device")
        wrote.append(data)
        return real(fd, data)
    monkeypatch.setattr("mlops_nb.prediction_log.writer.os.write", write)
    said = "The first 3 of 5 labels were taken" if room else "nothing was done"
    counter = Metrics(tmp_path, 0).feedback_labels("rows")
    with pytest.raises(LogWriteError, match=said):
        handlers._append_records(log, [label(f"r{i}", 1) for i in range(5)], counter)
    log.close()
    assert read_feedback(tmp_path).collect().height == room == counter.get()


def test_probes_metadata_and_pages(limited_server, predictor):
    assert limited_server.get("/health")[0] == limited_server.get("/v2/health/live")[0] == 200
    assert limited_server.get("/v2/health/ready")[2]["ready"] is True
    assert limited_server.get("/v2")[2]["extensions"] == ["binary_tensor_data", "model_repository", "statistics"]
    assert limited_server.get("/v2/models/rows")[2] == limited_server.get("/v2/models/rows/versions/champion")[2]
    assert limited_server.get("/v2/models/rows/versions/champion/ready")[2]["ready"] is True
    assert PREDICT in limited_server.get("/openapi.json")[2]["paths"]
    status, headers, page = limited_server.get("/docs")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"] and b"<script" not in page
    assert limited_server.metric("mlops_nb_requests_total", route="predict", status="200") > 0


def test_the_repository_is_a_view_on_the_release_plans(limited_server):
    torn = limited_server.root / "releases/torn.json"
    torn.write_text("{")
    try:
        def index(body=None): return limited_server.post("/v2/repository/index", body)[2]
        limited_server.until(lambda: len(index()) == 2, "a plan that cannot be read seen")
        assert [(m["name"], m["state"]) for m in index()] == [("rows", "READY"), ("torn", "UNAVAILABLE")]
        assert "torn.json" in index()[1]["reason"]
        assert index({"ready": True}) == index()[:1] and len(index({"ready": False})) == 2
        before = {p: p.read_bytes() for p in limited_server.root.glob("releases/**/*.json")}
        def ask(name, verb, body=None): return limited_server.post(f"/v2/repository/models/{name}/{verb}", body)[::2]
        status, found = ask("rows", "load")
        assert (status, found["load"], found["versions"]) == (200, True, [index()[0]["version"]])
        assert "release plan decides" in found["message"]
        status, found = ask("torn", "load", {})
        assert status == 400 and "torn.json" in found["error"]
        status, found = ask("rows", "unload")
        assert status == 400 and "release plan says so" in found["error"]
        assert ask("nothing", "load")[0] == 404
        assert ask("nothing", "unload")[1]["unload"] is True
        for body in ({"parameters": {"config": "{}"}}, {"parameters": 1}, {"ready": "yes"}, [], b"{"):
            assert ask("rows", "load", body)[0] == 400, body
        assert {p: p.read_bytes() for p in limited_server.root.glob("releases/**/*.json")} == before
        assert limited_server.post(PREDICT, serving.instances(1))[0] == 200
    finally: torn.unlink()


def test_a_load_follows_a_new_plan_at_once_and_an_unload_ends_nothing(limited_server):
    plan = json.loads((limited_server.root / "releases/rows.json").read_bytes())
    files = [limited_server.root / "releases" / name for name in ("more.json", "last_good/more.json")]
    def ask(verb): return limited_server.post(f"/v2/repository/models/more/{verb}", None)[0]
    try:
        files[0].write_text(json.dumps(plan | {"endpoint": "more"}))
        assert ask("load") == 200 and limited_server.get("/v2/models/more/ready")[0] == 200
        assert ask("unload") == 400 and limited_server.get("/v2/models/more/ready")[0] == 200
    finally:
        for f in files: f.unlink(missing_ok=True)
    limited_server.until(lambda: ask("unload") == 200, "ended with its plan")
    assert ask("load") == 404 and limited_server.get("/v1/models")[2] == {"models": ["rows"]}


def test_statistics_count_what_was_asked(limited_server):
    def stats(path="rows/stats"):
        [found] = limited_server.get(f"/v2/models/{path}")[2]["model_stats"]
        return found["inference_count"], found["execution_count"], *found["inference_stats"].values()
    rows, requests, success, fail = stats()
    for n in (1, 5): assert limited_server.post(PREDICT, serving.instances(n))[0] == 200
    assert limited_server.post(PREDICT, [{}])[0] == 400
    now = stats()
    assert now[:2] == (rows + 6, requests + 2) and now[3]["count"] == fail["count"] + 1
    assert now[2]["count"] == success["count"] + 2 and success["ns"] < now[2]["ns"] < 60e9 and fail["ns"] < now[3]["ns"]
    assert stats("rows/versions/champion/stats") == stats("stats") == now
    assert limited_server.get("/v2/models/rows/versions/99999999/stats")[0] == 404


def test_scores_that_were_computed_beforehand(bundle, tmp_path):
    root = serving.project(tmp_path, made=bundle)
    id = Predictor.open(bundle).id
    night = pl.DataFrame({"id": ["c1", "c2"], "score": [.25, .75], "decision": ["no", "yes"]})
    (root / "tables").mkdir()
    night.write_parquet(root / f"tables/{id}.parquet", metadata={"bundle": id})
    with serving.Server(root) as s:
        status, headers, found = s.post(PREDICT, {"instances": [{"id": "c2"}, {"id": "c1"}], "id": "mine"})
        assert status == 200, (found, s.output)
        assert found["id"] == headers["x-request-id"] == "mine"
        assert found["predictions"] == [{"score": .75, "decision": "yes"}, {"score": .25, "decision": "no"}]
        status, _, found = s.post(PREDICT, {"instances": [{"id": "c3"}]})
        assert status == 404 and "beforehand" in found["error"]
        assert s.post(PREDICT, {"instances": [{"id": "c2"}]}, {"x-request-id": "a b"})[0] == 400
        row = serving.instances(1)[0] | {"id": "c2"}
        fresh = s.post(PREDICT, [row])[2]["predictions"][0]["score"]
        assert fresh != .75 == s.post(PREDICT, [row], {"x-static": "prefer"})[2]["predictions"][0]["score"]
    assert len(serving.logged(root)) == 3  # a line for each request that was answered


def test_an_endpoint_that_is_taken_away(bundle, tmp_path):
    root = serving.project(tmp_path, made=bundle)
    with serving.Server(root) as s:
        assert s.get("/v2/health/ready")[0] == 200
        (root / "releases/rows.json").unlink() # the release record says the same
        assert s.get("/v2/health/ready")[0] == 200
        for record in root.glob("releases/*/rows.json"): record.unlink()
        s.until(lambda: s.get("/v2/health/ready")[0] == 503, "told that nothing is there", 10)
        assert s.post(PREDICT, serving.instances(1))[0] == 404 and s.get("/health")[0] == 200


def test_too_many_rows_of_a_binary_tensor_are_not_even_read(limited_server):
    head = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [201],
                                   "parameters": {"binary_data_size": 201 * 8}}]}).encode()
    # the values never come
    status, _, found = limited_server.post(INFER, head, {"inference-header-content-length": str(len(head))})
    assert status == 400 and "201 rows, and at most 200" in found["error"]
