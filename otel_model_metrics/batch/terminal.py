"""
An evaluation as tables for a terminal: all rows, each segment, and each window, with its course in small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from otel_model_metrics import catalog
from otel_model_metrics.batch.evaluation import Evaluation, iso
from otel_model_metrics.snapshot import Series, Snapshot

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS, _FEWEST_BARS = 48, 8
_BESIDE_BARS = 62  # columns of the terminal that the rest of a line takes
_MOST_WINDOWS = 48


def show(evaluation: Evaluation, console: Console) -> None:
    """
    Print an evaluation.

    Args:
        evaluation: What to show.
        console: Of rich; its width decides what fits.
    """
    from rich.text import Text

    overall = evaluation.overall
    title = f"{overall.model} {overall.version}, {evaluation.job.task}: {evaluation.rows:,} rows read, "
    title += f"{evaluation.predictions:,} usable, {overall.rows:,} with a label"
    console.print(Text(title, style="bold"))
    if overall.rows:
        console.print(_overall(evaluation, min(_MOST_BARS, max(_FEWEST_BARS, console.width - _BESIDE_BARS))))
        if any(segment is not None for segment in overall.segments):
            console.print(_segments(evaluation))
        if evaluation.windows:
            console.print(_windows(evaluation))
    for line in remarks(evaluation):
        console.print(Text(line))


def remarks(evaluation: Evaluation) -> list[str]:
    """What is said beside the values: rows that were not used and why, files with a problem, objectives missed."""
    lines = [
        f"Not used, {reason}: {count:,} row{'' if count == 1 else 's'}, the first: {evaluation.first.get(reason, '')}"
        for reason, count in sorted(evaluation.rejected.items(), key=lambda item: -item[1])
    ]
    lines += [] if evaluation.statistics.labels is None else [_labels(evaluation)]
    lines += [f"Problem: {problem}" for problem in evaluation.problems]
    lines += [f"Note: {note}" for note in evaluation.notes()]
    for one in evaluation.missed():
        lines.append(
            f"Objective missed: {one.name} is {_number(one.value)}, should be {_number(one.objective)}; "
            f"with 95 % confidence it is no better than {_number(one.bound)}."
        )
    return lines


def _labels(evaluation: Evaluation) -> str:
    counts = [f"{count:,} {what}" for what, count in evaluation.labels.items() if count or what == "matched"]
    first = evaluation.statistics.labels.first if evaluation.statistics.labels is not None else ""
    return f"Labels: {', '.join(counts)}" + (f", the first: {first}" if evaluation.labels["rejected"] else ".")


def sparkline(values: Sequence[float]) -> str:
    """
    A course of values in one line of text, from the lowest to the highest of them; a blank where one is undefined.

    >>> sparkline([1.0, 2.0, float("nan"), 3.0])
    '▁▅ █'
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return " "
        return _BARS[round((value - low) / (high - low) * (len(_BARS) - 1)) if high > low else len(_BARS) // 2]

    return "".join(map(bar, values))


def _table(title: str, columns: Iterable[tuple[str, Any]]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=True)
    return table


def _overall(evaluation: Evaluation, bars: int) -> Table:
    overall = evaluation.overall
    columns = [("metric", "left"), ("value", "right"), ("95 %", "right"), ("objective", "right")]
    columns += [("windows", "left")] if evaluation.windows else []
    table = _table("All rows", columns)
    objectives = {
        (attributes.pop(catalog.METRIC), tuple(attributes.items())): level for attributes, level in _objectives(overall)
    }
    for series in _shown(overall):
        bounds = [_of(overall, series.name + suffix, series) for suffix in catalog.BOUNDS]
        between = " - ".join(map(_number, bounds)) if all(map(math.isfinite, bounds)) else ""
        error = overall.inexact.get(series.name)
        between = f"± {_number(error)}" if error else between
        objective = objectives.get((series.name, series.variant))
        row = [_label(series), _number(float(series.values[0])), between]
        row.append("" if objective is None else _number(objective))
        if evaluation.windows:
            row.append(sparkline([_of(window.snapshot, series.name, series) for window in evaluation.windows[-bars:]]))
        table.add_row(*row)
    return table


def _segments(evaluation: Evaluation) -> Table:
    overall = evaluation.overall
    shown = [series for series in _shown(overall, per_class=False) if len(series.values) > 1]
    table = _table(
        "Segments",
        [("segment", "left"), ("labelled", "right"), *((_label(series), "right") for series in shown)],
    )
    labelled = evaluation.statistics.labelled().sum(axis=0)
    for group, segment in enumerate(overall.segments):
        if segment is not None:
            values = [_number(float(series.values[group])) for series in shown]
            table.add_row(" ".join(segment), f"{labelled[group]:,}", *values)
    return table


def _windows(evaluation: Evaluation) -> Table:
    chosen = {metric.name for metric in evaluation.job.selection.metrics if metric.headline or metric.in_segments}
    chosen |= {attributes[catalog.METRIC] for attributes, _ in _objectives(evaluation.overall)}
    shown = [series for series in _shown(evaluation.overall, per_class=False) if series.name in chosen]
    left = len(evaluation.windows) - _MOST_WINDOWS
    title = f"Windows of {evaluation.job.every}" + (f", without the first {left:,}" if left > 0 else "")
    table = _table(title, [("until", "left"), ("labelled", "right"), *((_label(series), "right") for series in shown)])
    for window in evaluation.windows[-_MOST_WINDOWS:]:
        values = [_number(_of(window.snapshot, series.name, series)) for series in shown]
        table.add_row(iso(window.end), f"{window.snapshot.rows:,}", *values)
    return table


def _objectives(snapshot: Snapshot) -> list[tuple[dict[str, str], float]]:
    from otel_model_metrics.snapshot import Selection, objective_series

    selection = Selection(snapshot.task, (), frozenset(), snapshot.objectives, snapshot.ks)
    return list(objective_series(selection))


def _shown(snapshot: Snapshot, per_class: bool = True) -> list[Series]:
    """The series that are values of metrics, not their bounds."""
    return [
        series
        for series in snapshot.series
        if not series.name.endswith(catalog.BOUNDS)
        and not (series.name in catalog.BY_NAME and catalog.BY_NAME[series.name].always)
        and (per_class or catalog.CLASS not in dict(series.variant))
    ]


def _of(snapshot: Snapshot, name: str, like: Series) -> float:
    """The value of the whole of a series with the same variant; NaN if there is none."""
    for series in snapshot.series:
        if series.name == name and series.variant == like.variant:
            return float(series.values[0])
    return math.nan


def _label(series: Series) -> str:
    return " ".join([series.name, *(value for _, value in series.variant)])


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.4g}"
