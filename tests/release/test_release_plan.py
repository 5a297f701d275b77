"The release plan: what it can say, what is refused and in which words, and that an old one says what it said."
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.release.release_plan import (
    ReleasePlan,
    RoutingRule,
    Variant,
    check_plan,
    promote_bundle,
    read_plan,
    write_plan,
)

A, B = Variant("a", "aaa", .9), Variant("b", "bbb", .1)


def faulty(variants, **how): return ReleasePlan("rows", 1, variants, **how)


@pytest.mark.parametrize("plan, words", [
    (faulty([Variant("a", "aaa", .5)]), "add up to 0.5; they must add up to 1."), (faulty([]), "add up to 0"),
    (faulty([A, B, Variant("c", "ccc", .5)]), "add up to 1.5"),
    (faulty([Variant("s", "sss", 1, "shadow")]), "add up to 0"),
    (faulty([A, B, Variant("a", "ccc", 0)]), "two variants have the name 'a'"),
    (faulty([Variant("", "aaa")]), "no name"),
    (faulty([A, B], rules=[RoutingRule({}, "c")]), "rule 1 names the variant 'c', which is not there; known are a, b."),
    (faulty([A, B], rules=[RoutingRule({}, "a"), RoutingRule({"x": 1}, "bb")]),
     "rule 2 names the variant 'bb', which is not there; did you mean 'b'?"),
    (faulty([A, B, Variant("s", "sss", mode="shadow")], rules=[RoutingRule({}, "s")]),
     "is a shadow and answers nobody."),
    (faulty([Variant("a", "aaa", flag="f")]), "depends on a flag"),
    (faulty([A, B], sticky_key="header:"), "sticky_key names no column"),
    (faulty([Variant("a", "aaa", 1, flag="f"), Variant("b", "bbb", 0)]), "depends on a flag")])
def test_what_cannot_be_right_is_refused_before_it_is_written(tmp_path, plan, words):
    path = tmp_path / "rows.json"
    with pytest.raises(UserError) as e: write_plan(path, plan)
    assert words in str(e.value) and str(path) in str(e.value) and not path.exists()
    write_json(path, plan)  # a person may write anything
    with pytest.raises(UserError) as e: read_plan(path)
    assert words in str(e.value)


@pytest.mark.parametrize("variant, words", [({"weight": 1.5}, "weight"), ({"mode": "dark"}, "mode"),
                                            ({"flga": "f"}, "flga")])
def test_a_word_or_a_number_that_is_none(tmp_path, variant, words):
    write_json(tmp_path / "p.json", {"endpoint": "r", "revision": 1,
                                     "variants": [{"name": "a", "bundle": "b", **variant}]})
    with pytest.raises(UserError, match=words): read_plan(tmp_path / "p.json")


def test_everything_a_plan_can_say_comes_back(tmp_path):
    plan = ReleasePlan("rows", 3, [A, B, Variant("s", "sss", mode="shadow"), Variant("n", "nnn", 0, flag="new")],
                       "header:x-customer",
                [RoutingRule({"place": ["a", None], "x": [0, 1.5], "known": True}, "b"), RoutingRule({}, "n")],
                {"new": False}, True, "s1")
    assert write_plan(tmp_path / "p.json", plan) == plan == read_plan(tmp_path / "p.json")


def test_a_plan_from_before_there_were_rules_reads_unchanged(tmp_path):
    old = {"endpoint": "rows", "revision": 2,
           "variants": [{"name": "champion", "bundle": "aaa", "weight": 1.0, "mode": "live"}]}
    write_json(tmp_path / "p.json", old)
    assert read_plan(tmp_path / "p.json") == ReleasePlan("rows", 2, [Variant("champion", "aaa")])
    now = promote_bundle(tmp_path / "p.json", "rows", "aaa")
    assert now.revision == 2 and read_json(tmp_path / "p.json", dict) == old  # it says so already
    assert promote_bundle(tmp_path / "p.json", "rows", "bbb").revision == 3


def test_ten_tenths_are_one(): check_plan(faulty([Variant(f"v{i}", "b", .1) for i in range(10)]), "p.json")
