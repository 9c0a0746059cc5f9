"""Two nodes with a `ku kube-proxy` each: real sockets through Services as an API server tells of them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuproxy.dataplane._jit import cache_directory
from kuproxy.demo.topology import Host
from netns.cluster import NAMESPACE, Cluster, Pod, cluster
from netns.processes import children_that_run
from netns.world import Kept, connect, echo, family_of, listener, state, web

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
CONFIG = "clusterCIDR: 10.244.0.0/16,fd00:10:244::/56\n"
REFUSED_WITHIN_S = 0.05
TRIES = 24
# Node ports, as the nodes' addresses are asked for them.
NODE1, NODE2 = "192.168.50.1", "192.168.50.2"
TAINT = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
_addresses = iter(range(10, 250))
_ports = iter(range(30100, 32000))


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster(3, 3) as made:
        made.start(CONFIG)
        yield made


def settle(made: Cluster, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until both nodes serve a service as wanted; `wanted` sees each VIP of its cluster IP."""
    for node in made.nodes:

        def is_so(node: Any = node) -> bool:
            vips = node.client.request("GET", "/v1/vips?limit=1000")["vips"]
            mine = [each for each in vips if each["owner"].startswith(f"{NAMESPACE}/{name}:")]
            return bool(mine) and all(map(wanted, mine))

        made.wait_for(node, is_so)


def with_pods(*pods: Pod) -> Callable[[dict[str, Any]], bool]:
    addresses = {address for pod in pods for address in (pod.ipv4, pod.ipv6)}
    return lambda vip: (
        {each["address"] for each in vip["pods"] if not each["draining"]} <= addresses
        and (len([each for each in vip["pods"] if not each["draining"]]) == len(pods))
    )


def new_service(made: Cluster, name: str, pods: list[Pod], **spec: Any) -> tuple[str, int]:
    """Its cluster IP and its HTTP node port, once both nodes know it."""
    address, http = f"10.96.1.{next(_addresses)}", next(_ports)
    if spec.get("type", "ClusterIP") != "ClusterIP":
        spec["node_ports"] = (http, next(_ports))
    made.service(name, [address], pods, **spec)
    settle(made, name, lambda _vip: True)
    return address, http


def names(pods: list[Pod]) -> set[str]:
    return {pod.name for pod in pods}


def answered(host: Host, address: str, port: int = 80, tries: int = TRIES) -> set[str]:
    return {web(host, address, port) for _ in range(tries)}


def is_silent(host: Host, address: str, port: int) -> bool:
    """Dropped: neither answered nor refused."""
    opened = host.call(socket.socket, family_of(address))
    opened.settimeout(0.4)
    with opened:
        try:
            opened.connect((address, port))
        except TimeoutError:
            return True
        except OSError:
            return False
    return False


def refused_within(host: Host, address: str, port: int) -> float:
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        connect(host, address, port)
    return time.monotonic() - began


# --- who reaches what -----------------------------------------------------------------------------------------


def test_every_client_reaches_the_pods_of_both_nodes(two: Cluster) -> None:
    two.service("all", ["10.96.0.80", "fd00:10:96::80"], two.pods, type="NodePort", node_ports=(30080, 30007))
    settle(two, "all", lambda vip: len(vip["pods"]) == 6)
    everybody = names(two.pods)
    clients = {"visitor": two.visitor.host, "a pod behind it": two.pods[0].host, "node": two.nodes[1].host}
    for who, host in clients.items():
        for address in ("10.96.0.80", "fd00:10:96::80"):
            assert answered(host, address, tries=60) == everybody, (who, address)
        assert {echo(host, "10.96.0.80") for _ in range(60)} == everybody, who
    for node in two.nodes:
        for host in (two.client, two.visitor.host, two.nodes[0].host):
            for address in (node.ipv4, node.ipv6):
                assert answered(host, address, 30080, tries=60) == everybody, (address, host.name)
        assert echo(two.client, node.ipv4, 30007) in everybody


