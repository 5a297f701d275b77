"settings.ini and the environment: what is written can be read, and a mistake names its place."
import os

import msgspec
import pytest
from support.structs import keys, structs

from mlops_nb.config.settings import (
    RENAMED_SETTINGS,
    AlertRouteSettings,
    ScheduleSettings,
    Settings,
    SourceSettings,
    available_cores,
    environment_settings,
    read_settings,
    thread_count,
    write_settings,
)
from mlops_nb.core.errors import UserError
from mlops_nb.release.release_plan import plan_path, store_path


def test_settings_round_trip_and_explain_themselves(tmp_path):
    path = write_settings(tmp_path)
    assert read_settings(tmp_path, {}) == Settings()
    assert "operational settings" in path.read_text().splitlines()[0] and "nbdev" in path.read_text().splitlines()[0]
    weekly = ScheduleSettings(notebook="a b.ipynb", cron="*/5 0 1 1 1-5", timezone="Europe/Vienna", missed="skip",
                              timeout_seconds=60,
                              params={"Title": "100 % = all; # $x ${y}", "n": "3"})
    given = Settings(schedule={"weekly report": weekly}, people={"owners": ["ana", "bo"], "on-duty": ["cai"]})
    given.production.approve = "start: 2 of owners; 25: 1 of on-duty"
    write_settings(tmp_path, given)
    assert read_settings(tmp_path, {}) == given


def test_every_setting_has_a_description():
    for kind in (*structs(Settings), ScheduleSettings, AlertRouteSettings, SourceSettings):
        for f in msgspec.structs.fields(kind):
            if f.name in ("params", "schedule", "alert", "source") or isinstance(f.type, type): continue
            assert any(m.description for m in f.type.__metadata__), f"{kind.__name__}.{f.name}"


def test_without_a_file_settings_are_the_defaults(tmp_path): assert read_settings(tmp_path, {}) == Settings()


SCHEDULE = "[schedule.nightly]\nnotebook = a.ipynb\ncron = 0 1 * * *\n"


@pytest.mark.parametrize("text, says", [
    ("[run]\nthread = 1", "section 'run': there is no key 'thread'; did you mean 'threads'?"),
    ("[run]\nthreads = many", "section 'run': threads is 'many', but an integer is expected"),
    ("[run]\nthreads = 1.5", "threads is '1.5', but an integer"),
    ("[run]\nthreads = -1", "threads is '-1', but an integer"),
    ("[report]\nmax_memory_mib = 64", "section 'report': max_memory_mib is '64'"),
    ("[rum]\nthreads = 1", "there is no section \\[rum\\]; did you mean 'run'?"),
    ("[DEFAULT]\nthreads = 1", "there is no section \\[DEFAULT\\]"),
    ("[schedule]\ncron = 0 1 * * *", "there is no section \\[schedule\\]"),
    ("[schedule.]\ncron = 0 1 * * *", "there is no section \\[schedule.\\]"),
    ("[run]\nthreads = 1\nthreads = 2", "is not an INI file: .*already exists"),
    ("[run]\n[run]", "is not an INI file: .*already exists"),
    ("threads = 1", "is not an INI file"),
    ("[run]\nthreads", "is not an INI file"),
    ("[schedule.nightly]\ncron = 0 1 * * *", "schedule.nightly.*notebook is missing"),
    (SCHEDULE + "when = now", "section 'schedule.nightly': there is no key 'when'"),
    (SCHEDULE + "params = x", "params is 'x'"),
    (SCHEDULE + "missed = ignore", "missed is 'ignore', but one of catch_up, skip is expected"),
    (SCHEDULE + "timezone = Mars/Olympus", "section 'schedule.nightly': there is no time zone 'Mars/Olympus'"),
    (SCHEDULE.replace("0 1 * * *", "every day"), "cron is 'every day', but five fields"),
    ("[control]\ndatabase = postgresql://u:secret@host/db",
     "holds a password; take it out and set MLOPS_NB_CONTROL_DATABASE"),
    ("[tracking]\nuri = https://:token@host", "holds a password"),
    (SCHEDULE + "param.source = postgresql://u:secret@host/db",
     "section 'schedule.nightly': param.source holds a password")])
