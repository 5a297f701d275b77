"The example of a model inside somebody's own application runs as it is printed."
import re
from pathlib import Path

import polars as pl
import pytest
from support import server as serving

from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.reader import read_log

PAGE = Path(__file__).parents[2] / "docs/howto/embed.md"


def test_the_page_runs(tmp_path, monkeypatch):
    testing = pytest.importorskip("fastapi.testclient")
    monkeypatch.chdir(serving.project(tmp_path))
    page = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block, str(PAGE), "exec"), page)
    rows = serving.instances(5)
    wanted = Predictor.open(tmp_path / "training/artifacts/bundle").predict(pl.DataFrame(rows))
    with testing.TestClient(page["app"]) as client:
        said = client.post("/offer", json=rows)
        assert said.status_code == 200 and said.json()["scores"] == wanted.tolist()
        refused = client.post("/offer", json=[rows[0] | {"count": -1}])
        assert refused.status_code == 422 and "count" in refused.json()["detail"][0]
    columns = {c: [r[c] for r in rows] for c in rows[0]}
    made = type("Rows", (), {"columns": columns})
    page["log_prediction"]("mine", made, wanted.tolist(), ["no"] * 5)
    page["log"].close()
    assert read_log("predictions").collect()["id"].to_list() == ["mine"] * 5
