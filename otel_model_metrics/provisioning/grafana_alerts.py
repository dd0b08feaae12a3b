"""
The alerts of `alerts.py` as Grafana-managed rules, for those who have no Alertmanager.

They rest on the same recorded series and fire for the same models, for as long. But a rule of Grafana is not one
expression that has a value for whom it fires: it is several queries and a condition over their values. So

- a rule is for all metrics at once, which are told apart by ``ml_metric``, as the name of the recorded series says;
- query ``A`` is the value one wants to read, the others are evidence, and the condition compares them with levels.
  Where it does not hold the value is there nevertheless, and Grafana shows the instance as normal;
- every query of a rule has the same label sets. Grafana would drop what only some of them have, and takes a rule of
  which one query is empty for one without data;
- no value is NaN, for that is not 0, and so Grafana takes it for firing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition
from otel_model_metrics.provisioning import alerts, messages
from otel_model_metrics.provisioning.alerts import Alert, Severity, Sides, all_of, runbook_url
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import GROUND_TRUTH, MODEL_PAGE, OVERVIEW, SEGMENTS
from otel_model_metrics.provisioning.dashboards.queries import variable_of
from otel_model_metrics.provisioning.documents import made_by
from otel_model_metrics.provisioning.expressions import Expression, compare
from otel_model_metrics.provisioning.layout import as_yaml, formatted
from otel_model_metrics.provisioning.messages import label
from otel_model_metrics.provisioning.promql import (
    AVERAGE,
    METRIC,
    SEGMENT,
    TASK,
    VERSION,
    K,
    counter_name,
    recorded_name,
    seconds,
    selector,
)
from otel_model_metrics.provisioning.rules import JUDGED, NEWEST, NOT_A_PART, REPLACED, Settings

# Where to look: the dashboard, and the panel on it. Grafana links an alert there.
PANELS: dict[str, tuple[str, int]] = {
    "ModelQualityBelowObjective": (MODEL_PAGE, 5),
    "ModelObjectiveMissedEverywhere": (MODEL_PAGE, 5),
    "ModelErrorBudgetFastBurn": (MODEL_PAGE, 5),
    "ModelErrorBudgetSlowBurn": (MODEL_PAGE, 5),
    "ModelSegmentWorse": (SEGMENTS, 5),
    "ModelVersionWorse": (MODEL_PAGE, 5),
    "ModelPredictionsStopped": (OVERVIEW, 8),
    "ModelLabelsStopped": (GROUND_TRUTH, 2),
    "ModelRowsRejected": (GROUND_TRUTH, 9),
    "ModelSegmentsOverflow": (SEGMENTS, 9),
    "ModelWritersShareIdentity": (OVERVIEW, 4),
    "ModelRulesMissing": (OVERVIEW, 8),
}

INTERVAL = "1m"
QUALITY_BELOW_OBJECTIVE, RULES_MISSING = "ModelQualityBelowObjective", "ModelRulesMissing"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Longer queries are refused by VictoriaMetrics, whose limit is 16,384 bytes.
LONGEST_QUERY = 16_000


@dataclass(frozen=True)
class Twin:
    """
    One rule of Grafana.

    Attributes:
        of: The alert whose twin it is; how long, how severe and how lasting is said there.
        queries: By letter; the first is what one wants to read.
        condition: Over the letters, not 0 for whom it fires.
        summary, description: What is said, as templates of Grafana.
    """

    of: Alert
    queries: Mapping[str, Expression]
    condition: str
    summary: str
    description: str

    @property
    def window(self) -> str:
        """The window that is in the rule's names, where an alert has a rule for each window."""
        return self.of.labels["window"] if self.of.name == QUALITY_BELOW_OBJECTIVE else ""

    @property
    def uid(self) -> str:
        """What the rule is known by; another one of the same uid replaces it."""
        words = re.findall("[A-Z][a-z]*", self.of.name.removeprefix("Model"))
        return "-".join(["ml", *(word.lower() for word in words), *([self.window] if self.window else [])])

    @property
    def title(self) -> str:
        """
        The name of the alert, with the window unless it is the first one by default.

        It follows from the uid alone, whatever other windows are chosen: were a title passed on to another rule,
        Grafana would meet it twice while it loads the file, and not start.
        """
        return self.of.name if self.window in ("", Settings().windows[0]) else f"{self.of.name} {self.window}"

    def _link(self, choice: Choice) -> str:
        """The panel, with the variables of its dashboard set to what the alert is about."""
        dashboard, panel = PANELS[self.of.name]
        settings = choice.settings
        told = [label for label in next(iter(self.queries.values())).labels if label in (*settings.version, *SEGMENT)]
        chosen = [f"var-{variable_of(label)}={{{{ $labels.{label} | urlquery }}}}" for label in told]
        window = self.of.labels.get("window")
        return f"/d/{dashboard}?" + "&".join(
            [*chosen, *([f"var-window={window}"] if window else []), f"viewPanel={panel}"]
        )

    def rule(self, choice: Choice) -> dict[str, Any]:
        """The rule as Grafana reads it."""
        dashboard, panel = PANELS[self.of.name]
        last = _LETTERS[len(self.queries)]
        queries = [_query(letter, str(query), choice) for letter, query in self.queries.items()]
        lingering: dict[str, Any] = {}
        if self.of.lingering:
            # keepFiringFor is for values that are there; so many evaluations at which they are not take as long.
            evaluations = seconds(self.of.lingering) // seconds(INTERVAL) + 1
            lingering = {"keepFiringFor": self.of.lingering, "missing_series_evals_to_resolve": evaluations}
        window = self.of.labels.get("window")
        return {
            "uid": self.uid,
            "title": self.title,
            "condition": last,
            "data": [*queries, _math(last, self.condition)],
            "for": self.of.lasting,
            **lingering,
            "noDataState": "OK",
            "execErrState": "Error",
            "dashboardUid": dashboard,
            "panelId": panel,
            "labels": {
                "severity": self.of.severity,
                "alert": self.of.name,
                **({"window": window} if window else {}),
            },
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": runbook_url(choice.settings.runbooks, self.of.name),
                "dashboard_url": self._link(choice),
                "__dashboardUid__": dashboard,
                "__panelId__": str(panel),
            },
        }


