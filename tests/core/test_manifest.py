"Content hashes, and manifests that nothing gets past."
import msgspec
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import (
    MANIFEST_FILE,
    Manifest,
    _content_id,
    combine_hashes,
    file_hashes,
    manifest_bytes,
    sha256_file,
    verify_manifest,
    write_manifest,
)
from mlops_nb.core.typed_yaml import read_json, write_json


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("model.txt", "policy.json"): (tmp_path / "model" / name).write_text(name)
    write_manifest(tmp_path / "model")
    return tmp_path / "model"


def test_a_folders_hash_sees_every_change(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    seen = {combine_hashes(file_hashes(tmp_path))}
    for change in (lambda: (tmp_path / "a").write_text("3"), lambda: (tmp_path / "a").rename(tmp_path / "c"),
                   lambda: (tmp_path / "d").write_text(""), lambda: (tmp_path / "b").unlink()):
        change()
        now = combine_hashes(file_hashes(tmp_path))
        assert now not in seen
        seen.add(now)
    assert sha256_file(tmp_path / "d") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("name", ["../model.txt", "/etc/passwd", "sub/model.txt", "", "a\0b", "manifest.json"])
def test_a_manifest_cannot_point_outside(folder, name):
    "Also when its id fits: whoever writes a manifest can compute one."
    (folder.parent / "model.txt").write_text("outside")
    m = read_json(folder / MANIFEST_FILE, Manifest)
    files = m.files | {name: "0" * 64}
    forged = Manifest(_content_id(m.format_version, m.packages, files), m.format_version, m.packages, files)
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(forged))
    with pytest.raises(UserError): verify_manifest(folder)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff\xfe", b'{"id": 1}', b"null", b"{" * 100_000])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(UserError, match="manifest.json"): verify_manifest(folder)


def test_a_manifest_of_another_format_or_spelling_is_refused(folder):
    m = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    write_json(folder / MANIFEST_FILE, m | {"format_version": 3})
    with pytest.raises(UserError, match="reads format 2"): verify_manifest(folder)
    for text in (msgspec.json.encode(m), msgspec.json.format(msgspec.json.encode(dict(reversed(m.items()))), indent=1)):
        (folder / MANIFEST_FILE).write_bytes(text)
        with pytest.raises(UserError, match="changed after it was written"): verify_manifest(folder)
    write_json(folder / MANIFEST_FILE, m | {"more": 1})
    with pytest.raises(UserError, match="damaged"): verify_manifest(folder)


def test_a_bundle_of_the_format_before_is_refused_with_a_remedy(folder):
    m = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    before = dict(id=m["id"], format=1, producers=m["packages"], files=m["files"]) # the keys that format 1 had
    for old in (before, m | {"format_version": 1}):
        write_json(folder / MANIFEST_FILE, old)
        with pytest.raises(UserError) as e: verify_manifest(folder)
        file = folder / MANIFEST_FILE
        assert str(e.value) == (
            f"{file} was written by an earlier version of mlops-nb (format 1; this one reads format 2); "
            "make it anew with `dvc repro -s -f bundle` and `dvc repro`, and if a plan in `releases/` names it, move "
            "that plan and its record in `committed/` away first.")


def test_the_id_covers_the_producers(folder):
    m = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    m["packages"]["lightgbm"] = "0.0.1"
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(m, order="sorted"), indent=1) + b"\n")
    with pytest.raises(UserError, match="changed after it was written"): verify_manifest(folder)
