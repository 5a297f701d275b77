"A net behind the predictor and in a bundle: the same promises that trees keep."
import json
import subprocess
import sys
import warnings

import msgspec
import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trained_project as modelling

from mlops_nb.batch.batch_scoring import score_files
from mlops_nb.bundle.bundle import check_golden_examples, open_bundle
from mlops_nb.bundle.stage import run_bundle
from mlops_nb.config.params import NetParams, read_params, write_params
from mlops_nb.config.settings import RunSettings, Settings, read_settings, write_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.evaluate.stage import run_evaluate
from mlops_nb.explain.stage import read_explanation, run_explain
from mlops_nb.model.net import Net, first_layer_inputs, member_outputs
from mlops_nb.model.network import (
    build_network,
    deserialize_network,
    fit_network_spec,
    read_safetensors,
    read_safetensors_metadata,
    serialize_network,
    tensor_shapes,
    to_tensors,
)
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.gate import run_gate
from mlops_nb.train import baselines
from mlops_nb.train.dataset import TrainingPart
from mlops_nb.train.device import DeviceConfig
from mlops_nb.train.net_trainer import TrainingJob, fit_net
from mlops_nb.train.stage import TrainingReport, run_train

KINDS = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, I64=torch.int64, I8=torch.int8, U8=torch.uint8,
             BOOL=torch.bool)


@pytest.fixture(scope="module", params=list(modelling.CLASSES))
def project(request, tmp_path_factory):
    "All stages up to the gate."
    root = modelling.trained(tmp_path_factory.mktemp(request.param), request.param, learner="net")
    baselines.run_baselines(root)
    run_evaluate(root)
    run_explain(root)
    run_bundle(root)
    run_gate(root)
    return root


@pytest.fixture(scope="module")
def predictor(project): return Predictor.open(project / "artifacts/bundle")


def test_the_bundle_holds_a_net_and_opens_anywhere(project):
    sealed = open_bundle(project / "artifacts/bundle")
    assert "model.safetensors" in sealed.manifest.files and "model.txt" not in sealed.manifest.files
    assert check_golden_examples(project / "artifacts/bundle") is None
    rules = {r["name"]: r for r in pl.read_json(project / "artifacts/gate.json")["results"].explode().to_list()}
    assert rules["bundle: clean process"]["passed"] and rules["parity: single row and batch"]["passed"], rules


def test_a_row_alone_equals_any_company_to_the_last_bit(predictor):
    rows = modelling.rows(300, seed=5, task=predictor.schema.task)
    together = predictor.predict(rows)
    assert np.array([predictor.predict_one(r) for r in rows.to_dicts()]).tobytes() == together.tobytes()
    for part in (slice(0, 1), slice(3, 10), slice(7, 150)):
        assert predictor.predict(rows[part]).tobytes() == together[part].tobytes()
    assert predictor.predict(rows.reverse())[::-1].tobytes() == together.tobytes()
    assert predictor.predict(rows[:0]).shape == together[:0].shape


def test_threads_change_nothing(project, predictor):
    rows = modelling.rows(2000, seed=6, task=predictor.schema.task)
    assert Predictor.open(project / "artifacts/bundle",
                          threads=3).predict(rows).tobytes() == predictor.predict(rows).tobytes()


def test_contributions_add_up_and_the_same_row_has_the_same_reasons(project, predictor):
    assert read_explanation(project).additivity_error < 1e-9
    rows = modelling.rows(30, seed=7, task=predictor.schema.task)
    shares = predictor.contributions(rows)
    np.testing.assert_allclose(shares.sum(-1), predictor.predict_raw(rows), rtol=1e-9, atol=1e-9)
    for part in (slice(4, 5), slice(2, 19)):
        assert predictor.contributions(rows[part]).tobytes() == shares[part].tobytes()
    assert Predictor.open(project / "artifacts/bundle", threads=3).contributions(rows).tobytes() == shares.tobytes()
    assert predictor.contributions(rows[:0]).shape == shares[:0].shape