def _query(letter: str, expression: str, choice: Choice) -> dict[str, Any]:
    return {
        "refId": letter,
        "relativeTimeRange": {"from": 600, "to": 0},
        "datasourceUid": choice.datasource,
        "model": {
            "refId": letter,
            "datasource": {"type": "prometheus", "uid": choice.datasource},
            "editorMode": "code",
            "expr": _within_limit(expression),
            "instant": True,
            "range": False,
            "intervalMs": 60_000,
            "maxDataPoints": 43_200,
        },
    }


def _within_limit(expression: str) -> str:
    """An expression laid out as widely as the limit of its length allows."""
    pretty = formatted(expression)
    narrow = re.sub("(?m)^ +", lambda indent: indent[0][::2], pretty)
    for layout in (pretty, narrow, expression):
        if len(layout.encode()) < LONGEST_QUERY:
            return layout
    raise ValueError(
        f"A query of an alert would have {len(expression.encode())} bytes; stores refuse more than {LONGEST_QUERY}. "
        "Choose a shorter regular expression for models, or fewer labels to split the fleet by."
    )


def _math(letter: str, expression: str) -> dict[str, Any]:
    return {
        "refId": letter,
        "relativeTimeRange": {"from": 0, "to": 0},
        "datasourceUid": "__expr__",
        "model": {
            "refId": letter,
            "datasource": {"type": "__expr__", "uid": "__expr__"},
            "type": "math",
            "expression": expression,
        },
    }


# The files


def alerting_file(choice: Choice) -> str:
    """The rules, as a file for Grafana's ``provisioning/alerting``."""
    groups = [
        {
            "orgId": 1,
            "name": f"ml-model-{name}",
            "folder": choice.folder,
            "interval": INTERVAL,
            "rules": [twin.rule(choice) for family in families for twin in family(choice)],
        }
        for name, families in FAMILIES.items()
    ]
    about = (
        "Alerts that Grafana evaluates, for those who have no Alertmanager. Load these or alerts.yaml, not both.",
        "They need what rules.yaml records, in the data source whose uid is below. What to do about each is in",
        "runbooks.md. Of each rule A is the value that is shown, and the last letter the condition: it fires where",
        "that is not 0. A rule that is no longer in this file stays in Grafana until deleteRules has its uid.",
    )
    return _file(about, {"apiVersion": 1, "groups": groups})


def contact_points_example(choice: Choice) -> str:
    """Whom to tell, as an example that has to be filled in."""
    receivers = {
        name: {"uid": name, "type": "webhook", "settings": {"url": f"https://example.org/{name}"}}
        for name in _RECEIVERS.values()
    }
    about = (
        "An example: whom Grafana tells about models. Put your own types and addresses in, and load it as",
        "contact-points.yaml beside the alert rules. A contact point of the same name is replaced.",
    )
    points = [{"orgId": 1, "name": name, "receivers": [receiver]} for name, receiver in receivers.items()]
    return _file(about, {"apiVersion": 1, "contactPoints": points})


