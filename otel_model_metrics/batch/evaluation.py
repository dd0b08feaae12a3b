"""
Evaluations: the values of all metrics, of the whole and of each window, from the statistics of a job.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from otel_model_metrics import catalog
from otel_model_metrics.batch.job import Job
from otel_model_metrics.batch.rows import MOST_VALUES
from otel_model_metrics.batch.statistics import Kept, Segment, Statistics
from otel_model_metrics.snapshot import Series, Snapshot, objective_series, series_of
from otel_model_metrics.statistics.summaries import Summary


@dataclass(frozen=True)
class EvaluatedWindow:
    """
    The values of one window.

    Attributes:
        start, end: Seconds since 1970. A row is in the window if its time is at least `start` and less than `end`.
        snapshot: The values, as those of a monitor.
        predictions: Usable rows, with a label or without.
    """

    start: float
    end: float
    snapshot: Snapshot
    predictions: int


@dataclass(frozen=True)
class Missed:
    """An objective that is missed beyond doubt: the bound of the value that is nearer to it misses it too."""

    name: str
    objective: float
    value: float
    bound: float


@dataclass(frozen=True, repr=False)
class Evaluation:
    """
    The values of all metrics of a job.

    Attributes:
        job: What was evaluated.
        overall: The values of all rows.
        windows: Those of each window that has rows, oldest first; empty for a job without a column of times.
        rows: Rows read.
        predictions: Rows that could be used, with a label or without.
        rejected: Rows that could not be used, by reason.
        first: For each reason the file and row of the first, and what is wrong with it.
        problems: What is wrong with files that could not be read, or not to the end.
        crowded: Segment names of which more values were met than can be told apart.
        labels: What became of labels in other files, one count each: ``matched`` and ``unmatched`` labels; rows that
            are ``duplicate`` or ``corrected`` by a later one, ``unlabelled`` (without a label yet) or ``rejected``
            (not readable, or without a usable id). They add up to the rows of these files. Empty without such files.
        statistics: What all of this was computed from.
    """

    job: Job
    overall: Snapshot
    windows: tuple[EvaluatedWindow, ...]
    rows: int
    predictions: int
    rejected: Mapping[str, int]
    first: Mapping[str, str]
    problems: tuple[str, ...]
    crowded: tuple[str, ...]
    labels: Mapping[str, int]
    statistics: Statistics

    @classmethod
    def of(cls, statistics: Statistics) -> Evaluation:
        """
        Compute all values.

        Cost: about a millisecond a window.
        """
        job, labels, crowded = statistics.job, statistics.labels, tuple(sorted(statistics.crowded))
        statistics = statistics.with_segments_within(job.max_segment_values)
        predictions = statistics.predictions()
        windows = []
        if job.time is not None:
            for place in sorted(range(len(statistics.windows)), key=statistics.windows.__getitem__):
                start = statistics.windows[place] * job.window_micros / 1e6
                snapshot = _snapshot(statistics, place)
                windows.append(EvaluatedWindow(start, start + job.window_seconds, snapshot, int(predictions[place, 0])))
        return cls(
            job,
            _snapshot(statistics, None),
            tuple(windows),
            statistics.rows,
            int(predictions[:, 0].sum()),
            dict(statistics.rejected),
            dict(statistics.first),
            (*(() if labels is None else labels.problems), *statistics.problems),
            crowded,
            {} if labels is None else labels.counts(statistics.used),
            statistics,
        )

    def __repr__(self) -> str:
        """Short, for there may be thousands of windows."""
        return (
            f"<Evaluation of {self.overall.model!r} {self.overall.version!r}: {self.rows:,} rows, "
            f"{self.overall.rows:,} with a label, {len(self.windows):,} windows>"
        )

    def missed(self) -> list[Missed]:
        """
        The objectives that all rows together miss with confidence: by the 95 % bound, or by the value where a metric
        has none. Too few rows to tell are no miss.
        """
        found = []
        for (name, objective), (attributes, _) in zip(
            self.job.selection.objectives.items(), objective_series(self.job.selection), strict=True
        ):
            metric = attributes.pop(catalog.METRIC)
            variant = tuple(attributes.items())
            values = {
                suffix: next(
                    (
                        float(one.values[0])
                        for one in self.overall.series
                        if one.name == metric + suffix and one.variant == variant
                    ),
                    math.nan,
                )
                for suffix in ("", *catalog.BOUNDS)
            }
            value, bounded = values[""], self.job.task in catalog.BY_NAME[metric].intervals
            low, high = (values[suffix] if bounded else value for suffix in catalog.BOUNDS)
            error = self.overall.inexact.get(metric, 0.0)
            low, high = low - error, high + error
            better = catalog.BY_NAME[metric].better
            if better == "higher" and high < objective:
                found.append(Missed(name, objective, value, high))
            elif better == "lower" and low > objective:
                found.append(Missed(name, objective, value, low))
            elif better == "zero" and (low > objective or high < -objective):
                found.append(Missed(name, objective, value, low if low > objective else high))
        return found

    def unjudged(self) -> list[str]:
        """The objectives whose metric has no value, such as for want of labels."""
        names = []
        for name, (attributes, _) in zip(
            self.job.selection.objectives, objective_series(self.job.selection), strict=True
        ):
            metric = attributes.pop(catalog.METRIC)
            variant = tuple(attributes.items())
            if not any(
                math.isfinite(one.values[0])
                for one in self.overall.series
                if one.name == metric and one.variant == variant
            ):
                names.append(name)
        return names

    def to_dict(self) -> dict[str, Any]:
        """
        Everything as plain data fit for JSON.

        Returns:
            ``{"model", "version", "task", "rows", "predictions", "labelled", "rejected", "labels", "problems",
            "notes", "overall", "windows", "missed"}``; ``overall`` and each of ``windows`` (which have ``start`` and
            ``end`` in ISO 8601 too) are as `Snapshot.to_dict`.
        """
        return {
            "model": self.overall.model,
            "version": self.overall.version,
            "task": self.job.task,
            "rows": self.rows,
            "predictions": self.predictions,
            "labelled": self.overall.rows,
            "rejected": {
                reason: {"rows": count, "first": self.first.get(reason, "")} for reason, count in self.rejected.items()
            },
            "labels": dict(self.labels),
            "problems": list(self.problems),
            "notes": self.notes(),
            "overall": _values(self.overall),
            "windows": [
                {
                    "start": iso(window.start),
                    "end": iso(window.end),
                    "predictions": window.predictions,
                    **_values(window.snapshot),
                }
                for window in self.windows
            ],
            "missed": [
                {"name": one.name, "objective": one.objective, "value": one.value, "bound": one.bound}
                for one in self.missed()
            ],
        }

    def notes(self) -> list[str]:
        """What a reader of the values must know beside them."""
        notes = [
            f"Segment {name!r} has more than {MOST_VALUES:,} values; those not in every part of the files are "
            "counted under __other__. Is it a name of something that comes again?"
            for name in self.crowded
        ]
        without = self.statistics.without_id
        if without:
            notes.append(
                f"{without:,} row{'' if without == 1 else 's'} of predictions without an id, so without a label."
            )
        inexact = sorted(self.overall.inexact.items())
        if inexact:
            bounds = ", ".join(f"{name} within {error:.2g}" for name, error in inexact)
            notes.append(
                f"Of more than {self.job.exact_rows:,} rows a summary is kept, so these values are not exact: {bounds}."
            )
        return notes


def iso(seconds: float) -> str:
    """
    A time in ISO 8601.

    >>> iso(86400.0)
    '1970-01-02T00:00:00Z'
    """
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.replace(tzinfo=None).isoformat() + "Z"


def _values(snapshot: Snapshot) -> dict[str, Any]:
    data = snapshot.to_dict()
    return {name: data[name] for name in ("rows", "values", "segments", "inexact") if name in data}


def _snapshot(statistics: Statistics, place: int | None) -> Snapshot:
    """The values of the window at a place, or of all of them."""
    job, task = statistics.job, statistics.job.task
    chosen = slice(None) if place is None else slice(place, place + 1)
    raw = {name: values[chosen].sum(axis=0) for name, values in statistics.sums.items()}
    groups = len(statistics.segments)
    labelled = statistics.labelled()[chosen].sum(axis=0)
    series: list[Series] = []
    inexact: dict[str, float] = {}
    if raw:
        sums = catalog.statistics_of(task, raw)
        sums["age"] = np.array([_age(statistics, place)])
        rows = _rows(statistics, None if place is None else statistics.windows[place])
        series += series_of(job.selection, sums, rows, groups, statistics.classes)
        coverage = next(one for one in catalog.HEALTH if one.name == "label.coverage")
        predictions = statistics.predictions()[chosen].sum(axis=0)
        wanted = groups if coverage.name in job.selection.in_segments else 1
        counts = {"labelled": labelled[:wanted].astype(float), "predicted": predictions[:wanted].astype(float)}
        series.append(Series(coverage.name, (), coverage.function(**counts)))
        for metric in job.selection.metrics:
            if metric.needs_rows(task) and (error := metric.error(task, rows(0))):
                inexact[metric.name] = error
    return Snapshot(
        model=job.all_attributes[catalog.MODEL_NAME],
        version=job.all_attributes[catalog.MODEL_VERSION],
        rows=int(labelled[0]),
        series=tuple(series),
        segments=statistics.segments,
        objectives=job.selection.objectives,
        task=task,
        ks=job.ks,
        rejected={} if place is not None else dict(statistics.rejected),
        labels={},
        inexact=inexact,
    )


def _age(statistics: Statistics, place: int | None) -> float:
    """Seconds from the oldest labelled row to the end of its window; 0 without one."""
    if place is None or statistics.job.time is None or not statistics.labelled()[place, 0]:
        return 0.0
    end = (statistics.windows[place] + 1) * statistics.job.window_micros
    return float(end - statistics.oldest[place]) / 1e6


def _rows(statistics: Statistics, window: int | None) -> catalog.RowsOf:
    """Gives the rows of a group, or a summary of them."""
    job = statistics.job
    known: dict[int, dict[str, Any] | Summary] = {}

    def rows(group: int) -> dict[str, Any] | Summary:
        if group not in known:
            segment: Segment | None = statistics.segments[group]
            total = Kept()
            for one in sorted(statistics.windows) if window is None else [window]:
                kept = statistics.kept.get((one, segment))
                if kept is not None:
                    total = total.merge(kept, job.task, job.exact_rows) if total.rows else kept
            columns = total.columns() or catalog.no_rows(job.task)
            known[group] = columns if total.summary is None else total.summary
        return known[group]

    return rows
