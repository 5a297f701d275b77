"The live judge against what others do: false roll-backs under repeated looks, and how soon a worse release is caught."
import math

import numpy as np
from common import quick, report, row
from scipy.special import expit, ndtri

from mlops_nb.stats.auc_difference import AucDifference
from mlops_nb.stats.betting_mean import BettingMean
from mlops_nb.stats.e_process import log_average
from mlops_nb.stats.rate_ratio import RateRatioTest
from mlops_nb.stats.roc_auc import roc_auc
from mlops_nb.stats.safe_two_by_two import SafeTwoByTwo
from mlops_nb.stats.treatment_effect import BettingEffect

HEAD = ("stream and method", "false roll-backs", "caught", "median requests to catch", "9 in 10 caught within",
        "target", "met")
LOOKS, BATCH, SHARE, ALPHA = 200, 100, .1, .05
ALARM = math.log(1 / ALPHA)
Z = ndtri(1 - ALPHA)
OBRIEN_FLEMING = 1.751 # five looks, one-sided 5 % (Jennison & Turnbull 2000, table 2.3, two-sided 10 %)
NEVER = math.inf


# A method takes a stream and gives, of each release, the requests at which it rolled back, or infinity.

def first(alarms, every=1):
    "(looks, releases) bool -> (releases,) requests at the first alarm; `every`: batches between two looks."
    at = (alarms.argmax(0) + 1) * float(BATCH * every)
    return np.where(alarms.any(0), at, NEVER)


def by_look(test, looks): # one e-process, many releases
    log_e = []
    for look in looks:
        test.update(*look)
        log_e.append(test.log_e)
    return first(np.array(log_e) >= ALARM)


def group_sequential(z, horizon, every): # (looks, releases); the looks of the plan that the stream reaches
    alarms = np.zeros(z.shape, bool)
    for k in range(1, 6):
        look = horizon * k // (5 * BATCH * every) - 1
        if look < len(z): alarms[look] = z[look] > OBRIEN_FLEMING * (5 / k)**.5
    return first(alarms, every)


def peers_of(z, every=1): # what is done with a z-statistic
    horizon = len(z) * BATCH * every
    plans = {"right horizon": horizon, "horizon five times too long": 5 * horizon,
             "horizon five times too short": horizon // 5}
    return {"z-test at each look, 5 %": first(z > Z, every),
            **{f"group sequential, {name}": group_sequential(z, of, every) for name, of in plans.items()}}


def ratio_or_zero(a, b): return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) > 0)


def mann_whitney(challenger, champion):
    "Values of each batch, (looks, releases): one-sided where the two-sided test at 98 % is significant, at each look."
    looks, releases = champion.shape
    alarms, u = np.zeros(champion.shape, bool), np.zeros(releases)
    for t in range(looks):
        x, y = challenger[t], champion[t]
        u += (np.sign(x - champion[:t + 1]) + 1).sum(0) / 2 + (np.sign(challenger[:t] - y) + 1).sum(0) / 2
        n = t + 1
        if n < 5: continue
        pooled = np.sort(np.concatenate([challenger[:n], champion[:n]]).T, 1)
        last = np.pad(pooled[:, 1:] != pooled[:, :-1], ((0, 0), (0, 1)), constant_values=True)
        ends = np.where(last, np.arange(1, 2 * n + 1), 0)
        before = np.pad(np.maximum.accumulate(ends, 1)[:, :-1], ((0, 0), (1, 0)))
        ties = np.where(last, (ends - before)**3. - (ends - before), 0).sum(1)
        variance = n * n / 12 * (2 * n + 1 - ties / (2 * n * (2 * n - 1)))
        alarms[t] = (u - n * n / 2) > ndtri(.99) * np.sqrt(np.maximum(variance, 1e-9)) + .5
    return first(alarms)


def threshold(challenger_events, challenger_units, limit, window=10, failure_limit=3):
    "A condition on the challenger's last thousand requests; more than three measurements that fail roll back."
    shape = len(challenger_units) // window, window, -1
    events, units = (x.reshape(shape).sum(1) for x in (challenger_events, challenger_units))
    return first(np.cumsum(ratio_or_zero(events, units) > limit, 0) > failure_limit, window)


