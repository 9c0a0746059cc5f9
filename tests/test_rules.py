"""Every protocol rule that the data plane promises has a test, and the test says which paragraph it is about."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

# (rule, what the tests cite, tests)
RULES = [
    # --- checksums
    ("incremental by equation 3", "RFC 1624 section 4", ["reference.test_rewrite:test_rfc_1624_example"]),
    (
        "a UDP checksum of zero stays zero; a computed zero becomes 0xffff",
        "RFC 768",
        [
            "reference.test_rewrite:test_udp_without_checksum_stays_without",
            "reference.test_rewrite:test_udp_checksum_that_becomes_zero_is_sent_as_ones",
            "reference.test_icmp:test_no_checksum_is_made_where_there_was_none",
        ],
    ),
    (
        "from IPv4 to IPv6: computed, dropped in a first fragment",
        "RFC 7915 section 4.5",
        [
            "reference.test_translation:test_udp_without_checksum_gets_one",
            "reference.test_translation:test_first_fragment_without_checksum_is_dropped",
        ],
    ),
    # --- DF and size
    (
        "DF clear up to 1260 bytes, else set",
        "RFC 7915 section 5.1",
        ["reference.test_translation:test_dont_fragment_by_size"],
    ),
    (
        "without DF cut to 1280, with DF told the MTU less 20",
        "RFC 7915 section 4",
        [
            "reference.test_translation:test_long_packet_without_dont_fragment_is_cut_to_1280",
            "reference.test_translation:test_too_big_is_told",
        ],
    ),
    (
        "fragments keep their place",
        "RFC 7915 sections 4.1 and 5.1.1",
        ["reference.test_translation:test_fragments_keep_their_place"],
    ),
    # --- headers
    (
        "hop limit less one, time exceeded at zero",
        "RFC 7915 sections 4.1 and 5.1",
        ["reference.test_translation:test_expired"],
    ),
    (
        "traffic class from TOS",
        "section 4.1: traffic class",
        ["reference.test_translation:test_ipv4_client_of_an_ipv6_pod"],
    ),
    (
        "TOS from traffic class",
        "section 5.1: TOS",
        ["reference.test_translation:test_ipv4_client_of_an_ipv6_pod"],
    ),
    (
        "options ignored, an unexpired source route refused",
        "RFC 7915 section 4.1",
        ["reference.test_translation:test_source_route_fails_and_other_options_are_ignored"],
    ),
    (
        "extension headers skipped, a routing header with segments left refused",
        "RFC 7915 section 5.1",
        [
            "reference.test_translation:test_extension_headers_are_skipped_but_a_routing_header_in_use_is_a_problem"
        ],
    ),
    # --- ICMP
    ("echo", "Sections 4.2 and 5.2", ["reference.test_translation:test_echo"]),
    (
        "ICMP errors to ICMPv6, one embedded header",
        "RFC 7915 section 4.2",
        ["reference.test_translation:test_icmp_errors_become_icmp6"],
    ),
    (
        "ICMPv6 errors to ICMP, one embedded header",
        "RFC 7915 section 5.2",
        ["reference.test_translation:test_icmp6_errors_become_icmp"],
    ),
    (
        "no larger MTU than the links'",
        "RFC 7915 sections 4.2 and 5.2",
        ["reference.test_translation:test_no_larger_mtu_is_told_than_our_links_have"],
    ),
    (
        "never an error about an error, a later fragment, a multicast",
        "RFC 1122 section 3.2.2",
        [
            "reference.test_icmp:test_an_expired_error_dies_in_silence",
            "reference.test_icmp:test_no_error_about_later_fragments_or_to_nobody",
        ],
    ),
    ("errors are limited", "RFC 4443 section 2.4 (f)", ["reference.test_icmp:test_errors_are_limited"]),
    ("time exceeded", "RFC 4443 section 3.3", ["reference.test_icmp:test_time_exceeded"]),
    # --- ICMP through NAT
    ("bad sums dropped", "RFC 5508 REQ-3", ["reference.test_icmp:test_damaged_errors_are_dropped"]),
    (
        "embedded address and port restored, type and code unchanged",
        "RFC 5508 REQ-4",
        ["reference.test_icmp:test_a_router_behind_us_is_heard_by_the_client"],
    ),
    (
        "an error neither refreshes nor ends a mapping",
        "RFC 4787 section 9",
        ["reference.test_icmp:test_errors_do_not_keep_a_flow_alive_nor_end_it"],
    ),
    (
        "an error finds its pod by the ring",
        "by the ring",
        ["reference.test_icmp:test_an_error_about_a_reply_finds_the_pod"],
    ),
    # --- UDP and TCP
    ("UDP mappings are kept 5 minutes", "RFC 4787 REQ-5", ["reference.test_flow_state:test_other_protocols"]),
    (
        "any valid sequence, simultaneous open included",
        "RFC 5382 REQ-2",
        [
            "reference.test_flow_state:test_simultaneous_open_rfc5382_req2",
            "reference.test_flow_state:test_in_the_middle_of_a_connection",
        ],
    ),
    (
        "established connections are kept 2 h 4 min",
        "RFC 5382 REQ-5",
        ["reference.test_flow_state:test_established_is_kept_2_h_4_min_rfc5382_req5"],
    ),
    (
        "a forged reset ends nothing",
        "RFC 6146 section 3.5.2.2",
        ["reference.test_flow_state:test_a_forged_reset_does_not_end_a_living_connection_rfc6146"],
    ),
]


@pytest.mark.parametrize(("rule", "citation", "tests"), RULES, ids=[rule for rule, _, _ in RULES])
def test_a_rule_has_tests_that_cite_it(rule: str, citation: str, tests: list[str]) -> None:
    for test in tests:
        module, _, name = test.partition(":")
        function = getattr(import_module(module), name)
        marks = getattr(function, "pytestmark", [])
        assert not any(mark.name in ("skip", "xfail") for mark in marks), test
        assert citation in inspect.getsource(function), f"{test} does not say {citation}"
