"""`ku kube-proxy` as somebody types it: what it says before it starts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kubeproxy.test_config import DEFAULTS, HEAD
from kuproxy.daemon.settings import load_settings
from kuproxy.kubeproxy.config import proxy_config
from kuproxy.kubeproxy.flags import configuration
from kuproxy.kubeproxy.service import _base, _with_cache
from kuproxy.model.config import ReplyPath

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "https://10.0.0.1:6443"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
"""


def ku(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kuproxy", "kube-proxy", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_fault_is_one_line_and_status_2(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + "nodePortAdresses: [primary]\n")
    done = ku("--config", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{file}:3: nodePortAdresses: unknown field; did you mean nodePortAddresses?\n"
    assert ku("--conntrack-min=-5").stderr == "--conntrack-min: -5 is out of range; it is 0 or more\n"
    settings = tmp_path / "kuproxy.toml"
    settings.write_text('files = ["services.yaml"]\n')
    done = ku("--settings", str(settings), "--check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{settings}: files: is not possible for a kube-proxy; ")
    done = ku("--kubeconfig", str(tmp_path / "nothing"), "--check")
    assert done.returncode == 2
    assert "nothing: the access to the API server cannot be read" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("mode", DEFAULTS)
def test_the_defaults_are_written_as_kube_proxy_writes_them(tmp_path: Path, mode: str) -> None:
    written = tmp_path / "written.yaml"
    done = ku(f"--proxy-mode={mode}", f"--write-config-to={written}")
    assert (done.returncode, done.stderr) == (0, "")
    assert written.read_text() == DEFAULTS[mode].read_text()


def test_a_check_tells_what_is_ignored_and_what_has_no_effect(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    file = tmp_path / "config.conf"
    connection = f"clientConnection: {{kubeconfig: {tmp_path}/kubeconfig, qps: 50}}"
    file.write_text(f"{HEAD}mode: nftables\nclusterCIDR: 10.0.0.0/8\nportRange: 1-2\n{connection}\n")
    done = ku(
        "--config", str(file), "--check", "--hostname-override=Node-7", "-v=2", "--cluster-cidr=11.0.0.0/8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "good: node node-7, API server https://10.0.0.1:6443\n"
    told = [line.partition(" level=")[2] for line in done.stderr.splitlines()]
    assert told == [
        'warning event="ignored, because there is a --config file" flag=--cluster-cidr',
        'warning event="without effect" setting=clientConnection.qps '
        'text="a proxy has four watches and few events: there is nothing to limit"',
        'warning event="without effect" setting=logging.verbosity text="there is one level for everything"',
        'warning event="without effect" setting=portRange text="the userspace mode that it was for is gone"',
    ]
    done = ku(
        "--master=http://127.0.0.1:8080", "--check", "--proxy-mode=nftables", "--cluster-cidr=10.0.0.0/8"
    )
    assert done.stdout.endswith("API server http://127.0.0.1:8080\n")
    assert done.stderr == ""


def test_the_flow_cache_can_be_asked_for_beside_any_configuration(tmp_path: Path) -> None:
    """The command line goes before the file of settings, and what it does not say stays as it is there."""
    file = tmp_path / "kuproxy.toml"
    file.write_text('[cache]\nflow_cache = "on"\nflow_cache_entries = 512\nflow_cache_shortcuts = "on"\n')
    settings = load_settings(file)
    assert _with_cache(settings, flow_cache=None, flow_cache_shortcuts=None) == settings
    cache = _with_cache(settings, flow_cache="off", flow_cache_shortcuts=None).cache
    assert (cache.flow_cache, cache.flow_cache_entries, cache.flow_cache_shortcuts) == ("off", 512, "on")
    cache = _with_cache(load_settings(None), flow_cache="on", flow_cache_shortcuts="past-filters").cache
    assert (cache.flow_cache, cache.flow_cache_entries, cache.flow_cache_shortcuts) == ("on", 65536, "past-filters")
    done = ku("--flow-cache=maybe", "--check")
    assert (done.returncode, len(done.stderr.splitlines()) <= 4) == (2, True)
    assert "'maybe' is not one of 'off', 'on'" in done.stderr


def test_where_replies_may_come_in_is_an_option() -> None:
    config = proxy_config(configuration(None, {}).config)
    for word in ReplyPath:
        assert _base(config, word.value).settings == replace(config.settings, reply_path=word)
    done = ku("--reply-path=loose", "--check")
    assert done.returncode == 2 and "'loose' is not one of 'strict', 'any'" in done.stderr


def test_what_is_done_at_once() -> None:
    for words in (("--cleanup",), ("--init-only",)):
        done = ku(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert ku("--version").stdout.startswith("kuproxy ")
