"Delivery to real servers on the loopback that hang, refuse, drip and redirect; nothing waits for it, nothing is lost."
import email
import email.policy
import errno
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from support.receivers import mail_server, webhook

import mlops_nb.monitor.notify as notify
from mlops_nb.config.settings import AlertRouteSettings
from mlops_nb.monitor.alert_messages import Message
from mlops_nb.monitor.alert_updates import update_alerts
from mlops_nb.monitor.findings import Finding
from mlops_nb.monitor.notify import DeliveryError, deliver, deliver_all

NINE = datetime(2026, 11, 3, 9, tzinfo=UTC)
PAGE = Message(key="0a1b2c", severity="page", subject="[PAGE] Umsätze: no answers", at=NINE.isoformat(),
               text="Grüße\n.\nfrom <here> & there\n")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch): monkeypatch.setattr(notify, "_PAUSE_SECONDS", .01)


def smtp(server, **more):
    return AlertRouteSettings(kind="smtp", port=server.server_address[1], tls="none", sender="alerts@example.com",
                              to="ana@example.com, bo@example.com", **more)


def hook(url, kind="webhook", **more): return AlertRouteSettings(kind=kind, url=url, **more)


def failure(route, message=PAGE, root="."):
    with pytest.raises(DeliveryError) as e: deliver(route, message, root)
    assert "s3cret" not in str(e.value) and "127.0.0.1" not in str(e.value)
    return str(e.value)


def test_a_mail_has_an_id_made_of_the_key_and_its_text_is_whole():
    with mail_server() as server:
        deliver(smtp(server), PAGE)
        [text] = server.mails
    mail = email.message_from_bytes(text, policy=email.policy.default)
    assert mail["Subject"] == PAGE.subject and mail["Message-ID"] == "<0a1b2c@mlops-nb>" and mail["X-Priority"] == "1"
    assert mail["To"] == "ana@example.com, bo@example.com" and mail["Auto-Submitted"] == "auto-generated"
    assert "from <here> & there" in mail.get_content() and "Grüße" in mail.get_content()


def test_a_name_from_the_data_makes_no_header():
    with mail_server() as server:
        deliver(smtp(server), Message(key="1", severity="ticket", subject="x\r\nBcc: eve@example.com", text="y", at=""))
        assert b"\nBcc" not in server.mails[0]


def test_a_mail_that_was_taken_is_not_sent_again_when_the_server_then_fails():
    with mail_server(QUIT="421 gone") as server:
        deliver(smtp(server), PAGE)
        assert len(server.mails) == 1


@pytest.mark.parametrize("answers, says, tries", [
    (dict(RCPT="550 unknown"), "refused the recipients (550)", 1),
    (dict(RCPT="451 later"), "refused the recipients (451)", 3),
    (dict(DATA="452 full"), "answered 452", 3), (dict(DATA="554 spam"), "answered 554", 1)])
def test_a_mail_server_that_refuses(answers, says, tries, monkeypatch):
    asked = []
    real = notify._mail
    monkeypatch.setattr(notify, "_mail", lambda *a: asked.append(1) or real(*a))
    with mail_server(**answers) as server: assert says in failure(smtp(server))
    assert len(asked) == tries


def test_a_mail_server_without_tls_gets_no_mail():
    with mail_server() as server: failure(smtp(server).__class__(
        kind="smtp", port=server.server_address[1], tls="starttls", sender="a@b.c", to="d@e.f"))
    assert not server.mails


def test_what_hangs_delays_no_other_route_and_ends():
    with mail_server(hangs=True) as slow, webhook(204) as good, webhook("drips") as drips:
        routes = dict(mail=smtp(slow, timeout_seconds=.3), hook=hook(good.url), drips=hook(drips.url))
        start = time.monotonic()
        said = deliver_all([(n, r, PAGE) for n, r in routes.items()], deadline_seconds=1.5)
        assert time.monotonic() - start < 10
    assert said[1:] == ["", "it took too long"] and said[0] and len(good.bodies) == 1


