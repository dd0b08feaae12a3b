"""
Running a job: the parts of its files, each to statistics, and these merged to one.

Parts depend on the files only, and they are merged in a fixed tree, neighbours first. So the result is the same, to the
last bit, however many workers there are.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from otel_model_metrics.arguments import positive_int
from otel_model_metrics.batch.evaluation import Evaluation
from otel_model_metrics.batch.job import Job
from otel_model_metrics.batch.labels import Labels, sorted_labels
from otel_model_metrics.batch.reading import ENDINGS, Part, Progress, parts_of, pieces
from otel_model_metrics.batch.statistics import Statistics
from otel_model_metrics.files import FileError, find_files


def evaluate(
    files: str | Path | Sequence[str | Path],
    job: Job,
    *,
    labels: str | Path | Sequence[str | Path] | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """
    Evaluate files of predictions and labels.

    Args:
        files: One or several files, folders or patterns: Parquet, CSV (also compressed by gzip), JSONL or Arrow.
        job: What is in them, and which metrics.
        labels: Files with the labels, if these are not beside the predictions; named like `files`, and joined by
            `Job.id`. Of several labels with one id the last counts; predictions with the same id all get it.
        workers: Processes to use.
        progress: Called now and then with the bytes and rows read since the last time; not with several workers.

    Raises:
        InputError: If there is no such file, it has no such column, or windows are far too short. A ValueError.

    What is wrong with single rows and files is no error: see `Evaluation.rejected` and `Evaluation.problems`.

    Cost: about 0.3 seconds for a million rows of Parquet with two segments; memory for some 131,072 rows, and for
    what `Statistics` keeps.
    """
    positive_int(workers, "workers")
    named = [files] if isinstance(files, (str, Path)) else list(files)
    with sorted_labels(labels, job, progress) as joined:
        parts = parts_of(find_files([str(one) for one in named], ENDINGS), job.wanted)
        if workers == 1 or len(parts) == 1:
            return Evaluation.of(merged(job, (statistics_of(job, part, progress, joined) for part in parts)))
        read = functools.partial(statistics_of, labels=joined)
        # Not forked: a fork of a process that has threads, as pyarrow's, may hang.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(workers, len(parts)), context) as pool:
            return Evaluation.of(merged(job, pool.map(read, [job] * len(parts), parts)))


def statistics_of(
    job: Job, part: Part, progress: Progress | None = None, labels: Labels | None = None
) -> Statistics:
    """
    The statistics of one part. What cannot be read of it is a problem, and no error.
    """
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


def merged(job: Job, parts: Iterable[Statistics]) -> Statistics:
    """
    The statistics of all parts: neighbours are merged, then neighbouring pairs, and so on.

    Cost: memory for as many statistics as the number of parts has binary digits.
    """
    waiting: list[tuple[int, Statistics]] = []  # how many parts each stands for, the largest first
    for part in parts:
        size, statistics = 1, part
        while waiting and waiting[-1][0] == size:
            _, before = waiting.pop()
            size, statistics = 2 * size, before.merge(statistics)
        waiting.append((size, statistics))
    result: Statistics | None = None
    while waiting:
        _, statistics = waiting.pop()
        result = statistics if result is None else statistics.merge(result)
    return Statistics(job) if result is None else result
