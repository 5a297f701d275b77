"What is settled before a model is asked: from params.yaml into the bundle, and the same for a frame and a request."
import datetime as dt
import json
import shutil

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support import trained_project as modelling

from mlops_nb.bundle.bundle import check_golden_examples
from mlops_nb.bundle.stage import run_bundle
from mlops_nb.config.params import EvaluateParams, Params, PolicyParams, PolicyRule, read_params, write_params
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.prepare import read_split
from mlops_nb.evaluate.evaluation import evaluate_predictor, score_splits, split_resamplings
from mlops_nb.model.calibrators import IsotonicCalibrator, LabelCalibrators, PlattCalibrator
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.serve.request_validation import RequestDecoder
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline, score_histogram
from mlops_nb.train.stage import open_trained_predictor

RULES = [PolicyRule(when={"place": ["Örebro", None]}, decision="no"),
         PolicyRule(when={"count": [40, None]}, max_score=.2),
         PolicyRule(when={"note": "staff"}, review=True),
         PolicyRule(when={"when": ["2026-03-01", "2026-03-31"], "known": True}, min_score=.9)]


def scored(predictor, splits, params):
    return score_splits(predictor, splits, params, split_resamplings(params, splits))


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    "task -> a project that was trained"
    made = {}

    def project(task):
        if task not in made:
            made[task] = modelling.judged(modelling.trained(tmp_path_factory.mktemp(task), task, n=400), task)
        return made[task]
    return project


@pytest.fixture(scope="module")
def ruled(projects, tmp_path_factory):
    "A bundle of a project whose params.yaml has rules, by the stages' own code."
    root = tmp_path_factory.mktemp("ruled") / "project"
    shutil.copytree(projects("binary"), root)
    params = read_params(root / "params.yaml")
    params.evaluate.policy = PolicyParams(reject_region=(.4, .6), rules=RULES)
    write_params(params, root / "params.yaml")
    predictor = open_trained_predictor(root)
    scored(predictor, {part: read_split(root, part) for part in ("valid", "test")},
           read_params(root / "params.yaml").evaluate)
    predictor.policy.threshold = .5
    write_json(root / "artifacts/evaluation/policy.json", predictor.policy)
    run_bundle(root)
    return root / "artifacts/bundle"


def rows(n, seed): # some of them the staff's
    return modelling.rows(n,
                          seed).with_columns(note=pl.when(pl.int_range(n) % 5 ==
                                                          0).then(pl.lit("staff")).otherwise("note"))


def by_hand(row, score):
    "What RULES and the band mean, written out."
    refer, label = .4 <= score <= .6, "yes" if score >= .5 else "no"
    if row["count"] >= 40: score = min(score, .2)
    if row["when"] and dt.datetime(2026, 3, 1) <= row["when"] <= dt.datetime(2026, 3, 31) and row["known"]:
        score = max(score, .9)
    refer, label = .4 <= score <= .6, "yes" if score >= .5 else "no"
    if row["place"] in ("Örebro", None, "?"): refer, label = False, "no"
    if row["note"] == "staff": refer = True
    return score, None if refer else label, refer


def test_rules_go_from_params_into_the_bundle(ruled):
    policy = Predictor.open(ruled).policy
    assert policy.reject_region == (.4, .6) and policy.rules == RULES
    card = (ruled / "card.md").read_text()
    assert "Probabilities from 0.4 to 0.6 are sent to human review." in card
    assert ("where `place` is Örebro or missing, the decision is `no`; where `count` is from 40, the score is at most "
            "0.2; "
            "where `note` is staff, a person decides; "
            "where `when` is from 2026-03-01 to 2026-03-31 and `known` is True, the score is at least 0.9.") in card


def test_a_frame_and_a_request_get_the_same(ruled):
    predictor, frame = Predictor.open(ruled), rows(300, 5)
    out = predictor.score_frame(frame)
    want = [by_hand(row, s) for row, s in zip(frame.to_dicts(), predictor.predict(frame).tolist(), strict=True)]
    assert out.rows() == want and {d for _, d, _ in want} == {"yes", "no",
                                                              None} and predictor.output_schema() == dict(out.schema)
    assert (out.filter("needs_review")["decision"].null_count() == out["needs_review"].sum() ==
            out["decision"].null_count())
    contract = RequestDecoder(predictor)
    for i in range(0, 300, 50):
        asked = frame[i:i + 50].select(predictor.required_columns).with_columns(pl.col("when").dt.to_string("iso"))
        for sent, scored in ((asked.to_dicts(), out[i:i + 50]), (asked.to_dicts()[:1], out[i:i + 1])):
            got = contract.from_json(json.dumps(sent).encode())
            scores, decisions, needs_review = predictor.policy.apply(got.columns, predictor.predict_encoded(got.X))
            assert (scores.tolist(), decisions, needs_review) == tuple(scored[c].to_list()
                                                                       for c in ("score", "decision", "needs_review"))


