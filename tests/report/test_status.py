"What waits for a person, while a release is open and after it has ended."
from support import stub_releases as stub
from support.stub_releases import B

from mlops_nb.core.typed_yaml import write_json
from mlops_nb.release.deploy import Deployment
from mlops_nb.release.releases import roll_back_release, start_release
from mlops_nb.report.status import waiting_decisions


def test_a_release_that_was_rolled_back_is_not_said_to_wait_for_its_driver(tmp_path, monkeypatch):
    stub.use_stubs(monkeypatch.setattr)
    root = stub.make_project(tmp_path / "p")
    release = start_release(root, B)
    started = Deployment(B, False, "`mlops-nb release watch` carries it on.", "rows", "2", release.id)
    write_json(root / "artifacts/deployment.json", started)
    assert waiting_decisions(root) == [f"{B[:12]}: {started.message}"]
    roll_back_release(root, release, "too slow")
    said, = waiting_decisions(root)
    assert "is rolled back" in said and f"`mlops-nb release show {release.id}`" in said
    (root / ".mlops/ledger.db").unlink()  # as in a clone, where nothing says how it ended
    assert waiting_decisions(root) == [f"{B[:12]}: {started.message}"]
