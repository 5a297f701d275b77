"The commands of releases: what each prints, and a sentence with exit code 1 for what cannot be."
import json

import pytest
from support.release_project import project
from support.shop_project import nb_inside, sentence

from mlops_nb.config.api_keys import create_api_key
from mlops_nb.config.settings import read_settings
from mlops_nb.release.release_plan import plan_path, read_plan
from mlops_nb.release.releases import list_releases, read_release

PEOPLE = "environment = production\n[people]\nowners = ana, bob\n[production]\napprove = 50: 1 of owners\n"


@pytest.fixture(autouse=True)
def no_registry(monkeypatch):
    "MLflow follows a release, and takes seconds to load: its own tests have it."
    for name in ("reconcile_registry", "share_releases"):
        monkeypatch.setattr(f"mlops_nb.release.releases.{name}", lambda root: "", raising=False)
        monkeypatch.setattr(f"mlops_nb.release.rollback.{name}", lambda root: "", raising=False)
    monkeypatch.delenv("MLOPS_NB_API_KEY", raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("releases") / "p"
    return root, project(root, strategy="canary", steps=[5, 50, 100], min_step_hours=0, min_units=1, settings=PEOPLE)


@pytest.fixture
def root(made, tmp_path):
    import shutil
    return shutil.copytree(made[0], tmp_path / "p")


@pytest.fixture
def new(made): return made[1]["better"]


def said(*words, cwd):
    done = nb_inside(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(root):
    return {v.name: v.weight for v in read_plan(plan_path(root, read_settings(root))).variants}


def key_of(root, name, *scopes):
    return create_api_key(root / read_settings(root).serve.api_keys_file, name, list(scopes or ["operate"]))


def test_a_bundle_goes_from_start_to_the_end_by_hand(root, new, monkeypatch):
    shown = said("release", "start", root / "packed/better/bundle", "--reason", "more trees", cwd=root)
    assert "canary 5 %, step 1 of 3" in shown and "more trees" in shown and weights(root)["challenger"] == .05
    status = said("release", "status", cwd=root)
    for text in ("champion", "95 %", new[:12], "next step  canary 50 %", "waits for", "owners (ana, bob)"):
        assert text in status, status
    assert "needs 1 more of owners" in sentence(nb_inside("release", "promote", cwd=root))
    assert "MLOPS_NB_API_KEY" in sentence(nb_inside("release", "approve", "--step", "50", cwd=root))
    monkeypatch.setenv("MLOPS_NB_API_KEY", key_of(root, "ana"))
    assert said("release", "approve", "--step", "50", cwd=root).startswith("ana approves the step 50")
    assert "ana approves the step 50" in said("release", "status", cwd=root)
    assert said("release", "withdraw", "--step", "50", cwd=root).startswith("ana no longer approves")
    assert "needs 1 more of owners" in sentence(nb_inside("release", "promote", cwd=root))
    said("release", "approve", "--step", "50", cwd=root)
    assert "canary 50 %" in said("release", "promote", cwd=root)
    assert "promoted" in said("release", "promote", "--reason", "a quiet holiday", cwd=root)
    assert weights(root) == {"champion": 1.0, "previous": 0.0}
    assert "No release is open" in said("release", "status", cwd=root)
    assert "There was" not in said("release", "list", cwd=root) and "promoted" in said("release", "show", cwd=root)


def test_both_spellings_of_rollback_end_the_open_release(root, new, made):
    for words, id in ((("rollback",), ""), (("release", "rollback"), "by id")):
        said("release", "start", new, "--again", "--reason", "again", cwd=root)
        id = id and read_release(root).id
        shown = said(*words, *filter(None, [id]), "--reason", "twice as many calls", cwd=root)
        assert "rolled back" in shown and made[1]["champion"][:12] in shown
        assert weights(root)["champion"] == 1.0
        ended = list_releases(root)[-1]
        assert (ended.status, ended.outcome) == ("rolled_back", "twice as many calls")
    assert "is over (rolled_back)" in sentence(nb_inside("release", "rollback", ended.id, cwd=root))


def test_what_is_printed_for_programs_is_json(root, new):
    said("release", "start", new, cwd=root)
    status, listed, shown = (json.loads(said("release", *words, "--as-json", cwd=root))
                             for words in (["status"], ["list"], ["show"]))
    assert status["release"]["id"] == listed[0]["id"] == shown["id"] == read_release(root).id
    variant = status["variants"][1]
    assert (variant["name"], variant["bundle"], variant["weight"]) == ("challenger", new, .05)
    assert shown["verdict"]["action"] == "go_on" and "min_units" not in shown


def test_watch_says_what_is_new_and_ends_with_the_release(root, new, monkeypatch):
    from mlops_nb.release.judge import Verdict
    verdicts = iter([Verdict("go_on", "too little"), Verdict("promote", "well"), Verdict("roll_back", "it fails")])
    monkeypatch.setattr("mlops_nb.release.releases._judge", lambda root, release: next(verdicts))
    monkeypatch.setattr("mlops_nb.release.releases.missing_approvals", lambda *_: [])
    said("release", "start", new, cwd=root)
    lines = said("release", "watch", "--every-seconds", "0.05", cwd=root).splitlines()
    assert "canary 5 %. go on" in lines[0] and "canary 50 %" in lines[1]
    assert lines[-1].endswith("rolled back. it fails")
    assert weights(root)["champion"] == 1.0


def test_a_bundle_that_the_judge_rolls_back_is_not_promoted_by_hand(root, new, monkeypatch):
    from mlops_nb.release.judge import Verdict
    monkeypatch.setattr("mlops_nb.release.operations.judge_release", lambda *_: Verdict("roll_back", "it fails."))
    monkeypatch.setattr("mlops_nb.release.operations.what_holds_back", lambda *_: [])
    said("release", "start", new, cwd=root)
    assert "The judge rolls" in sentence(nb_inside("release", "promote", cwd=root))
    assert weights(root)["challenger"] == .05


def test_who_started_a_release_is_the_name_of_the_operators_key(root, new, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_API_KEY", key_of(root, "carl"))
    said("release", "start", new, cwd=root)
    assert read_release(root).started_by == "carl"


@pytest.mark.parametrize("words, key, says", [
    (("release", "start", "ffff"), None, "holds no bundle ffff"),
    (("release", "start", "BUNDLE", "--strategy", "canry"), None, "did you mean 'canary'"),
    (("release", "start", "BUNDLE", "--environment", "prod"), None, "There is no environment 'prod'"),
    (("release", "start", "BUNDLE"), "wrong", "is none of"),
    (("release", "start", "BUNDLE"), "shop", "lacks the scope"),
    (("release", "approve", "--step", "50"), "ana", "No release is open"),
    (("release", "withdraw", "--step", "50"), "ana", "No release is open"),
    (("release", "promote"), None, "No release is"), (("release", "watch"), None, "No release is"),
    (("release", "show"), None, "There was no release yet"), (("release", "show", "2020"), None, "no release '2020'"),
    (("release", "rollback", "2020"), None, "no release '2020'"),
    (("release", "rollback"), None, "no model before")])
def test_what_cannot_be_is_answered_in_a_sentence(root, new, words, key, says, monkeypatch):
    keys = dict(ana=lambda: key_of(root, "ana"), shop=lambda: key_of(root, "shop", "predict"), wrong=lambda: "a.b")
    if key: monkeypatch.setenv("MLOPS_NB_API_KEY", keys[key]())
    assert says in sentence(nb_inside(*(new if w == "BUNDLE" else w for w in words), cwd=root))
    assert not list_releases(root)
