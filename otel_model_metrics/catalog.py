"""
The table: every metric and every total, once.

Instruments, snapshots and the tables in the README are derived from these entries. A new metric is a function in
`statistics/`, an entry here, and an oracle in `tests/oracles.py`; then `make docs`.

A function says by its argument names what it needs. Additive statistics come as whole arrays, groups first:

- binary: ``tp`` ``fp`` ``fn`` ``tn`` ``correct`` ``n`` (`statistics/classification.py`)
- multiclass: the same against all other classes, and ``support`` ``predicted`` ``loss`` ``scored`` ``within_k``
- regression: ``n`` ``over`` ``under`` ``squared`` ``fourth`` (`statistics/regression.py`)
- ranking: ``n`` ``reciprocal`` ``precision`` ``recall`` ``ndcg`` ... (`statistics/ranking.py`)

A function that asks for rows instead (``y_true`` with ``y_score`` in binary, ``y_pred`` in regression) is called
once a group; such a metric is no function of totals. Of rows that are too many to keep, `summarised` computes it from
a summary (`statistics/summaries.py`); without that it is exact up to a size and absent beyond.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.statistics import (
    binary,
    classification,
    intervals,
    labels,
    multiclass,
    ranking,
    regression,
    summaries,
)
from otel_model_metrics.statistics.summaries import Summary

Task = Literal["binary", "multiclass", "regression", "ranking"]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression", "ranking")

NAMESPACE = "ml.model."
MODEL_NAME = "ml.model.name"
MODEL_VERSION = "ml.model.version"
TASK = "ml.model.task"  # on totals only: classes named positive and negative do not make a model binary
SEGMENT_NAME = "ml.segment.name"
SEGMENT_VALUE = "ml.segment.value"
METRIC = "ml.metric"
AVERAGE = "ml.average"
CLASS = "ml.class"
K = "ml.k"
ACTUAL = "ml.class.actual"
PREDICTED = "ml.class.predicted"
OUTCOME = "ml.outcome"
DIRECTION = "ml.error.direction"
REJECT_REASON = "ml.reject.reason"
LABEL_OUTCOME = "ml.label.outcome"
QUANTILE = "ml.quantile"
LE = "le"  # without a namespace, for histogram_quantile() knows no other name

ATTRIBUTES = (
    MODEL_NAME,
    MODEL_VERSION,
    TASK,
    SEGMENT_NAME,
    SEGMENT_VALUE,
    METRIC,
    AVERAGE,
    CLASS,
    K,
    ACTUAL,
    PREDICTED,
    OUTCOME,
    DIRECTION,
    REJECT_REASON,
    LABEL_OUTCOME,
    QUANTILE,
    LE,
)

Array = NDArray[Any]
Sums = dict[str, Array]
RowsOf = Callable[[int], Sums | Summary]
Function = Callable[..., Any]
# How the last axis of a function's result is told apart: one value for each class, or for each cut-off k.
By = Literal["class", "k"]

_ROW_ARGUMENTS = {"y_true", "y_pred", "y_score"}


@dataclass(frozen=True)
class MetricDefinition:
    """
    One metric.

    Attributes:
        name: Exported as ``ml.model.<name>``.
        unit: OpenTelemetry unit: ``{ratio}`` for shares in [0, 1], ``{target}`` in the label's own unit, ``{score}``
            for other numbers without one. Never ``1``, whose Prometheus name differs by path.
        description: One sentence.
        better: ``higher``, ``lower``, or ``zero`` for a bias; empty for what only explains.
        functions: For each task the function that computes it.
        intervals: For each task that has 95 % bounds the function that computes them.
        by: For a task whose function gives several values: what tells them apart.
        in_segments: Whether segments export it by default.
        always: Exported whatever `metrics=` says.
        headline: Whether it stands for its task where there is room for one metric only, and segments and versions are
            compared by it whatever objectives there are.
        events: Whether it is a share of rows that went well, so that the others use up an error budget.
        summarised: For each task whose function needs rows: computes it from a summary of them, as value and greatest
            error.
    """

    name: str
    unit: str
    description: str
    better: Literal["higher", "lower", "zero", ""]
    functions: Mapping[Task, Function]
    intervals: Mapping[Task, Function] = field(default_factory=dict)
    by: Mapping[Task, By] = field(default_factory=dict)
    in_segments: bool = False
    always: bool = False
    headline: bool = False
    events: bool = False
    summarised: Mapping[Task, Function] = field(default_factory=dict)

    @cached_property
    def instrument(self) -> str:
        """Name of the OpenTelemetry gauge."""
        return NAMESPACE + self.name

    def needs_rows(self, task: Task) -> bool:
        """Whether the metric needs the rows themselves, and so is no function of totals."""
        return bool(_ROW_ARGUMENTS & set(arguments_of(self.functions[task])))

    def values(self, task: Task, sums: Sums, rows: RowsOf, groups: int) -> Array:
        """
        The metric of the first `groups` groups.

        Args:
            task: The monitor's task.
            sums: Additive statistics by name, groups first.
            rows: Gives the rows of a group by argument name, or a summary of them.
            groups: How many groups are wanted.

        Returns:
            Shape ``(groups,)`` or, where the metric is told apart by class or k, ``(groups, m)``; float64, ``nan``
            where undefined.
        """
        function = self.functions[task]
        if not self.needs_rows(task):
            return np.asarray(function(**self._select(function, task, sums)), np.float64)[:groups]
        return np.array([self._of_rows(task, rows(group))[0] for group in range(groups)], np.float64)

    def error(self, task: Task, rows: Sums | Summary) -> float:
        """
        How far the metric is from that of the rows at most: 0.0, unless it needs rows in order and has a summary only.
        """
        return self._of_rows(task, rows)[1] if self.needs_rows(task) else 0.0

    def _of_rows(self, task: Task, rows: Sums | Summary) -> tuple[float, float]:
        if isinstance(rows, dict):
            function = self.functions[task]
            return float(function(**{name: rows[name] for name in arguments_of(function)})), 0.0
        estimate = self.summarised.get(task)
        return (math.nan, 0.0) if estimate is None else estimate(rows)

    def bounds(self, task: Task, sums: Sums) -> tuple[Array, Array]:
        """Lower and upper bound of the overall value, each of shape ``(1,)`` or ``(1, m)``."""
        interval = self.intervals[task]
        overall = {name: values[:1] for name, values in self._select(interval, task, sums).items()}
        lower, upper = interval(**overall)
        return lower, upper

    def _select(self, function: Function, task: Task, sums: Sums) -> Sums:
        wanted = {name: sums[name] for name in arguments_of(function)}
        if task in self.by:  # one n for each group goes with m values for each group
            wanted = {name: values[:, np.newaxis] if values.ndim == 1 else values for name, values in wanted.items()}
        return wanted


def arguments_of(function: Function) -> tuple[str, ...]:
    """The statistics, or columns of rows, that a function of the catalogue asks for."""
    known = _ARGUMENTS.get(function)
    if known is None:
        known = _ARGUMENTS[function] = tuple(inspect.signature(function).parameters)
    return known


_ARGUMENTS: dict[Function, tuple[str, ...]] = {}


def _window_rows(n: Array) -> Array:
    return n


def _window_age(age: Array) -> Array:
    return age


_CLASSIFICATION: tuple[Task, Task] = ("binary", "multiclass")


def _both(function: Function) -> dict[Task, Function]:
    return dict.fromkeys(_CLASSIFICATION, function)


def _all(function: Function) -> dict[Task, Function]:
    return dict.fromkeys(TASKS, function)


METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        "window.rows", "{row}", "Labelled rows in the window.", "", _all(_window_rows), in_segments=True, always=True
    ),
    MetricDefinition(
        "window.age",
        "s",
        "Age of the oldest row in the window; 0 when it is empty.",
        "",
        _all(_window_age),
        always=True,
    ),
    # Classification
    MetricDefinition(
        "accuracy",
        "{ratio}",
        "Share of predictions that equal their label.",
        "higher",
        _both(classification.accuracy),
        intervals=_both(classification.accuracy_interval),
        in_segments=True,
        events=True,
        headline=True,
    ),
    MetricDefinition(
        "precision",
        "{ratio}",
        "Share of predictions of a class that are right.",
        "higher",
        _both(classification.precision),
        intervals=_both(classification.precision_interval),
        by={"multiclass": "class"},
        in_segments=True,
        events=True,
    ),
    MetricDefinition(
        "recall",
        "{ratio}",
        "Share of labels of a class that were predicted.",
        "higher",
        _both(classification.recall),
        intervals=_both(classification.recall_interval),
        by={"multiclass": "class"},
        in_segments=True,
        events=True,
    ),
    MetricDefinition(
        "specificity",
        "{ratio}",
        "Share of negative labels that were predicted negative.",
        "higher",
        {"binary": classification.specificity},
        intervals={"binary": classification.specificity_interval},
        events=True,
    ),
    MetricDefinition(
        "f1",
        "{ratio}",
        "Harmonic mean of precision and recall.",
        "higher",
        _both(classification.f1),
        intervals=_both(intervals.f1_interval),
        by={"multiclass": "class"},
        in_segments=True,
    ),
    MetricDefinition(
        "balanced_accuracy",
        "{ratio}",
        "Mean recall over the classes that have labels.",
        "higher",
        {"binary": classification.balanced_accuracy, "multiclass": classification.balanced_accuracy_of_classes},
        intervals={
            "binary": classification.balanced_accuracy_interval,
            "multiclass": classification.balanced_accuracy_of_classes_interval,
        },
    ),
    MetricDefinition(
        "mcc",
        "{score}",
        "Matthews correlation coefficient of predictions and labels; 0 is chance.",
        "higher",
        {"binary": classification.mcc, "multiclass": classification.mcc_of_classes},
    ),
    MetricDefinition(
        "roc_auc",
        "{score}",
        "Probability that a positive row scores higher than a negative one.",
        "higher",
        {"binary": binary.roc_auc},
        summarised={"binary": summaries.roc_auc},
    ),
    MetricDefinition(
        "average_precision",
        "{score}",
        "Precision averaged over the recall gained at each threshold.",
        "higher",
        {"binary": binary.average_precision},
        summarised={"binary": summaries.average_precision},
    ),
    MetricDefinition(
        "log_loss",
        "{score}",
        "Mean negative logarithm of the probability given to the label.",
        "lower",
        {"binary": binary.log_loss, "multiclass": multiclass.log_loss},
        summarised={"binary": summaries.log_loss},
    ),
    MetricDefinition(
        "brier_score",
        "{score}",
        "Mean squared distance between predicted probability and outcome.",
        "lower",
        {"binary": binary.brier_score},
        summarised={"binary": summaries.brier_score},
    ),
    MetricDefinition(
        "calibration_error",
        "{score}",
        "Distance between predicted probability and observed frequency, over ten bins.",
        "lower",
        {"binary": binary.calibration_error},
        summarised={"binary": summaries.calibration_error},
    ),
    MetricDefinition(
        "top_k_accuracy",
        "{ratio}",
        "Share of rows whose label is among the k highest scores.",
        "higher",
        {"multiclass": multiclass.top_k_accuracy},
        by={"multiclass": "k"},
    ),
    # Regression
    MetricDefinition(
        "mae",
        "{target}",
        "Mean absolute error.",
        "lower",
        {"regression": regression.mae},
        intervals={"regression": regression.mae_interval},
        in_segments=True,
        headline=True,
    ),
    MetricDefinition(
        "mse",
        "{target^2}",
        "Mean squared error.",
        "lower",
        {"regression": regression.mse},
        intervals={"regression": regression.mse_interval},
    ),
    MetricDefinition(
        "rmse",
        "{target}",
        "Root of the mean squared error.",
        "lower",
        {"regression": regression.rmse},
        intervals={"regression": intervals.rmse_interval},
        in_segments=True,
    ),
    MetricDefinition(
        "mean_error",
        "{target}",
        "Mean of prediction minus label, the bias.",
        "zero",
        {"regression": regression.mean_error},
        intervals={"regression": regression.mean_error_interval},
        in_segments=True,
    ),
    MetricDefinition(
        "mape",
        "{ratio}",
        "Mean absolute error relative to the label; labels of 0 are left out.",
        "lower",
        {"regression": regression.mape},
        summarised={"regression": summaries.mape},
    ),
    MetricDefinition(
        "r2",
        "{score}",
        "Share of the labels' variance that is explained.",
        "higher",
        {"regression": regression.r2},
        summarised={"regression": summaries.r2},
    ),
    MetricDefinition(
        "median_absolute_error",
        "{target}",
        "Median of the absolute errors.",
        "lower",
        {"regression": regression.median_absolute_error},
        summarised={"regression": summaries.median_absolute_error},
    ),
    MetricDefinition(
        "max_error",
        "{target}",
        "Largest absolute error.",
        "lower",
        {"regression": regression.max_error},
        summarised={"regression": summaries.max_error},
    ),
    # Ranking
    MetricDefinition(
        "mrr",
        "{score}",
        "Mean of 1 / rank of the first relevant item.",
        "higher",
        {"ranking": ranking.mrr},
        intervals={"ranking": ranking.mrr_interval},
        in_segments=True,
        headline=True,
    ),
    MetricDefinition(
        "precision_at_k",
        "{ratio}",
        "Mean share of the first k places that hold a relevant item.",
        "higher",
        {"ranking": ranking.precision_at_k},
        intervals={"ranking": ranking.precision_interval},
        by={"ranking": "k"},
    ),
    MetricDefinition(
        "recall_at_k",
        "{ratio}",
        "Mean share of the relevant items that are among the first k.",
        "higher",
        {"ranking": ranking.recall_at_k},
        intervals={"ranking": ranking.recall_interval},
        by={"ranking": "k"},
    ),
    MetricDefinition(
        "ndcg_at_k",
        "{score}",
        "Mean discounted gain of the first k items, relative to the best order.",
        "higher",
        {"ranking": ranking.ndcg_at_k},
        intervals={"ranking": ranking.ndcg_interval},
        by={"ranking": "k"},
        in_segments=True,
    ),
    MetricDefinition(
        "map_at_k",
        "{score}",
        "Mean average precision of the first k items.",
        "higher",
        {"ranking": ranking.map_at_k},
        intervals={"ranking": ranking.map_interval},
        by={"ranking": "k"},
    ),
    MetricDefinition(
        "hit_rate_at_k",
        "{ratio}",
        "Share of rankings with a relevant item among the first k.",
        "higher",
        {"ranking": ranking.hit_rate_at_k},
        intervals={"ranking": ranking.hit_rate_interval},
        by={"ranking": "k"},
        events=True,
    ),
)


@dataclass(frozen=True)
class HealthDefinition:
    """
    One gauge of the health of labels, of every task. Exported once labels come late, so that a worse model can be told
    from labels that are missing or other than before.

    Attributes:
        name: Exported as ``ml.model.<name>``.
        unit: OpenTelemetry unit.
        description: One sentence.
        function: Computes it, for each group, from what its argument names say: ``labelled`` and ``predicted`` count
            predictions that are old enough, ``pending`` and ``pending_age`` tell of those that wait, ``label_age`` of
            the newest label, ``delays`` are those of the rows of one group.
        by_quantile: Whether there are several values for each group, one for each of `QUANTILES`.
        in_segments: Whether segments export it by default.
    """

    name: str
    unit: str
    description: str
    function: Function
    by_quantile: bool = False
    in_segments: bool = False

    @cached_property
    def instrument(self) -> str:
        """Name of the OpenTelemetry gauge."""
        return NAMESPACE + self.name


def _pending(pending: Array) -> Array:
    return pending


def _pending_age(pending_age: Array) -> Array:
    return pending_age


def _label_age(label_age: Array) -> Array:
    return label_age


HEALTH: tuple[HealthDefinition, ...] = (
    HealthDefinition(
        "label.coverage",
        "{ratio}",
        "Of the predictions old enough, the share that has its label.",
        labels.coverage,
        in_segments=True,
    ),
    HealthDefinition(
        "label.delay",
        "s",
        "Time from prediction to label, of the rows in the window.",
        labels.delay_quantiles,
        by_quantile=True,
        in_segments=True,
    ),
    HealthDefinition("label.pending", "{prediction}", "Predictions that wait for their label.", _pending),
    HealthDefinition("label.pending_age", "s", "Age of the oldest prediction that waits for its label.", _pending_age),
    HealthDefinition("label.age", "s", "Age of the newest label.", _label_age),
)
QUANTILES = labels.QUANTILES

# How the bounds of a metric are called, beside its own name.
BOUNDS = LOWER, UPPER = (".lower", ".upper")

BY_NAME: dict[str, MetricDefinition] = {definition.name: definition for definition in METRICS}

OBJECTIVE = "objective"
OBJECTIVE_UNIT = ""  # that of the metric it belongs to
OBJECTIVE_DESCRIPTION = "The level a metric should hold, as set in code."

# What the two averages over classes are called, and how they are computed.
AVERAGES: dict[str, Function] = {
    "macro": classification.macro_average,
    "weighted": classification.weighted_average,
}


def statistics_of(task: Task, sums: Sums) -> Sums:
    """The additive statistics under the names that metric functions ask for."""
    if task == "binary":
        return {**sums, **_as_floats(classification.two_class_counts(sums["matrix"]))}
    if task == "multiclass":
        return {**sums, **_as_floats(classification.class_counts(sums["matrix"]))}
    return sums


def _as_floats(counts: Sums) -> Sums:
    """Products of four counts of a long-lived process do not fit into an integer."""
    return {name: values.astype(np.float64) for name, values in counts.items()}


def rows_of(task: Task, columns: Mapping[str, Array]) -> tuple[Sums, Array | None]:
    """
    The rows under the names that metric functions ask for, and which rows those are (None for all).

    Rows without a score take no part in metrics that need one.
    """
    if task == "binary":
        return binary.rows(columns["cell"], columns["score"])
    if task == "regression":
        return {"y_true": columns["label"], "y_pred": columns["predicted"]}, None
    return {}, None


# Of the tasks that have metrics that need rows: what is kept of them, made by `of(**rows)` from what `rows_of` gives.
SUMMARIES: Mapping[Task, type[summaries.Summary]] = {
    "binary": summaries.ScoreSummary,
    "regression": summaries.ErrorSummary,
}


def no_rows(task: Task) -> Sums:
    """What `rows_of` gives where there are none."""
    columns: Sums = {"cell": np.zeros(0, np.int8)}
    return rows_of(task, {**columns, **dict.fromkeys(("score", "label", "predicted"), np.zeros(0))})[0]


def metrics_of(task: Task) -> tuple[MetricDefinition, ...]:
    """All metrics of a task, in the order of the table."""
    return tuple(definition for definition in METRICS if task in definition.functions)


@dataclass(frozen=True)
class Naming:
    """The words a monitor's exported attributes need: its classes and its cut-offs."""

    classes: tuple[str, ...] = ()
    ks: tuple[int, ...] = ()


