"What cannot be evaluated is refused at the start, and what can only be a mistake is said."
import pytest
from support.controlled_project import git
from support.triggered_project import project

from mlops_nb.control.trigger_policy import check_triggers
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.evaluate.shelf_life import ShelfLife

SCHEMA = "dataset: x\ntask: binary\ntarget: y\nclasses: [a, b]\ncolumns:\n  y: {type: category, domain: [a, b]}\n"


@pytest.fixture
def root(tmp_path):
    root = project(tmp_path / "p")
    git(root, "branch", "-M", "main")
    (root / "schema.yaml").write_text(SCHEMA)
    return root


def policy(root, text):
    (root / "triggers.yaml").write_text(text)
    return check_triggers(root)


@pytest.mark.parametrize("text, sentence", [
    ('a: {when: {any: [{schedule: {cron: "0 0 31 2 *"}}]}}', "'0 0 31 2 \\*' is never due"),
    ('a: {when: {any: [{schedule: {cron: "0 6 * * *", timezone: Mars/Base}}]}}', "Mars/Base"),
    ("a: {when: {any: [{drift: found}]}, unless: {timezone: Mars/Base}}", "Mars/Base"),
    ("a: {when: {any: [{code: {branch: dev}}]}}", "there is no branch 'dev'"),
    ("a: {when: {any: [{new_objects: {url: ftp://x/y}}]}}", "ftp://x/y cannot be listed"),
    ("a: {when: {any: [{watermark: {url: ftp://x, table: t, column: c}}]}}", "ftp:// cannot be read"),
    ("a: {when: {any: [{watermark: {url: 'postgresql://u:pw@db/x', table: t, column: c}}]}}", "contains a password"),
    ("a: {when: {any: [{drift: found}]}, budget: {cost: 40 EUR per 30d}}", "needs prices")])
def test_what_is_refused_names_the_trigger(root, text, sentence):
    with pytest.raises(UserError, match=sentence) as error: policy(root, text)
    assert "triggers.yaml" in str(error.value) and "'a" in str(error.value) and "\n" not in str(error.value)


def test_a_budget_goes_by_the_currency_of_the_prices(root):
    with open(root / "settings.ini", "a") as f: f.write("[prices]\ncurrency = CHF\ncpu_hour = 0.05\n")
    with pytest.raises(UserError, match="another currency than the prices \\(CHF\\)"):
        policy(root, "a: {when: {any: [{drift: found}]}, budget: {cost: 40 EUR per 30d}}")
    assert policy(root, "a: {when: {any: [{drift: found}]}, budget: {cost: 40 CHF per 30d}}") == []


@pytest.mark.parametrize("text, said", [
    ("a: {when: {any: [{age: shelf_life}]}}", ["n_folds", "so it can never fire"]),
    ("a: {when: {any: [{age: shelf_life}, {drift: found}]}}", ["n_folds"]),
    ("a: {when: {all: [{age: shelf_life}, {drift: found}]}}", ["n_folds", "so it can never fire"]),
    ("a: {when: {any: [{degraded: {metric: roc_au}}]}}", ["roc_au is no metric of a binary task", "can never fire"]),
    ("a: {when: {any: [{degraded: {metric: rmse}}, {drift: found}]}}", ["rmse is no metric of a binary task"]),
    ("a: {when: {any: [{degraded: {metric: recall}}]}}", []),
    ("a: {when: {any: [{age: 5m}]}}", ["due at every look"]), ("a: {when: {any: [{age: 5m}]}, cooldown: 24h}", []),
    ('a: {when: {any: [{schedule: {cron: "*/5 * * * *"}}]}}', ["more often than each hour"]),
    ('a: {when: {any: [{schedule: {cron: "*/5 * * * *"}}]}, budget: 2 per 1d}', []),
    ('a: {when: {any: [{schedule: {cron: "0 * * * *"}}]}}', []),
    ("a: {when: {any: [{drift: found}]}, unless: {slo_budget: exhausted}}", ["there is no slo.yaml"]),
    ("a: {when: {any: [{code: changed}, {new_objects: {url: /mnt/x}}]}}", [])])
def test_what_is_said(root, capsys, text, said):
    found = policy(root, text)
    assert len(found) == len(said) and all(s in f for s, f in zip(said, found, strict=True))
    assert capsys.readouterr().err.count("warning: ") == len(said)


def test_a_proposal_of_the_back_test_is_enough(root):
    write_json(root / "artifacts" / "cross_validation" / "gbdt" / "cross_validation.json",
               dict(shelf_life=ShelfLife(45, False, "It keeps.")))
    assert policy(root, "a: {when: {any: [{age: shelf_life}]}}") == []


def test_no_triggers_say_nothing(tmp_path):
    (tmp_path / "settings.ini").touch()
    assert check_triggers(tmp_path) == []
