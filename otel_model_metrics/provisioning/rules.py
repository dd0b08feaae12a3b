"""
Recording rules: the quality of the fleet, kept by Prometheus.

Each window has a group of its own, whose rules Prometheus evaluates one after the other for one moment: first the sums
of the totals, then every metric from these sums. So a value and its bounds rest on the same rows.

Series are named ``ml_model:<metric>:<window>`` and are told apart by model and version, by segment where the metric is
one that segments have, and by ``ml_average``, ``ml_class`` or ``ml_k`` as inside the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition
from otel_model_metrics.prometheus_names import NAMINGS, Naming, prometheus_label, prometheus_name
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.expressions import CLASS, Expression, compare
from otel_model_metrics.provisioning.promql import (
    AVERAGE,
    METRIC,
    MODEL,
    SEGMENT,
    TASK,
    VERSION,
    Counters,
    Quantity,
    Recorded,
    Scope,
    recorded_name,
    seconds,
    selector,
)

Rule = dict[str, Any]
Group = dict[str, Any]

# What alerts need, whatever windows the user judges quality over.
WINDOWS = ("5m", "1h", "6h", "1d")

# For so long a gauge of a process is believed.
LATELY = "10m"

# In less there are not two samples of every process.
_SHORTEST = "1m"

# An error budget is for a month. Its sums are made of recorded ones: increase() over a month of counters is slow.
BUDGET_WINDOW = "30d"
BUDGET_STEP = "1h"

# Since when a version serves is looked up so far back, so closely.
FIRST_SEEN_WINDOW = "8d"
FIRST_SEEN_STEP = "10m"
# For so long a version counts as new.
NEW_FOR = "1d"

# Matches a version as a whole: neither one of its segments nor one of its classes.
NOT_A_PART = {SEGMENT[0]: "", CLASS: ""}

NEWEST, REPLACED, FIRST_SEEN, JUDGED = (
    f"ml_model:{name}" for name in ("version_newest", "version_replaced", "version_first_seen", "judged")
)


@dataclass(frozen=True)
class Settings:
    """
    What a user may choose for rules and alerts.

    Attributes:
        windows: Over which quality is compared with its objective; the shortest first, whatever order they come in.
        min_rows: Labelled rows in such a window below which no alert is raised.
        naming: ``otlp`` or ``scrape``: the way metrics come to Prometheus.
        namespace: What the Collector or exporter puts in front of each name.
        by: Prometheus labels that split a fleet beside model and version, e.g. ``deployment_environment_name``.
        runbooks: Where ``runbooks.md`` is to be read.
    """

    windows: tuple[str, ...] = ("1h", "6h")
    min_rows: int = 100
    naming: Naming = "otlp"
    namespace: str = ""
    by: tuple[str, ...] = ()
    runbooks: str = "https://example.org/otel-model-metrics/runbooks.md"

    def __post_init__(self) -> None:
        if not self.windows:
            raise ValueError("windows needs at least one duration, such as 1h.")
        for window in self.windows:
            if not seconds(_SHORTEST) <= seconds(window) < seconds(BUDGET_WINDOW):
                raise ValueError(f"A window must be at least {_SHORTEST} and below {BUDGET_WINDOW}, got {window!r}.")
        # 60m is 1h: equal lengths count once, spelled as in WINDOWS, for the spelling is in the names of series.
        chosen = {seconds(window): window for window in self.windows}
        chosen |= {seconds(window): window for window in WINDOWS if seconds(window) in chosen}
        object.__setattr__(self, "windows", tuple(window for _, window in sorted(chosen.items())))
        if self.min_rows < 1:
            raise ValueError(f"min_rows must be at least 1, got {self.min_rows}.")
        if self.naming not in NAMINGS:
            raise ValueError(f"naming must be one of {', '.join(NAMINGS)}, got {self.naming!r}.")
        for what, names in (("namespace", [self.namespace] if self.namespace else []), ("by", self.by)):
            for name in names:
                if not name.isidentifier() or not name.isascii():
                    raise ValueError(f"{what} must be a Prometheus name (letters, digits, _), got {name!r}.")
        for name in self.by:
            if name.startswith("ml_") or self.by.count(name) > 1:
                raise ValueError(f"by must name Prometheus labels that are not ours already, each once; got {name!r}.")

    @property
    def recorded_windows(self) -> tuple[str, ...]:
        """All windows that rules are made for, the shortest first."""
        return tuple(sorted({*self.windows, *WINDOWS}, key=seconds))

    @property
    def model(self) -> tuple[str, ...]:
        """The Prometheus labels that tell models apart."""
        return (MODEL, *self.by)

    @property
    def version(self) -> tuple[str, ...]:
        """The Prometheus labels that tell versions apart."""
        return (MODEL, VERSION, *self.by)

    def gauge(self, name: str, unit: str = "") -> str:
        """The Prometheus name of a gauge of ours."""
        return prometheus_name(catalog.NAMESPACE + name, unit, "gauge", self.naming, self.namespace)

    def objective(self, metric: MetricDefinition) -> Expression:
        """
        The objectives of a metric. Should processes of one version differ, the one that is easiest to meet.
        """
        labels = (*self.version, *variant_labels(metric))
        aggregation = "min" if metric.better == "higher" else "max"
        return Expression(f"{aggregation} by ({', '.join(labels)}) ({self.objectives(metric.name)})", labels)

    def objectives(self, metric: str) -> str:
        """The objectives of a metric that any process had lately."""
        return self.lately(selector(self.gauge(catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT), {METRIC: metric}))

    @staticmethod
    def lately(series: str) -> str:
        """Gauges that outlive a scrape that failed or a restart, so that an alert does not end and begin anew."""
        return f"last_over_time({series}[{LATELY}])"


def variant_labels(metric: MetricDefinition) -> tuple[str, ...]:
    """The Prometheus labels that tell the overall values of one version apart, and its objectives."""
    kinds = set(metric.by.values())
    return (*((AVERAGE,) if "class" in kinds else ()), *((promql.K,) if "k" in kinds else ()))


def recording_groups(settings: Settings) -> list[Group]:
    """The groups of recording rules, ready to be written as YAML."""
    groups = [_group(window, _rules_of_window(window, settings)) for window in settings.recorded_windows]
    groups.append(_group(BUDGET_WINDOW, _budget_rules(settings)))
    groups.append({"name": "ml_model:versions", "interval": "1m", "rules": list(_version_rules(settings))})
    return groups


def fleet_metrics() -> Iterator[tuple[MetricDefinition, catalog.Task]]:
    """Every metric and task of which the fleet's value follows from totals."""
    for metric in catalog.METRICS:
        for task in metric.functions:
            if promql.is_function_of_totals(metric, task):
                yield metric, task


