"""
Overview: is anything wrong, with which model, and can the numbers be trusted? One screen for all models.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard, table

from otel_model_metrics import catalog
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import MODEL_PAGE, OVERVIEW, style
from otel_model_metrics.provisioning.dashboards.queries import Fleet, main_names
from otel_model_metrics.provisioning.dashboards.style import Column, Query
from otel_model_metrics.provisioning.expressions import Expression, compare
from otel_model_metrics.provisioning.promql import METRIC, MODEL, VERSION


def overview(choice: Choice) -> dashboard.Dashboard:
    """The page of all models."""
    made = style.page(
        choice,
        OVERVIEW,
        "Overview",
        "Is any model wrong, which one, and can the numbers be trusted? Values are those of all processes together.",
    )
    fleet, name = Fleet(choice), style.version_name(choice)
    # These queries are long, and would be too long for VictoriaMetrics with a list of models in each part.
    margins = _margins(Fleet(choice, matched=()))
    made.with_panel(
        style.numbers(
            2,
            "Objectives missed",
            "How many objectives versions of models miss over the window, by value and with enough rows. 0 is good. "
            "Whether chance explains it, the alerts know.",
            [Query(f"sum(({one}) < bool 0)", ref=f"M{place}") for place, one in enumerate(margins, 1)],
            size=(4, 5),
            steps=((None, style.GREEN), (1, style.RED)),
            no_value="no model has an objective and enough rows",
            summed=True,
        )
    )
    unlabelled = compare(fleet.predictions(), ">", 0).unless(compare(fleet.rows(), ">", 0))
    made.with_panel(
        style.numbers(
            3,
            "Models without labels",
            "Versions that make predictions, of which none has got its label within the window: their quality is not "
            "known. 0 is good.",
            [Query(_count_of(unlabelled).or_else(_count_of(fleet.known()) * 0))],
            size=(4, 5),
            steps=((None, style.GREEN), (1, style.ORANGE)),
            no_value="no models",
        )
    )
    reporting = compare(fleet.predictions(), ">", 0)
    made.with_panel(
        style.numbers(
            4,
            "Models at work",
            "Versions that made predictions within the window, of those that did within a day. It tells a healthy "
            "fleet from one that is silent.",
            [
                Query(_count_of(reporting).or_else(_count_of(fleet.known()) * 0), "at work"),
                Query(_count_of(fleet.known()), "known"),
            ],
            size=(4, 5),
            no_value="no models",
            named=True,
        )
    )
    made.with_panel(style.firing_alerts(5, choice, size=(12, 5)))
    made.with_panel(_models(choice, fleet, margins))
    made.with_panel(
        style.lines(
            8,
            "Predictions",
            "Predictions per second of each version. When labels stop, look here whether predictions did.",
            [Query(fleet.rate("predictions"), name)],
            size=(24, 7),
            unit=style.PER_SECOND,
        )
    )
    style.row(
        made,
        20,
        "Since when",
        [
            style.history(
                7,
                "Worst objective over time",
                "For each version the distance of its worst metric to its objective, as a share of the objective: "
                "below 0 it is missed.",
                [
                    Query(
                        _worst(one, fleet, "min"),
                        name if place <= len(catalog.TASKS) else f"{name}, best process",
                        f"M{place}",
                    )
                    for place, one in enumerate(margins, 1)
                ],
                size=(24, 10),
                steps=style.MARGIN_STEPS,
                unit=style.PERCENT,
            )
        ],
    )
    return made


def _margins(fleet: Fleet) -> list[Expression]:
    """How far from their objectives all models are, in queries that are short enough."""
    return [*(fleet.margins(task) for task in catalog.TASKS), fleet.margins_of_processes()]


def _count_of(series: Expression) -> Expression:
    """How many versions there are among these series."""
    versions = ", ".join(series.labels[:2])
    return Expression(f"count(group by ({versions}) ({series}))")


def _worst(margins: Expression, fleet: Fleet, aggregation: str) -> Expression:
    labels = ", ".join(fleet.labels)
    return Expression(f"{aggregation} by ({labels}) ({margins})", fleet.labels)


def _models(choice: Choice, fleet: Fleet, margins: list[Expression]) -> table.Panel:
    labels = ", ".join(fleet.labels)
    yesterday = Fleet(choice, versions=False, offset="1d")
    queries = [
        Query(f"bottomk by ({labels}) (1, {one})", ref=f"M{place}") for place, one in enumerate(margins, start=1)
    ]
    columns = [
        Column(
            MODEL,
            "Model",
            link=style.link(
                choice,
                MODEL_PAGE,
                "Look at this model",
                model=style.field("Model"),
                version=style.field("Version"),
            ),
        ),
        Column(VERSION, "Version", width=110),
        *style.columns_of(choice),
        Column("Status", "Status", words=style.STATUS, filled=True, width=90),
        Column("Margin", "To objective", style.PERCENT, style.MARGIN_STEPS, width=110, decimals=1),
        Column(METRIC, "Worst metric", width=140),
    ]
    for place, ratio in enumerate((True, False)):
        ref = f"V{place}"
        queries.append(Query(fleet.headline(ratio=ratio), ref=ref))
        columns.append(
            Column(
                f"Value #{ref}",
                main_names(ratio=ratio),
                style.PERCENT if ratio else style.NUMBER,
                width=110,
                decimals=None if ratio else 3,
            )
        )
    queries += [
        Query(fleet.change(yesterday), ref="C"),
        Query(fleet.evidence(), ref="E"),
        Query(fleet.rows(), ref="R"),
        Query(fleet.gauge("label.age", "min"), ref="A"),
        Query(fleet.coverage(), ref="L"),
    ]
    columns += [
        Column(
            "Value #C",
            "To yesterday",
            style.PERCENT,
            ((None, style.ORANGE), (-style.NEAR, "text")),
            width=110,
            decimals=1,
        ),
        Column("Value #E", "Evidence", words=style.EVIDENCE, width=110),
        Column("Value #R", "Rows", style.COUNT, width=90, decimals=0),
        Column(
            "Value #A",
            "Newest label",
            style.SECONDS,
            ((None, "text"), (3600, style.ORANGE), (21600, style.RED)),
            width=110,
        ),
        Column("Value #L", "Coverage", style.PERCENT, width=100),
    ]
    return style.rows(
        6,
        "Models",
        "One row for each version, the one furthest below an objective first; a second row if there are objectives, "
        "too, for metrics that no total tells, which are those of the best process. To objective: how much better "
        "(above 0) or worse the worst metric is, as a share of the objective; without one, or without enough rows, a "
        "dash. To yesterday: the same for the main metric and that of the model 24 hours ago. Click on a model for "
        "more.",
        queries,
        columns,
        size=(24, 10),
        sort=("To objective", False),
        no_value="-",
        merged=style.margins_and_status(len(margins)),
    )
