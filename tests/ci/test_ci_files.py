"The files of CI: where they are written, and that the Makefile knows the verbs of this repository."
import re
import subprocess
from pathlib import Path

import pytest

from mlops_nb.ci.ci_files import ci_files, is_repository_root, write_ci_files

ROOT = Path(__file__).parents[2]
HOSTED = {".github/workflows/pipeline.yml", ".gitlab-ci.yml"}


@pytest.fixture
def repository(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_only_the_root_of_a_repository_gets_the_files_of_the_services(repository):
    inside = repository / "models" / "churn"
    assert not is_repository_root(inside) and not HOSTED & set(write_ci_files(inside))
    assert {p.name for p in inside.iterdir()} == {"Makefile", "requirements.txt", "constraints.txt", "wheels"}
    assert is_repository_root(repository) and set(write_ci_files(repository)) >= HOSTED


def test_a_folder_that_is_yet_to_be_belongs_to_no_repository(tmp_path):
    assert is_repository_root(tmp_path / "new")


def test_the_makefile_has_the_verbs_of_this_repository_and_make_reads_it(tmp_path):
    write_ci_files(tmp_path)
    verbs, ours = (set(re.search(r"(?m)^\.PHONY: (.*)$", (folder / "Makefile").read_text())[1].split())
                   for folder in (tmp_path, ROOT))
    assert verbs < ours and {"repro", "test", "check", "lab", "ui", "clean"} <= verbs
    read = subprocess.run(["make", "-n", *sorted(verbs)], cwd=tmp_path, capture_output=True, text=True)
    assert read.returncode == 0 and "pip install" in read.stdout, read.stderr


def test_the_texts_do_not_name_this_machine(tmp_path):
    for path, text in ci_files(tmp_path).items():
        assert str(ROOT) not in text and "PYTHON_VERSION" not in text, path


def test_both_services_can_offer_a_merged_model_to_staging(repository):
    "The step is a comment until staging is shared; without its signs it is a step."
    from ruamel.yaml import YAML
    write_ci_files(repository)
    github, gitlab = ((repository / name).read_text() for name in sorted(HOSTED))
    offered = re.sub(r"(?m)^( +)# (- name: Offer|  if: github|  run: mlops-nb release)", r"\1\2", github)
    steps = YAML(typ="safe").load(offered)["jobs"]["pipeline"]["steps"]
    assert steps[-1]["run"] == 'mlops-nb release offer --branch "$GITHUB_REF_NAME"' and steps[-2]["name"] == "Gate"
    script = YAML(typ="safe").load(re.sub(r"(?m)^    # - if", "    - if", gitlab))["pipeline"]["script"]
    assert "mlops-nb release offer --branch" in script[-1] and script[-2] == "mlops-nb gate check"
