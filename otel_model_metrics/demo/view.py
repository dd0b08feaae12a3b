"""
What the demonstration shows, drawn from nothing but what its receiver received.

`read` turns received series into states of models, the functions below it turn those into words, lines and tables.
Which metrics are shown first, and which way is better, comes from the objectives received and from the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

from rich.table import Table
from rich.text import Text

from otel_model_metrics import catalog
from otel_model_metrics.catalog import LOWER, UPPER
from otel_model_metrics.demo.receiver import Attributes, Received

Better = Literal["higher", "lower", "zero", ""]
Key = tuple[str, frozenset[tuple[str, str]]]

_RAMP = "▁▂▃▄▅▆▇█"
_ASCII_RAMP = "_.:-=+*#"
_COLUMNS = " {:<12} {:<20} {:<7} {:<28} {}"
_COLUMNS_WIDTH = len(_COLUMNS.format("", "", "", "", ""))
_HEADING = f" {'metric':<12} {'value [95 % bounds]':<20} {'objective':<36} so far"
_FRAME_LINES = 4  # title, progress and heading above the models, a note below


@dataclass(frozen=True)
class SegmentState:
    """One segment: its name and value, its rows, and its value of the model's first objective's metric."""

    name: str
    place: str
    rows: int
    value: float


@dataclass(frozen=True)
class MetricState:
    """
    One metric of a model.

    Attributes:
        name: Its name, with the cut-off if it has one: ``ndcg@10``.
        better: Which way is better.
        value: The latest value.
        bounds: Its 95 % bounds, or None if the metric has none.
        objective: The level it should hold, or None.
        history: Its values so far, oldest first.
        segments: The worst first; empty if segments do not have the metric.
    """

    name: str
    better: Better
    value: float
    bounds: tuple[float, float] | None
    objective: float | None
    history: tuple[float, ...]
    segments: tuple[SegmentState, ...]


@dataclass(frozen=True)
class ModelState:
    """
    One model.

    Attributes:
        name: Its name.
        version: Its version.
        rows: Its rows in the window.
        coverage: Share of predictions old enough that have their label; None if there are none.
        delay: Median of the seconds that labels took; None if none came late.
        metrics: Those with an objective first.
    """

    name: str
    version: str
    rows: int
    coverage: float | None
    delay: float | None
    metrics: tuple[MetricState, ...]


@dataclass(frozen=True)
class Moment:
    """
    Where the run stands.

    Attributes:
        phase: ``healthy`` or ``disturbed``.
        elapsed: Seconds since the start.
        seconds: How long the run takes.
        exports: How many exports have been received.
        note: What went wrong last, or nothing.
    """

    phase: str
    elapsed: float
    seconds: float
    exports: int
    note: str = ""


def read(received: Iterable[Received]) -> list[ModelState]:
    """The state of every model that has been received, in the order of their names."""
    by_model: dict[tuple[str, str], dict[Key, Received]] = {}
    for series in received:
        attributes = dict(series.attributes)
        model = attributes.pop(catalog.MODEL_NAME, ""), attributes.pop(catalog.MODEL_VERSION, "")
        if model[0] and series.name.startswith(catalog.NAMESPACE):
            name = series.name.removeprefix(catalog.NAMESPACE)
            by_model.setdefault(model, {})[name, frozenset(attributes.items())] = series
    return [_model_state(name, version, series) for (name, version), series in sorted(by_model.items())]


def _model_state(name: str, version: str, series: Mapping[Key, Received]) -> ModelState:
    objectives = _objectives(series)
    found: list[tuple[tuple[bool, bool, int], MetricState]] = []
    for (metric, variant), one in series.items():
        definition = catalog.BY_NAME.get(metric)
        attributes = dict(variant)
        if definition is None or not definition.better or not _is_headline(attributes):
            continue
        objective = objectives.get((metric, variant))
        lower, upper = series.get((metric + LOWER, variant)), series.get((metric + UPPER, variant))
        state = MetricState(
            name=_title(metric, attributes),
            better=definition.better,
            value=one.value,
            bounds=None if lower is None or upper is None else (lower.value, upper.value),
            objective=objective,
            history=one.history,
            segments=_segments(series, metric, attributes, definition.better),
        )
        # What segments have too is what the catalogue holds to matter most.
        place = objective is None, not definition.in_segments, catalog.METRICS.index(definition)
        found.append((place, state))
    found.sort(key=lambda entry: entry[0])

    def latest(metric: str, **attributes: str) -> float | None:
        one = series.get((metric, frozenset(attributes.items())))
        return None if one is None else one.value

    return ModelState(
        name,
        version,
        rows=int(latest("window.rows") or 0),
        coverage=latest("label.coverage"),
        delay=latest("label.delay", **{catalog.QUANTILE: "0.5"}),
        metrics=tuple(state for _, state in found),
    )


def _is_headline(attributes: Attributes) -> bool:
    """Whether a series is about the whole model: no segment, no single class, no second way of averaging."""
    return (
        catalog.SEGMENT_NAME not in attributes
        and catalog.CLASS not in attributes
        and attributes.get(catalog.AVERAGE, "macro") == "macro"
    )


def _objectives(series: Mapping[Key, Received]) -> dict[Key, float]:
    """Level by the metric and the variant it belongs to."""
    levels: dict[Key, float] = {}
    for (name, attributes), one in series.items():
        if name == catalog.OBJECTIVE:
            variant = dict(attributes)
            metric = variant.pop(catalog.METRIC, "")
            levels[metric, frozenset(variant.items())] = one.value
    return levels


def _segments(
    series: Mapping[Key, Received], metric: str, attributes: Attributes, better: Better
) -> tuple[SegmentState, ...]:
    states = []
    for (name, variant), one in series.items():
        of_segment = dict(variant)
        segment, place = of_segment.pop(catalog.SEGMENT_NAME, None), of_segment.pop(catalog.SEGMENT_VALUE, "")
        if name == metric and segment is not None and of_segment == attributes:
            key = frozenset({catalog.SEGMENT_NAME: segment, catalog.SEGMENT_VALUE: place}.items())
            rows = series.get(("window.rows", key))
            states.append(SegmentState(segment, place, 0 if rows is None else int(rows.value), one.value))
    return tuple(sorted(states, key=lambda state: (_badness(state.value, better), state.name, state.place)))


def _badness(value: float, better: Better) -> float:
    """Orders values, the worst first."""
    return {"higher": value, "lower": -value, "zero": -abs(value), "": 0.0}[better]


def _title(metric: str, attributes: Attributes) -> str:
    # Averages over classes go without a word, for only the macro one is a headline.
    k = attributes.get(catalog.K)
    title = metric if k is None else metric.replace("_at_k", f"@{k}").replace("top_k_", f"top_{k}_")
    return title.replace("_", " ")


@dataclass(frozen=True)
class Verdict:
    """What to say about a metric and its objective, and whether that is good news."""

    words: str
    good: bool


def verdict(state: MetricState) -> Verdict | None:
    """
    Compare a metric with its objective; None if it has none.

    ``surely`` says that not only the value but its bound, too, is on that side of the objective: it is not for lack
    of rows.

    >>> state = MetricState("f1", "higher", 0.7, (0.6, 0.79), 0.8, (0.7,), ())
    >>> verdict(state)
    Verdict(words='BELOW OBJECTIVE, surely', good=False)
    """
    if state.objective is None or state.better not in ("higher", "lower"):
        return None
    higher = state.better == "higher"
    good = state.value >= state.objective if higher else state.value <= state.objective
    words = "meets objective" if good else "BELOW OBJECTIVE" if higher else "WORSE THAN OBJECTIVE"
    # The bound nearer to the objective decides: the lower one of a value above it, the upper one of one below.
    if state.bounds is not None:
        lower, upper = state.bounds
        if lower >= state.objective if good == higher else upper <= state.objective:
            words += ", surely"
    return Verdict(words, good)


def number(value: float) -> str:
    """
    A value, in as many digits as help.

    >>> number(0.95678), number(55.24), number(1234.5)
    ('0.957', '55.2', '1234')
    """
    size = abs(value)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:.0f}"


def value_and_bounds(state: MetricState) -> str:
    """
    The value with its bounds.

    >>> value_and_bounds(MetricState("f1", "higher", 0.7, (0.6, 0.79), 0.8, (0.7,), ()))
    '0.700 [0.600, 0.790]'
    """
    if state.bounds is None:
        return number(state.value)
    return f"{number(state.value)} [{number(state.bounds[0])}, {number(state.bounds[1])}]"


def objective_of(state: MetricState) -> str:
    """The objective with its direction, or nothing."""
    if state.objective is None:
        return ""
    return f"{'<=' if state.better == 'lower' else '>='}{number(state.objective)}"


def sparkline(history: Sequence[float], width: int, ramp: str = _RAMP) -> str:
    """
    Values as a line of at most `width` characters, the smallest lowest; several share one where there is no room.

    >>> sparkline([0.0, 0.5, 1.0], width=10, ramp="_-#")
    '_-#'
    """
    count = min(len(history), width)
    if count <= 0:
        return ""
    ends = [(part + 1) * len(history) // count for part in range(count)]
    shown = [fmean(history[start:end]) for start, end in pairwise([0, *ends])]
    least, most = min(shown), max(shown)
    # Noise must not look like an event: a change of less than 5 % is drawn as small as it is.
    span = max(most - least, 0.05 * max(abs(most), abs(least))) or 1.0
    floor = least - (span - (most - least)) / 2
    return "".join(ramp[min(int((value - floor) / span * len(ramp)), len(ramp) - 1)] for value in shown)


def segments_in_words(model: ModelState) -> str:
    """The segments of the model's first metric, the worst first; nothing if it has none."""
    if not model.metrics or not model.metrics[0].segments:
        return ""
    metric = model.metrics[0]
    worst, *others = (f"{one.place} {number(one.value)} ({_count(one.rows)})" for one in metric.segments)
    words = f"{metric.name} by {metric.segments[0].name}: worst {worst}"
    return ", ".join([words, *others])


