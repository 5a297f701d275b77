"A bundle is what it was when it was sealed, or it is not opened."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import trained_project as modelling

from mlops_nb.bundle.bundle import BUNDLE_FILES, run_bundle, check_golden_examples, open_trained_predictor, golden_examples, open_bundle, pack_bundle, read_data_baseline, score_histogram
from mlops_nb.bundle.model_card import git_state
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.core.manifest import MANIFEST_FILE, Manifest, verify_manifest, write_manifest
from mlops_nb.model.predictor import Predictor


@pytest.fixture(scope="module", params=list(modelling.CLASSES))
def project(request, tmp_path_factory):
    root = modelling.judged(modelling.trained(tmp_path_factory.mktemp(request.param), request.param, n=500), request.param)
    run_bundle(root)
    return root


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    root = modelling.judged(modelling.trained(tmp_path_factory.mktemp("one"), n=500))
    pack_bundle(root)
    return root


@pytest.fixture
def folder(one, tmp_path): return Path(shutil.copytree(one / "artifacts/bundle", tmp_path / "bundle"))


def test_a_bundle_holds_the_designed_files_and_reproduces_itself(project):
    folder = project / "artifacts/bundle"
    assert {p.name for p in folder.iterdir()} == BUNDLE_FILES | {"model.txt", MANIFEST_FILE}
    assert open_bundle(folder).id == Predictor.open(folder).id == read_json(folder / MANIFEST_FILE, Manifest).id
    assert check_golden_examples(folder) is None
    frame = modelling.rows(100, seed=3)
    assert Predictor.open(folder).predict(frame).tobytes() == open_trained_predictor(project).predict(frame).tobytes()


def test_the_same_project_gives_the_same_bytes_wherever_it_is(project, tmp_path):
    before = {p.name: p.read_bytes() for p in (project / "artifacts/bundle").iterdir()}
    moved = Path(shutil.copytree(project, tmp_path / "elsewhere"))
    run = subprocess.run([sys.executable, "-c", "from mlops_nb.bundle.bundle import run_bundle; print(run_bundle('.')['bundle'])"], cwd=moved,
                         capture_output=True, text=True, timeout=120,
                         env={**os.environ, "MLOPS_NB_RUN_THREADS": "3", "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"})
    assert run.returncode == 0, run.stderr
    assert {p.name: p.read_bytes() for p in (moved / "artifacts/bundle").iterdir()} == before
    assert not [n for n, b in before.items() if str(project).encode() in b], "a path of this machine"


def test_another_parent_is_another_bundle(one):
    first, second = run_bundle(one)["bundle"], run_bundle(one, Path("store") / ("a" * 64))["bundle"]
    assert first != second
    assert read_json(one / "artifacts/bundle/provenance.json", dict)["parent"] == "a" * 64
    assert run_bundle(one)["bundle"] == first


# --- sealing

def test_every_file_is_guarded(folder):
    for name in sorted(BUNDLE_FILES | {"model.txt", MANIFEST_FILE}):
        data = (folder / name).read_bytes()
        for changed in (data + b" ", data[:-1], b"", data.replace(data[:1], b"\0", 1)):
            (folder / name).write_bytes(changed)
            with pytest.raises(UserError) as e: Predictor.open(folder)
            assert name in str(e.value) and "\n" not in str(e.value)
        (folder / name).write_bytes(data)
    open_bundle(folder)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_refused(folder, data):
    path = folder / data.draw(st.sampled_from(sorted(BUNDLE_FILES | {"model.txt", MANIFEST_FILE})))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(1, 255)) ^ content[at]
    try:
        path.write_bytes(content[:at] + bytes([byte]) + content[at + 1:])
        with pytest.raises(UserError): open_bundle(folder)
        with pytest.raises(UserError): Predictor.open(folder)
    finally: path.write_bytes(content)


def test_features_are_not_run_before_they_are_verified(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "features.py").write_text((folder / "features.py").read_text() + f"\nopen({str(mark)!r}, 'w')\n")
    with pytest.raises(UserError, match="features.py was changed"): Predictor.open(folder)
    assert not mark.exists()
    write_manifest(folder)
    Predictor.open(folder)
    assert mark.exists()


def link(folder, name): (folder / name).symlink_to(folder / "model.txt")


def replaced_by_link(folder):
    shutil.move(folder / "model.txt", folder.parent / "model.txt")
    (folder / "model.txt").symlink_to(folder.parent / "model.txt")


