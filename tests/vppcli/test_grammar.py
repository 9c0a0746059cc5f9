"""The `ku` language: every documented example, both spellings, abbreviations, and what is refused."""

from __future__ import annotations

import itertools
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.codes import Encap, Family, FlowState, HashMode, Protocol, VipType
from kuproxy.errors import ConfigError
from kuproxy.model.config import FlowHash, ReplyPath, Show, ShowKind
from kuproxy.model.vip import Pod, Vip, VipKey, vip_type
from kuproxy.vppcli.actions import (
    Action,
    AddPods,
    AddVip,
    DelPods,
    DelVip,
    FlushFlows,
    SetConf,
    SetInterface,
    ShowAction,
    VipSelector,
)
from kuproxy.vppcli.apply import Desired
from kuproxy.vppcli.grammar import COMMANDS, parse_line, parse_script
from kuproxy.vppcli.help import help_text
from kuproxy.vppcli.words import WordError, match_keyword

P90 = ip_network("90.0.0.0/8")
NET = ip_network
NAT44 = VipType.IP4_NAT44


def pods(*texts: str) -> tuple[Pod, ...]:
    return tuple(Pod(ip_address(text)) for text in texts)


def vip(prefix: str, kind: VipType, protocol: Protocol = Protocol.ANY, port: int = 0, **rest: object) -> AddVip:
    return AddVip(Vip(VipKey(NET(prefix), protocol, port), kind, **rest))  # type: ignore[arg-type]


GENERAL = ShowAction(Show(ShowKind.GENERAL))
VIPS = ShowAction(Show(ShowKind.VIPS))
VERBOSE = ShowAction(Show(ShowKind.VIPS, True))
NODES = ShowAction(Show(ShowKind.NODES))
IN4, IN6 = SetInterface("eth0", Family.IPV4), SetInterface("eth0", Family.IPV6)

