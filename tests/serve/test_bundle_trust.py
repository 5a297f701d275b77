"A bundle holds code: none of it runs before its manifest, and the signature where one is asked for, hold."
import os
import subprocess
import sys

import pytest
from support.services import free_port

from mlops_nb.bundle.signatures import SIGNING_KEY_VARIABLE, generate_signing_key, read_signing_key, sign_bundle
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.settings import Settings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.examples.subscribers import pack_subscriber_bundle
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.release_plan import plan_path, promote_bundle

MARK = "\nimport os, pathlib; pathlib.Path(os.environ['MARK']).touch()\n"


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    "A whole bundle whose features file leaves a mark when it runs."
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    folder = pack_subscriber_bundle(tmp_path / "bundle")
    with (folder / "features.py").open("a") as f: f.write(MARK)
    write_manifest(folder)
    return folder


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "project").mkdir()
    public = generate_signing_key(tmp_path / "team.pem", tmp_path / "project")
    private = {SIGNING_KEY_VARIABLE: (tmp_path / "team.pem").read_text()}
    return read_signing_key(tmp_path / "project", Settings(), private), public


def test_a_whole_bundle_runs_its_code_when_it_is_opened(bundle, tmp_path):
    Predictor.open(bundle)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("file", ["features.py", "model.txt", "policy.json", "manifest.json"])
def test_no_code_runs_where_a_byte_was_changed(bundle, tmp_path, file):
    data = (bundle / file).read_bytes()
    (bundle / file).write_bytes(data.replace(b"e", b"f", 1))
    with pytest.raises(UserError): Predictor.open(bundle)
    assert not (tmp_path / "mark").exists()


def served(bundle, root, settings):
    "A project whose plan names this bundle."
    (root / "settings.ini").write_text(f"[release]\nendpoint = churn\n{settings}")
    place = store_bundle(bundle, root / "bundles")
    promote_bundle(plan_path(root, read_settings(root, {})), "churn", place.name)
    return place


def refused(root):
    "How a server ends that cannot open its only bundle, and what it says."
    command = [sys.executable, "-c", "from mlops_nb.cli import main; main()", "serve", "--port", str(free_port())]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "MLOPS_NB_SERVE_WORKERS": "1"})
    return done.returncode, done.stdout + done.stderr


def test_a_server_that_asks_for_signatures_runs_nothing_of_a_bundle_without_one(bundle, keys, tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    served(bundle, root, f"trusted_keys = {keys[1]}\n")
    (tmp_path / "mark").unlink(missing_ok=True) # packing is the team's own
    status, said = refused(root)
    assert status != 0 and "trusted_keys in [release] asks for a signature" in said
    assert not (tmp_path / "mark").exists()


def test_a_server_runs_nothing_of_a_bundle_that_was_changed_after_it_was_signed(bundle, keys, tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    place = served(bundle, root, f"trusted_keys = {keys[1]}\n")
    sign_bundle(place, keys[0])
    with (place / "features.py").open("a") as f: f.write("# more\n")
    (tmp_path / "mark").unlink(missing_ok=True)
    status, said = refused(root)
    assert status != 0 and "features.py" in said and not (tmp_path / "mark").exists()
