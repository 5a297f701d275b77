"params.yaml and settings.ini: what is written can be read, and a mistake names file, section and key."
import json
import os

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.params import RENAMED, GbdtParams, Params, PrepareParams, SplitParams, TrainParams, read_params, write_params
from mlops_nb.config.settings import RENAMED as RENAMED_SETTINGS
from mlops_nb.config.settings import ScheduleSettings, Settings, available_cores, read_settings, thread_count, write_settings
from mlops_nb.core.errors import UserError


def structs(kind):
    "A struct and all that are in it."
    yield kind
    for f in msgspec.structs.fields(kind):
        if isinstance(f.type, type) and issubclass(f.type, msgspec.Struct): yield from structs(f.type)


# params

def test_the_defaults_round_trip_and_explain_themselves(tmp_path):
    path = write_params(Params(), tmp_path / "params.yaml")
    assert read_params(path) == Params()
    for line in path.read_text().splitlines():
        if not line.startswith("#") and not line.endswith(":"): assert "  # " in line, line
    before = path.read_bytes()
    assert write_params(Params(), path).read_bytes() == before


def test_every_key_of_every_section_has_a_description():
    for kind in structs(Params):
        for f in msgspec.structs.fields(kind):
            if isinstance(f.type, type): continue # a section
            assert any(m.description for m in f.type.__metadata__), f"{kind.__name__}.{f.name}"


@settings(deadline=None, max_examples=50)
@given(rate=st.floats(0, exclude_min=True, allow_infinity=False), half_life=st.none() | st.from_regex(r"[0-9]{1,4}[smhdw]", fullmatch=True),
       files=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3), init_model=st.none() | st.text(max_size=20))
def test_changed_params_round_trip(tmp_path_factory, rate, half_life, files, init_model):
    params = Params(train=TrainParams(sample_weight_half_life=half_life, init_model=init_model, gbdt=GbdtParams(learning_rate=rate)),
                    prepare=PrepareParams(split=SplitParams(method="files", test_files=files)))
    assert read_params(write_params(params, tmp_path_factory.mktemp("params") / "params.yaml")) == params


def test_the_library_behind_dvc_reads_the_same_file(tmp_path):
    from ruamel.yaml import YAML
    path = write_params(Params(), tmp_path / "params.yaml")
    assert YAML(typ="safe").load(path.read_text())["train"]["gbdt"]["learning_rate"] == 0.05
    yaml = YAML() # an edit that keeps comments, as `dvc exp run -S` makes it
    content = yaml.load(path.read_text())
    content["train"]["gbdt"]["learning_rate"] = 0.03
    with path.open("w") as f: yaml.dump(content, f)
    assert read_params(path).train.gbdt.learning_rate == 0.03 and "how far each tree moves" in path.read_text()


@pytest.mark.parametrize("text, says", [
    ("trian: {}", "there is no key 'trian'; did you mean 'train'?"),
    ("train: {gbdt: {num_leafs: 5}}", "section 'train.gbdt': there is no key 'num_leafs'; did you mean 'num_leaves'?"),
    ("train: {gbdt: {num_leaves: 1}}", "num_leaves is 1, but an integer >= 2 is expected"),
    ("train: {gbdt: {num_leaves: 31.5}}", "num_leaves is 31.5, but an integer"),
    ("train: {gbdt: {learning_rate: 0}}", "learning_rate is 0, but a number > 0.0 is expected"),
    ("train: {gbdt: {learning_rate: '0.05'}}", "learning_rate is '0.05', but a number is expected"),
    ("train: {gbdt: [31]}", "section 'train.gbdt' is \\[31\\], but a section with keys is expected"),
    ("train: {learners: []}", "learners is \\[\\], but"),
    ("train: {learners: [nett]}", "learners is \\['nett'\\], but one of gbdt, net is expected"),
    ("train: {gbdt: {objective: poison}}", "objective is 'poison', but one of squared, poisson is expected"),
    ("tune: {gbdt: {objective: []}}", "section 'tune.gbdt': objective is \\[\\], but"),
    ("tune: {gbdt: {objective: [squared, l1]}}", "objective is \\['squared', 'l1'\\], but one of squared, poisson is expected"),
    ("tune: {gbdt: {objective: squared}}", "objective is 'squared', but"),
    ("train: {sample_weight_half_life: half a year}", "sample_weight_half_life is 'half a year', but text"),
    ("prepare: {split: {method: column}}", "section 'prepare.split': method 'column' needs the name of a column"),
    ("prepare: {split: {method: files}}", "section 'prepare.split': method 'files' needs the names of files"),
    ("validate: {max_quarantined_share: 1.5}", "section 'validate': max_quarantined_share is 1.5, but a number <= 1.0"),
    ("validate: {max_quarantined_share: true}", "max_quarantined_share is True, but a number"),
    ("validate:\n\tmax_quarantined_share: 0.1", "params.yaml, line 2 is not YAML")])
def test_a_mistake_in_params_names_its_place(tmp_path, text, says):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as error: read_params(path)
    assert "params.yaml" in str(error.value) and "\n" not in str(error.value)


