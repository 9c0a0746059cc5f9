"""The `ku` language: VPP's commands for its kube-proxy plugin, from text to actions.

The commands are a table (`COMMANDS`): the words that name them, the usage that `help` and messages print, and the
function that reads what follows.  Every word may be abbreviated as long as only one continuation fits.

Ours beyond VPP: `protocol`, `port` on `ku pod`, pods with a port of their own (`10.0.0.1:8080`), `nat6` marks, and
`ku show ...`.  Other than VPP's, a VIP without a type word keeps the family of its prefix (VPP takes IPv6 pods).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from ipaddress import IPv4Address, IPv6Address
from operator import or_

from kuproxy.codes import Encap, Family, FlowState, HashMode, Origin, Protocol
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.config import FlowFilter, FlowHash, ReplyPath, Settings, Show, ShowKind
from kuproxy.model.vip import (
    DEFAULT_NEW_LEN,
    DEFAULT_WEIGHT,
    MAX_WEIGHT,
    VIP_TYPE_WORDS,
    Pod,
    Prefix,
    Vip,
    VipKey,
    encap_of,
    parse_address,
    parse_prefix,
    prefix_parser,
    vip_type,
)
from kuproxy.vppcli.actions import (
    Action,
    AddPods,
    AddTrace,
    AddVip,
    DelPods,
    DelVip,
    FlushFlows,
    SetConf,
    SetInterface,
    ShowAction,
    VipSelector,
    Where,
)
from kuproxy.vppcli.options import (
    OptionReader,
    to_address,
    to_encap,
    to_int,
    to_pod,
    to_ports,
    to_protocol,
    to_seconds,
)
from kuproxy.vppcli.words import Word, WordError, match_keyword, split_commands

__all__ = ["COMMANDS", "Command", "Scan", "parse_line", "parse_script", "scan_script"]


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the command table."""

    path: tuple[str, ...]
    usage: str  # what follows the path
    sentence: str
    read: Callable[[tuple[str, ...], OptionReader, Where], Action | None]
    hidden: bool = False  # another spelling of a command that `help` lists


def _prefix_and_selector(options: OptionReader) -> VipSelector | None:
    prefix = options.take("prefix", parse_prefix)
    if prefix is None:
        return None
    return VipSelector(prefix)


def _narrowed(selector: VipSelector, options: OptionReader) -> VipSelector:
    port = options.values.get("port")
    protocol = options.values.get("protocol")
    assert port is None or isinstance(port, int)
    assert protocol is None or isinstance(protocol, Protocol)
    return VipSelector(selector.prefix, port, protocol)


def _to_ranges(text: str) -> tuple[Prefix, ...]:
    return tuple(parse_prefix(part) for part in text.split(","))


def _to_reply_path(text: str) -> ReplyPath:
    return ReplyPath(match_keyword(text, [each.value for each in ReplyPath]))


_ADDRESSING: dict[str, Callable[[str], object]] = {
    "pod-ranges": _to_ranges,
    "ip4-src-address": to_address,
    "ip6-src-address": to_address,
    "nat46-prefix": prefix_parser(6),
    "nat64-pool": prefix_parser(4),
    "nat64-ports": to_ports,
    "nat-mtu": to_int,
    "flow-hash": FlowHash.parse,
    "reply-path": _to_reply_path,
    "second-chance": to_seconds,
}
_ATTRIBUTES = {name: name.replace("-", "_") for name in _ADDRESSING} | {
    "nat-mtu": "translation_mtu",
    "second-chance": "second_chance_s",
}


