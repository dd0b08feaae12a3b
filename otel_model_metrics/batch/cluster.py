"""
Running a job on a Dask cluster: parts to statistics and a tree of merges on its workers; only the result comes back.

The tree is that of merging.py, so the result is the same to the last bit as that of one process. Neither a data frame
nor an array of Dask is needed. Workers read the files themselves, so they must have them at the same paths.
"""

from __future__ import annotations

import functools
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from otel_model_metrics.batch.merging import Tree
from otel_model_metrics.batch.processes import WorkerError
from otel_model_metrics.batch.reading import Part, Progress
from otel_model_metrics.batch.statistics import Statistics
from otel_model_metrics.files import InputError
from otel_model_metrics.version import __version__

if TYPE_CHECKING:
    from distributed import Client

Read = Callable[[Part], Statistics]

# A scheduler takes some 0.3 ms a task, and as many bytes of memory as a page of text.
MOST_TASKS = 4_096
_PATIENCE = 10.0  # seconds


def statistics_on(
    scheduler: str | Client, read: Read, parts: Sequence[Part], progress: Progress | None = None
) -> Statistics:
    """
    The statistics of all parts, computed on a cluster.

    Args:
        scheduler: Its address, such as ``tcp://scheduler:8786``; or a client of it, which stays open.
        read: Gives the statistics of one part. It is sent to the workers.
        parts: At least one, of files that the workers have at the same paths.
        progress: Called with the bytes, and the rows where they are known before, of what was read since.

    Raises:
        InputError: If there is no such scheduler or it has no workers, within 10 s; or if a worker does not have this
            version of this package, or not the files.
        WorkerError: If a worker failed or was lost; names what it read.
        ModuleNotFoundError: If the extra `dask` is not installed.

    Cost: at most 4,096 tasks that read, and as many that merge, however many parts there are.
    """
    blocks = _blocks(parts)
    named = f"otel-model-metrics-{uuid.uuid4().hex[:12]}"
    with _client_of(scheduler) as client:
        _check_workers(client)
        waiting: dict[Any, Sequence[Part]] = {}
        tree: Tree[Any] = Tree(functools.partial(client.submit, _merge, pure=False))
        leaves = []
        for place, block in enumerate(blocks):
            leaf = client.submit(_statistics_of, read, block, key=f"{named}-{place}", pure=False)
            waiting[leaf.key] = block
            leaves.append(leaf)
            tree.put(place, leaf)
        total = tree.merged()
        assert total is not None
        try:
            with _told_faults(waiting):
                _wait_for(client, leaves, waiting, progress)
                result: Statistics = total.result()
                return result
        finally:
            total.cancel()  # what it needs is given up with it, if it is not there yet


def _blocks(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """
    Neighbouring parts together, until there are few enough for tasks of their own.

    A block of 2, 4, 8 ... of them is a branch of the tree, so its shape stays the same.
    """
    size = 1
    while len(parts) > size * MOST_TASKS:
        size *= 2
    return [parts[at : at + size] for at in range(0, len(parts), size)]


def _statistics_of(read: Read, block: Sequence[Part]) -> Statistics:
    """Runs on a worker."""
    tree = Tree(Statistics.merge)
    for place, part in enumerate(block):
        if not part.path.exists():
            raise InputError(
                f"{part.path}: the worker of the Dask cluster on {socket.gethostname()} has no such file. "
                "Workers read the files themselves, so these must be at the same path everywhere."
            )
        try:
            tree.put(place, read(part))
        except InputError:
            raise
        except Exception as error:
            raise WorkerError(
                f"A worker of the Dask cluster failed with {part}: {type(error).__name__}: {error}"
            ) from error
    statistics = tree.merged()
    assert statistics is not None
    return statistics


def _merge(one: Statistics, other: Statistics) -> Statistics:
    """Runs on a worker."""
    return one.merge(other)


def _version() -> str:
    """Runs on each worker."""
    return __version__


@contextmanager
def _client_of(scheduler: str | Client) -> Iterator[Client]:
    try:
        import distributed
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'A Dask cluster needs the extra dask: pip install "otel-model-metrics[dask]"', name="distributed"
        ) from None
    connected: Any = distributed.Client
    if not isinstance(scheduler, str):
        yield scheduler
        return
    try:
        client = connected(scheduler, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, distributed.TimeoutError) as error:
        raise InputError(
            f"There is no Dask scheduler at {scheduler!r}, or it did not answer within {_PATIENCE:g} s: {error}. "
            "Its address is in its first lines of output, such as tcp://scheduler:8786."
        ) from error
    with client:
        yield client


def _check_workers(client: Client) -> None:
    """See that there are workers, and that all of them have this version of this package."""
    import distributed

    where = client.scheduler.address if client.scheduler is not None else ""
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except distributed.TimeoutError as error:  # which is not yet TimeoutError in Python 3.10
        raise InputError(f"The Dask scheduler at {where} has had no worker for {_PATIENCE:g} s.") from error
    found: dict[str, Any] = client.run(_version, on_error="return")
    for worker, version in found.items():
        if version != __version__:
            said = version if isinstance(version, str) else f"none that runs ({version})"
            raise InputError(
                f"The worker {worker} of the Dask cluster must have otel-model-metrics {__version__}, as is here; "
                f'it has {said}. Install it there: pip install "otel-model-metrics[dask]=={__version__}"'
            )


def _wait_for(client: Client, leaves: list[Any], waiting: dict[Any, Sequence[Part]], progress: Progress | None) -> None:
    import distributed

    completed: Any = distributed.as_completed
    done = completed(leaves, loop=client.loop)
    leaves.clear()  # or else the cluster would keep what has been merged
    for leaf in done:
        if leaf.status != "finished":
            leaf.result()  # raises what it raised there
        block = waiting[leaf.key]
        if progress is not None:
            progress(sum(part.size for part in block), sum(part.rows or 0 for part in block))


@contextmanager
def _told_faults(waiting: dict[Any, Sequence[Part]]) -> Iterator[None]:
    """Faults of the cluster itself, in words for users."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        block = waiting.get(error.task)
        what = f"reading {block[0]}" + (f" and {len(block) - 1} more parts" if len(block) > 1 else "") if block else ""
        raise WorkerError(
            f"Workers of the Dask cluster died while {what or 'merging'}, perhaps for want of memory: {error}"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise WorkerError(f"The connection to the Dask scheduler was lost: {error}.") from error
