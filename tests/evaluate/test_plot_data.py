"The files behind `dvc plots`: bounded, of the right columns for each task, and those that dvc.yaml names."
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from mlops_nb.evaluate.curves import evaluation_curves
from mlops_nb.evaluate.decision_threshold import measure_calibration
from mlops_nb.evaluate.plot_data import confusion_plot, evaluation_plots, threshold_plots, write_evaluation_plots
from mlops_nb.pipeline import dvc_yaml

CLASSES = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": None}


def problem(task, n=3000):
    "Targets, scores that know something of them, and the confusion matrix."
    rng = np.random.default_rng(3)
    if task == "regression":
        y = rng.gamma(2, 50, n)
        return y, y * rng.normal(1, .2, n), None
    k = len(CLASSES[task])
    y = rng.integers(0, k, n)
    p = rng.dirichlet(np.ones(k), n) * .5 + .5 * np.eye(k)[np.where(rng.random(n) < .7, y, rng.integers(0, k, n))]
    matrix = np.zeros((k, k), int)
    np.add.at(matrix, (y, p.argmax(1)), 1)
    return y.astype(float), p if k > 2 else p[:, 1], matrix.tolist()


def plots_of(task, n=3000):
    y, scores, matrix = problem(task, n)
    tables = evaluation_curves(task, y, scores, CLASSES[task])
    tables["calibration_curve"] = measure_calibration(task, y, scores, CLASSES[task])[1]
    return evaluation_plots(task, tables, matrix, CLASSES[task])


@pytest.mark.parametrize("task", CLASSES)
def test_what_dvc_yaml_draws_is_written_with_these_columns(task, tmp_path):
    curve = [dict(iteration=i, train=1 / i, valid=1 / i) for i in range(1, 5000)]
    models = tmp_path / "artifacts/models"
    for learner in ("gbdt", "net"):
        (models / learner).mkdir(parents=True)
        (models / learner / "training.json").write_text(json.dumps(dict(loss_curve=curve)))
    write_evaluation_plots(tmp_path, ["gbdt", "net"], plots_of(task, 5000))
    (tmp_path / "artifacts/plots/importance.csv").write_text("feature,importance\nage,0.5\n")
    drawn = set()
    for plot in YAML(typ="safe").load(dvc_yaml(task))["plots"]:
        (title, spec), = plot.items()
        sources = spec["y"] if isinstance(spec["y"], dict) else {title: spec["y"]}
        for source, columns in sources.items():
            path = tmp_path / source
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                drawn.add(file)
                table = pl.read_csv(file)
                wanted = [columns] if isinstance(columns, str) else columns
                assert {spec["x"], *wanted} <= set(table.columns) and len(table) and not table.null_count().row(0)[0]
    written = set(tmp_path.rglob("artifacts/plots/**/*.csv"))
    assert drawn == written and len(written) == (5 if task == "regression" else 7)
    assert sum(f.stat().st_size for f in written) < 60_000, "too much for git"


def test_the_drawn_confusion_matrix_has_the_shares_of_the_real_one():
    matrix = np.array([[900_000, 99_990, 10], [0, 0, 0], [1, 2, 3]])
    lines = confusion_plot(matrix.tolist(), ["x", "y", "z"])
    assert len(lines) < 2_010
    counts = {(a, p): n for a, p, n in lines.group_by("actual", "predicted").len().iter_rows()}
    drawn = np.array([[counts.get((a, p), 0) for p in "xyz"] for a in "xyz"])
    assert np.allclose(drawn[0] / drawn[0].sum(), matrix[0] / matrix[0].sum(), atol=1 / 600)
    assert drawn[1:].tolist() == matrix[1:].tolist()


def test_classes_without_rows_and_scores_that_are_no_numbers():
    y, scores, matrix = problem("multiclass")
    y = np.where(y == 2, 0., y) # nobody is of the third class
    curve = evaluation_curves("multiclass", y, scores, CLASSES["multiclass"])["threshold_curve"]
    for table in threshold_plots(curve).values(): assert np.isfinite(table.to_numpy()).all()
    none = evaluation_curves("binary", y, np.full(len(y), np.nan), CLASSES["binary"])
    empty = evaluation_plots("binary", none | {"calibration_curve": pl.DataFrame()}, None, CLASSES["binary"])
    assert {n: (len(t), len(t.columns)) for n, t in empty.items()} == dict.fromkeys(
        ("roc", "precision_recall", "calibration", "confusion"), (0, 2))


def test_a_learner_that_is_gone_leaves_no_curve(tmp_path):
    (tmp_path / "artifacts/models/net").mkdir(parents=True)
    Path(tmp_path / "artifacts/models/net/training.json").write_text('{"loss_curve": []}')
    write_evaluation_plots(tmp_path, ["net", "gbdt"], {})
    assert [f.name for f in tmp_path.rglob("*.csv")] == ["net.csv"]
    write_evaluation_plots(tmp_path, ["gbdt"], {})
    assert not [*tmp_path.rglob("*.csv")]