def policies_example(choice: Choice) -> str:
    """Who gets to know what, as an example."""
    routes = [
        {
            "receiver": receiver,
            "object_matchers": [["grafana_folder", "=", choice.folder], ["severity", "=", severity]],
            # One message for all metrics of a model.
            "group_by": ["grafana_folder", "alertname", *choice.settings.model],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "4h" if severity == "critical" else "1d",
        }
        for severity, receiver in _RECEIVERS.items()
    ]
    about = (
        "An example, and one to read before it is loaded: a file of policies REPLACES ALL NOTIFICATION POLICIES of the",
        "organisation, also those made by hand in Grafana. If there are any, add the routes below to them by hand",
        "instead. It needs the contact points of contact-points.yaml, and the default one of Grafana.",
    )
    tree = {"orgId": 1, "receiver": "grafana-default-email", "group_by": ["grafana_folder", "alertname"]}
    return _file(about, {"apiVersion": 1, "policies": [{**tree, "routes": routes}]})


_RECEIVERS: dict[Severity, str] = {"critical": "ml-on-call", "warning": "ml-team"}


def _file(about: Iterable[str], content: dict[str, Any]) -> str:
    comment = "".join(f"# {line}\n" for line in about)
    return f"{comment}{made_by('grafana')}\n{as_yaml(content)}"


# Quality and its objective


def quality_below_objective(choice: Choice) -> Iterator[Twin]:
    """The interval of the value, at 99.9 %, is beyond the objective: chance does not explain it."""
    metrics = alerts.bounded_metrics()
    for window in choice.settings.windows:
        fleet = _Fleet(choice, window)
        value = fleet.with_objective(metrics)
        missed = _either(_missed(kind, fleet) for kind in _kinds(metrics))
        alert = _alert(QUALITY_BELOW_OBJECTIVE, choice, window)
        yield Twin(
            alert,
            {
                "A": value,
                "B": _beside(value, missed),
                "C": _beside(value, fleet.objective(metrics)),
                "D": _beside(value, fleet.rows()),
            },
            f"$B > 0 && $D >= {choice.settings.min_rows}",
            f"{_METRIC} of {messages.model(choice.settings)} is {_value('A', metrics)} over {window}, its objective is "
            f"{_value('C', metrics)}",
            f"Over the last {messages.spoken(window)} {_METRIC} of {messages.model(choice.settings)} was "
            f"{_value('A', metrics)} in {_count('D')} labelled rows of all its processes. Its objective is "
            f"{_value('C', metrics)}, and chance does not explain it: the whole 99.9 % interval misses it.",
        )


def _missed(metrics: list[MetricDefinition], fleet: _Fleet) -> Expression:
    """By how much the interval misses the objective; negative where it does not."""
    objective = fleet.objective(metrics)
    low, high = alerts.strict(fleet.sides(metrics))
    if metrics[0].better == "zero":
        return _greater(low - objective, objective * -1 - high)
    return objective - high if metrics[0].better == "higher" else low - objective


def objective_missed_everywhere(choice: Choice) -> Iterator[Twin]:
    """For metrics whose value or bounds are not known of the fleet: even the best process misses the objective."""
    settings, fleet, metrics = choice.settings, _Fleet(choice), alerts.unbounded_metrics()
    best = {kind[0].better: fleet.best(kind) for kind in _kinds(metrics, by_unit=False)}
    value = _all(_either(best.values()), fleet.objective(metrics), fleet.gauge_rows())
    missed = [
        fleet.objective(kind) - best[kind[0].better]
        if kind[0].better == "higher"
        else best[kind[0].better] - fleet.objective(kind)
        for kind in _kinds(metrics, by_unit=False)
    ]
    alert = _alert("ModelObjectiveMissedEverywhere", choice)
    yield Twin(
        alert,
        {
            "A": value,
            "B": _beside(value, _either(missed)),
            "C": _beside(value, fleet.objective(metrics)),
            "D": _beside(value, fleet.gauge_rows()),
        },
        f"$B > 0 && $D >= {settings.min_rows}",
        f"{_METRIC} of {messages.model(settings)} is {_value('A', metrics)} at best, its objective is "
        f"{_value('C', metrics)}",
        f"For {messages.spoken(alert.lasting)} no process has reached the objective of {_value('C', metrics)} for "
        f"{_METRIC} of {messages.model(settings)}: the best one has {_value('A', metrics)}. There are {_count('D')} "
        "labelled rows in the windows of all processes.",
    )