@dataclass(frozen=True)
class TotalDefinition:
    """
    One total.

    Attributes:
        name: Exported as the counter ``ml.model.<name>``.
        unit: OpenTelemetry unit.
        description: One sentence.
        tasks: The tasks that have it.
        values: From the totals to one number for each group and cell, shape ``(G, m)``.
        cells: Extra attributes of each of the m cells, from the monitor's words and m.
        sparse: Whether a cell is exported only once it is above 0 (there may be very many).
        statistics: What functions of the catalogue call its cells: one name for each, or one for all cut-offs k.
    """

    name: str
    unit: str
    description: str
    tasks: tuple[Task, ...]
    values: Callable[[Sums], Array]
    cells: _Cells
    sparse: bool = False
    statistics: tuple[str, ...] = ()

    @cached_property
    def instrument(self) -> str:
        """Name of the OpenTelemetry counter."""
        return NAMESPACE + self.name


_Cells = Callable[[Naming, int], list[dict[str, str]]]


def _one_cell(naming: Naming, count: int) -> list[dict[str, str]]:
    return [{}]


def _class_cells(naming: Naming, count: int) -> list[dict[str, str]]:
    return [{PREDICTED: name} for name in naming.classes[:count]]


def _outcome_cells(naming: Naming, count: int) -> list[dict[str, str]]:
    classes = naming.classes[: math.isqrt(count)]  # totals may not have met the newest class yet
    return [
        {ACTUAL: actual, PREDICTED: predicted, OUTCOME: "correct" if actual == predicted else "wrong"}
        for actual in classes
        for predicted in classes
    ]


