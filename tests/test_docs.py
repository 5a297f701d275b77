"What README, docs/ and the index of the notebooks say exists: links, commands with their options, the reading order."
import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from support.imports import edges

from mlops_nb.cli import EXAMPLES, app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md",
         *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
INDEX = ROOT / "nbs" / "index.ipynb"


def cells(path,
          kind): return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def text_of(path): return "\n".join(cells(path, "markdown")) if path.suffix == ".ipynb" else path.read_text()


def links(path): return re.findall(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text_of(path)))


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(path):
    inside = [target.split("#")[0] for _, target in links(path) if "://" not in target
              and not target.startswith(("#", "mailto:"))]
    assert not [t for t in inside if not (path.parent / t).exists()]


def test_tables_of_contents_name_pages_that_exist():
    for path in PAGES:
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", path.read_text(), re.M | re.S):
            for line in (line for line in block.split("\n") if line and not line.startswith(":")):
                entry = re.sub(r".*<(.*)>", r"\1", line)
                assert any(list(path.parent.glob(entry + suffix)) for suffix in (".md",
                                                                                 ".ipynb")), f"{path.name}: {entry}"


def commands(path):
    "Each `mlops-nb …` of a page, as a person would type it; `…` and capitals stand for something."
    text = re.sub(r"\\\n\s*", " ", text_of(path))
    blocks = [line.split(" #")[0] for block in re.findall(r"^```\w*\n(.*?)^```", text,
                                                          re.M | re.S) for line in block.splitlines()]
    spans = re.findall(r"`(mlops-nb [^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [part.strip() for line in (*blocks, *spans) for part in re.split(r"&&|\|\|", line)
            if part.strip().startswith("mlops-nb ")]


MENTIONED = sorted({(p, c) for p in [*PAGES, INDEX] for c in commands(p)})


def parse(command):
    "Follow a command through the tree of commands and let it read its arguments; raises where it does not exist."
    command, rest = typer.main.get_command(app), shlex.split(command)[1:]
    while hasattr(command, "commands") and rest and rest[0][0] != "-": command = command.commands[rest.pop(0)]
    if not rest: return  # named, not typed
    command.make_context(command.name, rest)


@pytest.mark.parametrize("path, command", MENTIONED, ids=lambda v: v.name if isinstance(v, Path) else v[:60])
def test_commands_exist(path, command): parse(command)


def test_every_verb_is_in_the_readme():
    def verbs(command, before=()):
        if not hasattr(command, "commands"): return {" ".join(before)}
        return {v for name, c in command.commands.items() for v in verbs(c, (*before, name))}
    said = {" ".join(c.split()[1:3]) for c in commands(ROOT / "README.md")} | {c.split()[1]
                                                                               for c in commands(ROOT / "README.md")}
    assert verbs(typer.main.get_command(app)) <= said


@pytest.mark.parametrize("command", sorted({line.split(" | ")[0] for lines in EXAMPLES.values() for line in lines}))
def test_the_examples_of_the_help_can_be_typed(command):
    own = command[command.index("mlops-nb "):].rstrip(")")
    assert command.startswith(("mlops-nb ", "source <(mlops-nb ", "git show ")), command
    parse(own)


@pytest.mark.parametrize("wrong", ["mlops-nb gates check", "mlops-nb score a b --budle x",
                                   "mlops-nb init bikes --target cnt"])
def test_a_wrong_command_is_noticed(wrong):
    with pytest.raises(Exception, match="gates|budle|data"): parse(wrong)


def title(path): return next(line[2:] for line in "\n".join(cells(path,
                                                                  "markdown")).splitlines() if line.startswith("# "))


def test_the_index_names_every_notebook_by_its_title():
    named = {(INDEX.parent / target).resolve(): text for text, target in links(INDEX) if target.endswith(".ipynb")}
    assert {p for p in NOTEBOOKS if p != INDEX} == named.keys()
    assert {p: title(p) for p in named} == named


def test_the_reading_order_never_needs_what_comes_later():
    exports = {p: m[1] for p in NOTEBOOKS if (m := re.search(r"^#\| default_exp (\S+)$", "\n".join(cells(p, "code")),
                                                             re.M))}
    order = [exports[q] for _, target in links(INDEX) if (q := (INDEX.parent / target).resolve()) in exports]
    place = {module: i for i, module in enumerate(order)}
    later = [f"{m} needs {t}" for m, targets in edges().items() for t in targets if t in place and place[t] > place[m]]
    assert not later
    assert len(order) == len(exports)


def lesson_imports():
    for path in NOTEBOOKS:
        if path.parent.name == "reports": continue
        for source in cells(path, "code"):
            if re.search(r"^(#\| (export|eval: false)|%)", source, re.M): continue # a magic is no Python
            tree = ast.parse(source)
            imports = [isinstance(n, ast.Import | ast.ImportFrom) for n in tree.body]
            if any(imports) and not all(imports): yield f"{path.relative_to(ROOT)}: {source[:60]!r}"


def test_imports_of_lessons_have_cells_of_their_own():
    "nbdev runs every cell with an import when it makes the site, and none of the cells before it."
    assert not list(lesson_imports())