def error_budget_burns(choice: Choice) -> Iterator[Twin]:
    """Errors come so fast that those which the objective allows for a month are used up in days."""
    settings = choice.settings
    metrics = [metric for metric in alerts.bounded_metrics() if metric.events]
    for burn in alerts.BURNS:
        long, short = (_Fleet(choice, window) for window in burn.windows)
        objective = long.objective(metrics)
        level = alerts.burn_level(objective, burn.factor, burn.share)
        value = long.with_objective(metrics)
        speed = (1 - value) / _at_least(1 - objective, _NO_ERRORS)
        alert = _alert(burn.name, choice)
        yield Twin(
            alert,
            {
                "A": value,
                "B": _beside(value, level - long.of(metrics, catalog.UPPER)),
                # No rows within the short window: it does not go on.
                "C": _beside(value, level - short.of(metrics), otherwise=True),
                "D": _beside(value, long.rows()),
                "E": _beside(value, objective),
                "F": _beside(value, speed),
            },
            f"$B > 0 && $C > 0 && $D >= {settings.min_rows}",
            f"{_METRIC} of {messages.model(settings)} is {_value('A', metrics)} over {long.window}: errors come "
            f"{_SPEED} times as fast as its objective of {_value('E', metrics)} allows",
            f"Over the last {messages.spoken(long.window)} {_METRIC} of {messages.model(settings)} was "
            f"{_value('A', metrics)} in {_count('D')} labelled rows of all its processes, and it goes on in the last "
            f"{messages.spoken(short.window)}. Its objective is {_value('E', metrics)}: errors come {_SPEED} times as "
            "fast as that allows.",
        )


# An objective of 1 allows no errors, and there is no number to say how many times as fast as that they come.
_NO_ERRORS = 1e-9
_SPEED = '{{ if gt $values.F.Value 1000.0 }}infinitely many{{ else }}{{ printf "%.1f" $values.F.Value }}{{ end }}'


# Comparisons


def segment_worse(choice: Choice) -> Iterator[Twin]:
    """A segment is worse than its model as a whole, certainly and notably."""
    settings, fleet = choice.settings, _Fleet(choice, alerts.SEGMENT_WINDOW)
    metrics = [metric for metric in alerts.compared_metrics() if metric.in_segments]
    ours, theirs = fleet.sides(metrics, segments=True), fleet.sides(metrics)
    rows = fleet.rows(segments=True)
    value = _all(ours.value, ours.upper, theirs.upper, fleet.judged(), rows)
    worse = _either(
        margins[0].where(compare(margins[1], ">", 0))
        for margins in (_worse(kind, fleet.sides(kind, segments=True), fleet.sides(kind)) for kind in _kinds(metrics))
    )
    alert = _alert("ModelSegmentWorse", choice)
    yield Twin(
        alert,
        {
            "A": value,
            # One query for all that must hold, because there may be thousands of segments: to put two queries
            # together, Grafana compares each series of the one with each of the other.
            "B": _beside(value, _all(worse, compare(rows, ">=", settings.min_rows)), otherwise=True),
            "C": _beside(value, theirs.value),
            "D": _beside(value, rows),
            "E": _beside(value, fleet.rows()),
        },
        "$B > 0",
        f"{_METRIC} of {messages.model(settings)} is {_value('A', metrics)} for {_SEGMENT}, {_value('C', metrics)} "
        "over all",
        f"Over the last {messages.spoken(fleet.window)} {_METRIC} of {messages.model(settings)} was "
        f"{_value('A', metrics)} for the segment {_SEGMENT} ({_count('D')} labelled rows) and {_value('C', metrics)} "
        f"over all ({_count('E')} labelled rows). Chance does not explain it (99.9 %).",
    )


