"The routes of releases over a real socket: seen with a key that reads, acted on with an operator's key, on record."
import http.client
import json

import pytest
from support import server as serving
from support.release_project import project

from mlops_nb.config.api_keys import create_api_key
from mlops_nb.config.settings import read_settings
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.release.releases import read_release, start_release
from mlops_nb.release.rollback import model_in_use


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A project with an open release, and a function that asks its server."
    root = tmp_path_factory.mktemp("releases") / "p"
    ids = project(root, settings="[serve]\nauth = api_key\n", strategy="canary", steps=[20, 100], min_units=10**6)
    path = root / read_settings(root).serve.api_keys_file
    keys = {scope: create_api_key(path, scope, [scope]) for scope in ("read", "operate")}
    release = start_release(root, ids["better"], by="carl")
    with serving.Server(root) as server:
        def ask(method, path, body=None, key="operate"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            headers = {"authorization": f"Bearer {keys[key]}", "content-type": "application/json"}
            connection.request(method, f"/v1/releases{path}", body and json.dumps(body), headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        yield root, ids, release, ask


def test_releases_are_seen_and_ended_over_http(served):
    root, ids, release, ask = served
    status, listed = ask("GET", "", key="read")
    assert status == 200 and release.id in json.dumps(listed)
    status, one = ask("GET", f"/{release.id}", key="read")
    assert status == 200 and ids["better"] in json.dumps(one)
    assert ask("POST", f"/{release.id}/rollback", {"reason": "drill"}, key="read")[0] == 403
    assert ask("POST", f"/{release.id}/approve", {"step": "20"})[0] == 409 # no rule asks for it
    status, said = ask("POST", f"/{release.id}/rollback", {"reason": "drill"})
    assert status == 200, said
    ended = read_release(root, release.id)
    assert (ended.status, ended.outcome) == ("rolled_back", "drill") and model_in_use(root).bundle == ids["champion"]
    assert [e.by for e in open_ledger(root).entries(release.id, ("release.rolled_back",))] == ["operate"]
    assert ask("POST", f"/{release.id}/rollback", {"reason": "again"})[0] == 409
    assert ask("POST", "/20990101/rollback", {"reason": "drill"})[0] == 404


def test_a_person_may_begin_the_next_step_before_its_time(served):
    root, ids, _, ask = served
    release = start_release(root, ids["better"], by="carl", again=True, reason="a second try")
    assert ask("POST", f"/{release.id}/promote", {"reason": "no requests on Sundays"})[0] == 200
    assert read_release(root, release.id).status == "promoted" and model_in_use(root).bundle == ids["better"]
    assert ask("POST", f"/{release.id}/rollback", {"reason": "late"})[0] == 409 # it is over: `mlops-nb rollback`
