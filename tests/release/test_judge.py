"The judge on logs that a real writer has written, looked at again and again."
import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace
from support.release_logs import Traffic, at_hour, project, release_of

from mlops_nb.config.params import MarginParams, ReleaseParams, SuccessParams
from mlops_nb.config.schema import Column, Schema, write_schema
from mlops_nb.examples.subscribers import subscriber_schema
from mlops_nb.model.features import metric
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.release.judge import judge_release, with_own_metrics
from mlops_nb.release.judge_evidence import rate_confidence_sequence, release_evidence
from mlops_nb.release.judge_state import JudgeRules, JudgeState, read_judge_state


@pytest.fixture
def root(tmp_path): return project(tmp_path)


@pytest.fixture
def traffic(root):
    traffic = Traffic(root)
    yield traffic
    traffic.close()


BASICS = MarginParams(decisions=None, scores=None) # failures and latency: what is counted


def look(root, release, hour=30): return judge_release(root, release, at_hour(hour))


def looks(root, release, traffic, n=30, batch=200, **how):
    "Verdicts after each batch of requests, until one is another than `go_on`."
    for i in range(n):
        traffic.send(batch, hour=1 + i / n, **how)
        verdict = look(root, release)
        if verdict.action != "go_on": break
    return verdict


def test_a_sound_challenger_is_promoted_when_it_is_known_well_enough(root, traffic):
    release = release_of()
    traffic.send(3000)
    few = look(root, release)
    assert few.action == "go_on" and "500 units of the challenger" in few.missing[0]
    verdict = looks(root, release, traffic, 200, 1000)
    assert verdict.action == "promote" and not verdict.missing
    assert all(m.passes for m in verdict.metrics) and verdict.units["challenger"] >= 500


def test_nothing_is_promoted_before_its_time(root, traffic):
    traffic.send(12_000)
    release = release_of(margins=BASICS)
    assert look(root, release, hour=30).action == "promote"
    early = look(root, release, hour=3)
    assert early.action == "go_on" and early.missing == ["3 of 24 hours"]
    assert look(root, release, hour=-5).missing == ["0 of 24 hours"] # the clock was set back


@pytest.mark.parametrize("metric,how", [("failures", dict(failures=(.01, .03))), ("failures", dict(failures=(0., .02))),
                                        ("latency_p99", dict(slower=1.5)), ("scores", dict(shift=.08)),
                                        ("decisions", dict(threshold=(.3, .2)))])
def test_a_challenger_that_does_harm_is_rolled_back(root, traffic, metric, how):
    verdict = looks(root, release_of(), traffic, 30, 500, **how)
    assert verdict.action == "roll_back" and not verdict.void
    proven = [m.name for m in verdict.metrics if m.is_proven]
    assert metric in proven or metric.startswith("latency") and proven[0].startswith("latency")
    assert verdict.reason.startswith("The challenger")


def test_shares_that_do_not_fit_void_the_release(root, traffic):
    verdict = looks(root, release_of(), traffic, 20, 500, share=.05)
    assert (verdict.action, verdict.void) == ("roll_back", True)
    assert "do not fit the shares" in verdict.reason


def test_without_evidence_it_goes_on_until_the_deadline_and_is_then_rolled_back(root, traffic):
    release = release_of(max_hours=100.)
    assert look(root, release, 99).action == "go_on"
    verdict = look(root, release, 101)
    assert verdict.action == "roll_back" and "within 100 hours" in verdict.reason
    traffic.send(300)
    assert look(root, release, 101).action == "roll_back"


def test_rows_that_chance_did_not_deal_do_not_count(root, traffic):
    for _ in range(600):
        traffic.answer(1, True, share=1.) # by a rule, or asked for by the client
        traffic.answer(1, True, revision=4, failed="challenger", variant="champion") # before the release
        traffic.answer(1, False, endpoint="other")
    verdict = look(root, release_of())
    assert verdict.units == {"champion": 0, "challenger": 0} and verdict.action == "go_on"


def test_a_log_that_cannot_be_read_promotes_nothing(root, traffic, monkeypatch):
    traffic.send(12_000)
    release = release_of(margins=BASICS)
    assert look(root, release).action == "promote"

    def broken(*_): raise OSError(5, "Input/output error")
    monkeypatch.setattr("mlops_nb.release.judge.read_since", broken)
    verdict = look(root, release)
    assert verdict.action == "go_on" and "cannot be read" in verdict.reason
    assert look(root, release, 400).action == "roll_back"


