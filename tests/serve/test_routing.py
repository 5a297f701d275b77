"Which variant answers: shares, the same customer the same variant, as few moves as possible, rules, flags, shadows."
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trained_project import schema

from mlops_nb.core.errors import UserError
from mlops_nb.release.release_plan import ReleasePlan, RoutingRule, Variant
from mlops_nb.serve.routing import Router

SCHEMA, N = schema("binary"), 4000
PEOPLE = {"id": [f"customer {i}" for i in range(N)]}


def router(weights, **how):
    how = {"sticky_key": "id", **how}
    return Router(ReleasePlan("rows", 1, [Variant(n, "b", w) for n, w in weights.items()], **how), SCHEMA)


def dealt(weights, **how):
    r = router(weights, **how)
    return [r.choose(PEOPLE, i).variant for i in range(N)]


def far(n, p): return 4.5 * (N * p * (1 - p)) ** .5 + 1 # chance leaves this with less than one in 100,000


weights = st.lists(st.integers(0, 20), min_size=2, max_size=5).filter(any).map(
    lambda parts: {f"v{i}": p / sum(parts) for i, p in enumerate(parts)})


@settings(max_examples=25, deadline=None)
@given(weights, st.text(max_size=5))
def test_everybody_gets_their_share(shares, salt):
    met = dealt(shares, salt=salt)
    for name, p in shares.items(): assert abs(met.count(name) - N * p) <= far(N, p) and (p or name not in met)


@settings(max_examples=25, deadline=None)
@given(st.floats(.01, .5), st.floats(0, .5))
def test_raising_the_weight_of_one_of_two_moves_only_customers_to_it(low, more):
    before, after = dealt({"a": 1 - low, "b": low}), dealt({"a": 1 - low - more, "b": low + more})
    moved = [(x, y) for x, y in zip(before, after, strict=True) if x != y]
    assert {*moved} <= {("a", "b")} and abs(len(moved) - N * more) <= far(N, more) + 1


@settings(max_examples=25, deadline=None)
@given(weights, st.integers(1, 20))
def test_among_those_whose_proportions_stay_nobody_moves(shares, joins):
    "One joins, or is given more, and the others make room in proportion; leaving is the same backwards."
    room = joins / 20
    after = {n: w * (1 - room) for n, w in shares.items()} | {"new": room}
    moved = {(x, y) for x, y in zip(dealt(shares), dealt(after), strict=True) if x != y}
    assert {y for _, y in moved} <= {"new"}


def test_a_flag_that_is_switched_moves_only_to_and_from_its_variant():
    variants = [Variant("a", "1", .5), Variant("b", "2", .3), Variant("c", "3", .2, flag="f")]
    off, on = (Router(ReleasePlan("rows", 1, variants, "id", flags={"f": f}), SCHEMA) for f in (False, True))
    before, after = ([r.choose(PEOPLE, i).variant for i in range(N)] for r in (off, on))
    assert "c" not in before and abs(before.count("a") - N * .5 / .8) <= far(N, .5 / .8)
    assert {y for x, y in zip(before, after, strict=True) if x != y} == {"c"}


def test_another_salt_and_another_endpoint_deal_anew():
    shares = {"a": .5, "b": .5}
    first = dealt(shares)
    elsewhere = Router(ReleasePlan("other", 1, [Variant("a", "b", .5), Variant("b", "b", .5)], "id"), SCHEMA)
    for other in (dealt(shares, salt="2"), [elsewhere.choose(PEOPLE, i).variant for i in range(N)]):
        same = sum(x == y for x, y in zip(first, other, strict=True))
        assert abs(same - N / 2) <= far(N, .5)


def test_the_order_and_the_bundles_of_the_variants_do_not_matter():
    assert dealt({"a": .3, "b": .3, "c": .4}) == dealt({"c": .4, "b": .3, "a": .3})


CODE = """import json, sys
from support.trained_project import schema
from mlops_nb.release.release_plan import ReleasePlan, Variant
from mlops_nb.serve.routing import Router
plan = ReleasePlan("rows", 1, [Variant("a", "b", .6), Variant("b", "b", .3), Variant("c", "b", .1)], "id")
r = Router(plan, schema("binary"))
print(json.dumps([r.choose({"id": [f"customer {i}"]}).variant for i in range(300)]))"""


def test_another_process_gives_the_same_answers():
    found = json.loads(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True,
                                      cwd="tests",
                                      timeout=60).stdout)
    assert found == dealt({"a": .6, "b": .3, "c": .1})[:300]
    assert "".join(found[:12]) == "acacabaaaaab"  # another version must not deal customers out anew


