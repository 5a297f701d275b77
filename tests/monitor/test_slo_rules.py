"Burn-rate rules: Prometheus itself says that they page when they should, and that our own evaluator agrees with it."
import json
import random
import re
import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import server as serving
from support.services import PrometheusService, free_port

from mlops_nb.config.slo import Sli, SliRaw, Slo, SloAlert, SloAlerting, SloFile, read_slos, write_default_slos
from mlops_nb.core.errors import UserError
from mlops_nb.monitor.counter_queries import parse_query
from mlops_nb.monitor.counter_samples import counter_values, record_counters
from mlops_nb.monitor.grafana_dashboard import grafana_dashboard
from mlops_nb.monitor.slo_evaluator import measure_slo
from mlops_nb.monitor.slo_rules import SLO_WINDOWS, example_series, slo_rules, window_seconds, write_slo_rules
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.serve.probe import Probe

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (prometheus)")


@pytest.fixture(scope="module")
def slos(tmp_path_factory): return read_slos(write_default_slos(tmp_path_factory.mktemp("slos"), "churn").parent)


def promtool(*words):
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def only(file, *names):
    return SloFile(version=file.version, service=file.service, slos=[s for s in file.slos if s.name in names])


@needs_promtool
def test_promtool_finds_a_rule_that_was_changed_and_no_other(slos, tmp_path):
    rules, tests = write_slo_rules(only(slos, "latency"), tmp_path)
    rules.write_text(rules.read_text().replace("> 0.144", "> 0.9"))  # a page would come too late
    code, output = promtool("test", "rules", tests)
    assert code and re.findall("name: latency: ([a-z ]+)", output) == ["outage"]  # the other stories are as they were


@needs_promtool
def test_each_query_of_rules_and_dashboard_is_promql(slos, tmp_path):
    odd = Slo(name="raw", objective=90, sli=Sli(raw=SliRaw(error_ratio_query="avg_over_time(down[{{.window}}])")))
    rules = [r for slo in (*slos.slos, odd) for g in slo_rules(slos, slo)["groups"] for r in g["rules"]]
    panels = [t["expr"] for p in grafana_dashboard(slos)["panels"] for t in p["targets"]]
    rules += [{"record": f"panel{i}", "expr": e} for i, e in enumerate(panels)]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    code, output = promtool("check", "rules", path)
    assert code == 0, output


def test_each_pair_of_windows_is_an_alert_of_its_own_and_may_be_disabled(slos):
    def windows(slo):
        return [r["labels"].get("window", r["alert"]) for g in slo_rules(slos, slo)["groups"] for r in g["rules"]
                if "alert" in r]
    base, labels = slos.slos[0], {"team": "night"}
    assert windows(base) == ["1h", "6h", "1d", "3d", "AvailabilityNoData"]
    quiet = SloAlerting(name="Quiet", page_alert=SloAlert(disable=True), ticket_alert=SloAlert(labels=labels))
    slo = Slo(name="quiet", objective=99, sli=base.sli, alerting=quiet)
    assert windows(slo) == ["1d", "3d", "QuietNoData"]
    alerts = slo_rules(slos, slo)["groups"][-1]["rules"]
    assert {a["labels"]["severity"] for a in alerts} == {"ticket"} and alerts[0]["labels"]["team"] == "night"


def test_a_query_for_which_no_series_is_made_up_keeps_the_test_of_no_data(slos, tmp_path):
    raw = Slo(name="raw", objective=90, sli=Sli(raw=SliRaw(error_ratio_query="avg_over_time(down[{{.window}}])")))
    with pytest.raises(UserError): example_series(raw)
    _, tests = write_slo_rules(SloFile(version="prometheus/v1", service="churn", slos=[raw]), tmp_path)
    assert tests.read_text().count("name: 'raw: ") == 1


@pytest.mark.parametrize("query", ["up", "sum(rate(a))", "sum(rate(a[5m])", "sum(rate(a{b=1}[5m]))", "1 +", "(" * 300,
                                   "sum by (x) (rate(a[5m]))", "sum(rate(a{b=~\"(\"}[5m]))", "x" * 9999, "a & b"])
def test_a_query_that_is_not_read_without_prometheus_is_refused_with_a_sentence(query):
    with pytest.raises(UserError, match="query"): parse_query(query)


GOOD, BAD = ('mlops_nb_requests_total{endpoint="churn",route="predict",status="%d"}' % s for s in (200, 503))


def history(minutes, seed=0):
    "Counters each minute, with restarts of the server and stretches in which it fails."
    rng, counters = random.Random(seed), {GOOD: 0, BAD: 0}
    for minute in range(minutes):
        yield minute, dict(counters)
        if rng.random() < .01: counters = {GOOD: 0, BAD: 0}
        counters[GOOD] += rng.randrange(200)
        if minute % 97 > 80: counters[BAD] += rng.randrange(20)


