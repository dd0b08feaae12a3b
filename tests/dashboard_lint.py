"""
What can be said of a dashboard without a store: each check is a promise, and yields a sentence wherever it is broken.

`LINTER` are the rules of grafana/dashboard-linter, but those for logs; `CHECKS` are these and our own. Nothing here
knows how the dashboards were made: a page is what Grafana reads.
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import promql_parser
import pytest

pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk needs Python 3.11 or newer")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units

with warnings.catch_warnings():
    # The form that Grafana 13 prefers is not read by older ones; ours is read by all.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.models.dashboard import Dashboard

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import prometheus_label
from otel_model_metrics.provisioning.checking import Known
from otel_model_metrics.provisioning.choice import Choice

register_default_plugins()

Content = dict[str, Any]
Panel = dict[str, Any]
Check = Callable[["Page"], Iterator[str]]

TAG = "ml-model-quality"
WIDTH = 24
MOST_OPEN_PANELS, MOST_OPEN_QUERIES = 6, 25

# The panels that the linter knows. Those of ours that it does not know have to keep the same rules.
CORE = {"stat", "singlestat", "graph", "table", "timeseries", "gauge"}
ASKING = CORE | {"heatmap", "status-history", "state-timeline", "bargauge"}

UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}

# Variables that Grafana knows by itself.
BUILT_IN = {"__data", "__url_time_range", "__rate_interval", "__interval", "__range"}
VARIABLE = re.compile(r"\$\{(\w+)[^}]*\}|\$([A-Za-z_]\w*)|\[\[(\w+)[^\]]*\]\]")
LABEL_IN_TEXT = re.compile(r"\{\{\s*([^}]*?)\s*\}\}")
FIELD_IN_LINK = re.compile(r'__data\.fields\["([^"]*)"\]')
LABEL_VALUES = re.compile(r"(\w+)\((?:(.+), *)?(\w+)\)")

# Prometheus labels that are not ours: those of alerts, and what tells processes apart by either way.
FOREIGN_LABELS = {"alertname", "alertstate", "instance", "service_instance_id"}
FOREIGN_METRICS = {"ALERTS"}

# Found again in a parsed expression.
RATE_INTERVAL = 1234
DURATIONS = {"__rate_interval": f"{RATE_INTERVAL}s", "window": "15m"}


@dataclass(frozen=True)
class Page:
    """
    One dashboard among the others.

    Attributes:
        name: Of its file, without the suffix.
        site: All dashboards by the names of their files.
        choice: What they were made with.
    """

    name: str
    site: Mapping[str, Content]
    choice: Choice = field(default_factory=Choice)

    @property
    def content(self) -> Content:
        return self.site[self.name]

    @cached_property
    def rows(self) -> list[Panel]:
        return [panel for panel in self.content["panels"] if panel["type"] == "row"]

    @cached_property
    def open(self) -> list[Panel]:
        """What is asked for and drawn at once."""
        return [panel for panel in self.content["panels"] if panel["type"] != "row"]

    @cached_property
    def panels(self) -> list[Panel]:
        """All that are no row, wherever they are."""
        return [*self.open, *(panel for row in self.rows for panel in row.get("panels", []))]

    @cached_property
    def targets(self) -> list[tuple[Panel, Content]]:
        return [(panel, target) for panel in self.panels for target in panel.get("targets", [])]

    @cached_property
    def variables(self) -> dict[str, Content]:
        return {variable["name"]: variable for variable in self.content["templating"]["list"]}

    @cached_property
    def queries(self) -> list[tuple[str, str]]:
        """Every PromQL there is, and where."""
        found = [(f"{called(panel)}, {one.get('refId')}", one.get("expr", "")) for panel, one in self.targets]
        found += [(f"annotation {one['name']!r}", one["expr"]) for one in self.content["annotations"]["list"]]
        for name, variable in self.variables.items():
            among = LABEL_VALUES.fullmatch(variable["query"]) if variable["type"] == "query" else None
            if among and among[2]:
                found.append((f"variable {name!r}", among[2]))
        return found

    @cached_property
    def parsed(self) -> list[tuple[str, Parsed]]:
        """Every PromQL that can be read; what cannot is said by another check."""
        found = []
        for where, expression in self.queries:
            try:
                found.append((where, parse(expression)))
            except ValueError:
                continue
        return found

    @cached_property
    def known(self) -> Known:
        return known(self.choice)


@cache
def known(choice: Choice) -> Known:
    """Names that exist, as `otel-model-metrics check` knows them."""
    return Known(choice.settings)


def called(panel: Panel) -> str:
    return f"panel {panel.get('id')} {panel.get('title', '')!r}"


# PromQL


@dataclass(frozen=True)
class Selector:
    """
    A selector of series.

    Attributes:
        name: Of the metric; empty if matchers have it.
        matchers: Label, operation, value.
        seconds: How far it looks back; None for an instant.
        inside: What it is an argument of: functions and aggregations, the innermost first.
    """

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    seconds: float | None
    inside: tuple[str, ...]


@dataclass(frozen=True)
class Parsed:
    """
    What there is in an expression.

    Attributes:
        selectors: All of them.
        mentioned: Labels in ``by``, ``on`` and so on.
        labels: Those of its results; None for all that the series have.
        telling: Those by which its results differ: of the worst of each group, only those of the group.
    """

    selectors: tuple[Selector, ...]
    mentioned: frozenset[str]
    labels: frozenset[str] | None
    telling: frozenset[str]


@cache
def parse(expression: str) -> Parsed:
    """
    What there is in an expression of a dashboard.

    Raises:
        ValueError: If it is none.
    """

    def value(found: re.Match[str]) -> str:
        return DURATIONS.get(name_in(found), "1")

    # Inside quotes a variable is as good as any other text.
    parts = re.split(r'("(?:[^"\\]|\\.)*"|`[^`]*`)', expression)
    plain = "".join(part if part.startswith(('"', "`")) else VARIABLE.sub(value, part) for part in parts)
    selectors: list[Selector] = []
    mentioned: set[str] = set()
    whole = promql_parser.parse(plain)
    labels = telling = _read(whole, (), selectors, mentioned)
    if isinstance(whole, promql_parser.AggregateExpr) and whole.modifier is not None:
        telling = frozenset(whole.modifier.labels)
    return Parsed(tuple(selectors), frozenset(mentioned), labels, telling or frozenset())


def _read(node: Any, inside: tuple[str, ...], into: list[Selector], mentioned: set[str]) -> frozenset[str] | None:
    """The labels of a node's results; notes what is in it."""
    if isinstance(node, promql_parser.MatrixSelector):
        into.append(_selector(node.vector_selector, inside, node.range.total_seconds()))
        return None
    if isinstance(node, promql_parser.VectorSelector):
        into.append(_selector(node, inside, None))
        return None
    if isinstance(node, promql_parser.Call):
        return _read_call(node, inside, into, mentioned)
    if isinstance(node, promql_parser.AggregateExpr):
        named = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
        mentioned.update(named)
        operation = str(node.op)
        labels = _read(node.expr, (operation, *inside), into, mentioned)
        if operation in ("topk", "bottomk", "limitk"):
            return labels
        if node.modifier is not None and node.modifier.type == promql_parser.LabelModifierType.Exclude:
            return None if labels is None else labels - named
        return named
    if isinstance(node, promql_parser.BinaryExpr):
        return _read_operation(node, inside, into, mentioned)
    if isinstance(node, promql_parser.SubqueryExpr):
        return _read(node.expr, ("subquery", *inside), into, mentioned)
    if isinstance(node, (promql_parser.NumberLiteral, promql_parser.StringLiteral)):
        return frozenset()
    return _read(node.expr, inside, into, mentioned)  # parentheses, a sign


