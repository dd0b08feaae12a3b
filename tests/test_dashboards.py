"""
The dashboards, as far as no store is needed: that Grafana can read them, and that what they name exists.

What is promised of each page are the checks of dashboard_lint.py, each of which is shown below to find what it is for.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk needs Python 3.11 or newer")

import dashboard_lint as lint
from dashboard_lint import CHECKS, LINTER, Content, Page, called

from otel_model_metrics import catalog
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import GROUND_TRUTH, MODEL_PAGE, OVERVIEW, SEGMENTS, pages, style
from otel_model_metrics.provisioning.grafana_alerts import PANELS
from otel_model_metrics.provisioning.rules import Settings

TESTS = Path(__file__).parent
FOLDER = TESTS.parent / "grafana" / "dashboards"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
EXCLUDED: dict[str, dict[str, str]] = yaml.safe_load((FOLDER / ".lint").read_text())["exclusions"]

# What a user may choose for names; the committed files are those of the first.
OWN_NAMES: dict[str, Any] = {"namespace": "acme", "by": ("deployment_environment_name",)}
CHOICES = {"default": Choice(), "own names": Choice(Settings(**OWN_NAMES))}


def made(choice: Choice) -> dict[str, Content]:
    return {name.removesuffix(".json"): json.loads(make(choice)) for name, make in pages.FILES.items()}


SITES: dict[str, dict[str, Content]] = {
    "default": {name: json.loads(path.read_text()) for name, path in FILES.items()},
    **{name: made(choice) for name, choice in CHOICES.items() if name != "default"},
}
PAGES = {(site, name): Page(name, SITES[site], CHOICES[site]) for site in SITES for name in SITES[site]}
for_every_page = pytest.mark.parametrize("page", PAGES.values(), ids=[f"{name}, {site}" for site, name in PAGES])
for_every_file = pytest.mark.parametrize("name", FILES)


# What is promised of each page


@for_every_page
@pytest.mark.parametrize("check", [name for name in CHECKS if name not in EXCLUDED])
def test_a_page_keeps_every_promise(check, page):
    """
    Each is a check of dashboard_lint.py, which says there why.
    """
    assert [] == [f"{page.name}: {problem}" for problem in CHECKS[check](page)]


def test_there_are_the_15_rules_of_the_linter_and_four_are_excluded_with_a_reason():
    """
    Those that want every query to be chosen by job and instance, which not every store has.
    """
    assert 15 == len(LINTER)
    assert {"template-job-rule", "template-instance-rule", "target-job-rule", "target-instance-rule"} == set(EXCLUDED)
    assert all(len(one["reason"]) > 20 for one in EXCLUDED.values())


@for_every_file
@pytest.mark.parametrize("rule", EXCLUDED)
def test_no_rule_is_excluded_that_is_kept(rule, name):
    """
    The linter would not tell.
    """
    assert list(LINTER[rule](PAGES["default", name]))


@pytest.mark.parametrize("label", ["job", "instance"])
def test_a_page_that_is_chosen_by_job_and_instance_keeps_the_excluded_rules(label):
    """
    So they are the rules that they are said to be.
    """
    site = copy.deepcopy(SITES["default"])
    variable = {"name": label, "type": "query", "label": label.title(), "multi": True, "allValue": ".+"}
    variable |= {"datasource": {"uid": "${datasource}"}, "query": f"label_values(up, {label})"}
    site[GROUND_TRUTH]["templating"]["list"].append(variable)
    page = Page(GROUND_TRUTH, site)
    for _, target in page.targets:
        target["expr"] = f'sum(up{{{label}=~"${label}"}})'

    assert [] == [*LINTER[f"template-{label}-rule"](page), *LINTER[f"target-{label}-rule"](page)]


# The files


def test_there_is_a_file_for_each_page():
    """
    And no other that Grafana would load.
    """
    assert sorted(pages.PAGES) == sorted(FILES)


@for_every_file
def test_the_committed_file_is_what_a_fresh_run_writes(name):
    """
    To the byte; else: make docs.
    """
    assert FILES[name].read_bytes() == pages.FILES[f"{name}.json"](Choice()).encode(), "make docs"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_files_do_not_depend_on_the_order_of_sets(seed):
    """
    Each process has another one.
    """
    script = (
        "import json; from otel_model_metrics.provisioning.choice import Choice;"
        "from otel_model_metrics.provisioning.dashboards.pages import FILES;"
        "print(json.dumps({name: make(Choice()) for name, make in FILES.items()}))"
    )

    assert {path.name: path.read_text() for path in FILES.values()} == json.loads(run(script, PYTHONHASHSEED=seed))


def run(script: str, **environment: str) -> str:
    """What a Python of its own says."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


