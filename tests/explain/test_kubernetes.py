"""What a cluster's objects say of a packet: verdicts and policies from the API server, through the controller."""

from __future__ import annotations

import asyncio
from pathlib import Path

from daemon.test_kubernetes import NODE, Rig, add_node, endpoints, run, service
from kube_api.server import FakeApi
from kuproxy.daemon.api.explain import ExplainRequest, explain_packet
from kuproxy.daemon.api.routes import Nothing
from kuproxy.explain.packet import five_tuple, frame_of

FRAME = frame_of(five_tuple("tcp", "10.1.0.9:40000", "10.96.0.10:80")).hex()


def test_the_objects_of_the_cluster_give_the_rules(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        told = explain_packet(rig.controller, Nothing(), ExplainRequest(frame=FRAME, policy="internal=Local"))
        assert told.owner == "shop/web"
        assert told.service is not None and f"seen from node {NODE}" in told.service
        assert {each.pod: (each.serves, each.rule) for each in told.endpoints} == {
            "10.1.0.1:8080": (True, "ready, policy Cluster"),
            "10.1.0.2:8080": (True, "ready, policy Cluster"),
            "10.1.0.3:8080": (False, "not ready"),
        }
        assert told.what_if is not None and told.what_if.outcome == "drop"
        assert (
            told.what_if.endpoints[0].rule
            == f"policy Local, and it is on no node that it names, not on {NODE}"
        )
        assert any(line.startswith("drop") for line in told.what_if.differences)

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("web", "10.96.0.10"))
        slices = endpoints("web", "10.1.0.1", "10.1.0.2")
        slices["endpoints"].append({"addresses": ["10.1.0.3"], "conditions": {"ready": False}})
        api.store.create("endpointslices", slices)
        run(tmp_path, api, story)