def test_golden_rows_notice_another_rule(ruled):
    golden = pl.read_parquet(ruled / "golden.parquet")
    assert "note" in golden.columns and golden["_decision"].null_count() and check_golden_examples(ruled) is None
    predictor = Predictor.open(ruled)
    predictor.policy = structs.replace(predictor.policy, rules=[r for r in RULES if not r.decision])
    assert "_decision was no when the bundle was packed" in check_golden_examples(ruled, predictor)


def test_a_column_that_a_rule_looks_at_is_needed(ruled):
    predictor, frame = Predictor.open(ruled), rows(20, 6)
    assert "note" not in predictor.inputs and predictor.required_columns == [*predictor.inputs, "note"]
    with pytest.raises(UserError, match="no column 'note'"): predictor.score_frame(frame.drop("note"))
    assert len(predictor.predict(frame.drop("note"))) == 20 # the model does not need it


def test_rows_without_any_and_a_policy_of_before(ruled):
    predictor = Predictor.open(ruled)
    assert predictor.score_frame(rows(5, 7)[:0]).schema == predictor.output_schema()
    old = json.loads((ruled / "policy.json").read_bytes())
    for key in ("reject_region", "rules"): del old[key]
    write_json(ruled.parent / "old.json", old)
    predictor.policy = read_json(ruled.parent / "old.json", Policy)
    assert predictor.output_schema() == {"score": pl.Float64(),
                                         "decision": pl.String()} and predictor.required_columns == predictor.inputs
    assert predictor.score_frame(rows(9, 8))["score"].to_list() == predictor.predict(rows(9, 8)).tolist()


@pytest.mark.parametrize("task, rules", [
    ("binary", RULES), ("multiclass",
                        [PolicyRule(when={"known": True}, decision="bus"),
                         PolicyRule(when={"count": [0, 5]}, review=True)]),
    ("regression", [PolicyRule(when={}, min_score=0.), PolicyRule(when={"known": True}, review=True)])])
def test_the_evaluation_tells_what_is_left_to_a_person(projects, task, rules):
    predictor, root = open_trained_predictor(projects(task)), projects(task)
    parts = {part: read_split(root, part) for part in ("valid", "test")}
    params = EvaluateParams(n_resamples=20, policy=PolicyParams(reject_region=(.4, .6) if task == "binary" else None,
                                                                rules=rules))
    found = evaluate_predictor(predictor, parts, scored(predictor, parts, params), params)
    test, p, plain = parts["test"], found.policy_effect, predictor.predict(parts["test"])
    out, free = predictor.score_frame(test), None if task == "regression" else predictor.decide(plain)
    assert p.n_needs_review == out["needs_review"].sum() > 0 and p.message.startswith(f"Of {len(test):,} test rows "
        f"{p.n_needs_review:,} (")
    assert p.n_score_changed == (0 if task == "multiclass" else (out["score"].to_numpy() != plain).sum())
    assert p.n_decision_overridden == (0 if free is None else sum(d is not None and d != f for d,
                                                                  f in zip(out["decision"], free.tolist(),
                                                                           strict=True)))
    if free is not None: # the figures measure the model
        assert found.metrics["test"]["accuracy"].value == pytest.approx((test["y"].to_numpy() == free).mean())
    none = EvaluateParams(n_resamples=20)
    assert evaluate_predictor(predictor, parts, scored(predictor, parts, none), none).policy_effect is None


def test_the_baseline_of_a_bundle_knows_the_rules(ruled):
    "Scores that are answered are compared with it, and rules have moved them."
    predictor, valid = Predictor.open(ruled), read_split(ruled.parents[1], "valid")
    assert read_json(ruled / "baseline.json",
        MonitoringBaseline).scores == {"score": score_histogram(predictor.score_frame(valid)["score"].to_numpy())}