@pytest.mark.parametrize("spoil, said", [
    (lambda d: (d / "notes.txt").write_text("hello"), "'notes.txt', which its manifest does not name"),
    (lambda d: (d / ".hidden").write_text(""), "'.hidden', which its manifest does not name"),
    (lambda d: (d / "model.txt").unlink(), "lacks the file 'model.txt'"),
    (lambda d: (d / "model.txt").rename(d / "Model.txt"), "'Model.txt', which its manifest does not name"),
    (lambda d: link(d, "more.txt"), "'more.txt', which is a link"),
    (replaced_by_link, "'model.txt', which is a link"),
    (lambda d: (d / "empty").mkdir(), "'empty', which is a folder"),
    (lambda d: os.mkfifo(d / "pipe"), "'pipe', which is not a plain file"),
    (lambda d: (d / MANIFEST_FILE).unlink(), "it has no manifest.json"),
    (lambda d: shutil.rmtree(d), "is not a folder")])
def test_what_was_added_removed_or_linked_is_refused(folder, spoil, said):
    spoil(folder)
    for opener in (open_bundle, Predictor.open, check_golden_examples, read_data_baseline):
        with pytest.raises(UserError, match=said): opener(folder)


@pytest.mark.parametrize("name", ["../model.txt", "/etc/passwd", "sub/model.txt", "", "a\0b", "manifest.json"])
def test_a_manifest_cannot_point_outside(folder, name):
    "Also when its id fits: whoever writes a manifest can compute one."
    from mlops_nb.core.manifest import _content_id, _manifest_bytes
    (folder.parent / "model.txt").write_text("outside")
    m = read_json(folder / MANIFEST_FILE, Manifest)
    files = m.files | {name: "0" * 64}
    (folder / MANIFEST_FILE).write_bytes(_manifest_bytes(Manifest(_content_id(m.format_version, m.packages, files), m.format_version, m.packages, files)))
    with pytest.raises(UserError): open_bundle(folder)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff\xfe", b'{"id": 1}', b"null", b"{" * 100_000])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(UserError, match="manifest.json"): open_bundle(folder)


def test_a_manifest_of_another_format_or_spelling_is_refused(folder):
    m = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    write_json(folder / MANIFEST_FILE, m | {"format_version": 2})
    with pytest.raises(UserError, match="reads format 1"): open_bundle(folder)
    for text in (msgspec.json.encode(m), msgspec.json.format(msgspec.json.encode(dict(reversed(m.items()))), indent=1)):
        (folder / MANIFEST_FILE).write_bytes(text)
        with pytest.raises(UserError, match="changed after it was written"): open_bundle(folder)
    write_json(folder / MANIFEST_FILE, m | {"more": 1})
    with pytest.raises(UserError, match="damaged"): open_bundle(folder)


def test_the_id_covers_the_producers(folder):
    m = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    m["packages"]["lightgbm"] = "0.0.1"
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(m, order="sorted"), indent=1) + b"\n")
    with pytest.raises(UserError, match="changed after it was written"): open_bundle(folder)


def test_sealed_but_no_bundle(tmp_path):
    (tmp_path / "model.txt").write_text("tree")
    write_manifest(tmp_path)
    assert verify_manifest(tmp_path).id
    with pytest.raises(UserError, match="missing or does not belong"): open_bundle(tmp_path)
    with pytest.raises(UserError, match="no bundle of a model"): Predictor.open(tmp_path)