def test_a_look_ends_where_requests_come_all_the_time(root, traffic, monkeypatch):
    from mlops_nb.release import judge
    read = judge.read_since

    def busy(*args):
        traffic.send(1)
        return read(*args)
    monkeypatch.setattr("mlops_nb.release.judge.read_since", busy)
    assert sum(look(root, release_of()).units.values()) == 1


def test_each_line_counts_once_whatever_is_compacted_or_killed(root, traffic, tmp_path):
    "The counts after many looks are those of one look."
    release, other = release_of(margins=BASICS), project(tmp_path / "other")
    twin = Traffic(other)
    for i in range(8):
        traffic.send(400, hour=i, failures=(.01, .02))
        twin.send(400, hour=i, failures=(.01, .02))
        path = root / "releases/r1/judge.json"
        before = path.read_bytes() if path.exists() else None
        look(root, release)
        if i % 3 == 2: path.write_bytes(before) # killed before the state was written
        if i % 4 == 3: compact_log(root / "predictions")
    verdict, once = look(root, release), look(other, release)
    assert verdict == once
    (root / "releases/r1/judge.json").write_text("{") # damaged: all of it is counted again
    assert look(root, release) == once
    twin.close()


def test_a_customer_counts_once(root, traffic):
    release = release_of(sticky_key="customer")
    customers = [f"c{i}" for i in range(40)]
    for i in range(10):
        traffic.send(40, hour=i, entities=customers, failures=(1., 1.))
        verdict = look(root, release)
    assert sum(verdict.units.values()) == 40
    evidence = {m.name: m for m in verdict.metrics}
    assert evidence["failures"].n == 40 and evidence["failures"].e_value < 20


@pytest.mark.parametrize("key,entity,unit", [
    (None, "customer", "one request"), ("customer", "customer", "one customer"), ("plan", "customer", "one plan"),
    ("header:x-id", "customer", "one customer, as the log has no header:x-id"),
    ("header:x-id", None, "one request, as the log has no header:x-id")])
def test_a_verdict_says_what_counts_once(root, traffic, key, entity, unit):
    "The log has no headers: where one deals, the entity counts, or each request."
    write_schema(replace(subscriber_schema(), entity=entity), root / "schema.yaml")
    traffic.send(20)
    assert look(root, release_of(sticky_key=key)).unit == unit


def frame(rng, start, n, share, revision=5):
    "Records of requests to two variants that are alike."
    mine = rng.random(n) < share
    name = np.where(mine, "challenger", "champion")
    return pl.DataFrame(dict(
        id=[f"r{i}" for i in range(start, start + n)], row=0, time=np.arange(start, start + n), lease_id=0,
        seq=np.arange(start, start + n), mode="live", revision=revision, share=np.where(mine, share, 1 - share),
        variant=name, failed=np.where(rng.random(n) < .02, name, ""), source="model",
        own_us=rng.lognormal(8, .5, n).astype(int), score=(score := rng.beta(2, 6, n)),
        decision=np.where(score > .3, "yes", "no"))).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))