def test_addresses_that_pods_see(two: Cluster) -> None:
    """Pods' own, except over node ports; a node's for everybody else."""
    seen: list[str] = []

    def seen_from(host: Host, where: str, number: int) -> str:
        connect(host, where, number).close()
        deadline = time.monotonic() + 3
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        return seen.pop()

    for server in (two.nodes[0].pods[0], two.nodes[1].pods[0]):
        address, port = new_service(two, f"seen-{server.name}", [server], type="NodePort", target=9090)
        with listener(server.host, 9090, lambda _opened, peer: seen.append(peer)):
            assert seen_from(two.visitor.host, address, 80) == two.visitor.ipv4
            assert seen_from(two.nodes[0].host, address, 80) == NODE1
            assert seen_from(two.client, NODE1, port) == NODE1, "masqueraded by the node that was asked"
            assert seen_from(two.client, NODE2, port) == NODE2
            assert seen_from(two.visitor.host, NODE2, port) == NODE2
            assert seen_from(server.host, address, 80) != server.ipv4, "a pod that reaches itself"


def test_a_pod_reaches_itself(two: Cluster) -> None:
    for pod in (two.nodes[0].pods[0], two.nodes[1].pods[0]):
        address, port = new_service(two, f"alone-{pod.name}", [pod], type="NodePort")
        assert answered(pod.host, address, tries=5) == {pod.name}
        assert echo(pod.host, address) == pod.name
        assert answered(pod.host, NODE1, port, tries=5) == {pod.name}
        assert answered(pod.host, NODE2, port, tries=5) == {pod.name}


# --- policies ---------------------------------------------------------------------------------------------------


def test_external_traffic_policy_local(two: Cluster) -> None:
    """From outside: this node's pods, with the client's address; pods and nodes: all. A node without pods is silent."""
    here = two.nodes[0].pods
    address, port = new_service(
        two, "local", here, type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=32100
    )
    assert answered(two.client, NODE1, port, 40) == names(here)
    assert is_silent(two.client, NODE2, port)
    assert answered(two.nodes[1].pods[0].host, NODE2, port) == names(here), "a pod may"
    assert answered(two.nodes[1].host, address) == names(here)
    statuses = [node.curl(f"{node.ipv4}:32100/", two.client) for node in two.nodes]
    assert [status for status, _, _ in statuses] == [200, 503]
    assert "X-Load-Balancing-Endpoint-Weight: 3" in statuses[0][1]
    assert json.loads(statuses[1][2]) == {
        "service": {"namespace": NAMESPACE, "name": "local"},
        "localEndpoints": 0,
        "serviceProxyHealthy": True,
    }
    two.endpoints("local", [*here[1:], two.nodes[1].pods[0]])
    settle(two, "local", lambda vip: bool(vip["pods"]))
    two.wait_for(two.nodes[1], lambda: two.nodes[1].curl(f"{NODE2}:32100/", two.client)[0] == 200)
    assert answered(two.client, NODE2, port) == {two.nodes[1].pods[0].name}
    assert answered(two.client, NODE1, port, 40) == names(here[1:])
    seen: list[str] = []
    server = two.nodes[1].pods[0]
    _, kept = new_service(two, "kept", [server], type="NodePort", externalTrafficPolicy="Local", target=9091)
    with listener(server.host, 9091, lambda _opened, peer: seen.append(peer)):
        connect(two.client, NODE2, kept).close()
        two.wait_for(two.nodes[0], lambda: seen)
    assert seen == ["192.168.50.100"]


def test_internal_traffic_policy_local(two: Cluster) -> None:
    here = two.nodes[0].pods
    address, port = new_service(two, "inner", here, type="NodePort", internalTrafficPolicy="Local")
    assert answered(two.visitor.host, address, tries=40) == names(here)
    assert is_silent(two.nodes[1].pods[0].host, address, 80)
    assert answered(two.nodes[1].pods[0].host, NODE2, port) == names(here), "the node port answers still"