@needs_promtool
def test_our_evaluator_agrees_with_prometheus_on_the_same_series(slos, duckdb_store, tmp_path):
    "Hours of random counters with restarts, in both."
    minutes = 7 * 60
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=minutes + 60)
    samples = {GOOD: [], BAD: []}
    with duckdb_store.transaction() as t:
        for minute, counters in history(minutes):
            at = start + timedelta(minutes=minute)
            record_counters(t, "server", counters, at)
            for name, n in counters.items(): samples[name].append(f"{name} {n} {at.timestamp():.0f}\n")
        values = {w: counter_values(t, at - timedelta(seconds=window_seconds(w))) for w in SLO_WINDOWS}
        values["now"] = counter_values(t, at)
    (tmp_path / "m.txt").write_text("# TYPE mlops_nb_requests counter\n" + "".join(samples[GOOD] + samples[BAD])
                                    + "# EOF\n")
    status, bad = measure_slo(slos.slos[0], values)
    prometheus = PrometheusService({})
    assert promtool("tsdb", "create-blocks-from", "openmetrics", tmp_path / "m.txt", f"{prometheus.home}/data")[0] == 0
    rules = {r.get("record"): r["expr"] for g in slo_rules(slos, slos.slos[0])["groups"] for r in g["rules"]}
    with prometheus as p:
        def ask(record): return [*p.query(rules[record], time=f"{at.timestamp():.0f}").values()]
        for w in ("5m", "30m", "1h", "2h", "6h"):
            assert ask(f"slo:sli_error:ratio_rate{w}") == pytest.approx([status.ratios[w]], rel=1e-9), w
        for w in ("1h", "6h"): assert ask(f"slo:bad_events:increase{w}") == pytest.approx([bad[w]], rel=1e-9), w


@needs_promtool
def test_an_outage_of_the_real_server_pages_and_a_blip_does_not(slos, tmp_path):
    "Windows last a three-hundredth of theirs: the hour is twelve seconds."
    root, file, port = serving.project(tmp_path / "project"), slos, free_port()
    file = SloFile(version=slos.version, service=serving.ENDPOINT,
                   slos=read_slos(write_default_slos(tmp_path, serving.ENDPOINT).parent).slos)
    rules = tmp_path / "rules.json"
    chosen = [s for s in file.slos if s.name.startswith("availability")]
    rules.write_text(json.dumps({"groups": [g for s in chosen for g in slo_rules(file, s, 1 / 300)["groups"]]}))
    with serving.Server(root) as server:
        probe = Probe(root, f"http://127.0.0.1:{server.port}")
        from prometheus_client import start_http_server
        httpd, thread = start_http_server(port, "127.0.0.1", probe.registry)
        try:
            with PrometheusService({"server": server.port, "probe": port}, [rules]) as prometheus:
                def ask(n, pause=.05):
                    results = []
                    for _ in range(n):
                        results.append(probe.ask()[0])
                        time.sleep(pause)
                    return results
                assert set(ask(60)) == {"ok"}
                there = probe.url
                probe.url = urlsplit(f"http://127.0.0.1:{free_port()}")  # four requests of the network's
                assert ask(4) == ["failed"] * 4
                probe.url = there
                assert set(ask(60)) == {"ok"}
                pages = 'ALERTS{alertstate="firing",severity="page",window!=""}'
                assert prometheus.query(f"count_over_time({pages}[1m])") == {}
                end = time.monotonic() + 20
                while prometheus.alerts() and time.monotonic() < end: ask(2)  # until all has been read for a while
                assert prometheus.alerts() == []
                server.process.send_signal(signal.SIGKILL)
                for pid in server.workers: Path(f"/proc/{pid}").exists() and subprocess.run(["kill", "-9", str(pid)])
                end, seen = time.monotonic() + 40, {}
                wanted = {("AvailabilityProbe", "1h"), ("AvailabilityNoData", "")}
                while not wanted <= seen.keys() and time.monotonic() < end:
                    ask(2)
                    seen |= {(a["alertname"], a.get("window", "")): a for a in prometheus.alerts()}
                assert wanted <= seen.keys(), seen.keys()
                page = seen["AvailabilityProbe", "1h"]
                assert (page["severity"], page["burn_rate"]) == ("page", "14.4")
                modes = read_log(root / "predictions").select("mode").collect()["mode"]
                assert len(modes) >= 120 and set(modes) == {"probe"}  # nobody takes them for traffic
        finally:
            httpd.shutdown()
            httpd.server_close()
            thread.join(5)
