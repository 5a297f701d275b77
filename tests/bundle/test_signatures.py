"Signatures: who let a bundle go, told before anything of it is opened."
import base64
import os
import shutil
import subprocess
import sys

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_nb.bundle.signatures import (
    SIGNING_KEY_VARIABLE,
    generate_signing_key,
    is_signed,
    read_signing_key,
    require_trusted,
    sign_bundle,
    why_not_trusted,
)
from mlops_nb.config.project import CHECKOUT_VARIABLE
from mlops_nb.config.settings import ReleaseSettings, Settings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import MANIFEST_FILE, SIGNATURES_FILE, verify_manifest, write_manifest


@pytest.fixture
def keys(tmp_path):
    "Two private keys, and what they are called in the settings."
    (tmp_path / "project").mkdir()
    public = [generate_signing_key(tmp_path / f"{name}.pem", tmp_path / "project") for name in "ab"]
    texts = [(tmp_path / f"{name}.pem").read_text() for name in "ab"]
    return [read_signing_key(tmp_path / "project", Settings(), {SIGNING_KEY_VARIABLE: t}) for t in texts], public


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "store/bundle").mkdir(parents=True)
    for name in ("features.py", "model.txt"): (tmp_path / "store/bundle" / name).write_text(name)
    write_manifest(tmp_path / "store/bundle")
    return tmp_path / "store/bundle"


def test_a_signature_leaves_the_bundle_what_it_is(folder, keys):
    (a, b), (public_a, public_b) = keys
    before = verify_manifest(folder)
    assert not is_signed(folder, [public_a])
    sign_bundle(folder, a)
    assert verify_manifest(folder) == before and is_signed(folder, [public_b, public_a])
    assert not is_signed(folder, [public_b])
    once = (folder / SIGNATURES_FILE).read_bytes()
    sign_bundle(folder, a)
    assert (folder / SIGNATURES_FILE).read_bytes() == once
    sign_bundle(folder, b) # as while a key is replaced by another
    assert is_signed(folder, [public_a]) and is_signed(folder, [public_b])
    assert write_manifest(folder) == before.id and [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_trust_is_asked_for_by_the_settings_and_refused_in_a_sentence(folder, keys):
    (a, _), (public_a, public_b) = keys
    require_trusted(folder, "")
    require_trusted(folder, " , ")
    def said(trusted):
        sentence = why_not_trusted(folder, trusted)
        assert "\n" not in sentence and "`mlops-nb bundle sign bundle`" in sentence
        with pytest.raises(UserError): require_trusted(folder, trusted)
        return sentence
    assert "is not signed" in said(public_a)
    sign_bundle(folder, a)
    assert f"is signed by {public_a[:12]}…, whom trusted_keys does not name" in said(public_b)
    require_trusted(folder, f"{public_b}, {public_a}")
    (folder / "features.py").write_text("something else") # under a manifest that is right again
    assert why_not_trusted(folder, public_a) is None # verify_manifest is asked next, and finds it
    with pytest.raises(UserError, match="features.py was changed"): verify_manifest(folder)
    write_manifest(folder)
    verify_manifest(folder)
    assert "was changed after it was signed" in said(public_a)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_of_manifest_or_signature_is_trusted(folder, keys, data):
    (a, _), (public_a, _) = keys
    if not (folder / SIGNATURES_FILE).exists(): sign_bundle(folder, a)
    signatures = msgspec.json.decode((folder / SIGNATURES_FILE).read_bytes())["signatures"]
    kept = {name: (folder / name).read_bytes() for name in (MANIFEST_FILE, SIGNATURES_FILE)}
    if data.draw(st.booleans()):
        content, at = kept[MANIFEST_FILE], data.draw(st.integers(0, len(kept[MANIFEST_FILE]) - 1))
        byte = content[at] ^ data.draw(st.integers(1, 255))
        (folder / MANIFEST_FILE).write_bytes(content[:at] + bytes([byte]) + content[at + 1:])
    else:
        raw = bytearray(base64.b64decode(signatures[public_a]))
        raw[data.draw(st.integers(0, 63))] ^= data.draw(st.integers(1, 255))
        forged = {"signatures": {public_a: base64.b64encode(raw).decode()}}
        (folder / SIGNATURES_FILE).write_bytes(msgspec.json.encode(forged))
    try: assert not is_signed(folder, [public_a])
    finally:
        for name, content in kept.items(): (folder / name).write_bytes(content)


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"signatures": 1}', b" " * (2 << 20),
                                  b'{"signatures": {"KEY": "\xc3\xa9"}}', b'{"signatures": {"KEY": "AAAA"}}',
                                  b'{"signatures": {"KEY": "' + b"A" * 86 + b'=="}}'])
def test_signatures_that_are_none_are_an_unsigned_bundle(folder, keys, text):
    (a, _), (public_a, _) = keys
    (folder / SIGNATURES_FILE).write_bytes(text.replace(b"KEY", public_a.encode()))
    assert not is_signed(folder, [public_a]) and why_not_trusted(folder, public_a)
    sign_bundle(folder, a) # a damaged file is written anew
    assert is_signed(folder, [public_a])


