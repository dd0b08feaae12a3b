"""
The alerts of Grafana: a file that Grafana can load, of rules that ask for the same as those of Prometheus.

For whom they fire is in test_grafana_alert_story.py.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import promql_parser
import pytest
import yaml
from promtool import ALERTS, Case, run, series, shipped_groups, written

from otel_model_metrics.provisioning import alerts, grafana_alerts, promql
from otel_model_metrics.provisioning.checking import Known, expression_problems
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.grafana_alerts import (
    alerting_file,
    contact_points_example,
    policies_example,
)
from otel_model_metrics.provisioning.rules import Settings

CHOICES = {
    "default": Choice(),
    "chosen": Choice(
        Settings(windows=("30m", "2h", "1d"), min_rows=50, namespace="acme", by=("region", "team")),
        datasource="Mimir_1",
        folder="Models & more",
        models=r"fraud\.v2|churn-.*",
    ),
}
CONTENTS = {name: yaml.safe_load(alerting_file(choice)) for name, choice in CHOICES.items()}


def rules_in(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in content["groups"] for rule in group["rules"]]


TWINS = rules_in(CONTENTS["default"])
SHIPPED = [rule for group in shipped_groups(ALERTS) for rule in group["rules"]]
for_every_choice = pytest.mark.parametrize("name", CHOICES)


# What Grafana refuses, or takes and does wrong

FILE_KEYS = {"apiVersion", "groups"}
GROUP_KEYS = {"orgId", "name", "folder", "interval", "rules"}
NEEDED = ("uid", "title", "condition", "data")
RULE_KEYS = {*NEEDED, "for", "keepFiringFor", "missing_series_evals_to_resolve", "noDataState", "execErrState"}
RULE_KEYS |= {"labels", "annotations", "dashboardUid", "panelId", "isPaused"}
QUERY_KEYS = {"refId", "relativeTimeRange", "datasourceUid", "model"}
MODEL_KEYS = {"refId", "datasource", "editorMode", "expr", "instant", "range", "intervalMs", "maxDataPoints"}
MATH_KEYS = {"refId", "datasource", "type", "expression"}
STATES = {
    "noDataState": {"NoData", "Alerting", "OK", "KeepLast"},
    "execErrState": {"Error", "Alerting", "OK", "KeepLast"},
}
# What Grafana's templates have beside those of Go; query they have not.
FUNCTIONS = {"if", "else", "end", "with", "eq", "gt", "printf", "urlquery", "humanizePercentage"}


def problems(content: dict[str, Any]) -> list[str]:
    """What is wrong with a file of rules."""
    found = [f"unknown key {key}" for key in content.keys() - FILE_KEYS]
    if content.get("apiVersion") != 1:
        found.append("apiVersion must be 1")
    uids: set[str] = set()
    titles: set[tuple[str, str]] = set()
    for group in content["groups"]:
        found += [f"group: unknown key {key}" for key in group.keys() - GROUP_KEYS]
        found += [f"group: needs {key}" for key in sorted(GROUP_KEYS) if not group.get(key)]
        if "interval" in group and promql.seconds(group["interval"]) % 10:
            found.append("group: interval must be whole tens of seconds")
        if {"/", "$"} & set(group.get("folder", "")):
            found.append("group: folder has / or $")
        for rule in group.get("rules", []):
            found += [f"{rule.get('uid')}: {problem}" for problem in rule_problems(rule)]
            title = (group.get("folder", ""), rule.get("title", ""))
            found += ["uid is there twice"] * (rule.get("uid") in uids) + ["title is there twice"] * (title in titles)
            uids.add(rule.get("uid", ""))
            titles.add(title)
    return found


def rule_problems(rule: dict[str, Any]) -> Iterator[str]:
    yield from (f"unknown key {key}" for key in rule.keys() - RULE_KEYS)
    yield from (f"needs {key}" for key in NEEDED if not rule.get(key))
    if not re.fullmatch("[a-z0-9][a-z0-9-]{1,39}", rule.get("uid", "")):
        yield "uid must be at most 40 lower-case letters, digits and -"
    if len(rule.get("title", "")) > 190:
        yield "title must have at most 190 characters"
    for key in ("for", "keepFiringFor"):
        if key in rule and not re.fullmatch("([0-9]+[smhd])+", str(rule[key])):
            yield f"{key} must be a duration"
    yield from (f"{key} must be one of {states}" for key, states in STATES.items() if rule.get(key) not in states)
    if not (isinstance(rule.get("missing_series_evals_to_resolve", 1), int)):
        yield "missing_series_evals_to_resolve must be a number"
    letters = [query.get("refId") for query in rule.get("data", [])]
    if rule.get("condition") not in letters:
        yield "condition must be one of the queries"
    if len(set(letters)) < len(letters):
        yield "refId is there twice"
    for query in rule.get("data", []):
        yield from query_problems(query, set(letters))
    yield from link_problems(rule)
    # Every value but annotations and models goes through os.ExpandEnv
    others = {key: value for key, value in rule.items() if key not in ("annotations", "data")}
    others["data"] = [{**query, "model": ""} for query in rule.get("data", [])]
    yield from (f"$ must be $$ in {text!r}" for text in texts(others) if "$" in text.replace("$$", ""))
    for part in ("labels", "annotations"):
        yield from (
            f"{part}: {key} must be a text" for key, value in rule.get(part, {}).items() if type(value) is not str
        )
    for text in texts(rule.get("annotations", {})):
        yield from template_problems(text, set(letters))


def link_problems(rule: dict[str, Any]) -> Iterator[str]:
    """Notifications use the annotations, and Grafana's own pages the keys."""
    annotations = rule.get("annotations", {})
    links = [
        (rule.get("dashboardUid"), str(rule.get("panelId"))),
        (annotations.get("__dashboardUid__"), annotations.get("__panelId__")),
    ]
    if links[0] != links[1] or None in links[0]:
        yield "needs the same panel in dashboardUid, panelId and both annotations"
    address = urlsplit(annotations.get("dashboard_url", ""))
    if address.scheme or address.netloc:
        yield "dashboard_url must be relative: only Grafana knows where it is"
    if (address.path, parse_qs(address.query).get("viewPanel")) != (f"/d/{links[0][0]}", [links[0][1]]):
        yield "dashboard_url must lead to that panel"
    if type(rule.get("panelId")) is not int:
        yield "panelId must be a number"


