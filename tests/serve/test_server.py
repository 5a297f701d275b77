"The server as a process: how it starts and stops, and what is left when it, or a part of it, is killed under load."
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import polars as pl
import pytest
from support import server as serving

from mlops_nb.bundle.store import store_bundle
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.release.release_plan import ReleasePlan, Variant, read_plan

MANY = bool(os.environ.get("MLOPS_NB_TEST_MANY")) # 100,000 requests instead of some thousands
PREDICT = "/v1/endpoints/rows:predict"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Two bundles of the same contract."
    return [serving.bundle(tmp_path_factory.mktemp("one"), n=500),
            serving.bundle(tmp_path_factory.mktemp("two"), n=600)]


@pytest.fixture
def project(two, tmp_path): return serving.project(tmp_path, made=two[0])


def cli(root, *words):
    return subprocess.run([sys.executable, "-c", "from mlops_nb.cli import main; main()", *words], cwd=root,
                          capture_output=True,
                          text=True, timeout=60)


def gone(pid):
    "A process that ended, though its parent may not have asked how."
    try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError): return True


def memory(pid): return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


# ---- starting


def test_it_says_where_it_is_and_is_small(project):
    with serving.Server(project) as s:
        assert f"Serving rows at http://127.0.0.1:{s.port}\n" in s.output
        assert s.post(PREDICT, serving.instances(3))[0] == 200
        assert max(map(memory, [s.process.pid, *s.workers])) <= 120
        assert s.stop() == 0 and s.output.count("\n") == 2 # where it is, and who answers


def test_one_bundle_without_a_plan(two, tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = alone\n")
    with serving.Server(tmp_path, "--bundle", two[0]) as s:
        assert s.post("/v1/endpoints/alone:predict", serving.instances(2))[0] == 200
        id = json.loads((two[0] / "manifest.json").read_text())["id"]
        assert s.get("/v2/models/alone")[2]["versions"] == [id[:12]]


def test_a_port_that_is_free_is_found_and_one_that_is_taken_is_not_shared(project):
    with serving.Server(project, port=0) as s:
        found = int(s.output.split("at http://127.0.0.1:")[1].split()[0])
        with serving.Server(project, ready=False, port=found) as other:
            assert other.process.wait(20) == 1
        assert f"127.0.0.1:{found} cannot be listened on" in other.output and other.output.count("\n") == 1


@pytest.mark.parametrize("environ, words", [
    (dict(HOST="0.0.0.0"), "auth = none"), (dict(HOST="0.0.0.0", AUTH="api_key"), "read on their way"),
    (dict(TLS_CERTIFICATE_FILE="a.pem"), "both, tls_certificate_file and"),
    (dict(MAX_IN_FLIGHT="0"), "MAX_IN_FLIGHT"),
    (dict(TLS_CERTIFICATE_FILE="a.pem", TLS_PRIVATE_KEY_FILE="b.pem"), "a.pem"),
    (dict(HOST="300.1.1.1"), "auth = none"),
    (dict(HOST="300.1.1.1", AUTH="api_key", BEHIND_PROXY="true"), "cannot be listened on")])
def test_what_cannot_start_says_why_in_a_sentence(project, environ, words):
    with serving.Server(project, ready=False, **{f"MLOPS_NB_SERVE_{k}": v for k, v in environ.items()}) as s:
        assert s.process.wait(30) == 1
    assert words in s.output and s.output.startswith("error: ") and s.output.count("\n") == 1, s.output


@pytest.mark.parametrize("folder, words", [("bundles", "holds no bundle"), ("releases", "is released here")])
def test_what_is_not_there_cannot_be_served(project, folder, words):
    shutil.rmtree(project / folder)
    with serving.Server(project, ready=False, MLOPS_NB_SERVE_WORKERS=2) as s: assert s.process.wait(30) == 1
    assert words in s.output and s.lines[-1].startswith("error: ") and "Traceback" not in s.output, s.output


def test_a_bundle_that_was_changed_is_not_served(project):
    model = next((project / "bundles").glob("*/model.txt"))
    model.write_text(model.read_text().replace("leaf_value=", "leaf_value= ", 1))
    with serving.Server(project, ready=False) as s: assert s.process.wait(30) == 1
    assert "model.txt was changed after the bundle was made" in s.output


def test_tls(project):
    if not shutil.which("openssl"): pytest.skip("openssl is not installed")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out",
                    "cert.pem",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
                   cwd=project, check=True, capture_output=True, timeout=60)
    with serving.Server(project, MLOPS_NB_SERVE_TLS_CERTIFICATE_FILE="cert.pem",
                        MLOPS_NB_SERVE_TLS_PRIVATE_KEY_FILE="key.pem") as s:
        assert f"Serving rows at https://127.0.0.1:{s.port}\n" in s.output
        trusting = ssl.create_default_context(cafile=str(project / "cert.pem"))
        with urllib.request.urlopen(f"https://127.0.0.1:{s.port}/health", context=trusting, timeout=10) as r:
            assert r.status == 200
        with pytest.raises(OSError): urllib.request.urlopen(f"https://127.0.0.1:{s.port}/health", timeout=10)
    (project / "key.pem").write_text("no key")
    with serving.Server(project, ready=False, MLOPS_NB_SERVE_TLS_CERTIFICATE_FILE="cert.pem",
                        MLOPS_NB_SERVE_TLS_PRIVATE_KEY_FILE="key.pem") as s:
        assert s.process.wait(20) == 1
    assert "must be PEM files and belong together" in s.output


