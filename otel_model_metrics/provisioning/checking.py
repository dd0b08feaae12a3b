"""
Checks of rule files that somebody has edited: what Prometheus would refuse, and what it would accept and never fire.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from otel_model_metrics import catalog
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.rules import Settings, recording_groups

_GROUP_KEYS = {"name", "interval", "rules", "limit", "query_offset", "labels", "concurrency", "eval_offset", "type"}
_RULE_KEYS = {"record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations", "limit", "debug"}
_RECORD_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_DURATION = re.compile(r"([0-9]+(ms|[smhdwy]))+|0")
_LABEL_IN_TEMPLATE = re.compile(r"\$labels\.(\w+)")


def problems(paths: Iterable[Path], settings: Settings | None = None) -> list[str]:
    """
    What is wrong with rule files, each as one line that says where.

    Files given together are checked together: what one records, another may use. Rules of the default choice count as
    loaded too.

    Raises:
        OSError: If a file cannot be read.
    """
    settings = settings or Settings()
    found: list[str] = []
    rules: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            found.append(f"{path}: is no YAML: {' '.join(str(error).split())}")
            continue
        found += [f"{path}: {problem}" for problem in _structure(content)]
        rules += [(f"{path}: {where}", rule) for where, rule in _rules(content)]
    recorded = {rule["record"] for _, rule in rules if isinstance(rule.get("record"), str)}
    recorded |= {rule["record"] for group in recording_groups(settings) for rule in group["rules"]}
    known = _Known(settings, recorded)
    seen: dict[Any, str] = {}
    for where, rule in rules:
        found += [f"{where}: {problem}" for problem in _rule(rule, known)]
        labels = rule.get("labels")
        key = (
            str(rule.get("record") or rule.get("alert")),
            str(rule.get("expr")) if rule.get("alert") else "",
            tuple(sorted(map(str, labels.items()))) if isinstance(labels, dict) else (),
        )
        if key in seen:
            found.append(f"{where}: is there twice, with the same labels: {seen[key]}")
        seen.setdefault(key, where)
    return found


# The file


def _structure(content: Any) -> Iterator[str]:
    groups = content.get("groups") if isinstance(content, dict) else None
    if not isinstance(groups, list):
        yield "needs a list under 'groups:' at the top"
        return
    names: set[str] = set()
    for number, group in enumerate(groups, start=1):
        if not isinstance(group, dict) or not isinstance(group.get("name"), str):
            yield f"group {number} needs a name"
            continue
        name = group["name"]
        if name in names:
            yield f"two groups are named {name!r}"
        names.add(name)
        yield from (f"group {name}: {text}" for text in _unknown_keys(group, _GROUP_KEYS))
        if "interval" in group and not _is_duration(group["interval"]):
            yield f"group {name}: interval must be a duration such as 1m, got {group['interval']!r}"
        if not isinstance(group.get("rules"), list):
            yield f"group {name}: needs a list of rules"
        else:
            yield from (
                f"group {name}: rule {place} must be a mapping, got {rule!r}"
                for place, rule in enumerate(group["rules"], start=1)
                if not isinstance(rule, dict)
            )


def _rules(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule that is one, and where it is."""
    groups = content.get("groups") if isinstance(content, dict) else None
    for group in groups if isinstance(groups, list) else ():
        listed = group.get("rules") if isinstance(group, dict) else None
        for number, rule in enumerate(listed if isinstance(listed, list) else (), start=1):
            if isinstance(rule, dict):
                name = rule.get("alert") or rule.get("record") or "nameless"
                labels = rule.get("labels")
                told_apart = f" {labels[promql.METRIC]}" if isinstance(labels, dict) and promql.METRIC in labels else ""
                yield f"{group.get('name', '?')}, rule {number} ({name}{told_apart})", rule


def _unknown_keys(mapping: Mapping[Any, Any], known: set[str]) -> Iterator[str]:
    for key in mapping:
        if key not in known:
            yield f"unknown key {key!r}{_did_you_mean(str(key), known)}"


def _is_duration(value: Any) -> bool:
    return isinstance(value, str) and bool(_DURATION.fullmatch(value))


