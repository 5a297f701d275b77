"What differs between two bundles, each difference told once, and the names by which people ask."
import pytest

from mlops_nb.bundle.store import store_bundle
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.examples.subscribers import pack_subscriber_bundle, subscriber_schema
from mlops_nb.release.bundle_diff import describe_bundle_diff, diff_bundles, find_named_bundle
from mlops_nb.release.release_plan import ReleasePlan, ReleaseStep, Variant, promote_bundle, write_plan

PROVENANCE = dict(git_commit="a" * 40, git_dirty=False, parent=None, python_version="3.11",
                  params={"train": {"seed": 0, "gbdt": {"learning_rate": .05}}}, seeds={}, packages={},
                  input_hashes={"data": "1" * 64, "schema": "2" * 64},
                  training={"learner": "gbdt", "rows": {"train": 1000, "valid": 200}, "best_iteration": 5,
                            "params": {"num_leaves": 31}})


def stored(root, trees, schema=None, features="", metrics=None, **about):
    "A bundle of the store whose documents say what a test needs."
    made = pack_subscriber_bundle(root / "made", trees, schema)
    write_json(made / "provenance.json", PROVENANCE | about)
    write_json(made / "metrics.json", metrics or {"test": {"roc_auc": .8}})
    if features: (made / "features.py").write_text(features)
    write_manifest(made)
    return store_bundle(made, root / "bundles").name


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("diff")
    (root / "settings.ini").write_text("[release]\nendpoint = churn\n")
    schema = subscriber_schema()
    schema.columns["plan"].domain += ["gold"]
    params = {"train": {"seed": 0, "gbdt": {"learning_rate": .1}}, "new": True}
    training = PROVENANCE["training"] | {"rows": {"train": 2000, "valid": 200}, "params": {"num_leaves": 15}}
    other = dict(git_commit="b" * 40, params=params, training=training, input_hashes={"data": "3" * 64})
    first = stored(root, 5, features="x = 1\ny = 2\n")
    second = stored(root, 8, schema, "x = 1\ny = 3\n", {"test": {"roc_auc": .82}, "valid": {"roc_auc": .81}}, **other)
    for bundle in (first, second): promote_bundle(root / "releases/churn.json", "churn", bundle)
    return root, first, second


def found(changes): return {c.name: (c.old, c.new) for c in changes}


def test_every_part_tells_its_differences_and_nothing_else(project):
    root, first, second = project
    d = diff_bundles(root, first, second)
    assert (d.old, d.new) == (first, second)
    assert found(d.origin) == {"git_commit": ("a" * 40, "b" * 40)}
    assert found(d.params) == {"train.gbdt.learning_rate": (.05, .1), "new": (None, True),
                               "trained.num_leaves": (31, 15)}
    assert found(d.data) == {"data": ("1" * 64, "3" * 64), "schema": ("2" * 64, None), "train rows": (1000, 2000)}
    assert [(c.column, c.kind, c.key) for c in d.schema] == [("plan", "widened", "domain")]
    assert [x for x in d.features if x[0] in "+-" and x[1] not in "+-"] == ["-y = 2", "+y = 3"]
    assert found(d.metrics) == {"test.roc_auc": (.8, .82), "valid.roc_auc": (None, .81)}
    assert not d.packages and {"bundle bytes", "model bytes"} <= found(d.size).keys()
    back = diff_bundles(root, second, first)
    assert found(back.params) == {k: v[::-1] for k, v in found(d.params).items()}


def test_the_text_names_each_part_and_is_cut_where_it_is_long(project):
    root, first, second = project
    d = diff_bundles(root, "previous", "champion")
    text = describe_bundle_diff(d)
    assert first[:12] in text and second[:12] in text and "train.gbdt.learning_rate: 0.05 → 0.1" in text
    assert "The domain of 'plan' gained gold." in text and "+y = 3" in text and "new: (none) → True" in text
    d.params *= 50
    assert "- … and 90 more" in describe_bundle_diff(d)
    assert describe_bundle_diff(diff_bundles(root, first, first)).endswith("Nothing differs.\n")


def test_names_are_ids_prefixes_folders_and_aliases(project):
    root, first, second = project
    assert [find_named_bundle(root, n).name for n in (first, first[:7], "previous")] == [first] * 3
    assert find_named_bundle(root, f"bundles/{second}") == root / "bundles" / second
    with pytest.raises(UserError, match="has no challenger .champion .*, previous .*name a bundle by its id"):
        find_named_bundle(root, "challenger")
    for name in ("", "c0ffee", "../bundles", "*"):
        with pytest.raises(UserError, match="holds no bundle"): find_named_bundle(root, name)


def test_in_a_release_the_challenger_is_the_new_one(project, tmp_path):
    _, first, second = project
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n")
    variants = [Variant("champion", first, .5), Variant("challenger", second, .5)]
    (tmp_path / "bundles" / second).mkdir(parents=True)
    with pytest.raises(UserError, match="no model is released"): find_named_bundle(tmp_path, "champion")
    write_plan(tmp_path / "releases/churn.json", ReleasePlan("churn", 1, variants, release=ReleaseStep("r", 0)))
    assert find_named_bundle(tmp_path, "challenger").name == second


def test_a_changed_byte_is_not_compared(project, tmp_path):
    root, first, second = project
    card = root / "bundles" / first / "card.md"
    before = card.read_text()
    card.write_text("changed")
    with pytest.raises(UserError, match="card.md"): diff_bundles(root, first, second)
    card.write_text(before)
    assert read_json(root / "bundles" / second / "provenance.json", dict)["git_commit"] == "b" * 40