def version_worse(choice: Choice) -> Iterator[Twin]:
    """A version that is new is worse than the one it replaced, certainly and notably."""
    settings, fleet, lately = choice.settings, _Fleet(choice, alerts.VERSION_WINDOW), _Fleet(choice, "1h")
    metrics = alerts.compared_metrics()
    new = Expression(selector(NEWEST, more=choice.matchers), settings.version)
    ours, theirs = fleet.sides(metrics), fleet.sides_of_replaced(metrics)
    value = _all(ours.value, new, ours.upper, theirs.value, theirs.upper, fleet.judged(), fleet.rows())
    margins = [_worse(kind, fleet.sides(kind), fleet.sides_of_replaced(kind)) for kind in _kinds(metrics)]
    alert = _alert("ModelVersionWorse", choice)
    yield Twin(
        alert,
        {
            "A": value,
            "B": _beside(value, _either(certain for certain, _ in margins)),
            "C": _beside(value, _either(notable for _, notable in margins)),
            "D": _beside(value, fleet.rows()),
            "E": _beside(value, theirs.value),
            "F": _beside(value, lately.rows(), otherwise=True),
        },
        f"$B > 0 && $C > 0 && $D >= {settings.min_rows} && $F > 0",
        f"{_METRIC} of the new version {messages.model(settings)} is {_value('A', metrics)}, that of the one it "
        f"replaced was {_value('E', metrics)}",
        f"Since it serves, {_METRIC} of {messages.model(settings)} is {_value('A', metrics)} in {_count('D')} labelled "
        f"rows; the version that it replaced had {_value('E', metrics)}. Chance does not explain it (99.9 %).",
    )


def _worse(metrics: list[MetricDefinition], ours: Sides, theirs: Sides) -> tuple[Expression, Expression]:
    """By how much the difference is more than chance, and by how much it is more than the margin."""
    certain, notable = alerts.tests_of_worse(metrics[0], ours, theirs)
    return _margin(*certain), _margin(*notable)


def _margin(one: Expression, sign: str, other: Expression) -> Expression:
    return one - other if sign == ">" else other - one


# What comes in


def predictions_stopped(choice: Choice) -> Iterator[Twin]:
    """No predictions come, though at this time there usually are some."""
    alert = _alert("ModelPredictionsStopped", choice)
    queries, condition = _stopped("predictions", alerts.PREDICTION_WINDOWS, choice)
    model = messages.model(choice.settings, version=False)
    usually = ", ".join(
        f"{_count(letter)} within {window}"
        for letter, window in zip(list(queries)[::2], alerts.PREDICTION_WINDOWS, strict=True)
    )
    yield Twin(
        alert,
        queries,
        condition,
        f"{model} makes no predictions any more",
        f"No process of {model} reports predictions, though at this time there usually are {usually}.",
    )


def labels_stopped(choice: Choice) -> Iterator[Twin]:
    """Predictions come, but not their labels: from now on quality is not known."""
    alert = _alert("ModelLabelsStopped", choice)
    queries, condition = _stopped("outcomes", alerts.LABEL_WINDOWS, choice)
    made, last = alerts.per_model("predictions", "1h", choice.settings, models=choice.matchers), _LETTERS[len(queries)]
    model = messages.model(choice.settings, version=False)
    yield Twin(
        alert,
        {**queries, last: _beside(queries["A"], made, otherwise=True)},
        f"{condition} && ${last} >= {alerts.MISSED}",
        f"{model} gets no labels any more",
        f"In the last hour {model} made {_count(last)} predictions and got no label, though at this time there usually "
        f"are {_count('A')} an hour. Its quality is not known.",
    )


def _stopped(what: str, windows: tuple[str, ...], choice: Choice) -> tuple[dict[str, Expression], str]:
    """For each window how many usually come and how many came, and the condition that they stopped in one of them."""
    models = alerts.lately(what, choice.settings, choice.matchers)
    queries: dict[str, Expression] = {}
    conditions: list[str] = []
    for place, window in enumerate(windows):
        usual, came = _LETTERS[2 * place], _LETTERS[2 * place + 1]
        queries[usual] = _beside(models, alerts.usual(what, window, choice.settings, choice.matchers), otherwise=True)
        queries[came] = _beside(
            models, alerts.per_model(what, window, choice.settings, models=choice.matchers), otherwise=True
        )
        conditions.append(f"${usual} >= {alerts.MISSED} && ${came} == 0")
    return queries, " || ".join(f"({each})" for each in conditions) if len(conditions) > 1 else conditions[0]


def rows_rejected(choice: Choice) -> Iterator[Twin]:
    """A notable share of the rows cannot be used."""
    rejected, share = alerts.rejected_rows(choice.settings, choice.matchers)
    alert, model = _alert("ModelRowsRejected", choice), messages.model(choice.settings)
    yield Twin(
        alert,
        {"A": _defined(share, rejected), "B": _summed(rejected)},
        f"$A > {alerts.REJECTED_SHARE} && $B >= {alerts.REJECTED_ROWS}",
        f"{_SHARE} of the rows of {model} are rejected: {label(alerts.REASON)}",
        f"In the last hour {_count('B')} rows of {model} could not be used ({label(alerts.REASON)}); no metric counts "
        "them. The log of the service says what came and what was expected.",
    )