def distinct(metrics: Iterable[tuple[MetricDefinition, catalog.Task]]) -> list[MetricDefinition]:
    """The metrics without their tasks, each once."""
    return list({metric.name: metric for metric, _ in metrics}.values())


def _group(window: str, rules: Iterator[Rule]) -> Group:
    # A sample is looked up for 5 minutes, so no group may be evaluated much more rarely than that.
    return {"name": f"ml_model:{window}", "interval": "1m" if seconds(window) <= 3600 else "2m", "rules": list(rules)}


def _rule(name: str, expression: Expression | str, **labels: str) -> Rule:
    rule: Rule = {"record": name, "expr": str(expression)}
    kept = {label: value for label, value in labels.items() if value}
    return {**rule, "labels": kept} if kept else rule


def _rules_of_window(window: str, settings: Settings) -> Iterator[Rule]:
    live = Counters(window, settings.naming, settings.namespace)
    with_segments = Scope(segments=True, by=settings.by)
    for name in dict.fromkeys(total.name for total in catalog.TOTALS):
        total = live.total(name, with_segments, {}, promql.labels_of_total(name))
        yield _rule(recorded_name(name, window), total)
    for count in catalog.COUNTS:
        counter = promql.counter_name(count.name, settings.naming, settings.namespace)
        labels = (*settings.version, prometheus_label(count.attribute))
        yield _rule(recorded_name(count.name, window), f"sum by ({', '.join(labels)}) (increase({counter}[{window}]))")
    yield from _class_rules(window, settings, segments=True)
    for metric, task in fleet_metrics():
        yield from _metric_rules(metric, task, window, settings)


