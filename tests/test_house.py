"The house: which way imports may point, and that the two homes of a thing agree."
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlops_nb"

# From the top down: a floor imports only floors below it, or its own package.
FLOORS = [{"cli"}, {"project"}, {"pipeline"}, {"control"}, {"report"}, {"release"}, {"serve"}, {"evaluate"},
          {"export", "predict", "bundle", "store", "plan", "card", "sealed", "booster", "tree_shap", "net"}, {"train"}, {"data"},
          {"infer", "when", "schema", "params", "settings", "files", "errors"}]
LEVEL = {name: len(FLOORS) - i for i, floor in enumerate(FLOORS) for name in floor}
CORE = {"errors", "files", "schema", "bundle", "sealed", "booster", "tree_shap", "predict", "net", "data.features",
        "train.encoder", "train.network"}
CORE_IMPORTS = {"numpy", "polars", "msgspec", "fastcore", "mlops_nb"}


def modules():
    "Dotted name below mlops_nb -> path."
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
            for p in sorted(PACKAGE.rglob("*.py")) if p.stem not in ("__init__", "_modidx")}


def imported(path, top_only=False):
    "The modules a file imports, as absolute dotted names."
    package = ("mlops_nb", *path.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(x for x in (base, node.module or "") if x)


def floor(dotted): return dotted.split(".")[0]


def edges(top_only=False):
    return {name: {t.removeprefix("mlops_nb.") for t in imported(p, top_only) if t.startswith("mlops_nb.")}
            for name, p in modules().items()}


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


def test_only_training_needs_the_packages_of_nets():
    theirs = {"tabm", "rtdl_num_embeddings", "safetensors"}
    assert {m for m, p in modules().items() if theirs & {floor(t) for t in imported(p)}} <= {"train.network", "train.net"}


def test_nothing_imports_pandas():
    assert not [m for m, p in modules().items() if any(floor(t) == "pandas" for t in imported(p))]


def test_notebooks_mirror_modules():
    "nbs/<package>/NN_name.ipynb exports mlops_nb/<package>/name.py, and every module has such a notebook."
    notebooks = {".".join([*p.relative_to(ROOT / "nbs").parent.parts, p.stem.split("_", 1)[1]])
                 for p in (ROOT / "nbs").rglob("[0-9][0-9]_*.ipynb")
                 if p.parts[-2] not in ("reports", "tutorials") and ".ipynb_checkpoints" not in p.parts}
    assert notebooks == set(modules())


def test_dvc_yaml_is_what_the_stages_say():
    from mlops_nb.pipeline import dvc_yaml
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml()
