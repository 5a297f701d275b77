"What each module of the package imports."
import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlops_nb"


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


def public_names(path):
    """The functions, classes and constants that a module defines for others; methods added with `@patch` belong to
    their class."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not any("patch" in ast.dump(d) for d in node.decorator_list): yield node.name
        elif isinstance(node, ast.Assign): yield from (t.id for t in node.targets if isinstance(t, ast.Name))