def _class_rules(window: str, settings: Settings, segments: bool) -> Iterator[Rule]:
    recorded, scope = Recorded(window), Scope(segments=segments, by=settings.by)
    for role in promql.ROLES:
        of_class = promql.sum_of_class(role, scope, lambda match: recorded.series("outcomes", scope, match))
        yield _rule(recorded_name(f"class_{role}", window), of_class)


def _metric_rules(metric: MetricDefinition, task: catalog.Task, window: str, settings: Settings) -> Iterator[Rule]:
    overall, segments = (
        promql.statistics(task, Recorded(window), Scope(segments=which, by=settings.by)) for which in (False, True)
    )
    for quantity in promql.quantities(metric, task, segments if metric.in_segments else overall):
        if not quantity.per_class:
            yield _quantity_rule(quantity, window)
    for quantity in promql.quantities(metric, task, overall):
        if quantity.per_class:  # as inside the process: too many series to have them for each segment
            yield _quantity_rule(quantity, window)


def _quantity_rule(quantity: Quantity, window: str) -> Rule:
    labels = {TASK: quantity.task, AVERAGE: quantity.average}
    return _rule(recorded_name(quantity.name, window), quantity.expression, **labels)


def _budget_rules(settings: Settings) -> Iterator[Rule]:
    """The share of the errors allowed to the rows of a version, over a month, that have not been made."""
    scope, recorded = Scope(by=settings.by), Recorded(BUDGET_WINDOW)
    metrics = [(metric, task) for metric, task in fleet_metrics() if metric.events]
    needed = {name for metric, task in metrics for name in catalog.arguments_of(metric.functions[task])}
    totals = [total for total in catalog.TOTALS if total.name == "outcomes" or needed & set(total.statistics)]
    for name in dict.fromkeys(total.name for total in totals):
        hourly = Recorded(BUDGET_STEP).series(name, scope, {})
        yield _rule(recorded_name(name, BUDGET_WINDOW), f"sum_over_time({hourly}[{BUDGET_WINDOW}:{BUDGET_STEP}])")
    yield from _class_rules(BUDGET_WINDOW, settings, segments=False)
    for metric, task in metrics:
        for quantity in promql.quantities(metric, task, promql.statistics(task, recorded, scope), bounds=False):
            if not quantity.per_class:
                yield _quantity_rule(quantity, BUDGET_WINDOW)
    for metric in distinct(metrics):
        objective = settings.objective(metric)
        value = Expression(recorded_name(metric.name, BUDGET_WINDOW), (*objective.labels, TASK))
        left = 1 - (1 - value) / compare(1 - objective, ">", 0)  # an objective of 1 allows no error
        yield _rule(recorded_name("error_budget_left", BUDGET_WINDOW), left, **{METRIC: metric.name})


def _version_rules(settings: Settings) -> Iterator[Rule]:
    """Which version of a model is new, which one it replaced, and by which metrics they are judged."""
    model, version = ", ".join(settings.model), ", ".join(settings.version)
    rows = selector(recorded_name("window.rows", "1h"), {SEGMENT[0]: ""})
    yield _rule(
        FIRST_SEEN,
        f"min by ({version}) (min_over_time(timestamp({rows} > 0)[{FIRST_SEEN_WINDOW}:{FIRST_SEEN_STEP}]))",
    )
    # A version that had no rows for a day is neither: it was rolled back, or replaced long ago.
    lately = selector(recorded_name("window.rows", "1d"), {SEGMENT[0]: ""})
    serving = f"({FIRST_SEEN} and on ({version}) {lately} > 0)"
    yield _rule(NEWEST, f"topk by ({model}) (1, {serving}) > time() - {seconds(NEW_FOR)}")
    yield _rule(REPLACED, f"topk by ({model}) (1, {serving} < on ({model}) group_left () max by ({model}) ({serving}))")
    for metric in distinct(fleet_metrics()):
        if metric.always:
            continue
        labels = ", ".join((*settings.version, *variant_labels(metric)))
        judged = f"group by ({labels}) ({settings.objectives(metric.name)})"
        if metric.headline:
            value = selector(recorded_name(metric.name, "1d"), NOT_A_PART)
            judged += f" or group by ({labels}) ({value})"
        yield _rule(JUDGED, judged, **{METRIC: metric.name})
