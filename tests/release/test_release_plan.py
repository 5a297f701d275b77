"The release plan: what it can say, what is refused and in which words, and that an old one says what it said."
import multiprocessing

import pytest
from msgspec.structs import replace

from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.release.release_plan import (
    ReleasePlan,
    ReleaseStep,
    RoutingRule,
    Variant,
    check_plan,
    history_path,
    promote_bundle,
    read_history,
    read_plan,
    replace_plan,
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
    (faulty([Variant("a/b", "aaa")]), "the variant 'a/b' has a name that is none; use 1 to 64 letters"),
    (faulty([A, B], rules=[RoutingRule({}, "c")]), "rule 1 names the variant 'c', which is not there; known are a, b."),
    (faulty([A, B], rules=[RoutingRule({}, "a"), RoutingRule({"x": 1}, "bb")]),
     "rule 2 names the variant 'bb', which is not there; did you mean 'b'?"),
    (faulty([A, B, Variant("s", "sss", mode="shadow")], rules=[RoutingRule({}, "s")]),
     "is a shadow and answers nobody."),
    (faulty([Variant("a", "aaa", flag="f")]), "depends on a flag"),
    (faulty([A, B], sticky_key="header:"), "sticky_key names no column"),
    (faulty([A, Variant("held_out", "bbb", .1)]), "the name 'held_out', which is that of exploration"),
    (faulty([Variant("a", "aaa", 1, flag="f"), Variant("b", "bbb", 0)]), "depends on a flag")])
def test_what_cannot_be_right_is_refused_before_it_is_written(tmp_path, plan, words):
    path = tmp_path / "rows.json"
    with pytest.raises(UserError) as e: write_plan(path, plan)
    assert words in str(e.value) and str(path) in str(e.value) and not path.exists()
    write_json(path, plan)  # a person may write anything
    with pytest.raises(UserError) as e: read_plan(path)
    assert words in str(e.value) and "`mlops-nb release restore rows`" in str(e.value)


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


def test_a_promotion_keeps_what_the_plan_says_of_customers(tmp_path):
    path = tmp_path / "rows.json"
    promote_bundle(path, "rows", "aaa")
    rules = [RoutingRule({"place": "a"}, "challenger"), RoutingRule({"place": "b"}, "champion")]
    canary = ReleasePlan("rows", 0, [Variant("champion", "aaa", .9), Variant("challenger", "bbb", .1)], "customer",
                         rules, {"new": True}, True, "r1", ReleaseStep("r1", 0))
    replace_plan(path, canary, expect=1)
    now = promote_bundle(path, "rows", "bbb")
    assert now == ReleasePlan("rows", 3, [Variant("champion", "bbb"), Variant("previous", "aaa", 0)], "customer",
                              rules[1:], {"new": True}, True, "r1")
    back = promote_bundle(path, "rows", "aaa", action="rollback")
    assert back.variants == [Variant("champion", "aaa")]


def test_a_promotion_may_say_how_many_customers_are_held_out_and_keeps_it_otherwise(tmp_path):
    path = tmp_path / "rows.json"
    for bundle, explore, found in (("b1", .02, .02), ("b2", None, .02), ("b3", 0., 0.)):
        assert promote_bundle(path, "rows", bundle, explore=explore).explore == read_plan(path).explore == found


def test_of_two_who_change_a_plan_the_later_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    now = promote_bundle(path, "rows", "aaa")
    replace_plan(path, replace(now, sticky_key="customer"), expect=1)
    with pytest.raises(UserError, match="revision 2 is in force, and revision 1 was expected"):
        replace_plan(path, replace(now, salt="mine"), expect=1)
    with pytest.raises(UserError, match="and revision 0 was expected"):
        write_plan(path, ReleasePlan("rows", 1, [A, B]), expect=0)
    assert read_plan(path).sticky_key == "customer"


def _raise_a_share(path, share):
    while True:
        now = read_plan(path)
        others = [v for v in now.variants if v.name != "champion"]
        plan = replace(now, variants=[replace(now.variants[0], weight=1 - len(others) * .01 - .01), *others,
                                      Variant(f"v{share}", "bbb", .01)])
        try: return replace_plan(path, plan, expect=now.revision)
        except UserError: pass # the other was first


def test_two_processes_lose_no_change(tmp_path):
    path = tmp_path / "rows.json"
    promote_bundle(path, "rows", "aaa")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_raise_a_share, args=(path, i)) for i in range(2)]
    for w in writers: w.start()
    for w in writers: w.join(60)
    assert [w.exitcode for w in writers] == [0, 0]
    assert {v.name for v in read_plan(path).variants} == {"champion", "v0", "v1"} and read_plan(path).revision == 3


def test_a_change_of_shares_keeps_the_release_whose_history_was_not_written(tmp_path):
    "Killed after the plan was replaced and before its history was; then a step without an event."
    path = tmp_path / "rows.json"
    promote_bundle(path, "rows", "aaa")
    before = history_path(path).read_bytes()
    now = promote_bundle(path, "rows", "bbb")
    history_path(path).rename(history_path(path).with_suffix(".pending"))
    history_path(path).write_bytes(before)
    replace_plan(path, replace(now, salt="s"), expect=2)
    assert [e.bundle for e in read_history(path)] == ["aaa", "bbb"] and read_plan(path).revision == 3
    assert not history_path(path).with_suffix(".pending").exists()