def segments_overflow(choice: Choice) -> Iterator[Twin]:
    """A notable share of the rows is in the segment of values that are not told apart."""
    overflowed, share = alerts.overflowed_rows(choice.settings, choice.matchers)
    alert, model, segment = _alert("ModelSegmentsOverflow", choice), messages.model(choice.settings), label(SEGMENT[0])
    yield Twin(
        alert,
        {"A": _defined(share, overflowed), "B": _summed(overflowed)},
        f"$A > {alerts.OVERFLOW_SHARE} && $B >= {choice.settings.min_rows}",
        f"{_SHARE} of the rows of {model} have a {segment} that is not told apart",
        f"In the last hour {_count('B')} rows of {model} had a {segment} beyond the first max_segment_values ones, "
        "which are one segment, __other__.",
    )


def writers_share_identity(choice: Choice) -> Iterator[Twin]:
    """A counter goes up and down all the time, as it does when two processes write the same series."""
    settings, window = choice.settings, alerts.RESET_WINDOW
    name = counter_name("predictions", settings.naming, settings.namespace)
    counter = selector(name, {SEGMENT[0]: ""}, choice.matchers)
    by = ", ".join(settings.version)
    resets, samples = f"resets({counter}[{window}])", f"count_over_time({counter}[{window}])"
    # Both levels must be passed by one counter, which only a query can tell.
    share = f"max by ({by}) ({resets} / {samples} and {resets} >= {alerts.RESETS})"
    most = Expression(f"max by ({by}) ({resets})", settings.version)
    alert, model = _alert("ModelWritersShareIdentity", choice), messages.model(settings)
    yield Twin(
        alert,
        {"A": most, "B": _beside(most, Expression(share, settings.version), otherwise=True)},
        f"$A >= {alerts.RESETS} && $B > {alerts.RESET_SHARE}",
        f"Several processes of {model} report as one",
        f"Within {window} a counter of {model} fell {_count('A')} times: several processes write the same series (one "
        "service.instance.id, or one scraped port, for several workers), or one restarts all the time. Its totals are "
        "wrong until that ends.",
    )


def rules_missing(choice: Choice) -> Iterator[Twin]:
    """Predictions come, but nothing is recorded of them, without which no other rule here could ever fire."""
    settings = choice.settings
    by = ", ".join(settings.model)
    counter = selector(
        counter_name("predictions", settings.naming, settings.namespace), {SEGMENT[0]: ""}, choice.matchers
    )
    made = Expression(f"sum by ({by}) (increase({counter}[1h]))", settings.model)
    # Shorter windows are empty sooner than that of the counter.
    windows = [window for window in settings.recorded_windows if seconds(window) >= seconds("1h")]
    recorded = selector(
        "",
        {SEGMENT[0]: ""},
        [f'__name__=~"{recorded_name("predictions", f"({_alternatives(windows)})")}"', *choice.matchers],
    )
    found = f"count by ({by}) (count by (__name__, {by}) ({recorded}))"
    model = messages.model(settings, version=False)
    summary = f"Nothing watches {model}: recording rules are missing"
    description = (
        f"{model} made {_count('A')} predictions in the last hour, but of {len(windows)} windows {_count('B')} are "
        "recorded. Without them no other alert on it can fire."
    )
    yield Twin(
        Alert(RULES_MISSING, made, "15m", "warning", summary, description),
        {"A": made, "B": _beside(made, Expression(found, settings.model), otherwise=True)},
        f"$A > 0 && $B < {len(windows)}",
        summary,
        description,
    )


Family = Callable[[Choice], Iterator[Twin]]
FAMILIES: dict[str, tuple[Family, ...]] = {
    "objectives": (quality_below_objective, objective_missed_everywhere, error_budget_burns),
    "comparisons": (segment_worse, version_worse),
    "inputs": (
        predictions_stopped,
        labels_stopped,
        rows_rejected,
        segments_overflow,
        writers_share_identity,
        rules_missing,
    ),
}


# What twins are made of


def _alert(name: str, choice: Choice, window: str = "") -> Alert:
    """The alert for Prometheus whose twin is wanted; what is asked of it is the same for all metrics."""
    return _alerts(choice.settings)[name, window]


