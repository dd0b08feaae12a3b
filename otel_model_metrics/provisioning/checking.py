"""
Checks of rule files that somebody has edited: what Prometheus would refuse, and what it would accept and never fire.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import prometheus_label
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.rules import Settings, recording_groups

# Also keys that only Mimir, Thanos or vmalert know.
_FILE_KEYS = {"groups", "namespace"}
# With an apiVersion beside one of them, a file provisions the alerting of Grafana.
_GRAFANA_KEYS = {"groups", "contactPoints", "policies"}
_GROUP_KEYS = {"name", "interval", "rules", "limit", "query_offset", "labels", "concurrency", "eval_offset", "type"}
_GROUP_KEYS |= {"source_tenants", "partial_response_strategy", "tenant", "eval_delay", "eval_alignment"}
_RULE_KEYS = {"record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations", "limit", "debug"}
_ALERT_KEYS = ("for", "keep_firing_for", "annotations")
_RECORD_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
# The longest unit first, each once at most.
_DURATION = re.compile(
    "(?=[0-9])" + "".join(f"([0-9]+{unit})?" for unit in ("y", "w", "d", "h", "m", "s", "ms")) + "|0"
)
_LABEL_IN_TEMPLATE = re.compile(r"\$labels\.(\w+)")
_QUERY_IN_TEMPLATE = re.compile(r"`([^`]*)`[^`}]*\| *query\b")


def problems(paths: Iterable[Path], settings: Settings | None = None) -> list[str]:
    """
    What is wrong with rule files, each as one line that says where.

    Files given together are checked together: what one records, another may use. If none of them records quality, the
    rules of the default choice count as loaded too.

    Raises:
        OSError: If a file cannot be read.
    """
    found: list[str] = []
    rules: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        text = path.read_bytes()
        try:
            content = yaml.load(text, _Loader)
        except Exception as error:  # a scalar such as 2026-99-99 raises whatever its constructor does
            found.append(f"{path}: cannot be read as YAML: {_fault(error)}")
            continue
        if _is_for_grafana(content):  # one line: taken for Prometheus', nothing in it would be right
            found.append(
                f"{path}: is a file for Grafana, for it has an apiVersion; this command checks rule files of "
                "Prometheus, such as alerts.yaml"
            )
            continue
        found += [f"{path}: {problem}" for problem in _structure(content)]
        rules += [(f"{path}: {where}", rule) for where, rule in _rules(content)]
    known = Known(settings or Settings(), (rule for _, rule in rules))
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
    return [problem.replace("\n", "\\n") for problem in found]  # names may hold anything


# The file


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML as Prometheus does: a mapping cannot have a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _fault(error: Exception) -> str:
    """What is wrong with the YAML, on one line."""
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
    return f"{f'line {mark.line + 1}: ' if mark else ''}{' '.join(text.split())}"


def _is_for_grafana(content: Any) -> bool:
    return isinstance(content, dict) and "apiVersion" in content and not _GRAFANA_KEYS.isdisjoint(content)


def _structure(content: Any) -> Iterator[str]:
    groups = content.get("groups") if isinstance(content, dict) else None
    if not isinstance(groups, list):
        yield "needs a list under 'groups:' at the top"
        return
    yield from _unknown_keys(content, _FILE_KEYS)
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
    return bool(_DURATION.fullmatch(str(value)))


# A rule


def _rule(rule: Mapping[str, Any], known: Known) -> Iterator[str]:
    yield from _unknown_keys(rule, _RULE_KEYS)
    name = rule.get("record")
    if bool(name) == bool(rule.get("alert")):
        yield f"needs either 'record:' or 'alert:', got {'both' if name else 'neither'}"
    if name:
        if not isinstance(name, str) or not _RECORD_NAME.fullmatch(name):
            yield f"record must be a metric name such as ml_model:f1:1h, got {name!r}"
        yield from (f"'{key}:' is for alerts, not for what is recorded" for key in _ALERT_KEYS if key in rule)
    for key in ("for", "keep_firing_for"):
        if key in rule and not _is_duration(rule[key]):
            yield f"{key} must be a duration such as 5m, got {rule[key]!r}"
    for key in ("labels", "annotations"):
        values = rule.get(key) or {}
        if not isinstance(values, dict) or any(isinstance(value, (dict, list)) for value in values.values()):
            yield f"{key} must map names to texts, got {values!r}"
        else:
            yield from dict.fromkeys(problem for value in values.values() for problem in _template(str(value), known))
            if key == "labels":
                yield from (problem for label, value in values.items() for problem in _value(label, str(value), known))
    expression = rule.get("expr")
    if expression is None or not str(expression).strip():
        yield "needs an expression under 'expr:'"
    else:
        yield from expression_problems(str(expression), known)


def _template(text: str, known: Known) -> Iterator[str]:
    for label in _LABEL_IN_TEMPLATE.findall(text):
        yield from (f"$labels.{label}: {problem}" for problem in _label(label, known))
    for query in _QUERY_IN_TEMPLATE.findall(text):
        query = re.sub("%\\+?[qv]", '""', query)
        yield from (f"the query `{query}` in a template: {problem}" for problem in expression_problems(query, known))


# An expression


class Known:
    """
    Names that an expression may use.

    Args:
        settings: Those of the default rules, which count as loaded if no other rules record quality.
        rules: Rules that may record series and give labels.
    """

    def __init__(self, settings: Settings, rules: Iterable[Mapping[str, Any]] = ()) -> None:
        loaded = [rule for rule in rules if isinstance(rule.get("record"), str)]
        self.by_default = not any(rule["record"].startswith("ml_model:") for rule in loaded)
        loaded += _default_rules(settings) if self.by_default else []
        self.recorded = {rule["record"] for rule in loaded}
        given = (rule.get("labels") for rule in loaded)
        self.labels = {prometheus_label(attribute) for attribute in catalog.ATTRIBUTES}
        self.labels |= {str(label) for labels in given if isinstance(labels, dict) for label in labels}
        self.qualities = {
            settings.gauge(metric.name + suffix, metric.unit): metric.name + suffix
            for metric in catalog.METRICS
            for suffix in ("", *(catalog.BOUNDS if metric.intervals else ()))
            if metric.better
        }
        gauges = {settings.gauge(metric.name, metric.unit) for metric in catalog.METRICS}
        gauges |= {settings.gauge(health.name, health.unit) for health in catalog.HEALTH}
        totals = [*(total.name for total in catalog.TOTALS), *(count.name for count in catalog.COUNTS)]
        counters = {promql.counter_name(name, settings.naming, settings.namespace) for name in totals}
        self.metrics = {settings.gauge(catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT), *self.qualities, *gauges, *counters}
        # Prometheus labels that have a few values only.
        self.values: dict[str, set[str]] = {
            promql.METRIC: {metric.name for metric in catalog.METRICS},
            promql.AVERAGE: set(catalog.AVERAGES),
            promql.TASK: set(catalog.TASKS),
            promql.OUTCOME: {"correct", "wrong"},
            prometheus_label(catalog.DIRECTION): {"over", "under"},
        }
        # Without its namespace a metric of ours is not found either.
        self.prefixes = ("ml_model_", settings.gauge("") + "_")


@lru_cache
def _default_rules(settings: Settings) -> list[Mapping[str, Any]]:
    return [rule for group in recording_groups(settings) for rule in group["rules"]]


def expression_problems(expression: str, known: Known) -> list[str]:
    """What is wrong with one expression."""
    try:
        parsed = promql_parser.parse(expression)
    except ValueError as error:
        return [f"no PromQL: {' '.join(str(error).split())}"]
    found: list[str] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.extend(_selector(node.vector_selector, known))
        elif isinstance(node, promql_parser.VectorSelector):
            found.extend(_selector(node, known))
        elif isinstance(node, promql_parser.AggregateExpr):
            found.extend(_aggregation(node, known))
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            matching, group = node.modifier.matching, node.modifier.group_labels
            for label in (*(matching.labels if matching else ()), *(group or ())):
                found.extend(_label(label, known))
        return True

    promql_parser.walk(parsed, visit)
    return list(dict.fromkeys(found))


def _selector(node: Any, known: Known) -> Iterator[str]:
    matchers = [*node.matchers.matchers, *(one for several in node.matchers.or_matchers for one in several)]
    names = [one.value for one in matchers if one.name == "__name__" and one.op == promql_parser.MatchOp.Equal]
    for name in [node.name] if node.name else names:
        if name.startswith("ml_model:") and name not in known.recorded:
            where = "here or by default" if known.by_default else "in these files"
            yield f"nothing records {name}, {where}{_did_you_mean(name, known.recorded)}"
        elif name not in known.metrics | known.recorded:
            near = _did_you_mean(name, known.metrics | known.recorded, cutoff=0.9)
            if name.startswith(known.prefixes):
                yield f"there is no metric {name}{_did_you_mean(name, known.metrics)}"
            elif near:
                yield f"there is no metric {name}{near}"
    for matcher in matchers:
        yield from _label(matcher.name, known)
        if matcher.op == promql_parser.MatchOp.Equal:
            yield from _value(matcher.name, matcher.value, known)


def _value(label: str, value: str, known: Known) -> Iterator[str]:
    values = known.values.get(label)
    if values and value and value not in values:
        yield f"{label} is never {value!r}{_did_you_mean(value, values)}"


def _aggregation(node: Any, known: Known) -> Iterator[str]:
    for label in node.modifier.labels if node.modifier is not None else ():
        yield from _label(label, known)
    if str(node.op) == "avg":
        for name in _values_of(node.expr):
            if name in known.qualities:
                quality = known.qualities[name]
                fleet = promql.recorded_name(quality, "1h")
                instead = f"{fleet} or totals" if fleet in known.recorded else "min or max, or show each process"
                yield f"the average of {quality} over processes is not that of the fleet; use {instead}"


def _values_of(node: Any) -> Iterator[str]:
    """The names of the series whose values come out of an expression that combines no series."""
    if isinstance(node, promql_parser.AggregateExpr):
        return
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name or ""
    parts = (getattr(node, name, None) for name in ("expr", "vector_selector", "lhs"))
    for part in (*parts, *getattr(node, "args", ())):
        if part is not None:
            yield from _values_of(part)


def _label(name: str, known: Known) -> Iterator[str]:
    if name.startswith("ml_") and name not in known.labels:
        yield f"there is no Prometheus label {name}{_did_you_mean(name, known.labels)}"


def _did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""
