"""`ku ring`: the new-flow table of a set of pods, as every instance computes it."""

import json
from collections import Counter

import click

from kuproxy.control.compile import ring_owners
from kuproxy.errors import ConfigError
from kuproxy.main import run
from kuproxy.model.vip import MAX_NEW_LEN, Pod, is_power_of_two, parse_address


@click.command(name="ring")
@click.option("--new-len", default=1024, show_default=True, help="Slots of the table, a power of two.")
@click.option(
    "--json", "as_json", is_flag=True, help='One object: {"slots": [address, ...], "shares": {...}}.'
)
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
def ring(new_len: int, as_json: bool, addresses: tuple[str, ...]) -> None:
    """Print the new-flow table that pods with these addresses share, and each pod's part of it.

    \b
    ku ring --new-len 16 10.0.0.1 10.0.0.2 10.0.0.3
    """
    if not (is_power_of_two(new_len) and new_len <= MAX_NEW_LEN):
        raise ConfigError(f"--new-len: {new_len} is not a power of two from 1 to {MAX_NEW_LEN}")
    try:
        pods = [Pod(parse_address(text)) for text in addresses]
    except ValueError as error:
        raise ConfigError(f"ADDRESS: {error}") from None
    if len({pod.address.version for pod in pods}) > 1:
        raise ConfigError("ADDRESS: the pods of a VIP are all IPv4 or all IPv6")
    slots = [str(pod) for pod in ring_owners(pods, new_len)]
    counts = Counter(slots)
    shares = {str(pod): counts[str(pod)] for pod in sorted(set(pods))}
    if as_json:
        print(json.dumps({"slots": slots, "shares": shares}))
        return
    width = max(map(len, slots))
    columns = max(1, 100 // (width + 2))
    for first in range(0, new_len, columns):
        row = slots[first : first + columns]
        print(f"{first:>8}  " + "  ".join(f"{slot:<{width}}" for slot in row).rstrip())
    print()
    for pod, count in shares.items():
        print(f"{pod:<{width}}  {count} slots  {100 * count / new_len:.2f} %")


if __name__ == "__main__":
    run(ring, name="ku ring")
