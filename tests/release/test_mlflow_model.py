"A bundle as MLflow opens it: the same bits for whatever pandas makes of the rows, for every task."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import polars as pl
import pytest
from msgspec import structs
from support.trained_project import trained

from mlops_nb.bundle.bundle import open_bundle, write_bundle
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.data.prepare import read_split
from mlops_nb.examples.subscribers import pack_subscriber_bundle, subscriber_schema, subscribers
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.mlflow_model import save_mlflow_model
from mlops_nb.train.stage import open_trained_predictor

TASKS = {"binary": {}, "multiclass": dict(task="multiclass"), "regression": dict(task="regression"),
         "poisson": dict(task="regression", counts=True)}


@pytest.fixture(scope="module", params=TASKS)
def saved(request, tmp_path_factory):
    "A model of each task: its folder as MLflow has it, its predictor, and test rows with missing values."
    root = trained(tmp_path_factory.mktemp(request.param) / "p", n=500, **TASKS[request.param])
    predictor, test = open_trained_predictor(root, "gbdt"), read_split(root, "test")
    if predictor.schema.task == "binary":
        predictor.policy = Policy("binary", predictor.schema.classes, threshold=.4)
    model = (root / "artifacts/models/gbdt/model.txt").read_bytes()
    bundle = write_bundle(root / "bundle", predictor, "model.txt", model, test, "# Card\n",
                          dict(metrics={}, provenance={}, baseline={}))
    save_mlflow_model(bundle, root / "model")
    return root / "model", Predictor.open(bundle), test


def test_a_pandas_frame_gets_the_bits_of_the_predictor(saved):
    folder, predictor, test = saved
    frame = test.to_pandas().sample(frac=1, random_state=0) # any order of the rows, any index, more columns than needed
    answer = mlflow.pyfunc.load_model(folder).predict(frame)
    wanted = predictor.score_frame(test)
    assert list(answer.columns) == wanted.columns and answer.index.equals(frame.index)
    for name in wanted.columns: assert answer[name].sort_index().to_list() == wanted[name].to_list()


def test_the_signature_has_the_types_of_the_schema_and_the_example_is_answered(saved):
    folder, predictor, _ = saved
    model = mlflow.pyfunc.load_model(folder)
    inputs = {c.name: c.type.name for c in model.metadata.signature.inputs.inputs}
    assert inputs == dict(x="double", count="long", place="string", known="boolean", when="datetime")
    outputs = {c.name: c.type.name for c in model.metadata.signature.outputs.inputs}
    assert outputs == {c: "string" if c == "decision" else "double" for c in predictor.output_schema()}
    rows = pl.read_parquet(folder / "data/bundle/golden.parquet").drop_nulls(["count", "known"])
    golden = predictor.score_frame(rows.head(5))
    assert model.predict(model.input_example)[predictor.score_columns].to_numpy().tolist() == [
        list(r) for r in golden.select(predictor.score_columns).rows()]
    served = json.loads((folder / "serving_input_example.json").read_text())["inputs"]
    assert model.predict(served).equals(model.predict(model.input_example))


def test_nothing_is_pickled_and_the_requirements_are_the_pins_of_the_bundle(saved):
    folder, _, _ = saved
    assert not [f for f in folder.rglob("*") if f.suffix in (".pkl", ".pickle", ".joblib", ".cloudpickle")]
    pins = {f"{k}=={v}" for k, v in open_bundle(folder / "data/bundle").manifest.packages.items()}
    assert pins <= set((folder / "requirements.txt").read_text().split())


@pytest.fixture(scope="module")
def subscriber_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subscribers")
    bundle = pack_subscriber_bundle(folder / "bundle")
    save_mlflow_model(bundle, folder / "model")
    return folder / "model", Predictor.open(bundle)


def test_however_pandas_holds_a_value_it_is_the_same_value(subscriber_model):
    folder, predictor = subscriber_model
    model, rows = mlflow.pyfunc.load_model(folder), subscribers(60, seed=4)
    whole = rows.to_pandas()[["plan", "tenure", "charge"]]
    wanted = predictor.predict(rows).tolist()
    forms = dict(plain=whole, nullable=whole.convert_dtypes(), category=whole.astype(dict(plan="category")),
                 small=whole.astype(dict(tenure="int16")), objects=whole.astype(object),
                 text=whole.astype(str).replace("nan", ""), whole_floats=whole.astype(dict(tenure=float)),
                 arrow=whole.convert_dtypes(dtype_backend="pyarrow"))
    for name, frame in forms.items(): assert model.predict(frame)["score"].to_list() == wanted, name
    assert model.predict(whole.to_dict("list"))["score"].to_list() == wanted
    # with one missing value the whole numbers of pandas are floats
    holed = whole.assign(tenure=whole["tenure"].where(whole.index != 3))
    assert holed["tenure"].dtype == float and holed["tenure"].isna().sum() == 1
    nulled = rows.with_columns(tenure=pl.when(pl.int_range(60) != 3).then("tenure"))
    assert model.predict(holed)["score"].to_list() == predictor.predict(nulled).tolist()
    new = whole.assign(plan="gold")
    assert model.predict(new)["score"].to_list() == predictor.predict(rows.with_columns(plan=pl.lit("gold"))).tolist()
    assert len(model.predict(whole.head(0))) == 0


