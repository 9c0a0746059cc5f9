"""`ku simulate`: the real graph under a plan, the models beside it, plans that are refused, traces that are made up."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from distributed import LocalCluster

from kuproxy.dataplane import _jit
from kuproxy.drivers.capture.reader import Capture
from kuproxy.errors import ConfigError
from kuproxy.load import load_config
from kuproxy.model.config import Config
from kuproxy.sim import kernels
from kuproxy.sim.algorithms import Algorithm
from kuproxy.sim.churn import Plan, read_plan, states
from kuproxy.sim.generators import Kind, Traffic, draw, write_trace
from kuproxy.sim.measures import Cell, judge
from kuproxy.sim.run import Sizes, modelled, watch
from kuproxy.sim.sweep import Source, grid, sweep
from packets import verify_checksums

CELL = Cell("x", 256, 64, 4.0)
VIPS = {
    4: ("90.0.0.1/32", "nat4", [f"10.0.0.{n}" for n in range(1, 9)]),
    6: ("2002::1/128", "nat6", [f"2001:0:1::{n}" for n in range(1, 9)]),
}
PLAN = """\
nodes: {worker: [10.0.0.5, 10.0.0.6]}
events:
  - {at: 10, remove: 10.0.0.3}
  - {at: 20, add: [10.0.0.9], weight: 2}
  - {at: 30, reweigh: [10.0.0.1], weight: 0}
  - {at: 40, lose: [worker]}
rolling:
  - {at: 45, every: 2.5, replace: [10.0.0.7, 10.0.0.8], with: [10.0.0.17, 10.0.0.18]}
