"The Compose file and the manifests of docs/howto/containers.md: valid, and in step with the settings and the routes."
import re
from pathlib import Path

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from mlops_nb.config.settings import read_settings
from mlops_nb.serve.app import ROUTES
from mlops_nb.serve.auth import check_bind_address

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/howto/containers.md").read_text()
[COMPOSE], MANIFESTS = ([*YAML(typ="safe", pure=True).load_all(text)]
                        for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
PUBLIC = {r.path for r in ROUTES if r.scope == "public"}
[STATEFUL_SET] = [m for m in MANIFESTS if m["kind"] == "StatefulSet"]
POD = STATEFUL_SET["spec"]["template"]["spec"]
SERVER = POD["containers"][0]


def settings(environ): return read_settings(ROOT, environ).serve


COMPOSED = settings(COMPOSE["services"]["models"]["environment"])
DEPLOYED = settings({e["name"]: e["value"] for e in SERVER["env"]})


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: m["kind"])
def test_manifests_are_valid(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_a_wrong_manifest_is_noticed():
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(STATEFUL_SET | {"specs": {}}, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("serve", [COMPOSED, DEPLOYED], ids=["compose", "kubernetes"])
def test_the_server_starts_with_these_settings(serve):
    check_bind_address(serve)
    assert serve.auth == "api_key" and serve.drain_seconds and serve.workers == 2
    if serve.behind_proxy: assert serve.max_connections_per_client == serve.max_connections


def test_probes_ask_public_routes_at_the_admin_port():
    ports = {p["name"]: p["containerPort"] for p in SERVER["ports"]}
    assert ports == {"https": DEPLOYED.port, "admin": DEPLOYED.admin_port}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = SERVER[kind]["httpGet"]
        assert asked["path"] in PUBLIC and asked["port"] == "admin", kind
        assert asked["scheme"] == ("HTTPS" if DEPLOYED.tls_certificate_file else "HTTP")
    [service] = [m for m in MANIFESTS if m["kind"] == "Service"]
    assert service["spec"]["ports"][0]["targetPort"] == "https"
    url = re.search(r"http://localhost:(\d+)(/\S+?)'", " ".join(COMPOSE["services"]["models"]["healthcheck"]["test"]))
    assert int(url[1]) == COMPOSED.admin_port and url[2] in PUBLIC


def test_nobody_is_killed_while_it_drains():
    assert POD["terminationGracePeriodSeconds"] > DEPLOYED.drain_seconds + DEPLOYED.shutdown_timeout_seconds
    grace = int(COMPOSE["services"]["models"]["stop_grace_period"].removesuffix("s"))
    assert grace > COMPOSED.drain_seconds + COMPOSED.shutdown_timeout_seconds


def test_secrets_are_files_and_nothing_else_can_be_written():
    mounts = {m["mountPath"]: m for m in SERVER["volumeMounts"]}
    for path in (DEPLOYED.api_keys_file, DEPLOYED.tls_certificate_file, DEPLOYED.tls_private_key_file):
        assert mounts[str(Path(path).parent)]["readOnly"]
    for container in POD["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        declared = {v["name"] for v in POD["volumes"]} | {c["metadata"]["name"] for c in STATEFUL_SET["spec"][
            "volumeClaimTemplates"]}
        assert {m["name"] for m in container["volumeMounts"]} <= declared
    models = COMPOSE["services"]["models"]
    assert models["read_only"] and models["ports"] == [f"127.0.0.1:{COMPOSED.port}:{COMPOSED.port}"]
    assert [f"/run/secrets/{s}" for s in models["secrets"]] == [COMPOSED.api_keys_file]
    assert COMPOSE["secrets"].keys() == {*models["secrets"]}
    assert {v.split(":")[0] for v in models["volumes"]} == COMPOSE["volumes"].keys()
    written = {m for m in mounts if not mounts[m].get("readOnly")}
    assert written == {v.split(":")[1] for v in models["volumes"]} | {t.split(":")[0] for t in models["tmpfs"]}