def test_a_mistake_in_settings_names_its_place(tmp_path, text, says):
    (tmp_path / "settings.ini").write_text(text + "\n")
    with pytest.raises(UserError, match=says) as error: read_settings(tmp_path, {})
    assert "settings.ini" in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


PEOPLE = "[people]\nowners = ana, bo, ana\n"


@pytest.mark.parametrize("text, says", [
    ("[staging]\nstage = 1", "section 'staging': there is no key 'stage'; did you mean 'store'?"),
    ("[staging]\napprove = start", "section 'staging': 'start' is no rule of approve; write STEP: NUMBER of GROUP"),
    ("[production]\napprove = first: 1 of owners", "section 'production': 'first' is no step; write start, or percent"),
    ("[production]\napprove = 0: 1 of owners", "'0' is no step"), ("[production]\napprove = 101: 1 of owners", "'101'"),
    ("[production]\napprove = start: 1 of owner", "approve asks for the group 'owner', which \\[people\\] does not have"
                                                 "; did you mean 'owners'?"),
    ("[production]\napprove = start: 3 of owners", "approve asks for 3 of owners, which has 2; ask for fewer, or name"),
    ("[staging]\nplans = releases", "section 'staging': plans is releases, which is that of this checkout"),
    ("[production]\nstore = ./environments/staging/bundles", "store is .*, which is that of staging; give it one of"),
    ("[staging]\npredictions = predictions", "predictions is predictions, which is that of this checkout"),
    ("[production]\nbranch = main", "section 'production': branch is main, which is that of staging"),
    ("[release]\nstore = environments/staging/bundles", "section 'staging': store is .* of this checkout")])
def test_a_mistake_in_an_environment_is_a_sentence(tmp_path, text, says):
    (tmp_path / "settings.ini").write_text(f"{PEOPLE}{text}\n")
    with pytest.raises(UserError, match=says) as error: read_settings(tmp_path, {})
    assert "settings.ini" in str(error.value) and "\n" not in str(error.value)


