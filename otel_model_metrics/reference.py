"""
The tables of the README, made from the catalogue and from the alerts.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from otel_model_metrics import catalog, encoding
from otel_model_metrics.ground_truth.outcomes import PREDICTION_OUTCOMES, LabelOutcome
from otel_model_metrics.provisioning import alerts
from otel_model_metrics.provisioning.rules import Settings

_DIRECTIONS = {"higher": "higher", "lower": "lower", "zero": "near 0", "": ""}


def metric_table() -> str:
    """Every gauge, as a Markdown table."""
    lines = [
        "| `ml.model.` + | tasks | unit | better | bounds | in segments | what it says |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in catalog.METRICS:
        tasks = "all" if len(metric.functions) == len(catalog.TASKS) else ", ".join(metric.functions)
        told_apart = {"class": "`ml.average`, `ml.class`", "k": "`ml.k`"}
        by = ", ".join(dict.fromkeys(told_apart[by] for by in metric.by.values()))
        cells = (
            f"`{metric.name}`" + (f" by {by}" if by else ""),
            tasks,
            f"`{metric.unit}`",
            _DIRECTIONS[metric.better],
            "`.lower` `.upper`" if metric.intervals else "",
            "yes" if metric.in_segments else "",
            metric.description,
        )
        lines.append("| " + " | ".join(cells) + " |")
    for health in catalog.HEALTH:
        by = f" by `{catalog.QUANTILE}`" if health.by_quantile else ""
        in_segments = "yes" if health.in_segments else ""
        lines.append(f"| `{health.name}`{by} | all | `{health.unit}` |  |  | {in_segments} | {health.description} |")
    lines.append(f"| `{catalog.OBJECTIVE}` by `{catalog.METRIC}` | all | | | | | {catalog.OBJECTIVE_DESCRIPTION} |")
    return "\n".join(lines)


def total_table() -> str:
    """Every counter, as a Markdown table."""
    naming = catalog.Naming(("a", "b"), (1,))
    rows: dict[str, tuple[str, str, str, str]] = {}
    for total in catalog.TOTALS:
        count = 4 if total.name == "outcomes" else 2
        attributes = ", ".join(f"`{name}`" for name in total.cells(naming, count)[0])
        tasks = ", ".join(total.tasks)
        before = rows.get(total.name)
        if before:
            tasks = f"{before[0]}, {tasks}"
            attributes = before[2]
        rows[total.name] = (tasks, total.unit, attributes, total.description)
    for count_of in catalog.COUNTS:
        rows[count_of.name] = ("all", count_of.unit, f"`{count_of.attribute}`", count_of.description)
    lines = ["| `ml.model.` + | tasks | unit | attributes | what it counts |", "|---|---|---|---|---|"]
    for name, (tasks, unit, attributes, description) in rows.items():
        shown = "all" if all(task in tasks for task in catalog.TASKS) else tasks
        lines.append(f"| `{name}` | {shown} | `{unit}` | {attributes} | {description} |")
    return "\n".join(lines)


def rejection_list() -> str:
    """The values of ``ml.reject.reason``."""
    return ", ".join(f"`{reason}`" for reason in encoding.REASONS)


def outcome_table() -> str:
    """The values of ``ml.label.outcome``, as a Markdown table."""
    lines = ["| `ml.label.outcome` | what became of the label |", "|---|---|"]
    described = re.findall(r"^ {4}([A-Z]+): (.*?)(?=^ {4}[A-Z]+:|\Z)", inspect.getdoc(LabelOutcome) or "", re.M | re.S)
    lines += [f"| `{name.lower()}` | {' '.join(text.split()).replace('``', '`')} |" for name, text in described]
    lines += [f"| `{name}` | {text} |" for name, text in PREDICTION_OUTCOMES.items()]
    return "\n".join(lines)


def alert_table() -> str:
    """Every alert, as a Markdown table."""
    lines = ["| alert | severity | when |", "|---|---|---|"]
    for families in alerts.FAMILIES.values():
        for family in families:
            made = list(family(Settings()))
            when = inspect.getdoc(family) or ""
            for name in dict.fromkeys(alert.name for alert in made):
                severities = dict.fromkeys(alert.severity for alert in made if alert.name == name)
                lines.append(f"| `{name}` | {', '.join(severities)} | {' '.join(when.split())} |")
    return "\n".join(lines)


GENERATED = {
    "metrics": metric_table,
    "totals": total_table,
    "outcomes": outcome_table,
    "reasons": rejection_list,
    "alerts": alert_table,
}


def rebuilt(text: str) -> str:
    """
    A Markdown text with its generated parts made anew; they stand between ``<!-- name -->`` and ``<!-- /name -->``.
    """
    for name, make in GENERATED.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        made = make()
        text = pattern.sub(lambda found, made=made: found[1] + made + "\n" + found[2], text)  # type: ignore[misc]
    return text


def update(readme: Path) -> bool:
    """Rebuild a file; returns whether it changed."""
    before = readme.read_text(encoding="utf-8")
    after = rebuilt(before)
    readme.write_text(after, encoding="utf-8")
    return before != after