EXAMPLES = [
    # as FEATURES and VPP's documentation have them
    ("ku conf buckets 4096", SetConf(4096)),
    ("ku conf buckets-log2 12", SetConf(4096)),
    ("ku conf timeout 60", SetConf(None, 60.0)),
    ("ku conf buckets 4096 buckets-log2 12 timeout 1.5", SetConf(4096, 1.5)),
    ("ku vip 90.0.0.0/8 nat44 new_len 2048", vip("90.0.0.0/8", VipType.IP4_NAT44, new_len=2048)),
    ("ku vip 2003::/16 nat66 new_len 2048", vip("2003::/16", VipType.IP6_NAT66, new_len=2048)),
    ("ku vip 2002::/16 nat64 new_len 1024", vip("2002::/16", VipType.IP6_NAT64)),
    ("ku vip 80.0.0.0/8 nat46 new_len 1024", vip("80.0.0.0/8", VipType.IP4_NAT46)),
    (
        "ku vip 90.0.0.0/8 port 3306 target_port 3307 node_port 30964 nat4",
        vip("90.0.0.0/8", VipType.IP4_NAT44, port=3306, target_port=3307, node_port=30964),
    ),
    ("ku vip 90.0.0.0/8 port 3306 nat6", vip("90.0.0.0/8", VipType.IP4_NAT46, port=3306)),
    ("ku vip 2002::/16 nat4", vip("2002::/16", VipType.IP6_NAT64)),
    ("ku vip 90.0.0.0/8 del", DelVip(VipSelector(P90))),
    (
        "ku vip 90.0.0.0/8 port 3306 target_port 3307 node_port 30964 nat4 new_len 512 del",
        DelVip(VipSelector(P90, 3306)),
    ),
    ("ku pod 90.0.0.0/8 10.0.0.1", AddPods(VipSelector(P90), pods("10.0.0.1"))),
    (
        "ku pod 2002::/16 2001::2 2001::3 2001::4",
        AddPods(VipSelector(NET("2002::/16")), pods("2001::2", "2001::3", "2001::4")),
    ),
    ("ku pod 90.0.0.0/8 10.0.0.1 10.0.0.2 del", DelPods(VipSelector(P90), pods("10.0.0.1", "10.0.0.2"))),
    ("ku set interface nat4 in eth0", IN4),
    ("ku set interface nat6 in eth0", IN6),
    ("ku set interface nat4 in eth0 del", SetInterface("eth0", Family.IPV4, False)),
    ("set ku interface nat4 in eth0", IN4),
    ("set interface nat6 in eth0", IN6),
    ("show ku", GENERAL),
    ("ku show", GENERAL),
    ("show ku vip", VIPS),
    ("show ku vips", VIPS),
    ("show ku vips verbose", VERBOSE),
    ("ku show vip verbose", VERBOSE),
    ("show node counters", NODES),
    ("ku show node counters", NODES),
    ("test kube-proxy flowtable flush", FlushFlows()),
    ("ku test flowtable flush", FlushFlows()),
    ("ku conf ip4-src-address 192.0.2.1", SetConf(ip4_src_address=ip_address("192.0.2.1"))),
    ("ku conf reply-path any", SetConf(reply_path=ReplyPath.ANY)),
    ("ku conf reply-path s timeout 3", SetConf(timeout_s=3.0, reply_path=ReplyPath.STRICT)),
    ("ku conf flow-hash vpp", SetConf(flow_hash=FlowHash())),
    ("ku conf flow-hash keyed buckets 8", SetConf(8, flow_hash=FlowHash(True))),
    ("ku conf flow-hash " + "0f" * 16, SetConf(flow_hash=FlowHash(True, b"\x0f" * 16))),
    ("ku conf second-chance 60", SetConf(second_chance_s=60.0)),
    ("ku conf second-chance 0 timeout 9", SetConf(timeout_s=9.0, second_chance_s=0.0)),
    ("ku vip 90.0.0.0/8 encap gre4", vip("90.0.0.0/8", VipType.IP4_NAT44, encap=Encap.GRE)),
    ("ku vip 90.0.0.0/8 encap gre6 new_len 1024", vip("90.0.0.0/8", VipType.IP4_NAT46, encap=Encap.GRE)),
    ("ku vip 2003::/16 encap gre4", vip("2003::/16", VipType.IP6_NAT64, encap=Encap.GRE)),
    ("ku vip 90.0.0.0/8 encap l3dsr dscp 2", vip("90.0.0.0/8", VipType.IP4_NAT44, encap=Encap.L3DSR, dscp=2)),
    ("ku vip 90.0.0.0/8 encap nat6", vip("90.0.0.0/8", VipType.IP4_NAT46)),
    # ours
    ("ku vip 2003::/16 encap ipip", vip("2003::/16", VipType.IP6_NAT66, encap=Encap.IPIP)),
    ("ku vip 90.0.0.0/8 encap ipip6", vip("90.0.0.0/8", VipType.IP4_NAT46, encap=Encap.IPIP)),
    ("ku vip 90.0.0.0/8 encap gue", vip("90.0.0.0/8", VipType.IP4_NAT44, encap=Encap.GUE, gue_port=6080)),
    ("ku vip 90.0.0.0/8 encap gue4 gue_port 99", vip("90.0.0.0/8", VipType.IP4_NAT44, encap=Encap.GUE, gue_port=99)),
    ("ku vip 90.0.0.1 protocol udp port 53", vip("90.0.0.1/32", VipType.IP4_NAT44, Protocol.UDP, 53)),
    ("ku vip 90.0.0.0/8 protocol any", vip("90.0.0.0/8", VipType.IP4_NAT44)),
    ("ku vip 90.0.0.0/8 del protocol tcp port 0", DelVip(VipSelector(P90, 0, Protocol.TCP))),
    (
        "ku pod 90.0.0.0/8 port 53 10.0.0.1 protocol udp",
        AddPods(VipSelector(P90, 53, Protocol.UDP), pods("10.0.0.1")),
    ),
    (
        "ku pod 90.0.0.0/8 10.0.0.1:8080 10.0.0.2",
        AddPods(VipSelector(P90), (Pod(ip_address("10.0.0.1"), 8080), *pods("10.0.0.2"))),
    ),
    (
        "ku pod 2003::/16 [2001::2]:8080",
        AddPods(VipSelector(NET("2003::/16")), (Pod(ip_address("2001::2"), 8080),)),
    ),
]


@pytest.mark.parametrize(("line", "action"), EXAMPLES, ids=[line for line, _ in EXAMPLES])
def test_examples(line, action) -> None:
    assert parse_line(line) == action


