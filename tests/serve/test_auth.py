"Who may ask: scopes, rates, and a file of keys that changes."
import json
import os
import stat
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.config.api_keys import SCOPES, create_api_key, describe_api_key, read_api_keys, revoke_api_key
from mlops_nb.config.settings import ServeSettings
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.serve.auth import Authenticator, TokenBucket, check_bind_address, key_use_path, read_key_use
from mlops_nb.serve.http_messages import HTTPException


@pytest.fixture
def path(tmp_path): return tmp_path / "deep" / "keys.json"


def denied(authenticator, authorization, *what):
    with pytest.raises(HTTPException) as e: authenticator.authorize(authorization, *what)
    return e.value


def test_a_key_opens_its_scopes_and_no_other(path):
    keys = {scope: create_api_key(path, scope, [scope]) for scope in SCOPES}
    authenticator = Authenticator(path)
    for mine, text in keys.items():
        for scope in SCOPES:
            if scope == mine: assert authenticator.authorize(f"Bearer {text}", scope) == mine
            else: assert denied(authenticator, f"Bearer {text}", scope).status_code == 403
        assert authenticator.authorize(None, "public") == ""


@pytest.mark.parametrize("made", [
    lambda k, other: None, lambda k, other: "", lambda k, other: "Bearer", lambda k, other: f"Basic {k}", lambda k,
    other: k,
    lambda k, other: f"Bearer {k}x", lambda k, other: f"Bearer {k[:-1]}", lambda k, other: f"Bearer {k.split('.')[0]}.",
    lambda k, other: f"Bearer {k.split('.')[0]}.{other.split('.')[1]}", lambda k, other: f"Bearer .{k.split('.')[1]}",
    lambda k, other: "Bearer \u00e4\u0661" * 50, lambda k, other: f"Bearer {k.upper()}", lambda k,
    other: f"Bearer {'0' * 64}"])
def test_everything_else_is_a_stranger(path, made):
    key, other = create_api_key(path, "a", ["read"]), create_api_key(path, "b", ["read"])
    error = denied(Authenticator(path), made(key, other), "read")
    assert (error.status_code, error.headers) == (401, {"www-authenticate": "Bearer"})
    assert key.split(".")[1] not in str(error)


def test_the_scheme_is_read_in_any_case_and_spaces_around_the_key_do_not_matter(path):
    key = create_api_key(path, "a", ["read"])
    assert Authenticator(path).authorize(f"bearer  {key} ", "read") == "a"


@given(st.floats(.01, 1000), st.lists(st.floats(0, 5), max_size=60))
def test_a_bucket_never_gives_more_than_its_rate_and_one_burst(rate, pauses):
    bucket = TokenBucket(rate)
    now, taken = bucket.updated_at, 0
    start = now
    for pause in pauses:
        now += pause
        wait = bucket.take(now)
        assert 0 <= wait <= 1 / rate * 1.001
        taken += wait == 0
    assert taken <= max(rate, 1) + rate * (now - start) + 1e-6


def test_a_rate_is_told_and_comes_back(path, monkeypatch):
    key, clock = create_api_key(path, "a", ["predict"], requests_per_second=2), [100.0]
    monkeypatch.setattr("mlops_nb.serve.auth.monotonic", lambda: clock[0])
    authenticator = Authenticator(path)
    assert [authenticator.authorize(f"Bearer {key}", "predict") for _ in range(2)] == ["a", "a"]
    error = denied(authenticator, f"Bearer {key}", "predict")
    assert error.status_code == 429 and int(error.headers["retry-after"]) >= 1 and "2 requests a second" in str(error)
    clock[0] += .5
    assert authenticator.authorize(f"Bearer {key}", "predict") == "a"
    # what is refused for its scope takes no token
    assert denied(authenticator, f"Bearer {key}", "read").status_code == 403