def query_problems(query: dict[str, Any], letters: set[str]) -> Iterator[str]:
    model, is_math = query.get("model", {}), query.get("datasourceUid") == "__expr__"
    yield from (f"query: needs {key}" for key in sorted(QUERY_KEYS - query.keys()))
    yield from (f"query: unknown key {key}" for key in query.keys() - QUERY_KEYS)
    yield from (f"model: unknown key {key}" for key in model.keys() - (MATH_KEYS if is_math else MODEL_KEYS))
    if model.get("refId") != query.get("refId"):
        yield "refId and that of the model differ"
    if model.get("datasource", {}).get("uid") != query.get("datasourceUid"):
        yield "datasourceUid and that of the model differ"
    if "$" in query.get("datasourceUid", ""):
        yield "datasourceUid must be a uid, and no variable"
    between = query.get("relativeTimeRange", {})
    if any(type(between.get(end)) is not int for end in ("from", "to")):
        yield "relativeTimeRange needs from and to in seconds"
    elif not is_math and between["from"] <= between["to"]:
        yield "relativeTimeRange must begin before it ends"
    if is_math:
        expression = model.get("expression", "")
        if model.get("type") != "math" or not expression:
            yield "expression must be math"
        yield from (
            f"${letter} is no query" for letter in re.findall(r"\$\{?(\w+)", expression) if letter not in letters
        )
        return
    text = model.get("expr", "")
    if not text or len(text.encode()) > 16_000:
        yield "query must have 1 to 16000 bytes"
    yield from (f"{variable} means nothing in an alert" for variable in re.findall(r"\$(?:{\w+}|[A-Za-z_]\w*)", text))
    if (model.get("instant"), model.get("range")) != (True, False):
        yield "query must be an instant one: math is for numbers"


def template_problems(text: str, letters: set[str]) -> Iterator[str]:
    if "$$" in text:
        yield "annotations: $$ is not expanded"
    if "${" in text:
        yield "annotations: ${} is expanded before templates are"
    if text.count("{{") != text.count("}}"):
        yield "annotations: a brace is missing"
    for action in re.findall("{{(.*?)}}", text):
        plain = re.sub(r'"[^"]*"', "", action)
        yield from (
            f"annotations: no query {letter}"
            for letter in re.findall(r"\$values\.(\w+)", plain)
            if letter not in letters
        )
        words = re.findall(r"(?<![$.\w])[a-z]\w*", plain)
        yield from (f"annotations: no function {word}" for word in words if word not in FUNCTIONS)


def texts(value: Any) -> Iterator[str]:
    """Every text in a structure."""
    if isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


@for_every_choice
def test_grafana_can_load_the_file(name):
    """
    None of the faults below, of which most keep Grafana from starting.
    """
    assert [] == problems(CONTENTS[name])