@pytest.mark.parametrize("task, change, said", [
    ("binary", dict(rules=[PolicyRule(when={"plce": "a"}, review=True)]),
     "rule 1 of evaluate.policy in params.yaml looks at the column 'plce', which the schema does not have; did you "
     "mean 'place'"),
    ("binary", dict(rules=[RULES[0], PolicyRule(when={"count": "many"}, review=True)]),
     "rule 2 of evaluate.policy in params.yaml wants 'count' to be 'many', and the schema says integer"),
    ("binary", dict(rules=[PolicyRule(when={"known": 1}, review=True)]), "schema says boolean"),
    ("binary", dict(rules=[PolicyRule(when={"x": [1, 0]}, review=True)]), "schema says number"),
    ("binary", dict(rules=[PolicyRule(when={"when": ["soon", None]}, review=True)]), "schema says timestamp"),
    ("binary", dict(rules=[PolicyRule(when={"y": "yes"}, review=True)]), "'y', which is what the model predicts"),
    ("binary", dict(rules=[PolicyRule(when={}, decision="maybe")]),
     "rule 1 of evaluate.policy in params.yaml decides 'maybe', which is none of the classes: no, yes"),
    ("regression", dict(rules=[PolicyRule(when={}, decision="yes")]), "a regression has none"),
    ("binary", dict(rules=[PolicyRule(when={}, max_score=1.5)]),
     "bounds the score by 1.5, and the score is a probability"),
    ("regression", dict(reject_region=(.4, .6)),
     "reject_region of evaluate.policy in params.yaml .* only a binary task has one probability"),
    ("multiclass", dict(reject_region=(.4, .6)), "only a binary task"),
    ("multiclass", dict(rules=[PolicyRule(when={}, max_score=.5)]), "each of 3 classes has one; give a decision")])
def test_a_policy_that_does_not_fit_stops_the_evaluation(projects, task, change, said):
    root = projects(task)
    predictor, params = open_trained_predictor(root), Params(evaluate=Params().evaluate)
    params.evaluate.policy = PolicyParams(**change)
    with pytest.raises(UserError, match=said) as e:
        scored(predictor, {"valid": read_split(root, "valid")}, params.evaluate)
    assert "\n" not in str(e.value)


def test_bounds_of_a_regression_and_labels_of_several_classes(projects):
    predictor, frame = open_trained_predictor(projects("regression")), rows(60, 9)
    predictor.policy = Policy("regression", rules=[PolicyRule(when={}, min_score=0.),
                                                   PolicyRule(when={"known": True}, max_score=1., review=True)])
    want = np.maximum(predictor.predict(frame), 0)
    known = frame["known"].to_numpy()
    out = predictor.score_frame(frame)
    assert out["score"].to_list() == np.where(known, np.minimum(want, 1), want).tolist()
    assert out["needs_review"].to_list() == known.tolist()
    assert out.columns == ["score", "needs_review"]
    predictor, frame = open_trained_predictor(projects("multiclass")), modelling.rows(60, 9, "multiclass")
    free = predictor.score_frame(frame)
    rules = [PolicyRule(when={"known": True}, decision="bus"), PolicyRule(when={"count": [0, 5]}, review=True)]
    predictor.policy = Policy("multiclass", predictor.schema.classes, rules=rules)
    out = predictor.score_frame(frame)
    assert out.select(predictor.score_columns).equals(free.select(predictor.score_columns))
    by_rule = pl.when(pl.col("count") <= 5).then(None).when("known").then(pl.lit("bus"))
    assert out["decision"].to_list() == frame.select(d=by_rule.otherwise(free["decision"]))["d"].to_list()


conditions = st.fixed_dictionaries({}, optional={
    "count": st.integers(0, 50) | st.tuples(st.integers(0, 25), st.integers(25, 50)).map(list), "known": st.booleans(),
    "place": st.sampled_from(["Amsterdam", None]) | st.lists(st.sampled_from(["Örebro", "東京", None]), min_size=1,
                                                             max_size=3)})
effects = st.one_of(st.builds(dict, min_score=st.floats(0, .5)), st.builds(dict, max_score=st.floats(.5, 1)),
                    st.just(dict(review=True)),
                    st.builds(dict, decision=st.sampled_from(["no", "yes"])),
                    st.builds(dict, max_score=st.floats(.2, .9), decision=st.just("no")))


@settings(deadline=None, max_examples=60)
@given(rules=st.lists(st.builds(lambda when, effect: PolicyRule(when=when, **effect), conditions, effects), max_size=4),
       band=st.none() | st.tuples(st.floats(0, .5), st.floats(.5, 1)))