@for_every_file
def test_a_file_fits_into_a_config_map(name):
    """
    kubectl apply keeps it once more in an annotation, as JSON within JSON; all annotations have 256 kB.
    """
    text = FILES[name].read_text()
    kept = len(json.dumps(text).encode())

    assert 262_144 > len(text.encode())
    assert 262_144 > kept, f"{name} takes {kept} bytes there"


# Ids, to which alerts and bookmarks lead. One that is changed or taken by another panel breaks them.
IDS: dict[str, dict[int, str]] = {
    OVERVIEW: {
        2: "Objectives missed",
        3: "Models without labels",
        4: "Models at work",
        5: "Alerts",
        6: "Models",
        7: "Worst objective over time",
        8: "Predictions",
        20: "Since when",
    },
    MODEL_PAGE: {
        2: "Quality",
        4: "Objectives",
        5: "Quality and its 95 % interval",
        6: "By version",
        7: "Predictions",
        10: "Evidence",
        15: "Worst segments",
        30: "Binary: every metric",
        31: "Multiclass: every metric",
        32: "Regression: every metric",
        33: "Ranking: every metric",
        40: "Versions compared",
        41: "Worst segments",
        42: "Each process by itself",
        43: "Versions",
        50: "Confusion matrix",
        51: "Confusion matrix",
        52: "Classes",
        60: "accuracy of each process",
        61: "mae or mrr of each process",
        62: "Rows in the window of each process",
        63: "Age of the oldest row of each process",
        64: "Right and wrong predictions",
    },
    SEGMENTS: {
        2: "Worse segments",
        3: "Largest gap",
        4: "Segments not judged",
        5: "Segments",
        6: "Gap to the model over time",
        7: "Segments and the model",
        8: "Share of the traffic",
        9: "Rows not told apart",
        10: "Metrics",
        20: "Since when, and how much of the traffic",
        21: "Every metric of each segment",
    },
    GROUND_TRUTH: {
        2: "Labelled rows",
        3: "Newest label",
        4: "Least coverage",
        5: "Delay of labels",
        6: "Distribution of the delay",
        7: "Predictions and labels",
        8: "Predictions that wait for their label",
        9: "Labels and rows that are of no use",
        10: "Processes that report",
        11: "Labels of each model",
        12: "Longest wait",
        13: "What became of labels",
        14: "Time since the last report",
        20: "How late labels come",
        21: "What waits, and what became of labels",
        22: "Processes",
    },
}
BY_HAND_BELOW = 1000


@for_every_file
def test_ids_given_by_hand_stay_as_they_are(name):
    """
    A new panel takes a new id, and one that is gone leaves its id unused.
    """
    page = PAGES["default", name]
    found = {panel["id"]: panel["title"] for panel in (*page.rows, *page.panels) if panel["id"] < BY_HAND_BELOW}

    assert IDS[name] == dict(sorted(found.items()))


def test_ids_that_follow_from_the_catalogue_do_not_collide():
    """
    Whatever metric comes next: neither with each other, nor with those given by hand. One of them is checked by hand.
    """
    ids = [style.stable_id(task, metric.name) for metric in catalog.METRICS for task in metric.functions]

    assert 7669 == style.stable_id("binary", "accuracy")
    assert len(ids) == len(set(ids))
    assert BY_HAND_BELOW <= min(ids)


