"The steps of each strategy, and that the plan of every step deals out what it says."
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlops_nb.config.params import STRATEGIES, ReleaseParams
from mlops_nb.core.errors import UserError
from mlops_nb.release.release_plan import ReleasePlan, RoutingRule, Variant, check_plan
from mlops_nb.release.strategies import (
    FLAG,
    Release,
    check_base,
    choose_sticky_key,
    plan_for_step,
    release_steps,
    rollback_plan,
)

BASE = ReleasePlan("churn", 7, [Variant("champion", "a1"), Variant("previous", "z0", 0.0), Variant("mine", "c3", 0.0)],
                   sticky_key="region", rules=[RoutingRule({"country": "AT"}, "mine")], flags={"new": True}, salt="s")


def release_of(strategy, base=BASE, **params):
    params = ReleaseParams(**params)
    return Release(id="r1", endpoint="churn", environment="development", bundle="b2", champion="a1",
                   steps=release_steps(strategy, params), started_at="2026-11-29T10:00:00+00:00", started_by="ana",
                   first_revision=7, revision=7, params=params, sticky_key="customer", base=base)


STRATEGY = st.lists(st.sampled_from([s for s in STRATEGIES if s != "at_once"]), min_size=1, unique=True).map(", ".join)
STEPS = st.lists(st.floats(.01, 99.9), max_size=5, unique=True).map(lambda s: [*sorted(s), 100])


@given(strategy=STRATEGY | st.just("at_once"), steps=STEPS)
def test_every_step_has_a_plan_that_deals_out_what_the_step_says(strategy, steps):
    release = release_of(strategy, steps=steps)
    assert [s.share == 1 for s in release.steps] == [False] * (len(release.steps) - 1) + [True]
    for i, step in enumerate(release.steps[:-1]):
        plan = plan_for_step(BASE, release, i)
        check_plan(plan, "plan")
        shares = {v.name: (v.bundle, v.weight, v.mode) for v in plan.variants}
        assert shares == {"champion": ("a1", 1 - step.share, "live"), "mine": ("c3", 0, "live"),
                          "challenger": ("b2", step.share, "shadow" if step.kind == "shadow" else "live")}
        assert (plan.salt, plan.sticky_key, plan.release.id, plan.release.step) == ("r1", "customer", "r1", i)
        assert plan.rules[:1] == BASE.rules and plan.flags["new"]
        assert rollback_plan(plan, release) == BASE
    last = plan_for_step(BASE, release, len(release.steps) - 1)
    check_plan(last, "plan")
    assert [(v.name, v.bundle, v.weight) for v in last.variants] == [
        ("champion", "b2", 1), ("previous", "a1", 0), ("mine", "c3", 0)]
    assert replace(last, variants=BASE.variants) == BASE


def test_exploration_is_that_of_the_params_in_every_step_and_after_it_and_a_roll_back_takes_it_back():
    release = release_of("canary", explore=.02)
    plans = [plan_for_step(BASE, release, i) for i in range(len(release.steps))]
    for plan in plans: check_plan(plan, "plan")
    assert {plan.explore for plan in plans} == {.02} and rollback_plan(plans[1], release).explore == 0


@pytest.mark.parametrize("strategy, steps", [
    ("at_once", [("at_once", 1)]), ("shadow", [("shadow", 0), ("shadow", 1)]), ("ab", [("ab", .5), ("ab", 1)]),
    ("canary", [("canary", .01), ("canary", .05), ("canary", .25), ("canary", .5), ("canary", 1)]),
    ("blue-green", [("blue_green", 0), ("blue_green", 1)]), ("flag", [("flag", 0), ("flag", 1)]),
    ("shadow, ab", [("shadow", 0), ("ab", .5), ("ab", 1)])])
def test_the_steps_of_a_strategy(strategy, steps):
    assert [(s.kind, s.share) for s in release_steps(strategy, ReleaseParams())] == steps