def test_any_rules_do_for_many_rows_what_they_do_for_one(ruled, rules, band):
    predictor = test_any_rules_do_for_many_rows_what_they_do_for_one.__dict__.setdefault("p", Predictor.open(ruled))
    p = predictor.policy = Policy("binary", ["no", "yes"], .5, reject_region=band, rules=rules)
    frame = rows(25, 11)
    columns, scores = frame.to_dict(as_series=False), np.linspace(0, 1, 25)
    got = predictor.policy.apply(columns, scores)
    each = [predictor.policy.apply({c: [v[i]] for c, v in columns.items()}, scores[i:i + 1]) for i in range(25)]
    assert got[0].tolist() == [s.item() for s, _, _ in each] and got[1] == [d[0] for _, d, _ in each]
    assert (got[2] is None) == (not predictor.policy.has_review) and (got[2] is None or got[2] == [r[0] for _, _,
                                                                                                   r in each])
    plain = [predictor.policy.apply_row({c: [v[i]] for c, v in columns.items()}, scores[i].item()) for i in range(25)]
    assert plain == [(s.item(), d[0], r and r[0]) for s, d, r in each]
    assert scores.tolist() == np.linspace(0, 1, 25).tolist() # the caller's are left alone

    def holds(rule, row):
        def fits(c, v):
            if not isinstance(v, list): return row[c] == v
            return row[c] in v if c == "place" else v[0] <= row[c] <= v[1]
        return all(fits(c, v) for c, v in rule.when.items())
    for i, row in enumerate(frame.to_dicts()):
        s, mine = scores[i].item(), [r for r in rules if holds(r, row)]
        for r in mine:
            s = min(max(s, r.min_score if r.min_score is not None else s),
                    r.max_score if r.max_score is not None else np.inf)
        label, refer = ("yes" if s >= .5 else "no"), band is not None and band[0] <= s <= band[1]
        for r in mine: label, refer = r.decision or label, r.review or refer and r.decision is None
        assert (got[0][i], got[1][i]) == (s, None if refer else label), p


@pytest.mark.parametrize("text, said", [
    ("reject_region: [0.6, 0.4]", "section 'evaluate.policy': 'reject_region' is \\[0.6, 0.4\\], which is upside down"),
    ("reject_region: [0.4, 1.4]", "reject_region is .*<= 1.0"), ("reject_region: [0.4]", "length 2"),
    ("rules: [{when: {}}]", "section 'evaluate.policy.rules.1': the rule does nothing"),
    ("rules: [{review: true}]", "'when' is missing"),
    ("rules: [{when: {}, min_score: 1}, {when: {}, max_score: 1, min_score: 2}]",
     "rules.2': the rule keeps scores from 2 to 1; swap them"),
    ("rules: [{when: {}, decison: a}]", "no key 'decison'; did you mean 'decision'"),
    ("rules: [{when: {}, review: true, decision: a}]", "give one of them"),
    ("rules: [{when: {a: {b: 1}}, review: true}]", "when is .* is expected"),
    ("rules: [3]", "'evaluate.policy.rules.1' is 3"), ("rules: {when: {}}", "a list is expected")])
def test_a_policy_that_is_none_is_a_sentence(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(f"evaluate: {{policy: {{{text}}}}}\n")
    with pytest.raises(UserError, match=said): read_params(tmp_path / "params.yaml")


def test_what_is_written_is_read_again(tmp_path):
    params = Params()
    odd = PolicyRule(when={"a: b": ["no", "null", "2026-01-01", "#"]}, review=True)
    params.evaluate.policy = PolicyParams(reject_region=(0, .5), rules=[*RULES, PolicyRule(when={}, min_score=0.), odd])
    assert read_params(write_params(params, tmp_path / "params.yaml")) == params


def test_several_labels_are_decided_each_by_its_own_threshold():
    policy = Policy("multilabel", ["a", "b", "c"], thresholds=[.5, .1, .9])
    scores = np.array([[.5, .05, .95], [.4, .05, .8], [.6, .2, .1]])
    assert policy.decide(scores).tolist() == ["a, c", "none", "a, b"]
    assert policy.decide_labels(scores).sum() == 4
    for row, decision in zip(scores, ["a, c", "none", "a, b"], strict=True):
        assert policy.apply_row({}, row) == (pytest.approx(row), decision, None)
    assert policy.decide(np.empty((0, 3))).tolist() == []
    with pytest.raises(UserError, match="no thresholds yet"): Policy("multilabel", ["a", "b"]).decide(scores)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=20))
def test_calibrated_labels_alone_and_together(p):
    each = LabelCalibrators([PlattCalibrator(.7, .1), None, IsotonicCalibrator([0., .4, 1.], [.1, .2, .9])])
    p = np.array(p)
    found = each.apply(p)
    assert np.array_equal(found[:, 1], p[:, 1]) and np.array_equal(found, np.stack([each.apply(row) for row in p]))
