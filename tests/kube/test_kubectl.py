"""kubectl against the fake API server, so that what the tests tell it is what users would tell a cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kube_api.server import FakeApi

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(
    KUBECTL is None, reason="kubectl is not installed: the fake API server is less proven"
)

MANIFEST = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  selector: {app: web}
  ports:
    - {name: http, port: 80, targetPort: 8080}
    - {name: https, port: 443, targetPort: 8443}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.1]}, {addresses: [10.244.1.2]}]
ports: [{name: http, port: 8080}, {name: https, port: 8443}]
"""
Kubectl = Callable[..., str]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi(bookmark_s=1.0) as api:
        yield api


def environment(api: FakeApi, tmp_path: Path) -> dict[str, str]:
    """Nothing of the user's own configuration or cache."""
    (tmp_path / "kubeconfig").write_text(api.kubeconfig())
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "kubeconfig")}


@pytest.fixture
def kubectl(api: FakeApi, tmp_path: Path) -> Kubectl:
    assert KUBECTL is not None
    env = environment(api, tmp_path)

    def run(*arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [KUBECTL, *arguments],
            input=text,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def service(api: FakeApi) -> dict[str, Any]:
    return api.do(lambda: api.store.get("services", "shop", "web"))


def test_apply_get_change_delete(api: FakeApi, kubectl: Kubectl) -> None:
    assert kubectl("apply", "-f", "-", text=MANIFEST).splitlines() == [
        "namespace/shop created",
        "service/web created",
        "endpointslice.discovery.k8s.io/web-x created",
    ]
    assert service(api)["spec"]["clusterIP"].startswith("10.96.")
    assert "unchanged" in kubectl("apply", "-f", "-", text=MANIFEST)

    # One port goes, one changes: the lists are merged by the port's number.
    changed = MANIFEST.replace("    - {name: https, port: 443, targetPort: 8443}\n", "").replace(
        "port: 80, targetPort: 8080", "port: 80, targetPort: 9090"
    )
    assert "service/web configured" in kubectl("apply", "-f", "-", text=changed)
    ports = service(api)["spec"]["ports"]
    assert [(port["port"], port["targetPort"]) for port in ports] == [(80, 9090)]

    assert kubectl("get", "services", "-n", "shop", "-o", "name").split() == ["service/web"]
    assert kubectl("get", "svc", "-A", "-l", "app=web,!other", "-o", "name").split() == ["service/web"]
    assert kubectl("get", "svc", "-A", "-l", "app notin (web)", "-o", "name") == ""
    assert "web-x" in kubectl("get", "endpointslices", "-n", "shop")
    shown = json.loads(kubectl("get", "service", "web", "-n", "shop", "-o", "json"))
    assert shown["spec"] == service(api)["spec"]

    assert "deleted" in kubectl("delete", "service", "web", "-n", "shop", "--wait=true")
    assert kubectl("get", "services", "-A", "-o", "name") == ""


def test_patch_label_scale_of_pages_and_status(api: FakeApi, kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", text=MANIFEST)
    kubectl("label", "service", "web", "-n", "shop", "tier=front")
    assert service(api)["metadata"]["labels"] == {"app": "web", "tier": "front"}
    kubectl("patch", "service", "web", "-n", "shop", "--type=merge", "-p", '{"spec":{"type":"NodePort"}}')
    assert all(port["nodePort"] >= 30000 for port in service(api)["spec"]["ports"])
    status = '{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}'
    kubectl("patch", "service", "web", "-n", "shop", "--subresource=status", "--type=merge", "-p", status)
    assert service(api)["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1"}]

    before = len(api.seen)
    pages = kubectl("get", "namespaces", "--chunk-size=1", "-o", "name").split()
    assert pages == ["namespace/default", "namespace/kube-system", "namespace/shop"]
    assert sum("continue" in seen.query for seen in api.seen[before:]) == 2


def test_server_side_apply(api: FakeApi, kubectl: Kubectl) -> None:
    for text in (MANIFEST, MANIFEST.replace("targetPort: 8443", "targetPort: 9443")):
        kubectl("apply", "--server-side", "-f", "-", text=text)
    ports = service(api)["spec"]["ports"]
    assert [(port["port"], port["targetPort"]) for port in ports] == [(80, 8080), (443, 9443)]


def test_watch(api: FakeApi, kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("apply", "-f", "-", text=MANIFEST)
    assert KUBECTL is not None
    command = [
        KUBECTL,
        "get",
        "services",
        "-A",
        "--watch",
        "--output-watch-events",
        "-o",
        "jsonpath={.type} {.object.metadata.name}{'\\n'}",
    ]
    with subprocess.Popen(
        command, env=environment(api, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        try:
            assert watch.stdout is not None
            assert watch.stdout.readline() == "ADDED web\n"
            kubectl("label", "service", "web", "-n", "shop", "a=b")
            assert watch.stdout.readline() == "MODIFIED web\n"
            kubectl("delete", "service", "web", "-n", "shop")
            assert watch.stdout.readline() == "DELETED web\n"
        finally:
            watch.kill()


def test_refusals_reach_the_user(api: FakeApi, tmp_path: Path) -> None:
    assert KUBECTL is not None
    env = environment(api, tmp_path)
    done = subprocess.run(
        [KUBECTL, "get", "service", "none"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == 'Error from server (NotFound): services "none" not found\n'