def _direction_cells(naming: Naming, count: int) -> list[dict[str, str]]:
    return [{DIRECTION: "over"}, {DIRECTION: "under"}]


def _k_cells(naming: Naming, count: int) -> list[dict[str, str]]:
    return [{K: str(k)} for k in naming.ks]


def _predictions_of_classes(totals: Sums) -> Array:
    labelled = totals["matrix"].sum(axis=1)
    return _sum_of(labelled, totals["unlabelled"])


def _predictions(totals: Sums) -> Array:
    return _sum_of(totals["n"][:, np.newaxis], totals["unlabelled"])


def _sum_of(one: Array, other: Array) -> Array:
    """Sum of two totals of which one may not have met all groups or classes yet."""
    result = np.zeros(tuple(max(sizes) for sizes in zip(one.shape, other.shape, strict=True)), one.dtype)
    for part in (one, other):
        result[tuple(slice(size) for size in part.shape)] += part
    return result


def _named(name: str) -> Callable[[Sums], Array]:
    def values(totals: Sums) -> Array:
        total = totals[name]
        return total[:, np.newaxis] if total.ndim == 1 else total.reshape(len(total), -1)

    return values


def _directions(totals: Sums) -> Array:
    return np.stack([totals["over"], totals["under"]], axis=1)


