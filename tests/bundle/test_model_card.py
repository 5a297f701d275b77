"The model card: what it must say, and that no text of the data does anything in it."
import re
import shutil
from html import unescape

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trained_project as modelling
from support.html_pages import self_contained

from mlops_nb.bundle.model_card import _changed_params, escape_markdown, markdown_table
from mlops_nb.bundle.stage import pack_bundle
from mlops_nb.config.params import CostParams, EvaluateParams, Params
from mlops_nb.config.schema import read_schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.evaluate.fairness import FairnessReport, GroupMetrics
from mlops_nb.evaluate.slice_discovery import DiscoveredSlice, SliceDiscovery
from mlops_nb.report.html import render_markdown
from mlops_nb.report.stage import write_model_card_page
from mlops_nb.stats.bootstrap import Estimate

HEADINGS = ["Intended use", "Inputs", "Data", "Metrics", "Performance by segment", "Fairness", "Limitations",
            "Provenance"]
HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(1)) ![y](https://x/y.png) `*_"


@pytest.fixture(scope="module", params=list(modelling.CLASSES))
def project(request, tmp_path_factory):
    "Packed, with a contract and an evaluation whose every text is hostile."
    root, task = tmp_path_factory.mktemp(request.param), request.param
    modelling.judged(modelling.trained(root, task, n=500), task)
    contract = read_schema(root / "schema.yaml")
    contract.intended_use, contract.dataset, contract.columns["x"].doc, contract.columns["y"].doc = (HOSTILE,) * 4
    write_schema(contract, root / "schema.yaml")
    found = read_json(root / "artifacts/evaluation/evaluation.json", dict)
    figure = {"value": .5, "low": .4, "high": .6}
    estimate, rates = Estimate(.5, .4, .6), {"selection_rate": Estimate(.5, .4, .6),
                                             "true_positive_rate": Estimate(None)}
    spots = [DiscoveredSlice(measure="loss", where=f"{w} {HOSTILE}", n_rows=9, share=.1, error=estimate, rest=.1,
                             gap=estimate, p_value=p, predicted=.1,
                      observed=.2, primary_value=estimate, primary_value_rest=.3) for w,
                      p in (("sure", .01), ("chance", .5))]
    fair = [FairnessReport("known", [GroupMetrics(HOSTILE, 300, rates)], {}, {}, HOSTILE),
            FairnessReport("known and place", [], {}, {}, "Both together.")]
    found |= {"comparisons": [{"message": HOSTILE}], "recalibration": {"message": "Nothing helps."},
              "threshold": figure,
              "slice_discovery": msgspec.to_builtins(SliceDiscovery(n_comparisons=50, slices=spots,
                                                                    message="One was found.")),
              "fairness": msgspec.to_builtins(fair),
              "slices": [{"column": "place", "value": HOSTILE, "n_rows": 10, "estimate": figure, "gap": figure}],
              "small_slices": [{"column": "known", "n_slices": 1, "n_rows": 3}]}
    write_json(root / "artifacts/evaluation/evaluation.json", found)
    pack_bundle(root)
    return root


def text_of(html): return unescape(re.sub(r"<[^>]+>", "", html))


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs",
                                                 "Cc"]), max_size=30) | st.text("<>&|[]()!`*_\\#-~:;'\"x \n",
                                                                                max_size=30))
def test_any_text_is_shown_as_it_is(text):
    for html in (render_markdown(markdown_table(["a"], [(text,)])), render_markdown("- x " + escape_markdown(text))):
        assert text_of(html).split() == ([] if html.startswith("<ul") else ["a"]) + (["x"] if html.startswith("<ul")
                                                                                     else []) + text.split()


def test_the_page_needs_nothing_and_runs_nothing(project):
    html = write_model_card_page(project / "artifacts/bundle", project / "pages/card.html").read_text(encoding="utf-8")
    page = self_contained(html)
    assert all(link.startswith("#") for link in page.links) and "img" not in page.tags
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert text_of(html).count(HOSTILE) >= 5


def test_the_headings_are_always_the_same(project):
    card = (project / "artifacts/bundle/card.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", card, re.M) == HEADINGS
    assert "0.5 (0.4 to 0.6)" in card and "undefined" in card and "None" not in card.replace("\n\nNone.\n\n", "")


def test_a_card_says_where_the_model_comes_from_and_what_nobody_wrote(project):
    bundle = project / "artifacts/bundle"
    card, origin = (bundle / "card.md").read_text(encoding="utf-8"), read_json(bundle / "provenance.json", dict)
    assert all(f"| {k} | {v[:12]}… |" in card for k, v in origin["input_hashes"].items())
    assert "| train.gbdt.num_leaves | 7 |" in card
    assert ("Not for:** Nobody has written it down; `out_of_scope` in schema.yaml" in card
            and "For:** Nobody" not in card)
    assert "Parent: none." in card
    parent = "ab" * 32
    pack_bundle(project, parent)
    assert f"the model `{parent}`" in (bundle / "card.md").read_text(encoding="utf-8")


def test_groups_are_told_and_what_may_be_chance_is_not(project):
    card = (project / "artifacts/bundle/card.md").read_text(encoding="utf-8")
    assert "One was found." in card and "| sure " in card and "| chance " not in card
    assert ("| group | rows | selection rate | true positive rate |" in card and "- Both together." in card
            and "| known = " in card)
    assert "- Calibration: Nothing helps." in card and "threshold would lie between 0.4 and 0.6." in card


def test_a_card_says_where_nobody_looked(tmp_path):
    pack_bundle(modelling.judged(modelling.trained(tmp_path, n=300)))
    card = (tmp_path / "artifacts/bundle/card.md").read_text(encoding="utf-8")
    assert ("Slice discovery was not run." in card
            and "marks no column as sensitive, so fairness was not measured" in card)
    assert "For:** Nobody has written it down; `intended_use` in schema.yaml" in card


def test_only_what_was_changed_is_listed():
    assert _changed_params(msgspec.to_builtins(Params())) == []
    changed = Params(evaluate=EvaluateParams(costs=CostParams(false_negative=5.0)))
    assert _changed_params(msgspec.to_builtins(changed)) == [("evaluate.costs.false_negative", 5.0)]


def test_the_card_of_a_changed_bundle_is_not_shown(project, tmp_path):
    bundle = shutil.copytree(project / "artifacts/bundle", tmp_path / "bundle")
    (bundle / "card.md").write_text("# all is well\n")
    with pytest.raises(UserError, match="card.md was changed after the bundle was made"):
        write_model_card_page(bundle, tmp_path / "card.html")
    assert not (tmp_path / "card.html").exists()