def labels_in_words(model: ModelState) -> str:
    """
    How many predictions have their label, and half of the labels came within which time.

    >>> labels_in_words(ModelState("fraud", "1", 40, 0.934, 0.78, ()))
    'labels 93 %, delay 0.78 s'
    """
    if model.coverage is None:
        return "no labels due yet"
    words = f"labels {100 * model.coverage:.0f} %"
    if model.delay is not None:
        words += f", delay {model.delay:.2g} s" if model.delay < 10 else f", delay {model.delay:.0f} s"
    return words


def _count(rows: int) -> str:
    return f"{rows} row" if rows == 1 else f"{rows} rows"


def progress(moment: Moment, width: int = 20) -> str:
    """The phase and how far the run is, in words and as a bar."""
    done = min(1.0, moment.elapsed / moment.seconds)
    bar = "#" * int(done * width)
    left = max(0.0, moment.seconds - moment.elapsed)
    return f"[{bar:-<{width}}] {moment.phase}, {left:.0f} s left, {moment.exports} exports received"


def screen(models: Sequence[ModelState], moment: Moment, width: int, height: int, unicode: bool) -> Text:
    """
    The live view, one line of text for each line of the terminal.

    Args:
        models: What to show.
        moment: Where the run stands.
        width, height: Of the terminal, in characters; metrics are left out where they would not fit.
        unicode: Whether the terminal can show the characters of a sparkline.
    """
    rows = [
        Text("otel-model-metrics demo: what has been received over OTLP", style="bold"),
        Text(progress(moment), style="bold red" if moment.phase == "disturbed" else "bold green"),
    ]
    if models:
        most = _metrics_that_fit(len(models), height)
        ramp = _RAMP if unicode else _ASCII_RAMP
        rows.append(Text(_HEADING, style="dim"))
        for model in models:
            rows.extend(_model_rows(model, most, max(0, min(60, width - _COLUMNS_WIDTH)), ramp))
    else:
        rows.append(Text("waiting for the first export ..."))
    if moment.note:
        rows.append(Text(moment.note, style="yellow"))
    for row in rows:
        row.truncate(width)
    return Text("\n", no_wrap=True).join(rows)