def z_of_rates(xb, nb, xa, na): # cumulative
    pooled = ratio_or_zero(xa + xb, na + nb)
    return ratio_or_zero(ratio_or_zero(xb, nb) - ratio_or_zero(xa, na),
                         np.sqrt(pooled * (1 - pooled) * (ratio_or_zero(1., nb) + ratio_or_zero(1., na))))


# ---------------------------------------------------------------- failures

def failures(rng, n, worse, looks=LOOKS):
    nb = rng.binomial(BATCH, SHARE, (looks, n))
    xb, xa = rng.binomial(nb, .03 if worse else .01), rng.binomial(BATCH - nb, .01)
    na, sums = BATCH - nb, [np.cumsum(x, 0) for x in (xb, nb, xa, BATCH - nb)]
    return {"ours: ratio of event rates": by_look(RateRatioTest(), zip(xb, xa, np.full(looks, SHARE))),
            "ours, a tenth more tolerated": by_look(RateRatioTest(.1), zip(xb, xa, np.full(looks, SHARE))),
            "ours: safe 2×2 test": by_look(SafeTwoByTwo(), zip(xb, nb, xa, na)),
            **peers_of(z_of_rates(*sums)),
            "Mann–Whitney at 98 %, as in Kayenta": mann_whitney(ratio_or_zero(xb, nb), ratio_or_zero(xa, na)),
            "threshold at 2.5 %, three failures allowed, as in Argo Rollouts": threshold(xb, nb, .025)}


# ---------------------------------------------------------------- latency

def latency(rng, n, worse, looks=LOOKS):
    "Lognormal; of the worse challenger the slowest 5 % take 1.5 times as long, and so its p99."
    size = looks, n, BATCH
    took, x = rng.random(size) < SHARE, np.exp(.5 * rng.normal(size=size))
    if worse: x = np.where(took & (x > math.exp(.5 * ndtri(.95))), 1.5 * x, x)
    warm = math.ceil(1000 / (BATCH * (1 - SHARE))) # looks that fix the thresholds
    limits = np.nanquantile(np.where(took, np.nan, x)[:warm].transpose(1, 0, 2).reshape(n, -1), [.5, .9, .99], 1)
    nb, na, tests = took.sum(2), (~took).sum(2), [SafeTwoByTwo() for _ in limits]
    counts = [((x > limit[:, None]) & took, (x > limit[:, None]) & ~took) for limit in limits]
    counts = [(b.sum(2), a.sum(2)) for b, a in counts]
    log_e = []
    for t in range(looks):
        if t >= warm:
            for test, (b, a) in zip(tests, counts): test.update(b[t], nb[t], a[t], na[t])
        log_e.append(log_average(np.stack([test.log_e + np.zeros(n) for test in tests], -1), np.full(3, 1 / 3)))
    (xb, xa), means = counts[2], [ratio_or_zero((x * of).sum(2), of.sum(2)) for of in (took, ~took)]
    for y in (xb, xa): y[:warm] = 0
    units = [np.where(np.arange(looks)[:, None] < warm, 0, y) for y in (nb, na)]
    z = z_of_rates(*(np.cumsum(y, 0) for y in (xb, units[0], xa, units[1])))
    return {"ours: p50, p90 and p99 by the safe 2×2 test": first(np.array(log_e) >= ALARM), **peers_of(z),
            "Mann–Whitney at 98 % on the means of batches": mann_whitney(*means),
            "threshold: 2.5 % above the p99, three failures allowed": threshold(xb, units[0], .025)}


# ---------------------------------------------------------------- scores

