"""
Alert rules: when to wake somebody up, and when not to.

They compare what `rules.py` records with the objectives set in code, so no level is edited in YAML. Little data keeps
them quiet: what is compared is a bound of the 95 % interval, not the value, and there is a least number of rows.

An alert is a function below that gives its rules, and a section of ``grafana/runbooks.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition
from otel_model_metrics.prometheus_names import prometheus_label
from otel_model_metrics.provisioning import messages
from otel_model_metrics.provisioning.expressions import Expression, compare
from otel_model_metrics.provisioning.promql import (
    METRIC,
    SEGMENT,
    TASK,
    VERSION,
    counter_name,
    is_function_of_totals,
    recorded_name,
    seconds,
    selector,
)
from otel_model_metrics.provisioning.rules import (
    JUDGED,
    NEWEST,
    NOT_A_PART,
    REPLACED,
    Group,
    Settings,
    distinct,
    fleet_metrics,
    variant_labels,
)

Severity = Literal["critical", "warning"]

# Burn of the error budget: errors that spend 2 % of a month's budget in an hour, or 5 % in six hours. But 14.4 times a
# budget of 10 % is more errors than there can be; so quality below this share of its objective is always bad enough.
FAST_BURN, FAST_SHARE = 14.4, 0.5
SLOW_BURN, SLOW_SHARE = 6.0, 0.75

# Alerts look every minute, and at many segments, so what is certain by 95 % happens by chance every few hours. They ask
# for 99.9 %: intervals are widened by the ratio of the two quantiles of the normal distribution.
STRICTNESS = 1.68
# A difference may be certain and still not matter, or be that of day and night: there must also be a quarter more
# errors, for a share of rows, or else a value that is worse by a twentieth.
MARGIN_OF_ERRORS, MARGIN = 0.25, 0.05
SEGMENT_WINDOW, VERSION_WINDOW = "6h", "1d"

# Alerts on quality go on for so long, because a value at the edge comes and goes.
LINGERING = "30m"

# None came within the window, though usually so many do.
MISSED = 20
PREDICTION_WINDOWS, LABEL_WINDOWS = ("5m", "1h"), ("1h",)

REASON = prometheus_label(catalog.REJECT_REASON)
REJECTED_SHARE, REJECTED_ROWS = 0.01, 10
OVERFLOW_SHARE = 0.05

# The counters of one process restart rarely; where two writers take turns they seem to at every second sample.
RESET_WINDOW, RESETS, RESET_SHARE = "15m", 4, 0.15


@dataclass(frozen=True)
class Alert:
    """
    One alert rule.

    Attributes:
        name: In CamelCase; the section of the runbook has it as its title.
        expression: Has a value for whom it fires.
        lasting: For how long it must have one.
        severity: ``critical`` wakes somebody up, ``warning`` waits for the morning.
        summary, description: What is said, as a template.
        labels: Further labels.
        lingering: For how long it goes on when that is over, so that a value near the edge is one alert and not many.
    """

    name: str
    expression: Expression
    lasting: str
    severity: Severity
    summary: str
    description: str
    labels: dict[str, str] = field(default_factory=dict)
    lingering: str = ""

    def rule(self, runbooks: str) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": str(self.expression),
            "for": self.lasting,
            **({"keep_firing_for": self.lingering} if self.lingering else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": runbook_url(runbooks, self.name),
            },
        }


def runbook_url(runbooks: str, alert: str) -> str:
    """Where to read what to do about an alert."""
    return f"{runbooks}#{alert.lower()}"


def alert_groups(settings: Settings) -> list[Group]:
    """The groups of alert rules, ready to be written as YAML."""
    return [
        {
            "name": f"ml_model:{name}",
            "interval": "1m",
            "rules": [alert.rule(settings.runbooks) for family in families for alert in family(settings)],
        }
        for name, families in FAMILIES.items()
    ]


@dataclass(frozen=True)
class Sides:
    """One side of a comparison: a value and its 95 % bounds."""

    value: Expression
    lower: Expression
    upper: Expression


# Quality and its objective


def quality_below_objective(settings: Settings) -> Iterator[Alert]:
    """The interval of the value, at 99.9 %, is beyond the objective: chance does not explain it."""
    for place, window in enumerate(settings.windows):
        for metric in bounded_metrics():
            value = _of_version(metric, "", window, settings)
            missed = _missed(metric, window, settings)
            name, model = messages.metric_name(metric), messages.model(settings)
            objective = messages.objective(metric, settings)
            yield Alert(
                "ModelQualityBelowObjective",
                all_of(value, missed, _enough_rows(window, settings)),
                "15m" if place else "5m",
                "warning" if place else "critical",
                f"{name} of {model} is {messages.value(metric)} over {window}, its objective is {objective}",
                f"Over the last {messages.spoken(window)} {name} of {model} was {messages.value(metric)} (95 % bounds "
                f"{messages.bounds(metric, window, settings)}) in {messages.rows(window, settings)} of all its "
                f"processes. Its objective is {objective}.",
                {METRIC: metric.name, "window": window},
                lingering=LINGERING,
            )


def _missed(metric: MetricDefinition, window: str, settings: Settings) -> Expression:
    objective = settings.objective(metric)
    low, high = strict(Sides(*(_of_version(metric, suffix, window, settings) for suffix in ("", *catalog.BOUNDS))))
    too_low, too_high = compare(high, "<", objective), compare(low, ">", objective)
    if metric.better == "zero":  # a bias, to either side
        return too_high.or_else(compare(high, "<", objective * -1))
    return too_low if metric.better == "higher" else too_high


def strict(sides: Sides) -> tuple[Expression, Expression]:
    """The bounds of the 99.9 % interval."""
    return (
        sides.value - STRICTNESS * (sides.value - sides.lower),
        sides.value + STRICTNESS * (sides.upper - sides.value),
    )


def objective_missed_everywhere(settings: Settings) -> Iterator[Alert]:
    """For metrics whose value or bounds are not known of the fleet: even the best process misses the objective."""
    for metric in unbounded_metrics():
        objective = settings.objective(metric)
        best, sign = ("max", "<") if metric.better == "higher" else ("min", ">")
        gauge = settings.lately(selector(settings.gauge(metric.name, metric.unit), NOT_A_PART))
        value = Expression(f"{best} by ({', '.join(objective.labels)}) ({gauge})", objective.labels)
        gauge = settings.lately(selector(settings.gauge("window.rows", "{row}"), {SEGMENT[0]: ""}))
        rows = Expression(f"sum by ({', '.join(settings.version)}) ({gauge})", settings.version)
        name, model, level = (
            messages.metric_name(metric),
            messages.model(settings),
            messages.objective(metric, settings),
        )
        shown_rows = messages.looked_up(
            f"sum({settings.gauge('window.rows', '{row}')}{messages.same(settings.version, **{SEGMENT[0]: ''})})",
            settings.version,
            messages.COUNT,
        )
        yield Alert(
            "ModelObjectiveMissedEverywhere",
            all_of(compare(value, sign, objective), compare(rows, ">=", settings.min_rows)),
            "30m",
            "warning",
            f"{name} of {model} is {messages.value(metric)} at best, its objective is {level}",
            f"For 30 minutes no process has reached the objective of {level} for {name} of {model}: the best one has "
            f"{messages.value(metric)}. There are {shown_rows} labelled rows in the windows of all processes.",
            {METRIC: metric.name},
        )


@dataclass(frozen=True)
class Burn:
    """A speed at which an error budget is used up, judged over two windows: the short one says that it goes on."""

    name: str
    factor: float
    share: float
    windows: tuple[str, str]
    lasting: str
    severity: Severity


BURNS = (
    Burn("ModelErrorBudgetFastBurn", FAST_BURN, FAST_SHARE, ("1h", "5m"), "2m", "critical"),
    Burn("ModelErrorBudgetSlowBurn", SLOW_BURN, SLOW_SHARE, ("6h", "1h"), "15m", "warning"),
)


def error_budget_burns(settings: Settings) -> Iterator[Alert]:
    """Errors come so fast that those which the objective allows for a month are used up in days."""
    for burn in BURNS:
        long, short = burn.windows
        for metric in bounded_metrics():
            if not metric.events:
                continue
            objective = settings.objective(metric)
            level = burn_level(objective, burn.factor, burn.share)
            name, model = messages.metric_name(metric), messages.model(settings)
            allowed, speed = messages.objective(metric, settings), messages.burn(metric, long, settings)
            yield Alert(
                burn.name,
                all_of(
                    _of_version(metric, "", long, settings),
                    compare(_of_version(metric, catalog.UPPER, long, settings), "<", level),
                    compare(_of_version(metric, "", short, settings), "<", level),
                    _enough_rows(long, settings),
                ),
                burn.lasting,
                burn.severity,
                f"{name} of {model} is {messages.value(metric)} over {long}: errors come {speed} times as fast as its "
                f"objective of {allowed} allows",
                f"Over the last {messages.spoken(long)} {name} of {model} was {messages.value(metric)} (95 % bounds "
                f"{messages.bounds(metric, long, settings)}) in {messages.rows(long, settings)} of all its processes, "
                f"and {messages.recorded(metric, '', short, settings)} over the last {messages.spoken(short)}. Its "
                f"objective is {allowed}: errors come {speed} times as fast as that allows.",
                {METRIC: metric.name, "window": long},
                lingering=LINGERING,
            )


def burn_level(objective: Expression, factor: float, share: float) -> Expression:
    """The value below which errors come `factor` times as fast as the objective allows, or `share` of the objective."""
    burning, capped = 1 - factor * (1 - objective), share * objective
    return compare(burning, ">", capped).or_else(capped)


# Comparisons


def segment_worse(settings: Settings) -> Iterator[Alert]:
    """A segment is worse than its model as a whole, certainly and notably."""
    window = SEGMENT_WINDOW
    for metric in compared_metrics():
        if not metric.in_segments:
            continue
        worse = _worse(
            metric,
            Sides(*(_of_segment(metric, suffix, window, settings) for suffix in ("", *catalog.BOUNDS))),
            Sides(*(_of_version(metric, suffix, window, settings) for suffix in ("", *catalog.BOUNDS))),
        )
        rows = Expression(_segments("window.rows", window), (*settings.version, TASK, *SEGMENT))
        name, model = messages.metric_name(metric), messages.model(settings)
        segment = " ".join(messages.label(label) for label in SEGMENT)
        overall = messages.recorded(metric, "", window, settings)
        yield Alert(
            "ModelSegmentWorse",
            all_of(worse, compare(rows, ">=", settings.min_rows), _judged(metric, settings)),
            "15m",
            "warning",
            f"{name} of {model} is {messages.value(metric)} for {segment}, {overall} over all",
            f"Over the last {messages.spoken(window)} {name} of {model} was {messages.value(metric)} for the segment "
            f"{segment} ({messages.rows(window, settings, of_segment=True)}) and {overall} over all "
            f"({messages.rows(window, settings)}). Chance does not explain it (99.9 %). The objective is "
            f"{messages.objective(metric, settings)}.",
            {METRIC: metric.name, "window": window},
            lingering=LINGERING,
        )


def version_worse(settings: Settings) -> Iterator[Alert]:
    """A version that is new is worse than the one it replaced, certainly and notably."""
    window = VERSION_WINDOW
    for metric in compared_metrics():
        labels = (*settings.model, *variant_labels(metric))
        values = [_of_version(metric, suffix, window, settings) for suffix in ("", *catalog.BOUNDS)]
        worse = _worse(metric, Sides(*values), Sides(*(_of_replaced(value, settings) for value in values)))
        serving = compare(_recorded("window.rows", "1h", (*settings.version, TASK)), ">", 0)
        name, model = messages.metric_name(metric), messages.model(settings)
        query = recorded_name(metric.name, window) + messages.same(labels, **NOT_A_PART)
        query = f"{query} and on ({', '.join(settings.version)}) {REPLACED}"
        old = messages.looked_up(query, labels, f'label "{VERSION}"')
        old_value = messages.looked_up(query, labels, f"value | {messages.shown_as(metric)}")
        yield Alert(
            "ModelVersionWorse",
            all_of(
                worse,
                Expression(NEWEST, settings.version),
                _enough_rows(window, settings),
                serving,
                _judged(metric, settings),
            ),
            "10m",
            "warning",
            f"{name} of the new version {model} is {messages.value(metric)}, that of {old} was {old_value}",
            f"Since it serves, {name} of {model} is {messages.value(metric)} in {messages.rows(window, settings)}; "
            f"version {old}, which it replaced, had {old_value}. Chance does not explain it (99.9 %). The objective is "
            f"{messages.objective(metric, settings)}.",
            {METRIC: metric.name, "window": window},
            lingering=LINGERING,
        )


def _of_replaced(value: Expression, settings: Settings) -> Expression:
    """The value of the replaced version, without its version: what the other one of the same model is compared with."""
    labels = tuple(label for label in value.labels if label != VERSION)
    return Expression(f"sum by ({', '.join(labels)}) ({all_of(value, Expression(REPLACED, settings.version))})", labels)


def _worse(metric: MetricDefinition, ours: Sides, theirs: Sides) -> Expression:
    """
    Our values where they are worse than theirs, by more than chance and by more than the margin.

    The interval of a difference follows from the intervals of its sides, each of which adds the half that points at the
    other one.

    Source: Newcombe (1998), Statistics in Medicine 17, 873-890, method 10, for two proportions; Zou and Donner (2008),
        Statistics in Medicine 27, 1693-1702, for any two values that have intervals.
    """
    certain, notable = (compare(*sides) for sides in tests_of_worse(metric, ours, theirs))
    return ours.value.where(certain).where(notable)


Comparison = tuple[Expression, Literal["<", ">"], Expression]


def tests_of_worse(metric: MetricDefinition, ours: Sides, theirs: Sides) -> tuple[Comparison, Comparison]:
    """What holds if a difference is certain, and what if it is notable; see `_worse`."""
    if metric.better == "higher":
        gap = theirs.value - ours.value
        chance = (ours.upper - ours.value) ** 2 + (theirs.value - theirs.lower) ** 2
    else:
        gap = ours.value - theirs.value
        chance = (ours.value - ours.lower) ** 2 + (theirs.upper - theirs.value) ** 2
    certain = STRICTNESS * Expression(f"sqrt({chance})", chance.labels)
    return (gap, ">", certain), notably_worse(metric, ours.value, theirs.value)


def notably_worse(metric: MetricDefinition, ours: Expression, theirs: Expression) -> Comparison:
    """What holds if our value is worse than theirs by more than the margin, whether by chance or not."""
    if metric.better != "higher":
        return ours, ">", theirs * (1 + MARGIN)
    if metric.unit == "{ratio}":
        return ours, "<", 1 - (1 + MARGIN_OF_ERRORS) * (1 - theirs)
    return ours, "<", theirs * (1 - MARGIN)


# What comes in


def predictions_stopped(settings: Settings) -> Iterator[Alert]:
    """No predictions come, though at this time there usually are some."""
    model = messages.model(settings, version=False)
    yield Alert(
        "ModelPredictionsStopped",
        _stopped("predictions", PREDICTION_WINDOWS, settings),
        "5m",
        "critical",
        f"{model} makes no predictions any more",
        f"No process of {model} reports predictions, though at this time there usually are "
        f"{messages.VALUE_AS_COUNT} within {' or '.join(PREDICTION_WINDOWS)}.",
    )


def labels_stopped(settings: Settings) -> Iterator[Alert]:
    """Predictions come, but not their labels: from now on quality is not known."""
    flowing = compare(per_model("predictions", "1h", settings), ">=", MISSED)
    model = messages.model(settings, version=False)
    made = messages.total("predictions", "1h", settings.model, **{SEGMENT[0]: ""})
    yield Alert(
        "ModelLabelsStopped",
        all_of(_stopped("outcomes", LABEL_WINDOWS, settings), flowing),
        "15m",
        "warning",
        f"{model} gets no labels any more",
        f"In the last hour {model} made {made} predictions and got no label, though at this time there usually are "
        f"{messages.VALUE_AS_COUNT} an hour. Its quality is not known.",
    )


def _stopped(what: str, windows: tuple[str, ...], settings: Settings) -> Expression:
    """
    How many usually come, for models that got none within a window although they got some within two days.

    Usually: as many as at this time a week ago; if that is not known, a day ago; if neither is, on average over the
    day. So a quiet night or weekend is no alarm, nor is the time between labels that come once a day.
    """
    missing: list[Expression] = []
    for window in windows:
        came = compare(per_model(what, window, settings), ">", 0)
        missing.append(compare(usual(what, window, settings), ">=", MISSED).unless(came))
    either = missing[0]
    for other in missing[1:]:
        either = either.or_else(other)
    return either.where(lately(what, settings))


def usual(what: str, window: str, settings: Settings, models: tuple[str, ...] = ()) -> Expression:
    """How many usually come within a window; `models` are matchers that select models."""
    average = per_model(what, "1d", settings, models=models) / (seconds("1d") // seconds(window))
    week, day = (per_model(what, window, settings, offset, models) for offset in ("1w", "1d"))
    return week.or_else(day).or_else(average)


def lately(what: str, settings: Settings, models: tuple[str, ...] = ()) -> Expression:
    """The models that got some within two days."""
    today, yesterday = (compare(per_model(what, "1d", settings, offset, models), ">", 0) for offset in ("", "1d"))
    return today.or_else(yesterday)


def rows_rejected(settings: Settings) -> Iterator[Alert]:
    """A notable share of the rows cannot be used."""
    rejected, share = rejected_rows(settings)
    model = messages.model(settings)
    count = messages.looked_up(
        recorded_name("rejected", "1h") + messages.same(rejected.labels), rejected.labels, messages.COUNT
    )
    yield Alert(
        "ModelRowsRejected",
        compare(share, ">", REJECTED_SHARE).where(compare(rejected, ">=", REJECTED_ROWS)),
        "10m",
        "warning",
        f"{messages.VALUE_AS_SHARE} of the rows of {model} are rejected: {messages.label(REASON)}",
        f"In the last hour {count} rows of {model} could not be used ({messages.label(REASON)}); no metric counts "
        "them. The log of the service says what came and what was expected.",
    )


def rejected_rows(settings: Settings, models: tuple[str, ...] = ()) -> tuple[Expression, Expression]:
    """Rows rejected within an hour by reason, and their share; `models` are matchers that select models."""
    rejected = Expression(selector(recorded_name("rejected", "1h"), more=models), (*settings.version, REASON))
    all_rejected = Expression(f"sum by ({', '.join(settings.version)}) ({rejected})", settings.version)
    # A model of which every row is rejected may have no predictions at all, not even none.
    predictions = _per_version("predictions", "1h", settings, models).or_else(all_rejected * 0)
    return rejected, rejected / (predictions + all_rejected)


def segments_overflow(settings: Settings) -> Iterator[Alert]:
    """A notable share of the rows is in the segment of values that are not told apart."""
    overflowed, share = overflowed_rows(settings)
    model, segment = messages.model(settings), messages.label(SEGMENT[0])
    count = messages.looked_up(
        recorded_name("segments.overflowed", "1h") + messages.same(overflowed.labels),
        overflowed.labels,
        messages.COUNT,
    )
    yield Alert(
        "ModelSegmentsOverflow",
        compare(share, ">", OVERFLOW_SHARE).where(compare(overflowed, ">=", settings.min_rows)),
        "15m",
        "warning",
        f"{messages.VALUE_AS_SHARE} of the rows of {model} have a {segment} that is not told apart",
        f"In the last hour {count} rows of {model} had a {segment} beyond the first max_segment_values ones, which "
        "are one segment, __other__.",
    )


def overflowed_rows(settings: Settings, models: tuple[str, ...] = ()) -> tuple[Expression, Expression]:
    """Rows within an hour whose segment is not told apart, and their share; `models` select models."""
    series = selector(recorded_name("segments.overflowed", "1h"), more=models)
    overflowed = Expression(series, (*settings.version, SEGMENT[0]))
    return overflowed, overflowed / _per_version("predictions", "1h", settings, models)


def writers_share_identity(settings: Settings) -> Iterator[Alert]:
    """A counter goes up and down all the time, as it does when two processes write the same series."""
    counter = selector(counter_name("predictions", settings.naming, settings.namespace), {SEGMENT[0]: ""})
    labels = settings.version
    resets, samples = f"resets({counter}[{RESET_WINDOW}])", f"count_over_time({counter}[{RESET_WINDOW}])"
    often = f"{resets} >= {RESETS} and {resets} / {samples} > {RESET_SHARE}"
    model = messages.model(settings)
    yield Alert(
        "ModelWritersShareIdentity",
        Expression(f"max by ({', '.join(labels)}) ({often})", labels),
        "5m",
        "warning",
        f"Several processes of {model} report as one",
        f"Within {RESET_WINDOW} a counter of {model} fell {messages.VALUE_AS_COUNT} times: several processes write "
        "the same series (one service.instance.id, or one scraped port, for several workers), or one restarts all the "
        "time. Its totals are wrong until that ends.",
    )


Family = Callable[[Settings], Iterator[Alert]]
FAMILIES: dict[str, tuple[Family, ...]] = {
    "objectives": (quality_below_objective, objective_missed_everywhere, error_budget_burns),
    "comparisons": (segment_worse, version_worse),
    "inputs": (predictions_stopped, labels_stopped, rows_rejected, segments_overflow, writers_share_identity),
}


# What alerts are made of


def bounded_metrics() -> list[MetricDefinition]:
    """The metrics whose bounds over the fleet are recorded, for all tasks that have the metric."""
    return [
        metric
        for metric in distinct(fleet_metrics())
        if all(is_function_of_totals(metric, task) and task in metric.intervals for task in metric.functions)
    ]


def unbounded_metrics() -> list[MetricDefinition]:
    """The metrics that an objective may be set for and that have no such bounds, so that each process is looked at."""
    bounded = {metric.name for metric in bounded_metrics()}
    return [metric for metric in catalog.METRICS if metric.name not in bounded and metric.better in ("higher", "lower")]


def compared_metrics() -> list[MetricDefinition]:
    """The metrics by which segments and versions are compared: more, or less, of them is better."""
    return [metric for metric in bounded_metrics() if metric.better in ("higher", "lower")]


def all_of(value: Expression, *conditions: Expression) -> Expression:
    """The series of `value` for which every condition has one too, whatever further labels either has."""
    for condition in conditions:
        value = value.where(condition, on=[label for label in condition.labels if label in value.labels])
    return value


def _recorded(what: str, window: str, labels: tuple[str, ...]) -> Expression:
    return Expression(selector(recorded_name(what, window), NOT_A_PART), labels)


def _segments(what: str, window: str) -> str:
    return selector(recorded_name(what, window), {}, [f'{SEGMENT[0]}!=""'])


def _of_version(metric: MetricDefinition, suffix: str, window: str, settings: Settings) -> Expression:
    """The value of a metric for each version, or one of its bounds."""
    return _recorded(metric.name + suffix, window, (*settings.version, TASK, *variant_labels(metric)))


def _of_segment(metric: MetricDefinition, suffix: str, window: str, settings: Settings) -> Expression:
    """The value of a metric for each segment, or one of its bounds."""
    labels = (*settings.version, TASK, *variant_labels(metric), *SEGMENT)
    return Expression(_segments(metric.name + suffix, window), labels)


def _enough_rows(window: str, settings: Settings) -> Expression:
    rows = selector(recorded_name("window.rows", window), {SEGMENT[0]: ""})
    return compare(Expression(rows, (*settings.version, TASK)), ">=", settings.min_rows)


def _judged(metric: MetricDefinition, settings: Settings) -> Expression:
    """The versions that are judged by this metric, for it is the headline of their task or they have an objective."""
    return Expression(selector(JUDGED, {METRIC: metric.name}), (*settings.version, *variant_labels(metric)))


def per_model(what: str, window: str, settings: Settings, offset: str = "", models: tuple[str, ...] = ()) -> Expression:
    """A recorded total for each model; `models` are matchers that select some."""
    return _summed(what, window, settings.model, offset, models)


def _per_version(what: str, window: str, settings: Settings, models: tuple[str, ...] = ()) -> Expression:
    return _summed(what, window, settings.version, models=models)


def _summed(
    what: str, window: str, labels: tuple[str, ...], offset: str = "", models: tuple[str, ...] = ()
) -> Expression:
    series = selector(recorded_name(what, window), {SEGMENT[0]: ""}, models)
    return Expression(f"sum by ({', '.join(labels)}) ({series}{f' offset {offset}' if offset else ''})", labels)
