"""Many cells of a grid: in this process, in several, or on a Dask cluster.

A job is a small value: it names files, and whoever runs it reads them.  So nothing large travels, and a cluster's
machines need the same files at the same paths.  A process keeps what the graph saw of a trace for its next job.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from kuproxy.errors import ConfigError, DriverError
from kuproxy.load import load_config
from kuproxy.model.vip import MAX_NEW_LEN
from kuproxy.sim.algorithms import Algorithm
from kuproxy.sim.churn import Plan, read_plan
from kuproxy.sim.measures import Cell, Outcome, judge
from kuproxy.sim.run import Sizes, modelled, watch
from kuproxy.sim.trace import Epochs, Observation

__all__ = ["LOCAL", "TABLE", "Job", "grid", "run_job", "sweep"]

TABLE = "table"  # the data plane itself, not a model of it
LOCAL = "local"  # in place of a Dask scheduler's address: start a cluster on this machine
MODEL_TIMEOUT_S = (
    300.0  # of models, when neither the command nor the configuration says: the data plane's for UDP
)


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a simulation."""

    configs: tuple[str, ...]
    trace: str
    plan: str | None
    bins: int


@dataclass(frozen=True, slots=True)
class Job:
    """One cell and its files."""

    source: Source
    algorithm: str
    sizes: Sizes
    output: str | None = None  # where to write what the data plane sends; of TABLE alone


def grid(
    source: Source,
    algorithms: Sequence[str],
    new_lens: Sequence[int | None],
    buckets: Sequence[int | None],
    timeouts_s: Sequence[float | None],
    output: str | None = None,
) -> list[Job]:
    """Every combination, checked before anything runs.  Raises ConfigError."""
    if 0 in timeouts_s and TABLE in algorithms:
        raise ConfigError(
            "--timeout: 0 means that nothing is remembered, and the data plane always remembers; "
            f"leave out --algorithm {TABLE}"
        )
    jobs = [
        Job(source, name, Sizes(new_len, count, timeout_s), output)
        for name, new_len, count, timeout_s in product(algorithms, new_lens, buckets, timeouts_s)
    ]
    if output is not None and sum(name == TABLE for name in (job.algorithm for job in jobs)) != 1:
        raise ConfigError(
            f"--write: takes the packets of one cell of --algorithm {TABLE}, not of several or none"
        )
    config = load_config([Path(name) for name in source.configs])
    if not config.vips:
        raise ConfigError("--config: no VIP")
    for job in jobs:
        size, timeout_s = job.sizes.new_len, job.sizes.timeout_s
        if job.algorithm != TABLE and size is not None and not 1 <= size <= MAX_NEW_LEN:
            raise ConfigError(f"--new-len: {size} is not 1 to {MAX_NEW_LEN}")
        if timeout_s == 0:
            Sizes(size, job.sizes.buckets).apply(config)
        else:
            job.sizes.apply(config)
    return jobs


def _plan(source: Source) -> Plan:
    return Plan() if source.plan is None else read_plan(Path(source.plan))


@lru_cache(maxsize=1)
def _seen(source: Source) -> tuple[Observation, Epochs]:
    config = load_config([Path(name) for name in source.configs])
    seen, epochs, _run = watch(config, Path(source.trace), _plan(source), bins=source.bins)
    return seen, epochs


def run_job(job: Job) -> Outcome:
    """One cell.  Raises ConfigError, DriverError."""
    config = load_config([Path(name) for name in job.source.configs])
    if job.sizes.timeout_s == 0:
        sized = Sizes(job.sizes.new_len, job.sizes.buckets).apply(config)
    else:
        sized = job.sizes.apply(config)
    buckets, lens = sized.settings.buckets, {vip.key: vip.new_len for vip in sized.vips}
    new_len = max(lens.values())
    timeout_s = job.sizes.timeout_s if job.sizes.timeout_s is not None else config.settings.timeout_s
    if job.algorithm == TABLE:
        output = None if job.output is None else Path(job.output)
        seen, epochs, run = watch(
            sized, Path(job.source.trace), _plan(job.source), output=output, bins=job.source.bins
        )
        if run.driver.capture.error is not None:
            raise DriverError(str(run.driver.capture.error))
        return judge(
            seen, epochs, Cell(TABLE, new_len, buckets, math.nan if timeout_s is None else timeout_s)
        )
    timeout_s = MODEL_TIMEOUT_S if timeout_s is None else timeout_s
    seen, epochs = _seen(job.source)
    seen = modelled(seen, epochs, Algorithm(job.algorithm), lens, buckets, timeout_s)
    return judge(seen, epochs, Cell(job.algorithm, new_len, buckets, timeout_s))


def _dask(jobs: Sequence[Job], processes: int, address: str) -> Iterator[tuple[int, Outcome]]:
    try:
        import distributed
    except ImportError:
        raise ConfigError("--dask: needs Dask: pip install 'kuproxy[dask]'") from None
    with ExitStack() as stack:
        client: Any
        try:
            if address == LOCAL:
                cluster = distributed.LocalCluster(
                    n_workers=processes, threads_per_worker=1, dashboard_address=None
                )
                client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
            else:
                client = stack.enter_context(distributed.Client(address, timeout="10s"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--dask: no scheduler at {address}: {error}") from None
        futures = client.map(run_job, jobs, pure=False)
        number = {future.key: place for place, future in enumerate(futures)}
        for future, outcome in distributed.as_completed(futures, with_results=True):
            yield number[future.key], outcome


def _local(jobs: Sequence[Job], processes: int) -> Iterator[tuple[int, Outcome]]:
    if processes == 1 or len(jobs) == 1:
        yield from ((place, run_job(job)) for place, job in enumerate(jobs))
        return
    # Not forked: a compiled kernel's threads and locks would come along in a state that nobody knows.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        futures = {pool.submit(run_job, job): place for place, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def sweep(
    jobs: Sequence[Job],
    *,
    processes: int = 1,
    dask: str | None = None,
    told: Callable[[int], object] = lambda _done: None,
) -> list[Outcome]:
    """Outcomes in the order of the jobs; `told` hears how many are done.  Raises what the first failing job raises."""
    found: dict[int, Outcome] = {}
    for place, outcome in _local(jobs, processes) if dask is None else _dask(jobs, processes, dask):
        found[place] = outcome
        told(len(found))
    return [found[place] for place in range(len(jobs))]
