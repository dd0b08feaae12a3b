"""
Running a job: the parts of its files, each to statistics, and these merged to one.

Parts depend on the files only, and they are merged in a fixed tree, neighbours first. So the result is the same, to the
last bit, however many workers there are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otel_model_metrics.arguments import positive_int
from otel_model_metrics.batch import cluster
from otel_model_metrics.batch.evaluation import Evaluation
from otel_model_metrics.batch.job import Job
from otel_model_metrics.batch.labels import Labels, sorted_labels
from otel_model_metrics.batch.merging import Tree
from otel_model_metrics.batch.processes import Processes
from otel_model_metrics.batch.reading import ENDINGS, Part, Progress, parts_of, pieces
from otel_model_metrics.batch.statistics import Statistics
from otel_model_metrics.files import FileError, InputError, find_files

if TYPE_CHECKING:
    from distributed import Client

_FREED = 31 << 20  # bytes; 32 MiB is the most from which glibc learns


def evaluate(
    files: str | Path | Sequence[str | Path],
    job: Job,
    *,
    labels: str | Path | Sequence[str | Path] | None = None,
    workers: int = 1,
    dask: str | Client | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """
    Evaluate files of predictions and labels.

    Args:
        files: One or several files, folders or patterns: Parquet, CSV (also compressed by gzip), JSONL or Arrow.
        job: What is in them, and which metrics.
        labels: Files with the labels, if these are not beside the predictions; named like `files`, and joined by
            `Job.id`. Of several labels with one id the last counts; predictions with the same id all get it.
        workers: Processes to use, this one among them.
        dask: Address of the scheduler of a Dask cluster that computes instead, such as ``tcp://scheduler:8786``, or a
            `distributed.Client` of it. Its workers read the files, and what is in this machine's folder for temporary
            files with `labels`, at the same paths as here.
        progress: Called now and then with the bytes and rows read since the last time, by whichever process.

    Raises:
        InputError: If there is no such file or cluster, a file has no such column, or windows are far too short. A
            ValueError.
        WorkerError: If another process failed or was killed; names what it read.

    What is wrong with single rows and files is no error: see `Evaluation.rejected` and `Evaluation.problems`.

    Cost: about 0.1 seconds for a million rows of Parquet with two segments, and 0.4 seconds until a second process is
    there: several are of use from some ten million rows on. Memory of some 160 MB for each process, and for what
    `Statistics` keeps.
    """
    positive_int(workers, "workers")
    if dask is not None and workers != 1:
        raise InputError("Either processes of this machine compute, workers=, or a cluster, dask=; not both.")
    if not isinstance(files, (str, Path, Sequence)):
        raise TypeError(
            f"files must be names of files, got {type(files).__name__}. Of data in memory, "
            "Statistics.of_table(job, data) are the statistics, and Evaluation.of(...) of these is the evaluation."
        )
    named = [files] if isinstance(files, (str, Path)) else list(files)
    with Processes(("pyarrow.parquet", __name__)) as processes:
        # The first one starts while files are looked at: starting takes as long as reading some million rows.
        processes.start(min(workers - 1, 1))
        with sorted_labels(labels, job, progress) as joined:
            paths = find_files([str(one) for one in named], ENDINGS)
            parts = parts_of(paths if dask is None else [path.absolute() for path in paths], job.wanted)
            read = functools.partial(statistics_of, job, labels=joined)
            if dask is not None:
                return Evaluation.of(cluster.statistics_on(dask, read, parts, progress))
            if workers == 1 or len(parts) == 1:
                return Evaluation.of(merged(job, (read(part, progress) for part in parts)))
            processes.start(min(workers, len(parts)) - 1)
            tree = Tree(Statistics.merge)
            processes.run(read, parts, tree.put, str, progress)
            return Evaluation.of(tree.merged() or Statistics(job))


def statistics_of(job: Job, part: Part, progress: Progress | None = None, labels: Labels | None = None) -> Statistics:
    """
    The statistics of one part. What cannot be read of it is a problem, and no error.
    """
    _keep_freed_memory()
    problems: list[str] = []
    unreadable: list[tuple[str, int, str]] = []

    def readable() -> Iterator[Any]:
        try:
            yield from pieces(part, job.wanted, lambda *refused: unreadable.append(refused), progress)
        except FileError as error:
            problems.append(str(error))

    try:
        statistics = Statistics.of(job, readable(), labels)
    except FileError as error:  # a column that cannot be understood
        statistics = Statistics(job)
        statistics.labels = labels
        problems.append(str(error))
    for refused in unreadable:
        statistics.refuse(*refused)
        statistics.rows += refused[1]
    statistics.problems += problems
    return statistics


def _keep_freed_memory() -> None:
    """
    Let memory that is freed be used again, instead of being given back and asked for piece by piece.

    Columns of a piece have a megabyte, which malloc of glibc asks the operating system for each time, and page by page
    the system takes a third of the time to clear it. Once it has seen something as large as this go, it keeps as much.
    No page of it is ever touched; other implementations of malloc pay no heed.
    """
    np.empty(_FREED, np.uint8)


def merged(job: Job, parts: Iterable[Statistics]) -> Statistics:
    """
    The statistics of all parts: neighbours are merged, then neighbouring pairs, and so on.

    Cost: memory for as many statistics as the number of parts has binary digits.
    """
    tree = Tree(Statistics.merge)
    for place, part in enumerate(parts):
        tree.put(place, part)
    return tree.merged() or Statistics(job)
