"""
Model: how good is this one, how sure is that, since when, and what kind of errors does it make?

What is open at first is the same for every kind of model. Below it each task has a row of its own, with a panel for
every metric of the catalogue.
"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import dashboard

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition, Task
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import MODEL_PAGE, SEGMENTS, style
from otel_model_metrics.provisioning.dashboards.queries import HEADLINES, Fleet, either, is_ratio, main_names
from otel_model_metrics.provisioning.dashboards.style import Column, Query
from otel_model_metrics.provisioning.expressions import CLASS, compare
from otel_model_metrics.provisioning.promql import (
    ACTUAL,
    AVERAGE,
    METRIC,
    MODEL,
    OUTCOME,
    PREDICTED,
    SEGMENT,
    VERSION,
    K,
)
from otel_model_metrics.provisioning.rules import distinct

# Bounds of averages over classes take a query of several thousand characters, too many for one file to hold them all.
# Recording rules have them.
_LONGEST_BOUND = 3000

_PROCESS = f"{{{{{VERSION}}}}} {{{{instance}}}}{{{{service_instance_id}}}}"
# The metrics that stand for their tasks, those first that are ratios. A model has one of them.
_MAIN: dict[bool, list[MetricDefinition]] = {
    ratio: distinct((metric, task) for metric, task in HEADLINES if is_ratio(metric) == ratio)
    for ratio in (True, False)
}


def model(choice: Choice) -> dashboard.Dashboard:
    """The page of one model."""
    made = style.page(
        choice,
        MODEL_PAGE,
        "Model",
        "How good is one model, how sure is that, since when, and what kind of errors does it make? Values are those "
        "of all processes together, over the window.",
    )
    together = Fleet(choice, versions=False)
    for panel in _first_look(choice, together):
        made.with_panel(panel)
    for place, task in enumerate(catalog.TASKS):
        style.row(made, 30 + place, f"{task.capitalize()}: every metric", _task_panels(task, together))
    style.row(made, 40, "Versions compared", [_versions(choice)])
    style.row(made, 41, "Worst segments", [_worst_segments(choice, together)])
    style.row(made, 42, "Each process by itself", _processes(choice))
    return made


# What is open at first


def _first_look(choice: Choice, together: Fleet) -> list[Any]:
    each = Fleet(choice)
    quality = style.numbers(
        2,
        "Quality",
        "The main metric of the model over the window: accuracy, mean absolute error, or mean reciprocal rank. How "
        "sure it is, the chart below shows.",
        [
            Query(together.headline(ratio=True, named=True), f"{{{{{METRIC}}}}}", "A"),
            Query(together.headline(ratio=False, named=True), f"{{{{{METRIC}}}}}", "B"),
        ],
        size=(5, 6),
        unit=style.PERCENT,
        no_value="no labelled rows",
        named=True,
    )
    style.per_query(quality, "B", style.NUMBER, max=None, min=None)
    evidence = style.numbers(
        10,
        "Evidence",
        "What the numbers rest on: labelled rows in the window, the age of the newest label where labels come late, "
        "the share of predictions that has a label, and rows that could not be used.",
        [
            Query(together.rows(), "labelled rows", "A"),
            Query(together.gauge("label.age", "min"), "newest label", "B"),
            Query(together.coverage(), "coverage", "C"),
            Query(f"sum({together.count('rejected')})", "rejected", "D"),
        ],
        size=(8, 6),
        no_value="no predictions",
        named=True,
        decimals=0,
    )
    style.per_query(evidence, "B", style.SECONDS)
    style.per_query(evidence, "C", style.PERCENT, decimals=1)
    return [
        quality,
        evidence,
        _objectives(choice),
        _main_chart(together),
        _by_version(each),
        style.lines(
            7,
            "Predictions",
            "What the model predicts: for classifiers the share of each class, which needs no labels and so moves "
            "first; else predictions per second.",
            [Query(together.rate("predictions", (PREDICTED,)), f"{{{{{PREDICTED}}}}}")],
            size=(24, 7),
            unit=style.PER_SECOND,
            no_value="no predictions",
        ),
    ]


def _objectives(choice: Choice) -> Any:
    # Long queries, so that only the model is chosen in every part of them.
    fleet = Fleet(choice, matched=(MODEL,))
    margins = [*(fleet.margins(task) for task in catalog.TASKS), fleet.margins_of_processes()]
    queries = [Query(one, ref=f"M{place}") for place, one in enumerate(margins, start=1)]
    queries.append(Query(Fleet(choice).objectives(), ref="O"))
    columns = [
        Column(METRIC, "Metric"),
        Column(AVERAGE, "Average", width=80),
        Column(K, "k", width=50),
        Column(VERSION, "Version", width=90),
        *style.columns_of(choice),
        Column("Status", "Status", words=style.STATUS, filled=True, width=80),
        Column("Margin", "To objective", style.PERCENT, style.MARGIN_STEPS, width=110, decimals=1),
        Column("Value #O", "Objective", style.NUMBER, width=90),
    ]
    return style.rows(
        4,
        "Objectives",
        "How much better (above 0) or worse each metric is than its objective, as a share of the objective. Without "
        "a status there are too few rows to judge. Metrics that no total tells are those of the best process.",
        queries,
        columns,
        size=(11, 6),
        sort=("To objective", False),
        no_value="-",
        merged=style.margins_and_status(len(margins)),
    )


def _main_chart(together: Fleet) -> Any:
    queries = []
    for ratio in (True, False):
        letters = "ABCD" if ratio else "EFGH"
        objectives = either(together.objective(metric, task) for metric, task in HEADLINES if is_ratio(metric) == ratio)
        queries += [
            Query(together.headline(ratio=ratio), "value", letters[0]),
            Query(together.headline(".lower", ratio=ratio), "lower", letters[1]),
            Query(together.headline(".upper", ratio=ratio), "upper", letters[2]),
            Query(objectives, "objective", letters[3]),
        ]
    panel = style.lines(
        5,
        "Quality and its 95 % interval",
        "The main metric of the selected versions together, its 95 % interval as a band, and its objective dashed. "
        "As long as the objective is inside the band, chance may explain that it is missed.",
        queries,
        size=(14, 9),
        unit=style.PERCENT,
        no_value="no labelled rows",
    )
    for letter in "EFGH":
        style.per_query(panel, letter, style.NUMBER, max=None)
    return style.banded(panel)


def _by_version(each: Fleet) -> Any:
    name = f"version {style.version_name(each.choice, model=False)}"
    panel = style.lines(
        6,
        "By version",
        "The main metric of each version. A new one that is worse than the one it replaces is a reason to roll back.",
        [Query(each.headline(ratio=True), name, "A"), Query(each.headline(ratio=False), name, "B")],
        size=(10, 9),
        unit=style.PERCENT,
        no_value="no labelled rows",
    )
    return style.per_query(panel, "B", style.NUMBER, max=None)


# Every metric of a task


def _task_panels(task: Task, together: Fleet) -> list[Any]:
    special = []
    if task in ("binary", "multiclass"):
        special.append(_confusion(task, 50 if task == "binary" else 51, together))
    if task == "multiclass":
        special.append(_classes(together))
    metrics = [_metric_panel(metric, task, together) for metric in catalog.metrics_of(task) if metric.better]
    return [*special, *metrics]


def _metric_panel(metric: MetricDefinition, task: Task, together: Fleet) -> Any:
    by = metric.by.get(task)
    banded = False
    of_fleet = promql.is_function_of_totals(metric, task)
    suffix = f", k = {{{{{K}}}}}" if by == "k" else ""
    if of_fleet:
        queries = [Query(together.value(metric, task), "value" + suffix)]
        reading = "All processes together."
        if metric.intervals.get(task) and by != "k":
            bounds = [together.value(metric, task, suffix) for suffix in catalog.BOUNDS]
            if max(len(str(bound)) for bound in bounds) <= _LONGEST_BOUND:
                queries += [Query(bound, suffix[1:]) for bound, suffix in zip(bounds, catalog.BOUNDS, strict=True)]
                banded = True
                reading = "All processes together, with the 95 % interval as a band."
    else:
        labels = (K,) if by == "k" else ()
        whole = {CLASS: ""}
        queries = [
            Query(together.gauge(metric.name, one, labels, whole), f"{name} process" + suffix)
            for one, name in (("min", "lowest"), ("max", "highest"))
        ]
        reading = "No total tells it, so these are the lowest and the highest process, each over its own rows."
    queries.append(Query(together.objective(metric, task), "objective" + suffix))
    average = " (macro average)" if by == "class" else ""
    better = {"higher": "Higher is better.", "lower": "Lower is better.", "zero": "Near 0 is better."}[metric.better]
    panel = style.lines(
        style.stable_id(task, metric.name),
        metric.name + average,
        f"{metric.description} {better} {reading}",
        queries,
        unit=style.unit_of(metric.unit),
        bounded=metric.better == "higher",
        no_value=f"no such metric: not a {task} model, or no rows or scores",
    )
    return style.banded(panel) if banded else style.dashed(panel, "objective")


def _confusion(task: Task, id_: int, together: Fleet) -> Any:
    return style.matrix(
        id_,
        "Confusion matrix",
        "Labelled rows of the window: the label on the left, what was predicted above. Off the diagonal are errors.",
        Query(_cells(together, task)),
        size=(12 if task == "multiclass" else 8, 8),
        row=ACTUAL,
        column=PREDICTED,
        corner="label \\ predicted",
    )


def _cells(together: Fleet, task: Task) -> str:
    cells = together.total("outcomes", (ACTUAL, PREDICTED), {promql.TASK: task})
    return f"round({cells})"


def _classes(together: Fleet) -> Any:
    metrics = [metric for metric in catalog.metrics_of("multiclass") if metric.by.get("multiclass") == "class"]
    queries = [Query(together.of_class(metric)) for metric in metrics]
    queries.append(Query(together.of_role("labels")))
    queries.append(Query(together.of_role("predictions")))
    letters = [chr(ord("A") + place) for place in range(len(queries))]
    columns = [Column(CLASS, "Class")]
    columns += [
        Column(f"Value #{letter}", metric.name, style.unit_of(metric.unit), decimals=1)
        for letter, metric in zip(letters, metrics, strict=False)
    ]
    columns += [
        Column(f"Value #{letter}", title, style.COUNT, decimals=0)
        for letter, title in zip(letters[-2:], ("Labels", "Predictions"), strict=True)
    ]
    return style.rows(
        52,
        "Classes",
        "Each class over the window. Empty is undefined: there is no recall of a class without labels.",
        queries,
        columns,
        size=(12, 8),
        sort=("recall", False),
    )


# Comparisons


def _versions(choice: Choice) -> Any:
    each = Fleet(choice)
    queries, columns = [], [Column(VERSION, "Version"), *style.columns_of(choice)]
    for ratio, letters in ((True, "ABC"), (False, "DEF")):
        name = main_names(ratio=ratio)
        unit = style.PERCENT if ratio else style.NUMBER
        for letter, suffix, title in zip(letters, ("", *catalog.BOUNDS), (name, "at least", "at most"), strict=True):
            queries.append(Query(each.headline(suffix, ratio=ratio), ref=letter))
            shown = title if not suffix else f"{name} {title}"
            columns.append(Column(f"Value #{letter}", shown, unit, decimals=1 if ratio else 3))
    queries += [Query(each.rows(), ref="G"), Query(each.predictions(), ref="H"), Query(each.evidence(), ref="I")]
    columns += [
        Column("Value #G", "Rows", style.COUNT, decimals=0),
        Column("Value #H", "Predictions", style.COUNT, decimals=0),
        Column("Value #I", "Evidence", words=style.EVIDENCE),
    ]
    return style.rows(
        43,
        "Versions",
        "Each version over the window. Where the intervals of two versions (at least, at most) do not meet, chance "
        "does not explain that they differ.",
        queries,
        columns,
        size=(24, 7),
        sort=("Version", True),
        no_value="-",
    )


def _worst_segments(choice: Choice, together: Fleet) -> Any:
    segments = Fleet(choice, versions=False, segments=True)
    worst = segments.judged(segments.change(together))
    rows = compare(segments.rows(), ">", 0)
    queries = [Query(f"bottomk(10, {worst})", ref="A"), Query(rows, ref="B")]
    leads = style.link(
        choice,
        SEGMENTS,
        "Look at this segment",
        of_row=False,
        model="${model:percentencode}",
        segment_name=style.field("Segment"),
        segment_value=style.field("Value"),
    )
    columns = [
        Column(SEGMENT[0], "Segment"),
        Column(SEGMENT[1], "Value", link=leads),
        Column("Value #A", "To the model", style.PERCENT, style.GAP_STEPS, decimals=1),
        Column("Value #B", "Rows", style.COUNT, decimals=0),
    ]
    return style.rows(
        15,
        "Worst segments",
        "How much worse (below 0) than the model as a whole the main metric of a segment is, as a share; the worst "
        "ten with enough rows first.",
        queries,
        columns,
        size=(24, 8),
        sort=("To the model", False),
        no_value="-",
    )


def _processes(choice: Choice) -> list[Any]:
    fleet = Fleet(choice)
    live = []
    for ratio in (True, False):
        series = " or ".join(str(fleet.each(metric.name)) for metric in _MAIN[ratio])
        live.append(
            style.lines(
                60 if ratio else 61,
                f"{main_names(ratio=ratio)} of each process",
                "The live view: each process over its own window. It explains what the fleet does, and need not "
                "equal it: their mean is not the quality of the fleet.",
                [Query(series, _PROCESS)],
                unit=style.PERCENT if ratio else style.NUMBER,
                no_value="no process has such a metric",
            )
        )
    rows = style.lines(
        62,
        "Rows in the window of each process",
        "How many labelled rows the live view rests on.",
        [Query(fleet.each("window.rows"), _PROCESS)],
        unit=style.COUNT,
        no_value="no process reports",
    )
    age = style.lines(
        63,
        "Age of the oldest row of each process",
        "How far back the live view reaches. It grows where little comes.",
        [Query(fleet.each("window.age"), _PROCESS)],
        unit=style.SECONDS,
        no_value="no process reports",
    )
    outcomes = fleet.rate("outcomes", (OUTCOME,), [f'{OUTCOME}!=""'])
    flow = style.lines(
        64,
        "Right and wrong predictions",
        "Labelled rows per second, by whether the prediction was right (classifiers).",
        [Query(outcomes, f"version {style.version_name(choice, model=False)} {{{{{OUTCOME}}}}}")],
        unit=style.PER_SECOND,
        no_value="no labelled rows",
    )
    return [*live, rows, age, flow]