@pytest.mark.parametrize(("line", "action"), EXAMPLES, ids=[line for line, _ in EXAMPLES])
def test_ku_is_kube_proxy(line, action) -> None:
    for spelling in ("kube-proxy", "kube-p", "k"):
        words = [spelling if word in ("ku", "kube-proxy") else word for word in line.split()]
        assert parse_line(" ".join(words)) == action


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("sh ku v v", VERBOSE),
        ("sh k", GENERAL),
        ("k sh v", VIPS),
        ("sho no c", NODES),
        ("te k f f", FlushFlows()),
        ("se int nat4 i eth0", IN4),
        ("ku se i nat6 in eth0", IN6),
        ("ku c t 5", SetConf(None, 5.0)),
        ("ku conf buckets 8", SetConf(8)),  # in full, though `buckets-log2` begins with it
        ("ku v 90.0.0.0/8 po 80 ta 81 nod 82", vip("90.0.0.0/8", NAT44, port=80, target_port=81, node_port=82)),
        ("ku vip 90.0.0.0/8 nat4", vip("90.0.0.0/8", VipType.IP4_NAT44)),
        ("ku p 90.0.0.0/8 10.0.0.1 d", DelPods(VipSelector(P90), pods("10.0.0.1"))),
        ("ku vip 90.0.0.0/8 pr t", vip("90.0.0.0/8", VipType.IP4_NAT44, Protocol.TCP)),
    ],
)  # fmt: skip
def test_abbreviations(line, action) -> None:
    assert parse_line(line) == action


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("s ku", "'s' is ambiguous; it may mean set or show"),
        ("ku s", "'s' is ambiguous; it may mean set or show"),
        ("ku conf b 8", "'b' is ambiguous; it may mean buckets or buckets-log2"),
        ("ku vip 90.0.0.0/8 p 80", "'p' is ambiguous; it may mean port or protocol"),
        ("ku vip 90.0.0.0/8 nat", "'nat' is ambiguous; it may mean nat4, nat44, nat46, nat6, nat64 or nat66"),
        ("ku set int nat in eth0", "'nat' is ambiguous; it may mean nat4 or nat6"),
        (
            "ku vip 90.0.0.0/8 protocol icmp",
            "protocol: 'icmp' is not known here; possible: any, sctp, tcp or udp",
        ),
        ("frob", "'frob' is not known here; possible: comment, kube-proxy, set, show, test or trace"),
        ("ku", "'ku' is not complete; next: conf, pod, set, show, test, trace, vip"),
        ("show node", "'show node' is not complete; next: counters"),
        ("show ku vips verbose again", "'again' is not known here; possible: verbose"),
        ("show node counters x", "'x' is too much; the command ends before it"),
        ("ku vip", "prefix: the value is missing"),
        ("ku vip 90.0.0.0/8 port", "port: the value is missing"),
        ("ku vip 90.0.0.0/8 port x", "port: 'x' is not a number; write a decimal number"),
        ("ku vip 90.0.0.0/8 port x target_port 80", "port: 'x' is not a number; write a decimal number"),
        ("ku vip 90.0.0.0/8 port ٣", "port: '٣' is not a number; write a decimal number"),
        ("ku vip 90.0.0.0/8 port 80 port 81", "port: given twice, as 80 and as 81"),
        ("ku vip 90.0.0.0/8 nat4 nat6", "type: nat4 and nat6 exclude each other"),
        (
            "ku vip 90.0.0.1/8",
            "prefix: '90.0.0.1/8' has bits set beyond its length; the prefix is 90.0.0.0/8",
        ),
        (
            "ku vip 90.0.0.0/8 nat66",
            "type: nat66 does not fit the prefix 90.0.0.0/8; with these pods it is nat46",
        ),
        (
            "ku conf",
            "nothing to set; say one of buckets, buckets-log2, timeout, masquerade, pod-ranges, ip4-src-address, "
            "ip6-src-address, nat46-prefix, nat64-pool, nat64-ports, nat-mtu, flow-hash, reply-path, second-chance",
        ),
        (
            "ku conf second-chance 7200",
            "second-chance: 7200 is not a time for second chances; "
            "it is a number of seconds, at most 3600, or 0 for none",
        ),
        (
            "ku conf second-chance soon",
            "second-chance: 'soon' is not a number of seconds; write for example 40 or 0.5",
        ),
        ("ku conf flow-hash 0f0f", "flow-hash: not a flow hash; say vpp, keyed, or the 32 hexadecimal digits of a key"),
        ("ku conf reply-path loose", "reply-path: 'loose' is not known here; possible: any or strict"),
        ("ku conf buckets-log2 25", "buckets-log2: 25 is too high; it is 0 to 24"),
        ("ku conf buckets 8 buckets-log2 4", "buckets-log2: 2^4 is not 8; give one of the two"),
        ("ku conf timeout -1", "timeout: '-1' is not a number of seconds; write for example 40 or 0.5"),
        ("ku pod 90.0.0.0/8", "address: no pod address; name at least one"),
        ("ku pod 90.0.0.0/8 10.0.0", "address: '10.0.0' is not an IP address"),
        ("ku pod 90.0.0.0/8 10.0.0.1:70000", "address: 70000 is not a port; a port is 0 to 65535"),
        (
            "ku pod 90.0.0.0/8 [::1]80",
            "address: '[::1]80' is not an address with a port; write [ADDRESS]:PORT",
        ),
        ("ku set interface nat4 in", "interface: the value is missing"),
    ],
)
def test_what_is_wrong_and_what_would_be_right(line, message) -> None:
    with pytest.raises(ConfigError) as error:
        parse_line(line, "x.ku", 7)
    assert str(error.value) == f"x.ku:7: {message}"


