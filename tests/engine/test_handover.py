"""Memory of another layout: what has the same name is copied, what has no place is said."""

from __future__ import annotations

import json
import os

import numpy as np

from kuproxy.dataplane.layout import FLOW, STATE_SPEC, TABLES_SPEC, Region, flow_spec
from kuproxy.engine import handover
from kuproxy.engine.memory import SharedMemory, TablesMemory, WorkerMemory, log2_of
from kuproxy.keeper.vault import Vault

LOG2 = 5


def older() -> dict:
    """A layout as another build may have had it: a field more, one less, fields in another order, fewer rows."""
    description = handover.describe(2)
    for array in description["regions"]["flows"]:
        if array[0] == "flows":
            fields = [each for each in array[1] if each[0] != "created"]
            array[1] = [["forgotten", "<u8"], *reversed(fields)]
    for array in description["regions"]["state"]:
        if array[0] == "held":
            array[0] = "waiting"
        if array[0] == "vip_flows":
            array[2] = [array[2][0] // 2]
    return description


def region_of(description: dict, which: str, buckets: int = 1) -> Region:
    spec = [
        (name, handover._dtype(descr), (shape[0] * buckets, *shape[1:]))
        for name, descr, shape in description["regions"][which]
    ]
    return Region(spec, name=which)


def fd_of(region: Region) -> int:
    """One for a vault, which owns what it is given."""
    return os.dup(region.fd)


def left_by(description: dict) -> Vault:
    vault = Vault()
    for name in ("tables", "baselines", "shared"):
        vault.put(name, fd_of(region_of(description, name)))
    for number in range(2):
        vault.put(f"worker/{number}/state", fd_of(region_of(description, "state")))
        vault.put(f"worker/{number}/flows", fd_of(region_of(description, "flows", 1 << LOG2)))
        vault.put(f"worker/{number}/call", os.memfd_create("call"))
    return vault


def test_its_own_layout_it_knows() -> None:
    description = handover.describe(3)
    assert json.loads(json.dumps(description)) == description
    assert handover.same_layout(description)
    assert handover.losses(description, description) == []
    assert not handover.same_layout(older())


def test_losses_are_named() -> None:
    """From an older build to this one, and back."""
    there = handover.losses(older(), handover.describe(2))
    assert there == ["state.waiting is gone", "flows.flows: field forgotten is gone"]
    back = handover.losses(handover.describe(2), older())
    assert back == [
        "state.held is gone",
        f"state.vip_flows is shorter: {(1 << 18) // 2} instead of {1 << 18}",
        "flows.flows: field created is gone",
    ]


def test_the_same_bytes_with_another_meaning_are_not_kept() -> None:
    description = older() | {"meaning": handover.MEANING + 1}
    [line] = handover.losses(description, handover.describe(2))
    assert "begin anew" in line
    vault = left_by(description)
    handover.migrate(description, vault)
    assert vault.names() == []


def test_what_has_the_same_name_is_copied() -> None:
    description = older()
    vault = left_by(description)
    flows = region_of(description, "flows", 1 << LOG2)
    rng = np.random.default_rng(1)
    for name, array in flows.arrays.items():
        array[:] = np.frombuffer(rng.bytes(array.nbytes), array.dtype)
        flows.arrays[name] = array
    vault.put("worker/1/flows", fd_of(flows))
    state = region_of(description, "state")
    state.arrays["vip_flows"][7] = 70
    state.arrays["pod_refs"][1 << 19] = 9
    vault.put("worker/1/state", fd_of(state))
    tables = region_of(description, "tables")
    tables.arrays["rings"][1 << 29] = 5  # far out: what lies between is a hole, and stays one
    vault.put("tables", fd_of(tables))

    handover.migrate(description, vault)
    assert "worker/1/call" not in vault.names(), "its workers have ended"
    assert log2_of(vault.peek("worker/1/flows")) == LOG2
    new = WorkerMemory.of(
        vault.take("worker/1/state"), vault.take("worker/1/flows"), SharedMemory(vault.take("shared"))
    )
    assert (new.state.entries == flows.arrays["entries"]).all()
    for name in set(FLOW.names or ()) - {"created"}:
        assert (new.state.flows[name] == flows.arrays["flows"][name]).all(), name
    assert not new.state.flows["created"].any()
    assert (new.state.vip_flows[7], new.state.pod_refs[1 << 19]) == (70, 9)
    fd = vault.take("tables")
    memory = TablesMemory(fd)
    assert memory.tables.rings[1 << 29] == 5
    assert os.fstat(fd).st_blocks * 512 < 32 << 20


def test_the_specs_are_those_of_the_data_plane() -> None:
    """Or a change of layout would go unnoticed."""
    regions = handover.describe(1)["regions"]
    for name, spec in (("tables", TABLES_SPEC), ("state", STATE_SPEC), ("flows", flow_spec(0))):
        assert [each[0] for each in regions[name]] == [each[0] for each in spec]
        for (_, descr, shape), (_, dtype, size) in zip(regions[name], spec, strict=True):
            assert handover._dtype(descr) == np.dtype(dtype)
            assert tuple(shape) == size