def scores(rng, n, worse, looks=LOOKS):
    "Two models that nearly agree; the worse challenger scores higher by a tenth of a standard deviation."
    ours, shadow = BettingEffect(), BettingMean()
    log_e, paired, sums, means, z = [], [], np.zeros((6, n)), [], []
    for _ in range(looks):
        known, took = rng.normal(size=(n, BATCH)), rng.random((n, BATCH)) < SHARE
        champion, challenger = known + .2 * rng.normal(size=(2, n, BATCH))
        if worse: challenger += .102
        shadow.update(expit(challenger) - expit(champion))
        x = np.where(took, challenger, champion)
        ours.update(expit(x), took, SHARE)
        sums += [(x**k * of).sum(1) for of in (took, ~took) for k in (0, 1, 2)]
        (nb, sb, qb), (na, sa, qa) = sums.reshape(2, 3, n)
        z.append((sb / nb - sa / na) / np.sqrt((qb / nb - (sb / nb)**2) / nb + (qa / na - (sa / na)**2) / na))
        means.append([ratio_or_zero((x * of).sum(1), of.sum(1)) for of in (took, ~took)])
        log_e.append(log_average(np.stack([ours.log_e, ours.log_e_below], -1), np.full(2, 1 / 2)))
        paired.append(shadow.log_e)
    return {"ours: difference of the mean scores": first(np.array(log_e) >= ALARM),
            "ours, in shadow: mean of the differences": first(np.array(paired) >= ALARM), **peers_of(np.array(z)),
            "Mann–Whitney at 98 % on the means of batches": mann_whitney(*np.array(means).transpose(1, 0, 2))}


# ---------------------------------------------------------------- AUC

def z_of_areas(y, scores, took): # the difference of two AUCs (Hanley & McNeil 1982)
    areas, variances = [], []
    for of in (~took, took):
        pos, neg = int(y[of].sum()), int((~y[of]).sum())
        if not pos or not neg: return 0.
        a = roc_auc(y[of], scores[of])(np.ones(pos + neg))
        areas.append(a)
        variances.append((a * (1 - a) + (pos - 1) * (a / (2 - a) - a * a) + (neg - 1) * (2 * a * a / (1 + a) - a * a))
                         / (pos * neg))
    return (areas[0] - areas[1]) / max(sum(variances), 1e-12)**.5


AUC_EVERY = 4 # batches between two looks of the z-test, which ranks all rows anew


