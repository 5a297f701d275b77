"Findings: what any monitor gives can be kept as JSON."
from datetime import UTC, datetime

import msgspec
import numpy as np

from mlops_nb.monitor.findings import Finding


def test_a_figure_of_numpy_is_kept_like_any_other():
    found = Finding(rule="drift", subject="age", summary="It moved.", started_at=datetime(2026, 11, 1, tzinfo=UTC),
                    value=np.float64(.25), limit=np.float32(.5))
    assert msgspec.convert(msgspec.to_builtins(found), Finding) == found and type(found.limit) is float
