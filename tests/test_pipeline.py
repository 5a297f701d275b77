"The table of stages: what dvc.yaml says, what each stage touches, and what is recorded of it."
import contextlib
import importlib
import inspect
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from ruamel.yaml import YAML
from support.shop_project import shop
from support.tracking_store import ready_store

from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.settings import read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.examples.subscribers import pack_subscriber_bundle
from mlops_nb.pipeline import STAGES, dvc_yaml, run_stage
from mlops_nb.release.mlflow_tracking import flatten_dict
from mlops_nb.release.release_plan import plan_path, promote_bundle
from mlops_nb.scaffold import choose_split, datetime_columns, init_project, package_name

ORDER = [(name, "gbdt" if stage.matrix else None) for name, stage in STAGES.items()]
# State, pages and side effects, which DVC does not track.
OWN = {"reports", ".mlops", "bundles", "releases", "mlflow.db", "mlartifacts"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "shop.csv").write_text(shop(), encoding="utf-8")
    init_project(folder / "corner-shop", str(folder / "shop.csv"), "bought", time="day")
    return ready_store(folder / "corner-shop")


def declared(name, item, params):
    "The paths a stage of dvc.yaml may write."
    stage = YAML(typ="safe").load(dvc_yaml())["stages"][name]
    listed = stage.get("outs", []) + stage.get("metrics", [])
    paths = [next(iter(o)) if isinstance(o, dict) else o for o in listed]
    return [p.replace("${item.learner}", str(item)).replace("${prepare.features_file}",
                                                            params["prepare"]["features_file"]) for p in paths]


@pytest.mark.slow
def test_each_stage_writes_what_it_declares_and_nothing_else(project):
    params = YAML(typ="safe").load(project / "params.yaml")
    before = file_hashes(project)
    for name, item in ORDER:
        with contextlib.redirect_stdout(io.StringIO()): took = run_stage(name, project, item)
        after, may = file_hashes(project), declared(name, item, params)
        touched = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        touched = {p for p in touched if p.split("/")[0] not in OWN and "__pycache__" not in p}
        outside = {p for p in touched if not any(p == m or p.startswith(f"{m}/") for m in may)}
        assert not outside, f"stage {name} also touched {sorted(outside)}"
        for path in may: assert (project / path).exists(), f"stage {name} did not write {path}"
        record = read_json(project / ".mlops" / "stages" / f"{name}{'.' + item if item else ''}.json", dict)
        assert record == json.loads(json.dumps(took)) and record["seconds"] > 0 and record["peak_memory_mib"] > 10
        before = after
    for stage in STAGES.values(): # what `dvc metrics diff` compares: numbers, and no text; lists it leaves out
        for path in stage.metrics:
            found = flatten_dict(read_json(project / path, dict))
            assert all(isinstance(v, int | float | list | None) for v in found.values()), path


def test_the_recorded_peak_is_the_stages_own(project):
    held = b"x" * (600 << 20) # as DVC's own process may hold much when it starts a stage
    subprocess.run([Path(sys.executable).parent / "mlops-nb", "stage", "features"], cwd=project, check=True,
                   capture_output=True)
    assert len(held) / 2**20 > 2 * read_json(project / ".mlops/stages/features.json", dict)["peak_memory_mib"]


def test_what_dvc_yaml_says_can_be_read_and_has_no_cycle():
    stages = YAML(typ="safe").load(dvc_yaml())["stages"]
    assert list(stages) == list(STAGES)
    written = set()
    for name, stage in stages.items():
        for dep in stage["deps"]:
            made = any(dep == w or w.startswith(f"{dep}/") or dep.startswith(f"{w}/") for w in written)
            assert made or dep in ("data", "data/manifest.json", "schema.yaml", "nbs/reports",
                                   "${prepare.features_notebook}"), f"{name} reads {dep}"
        outs = stage.get("outs", []) + stage.get("metrics", [])
        for path in (next(iter(o)) if isinstance(o, dict) else o for o in outs):
            assert path not in written and not path.startswith("data/"), f"{name} writes {path}"
            written.add(path)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_each_stage_names_a_function_that_takes_what_the_runner_hands_in(stage):
    module, function = stage.function.split(":")
    parameters = list(inspect.signature(getattr(importlib.import_module(module), function)).parameters)
    assert parameters[0] == "root" and ("champion" in parameters[1:2]) == stage.needs_champion
    if stage.matrix: assert len(parameters) > 1


def test_the_champion_is_verified_and_handed_in(project, monkeypatch):
    seen = []
    from mlops_nb.data import validation
    from mlops_nb.release import release_plan
    bundle = pack_subscriber_bundle(project / "elsewhere")
    monkeypatch.setattr(validation, "run_validate", lambda root, champion=None: seen.append(champion))
    monkeypatch.setattr(release_plan, "find_champion", lambda root: None)
    run_stage("validate", project)
    monkeypatch.setattr(release_plan, "find_champion", lambda root: bundle)
    run_stage("validate", project)
    assert seen == [None, bundle]
    (bundle / "model.txt").write_text("another")
    with pytest.raises(UserError, match="model.txt"): run_stage("validate", project)
    assert len(seen) == 2


