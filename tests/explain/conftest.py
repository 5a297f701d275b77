"Predictors of small projects, with the rows to compare with."
import pytest
from support.trained_project import CLASSES, trained

from mlops_nb.explain.counterfactuals import read_reference_rows
from mlops_nb.model.policy import Policy
from mlops_nb.train.stage import open_trained_predictor


@pytest.fixture(scope="package", params=[*((task, "gbdt") for task in CLASSES), ("binary", "net")], ids="-".join)
def asked(request, tmp_path_factory):
    "A predictor, the project it is of, and the rows to compare with."
    task, learner = request.param
    root = trained(tmp_path_factory.mktemp(task), task, learner=learner, n=600)
    predictor = open_trained_predictor(root, learner)
    predictor.policy = Policy(task, CLASSES[task], .5 if task == "binary" else None)
    return predictor, root, read_reference_rows(root, predictor)