def test_a_release_that_is_no_worse_is_hardly_ever_rolled_back():
    "Fourteen releases are looked at after every 300 requests, through two steps."
    rng, params, rolled_back = np.random.default_rng(0), ReleaseParams(), 0
    for r in range(14):
        state = JudgeState(f"r{r}")
        for i in range(8):
            share = .1 if i < 4 else .5
            state.count_records(frame(rng, 300 * i, 300, share), JudgeRules(4, i // 4, share))
            if any(m.is_proven for m in release_evidence(state, params)):
                rolled_back += 1
                break
    assert rolled_back <= 1


@pytest.mark.parametrize("p", [.003, .5])
def test_the_interval_of_a_rate_holds_at_all_looks(p):
    rng, misses = np.random.default_rng(1), 0
    for _ in range(60):
        k = (rng.random(1000) < p).cumsum()
        bounds = [rate_confidence_sequence(int(k[n - 1]), n) for n in (10, 30, 100, 200, 400, 700, 1000)]
        misses += any(not low <= p <= high for low, high in bounds)
    assert misses <= 3


SHADOW = dict(kind="shadow", share=0.)


def test_a_shadow_that_agrees_may_go_on_to_answer(root, traffic):
    release = release_of(**SHADOW)
    traffic.send_shadowed(300)
    assert look(root, release).action == "go_on"
    for i in range(4): traffic.send_shadowed(600, hour=2 + i)
    verdict = look(root, release)
    assert verdict.action == "promote" and verdict.units["champion"] == verdict.units["challenger"] == 2700


@pytest.mark.parametrize("metric,how", [("shadow failures", dict(failures=.03)), ("shadow scores", dict(shift=.06)),
                                        ("shadow decisions", dict(threshold=.2))])
def test_a_shadow_that_does_harm_is_rolled_back(root, traffic, metric, how):
    release = release_of(**SHADOW, margins=MarginParams(decisions=.25 if "decisions" in metric else None))
    for i in range(12):
        traffic.send_shadowed(250, hour=i, **how)
        verdict = look(root, release)
        if verdict.action != "go_on": break
    assert verdict.action == "roll_back"
    assert metric in [m.name for m in verdict.metrics if m.is_proven]


def test_a_shadow_that_left_rows_out_gives_no_verdict(root, traffic):
    release = release_of(**SHADOW)
    for hour in (1, 2): traffic.send_shadowed(1500, hour=hour, left_out=.03, failures=.05)
    verdict = look(root, release)
    assert verdict.action == "go_on" and "the shadow left out" in verdict.reason
    assert look(root, release, 400).action == "roll_back"


def test_halves_of_a_pair_may_come_in_two_looks(root, traffic):
    release = release_of(**SHADOW)
    for _ in range(12):
        traffic.answer(1, False, share=1.)
        look(root, release)
        traffic.n -= 1
        traffic.answer(1, True, share=1., mode="shadow")
    assert look(root, release).units == {"champion": 12, "challenger": 12}


def test_who_is_held_out_of_the_decisions_is_in_no_pair(root, traffic):
    release = release_of(**SHADOW, explore=.05)
    for i in range(40):
        held_out = dict(variant="held_out", share=.05) if i % 20 == 0 else dict(share=.95)
        traffic.answer(1, False, **held_out)
        traffic.n -= 1
        traffic.answer(1, True, share=1., mode="shadow")
    assert look(root, release).units == {"champion": 38, "challenger": 38}


def test_records_whose_clock_was_set_back_count(root, traffic):
    "What counts is the plan that dealt them."
    for hour in (5, -3, 2): traffic.send(50, hour=hour)
    assert sum(look(root, release_of()).units.values()) == 150


def test_constant_scores_are_not_compared(root, traffic):
    for i in range(8000): traffic.answer(1, i % 10 == 0)
    verdict = look(root, release_of())
    assert verdict.action == "promote"
    assert "not compared" in next(m.says for m in verdict.metrics if m.name == "scores")


def test_behind_a_flag_failures_are_bounded(root, traffic):
    release = release_of(kind="flag", share=0.)
    for _ in range(900): traffic.answer(1, True, share=1.)
    assert look(root, release).action == "promote"
    for _ in range(200): traffic.answer(2, True, share=1., failed="challenger", variant="champion")
    assert look(root, release).action == "roll_back"


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_other_tasks(root, traffic, task):
    schema = subscriber_schema()
    write_schema(replace(schema, task=task, target="charge" if task == "regression" else schema.target,
                         classes=None if task == "regression" else ["a", "b", "c"]), root / "schema.yaml")
    for i in range(6000):
        value = traffic.rng.gamma(2, 10)
        score, decision = ([value], None) if task == "regression" else ([[.2, .3, .5]], ["abc"[i % 3]])
        traffic.answer(1, i % 10 == 0, score=score, decision=decision, own_us=100 + i % 77)
    verdict = look(root, release_of())
    assert verdict.action != "roll_back" and ("scores" in [m.name for m in verdict.metrics])


def test_a_cold_cache_is_no_reason_to_roll_back(root, traffic):
    "Of a small model that one request in a hundred goes to, each answer takes two to three times as long."
    traffic.share = .01
    for i in range(12_000): traffic.answer(1, own := i % 100 == 0, own_us=(30 if own else 10) + i % 20)
    verdict = look(root, release_of(.01, margins=BASICS))
    latency = [m for m in verdict.metrics if m.name.startswith("latency")]
    assert len(latency) == 3 and not any(m.is_proven for m in latency) and verdict.action == "go_on"


def evidence(verdict, name): return next(m for m in verdict.metrics if m.name == name)


LABELS = MarginParams(latency=None, decisions=None, scores=None, auc=.05) # what is judged by labels


@pytest.mark.parametrize("how", [dict(), dict(shadow=True)])
def test_a_challenger_that_is_further_from_the_truth_is_rolled_back_by_its_loss(root, how):
    traffic, release = Traffic(root, share=.5), release_of(.5, margins=LABELS)
    if how: release = release_of(**SHADOW, margins=LABELS)
    for i in range(8):
        traffic.send_labelled(400, hour=i, noise=(.05, .5), **how)
        verdict = look(root, release)
        if verdict.action == "roll_back": break
    traffic.close()
    proven = {m.name for m in verdict.metrics if m.is_proven}
    assert verdict.action == "roll_back" and proven & {"loss", "shadow loss", "auc"}


def test_a_gain_that_is_asked_for_is_waited_for(root):
    traffic = Traffic(root, share=.5)
    traffic.send_labelled(3000, noise=(.5, .05))
    asked = {m: release_of(.5, margins=LABELS, success=SuccessParams(metric=m)) for m in ("loss", "cost", "auc")}
    for name, release in asked.items():
        found = evidence(look(root, release), name)
        assert found.estimate is not None, name
    assert look(root, asked["loss"]).action == "promote"
    says = evidence(look(root, release_of(.5, margins=LABELS)), "loss").says
    assert "labels came for 100 % of the challenger's units" in says
    much = release_of(.5, margins=LABELS, success=SuccessParams(metric="loss", min_gain=.5))
    assert "more than 0.5 is asked for" in look(root, much).missing[0]
    traffic.close()


def test_without_labels_nothing_has_succeeded(root, traffic):
    traffic.send(12_000)
    verdict = look(root, release_of(margins=BASICS, success=SuccessParams(metric="cost")))
    assert verdict.action == "go_on" and verdict.missing == [
        "No label has come yet, and a lower cost of a decision is asked for"]


def test_labels_count_once_when_they_are_final(root, traffic):
    schema = subscriber_schema()
    write_schema(replace(schema, event_time="month", label_delay="2d"), root / "schema.yaml")
    release = release_of(margins=LABELS, sticky_key="customer")
    traffic.answer(1, True, entity=["ana"], score=[.9])
    traffic.label(2, "stays")
    traffic.label(3, "leaves") # a correction
    traffic.label(3, "leaves", number=77) # of a request that nobody asked
    state = lambda: read_judge_state(root / "releases/r1/judge.json", "r1")
    look(root, release, 10)
    assert not state().effects.get("loss") and state().labels.n_unknown == 1
    look(root, release, 60)
    assert state().effects["loss"][0].challenger_units == 1
    loss = state().effects["loss"][0].to_state()
    traffic.label(61, "stays") # changed when it was final
    traffic.answer(61, True, entity=["ana"])
    traffic.label(62, "stays")
    look(root, release, 200)
    assert state().effects["loss"][0].to_state() == loss and not state().labels.waiting


METRICS = """
import numpy as np
from mlops_nb.model.features import metric

@metric("profit", better="higher")
def profit(y, p, charge): return np.where(p > .5, y * charge - 25, 0)

@metric("events_a_score", better="lower")
def events_a_score(y, p): return float(y.sum() / p.sum())

@metric("broken", better="lower")
def broken(y, p): raise ValueError("no rows today")

@metric("elsewhere", better="lower")
def elsewhere(y, p, postcode): return y

@metric("unknown", better="lower")
def unknown(y, p): return y * np.nan

@metric("ratio", better="lower")
def ratio(y, p): return np.where(np.arange(len(y)) % 2, 1 / np.zeros(len(y)), p - y)
"""


@pytest.fixture
def own_root(root):
    (root / "features.py").write_text(METRICS)
    (root / "params.yaml").write_text("prepare:\n  features_file: features.py\n")
    return root


def own_look(root, traffic, margins, noise=(.05, .05), success=None, batches=4):
    release = release_of(margins=replace(LABELS, auc=None, loss=None, failures=100., metrics=margins),
                         success=SuccessParams(metric=success), min_units=100)
    for i in range(batches):
        traffic.send_labelled(400, hour=i, noise=noise, columns=dict(charge=[60.]))
        verdict = look(root, release, 30)
        if verdict.action == "roll_back": break
    return {m.name: m for m in verdict.metrics}, verdict


def test_a_metric_of_the_project_rolls_a_harmful_challenger_back(own_root):
    traffic = Traffic(own_root, share=.5)
    found, verdict = own_look(own_root, traffic, {"profit": 1.}, noise=(.02, .8), batches=8)
    traffic.close()
    assert found["profit"].is_proven and verdict.action == "roll_back" and verdict.reason == found["profit"].says
    assert "1 worse is tolerated" in verdict.reason and "profit is -" in verdict.reason
    assert "events_a_score" not in found  # one number of all rows, and nobody asked for it


def test_a_metric_of_the_project_lets_an_equal_challenger_pass_and_can_be_what_must_gain(own_root):
    traffic = Traffic(own_root, share=.5)
    found, _ = own_look(own_root, traffic, {"profit": 20.}, noise=(.6, .02), success="profit", batches=5)
    traffic.close()
    guard = found["profit"]
    assert not guard.is_proven and guard.n > 1000
    from mlops_nb.release.judge_evidence import release_evidence as evidence
    from mlops_nb.release.judge_state import judge_state_path
    state = read_judge_state(judge_state_path(own_root / "releases", "r1"), "r1")
    params = ReleaseParams(margins=MarginParams(metrics={"profit": 20.}), success=SuccessParams(metric="profit"),
                           min_units=100)
    success = next(m for m in evidence(state, params) if m.kind == "success")
    assert success.name == "profit" and success.estimate > 0 and "better profit" in success.says


@pytest.mark.parametrize("noise, harmful", [((.02, .8), True), ((.05, .05), False)])
def test_a_metric_of_the_project_is_judged_in_shadow(own_root, noise, harmful):
    margins, traffic = replace(LABELS, auc=None, loss=None, metrics={"profit": 2.}), Traffic(own_root)
    release = release_of(margins=margins)
    for i in range(6):
        traffic.send_labelled(400, hour=i, noise=noise, shadow=True, columns=dict(charge=[60.]))
        verdict = look(own_root, release, 30)
        if verdict.action == "roll_back": break
    traffic.close()
    found = evidence(verdict, "shadow profit")
    assert found.is_proven == harmful == (verdict.action == "roll_back") and found.passes != harmful
    assert found.says.startswith("In shadow the challenger's profit is ") and found.n > 100
    if harmful: assert found.estimate > 2


def test_a_metric_that_is_not_named_is_shown_and_not_judged(own_root):
    traffic = Traffic(own_root, share=.5)
    found, _ = own_look(own_root, traffic, {}, batches=1)
    traffic.close()
    assert found["profit"].passes and found["profit"].threshold is None and "only shown" in found["profit"].says


@pytest.mark.parametrize("name, says", [
    ("events_a_score", "is one number for all rows and says nothing of a row"),
    ("broken", "failed with ValueError: no rows today"),
    ("elsewhere", "reads 'postcode', which the prediction log does not hold"), ("profits", "has no such @metric"),
    ("unknown", "is a number for none of the labelled rows")])
def test_a_metric_that_was_asked_for_and_cannot_be_measured_lets_nothing_pass(own_root, name, says):
    traffic = Traffic(own_root, share=.5)
    found, verdict = own_look(own_root, traffic, {name: 1.}, batches=1)
    traffic.close()
    assert says in found[name].says and not found[name].passes and verdict.action == "go_on"


@pytest.mark.parametrize("name, says", [("profits", "has no such @metric"), ("broken", "no rows today")])
def test_a_gain_that_cannot_be_measured_says_why_and_not_that_labels_are_missing(own_root, name, says):
    traffic = Traffic(own_root, share=.5)
    found, verdict = own_look(own_root, traffic, {}, success=name, batches=1)
    traffic.close()
    assert says in found[name].says and not found[name].passes and verdict.action == "go_on"


def test_values_that_are_not_finite_are_left_out_and_the_state_stays_readable(own_root):
    traffic = Traffic(own_root, share=.5)
    found, _ = own_look(own_root, traffic, {"ratio": 1.}, batches=2)
    traffic.close()
    assert 200 < found["ratio"].n < 600 and found["ratio"].estimate is not None and found["ratio"].passes


def test_a_features_file_that_cannot_be_loaded_does_not_stop_the_judge(own_root):
    (own_root / "features.py").write_text("def half_saved(")
    traffic = Traffic(own_root, share=.5)
    found, verdict = own_look(own_root, traffic, {"profit": 1.}, batches=1)
    traffic.close()
    assert "cannot be loaded" in found["profit"].says and found["failures"].n and verdict.action == "go_on"


def test_metrics_of_the_project_get_the_median_of_quantiles():
    schema = Schema("t", "regression", target="y", quantiles=[.1, .5, .9], columns={"y": Column("number")})
    lines = pl.DataFrame({"score": [[1., 2., 3.], [4., 6., 8.], None], "label": ["2.5", "6", "1"]})
    state = JudgeState("r1")
    found = with_own_metrics(state, lines, {"error": metric("error", better="lower")(lambda y, p: abs(y - p))}, schema)
    assert not state.own["error"].why_not and found["metric error"].to_list() == [.5, 0., None]