def _selector(node: Any, inside: tuple[str, ...], seconds: float | None) -> Selector:
    matchers = tuple((one.name, _operation(one.op), one.value) for one in node.matchers.matchers)
    return Selector(node.name or "", matchers, seconds, inside)


def _operation(operation: Any) -> str:
    kinds = promql_parser.MatchOp
    return {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}[
        next(name for name in ("Equal", "NotEqual", "Re", "NotRe") if getattr(kinds, name) == operation)
    ]


def _read_call(node: Any, inside: tuple[str, ...], into: list[Selector], mentioned: set[str]) -> frozenset[str] | None:
    function = node.func.name
    found = [
        _read(one, (function, *inside), into, mentioned)
        for one in node.args
        if not isinstance(one, (promql_parser.NumberLiteral, promql_parser.StringLiteral))
    ]
    if function in ("vector", "scalar", "time"):
        return frozenset()
    labels = found[0] if found else frozenset()
    if function == "label_replace":
        mentioned.update((node.args[1].val, node.args[3].val) if node.args[3].val else (node.args[1].val,))
        return None if labels is None else labels | {node.args[1].val}
    return labels - {"le"} if function == "histogram_quantile" and labels is not None else labels


def _read_operation(
    node: Any, inside: tuple[str, ...], into: list[Selector], mentioned: set[str]
) -> frozenset[str] | None:
    left, right = (_read(one, inside, into, mentioned) for one in (node.lhs, node.rhs))
    modifier = node.modifier
    matching = modifier.matching if modifier is not None else None
    more = frozenset(modifier.group_labels or ()) if modifier is not None else frozenset()
    mentioned.update(more)
    if matching is not None:
        mentioned.update(matching.labels)
    operation = str(node.op)
    if operation in ("and", "unless"):
        return left
    if operation == "or":
        return None if left is None or right is None else left | right
    if _is_number(node.lhs) or _is_number(node.rhs):
        return right if _is_number(node.lhs) else left
    if modifier is not None and modifier.card == promql_parser.VectorMatchCardinality.ManyToOne:
        return None if left is None else left | more
    if modifier is not None and modifier.card == promql_parser.VectorMatchCardinality.OneToMany:
        return None if right is None else right | more
    if matching is not None and matching.type == promql_parser.LabelModifierType.Include:
        return frozenset(matching.labels)
    return left


def _is_number(node: Any) -> bool:
    while isinstance(node, (promql_parser.ParenExpr, promql_parser.UnaryExpr)):
        node = node.expr
    return isinstance(node, promql_parser.NumberLiteral) or (
        isinstance(node, promql_parser.Call) and node.func.name in ("time", "scalar")
    )


# Texts


def name_in(found: re.Match[str]) -> str:
    return next(name for name in found.groups() if name)


def variables_in(text: str) -> set[str]:
    return {name_in(found) for found in VARIABLE.finditer(text)}


def texts(content: Any) -> Iterator[str]:
    """Every text in a part of a dashboard, but what is chosen at first."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for name, value in content.items():
            if name != "current":
                yield from texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from texts(value)


def keyed(content: Any, key: str) -> Iterator[Any]:
    """Every value of a key in a part of a dashboard."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from keyed(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from keyed(value, key)


# What Grafana makes of a panel


@dataclass
class Fields:
    """
    The fields that a table or stat has in the end.

    Attributes:
        names: All of them, but those that only the data know.
        problems: What is asked for and does not exist.
    """

    names: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def need(self, what: str, names: Iterable[str]) -> None:
        missing = (name for name in names if name not in self.names)
        self.problems += [f"{what} names a field {name!r} that does not exist" for name in missing]


def fields_of(panel: Panel) -> Fields:
    """The fields of a table after its transformations, as Grafana names them."""
    found = Fields()
    targets = panel.get("targets", [])
    for target in targets:
        labels = parse(target["expr"]).labels
        if labels is None:
            found.problems.append(f"{target['refId']} has whatever labels the series have")
        value = "Value" if len(targets) == 1 else f"Value #{target['refId']}"
        found.names |= {"Time", value, *(labels or ())}
    for transformation in panel.get("transformations", []):
        _transform(found, transformation["id"], transformation["options"])
    return found