def test_what_does_not_fit_is_one_sentence(subscriber_model):
    model = mlflow.pyfunc.load_model(subscriber_model[0])
    frame = subscribers(3).to_pandas()
    with pytest.raises(UserError, match="no column 'charge'"): model.predict(frame.drop(columns="charge"))
    with pytest.raises(UserError, match="'tenure' holds 2.5"): model.predict(frame.assign(tenure=[1, 2.5, 3]))
    with pytest.raises(UserError, match="no column 'plan'"): model.predict([{"tenure": 3, "charge": 1}])


def test_a_computed_column_need_not_be_there(tmp_path):
    schema = subscriber_schema()
    schema.columns["tenure"].computed = "years * 12"
    schema.columns["years"] = structs.replace(schema.columns["tenure"], computed=None, feature=False)
    bundle = pack_subscriber_bundle(tmp_path / "bundle", schema=schema)
    save_mlflow_model(bundle, tmp_path / "model")
    model = mlflow.pyfunc.load_model(tmp_path / "model")
    assert [c.name for c in model.metadata.signature.inputs.inputs] == ["plan", "years", "charge"]
    frame = pd.DataFrame(dict(plan=["plus", "basic"], years=[1, 4], charge=[70.5, np.nan]))
    computed = frame.assign(tenure=frame["years"] * 12)
    wanted = Predictor.open(bundle).predict(pl.DataFrame(computed.drop(columns="years").to_dict("list"))).tolist()
    assert model.predict(frame)["score"].to_list() == model.predict(computed)["score"].to_list() == wanted
    assert model.input_example is None


def test_an_example_is_made_where_whole_numbers_are_missing(tmp_path):
    schema = subscriber_schema()
    schema.columns["tenure"].nullable = True # then a golden row has none
    bundle = pack_subscriber_bundle(tmp_path / "bundle", schema=schema)
    golden = pl.read_parquet(bundle / "golden.parquet").sort("tenure", nulls_last=False)
    assert golden["tenure"][0] is None
    golden.write_parquet(bundle / "golden.parquet")
    write_manifest(bundle)
    save_mlflow_model(bundle, tmp_path / "model")
    model = mlflow.pyfunc.load_model(tmp_path / "model")
    assert len(model.predict(model.input_example)) == 5


def test_a_changed_byte_is_not_opened(subscriber_model, tmp_path):
    copy = shutil.copytree(subscriber_model[0], tmp_path / "model")
    (copy / "data/bundle/policy.json").write_text("{}")
    with pytest.raises(UserError, match="policy.json"): mlflow.pyfunc.load_model(copy)
    with pytest.raises(UserError, match="policy.json"): save_mlflow_model(copy / "data/bundle", tmp_path / "again")


LEAN = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in %r: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
frame = pandas.DataFrame(json.loads(sys.stdin.read()))
print(json.dumps([x.hex() for x in model.predict(frame)['score']]))
print(*sorted(m for m in sys.modules if m.startswith(('mlops_nb.data', 'mlops_nb.train', 'mlops_nb.evaluate'))))
"""
ABSENT = ("pandera", "dvc", "optuna", "shap", "psutil", "torch", "nbdev", "papermill", "granian")


def test_a_process_with_mlflow_and_the_core_is_enough(subscriber_model, tmp_path):
    folder, predictor = subscriber_model
    rows = subscribers(20, seed=5).select("plan", "tenure", "charge")
    done = subprocess.run([sys.executable, "-c", LEAN % (ABSENT,), str(folder)], cwd=tmp_path, text=True,
                          input=json.dumps(rows.to_dict(as_series=False)), capture_output=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    scores, ours = done.stdout.splitlines()[-2:] if done.stdout.count("\n") > 1 else (done.stdout.strip(), "")
    assert json.loads(scores) == [float(x).hex() for x in predictor.predict(rows)] and not ours.strip()
    assert not list(Path(tmp_path).iterdir())
