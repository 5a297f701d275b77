"Smaller models: what they cost is told as it is, and they are bundles like any other."
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trained_project as modelling

from mlops_nb.bundle.bundle import check_golden_examples, open_bundle
from mlops_nb.bundle.onnx_export import export_onnx, read_onnx_trees
from mlops_nb.bundle.stage import pack_bundle
from mlops_nb.config.params import CostParams, TrainParams, read_params, write_params
from mlops_nb.config.project import Project
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.prepare import read_split
from mlops_nb.evaluate.comparison import signed_gain
from mlops_nb.evaluate.metrics import METRICS, DecisionSettings, weighted_metric
from mlops_nb.model.lightgbm_text import parse_header
from mlops_nb.model.network import dequantize_weights, deserialize_network, quantize_weights, serialize_network
from mlops_nb.model.predictor import Predictor, model_file
from mlops_nb.release.compression import compress_bundle, compression_markdown, quantize_net
from mlops_nb.release.model_profile import measure_seconds
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline
from mlops_nb.train.dataset import TrainingPart, read_training_parts
from mlops_nb.train.distillation import distill_trees, student_params, with_soft_targets


@pytest.fixture(scope="module", params=[(task, learner) for task in modelling.CLASSES for learner in ("gbdt", "net")],
                ids="-".join)
def made(request, tmp_path_factory):
    "A project, and what was compressed there."
    root, (task, learner) = tmp_path_factory.mktemp("project"), request.param
    pack_bundle(modelling.judged(modelling.trained(root, task, learner=learner), task))
    params = read_params(root / "params.yaml")
    params.explain.max_rows = 30
    write_params(params, root / "params.yaml")
    return root, compress_bundle(root, root / "artifacts/bundle", root / "small")


def test_a_student_counts_as_its_teacher_does(tmp_path):
    pack_bundle(modelling.judged(modelling.trained(tmp_path, "regression", counts=True), "regression"))
    found = compress_bundle(tmp_path, tmp_path / "artifacts/bundle", tmp_path / "small")
    teacher, student = both(tmp_path)
    assert (teacher.model.log_link and student.model.log_link
            and parse_header((tmp_path / "small/bundle/model.txt").read_text()).n_iterations <= 5)
    assert "in the logarithm of the target" in (tmp_path / "small/bundle/card.md").read_text()
    assert check_golden_examples(tmp_path / "small/bundle") is None
    assert found.student.metrics["rmse"].value < 1.1 * found.teacher.metrics["rmse"].value
    export_onnx(tmp_path / "small/bundle", tmp_path / "onnx")


def both(root): return [Predictor.open(root / p) for p in ("artifacts/bundle", "small/bundle")]


def test_the_smaller_model_is_a_bundle_like_any_other(made, tmp_path):
    root, found = made
    teacher, student = both(root)
    assert (open_bundle(root / "small/bundle").id == found.student.bundle
            and found.teacher.bundle == teacher.id != student.id)
    assert (check_golden_examples(root / "small/bundle") is None and student.inputs == teacher.inputs
            and student.schema == teacher.schema)
    origin, before = (read_json(root / p / "provenance.json", dict) for p in ("small/bundle", "artifacts/bundle"))
    assert (origin["parent"] == teacher.id == origin["training"]["compressed_from"]
            and origin["input_hashes"] == before["input_hashes"])
    card = (root / "small/bundle/card.md").read_text()
    assert (f"Made smaller from the model `{teacher.id}`: {found.method}." in card
            and found.message in card.replace("\\", ""))
    export_onnx(root / "small/bundle", tmp_path / "onnx")
    again = compress_bundle(root, root / "artifacts/bundle", tmp_path / "again")
    assert (again.student.bundle == student.id
            and file_hashes(tmp_path / "again/bundle") == file_hashes(root / "small/bundle"))
    twice = compress_bundle(root, root / "small/bundle", tmp_path / "twice",
                            n_trees=1 if "trees" in found.method else None)
    assert twice.teacher.bundle == student.id


def test_the_monitoring_baseline_is_that_of_the_students_scores(made):
    root, _ = made
    teacher, student = (read_json(root / p / "baseline.json", MonitoringBaseline)
                        for p in ("artifacts/bundle", "small/bundle"))
    test, (_, model) = read_split(root, "test"), both(root)
    scores = model.predict(test).reshape(len(test), -1)
    for (name, bins), s in zip(student.calibration.items(), scores.T):
        assert bins.rows == np.histogram(s, [-np.inf, *student.scores[name].edges, np.inf])[0].tolist()
    assert student.data == teacher.data and student.calibration != teacher.calibration
    assert [s.columns for s in student.segments] == [s.columns for s in teacher.segments]
    for name, r in student.scores.items():
        assert np.sum([s.scores[name] for s in student.segments], axis=0).tolist() == r.counts


