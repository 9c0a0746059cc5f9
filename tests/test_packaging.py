"""The manifests and the chart: what they hold agrees with the code, and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import render
from kuproxy import __version__
from kuproxy.kube.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, own_node
from kuproxy.kubeproxy.config import proxy_config, read_config

ROOT = Path(__file__).parents[1]
PLAIN, CHART = ROOT / "packaging/kubernetes", ROOT / "packaging/helm/kuproxy"
HELM = shutil.which("helm")
ALWAYS = ("rbac", "configmap", "daemonset")
Object = dict[str, Any]
VARIANTS = {
    "defaults": {},
    "everything": {
        "existingConfigMap": "kube-proxy",
        "serviceMonitor": {"enabled": True, "interval": "10s"},
        "image": {"repository": "example/kuproxy", "tag": "9", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "secret"}],
        "tolerations": [],
        "flowCache": {"mode": "on", "shortcuts": "past-filters"},
        "replyPath": "any",
    },
    "k3s": {
        "apiServer": "https://127.0.0.1:6444",
        "config": {"clusterCIDR": "10.42.0.0/16", "mode": "iptables"},
    },
}


def plain(*names: str) -> dict[tuple[str, str], Object]:
    texts = [(PLAIN / f"{name}.yaml").read_text() for name in names]
    return by_name("\n---\n".join(texts))


def by_name(text: str) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text) if each}


def rendered(values: Object | None = None) -> dict[tuple[str, str], Object]:
    return by_name(render(CHART, values or {}, release="kuproxy", namespace="kube-system"))


def test_the_chart_renders_the_plain_manifests() -> None:
    assert rendered() == plain(*ALWAYS)
    with_monitor = rendered({"serviceMonitor": {"enabled": True}})
    assert with_monitor == plain(*ALWAYS, "servicemonitor")


def test_values_arrive_where_they_belong() -> None:
    objects = rendered(VARIANTS["everything"])
    assert ("ConfigMap", "kuproxy") not in objects
    pod = objects["DaemonSet", "kuproxy"]["spec"]["template"]["spec"]
    assert {each["image"] for each in pod["initContainers"] + pod["containers"]} == {"example/kuproxy:9"}
    assert {each["imagePullPolicy"] for each in pod["initContainers"] + pod["containers"]} == {"Always"}
    assert pod["imagePullSecrets"] == [{"name": "secret"}]
    assert pod["tolerations"] == []
    assert "--reply-path=any" in pod["containers"][0]["command"]
    assert pod["containers"][0]["command"][-2:] == ["--flow-cache=on", "--flow-cache-shortcuts=past-filters"]
    assert {"name": "config", "configMap": {"name": "kube-proxy"}} in pod["volumes"]
    assert objects["ServiceMonitor", "kuproxy"]["spec"]["endpoints"][0]["interval"] == "10s"


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_helm_says_the_same(values: Object, tmp_path: Path) -> None:
    """Where there is helm: the chart passes its lint, and renders to what the tests' own renderer makes of it."""
    if HELM is None:
        pytest.skip("helm is not installed: the chart is rendered by the tests' own renderer alone")
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    subprocess.run(
        [HELM, "lint", "--strict", str(CHART), "--values", str(file)], check=True, capture_output=True
    )
    command = [
        HELM,
        "template",
        "kuproxy",
        str(CHART),
        "--namespace",
        "kube-system",
        "--kube-version",
        "1.36.0",
    ]
    done = subprocess.run([*command, "--values", str(file)], check=True, capture_output=True, text=True)
    assert by_name(done.stdout) == rendered(values)


@pytest.mark.parametrize("values", [VARIANTS["defaults"], VARIANTS["k3s"]], ids=["defaults", "k3s"])
def test_the_configuration_in_it_is_read(values: Object, tmp_path: Path) -> None:
    data = rendered(values)["ConfigMap", "kuproxy"]["data"]
    file = tmp_path / "config.conf"
    file.write_text(data["config.conf"])
    config = proxy_config(read_config(file))
    wanted = values.get("config", {"clusterCIDR": "10.244.0.0/16"})["clusterCIDR"]
    assert list(map(str, config.proxy.cluster_cidrs)) == [wanted]
    kubeconfig = yaml.safe_load(data["kubeconfig.conf"])
    where = values.get("apiServer", "https://control-plane.example:6443")
    assert kubeconfig["clusters"][0]["cluster"]["server"] == where
    mounts = _containers()["kuproxy"]["volumeMounts"]
    assert Path(config.raw.client_connection.kubeconfig).parent.as_posix() in [
        each["mountPath"] for each in mounts
    ]


def test_the_rights_are_those_that_are_used_and_no_others() -> None:
    role = plain("rbac")["ClusterRole", "kuproxy"]
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    used = {("events.k8s.io", "events", "create")}
    for resource in (SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS, own_node("n")):
        group = re.fullmatch(r"/api/v1/\w+|/apis/([\w.]+)/v1/\w+", resource.path)
        assert group is not None
        used |= {(group[1] or "", resource.plural, verb) for verb in ("list", "watch")}
    assert granted == used


def _containers() -> dict[str, Object]:
    pod = plain("daemonset")["DaemonSet", "kuproxy"]["spec"]["template"]["spec"]
    return {each["name"]: each for each in pod["initContainers"] + pod["containers"]}


def test_every_mount_has_its_volume_and_the_image_is_of_this_version() -> None:
    pod = plain("daemonset")["DaemonSet", "kuproxy"]["spec"]["template"]["spec"]
    volumes = {each["name"] for each in pod["volumes"]}
    mounted = {each["name"] for container in _containers().values() for each in container["volumeMounts"]}
    assert mounted == volumes
    assert {each["image"] for each in _containers().values()} == {f"kuproxy:{__version__}"}
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def test_a_pod_has_no_more_rights_than_are_explained() -> None:
    """docs/kubernetes.md has a line for each capability."""
    documented = set(re.findall(r"^\| ([A-Z_]+) \|", (ROOT / "docs/kubernetes.md").read_text(), re.MULTILINE))
    context = _containers()["kuproxy"]["securityContext"]
    assert set(context["capabilities"]["add"]) == documented
    assert _containers()["kernels"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
