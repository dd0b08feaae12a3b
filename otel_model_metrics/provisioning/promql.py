"""
PromQL over totals: what a metric is for a whole fleet, over any window.

The functions of the catalogue are called with expressions instead of arrays, so that a query and the value inside a
process are one formula. Names and labels that Prometheus sees are made in `prometheus_names` and nowhere else.

>>> from otel_model_metrics import catalog
>>> live = Counters("1h")
>>> for quantity in quantities(catalog.BY_NAME["mse"], "regression", statistics("regression", live), bounds=False):
...     print(quantity.expression)
sum by (ml_model_name, ml_model_version) (increase(ml_model_error_squared_total{ml_segment_name=""}[1h])) / \
(sum by (ml_model_name, ml_model_version) (increase(ml_model_outcomes_total{ml_model_task="regression", \
ml_segment_name=""}[1h])) != 0)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, Protocol

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition, Task, TotalDefinition
from otel_model_metrics.prometheus_names import Naming, escaped, prometheus_label, prometheus_name
from otel_model_metrics.provisioning import expressions
from otel_model_metrics.provisioning.expressions import Expression, Statistic

# Names


def counter_name(total: str, naming: Naming = "otlp", namespace: str = "") -> str:
    """
    The name under which Prometheus knows a total.

    >>> counter_name("error.squared")
    'ml_model_error_squared_total'
    """
    units = {one.name: one.unit for one in catalog.TOTALS} | {one.name: one.unit for one in catalog.COUNTS}
    return prometheus_name(catalog.NAMESPACE + total, units[total], "counter", naming, namespace)


def recorded_name(what: str, window: str) -> str:
    """
    The name under which a rule records something over a window.

    >>> recorded_name("accuracy.lower", "1h")
    'ml_model:accuracy_lower:1h'
    """
    return f"ml_model:{what.replace('.', '_')}:{window}"


MODEL, VERSION, TASK = (prometheus_label(name) for name in (catalog.MODEL_NAME, catalog.MODEL_VERSION, catalog.TASK))
SEGMENT = tuple(prometheus_label(name) for name in (catalog.SEGMENT_NAME, catalog.SEGMENT_VALUE))
K, AVERAGE, METRIC = (prometheus_label(name) for name in (catalog.K, catalog.AVERAGE, catalog.METRIC))
CLASS = prometheus_label(catalog.CLASS)
ACTUAL, PREDICTED, OUTCOME = (prometheus_label(name) for name in (catalog.ACTUAL, catalog.PREDICTED, catalog.OUTCOME))
assert expressions.CLASS == CLASS

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}


def seconds(duration: str) -> int:
    """
    The length of a Prometheus duration.

    Raises:
        ValueError: If it is none, or 0.

    >>> seconds("1h30m")
    5400
    """
    if not re.fullmatch(r"([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?", duration) or not duration:
        raise ValueError(
            f"A duration is a number and a unit (s, m, h, d, w), such as 30m, 6h or 1h30m; got {duration!r}."
        )
    length = sum(int(count) * _SECONDS[unit] for count, unit in re.findall(r"([0-9]+)([smhdwy])", duration))
    if not length:
        raise ValueError(f"A duration must be longer than 0, got {duration!r}.")
    return length


def selector(name: str, matchers: Mapping[str, str] | None = None, more: Iterable[str] = ()) -> str:
    """
    A selector of series; `more` are matchers as PromQL writes them.

    >>> selector("up", {"job": "api"}, ['instance=~"a.*"'])
    'up{job="api", instance=~"a.*"}'
    """
    written = [f'{label}="{escaped(value)}"' for label, value in (matchers or {}).items()] + list(more)
    return f"{name}{{{', '.join(written)}}}" if written else name


# Where the totals are found


@dataclass(frozen=True)
class Scope:
    """
    Which rows count together.

    Attributes:
        segments: Whether each segment is told apart, beside the model as a whole; else only the latter.
        by: Prometheus labels that split a fleet beside model and version, e.g. ``deployment_environment_name``.
        matchers: Further matchers, as PromQL writes them.
        versions: Whether versions are told apart; else all versions of a model count together.
    """

    segments: bool = False
    by: tuple[str, ...] = ()
    matchers: tuple[str, ...] = ()
    versions: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        """The Prometheus labels that tell the results apart."""
        version = (VERSION,) if self.versions else ()
        return (MODEL, *version, *self.by, *(SEGMENT if self.segments else ()))

    def matched(self, matchers: Mapping[str, str]) -> dict[str, str]:
        """These matchers, and the one that leaves the segments out."""
        return dict(matchers) if self.segments else {**matchers, SEGMENT[0]: ""}


# What a row can be for a class: its label and prediction, its label, its prediction - whatever the other one is.
Role = Literal["correct", "labels", "predictions"]
ROLES: tuple[Role, ...] = ("correct", "labels", "predictions")


class Source(Protocol):
    """Where the totals of a window are found."""

    def total(self, name: str, scope: Scope, matchers: Mapping[str, str], by: tuple[str, ...] = ()) -> Expression:
        """The sum over the fleet of one total over the window, told apart by the scope's labels and `by`."""

    def of_class(self, role: Role, scope: Scope) -> Expression:
        """For each class of multiclass models the number of rows in this role."""