Change = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Any]
FAULTS: dict[str, Change] = {
    "group: interval must be whole tens of seconds": lambda group, rule, query: group.update(interval="75s"),
    "group: needs folder": lambda group, rule, query: group.pop("folder"),
    "group: needs name": lambda group, rule, query: group.pop("name"),
    "group: needs interval": lambda group, rule, query: group.pop("interval"),
    "group: unknown key evaluation_interval": lambda group, rule, query: group.update(evaluation_interval="1m"),
    "group: folder has / or $": lambda group, rule, query: group.update(folder="a/b"),
    "uid is there twice": lambda group, rule, query: group["rules"][1].update(uid=rule["uid"]),
    "title is there twice": lambda group, rule, query: group["rules"][1].update(title=rule["title"]),
    "needs uid": lambda group, rule, query: rule.pop("uid"),
    "needs title": lambda group, rule, query: rule.pop("title"),
    "needs condition": lambda group, rule, query: rule.pop("condition"),
    "needs data": lambda group, rule, query: rule.pop("data"),
    "uid must be at most 40 lower-case letters, digits and -": lambda group, rule, query: rule.update(uid="x" * 41),
    "title must have at most 190 characters": lambda group, rule, query: rule.update(title="x" * 191),
    "unknown key keep_firing_for": lambda group, rule, query: rule.update(keep_firing_for="5m"),
    "for must be a duration": lambda group, rule, query: rule.update({"for": 5}),
    "noDataState must be one of": lambda group, rule, query: rule.update(noDataState="Ok"),
    "execErrState must be one of": lambda group, rule, query: rule.pop("execErrState"),
    "missing_series_evals_to_resolve must be": lambda group, rule, query: rule.update(
        missing_series_evals_to_resolve="5"
    ),
    "condition must be one of the queries": lambda group, rule, query: rule.update(condition="Z"),
    "refId is there twice": lambda group, rule, query: rule["data"][1].update(refId="A"),
    "refId and that of the model differ": lambda group, rule, query: query["model"].update(refId="B"),
    "datasourceUid and that of the model differ": lambda group, rule, query: query.update(datasourceUid="loki"),
    "datasourceUid must be a uid": lambda group, rule, query: query.update(datasourceUid="${datasource}"),
    "relativeTimeRange must begin": lambda group, rule, query: query["relativeTimeRange"].update({"from": 0}),
    "relativeTimeRange needs": lambda group, rule, query: query["relativeTimeRange"].update({"from": "10m"}),
    "query: needs relativeTimeRange": lambda group, rule, query: query.pop("relativeTimeRange"),
    "query: unknown key queryText": lambda group, rule, query: query.update(queryText="up"),
    "model: unknown key query": lambda group, rule, query: query["model"].update(query="up"),
    "$__rate_interval means nothing": lambda group, rule, query: query["model"].update(
        expr="rate(x[$__rate_interval])"
    ),
    "${window} means nothing": lambda group, rule, query: query["model"].update(expr="x[${window}]"),
    "query must have 1 to 16000 bytes": lambda group, rule, query: query["model"].update(expr="x" * 16_001),
    "query must be an instant one": lambda group, rule, query: query["model"].update(range=True),
    "expression must be math": lambda group, rule, query: rule["data"][-1]["model"].update(type="reduce"),
    "$Z is no query": lambda group, rule, query: rule["data"][-1]["model"].update(expression="$Z > 0"),
    "$ must be $$ in '{{ $labels.x }}'": lambda group, rule, query: rule["labels"].update(model="{{ $labels.x }}"),
    "$ must be $$ in '$5'": lambda group, rule, query: rule.update(title="$5"),
    "annotations: $$ is not expanded": lambda group, rule, query: rule["annotations"].update(
        summary="{{ $$labels.x }}"
    ),
    "annotations: ${} is expanded": lambda group, rule, query: rule["annotations"].update(summary="${HOME}"),
    "annotations: a brace is missing": lambda group, rule, query: rule["annotations"].update(summary="{{ $labels.x }"),
    "annotations: no query Z": lambda group, rule, query: rule["annotations"].update(summary="{{ $values.Z.Value }}"),
    "annotations: no function query": lambda group, rule, query: rule["annotations"].update(
        summary='{{ query "up" | first | value }}'
    ),
    "annotations: __panelId__ must be a text": lambda group, rule, query: rule["annotations"].update(__panelId__=5),
    "labels: window must be a text": lambda group, rule, query: rule["labels"].update(window=5),
    "needs the same panel": lambda group, rule, query: rule["annotations"].pop("__panelId__"),
    "needs the same panel in": lambda group, rule, query: rule.pop("dashboardUid"),
    "panelId must be a number": lambda group, rule, query: rule.update(panelId="5"),
    "dashboard_url must be relative": lambda group, rule, query: rule["annotations"].update(
        dashboard_url=f"http://localhost:3000{rule['annotations']['dashboard_url']}"
    ),
    "dashboard_url must lead to that panel": lambda group, rule, query: rule["annotations"].pop("dashboard_url"),
    "dashboard_url must lead to": lambda group, rule, query: rule["annotations"].update(
        dashboard_url=rule["annotations"]["dashboard_url"].replace("viewPanel=", "viewPanel=1")
    ),
    "dashboard_url must lead": lambda group, rule, query: rule["annotations"].update(
        dashboard_url=rule["annotations"]["dashboard_url"].replace("ml-quality", "quality")
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault):
    """
    In a file that is right but for this one thing.
    """
    content = copy.deepcopy(CONTENTS["default"])
    group = content["groups"][0]
    rule = group["rules"][0]

    FAULTS[fault](group, rule, rule["data"][0])

    assert [] != [problem for problem in problems(content) if fault in problem], problems(content)


# What they ask for


def test_every_alert_has_a_twin_and_every_twin_an_alert():
    """
    But for the one that says that twins have nothing to rest on.
    """
    twins = {rule["labels"]["alert"] for rule in TWINS}

    assert {rule["alert"] for rule in SHIPPED} == twins - {grafana_alerts.RULES_MISSING}
    assert grafana_alerts.RULES_MISSING in twins


@for_every_choice
def test_a_twin_is_as_severe_and_as_patient_as_its_alert(name):
    """
    And goes on for as long, has the same labels and the same runbook.
    """
    groups = alerts.alert_groups(CHOICES[name].settings)
    wanted = {
        (
            rule["alert"],
            rule["labels"].get("window"),
            rule["labels"]["severity"],
            rule["for"],
            rule.get("keep_firing_for"),
            rule["annotations"]["runbook_url"],
        )
        for group in groups
        for rule in group["rules"]
    }

    assert wanted == {
        (
            rule["labels"]["alert"],
            rule["labels"].get("window"),
            rule["labels"]["severity"],
            rule["for"],
            rule.get("keepFiringFor"),
            rule["annotations"]["runbook_url"],
        )
        for rule in rules_in(CONTENTS[name])
        if rule["labels"]["alert"] != grafana_alerts.RULES_MISSING
    }


def test_twins_linger_when_their_values_are_gone_too():
    """
    keepFiringFor is for those only that are still evaluated; N missing evaluations last N - 1 minutes or more.
    """
    lingering = {
        rule["keepFiringFor"]: rule["missing_series_evals_to_resolve"] for rule in TWINS if "keepFiringFor" in rule
    }

    assert {"30m": 31} == lingering
    assert [] == [
        rule["uid"] for rule in TWINS if ("keepFiringFor" in rule) != ("missing_series_evals_to_resolve" in rule)
    ]


LEVELS = [
    ("ModelQualityBelowObjective", ">= 100", "$D >= 100"),
    ("ModelQualityBelowObjective", f"{alerts.STRICTNESS}", f"{alerts.STRICTNESS}"),
    ("ModelObjectiveMissedEverywhere", ">= 100", "$D >= 100"),
    ("ModelErrorBudgetFastBurn", f"{alerts.FAST_BURN}", f"{alerts.FAST_BURN}"),
    ("ModelErrorBudgetFastBurn", f"{alerts.FAST_SHARE}", f"{alerts.FAST_SHARE}"),
    ("ModelErrorBudgetSlowBurn", f"{alerts.SLOW_SHARE}", f"{alerts.SLOW_SHARE}"),
    ("ModelSegmentWorse", ">= 100", ">= 100"),
    ("ModelSegmentWorse", f"{1 + alerts.MARGIN_OF_ERRORS}", f"{1 + alerts.MARGIN_OF_ERRORS}"),
    ("ModelSegmentWorse", f"{1 - alerts.MARGIN}", f"{1 - alerts.MARGIN}"),
    ("ModelVersionWorse", f"{1 + alerts.MARGIN}", f"{1 + alerts.MARGIN}"),
    ("ModelPredictionsStopped", f">= {alerts.MISSED}", f"$C >= {alerts.MISSED}"),
    ("ModelLabelsStopped", f">= {alerts.MISSED}", f"$C >= {alerts.MISSED}"),
    ("ModelRowsRejected", f"> {alerts.REJECTED_SHARE}", f"$A > {alerts.REJECTED_SHARE}"),
    ("ModelRowsRejected", f">= {alerts.REJECTED_ROWS}", f"$B >= {alerts.REJECTED_ROWS}"),
    ("ModelSegmentsOverflow", f"> {alerts.OVERFLOW_SHARE}", f"$A > {alerts.OVERFLOW_SHARE}"),
    ("ModelSegmentsOverflow", ">= 100", "$B >= 100"),
    ("ModelWritersShareIdentity", f">= {alerts.RESETS}", f"$A >= {alerts.RESETS}"),
    ("ModelWritersShareIdentity", f"> {alerts.RESET_SHARE}", f"$B > {alerts.RESET_SHARE}"),
]


@pytest.mark.parametrize(("alert", "theirs", "ours"), LEVELS)
def test_levels_are_those_of_the_alert(alert, theirs, ours):
    """
    They have one origin; here they are seen where a reader of either file meets them.
    """
    of_alert = " ".join(" ".join(rule["expr"].split()) for rule in SHIPPED if rule["alert"] == alert)
    of_twin = " ".join(
        " ".join((query["model"].get("expr") or query["model"]["expression"]).split())
        for rule in TWINS
        if rule["labels"]["alert"] == alert
        for query in rule["data"]
    )

    assert theirs in of_alert
    assert ours in of_twin


def selectors(expression: str) -> list[Any]:
    """Every selector of series."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def queries_of(name: str) -> Iterator[str]:
    for rule in rules_in(CONTENTS[name]):
        yield from (query["model"]["expr"] for query in rule["data"] if "expr" in query["model"])


@for_every_choice
def test_queries_mention_only_what_exists(name):
    """
    Also where a query asks for several names at once.
    """
    known = Known(CHOICES[name].settings)
    for expression in queries_of(name):
        assert [] == expression_problems(expression, known)
        for selector in selectors(expression):
            for matcher in selector.matchers.matchers:
                if matcher.name == "__name__":
                    before, several, after = re.fullmatch(r"(.*)\((.*)\)(.*)", matcher.value).groups()
                    names = {before + one + after for one in several.split("|")}
                    assert set() == names - known.recorded - known.metrics


def test_one_query_is_for_all_metrics_of_an_alert():
    """
    So every metric that has a rule of Prometheus is in a name that the twin asks for.
    """
    for alert in {rule["alert"] for rule in SHIPPED if "ml_metric" in rule["labels"]}:
        metrics = {rule["labels"]["ml_metric"] for rule in SHIPPED if rule["alert"] == alert}
        for rule in (rule for rule in TWINS if rule["labels"]["alert"] == alert):
            asked = re.findall(r'__name__=~"ml_model[:_]\(([^)]*)\)', rule["data"][0]["model"]["expr"])
            assert metrics == {metric for names in asked for metric in names.split("|")}, alert


def test_a_namespace_may_be_called_like_a_metric():
    """
    What is before the metric in a name is not taken for it.
    """
    for namespace in ("mcc", "accuracy"):
        content = yaml.safe_load(alerting_file(Choice(Settings(namespace=namespace))))
        (rule,) = (rule for rule in rules_in(content) if rule["uid"] == "ml-objective-missed-everywhere")
        assert f'"{namespace}_ml_model_(.+)"' in rule["data"][0]["model"]["expr"]


def test_models_are_selected_in_every_selector():
    """
    And in none if all models are wanted.
    """
    for expression in queries_of("chosen"):
        for selector in selectors(expression):
            chosen = [matcher.value for matcher in selector.matchers.matchers if matcher.name == "ml_model_name"]
            assert [r"fraud\.v2|churn-.*"] == chosen, expression
    assert [] == [expression for expression in queries_of("default") if "ml_model_name=" in expression]


def test_the_choice_is_where_it_belongs():
    """
    Data source and folder; and the labels that split a fleet are among those of every query.
    """
    content = CONTENTS["chosen"]

    assert {"Models & more"} == {group["folder"] for group in content["groups"]}
    assert {"Mimir_1", "__expr__"} == {query["datasourceUid"] for rule in rules_in(content) for query in rule["data"]}
    for rule in rules_in(content):
        assert "{{ $labels.region }}" in rule["annotations"]["summary"]


def test_uid_and_title_of_a_rule_do_not_depend_on_the_other_ones():
    """
    Were the title of one passed on to another, Grafana would find it twice while it loads the file.
    """

    def names(*windows: str) -> dict[str, str]:
        content = yaml.safe_load(alerting_file(Choice(Settings(windows=windows))))
        return {rule["uid"]: rule["title"] for rule in rules_in(content)}

    few, many = names("1h"), names("30m", "1h", "6h", "29d23h59m59s")

    assert few.items() <= many.items()
    assert {
        "ml-quality-below-objective-30m": "ModelQualityBelowObjective 30m",
        "ml-quality-below-objective-6h": "ModelQualityBelowObjective 6h",
        "ml-quality-below-objective-29d23h59m59s": "ModelQualityBelowObjective 29d23h59m59s",
    } == dict(many.items() - few.items())
    assert "ModelQualityBelowObjective" == few["ml-quality-below-objective-1h"]
    assert 40 >= max(map(len, many))


def test_uids_stay_as_they_are():
    """
    A rule with another uid is another rule to Grafana, which keeps the old one too.
    """
    assert [
        "ml-quality-below-objective-1h",
        "ml-quality-below-objective-6h",
        "ml-objective-missed-everywhere",
        "ml-error-budget-fast-burn",
        "ml-error-budget-slow-burn",
        "ml-segment-worse",
        "ml-version-worse",
        "ml-predictions-stopped",
        "ml-labels-stopped",
        "ml-rows-rejected",
        "ml-segments-overflow",
        "ml-writers-share-identity",
        "ml-rules-missing",
    ] == [rule["uid"] for rule in TWINS]


def test_a_query_that_stores_would_refuse_is_not_written():
    """
    VictoriaMetrics takes 16 kB; a long query is first laid out more narrowly.
    """
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        alerting_file(Choice(models="|".join(f"model-{number}" for number in range(100))))

    assert re.fullmatch(
        r"A query of an alert would have \d+ bytes; stores refuse more than 16000. Choose a shorter regular expression "
        "for models, or fewer labels to split the fleet by.",
        str(raised.value),
    )


def test_a_narrow_layout_means_the_same():
    """
    It is what a query is parsed as, whatever the blanks.
    """
    for choice in (Choice(), Choice(Settings(by=("deployment_environment_name",)))):
        for families in grafana_alerts.FAMILIES.values():
            for twin in (twin for family in families for twin in family(choice)):
                for letter, query in twin.queries.items():
                    data = {query["refId"]: query for query in twin.rule(choice)["data"]}
                    laid_out = promql_parser.parse(data[letter]["model"]["expr"])
                    assert promql_parser.parse(str(query)).prettify() == laid_out.prettify()


# Whom to tell


def test_examples_go_together():
    """
    Every receiver exists, every severity has one; only this folder's alerts are routed.
    """
    choice = CHOICES["chosen"]
    points = yaml.safe_load(contact_points_example(choice))["contactPoints"]
    (tree,) = yaml.safe_load(policies_example(choice))["policies"]
    severities = set()
    for route in tree["routes"]:
        assert route["receiver"] in {point["name"] for point in points}
        matchers = {name: value for name, sign, value in route["object_matchers"]}
        assert "Models & more" == matchers["grafana_folder"]
        assert ["grafana_folder", "alertname", "ml_model_name", "region", "team"] == route["group_by"]
        severities.add(matchers["severity"])

    assert {rule["labels"]["severity"] for rule in TWINS} == severities
    for point in points:
        assert [] == [
            key for key in ("uid", "type", "settings") for receiver in point["receivers"] if key not in receiver
        ]


def test_the_example_of_policies_says_what_it_overwrites():
    """
    Before anything else in the file.
    """
    comment = policies_example(Choice()).partition("apiVersion")[0]

    assert "REPLACES ALL NOTIFICATION POLICIES" in " ".join(comment.replace("#", "").split())


# What they say

MODEL = {"ml_model_name": "fraud", "ml_model_version": "2"}
BINARY = {**MODEL, "ml_model_task": "binary"}
Said = tuple[dict[str, str], list[float], str, str]
SAID: dict[str, Said] = {
    "ml-quality-below-objective-1h": (
        {**BINARY, "ml_metric": "accuracy"},
        [0.8, 0.02, 0.85, 738.2],
        "accuracy of fraud 2 is 80% over 1h, its objective is 85%",
        "Over the last hour accuracy of fraud 2 was 80% in 738 labelled rows of all its processes. Its objective is "
        "85%, and chance does not explain it: the whole 99.9 % interval misses it.",
    ),
    "ml-quality-below-objective-6h of a ranking": (
        {**MODEL, "ml_model_task": "ranking", "ml_metric": "ndcg_at_k", "ml_k": "10"},
        [0.3, 0.2, 0.5, 36000],
        "ndcg_at_k (k 10) of fraud 2 is 0.3 over 6h, its objective is 0.5",
        "Over the last 6 hours ndcg_at_k (k 10) of fraud 2 was 0.3 in 36000 labelled rows of all its processes. Its "
        "objective is 0.5, and chance does not explain it: the whole 99.9 % interval misses it.",
    ),
    "ml-quality-below-objective-6h of an average": (
        {**MODEL, "ml_model_task": "multiclass", "ml_metric": "precision", "ml_average": "macro"},
        [0.3, 0.2, 0.5, 36000],
        "precision (average macro) of fraud 2 is 30% over 6h, its objective is 50%",
        "Over the last 6 hours precision (average macro) of fraud 2 was 30% in 36000 labelled rows of all its "
        "processes. Its objective is 50%, and chance does not explain it: the whole 99.9 % interval misses it.",
    ),
    "ml-objective-missed-everywhere": (
        {**MODEL, "ml_metric": "roc_auc"},
        [0.61, 0.09, 0.7, 250],
        "roc_auc of fraud 2 is 0.61 at best, its objective is 0.7",
        "For 30 minutes no process has reached the objective of 0.7 for roc_auc of fraud 2: the best one has 0.61. "
        "There are 250 labelled rows in the windows of all processes.",
    ),
    "ml-error-budget-fast-burn": (
        {**BINARY, "ml_metric": "accuracy"},
        [0.2, 0.2, 0.2, 6000, 0.85, 5.333],
        "accuracy of fraud 2 is 20% over 1h: errors come 5.3 times as fast as its objective of 85% allows",
        "Over the last hour accuracy of fraud 2 was 20% in 6000 labelled rows of all its processes, and it goes on in "
        "the last 5 minutes. Its objective is 85%: errors come 5.3 times as fast as that allows.",
    ),
    "ml-error-budget-fast-burn of a model that must not err": (
        {**BINARY, "ml_metric": "accuracy"},
        [0.2, 0.2, 0.2, 6000, 1, 8e8],
        "accuracy of fraud 2 is 20% over 1h: errors come infinitely many times as fast as its objective of 100% allows",
        "Over the last hour accuracy of fraud 2 was 20% in 6000 labelled rows of all its processes, and it goes on in "
        "the last 5 minutes. Its objective is 100%: errors come infinitely many times as fast as that allows.",
    ),
    "ml-error-budget-slow-burn": (
        {**BINARY, "ml_metric": "recall"},
        [0.2, 0.2, 0.2, 36000, 0.85, 5.333],
        "recall of fraud 2 is 20% over 6h: errors come 5.3 times as fast as its objective of 85% allows",
        "Over the last 6 hours recall of fraud 2 was 20% in 36000 labelled rows of all its processes, and it goes on "
        "in the last hour. Its objective is 85%: errors come 5.3 times as fast as that allows.",
    ),
    "ml-segment-worse": (
        {**BINARY, "ml_metric": "accuracy", "ml_segment_name": "country", "ml_segment_value": "DE"},
        [0.6, 0.1, 0.9, 3600, 36000],
        "accuracy of fraud 2 is 60% for country DE, 90% over all",
        "Over the last 6 hours accuracy of fraud 2 was 60% for the segment country DE (3600 labelled rows) and 90% "
        "over all (36000 labelled rows). Chance does not explain it (99.9 %).",
    ),
    "ml-segment-worse of names that mean something in an address": (
        {
            "ml_model_name": "c++ & more",
            "ml_model_version": "50%#2",
            "ml_model_task": "binary",
            "ml_metric": "accuracy",
            "ml_segment_name": "city/town?",
            "ml_segment_value": "Köln=Cologne",
        },
        [0.6, 0.1, 0.9, 3600, 36000],
        "accuracy of c++ & more 50%#2 is 60% for city/town? Köln=Cologne, 90% over all",
        "Over the last 6 hours accuracy of c++ & more 50%#2 was 60% for the segment city/town? Köln=Cologne (3600 "
        "labelled rows) and 90% over all (36000 labelled rows). Chance does not explain it (99.9 %).",
    ),
    "ml-version-worse": (
        {**MODEL, "ml_model_task": "regression", "ml_metric": "mae"},
        [2.5, 1, 1, 10000, 1.25, 500],
        "mae of the new version fraud 2 is 2.5, that of the one it replaced was 1.25",
        "Since it serves, mae of fraud 2 is 2.5 in 10000 labelled rows; the version that it replaced had 1.25. Chance "
        "does not explain it (99.9 %).",
    ),
    "ml-predictions-stopped": (
        {"ml_model_name": "fraud"},
        [42.3, 0, 507, 300],
        "fraud makes no predictions any more",
        "No process of fraud reports predictions, though at this time there usually are 42 within 5m, 507 within 1h.",
    ),
    "ml-labels-stopped": (
        {"ml_model_name": "fraud"},
        [50, 0, 600],
        "fraud gets no labels any more",
        "In the last hour fraud made 600 predictions and got no label, though at this time there usually are 50 an "
        "hour. Its quality is not known.",
    ),
    "ml-rows-rejected": (
        {**MODEL, "ml_reject_reason": "invalid_score"},
        [0.02, 120],
        "2% of the rows of fraud 2 are rejected: invalid_score",
        "In the last hour 120 rows of fraud 2 could not be used (invalid_score); no metric counts them. The log of the "
        "service says what came and what was expected.",
    ),
    "ml-segments-overflow": (
        {**MODEL, "ml_segment_name": "user"},
        [0.1, 600],
        "10% of the rows of fraud 2 have a user that is not told apart",
        "In the last hour 600 rows of fraud 2 had a user beyond the first max_segment_values ones, which are one "
        "segment, __other__.",
    ),
    "ml-writers-share-identity": (
        MODEL,
        [7, 0.5],
        "Several processes of fraud 2 report as one",
        "Within 15m a counter of fraud 2 fell 7 times: several processes write the same series (one "
        "service.instance.id, or one scraped port, for several workers), or one restarts all the time. Its totals are "
        "wrong until that ends.",
    ),
    "ml-rules-missing": (
        {"ml_model_name": "fraud"},
        [600, 0],
        "Nothing watches fraud: recording rules are missing",
        "fraud made 600 predictions in the last hour, but of 3 windows 0 are recorded. Without them no other alert on "
        "it can fire.",
    ),
}


# The labels that a dashboard has a variable for, in the order of its variables.
CHOSEN_BY = {
    "ml_model_name": "model",
    "ml_model_version": "version",
    "region": "region",
    "team": "team",
    "ml_segment_name": "segment_name",
    "ml_segment_value": "segment_value",
    "window": "window",
}


def choosing(rule: dict[str, Any], labels: dict[str, str]) -> list[tuple[str, str]]:
    """What the address of a rule's panel sets: all that labels of an alert say about variables of dashboards."""
    told = {**labels, **rule["labels"]}
    chosen = [(f"var-{variable}", told[label]) for label, variable in CHOSEN_BY.items() if label in told]
    return [*chosen, ("viewPanel", str(grafana_alerts.PANELS[rule["labels"]["alert"]][1]))]


@for_every_choice
def test_the_address_chooses_what_the_alert_is_about(name):
    """
    All that its labels tell and its dashboard has a variable for, and nothing else; on the panel for that alert.
    """
    pages = pytest.importorskip("otel_model_metrics.provisioning.dashboards.pages", exc_type=ModuleNotFoundError)
    choice = CHOICES[name]
    of_alert = {alert_of(kind): labels for kind, (labels, *_) in SAID.items()}
    for rule in rules_in(CONTENTS[name]):
        alert = rule["labels"]["alert"]
        page, panel = grafana_alerts.PANELS[alert]
        dashboard = json.loads(pages.FILES[f"{page}.json"](choice))
        variables = {f"var-{variable['name']}" for variable in dashboard["templating"]["list"]}
        labels = [*of_alert[alert], *choice.settings.by]
        filled_in = {label: f"{{{{ $labels.{label} | urlquery }}}}" for label in labels}

        path, _, query = rule["annotations"]["dashboard_url"].partition("?")
        found = [tuple(one.split("=", 1)) for one in query.split("&")]

        assert f"/d/{page}" == path
        assert choosing(rule, filled_in) == found, alert
        assert {variable for variable, _ in found} - variables == {"viewPanel"}, alert
        asked = {*labels, *rule["labels"]} & {label for label, one in CHOSEN_BY.items() if f"var-{one}" in variables}
        assert len(asked) == len(found) - 1, alert
        assert panel in {one["id"] for one in dashboard["panels"]}, alert


def alert_of(kind: str) -> str:
    """The alert of a message of the table above."""
    (alert,) = {rule["labels"]["alert"] for rule in TWINS if rule["uid"] == kind.split()[0]}
    return alert


@pytest.mark.parametrize("kind", SAID)
def test_a_message_says_what_is_wrong_in_numbers(tmp_path, kind):
    """
    And leads to where to look, whatever names there are in the address. Prometheus fills in the templates: they are
    those of Grafana but for the values, which it looks up.
    """
    labels, values, summary, description = SAID[kind]
    (rule,) = (rule for rule in TWINS if rule["uid"] == kind.split()[0])
    letters = [query["refId"] for query in rule["data"]][: len(values)]
    annotations = {
        name: re.sub(r"\$values\.(\w)\.Value", r'(query "\1" | first | value)', text)
        for name, text in rule["annotations"].items()
    }
    stored = {series(letter, labels): f"{value}x9" for letter, value in zip(letters, values, strict=True)}
    case = Case(kind, stored)
    address = f"/d/{grafana_alerts.PANELS[rule['labels']['alert']][0]}?{urlencode(choosing(rule, labels))}"
    expected = {**annotations, "summary": summary, "description": description, "dashboard_url": address}
    case.expect_alert(rule["title"], "5m", {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": expected})
    shown = {"alert": rule["title"], "expr": "A", "labels": rule["labels"], "annotations": annotations}

    assert "" == run(tmp_path, [case], [written(tmp_path, [{"name": "twins", "rules": [shown]}], "twins.yaml")])


def test_every_twin_has_a_message_above():
    """
    And every value that a message has is one of those given there.
    """
    assert {rule["uid"] for rule in TWINS} == {kind.split()[0] for kind in SAID}