def test_contributions_start_from_256_rows_and_say_their_error(project, predictor):
    background = predictor.model.network.background
    assert len(background) == 256 and len({json.dumps(row) for row in background}) > 200
    found = read_explanation(project).attribution_error
    assert found.n_background == 256 and found.n_rows == 50
    assert list(found.standard_error) == predictor.feature_names and found.base_standard_error > 0
    shares = pl.read_parquet(project / "artifacts/explanation/importance.parquet").filter(pl.col("class").is_null())
    for feature, size in shares.select("feature", "mean_abs").iter_rows(): # small, where there is something
        assert 0 <= found.standard_error[feature] < max(.25 * size, .02), feature


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_error_of_contributions_is_what_other_backgrounds_show(task):
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=(3000, 3)), rng.integers(0, 4, 3000)]
    X[rng.random(3000) < .1, 1] = np.nan
    z = 2 * (X[:, 0] > .3) + np.nan_to_num(X[:, 1]) * X[:, 2] + (X[:, 3] == 1)
    y = {"binary": (z > .8) * 1.0, "multiclass": np.digitize(z, [0, 1.5]) * 1.0, "regression": z}[task]
    params = NetParams(ensemble_size=4, d_hidden=32, max_epochs=5, learning_rate=.01, d_embedding=4, n_bins=8)
    job = TrainingJob(task, params, DeviceConfig("cpu"), n_classes=3, cat_cardinalities={3: 4})
    data = fit_net(TrainingPart(X[:2500], y[:2500]), TrainingPart(X[2500:], y[2500:]), job).model

    def from_other_rows(seed):
        other = Net(data)
        rows = X[np.random.default_rng(seed).choice(2500, 256, replace=False)]
        other.network.background = [[None if np.isnan(x) else x for x in row] for row in rows]
        return other.contributions(X[2500:2520]).reshape(20, -1, 5)
    net, found = Net(data), np.array([from_other_rows(seed) for seed in range(15)])
    told, raw = net.contribution_errors(X[2500:2520]), net.predict_raw(X[2500:2520]).reshape(20, -1)
    seen, said = found.std(0, ddof=1).mean((0, 1)), told.standard_errors.mean((0, 1))
    assert (seen > .4 * said).all() and (seen < 1.4 * said).all() # lines are spread evenly: a little less is right
    np.testing.assert_allclose(found.sum(-1), np.broadcast_to(raw, found.shape[:-1]), rtol=1e-9, atol=1e-9)
    assert 0 < np.abs(told.missed).mean() < .15 * np.abs(raw - found[0, :, :, -1]).mean() # of the way from the mean


def test_a_file_of_before_with_its_background_in_the_header_still_opens(project):
    data = (project / "artifacts/bundle/model.safetensors").read_bytes()
    network, weights = deserialize_network(data)
    few = msgspec.structs.replace(network, background=network.background[:8])
    old = safetensors.torch.save(weights, {"network": msgspec.json.encode(few).decode()})
    assert deserialize_network(old)[0] == few and "background" not in deserialize_network(data)[1]
    rows = np.array(network.background[8:12], float)
    assert Net(old).predict(rows).tobytes() == Net(data).predict(rows).tobytes()
    np.testing.assert_allclose(Net(old).contributions(rows).sum(-1), Net(old).predict_raw(rows), rtol=1e-9, atol=1e-9)
    header = int.from_bytes(data[:8], "little")
    assert b"background" in data[:header] and header < len(msgspec.json.encode(network)) # rows are no text


def test_probabilities_are_probabilities(predictor):
    if predictor.schema.task == "regression": pytest.skip("a regression gives values")
    p = predictor.predict(modelling.rows(200, seed=8, task=predictor.schema.task))
    assert ((p >= 0) & (p <= 1)).all()
    if p.ndim == 2: np.testing.assert_allclose(p.sum(1), 1)


def test_a_file_is_scored_like_a_frame(predictor, tmp_path):
    rows = modelling.rows(500, seed=9, task=predictor.schema.task)
    rows.write_parquet(tmp_path / "in.parquet")
    assert score_files(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet", 100).n_rows == 500
    assert pl.read_parquet(tmp_path / "out.parquet").equals(predictor.score_frame(rows))


def test_a_changed_byte_is_refused(project, tmp_path):
    import shutil
    copy = shutil.copytree(project / "artifacts/bundle", tmp_path / "b")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="was changed"): Predictor.open(copy)


def test_a_bundle_holds_one_model(project, tmp_path):
    import shutil

    from mlops_nb.core.manifest import write_manifest
    copy = shutil.copytree(project / "artifacts/bundle", tmp_path / "b")
    (copy / "model.txt").write_text("tree")
    (copy / "manifest.json").unlink()
    write_manifest(copy)
    with pytest.raises(UserError, match="its one model"): open_bundle(copy)