_PREDICTIONS = "Predictions seen, with or without a label."
_OUTCOMES = "Labelled predictions."


def _sum(
    name: str, unit: str, description: str, task: Task, statistic: str, cells: _Cells = _one_cell
) -> TotalDefinition:
    """The total of one statistic, overall or for each k."""
    return TotalDefinition(name, unit, description, (task,), _named(statistic), cells, statistics=(statistic,))


TOTALS: tuple[TotalDefinition, ...] = (
    TotalDefinition("predictions", "{prediction}", _PREDICTIONS, ("binary",), _predictions_of_classes, _class_cells),
    TotalDefinition(
        "predictions", "{prediction}", _PREDICTIONS, ("multiclass",), _predictions_of_classes, _class_cells, sparse=True
    ),
    TotalDefinition("predictions", "{prediction}", _PREDICTIONS, ("regression", "ranking"), _predictions, _one_cell),
    TotalDefinition(
        "outcomes",
        "{prediction}",
        _OUTCOMES,
        ("binary",),
        _named("matrix"),
        _outcome_cells,
        statistics=("tn", "fp", "fn", "tp"),
    ),
    TotalDefinition(
        "outcomes", "{prediction}", _OUTCOMES, ("multiclass",), _named("matrix"), _outcome_cells, sparse=True
    ),
    _sum("outcomes", "{prediction}", _OUTCOMES, "regression", "n"),
    _sum("outcomes", "{prediction}", _OUTCOMES, "ranking", "n"),
    TotalDefinition(
        "error.absolute",
        "{target}",
        "Sum of absolute errors, of predictions over and under their label.",
        ("regression",),
        _directions,
        _direction_cells,
        statistics=("over", "under"),
    ),
    _sum("error.squared", "{target^2}", "Sum of squared errors.", "regression", "squared"),
    _sum("error.fourth", "{target^4}", "Sum of fourth powers of errors, for bounds of rmse.", "regression", "fourth"),
    _sum("rank.reciprocal", "{score}", "Sum of 1 / rank of the first relevant item.", "ranking", "reciprocal"),
    _sum(
        "rank.reciprocal_squared",
        "{score}",
        "Sum of 1 / rank^2 of the first relevant item, for bounds of mrr.",
        "ranking",
        "reciprocal_squared",
    ),
    _sum("rank.precision", "{ratio}", "Sum of precision at k.", "ranking", "precision", _k_cells),
    _sum("rank.recall", "{ratio}", "Sum of recall at k.", "ranking", "recall", _k_cells),
    _sum("rank.ndcg", "{score}", "Sum of normalised discounted gain at k.", "ranking", "ndcg", _k_cells),
    _sum(
        "rank.average_precision", "{score}", "Sum of average precision at k.", "ranking", "average_precision", _k_cells
    ),
    _sum("rank.hits", "{ratio}", "Rankings with a relevant item among the first k.", "ranking", "hits", _k_cells),
)


