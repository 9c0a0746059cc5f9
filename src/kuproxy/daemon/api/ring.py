"""A VIP's new-flow table, slot by slot, with what its last change moved; and the same as a picture."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from kuproxy.control.compile import VipRecord
from kuproxy.control.rings import RingReport, compare_rings
from kuproxy.daemon.api.rates import record_of
from kuproxy.daemon.api.views import Picture, View
from kuproxy.daemon.control import Controller
from kuproxy.daemon.schema import VipRef

__all__ = ["Ring", "RingQuery", "get_ring", "get_ring_picture"]

MOST_SLOTS = 65536  # in one answer


class RingQuery(VipRef, frozen=True):
    """Slots from `first` on, at most `limit`; the shares are always those of the whole ring."""

    first: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    limit: Annotated[int, Meta(ge=0, le=MOST_SLOTS)] = MOST_SLOTS


class Share(View):
    """A pod's part of the ring, and what the last change gave and took."""

    address: str
    port: int
    slots: int
    slots_before: int
    gained: int
    lost: int


class Ring(View):
    """A VIP's new-flow table. `owners` and `before` are positions in `shares`, -1: nobody.

    `before`, and `moved`, are null when the daemon knows no former ring of this size.
    """

    vip: str
    slots: int
    moved: int | None
    shares: list[Share]
    first: int
    owners: list[int]
    before: list[int] | None


def _ring_report(controller: Controller, record: VipRecord) -> RingReport:
    compiler = controller.plane.compiler
    pods = {index: pod for pod, index in record.pods.items()}
    return compare_rings(compiler.owners_of(record), pods, compiler.former_rings.former(record.vip.key))


def get_ring(controller: Controller, query: RingQuery, _body: None) -> Ring:
    record = record_of(controller, query)
    report = _ring_report(controller, record)
    part = slice(query.first, query.first + query.limit)
    return Ring(
        vip=str(record.vip.key),
        slots=len(report.owners),
        moved=None if report.before is None else report.moved,
        shares=[
            Share(
                address=str(share.pod.address),
                port=share.pod.port,
                slots=share.slots,
                slots_before=share.slots_before,
                gained=share.gained,
                lost=share.lost,
            )
            for share in report.shares
        ],
        first=query.first,
        owners=report.owners[part].tolist(),
        before=None if report.before is None else report.before[part].tolist(),
    )


def get_ring_picture(controller: Controller, query: VipRef, _body: None) -> Picture:
    record = record_of(controller, query)
    report = _ring_report(controller, record)
    return Picture(svg=report.svg(f"new-flow table of {record.vip.key}"))