# ---- stopping


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_every_request_that_was_taken_on_is_answered_before_the_end(project, how):
    with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2) as s:
        body = json.dumps(serving.instances(1)).encode()
        half = socket.create_connection(("127.0.0.1", s.port), timeout=20)
        head = (f"POST {PREDICT} HTTP/1.1\r\nhost: localhost\r\nx-request-id: half\r\n"
                f"content-length: {len(body)}\r\n\r\n").encode()
        half.sendall(head + body[:9])
        with serving.load(s, rows=serving.instances(150)) as clients:
            s.until(lambda: all(len(c.answered) > 5 for c in clients), "answered")
            s.process.send_signal(how)
            time.sleep(.3)
            half.sendall(body[9:])
            assert serving.receive(half)[0] == 200
            half.close()
            assert s.process.wait(20) == 0
        assert not [r for c in clients for r in c.refused]
        answered = [a[0] for c in clients for a in c.answered]
        assert sorted([*answered, "half"]) == sorted(serving.logged(project))
    assert "Traceback" not in s.output


def test_a_stopping_server_says_so_and_answers_on(project):
    "The readiness of all workers says no, answers close their connections, and a second signal ends the wait."
    with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2, MLOPS_NB_SERVE_DRAIN_SECONDS=600) as s:
        ready = "/v2/health/ready", f"/v2/models/{serving.ENDPOINT}/ready"
        kept = s.connect()
        assert "connection" not in s.post(PREDICT, serving.instances(1), {}, kept)[1]
        assert [s.get(path)[0] for path in ready] == [200, 200]
        s.process.send_signal(signal.SIGTERM)
        s.until(lambda: {s.get(path)[0] for path in ready for _ in range(8)} == {503}, "not ready")
        status, headers, _ = s.post(PREDICT, serving.instances(1), {}, kept)
        assert (status, headers["connection"], s.get("/health")[0]) == (200, "close", 200)
        assert s.post(PREDICT, serving.instances(1))[0] == 200 # on a new connection
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(20) == 0
    assert "Traceback" not in s.output