# A rule


def _rule(rule: Mapping[str, Any], known: _Known) -> Iterator[str]:
    yield from _unknown_keys(rule, _RULE_KEYS)
    if ("record" in rule) == ("alert" in rule):
        yield "needs either 'record:' or 'alert:'"
    name = rule.get("record")
    if "record" in rule and not (isinstance(name, str) and _RECORD_NAME.fullmatch(name)):
        yield f"record must be a metric name such as ml_model:f1:1h, got {name!r}"
    for key in ("for", "keep_firing_for"):
        if key in rule and not _is_duration(rule[key]):
            yield f"{key} must be a duration such as 5m, got {rule[key]!r}"
    for key in ("labels", "annotations"):
        values = rule.get(key) or {}
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            yield f"{key} must map names to texts; numbers need quotes"
        else:
            yield from _templates(values, known)
    expression = rule.get("expr")
    if not isinstance(expression, str) or not expression.strip():
        yield "needs an expression under 'expr:'"
        return
    try:
        parsed = promql_parser.parse(expression)
    except ValueError as error:
        yield f"the expression is no PromQL: {' '.join(str(error).split())}"
        return
    yield from dict.fromkeys(_expression(parsed, known))


def _templates(values: Mapping[str, str], known: _Known) -> Iterator[str]:
    for text in values.values():
        for label in _LABEL_IN_TEMPLATE.findall(text):
            if label.startswith("ml_") and label not in known.labels:
                yield f"$labels.{label} is no Prometheus label of ours{_did_you_mean(label, known.labels)}"


# An expression


class _Known:
    """Names that an expression may use."""

    def __init__(self, settings: Settings, recorded: set[str]) -> None:
        self.prefix = f"{settings.namespace}_ml_model_" if settings.namespace else "ml_model_"
        self.recorded = recorded
        gauges = {
            settings.gauge(metric.name + suffix, metric.unit)
            for metric in catalog.METRICS
            for suffix in ("", *(catalog.BOUNDS if metric.intervals else ()))
        }
        self.qualities = {
            settings.gauge(metric.name, metric.unit): metric for metric in catalog.METRICS if metric.better
        }
        totals = [*(total.name for total in catalog.TOTALS), *(count.name for count in catalog.COUNTS)]
        counters = {promql.counter_name(name, settings.naming, settings.namespace) for name in totals}
        self.metrics = gauges | counters | {settings.gauge(catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT)}
        self.labels = {promql.prometheus_label(attribute) for attribute in catalog.ATTRIBUTES}


def _expression(parsed: promql_parser.Expr, known: _Known) -> Iterator[str]:
    found: list[str] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.extend(_selector(node.vector_selector, known))
        elif isinstance(node, promql_parser.VectorSelector):
            found.extend(_selector(node, known))
        elif isinstance(node, promql_parser.AggregateExpr):
            found.extend(_aggregation(node, known))
        return True

    promql_parser.walk(parsed, visit)
    return iter(found)


def _selector(node: Any, known: _Known) -> Iterator[str]:
    name = node.name
    if name and name.startswith("ml_model:") and name not in known.recorded:
        yield f"nothing records {name}{_did_you_mean(name, known.recorded)}"
    if name and name.startswith(known.prefix) and name not in known.metrics:
        yield f"there is no metric {name}{_did_you_mean(name, known.metrics)}"
    for matcher in node.matchers.matchers:
        yield from _label(matcher.name, known)


def _aggregation(node: Any, known: _Known) -> Iterator[str]:
    modifier = node.modifier
    for label in modifier.labels if modifier is not None else ():
        yield from _label(label, known)
    metric = known.qualities.get(getattr(node.expr, "name", None) or "")
    if metric is not None and str(node.op) == "avg":
        yield (
            f"the average of {metric.name} over processes is not that of the fleet; use "
            f"{promql.recorded_name(metric.name, '1h')} or totals"
        )


def _label(name: str, known: _Known) -> Iterator[str]:
    if name.startswith("ml_") and name not in known.labels:
        yield f"there is no Prometheus label {name}{_did_you_mean(name, known.labels)}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
