"The operations page in a real browser: a person reads, presses and types, and the ledger tells what was done."
import signal

import pytest
from console.conftest import Console, alert, facts
from support.chromium import chromium
from support.controlled_project import until

from mlops_nb.ledger.runs import queue_run
from mlops_nb.monitor.alerts import AlertChanges, read_alerts, write_changes
from mlops_nb.release.releases import read_release
from mlops_nb.release.rollback import model_in_use


@pytest.fixture(scope="module")
def served(tmp_path_factory, template):
    with Console(tmp_path_factory.mktemp("page") / "project", template) as console: yield console


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as page: yield page


@pytest.fixture
def page(browser, served):
    browser.size(1200)
    browser.open(served.url)
    browser.until("document.getElementById('connection').textContent === 'Live'")
    yield browser
    assert browser.look("window.attacked") is None and browser.problems == []


def button(key): return f'[data-key="{key}"]'


def confirm(page, key_of_button="", **fields):
    "Press a button, fill in the dialog and confirm. Where a section was drawn anew in that moment, press again."
    def asks():
        page.click(key_of_button)
        return page.look("document.getElementById('ask').open")
    if key_of_button:
        page.until("!document.getElementById('ask').open") # the one before has its answer
        until(asks)
    page.until("document.getElementById('ask').open")
    for name, value in fields.items():
        page.click(f"#ask [name={name}]")
        page.type(value)
    page.click("#ask [data-key=confirm]")


def test_what_a_person_must_know_is_there(page, served):
    for text in ("2 alerts need somebody", "1 approval waits", "r01running is on the way"):
        assert text in page.look("document.getElementById('verdict').textContent")
    for id, text in (("live", "answers 95 %"), ("live", served.release.id), ("current", "new tariffs"),
                     ("triggers", "suppressed by running"), ("schedules", "compact"), ("approvals", "owners"),
                     ("runs", "r00failed"), ("slos", "No budget"), ("drift", "No window"),
                     ("costs", "no prices for 2 runs")):
        assert text in page.look(f"document.getElementById('{id}').textContent"), id
    assert page.look("document.querySelector('.graph svg').getAttribute('aria-label')") == (
        "Stages: validate done, train running, gate not reached")


def test_what_comes_from_the_ledger_is_text_and_never_html(page):
    assert "<script>window.attacked" in page.look("document.getElementById('alerts').textContent")
    assert page.look("document.querySelectorAll('main script, main img').length") == 0
    page.click(button("book A1"))
    page.until("document.getElementById('detail').textContent.includes('Look at the data first')")
    page.press("Escape")
    page.click(button("run r00failed"))
    page.until("document.getElementById('detail').textContent.includes('onerror=')")


