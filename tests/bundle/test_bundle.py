"A bundle is what it was when it was sealed, or it is not opened."
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import trained_project as modelling

from mlops_nb.bundle.bundle import BUNDLE_FILES, check_golden_examples, golden_examples, open_bundle, read_data_baseline
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import MANIFEST_FILE, Manifest, verify_manifest, write_manifest
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.model.predictor import Predictor
from mlops_nb.train.stage import open_trained_predictor


@pytest.fixture
def folder(one, tmp_path): return Path(shutil.copytree(one / "artifacts/bundle", tmp_path / "bundle"))


def test_a_bundle_holds_the_designed_files_and_reproduces_itself(project):
    folder = project / "artifacts/bundle"
    assert {p.name for p in folder.iterdir()} == BUNDLE_FILES | {"model.txt", MANIFEST_FILE}
    assert open_bundle(folder).id == Predictor.open(folder).id == read_json(folder / MANIFEST_FILE, Manifest).id
    assert check_golden_examples(folder) is None
    frame = modelling.rows(100, seed=3)
    assert Predictor.open(folder).predict(frame).tobytes() == open_trained_predictor(project).predict(frame).tobytes()


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


def test_features_that_are_swapped_while_a_bundle_is_opened_are_not_run(folder, tmp_path, monkeypatch):
    mark = tmp_path / "ran"
    def verify_then_swap(path):
        verified = verify_manifest(path)
        (folder / "features.py").write_text(f"open({str(mark)!r}, 'w')\n")
        return verified
    monkeypatch.setattr("mlops_nb.model.predictor.verify_manifest", verify_then_swap)
    with pytest.raises(UserError, match="features.py was changed"): Predictor.open(folder)
    assert not mark.exists()


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


def test_sealed_but_no_bundle(tmp_path):
    (tmp_path / "model.txt").write_text("tree")
    write_manifest(tmp_path)
    assert verify_manifest(tmp_path).id
    with pytest.raises(UserError, match="missing or does not belong"): open_bundle(tmp_path)
    with pytest.raises(UserError, match="no bundle of a model"): Predictor.open(tmp_path)


def test_a_torn_part_of_a_sealed_bundle_is_a_sentence(folder):
    for name, said in {"model.txt": "model text", "encoder.json": "encoder", "schema.json": "schema.json",
                       "policy.json": "policy.json",
                       "features.py": "features.py"}.items():
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(b"{def" + data[:len(data) // 2])
        write_manifest(folder)
        with pytest.raises(UserError, match=said): Predictor.open(folder)
        (folder / name).write_bytes(data)


# --- golden examples

def test_golden_rows_cover_what_is_rare(project):
    rows = pl.read_parquet(project / "artifacts/bundle/golden.parquet")
    predictor, test = Predictor.open(project / "artifacts/bundle"), pl.read_parquet(project /
        "artifacts/prepared/test.parquet")
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
    for changed, said in ((good.with_columns(pl.col("_raw").list.eval(pl.element() + 1e-9)),
                           "golden example 0: _raw was"),
                          (good.with_columns(pl.when(pl.int_range(len(good)) == 5).then(nudge).otherwise("_score")),
                           "example 5: _score was"),
                          (good.with_columns(_decision=pl.lit("yes")), "_decision was"),
                          (good.with_columns(pl.col("count").reverse()), "golden example")):
        changed.write_parquet(path)
        write_manifest(folder)
        assert said in (check_golden_examples(folder) or "the same")
