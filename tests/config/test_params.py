"params.yaml: what is written can be read, and a mistake names file, section and key."
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.structs import keys, structs

from mlops_nb.config.params import (
    RENAMED_PARAMS,
    GbdtParams,
    Params,
    PrepareParams,
    SplitParams,
    TrainParams,
    duration_seconds,
    own_learners,
    read_params,
    set_param,
    split_strategy,
    write_params,
)
from mlops_nb.core.errors import UserError


def test_the_defaults_round_trip_and_explain_themselves(tmp_path):
    path = write_params(Params(), tmp_path / "params.yaml")
    assert read_params(path) == Params()
    for line in path.read_text().splitlines():
        is_value = not line.startswith("#") and not line.endswith(":") and not line.lstrip().startswith("- ")
        if is_value: assert "  # " in line, line
    before = path.read_bytes()
    assert write_params(Params(), path).read_bytes() == before


def test_every_key_of_every_section_has_a_description():
    for kind in structs(Params):
        for f in msgspec.structs.fields(kind):
            if isinstance(f.type, type): continue # a section
            assert any(m.description for m in f.type.__metadata__), f"{kind.__name__}.{f.name}"


BREAKING = ["a\x85b", "\x85", "\u2028", "a\u2029", "a\nb", "\ufeffa", "\x00", "a\tb ", "'", '"', "\\"]


@pytest.mark.parametrize("name", BREAKING)
def test_names_with_characters_that_break_lines_round_trip(tmp_path, name):
    params = Params(prepare=PrepareParams(split=SplitParams(method="files", test_files=[name, "plain"])))
    assert read_params(write_params(params, tmp_path / "params.yaml")) == params


@settings(deadline=None, max_examples=50)
@given(rate=st.floats(0, exclude_min=True, allow_infinity=False),
       half_life=st.none() | st.from_regex(r"[0-9]{1,4}[smhdw]", fullmatch=True),
       files=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3),
       init_model=st.none() | st.text(max_size=20))