@dataclass(frozen=True)
class CountDefinition:
    """A total that counts what became of rows, whatever the task, and is not split by segment."""

    name: str
    unit: str
    description: str
    attribute: str

    @cached_property
    def instrument(self) -> str:
        """Name of the OpenTelemetry counter."""
        return NAMESPACE + self.name


LABELS = CountDefinition(
    "labels", "{label}", "Labels by what became of them, and predictions that never got one.", LABEL_OUTCOME
)
DELAYS = CountDefinition(
    "label.delays", "{label}", "Labels that came late, by the seconds they took at most: a histogram.", LE
)
REJECTED = CountDefinition("rejected", "{row}", "Rows not used, by reason.", REJECT_REASON)
OVERFLOWED = CountDefinition("segments.overflowed", "{row}", "Rows counted under __other__.", SEGMENT_NAME)
COUNTS = (LABELS, DELAYS, REJECTED, OVERFLOWED)


def totals_of(task: Task) -> tuple[TotalDefinition, ...]:
    """All totals of a task that are split by segment."""
    return tuple(definition for definition in TOTALS if task in definition.tasks)


class Instrument(NamedTuple):
    """What OpenTelemetry is told of an instrument."""

    name: str
    unit: str
    description: str
    kind: Literal["gauge", "counter"]