@lru_cache
def _alerts(settings: Settings) -> dict[tuple[str, str], Alert]:
    """Alerts by name, and by name and window."""
    found: dict[tuple[str, str], Alert] = {}
    for family in (family for families in alerts.FAMILIES.values() for family in families):
        for alert in family(settings):
            found.setdefault((alert.name, ""), alert)
            found.setdefault((alert.name, alert.labels.get("window", "")), alert)
    return found


def _kinds(metrics: Iterable[MetricDefinition], *, by_unit: bool = True) -> list[list[MetricDefinition]]:
    """The metrics in groups that are compared alike."""
    kinds: dict[tuple[str, bool], list[MetricDefinition]] = {}
    for metric in metrics:
        kinds.setdefault((metric.better, by_unit and metric.unit == "{ratio}"), []).append(metric)
    return list(kinds.values())


@dataclass(frozen=True)
class _Fleet:
    """
    What is recorded over a window, of several metrics in one query.

    Attributes:
        choice: Which models.
        window: Over which it is recorded.
    """

    choice: Choice
    window: str = ""

    @property
    def judged_by(self) -> tuple[str, ...]:
        """The Prometheus labels that tell objectives apart."""
        return (*self.choice.settings.version, METRIC, AVERAGE, K)

    def of(self, metrics: Iterable[MetricDefinition], suffix: str = "", *, segments: bool = False) -> Expression:
        """The values of the metrics for each version, or for each segment; or one of their bounds."""
        names = {recorded_name(metric.name + suffix, self.window): metric.name for metric in metrics}
        labels = (*self.choice.settings.version, TASK, METRIC, AVERAGE, K, *(SEGMENT if segments else ()))
        matchers, more = ({}, [f'{SEGMENT[0]}!=""']) if segments else (NOT_A_PART, [])
        named = _as_metric(_named(names, matchers, [*more, *self.choice.matchers]), names)
        return Expression(f"sum by ({', '.join(labels)}) ({named})", labels)

    def sides(self, metrics: list[MetricDefinition], *, segments: bool = False) -> Sides:
        """Value and bounds."""
        return Sides(*(self.of(metrics, suffix, segments=segments) for suffix in ("", *catalog.BOUNDS)))

    def sides_of_replaced(self, metrics: list[MetricDefinition]) -> Sides:
        """Value and bounds of the version that was replaced, without its version."""
        replaced = Expression(selector(REPLACED, more=self.choice.matchers), self.choice.settings.version)
        return Sides(*(self._of_model(self.of(metrics, suffix), replaced) for suffix in ("", *catalog.BOUNDS)))

    @staticmethod
    def _of_model(value: Expression, replaced: Expression) -> Expression:
        labels = tuple(name for name in value.labels if name != VERSION)
        return Expression(f"sum by ({', '.join(labels)}) ({_all(value, replaced)})", labels)

    def with_objective(self, metrics: list[MetricDefinition]) -> Expression:
        """The values of versions that have an objective, with all that is needed to compare them."""
        return _all(self.of(metrics), self.of(metrics, catalog.UPPER), self.objective(metrics), self.rows())

    def rows(self, *, segments: bool = False) -> Expression:
        """Labelled rows for each version, or for each segment."""
        name = recorded_name("window.rows", self.window)
        labels = (*self.choice.settings.version, TASK)
        if segments:
            return Expression(selector(name, more=[f'{SEGMENT[0]}!=""', *self.choice.matchers]), (*labels, *SEGMENT))
        return Expression(selector(name, {SEGMENT[0]: ""}, self.choice.matchers), labels)

    def judged(self) -> Expression:
        """The versions that are judged by a metric, for it is the headline of their task or they have an objective."""
        return Expression(selector(JUDGED, more=self.choice.matchers), self.judged_by)

    def objective(self, metrics: list[MetricDefinition]) -> Expression:
        """The objectives. Should processes of one version differ, the one that is easiest to meet."""
        settings, found = self.choice.settings, []
        name = settings.gauge(catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT)
        for aggregation in ("min", "max"):
            chosen = [metric.name for metric in metrics if (metric.better == "higher") == (aggregation == "min")]
            if chosen:
                matchers = [f'{METRIC}=~"{_alternatives(chosen)}"', *self.choice.matchers]
                series = settings.lately(selector(name, more=matchers))
                found.append(Expression(f"{aggregation} by ({', '.join(self.judged_by)}) ({series})", self.judged_by))
        return _either(found)

    # Gauges of processes

    def best(self, metrics: list[MetricDefinition]) -> Expression:
        """The values of the best process for each version, of metrics with one direction."""
        settings = self.choice.settings
        names = {settings.gauge(metric.name, metric.unit): metric.name for metric in metrics}
        gauges = _as_metric(settings.lately(_named(names, NOT_A_PART, self.choice.matchers)), names)
        aggregation = "max" if metrics[0].better == "higher" else "min"
        return Expression(f"{aggregation} by ({', '.join(self.judged_by)}) ({gauges})", self.judged_by)

    def gauge_rows(self) -> Expression:
        """Labelled rows in the windows of all processes."""
        settings = self.choice.settings
        gauge = settings.lately(
            selector(settings.gauge("window.rows", "{row}"), {SEGMENT[0]: ""}, self.choice.matchers)
        )
        return Expression(f"sum by ({', '.join(settings.version)}) ({gauge})", settings.version)