def test_affinity(two: Cluster) -> None:
    affinity = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
    address, _ = new_service(two, "sticky", two.pods, **affinity)
    [chosen] = answered(two.visitor.host, address)
    rest = [pod for pod in two.pods if pod.name != chosen]
    two.endpoints("sticky", rest)
    settle(two, "sticky", with_pods(*rest))
    [other] = answered(two.visitor.host, address)
    assert other != chosen
    two.endpoints("sticky", two.pods)
    settle(two, "sticky", with_pods(*two.pods))
    assert answered(two.visitor.host, address) == {other}, "it stays where it went"


# --- pods come and go ---------------------------------------------------------------------------------------------


def test_pods_that_are_ending(two: Cluster) -> None:
    """They keep their connections, and serve new ones only while nobody else does."""
    stays, ends = two.nodes[0].pods[0], two.nodes[1].pods[0]
    address, _ = new_service(two, "ending", [stays, ends])
    kept = _kept_by(two.visitor.host, address, ends.name)
    two.endpoints("ending", [stays], terminating=[ends])
    settle(two, "ending", with_pods(stays))
    assert answered(two.visitor.host, address) == {stays.name}
    assert kept.get()[0] == ends.name
    two.endpoints("ending", [], terminating=[ends])
    settle(two, "ending", with_pods(ends))
    assert answered(two.visitor.host, address) == {ends.name}
    assert kept.get()[0] == ends.name
    kept.close()


def test_to_zero_and_back(two: Cluster) -> None:
    pods = [two.nodes[0].pods[1], two.nodes[1].pods[1]]
    address, port = new_service(two, "zero", pods, type="NodePort")
    for _ in range(2):
        assert answered(two.visitor.host, address) == names(pods)
        assert echo(two.visitor.host, address, source_port=5353) in names(pods)
        two.endpoints("zero", [])
        settle(two, "zero", with_pods())
        assert refused_within(two.visitor.host, address, 80) < REFUSED_WITHIN_S
        assert refused_within(two.client, NODE1, port) < REFUSED_WITHIN_S
        with pytest.raises(ConnectionRefusedError):
            echo(two.visitor.host, address, source_port=5353)
        two.endpoints("zero", pods)
        settle(two, "zero", with_pods(*pods))
    assert echo(two.visitor.host, address, source_port=5353) in names(pods)
    assert refused_within(two.visitor.host, address, 81) < REFUSED_WITHIN_S, "a port that it does not have"
    assert is_silent(two.visitor.host, "10.96.200.1", 80), "an address that nobody has"


def _kept_by(host: Host, address: str, name: str) -> Kept:
    """A connection to a certain pod."""
    while True:
        kept = Kept(host, address, 80)
        if kept.get()[0] == name:
            return kept
        kept.close()


class Keeper(threading.Thread):
    """Asks over and over on one connection, and notes what its pod was and whether it broke."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        super().__init__(daemon=True)
        self.kept = Kept(host, address, port)
        self.pod = self.kept.get()[0]
        self.fault = ""
        self.asked = 0
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(0.02):
            try:
                pod, _ = self.kept.get()
            except (OSError, http.client.HTTPException) as error:
                self.fault = f"{type(error).__name__}: {error}"
                return
            self.asked += 1
            if pod != self.pod:
                self.fault = f"{self.pod} became {pod}"
                return

    def end(self) -> None:
        self.ending.set()
        self.join(5)
        self.kept.close()


def test_a_rolling_update_of_every_pod_breaks_nothing(two: Cluster) -> None:
    """Three pods become three others, one by one, each ending as pods do; all connections are kept throughout."""
    old = [two.nodes[0].pods[0], two.nodes[0].pods[1], two.nodes[1].pods[0]]
    new = [two.nodes[1].pods[1], two.nodes[0].pods[2], two.nodes[1].pods[2]]
    address, port = new_service(two, "rolling", old, type="NodePort")
    keepers: list[Keeper] = []

    def more(count: int) -> None:
        ways = [(two.visitor.host, address, 80), (two.client, NODE1, port), (two.client, NODE2, port)]
        ways += [(two.nodes[1].pods[0].host, address, 80)]
        for number in range(count):
            keeper = Keeper(*ways[number % len(ways)])
            keeper.start()
            keepers.append(keeper)

    more(24)
    serving = list(old)
    for leaving, coming in zip(old, new, strict=True):
        two.endpoints("rolling", [*serving, coming])  # it is ready ...
        serving.remove(leaving)
        serving.append(coming)
        two.endpoints("rolling", serving, terminating=[leaving])  # ... the other one is told to end
        settle(two, "rolling", with_pods(*serving))
        more(8)
        for _ in range(TRIES):  # until the new pod has one, too
            if coming.name in {each.pod for each in keepers}:
                break
            more(1)
        time.sleep(0.3)
        for keeper in [each for each in keepers if each.pod == leaving.name]:  # it closes its connections
            assert keeper.fault == "", f"{keeper.pod}: {keeper.fault} before it ended"
            keeper.end()
        two.endpoints("rolling", serving)  # and is gone
        settle(two, "rolling", with_pods(*serving))
        time.sleep(0.2)
    for keeper in keepers:
        keeper.end()
    assert [f"{each.pod}: {each.fault}" for each in keepers if each.fault] == []
    assert {each.pod for each in keepers} == names([*old, *new])
    assert min(each.asked for each in keepers) > 0
    assert answered(two.visitor.host, address, tries=40) == names(new)


@pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed: no user types to this cluster"
)
def test_what_a_user_types(two: Cluster) -> None:
    """A Service by kubectl: applied, scaled by a patch, relabelled to another proxy, deleted."""
    one, other = two.nodes[0].pods[0], two.nodes[1].pods[0]
    manifest = f"""\