def test_each_step_but_the_last_waits_for_time_and_units_and_a_warm_bundle_does_not():
    params = ReleaseParams(min_step_hours=12, min_units=70)
    assert [(s.min_hours, s.min_units) for s in release_steps("shadow, canary", params)] == [(12, 70)] * 5 + [(0, 0)]
    assert [(s.min_hours, s.min_units) for s in release_steps("blue_green", params)] == [(0, 0)] * 2


def test_a_flag_is_on_for_segments_or_for_requests_that_ask():
    on = plan_for_step(BASE, release_of("flag", flag_segments=[{"country": "CH"}, {"customer": [1, 2]}]), 0)
    assert [r.when for r in on.rules] == [{"country": "AT"}, {"country": "CH"}, {"customer": [1, 2]}]
    assert on.flags == {"new": True, FLAG: True} and not on.allow_request_flags
    asked = plan_for_step(BASE, release_of("flag"), 0)
    assert asked.rules[-1] == RoutingRule({}, "challenger") and asked.allow_request_flags
    assert asked.flags == {"new": True, FLAG: False}
    canary = plan_for_step(BASE, release_of("flag, canary"), 1)
    assert (canary.rules, canary.flags, canary.allow_request_flags) == (BASE.rules, BASE.flags, False)


def test_a_roll_back_keeps_what_a_person_changed_meanwhile():
    release = release_of("flag", flag_segments=[{"country": "CH"}])
    now = plan_for_step(BASE, release, 0)
    now = replace(now, revision=12, flags={**now.flags, "new": False}, rules=[RoutingRule({"country": "DE"}, "mine"),
                                                                               *now.rules])
    back = rollback_plan(now, release)
    assert (back.revision, back.flags) == (12, {"new": False})
    assert [r.when for r in back.rules] == [{"country": "DE"}, {"country": "AT"}]
    assert (back.variants, back.salt, back.sticky_key, back.release) == (BASE.variants, "s", "region", None)


def test_the_first_release_of_an_endpoint_has_no_bundle_before():
    release = replace(release_of("at_once", ReleasePlan("churn", 0, [])), champion="")
    plan = plan_for_step(release.base, release, 0)
    assert [(v.name, v.bundle) for v in plan.variants] == [("champion", "b2")]


@pytest.mark.parametrize("variants, says", [
    ([Variant("champion", "a", .5), Variant("other", "b", .5)], "shares the requests among champion, other"),
    ([Variant("champion", "a"), Variant("challenger", "b", 1.0, "shadow")], "'challenger' that no release made")])
def test_a_plan_that_deals_out_already_is_no_base(variants, says):
    with pytest.raises(UserError, match=says): check_base(ReleasePlan("churn", 1, variants))


def test_a_variant_of_another_name_that_answers_all_is_the_champion():
    base = ReleasePlan("churn", 1, [Variant("model-one", "a1"), Variant("mine", "c3", 0.0)])
    check_base(base)
    plan = plan_for_step(base, release_of("canary", base), 0)
    assert [v.name for v in plan.variants] == ["champion", "challenger", "mine"]


def test_who_is_dealt_out():
    params = ReleaseParams()
    assert choose_sticky_key(params, BASE, "entity", ["canary"]) == "region", "that of the plan"
    assert choose_sticky_key(params, None, "entity", ["canary"]) == "entity"
    assert choose_sticky_key(params, None, None, ["canary"]) is None
    assert choose_sticky_key(ReleaseParams(sticky_key="header:user"), BASE, "entity", ["ab"]) == "header:user"
    assert choose_sticky_key(ReleaseParams(sticky_key=""), BASE, "entity", ["canary"]) is None
    for none in (ReleaseParams(sticky_key=""), params):
        with pytest.raises(UserError, match="needs customers that stay in their half"):
            choose_sticky_key(none, None, None if none is params else "entity", ["shadow", "ab"])


@pytest.mark.parametrize("strategy, says", [
    ("cannary", "did you mean 'canary'"), ("canary, canary", "named twice"), ("", "no strategy is named"),
    ("at_once, canary", "names at_once among others")])
def test_a_strategy_that_cannot_be_is_one_sentence(strategy, says):
    with pytest.raises(UserError, match=says): release_steps(strategy, ReleaseParams())
