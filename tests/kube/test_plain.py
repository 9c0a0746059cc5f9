"""The short way of conversion says what the careful one says, or nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.kube.convert import convert_endpoint_slice, convert_service
from kuproxy.kube.objects import EndpointSlice, Service, document
from kuproxy.kube.plain import plain_service, plain_slice
from kuproxy.kube.reader import Finding

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36" / "lists"
Object = dict[str, Any]


def recorded(name: str) -> list[Object]:
    items: list[Object] = json.loads((FIXTURES / name).read_text())["items"]
    return items


SERVICES, SLICES = recorded("services.json"), recorded("endpointslices.json")


def agrees_service(raw: Service) -> bool:
    """Whether the short way knew; what it said must be right."""
    found: list[Finding] = []
    short, careful = plain_service(raw), convert_service(document(raw), found)
    assert short is None or (short == careful and not found)
    return short is not None


def agrees_slice(raw: EndpointSlice) -> bool:
    found: list[Finding] = []
    short, careful = plain_slice(raw), convert_endpoint_slice(document(raw), found, [])
    assert short is None or (short == careful and not found)
    return short is not None


def test_what_a_real_cluster_has_mostly_goes_the_short_way() -> None:
    services = [agrees_service(msgspec.convert(each, Service)) for each in SERVICES]
    slices = [agrees_slice(msgspec.convert(each, EndpointSlice)) for each in SLICES]
    assert sum(services) > len(services) / 4  # the recording has one of every kind of service
    assert sum(slices) > len(slices) / 2


_TEXTS = st.sampled_from(["", "None", "web", "Local", "Cluster", "10.0.0.1", "10.0.0.300", "::1", "fd00::1"])
_VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 80, 65535, 65536])
    | _TEXTS
    | st.lists(_TEXTS, max_size=3)
    | st.sampled_from(["TCP", "UDP", "SCTP", "ICMP", "IPv4", "IPv6", "FQDN", "ClusterIP", "NodePort"])
)


@st.composite
def bent(draw: st.DrawFn, originals: list[Object]) -> Object:
    """A recorded object with some fields that are others."""
    made = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = made
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            deeper = place[key]
            if not (isinstance(deeper, dict | list) and deeper) or draw(st.integers(0, 4)) == 0:
                if isinstance(place, dict) and draw(st.booleans()):
                    del place[key]
                else:
                    place[key] = draw(_VALUES)
                break
            place = deeper
    return made


@given(bent(SERVICES))
def test_services_that_are_bent(raw: Object) -> None:
    try:
        service = msgspec.convert(raw, Service)
    except msgspec.ValidationError:
        return  # the decoder leaves it out
    agrees_service(service)


@given(bent(SLICES))
def test_slices_that_are_bent(raw: Object) -> None:
    try:
        endpoint_slice = msgspec.convert(raw, EndpointSlice)
    except msgspec.ValidationError:
        return
    agrees_slice(endpoint_slice)
