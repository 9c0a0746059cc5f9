"""A daemon without a network, some packets later: what the page of the metrics and the drawing of the graph show."""

from __future__ import annotations

import logging
from functools import cache

import structlog

import packets
from daemon.local_node import LocalNode
from kuproxy.daemon.control import Controller
from kuproxy.drivers.memory import MemoryDriver

SERVICES = """\
ku vip 90.0.0.1/32 protocol tcp port 80 node_port 30080
ku pod 90.0.0.1/32 protocol tcp port 80 10.0.0.1 10.0.0.2
ku vip 91.0.0.1/32 protocol udp port 53 reset
"""


@cache
def controller() -> Controller:
    """Started, with two services, one of them without pods."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    made = Controller(LocalNode(), (), structlog.get_logger(), None)
    made.start(made.read_files())
    answer = made.run(SERVICES)
    assert not getattr(answer, "problems", ()), answer
    frames = [packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1000 + number % 40, 80)) for number in range(120)]
    frames += [packets.frame(packets.udp("40.0.0.2", "91.0.0.1", 2000 + number, 53)) for number in range(20)]
    frames += [packets.frame(packets.tcp("40.0.0.3", "90.0.0.1", 3000 + number, 80), ttl=1) for number in range(5)]
    frames += [packets.frame(packets.udp("40.0.0.4", "192.0.2.1", 7, 7))] * 15
    driver = MemoryDriver()
    for first in range(0, len(frames), 100):
        driver.inject(frames[first : first + 100])
        driver.receive(driver.frame)
        made.forwarder.engine.process(driver.frame, 1000)
        driver.transmit(driver.frame)
    return made