def test_a_key_ends(path):
    now = datetime.now(UTC)
    create_api_key(path, "old", ["read"], expires_at=now - timedelta(seconds=1))
    ended = create_api_key(path, "was", ["read"], expires_at=now - timedelta(days=1))
    good = create_api_key(path, "is", ["read"], expires_at=now + timedelta(days=1))
    authenticator = Authenticator(path)
    refused = denied(authenticator, f"Bearer {ended}", "read")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    assert "'was' expired" in refused.detail
    assert "expired" not in denied(authenticator, f"Bearer {ended}x", "read").detail # only its owner is told
    assert authenticator.authorize(f"Bearer {good}", "read") == "is"
    assert ("expired" in describe_api_key(read_api_keys(path)[0])
            and "expires" in describe_api_key(read_api_keys(path)[2]))


def test_a_change_is_noticed_and_what_is_left_of_a_burst_stays(path):
    authenticator = Authenticator(path)
    assert denied(authenticator, "Bearer a.b", "read").status_code == 401 and authenticator.reload_if_changed() is None
    one = create_api_key(path, "one", ["read"], requests_per_second=1)
    assert authenticator.reload_if_changed() is None and authenticator.authorize(f"Bearer {one}", "read") == "one"
    two = create_api_key(path, "two", ["read"])
    assert authenticator.reload_if_changed() is None and authenticator.authorize(f"Bearer {two}", "read") == "two"
    assert denied(authenticator, f"Bearer {one}", "read").status_code == 429
    revoke_api_key(path, "one")
    assert authenticator.reload_if_changed() is None and denied(authenticator, f"Bearer {one}",
                                                                "read").status_code == 401
    assert authenticator.authorize(f"Bearer {two}", "read") == "two"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"keys": [{"id": 1}]}', '{"keys": [], "more": 1}', "\xff"])
def test_a_damaged_file_is_said_once_and_closes_the_door_after_a_while(path, damage, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("mlops_nb.serve.auth.monotonic", lambda: clock[0])
    key = create_api_key(path, "a", ["read"])
    whole = path.read_bytes()
    authenticator = Authenticator(path)
    path.write_bytes(damage.encode("latin-1"))
    assert "stay as they were for 300 seconds" in authenticator.reload_if_changed()
    assert authenticator.reload_if_changed() is None
    assert authenticator.authorize(f"Bearer {key}", "read") == "a"
    with pytest.raises(UserError): create_api_key(path, "b", ["read"])
    with pytest.raises(UserError, match="cannot be read"): Authenticator(path) # nor does a server start
    clock[0] += 301
    assert "none is valid" in authenticator.reload_if_changed() and authenticator.reload_if_changed() is None
    assert denied(authenticator, f"Bearer {key}", "read").status_code == 401
    path.write_bytes(whole)
    assert authenticator.reload_if_changed() is None and authenticator.authorize(f"Bearer {key}", "read") == "a"
    path.unlink()
    assert authenticator.reload_if_changed() is None and denied(authenticator, f"Bearer {key}",
                                                                "read").status_code == 401


def test_a_file_that_cannot_be_opened_for_a_moment_is_read_again(path, monkeypatch):
    "The file is changed while it cannot be opened, and looks the same when it can be again."
    key = create_api_key(path, "a", ["read"])
    authenticator = Authenticator(path)
    revoke_api_key(path, "a")
    def refuse(path): raise PermissionError(13, "Permission denied", str(path))
    with monkeypatch.context() as m:
        m.setattr("mlops_nb.serve.auth.read_api_keys", refuse)
        assert "Permission denied" in authenticator.reload_if_changed()
        assert authenticator.authorize(f"Bearer {key}", "read") == "a"
    assert authenticator.reload_if_changed() is None
    assert denied(authenticator, f"Bearer {key}", "read").status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "", "127.0.0.1.example.org"])
def test_the_world_is_served_with_keys_and_tls_only(host):
    def check(**how): check_bind_address(ServeSettings(host=host, **how))
    tls = dict(tls_certificate_file="a.pem", tls_private_key_file="b.pem")
    for how in (tls, dict(behind_proxy=True)):
        check(auth="api_key", **how)
        with pytest.raises(UserError, match="mlops-nb key add"): check(**how)
    with pytest.raises(UserError, match="behind_proxy = true"): check(auth="api_key")