@pytest.mark.parametrize("keys", [[1, 2, 3], ["ä", "", "東京"], [1.5, True, "1"]])
def test_any_value_of_a_column_is_a_customer(keys):
    r = router({"a": .5, "b": .5}, sticky_key="count")
    assert [r.choose({"count": keys}, i) for i in range(3)] == [r.choose({"count": keys}, i) for i in range(3)]


def test_who_does_not_say_who_they_are_is_dealt_out_by_chance():
    for r, columns in ((router({"a": .5, "b": .5}), {}), (router({"a": .5, "b": .5}), {"id": [None]}),
                       (router({"a": .5, "b": .5}, sticky_key="header:X-Customer"), {}),
                       (router({"a": .5, "b": .5}, sticky_key=None), {})):
        met = [r.choose(columns, 0, {}).variant for _ in range(N)]
        assert abs(met.count("a") - N / 2) <= far(N, .5)


def test_chance_deals_by_weight_whatever_number_it_draws():
    r = router({"a": .7, "b": .2, "c": .1}, sticky_key=None)
    drawn = [r.choose({}, rng=lambda i=i: (i + .5) / 1000).variant for i in range(1000)]
    assert [drawn.count(v) for v in "abc"] == [700, 200, 100]
    assert [r.choose({}, rng=lambda x=x: x) for x in (0., 1 - 2**-53)] == [("a", .7), ("c", .1)]


def test_a_header_can_say_who_asks():
    r = router({"a": .5, "b": .5}, sticky_key="header:X-Customer")
    met = [r.choose({}, 0, {"x-customer": c}).variant for c in PEOPLE["id"]]
    assert met == [r.choose({}, 0, {"x-customer": c}).variant for c in PEOPLE["id"]]
    assert abs(met.count("a") - N / 2) <= far(N, .5)
    assert met == dealt({"a": .5, "b": .5})  # the same customer, however they are named
    assert not r.routes_rows and router({"a": .5, "b": .5}).routes_rows and not router({"a": 1.}).routes_rows


def test_rules_come_before_weights_and_the_first_that_fits_decides():
    variants = [Variant("a", "1", 1), Variant("b", "2", 0), Variant("c", "3", 0, flag="f"),
                Variant("s", "4", mode="shadow")]
    rules = [RoutingRule({"count": [40, None]}, "c"), RoutingRule({"count": [30, None], "known": True}, "b"),
             RoutingRule({"place": "a"}, "b")]
    columns = {"count": [45, 45, 35, 5, 5], "known": [True, False, True, True, True],
               "place": ["x", "x", "x", "a", None]}
    for flags, expected in (({}, "babba"), ({"f": True}, "ccbba")):
        r = Router(ReleasePlan("rows", 1, variants, None, rules, flags), SCHEMA)
        assert "".join(r.choose(columns, i).variant for i in range(5)) == expected


def test_a_request_can_switch_a_flag_on_only_where_the_plan_allows_it():
    variants = [Variant("a", "1", 1), Variant("b", "2", 0, flag="f"),
                Variant("s", "4", mode="shadow", flag="g"), Variant("t", "4", mode="shadow")]
    for allowed, met, heard in ((True, "b", ["s", "t"]), (False, "a", ["t"])):
        r = Router(ReleasePlan("rows", 1, variants, None, [RoutingRule({}, "b")], allow_request_flags=allowed), SCHEMA)
        headers = {"x-flags": "h, f ,g"}
        assert r.choose({}, 0, headers) == (met, 1.) and r.shadow_names(headers) == heard
        assert r.choose({}, 0, {}) == r.choose({}, 0) == ("a", 1.) and r.shadow_names({}) == r.shadow_names() == ["t"]


@pytest.mark.parametrize("how, words", [({"sticky_key": "knwon"}, "did you mean 'known'?"),
                                        ({"rules": [RoutingRule({"plaice": "a"}, "a")]},
                                         "rule 1 of the plan of 'rows'"),
                                        ({"rules": [RoutingRule({}, "a"), RoutingRule({"x": "one"}, "a")]}, "rule 2")])
def test_a_plan_about_columns_that_the_contract_does_not_have(how, words):
    with pytest.raises(UserError) as e: router({"a": 1.}, **how)
    assert words in str(e.value)


def test_a_rule_may_look_at_headers_of_the_request():
    variants = [Variant("a", "1", 1), Variant("b", "2", 0), Variant("c", "3", 0)]
    rules = [RoutingRule({"header:X-Partner": ["acme", "initech"], "known": True}, "b"),
             RoutingRule({"header:x-region": "north"}, "c"), RoutingRule({"header:x-partner": [None]}, "a"),
             RoutingRule({}, "c")]
    r = Router(ReleasePlan("rows", 1, variants, "header:x-region", rules), SCHEMA)
    columns = {"known": [True, False]}
    for headers, expected in (({"x-partner": "acme"}, "bc"), ({"x-partner": "acme", "x-region": "north"}, "bc"),
                              ({"x-region": "north"}, "cc"), ({}, "aa"), (None, "aa"), ({"x-partner": "Acme"}, "cc")):
        assert "".join(r.choose(columns, i, headers).variant for i in range(2)) == expected
    assert [h.name for h in r.request_headers()] == ["x-partner", "x-region"]


