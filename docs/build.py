"""Build the site into docs/_build/html: nbdev documents the notebooks, Sphinx renders them and the pages of docs/.

The source handed to Sphinx, docs/_build/source, is laid out like the repository, so that a relative link works there
and here. Nothing is downloaded, and the pages need no network.
"""
import ast
import re
import shutil
import sys
from pathlib import Path

from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.serve import proc_nbs
from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[1]
DOCS, NBS, PROCESSED, BUILD = ROOT / "docs", ROOT / "nbs", ROOT / "_proc", ROOT / "docs" / "_build"
HOME = ('<!doctype html><meta charset="utf-8"><title>mlops_nb</title><meta http-equiv="refresh" content="0; '
        'url=docs/index.html">')


def only_imports(source):
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


def documentation(cell):
    "nbdev's `show_doc` output as a text cell, so that its heading is a place one can link to."
    text = "".join(cell.outputs[0]["data"]["text/markdown"]) if cell.outputs else ""
    # a Struct: its fields stand in the source
    text = re.sub(r"```python\ndef \w+\(\n    \*args, \*\*kwargs\n\):\n```\n+", "", text)
    return mk_cell(re.sub(r"\A---\n+", "", text), "markdown")


def arranged(processed, original):
    "The cells of a page: hidden ones gone, source below the documentation of what it defines; functions folded."
    marks = {c.get("id"): c.directives for c in original.cells if c.cell_type == "code"}
    cells, source = [], None
    for cell in processed.cells:
        shown = cell.cell_type == "code" and cell.source.endswith(")") and re.search(r"^show_doc\(", cell.source, re.M)
        if source and not shown:
            cells.append(source)
            source = None
        if shown:
            cells.append(documentation(cell))
            continue
        if cell.cell_type == "code":
            mark = marks.get(cell.get("id"), {})
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
            if {"hide", "default_exp"} & mark.keys() or not cell.source.strip() or only_imports(cell.source): continue
            if mark.get("echo") == "false": cell.metadata["tags"] = ["remove-input"]
            if {"export", "exporti"} & mark.keys():
                if not re.search(r"^class ", cell.source, re.M): cell.metadata["tags"] = ["hide-input"]
                source = cell
                continue
        cells.append(cell)
    return cells + ([source] if source else [])


def page(path):
    "Write the page of one processed notebook below docs/_build/source."
    place = path.relative_to(PROCESSED)
    nb = read_nb(path)
    nb.cells = arranged(nb, read_nb(NBS / place))
    nb.metadata = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    target = BUILD / "source" / "nbs" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, target)


def main():
    shutil.rmtree(BUILD, ignore_errors=True)
    source = BUILD / "source"
    try:
        proc_nbs(force=True)
        for nb in PROCESSED.rglob("*.ipynb"): page(nb)
    finally: shutil.rmtree(PROCESSED, ignore_errors=True)
    shutil.copytree(DOCS, source / "docs", ignore=shutil.ignore_patterns("_build", "*.py", "__pycache__"))
    shutil.copy(ROOT / "CONTRIBUTING.md", source)
    failed = build_main(["-q", "-W", "--keep-going", "-j", "auto", "-c", str(DOCS), str(source), str(BUILD / "html")])
    (BUILD / "html" / "index.html").write_text(HOME, encoding="utf-8")
    print(f"Open {BUILD / 'html' / 'index.html'}")
    sys.exit(failed)


if __name__ == "__main__": main()