def test_a_key_is_asked_for_once_and_what_is_done_has_a_name(page, served):
    confirm(page, button("ack A1"), key=served.keys["ana"])
    until(lambda: served.by("A1", "alert.acked") == ["ana"])
    page.until("document.getElementById('alerts').textContent.includes('ana has it')")
    assert page.look("document.getElementById('who').textContent") == "ana"
    page.click(button("pause trigger retrain"))
    page.until("document.getElementById('ask').open && !document.querySelector('#ask [name=key]')")
    confirm(page, reason="holidays")
    until(lambda: served.by("retrain", "trigger.paused") == ["ana"])
    page.until("document.getElementById('triggers').textContent.includes('holidays')")
    page.open(served.url) # the key is nowhere but in the page that is gone
    page.until("document.getElementById('key').textContent === 'Enter a key'")
    assert page.look("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_two_runs_are_compared_and_a_log_is_read(page, served):
    page.click(button("run r00failed"))
    page.until("document.getElementById('detail').open")
    page.look("(s => { s.value = 'r01running'; s.dispatchEvent(new Event('change')); })"
              "(document.querySelector('#detail [data-key=compare]'))")
    page.until("document.getElementById('detail').textContent.includes('What differs')")
    page.press("Escape")
    page.click(button("log r01running"))
    page.until("document.getElementById('detail').textContent.includes('step.ended train gbdt')")
    page.press("Escape")


def test_a_schedule_is_paused_and_goes_on(page, served):
    confirm(page, button("pause schedule daily"), reason="holidays", key=served.keys["ana"])
    until(lambda: served.by("daily", "schedule.paused") == ["ana"])
    page.until("document.getElementById('schedules').textContent.includes('paused')")
    confirm(page, button("resume schedule daily"))
    until(lambda: served.by("daily", "schedule.resumed") == ["ana"])


def test_a_key_that_does_not_fit_is_refused_in_the_dialog(page, served):
    confirm(page, button("hush A2"), key="0123.none", reason="known")
    page.until("document.querySelector('#ask .error').textContent.includes('needs a key')")
    page.press("Escape")
    confirm(page, button("hush A2"), key=served.keys["eve"], reason="known")
    page.until("""document.querySelector('#ask .error').textContent.includes("not for the scope 'operate'")""")
    assert served.by("A2", "alert.silenced") == []


def test_everything_is_done_by_keyboard_alone(page, served):
    "Tab to the button, Enter, type, Enter."
    for _ in range(60):
        page.press("Tab")
        if page.look("document.activeElement.dataset.key") == "hush A2": break
    assert page.look("document.activeElement.dataset.key") == "hush A2"
    assert page.look("getComputedStyle(document.activeElement).outlineStyle") == "solid" # one sees where one is
    page.press("Enter")
    page.until("document.getElementById('ask').open")
    for name, value in (("duration", ""), ("reason", "a new tariff"), ("key", served.keys["bo"])):
        page.until(f"document.activeElement.name === '{name}'")
        page.type(value)
        page.press("Tab")
    page.press("Tab") # from Cancel to the action
    page.press("Enter")
    until(lambda: served.by("A2", "alert.silenced") == ["bo"])
    page.until("!document.getElementById('ask').open")


def test_what_happens_appears_by_itself_and_leaves_the_focus(page, served):
    page.look("document.querySelector('[data-key=\"pause trigger yearly\"]').focus()")
    queue_run(served.ledger, "rlive", facts(reason="it appears"), by="ana")
    write_changes(served.ledger, read_alerts(served.ledger), AlertChanges(opened=[alert("visits")]),
                  read_alerts(served.ledger).alerts["A1"].opened_at)
    page.until("document.getElementById('runs').textContent.includes('it appears')")
    page.until("document.getElementById('alerts').textContent.includes('visits')")
    assert page.look("document.activeElement.dataset.key") == "pause trigger yearly"


@pytest.mark.parametrize("width, dark", [(390, False), (390, True), (768, False), (1200, True)])
def test_nothing_lies_beside_the_screen(page, width, dark):
    page.size(width, 844, dark)
    assert page.look("document.documentElement.scrollWidth <= innerWidth")
    least = 30 if width < 600 else 23
    small = page.look("[...document.querySelectorAll('main button, main select')].filter(b => b.getBoundingClientRect()"
                      f".height && b.getBoundingClientRect().height < {least}).map(b => b.innerText)")
    assert small == []
    page.size(1200)


def test_it_is_readable_without_colour(page):
    "Each state has a sign and a word."
    states = page.look("[...document.querySelectorAll('.state')].map(s => s.textContent.trim())")
    assert states and all(len(s) > 1 for s in states)


def test_a_release_is_approved_promoted_and_rolled_back(page, served):
    confirm(page, button(f"approve {served.release.id} 25"), key=served.keys["bo"])
    until(lambda: served.by(served.release.id, "approval.given") == ["bo"])
    page.until("document.getElementById('approvals').textContent.includes('Nothing waits')")
    confirm(page, button(f"promote {served.release.id}"), reason="no requests on Sundays")
    until(lambda: read_release(served.root, served.release.id).step == 1)
    page.until("document.querySelector('#live li.now').textContent.includes('25 %')")
    confirm(page, button(f"back {served.release.id}"), reason="drill")
    until(lambda: read_release(served.root, served.release.id).status == "rolled_back")
    assert model_in_use(served.root).bundle == served.ids["champion"]
    page.until("document.getElementById('live').textContent.includes('answers 100 %')")


def test_a_run_is_asked_for_and_cancelled(page, served):
    confirm(page, "#run-now", reason="from the page", key=served.keys["ana"])
    page.until("document.getElementById('runs').textContent.includes('from the page')")
    asked = [e for e in served.ledger.entries(kinds=("run.queued",)) if e.data["reason"] == "from the page"]
    assert [e.by for e in asked] == ["ana"]
    confirm(page, button("cancel r01running"), reason="wrong data")
    until(lambda: served.by("r01running", "run.cancelling") == ["ana"])


def test_a_lost_connection_is_said_and_comes_back(page, served):
    served.process.send_signal(signal.SIGSTOP)
    page.look("Date.now = (now => () => now() + 20000)(Date.now)") # as if 20 seconds had gone by
    page.until("document.getElementById('connection').textContent.startsWith('Stale')")
    assert page.look("document.getElementById('stale').hidden") is False
    queue_run(served.ledger, "rback", facts(reason="meanwhile"), by="ana")
    served.process.send_signal(signal.SIGCONT)
    page.until("document.getElementById('connection').textContent === 'Live'")
    page.until("document.getElementById('runs').textContent.includes('meanwhile')")


def test_ten_thousand_runs_are_turned_page_by_page(page, served):
    from sqlalchemy import create_engine, text
    entries = (("run.queued", "queued", '{"trigger": "many", "reason": "one of many", "commit": "", "data": "", '
                                        '"params": "", "status": "queued"}'),
               ("run.ended", "ended/1", '{"status": "succeeded", "message": "Released.", "attempt": 1}'))
    with create_engine(served.ledger.uri).begin() as connection:
        for kind, key, data in entries:
            connection.execute(text(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) INSERT INTO ledger "
                '(at, "by", kind, subject, key, data) SELECT :at, :by, :kind, :id || i, :run || i || :key, :data FROM n'
            ), dict(at="2026-01-01T00:00:00+00:00", by="ana", kind=kind, id="many", run="run/many", key=f"/{key}",
                    data=data))
    page.until("document.getElementById('runs').textContent.includes('many10000')")
    page.click(button("Older"))
    page.until("document.getElementById('runs').textContent.includes('many9980')")
    assert page.look("document.querySelectorAll('#runs tbody tr').length") == 20
    page.click(button("Newer"))
    page.until("document.getElementById('runs').textContent.includes('many10000')")
    page.look("(f => { f.value = 'failed'; f.dispatchEvent(new Event('change')); })(document.getElementById('filter'))")
    page.until("document.getElementById('runs').textContent.includes('r00failed')")
    assert page.look("document.querySelectorAll('#runs tbody tr').length") == 1
