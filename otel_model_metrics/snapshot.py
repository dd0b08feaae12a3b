"""
Snapshots: the values of all metrics of one monitor at one moment, as frozen data.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition, Task
from otel_model_metrics.columns import is_number
from otel_model_metrics.recorder import Reading, Recorder
from otel_model_metrics.vocabulary import name_of

Variant = tuple[tuple[str, str], ...]
Segment = tuple[str, str]


@dataclass(frozen=True)
class Selection:
    """
    Which metrics a monitor computes.

    Attributes:
        task: The monitor's task.
        metrics: The metrics of the overall window.
        in_segments: Names of those that segments have too.
        objectives: Level by metric name; names may end in a cut-off of their own, as in ``ndcg_at_5``.
        ks: Cut-offs of metrics at k.
    """

    task: Task
    metrics: tuple[MetricDefinition, ...]
    in_segments: frozenset[str]
    objectives: Mapping[str, float]
    ks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Series:
    """
    The values of one gauge over the groups.

    Attributes:
        name: Metric name, for bounds with ``.lower`` or ``.upper``.
        variant: Extra attributes as sorted pairs, e.g. ``(("ml.k", "10"),)``.
        values: Value for each group, ``nan`` where undefined; shape ``(G,)``, or ``(1,)`` for overall only.
    """

    name: str
    variant: Variant
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Snapshot:
    """
    The current values of one monitor.

    Attributes:
        model: Name of the model.
        version: Its version.
        rows: Labelled rows in the window.
        series: Every value, for export.
        segments: Name and value of each group; None for group 0, the whole window.
        rejected: Rows of this process that were not used, by reason.
        labels: Labels of this process that came late, by outcome (`LabelOutcome`), and predictions without one.
        inexact: Metrics of the whole window that had a summary of the rows only, for there were too many to keep, and
            by how much they can be off at most. A monitor has none.
    """

    model: str
    version: str
    rows: int
    series: tuple[Series, ...]
    segments: Sequence[Segment | None]
    objectives: Mapping[str, float]
    task: Task
    ks: tuple[int, ...]
    rejected: Mapping[str, int]
    labels: Mapping[str, int]
    inexact: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _index(self) -> Mapping[tuple[str, Variant], Series]:
        return {(one.name, one.variant): one for one in self.series}

    def value(
        self,
        metric: str,
        segment: Segment | None = None,
        *,
        average: str | None = None,
        class_: object = None,
        k: int | None = None,
        quantile: float = 0.5,
    ) -> float | None:
        """
        One value.

        Args:
            metric: A name of the metric table, such as ``"f1"``; bounds are ``"f1.lower"`` and ``"f1.upper"``.
            segment: Name and value of a segment, such as ``("country", "DE")``; None for the whole window.
            average: ``"macro"`` (default) or ``"weighted"``, for metrics that multiclass monitors have per class.
            class_: A class instead of an average.
            k: The cut-off of metrics at k; the monitor's first one by default.
            quantile: 0.5, 0.9 or 0.99, of ``label.delay``.

        Returns:
            The value; None if it is undefined (for lack of rows, or of a class among them), or if the segment has
            not been seen or does not carry this metric.

        Raises:
            KeyError: If the monitor does not compute such a metric.
        """
        health = next((entry for entry in catalog.HEALTH if entry.name == metric), None)
        if health is not None:
            of_quantile = ((catalog.QUANTILE, f"{quantile:g}"),) if health.by_quantile else ()
            of_labels = self._index.get((metric, of_quantile))
            return None if of_labels is None else _value_at(of_labels, self._group(segment))
        definition = catalog.BY_NAME.get(metric.removesuffix(catalog.LOWER).removesuffix(catalog.UPPER))
        if definition is None or self.task not in definition.functions:
            known = [entry.name for entry in catalog.metrics_of(self.task)]
            known += [entry.name for entry in catalog.HEALTH]
            raise KeyError(_unknown_metric(metric, known))
        series = self._index.get((metric, self._variant(definition, average, class_, k)))
        if series is None:
            if any(name == metric for name, _ in self._index):
                return None  # a class not seen yet
            if metric != definition.name and self.task not in definition.intervals:
                raise KeyError(f"{definition.name!r} has no bounds.")
            raise KeyError(f"The monitor of {self.model!r} does not compute {metric!r}: it is not in its metrics=.")
        return _value_at(series, self._group(segment))

    def to_dict(self) -> dict[str, Any]:
        """
        All defined values, as plain data fit for JSON.

        Returns:
            ``{"model", "version", "rows", "values", "segments", "objectives", "rejected", "labels"}``; ``values`` maps
            a metric, with its variant in braces where there is one (``f1{average=macro}``), to a float, and
            ``segments`` maps ``name=value`` to such a mapping.
        """
        values: dict[str, float] = {}
        segments: dict[str, dict[str, float]] = {}
        for series in self.series:
            label = series.name + (
                "{" + ",".join(f"{name.removeprefix('ml.')}={value}" for name, value in series.variant) + "}"
                if series.variant
                else ""
            )
            for group, value in enumerate(series.values):
                if not math.isfinite(value):
                    continue
                segment = self.segments[group]
                if segment is None:
                    values[label] = float(value)
                else:
                    segments.setdefault(f"{segment[0]}={segment[1]}", {})[label] = float(value)
        return {
            "model": self.model,
            "version": self.version,
            "rows": self.rows,
            "values": values,
            "segments": segments,
            "objectives": dict(self.objectives),
            "rejected": {reason: count for reason, count in self.rejected.items() if count},
            "labels": {outcome: count for outcome, count in self.labels.items() if count},
            **({"inexact": dict(self.inexact)} if self.inexact else {}),
        }

    def _variant(self, definition: MetricDefinition, average: str | None, class_: object, k: int | None) -> Variant:
        by = definition.by.get(self.task)
        if by == "k":
            return ((catalog.K, str(self.ks[0] if k is None else k)),)
        if by == "class":
            if class_ is not None:
                return ((catalog.CLASS, name_of(class_)),)
            return ((catalog.AVERAGE, average or "macro"),)
        return ()

    def _group(self, segment: Segment | None) -> int | None:
        if segment is None:
            return 0
        wanted = (str(segment[0]), name_of(segment[1]))
        return next((group for group, known in enumerate(self.segments) if known == wanted), None)


def take_snapshot(
    recorder: Recorder,
    reading: Reading,
    selection: Selection,
    model: str,
    version: str,
    of_labels: Mapping[str, Any] | None = None,
    labels: Mapping[str, int] | None = None,
) -> Snapshot:
    """
    Compute the values of one reading.

    Args:
        recorder, reading: Where the rows come from.
        selection: Which metrics.
        model, version: Whose.
        of_labels: What the functions of `catalog.HEALTH` ask for; None if no label came late.
        labels: Labels by outcome, likewise.

    Cost: one pass over the rows for the additive metrics of all segments; a sort for ``roc_auc`` and
    ``average_precision``; metrics that need rows cost one more pass for each segment that has them.
    """
    sums = catalog.statistics_of(selection.task, recorder.sums(reading))
    sums["age"] = np.array([reading.age])
    rows = _rows_by_group(selection.task, reading)
    series = list(series_of(selection, sums, rows, reading.groups.count, reading.classes))
    if of_labels is not None:
        series += _health_series(selection, of_labels, len(reading.segments))
    return Snapshot(
        model=model,
        version=version,
        rows=len(reading.groups.codes),
        series=tuple(series),
        segments=reading.segments,
        objectives=selection.objectives,
        task=selection.task,
        ks=selection.ks,
        rejected=reading.rejected,
        labels=labels or {},
    )


def series_of(
    selection: Selection,
    sums: catalog.Sums,
    rows: catalog.RowsOf,
    groups: int,
    classes: Sequence[str],
) -> Iterable[Series]:
    """
    The values of some rows.

    Args:
        selection: Which metrics.
        sums: Their statistics, under the names that functions of the catalogue ask for; groups first.
        rows: Gives the rows of a group, or a summary of them, for metrics that need rows.
        groups: Number of groups.
        classes: Names of the classes, in the order of their codes.
    """
    task = selection.task
    for definition in selection.metrics:
        wanted = groups if definition.name in selection.in_segments else 1
        values = definition.values(task, sums, rows, wanted)
        by = definition.by.get(task)
        yield from _series(definition.name, by, values, sums, selection.ks, classes)
        if task in definition.intervals:
            for suffix, bound in zip(catalog.BOUNDS, definition.bounds(task, sums), strict=True):
                yield from _series(definition.name + suffix, by, bound, sums, selection.ks, classes)


def _series(
    name: str,
    by: catalog.By | None,
    values: NDArray[np.float64],
    sums: catalog.Sums,
    ks: Sequence[int],
    classes: Sequence[str],
) -> Iterable[Series]:
    if by is None:
        yield Series(name, (), values)
    elif by == "k":
        for column, k in enumerate(ks):
            yield Series(name, ((catalog.K, str(k)),), values[:, column])
    else:
        # An average of bounds is a bound of the average that errs on the wide side: errors of classes even out.
        for average, function in catalog.AVERAGES.items():
            yield Series(name, ((catalog.AVERAGE, average),), function(values, sums["support"][: len(values)]))
        for column in range(values.shape[1]):
            yield Series(name, ((catalog.CLASS, classes[column]),), values[:1, column])


def _health_series(selection: Selection, of_labels: Mapping[str, Any], groups: int) -> Iterable[Series]:
    """
    The health of labels. Counts of predictions that wait, made in another process too, may be of groups without rows.
    """
    for definition in catalog.HEALTH:
        wanted = groups if definition.name in selection.in_segments else 1
        given = {name: of_labels[name] for name in catalog.arguments_of(definition.function)}
        if definition.by_quantile:
            values = np.array([definition.function(given["delays"](group)) for group in range(wanted)])
            for column, quantile in enumerate(catalog.QUANTILES):
                yield Series(definition.name, ((catalog.QUANTILE, f"{quantile:g}"),), values[:, column])
        else:
            values = definition.function(**{name: values[:wanted] for name, values in given.items()})
            yield Series(definition.name, (), values)


def _rows_by_group(task: Task, reading: Reading) -> Callable[[int], catalog.Sums]:
    """Gives the rows of a group, cut out once however many metrics ask for them."""
    known: dict[int, catalog.Sums] = {}
    everything: tuple[catalog.Sums, Any] | None = None

    def rows(group: int) -> catalog.Sums:
        nonlocal everything
        if group not in known:
            if everything is None:
                everything = catalog.rows_of(task, reading.columns)
            columns, used = everything
            members = reading.groups.members(group) if group else None
            if members is not None:
                members = members if used is None else members[used]
                columns = {name: column[members] for name, column in columns.items()}
            known[group] = columns
        return known[group]

    return rows


def _value_at(series: Series, group: int | None) -> float | None:
    if group is None or group >= len(series.values):
        return None
    value = float(series.values[group])
    return value if math.isfinite(value) else None


def select(
    task: Task,
    metrics: Iterable[str] | None,
    segment_metrics: Iterable[str] | None,
    objectives: Mapping[str, float] | None,
    ks: tuple[int, ...],
) -> Selection:
    """
    Which metrics a monitor computes, from what its user named.

    Raises:
        ValueError: For a name the task does not have; the message names the nearest known ones.
        TypeError: For an objective that is no number.
    """
    known = {definition.name: definition for definition in catalog.metrics_of(task)}
    choosable = [name for name, definition in known.items() if not definition.always]
    chosen = choosable if metrics is None else _checked(metrics, choosable, "metrics")
    definitions = tuple(
        definition for definition in known.values() if definition.always or definition.name in set(chosen)
    )
    if segment_metrics is None:
        in_segments = {definition.name for definition in definitions if definition.in_segments}
        in_segments |= {definition.name for definition in catalog.HEALTH if definition.in_segments}
    else:
        of_labels = {definition.name for definition in catalog.HEALTH}
        segment_metrics = _several(segment_metrics, "segment_metrics")
        of_rows = [name for name in segment_metrics if name not in of_labels]
        _checked(of_rows, chosen, "segment_metrics")
        in_segments = {*segment_metrics, "window.rows"}
    levels: dict[str, float] = {}
    for name, level in (objectives or {}).items():
        _checked([_metric_of_objective(name, ks)[0]], chosen, "objectives")
        if not is_number(level) or not math.isfinite(level):
            raise TypeError(f"objectives[{name!r}] must be a finite number, got {level!r} ({type(level).__name__}).")
        definition = known[_metric_of_objective(name, ks)[0]]
        if (definition.unit == "{ratio}" and not 0 <= level <= 1) or (definition.better == "zero" and level < 0):
            expected = "a share in [0, 1]" if definition.better != "zero" else "at least 0, to either side"
            raise ValueError(f"objectives[{name!r}] must be {expected}, got {level!r}.")
        levels[name] = float(level)
    return Selection(task, definitions, frozenset(in_segments), levels, ks)


def objective_series(selection: Selection) -> Iterable[tuple[dict[str, str], float]]:
    """Attributes and level of each objective; they are those of the values it is compared with."""
    for name, level in selection.objectives.items():
        metric, k = _metric_of_objective(name, selection.ks)
        attributes = {catalog.METRIC: metric}
        by = catalog.BY_NAME[metric].by.get(selection.task)
        if by == "k":
            attributes[catalog.K] = str(k)
        elif by == "class":
            attributes[catalog.AVERAGE] = "macro"
        yield attributes, level


def _metric_of_objective(name: str, ks: tuple[int, ...]) -> tuple[str, int]:
    """``ndcg_at_5`` is ``ndcg_at_k`` at 5; a bare ``ndcg_at_k`` means the first cut-off."""
    if ks and name not in catalog.BY_NAME:
        stem, _, digits = name.rpartition("_")
        if digits.isdigit() and f"{stem}_k" in catalog.BY_NAME:
            if int(digits) not in ks:
                raise ValueError(f"objectives[{name!r}] needs a cut-off of this monitor, k={list(ks)}.")
            return f"{stem}_k", int(digits)
    return name, ks[0] if ks else 0


def _several(names: Iterable[str], argument: str) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f'{argument} must be several names, got the single string {names!r}. Write ["{names}"].')
    return list(names)


def _checked(names: Iterable[str], known: Sequence[str], argument: str) -> list[str]:
    names = _several(names, argument)
    for name in names:
        if name not in known:
            raise ValueError(f"{_unknown_metric(name, known)} ({argument}=)")
    return names


def _unknown_metric(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name).lower(), known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else "."
    return f"Unknown metric {name!r}{hint} Known: {', '.join(known)}."