def test_a_client_that_never_finishes_holds_the_end_up_no_longer_than_grace(project):
    with (serving.Server(project, MLOPS_NB_SERVE_SHUTDOWN_TIMEOUT_SECONDS=1,
                         MLOPS_NB_SERVE_READ_TIMEOUT_SECONDS=60) as s,
          socket.create_connection(("127.0.0.1", s.port)) as slow):
        slow.sendall(b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{" % PREDICT.encode())
        time.sleep(.2)
        assert s.stop(wait=15) == 0


def test_workers_do_not_outlive_the_first_process(project):
    with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2) as s:
        workers = s.workers
        os.kill(s.process.pid, signal.SIGKILL)
        s.process.wait(10)
        end = time.monotonic() + 15
        while not all(map(gone, workers)) and time.monotonic() < end: time.sleep(.05)
        assert all(map(gone, workers))
    with serving.Server(project, port=s.port): pass # the port is free again


def test_processes_are_started_anew_one_after_the_other(project):
    with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2) as s, serving.load(s, 2) as clients:
        old = set(s.workers)
        s.process.send_signal(signal.SIGHUP)
        s.until(lambda: len(s.workers) == 2 and not old & set(s.workers), "started anew", 60)
        n = sum(len(c.answered) for c in clients)
        s.until(lambda: sum(len(c.answered) for c in clients) > n + 50, "answering")
    assert not [r for c in clients for r in c.refused] and "Traceback" not in s.output


# ---- kills


def kill(process):
    with contextlib.suppress(ProcessLookupError): os.kill(process, signal.SIGKILL)


def test_twenty_kills_and_no_answer_is_missing_from_the_log(project):
    "Fifteen workers and five whole servers are killed while four clients ask; what was answered is in the log, once."
    answered, kills = [], 0
    for _ in range(5):
        with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2,
                            port=serving.free_port()) as s, serving.load(s) as clients:
            for _ in range(3):
                n = sum(len(c.answered) for c in clients)
                s.until(lambda n=n: sum(len(c.answered) for c in clients) > n + 50 and len(s.workers) == 2, "answering")
                kill(s.workers[kills % 2])
                kills += 1
            n = sum(len(c.answered) for c in clients)
            s.until(lambda n=n: sum(len(c.answered) for c in clients) > n + 50, "answering")
            os.killpg(s.process.pid, signal.SIGKILL)
            kills += 1
            s.process.wait(10)
        answered += [a[0] for c in clients for a in c.answered]
        assert not [r for c in clients for r in c.refused], clients[0].refused[:1]
    logged = serving.logged(project)
    assert kills == 20 and len(answered) > 1000
    assert not set(answered) - set(logged), "answered and not in the log"
    assert len(logged) == len(set(logged)), "in the log twice"
    done = cli(project, "log", "audit")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_worker_that_is_killed_again_and_again_is_started_again_and_again(project):
    with serving.Server(project) as s:
        for _ in range(4):
            s.until(lambda: len(s.workers) == 1 and not gone(s.workers[0]), "a worker")
            kill(s.workers[0])
        s.until(lambda: answers(s), "answering again", 30)
        assert s.process.poll() is None


def answers(s):
    try: return s.post(PREDICT, serving.instances(1))[0] == 200
    except OSError: return False


# ---- swaps


def store(root, bundles): return [store_bundle(b, root / "bundles").name for b in bundles]


def test_swaps_under_load_cost_no_request(two, project):
    "Plan after plan, each with a new variant: every request is answered, by a variant that was live meanwhile."
    swaps, ids = (50, store(project, two)) if MANY else (12, store(project, two))
    plan, written = project / "releases/rows.json", [("champion", 0.0, ids[0])]
    with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2) as s, serving.load(s, 6 if MANY else 3) as clients:
        for k in range(swaps):
            before = sum(len(c.answered) for c in clients)
            written.append((f"r{k}", time.time(), ids[(k + 1) % 2]))
            write_json(plan, ReleasePlan("rows", k + 2, [Variant(f"r{k}", ids[(k + 1) % 2])]))
            s.until(lambda k=k: all(c.answered and b'"r%d"' % k in c.answered[-1][3] for c in clients),
                    f"swapped to r{k}")
            if MANY:
                s.until(lambda n=before: sum(len(c.answered) for c in clients) > n + 2000, "2,000 more requests", 120)
    answered = [a for c in clients for a in c.answered]
    assert not sum(c.broken for c in clients) and not [r for c in clients for r in c.refused], clients[0].refused[:2]
    assert len(answered) > (100_000 if MANY else 500)
    bundle = {name: b for name, _, b in written}
    ends = {name: following[1] for (name, _, _), following in zip(written, [*written[1:], ("", time.time(), "")],
                                                                  strict=True)}
    starts = {name: at for name, at, _ in written}
    for _, sent, received, body in answered:
        found = json.loads(body)
        assert found["bundle"] == bundle[found["variant"]] and received >= starts[found["variant"]]
        assert sent < ends[found["variant"]] + 10, "long after it was replaced"
    assert {a[0] for a in answered} <= set(serving.logged(project))