@pytest.mark.parametrize("name", [MANIFEST_FILE, SIGNATURES_FILE])
@pytest.mark.parametrize("what", ["gone", "link", "pipe", "folder"])
def test_only_plain_files_are_read(folder, keys, name, what):
    (a, _), (public_a, _) = keys
    sign_bundle(folder, a)
    (folder / name).rename(folder.parent / name)
    if what == "link": (folder / name).symlink_to(folder.parent / name)
    if what == "pipe": os.mkfifo(folder / name)
    if what == "folder": (folder / name).mkdir()
    assert not is_signed(folder, [public_a])


def test_a_changed_bundle_is_not_signed(folder, keys):
    (folder / "model.txt").write_text("other")
    with pytest.raises(UserError, match="model.txt was changed"): sign_bundle(folder, keys[0][0])
    assert not (folder / SIGNATURES_FILE).exists()


# ---- keys


def test_a_private_key_is_its_owners_and_never_in_the_project(tmp_path):
    project = tmp_path / "project"
    (project / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(project / "deep")
    before = os.umask(0)
    try: public = generate_signing_key(tmp_path / "key.pem", project)
    finally: os.umask(before)
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600 and len(base64.b64decode(public)) == 32
    for place in (project / "key.pem", project / "deep/key.pem", tmp_path / "link/key.pem"):
        with pytest.raises(UserError, match="lies in the project"): generate_signing_key(place, project)
        shutil.copy(tmp_path / "key.pem", place)
        for name in (place, os.path.relpath(place, project)):
            with pytest.raises(UserError, match="lies in the project"):
                read_signing_key(project, Settings(release=ReleaseSettings(signing_key_file=str(name))), {})
    with pytest.raises(UserError, match="No such file"): generate_signing_key(tmp_path / "none/key.pem", project)
    with pytest.raises(UserError, match="is not overwritten"): generate_signing_key(tmp_path / "key.pem", project)


def test_a_run_in_a_copy_of_the_project_signs_with_the_key_of_the_checkout(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (copy := project / ".mlops" / "runs" / "r1").mkdir(parents=True)
    generate_signing_key(tmp_path / "key.pem", project)
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(project))
    settings = Settings(release=ReleaseSettings(signing_key_file="../key.pem"))
    here, there = (read_signing_key(root, settings, {}).private_bytes_raw() for root in (project, copy))
    assert here == there


def test_openssl_makes_keys_and_checks_signatures(folder, tmp_path):
    "The formats are those of everybody else."
    if not shutil.which("openssl"): pytest.skip("openssl is not installed")
    def openssl(*words): return subprocess.run(["openssl", *words], cwd=tmp_path, capture_output=True, timeout=60)
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem").returncode == 0
    (tmp_path / "project").mkdir()
    key = read_signing_key(tmp_path / "project", Settings(release=ReleaseSettings(signing_key_file="../key.pem")), {})
    sign_bundle(folder, key)
    [signature] = msgspec.json.decode((folder / SIGNATURES_FILE).read_bytes())["signatures"].values()
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    def verifies():
        return openssl("pkeyutl", "-verify", "-inkey", "key.pem", "-rawin", "-in", str(folder / MANIFEST_FILE),
                       "-sigfile", "signature").returncode == 0
    assert verifies()
    (folder / MANIFEST_FILE).write_bytes((folder / MANIFEST_FILE).read_bytes() + b" ")
    assert not verifies()


def pem(kind, **how):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else ed25519.Ed25519PrivateKey.generate()
    if kind == "public":
        return key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    how = s.BestAvailableEncryption(b"secret") if kind == "password" else s.NoEncryption()
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, how)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"secret", "ec", "public", "password"])
def test_a_key_that_cannot_sign_is_a_sentence_without_the_key(tmp_path, content):
    content = pem(content) if isinstance(content, str) else content
    (tmp_path / "project").mkdir()
    (tmp_path / "key.pem").write_bytes(content)
    settings = Settings(release=ReleaseSettings(signing_key_file=str(tmp_path / "key.pem")))
    with pytest.raises(UserError, match="holds no private key of Ed25519") as e:
        read_signing_key(tmp_path / "project", settings, {})
    assert "\n" not in str(e.value) and "secret" not in str(e.value)
    settings.release.signing_key_file = "../other.pem"
    with pytest.raises(UserError, match="other.pem, which signing_key_file in .release. names, cannot be read"):
        read_signing_key(tmp_path / "project", settings, {})


@pytest.mark.parametrize("text", ["x", "A" * 43, "A" * 43 + "=A", "A" * 88, "A" * 43 + "=;" + "A" * 43 + "=", "é" * 44])
def test_trusted_keys_that_are_none_stop_whatever_reads_the_settings(tmp_path, text):
    (tmp_path / "settings.ini").write_text(f"[release]\ntrusted_keys = {text}\n")
    with pytest.raises(UserError, match="is no public key; give the 44 characters"): read_settings(tmp_path, {})


def test_without_the_package_nothing_is_trusted(folder, keys, monkeypatch):
    "A check that was asked for is never left out; where none is, nothing is loaded."
    (a, _), (public_a, _) = keys
    sign_bundle(folder, a)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    require_trusted(folder, "")
    with pytest.raises(UserError, match=r"install mlops-nb\[sign\]"): require_trusted(folder, public_a)
    with pytest.raises(UserError, match=r"install mlops-nb\[sign\]"): generate_signing_key(folder.parent / "c", folder)