def test_changed_params_round_trip(tmp_path_factory, rate, half_life, files, init_model):
    params = Params(train=TrainParams(sample_weight_half_life=half_life, init_model=init_model,
                                      gbdt=GbdtParams(learning_rate=rate)),
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
    ("train: {learners: [nett]}", "'learners' names 'nett', and there is no section of that name; did you mean 'net'"),
    ("train: {learners: [Forest]}", "'learners' names 'Forest', and there is no section of that name; name your own "),
    ("train: {learners: [gbdt], forest: {}}", "section 'train': there is no key 'forest'"),
    ("train: {gbdt: {objective: poison}}",
     "objective is 'poison', but one of squared, absolute, huber, poisson, gamma, tweedie is expected"),
    ("tune: {gbdt: {objective: []}}", "section 'tune.gbdt': objective is \\[\\], but"),
    ("tune: {gbdt: {objective: [squared, l1]}}",
     "objective is \\['squared', 'l1'\\], but one of squared, absolute, huber, poisson, gamma, tweedie is expected"),
    ("tune: {gbdt: {objective: squared}}", "objective is 'squared', but"),
    ("train: {sample_weight_half_life: half a year}", "sample_weight_half_life is 'half a year', but text"),
    ("prepare: {split: {method: column}}", "section 'prepare.split': method 'column' needs the name of a column"),
    ("prepare: {split: {method: files}}", "section 'prepare.split': method 'files' needs the names of files"),
    ("validate: {max_quarantined_share: 1.5}", "section 'validate': max_quarantined_share is 1.5, but a number <= 1.0"),
    ("validate: {max_quarantined_share: true}", "max_quarantined_share is True, but a number"),
    ("release: {strategy: cannary}", "section 'release': there is no strategy 'cannary'; did you mean 'canary'?"),
    ("release: {strategy: 'canary, canary'}", "the strategy 'canary' is named twice"),
    ("release: {strategy: 'at_once, canary'}", "names at_once among others"),
    ("release: {strategy: ' , '}", "no strategy is named; give one of at_once, shadow"),
    ("release: {steps: [5, 5, 100]}", "'steps' is \\[5, 5, 100\\], which does not grow"),
    ("release: {steps: [1, 50]}", "'steps' ends at 50 percent; end it with 100"),
    ("release: {steps: [0, 100]}", "steps is \\[0, 100\\], but an integer >= 1 is expected"),
    ("release: {min_step_hours: 10, max_hours: 5}", "'max_hours' is 5 and ends a step before 'min_step_hours', 10"),
    ("release: {margins: {failures: -1}}", "'release.margins': failures is -1, but a number >= 0.0 is expected"),
    ("release: {alpha: 1}", "alpha is 1, but a number < 1.0 is expected"),
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


def test_the_words_of_a_strategy_may_be_written_as_people_write_them(tmp_path):
    assert split_strategy("Shadow,  blue-green,") == ("shadow", "blue_green")
    path = tmp_path / "params.yaml"
    path.write_text("release: {strategy: 'shadow, canary', steps: [0.5, 100], flag_segments: [{country: [AT]}]}")
    release = read_params(path).release
    assert split_strategy(release.strategy) == ("shadow", "canary") and release.steps == [0.5, 100]
    assert release.flag_segments == [{"country": ["AT"]}]


def section(path, value=1):
    "The content of a file that holds `value` at a dotted path."
    for key in reversed(path.split(".")): value = {key: value}
    return value


def test_an_own_learner_without_a_section_has_no_parameters(tmp_path):
    (path := tmp_path / "params.yaml").write_text("train: {learners: [forest, nett], nett: {depth: 2}}")
    train = read_params(path).train
    assert own_learners(train) == ["forest", "nett"] and (train.forest, train.nett) == ({}, {"depth": 2})


@pytest.mark.parametrize("old, new", RENAMED_PARAMS.items())
def test_an_old_key_of_params_says_what_it_is_called_now(tmp_path, old, new):
    content = section(old)
    if ".rules." in old:
        content["evaluate"]["policy"]["rules"] = [{"when": {}, "decision": "no"},
                                                  content["evaluate"]["policy"]["rules"]]
    (tmp_path / "params.yaml").write_text(json.dumps(content))
    with pytest.raises(UserError) as error: read_params(tmp_path / "params.yaml")
    assert str(error.value) == f"{tmp_path}/params.yaml: {old} is called {new} now; rename it."


def test_what_is_renamed_in_params_is_a_key_now_and_was_none_before():
    known = set(keys(Params))
    assert set(RENAMED_PARAMS.values()) <= known and not set(RENAMED_PARAMS) & known


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value: yield from _leaves(value, f"{prefix}{key}.")
        else: yield f"{prefix}{key}", value


def test_an_experiment_that_sets_a_key_changes_that_key_and_nothing_else(tmp_path):
    "`dvc exp run -S key=value` rewrites the file; set to what it was, every byte stays."
    from dvc.utils.hydra import apply_overrides
    path = write_params(Params(), tmp_path / "params.yaml")
    before = path.read_bytes()
    keys = [(k, v) for k, v in _leaves(msgspec.to_builtins(Params())) if v != {}]
    assert len(keys) > 80
    spelled = [f"{k}={json.dumps(v).replace(chr(34), '')}" for k, v in keys if not isinstance(v, list) or v]
    apply_overrides(str(path), spelled)
    assert path.read_bytes() == before and read_params(path) == Params()
    apply_overrides(str(path), ["train.gbdt.learning_rate=0.125"])
    lines = path.read_text().splitlines(), before.decode().splitlines()
    assert len(lines[0]) == len(lines[1]) and sum(a != b for a, b in zip(*lines, strict=True)) == 1
    assert read_params(path).train.gbdt.learning_rate == 0.125


def test_a_duration_that_is_none_is_told_with_examples(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("tune:\n  n_trials: 3 # ours\n", encoding="utf-8")
    with pytest.raises(UserError, match="budget is '12x', but text such as 30s, 5m, 12h or 180d is expected"):
        set_param(path, "tune.budget", "12x")
    assert path.read_text(encoding="utf-8") == "tune:\n  n_trials: 3 # ours\n", "nothing is half-written"
    set_param(path, "tune.budget", "5m")
    assert path.read_text(encoding="utf-8") == "tune:\n  n_trials: 3 # ours\n  budget: 5m\n"
    assert read_params(path).tune.budget == "5m" and duration_seconds("5m") == 300
