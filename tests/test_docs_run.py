"""Every block of docs/ is run: commands and requests against a small model of the shipped example project, Python in
one namespace a page, settings and parameters by what reads them. A block that cannot be run here says why, in a comment
before it: `<!-- not run: the reason -->`; what is no input is ```text."""
import configparser
import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML
from support import server as serving
from support.shop_project import ENV

from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import read_params, write_params
from mlops_nb.config.settings import read_settings
from mlops_nb.config.triggers import read_triggers
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.examples.simulator import simulate
from mlops_nb.pipeline import run_stage
from mlops_nb.release.release_plan import ReleasePlan, check_plan, plan_path, promote_bundle, read_history

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<lang>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
OTHERS = {"scrape_configs", "intended_use", "services", "apiVersion"}  # Prometheus, schema.yaml, Compose, Kubernetes
SHELL = 'set -euo pipefail\ncurl() { command curl --fail-with-body "${@//localhost:8080/localhost:$PORT}"; }\n'


def blocks(page):
    "The blocks of a page: language, text, and why it is not run."
    return [(m["lang"], m["text"], m["why"]) for m in BLOCK.finditer(page.read_text()) if m["lang"][:1] != "{"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    "The example project with fewer subscribers and trees, released twice; the stages as `dvc repro` runs them."
    root = tmp_path_factory.mktemp("shipped")
    for name in ("schema.yaml", "settings.ini"): shutil.copy(ROOT / name, root)
    params = read_params(ROOT / "params.yaml")
    shutil.copy(ROOT / params.prepare.features_file, root / "features.py")
    params.prepare.features_file, params.prepare.features_notebook = "features.py", None
    params.simulate.n_subscribers, params.simulate.n_months, params.gate.min_gain = 1500, 12, -.5
    def run(*stages):
        for name in stages: run_stage(name, root, "gbdt" if name == "train" else None)
    with contextlib.redirect_stdout(io.StringIO()):
        simulate(root, params.simulate)
        for trees in (20, 40):
            params.train.gbdt.n_estimators = trees
            write_params(params, root / "params.yaml")
            if trees == 20: run("validate", "prepare", "baseline")
            run("train", "evaluate", "explain", "bundle")
            if trees == 40: run("cross_validation", "gate", "deploy"); break
            place = store_bundle(root / "artifacts/bundle", root / "bundles")
            promote_bundle(plan_path(root, read_settings(root, {})), "simulated_churn", place.name)
    assert len(read_history(plan_path(root, read_settings(root, {})))) == 2
    files_of_a_reader(root)
    return root


def files_of_a_reader(root):
    "What the pages take for granted in the folder: a git repository, rows to score, another schema, other data."
    rows = pl.concat(map(pl.read_parquet, sorted(root.glob("data/*/*.parquet")))).drop("_source", "_row", "churned")
    (root / "batches").mkdir()
    rows.write_parquet(root / "customers.parquet")
    rows.head(500).write_csv(root / "customers.csv")
    for i in range(2): rows.slice(i * 100, 100).write_parquet(root / f"batches/{i}.parquet")
    hours = pl.select(n=pl.int_range(400)).select(dteday=pl.date(2025, 1, 1) + pl.duration(days=pl.col("n") // 4),
                                                  temp=pl.col("n") * 7 % 31, cnt=pl.col("n") * 13 % 97)
    hours.write_csv(root / "hour.csv")
    (root / "old.yaml").write_text((root / "schema.yaml").read_text().replace("range: [0, 600]", "range: [0, 500]"))
    for words in (["init", "-q"], ["add", "schema.yaml"], ["commit", "-q", "-m", "schema"]):
        subprocess.run(["git", *words], cwd=root, env=ENV, check=True)


class Reader:
    "Does what a page says, in a copy of the project."
    def __init__(self, root, servers): self.root, self.names, self.servers, self.port = root, {}, servers, "0"

    def filled_in(self, text):
        "The text with the ids of bundles that it leaves open."
        ids = sorted(p.name for p in (self.root / "bundles").iterdir() if len(p.name) == 64)
        return re.sub(r"\b[0-9a-f]{4,}(…|\.\.\.)", ids[0], text)

    def sh(self, text):
        if text == "mlops-nb serve\n":
            self.port = str(self.servers.enter_context(serving.Server(self.root)).port)
            return
        done = subprocess.run(["bash", "-c", SHELL + self.filled_in(text)], cwd=self.root,
                              env=ENV | {"PORT": self.port, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"

    def python(self, text): exec(compile(self.filled_in(text), "docs", "exec"), self.names)

    def json(self, text):
        path = self.root / "plan.json"
        path.write_text(self.filled_in(text))
        check_plan(read_json(path, ReleasePlan), path)

    def yaml(self, text):
        given, *more = YAML(typ="safe").load_all(text)
        if isinstance(given, list) or given.keys() & OTHERS: return
        assert not more
        if any("when" in t for t in given.values() if isinstance(t, dict)):
            (self.root / "triggers.yaml").write_text(text)
            assert read_triggers(self.root).keys() == given.keys()
            return
        all_of_it = YAML(typ="safe").load(self.root / "params.yaml")
        def merge(old, new):
            for k, v in new.items():
                if isinstance(v, dict) and isinstance(old.get(k), dict): merge(old[k], v)
                else: old[k] = v
        merge(all_of_it, given)
        YAML().dump(all_of_it, self.root / "merged.yaml")
        read_params(self.root / "merged.yaml")

    def dockerfile(self, text):
        words = [line.split() for line in text.splitlines()]
        assert words[0][0] == "FROM" and {w[0] for w in words} <= {"FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE",
                                                                   "CMD"}
        made_by_init = {"wheels", "constraints.txt"}
        for source in (s for w in words if w[0] == "COPY" for s in w[1:-1]):
            assert source in made_by_init or (self.root / source).exists(), source

    def ini(self, text):
        parser = configparser.ConfigParser(strict=False)
        parser.optionxform = str
        parser.read_string(text)
        if "Unit" in parser: return  # systemd's; tests/test_docs.py follows the command in it
        folder = self.root / "settings"
        folder.mkdir(exist_ok=True)
        (folder / "settings.ini").write_text(text)
        read_settings(folder, {})


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_what_a_page_says_works(page, request, tmp_path, monkeypatch):
    todo = [(lang, text) for lang, text, why in blocks(page) if lang != "text" and not why]
    if not todo: return
    if not shutil.which("curl"): pytest.skip("curl is not installed (Debian: apt-get install curl)")
    root = shutil.copytree(request.getfixturevalue("shipped"), tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with contextlib.ExitStack() as servers:
        reader = Reader(root, servers)
        servers.callback(lambda: "mlflow" in sys.modules and sys.modules["mlflow"].set_tracking_uri(None))
        for lang, text in todo: getattr(reader, lang)(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_block_says_what_it_is(page):
    for lang, text, why in blocks(page):
        assert lang in ("text", "sh", "python", "json", "yaml", "ini", "dockerfile"), f"{lang!r}: {text[:60]}"
        assert why is None or len(why.split()) > 2, text[:60]
    assert page.read_text().count("<!-- not run") == sum(why is not None for *_, why in blocks(page))


@pytest.mark.parametrize("lang, text", [
    ("sh", "mlops-nb score nowhere.parquet s.parquet\n"), ("sh", "false\ntrue\n"), ("yaml", "gate: {min_gian: 0}\n"),
    ("ini", "[serve]\nprot = 1\n"), ("json", '{"endpoint": "e"}'), ("python", "1 / 0\n")])
def test_a_block_that_does_not_work_is_noticed(shipped, tmp_path, lang, text):
    for name in ("params.yaml", "settings.ini", "schema.yaml"): shutil.copy(shipped / name, tmp_path)
    (tmp_path / "bundles").mkdir()
    reader = Reader(tmp_path, None)
    reader.filled_in = lambda text: text
    with pytest.raises((Exception, AssertionError)): getattr(reader, lang)(text)