def test_missing_params_are_an_error_and_missing_keys_are_defaults(tmp_path):
    with pytest.raises(UserError, match="params.yaml does not exist"): read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: {seed: 7}\nevaluate:\n")
    assert read_params(tmp_path / "params.yaml") == Params(train=TrainParams(seed=7))


def keys(kind, at=()):
    "The dotted path of every section and key below a struct, also of those in lists."
    for f in msgspec.structs.fields(kind):
        yield ".".join((*at, f.name))
        for t in (f.type, *getattr(f.type, "__args__", ())):
            t = getattr(t, "__origin__", t)
            for inner in (t, *getattr(t, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, msgspec.Struct): yield from keys(inner, (*at, f.name))


def section(path, value=1):
    "The content of a file that holds `value` at a dotted path."
    for key in reversed(path.split(".")): value = {key: value}
    return value


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_an_old_key_of_params_says_what_it_is_called_now(tmp_path, old, new):
    content = section(old)
    if ".rules." in old: content["evaluate"]["policy"]["rules"] = [{"when": {}, "decision": "no"}, content["evaluate"]["policy"]["rules"]]
    (tmp_path / "params.yaml").write_text(json.dumps(content))
    with pytest.raises(UserError) as error: read_params(tmp_path / "params.yaml")
    assert str(error.value) == f"{tmp_path}/params.yaml: {old} is called {new} now; rename it."


def test_what_is_renamed_in_params_is_a_key_now_and_was_none_before():
    known = set(keys(Params))
    assert set(RENAMED.values()) <= known and not set(RENAMED) & known


# settings

def test_settings_round_trip_and_explain_themselves(tmp_path):
    path = write_settings(tmp_path)
    assert read_settings(tmp_path, {}) == Settings()
    assert "operational settings" in path.read_text().splitlines()[0] and "nbdev" in path.read_text().splitlines()[0]
    weekly = ScheduleSettings(notebook="a b.ipynb", cron="*/5 0 1 1 1-5", timezone="Europe/Vienna", missed="skip", timeout_seconds=60,
                              params={"Title": "100 % = all; # $x ${y}", "n": "3"})
    given = Settings(schedule={"weekly report": weekly})
    write_settings(tmp_path, given)
    assert read_settings(tmp_path, {}) == given


def test_every_setting_has_a_description():
    for kind in (*structs(Settings), ScheduleSettings):
        for f in msgspec.structs.fields(kind):
            if f.name in ("params", "schedule") or isinstance(f.type, type): continue
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
    ("[schedule.nightly]\ncron = 0 1 * * *", "section 'schedule.nightly': the key 'notebook' is missing"),
    (SCHEDULE + "when = now", "section 'schedule.nightly': there is no key 'when'"),
    (SCHEDULE + "params = x", "params is 'x'"),
    (SCHEDULE + "missed = ignore", "missed is 'ignore', but one of catch_up, skip is expected"),
    (SCHEDULE + "timezone = Mars/Olympus", "section 'schedule.nightly': there is no time zone 'Mars/Olympus'"),
    (SCHEDULE.replace("0 1 * * *", "every day"), "cron is 'every day', but five fields"),
    ("[control]\ndatabase = postgresql://u:secret@host/db", "holds a password; take it out and set MLOPS_NB_CONTROL_DATABASE"),
    ("[tracking]\nuri = https://:token@host", "holds a password"),
    (SCHEDULE + "param.source = postgresql://u:secret@host/db", "section 'schedule.nightly': param.source holds a password")])
def test_a_mistake_in_settings_names_its_place(tmp_path, text, says):
    (tmp_path / "settings.ini").write_text(text + "\n")
    with pytest.raises(UserError, match=says) as error: read_settings(tmp_path, {})
    assert "settings.ini" in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


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
    def spell(path): return "MLOPS_NB_" + of_weekly(path).partition(" = ")[0].replace(".", "_").replace(" ", "_").upper()
    (tmp_path / "settings.ini").write_text(WEEKLY)
    was, _, value = old.partition(" = ")
    now, _, other = new.partition(" = ")
    with pytest.raises(UserError) as error: read_settings(tmp_path, {spell(was): value or "1"})
    assert str(error.value) == (f"environment variable {spell(was)}{value and '=' + value} is called {spell(now)}{other and '=' + other} now; rename it.")


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
    found = read_settings(tmp_path, {"MLOPS_NB_RUN_THREADS": "3", "MLOPS_NB_CONTROL_DATABASE": "postgresql://u:secret@h/d",
                                     "MLOPS_NB_SCHEDULE_NIGHTLY_CRON": "0 2 * * *", "PATH": "/bin", "MLOPS_NB_HOME": "elsewhere"})
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


@pytest.mark.parametrize("cpu_max, cores", [("max 100000", None), ("50000 100000", 1), ("200000 100000", 2), ("10 100000", 1),
                                            ("nonsense", None)])
def test_cores_respect_the_control_group(tmp_path, monkeypatch, cpu_max, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert available_cores(tmp_path / "cpu.max") == (cores or 8)
    assert available_cores(tmp_path / "nothing") == 8
    assert thread_count(Settings()) >= 1