def _transform(found: Fields, kind: str, options: Content) -> None:
    if kind == "calculateField":
        found.need(kind, options["reduce"].get("include", ()))
        found.names = {options["alias"]} | (set() if options.get("replaceFields") else found.names)
    elif kind == "filterFieldsByName":
        found.need(kind, options["include"]["names"])
        found.names &= set(options["include"]["names"])
    elif kind == "organize":
        renamed = options["renameByName"]
        found.need(kind, (*renamed, *options["indexByName"], *options["excludeByName"]))
        titles = [renamed.get(name, name) for name in found.names]
        found.problems += [f"two columns are called {name!r}" for name, count in Counter(titles).items() if count > 1]
        found.names = set(titles)
    elif kind == "sortBy":
        found.need(kind, (one["field"] for one in options["sort"]))
    elif kind == "groupingToMatrix":
        row, column = options["rowField"], options["columnField"]
        found.need(kind, (row, column, options["valueField"]))
        found.names = {f"{row}\\{column}"}
    elif kind == "joinByField":
        found.need(kind, [options["byField"]])
    elif kind != "merge":
        found.problems.append(f"transformation {kind!r} is not known here")


def properties_of(override: Content) -> dict[str, Any]:
    return {one["id"]: one.get("value") for one in override["properties"]}


def overrides_of(panel: Panel) -> list[Content]:
    return list(panel.get("fieldConfig", {}).get("overrides", []))


def defaults_of(panel: Panel) -> Content:
    return dict(panel.get("fieldConfig", {}).get("defaults", {}))


# The linter


LINTER: dict[str, Check] = {}
CHECKS: dict[str, Check] = {}


def rule(name: str) -> Callable[[Check], Check]:
    """A rule of the linter, as it is coded there."""

    def registered(one: Check) -> Check:
        LINTER[name] = CHECKS[name] = one
        return one

    return registered


def check(one: Check) -> Check:
    """One of ours, named after what it promises."""
    CHECKS[one.__name__] = one
    return one


@rule("template-datasource-rule")
def _(page: Page) -> Iterator[str]:
    sources = [one for one in page.variables.values() if one["type"] == "datasource"]
    if not sources:
        yield "has no variable for the data source"
    for source in sources:
        kind = source["query"]
        single = len(sources) == 1
        if source["name"] not in {f"{kind}_datasource", *(["datasource"] if single else [])}:
            yield f"the variable for the data source must be named 'datasource', got {source['name']!r}"
        if source.get("label") not in {f"{kind.title()} data source", *(["Data source"] if single else [])}:
            yield f"the variable for the data source must be labelled 'Data source', got {source.get('label')!r}"


def _templated(page: Page, name: str) -> Iterator[str]:
    variable = page.variables.get(name)
    if variable is None:
        yield f"has no variable {name!r}"
        return
    wanted = {"type": "query", "label": name.title(), "multi": True, "allValue": ".+"}
    yield from (
        f"variable {name!r} needs {key} {value!r}, got {variable.get(key)!r}"
        for key, value in wanted.items()
        if variable.get(key) != value
    )
    uid = (variable.get("datasource") or {}).get("uid")
    if uid not in ("$datasource", "${datasource}", "$prometheus_datasource"):
        yield f"variable {name!r} asks the data source {uid!r}, which is no variable"


@rule("template-job-rule")
def _(page: Page) -> Iterator[str]:
    yield from _templated(page, "job")


@rule("template-instance-rule")
def _(page: Page) -> Iterator[str]:
    yield from _templated(page, "instance")


@rule("template-label-promql-rule")
def _(page: Page) -> Iterator[str]:
    for name, variable in page.variables.items():
        if variable["type"] != "query":
            continue
        called_ = re.fullmatch(r"(\w+)\((.*)\)", variable["query"])
        if not called_ or called_[1] not in ("label_names", "label_values", "metrics", "query_result"):
            yield f"variable {name!r} asks for nothing that Prometheus' data source knows: {variable['query']!r}"
            continue
        among = LABEL_VALUES.fullmatch(variable["query"])
        expression = (among[2] if among else called_[2]) or ""
        if expression and (problem := _unreadable(expression)):
            yield f"variable {name!r}: {problem}"


def _unreadable(expression: str) -> str:
    if not expression.strip():
        return "has an empty expression"
    try:
        parse(expression)
    except ValueError as error:
        return f"no PromQL: {' '.join(str(error).split())}"
    return ""


@rule("template-on-time-change-reload-rule")
def _(page: Page) -> Iterator[str]:
    for name, variable in page.variables.items():
        if variable["type"] == "query" and variable.get("refresh") != 2:
            got = variable.get("refresh")
            yield f"variable {name!r} must be asked for again when the time range changes: refresh 2, got {got!r}"


@rule("panel-datasource-rule")
def _(page: Page) -> Iterator[str]:
    chosen = {f"{dollar}" for one in page.variables for dollar in (f"${one}", f"${{{one}}}")}
    for panel in page.panels:
        uid = (panel.get("datasource") or {}).get("uid")
        if panel["type"] in ("graph", "singlestat", "table", "timeseries") and uid not in chosen:
            yield f"{called(panel)} asks the data source {uid!r}, which is no variable"


@rule("panel-title-description-rule")
def _(page: Page) -> Iterator[str]:
    for panel in page.panels:
        if panel["type"] in CORE:
            yield from (f"{called(panel)} has no {key}" for key in ("title", "description") if not panel.get(key))


@rule("panel-units-rule")
def _(page: Page) -> Iterator[str]:
    for panel in page.panels:
        defaults = defaults_of(panel)
        shows_text = panel["type"] == "stat" and panel["options"]["reduceOptions"].get("fields")
        if panel["type"] in CORE and not defaults.get("mappings") and not shows_text:
            found = defaults.get("unit") or next((properties_of(one).get("unit") for one in overrides_of(panel)), None)
            if found not in UNITS:
                yield f"{called(panel)} has no unit that Grafana knows, got {found!r}"