def test_the_irrelevant_gets_little_and_a_known_sum_its_shares():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (4000, 3))
    y = 3 * X[:, 0] - X[:, 1]
    params = NetParams(ensemble_size=4, d_hidden=64, max_epochs=25, learning_rate=0.01, dropout=0, d_embedding=8,
                       n_bins=16)
    job = TrainingJob("regression", params, DeviceConfig("cpu"))
    data = fit_net(TrainingPart(X[:3000], y[:3000]), TrainingPart(X[3000:], y[3000:]), job).model
    net = Net(data)
    shares, middle = net.contributions(X[:40]), np.array(net.network.background).mean(0)
    np.testing.assert_allclose(shares[:, 0], 3 * (X[:40, 0] - middle[0]), atol=0.25)
    np.testing.assert_allclose(shares[:, 1], -(X[:40, 1] - middle[1]), atol=0.25)
    assert abs(shares[:, 2]).max() < 0.15


def test_the_same_project_gives_the_same_folder_and_no_checkpoint_is_left(tmp_path):
    from mlops_nb.core.manifest import file_hashes
    root = modelling.trained(tmp_path, learner="net")
    first = file_hashes(root / "artifacts/models/net")
    facts = run_train(root, "net")
    assert file_hashes(root / "artifacts/models/net") == first and not (root / ".mlops/checkpoints/net").exists()
    assert facts["rows"] > 0 and facts["iterations"] == 6


def test_a_device_that_is_not_there(tmp_path):
    root = modelling.trained(tmp_path, learner="net")
    (root / "settings.ini").write_text("[run]\ndevice = cuda:9\n")
    assert read_settings(root).run.device == "cuda:9"
    with pytest.raises(UserError, match="cuda:9 is not there"): run_train(root, "net")


def test_the_settings_of_the_device_reach_the_training(tmp_path):
    root = modelling.trained(tmp_path)
    device = lambda: DeviceConfig.from_settings(read_settings(root).run)
    assert device() == DeviceConfig()
    write_settings(root, Settings(run=RunSettings(device="cuda:1", max_device_memory_mib=512, n_processes=2, shard=True,
                                                  deterministic=False)))
    assert device() == DeviceConfig("cuda:1", 512, 2, True, False)
    (root / "settings.ini").write_text("[run]\ndevice_memory =\nshard = true\n")
    assert device() == DeviceConfig(shard=True)


def test_going_on_from_an_earlier_net_and_beside_one_of_trees(tmp_path):
    root = modelling.trained(tmp_path, learner="net")
    models, params = root / "artifacts/models", read_params(root / "params.yaml")
    run_train(root, "gbdt")
    first = read_json(models / "net/training.json", TrainingReport)
    for learner in ("net", "gbdt"): (models / learner).rename(root / f"earlier_{learner}")
    params.train.init_model = "earlier_net"
    params.train.net.max_epochs = 1
    write_params(params, root / "params.yaml")
    run_train(root, "net")
    after = read_json(models / "net/training.json", TrainingReport)
    assert after.init_model_sha256
    assert after.best_loss < first.loss_curve[0].valid, "one epoch from where the other ended"
    params.train.init_model = "earlier_gbdt"
    write_params(params, root / "params.yaml")
    run_train(root, "net")
    fresh = read_json(models / "net/training.json", TrainingReport)
    assert fresh.init_model_sha256 is None and fresh.best_loss > after.best_loss
    assert (models / "net/encoder.json").read_bytes() == (root / "earlier_gbdt/encoder.json").read_bytes()


# ---- without the packages of training

@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(modelling.CLASSES)), st.integers(1, 5), st.integers(1, 3), st.integers(0, 5),
       st.integers(2, 9),
       st.lists(st.sampled_from(["normal", "steps", "flag", "gaps", "category"]), min_size=1, max_size=6),
       st.integers(0, 2**31))
