"The house: which way imports may point, and that the two homes of a thing agree."
import subprocess
import sys

import pytest
from support.imports import ROOT, edges, floor, imported, modules, public_names

# From the top down: a folder imports only folders below it, or its own modules.
FOLDERS = ["cli", "schedule_commands", "run_commands", "release_commands", "monitor_commands", "model_commands",
           "command_line", "notebook", "scaffold", "ci", "pipeline", "examples", "console", "control", "report",
           "batch", "serve", "release", "monitor", "explain", "evaluate", "bundle", "train", "data", "model", "stats",
           "prediction_log", "ledger", "config", "core"]
LEVEL = {name: len(FOLDERS) - i for i, name in enumerate(FOLDERS)}
CORE = {"core.errors", "core.files", "core.typed_yaml", "core.manifest", "config.values", "config.schema",
        "config.project", "bundle.bundle", "bundle.store", "model.lightgbm_text", "model.calibrators", "model.policy",
        "model.booster", "model.tree_shap", "model.dataframes", "model.predictor", "model.net",
        "model.features", "model.encoder", "model.network", "model.onnx_model", "model.permutation_shap",
        "model.processing", "model.text_encoder", "model.vector_encoder", "config.vectors"}
CORE_IMPORTS = {"numpy", "polars", "msgspec", "fastcore", "mlops_nb"}


def test_every_module_has_a_floor():
    assert {floor(m) for m in modules()} <= LEVEL.keys()


def test_imports_point_down():
    up = [f"{m} imports {t}" for m, targets in edges().items() for t in targets if LEVEL[floor(t)] > LEVEL[floor(m)]]
    assert not up, up


def test_no_cycle():
    graph, done, path = edges(), set(), []

    def visit(m):
        assert m not in path, " -> ".join([*path[path.index(m):], m])
        if m in done or m not in graph: return
        path.append(m)
        for t in graph[m]: visit(t)
        path.pop()
        done.add(m)

    for m in graph: visit(m)


@pytest.mark.parametrize("module", sorted(CORE))
def test_the_core_is_lean(module):
    path = modules()[module]
    import sys
    outside = {floor(t) for t in imported(path, top_only=True)} - set(sys.stdlib_module_names) - CORE_IMPORTS
    assert not outside, f"{module} imports {outside}"


SERVING = """
import pkgutil
from importlib import import_module
import mlops_nb.bundle.bundle, mlops_nb.prediction_log, mlops_nb.serve.server
for m in pkgutil.iter_modules(mlops_nb.prediction_log.__path__): import_module(f"mlops_nb.prediction_log.{m.name}")
import sys
training = ("mlops_nb.data", "mlops_nb.train", "mlops_nb.evaluate")
heavy = {"pandas", "torch", "sklearn", "shap", "matplotlib", "mlflow", "sqlalchemy"}
print(*sorted(m for m in sys.modules if m.startswith(training) or m.split(".")[0] in heavy))
"""


def test_the_serving_core_loads_no_training_code():
    "A fresh process that serves, opens bundles and writes the log."
    run = subprocess.run([sys.executable, "-c", SERVING], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stdout + run.stderr


def test_only_training_needs_the_packages_of_nets():
    theirs = {"tabm", "rtdl_num_embeddings", "safetensors"}
    assert {m for m, p in modules().items() if theirs & {floor(t) for t in imported(p)}} <= {
        "model.network", "train.net_trainer", "train.net_checkpoint"}


def test_nothing_imports_pandas():
    assert not [m for m, p in modules().items() if any(floor(t) == "pandas" for t in imported(p))]


def test_notebooks_mirror_modules():
    "nbs/<package>/NN_name.ipynb exports mlops_nb/<package>/name.py, and every module has such a notebook."
    notebooks = {".".join([*p.relative_to(ROOT / "nbs").parent.parts, p.stem.split("_", 1)[1]])
                 for p in (ROOT / "nbs").rglob("[0-9][0-9]_*.ipynb")
                 if p.parts[-2] not in ("reports", "tutorials") and ".ipynb_checkpoints" not in p.parts}
    assert notebooks == set(modules())


# Names that two modules may share, and why.
SHARED = {}


def test_a_public_name_stands_in_one_module():
    where = {}
    for module, path in modules().items():
        for name in public_names(path):
            if not name.startswith("_"): where.setdefault(name, []).append(module)
    assert {n: m for n, m in where.items() if len(m) > 1 and n not in SHARED} == {}


def test_dvc_yaml_is_what_the_stages_say():
    from mlops_nb.pipeline import dvc_yaml
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml()


def test_a_path_is_never_taken_for_a_pattern():
    "polars expands `[1]` and `*` in paths unless told not to; a project may lie in a folder of such a name."
    import ast
    import json
    sources = {str(p): p.read_text() for p in modules().values()}
    for nb in sorted((ROOT / "nbs/reports").glob("*.ipynb")):
        cells = [c for c in json.loads(nb.read_text())["cells"] if c["cell_type"] == "code"]
        sources[nb.name] = "\n".join("".join(c["source"]) for c in cells)
    readers = {f"{how}_{what}" for how in ("read", "scan") for what in ("parquet", "csv", "ipc")}
    readers.add("read_parquet_schema")
    calls = [(name, c) for name, text in sources.items() for c in ast.walk(ast.parse(text))
             if isinstance(c, ast.Call) and isinstance(c.func, ast.Attribute) and c.func.attr in readers]
    bare = [f"{name}: {ast.unparse(c)}" for name, c in calls if "glob" not in {k.arg for k in c.keywords}]
    assert len(calls) > 15 and not bare, bare
