"""
An evaluation as points with their own time: what a service would have exported, had it exported at each window's end.

Window gauges are stamped with the end of their window. Totals add up over the windows: each has a point with what it
was just after a window began, and one with what it is when the window ends. So increase() over the length of a window
finds both in its range, which is open to the left, and a total is born at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics import catalog
from otel_model_metrics.batch.evaluation import Evaluation
from otel_model_metrics.batch.statistics import MOST_WINDOWS, Segment
from otel_model_metrics.ground_truth.outcomes import LabelOutcome
from otel_model_metrics.snapshot import Snapshot, objective_series
from otel_model_metrics.vocabulary import OTHER

Micros = NDArray[np.int64]
Floats = NDArray[np.float64]

# The finest difference of times that a Prometheus-like store can tell.
_AFTER = 1_000

_OUTCOMES = frozenset(outcome.value for outcome in LabelOutcome)  # rows of label files without a label have none


@dataclass(frozen=True)
class TimeSeries:
    """
    The points of one series, oldest first.

    Attributes:
        attributes: Those of OpenTelemetry.
        micros: Microseconds since 1970, shape ``(n,)``, int64, rising.
        values: Shape ``(n,)``, float64, all finite.
    """

    attributes: Mapping[str, str]
    micros: Micros
    values: Floats


@dataclass(frozen=True)
class Family:
    """
    All series of one instrument.

    Attributes:
        name, unit, description: Those of the OpenTelemetry instrument.
        kind: ``gauge``, or ``counter`` for a monotonic cumulative sum.
        series: At least one.
    """

    name: str
    unit: str
    description: str
    kind: Literal["gauge", "counter"]
    series: tuple[TimeSeries, ...]


@dataclass(frozen=True)
class Points:
    """
    All points of an evaluation.

    Attributes:
        families: One for each instrument that has points.
        start: Microseconds since 1970 when the totals were zero.
        ends: The times after which one request may end and the next begin, shape ``(m,)``, int64, rising.
        apart: Whether it has to.
        count: How many points there are.
    """

    families: tuple[Family, ...]
    start: int
    ends: Micros
    apart: bool
    count: int


def points(evaluation: Evaluation, span: tuple[float, float] | None = None) -> Points:
    """
    All points of an evaluation.

    Args:
        evaluation: One of a job with a column of times, or of one without and a span.
        span: Seconds since 1970 when a job without times began and ended: its totals are zero at the first, and all
            values are those of the second.

    Windows without rows between others have points too, as those of a silent service: ``window.rows`` is 0 and the
    totals stay. Only where so many are missing that there would be more than 20,000 windows, they are left out.

    Raises:
        ValueError: If there is neither a column of times nor a span.

    Cost: memory for 16 bytes a point and for the statistics of all windows; about a second for a million points.
    """
    if span is None and evaluation.job.time is None:
        raise ValueError("Points need times: the job has no column of them, time=, and there is no span.")
    if not evaluation.predictions:
        return Points((), 0, np.zeros(0, np.int64), False, 0)
    course = _Course(evaluation, span)
    found = {**_gauges(evaluation, course), **_totals(evaluation, course), **_counts(evaluation, course)}
    families = []
    for name, unit, description, kind in catalog.instruments_of(evaluation.job.task, evaluation.job.selection.metrics):
        if series := found.get(name):
            families.append(Family(name, unit, description, kind, tuple(series)))
    # What is stamped with the beginning of a span is old by now, and goes in a request of its own.
    ends = course.ends if span is None else np.array([course.begins[0], course.ends[0]])
    count = sum(len(series.micros) for family in families for series in family.series)
    return Points(tuple(families), int(course.starts[0]), ends, span is not None, count)


class _Course:
    """The windows in the order of time, and the statistics of all rows up to each of them."""

    def __init__(self, evaluation: Evaluation, span: tuple[float, float] | None) -> None:
        statistics = evaluation.statistics
        met = {window: place for place, window in enumerate(statistics.windows)}
        if span is None:
            first, last = min(met), max(met)
            numbers = range(first, last + 1) if last - first < MOST_WINDOWS else sorted(met)
            length = evaluation.job.window_micros
            self.starts = np.array(numbers, np.int64) * length
            self.ends = self.starts + length
            by_start = {round(window.start * 1e6): window.snapshot for window in evaluation.windows}
            self.snapshots = [by_start.get(start) for start in self.starts.tolist()]
        else:
            numbers = [0]
            begin, end = (round(time * 1e6) for time in span)
            self.ends = np.array([end])
            self.starts = np.array([min(begin, end - 2 * _AFTER)])
            self.snapshots = [evaluation.overall]
        self.begins = self.starts + _AFTER
        # Where the statistics of each window are; those of one without rows are the zeros added at the end.
        places = [met.get(number, len(met)) for number in numbers]
        self.sums = {
            name: np.cumsum(np.concatenate([values, np.zeros_like(values[:1])])[places], axis=0)
            for name, values in statistics.sums.items()
        }
        self.labelled, self.predictions = (
            np.cumsum(np.concatenate([rows, np.zeros_like(rows[:1])])[places], axis=0)
            for rows in (statistics.labelled(), statistics.predictions())
        )

    def total(self, attributes: Mapping[str, str], values: Floats, first: int = 0) -> TimeSeries:
        """A total that has these values when the windows end, shape ``(W,)``, from the window `first` on."""
        before = np.concatenate([[0.0], values[:-1]])
        micros = np.stack([self.begins[first:], self.ends[first:]], axis=1).ravel()
        return TimeSeries(attributes, micros, np.stack([before[first:], values[first:]], axis=1).ravel())


def _gauges(evaluation: Evaluation, course: _Course) -> dict[str, list[TimeSeries]]:
    job, segments = evaluation.job, evaluation.statistics.segments
    values: dict[tuple[str, tuple[tuple[str, str], ...]], Floats] = {}
    for series in evaluation.overall.series:
        always = series.name in catalog.BY_NAME and catalog.BY_NAME[series.name].always
        shape = len(course.ends), len(series.values)
        values[series.name, series.variant] = np.full(shape, 0.0 if always else np.nan)
    for at, snapshot in enumerate(course.snapshots):
        for series in snapshot.series if isinstance(snapshot, Snapshot) else ():
            values[series.name, series.variant][at] = series.values
    found: dict[str, list[TimeSeries]] = {}
    for (name, variant), of_windows in values.items():
        finite = np.isfinite(of_windows)
        for group in np.flatnonzero(finite.any(axis=0)).tolist():
            chosen = finite[:, group]
            attributes = {**job.all_attributes, **dict(variant), **_of_segment(segments[group])}
            one = TimeSeries(attributes, course.ends[chosen], of_windows[chosen, group])
            found.setdefault(catalog.NAMESPACE + name, []).append(one)
    for extra, level in objective_series(job.selection):
        one = TimeSeries({**job.all_attributes, **extra}, course.ends, np.full(len(course.ends), level))
        found.setdefault(catalog.NAMESPACE + catalog.OBJECTIVE, []).append(one)
    return found


def _totals(evaluation: Evaluation, course: _Course) -> dict[str, list[TimeSeries]]:
    job, statistics = evaluation.job, evaluation.statistics
    segments, windows = statistics.segments, len(course.ends)
    naming = catalog.Naming(tuple(statistics.classes), job.selection.ks)
    # The functions of the catalogue take groups as the first axis, and treat each of them alone.
    flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in course.sums.items()}
    met = course.predictions > 0
    found: dict[str, list[TimeSeries]] = {}
    for definition in catalog.totals_of(job.task):
        values = np.asarray(definition.values(flat), np.float64).reshape(windows, len(segments), -1)
        cells = definition.cells(naming, values.shape[2])
        present = values > 0 if definition.sparse else np.broadcast_to(met[:, :, np.newaxis], values.shape)
        for group, cell in np.argwhere(present.any(axis=0)).tolist():
            attributes = {
                **job.all_attributes,
                **_of_segment(segments[group]),
                catalog.TASK: job.task,
                **cells[cell],
            }
            first = int(present[:, group, cell].argmax())
            found.setdefault(definition.instrument, []).append(course.total(attributes, values[:, group, cell], first))
    return found


def _counts(evaluation: Evaluation, course: _Course) -> dict[str, list[TimeSeries]]:
    job, segments = evaluation.job, evaluation.statistics.segments
    nothing = np.zeros(len(course.ends))
    overflowed = dict.fromkeys(job.segments, nothing)
    for group, segment in enumerate(segments):
        if segment is not None and segment[1] == OTHER:
            overflowed[segment[0]] = course.predictions[:, group].astype(np.float64)

    def at_the_end(count: int) -> Floats:
        """Of what belongs to no window is known that it was found by the end."""
        values = nothing.copy()
        values[-1] = count
        return values

    counts = {
        catalog.LABELS: {
            **{outcome: at_the_end(count) for outcome, count in evaluation.labels.items() if outcome in _OUTCOMES},
            LabelOutcome.MATCHED.value: course.labelled[:, 0].astype(np.float64),
        },
        catalog.REJECTED: {reason: at_the_end(count) for reason, count in evaluation.rejected.items()},
        catalog.OVERFLOWED: overflowed,
    }
    return {
        definition.instrument: [
            course.total({**job.all_attributes, definition.attribute: value}, values)
            for value, values in by_value.items()
        ]
        for definition, by_value in counts.items()
    }


def _of_segment(segment: Segment | None) -> dict[str, str]:
    return {} if segment is None else {catalog.SEGMENT_NAME: segment[0], catalog.SEGMENT_VALUE: segment[1]}
