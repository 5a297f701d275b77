"A project: what is read when, and what it shows."
import pytest
from support.trained_project import schema

from mlops_nb.config.params import Params, write_params
from mlops_nb.config.project import Project
from mlops_nb.config.schema import write_schema
from mlops_nb.config.settings import Settings, write_settings
from mlops_nb.core.errors import UserError


def test_a_file_is_read_when_it_is_asked_for_and_once(tmp_path):
    project = Project.open(tmp_path)
    with pytest.raises(UserError, match="params.yaml does not exist"): _ = project.params
    write_params(Params(), tmp_path / "params.yaml")
    write_schema(schema("binary"), tmp_path / "schema.yaml")
    write_settings(tmp_path)
    assert project.params == Params() and project.schema == schema("binary")
    read = project.params
    (tmp_path / "params.yaml").unlink()
    assert project.params is read and Project.open(project) is project


def test_what_is_handed_in_is_not_read(tmp_path):
    (tmp_path / "settings.ini").write_text("[nonsense]")
    settings = Settings()
    settings.run.threads = 3
    project = Project(tmp_path, Params(), settings, schema("binary"))
    assert project.n_threads == 3 and project.features_path is None
    params = Params()
    params.prepare.features_file = "own/features.py"
    other = project.with_params(params)
    assert other.features_path == tmp_path / "own/features.py"
    assert other.settings is settings and other.schema is project.schema
    assert project.params.prepare.features_file is None


def test_the_representation_names_what_is_wrong_and_never_raises(tmp_path):
    (tmp_path / "settings.ini").write_text("[rum]\nthreads = 2\n")
    write_params(Params(), tmp_path / "params.yaml")
    shown = repr(Project.open(tmp_path))
    assert "schema.yaml does not exist" in shown and "gbdt" in shown and "there is no section [rum]" in shown