def test_it_is_smaller(made):
    root, found = made
    sizes = [model_file(root / p).stat().st_size for p in ("artifacts/bundle", "small/bundle")]
    assert sizes == [found.teacher.model_bytes, found.student.model_bytes] and sizes[1] < sizes[0]
    if (root / "small/bundle/model.txt").exists():
        had, has = (parse_header((root / p / "model.txt").read_text()).n_iterations for p in ("artifacts/bundle",
                                                                                              "small/bundle"))
        assert has <= max(1, had // 4) and found.method == f"{has} trees in the place of {had}, taught by them"
        return
    half, how = quantize_net((root / "artifacts/bundle/model.safetensors").read_bytes(), "float16")
    assert found.method == "weights of 8 bits" and how == "weights of 16 bits" and len(half) < sizes[0]


def test_the_cost_is_that_of_the_two_bundles_on_the_test_rows(made):
    root, found = made
    test = pl.read_parquet(root / "artifacts/prepared/test.parquet")
    y, ones = test["_target"].to_numpy(), np.ones(len(test))
    predictors, task = both(root), Predictor.open(root / "small/bundle").schema.task
    within = np.std(pl.read_parquet(root / "artifacts/prepared/valid.parquet")["_target"].to_numpy()) / 4
    terms = [DecisionSettings(p.policy.threshold or .5, CostParams(),
                              float(within) if task == "regression" else 1.) for p in predictors]
    for name, metric in METRICS[task].items():
        a, b = (weighted_metric(task, name, y, p.predict(test), t)(ones) for p,
                t in zip(predictors, terms, strict=True))
        told = [x.value for x in (found.teacher.metrics[name], found.student.metrics[name], found.gain[name])]
        want = [a, b, signed_gain(metric.better, b, a)]
        assert all(t is None and np.isnan(w) or np.isclose(t, w, atol=1e-12) for t,
                   w in zip(told, want, strict=True)), name
        if told[2] is not None: assert found.gain[name].low <= found.gain[name].high
    assert read_json(root / "small/compression.json", type(found)) == found and found.n_rows == len(test)
    table = compression_markdown(found).split("## Metrics")[1].splitlines()
    shown = [line.split(" |")[0].removeprefix("| ") for line in table if line.startswith("| ")]
    assert shown == ["metric", "---", *METRICS[task]]


def test_the_threshold_is_the_students_own(made):
    root, _ = made
    teacher, student = both(root)
    if student.schema.task != "binary": assert student.policy.threshold is None
    else: assert 0 <= student.policy.threshold <= 1 and student.policy.threshold != teacher.policy.threshold


@pytest.mark.parametrize("options, says", [({"n_trees": 0}, "0 trees are asked for and the model has"),
                                           ({"weight_type": "float16"}, "holds trees"),
                                           ({"n_trees": 10**6}, "fewer than it has")])
def test_what_trees_cannot(made, tmp_path, options, says):
    root, found = made
    if "trees" not in found.method: pytest.skip("a net")
    with pytest.raises(UserError, match=says):
        compress_bundle(root, root / "artifacts/bundle", tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("options, says", [({"n_trees": 5}, "holds a net"),
                                           ({"weight_type": "flaot16"},
                                            "'flaot16' is no kind of weight; did you mean 'float16'?")])
def test_what_a_net_cannot(made, tmp_path, options, says):
    root, found = made
    if "bits" not in found.method: pytest.skip("trees")
    with pytest.raises(UserError) as e: compress_bundle(root, root / "artifacts/bundle", tmp_path / "x", **options)
    assert says in str(e.value) and not (tmp_path / "x").exists()


def test_without_its_rows_there_is_a_sentence(made, tmp_path):
    root, _ = made
    gone = shutil.copytree(root, tmp_path / "gone", ignore=shutil.ignore_patterns("prepared"))
    with pytest.raises(UserError,
                       match="dataset.json does not exist; a model is made smaller with the rows it was made from"):
        compress_bundle(gone, gone / "artifacts/bundle", gone / "x")
    other = modelling.trained(tmp_path / "other", Predictor.open(root / "small/bundle").schema.task, n=500)
    with pytest.raises(UserError, match="holds other train, valid, test rows than those the bundle was made from"):
        compress_bundle(other, root / "artifacts/bundle", other / "x")
    assert not (gone / "x").exists() and not (other / "x").exists()


# ---- its parts

@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5), st.integers(0, 2**31), st.booleans())
def test_a_taught_row_weighs_what_it_weighed(k, seed, weighted):
    rng = np.random.default_rng(seed)
    said = rng.dirichlet(np.full(k, .3), 40)
    part = TrainingPart(np.arange(40.)[:, None], rng.integers(0, k, 40).astype(float),
                        rng.uniform(.5, 2, 40) if weighted else None)
    learned = with_soft_targets(part, said if k > 2 else said[:, 1], "multiclass" if k > 2 else "binary")
    shares = np.zeros((40, k))
    np.add.at(shares, (learned.X[:, 0].astype(int), learned.y.astype(int)), learned.weights)
    want = (said + np.eye(k)[part.y.astype(int)]) / 2 * (part.weights[:, None] if weighted else 1)
    assert np.abs(shares - want).max() < .002 and len(learned.y) <= 40 * k