apiVersion: v1
kind: Service
metadata: {{name: typed, namespace: {NAMESPACE}}}
spec: {{clusterIP: 10.96.2.2, ports: [{{name: http, port: 8000, targetPort: web}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: typed-1, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: typed}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [{one.ipv4}], nodeName: node1}}]
"""
    where = ("--namespace", NAMESPACE)
    host = two.visitor.host
    two.kubectl("apply", "-f", "-", text=manifest)
    settle(two, "typed", with_pods(one))
    assert answered(host, "10.96.2.2", 8000) == {one.name}
    endpoints = [{"addresses": [pod.ipv4], "nodeName": pod.node} for pod in (one, other)]
    patch = json.dumps({"endpoints": endpoints})
    two.kubectl("patch", "endpointslice", "typed-1", *where, "--type=merge", "-p", patch)
    settle(two, "typed", with_pods(one, other))
    assert answered(host, "10.96.2.2", 8000) == {one.name, other.name}
    label = "service.kubernetes.io/service-proxy-name"
    two.kubectl("label", "service", "typed", *where, f"{label}=another")
    _until_silent(two, host, "10.96.2.2", 8000)
    two.kubectl("label", "service", "typed", *where, f"{label}-")
    settle(two, "typed", with_pods(one, other))
    two.kubectl("delete", "service", "typed", *where)
    _until_silent(two, host, "10.96.2.2", 8000)
    assert "Starting" in two.kubectl("get", "events", "-o", "custom-columns=R:.reason")


def _until_silent(made: Cluster, host: Host, address: str, port: int) -> None:
    """The service is gone: its address is one of the range that nobody has."""
    made.wait_for(made.nodes[0], lambda: is_silent(host, address, port))


def test_a_killed_control_process_is_not_noticed(two: Cluster) -> None:
    """Another one takes over what forwards, once the API server has told it everything."""
    node, pods = two.nodes[0], [two.nodes[0].pods[0], two.nodes[1].pods[0]]
    address, _ = new_service(two, "outlives", pods)
    assert node.process is not None
    keepers = [Keeper(two.visitor.host, address, 80) for _ in range(8)]
    for keeper in keepers:
        keeper.start()
    [control] = children_that_run("kuproxy.kubeproxy.service", node.process.pid)
    os.kill(control, signal.SIGKILL)
    two.endpoints("outlives", pods[:1])
    assert answered(two.visitor.host, address) <= names(pods), "the tables go on"
    two.wait_for(node, lambda: "control has ended" in node.log and node.log.count("all is known") == 2, 60)
    settle(two, "outlives", with_pods(pods[0]))
    assert answered(two.visitor.host, address) == {pods[0].name}
    for keeper in keepers:
        keeper.end()
    assert [keeper.fault for keeper in keepers if keeper.fault] == []


# --- the node ---------------------------------------------------------------------------------------------------


def test_ports_metrics_and_commands_of_a_node(two: Cluster) -> None:
    node = two.nodes[0]
    for target, host in (("127.0.0.1:10256/healthz", node.host), (f"{NODE1}:10256/healthz", two.client)):
        status, head, body = node.curl(target, host)
        assert status == 200
        assert "Content-Type: application/json" in head
        assert list(json.loads(body)["status"]) == ["IPv4", "IPv6"]
    with pytest.raises(OSError):
        node.curl(f"{NODE1}:10249/metrics", two.client)
    metrics = node.curl("127.0.0.1:10249/metrics")[2]
    assert 'kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1.0' in metrics
    assert "kuproxy_vip_first_packets_total" in metrics
    assert node.curl("127.0.0.1:10249/proxyMode")[2] == "kuproxy"
    events = two.api.do(lambda: two.api.store.list("events", lambda _: True, 0, "", "", ""))["items"]
    starting = {each["involvedObject"]["name"] for each in events if each["reason"] == "Starting"}
    assert starting == {"node1", "node2"}
    vips = node.client.request("GET", "/v1/vips?limit=1000")["vips"]
    assert any(each["owner"].startswith("shop/") for each in vips)


def confined(directory: Path) -> dict[str, Any]:
    """How to start what the manifest confines: its capabilities, a file system and a /proc/sys that are read-only."""
    manifest = yaml.safe_load((ROOT / "packaging/kubernetes/daemonset.yaml").read_text())
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert "privileged" not in context
    [sysctl] = [each["value"] for each in container["env"] if each["name"] == "KUPROXY_PROC_SYS_NET"]
    assert sysctl in [each["mountPath"] for each in container["volumeMounts"]]
    capabilities, here = ",".join(context["capabilities"]["add"]), f"{directory}/sysctl"
    cache = str(cache_directory().parents[1])
    before = [
        sys.executable,
        str(Path(__file__).with_name("confined.py")),
        capabilities,
        f"{directory}:{cache}",
        here,
    ]
    environment = os.environ | {
        "KUPROXY_PROC_SYS_NET": here,
        "KUPROXY_CACHE": cache,
        "TMPDIR": str(directory),
    }
    return {"before": before, "env": environment}


def test_a_confined_node_with_node_ports_at_its_primary_address_alone() -> None:
    """`nodePortAddresses: [primary]`, the default of mode nftables; 127.0.0.1 is refused in every mode.

    With the rights of the manifest and no others.
    """
    with cluster(1) as made:
        before = state(made.nodes[0].host)
        made.start("mode: nftables\ndetectLocalMode: NodeCIDR\n", **confined(made.directory))
        process = made.nodes[0].process
        assert process is not None
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapBnd:\t0000008000003000\n" in status, "NET_ADMIN, NET_RAW and BPF are left after the start"
        node = made.nodes[0]
        made.service("np", ["10.96.0.80"], node.pods, type="NodePort", node_ports=(30080, 30007))
        settle(made, "np", lambda vip: bool(vip["pods"]))
        assert web(made.client, NODE1, 30080) == "node1-pod1"
        assert web(made.visitor.host, "10.96.0.80") == "node1-pod1"
        gateway = "10.244.1.1"  # another address of the node
        assert refused_within(made.visitor.host, gateway, 30080) < 1
        assert refused_within(node.host, "127.0.0.1", 30080) < 1
        made.change("nodes", "node1", lambda obj: obj["spec"].update(taints=[TAINT]), "")
        made.wait_for(node, lambda: node.curl("127.0.0.1:10256/healthz")[0] == 503)
        assert node.curl("127.0.0.1:10256/livez")[0] == 200
        assert web(made.client, NODE1, 30080) == "node1-pod1", "it forwards to the end"
        process.terminate()
        assert process.wait(15) == 0, node.log
        assert state(node.host) == before, "nothing is left behind"