def test_our_own_forward_pass_is_that_of_the_packages_to_the_last_bit(task, k, blocks, embedding, bins, columns, seed):
    rng = np.random.default_rng(seed)
    make = dict(normal=lambda: rng.normal(size=90), steps=lambda: np.maximum(0, rng.normal(size=90)),
                flag=lambda: np.arange(90) % 2,
                gaps=lambda: np.where(rng.random(90) < 0.3, np.nan, rng.normal(size=90)),
                category=lambda: rng.integers(0, 4, 90))
    X = np.column_stack([make[c]().astype(float) for c in columns])
    params = NetParams(ensemble_size=k, n_blocks=blocks, d_hidden=int(rng.integers(1, 40)), d_embedding=embedding,
                       n_bins=bins, dropout=0.3)
    categorical = {i: 4 for i, c in enumerate(columns) if c == "category"}
    network = fit_network_spec(X, rng.normal(size=90), task, params, n_classes=3, cat_cardinalities=categorical)
    with warnings.catch_warnings(action="ignore"): net = build_network(network).eval() # of a column with one piece
    with torch.no_grad():
        for w in net.parameters(): w.copy_(torch.from_numpy(rng.normal(size=w.shape))) # fresh ones hold zeros and ones
    X[::7] = np.nan
    far = np.where([c == "category" for c in columns], 9, [[1e300], [-1e300]])
    asked = to_tensors(network, np.vstack([X, far]))
    data = serialize_network(network, net.state_dict())
    again, weights = deserialize_network(data)
    assert weights.keys() == safetensors.torch.load(data).keys() - {"background"} == tensor_shapes(network).keys()
    with torch.no_grad(): theirs = net(*asked)
    ours = member_outputs(again, weights, first_layer_inputs(again, weights, *asked))
    assert torch.isfinite(theirs).all() and torch.equal(ours, theirs)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(list(KINDS)), st.lists(st.integers(0, 4), max_size=3)), max_size=6),
       st.data())
def test_a_file_of_tensors_is_read_as_the_package_reads_it(kinds, data):
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": torch.from_numpy(rng.integers(0, 2, shape)).to(KINDS[kind]) for i,
               (kind, shape) in enumerate(kinds)}
    file = safetensors.torch.save(tensors, {"a": "b"})
    ours, theirs = read_safetensors(file), safetensors.torch.load(file)
    assert ours.keys() == theirs.keys() and read_safetensors_metadata(file) == {"a": "b"}
    assert all(torch.equal(ours[k], v) and ours[k].dtype == v.dtype for k, v in theirs.items())
    at = data.draw(st.integers(0, len(file) - 1))
    broken = bytearray(file)
    broken[at] ^= data.draw(st.integers(1, 255))
    for bad in (file[:at], file + b"x",
                bytes(broken)): # never anything but an honest error, or tensors of the same shapes
        try: read_safetensors_metadata(bad), read_safetensors(bad)
        except (ValueError, KeyError, OverflowError): continue
        assert bad == bytes(broken)


ALONE = """
import sys
for name in "tabm rtdl_num_embeddings safetensors sklearn scipy pandas pyarrow mlflow shap".split():
    sys.modules[name] = None
import numpy as np, polars as pl
from mlops_nb.bundle.bundle import check_golden_examples, open_bundle
from mlops_nb.model.predictor import Predictor
assert check_golden_examples(sys.argv[1]) is None
predictor, rows = Predictor.open(sys.argv[1]), pl.read_parquet(sys.argv[2])
out = predictor.predict(rows), predictor.contributions(rows)
assert predictor.predict_one(rows.row(0, named=True)) == out[0][0] if out[0].ndim == 1 else True
np.savez(sys.argv[3], *out)
"""

def test_a_bundle_is_asked_where_only_torch_and_the_core_are(project, predictor, tmp_path):
    rows = modelling.rows(20, seed=21, task=predictor.schema.task)
    rows.write_parquet(tmp_path / "rows.parquet")
    subprocess.run([sys.executable, "-c", ALONE, project / "artifacts/bundle", tmp_path / "rows.parquet",
                    tmp_path / "out.npz"], check=True)
    here = predictor.predict(rows), predictor.contributions(rows)
    with np.load(tmp_path / "out.npz") as there:
        assert [there[k].tobytes() for k in there] == [x.tobytes() for x in here]


def test_trees_are_asked_without_torch(tmp_path):
    root = modelling.judged(modelling.trained(tmp_path, n=300))
    run_bundle(root)
    code = ("import sys; from mlops_nb.model.predictor import Predictor; Predictor.open(sys.argv[1]); assert 'torch' "
            "not in sys.modules")
    subprocess.run([sys.executable, "-c", code, root / "artifacts/bundle"], check=True)
