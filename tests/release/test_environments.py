"Which environment a branch is, where its bundles come from, and when production takes one."
import pytest

from mlops_nb.config.params import Params, ReleaseParams, write_params
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.release.environments import (
    environment_before,
    passed_staging_runs,
    require_staging_runs,
    which_environment,
)

BUNDLE = "b" * 64


def project(root, text="", runs=3):
    (root / "settings.ini").write_text(text)
    write_params(Params(release=ReleaseParams(staging_runs=runs)), root / "params.yaml")
    return root


@pytest.mark.parametrize("text, branches", [
    ("", {"main": "staging", "refs/heads/main": "staging", "work": "development", "": "development"}),
    ("[staging]\nbranch = release/next\n[production]\nbranch = live\n",
     {"main": "development", "release/next": "staging", "next": "development", "live": "production"}),
    ("[staging]\nbranch = none\n", {"main": "development", "none": "development"}),
    ("[release]\nenvironment = laptop\n", {"work": "laptop", "main": "staging"})])
def test_a_branch_maps_to_an_environment(tmp_path, text, branches):
    root = project(tmp_path, text)
    assert {b: which_environment(root, b) for b in branches} == branches


@pytest.mark.parametrize("own, before", [
    ("development", {"staging": "development", "production": "staging"}), ("laptop", {"staging": "laptop"}),
    ("staging", {"production": "staging"}), ("production", {})])
def test_a_bundle_skips_no_environment(tmp_path, own, before):
    root = project(tmp_path, f"[release]\nenvironment = {own}\n")
    assert {name: environment_before(root, name) for name in before} == before
    with pytest.raises(UserError, match=f"{own} is the environment of this checkout"): environment_before(root, own)
    with pytest.raises(UserError, match="There is no environment 'prod'"): environment_before(root, "prod")
    if own == "production":
        with pytest.raises(UserError, match="and this checkout is production; offer it to staging from a checkout"):
            environment_before(root, "staging")


@pytest.mark.parametrize("runs, passed", [("", 0), ("p", 1), ("ppp", 3), ("ppf", 0), ("pfpp", 2), ("f", 0), ("fp", 1)])
def test_runs_count_since_the_last_that_failed(tmp_path, runs, passed):
    root, ledger = project(tmp_path), open_ledger(tmp_path)
    for r in runs: ledger.append("staging.passed" if r == "p" else "staging.failed", BUNDLE)
    ledger.append("staging.passed", "c" * 64)  # of another bundle
    ledger.append("release.started", BUNDLE)  # no run
    assert passed_staging_runs(root, BUNDLE) == passed
    for needed in (0, 1, 3):
        write_params(Params(release=ReleaseParams(staging_runs=needed)), root / "params.yaml")
        if passed >= needed: require_staging_runs(root, BUNDLE, "production")
        else:
            with pytest.raises(UserError, match=f"after {needed} staging runs .* and bbbbbbbbbbbb has {passed}; run"):
                require_staging_runs(root, BUNDLE, "production")


def test_only_the_production_of_a_chain_asks_for_runs(tmp_path):
    root = project(tmp_path)
    for name in ("development", "staging"): require_staging_runs(root, BUNDLE, name)
    project(tmp_path, "[release]\nenvironment = production\n")  # `dvc repro` deploys there, as before there were stages
    require_staging_runs(root, BUNDLE, "production")