def _metrics_that_fit(models: int, height: int) -> int:
    # A model takes a line with its name and one with its segments beside its metrics.
    return max(1, min(5, (height - _FRAME_LINES) // models - 2))


def _model_rows(model: ModelState, most: int, spark: int, ramp: str) -> Iterable[Text]:
    about = f"version {model.version}, {_count(model.rows)} in the window, {labels_in_words(model)}"
    yield Text.assemble((model.name, "bold"), f" {about}")
    for state in model.metrics[:most]:
        said = verdict(state)
        style = "" if said is None else "green" if said.good else "bold red"
        line = sparkline(state.history, spark, ramp)
        words = "" if said is None else said.words
        yield Text(
            _COLUMNS.format(state.name[:12], value_and_bounds(state), objective_of(state), words, line), style=style
        )
    yield Text(f" {segments_in_words(model)}", style="dim")


def lines(models: Sequence[ModelState], moment: Moment) -> list[str]:
    """The view in plain ASCII lines, for where there is no terminal: one for each model."""
    start = f"{moment.elapsed:5.1f} s  {moment.phase:<9}"
    if not models:
        return [f"{start}  waiting for the first export"]
    return [f"{start}  {model.name}: {_in_words(model)}" for model in models]


def _in_words(model: ModelState) -> str:
    parts = []
    for state in model.metrics:
        said = verdict(state)
        if said is not None:
            parts.append(f"{state.name} {value_and_bounds(state)}, objective {objective_of(state)}: {said.words}")
    parts += [f"{_count(model.rows)}, {labels_in_words(model)}", segments_in_words(model)]
    return "; ".join(filter(None, parts))


def summary(before: Sequence[ModelState], after: Sequence[ModelState]) -> Table:
    """
    What became of every objective.

    Args:
        before: The models at the end of the healthy phase.
        after: The models at the end.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for title in ("model", "metric", "objective", "healthy", "disturbed", "verdict"):
        table.add_column(title, no_wrap=True)
    healthy = {(model.name, metric.name): metric for model in before for metric in model.metrics}
    for model in after:
        for state in model.metrics:
            said = verdict(state)
            if said is not None:
                earlier = healthy.get((model.name, state.name))
                table.add_row(
                    model.name,
                    state.name,
                    objective_of(state),
                    "-" if earlier is None else number(earlier.value),
                    number(state.value),
                    Text(said.words, style="green" if said.good else "bold red"),
                )
    return table
