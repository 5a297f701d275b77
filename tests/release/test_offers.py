"Offers: a bundle goes from development to staging to production, and nothing else does."
import shutil

import pytest

from mlops_nb.bundle.signatures import generate_signing_key, sign_bundle
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.api_keys import create_api_key
from mlops_nb.config.params import Params, ReleaseParams, write_params
from mlops_nb.config.settings import environment_settings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.examples.subscribers import pack_subscriber_bundle
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.release import offers
from mlops_nb.release.approvals import give_approval
from mlops_nb.release.offers import offer_bundle
from mlops_nb.release.release_plan import find_champion, live_variant, plan_path, promote_bundle, read_plan, store_path
from mlops_nb.release.releases import read_release, roll_back_release, settle_release, start_release

SETTINGS = """[release]
endpoint = churn
[people]
owners = ana, bo
[production]
approve = start: 1 of owners
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return [store_bundle(pack_subscriber_bundle(root / str(n), n), root / "bundles") for n in (3, 4, 5)]


@pytest.fixture
def project(tmp_path, made):
    "The first two bundles were released to development, the second answers there."
    root = tmp_path / "p"
    shutil.copytree(made[0].parent, root / "bundles")
    (root / "settings.ini").write_text(SETTINGS)
    write_params(Params(release=ReleaseParams(staging_runs=2)), root / "params.yaml")
    for bundle in made[:2]: promote_bundle(root / "releases/churn.json", "churn", bundle.name)
    return root


def live(root, environment):
    plan = read_plan(plan_path(root, environment_settings(read_settings(root, {}), environment)))
    return plan and live_variant(plan).bundle


def passed(root, bundle, n=2):
    for _ in range(n): open_ledger(root).append("staging.passed", bundle)


def test_a_bundle_goes_all_the_way_and_is_built_once(project, made, monkeypatch):
    bundle, key = made[1].name, create_api_key(project / ".mlops/keys.json", "bo", ["operate"])
    first = offer_bundle(project, by="ana")
    assert (first.environment, first.bundle, live(project, "staging")) == ("staging", bundle, bundle)
    assert first.message.endswith("which has been promoted.")
    with pytest.raises(UserError, match=f"after 2 staging runs .* and {bundle[:12]} has 0"):
        offer_bundle(project, environment="production")
    passed(project, bundle)
    second = offer_bundle(project, bundle[:8], "production", by="ana")
    release = read_release(project, second.release)
    assert second.release != first.release  # though both may have started in the same second
    assert release.status == "open" and release.step < 0 and "waits: The step start" in second.message
    assert offer_bundle(project, bundle[:8], "production").release == second.release  # a CI job that is repeated
    assert live(project, "production") is None
    code, said = typed(project, monkeypatch, "release", "status", "--environment", "production")
    assert code == 0 and "churn (production): nothing is released." in said and "The step start of" in said
    give_approval(project, release, "start", key)
    assert settle_release(project, release).status == "promoted" and live(project, "production") == bundle
    assert offer_bundle(project, bundle, "production").message == f"{bundle[:12]} answers in production already."
    for name in ("staging", "production"):
        stored = store_path(project, environment_settings(read_settings(project, {}), name)) / bundle
        assert (stored / "manifest.json").read_bytes() == (made[1] / "manifest.json").read_bytes()
    offered = open_ledger(project).entries(bundle, ("bundle.offered",))
    assert [(e.data["source"], e.data["environment"], e.by) for e in offered] == [
        ("development", "staging", "ana"), ("staging", "production", "ana")]
    assert find_champion(project).name == bundle  # development is as it was


def test_only_what_answered_goes_on(project, made):
    with pytest.raises(UserError, match="was not released to development, or was rolled back there"):
        offer_bundle(project, made[2].name)
    with pytest.raises(UserError, match="holds no bundle ffff"): offer_bundle(project, "ffff")
    with pytest.raises(UserError, match="No model is released to staging, so there is none to offer"):
        offer_bundle(project, environment="production")
    with pytest.raises(UserError, match="There is no environment 'prod'"): offer_bundle(project, environment="prod")
    with pytest.raises(UserError, match="development is the environment of this checkout"):
        offer_bundle(project, environment="development")
    promote_bundle(project / "releases/churn.json", "churn", made[0].name, action="rollback")
    with pytest.raises(UserError, match="was rolled back there"): offer_bundle(project, made[1].name)
    assert offer_bundle(project).bundle == made[0].name  # the one that answers now
    assert offer_bundle(project).release == ""


def test_what_was_rolled_back_there_is_not_offered_again_by_itself(project, made):
    offer_bundle(project, made[0].name)
    write_params(Params(release=ReleaseParams(strategy="canary")), project / "params.yaml")
    offer = offer_bundle(project, made[1].name)
    assert offer.message.endswith("which is on its way.")
    with pytest.raises(UserError, match="has an open release"):
        start_release(project, made[0].name, environment="staging")
    roll_back_release(project, read_release(project, offer.release), "slow")
    assert live(project, "staging") == made[0].name
    with pytest.raises(UserError, match="was rolled back at churn; to release it all the same"):
        offer_bundle(project, made[1].name)


def test_no_other_command_takes_a_bundle_to_production_untried(project, made):
    settings = environment_settings(read_settings(project, {}), "production")
    store_bundle(made[1], store_path(project, settings))
    with pytest.raises(UserError, match="Production takes a bundle after 2 staging runs that passed"):
        start_release(project, made[1].name, environment="production", again=True)
    passed(project, made[1].name)
    assert start_release(project, made[1].name, environment="production").step < 0  # it waits for bo


def test_an_offer_that_was_cut_off_is_made_again(project, made, monkeypatch):
    def killed(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(offers, "start_release", killed)
        with pytest.raises(KeyboardInterrupt): offer_bundle(project)
    assert live(project, "staging") is None and open_ledger(project).entries() == []
    assert offer_bundle(project).bundle == live(project, "staging") == made[1].name


def test_a_signature_that_came_later_goes_along(project, made, tmp_path):
    offer_bundle(project)
    passed(project, made[1].name)
    private = tmp_path / "key.pem"
    public = generate_signing_key(private)
    settings = project / "settings.ini"
    settings.write_text(settings.read_text().replace("endpoint = churn", f"endpoint = churn\ntrusted_keys = {public}"))
    with pytest.raises(UserError, match="is not signed"): offer_bundle(project, environment="production")
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    sign_bundle(project / "environments/staging/bundles" / made[1].name,
                load_pem_private_key(private.read_bytes(), None))
    assert offer_bundle(project, environment="production").release


def typed(root, monkeypatch, *words):
    "(exit code, what was said) of a command."
    from typer.testing import CliRunner

    from mlops_nb.cli import app
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, [*words])
    return done.exit_code, done.output + str(done.exception or "")


def test_a_branch_decides_on_the_command_line(project, made, monkeypatch):
    code, said = typed(project, monkeypatch, "release", "offer", "--branch", "better")
    assert code == 0 and "The branch better belongs to development" in said and live(project, "staging") is None
    code, said = typed(project, monkeypatch, "release", "offer", "--branch", "main", "--reason", "merged")
    assert code == 0 and "has been promoted." in said and live(project, "staging") == made[1].name, said
    code, said = typed(project, monkeypatch, "release", "offer", "--environment", "production")
    assert code == 1 and "Production takes a bundle after 2 staging runs" in said


def test_a_check_that_failed_is_an_error_on_the_command_line(project, made, monkeypatch):
    from mlops_nb.serve import staging_checks
    from mlops_nb.serve.staging_checks import StagingCheck, StagingReport
    for passed in (True, False):
        def run(root, bundle, clean, on_check, passed=passed):
            on_check(StagingCheck("edge rows", passed, 1, 2, "1 of 2."))
            return StagingReport(made[1].name, "", "", passed)
        monkeypatch.setattr(staging_checks, "run_staging_checks", run)
        code, said = typed(project, monkeypatch, "release", "check", "artifacts/bundle", "--clean")
        assert (code == 0) == passed and ("passed  edge rows" if passed else "FAILED  edge rows") in said
        assert f"checks/{made[1].name}/staging.json" in said


def test_a_server_of_an_environment_follows_its_plans(project, monkeypatch):
    from mlops_nb.serve import server
    seen = []
    monkeypatch.setattr(server, "serve", lambda root, bundle, settings: seen.append(settings))
    for words in ([], ["--environment", "staging"]): assert typed(project, monkeypatch, "serve", *words)[0] == 0
    assert [s.release.plans for s in seen] == ["releases", "environments/staging/releases"]
    assert "There is no environment 'stagin'" in typed(project, monkeypatch, "serve", "--environment", "stagin")[1]


def test_a_checkout_whose_environment_asks_for_approvals_waits_too(project, made, monkeypatch):
    "`dvc repro` on a machine that is production itself, with the strategy at_once."
    from types import SimpleNamespace

    from mlops_nb.release.deploy import _release
    monkeypatch.setattr("mlops_nb.release.releases.reconcile_registry", lambda root: "")
    settings = project / "settings.ini"
    settings.write_text(settings.read_text().replace("endpoint = churn", "endpoint = churn\nenvironment = production"))
    new, gate = SimpleNamespace(id=made[2].name), SimpleNamespace(message="every rule held")
    release = _release(project, read_settings(project, {}), new, gate)
    assert release.step < 0 and find_champion(project).name == made[1].name
    assert _release(project, read_settings(project, {}), new, gate).id == release.id
    give_approval(project, release, "start", create_api_key(project / ".mlops/keys.json", "ana", ["operate"]))
    assert start_release(project, new.id).status == "promoted" and find_champion(project).name == new.id


def test_a_roll_back_in_an_environment_leaves_the_others_alone(project, made, monkeypatch):
    old, new = made[0].name, made[1].name
    offer_bundle(project, old)
    offer_bundle(project, new)
    code, said = typed(project, monkeypatch, "rollback", "--environment", "staging", "--reason", "slow")
    assert code == 0 and f"Model in use at churn (staging): {old[:12]}, put back by a roll-back" in said
    assert (live(project, "staging"), live(project, "development")) == (old, new)
    code, said = typed(project, monkeypatch, "release", "history", "--environment", "staging")
    assert code == 0 and [line.split()[2] for line in said.splitlines()] == ["rollback", "deploy", "deploy"]
    (project / "environments/staging/releases/churn.json").write_text("{")
    assert typed(project, monkeypatch, "release", "restore", "--environment", "staging")[0] == 0
    assert live(project, "staging") == old
    code, said = typed(project, monkeypatch, "rollback", "--environment", "production")
    assert code == 1 and "No model is in use here" in said
