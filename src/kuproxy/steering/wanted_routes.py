"""Which VIPs need a route: every network that some VIP has, less what needs none.

The node's own addresses need none, the kernel delivers these anyhow; nor does a network within a wider one; and the
default route is never ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_network

from .keys import Address, Network
from .routes import VipRoutes
from .targets import Asked, decrement

__all__ = ["WantedRoutes"]


class WantedRoutes:
    """Keeps the routes in line with VIPs and with the node's addresses.

    `waiting`: a predecessor's programs are in charge.  Its routes stay until `take_over`, when it is known which are
    wanted: without a route back the kernel takes replies in the VIP's name for forged (`fib_validate_source()`).
    """

    def __init__(self, routes: VipRoutes, waiting: bool) -> None:
        self._routes, self._waiting = routes, waiting
        self._networks: Counter[Network] = Counter()  # with the number of VIPs in each
        self._own: frozenset[Network] = frozenset()

    @property
    def families(self) -> set[int]:
        """Those (4, 6) that have a VIP."""
        return {network.version for network in self._networks}

    def change(self, remove: Asked, add: Asked) -> None:
        """The cost follows the difference."""
        # Hashed once: networks are slow at it.
        coming = Counter([*(network for network, _, _ in add.vips), *add.translated])
        self._networks.update(coming)
        going = (*(network for network, _, _ in remove.vips), *remove.translated)
        gone = [network for network in going if decrement(self._networks, network)]
        self._change(gone, coming)

    def follow(self, own: Iterable[Address]) -> None:
        """The node has these addresses."""
        self._own = frozenset(ip_network(address) for address in own)
        self._settle()

    def take_over(self) -> None:
        """Whatever was left to a predecessor is ours."""
        self._waiting = False
        self._settle()

    def _settle(self) -> None:
        routable = self._routable(self._networks)
        self._change(self._routes.networks - routable, routable - self._routes.networks)

    def _change(self, remove: Iterable[Network], add: Iterable[Network]) -> None:
        """Routes to what has come, none to what has gone."""
        add, remove = self._routable(add), set() if self._waiting else set(remove)
        wide = {network for network in add | remove if network.prefixlen < network.max_prefixlen}
        self._routes.change(remove=(), add=wide & add)
        if wide:
            add |= self._routable(self._networks)  # for others it may begin or end to be needed
        covers = self._routes.wide - remove
        covered = {network for network in add if _is_within(network, covers)}
        # There is a way to each of them at any time.
        self._routes.change(remove=(), add=add - covered)
        if not self._waiting:
            self._routes.change(remove=remove | covered, add=())

    def _routable(self, networks: Iterable[Network]) -> set[Network]:
        return {each for each in networks if each.prefixlen > 0 and each not in self._own}


def _is_within(network: Network, covers: Iterable[Network]) -> bool:
    """Whether a wider network of these has it."""
    return any(
        each.prefixlen < network.prefixlen
        and each.version == network.version
        and network.network_address in each
        for each in covers
    )
