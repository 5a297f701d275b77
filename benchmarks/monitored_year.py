"A year of the simulator in production, with five planted incidents: which of them are seen, when, and what else."
import os
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from common import ROOT, fewer_subscribers, fresh_copy, quick, report, run, workplace
from msgspec.structs import replace

sys.path.insert(0, str(ROOT / "tests"))
from support.replayed_traffic import DAY, ReplayedTraffic, replay

from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import read_params
from mlops_nb.config.settings import read_settings
from mlops_nb.examples.simulator import churn_log_odds, corrupt_column, simulate_snapshots, upgrade_plans
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.alerts import read_alerts
from mlops_nb.monitor.incidents import read_incidents

START = datetime(2025, 7, 7, tzinfo=UTC) # the year is over: what lies ahead of the clock is not read
TRAIN_MONTHS = 11 # of 18: the first 64 %
PLANNED = {80: ("broken column", 4), 130: ("new category", 4), 180: ("covariate shift", 5), 290: ("concept drift", 40)}
OUTAGE = 230, (3, 4)
RULES = {"broken column": ("drift",), "new category": ("drift",), "covariate shift": ("drift",),
         "outage": ("slo_burn",), "concept drift": ("quality", "calibration")}
WITHIN = {"broken column": 2, "new category": 2, "covariate shift": 3, "outage": 1, "concept drift": 65} # days
HEAD = ("planted", "on day", "seen after", "first cause", "stated", "", "met")


def months(params, **switches):
    "The months of the simulator, each row with the true probability that the subscriber leaves."
    return [f.with_columns(_chance=p) for _, f, p in simulate_snapshots(replace(params, **switches))]


def other_chance(rows):
    "How likely each subscriber leaves where other causes count; what is missing in a row is no cause."
    columns = {c: rows[c].to_numpy() for c in rows.columns}
    columns["tenure"] = columns["tenure_months"]
    return pl.Series(1 / (1 + np.exp(-churn_log_odds(columns, columns, drift=1.0))))


def pools(params, n_train):
    """Rows as the model has learned them, and as incidents make them: a column that arrives in hundredths, a plan that
    did not exist before, the last months of a world in which other people ask, and rows as usual of which other causes
    are true."""
    usual, rng = pl.concat(months(params)[:n_train]), np.random.default_rng(0)
    late = pl.concat(months(params, covariate_shift=1.0)[-4:])
    new = usual.with_columns(plan=pl.Series(upgrade_plans(rng, usual["plan"].to_numpy())))
    return {"usual": usual, "broken column": corrupt_column(usual, "data_gb"), "new category": new,
            "covariate shift": late, "concept drift": usual.with_columns(_chance=other_chance(usual))}


def deployed(place, small):
    "A copy of this repository's project with its model in use."
    place.mkdir()
    fresh_copy(place)
    if small: fewer_subscribers(place, 1500)
    run("mlops-nb", "simulate", cwd=place)
    run("dvc", "repro", "bundle", cwd=place)
    return place, read_settings(place).release.endpoint


def found_rows(planned, incidents, alerts):
    rows, taken = [], set()
    for name, day in planned.items():
        mine = [i for i in incidents if i.id not in taken
                and timedelta(0) <= i.opened_at - START - day * DAY <= (WITHIN[name] + 30) * DAY
                and alerts[i.alert].finding.rule in RULES[name]][:1]
        taken |= {i.id for i in mine}
        took = (mine[0].opened_at - START) / DAY - day if mine else None
        first = alerts[mine[0].alert].finding if mine else None
        said = "" if first is None else f"{first.rule} of {first.subject}: {(first.causes or [first.summary])[0]:.160}"
        rows.append(dict(what=name, figure=str(day), peer="not seen" if took is None else f"{took:.1f} days",
                         peer_figure=said, ratio=f"≤ {WITHIN[name]} days", bound="",
                         met=took is not None and took <= WITHIN[name]))
    return rows, [i for i in incidents if i.id not in taken]


def teller():
    "Says on standard error what opens while the year goes by."
    told = set()
    def look(run):
        for alert in run.alerts:
            if (alert.id, alert.openings) in told: continue
            told.add((alert.id, alert.openings))
            print(f"day {(run.at - START) / DAY:.1f}: {alert.finding.severity} {alert.finding.key}", file=sys.stderr)
    return look


def main():
    small = quick()
    days, planned, outage = 365, PLANNED, OUTAGE
    if small: days, planned, outage = 30, {20: ("broken column", 3)}, (26, (3, 4))
    os.environ["POLARS_MAX_THREADS"] = "1"
    with workplace() as tmp:
        root, endpoint = deployed(tmp / "p", small)
        bundle = root / "artifacts" / "bundle"
        (root / "bundles").mkdir(exist_ok=True)
        rows = pools(read_params(root / "params.yaml").simulate, TRAIN_MONTHS)
        traffic = ReplayedTraffic(root, store_bundle(bundle, root / "bundles"), rows["usual"], endpoint, 40,
                                  timedelta(days=30))
        replay(root, traffic, START, days, planned, rows, outage, teller())
        ledger = open_ledger(root)
        incidents, alerts = [*read_incidents(ledger).values()], read_alerts(ledger).alerts
    when = {name: day for day, (name, _) in planned.items()} | {"outage": outage[0] + 3 / 24}
    found, others = found_rows(dict(sorted(when.items(), key=lambda x: x[1])), incidents, alerts)
    found.append(dict(what="other incidents", figure=f"{days} days", peer=str(len(others)), peer_figure="; ".join(
        alerts[i.alert].finding.summary[:160] for i in others[:3]), ratio="0", bound="", met=not others))
    pages = sum(a.finding.severity == "page" for a in alerts.values())
    report(found, [
        f"{traffic.n:,} requests in {days} days, {pages} alerts that page, {len(alerts)} alerts in all.",
        "A monitoring run at the end of each day, on the day of the outage every hour; labels come 21 to 30 days after "
        "the answer. Concept drift is seen in labels only, so its delay begins with them.",
        "Rows are drawn from the months that the model has learned, as if production were like its training; an "
        "incident draws them from rows in which a column arrives in hundredths or a plan is new, from the last months "
        "of a simulation in which other people ask, or from the usual rows with labels of other causes."],
        HEAD)


if __name__ == "__main__": main()