def test_an_environment_has_a_plan_a_store_and_a_log_of_its_own(tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n[production]\nplans = /srv/plans\n")
    found = read_settings(tmp_path, {"MLOPS_NB_PRODUCTION_STORE": "/srv/bundles"})
    assert environment_settings(found, "") is environment_settings(found, "development") is found
    s, p = (environment_settings(found, name) for name in ("staging", "production"))
    assert plan_path(tmp_path, s) == tmp_path / "environments/staging/releases/churn.json"
    assert (str(plan_path(tmp_path, p)), str(store_path(tmp_path, p))) == ("/srv/plans/churn.json", "/srv/bundles")
    assert (s.release.environment, s.log.folder) == ("staging", "environments/staging/predictions")
    assert found.release.plans == "releases" and found.log.folder == "predictions" # a copy was changed
    with pytest.raises(UserError, match="There is no environment 'producton'; did you mean 'production'?"):
        environment_settings(found, "producton")


def test_a_checkout_may_be_that_of_an_environment(tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nenvironment = staging\n")
    assert environment_settings(read_settings(tmp_path, {}), "staging").release.plans == "releases"


def test_a_group_that_is_there_can_be_changed_by_a_variable(tmp_path):
    (tmp_path / "settings.ini").write_text(PEOPLE + "on-duty = cai\n")
    found = read_settings(tmp_path, {"MLOPS_NB_PEOPLE_ON_DUTY": "ana , dee"})
    assert found.people == {"owners": ["ana", "bo"], "on-duty": ["ana", "dee"]}
    with pytest.raises(UserError, match="MLOPS_NB_PEOPLE_OWNER: there is no such setting; did you mean"):
        read_settings(tmp_path, {"MLOPS_NB_PEOPLE_OWNER": "eve"})


def of_weekly(path): return path.replace("*", "weekly report")
WEEKLY = "[schedule.weekly report]\nnotebook = a.ipynb\ncron = 0 1 * * *\n"


@pytest.mark.parametrize("old, new", RENAMED_SETTINGS.items())
def test_an_old_setting_says_what_it_is_called_now(tmp_path, old, new):
    old, new, path = of_weekly(old), of_weekly(new), tmp_path / "settings.ini"
    (name, _, key), value = old.partition(" = ")[0].rpartition("."), old.partition(" = ")[2] or "1"
    path.write_text(f"{WEEKLY}{key} = {value}\n" if name.startswith("schedule.") else f"[{name}]\n{key} = {value}\n")
    with pytest.raises(UserError) as error: read_settings(tmp_path, {})
    assert str(error.value) == f"{path}: {old} is called {new} now; rename it."


@pytest.mark.parametrize("old, new", RENAMED_SETTINGS.items())
def test_an_old_variable_says_what_it_is_called_now(tmp_path, old, new):
    def spell(path): return "MLOPS_NB_" + of_weekly(path).partition(" = ")[0].replace(".", "_").replace(" ",
                                                                                                        "_").upper()
    (tmp_path / "settings.ini").write_text(WEEKLY)
    was, _, value = old.partition(" = ")
    now, _, other = new.partition(" = ")
    with pytest.raises(UserError) as error: read_settings(tmp_path, {spell(was): value or "1"})
    assert str(error.value) == (f"environment variable {spell(was)}{value and '=' + value} is called "
                                f"{spell(now)}{other and '=' + other} now; rename it.")


def test_what_is_renamed_in_settings_is_a_key_now_and_was_none_before():
    known = {*keys(Settings), *keys(ScheduleSettings, ("schedule", "*"))}
    assert {new.partition(" = ")[0] for new in RENAMED_SETTINGS.values()} <= known
    assert not set(RENAMED_SETTINGS) & known


def test_a_variable_and_a_key_with_the_new_names_are_read(tmp_path):
    (tmp_path / "settings.ini").write_text("[serve]\nauth = api_key\nmax_body_mib = 2\n")
    found = read_settings(tmp_path, {"MLOPS_NB_SERVE_MAX_BODY_MIB": "32", "MLOPS_NB_STREAM_DEAD_LETTER": "refused"})
    assert (found.serve.auth, found.serve.max_body_mib, found.stream.dead_letter) == ("api_key", 32, "refused")


def test_settings_that_are_no_text(tmp_path):
    (tmp_path / "settings.ini").write_bytes(b"[run]\nthreads = \xff\n")
    with pytest.raises(UserError, match="not UTF-8"): read_settings(tmp_path, {})


def test_the_environment_goes_first_and_may_hold_a_password(tmp_path):
    (tmp_path / "settings.ini").write_text("[run]\nthreads = 2\n" + SCHEDULE)
    found = read_settings(tmp_path, {"MLOPS_NB_RUN_THREADS": "3",
                                     "MLOPS_NB_CONTROL_DATABASE": "postgresql://u:secret@h/d",
                                     "MLOPS_NB_SCHEDULE_NIGHTLY_CRON": "0 2 * * *", "PATH": "/bin",
                                     "MLOPS_NB_HOME": "elsewhere"})
    assert (found.run.threads, found.schedule["nightly"].cron) == (3, "0 2 * * *")
    assert found.control.database == "postgresql://u:secret@h/d"


@pytest.mark.parametrize("variable, says", [("MLOPS_NB_RUN_THREAD", "did you mean 'MLOPS_NB_RUN_THREADS'"),
                                            ("MLOPS_NB_RUN_THREADS", "an integer"),
                                            ("MLOPS_NB_SCHEDULE_NOBODY_CRON", "there is no such setting")])
def test_a_mistake_in_the_environment_names_the_variable(tmp_path, variable, says):
    with pytest.raises(UserError, match=says) as error: read_settings(tmp_path, {variable: "x"})
    assert variable in str(error.value)


def test_the_real_environment_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_TRACKING_EXPERIMENT", "from-outside")
    assert read_settings(tmp_path).tracking.experiment == "from-outside"


@pytest.mark.parametrize("cpu_max, cores", [("max 100000", None), ("50000 100000", 1), ("200000 100000", 2),
                                            ("10 100000", 1),
                                            ("nonsense", None)])
def test_cores_respect_the_control_group(tmp_path, monkeypatch, cpu_max, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert available_cores(tmp_path / "cpu.max") == (cores or 8)
    assert available_cores(tmp_path / "nothing") == 8
    assert thread_count(Settings()) >= 1
