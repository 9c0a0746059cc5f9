"""The suites: by name, the function that lists a suite's cases at a scale."""

from collections.abc import Callable

from bench.harness import Case, Scale
from bench.suites import (
    control,
    floods,
    flow_cache,
    graph,
    kubernetes,
    live,
    lookup,
    maglev,
    memory,
    policy,
    properties,
    replay,
    startup,
    steering,
    vectors,
    workers,
)

SUITES: dict[str, Callable[[Scale], list[Case]]] = {
    "graph": graph.cases,
    "vectors": vectors.cases,
    "workers": workers.cases,
    "lookup": lookup.cases,
    "maglev": maglev.cases,
    "control": control.cases,
    "policy": policy.cases,
    "kubernetes": kubernetes.cases,
    "memory": memory.cases,
    "startup": startup.cases,
    "live": live.cases,
    "properties": properties.cases,
    "replay": replay.cases,
    "flow_cache": flow_cache.cases,
    "floods": floods.cases,
    "steering": steering.cases,
}