def test_all_faults_of_a_line_are_told() -> None:
    with pytest.raises(ConfigError) as error:
        parse_line("ku vip 90.0.0.0/8 prt 1 port 70000 new_len 1000 node_port x")
    assert [problem.field for problem in error.value.problems] == ["", "node_port", "port", "new_len"]


@pytest.mark.parametrize(
    "order", list(itertools.permutations(("port 80", "new_len 64", "nat4", "protocol tcp")))
)
def test_options_come_in_any_order(order) -> None:
    expected = vip("90.0.0.0/8", VipType.IP4_NAT44, Protocol.TCP, 80, new_len=64)
    assert parse_line(f"ku vip 90.0.0.0/8 {' '.join(order)}") == expected


def test_an_option_may_be_repeated_with_the_same_value() -> None:
    expected = vip("90.0.0.0/8", VipType.IP4_NAT44, port=80)
    assert parse_line("ku vip 90.0.0.0/8 port 80 nat4 port 80 nat4") == expected


@pytest.mark.parametrize("text", ["", "   ", "# ku frob", "#ku frob", "comment ku frob", "  #", "com x"])
def test_nothing_is_nothing(text) -> None:
    assert parse_line(text) is None
    assert parse_script(text) == []


SCRIPT = """\
# a comment
ku vip 90.0.0.0/8 \\
    port 80 \\
    new_len 64   # and another
comment that nobody reads
ku pod 90.0.0.0/8 10.0.0.1 \\

sh ku
"""


def test_scripts_have_comments_blanks_and_continued_lines() -> None:
    actions = parse_script(SCRIPT, "s.ku")
    assert actions == [
        vip("90.0.0.0/8", VipType.IP4_NAT44, port=80, new_len=64),
        AddPods(VipSelector(P90), pods("10.0.0.1")),
        GENERAL,
    ]
    assert [action.where.line for action in actions] == [2, 6, 8]


def test_problems_name_the_line_of_the_word_not_of_the_command() -> None:
    text = "ku vip 90.0.0.0/8 \\\n port 70000 \\\n new_len 3 \\\n frob\nshow ku\nku x\n"
    with pytest.raises(ConfigError) as error:
        parse_script(text, "s.ku")
    assert [(problem.line, problem.field) for problem in error.value.problems] == [
        (2, "port"),
        (3, "new_len"),
        (4, ""),
        (6, ""),
    ]


def test_a_line_is_one_command() -> None:
    with pytest.raises(ConfigError, match="more than one command"):
        parse_line("show ku\nshow ku")


def test_keywords_match_in_full_before_they_match_as_beginnings() -> None:
    assert match_keyword("nat4", ["nat4", "nat44"]) == "nat4"
    with pytest.raises(WordError):
        match_keyword("", ["nat4"])


PREFIXES = st.one_of(st.ip_addresses(v=4, network="90.0.0.0/8"), st.ip_addresses(v=6)).flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(lambda n: NET((address, n), strict=False))
)


@given(st.data(), PREFIXES)
def test_what_a_vip_says_of_itself_is_a_command(data, prefix) -> None:
    port, node_port, target = (data.draw(st.integers(0, 65535)) for _ in range(3))
    kind = vip_type(prefix, data.draw(st.sampled_from(["nat4", "nat6"])))
    key = VipKey(
        prefix, data.draw(st.sampled_from([Protocol.ANY, Protocol.TCP, Protocol.UDP, Protocol.SCTP])), port
    )
    expected = Vip(key, kind, target if port else 0, node_port, 1 << data.draw(st.integers(0, 24)))
    assert parse_line(f"ku vip {expected.describe()}") == AddVip(expected)