@rule("panel-no-targets-rule")
def _(page: Page) -> Iterator[str]:
    for panel in page.panels:
        if panel["type"] in CORE and not panel.get("targets"):
            yield f"{called(panel)} asks for nothing"


@rule("target-promql-rule")
def _(page: Page) -> Iterator[str]:
    for panel, target in page.targets:  # the linter passes heatmaps and others over
        if problem := _unreadable(target.get("expr", "")):
            yield f"{called(panel)}, {target.get('refId')}: {problem}"


@rule("target-rate-interval-rule")
def _(page: Page) -> Iterator[str]:
    for where, parsed in page.parsed:
        for one in parsed.selectors:
            if one.seconds in (None, RATE_INTERVAL):
                continue
            if one.inside[:1] in (("rate",), ("irate",)):
                yield f"{where}: {one.inside[0]} of {one.name} must be over $__rate_interval"
            elif not one.inside or one.inside[0] in _AGGREGATIONS:
                yield f"{where}: a range of {one.name} outside a function"


_AGGREGATIONS = {"sum", "min", "max", "avg", "count", "group", "topk", "bottomk", "quantile", "stddev", "stdvar"}


def _matched(page: Page, label: str) -> Iterator[str]:
    for panel, target in page.targets:
        for one in parse(target["expr"]).selectors:
            if (label, "=~", f"${label}") not in one.matchers:
                yield f"{called(panel)}, {target['refId']}: {one.name} is not chosen by {label}"


@rule("target-job-rule")
def _(page: Page) -> Iterator[str]:
    yield from _matched(page, "job")


@rule("target-instance-rule")
def _(page: Page) -> Iterator[str]:
    yield from _matched(page, "instance")


# What a counter stands at is no value. Whether there is one, and since when, may be asked.
_COUNTER_FUNCTIONS = {"rate", "irate", "increase"}
_OF_EXISTENCE = {"group", "count", "timestamp", "absent"}


@rule("target-counter-agg-rule")
def _(page: Page) -> Iterator[str]:
    # The linter looks at selectors without matchers only; here the name of the metric counts.
    variables = {f"variable {name!r}" for name in page.variables}
    for where, parsed in page.parsed:
        for one in parsed.selectors:
            of_existence = next((name for name in one.inside if name != "last_over_time"), "") in _OF_EXISTENCE
            right = one.seconds is not None and one.inside[0] in _COUNTER_FUNCTIONS
            if one.name.endswith("_total") and not right and not of_existence and where not in variables:
                yield f"{where}: the counter {one.name} needs rate, irate or increase"


@rule("uneditable-dashboard")
def _(page: Page) -> Iterator[str]:
    if page.content.get("editable") is not False:
        yield "editable must be false: what is changed in the browser is lost with the next file"


# The file


@check
def round_trip_loses_nothing(page: Page) -> Iterator[str]:
    """What Grafana's schema does not know is a mistake of ours."""
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(page.content)))
    yield from _lost(page.content, again, "")