def test_a_torn_part_of_a_sealed_bundle_is_a_sentence(folder):
    for name, said in {"model.txt": "model text", "encoder.json": "encoder", "schema.json": "schema.json", "policy.json": "policy.json",
                       "features.py": "features.py"}.items():
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(b"{def" + data[:len(data) // 2])
        write_manifest(folder)
        with pytest.raises(UserError, match=said): Predictor.open(folder)
        (folder / name).write_bytes(data)


# --- packing

MISSING = {"models/gbdt/model.txt": "train \\(gbdt\\)", "models/gbdt/encoder.json": "train \\(gbdt\\)",
           "evaluation/policy.json": "evaluate",
           "evaluation/evaluation.json": "evaluate", "metrics.json": "evaluate", "explanation/attribution_baseline.json": "explain",
           "prepared/train.parquet": "prepare", "prepared/test.parquet": "prepare"}


def test_a_stage_that_has_not_run_is_named(one):
    art = one / "artifacts"
    before = open_bundle(art / "bundle").id
    for name, stage in MISSING.items():
        (art / name).rename(one / "away")
        with pytest.raises(UserError, match=f"run the stage {stage} first"): pack_bundle(one)
        (one / "away").rename(art / name)
        assert open_bundle(art / "bundle").id == before, "a failed run must leave the last bundle"
    assert not [p for p in art.iterdir() if p.name.startswith(".")]


def test_a_full_disk_leaves_the_last_bundle(one, monkeypatch):
    before = open_bundle(one / "artifacts/bundle").id

    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr("mlops_nb.bundle.bundle.write_manifest", full)
    with pytest.raises(OSError): pack_bundle(one)
    assert open_bundle(one / "artifacts/bundle").id == before
    assert {p.name for p in (one / "artifacts").iterdir() if p.name.startswith((".", "bundle"))} == {"bundle"}


# --- golden rows

def test_golden_rows_cover_what_is_rare(project):
    rows = pl.read_parquet(project / "artifacts/bundle/golden.parquet")
    predictor, test = Predictor.open(project / "artifacts/bundle"), pl.read_parquet(project / "artifacts/prepared/test.parquet")
    assert 32 <= len(rows) <= 64
    raw = predictor.predict_raw(test).reshape(len(test), -1)[:, 0]
    first = np.array([r[0] for r in rows["_raw"].to_list()])
    assert first.min() <= raw.min() and first.max() >= raw.max()
    assert rows["x"].null_count() and rows["place"].null_count() and rows["when"].null_count()
    assert "(never seen before)" in rows["place"] and {-10.0, 10.0} <= {*rows["x"]} and {0, 50} <= {*rows["count"]}
    assert (rows["_decision"].null_count() == len(rows)) == (predictor.schema.task == "regression")
    if predictor.schema.task != "regression": assert rows["_decision"].n_unique() > 1


def test_few_rows_give_few_golden_rows(one):
    predictor, test = Predictor.open(one / "artifacts/bundle"), pl.read_parquet(one / "artifacts/prepared/test.parquet")
    assert 1 < len(golden_examples(predictor, test[:1])) < 8


def test_any_difference_from_the_golden_rows_is_found(folder):
    path, good = folder / "golden.parquet", pl.read_parquet(folder / "golden.parquet")
    nudge = pl.col("_score").list.eval(pl.element() * (1 + 2e-16))
    for changed, said in ((good.with_columns(pl.col("_raw").list.eval(pl.element() + 1e-9)), "golden row 0: _raw was"),
                          (good.with_columns(pl.when(pl.int_range(len(good)) == 5).then(nudge).otherwise("_score")), "row 5: _score was"),
                          (good.with_columns(_decision=pl.lit("yes")), "_decision was"),
                          (good.with_columns(pl.col("count").reverse()), "golden row")):
        changed.write_parquet(path)
        write_manifest(folder)
        assert said in (check_golden_examples(folder) or "the same")


# --- what travels with the model

def test_the_baseline_is_that_of_the_training_rows(project):
    train = pl.read_parquet(project / "artifacts/prepared/train.parquet")
    base = read_data_baseline(project / "artifacts/bundle")
    assert base.rows == len(train) and sum(base.columns["x"].counts) == len(train)
    assert base.columns["x"].counts[0] == train["x"].null_count()
    scores = read_json(project / "artifacts/bundle/baseline.json", dict)["scores"]
    assert [*scores] == [c for c in Predictor.open(project / "artifacts/bundle").output_schema() if c != "decision"]
    valid = pl.read_parquet(project / "artifacts/prepared/valid.parquet", columns=["x"])
    assert all(sum(s["counts"]) == len(valid) and len(s["counts"]) == len(s["edges"]) + 2 for s in scores.values())


def test_constant_scores_have_a_distribution():
    reference = score_histogram(np.full(10, .5))
    assert sum(reference.counts) == 10 and reference.edges == [.5]


def test_the_card_says_what_was_measured(project):
    text, task = (project / "artifacts/bundle/card.md").read_text(), project.name.rstrip("0123456789")
    assert {"binary": "probability that `y` (what is asked) is `yes`. From 0.37 on",
            "multiclass": "3 classes of `y` (what is asked): bus, car, feet",
            "regression": "the value of `y` (what is asked)"}[task] in text
    assert "0.8 (0.7 to 0.9)" in text and "ratio, weekday" in text and "drawn at random" in text and "rows.csv" in text
    assert "TODO" not in text and "None" not in text.replace("\n\nNone.\n\n", "")


def test_provenance_holds_what_is_needed_to_train_again(project):
    p = read_json(project / "artifacts/bundle/provenance.json", dict)
    assert {"schema", "features", "train.parquet", "valid.parquet", "test.parquet", "params.yaml"} <= p["input_hashes"].keys()
    assert all(len(v) == 64 for v in p["input_hashes"].values())
    assert p["params"]["train"]["gbdt"]["n_estimators"] == 20 and p["seeds"] == {"split": 0, "train": 0, "evaluate": 0}
    assert p["packages"]["lightgbm"] and p["training"]["best_iteration"] >= 1 and "curve" not in p["training"]


def test_git_state_of_a_repository_without_commits_and_with_changes(tmp_path):
    def git(*args):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *args], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    assert git_state(tmp_path) == (None, None)
    for name in ("params.yaml", "dvc.lock", "artifacts/metrics.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", "."), git("commit", "-m", "x")
    commit, dirty = git_state(tmp_path)
    assert len(commit) == 40 and dirty is False
    for name in ("dvc.lock", "artifacts/metrics.json", "untracked.txt"): (tmp_path / name).write_text("2")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "params.yaml").write_text("2")
    assert git_state(tmp_path) == (commit, True)