@pytest.mark.parametrize("alert", PANELS)
def test_an_alert_leads_to_a_panel(alert):
    """
    That is open at first, and is not one of several of which Grafana makes new ids: repeat.
    """
    name, id_ = PANELS[alert]
    [panel] = [panel for panel in PAGES["default", name].open if panel["id"] == id_]

    assert "repeat" not in panel


# The catalogue


@pytest.mark.parametrize("task", catalog.TASKS)
def test_every_metric_with_a_direction_has_a_panel_for_each_of_its_tasks(task):
    """
    In the row of that task, in the order of the table, with what is good and what the metric means.
    """
    [row] = [row for row in PAGES["default", MODEL_PAGE].rows if row["title"] == f"{task.capitalize()}: every metric"]
    panels = {panel["id"]: panel for panel in row["panels"]}
    metrics = [metric for metric in catalog.metrics_of(task) if metric.better]

    assert metrics
    assert [style.stable_id(task, one.name) for one in metrics] == [id_ for id_ in panels if id_ >= BY_HAND_BELOW]
    for metric in metrics:
        panel = panels[style.stable_id(task, metric.name)]
        assert metric.name == panel["title"].split(" ")[0]
        assert panel["description"].startswith(metric.description)
        assert " is better." in panel["description"]
        assert ("percentunit" == panel["fieldConfig"]["defaults"]["unit"]) == (metric.unit == "{ratio}")


def test_a_new_metric_needs_no_other_change():
    """
    One that follows from totals and one that only processes know: both get a panel and are judged on Overview, and all
    pages keep their promises.
    """
    script = """
import dataclasses, json
from otel_model_metrics import catalog

new = [("specificity", "invented", "lower"), ("roc_auc", "made_up", "higher")]
catalog.METRICS += tuple(
    dataclasses.replace(catalog.BY_NAME[one], name=name, better=better) for one, name, better in new
)
catalog.BY_NAME = {metric.name: metric for metric in catalog.METRICS}

import dashboard_lint as lint
from test_dashboards import EXCLUDED, Choice, made

site = made(Choice())
broken = [
    f"{name}: {problem}"
    for name in site for check in lint.CHECKS if check not in EXCLUDED
    for problem in lint.CHECKS[check](lint.Page(name, site))
]
print(json.dumps([site, broken]))
"""
    site, broken = json.loads(run(script))
    on_model = {panel["id"]: panel["title"] for panel in Page(MODEL_PAGE, site).panels}
    judged = {target["refId"]: target["expr"] for panel, target in Page(OVERVIEW, site).targets if panel["id"] == 6}

    assert [] == broken
    assert "invented" == on_model[style.stable_id("binary", "invented")]
    assert "made_up" == on_model[style.stable_id("binary", "made_up")]
    assert '"ml_metric", "invented"' in judged["M1"]
    assert "ml_model_made_up" in judged["M5"]


# How long queries get

# VictoriaMetrics refuses more than 16,384 bytes.
LONGEST = 16_000
MODELS = [f"model-of-{place:011d}" for place in range(20)]


def asked(page: Page, expression: str, models: list[str]) -> str:
    """An expression with the values of its variables as Grafana writes them: everything, and these models."""

    def value(found: Any) -> str:
        name = lint.name_in(found)
        variable = page.variables.get(name, {})
        if name == "model":
            return f"({'|'.join(models)})" if variable["multi"] and len(models) > 1 else models[0]
        return ".*" if variable.get("multi") else {"window": "15m", "min_rows": "100"}.get(name, MODELS[0])

    return lint.VARIABLE.sub(value, expression)


@for_every_page
@pytest.mark.parametrize("models", [[".*"], MODELS], ids=["all models", "20 models"])
def test_stores_take_every_query(page, models):
    """
    Also with a namespace, with a label that splits the fleet, and with 20 models of 20 characters chosen.
    """
    assert all(len(model) == 20 for model in MODELS)
    for panel, target in page.targets:
        length = len(asked(page, target["expr"], models).encode())
        assert LONGEST > length, f"{page.name}: {called(panel)}, {target['refId']} has {length} bytes"