def _lost(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key not in theirs:
                yield f"{path}/{key} is unknown to Grafana's schema"
            else:
                yield from _lost(value, theirs[key], f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _lost(one, other, f"{path}/{place}")
    elif ours != theirs:
        yield f"{path} becomes {theirs!r} from {ours!r}"


@check
def uid_is_that_of_the_file(page: Page) -> Iterator[str]:
    """Lower case, for it will have to be a name in Kubernetes; two of one uid stop Grafana's provisioning."""
    uid = str(page.content.get("uid"))
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,39}", uid):
        yield f"uid {uid!r} must be 2 to 40 of a-z, 0-9 and -"
    if uid != page.name:
        yield f"uid {uid!r} is not that of the file"


@check
def title_is_unique(page: Page) -> Iterator[str]:
    """Two of one title in a folder stop Grafana's provisioning."""
    title = page.content.get("title", "")
    if not re.fullmatch(r"ML model quality / [A-Z].+", title):
        yield f"title {title!r} must begin with 'ML model quality / '"
    yield from (
        f"title {title!r} is that of {name} too"
        for name, other in page.site.items()
        if name != page.name and other.get("title") == title
    )


@check
def nothing_is_of_one_grafana(page: Page) -> Iterator[str]:
    """What the server that exported it would leave behind; what only an import by hand would fill in."""
    for key in ("id", "version", "iteration", "gnetId", "__inputs", "__elements", "__requires"):
        if key in page.content:
            yield f"has {key}"
    for text in texts(page.content):
        if "${DS_" in text:
            yield f"needs an import by hand: {text}"


@check
def tagged_and_of_a_schema_that_is_read(page: Page) -> Iterator[str]:
    """The tag is what links between our pages go by."""
    if TAG not in page.content.get("tags", []):
        yield f"has no tag {TAG}"
    if not 39 <= page.content.get("schemaVersion", 0) <= 42:
        yield f"schemaVersion must be 39 to 42, got {page.content.get('schemaVersion')!r}"
    if not page.content.get("description", "").endswith((".", "?")):
        yield "has no description, of one sentence at least"


@check
def nothing_is_moved_into_a_menu(page: Page) -> Iterator[str]:
    """Where nobody looks for links and annotations."""
    items = [*page.content.get("links", []), *page.content["annotations"]["list"]]
    yield from (f"{item.get('title') or item.get('name')!r} has a placement" for item in items if "placement" in item)


@check
def shows_the_last_day_and_asks_again(page: Page) -> Iterator[str]:
    """A dashboard on the wall is never older than a minute; all its charts point to the same moment."""
    if page.content.get("time") != {"from": "now-24h", "to": "now"}:
        yield f"time must be the last 24 hours, got {page.content.get('time')!r}"
    if page.content.get("refresh") != "1m":
        yield f"refresh must be 1m, got {page.content.get('refresh')!r}"
    if page.content.get("graphTooltip") != 1:
        yield "needs one crosshair for all charts: graphTooltip 1"


# Ids and places


@check
def ids_are_unique(page: Page) -> Iterator[str]:
    """Links of alerts lead to an id, and Grafana counts from 1."""
    ids = Counter(panel.get("id") for panel in (*page.rows, *page.panels))
    for id_, count in ids.items():
        if not isinstance(id_, int) or not 0 < id_ < 2**31:
            yield f"a panel has the id {id_!r}"
        if count > 1:
            yield f"{count} panels have the id {id_}"


@check
def panels_lie_on_the_grid(page: Page) -> Iterator[str]:
    """24 columns; high enough to be read, low enough to be seen as a whole."""
    for panel in (*page.rows, *page.panels):
        x, y, w, h = _place(panel)
        sane = (w, h, x) == (WIDTH, 1, 0) if panel["type"] == "row" else w >= 4 and 5 <= h <= 12
        if x < 0 or y < 0 or x + w > WIDTH or not sane:
            yield f"{called(panel)} cannot lie at x={x} y={y} with w={w} h={h}"


@check
def panels_do_not_overlap(page: Page) -> Iterator[str]:
    """Collapsed rows count as if they were open."""
    for one, other in itertools.combinations((*page.rows, *page.panels), 2):
        (x, y, w, h), (x2, y2, w2, h2) = _place(one), _place(other)
        if x < x2 + w2 and x2 < x + w and y < y2 + h2 and y2 < y + h:
            yield f"{called(one)} lies over {called(other)}"


@check
def lines_are_filled_from_the_left(page: Page) -> Iterator[str]:
    """No hole above, below or to the left of a panel."""
    columns: dict[int, set[int]] = {}
    for panel in (*page.rows, *page.panels):
        x, y, w, h = _place(panel)
        for line in range(y, y + h):
            columns.setdefault(line, set()).update(range(x, x + w))
    for line in range(max(columns) + 1):
        taken = columns.get(line, set())
        if not taken or max(taken) + 1 != len(taken):
            yield f"there is a hole in line {line}"
            return  # it is in the next ones too


def _place(panel: Panel) -> tuple[int, int, int, int]:
    grid = panel["gridPos"]
    return grid["x"], grid["y"], grid["w"], grid["h"]


@check
def rows_are_collapsed_and_come_last(page: Page) -> Iterator[str]:
    """What is in them is asked for once they are opened."""
    kinds = [panel["type"] == "row" for panel in page.content["panels"]]
    if kinds != sorted(kinds):
        yield "has a panel below a row that is not in it"
    for row in page.rows:
        if not row.get("collapsed") or not row.get("panels") or not row.get("title"):
            yield f"row {row.get('id')} {row.get('title', '')!r} must be collapsed, have a title and panels"
        if any(panel["type"] == "row" for panel in row.get("panels", [])):
            yield f"row {row.get('id')} {row.get('title', '')!r} has a row in it"


@check
def few_panels_are_open(page: Page) -> Iterator[str]:
    """One screen answers the first question."""
    if len(page.open) > MOST_OPEN_PANELS:
        yield f"opens with {len(page.open)} panels, more than {MOST_OPEN_PANELS}"


@check
def few_queries_are_asked_at_first(page: Page) -> Iterator[str]:
    """Every minute, for everybody who has the page open."""
    asked = sum(len(panel.get("targets", [])) for panel in page.open)
    if asked > MOST_OPEN_QUERIES:
        yield f"opens with {asked} queries, more than {MOST_OPEN_QUERIES}"


# Variables


@check
def variables_are_defined(page: Page) -> Iterator[str]:
    """Grafana would take the dollar sign for itself, and nothing would be found."""
    for name in sorted(set().union(*map(variables_in, texts(page.content)))):
        if name not in page.variables and name not in BUILT_IN:
            yield f"there is no variable {name!r}"


@check
def variables_are_used(page: Page) -> Iterator[str]:
    """A choice that changes nothing misleads. To hand it on in a link does not count."""
    content = {key: value for key, value in page.content.items() if key != "links"}
    used = set().union(*(variables_in(text) for text in texts(content) if not text.startswith("/d/")))
    yield from (f"variable {name!r} is not used" for name in page.variables if name not in used)


@check
def variables_rest_on_earlier_ones(page: Page) -> Iterator[str]:
    """So that there is no cycle, and what depends on another stands to its right."""
    earlier: set[str] = set()
    for name, variable in page.variables.items():
        used = set().union(*map(variables_in, texts({**variable, "name": ""}))) - BUILT_IN
        for later in sorted(used - earlier):
            yield f"variable {name!r} rests on {later!r}, which is not before it"
        earlier.add(name)
    if len(page.variables) != len(page.content["templating"]["list"]):
        yield "has two variables of one name"


# Model and Segments are of one model, the others of several.
_HOW_MANY = {"multi", "includeAll", "allValue", "current"}


@check
def variables_mean_the_same_everywhere(page: Page) -> Iterator[str]:
    """Links carry them from page to page."""
    for name, other in page.site.items():
        theirs = {one["name"]: one for one in other["templating"]["list"]}
        for variable in page.variables.keys() & theirs.keys():
            one, two = page.variables[variable], theirs[variable]
            differing = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
            for key in sorted(differing - (_HOW_MANY if variable == "model" else set())):
                yield f"variable {variable!r} has another {key} than that of {name}"


@check
def all_means_all(page: Page) -> Iterator[str]:
    """.+ would leave out what has no such label. Where all can be chosen, all are at first."""
    for name, variable in page.variables.items():
        several = bool(variable.get("includeAll"))
        if several != bool(variable.get("multi")) or (".*" if several else None) != variable.get("allValue"):
            yield f"variable {name!r} must be for several with allValue '.*', or for one without"
        if several and variable.get("current", {}).get("value") != ["$__all"]:
            yield f"variable {name!r} must be all at first"


@check
def lists_say_what_they_offer_twice(page: Page) -> Iterator[str]:
    """Grafana keeps the values of a list as one text and as options, and believes either."""
    for name, variable in page.variables.items():
        if variable["type"] != "custom":
            continue
        values = [option["value"] for option in variable["options"]]
        chosen = [option["value"] for option in variable["options"] if option["selected"]]
        if variable["query"] != ",".join(values) or chosen != [variable["current"]["value"]]:
            yield f"variable {name!r} must offer {variable['query']!r} with {variable['current']['value']!r} chosen"


# Queries


@check
def everything_asks_the_chosen_source(page: Page) -> Iterator[str]:
    """Neither queries nor annotations inherit it."""
    items = [(called(panel), panel) for panel in page.panels if panel["type"] in ASKING]
    items += [(f"{called(panel)}, {target.get('refId')}", target) for panel, target in page.targets]
    items += [(f"variable {name!r}", one) for name, one in page.variables.items() if one["type"] == "query"]
    items += [(f"annotation {one['name']!r}", one) for one in page.content["annotations"]["list"]]
    for where, item in items:
        if item.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
            yield f"{where} asks {item.get('datasource')!r} instead of the chosen data source"


@check
def numbers_are_of_now_and_charts_of_the_range(page: Page) -> Iterator[str]:
    """Else the last value of a model that is gone would look like that of now."""
    for panel, target in page.targets:
        now = panel["type"] in ("stat", "table", "gauge", "bargauge")
        if (target.get("instant"), target.get("range")) != (now, not now):
            yield f"{called(panel)}, {target['refId']} must be {'instant' if now else 'a range'}"
        wanted = {"table": "table", "heatmap": "heatmap"}.get(panel["type"], "time_series")
        if target.get("format") != wanted:
            yield f"{called(panel)}, {target['refId']} must have the format {wanted}, got {target.get('format')!r}"


@check
def queries_have_letters_of_their_own(page: Page) -> Iterator[str]:
    """By which overrides know them."""
    for panel in page.panels:
        letters = Counter(target.get("refId") for target in panel.get("targets", []))
        yield from (f"{called(panel)} has two queries {one}" for one, count in letters.items() if count > 1)
        for override in overrides_of(panel):
            ref = override["matcher"]["options"] if override["matcher"]["id"] == "byFrameRefID" else None
            if ref is not None and ref not in letters:
                yield f"{called(panel)} changes what the query {ref} gives, which it has not"


@check
def metrics_exist(page: Page) -> Iterator[str]:
    """The library exports them, under these names. Recording rules are not needed."""
    metrics = page.known.metrics | FOREIGN_METRICS
    for where, parsed in page.parsed:
        for one in parsed.selectors:
            named = [one.name] if one.name else _alternatives(one)
            if not named:
                yield f"{where}: a selector of any metric"
            yield from (f"{where}: there is no metric {name}" for name in named if name not in metrics)


def _alternatives(selector: Selector) -> list[str]:
    """The names of which ``__name__`` may be any."""
    return [name for label, _, value in selector.matchers if label == "__name__" for name in value.split("|")]


@cache
def labels_of(choice: Choice) -> frozenset[str]:
    ours = {prometheus_label(attribute) for attribute in catalog.ATTRIBUTES}
    return frozenset({*ours, *choice.settings.by, *FOREIGN_LABELS})


@check
def labels_exist(page: Page) -> Iterator[str]:
    """The library exports them, and those of them that have a few values only are asked for one of these."""
    labels = labels_of(page.choice)
    for where, parsed in page.parsed:
        named = {label for one in parsed.selectors for label, _, _ in one.matchers} | parsed.mentioned
        yield from (f"{where}: there is no label {name}" for name in sorted(named - labels - {"__name__"}))
        for label, operation, value in sorted({one for selector in parsed.selectors for one in selector.matchers}):
            values = page.known.values.get(label)
            if values and operation == "=" and value and value not in values:
                yield f"{where}: {label} is never {value!r}"
    for name, variable in page.variables.items():
        among = LABEL_VALUES.fullmatch(variable["query"]) if variable["type"] == "query" else None
        if among and among[3] not in labels:
            yield f"variable {name!r}: there is no label {among[3]}"


@check
def legends_name_labels_that_there_are(page: Page) -> Iterator[str]:
    """Grafana leaves out what it does not find, and two series have one name."""
    named = [(f"{called(panel)}, {one.get('refId')}", one["expr"], one["legendFormat"]) for panel, one in page.targets]
    for one in page.content["annotations"]["list"]:
        named.append((f"annotation {one['name']!r}", one["expr"], f"{one['titleFormat']} {one['textFormat']}"))
    for where, expression, legend in named:
        try:
            labels = parse(expression).labels
        except ValueError:
            continue
        there = labels_of(page.choice) if labels is None else labels
        yield from (
            f"{where}: its series have no label {name} for the legend"
            for name in LABEL_IN_TEXT.findall(legend)
            if name not in there
        )


@check
def charts_can_tell_their_series_apart(page: Page) -> Iterator[str]:
    """Every label that series have is in the legend, but those of which one value is chosen."""
    for panel, target in page.targets:
        if panel["type"] in ("timeseries", "status-history", "heatmap"):
            unnamed = _labels_unlike(page, target) - set(LABEL_IN_TEXT.findall(target["legendFormat"]))
            if unnamed:
                yield f"{called(panel)}, {target['refId']}: its legend does not tell {', '.join(sorted(unnamed))}"


@check
def tables_can_tell_their_rows_apart(page: Page) -> Iterator[str]:
    """Every label that rows have is a column, but those of which one value is chosen."""
    for panel, target in page.targets:
        for transformation in panel.get("transformations", []) if panel["type"] == "table" else []:
            if transformation["id"] == "filterFieldsByName":
                hidden = _labels_unlike(page, target) - set(transformation["options"]["include"]["names"])
                if hidden:
                    yield f"{called(panel)}, {target['refId']}: no column tells {', '.join(sorted(hidden))}"


def _labels_unlike(page: Page, target: Content) -> frozenset[str]:
    """The labels by which a query's results may differ."""
    try:
        parsed = parse(target["expr"])
    except ValueError:
        return frozenset()
    single = {f"${{{name}:regex}}" for name, one in page.variables.items() if not one.get("multi")}
    fixed = {label for one in parsed.selectors for label, _, value in one.matchers if value in single}
    return parsed.telling - fixed


# Links


def _links(page: Page) -> Iterator[tuple[str, str, Panel]]:
    """Where each link of a panel or column leads."""
    for panel in page.panels:
        for links in (panel.get("links", []), *keyed(panel.get("fieldConfig", {}), "links")):
            for link in links:
                yield f"{called(panel)}, link {link.get('title')!r}", link["url"], panel
        for override in overrides_of(panel):
            for link in properties_of(override).get("links") or []:
                yield f"{called(panel)}, link {link.get('title')!r}", link["url"], panel


@check
def links_lead_to_a_page(page: Page) -> Iterator[str]:
    """Of ours."""
    for where, url, _ in _links(page):
        target = re.match(r"/d/([^?/]+)\?", url)
        if not target or target[1] not in page.site:
            yield f"{where} leads to no page of ours: {url}"


@check
def links_set_variables_of_their_target(page: Page) -> Iterator[str]:
    """And keep the time, and whatever both have."""
    for where, url, _ in _links(page):
        target = re.match(r"/d/([^?/]+)\?", url)
        if not target or target[1] not in page.site:
            continue
        there = {one["name"] for one in page.site[target[1]]["templating"]["list"]}
        handed_on = {*re.findall(r"[?&]var-(\w+)=", url), *re.findall(r"\$\{(\w+):queryparam\}", url)}
        yield from (f"{where} sets {name!r}, which {target[1]} has not" for name in sorted(handed_on - there))
        # What the page is about is set as the click says.
        missing = (page.variables.keys() & there) - handed_on - {"version", "segment_name", "segment_value"}
        yield from (f"{where} does not keep {name!r}" for name in sorted(missing))
        if "${__url_time_range}" not in url:
            yield f"{where} does not keep the time"


@check
def links_name_columns_that_there_are(page: Page) -> Iterator[str]:
    """As they are called after all transformations."""
    for where, url, panel in _links(page):
        names = FIELD_IN_LINK.findall(url)
        yield from (f"{where}: there is no column {name!r}" for name in names if name not in fields_of(panel).names)


@check
def links_survive_any_name(page: Page) -> Iterator[str]:
    """A model may be named a&b."""
    for where, url, _ in _links(page):
        for found in VARIABLE.finditer(url):
            if found[0] != "${__url_time_range}" and not found[0].endswith((":queryparam}", ":percentencode}")):
                yield f"{where}: {found[0]} is not encoded"


@check
def the_page_leads_on(page: Page) -> Iterator[str]:
    """To all of ours with everything that is chosen, and to the runbooks."""
    links = page.content.get("links", [])
    if not any(
        link["type"] == "dashboards" and link["tags"] == [TAG] and link["includeVars"] and link["keepTime"]
        for link in links
    ):
        yield "has no link to all our pages that keeps time and variables"
    if not any(link["type"] == "link" and link["url"] == page.choice.settings.runbooks for link in links):
        yield f"has no link to {page.choice.settings.runbooks}"


# Units, words and colours


@check
def units_are_those_of_grafana(page: Page) -> Iterator[str]:
    """A mistyped one is put behind the number as it is. Shares are percentages of 1, which is percentunit."""
    for panel in page.panels:
        found = [*keyed(panel.get("fieldConfig"), "unit"), *keyed(panel.get("options"), "unit")]
        found += [properties_of(one)["unit"] for one in overrides_of(panel) if "unit" in properties_of(one)]
        for unit in found:
            if unit not in UNITS:
                yield f"{called(panel)} has the unit {unit!r}, which Grafana does not know"
            if unit == "percent":
                yield f"{called(panel)} has the unit 'percent', of which 100 are the whole; shares are 'percentunit'"


@check
def percentages_end_at_one(page: Page) -> Iterator[str]:
    """And numbers beside them do not."""
    for panel in page.panels:
        defaults = defaults_of(panel)
        of_shares = defaults.get("unit") == "percentunit"
        errors = any(metric.better == "lower" for metric in metrics_called(panel.get("title", "")))
        if errors and defaults.get("max") is not None:
            yield f"{called(panel)} shows errors, which may be larger than what they are a share of"
        # The squares of a history have no axis.
        if of_shares and not errors and defaults.get("max") != 1 and panel["type"] != "status-history":
            yield f"{called(panel)} shows shares, and must end at 1"
        for override in overrides_of(panel):
            properties = properties_of(override)
            unit = properties.get("unit", defaults.get("unit"))
            if "unit" in properties and unit == "percentunit" and properties.get("max", defaults.get("max")) != 1:
                yield f"{called(panel)}: {override['matcher']['options']} shows shares, and must end at 1"
            if of_shares and unit != "percentunit" and properties.get("max", defaults.get("max")) is not None:
                yield f"{called(panel)}: {override['matcher']['options']} shows numbers, and must not end at 1"


_BESIDE_METRIC = re.compile(r" (\(macro average\)|at least|at most|of each process)$")


def metrics_called(title: str) -> list[catalog.MetricDefinition]:
    """
    The metrics that a title names; empty if it names something else too.

    >>> [metric.unit for metric in metrics_called("mae or mrr at least")]
    ['{target}', '{score}']
    """
    names = _BESIDE_METRIC.sub("", title).split(" or ")
    return [catalog.BY_NAME[name] for name in names] if set(names) <= set(catalog.BY_NAME) else []


@check
def metrics_have_their_unit(page: Page) -> Iterator[str]:
    """Ratios are percentages, and other numbers are not."""
    for panel in page.panels:
        found = [(called(panel), panel.get("title", ""), defaults_of(panel).get("unit"))]
        for override in overrides_of(panel):
            matcher = override["matcher"]
            if matcher["id"] == "byName":
                unit = properties_of(override).get("unit")
                found.append((f"{called(panel)}: {matcher['options']!r}", matcher["options"], unit))
        for where, title, unit in found:
            of_ratio = [metric.unit == "{ratio}" for metric in metrics_called(title)]
            if of_ratio and [unit == "percentunit"] != list(dict.fromkeys(of_ratio)):
                yield f"{where} must {'' if of_ratio[0] else 'not '}be percentunit, got {unit!r}"


@check
def panels_say_how_to_read_them(page: Page) -> Iterator[str]:
    """In sentences; and what it means if there is nothing to show."""
    for panel in page.panels:
        description = panel.get("description", "")
        if panel.get("title") and description and not re.fullmatch(r"[A-Z0-9].{18,}\.", description):
            yield f"{called(panel)} must be described by sentences that end with a full stop, got {description!r}"
        if panel["type"] not in CORE and not (panel.get("title") and description):
            yield f"{called(panel)} needs a title and a description"
        if panel["type"] in ASKING and not defaults_of(panel).get("noValue") and "Empty is " not in description:
            yield f"{called(panel)} must say what it means that there is nothing: noValue"


@check
def colour_is_never_alone(page: Page) -> Iterator[str]:
    """It comes with a number or a word, for those who do not see it."""
    for panel in page.panels:
        options = panel.get("options", {})
        steps = defaults_of(panel).get("thresholds", {}).get("steps", [])
        if (
            panel["type"] == "stat"
            and len(steps) > 1
            and options["textMode"] not in ("auto", "value", "value_and_name")
        ):
            yield f"{called(panel)} is coloured without a value"
        if panel["type"] in ("status-history", "state-timeline") and options["showValue"] not in ("auto", "always"):
            yield f"{called(panel)} is coloured without a value"
        for override in overrides_of(panel):
            properties = properties_of(override)
            kind = (properties.get("custom.cellOptions") or {}).get("type", "")
            mappings = properties.get("mappings") or []
            if kind.startswith("color-") and not any(keyed(mappings, "text")) and not properties.get("unit"):
                yield f"{called(panel)}: {override['matcher']['options']} is coloured without a value or word"
            for result in keyed(mappings, "result"):
                if result.get("color") and not result.get("text"):
                    yield f"{called(panel)}: {override['matcher']['options']} has a colour without a word"


@check
def thresholds_ascend(page: Page) -> Iterator[str]:
    """From minus infinity; each colour once, or the level between two alike means nothing."""
    for panel in page.panels:
        found = [defaults_of(panel).get("thresholds")]
        found += [properties_of(one).get("thresholds") for one in overrides_of(panel)]
        for thresholds in filter(None, found):
            steps = thresholds["steps"]
            values = [step.get("value") for step in steps]
            colours = [step["color"] for step in steps]
            if values[:1] != [None] or None in values[1:] or values[1:] != sorted(set(values[1:])):
                yield f"{called(panel)} has thresholds at {values}"
            if len(set(colours)) != len(colours):
                yield f"{called(panel)} has one colour for two levels: {colours}"


@check
def gaps_stay_gaps(page: Page) -> Iterator[str]:
    """A line over what is undefined would be an invention."""
    for panel in page.panels:
        if panel["type"] == "timeseries" and defaults_of(panel).get("custom", {}).get("spanNulls") is not False:
            yield f"{called(panel)} must not connect over gaps: spanNulls"


# Tables, and what is changed by name


@check
def columns_exist(page: Page) -> Iterator[str]:
    """What transformations, overrides and sorting name is there after all that comes before."""
    for panel in page.panels:
        targets = panel.get("targets", [])
        if panel["type"] not in ("table", "stat") or any(_unreadable(one["expr"]) for one in targets):
            continue
        if panel["type"] == "stat" and not panel.get("transformations"):
            continue
        found = fields_of(panel)
        yield from (f"{called(panel)}: {problem}" for problem in found.problems)
        named = [one["matcher"]["options"] for one in overrides_of(panel) if one["matcher"]["id"] == "byName"]
        named += [one["displayName"] for one in panel["options"].get("sortBy", [])]
        yield from (f"{called(panel)}: there is no column {name!r}" for name in named if name not in found.names)
        if panel["type"] == "table" and len(targets) > 1 and panel["transformations"][0]["id"] != "merge":
            yield f"{called(panel)}: its queries are not merged into one table"


@check
def text_is_the_default_of_tables(page: Page) -> Iterator[str]:
    """Else Grafana writes the version 2026.11 as a number; so what is a number has its unit."""
    for panel in page.panels:
        if panel["type"] != "table":
            continue
        if defaults_of(panel).get("unit") != "string":
            yield f"{called(panel)} needs the unit 'string', got {defaults_of(panel).get('unit')!r}"
        units_ = {one["matcher"]["options"]: properties_of(one) for one in overrides_of(panel)}
        for organized in (one["options"] for one in panel.get("transformations", []) if one["id"] == "organize"):
            for name, title in organized["renameByName"].items():
                if name.startswith("Value") and not {"unit", "mappings"} & units_.get(title, {}).keys():
                    yield f"{called(panel)}: {title!r} is a number without a unit"


@check
def overrides_find_their_series(page: Page) -> Iterator[str]:
    """By the names that legends give them."""
    for panel in page.panels:
        if panel["type"] != "timeseries":
            continue
        legends = [target["legendFormat"] for target in panel.get("targets", [])]
        for override in overrides_of(panel):
            kind, wanted = override["matcher"]["id"], override["matcher"]["options"]
            pattern = wanted.strip("/") if kind == "byRegexp" else f"^{re.escape(str(wanted))}$"
            found = any(re.search(pattern, LABEL_IN_TEXT.sub("x", legend)) for legend in legends)
            if kind in ("byName", "byRegexp") and not found:
                yield f"{called(panel)} changes series named {wanted!r}, which it has not"
