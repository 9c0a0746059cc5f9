"""What can be said of the flow cache: `[cache]` in the settings, and the options of the commands."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

from kuproxy.steering.cache_layout import MAX_ENTRIES

__all__ = ["OFF", "SHORTCUTS", "SWITCH", "CacheChoice", "Shortcuts", "Switch"]

Switch = Literal["off", "on"]
SWITCH: tuple[str, ...] = get_args(Switch)
# Where rewritten packets go: always into the node; by shorter ways where those pass by nothing that has something to
# say, but never into a pod's namespace; there, too; the same although netfilter, IPVS or IPsec may have something to
# say: services' traffic is no concern of theirs on this node.
Shortcuts = Literal["off", "neighbour", "on", "past-filters"]
SHORTCUTS: tuple[str, ...] = get_args(Shortcuts)


class CacheChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the kernel rewrites packets of established flows."""

    flow_cache: Switch = "off"
    flow_cache_entries: Annotated[int, msgspec.Meta(ge=2, le=MAX_ENTRIES)] = 65536  # two for each flow
    # Seconds that it goes on without a control process; flows of which a timeout is not twice as long are not cached.
    flow_cache_lease: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    flow_cache_shortcuts: Shortcuts = "off"  # whether packets may leave the node by ways that are shorter than its own


OFF = CacheChoice()