def instruments_of(task: Task, metrics: Iterable[MetricDefinition]) -> Iterator[Instrument]:
    """Every instrument that a model of a task with these metrics needs."""
    for metric in metrics:
        yield Instrument(metric.instrument, metric.unit, metric.description, "gauge")
        if task in metric.intervals:
            for suffix, what in ((LOWER, "Lower"), (UPPER, "Upper")):
                yield Instrument(
                    metric.instrument + suffix, metric.unit, f"{what} 95 % bound of {metric.name}.", "gauge"
                )
    for health in HEALTH:
        yield Instrument(health.instrument, health.unit, health.description, "gauge")
    yield Instrument(NAMESPACE + OBJECTIVE, OBJECTIVE_UNIT, OBJECTIVE_DESCRIPTION, "gauge")
    for total in totals_of(task):
        yield Instrument(total.instrument, total.unit, total.description, "counter")
    for count in COUNTS:
        yield Instrument(count.instrument, count.unit, count.description, "counter")


def overflowed(
    totals: Sums, segments: Sequence[tuple[str, str] | None], names: Iterable[str], task: Task, other: str
) -> dict[str, int]:
    """Rows counted under ``__other__``, for each segment name."""
    counts = dict.fromkeys(names, 0)
    per_group = next(iter(totals_of(task))).values(totals).sum(axis=1)
    for group, segment in enumerate(segments[: len(per_group)]):
        if segment is not None and segment[1] == other:
            counts[segment[0]] = int(per_group[group])
    return counts