WORDS = sorted({word for command in COMMANDS for word in (*command.path, *command.usage.split())})


@given(
    st.lists(
        st.one_of(st.sampled_from([*WORDS, "90.0.0.0/8", "::1", "80", "\\", "\n", "#"]), st.text()),
        max_size=12,
    )
)
def test_whatever_is_typed_is_an_action_or_a_problem(words) -> None:
    text = " ".join(words)
    try:
        actions = parse_script(text, "s.ku")
    except ConfigError as error:
        lines = len(text.splitlines())
        assert error.problems
        assert all(1 <= problem.line <= lines and problem.message for problem in error.problems)
    else:
        assert all(isinstance(action, Action) for action in actions)


def test_help_lists_every_command_once() -> None:
    text = help_text(width=1000)
    for command in COMMANDS:
        line = "  " + " ".join((*command.path, command.usage)).rstrip()
        assert (line in text.splitlines()) is not command.hidden


class TestPolicyWords:
    def test_timeouts(self) -> None:
        [action] = parse_script("ku conf timeout tcp-established 100 timeout 40 buckets 8 timeout udp 5")
        assert isinstance(action, SetConf)
        assert (action.buckets, action.timeout_s) == (8, 40.0)
        assert dict(action.timeouts_s) == {FlowState.TCP_ESTABLISHED: 100.0, FlowState.UDP: 5.0}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("ku conf timeout tcp 5", "'tcp' is ambiguous"),
            ("ku conf timeout quic 5", "'quic' is not known here"),
            ("ku conf timeout udp", "the value is missing"),
            ("ku conf timeout udp 0", "0 is not a timeout"),
            ("ku conf masquerade here", "'here' is not an IP address"),
            ("ku conf pod-ranges 10.1.0.0/16,10.2.0.1/16", "'10.2.0.1/16' has bits set beyond its length"),
            ("ku vip 90.0.0.1 masquerade_from node,inside", "'inside' is not known here"),
            ("ku pod 90.0.0.1 10.0.0.1 weight 101", "101 is not a weight"),
            ("ku pod 90.0.0.1 10.0.0.1 flush", "flush without del"),
            ("ku vip 90.0.0.1 affinity 100000", "100000 is not an affinity timeout"),
            ("ku vip 90.0.0.1 source_ranges 40.0.0.0/8,x", "'x' is not an IP address"),
            ("ku vip 90.0.0.1 hash port", "'port' is not known here"),
        ],
    )
    def test_what_is_wrong(self, line: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_script(line)
        assert message in str(caught.value)

    def test_vip(self) -> None:
        [action] = parse_script(
            "ku vip 90.0.0.1 port 80 masquerade reset affinity 60 source_ranges 40.0.0.0/8,41.0.0.0/8 "
            "hash source sessions 1000"
        )
        assert isinstance(action, AddVip)
        vip = action.vip
        assert (vip.masquerade, vip.reset, vip.affinity_s, vip.session_cap) == (True, True, 60.0, 1000)
        assert [str(prefix) for prefix in vip.source_ranges] == ["40.0.0.0/8", "41.0.0.0/8"]
        assert vip.hash_mode == HashMode.SOURCE

    def test_pod(self) -> None:
        add, drop = parse_script("ku pod 90.0.0.1 10.0.0.1 weight 3\nku pod 90.0.0.1 10.0.0.1 del flush")
        assert isinstance(add, AddPods)
        assert add.pods[0].weight == 3
        assert isinstance(drop, DelPods)
        assert drop.flush


def test_weights_and_flushes_of_a_script() -> None:
    desired = Desired()
    desired.run(
        "ku vip 90.0.0.1 port 80\nku pod 90.0.0.1 10.0.0.1 10.0.0.2 weight 3\nku pod 90.0.0.1 10.0.0.2 weight 0\n"
        "ku pod 90.0.0.1 10.0.0.1 del flush\nku conf masquerade 10.1.0.1\nku conf masquerade 10.1.0.2\n"
        "ku conf masquerade 2001:db8::1"
    )
    config = desired.config()
    assert [(str(pod), pod.weight) for pod in config.vips[0].pods] == [("10.0.0.2", 0)]
    assert [(key.port, str(pod)) for key, pod in config.flushed] == [(80, "10.0.0.1")]
    assert [str(address) for address in config.settings.masquerade] == ["10.1.0.2", "2001:db8::1"]
