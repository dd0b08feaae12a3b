"""
An evaluation as one HTML document that can be mailed around: it loads nothing, runs no script, and needs no network.

Here is what is said; how it looks is in `report.html.jinja`, and where the lines of charts are in `charts.py`.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.resources
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otel_model_metrics import catalog
from otel_model_metrics.batch.charts import Course, Gauge, Point, course, gauge
from otel_model_metrics.batch.evaluation import EvaluatedWindow, Evaluation
from otel_model_metrics.catalog import MetricDefinition
from otel_model_metrics.snapshot import Series, Snapshot, Variant, objective_series
from otel_model_metrics.version import __version__

if TYPE_CHECKING:
    import jinja2

# What a page can hold and a reader can read; how much was left out is said beside each.
MOST_WINDOWS = 1_000
MOST_SEGMENTS = 200
MOST_CELLS = 20
MOST_CLASSES = 100

UNDEFINED = "\N{EN DASH}"
_TO = " \N{EN DASH} "
_BETTER = {"higher": "higher is better", "lower": "lower is better", "zero": "nearer to 0 is better", "": ""}
_UNITS = {"{ratio}": "share", "{score}": "score", "{target}": "unit of the label", "{target^2}": "unit of the label²"}
_UNSURE = "Too little data to tell"
# What no document may contain.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True)
class Metric:
    """
    One value of all rows, and all that is said about it.

    Attributes:
        label: Its name, and which average, class or cut-off.
        definition: Of the catalogue.
        series: Where it comes from.
        value, low, high: NaN where undefined.
        error: By how much the value can be off.
        objective: The level it should hold; NaN if there is none.
        verdict: ``met``, ``missed``, ``unsure``; empty without an objective.
        words, reason: The verdict in words, and why.
        gauge: It as a drawing.
    """

    label: str
    definition: MetricDefinition | catalog.HealthDefinition
    series: Series
    value: float
    low: float
    high: float
    error: float
    objective: float = math.nan
    verdict: str = ""
    words: str = ""
    reason: str = ""
    gauge: Gauge | None = None

    @property
    def unit(self) -> str:
        """What it is measured in."""
        return _UNITS.get(self.definition.unit, self.definition.unit.strip("{}"))

    @property
    def better(self) -> str:
        """``higher``, ``lower``, ``zero``, or nothing."""
        return self.definition.better if isinstance(self.definition, MetricDefinition) else ""

    @property
    def direction(self) -> str:
        """The same in words."""
        return _BETTER[self.better]

    @property
    def levels(self) -> tuple[float, ...]:
        """The objective as values: a bias may be off to either side."""
        if not math.isfinite(self.objective):
            return ()
        return (self.objective,) if self.better != "zero" else (self.objective, -self.objective)


def report(evaluation: Evaluation, *, now: float | None = None) -> str:
    """
    An evaluation as an HTML document.

    Args:
        evaluation: What to show.
        now: When the report was made, in seconds since 1970; the present by default.

    Returns:
        The whole document, which needs nothing else. It is written as UTF-8.

    Raises:
        ModuleNotFoundError: If the extra `batch` is not installed.

    Cost: about a second and 2 MB for 2,000 windows; longer tables are cut, and say so.
    """
    template = _template()
    page = template.render(_content(evaluation, time.time() if now is None else now))
    return _UNPRINTABLE.sub("\ufffd", page)


@functools.lru_cache(1)
def _template() -> jinja2.Template:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'A report as HTML needs the extra batch: pip install "otel-model-metrics[batch]"', name="jinja2"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(number=number, exact=_exact, moment=moment, count="{:,}".format)
    environment.tests["finite"] = math.isfinite
    return environment.from_string(
        importlib.resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    )


def number(value: float) -> str:
    """
    A value with five digits, or four after the point.

    >>> number(0.8), number(12.3456), number(1234567.0), number(0.00001234)
    ('0.8000', '12.346', '1,234,567', '1.234e-05')
    """
    if not math.isfinite(value):
        return UNDEFINED
    size = abs(value)
    if size >= 1e12 or 0 < size < 5e-5:
        return f"{value:.3e}"
    return f"{value:,.{4 if size < 10 else max(0, 4 - math.floor(math.log10(size)))}f}"


def moment(seconds: float) -> str:
    """
    A time in UTC, as short as it can be.

    >>> moment(86_400), moment(90_061)
    ('1970-01-02 00:00', '1970-01-02 01:01:01')
    """
    at = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{at.date()} {at:%H:%M:%S}" if at.second else f"{at.date()} {at:%H:%M}"


def _exact(value: float) -> str:
    """All digits, for those who take values out of the document."""
    return repr(float(value)) if math.isfinite(value) else ""


def _period(start: float, end: float) -> str:
    """A period in UTC, in whole days where it has no others."""
    first, last = moment(start), moment(end)
    if last.endswith(" 00:00"):
        last = f"{moment(end - 1)[:10]} 24:00"
    if first.endswith(" 00:00") and last.endswith(" 24:00"):
        first, last = first[:10], last[:10]
    if first[:10] == last[:10]:
        last = last[11:]
    return f"{first}{_TO}{last}" if last else first


def _length(seconds: float) -> str:
    """
    The length of a window in words.

    >>> _length(3600.0), _length(5400.0), _length(604_800.0)
    ('1 hour', '1 hour 30 minutes', '7 days')
    """
    found = []
    for name, size in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count = seconds // size if size > 1 else seconds
        seconds -= count * size
        if count:
            found.append(f"{count:g} {name}" + ("" if count == 1 else "s"))
    return " ".join(found)


def _content(evaluation: Evaluation, now: float) -> dict[str, Any]:
    overall, job, windows = evaluation.overall, evaluation.job, evaluation.windows
    metrics = _metrics(evaluation) if overall.rows else []
    cards = [one for one in metrics if one.verdict]
    named = {one.definition.name for one in cards}
    cards += [
        one
        for one in metrics
        if isinstance(one.definition, MetricDefinition) and one.definition.headline and one.definition.name not in named
    ]
    per_class = [one for one in metrics if catalog.CLASS in dict(one.series.variant)]
    coverage = _of(_indexed(overall), "label.coverage", ())
    return {
        "title": f"{overall.model} {overall.version}",
        "model": overall.model,
        "version": overall.version,
        "task": job.task,
        "period": _period(windows[0].start, windows[-1].end) if windows else "",
        "every": _length(job.window_seconds),
        "windows": len(windows),
        "rows": evaluation.rows,
        "usable": evaluation.predictions,
        "labelled": overall.rows,
        "coverage": coverage,
        "summary": _summary(evaluation, metrics),
        "cards": cards,
        "metrics": [one for one in metrics if one not in per_class],
        "courses": _courses(evaluation, metrics) if len(windows) > 1 else [],
        "matrix": _matrix(evaluation),
        "classes": _classes(evaluation, per_class),
        "segments": _segments(evaluation, metrics),
        "table": _windows(evaluation, metrics),
        "rejected": [
            (reason, count, evaluation.first.get(reason, ""))
            for reason, count in sorted(evaluation.rejected.items(), key=lambda item: -item[1])
            if count
        ],
        "problems": evaluation.problems,
        "notes": evaluation.notes(),
        "producer": f"otel-model-metrics {__version__}",
        "made": moment(now - now % 60),
        "options": _options(evaluation),
    }


# Values of all rows


def _indexed(snapshot: Snapshot) -> Mapping[tuple[str, Variant], Series]:
    return {(one.name, one.variant): one for one in snapshot.series}


def _of(index: Mapping[tuple[str, Variant], Series], name: str, variant: Variant, group: int = 0) -> float:
    """One value; NaN if there is none."""
    series = index.get((name, variant))
    return float(series.values[group]) if series is not None and group < len(series.values) else math.nan


def _limits(definition: MetricDefinition | catalog.HealthDefinition) -> tuple[float, float]:
    """Between which values a metric is by definition, as far as its unit says so."""
    if definition.unit != "{ratio}" or (isinstance(definition, MetricDefinition) and definition.better == "lower"):
        return -math.inf, math.inf
    return 0.0, 1.0


def _metrics(evaluation: Evaluation) -> list[Metric]:
    """All values of all rows, those with an objective judged by it."""
    overall, selection = evaluation.overall, evaluation.job.selection
    index = _indexed(overall)
    objectives = {}
    for (name, level), (attributes, _) in zip(selection.objectives.items(), objective_series(selection), strict=True):
        metric = attributes.pop(catalog.METRIC)
        objectives[metric, tuple(attributes.items())] = name, level
    missed = {one.name for one in evaluation.missed()}
    health = {one.name: one for one in catalog.HEALTH}
    found = []
    for series in overall.series:
        definition = catalog.BY_NAME.get(series.name) or health.get(series.name)
        if definition is None or getattr(definition, "always", False):
            continue  # bounds belong to their metric, and how many rows there are is said elsewhere
        low, high = (_of(index, series.name + suffix, series.variant) for suffix in catalog.BOUNDS)
        one = Metric(
            label=" ".join([series.name, *(value for _, value in series.variant)]),
            definition=definition,
            series=series,
            value=float(series.values[0]),
            low=low,
            high=high,
            error=overall.inexact.get(series.name, 0.0),
        )
        name, level = objectives.get((series.name, series.variant), ("", math.nan))
        found.append(_judged(one, level, name in missed))
    return found


def _judged(metric: Metric, level: float, missed: bool) -> Metric:
    """The metric with what is to be said of its objective, if it has one; whether it is missed is known already."""
    if math.isfinite(level):
        verdict, words, reason = _verdict(metric, level, missed)
        metric = dataclasses.replace(metric, objective=level, verdict=verdict, words=words, reason=reason)
    if not math.isfinite(metric.value):
        return metric
    drawn = gauge(metric.value, metric.low, metric.high, metric.levels, _limits(metric.definition))
    return dataclasses.replace(metric, gauge=drawn)


def _verdict(metric: Metric, level: float, missed: bool) -> tuple[str, str, str]:
    """The verdict, in words too, and why."""
    has_bounds = math.isfinite(metric.low) and math.isfinite(metric.high)
    low, high = (metric.low, metric.high) if has_bounds else (metric.value, metric.value)
    sure = " with confidence" if has_bounds else ""
    by = "The whole 95 % interval" if has_bounds else "It has no bounds, so it is judged by the value, which"

    def keeps(low: float, high: float) -> bool:
        if metric.better == "zero":
            return -level <= low and high <= level
        return low >= level if metric.better == "higher" else high <= level

    if missed:
        return "missed", f"Missed{sure}", f"{by} is beyond the objective."
    if not math.isfinite(metric.value):
        return "unsure", _UNSURE, "The metric is undefined: there are no rows that tell of it."
    if keeps(low - metric.error, high + metric.error):
        return "met", f"Met{sure}", f"{by} keeps the objective."
    if not has_bounds:
        return "unsure", _UNSURE, "The value is as near to the objective as it is inexact."
    side = "keeps" if keeps(metric.value, metric.value) else "misses"
    return "unsure", _UNSURE, f"The value {side} the objective, but the 95 % interval reaches to both sides of it."


def _summary(evaluation: Evaluation, metrics: Sequence[Metric]) -> tuple[str, str]:
    """The whole in one sentence, and what kind of news it is."""
    if not evaluation.predictions:
        return "missed", "Nothing could be evaluated: no row could be used."
    if not evaluation.overall.rows:
        return "unsure", "No row has a label, so no metric is defined."
    judged = {kind: [one.label for one in metrics if one.verdict == kind] for kind in ("missed", "unsure", "met")}
    count = sum(map(len, judged.values()))
    if not count:
        return "", "No objectives were set."
    if judged["missed"]:
        one = len(judged["missed"]) == 1
        names = ", ".join(judged["missed"])
        return "missed", f"{'An objective is' if one else 'Objectives are'} missed: {names}."
    if judged["unsure"]:
        names = ", ".join(judged["unsure"])
        return "unsure", f"No objective is known to be missed, but there is too little data to tell of {names}."
    return "met", "The objective is met." if count == 1 else f"All {count} objectives are met."


# Windows


def _leading(metrics: Iterable[Metric]) -> list[Metric]:
    """What is told of each window: metrics with an objective, headlines, and those that segments have too."""
    metrics = [one for one in metrics if isinstance(one.definition, MetricDefinition)]
    chosen = [one for one in metrics if one.verdict]
    for one in metrics:
        variant = dict(one.series.variant)
        if catalog.CLASS in variant or variant.get(catalog.AVERAGE, "macro") != "macro" or one in chosen:
            continue
        if isinstance(one.definition, MetricDefinition) and (one.definition.headline or one.definition.in_segments):
            chosen.append(one)
    return chosen


def _courses(evaluation: Evaluation, metrics: Sequence[Metric]) -> list[tuple[Metric, Course, str]]:
    """Charts over the windows, and each in words."""
    windows, seconds = evaluation.windows, evaluation.job.window_seconds
    indices = [_indexed(window.snapshot) for window in windows]
    periods = [_period(window.start, window.end) for window in windows]
    found = []
    for metric in _leading(metrics):
        points = [
            _point(metric, window, index, round((window.start - windows[0].start) / seconds), period)
            for window, index, period in zip(windows, indices, periods, strict=True)
        ]
        sign = "± " if metric.better == "zero" else ""
        chart = course(
            points,
            windows[0].start,
            seconds,
            objectives=metric.levels,
            objective=f"objective {sign}{metric.objective:g}" if metric.levels else "",
            limits=_limits(metric.definition),
        )
        values = [
            (point.value, period) for point, period in zip(points, periods, strict=True) if math.isfinite(point.value)
        ]
        words = f"{metric.label} over {len(windows):,} windows"
        if values:
            low, high = min(values), max(values)
            words += f": lowest {number(low[0])} ({low[1]}), highest {number(high[0])} ({high[1]})"
            words += f", last {number(values[-1][0])}"
        found.append((metric, chart, words + "."))
    return found


def _point(
    metric: Metric, window: EvaluatedWindow, index: Mapping[tuple[str, Variant], Series], at: int, period: str
) -> Point:
    name, variant = metric.series.name, metric.series.variant
    value = _of(index, name, variant)
    low, high = (_of(index, name + suffix, variant) for suffix in catalog.BOUNDS)
    between = f" ({number(low)}{_TO}{number(high)})" if math.isfinite(low) and math.isfinite(high) else ""
    said = f"{number(value)}{between}" if math.isfinite(value) else "undefined"
    rows = f"{window.snapshot.rows:,} of {window.predictions:,} rows labelled"
    return Point(
        at, value, low, high, window.snapshot.rows, window.predictions, f"{period}\n{metric.label} {said}\n{rows}"
    )


def _windows(evaluation: Evaluation, metrics: Sequence[Metric]) -> dict[str, Any] | None:
    if not evaluation.windows:
        return None
    shown = _leading(metrics)
    windows = evaluation.windows[-MOST_WINDOWS:]
    rows = []
    for window in reversed(windows):
        index = _indexed(window.snapshot)
        values = [_of(index, one.series.name, one.series.variant) for one in shown]
        rows.append((_period(window.start, window.end), window.snapshot.rows, window.predictions, values))
    return {"columns": [one.label for one in shown], "rows": rows, "left": len(evaluation.windows) - len(windows)}


# Classes and segments


def _matrix(evaluation: Evaluation) -> dict[str, Any] | None:
    """How often which class was predicted for which; classes with the most labels only, if there are many."""
    if "matrix" not in evaluation.statistics.sums or not evaluation.overall.rows:
        return None
    counts = evaluation.statistics.sums["matrix"][:, 0].sum(axis=0)
    classes = list(evaluation.statistics.classes)
    weight = counts.sum(axis=0) + counts.sum(axis=1)
    kept = np.sort(np.argsort(-weight, kind="stable")[:MOST_CELLS])
    rows = []
    for at in kept:
        labels = int(counts[at].sum())
        cells = []
        for other in kept:
            share = counts[at, other] / labels if labels else math.nan
            kind = "right" if at == other else "wrong"
            shade = 0 if not counts[at, other] else 1 + min(4, int(share * 5))
            cells.append((int(counts[at, other]), share, f"{kind} shade{shade}"))
        rows.append((classes[at], labels, cells))
    inside = int(counts[np.ix_(kept, kept)].sum())
    return {
        "columns": [classes[at] for at in kept],
        "rows": rows,
        "classes": len(classes),
        "left": len(classes) - len(kept),
        "outside": int(counts.sum()) - inside,
    }


def _classes(evaluation: Evaluation, metrics: Sequence[Metric]) -> dict[str, Any] | None:
    """Metrics of each class, those with the most labels first."""
    if not metrics:
        return None
    counts = evaluation.statistics.sums["matrix"][:, 0].sum(axis=0)
    by_class: dict[str, list[Metric]] = {}
    for one in metrics:
        by_class.setdefault(dict(one.series.variant)[catalog.CLASS], []).append(one)
    labelled = dict(zip(evaluation.statistics.classes, counts.sum(axis=1).tolist(), strict=True))
    names = sorted(by_class, key=lambda name: -labelled.get(name, 0))
    return {
        "columns": [one.series.name for one in by_class[names[0]]],
        "rows": [(name, labelled.get(name, 0), by_class[name]) for name in names[:MOST_CLASSES]],
        "left": max(0, len(names) - MOST_CLASSES),
    }


@dataclasses.dataclass(frozen=True)
class _Bar:
    """How a segment compares with all rows: where both are on a line of 100."""

    here: float
    all: float
    kind: str
    words: str


def _segments(evaluation: Evaluation, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """A table for each segment name, the worst first by the metric that stands for the task."""
    overall = evaluation.overall
    shown = [one for one in metrics if len(one.series.values) > 1 and catalog.CLASS not in dict(one.series.variant)]
    judged = [one for one in shown if one.better]
    headline = next((one for one in judged if getattr(one.definition, "headline", False)), None)
    headline = headline or next(iter(judged), None)
    labelled = evaluation.statistics.labelled().sum(axis=0)
    names = dict.fromkeys(segment[0] for segment in overall.segments if segment is not None)
    found = []
    for name in names:
        groups = [at for at, one in enumerate(overall.segments) if one is not None and one[0] == name]
        values = [] if headline is None else [_at(headline.series, group) for group in groups]
        badness = dict(zip(groups, (_badness(headline, value) for value in values), strict=False))
        groups.sort(key=lambda group: (-badness.get(group, 0.0), -labelled[group]))
        known = [value for value in values if math.isfinite(value)]
        rows = []
        for group in groups[:MOST_SEGMENTS]:
            segment = overall.segments[group]
            assert segment is not None
            bar = None if headline is None else _bar(headline, _at(headline.series, group), known)
            rows.append((segment[1], int(labelled[group]), bar, [_at(one.series, group) for one in shown]))
        found.append(
            {
                "name": name,
                "headline": "" if headline is None else headline.label,
                "columns": [one.label for one in shown],
                "overall": (overall.rows, [one.value for one in shown]),
                "rows": rows,
                "left": max(0, len(groups) - MOST_SEGMENTS),
            }
        )
    return found if overall.rows else []


def _at(series: Series, group: int) -> float:
    return float(series.values[group]) if group < len(series.values) else math.nan


def _badness(metric: Metric | None, value: float) -> float:
    """The higher, the worse; undefined is after all that is known."""
    if metric is None or not math.isfinite(value):
        return -math.inf
    return {"higher": -value, "lower": value, "zero": abs(value)}[metric.better]


def _bar(metric: Metric, value: float, known: Sequence[float]) -> _Bar | None:
    if not math.isfinite(value) or not math.isfinite(metric.value):
        return None
    low, high = min([*known, metric.value]), max([*known, metric.value])
    room = (high - low) or 1.0
    difference = value - metric.value
    worse = _badness(metric, value) > _badness(metric, metric.value)
    side = "above" if difference > 0 else "below"
    words = f"{number(abs(difference))} {side} all rows" if difference else "as all rows"
    return _Bar(
        5 + (value - low) / room * 90 if high > low else 50.0,
        5 + (metric.value - low) / room * 90 if high > low else 50.0,
        "worse" if worse else "better",
        words,
    )


# The job


def _options(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What the job was told, other than what it would be anyway."""
    found = []
    for one in dataclasses.fields(evaluation.job):
        value = getattr(evaluation.job, one.name)
        default = one.default_factory() if callable(one.default_factory) else one.default
        if value == default and one.name != "label":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(
                f"{key}={level:g}" if isinstance(level, float) else f"{key}={level}" for key, level in value.items()
            )
        elif isinstance(value, (tuple, list)):
            value = ", ".join(map(str, value))
        found.append((one.name, str(value)))
    return found