def test_a_key_is_for_its_endpoints(path):
    one = create_api_key(path, "one", ["predict", "read"], endpoints=["churn", "spend", "churn"])
    every = create_api_key(path, "every", ["predict", "read"])
    authenticator = Authenticator(path)
    assert [k.endpoints for k in read_api_keys(path)] == [["churn", "spend"], None]
    for endpoint in ("churn", "spend", "other", None):
        assert authenticator.authorize(f"Bearer {every}", "read", endpoint) == "every"
    for endpoint in ("churn", "spend"): assert authenticator.authorize(f"Bearer {one}", "predict", endpoint) == "one"
    for endpoint in ("chur", "churn2", "", "CHURN", "x" * 500): # a route of no single endpoint tells of others, too
        refused = denied(authenticator, f"Bearer {one}", "predict", endpoint)
        assert refused.status_code == 403 and len(refused.detail) < 200
    assert "all endpoints" in denied(authenticator, f"Bearer {one}", "read").detail


def test_the_last_use_is_the_latest_of_all_processes_and_only_of_keys_that_are(path, tmp_path, monkeypatch):
    clock = [1_900_000_000.0]
    monkeypatch.setattr("mlops_nb.serve.auth.time", lambda: clock[0])
    a, b, c = (create_api_key(path, name, ["read"]) for name in "abc")
    first, second = (Authenticator(path, key_use_path(tmp_path, i)) for i in range(2))

    def used(): return {k.name: t.timestamp() for k in read_api_keys(path)
                        for id, t in read_key_use(tmp_path).items() if id == k.id}
    assert used() == {} and not first.note_use()
    with pytest.raises(HTTPException): first.authorize(f"Bearer {c}x", "read") # nobody has used this one
    first.authorize(f"Bearer {a}", "read")
    with pytest.raises(HTTPException): first.authorize(f"Bearer {b}", "predict") # it was right, and not for this
    assert first.note_use() and not key_use_path(tmp_path, 0).exists()
    first.save_use()
    assert used() == {"a": 1_900_000_000, "b": 1_900_000_000}
    clock[0] += 100
    second.authorize(f"Bearer {a}", "read")
    second.note_use()
    second.save_use()
    assert used() == {"a": 1_900_000_100, "b": 1_900_000_000}
    first.authorize(f"Bearer {b}", "read")
    assert not first.note_use() # not yet: once a minute
    restarted = Authenticator(path, key_use_path(tmp_path, 1))
    revoke_api_key(path, "a")
    restarted.reload_if_changed()
    restarted.save_use()
    assert json.loads(key_use_path(tmp_path, 1).read_text()) == {}
    key_use_path(tmp_path, 0).write_text("torn{")
    assert read_key_use(tmp_path) == {}


def test_keys_on_the_command_line(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mlops_nb.cli import app
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("[serve]\napi_keys_file = secrets/who.json\n")
    def typed(*words):
        done = CliRunner().invoke(app, ["key", *words])
        return done.output if done.exception is None else str(done.exception)
    key = typed("add", "shop", "--scopes", "predict, read", "--rate-limit", "5", "--expires", "2099-01-31").strip()
    assert Authenticator(tmp_path / "secrets/who.json").authorize(f"Bearer {key}", "predict") == "shop"
    assert typed("list").startswith("shop: predict, read, 5 requests a second, expires 2099-02-01 00:00 UTC, "
                                    "no use on record (")
    typed("add", "partner", "--scopes", "predict", "--endpoint", "churn", "--endpoint", "spend")
    write_json(key_use_path("predictions", 0), {read_api_keys("secrets/who.json")[1].id: 1_900_000_000.0})
    assert "partner: predict at churn, spend, last used 2030-03-17 17:46 UTC (" in typed("list")
    assert typed("revoke", "partner") == ""
    assert "is not a day" in typed("add", "b", "--scopes", "read", "--expires", "never")
    assert typed("revoke", "shop") == "" and typed("list") == ""
    held = json.loads((tmp_path / "secrets/who.json").read_text())
    assert held == {"keys": []} and stat.S_IMODE(os.stat(tmp_path / "secrets/who.json").st_mode) == 0o600