@pytest.mark.parametrize("codes, tries, taken", [((500, 503, 204), 3, True), ((500,), 3, False), ((404,), 1, False),
                                                 ((429, 200), 2, True)])
def test_a_webhook_that_answers_with_an_error(codes, tries, taken):
    with webhook(*codes) as server:
        if taken: deliver(hook(server.url), PAGE)
        else: assert failure(hook(server.url)) == f"it answered {codes[-1]}"
        assert len(server.bodies) == tries
    assert {json.loads(b)["key"] for b in server.bodies} == {PAGE.key}


def test_a_redirect_is_not_followed():
    with webhook(204) as other, webhook(307, redirect=other.url) as server:
        assert failure(hook(server.url)) == "it answered 307" and not other.bodies


def test_a_chat_gets_text_with_its_three_characters_escaped():
    with webhook(200) as server: deliver(hook(server.url, "slack"), PAGE)
    text = json.loads(server.bodies[0])["text"]
    assert text.startswith("*[PAGE] Umsätze") and "from &lt;here&gt; &amp; there" in text


def test_an_address_that_is_none_and_a_server_that_is_gone():
    for url in ("", "file:///etc/passwd", "ftp://x/y"): assert "url is missing or begins neither" in failure(hook(url))
    with webhook(204) as server: url = server.url
    assert "no connection" in failure(hook(url))


def test_a_file_on_a_full_disk_or_under_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    assert "file/alerts" in failure(AlertRouteSettings(kind="file", path="file/alerts.jsonl"), root=tmp_path)
    def full(_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(notify.os, "fsync", full)
    assert failure(AlertRouteSettings(kind="file", path="a.jsonl"), root=tmp_path) == "a.jsonl: No space left on device"


def test_a_torn_line_of_the_file_stays_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key":"torn')
    for _ in range(2): deliver(AlertRouteSettings(kind="file", path="a.jsonl"), PAGE, tmp_path)
    torn, whole = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(whole)["key"] == PAGE.key and torn == '{"key":"torn'


def test_what_failed_is_due_again_and_told_once_it_works(tmp_path, monkeypatch, capsys):
    "A webhook that is down for a while: each run tries, the ledger has one failure an hour, and then it is told."
    (tmp_path / "settings.ini").write_text("[alert.team]\nkind = webhook\n")
    found = Finding(rule="heartbeat", subject="churn", severity="page", started_at=NINE, summary="No answer.")
    with webhook(500, 500, 500, 500, 500, 500, 204) as server:
        monkeypatch.setenv("MLOPS_NB_ALERT_TEAM_URL", server.url)
        for n in range(4): update_alerts(tmp_path, [found], NINE + timedelta(minutes=n))
        assert len(server.bodies) == 7 and "route team: it answered 500" in capsys.readouterr().err
    from mlops_nb.ledger.ledger import open_ledger
    said = [e.data["ok"] for e in open_ledger(tmp_path).entries(kinds=("alert.notified",))]
    assert said == [False, True]


def test_an_alert_leaves_within_30_seconds_while_a_mail_server_hangs(tmp_path, monkeypatch):
    with mail_server(hangs=True) as slow, webhook(204) as good:
        (tmp_path / "settings.ini").write_text(
            f"[alert.mail]\nkind = smtp\nport = {slow.server_address[1]}\ntls = none\nsender = a@b.c\nto = d@e.f\n"
            "timeout_seconds = 0.5\n[alert.team]\nkind = webhook\n")
        monkeypatch.setenv("MLOPS_NB_ALERT_TEAM_URL", good.url)
        start = time.monotonic()
        found = Finding(rule="drift", subject="plan", started_at=NINE, severity="page", summary="plan moved.")
        update_alerts(tmp_path, [found], NINE)
        assert time.monotonic() - start < 30 and len(good.bodies) == 1