@pytest.mark.parametrize("when", [{"header:": "a"}, {"header:x": 7}, {"header:x": []}, {"header:x": ["a", True]}])
def test_a_rule_about_a_header_that_cannot_be(when):
    with pytest.raises(UserError, match="rule 1 of the plan of 'rows' wants 'header:"):
        router({"a": 1.}, rules=[RoutingRule(when, "a")])


def test_a_canary_moves_only_those_who_must_move_and_keeps_its_shares():
    n, steps = 100_000, (0, .01, .05, .25, .5, 1.)
    people = {"id": [f"subscriber {i}" for i in range(n)]}
    groups = []
    for share in steps:
        r = router({"champion": 1 - share, "challenger": share, "previous": 0.}, salt="release 7f3a")
        met = [r.choose(people, i) for i in range(n)]
        assert {x.share for x in met} == {s for s in (1 - share, share) if s}
        groups.append({i for i, x in enumerate(met) if x.variant == "challenger"})
        assert {x.variant for x in met} == {"champion", "challenger"} - {{0: "challenger", 1: "champion"}.get(share)}
        assert abs(len(groups[-1]) - n * share) <= 4.5 * (n * share * (1 - share))**.5
    assert all(before < after for before, after in zip(groups, groups[1:], strict=False))


def test_the_customers_of_the_first_step_are_others_in_another_release():
    first = [{i for i, v in enumerate(dealt({"champion": .95, "challenger": .05}, salt=salt)) if v == "challenger"}
             for salt in ("release 1", "release 2")]
    assert abs(len(first[0] & first[1]) - N * .05**2) <= far(N, .05**2)


def test_a_variant_that_nothing_is_dealt_to_costs_nothing():
    for weights, several in (({"a": 1.}, False), ({"a": 1., "b": 0.}, False), ({"a": .9, "b": .1, "c": 0.}, True)):
        assert router(weights).routes_rows == several
        assert not router(weights, sticky_key="header:x-customer").routes_rows
    variants = [Variant("a", "1", .5), Variant("b", "2", .5, flag="f")]
    for how, several in (({}, False), ({"flags": {"f": True}}, True), ({"allow_request_flags": True}, True)):
        assert Router(ReleasePlan("rows", 1, variants, "id", **how), SCHEMA).routes_rows == several


def test_exploration_holds_a_share_of_the_customers_out_always_the_same():
    held = []
    for weights, salt in (({"a": 1.}, ""), ({"a": .9, "b": .1}, "r1"), ({"a": .5, "b": .5}, "r1"), ({"b": 1.}, "r2")):
        r = router(weights, salt=salt, explore=.1)
        met = [r.choose(PEOPLE, i) for i in range(N)]
        held.append({i for i, x in enumerate(met) if x.variant == "held_out"})
        expected = {n: pytest.approx(.9 * w) for n, w in weights.items()} | {"held_out": .1}
        assert {x.variant for x in met} == {*expected} and all(x.share == expected[x.variant] for x in met)
        assert r.routes_rows
        for name, w in weights.items():
            p = .9 * w
            assert abs(sum(x.variant == name for x in met) - N * p) <= far(N, p)
    assert held[0] == held[1] == held[2] == held[3] and abs(len(held[0]) - N * .1) <= far(N, .1)
    other = Router(ReleasePlan("other", 1, [Variant("a", "b")], "id", explore=.1), SCHEMA)
    assert {i for i in range(N) if other.choose(PEOPLE, i).variant == "held_out"} != held[0]


def test_exploration_without_a_customer_is_by_chance_and_rules_come_before_it():
    r = router({"a": 1.}, sticky_key=None, explore=.25, rules=[RoutingRule({"known": True}, "a")])
    columns = {"known": [True, False]}
    assert {r.choose(columns, 0) for _ in range(200)} == {("a", 1.)}
    drawn = [r.choose(columns, 1, rng=lambda i=i: (i + .5) / 1000) for i in range(1000)]
    assert drawn.count(("held_out", .25)) == 250 and drawn.count(("a", .75)) == 750


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_only_a_binary_task_has_a_decision_to_keep_somebody_out_of(task):
    with pytest.raises(UserError, match=f"its models are {task}; that is for binary ones, so set explore to 0"):
        Router(ReleasePlan("rows", 1, [Variant("a", "b")], explore=.01), schema(task))