def swaps(s, result): return s.metric("mlops_nb_plan_reloads_total", endpoint="rows", result=result)


def test_a_damaged_bundle_is_not_swapped_in_and_told(two, project):
    ids, plan = store(project, two), project / "releases/rows.json"
    with serving.Server(project) as s:
        (project / "bundles" / ids[1] / "card.md").write_text("another card")
        write_json(plan, ReleasePlan("rows", 2, [Variant("new", ids[1])]))
        s.until(lambda: "was refused" in s.output, "told in the log")
        for _ in range(20): assert s.post(PREDICT, serving.instances(1))[2]["bundle"] == ids[0]
        assert swaps(s, "rejected") >= 1
        shutil.rmtree(project / "bundles" / ids[1])
        store(project, two)
        s.until(lambda: s.post(PREDICT, serving.instances(1))[2]["bundle"] == ids[1],
                "swapped when the bundle was good again")
        assert "Traceback" not in s.output


def test_a_torn_plan_stops_no_server_and_the_command_it_names_mends_it(two, project):
    "It tears under a server, and another starts while it is torn; that one follows the plan which the command writes."
    ids, plan = store(project, two), project / "releases/rows.json"
    variants = [Variant("old", ids[0], .5), Variant("new", ids[1], .5)]
    write_json(plan, ReleasePlan("rows", 2, variants))
    with serving.Server(project) as s:
        plan.write_text(plan.read_text()[:40])
        s.until(lambda: "was refused" in s.output, "told in the log")
        assert s.post(PREDICT, serving.instances(1))[0] == 200 and s.stop() == 0
    with serving.Server(project) as s:
        s.until(lambda: "was refused" in s.output, "told in the log")
        assert "the last good one, revision 2, answers" in s.output and s.get("/v2/health/ready")[0] == 200
        assert {s.post(PREDICT, serving.instances(1))[2]["bundle"] for _ in range(64)} == {*ids}
        command = s.output.split("`mlops-nb ")[1].split("`")[0]
        assert (done := cli(project, *command.split())).returncode == 0, done.stderr
        s.until(lambda: "is in force now" in s.output, "followed")
        assert read_plan(plan) == ReleasePlan("rows", 3, variants) and "Traceback" not in s.output


# ---- a disk that is full


# no file grows beyond it: the log meets it first
SMALL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))"


@pytest.mark.parametrize("policy", ["refuse", "serve"])
def test_a_log_that_cannot_be_written(project, policy):
    rows = serving.instances(400)
    with serving.Server(project, first=SMALL, MLOPS_NB_LOG_ON_WRITE_ERROR=policy) as s:
        got = [s.post(PREDICT, rows, {"x-request-id": f"r{i}"}) for i in range(280)]
        statuses = [g[0] for g in got]
        answered = {f"r{i}" for i, status in enumerate(statuses) if status == 200}
        if policy == "refuse":
            assert set(statuses) == {200, 503} and answered == set(serving.logged(project))
            refused = got[statuses.index(503)]
            assert "retry-after" in refused[1] and "log" in refused[2]["error"] and str(project) not in str(refused[2])
            assert s.metric("mlops_nb_rejected_requests_total", reason="log") == statuses.count(503)
            assert s.get("/v2/health/ready")[0] == 503
        else:
            lost = answered - set(serving.logged(project))
            assert set(statuses) == {200} and lost and s.metric("mlops_nb_unlogged_rows_total") == 400 * len(lost)
        assert "prediction log cannot be written" in s.output and "Traceback" not in s.output
        assert s.get("/health")[0] == 200
    assert cli(project, "log", "audit").returncode == 0


