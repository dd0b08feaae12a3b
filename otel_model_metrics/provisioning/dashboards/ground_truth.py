"""
Ground truth: do labels come, how late, and for how many predictions? Quality means little where they do not.
"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import dashboard

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import prometheus_label
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import GROUND_TRUTH, MODEL_PAGE, style
from otel_model_metrics.provisioning.dashboards.queries import Fleet
from otel_model_metrics.provisioning.dashboards.style import Column, Query
from otel_model_metrics.provisioning.expressions import Expression
from otel_model_metrics.provisioning.promql import MODEL, VERSION

_OUTCOME, _REASON, _LE = (prometheus_label(name) for name in (catalog.LABEL_OUTCOME, catalog.REJECT_REASON, catalog.LE))
_AGE_STEPS: style.Steps = ((None, style.GREEN), (3600, style.ORANGE), (21600, style.RED))


def ground_truth(choice: Choice) -> dashboard.Dashboard:
    """The page of the labels of all models."""
    made = style.page(
        choice,
        GROUND_TRUTH,
        "Ground truth",
        "Do labels come, how late, and for how many predictions? Quality means little where they do not.",
    )
    fleet = Fleet(choice)
    made.with_panel(
        style.numbers(
            2,
            "Labelled rows",
            "Predictions that got their label within the window, of all chosen models. 0 means that nobody knows how "
            "good they are.",
            [Query(f"sum({fleet.rows()})")],
            size=(5, 6),
            steps=((None, style.RED), (1, "text")),
            no_value="no predictions",
            decimals=0,
        )
    )
    made.with_panel(
        style.numbers(
            3,
            "Newest label",
            "Age of the newest label of the model that has waited longest, among those whose labels come late.",
            [Query(f"max({fleet.gauge('label.age', 'min')})")],
            size=(5, 6),
            unit=style.SECONDS,
            steps=_AGE_STEPS,
            no_value="no model has late labels",
        )
    )
    made.with_panel(
        style.numbers(
            4,
            "Least coverage",
            "The share of predictions that has its label, of the model that has the smallest one: of those old "
            "enough where labels come late, else of all in the window.",
            [Query(f"min({fleet.coverage()})")],
            size=(5, 6),
            unit=style.PERCENT,
            steps=((None, style.RED), (0.05, style.ORANGE), (0.2, style.GREEN)),
            no_value="no predictions",
            decimals=1,
        )
    )
    made.with_panel(
        style.lines(
            9,
            "Labels and rows that are of no use",
            "Per second: labels without a prediction (unmatched), too late (expired), told twice (duplicate) or lost "
            "(dropped), and rows that were rejected, by reason. A join by the wrong id shows here.",
            [
                Query(_some(_sum(fleet.rate("labels", (_OUTCOME,), more=_useless()), _OUTCOME)), f"{{{{{_OUTCOME}}}}}"),
                Query(_some(_sum(fleet.rate("rejected", (_REASON,)), _REASON)), f"rejected: {{{{{_REASON}}}}}"),
            ],
            size=(9, 6),
            unit=style.PER_SECOND,
            no_value="none",
        )
    )
    made.with_panel(_models(choice, fleet))
    made.with_panel(
        style.lines(
            7,
            "Predictions and labels",
            "Per second, of all chosen models: what lies between the two lines waits for its label, or never gets one.",
            [
                Query(f"sum({fleet.rate('predictions')})", "predictions"),
                Query(f"sum({fleet.rate('outcomes')})", "labelled rows"),
            ],
            size=(24, 7),
            unit=style.PER_SECOND,
            no_value="no predictions",
        )
    )
    style.row(made, 20, "How late labels come", _delays(fleet))
    style.row(made, 21, "What waits, and what became of labels", _waiting(fleet))
    style.row(made, 22, "Processes", _processes(fleet))
    return made


def _sum(series: Expression, label: str) -> str:
    return f"sum by ({label}) ({series})"


def _some(rates: str) -> str:
    """Only what there is: most outcomes and reasons never come up, and need no line at 0."""
    return f"{rates} > 0"


def _useless() -> tuple[str, ...]:
    # Those that are rejected have a line for each reason, and predictions that were given up have a panel of their own.
    return (f'{_OUTCOME}=~"unmatched|expired|duplicate|dropped"',)


def _models(choice: Choice, fleet: Fleet) -> Any:
    queries = [
        Query(fleet.evidence(), ref="E"),
        Query(fleet.predictions(), ref="P"),
        Query(fleet.rows(), ref="R"),
        Query(fleet.coverage(), ref="C"),
        Query(fleet.gauge("label.age", "min"), ref="A"),
        Query(fleet.gauge("label.pending", "max"), ref="W"),
        Query(fleet.gauge("label.pending_age", "max"), ref="O"),
        Query(_delay(0.5, fleet), ref="D"),
        Query(_delay(0.9, fleet), ref="N"),
    ]
    columns = [
        Column(
            MODEL,
            "Model",
            link=style.link(
                choice, MODEL_PAGE, "Look at this model", model=style.field("Model"), version=style.field("Version")
            ),
        ),
        Column(VERSION, "Version", width=110),
        *style.columns_of(choice),
        Column("Value #E", "Evidence", words=style.EVIDENCE, filled=True, width=110),
        Column("Value #P", "Predictions", style.COUNT, decimals=0),
        Column("Value #R", "Labelled rows", style.COUNT, decimals=0),
        Column("Value #C", "Coverage", style.PERCENT, decimals=1),
        Column("Value #A", "Newest label", style.SECONDS, _AGE_STEPS),
        Column("Value #W", "Waiting", style.COUNT, decimals=0),
        Column("Value #O", "Longest wait", style.SECONDS),
        Column("Value #D", "Half come within", style.SECONDS),
        Column("Value #N", "90 % come within", style.SECONDS),
    ]
    return style.rows(
        11,
        "Labels of each model",
        "What is known of each version's labels over the window. A dash: its labels come with the predictions, so "
        "that there is nothing to wait for.",
        queries,
        columns,
        size=(24, 8),
        sort=("Evidence", True),
        no_value="-",
    )


def _delay(quantile: float, fleet: Fleet) -> str:
    return _quantile(quantile, fleet.count("label.delays", (_LE,)))


def _quantile(quantile: float, counts: Expression | str) -> str:
    # Without a label in the window it is NaN, which the comparison drops.
    return f"histogram_quantile({quantile}, {counts}) >= 0"


def _delays(fleet: Fleet) -> list[Any]:
    quantiles = [
        Query(_quantile(quantile, _sum(fleet.count("label.delays", (_LE,)), _LE)), name)
        for quantile, name in ((0.5, "half come within"), (0.9, "90 % come within"), (0.99, "99 % come within"))
    ]
    return [
        style.lines(
            5,
            "Delay of labels",
            "Within which time a half, 90 % and 99 % of the labels of the window came, of all chosen models.",
            quantiles,
            size=(12, 8),
            unit=style.SECONDS,
            no_value="no late labels",
        ),
        style.heat(
            6,
            "Distribution of the delay",
            "How many labels came after which delay: the darker, the more. A second band is a second source of labels.",
            Query(_sum(fleet.rate("label.delays", (_LE,)), _LE), f"{{{{{_LE}}}}}"),
            size=(12, 8),
            unit=style.SECONDS,
        ),
    ]


def _waiting(fleet: Fleet) -> list[Any]:
    return [
        style.lines(
            8,
            "Predictions that wait for their label",
            "Of each version. It should level off after as long as labels usually take; if it only grows, labels do "
            "not come.",
            [Query(fleet.gauge("label.pending", "max"), style.version_name(fleet.choice))],
            unit=style.COUNT,
            no_value="nothing waits",
        ),
        style.lines(
            12,
            "Longest wait",
            "Age of the oldest prediction that waits. It ends at the store's ttl, when it is given up.",
            [Query(fleet.gauge("label.pending_age", "max"), style.version_name(fleet.choice))],
            unit=style.SECONDS,
            no_value="nothing waits",
        ),
        style.lines(
            13,
            "What became of labels",
            "Labels per second by outcome, and predictions that were given up: evicted for lack of room (raise "
            "capacity=), or unlabelled when their time was over.",
            [Query(_some(_sum(fleet.rate("labels", (_OUTCOME,)), _OUTCOME)), f"{{{{{_OUTCOME}}}}}")],
            unit=style.PER_SECOND,
            no_value="no late labels",
        ),
    ]


def _processes(fleet: Fleet) -> list[Any]:
    age = fleet.each("window.age")
    labels = ", ".join(fleet.labels)
    return [
        style.lines(
            10,
            "Processes that report",
            "How many processes report each version.",
            [Query(f"count by ({labels}) ({age})", style.version_name(fleet.choice))],
            size=(12, 7),
            unit=style.COUNT,
            no_value="no process reports",
        ),
        style.lines(
            14,
            "Time since the last report",
            "Seconds since any process of each version reported. More than two export intervals: the way to the "
            "store is broken, or the service is.",
            [Query(f"time() - max by ({labels}) (timestamp({age}))", style.version_name(fleet.choice))],
            size=(12, 7),
            unit=style.SECONDS,
            no_value="no process reports",
        ),
    ]