def ranking(rng, n, worse, looks=LOOKS):
    "A fifth are events; the champion has an AUC of 0.80, the worse challenger of 0.78."
    (ours, shadow), z = np.full((2, n), NEVER), np.zeros((looks // AUC_EVERY, n))
    for i in range(n):
        y, took = rng.random(looks * BATCH) < .2, rng.random(looks * BATCH) < SHARE
        known = rng.normal(size=len(y)) + 1.2139 * y
        champion, challenger = (known + noise * rng.normal(size=len(y)) for noise in (.2, .4858 if worse else .2))
        x, test, paired = np.where(took, challenger, champion), AucDifference(), AucDifference()
        for t in range(looks):
            rows = slice(t * BATCH, (t + 1) * BATCH)
            test.update(y[rows], x[rows], took[rows])
            if shadow[i] == NEVER: paired.update_paired(y[rows], champion[rows], challenger[rows])
            if test.log_e >= ALARM: ours[i] = min(ours[i], (t + 1) * BATCH)
            if paired.log_e >= ALARM: shadow[i] = min(shadow[i], (t + 1) * BATCH)
            if (t + 1) % AUC_EVERY == 0:
                z[t // AUC_EVERY, i] = z_of_areas(*(a[:rows.stop] for a in (y, x, took)))
    return {"ours: pairs of an event and non-events": ours, "ours, in shadow": shadow, **peers_of(z, AUC_EVERY)}


# ---------------------------------------------------------------- the table

STREAMS = {"failures 1 → 3 %": (failures, 1000), "p99 × 1.5": (latency, 500), "scores + 0.1 sd": (scores, 300),
           "AUC − 0.02": (ranking, 200)}


def words(units): return "never" if units == NEVER else f"{units:,.0f}"


def rows_of(stream, alike, caught):
    for method in alike:
        false, found = np.isfinite(alike[method]).mean(), np.isfinite(caught[method]).mean()
        median, most = (np.quantile(caught[method], q, method="higher") for q in (.5, .9))
        target, met = "", None
        if method.startswith("ours"): target, met = "≤ 5 % false", false <= ALPHA
        if method == "ours: ratio of event rates":
            slow = np.median(caught["group sequential, horizon five times too long"])
            target += ", all caught, median ≤ 3,500 and ≤ group sequential with the long horizon"
            met = bool(met and found == 1 and median <= min(3500, slow))
        yield row(f"{stream}; {method}", f"{100 * false:.1f} %", f"{100 * found:.2f} %", words(median), words(most),
                  target, None if met is None else bool(met))


NOTES = [
    f"A release is a stream of {LOOKS * BATCH:,} requests, of which the challenger gets {SHARE:.0%} at random; every "
    f"method looks after each {BATCH} requests (the z-test of AUC after each {AUC_EVERY * BATCH}) and rolls back at "
    "its first alarm. False roll-backs: of releases whose challenger is as good as the champion. All methods see the "
    "same streams; the i-th group of rows has the seeds [i, 0] and [i, 1], the other releases [9, 0] and [9, 1]. "
    + "; ".join(f"{name}: {n:,} releases of each kind" for name, (_, n) in STREAMS.items()) + ".",
    "Ours at 5 % for this one metric, an e-value of 20, with a margin of 0 unless it is said, since the others test "
    "against no difference as well. In a release the 5 % are divided among its metrics. The first 1,000 requests of "
    "the champion only fix the quantiles of its latency, and are counted in the requests.",
    "Group sequential: O'Brien–Fleming, five looks, one-sided 5 % (1.751 √(5/k); Jennison & Turnbull 2000), on the "
    "z-statistic of the row above. The right horizon is the length of the stream; five times too long has one look "
    "within it, at its end; five times too short has spent its looks after 4,000 requests and cannot look again.",
    "Mann–Whitney: the challenger's and the champion's values of the batches are two samples, two-sided at 98 %, of "
    "which the worse direction rolls back, from the fifth batch on. A value of the challenger is that of ten requests. "
    "Threshold: each thousand requests are one measurement, and the fourth that fails rolls back; it was put between "
    "the two rates, which a project does not know.",
    "Failures: 1 % for both, or 3 % for the challenger. Latency: lognormal, the logarithm with a deviation of 0.5; of "
    "the worse challenger the slowest 5 % take 1.5 times as long. Scores: normal, of two models that nearly agree (a "
    "correlation of 0.96). AUC: a fifth of the rows are events, 0.80 against 0.78, and labels come at once.",
    "What is missed. Of the thousand worse releases three had, by chance, 34 failures of the challenger where 59 are "
    "expected: what was seen there is one and a half times the rate, and the ratio of event rates says nothing by the "
    "end; the row of many more releases says how often that is. An AUC that is lower by 0.02 is not to be seen on a "
    "tenth of 20,000 requests by any method that keeps its level; in shadow it is. Where the horizon is known and "
    "right, a group sequential test finds small shifts of scores and of AUC more often: the price of not having to "
    "know.",
]

MANY = 10_000


def many_releases(small): # the first row again, on other streams: what is missed is rare
    found = []
    for worse in (0, 1):
        rng, n = np.random.default_rng([9, worse]), 100 if small else MANY
        nb = rng.binomial(BATCH, SHARE, (LOOKS, n))
        events = rng.binomial(nb, .03 if worse else .01), rng.binomial(BATCH - nb, .01)
        found.append({f"ours: ratio of event rates, {n:,} other releases": by_look(
            RateRatioTest(), zip(*events, np.full(LOOKS, SHARE)))})
    return list(rows_of("failures 1 → 3 %", *found))


def main():
    small, rows = quick(), []
    for i, (name, (make, n)) in enumerate(STREAMS.items()):
        alike, caught = (make(np.random.default_rng([i, worse]), 20 if small else n, worse) for worse in (0, 1))
        rows += rows_of(name, alike, caught)
    report(rows[:1] + many_releases(small) + rows[1:], NOTES, HEAD)


if __name__ == "__main__": main()