# ---- a log that is removed


def test_a_log_that_is_removed_under_the_server(project):
    "It is begun anew, with the metrics as they were; where it cannot be, nothing is answered until it can. Said once."
    log = project / "predictions"
    with serving.Server(project) as s:
        def ask(id): return s.post(PREDICT, serving.instances(1), {"x-request-id": id})[0]
        def figures(): return s.metric("mlops_nb_answered_rows_total"), s.metric("mlops_nb_scored_rows_total")
        assert ask("lost") == 200
        log.rename(project / "gone")
        s.until(lambda: "were made again" in s.output, "noticed")
        assert "was removed while it was written" in s.output
        assert figures() == (1, 1) and s.get("/v2/health/ready")[0] == 200
        assert ask("kept") == 200 and serving.logged(project) == ["kept"]
        put_a_file_in_the_place_of(log)
        s.until(lambda: s.get("/v2/health/ready")[0] == 503 and "cannot be made again" in s.output, "noticed")
        assert ask("refused") == 503 and figures() == (2, 2)
        log.unlink()
        s.until(lambda: s.get("/v2/health/ready")[0] == 200, "going on")
        assert ask("again") == 200 and figures() == (3, 3) and serving.logged(project) == ["again"]
        for once in ("cannot be written", "can be written again", "cannot be made again"):
            assert s.output.count(once) == 1, s.output
    assert "Traceback" not in s.output
    done = cli(project, "log", "audit")
    assert done.returncode == 1 and "counted 3 rows as answered, but 1 are on record" in done.stderr + done.stdout


def put_a_file_in_the_place_of(folder):
    for i in range(1000):
        folder.rename(folder.with_name(f"gone{i}"))
        try: return folder.touch(exist_ok=False)
        except FileExistsError: pass # the server was faster
    raise AssertionError("never")


# ---- ids and labels


def test_ids_that_come_twice_and_labels_of_any_id(project):
    "Whichever of two processes has answered and whichever is told the truth."
    with serving.Server(project, MLOPS_NB_SERVE_WORKERS=2) as s:
        def ask(id, **row): return s.post(PREDICT, serving.instances(1, **row), {"x-request-id": id})[0]
        def repeats(): return s.metric("mlops_nb_repeated_requests_total", endpoint="rows")
        def tell(*ids):
            return s.post(serving.FEEDBACK, {"labels": [{"id": id, "label": "yes", "row": row} for id, row in ids]})[2]
        assert ask("r0") == ask("r0") == ask("r0", seed=6) == 200 # the last is another request
        for i in range(1, 20): assert ask(f"r{i}") == ask(f"r{i}") == 200 # each on a connection of its own
        s.until(lambda: repeats() == 21, "counted") # a moment after the answer
        for i in range(20): assert tell((f"r{i}", 0)).items() >= {"taken": 1, "unknown": 0}.items()
        assert tell(("r0", 0), ("r0", 1), ("r00", 0)).items() >= {"accepted": 3, "taken": 1, "unknown": 2}.items()
        assert s.metric("mlops_nb_unknown_labels_total", endpoint="rows") == 2
        done = cli(project, "log", "audit")
    assert done.returncode == 0, done.stderr
    for said in ("2 labels name an id or a row that no answer on record has", "'r00' row 0 of rows",
                 "19 ids were answered more than once with the same inputs",
                 "1 ids were given to requests with other inputs, so their labels are joined to none of the answers: "
                 "'r0' of rows."):
        assert said in done.stdout, done.stdout
    log = read_log(project / "predictions").collect()
    assert log.filter(pl.col("id") == "r0")["label"].to_list() == [None] * 3
    assert log.filter(pl.col("id") != "r0")["label"].to_list() == ["yes"] * 38