def test_the_steps_grow_as_the_trees_become_fewer():
    rates = [student_params(TrainParams(), 100, n).gbdt.learning_rate for n in (100, 50, 20, 10, 1)]
    assert rates == [.05, .1, .25, .3, .3]
    bold = TrainParams()
    bold.gbdt.learning_rate = .5
    assert student_params(bold, 100, 10).gbdt.learning_rate == .5


def test_the_clock_takes_the_best_of_rounds_in_turn():
    order = []
    seconds = measure_seconds([lambda: order.append("a"), lambda: order.append("b")], number=2, repeat=3)
    assert order == ["a", "a", "b", "b"] * 3 and len(seconds) == 2 and all(s > 0 for s in seconds)


def some_weights(w): return {"weight": w, "bias": w.flatten()[:3].clone(),
                             "num_module.impl.weight": torch.tensor([1e-9, 1e9])}


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 4), st.integers(1, 40), st.floats(1e-30, 6e4), st.integers(0, 2**31), st.sampled_from([8, 16]))
def test_weights_of_fewer_bits_are_off_by_less_than_a_step(rows, columns, size, seed, bits):
    w = torch.from_numpy(np.random.default_rng(seed).uniform(-size, size, (rows, columns))).float()
    w[0, : columns // 2] = 0
    net = some_weights(w)
    back = dequantize_weights(quantize_weights(net, bits))
    assert back.keys() == net.keys() and all(v.dtype == torch.float32 for v in back.values())
    step = w.abs().amax(-1, keepdim=True) / 127 if bits == 8 and columns >= 8 else torch.maximum(w.abs() * 2**-10,
                                                                                                 torch.tensor(2.**-24))
    assert ((back["weight"] - w).abs() <= step * .51).all() and torch.equal(back["num_module.impl.weight"],
                                                                            net["num_module.impl.weight"])
    net["weight"][0] = 0
    assert (dequantize_weights(quantize_weights(net, bits))["weight"][0] == 0).all()


def test_a_weight_that_does_not_fit_is_refused():
    for value in (1e6, float("nan")):
        with pytest.raises(UserError, match="weight weight is too large for 16 bits"):
            quantize_weights(some_weights(torch.full((2, 9), value)), 8)


def test_a_smaller_net_that_is_damaged_is_refused(made):
    root, found = made
    if "bits" not in found.method: pytest.skip("trees")
    data = (root / "small/bundle/model.safetensors").read_bytes()
    network, net = deserialize_network(data)
    kept = quantize_weights(net, 8)
    name = next(k for k in kept if k.endswith(":scale"))
    with pytest.raises(UserError, match="not a whole net"):
        deserialize_network(serialize_network(network, {k: v for k, v in kept.items() if k != name}))
    with pytest.raises(UserError, match="not a whole net"): deserialize_network(data[:-1])


def test_a_student_is_trained_as_its_teacher_was(made):
    root, found = made
    if "trees" not in found.method: pytest.skip("a net")
    project, teacher = Project.open(root), Predictor.open(root / "artifacts/bundle")
    text, parts = (root / "artifacts/bundle/model.txt").read_text(), tuple(read_training_parts(project,
                                                                                               teacher.encoder))
    used = read_json(root / "artifacts/bundle/provenance.json", dict)["training"]["params"]
    student, _ = distill_trees(teacher, text, 2, parts, project.params.train, used | {"num_leaves": 3})
    assert max(len(t.value) for t in read_onnx_trees(student.decode())) == 3
