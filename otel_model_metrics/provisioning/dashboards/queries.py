"""
PromQL of the panels: what the fleet says about the models that a dashboard's variables choose.

Values come from totals over ``$window``, so they are those of all processes together, and no recording rule is needed.
Only what no total tells is asked of the gauges, each of which is one process' own.

VictoriaMetrics refuses queries of more than 16 kB, so what would be longer is several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, reduce

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition, Task
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.alerts import notably_worse
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.expressions import CLASS, Expression, compare
from otel_model_metrics.provisioning.promql import (
    AVERAGE,
    METRIC,
    MODEL,
    SEGMENT,
    VERSION,
    Counters,
    Scope,
    counter_name,
    selector,
)

# Variables of the dashboards.
WINDOW, MIN_ROWS = "$window", "$min_rows"
VARIABLES = {MODEL: "model", VERSION: "version", SEGMENT[0]: "segment_name", SEGMENT[1]: "segment_value"}

# Models that have been silent for longer are not missed any more.
KNOWN_FOR = "1d"


def variable_of(label: str) -> str:
    """The variable that chooses among the values of a Prometheus label."""
    return VARIABLES.get(label, label)


def chosen(labels: Iterable[str]) -> tuple[str, ...]:
    """
    The matchers by which variables choose among the values of these Prometheus labels.

    Grafana is asked for a regular expression, because it writes a single value as it is where nobody asks; and between
    backticks, where no character is special. So a model may be called ``c++``.

    >>> chosen(["ml_model_name", "deployment_environment_name"])
    ('ml_model_name=~`${model:regex}`', 'deployment_environment_name=~`${deployment_environment_name:regex}`')
    """
    return tuple(f"{label}=~`${{{variable_of(label)}:regex}}`" for label in labels)


# For each task the metric that stands for it.
HEADLINES: tuple[tuple[MetricDefinition, Task], ...] = tuple(
    (metric, task) for task in catalog.TASKS for metric in catalog.metrics_of(task) if metric.headline
)


def main_names(*, ratio: bool) -> str:
    """
    The names of the metrics that stand for their tasks: those that are ratios, or the others. A model has one of them.

    >>> main_names(ratio=False)
    'mae or mrr'
    """
    return " or ".join(dict.fromkeys(metric.name for metric, _ in HEADLINES if is_ratio(metric) == ratio))


def is_ratio(metric: MetricDefinition) -> bool:
    """Whether it is read as a percentage."""
    return metric.unit == "{ratio}"


@dataclass(frozen=True)
class Fleet:
    """
    All processes together.

    Attributes:
        choice: What the user chose.
        versions: Whether versions are told apart; else those that are chosen count together.
        segments: Whether the rows of each segment count, for itself; else all rows.
        matched: The Prometheus labels by whose variables rows are chosen. Where a query is long, they are fewer.
        offset: How long ago the window ended.
    """

    choice: Choice
    versions: bool = True
    segments: bool = False
    matched: tuple[str, ...] = (MODEL, VERSION)
    offset: str = ""

    @property
    def scope(self) -> Scope:
        """Which rows count together."""
        settings = self.choice.settings
        by = (*self.matched, *(settings.by if self.matched else ()))
        matchers = chosen(by) or self.choice.matchers
        if self.segments and SEGMENT[0] not in by:
            matchers = (*matchers, f'{SEGMENT[0]}!=""')
        return Scope(self.segments, settings.by if self.versions else (), matchers, self.versions)

    @property
    def labels(self) -> tuple[str, ...]:
        """The Prometheus labels that tell the results apart."""
        return self.scope.labels

    def total(self, name: str, by: Iterable[str] = (), matchers: Mapping[str, str] | None = None) -> Expression:
        """What a total grew by over the window."""
        return self._source.total(name, self.scope, matchers or {}, tuple(by))

    def rows(self) -> Expression:
        """Labelled rows in the window."""
        return self.total("outcomes")

    def predictions(self) -> Expression:
        """Predictions in the window, with or without a label."""
        return self.total("predictions")

    def value(self, metric: MetricDefinition, task: Task, suffix: str = "", average: str = "macro") -> Expression:
        """A metric over the window, or one of its bounds; of multiclass models an average, or each class."""
        found = {(one.suffix, one.average): one.expression for one in _quantities(self, metric.name, task)}
        return found.get((suffix, average)) or found[suffix, ""]

    def of_any_task(self, metric: MetricDefinition) -> Expression:
        """A metric over the window, whatever the task of the model; of multiclass models its average."""
        tasks = [task for task in metric.functions if promql.is_function_of_totals(metric, task)]
        return either(self.value(metric, task) for task in tasks)

    def of_class(self, metric: MetricDefinition) -> Expression:
        """A metric over the window for each class of multiclass models."""
        return self.value(metric, "multiclass", average="")

    def of_role(self, role: promql.Role) -> Expression:
        """Rows of each class of multiclass models, as labels, as predictions, or as both."""
        return self._source.of_class(role, self.scope)

    def headline(self, suffix: str = "", *, ratio: bool, named: bool = False) -> Expression:
        """
        The metrics that stand for their tasks: those that are ratios, or the others. A model has one of them.

        Args:
            suffix: Empty, or that of a bound.
            ratio: Which ones.
            named: Whether ``ml_metric`` says which one it is.
        """
        values = [(metric, self.value(metric, task, suffix)) for metric, task in HEADLINES if is_ratio(metric) == ratio]
        if not named:
            return either(value for _, value in values)
        return either(
            Expression(f'label_replace({value}, "{METRIC}", "{metric.name}", "", "")', (*value.labels, METRIC))
            for metric, value in values
        )

    def change(self, reference: Fleet) -> Expression:
        """
        By what share the headlines are better (above 0) or worse than those of a reference, which may tell less apart.
        """
        return either(
            better_by(metric, self.value(metric, task), reference.value(metric, task)) for metric, task in HEADLINES
        )

    def worse(self, reference: Fleet) -> Expression:
        """Where a headline is notably worse than that of a reference, as an alert asks for beside certainty."""
        return either(
            compare(*notably_worse(metric, self.value(metric, task), reference.value(metric, task)))
            for metric, task in HEADLINES
        )

    def margins(self, task: Task) -> Expression:
        """
        By what share metrics are better (above 0) or worse than their objectives; too few rows are not judged.
        """
        found = []
        for direction in ("higher", "lower"):
            values = [
                self._named(metric, task)
                for metric in catalog.metrics_of(task)
                if _sign(metric) == direction and promql.is_function_of_totals(metric, task)
            ]
            if values:
                found.append(self._margin(direction, either(values)))
        return self.judged(either(found))

    def margins_of_processes(self) -> Expression:
        """
        The same for metrics that are no function of totals: that of the best process.
        """
        found = []
        settings = self.choice.settings
        of_processes = [
            metric
            for metric in catalog.METRICS
            if metric.better and not any(promql.is_function_of_totals(metric, task) for task in metric.functions)
        ]
        for direction, best in (("higher", "max"), ("lower", "min")):
            names = {settings.gauge(one.name, one.unit): one for one in of_processes if _sign(one) == direction}
            more = (f'__name__=~"{"|".join(names)}"', *self.scope.matchers)
            gauges = selector("", {SEGMENT[0]: "", CLASS: ""}, more)
            prefix = settings.gauge("") + "_"
            named = f'label_replace({gauges}, "{METRIC}", "$1", "__name__", "{prefix}(.+)")'
            value = Expression(f"{best} by ({', '.join(self._objective_labels)}) ({named})", self._objective_labels)
            found.append(self._margin(direction, value))
        return self.judged(either(found))

    def judged(self, value: Expression) -> Expression:
        """What rests on enough rows."""
        return value.where(self.enough(), on=self.labels)

    def enough(self) -> Expression:
        """Labelled rows in the window, where they are enough to judge by."""
        return compare(self.rows(), ">=", Expression(MIN_ROWS))

    def objectives(self, direction: str = "higher") -> Expression:
        """The objectives. Should processes differ, the one that is easiest to meet."""
        settings = self.choice.settings
        gauge = settings.gauge(catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT)
        of = selector(gauge, None, chosen((MODEL, VERSION, *settings.by)))
        easiest = "min" if direction == "higher" else "max"
        return Expression(f"{easiest} by ({', '.join(self._objective_labels)}) ({of})", self._objective_labels)

    def objective(self, metric: MetricDefinition, task: Task) -> Expression:
        """The objectives of one metric: for each cut-off, or for the average over classes."""
        best = "min" if _sign(metric) == "higher" else "max"
        gauge = self.choice.settings.gauge(catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT)
        average = {AVERAGE: "macro" if metric.by.get(task) == "class" else ""} if "class" in metric.by.values() else {}
        of = selector(gauge, {METRIC: metric.name, **average}, self.scope.matchers)
        labels = (*self.labels, *((promql.K,) if metric.by.get(task) == "k" else ()))
        return Expression(f"{best} by ({', '.join(labels)}) ({of})", labels)

    def gauge(
        self, name: str, aggregation: str, by: Iterable[str] = (), matchers: Mapping[str, str] | None = None
    ) -> Expression:
        """A gauge of the processes; ``min`` and ``max`` are the only honest aggregations of a value."""
        labels = (*self.labels, *by)
        one = self.each(name, matchers)
        return Expression(f"{aggregation} by ({', '.join(labels)}) ({one})", labels)

    def each(self, name: str, matchers: Mapping[str, str] | None = None) -> Expression:
        """A gauge of each process, as it is."""
        whole = {} if self.segments else {SEGMENT[0]: ""}
        series = selector(
            self.choice.settings.gauge(name, _UNITS[name]), {**whole, **(matchers or {})}, self.scope.matchers
        )
        return Expression(series, self.labels)

    def rate(self, name: str, by: Iterable[str] = (), more: Iterable[str] = ()) -> Expression:
        """How much of a total comes a second; `more` are further matchers."""
        settings, labels = self.choice.settings, (*self.labels, *by)
        scope = {} if name in _UNSEGMENTED else self.scope.matched({})
        matchers = (*self.scope.matchers, *more)
        counter = selector(counter_name(name, settings.naming, settings.namespace), scope, matchers)
        return Expression(f"sum by ({', '.join(labels)}) (rate({counter}[$__rate_interval]))", labels)

    def count(self, name: str, by: Iterable[str] = (), matchers: Mapping[str, str] | None = None) -> Expression:
        """What one of the counts grew by over the window; these are not split by segment."""
        settings, labels = self.choice.settings, (*self.labels, *by)
        counter = selector(counter_name(name, settings.naming, settings.namespace), matchers, self.scope.matchers)
        return Expression(f"sum by ({', '.join(labels)}) (increase({counter}[{WINDOW}]))", labels)

    def known(self) -> Expression:
        """1 for everything that made predictions lately, also if it is silent now."""
        lately = f"last_over_time({self._predictions}[{KNOWN_FOR}])"
        return Expression(f"group by ({', '.join(self.labels)}) ({lately})", self.labels)

    def evidence(self) -> Expression:
        """
        What quality rests on: 0 enough rows, 1 few rows, 2 predictions without labels, 3 no predictions, or no process
        that reports any more.
        """
        known, made, rows = self.known(), self.predictions(), self.rows()
        here = Expression(f"group by ({', '.join(self.labels)}) ({self._predictions})", self.labels)
        silent = (known * 3).unless(compare(made, ">", 0).where(here))
        unlabelled = (known * 2).unless(compare(rows, ">", 0))
        few = known.unless(self.enough())
        return either([silent, unlabelled, few, known * 0])

    def coverage(self) -> Expression:
        """The share of predictions that has its label: of those old enough where labels come late, else of all."""
        return self.gauge("label.coverage", "max").or_else(
            Expression(f"clamp_max({self.rows() / compare(self.predictions(), '>', 0)}, 1)", self.labels)
        )

    @property
    def _predictions(self) -> str:
        """The series that count predictions."""
        settings = self.choice.settings
        counter = counter_name("predictions", settings.naming, settings.namespace)
        return selector(counter, self.scope.matched({}), self.scope.matchers)

    @property
    def _source(self) -> Counters:
        settings = self.choice.settings
        return Counters(WINDOW, settings.naming, settings.namespace, self.offset)

    @property
    def _objective_labels(self) -> tuple[str, ...]:
        return (*self.labels, METRIC, AVERAGE, promql.K)

    def _named(self, metric: MetricDefinition, task: Task) -> Expression:
        """A metric with the Prometheus labels of its objective; of a bias its size."""
        text = str(self.value(metric, task))
        if metric.better == "zero":
            text = f"abs({text})"
        text = f'label_replace({text}, "{METRIC}", "{metric.name}", "", "")'
        if metric.by.get(task) == "class":
            text = f'label_replace({text}, "{AVERAGE}", "macro", "", "")'
        return Expression(text, self._objective_labels)

    def _margin(self, direction: str, value: Expression) -> Expression:
        objective, on = self.objectives(direction), f"on ({', '.join(self._objective_labels)})"
        one, other = (value, objective) if direction == "higher" else (objective, value)
        text = f"(({one}) - {on} ({other})) / {on} abs({objective})"
        return Expression(f"({text})", self._objective_labels)


_UNITS = {
    **{metric.name: metric.unit for metric in catalog.METRICS},
    **{health.name: health.unit for health in catalog.HEALTH},
}
_UNSEGMENTED = {count.name for count in catalog.COUNTS}


@cache
def _quantities(fleet: Fleet, metric: str, task: Task) -> list[promql.Quantity]:
    return list(promql.quantities(catalog.BY_NAME[metric], task, _statistics(fleet, task)))


@cache
def _statistics(fleet: Fleet, task: Task) -> dict[str, Expression]:
    return promql.statistics(task, fleet._source, fleet.scope)


def either(expressions: Iterable[Expression]) -> Expression:
    """The series of all of them; where two have the same labels, that of the first."""
    return reduce(Expression.or_else, expressions)


def better_by(metric: MetricDefinition, value: Expression, reference: Expression) -> Expression:
    """By what share a value is better than another one: above 0 if it is."""
    share = value / compare(reference, "!=", 0)
    return share - 1 if metric.better == "higher" else 1 - share


def _sign(metric: MetricDefinition) -> str:
    """Whether more is better; a bias is better the smaller its size is."""
    return "lower" if metric.better == "zero" else metric.better