def test_the_advice_about_a_champion_of_an_earlier_version_leads_on(project, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(project, root)
    place = store_bundle(pack_subscriber_bundle(root / "earlier"), root / "bundles")
    manifest = read_json(place / "manifest.json", dict)
    manifest["format"], manifest["producers"] = 1, manifest.pop("packages")
    del manifest["format_version"]
    (place / "manifest.json").write_text(json.dumps(manifest))
    endpoint = read_settings(root).release.endpoint
    promote_bundle(plan_path(root, read_settings(root)), endpoint, place.name)
    advice = "earlier version .* if a plan in `releases/` names it, move that plan and its record in `committed/` away"
    with pytest.raises(UserError, match=advice): run_stage("validate", root)
    (root / "releases").rename(tmp_path / "away")
    assert run_stage("validate", root)["stage"] == "validate"


def test_an_unknown_stage_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no stage 'trian'; did you mean 'train'"): run_stage("trian", tmp_path)


def test_an_edited_features_notebook_is_exported_by_its_stage(project):
    notebook = project / "nbs" / "00_features.ipynb"
    nb = nbformat.read(notebook, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell("#| export\n@feature\ndef spent_per_visit(spent, visits): return spent / "
                                              "(visits + 1)"))
    nbformat.write(nb, notebook)
    run_stage("features", project)
    assert "def spent_per_visit" in (project / "corner_shop" / "features.py").read_text()


def test_a_features_notebook_that_is_gone_is_a_sentence(project):
    notebook = project / "nbs" / "00_features.ipynb"
    kept = notebook.read_bytes()
    notebook.unlink()
    try:
        with pytest.raises(UserError, match="nbs/00_features.ipynb does not exist"): run_stage("features", project)
    finally: notebook.write_bytes(kept)


# ---------------------------------------------------------------- init


def test_a_new_project_is_whole(project):
    there = {p.relative_to(project).as_posix() for p in project.rglob("*") if p.is_file()}
    assert {"schema.yaml", "params.yaml", "settings.ini", "dvc.yaml", "data.dvc", "README.md", "pyproject.toml",
            ".gitignore",
            ".dvc/config", "nbs/00_features.ipynb", "nbs/reports/data.ipynb", "nbs/reports/evaluation.ipynb",
            "nbs/reports/explanation.ipynb", "docs/runbooks/roll-back.ipynb", "docs/runbooks/drift.md", "slo.yaml",
            "nbs/reports/monitoring.ipynb",
            "corner_shop/features.py", "corner_shop/__init__.py"} <= there
    assert (project / "dvc.yaml").read_text() == dvc_yaml()
    assert "analytics = false" in (project / ".dvc" / "config").read_text()


def test_init_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "shop.csv").write_text(shop(50), encoding="utf-8")
    with pytest.raises(UserError, match="bougth"): init_project(tmp_path / "p", str(tmp_path / "shop.csv"), "bougth")
    assert [p.name for p in tmp_path.iterdir()] == ["shop.csv"]


@pytest.mark.parametrize("folder, name", [("bikes", "bikes"), ("Bike-Sharing 2011", "bike_sharing_2011"),
                                          ("2024", "p_2024"),
                                          ("json", "json_project"), ("data", "data_project"),
                                          ("Überfahrt", "überfahrt"),
                                          ("---", "project")])
def test_the_name_of_a_package_can_be_imported(tmp_path, folder, name):
    assert package_name(tmp_path / folder) == name and name.isidentifier()


@pytest.mark.parametrize("said, method", [({"time": "day"}, "time"), ({}, "random"), ({"ordered": True}, "order"),
                                          ({"group": "shop"}, "group"), ({"split_column": "fold"}, "column"),
                                          ({"test_files": ("b.csv",)}, "files"),
                                          ({"time": "day", "group": "shop"}, "group")])
def test_what_was_said_of_the_data_decides_the_split(said, method):
    assert choose_split(**said).method == method


def test_only_clocks_that_are_known_become_features():
    columns = {n: Column("timestamp") for n in ("start", "end", "seen")} | {"fare": Column("number")}
    schema = Schema("trips", "regression", "EXTRACT(EPOCH FROM end) - EXTRACT(EPOCH FROM start)", columns,
                    event_time="start")
    assert datetime_columns(schema) == ["start", "seen"], "the end of a trip is not known when it starts"


def test_learners_of_the_features_notebook_lie_in_a_file_of_their_own(tmp_path):
    "nbdev would take the directive for another module of the package, which is not there."
    from mlops_nb.pipeline import run_features
    (tmp_path / "shop.csv").write_text(shop(), encoding="utf-8")
    root = tmp_path / "corner-shop"
    init_project(root, str(tmp_path / "shop.csv"), "bought", time="day")
    notebook = nbformat.read(path := root / "nbs/00_features.ipynb", 4)
    notebook.cells += [nbformat.v4.new_code_cell(s) for s in (
        "#| export learners\nfrom mlops_nb.train.custom_learners import learner",
        "#| export\nfrom mlops_nb.model.features import metric\n\n"
        "@metric('profit', better='higher')\ndef profit(y, p): return y",
        "#| export learners\n@learner('mine')\ndef mine(X, y): ...")]
    nbformat.write(notebook, path)
    for _ in range(2): run_features(root)
    package = next(p for p in root.iterdir() if (p / "features.py").exists())
    features = (package / "features.py").read_text()
    assert "def profit" in features and "learner" not in features
    assert sorted(p.name for p in package.glob("*.py")) == ["__init__.py", "features.py"]
    written = (root / "artifacts/learners.py").read_text()
    assert written.index("import learner") < written.index("def mine") and "profit" not in written
    params = root / "params.yaml"
    plain = params.read_text()
    params.write_text(plain.replace("  - gbdt\n", "  - gbdt\n  - mine\n"))
    for _ in range(2): run_features(root)
    assert params.read_text() == plain.replace("  - gbdt\n", "  - gbdt\n  - mine\n").replace(
        "train:\n", "train:\n  mine: {}\n") # DVC tracks a section that is there
    params.write_text(plain.replace("  - gbdt\n", "  - others\n"))
    with pytest.raises(UserError, match="names 'others', and the features notebook exports no learner"):
        run_features(root)
    assert "others: {}" not in params.read_text()
