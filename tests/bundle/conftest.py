"Small projects that are trained, evaluated and packed: one of each task, and one alone."
import pytest
from support import trained_project as modelling

from mlops_nb.bundle.stage import pack_bundle, run_bundle


@pytest.fixture(scope="module", params=list(modelling.CLASSES))
def project(request, tmp_path_factory):
    root = modelling.judged(modelling.trained(tmp_path_factory.mktemp(request.param), request.param, n=500),
                            request.param)
    run_bundle(root)
    return root


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    root = modelling.judged(modelling.trained(tmp_path_factory.mktemp("one"), n=500))
    pack_bundle(root)
    return root
