"""/statusz, /flagz and /configz: text for people, JSON for who names its form, nothing for who does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kuproxy import __version__
from kuproxy.kubeproxy.config import Endpoint, complete, proxy_config
from kuproxy.kubeproxy.flags import FLAGS, configuration
from kuproxy.kubeproxy.schema import KubeProxyConfiguration
from kuproxy.kubeproxy.zpages import configz, flags_of, flagz, statusz

NOON = 1_790_000_000.0
STATUSZ = "application/json;v={};g=config.k8s.io;as=Statusz"


def test_statusz_as_text() -> None:
    answer = statusz("", NOON, NOON + 3 * 3600 + 4 * 60 + 5.9)
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    lines = answer.body.decode().splitlines()
    assert lines[:2] == ["", "kube-proxy statusz"] and lines[2].startswith("Warning: This endpoint is not")
    assert lines[4:6] == ["Started: Mon Sep 21 14:13:20 UTC 2026", "Up: 3 hr 04 min 05 sec"]
    assert f"Binary version: kuproxy {__version__}" in lines and "Emulation version: 1.36" in lines
    assert lines[-1] == "Paths: /configz /flagz /healthz /metrics /proxyMode /statusz"


@pytest.mark.parametrize("version", ["v1alpha1", "v1beta1"])
def test_the_structured_form_is_the_one_that_was_asked_for(version: str) -> None:
    answer = statusz(STATUSZ.format(version), NOON, NOON + 61)
    assert answer.headers["Content-Type"] == "application/json"
    said = json.loads(answer.body)
    assert said["kind"] == "Statusz" and said["apiVersion"] == f"config.k8s.io/{version}"
    assert said["metadata"] == {"name": "kube-proxy"} and said["uptimeSeconds"] == 61
    assert said["startTime"] == "2026-09-21T14:13:20Z" and "/flagz" in said["paths"]


@pytest.mark.parametrize(
    "accept",
    ["application/json", STATUSZ.format("v9"), STATUSZ.format("v1beta1").replace("Statusz", "Flagz"), "image/png"],
)
def test_a_form_that_there_is_not_is_refused_with_those_that_there_are(accept: str) -> None:
    answer = statusz(accept, NOON, NOON)
    assert answer.status == 406 and b"application/json;v=v1beta1;g=config.k8s.io;as=Statusz" in answer.body


def test_the_first_form_that_there_is_counts() -> None:
    both = f"image/png, text/plain;q=0.5, {STATUSZ.format('v1beta1')}"
    assert statusz(both, NOON, NOON).body.startswith(b"\nkube-proxy statusz\n")


def test_flagz_has_every_flag_once_given_or_by_default() -> None:
    flags = flags_of({"cluster-cidr": "10.0.0.0/8", "masquerade-all": "true"}, config="", master="")
    lines = flagz("*/*", flags).body.decode().splitlines()[4:]
    said = dict(line.split("=", 1) for line in lines)
    assert list(said) == sorted({flag.name for flag in FLAGS} | {"config", "master"})
    assert said["cluster-cidr"] == "10.0.0.0/8" and said["masquerade-all"] == "true"
    assert said["detect-local-mode"] == "ClusterCIDR" and said["oom-score-adj"] == "-999"
    assert said["bind-address-hard-fail"] == "false" and said["nodeport-addresses"] in ("", "[]")
    asked = "application/json;v=v1beta1;g=config.k8s.io;as=Flagz"
    assert json.loads(flagz(asked, flags).body)["flags"] == flags


def test_configz_is_the_file_with_its_defaults() -> None:
    config = configuration(None, {"cluster-cidr": "10.0.0.0/8", "metrics-bind-address": "127.0.0.1:9"}).config
    said = json.loads(configz(config).body)["kubeproxy.config.k8s.io"]
    assert said["kind"] == "KubeProxyConfiguration" and said["clusterCIDR"] == "10.0.0.0/8"
    assert said["metricsBindAddress"] == "127.0.0.1:9" and said["conntrack"]["maxPerCore"] == 32768
    assert replace(proxy_config(config), raw=complete(KubeProxyConfiguration())).metrics == Endpoint("127.0.0.1", 9)