def _read_conf(_path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
    words: dict[str, Callable[[str], object]] = {
        "buckets": to_int,
        "buckets-log2": to_int,
        "timeout": to_seconds,
        "masquerade": parse_address,
        **_ADDRESSING,
    }
    named = options.take_named("timeout", words, TIMEOUT_WORDS, to_seconds)
    options.read(words)
    if not options.values and not named and not options.problems:
        settings = f"buckets, buckets-log2, timeout, masquerade, {', '.join(_ADDRESSING)}"
        options.problem("nothing to set", where.line, hint=f"say one of {settings}")
    buckets = options.values.get("buckets")
    log2 = options.values.get("buckets-log2")
    timeout_s = options.values.get("timeout")
    if isinstance(log2, int):
        line = options.line_of("buckets-log2", where.line)
        if log2 > 24:
            options.problem(f"{log2} is too high", line, "buckets-log2", "it is 0 to 24")
        elif buckets not in (None, 1 << log2):
            options.problem(f"2^{log2} is not {buckets}", line, "buckets-log2", "give one of the two")
        else:
            buckets = 1 << log2
    if options.problems:
        return None
    assert buckets is None or isinstance(buckets, int)
    assert timeout_s is None or isinstance(timeout_s, float)
    timeouts_s = tuple((TIMEOUT_WORDS[word], seconds) for word, seconds in named.items())
    masquerade = options.values.get("masquerade")
    assert masquerade is None or isinstance(masquerade, IPv4Address | IPv6Address)
    others = {_ATTRIBUTES[name]: options.values.get(name) for name in _ADDRESSING}
    action = SetConf(buckets, timeout_s, timeouts_s, masquerade, **others, where=where)  # type: ignore[arg-type]
    try:
        action.applied_to(Settings())
    except ConfigError as error:
        options.adopt(error, where.line)
        return None
    return action


TIMEOUT_WORDS = {state.label: state for state in FlowState}
ORIGIN_WORDS = {str(each.name).lower(): each for each in (Origin.POD, Origin.NODE, Origin.OUTSIDE)}
MOST_FLOWS = 10000  # of one page, as the API has it
HASH_WORDS = {mode.name.lower(): mode for mode in HashMode}


def _to_hash_mode(text: str) -> HashMode:
    return HASH_WORDS[match_keyword(text, HASH_WORDS)]


def _to_origins(text: str) -> Origin:
    return reduce(or_, (ORIGIN_WORDS[match_keyword(word, ORIGIN_WORDS)] for word in text.split(",")))


_NAT_WORDS = tuple(VIP_TYPE_WORDS)


def _read_vip(_path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
    selector = _prefix_and_selector(options)
    ports = dict.fromkeys(("port", "target_port", "node_port", "new_len", "dscp", "gue_port"), to_int)
    policy = {
        "affinity": to_seconds,
        "masquerade_from": _to_origins,
        "source_ranges": _to_ranges,
        "hash": _to_hash_mode,
        "sessions": to_int,
    }
    options.read(
        {**ports, **policy, "protocol": to_protocol, "encap": to_encap},
        flags=(*_NAT_WORDS, "masquerade", "reset", "del"),
    )
    types = [word for word in _NAT_WORDS if word in options.values]
    if len(types) > 1:
        line = options.line_of(types[-1], where.line)
        options.problem(f"{' and '.join(types)} exclude each other", line, "type")
    encap_word = options.values.get("encap")
    if encap_word is not None and types:
        options.problem(f"encap {encap_word} and {types[0]} exclude each other", where.line, "encap")
    if selector is None:
        return None
    if options.values.get("del"):
        return None if options.problems else DelVip(_narrowed(selector, options), where=where)
    kind = None
    try:
        kind = vip_type(selector.prefix, types[0] if types else None)
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        options.problem(message, options.line_of(types[0], where.line), "type", hint)
    encap = Encap.NAT
    if isinstance(encap_word, str):
        encap, kind = encap_of(selector.prefix, encap_word)
    # What is wrong already must not hide what else is: a port that could not be read stands for some port.
    any_port = 1 if options.problems else 0
    protocol = options.get("protocol", Protocol, Protocol.ANY)
    try:
        key = VipKey(selector.prefix, protocol, options.get("port", int, any_port))
    except ConfigError as error:
        options.adopt(error, where.line)
        key = VipKey(selector.prefix, protocol, 1)
    try:
        vip = Vip(
            key=key,
            type=vip_type(selector.prefix) if kind is None else kind,
            target_port=options.get("target_port", int, 0),
            node_port=options.get("node_port", int, 0),
            new_len=options.get("new_len", int, DEFAULT_NEW_LEN),
            encap=encap,
            dscp=options.get("dscp", int, 0),
            gue_port=options.get("gue_port", int, 0),
            masquerade=options.get("masquerade", bool, False),
            masquerade_from=options.get("masquerade_from", Origin, Origin(0)),
            reset=options.get("reset", bool, False),
            affinity_s=options.get("affinity", float, 0.0),
            source_ranges=options.get("source_ranges", tuple, ()),
            hash_mode=options.get("hash", HashMode, HashMode.FLOW),
            session_cap=options.get("sessions", int, 0),
        )
    except ConfigError as error:
        options.adopt(error, where.line)
        return None
    return None if options.problems else AddVip(vip, where=where)


def _looks_like_address(text: str) -> bool:
    return "." in text or ":" in text or text[:1].isdecimal()


def _read_pod(_path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
    selector = _prefix_and_selector(options)
    options.read(
        {"port": to_int, "protocol": to_protocol, "weight": to_int},
        flags=("del", "flush"),
        is_free=_looks_like_address,
    )
    weight = options.get("weight", int, DEFAULT_WEIGHT)
    if weight > MAX_WEIGHT:
        line = options.line_of("weight", where.line)
        options.problem(f"{weight} is not a weight", line, "weight", f"it is 0 to {MAX_WEIGHT}")
        weight = DEFAULT_WEIGHT
    if options.values.get("flush") and not options.values.get("del"):
        options.problem("flush without del", options.line_of("flush", where.line), "flush")
    pods: list[Pod] = []
    for word in options.free:
        pod = options.convert("address", word, to_pod)
        if pod is not None:
            pods.append(pod.weighing(weight))
    if not options.free and not options.problems:
        options.problem("no pod address", where.line, "address", "name at least one")
    if selector is None or options.problems:
        return None
    selector = _narrowed(selector, options)
    if options.values.get("del"):
        flush = options.get("flush", bool, False)
        return DelPods(selector, tuple(pods), flush, where=where)
    return AddPods(selector, tuple(pods), where=where)


def _read_interface(path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
    name = options.take("interface", str)
    options.read({}, flags=("del",))
    if name is None or options.problems:
        return None
    family = Family.IPV4 if "nat4" in path else Family.IPV6
    return SetInterface(name, family, not options.values.get("del", False), where=where)


def _read_show(kind: ShowKind) -> Callable[[tuple[str, ...], OptionReader, Where], Action | None]:
    def read(_path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
        options.read({}, flags=("verbose",) if kind is ShowKind.VIPS else ())
        if options.problems:
            return None
        return ShowAction(Show(kind, bool(options.values.get("verbose", False))), where=where)

    return read


def _to_place(text: str) -> tuple[int, int]:
    """`0:4711`, as a page of flows tells it."""
    worker, colon, slot = text.partition(":")
    if not colon:
        raise WordError(
            f"{text!r} is no place in the flow tables", "write WORKER:SLOT, as the page before says"
        )
    return to_int(worker), to_int(slot)


def _to_state(text: str) -> FlowState:
    return TIMEOUT_WORDS[match_keyword(text, TIMEOUT_WORDS)]


def _read_show_flows(_path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
    options.read(
        {
            "vip": parse_prefix,
            "pod": parse_address,
            "client": parse_address,
            "state": _to_state,
            "limit": to_int,
            "after": _to_place,
        }
    )
    limit = options.get("limit", int, FlowFilter().limit)
    if not 1 <= limit <= MOST_FLOWS:
        line = options.line_of("limit", where.line)
        options.problem(f"{limit} is no length of a page", line, "limit", f"it is 1 to {MOST_FLOWS}")
    if options.problems:
        return None
    wanted = FlowFilter(**{**options.values, "limit": limit})  # type: ignore[arg-type]
    return ShowAction(Show(ShowKind.FLOWS, flows=wanted), where=where)


def _read_trace(_path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
    packets = options.take("add", to_int)
    options.read({})
    return None if packets is None or options.problems else AddTrace(packets, where=where)


def _read_flush(_path: tuple[str, ...], options: OptionReader, where: Where) -> Action | None:
    options.read({})
    return None if options.problems else FlushFlows(where=where)


def _read_comment(_path: tuple[str, ...], _options: OptionReader, _where: Where) -> Action | None:
    return None


def _table() -> tuple[Command, ...]:
    show_vips, show_all = (
        "one line for each VIP; verbose: counters and pods",
        "totals, flows in use, settings",
    )
    show_nodes = "what the nodes of the graph counted, with the reason"
    trace = "record the way of the next n packets through the graph"
    show_trace = "the recorded packets: their nodes, what was decided, what became of them"
    mark = "translate back what comes from pods on this interface"
    show_flows = (
        "a line for each remembered flow that fits: of one VIP's prefix, to a pod, of a client, in a state "
        f"({', '.join(TIMEOUT_WORDS)}); a page of 100 unless limit says otherwise, its last line says where the next "
        "one begins"
    )
    flow_options = (
        "[vip <prefix>] [pod <address>] [client <address>] [state <state>] [limit <n>] [after <place>]"
    )
    flows = [
        Command(path, flow_options, show_flows, _read_show_flows, hidden)
        for path, hidden in (
            (("show", "kube-proxy", "flows"), False),
            (("show", "flows"), True),
            (("kube-proxy", "show", "flows"), True),
            (("kube-proxy", "show", "kube-proxy", "flows"), True),
        )
    ]
    marks = []
    for nat in ("nat4", "nat6"):
        for path, hidden in (
            (("kube-proxy", "set", "interface", nat, "in"), False),
            (("set", "kube-proxy", "interface", nat, "in"), True),
            (("set", "interface", nat, "in"), True),
        ):
            marks.append(Command(path, "<intfc> [del]", mark, _read_interface, hidden))
    return (
        Command(
            ("kube-proxy", "conf"),
            "[buckets <n>] [buckets-log2 <n>] [timeout <s>] [timeout <state> <s>] [masquerade <address>] "
            "[pod-ranges <prefix>[,<prefix>...]] "
            "[ip4-src-address <addr>] [ip6-src-address <addr>] "
            "[nat46-prefix <prefix>] [nat64-pool <prefix>] [nat64-ports <low>-<high>] [nat-mtu <n>] "
            "[flow-hash vpp|keyed|<key>] [reply-path strict|any] [second-chance <s>]",
            "size of the established-flow table of each worker, how long a silent flow is remembered (in any "
            f"state, or in one of {', '.join(TIMEOUT_WORDS)}), the source of masqueraded packets, where pods have "
            "their addresses (for VIPs that treat pods and others unlike), the outer source addresses of tunnels, "
            "what clients are called at pods of the other family, by which hash flows are found: VPP's, or one "
            "that nobody can foresee (under a key of its own, or one that several nodes are given), where replies "
            "of pods may come in, as long as no interface is marked: by the interface through which this node sends "
            "to the pod, or by any, and for how many "
            "seconds after a change of a VIP's pods a TCP connection that began elsewhere, and that a slot's new pod "
            "refuses, goes to the slot's former pod (0: it does not)",
            _read_conf,
        ),
        Command(
            ("kube-proxy", "vip"),
            "<prefix> [protocol any|tcp|udp|sctp] [port <n>] [target_port <n>] [node_port <n>] "
            "[nat4|nat6|nat44|nat46|nat64|nat66] "
            "[encap gre4|gre6|l3dsr|ipip|ipip4|ipip6|gue|gue4|gue6|nat4|nat6] [dscp <n>] [gue_port <n>] "
            "[new_len <n>] [masquerade] [masquerade_from <pod,node,outside>] [reset] [affinity <s>] "
            "[source_ranges <prefix>[,<prefix>...]] [hash flow|source] [sessions <n>] [del]",
            "add a VIP, or delete it with its pods",
            _read_vip,
        ),
        Command(
            ("kube-proxy", "pod"),
            "<vip-prefix> <address>[:<port>] [<address> [...]] [port <n>] [protocol any|tcp|udp|sctp] [weight <n>] "
            "[del [flush]]",
            "add pods to the VIPs with that prefix, or remove them; port and protocol choose one of several; a pod "
            "of weight 0 gets no new flows; flush also takes away the flows that a removed pod has",
            _read_pod,
        ),
        *marks,
        Command(("show", "kube-proxy"), "", show_all, _read_show(ShowKind.GENERAL)),
        Command(("show", "kube-proxy", "vips"), "[verbose]", show_vips, _read_show(ShowKind.VIPS)),
        *flows,
        Command(("show", "node", "counters"), "", show_nodes, _read_show(ShowKind.NODES)),
        Command(("kube-proxy", "show"), "", show_all, _read_show(ShowKind.GENERAL), hidden=True),
        Command(
            ("kube-proxy", "show", "vips"), "[verbose]", show_vips, _read_show(ShowKind.VIPS), hidden=True
        ),
        Command(
            ("kube-proxy", "show", "node", "counters"),
            "",
            show_nodes,
            _read_show(ShowKind.NODES),
            hidden=True,
        ),
        Command(("test", "kube-proxy", "flowtable", "flush"), "", "forget every flow", _read_flush),
        Command(
            ("kube-proxy", "test", "flowtable", "flush"), "", "forget every flow", _read_flush, hidden=True
        ),
        Command(("kube-proxy", "trace", "add"), "<n>", trace, _read_trace),
        Command(("trace", "add"), "<n>", trace, _read_trace, hidden=True),
        Command(("show", "trace"), "", show_trace, _read_show(ShowKind.TRACE)),
        Command(("kube-proxy", "show", "trace"), "", show_trace, _read_show(ShowKind.TRACE), hidden=True),
        # What one types behind the shell's `ku`, where VPP's own word for the plugin follows once more.
        Command(
            ("kube-proxy", "show", "kube-proxy"), "", show_all, _read_show(ShowKind.GENERAL), hidden=True
        ),
        Command(
            ("kube-proxy", "show", "kube-proxy", "vips"),
            "[verbose]",
            show_vips,
            _read_show(ShowKind.VIPS),
            hidden=True,
        ),
        Command(
            ("kube-proxy", "test", "kube-proxy", "flowtable", "flush"),
            "",
            "forget every flow",
            _read_flush,
            hidden=True,
        ),
        Command(("comment",), "<text>", "nothing", _read_comment),
    )


COMMANDS: tuple[Command, ...] = _table()


def _find(words: list[Word]) -> tuple[Command, list[Word]]:
    """The command that the words begin with, and the words behind it.

    The longest path wins; raises WordError with the line of the word that fits nothing.
    """
    path: tuple[str, ...] = ()
    found: Command | None = None
    for used, word in enumerate(words):
        depth = len(path)
        following = {
            row.path[depth] for row in COMMANDS if row.path[:depth] == path and len(row.path) > depth
        }
        if not following:
            break
        try:
            path = (*path, match_keyword(word.text, following))
        except WordError as error:
            error.line = word.line
            raise
        found = next((row for row in COMMANDS if row.path == path), None)
        if found is not None and found.path == ("comment",):
            return found, words[used + 1 :]
    if found is None:
        following = {row.path[len(path)] for row in COMMANDS if row.path[: len(path)] == path}
        raise WordError(
            f"{' '.join(word.text for word in words)!r} is not complete",
            f"next: {', '.join(sorted(following))}",
            words[-1].line,
        )
    return found, words[len(path) :]


@dataclass(slots=True)
class Scan:
    """A script read as far as it can be: what was understood, what was not."""

    actions: list[Action]
    problems: list[Problem]
    spoilt: set[Prefix]  # of refused commands: that their VIPs are missing is no second fault

    def note_spoilt(self, words: list[Word]) -> None:
        for word in words:
            with contextlib.suppress(ValueError):
                self.spoilt.add(parse_prefix(word.text))


def _scan_command(words: list[Word], file: str, scan: Scan) -> None:
    where = Where(file, words[0].line)
    try:
        command, rest = _find(words)
    except WordError as error:
        scan.problems.append(Problem(str(error), file, error.line, hint=error.hint))
        scan.note_spoilt(words)
        return
    options = OptionReader(rest, file, where.line)
    action = command.read(command.path, options, where)
    if options.problems:
        scan.problems.extend(sorted(options.problems, key=lambda problem: problem.line))
        scan.note_spoilt(rest[:1])
    elif action is not None:
        scan.actions.append(action)


def scan_script(text: str, file: str = "") -> Scan:
    """Read a whole script without raising: faulty commands are left out of `actions` and told in `problems`."""
    scan = Scan([], [], set())
    for words in split_commands(text):
        _scan_command(words, file, scan)
    return scan


def parse_script(text: str, file: str = "") -> list[Action]:
    """The actions of a script.  Raises ConfigError with the problems of all lines; then none of it counts."""
    scan = scan_script(text, file)
    if scan.problems:
        raise ConfigError(scan.problems)
    return scan.actions


def parse_line(line: str, file: str = "", number: int = 1) -> Action | None:
    """One command; None for a blank line or a comment.  Raises ConfigError."""
    scan = Scan([], [], set())
    for words in split_commands(line):
        _scan_command([Word(word.text, word.line + number - 1) for word in words], file, scan)
    if scan.problems:
        raise ConfigError(scan.problems)
    if len(scan.actions) > 1:
        raise ConfigError(Problem("more than one command", file, number, hint="give one at a time"))
    return scan.actions[0] if scan.actions else None