def _named(names: Mapping[str, str], matchers: Mapping[str, str], more: Iterable[str]) -> str:
    """Series of several names; of each is given what of it is the metric's name. The rest is the same for all."""
    before, after = _around(names)
    return selector("", matchers, [f'__name__=~"{before}({_alternatives(names.values())}){after}"', *more])


def _as_metric(series: str, names: Mapping[str, str]) -> str:
    """Such series with their metric as a label."""
    before, after = _around(names)
    return f'label_replace({series}, "{METRIC}", "$1", "__name__", "{before}(.+){after}")'


def _around(names: Mapping[str, str]) -> tuple[str, str]:
    """What is before the metric in each of the names, and what is after it."""
    before, _, after = next(iter(names)).rpartition(next(iter(names.values())))  # a namespace may be called so, too
    assert all(name == before + metric + after for name, metric in names.items()), names
    return before, after


def _alternatives(names: Iterable[str]) -> str:
    return "|".join(names)


def _either(expressions: Iterable[Expression]) -> Expression:
    """The series of all of them."""
    first, *others = expressions
    for other in others:
        first = first.or_else(other)
    return first


def _all(value: Expression, *conditions: Expression) -> Expression:
    """The series of a value for which every condition has one too."""
    for condition in conditions:
        value = value.where(condition) if set(condition.labels) == set(value.labels) else all_of(value, condition)
    return value


def _beside(value: Expression, evidence: Expression, *, otherwise: bool = False) -> Expression:
    """
    What belongs to each series of a value, with exactly its labels.

    Args:
        value: The value.
        evidence: What is known of these series; it may have fewer labels.
        otherwise: Whether it may be missing, which is then 0.
    """
    found = evidence.where(value)
    if set(evidence.labels) != set(value.labels):
        found = Expression(f"group by ({', '.join(value.labels)}) ({value})", value.labels) * evidence
    elif not otherwise:
        return found
    return found.or_else(value * 0) if otherwise else found


def _summed(series: Expression) -> Expression:
    """A recorded series as it is, without its name."""
    return Expression(f"sum by ({', '.join(series.labels)}) ({series})", series.labels)


def _defined(share: Expression, part: Expression) -> Expression:
    """A share; it is 0 where there is nothing to have a share of, rather than NaN."""
    return compare(share, ">=", 0).or_else(part * 0)


def _greater(one: Expression, other: Expression) -> Expression:
    return compare(one, ">", other).or_else(other)


def _at_least(value: Expression, low: float) -> Expression:
    return Expression(f"clamp_min({value}, {low!r})", value.labels)


# What twins say

_METRIC = "".join(
    [
        label(METRIC),
        *(
            f"{{{{ with $labels.{name} }}}} ({name.removeprefix('ml_')} {{{{ . }}}}){{{{ end }}}}"
            for name in (AVERAGE, K)
        ),
    ]
)
_SEGMENT = " ".join(label(name) for name in SEGMENT)
_SHARE = "{{ humanizePercentage $values.A.Value }}"


def _count(letter: str) -> str:
    return f'{{{{ printf "%.0f" $values.{letter}.Value }}}}'


def _value(letter: str, metrics: Iterable[MetricDefinition]) -> str:
    """What a query gives for one of the metrics: a share as percent."""
    value = f"$values.{letter}.Value"
    shares = " ".join(f'"{metric.name}"' for metric in metrics if metric.unit == "{ratio}")
    return (
        f"{{{{ if eq $labels.{METRIC} {shares} }}}}{{{{ humanizePercentage {value} }}}}"
        f'{{{{ else }}}}{{{{ printf "%.4g" {value} }}}}{{{{ end }}}}'
    )
