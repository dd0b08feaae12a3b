"""
Segments: which slice of the traffic does a model serve worse than the rest, since when, and how much of it is there?
"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import dashboard

from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import SEGMENTS, style
from otel_model_metrics.provisioning.dashboards.queries import Fleet, main_names
from otel_model_metrics.provisioning.dashboards.style import Column, Query
from otel_model_metrics.provisioning.expressions import Expression, compare
from otel_model_metrics.provisioning.promql import MODEL, SEGMENT, VERSION, K
from otel_model_metrics.provisioning.rules import distinct, fleet_metrics

_SEGMENT = f"{{{{{SEGMENT[1]}}}}}"


def segments(choice: Choice) -> dashboard.Dashboard:
    """The page of the segments of one model."""
    made = style.page(
        choice,
        SEGMENTS,
        "Segments",
        "Which slice of the traffic does a model serve worse than the rest, since when, and how much of it is there? "
        "Values are those of all processes together, over the window.",
        segments=True,
    )
    whole = Fleet(choice, versions=False)
    parts = Fleet(choice, versions=False, segments=True, matched=(MODEL, VERSION, *SEGMENT))
    gaps = parts.change(whole)
    judged = parts.judged(gaps)
    made.with_panel(
        style.numbers(
            2,
            "Worse segments",
            "Segments with enough rows whose main metric is notably worse than that of the model: by a quarter more "
            "errors, or by a twentieth if it is no share of rows. The alert asks for that too, and that chance does "
            "not explain it. 0 is good.",
            [Query(f"count({parts.judged(parts.worse(whole))}) or count({parts.enough()}) * 0")],
            size=(5, 5),
            steps=((None, style.GREEN), (1, style.RED)),
            no_value="no segment has enough rows",
        )
    )
    made.with_panel(
        style.numbers(
            3,
            "Largest gap",
            "How much worse (below 0) than the model its worst segment with enough rows is, as a share.",
            [Query(f"min({judged})")],
            size=(5, 5),
            unit=style.PERCENT,
            steps=style.GAP_STEPS,
            no_value="no segment has enough rows",
            decimals=1,
        )
    )
    made.with_panel(
        style.numbers(
            4,
            "Segments not judged",
            "Segments that have too few labelled rows in the window to say anything, of all that have some.",
            [
                Query(f"count({parts.rows()} > 0) - (count({parts.enough()}) or vector(0))", "too few rows"),
                Query(f"count({compare(parts.rows(), '>', 0)})", "all"),
            ],
            size=(6, 5),
            no_value="no segments",
            named=True,
        )
    )
    made.with_panel(
        style.numbers(
            9,
            "Rows not told apart",
            "Rows of the window whose segment value came after the first max_segment_values ones: they are one "
            "segment, __other__. More than a few: raise the bound, or record a coarser segment.",
            [
                Query(f"sum({whole.count('segments.overflowed')})", "in __other__"),
                Query(f"sum({whole.predictions()})", "all"),
            ],
            size=(8, 5),
            no_value="no segments",
            named=True,
            decimals=0,
        )
    )
    made.with_panel(_table(choice, whole, parts, gaps))
    made.with_panel(_chart(whole, parts))
    style.row(
        made,
        20,
        "Since when, and how much of the traffic",
        [
            style.history(
                6,
                "Gap to the model over time",
                "How much worse (below 0) than the model each segment is, as a share of the model's value.",
                [Query(judged, _SEGMENT)],
                size=(24, 9),
                steps=style.GAP_STEPS,
                unit=style.PERCENT,
            ),
            style.lines(
                8,
                "Share of the traffic",
                "Predictions of each segment, as a share of them all. When the mix shifts, the model as a whole "
                "moves though no segment does.",
                [Query(parts.rate("predictions"), _SEGMENT)],
                size=(24, 8),
                unit=style.PER_SECOND,
                stacked=True,
                no_value="no predictions",
            ),
        ],
    )
    style.row(made, 21, "Every metric of each segment", [_metrics(parts)])
    return made


def _metrics(parts: Fleet) -> Any:
    queries = [Query(parts.rows(), ref="R")]
    columns = [Column(SEGMENT[0], "Segment"), Column(SEGMENT[1], "Value")]
    for place, metric in enumerate(
        metric for metric in distinct(fleet_metrics()) if metric.in_segments and metric.better
    ):
        by_k = "k" in metric.by.values()
        queries.append(Query(parts.of_any_task(metric), ref=f"S{place}"))
        title = f"{metric.name} of the first k" if by_k else metric.name
        unit = style.unit_of(metric.unit)
        columns.append(Column(f"Value #S{place}", title, unit, decimals=1 if unit == style.PERCENT else 3))
    return style.rows(
        10,
        "Metrics",
        "Every metric that segments have, over the window: the one that an alert names is here, if it is not the "
        "main one. Of multiclass models they are averages over classes; cut-offs of rankings have a row each.",
        queries,
        [*columns, Column(K, "k", width=50), Column("Value #R", "Rows", style.COUNT, decimals=0)],
        size=(24, 9),
        sort=("Value", False),
        no_value="-",
    )


def _table(choice: Choice, whole: Fleet, parts: Fleet, gaps: Expression) -> Any:
    predictions = parts.predictions() / compare(whole.predictions(), ">", 0)
    queries = [Query(gaps, ref="G"), Query(parts.rows(), ref="R"), Query(predictions, ref="S")]
    columns = [
        Column(SEGMENT[0], "Segment"),
        Column(SEGMENT[1], "Value"),
        Column("Value #G", "To the model", style.PERCENT, style.GAP_STEPS, filled=True, decimals=1),
    ]
    for ratio, letters in ((True, "ABC"), (False, "DEF")):
        name, unit = main_names(ratio=ratio), style.PERCENT if ratio else style.NUMBER
        for letter, suffix, title in zip(letters, ("", ".lower", ".upper"), ("", " at least", " at most"), strict=True):
            queries.append(Query(parts.headline(suffix, ratio=ratio), ref=letter))
            columns.append(Column(f"Value #{letter}", f"{name}{title}", unit, decimals=1 if ratio else 3))
    columns += [
        Column("Value #R", "Rows", style.COUNT, decimals=0),
        Column("Value #S", "Share", style.PERCENT, decimals=1),
    ]
    return style.rows(
        5,
        "Segments",
        "Each segment over the window, the worst first: its main metric with its 95 % interval, and how it compares "
        "with the model as a whole (below 0 is worse). Mind the rows: with few of them a gap means little.",
        queries,
        columns,
        size=(24, 9),
        sort=("To the model", False),
        no_value="-",
    )


def _chart(whole: Fleet, parts: Fleet) -> Any:
    panel = style.lines(
        7,
        "Segments and the model",
        "The main metric of the chosen segments, and of the model as a whole as a dashed line.",
        [
            Query(parts.headline(ratio=True), _SEGMENT, "A"),
            Query(whole.headline(ratio=True), "the model", "B"),
            Query(parts.headline(ratio=False), _SEGMENT, "C"),
            Query(whole.headline(ratio=False), "the model", "D"),
        ],
        size=(24, 8),
        unit=style.PERCENT,
        no_value="no labelled rows",
    )
    for letter in "CD":
        style.per_query(panel, letter, style.NUMBER, max=None)
    return style.dashed(panel, "the model")