def test_names_are_the_same_by_either_way_to_prometheus():
    """
    None of our gauges has the unit 1, of which the two ways make different names.
    """
    assert SITES["own names"] == made(Choice(Settings(naming="scrape", **OWN_NAMES)))


# Every check finds what it is for

Broken = Callable[[dict[str, Content]], Any]


def panel_of(site: dict[str, Content], name: str, id_: int) -> Content:
    [panel] = [panel for panel in Page(name, site).panels if panel["id"] == id_]
    return panel


def on(id_: int, change: Callable[[Content], Any], name: str = GROUND_TRUTH) -> Broken:
    """Something is changed in a panel."""
    return lambda site: change(panel_of(site, name, id_))


def in_text(id_: int, old: str, new: str, name: str = GROUND_TRUTH) -> Broken:
    """A text is changed wherever it is in a panel."""

    def change(panel: Content) -> None:
        before = json.dumps(panel)
        after = before.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
        assert before != after
        panel.update(json.loads(after))

    return on(id_, change, name)


def in_defaults(id_: int, name: str = GROUND_TRUTH, **values: Any) -> Broken:
    return on(id_, lambda panel: panel["fieldConfig"]["defaults"].update(values), name)


def in_page(**values: Any) -> Broken:
    return lambda site: site[GROUND_TRUTH].update(values)


def in_variable(variable: str, pages: list[str] | None = None, **values: Any) -> Broken:
    """A variable is changed, on every page unless some are named."""

    def change(site: dict[str, Content]) -> None:
        for name in pages or site:
            for one in site[name]["templating"]["list"]:
                if one["name"] == variable:
                    one.update(values)

    return change


def in_property(id_: int, title: str, property_: str, change: Callable[[Any], Any], name: str = GROUND_TRUTH) -> Broken:
    """A property of an override is changed."""

    def apply(panel: Content) -> None:
        [override] = [one for one in lint.overrides_of(panel) if one["matcher"]["options"] == title]
        [found] = [one for one in override["properties"] if one["id"] == property_]
        found["value"] = change(found.get("value"))

    return on(id_, apply, name)


def without(key: str) -> Callable[[Content], Any]:
    return lambda content: content.pop(key)


def another_panel(site: dict[str, Content]) -> None:
    chart = panel_of(site, GROUND_TRUTH, 7)
    chart["gridPos"]["w"] = 12
    second = {**chart, "id": 99, "gridPos": {**chart["gridPos"], "x": 12}}
    site[GROUND_TRUTH]["panels"].insert(5, second)


def another_variable(site: dict[str, Content]) -> None:
    [window] = [one for one in site[GROUND_TRUTH]["templating"]["list"] if one["name"] == "window"]
    site[GROUND_TRUTH]["templating"]["list"].append({**window, "name": "team"})


def variables_in_another_order(site: dict[str, Content]) -> None:
    listed = site[GROUND_TRUTH]["templating"]["list"]
    listed[1], listed[2] = listed[2], listed[1]


def panels_in_another_order(site: dict[str, Content]) -> None:
    site[GROUND_TRUTH]["panels"].insert(0, site[GROUND_TRUTH]["panels"].pop())


def more_queries(panel: Content) -> None:
    panel["targets"] += [{**panel["targets"][0], "refId": letter} for letter in "BCDEF"]


def other_legends(panel: Content) -> None:
    for target in panel["targets"]:
        target["legendFormat"] = target["legendFormat"].replace("objective", "goal")