@dataclass(frozen=True)
class Counters:
    """
    The counters themselves: needs no rule.

    Attributes:
        window: A Prometheus duration, or a variable such as ``$window``.
        naming, namespace: As for `prometheus_name`.
        offset: How long ago the window ended, as a Prometheus duration; now, if empty.
    """

    window: str
    naming: Naming = "otlp"
    namespace: str = ""
    offset: str = ""

    def total(self, name: str, scope: Scope, matchers: Mapping[str, str], by: tuple[str, ...] = ()) -> Expression:
        """The sum over the fleet of one counter's increase."""
        return _summed(self._increase(name, scope, matchers), (*scope.labels, *by))

    def of_class(self, role: Role, scope: Scope) -> Expression:
        """For each class of multiclass models the number of rows in this role."""
        return sum_of_class(role, scope, lambda matchers: self._increase("outcomes", scope, matchers))

    def _increase(self, name: str, scope: Scope, matchers: Mapping[str, str]) -> str:
        chosen = selector(counter_name(name, self.naming, self.namespace), scope.matched(matchers), scope.matchers)
        return f"increase({chosen}[{self.window}]{f' offset {self.offset}' if self.offset else ''})"


@dataclass(frozen=True)
class Recorded:
    """
    What recording rules (`rules.py`) have summed up already.

    Attributes:
        window: One of the windows that are recorded.
    """

    window: str

    def total(self, name: str, scope: Scope, matchers: Mapping[str, str], by: tuple[str, ...] = ()) -> Expression:
        """The recorded sum; summed once more where it was recorded with more Prometheus labels than are wanted."""
        labels = (*scope.labels, *by)
        if {*scope.labels, *labels_of_total(name)} == set(labels):
            return Expression(self.series(name, scope, matchers), labels)
        return _summed(self.series(name, scope, matchers), labels)

    def of_class(self, role: Role, scope: Scope) -> Expression:
        """What was recorded for each class."""
        return Expression(self.series(f"class_{role}", scope, {}), (*scope.labels, CLASS))

    def series(self, name: str, scope: Scope, matchers: Mapping[str, str]) -> str:
        """The recorded series of a total."""
        return selector(recorded_name(name, self.window), scope.matched(matchers), scope.matchers)


def _summed(series: str, labels: tuple[str, ...]) -> Expression:
    return Expression(f"sum by ({', '.join(labels)}) ({series})", labels)


def sum_of_class(role: Role, scope: Scope, outcomes: Callable[[Mapping[str, str]], str]) -> Expression:
    """
    For each class of multiclass models the number of rows in this role.

    A cell of the matrix of classes has no series before it has a row. So a class that was never predicted, or is never
    right, gets its 0 from the other sums, which know it.

    Args:
        role: The role.
        scope: Which rows count together.
        outcomes: Gives the outcomes that match, as PromQL.
    """
    labels = (*scope.labels, CLASS)

    def by_class(label: str, matchers: Mapping[str, str]) -> Expression:
        series = outcomes({TASK: "multiclass", **matchers})
        return _summed(f'label_replace({series}, "{CLASS}", "$1", "{label}", "(.*)")', labels)

    of_labels, of_predictions = by_class(ACTUAL, {}), by_class(PREDICTED, {})
    if role == "labels":
        return of_labels.or_else(of_predictions * 0)
    if role == "predictions":
        return of_predictions.or_else(of_labels * 0)
    return by_class(ACTUAL, {OUTCOME: "correct"}).or_else(of_labels.or_else(of_predictions) * 0)


def labels_of_total(name: str) -> tuple[str, ...]:
    """The Prometheus labels a total has beside those of its model and segment."""
    naming = catalog.Naming(("a", "b"), (1,))
    attributes = dict.fromkeys(
        attribute
        for total in catalog.TOTALS
        if total.name == name
        for cell in total.cells(naming, 4 if total.name == "outcomes" else 2)
        for attribute in cell
    )
    return (*((TASK,) if _shared(name) else ()), *(prometheus_label(attribute) for attribute in attributes))


def _shared(name: str) -> bool:
    """Whether a total is one of several tasks, so that the task has to be asked for."""
    return len({task for total in catalog.TOTALS if total.name == name for task in total.tasks}) > 1


# From totals to metrics

# Binary models have two classes only, named so by the encoder.
BINARY_CLASSES = ("negative", "positive")