"""


def configured(directory: Path, protocol: str = "udp", family: int = 4, buckets: int = 64) -> Config:
    prefix, kind, pods = VIPS[family]
    script = directory / "services.ku"
    key = f"{prefix} protocol {protocol} port 80"
    script.write_text(
        f"ku conf buckets {buckets} timeout 4\nku vip {key} target_port 8080 {kind} new_len 256\n"
        f"ku pod {key} {' '.join(pods)}\n"
    )
    return load_config([script])


def planned(directory: Path, text: str = PLAN) -> Plan:
    (directory / "plan.yaml").write_text(text)
    return read_plan(directory / "plan.yaml")


def ku(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kuproxy", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(("family", "buckets"), [(4, 128), (6, 256)])
def test_for_udp_the_model_of_the_data_plane_agrees_with_it_packet_for_packet(tmp_path, family, buckets):
    """A small table and a short timeout, so that entries expire and buckets are full; the reverse index is not."""
    config = configured(tmp_path, family=family, buckets=buckets)
    plan = (
        planned(tmp_path) if family == 4 else planned(tmp_path, "events: [{at: 9, remove: ['2001:0:1::2']}]")
    )
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.ZIPF, packets=20_000, clients=500))
    seen, epochs, run = watch(config, tmp_path / "t.pcap", plan)
    lens = {vip.key: vip.new_len for vip in config.vips}
    model = modelled(seen, epochs, Algorithm.MAGLEV, lens, buckets, 4.0)
    assert len(seen.flow) == 20_000 == run.summary()["outcomes"]["transmit"]
    kinds = np.bincount(seen.kind, minlength=3)
    assert kinds[kernels.UNTRACKED] > 50 and kinds[kernels.FIRST] > 1000
    assert np.array_equal(seen.pod, model.pod)
    assert np.array_equal(seen.kind, model.kind)
    assert np.array_equal(seen.occupancy, model.occupancy)
    # What the counters say is what was observed.
    [vip] = run.summary()["vips"]
    assert vip["counters"]["first_packet"] == kinds[kernels.FIRST]
    assert vip["counters"]["untracked_packet"] == kinds[kernels.UNTRACKED]


def test_a_plan_does_what_it_says_when_it_says_so(tmp_path):
    config = configured(tmp_path, buckets=16384)
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.ZIPF, packets=20_000, clients=500))
    seen, epochs, _ = watch(config, tmp_path / "t.pcap", planned(tmp_path))
    seconds = (seen.time_ns - seen.time_ns[0]) / 1e9
    names = [str(pod.address) for _, pod in epochs.pods]
    first = seen.kind == kernels.FIRST

    def served(address: str, since: float, until: float = 1e9, among=slice(None)) -> int:
        hit = (seen.pod == names.index(address)) & (seconds >= since) & (seconds < until)
        return int((hit & among).sum())

    everything = np.ones(len(first), np.bool_)
    assert served("10.0.0.3", 0, 10, first) > 20
    assert served("10.0.0.3", 10, 20, everything) > 0  # its flows stay
    assert served("10.0.0.3", 10, among=first) == 0
    assert served("10.0.0.9", 0, 20, everything) == 0 < served("10.0.0.9", 20, among=first)
    assert served("10.0.0.1", 30, among=first) == 0 < served("10.0.0.1", 20, 30, first)
    for lost in ("10.0.0.5", "10.0.0.6"):
        assert served(lost, 20, 40, everything) > 20
        assert served(lost, 40, among=everything) == 0
    assert served("10.0.0.17", 45, 47.5, first) > 0 == served("10.0.0.18", 0, 47.5, everything)
    outcome = judge(seen, epochs, CELL)
    assert outcome.orphaned > 0 and outcome.untracked == 0
    # Broken are only those that the timeout of 4 s made the table forget.
    short = np.diff(seconds[np.argsort(seen.flow, kind="stable")])
    assert outcome.broken < np.count_nonzero(short > 4)


def test_without_memory_modulo_moves_most_flows_and_consistent_hashing_few(tmp_path):
    config = configured(tmp_path, "tcp")
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.ZIPF, packets=30_000, clients=1000))
    plan = planned(tmp_path, "events: [{at: 30, remove: 10.0.0.3}]")
    seen, epochs, _ = watch(config, tmp_path / "t.pcap", plan)
    crossing = len(np.intersect1d(seen.flow[seen.epoch == 0], seen.flow[seen.epoch == 1]))
    share = {}
    for each in Algorithm:
        model = modelled(seen, epochs, each, {vip.key: 4096 for vip in config.vips}, 64, 0.0)
        share[each] = judge(model, epochs, CELL).broken / crossing
    assert 0.8 < share.pop(Algorithm.MODULO) < 0.95  # 7 of 8
    assert all(0.08 < part < 0.25 for part in share.values()), (
        share
    )  # 1 of 8, and few that need not have moved


def test_weights_are_kept_by_every_algorithm(tmp_path):
    from kuproxy.model.vip import Pod, parse_address
    from kuproxy.sim.algorithms import choose

    weights = (100, 50, 0, 25)
    pods = [Pod(parse_address(f"10.0.0.{n}"), 0, weight) for n, weight in enumerate(weights, start=1)]
    hashes = np.random.default_rng(1).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    for algorithm in Algorithm:
        part = np.bincount(choose(algorithm, pods, 65536, hashes), minlength=4) / len(hashes)
        assert np.allclose(part, np.array(weights) / 175, atol=0.02), (algorithm, part)
        assert (choose(algorithm, [pods[2]], 16, hashes[:5]) == -1).all()


def test_broken_orphaned_and_new_connections_are_told_apart(tmp_path):
    flows = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0], np.int64)
    pods = np.array([0, 0, 1, 1, 1, 0, 0, -1, 1], np.int64)
    syn = np.zeros(9, np.bool_)
    syn[6] = True  # flow 2 is another connection
    epochs = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1], np.int64)
    alive = np.array([[True, True], [False, True]])
    broken, orphaned = np.zeros(4, np.bool_), np.zeros(4, np.bool_)
    kernels.judge(flows, pods, syn, epochs, alive, np.full(4, -1, np.int64), broken, orphaned)
    assert orphaned.tolist() == [True, False, False, False]
    assert broken.tolist() == [False, False, False, True]


def test_without_a_plan_it_writes_what_replay_writes(tmp_path):
    config = configured(tmp_path, "tcp", buckets=1024)
    trace, script = tmp_path / "t.pcap", tmp_path / "services.ku"
    write_trace(trace, config.vips[0], Traffic(Kind.FLOOD, packets=10_000, clients=300))
    done = ku("simulate", "run", "--json", "--config", script, "--write", tmp_path / "a.pcap", trace)
    assert done.returncode == 0, done.stderr
    assert ku("replay", "--config", script, trace, tmp_path / "b.pcap").returncode == 0
    assert (tmp_path / "a.pcap").read_bytes() == (tmp_path / "b.pcap").read_bytes()
    [row] = json.loads(done.stdout)
    assert row["packets"] == 10_000 and row["algorithm"] == "table"


def test_a_grid_in_two_processes_gives_what_one_gives(tmp_path):
    config = configured(tmp_path)
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.TAIL, packets=5000, clients=300))
    planned(tmp_path)
    source = Source(
        (str(tmp_path / "services.ku"),), str(tmp_path / "t.pcap"), str(tmp_path / "plan.yaml"), 20
    )
    jobs = grid(source, ["table", "ring-hash"], [64, 256], [None], [4.0])
    heard: list[int] = []
    one, two = sweep(jobs), sweep(jobs, processes=2, told=heard.append)
    assert [each.summary() for each in one] == [each.summary() for each in two]
    assert [each.cell.new_len for each in one] == [64, 256, 64, 256]
    assert heard == [1, 2, 3, 4]
    assert one[0].summary() != one[1].summary()


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(("protocol", "family"), [("udp", 4), ("tcp", 6), ("udp", 6), ("tcp", 4)])
def test_traces_are_whole_and_as_asked(tmp_path, kind, protocol, family):
    config = configured(tmp_path, protocol, family)
    traffic = Traffic(kind, packets=3000, clients=100, duration_s=20)
    drawn = write_trace(tmp_path / "t.pcap", config.vips[0], traffic)
    trace = Capture(tmp_path / "t.pcap", strict=True)
    times = trace.packets["time_ns"]
    assert len(trace) == 3000 and (np.diff(times) >= 0).all() and times[-1] - times[0] < 20e9
    flow_of = {}
    for number in range(0, 3000, 7):
        data = trace.packet(number)
        assert verify_checksums(data) == []
        tuple_ = data[26:38] if family == 4 else data[22:58]
        assert flow_of.setdefault(int(drawn.flow[number]), tuple_) == tuple_
    assert len(set(flow_of.values())) == len(flow_of)
    sizes = np.bincount(drawn.flow)
    if kind is Kind.HEAVY:
        assert 0.4 < np.sort(sizes)[-3:].sum() / 3000 < 0.6
    if kind is Kind.FLOOD:
        assert drawn.lone.sum() == 1500 and (sizes[drawn.lone] == 1).all()
    if kind is Kind.ZIPF:
        assert np.bincount(drawn.clients)[0] > 3 * np.median(np.bincount(drawn.clients, minlength=100))


def test_more_flows_than_a_client_has_ports_are_refused():
    with pytest.raises(ConfigError, match="--clients: one client would have 70000 flows"):
        draw(Traffic(Kind.TAIL, packets=70_000, clients=1, flow_packets=1))


def test_plans_are_refused_with_all_their_faults(tmp_path):
    with pytest.raises(ConfigError) as refused:
        planned(
            tmp_path,
            "events:\n  - {at: -1, add: x}\n  - {at: 3, remove: 10.0.0.1, weight: 3, foo: 1}\n  - {at: 2}\n"
            "  - {at: 1, reweigh: 10.0.0.1}\nrolling:\n  - {at: 1, every: 1, replace: [10.0.0.1], with: []}\nmore: 1\n",
        )
    lines = [(problem.line, problem.field) for problem in refused.value.problems]
    assert lines == [
        (2, "events[0].at"), (2, "events[0].add"), (3, "events[1].foo"), (3, "events[1].weight"), (4, "events[2]"),
        (5, "events[3]"), (7, "rolling[0].with"), (7, "rolling[0]"), (8, "more"),
    ]  # fmt: skip
    config = configured(tmp_path)
    plan = planned(tmp_path, "events:\n  - {at: 1, add: 10.0.0.1}\n  - {at: 3, lose: 10.9.0.1}\n")
    with pytest.raises(ConfigError) as refused:
        states(config.vips, plan)
    assert [problem.line for problem in refused.value.problems] == [2, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--timeout", "0"), "--timeout: 0 means that nothing is remembered"),
        (("--buckets", "5"), "buckets: 5 is not a number of buckets"),
        (("--new-len", "x"), "--new-len: 'x' is not a number"),
        (("--algorithm", "maglev", "--write", "x.pcap"), "--write: takes the packets of one cell"),
        (("--plan", "none.yaml"), "none.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(tmp_path, words, said):
    config = configured(tmp_path)
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.TAIL, packets=10, clients=3))
    done = ku("simulate", "run", "--config", tmp_path / "services.ku", *words, tmp_path / "t.pcap")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert said in line


def test_parquet_says_what_csv_says(tmp_path):
    config = configured(tmp_path)
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.TAIL, packets=2000, clients=30))
    for form in ("csv", "parquet"):
        out = ("--out", tmp_path, "--format", form)
        files = ("--config", tmp_path / "services.ku", tmp_path / "t.pcap")
        done = ku("simulate", "run", "--jobs", 1, "--algorithm", "maglev", "--algorithm", "modulo", *out, *files)
        assert done.returncode == 0, done.stderr
    for name, count in (("summary", 2), ("series", 200)):
        with (tmp_path / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        table = pyarrow.parquet.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert len(rows) == count
        assert [{key: str(value) for key, value in row.items()} for row in table] == rows


def test_a_grid_on_dask_gives_what_one_process_gives(tmp_path):
    """On a cluster of its own, and on a scheduler that somebody else has started."""
    config = configured(tmp_path)
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.ZIPF, packets=5000, clients=100))
    planned(tmp_path)
    files = (str(tmp_path / "services.ku"),), str(tmp_path / "t.pcap"), str(tmp_path / "plan.yaml")
    jobs = grid(Source(*files, 4), ["table", "modulo"], [64, 256], [None], [4.0])
    wanted = [outcome.summary() for outcome in sweep(jobs)]
    assert [outcome.summary() for outcome in sweep(jobs, processes=2, dask="local")] == wanted
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        assert [each.summary() for each in sweep(jobs, dask=cluster.scheduler_address)] == wanted
    with pytest.raises(ConfigError, match=r"no scheduler at tcp://127\.0\.0\.1:1"):
        sweep(jobs, dask="tcp://127.0.0.1:1")


def test_missing_extras_are_named(tmp_path, monkeypatch):
    from kuproxy.sim.report import check_format

    for module in ("pyarrow", "pyarrow.parquet", "distributed"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"kuproxy\[sim\]"):
        check_format("parquet")
    config = configured(tmp_path)
    write_trace(tmp_path / "t.pcap", config.vips[0], Traffic(Kind.TAIL, packets=10, clients=3))
    source = Source((str(tmp_path / "services.ku"),), str(tmp_path / "t.pcap"), None, 2)
    with pytest.raises(ConfigError, match=r"kuproxy\[dask\]"):
        sweep(grid(source, ["maglev"], [None], [None], [None]), dask="local")


def test_sizes_change_only_what_they_name(tmp_path):
    config = configured(tmp_path)
    assert Sizes().apply(config) == config
    sized = Sizes(512, 32, 9.0).apply(config)
    assert [vip.new_len for vip in sized.vips] == [512]
    assert (sized.settings.buckets, set(sized.settings.timeouts.values())) == (32, {9.0})


def test_the_data_planes_kernels_are_made_without_the_simulator():
    assert not [path for path in _jit.kernel_sources() if "sim" in path.parts]