# What is broken, and the check that says so; where two do, both.
FAULTS: dict[str, tuple[Broken, str, set[str]]] = {
    "a data source by another name": (
        in_variable("datasource", label="Source"),
        GROUND_TRUTH,
        {"template-datasource-rule"},
    ),
    "an unknown function of the data source": (
        in_variable("model", query="label_value(ml_model_predictions_total, ml_model_name)", multi=True),
        GROUND_TRUTH,
        {"template-label-promql-rule"},
    ),
    "no PromQL in a variable": (
        in_variable("version", query='label_values(ml_model_predictions_total{=~"$model"}, ml_model_version)'),
        GROUND_TRUTH,
        {"template-label-promql-rule"},
    ),
    "no refresh of a variable": (
        in_variable("version", refresh=1),
        GROUND_TRUTH,
        {"template-on-time-change-reload-rule"},
    ),
    "a data source by its uid": (
        on(7, lambda panel: panel["datasource"].update(uid="prometheus")),
        GROUND_TRUTH,
        {"panel-datasource-rule", "everything_asks_the_chosen_source"},
    ),
    "no description": (on(7, without("description")), GROUND_TRUTH, {"panel-title-description-rule"}),
    "no title": (on(7, without("title")), GROUND_TRUTH, {"panel-title-description-rule"}),
    "no unit": (
        on(7, lambda panel: panel["fieldConfig"]["defaults"].pop("unit")),
        GROUND_TRUTH,
        {"panel-units-rule"},
    ),
    "a mistyped unit": (in_defaults(7, unit="cp"), GROUND_TRUTH, {"panel-units-rule", "units_are_those_of_grafana"}),
    "no query": (on(7, without("targets")), GROUND_TRUTH, {"panel-no-targets-rule"}),
    "no PromQL": (in_text(7, "sum(sum", "sum(("), GROUND_TRUTH, {"target-promql-rule"}),
    "an empty query": (
        on(7, lambda panel: panel["targets"][0].update(expr="")),
        GROUND_TRUTH,
        {"target-promql-rule"},
    ),
    "a rate over 5m": (in_text(7, "$__rate_interval", "5m"), GROUND_TRUTH, {"target-rate-interval-rule"}),
    "a counter as it is": (
        on(7, lambda panel: panel["targets"][0].update(expr='sum(ml_model_labels_total{ml_model_name=~"$model"})')),
        GROUND_TRUTH,
        {"target-counter-agg-rule"},
    ),
    "editable": (in_page(editable=True), GROUND_TRUTH, {"uneditable-dashboard"}),
    "a key that Grafana does not know": (
        on(7, lambda panel: panel.update(lineWidth=2)),
        GROUND_TRUTH,
        {"round_trip_loses_nothing"},
    ),
    "an upper-case uid": (in_page(uid="ML"), GROUND_TRUTH, {"uid_is_that_of_the_file"}),
    "a uid of another page": (in_page(uid=OVERVIEW), GROUND_TRUTH, {"uid_is_that_of_the_file"}),
    "a title of another page": (in_page(title="ML model quality / Model"), GROUND_TRUTH, {"title_is_unique"}),
    "an id of one Grafana": (in_page(id=7), GROUND_TRUTH, {"nothing_is_of_one_grafana"}),
    "a version of one Grafana": (in_page(version=3), GROUND_TRUTH, {"nothing_is_of_one_grafana"}),
    "inputs": (in_page(__inputs=[]), GROUND_TRUTH, {"nothing_is_of_one_grafana", "round_trip_loses_nothing"}),
    "no tag": (in_page(tags=["ml"]), GROUND_TRUTH, {"tagged_and_of_a_schema_that_is_read"}),
    "an old schema": (in_page(schemaVersion=36), GROUND_TRUTH, {"tagged_and_of_a_schema_that_is_read"}),
    "a link in a menu": (
        lambda site: site[GROUND_TRUTH]["links"][0].update(placement="inControlsMenu"),
        GROUND_TRUTH,
        {"nothing_is_moved_into_a_menu"},
    ),
    "no refresh": (
        lambda site: site[GROUND_TRUTH].pop("refresh"),
        GROUND_TRUTH,
        {"shows_the_last_day_and_asks_again"},
    ),
    "a fixed time": (
        in_page(time={"from": "2022-01-01", "to": "now"}),
        GROUND_TRUTH,
        {"shows_the_last_day_and_asks_again"},
    ),
    "two panels of one id": (on(7, lambda panel: panel.update(id=2)), GROUND_TRUTH, {"ids_are_unique"}),
    "an id of 0": (on(7, lambda panel: panel.update(id=0)), GROUND_TRUTH, {"ids_are_unique"}),
    "a panel beyond the edge": (
        on(9, lambda panel: panel["gridPos"].update(w=10)),
        GROUND_TRUTH,
        {"panels_lie_on_the_grid"},
    ),
    "a flat panel": (
        on(14, lambda panel: panel["gridPos"].update(h=2)),
        GROUND_TRUTH,
        {"panels_lie_on_the_grid"},
    ),
    "a panel over another": (
        on(3, lambda panel: panel["gridPos"].update(x=4, w=6)),
        GROUND_TRUTH,
        {"panels_do_not_overlap"},
    ),
    "a hole to the left": (
        on(9, lambda panel: panel["gridPos"].update(x=16, w=8)),
        GROUND_TRUTH,
        {"lines_are_filled_from_the_left"},
    ),
    "an open row": (
        lambda site: site[GROUND_TRUTH]["panels"][-1].update(collapsed=False),
        GROUND_TRUTH,
        {"rows_are_collapsed_and_come_last"},
    ),
    "a panel below a row": (panels_in_another_order, GROUND_TRUTH, {"rows_are_collapsed_and_come_last"}),
    "seven open panels": (another_panel, GROUND_TRUTH, {"few_panels_are_open"}),
    "26 queries at first": (on(8, more_queries, OVERVIEW), OVERVIEW, {"few_queries_are_asked_at_first"}),
    "an unknown variable": (in_text(8, "${version:", "${ver:"), GROUND_TRUTH, {"variables_are_defined"}),
    "an unused variable": (another_variable, GROUND_TRUTH, {"variables_are_used"}),
    "a variable before the one it rests on": (
        variables_in_another_order,
        GROUND_TRUTH,
        {"variables_rest_on_earlier_ones"},
    ),
    "two variables that rest on each other": (
        in_variable(
            "model", query='label_values(ml_model_predictions_total{ml_model_version="$version"}, ml_model_name)'
        ),
        GROUND_TRUTH,
        {"variables_rest_on_earlier_ones"},
    ),
    "a variable that differs between pages": (
        in_variable("window", [GROUND_TRUTH], label="Range"),
        GROUND_TRUTH,
        {"variables_mean_the_same_everywhere"},
    ),
    "All that leaves some out": (in_variable("version", allValue=".+"), GROUND_TRUTH, {"all_means_all"}),
    "one model chosen at first": (
        in_variable("model", [GROUND_TRUTH], current={"text": "a", "value": "a"}),
        GROUND_TRUTH,
        {"all_means_all"},
    ),
    "a list that contradicts its options": (
        in_variable("window", query="1h,6h"),
        GROUND_TRUTH,
        {"lists_say_what_they_offer_twice"},
    ),
    "a query without a data source": (
        on(7, lambda panel: panel["targets"][0].pop("datasource")),
        GROUND_TRUTH,
        {"everything_asks_the_chosen_source"},
    ),
    "a number of the range": (
        on(2, lambda panel: panel["targets"][0].update(instant=False, range=True)),
        GROUND_TRUTH,
        {"numbers_are_of_now_and_charts_of_the_range"},
    ),
    "two queries of one letter": (
        on(7, lambda panel: panel["targets"][1].update(refId="A")),
        GROUND_TRUTH,
        {"queries_have_letters_of_their_own"},
    ),
    "an override of no query": (
        on(6, lambda panel: panel["fieldConfig"]["overrides"][0]["matcher"].update(options="Z"), MODEL_PAGE),
        MODEL_PAGE,
        {"queries_have_letters_of_their_own"},
    ),
    "an unknown metric": (in_text(8, "ml_model_label_pending", "ml_model_pending"), GROUND_TRUTH, {"metrics_exist"}),
    "an unknown metric among several": (
        in_text(4, "|ml_model_average_precision", "|ml_model_avg_precision", MODEL_PAGE),
        MODEL_PAGE,
        {"metrics_exist"},
    ),
    "an unknown label": (in_text(8, "ml_model_version=~", "ml_version=~"), GROUND_TRUTH, {"labels_exist"}),
    "an unknown label in a variable": (
        in_variable("model", query="label_values(ml_model_predictions_total, model)"),
        GROUND_TRUTH,
        {"labels_exist"},
    ),
    "a value that a label never has": (
        in_text(50, 'ml_model_task="binary"', 'ml_model_task="Binary"', MODEL_PAGE),
        MODEL_PAGE,
        {"labels_exist"},
    ),
    "a legend of a label that is not there": (
        in_text(8, "{{ml_model_name}}", "{{ml_model_name}} {{ml_k}}"),
        GROUND_TRUTH,
        {"legends_name_labels_that_there_are"},
    ),
    "an annotation of a label that is not there": (
        lambda site: site[GROUND_TRUTH]["annotations"]["list"][0].update(textFormat="{{ml_k}}"),
        GROUND_TRUTH,
        {"legends_name_labels_that_there_are"},
    ),
    "two versions of one name": (
        in_text(8, "{{ml_model_name}} {{ml_model_version}}", "{{ml_model_name}}"),
        GROUND_TRUTH,
        {"charts_can_tell_their_series_apart"},
    ),
    "two versions that look alike": (
        on(
            43,
            lambda panel: panel["transformations"][1]["options"]["include"]["names"].remove("ml_model_version"),
            MODEL_PAGE,
        ),
        MODEL_PAGE,
        {"tables_can_tell_their_rows_apart", "columns_exist"},
    ),
    "a link to no page": (
        in_text(11, f"/d/{MODEL_PAGE}", "/d/ml-quality-mode"),
        GROUND_TRUTH,
        {"links_lead_to_a_page"},
    ),
    "a link that sets what its target has not": (
        in_text(11, "&var-model", "&var-team=x&var-model"),
        GROUND_TRUTH,
        {"links_set_variables_of_their_target"},
    ),
    "a link that forgets the window": (
        in_text(11, "&${window:queryparam}", ""),
        GROUND_TRUTH,
        {"links_set_variables_of_their_target"},
    ),
    "a link that forgets the time": (
        in_text(11, "${__url_time_range}&", ""),
        GROUND_TRUTH,
        {"links_set_variables_of_their_target"},
    ),
    "a link from no column": (
        in_text(11, 'fields["Model"]', 'fields["ml_model_name"]'),
        GROUND_TRUTH,
        {"links_name_columns_that_there_are"},
    ),
    "a link that an ampersand breaks": (
        in_text(11, ":percentencode", ""),
        GROUND_TRUTH,
        {"links_survive_any_name"},
    ),
    "no link to the runbooks": (
        lambda site: site[GROUND_TRUTH]["links"].pop(),
        GROUND_TRUTH,
        {"the_page_leads_on"},
    ),
    "a link that drops what is chosen": (
        lambda site: site[GROUND_TRUTH]["links"][0].update(includeVars=False),
        GROUND_TRUTH,
        {"the_page_leads_on"},
    ),
    "percent": (in_defaults(4, unit="percent"), GROUND_TRUTH, {"units_are_those_of_grafana"}),
    "percentages without an end": (
        on(6, lambda panel: panel["fieldConfig"]["defaults"].pop("max"), MODEL_PAGE),
        MODEL_PAGE,
        {"percentages_end_at_one"},
    ),
    "a column of percentages without an end": (
        in_property(11, "Coverage", "max", lambda value: 2),
        GROUND_TRUTH,
        {"percentages_end_at_one"},
    ),
    "numbers that end at 1": (
        in_property(6, "B", "max", lambda value: 1, MODEL_PAGE),
        MODEL_PAGE,
        {"percentages_end_at_one"},
    ),
    "a ratio as a number": (
        in_defaults(style.stable_id("binary", "recall"), MODEL_PAGE, unit="none"),
        MODEL_PAGE,
        {"metrics_have_their_unit"},
    ),
    "a score as a percentage": (
        in_defaults(style.stable_id("binary", "mcc"), MODEL_PAGE, unit="percentunit", max=1),
        MODEL_PAGE,
        {"metrics_have_their_unit"},
    ),
    "a column of ratios as numbers": (
        in_property(52, "recall", "unit", lambda value: "none", MODEL_PAGE),
        MODEL_PAGE,
        {"metrics_have_their_unit"},
    ),
    "a description without an end": (
        on(7, lambda panel: panel.update(description=panel["description"][:-1])),
        GROUND_TRUTH,
        {"panels_say_how_to_read_them"},
    ),
    "a heatmap without a title": (on(6, without("title")), GROUND_TRUTH, {"panels_say_how_to_read_them"}),
    "no word for nothing": (in_defaults(7, noValue=""), GROUND_TRUTH, {"panels_say_how_to_read_them"}),
    "colour without a value": (
        on(2, lambda panel: panel["options"].update(textMode="none")),
        GROUND_TRUTH,
        {"colour_is_never_alone"},
    ),
    "squares without a value": (
        on(7, lambda panel: panel["options"].update(showValue="never"), OVERVIEW),
        OVERVIEW,
        {"colour_is_never_alone"},
    ),
    "colour without a word": (in_text(11, "NO LABELS", ""), GROUND_TRUTH, {"colour_is_never_alone"}),
    "thresholds that descend": (
        on(3, lambda panel: panel["fieldConfig"]["defaults"]["thresholds"]["steps"].reverse()),
        GROUND_TRUTH,
        {"thresholds_ascend"},
    ),
    "one colour for two levels": (
        in_property(
            11, "Newest label", "thresholds", lambda value: json.loads(json.dumps(value).replace("orange", "green"))
        ),
        GROUND_TRUTH,
        {"thresholds_ascend"},
    ),
    "lines over gaps": (
        on(7, lambda panel: panel["fieldConfig"]["defaults"]["custom"].update(spanNulls=True)),
        GROUND_TRUTH,
        {"gaps_stay_gaps"},
    ),
    "an override of no column": (
        on(11, lambda panel: panel["fieldConfig"]["overrides"][1]["matcher"].update(options="Versions")),
        GROUND_TRUTH,
        {"columns_exist"},
    ),
    "sorted by no column": (
        on(11, lambda panel: panel["options"]["sortBy"][0].update(displayName="Model name")),
        GROUND_TRUTH,
        {"columns_exist"},
    ),
    "a column of no query": (
        on(11, lambda panel: panel["targets"][-1].update(refId="X")),
        GROUND_TRUTH,
        {"columns_exist"},
    ),
    "a column of a label that is gone": (
        in_text(50, "ml_class_predicted) (", "ml_outcome) (", MODEL_PAGE),
        MODEL_PAGE,
        {"columns_exist"},
    ),
    "tables side by side": (on(11, lambda panel: panel["transformations"].pop(0)), GROUND_TRUTH, {"columns_exist"}),
    "versions as numbers": (in_defaults(11, unit="none"), GROUND_TRUTH, {"text_is_the_default_of_tables"}),
    "a number as text": (
        on(11, lambda panel: panel["fieldConfig"]["overrides"].pop(-1)),
        GROUND_TRUTH,
        {"text_is_the_default_of_tables"},
    ),
    "an override of no series": (
        on(5, other_legends, MODEL_PAGE),
        MODEL_PAGE,
        {"overrides_find_their_series"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_found_by_the_right_check(fault):
    """
    One thing at a time, in a page that is fine otherwise. Nothing but what is expected complains.
    """
    change, name, expected = FAULTS[fault]
    site = copy.deepcopy(SITES["default"])
    change(site)
    page = Page(name, site)
    found = {check: list(CHECKS[check](page)) for check in CHECKS if check not in EXCLUDED}

    assert expected == {check for check, problems in found.items() if problems}, found


def test_every_check_has_its_fault():
    """
    A check that nothing is known to fail may be one that never fails.
    """
    assert CHECKS.keys() - EXCLUDED.keys() == set().union(*(expected for _, _, expected in FAULTS.values()))