def statistics(task: Task, source: Source, scope: Scope = Scope()) -> dict[str, Expression]:
    """The additive statistics of a task under the names that functions of the catalogue ask for."""
    found: dict[str, Expression] = {}
    for total in catalog.totals_of(task):
        matchers = {TASK: task} if _shared(total.name) else {}
        if len(total.statistics) == 1:
            k = (K,) if catalog.K in total.cells(catalog.Naming(ks=(1,)), 1)[0] else ()
            found[total.statistics[0]] = source.total(total.name, scope, matchers, k)
        elif total.statistics:
            found.update(_kinds(total, source, scope, matchers))
    if task == "binary":
        found["correct"] = found["tp"] + found["tn"]
        found["n"] = (found["tn"] + found["fp"]) + (found["fn"] + found["tp"])
    if task == "multiclass":
        found["n"] = source.total("outcomes", scope, {TASK: task})
        # Cells have no series before they have a row: without a single correct one there is none to sum up.
        found["correct"] = source.total("outcomes", scope, {TASK: task, OUTCOME: "correct"}).or_else(found["n"] * 0)
        correct, labels, predictions = (source.of_class(role, scope) for role in ROLES)
        unions: dict[frozenset[str], Expression] = {
            frozenset({"tp"}): correct,
            frozenset({"tp", "fn"}): labels,
            frozenset({"tp", "fp"}): predictions,
            frozenset({"fn"}): labels - correct,
            frozenset({"fp"}): predictions - correct,
        }
        found.update({kind: Statistic(frozenset({kind}), unions) for kind in ("tp", "fn", "fp")})
        found.update({"support": labels, "predicted": predictions})
    return found


def _kinds(total: TotalDefinition, source: Source, scope: Scope, matchers: Mapping[str, str]) -> dict[str, Statistic]:
    """The cells of a total by their statistic's name; several cells that share a label are one selector."""
    cells = [
        {prometheus_label(attribute): value for attribute, value in cell.items()}
        for cell in total.cells(catalog.Naming(classes=BINARY_CLASSES), len(total.statistics))
    ]
    pairs = sorted({pair for cell in cells for pair in cell.items()})
    unions: dict[frozenset[str], Expression] = {}
    for size in range(3):
        for chosen in combinations(pairs, size):
            of_cell = zip(total.statistics, cells, strict=True)
            kinds = frozenset(name for name, cell in of_cell if set(chosen) <= set(cell.items()))
            if kinds:
                unions.setdefault(kinds, source.total(total.name, scope, {**matchers, **dict(chosen)}))
    return {name: Statistic(frozenset({name}), unions) for name in total.statistics}


@dataclass(frozen=True)
class Quantity:
    """
    One value of a metric, or one of its bounds.

    Attributes:
        metric: The metric.
        suffix: ``.lower`` or ``.upper`` for a bound, else empty.
        task: The task it is for.
        average: ``macro`` or ``weighted`` for an average over classes, else empty.
        expression: Its value.
    """

    metric: MetricDefinition
    suffix: str
    task: Task
    average: str
    expression: Expression

    @cached_property
    def name(self) -> str:
        """The metric's name, with that of the bound."""
        return self.metric.name + self.suffix

    @cached_property
    def per_class(self) -> bool:
        """Whether each class of a model has one."""
        return CLASS in self.expression.labels


def is_function_of_totals(metric: MetricDefinition, task: Task) -> bool:
    """Whether the fleet's value follows from counters; else only each process knows its own."""
    if task not in metric.functions or metric.needs_rows(task):
        return False
    return set(catalog.arguments_of(metric.functions[task])) <= set(statistics(task, Counters("1h")))


def quantities(
    metric: MetricDefinition, task: Task, of: Mapping[str, Expression], *, bounds: bool = True
) -> Iterator[Quantity]:
    """
    Every value of a metric: itself, its averages and classes, its bounds.

    Args:
        metric: A metric for which `is_function_of_totals` holds.
        task: The task.
        of: What `statistics` gives.
        bounds: Whether bounds are wanted, where the metric has any.
    """
    function = metric.functions[task]
    yield from _variants(metric, "", task, function(**_wanted(function, of)), of)
    interval = metric.intervals.get(task)
    if bounds and interval is not None:
        for suffix, bound in zip(catalog.BOUNDS, interval(**_wanted(interval, of)), strict=True):
            yield from _variants(metric, suffix, task, bound, of)


def _wanted(function: catalog.Function, of: Mapping[str, Expression]) -> dict[str, Expression]:
    return {name: of[name] for name in catalog.arguments_of(function)}


def _variants(
    metric: MetricDefinition, suffix: str, task: Task, value: Expression, of: Mapping[str, Expression]
) -> Iterator[Quantity]:
    if metric.by.get(task) == "class":
        for average, function in catalog.AVERAGES.items():
            yield Quantity(metric, suffix, task, average, function(value, of["support"]))
    yield Quantity(metric, suffix, task, "", value)
