"""
Runbooks: every alert has one, its link leads there, and every query in it can be pasted and answers something.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from promtool import ALERTS, LOADER, RULES, Case, run

from otel_model_metrics.encoding import REASONS
from otel_model_metrics.provisioning.alerts import alert_groups
from otel_model_metrics.provisioning.checking import Known, expression_problems
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.grafana_alerts import PANELS, alerting_file
from otel_model_metrics.provisioning.rules import Settings

GRAFANA = Path(__file__).parent.parent / "grafana"
ALERTING = GRAFANA / "provisioning" / "alerting" / "ml-model-quality.yaml"
TEXT = (GRAFANA / "runbooks.md").read_text()
SECTIONS = {title: body for title, body in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", TEXT, re.MULTILINE) if body}
RULES_OF: dict[str, list[dict]] = {}
for group in alert_groups(Settings()):
    for rule in group["rules"]:
        RULES_OF.setdefault(rule["alert"], []).append(rule)
# Grafana has one alert more; of the others, the rules of Prometheus are looked at.
TWINS_OF: dict[str, list[dict]] = {}
for group in yaml.safe_load(alerting_file(Choice()))["groups"]:
    for rule in group["rules"]:
        TWINS_OF.setdefault(rule["labels"]["alert"], []).append(rule)
RULES_OF = {**TWINS_OF, **RULES_OF}
PARTS = ["What it means.", "What to look at.", "What to do."]
QUERIES = [
    (title, query) for title, body in SECTIONS.items() for query in re.findall(r"```promql\n(.*?)```", body, re.DOTALL)
]

for_every_alert = pytest.mark.parametrize("alert", RULES_OF)
for_every_query = pytest.mark.parametrize(
    ("alert", "query"), QUERIES, ids=[f"{alert}-{number}" for number, (alert, _) in enumerate(QUERIES)]
)


def anchor(title: str) -> str:
    """The anchor that GitHub makes of a title."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def part(alert: str, name: str) -> str:
    """One part of an alert's section."""
    after = SECTIONS[alert].partition(f"**{name}**")[2]
    return re.split(r"^\*\*What", after, flags=re.MULTILINE)[0]


def test_every_alert_has_a_section_and_every_section_an_alert():
    """
    In the order of the file of alerts, each once.
    """
    assert sorted(RULES_OF) == sorted(re.findall(r"^## (.+)$", TEXT, re.MULTILINE))


@for_every_alert
def test_the_link_of_an_alert_leads_to_its_section(alert):
    """
    Titles become anchors as GitHub makes them.
    """
    assert {f"https://example.org/otel-model-metrics/runbooks.md#{anchor(alert)}"} == {
        rule["annotations"]["runbook_url"] for rule in RULES_OF[alert]
    }


def test_links_within_the_runbooks_lead_somewhere():
    """
    From one section to another one.
    """
    assert set() == set(re.findall(r"\]\(#([^)]*)\)", TEXT)) - {anchor(title) for title in SECTIONS}


@for_every_alert
def test_every_section_has_its_three_parts(alert):
    """
    What it means, what to look at (with queries), what to do (step by step) - in this order.
    """
    assert PARTS == re.findall(r"^\*\*(What .*?)\*\*", SECTIONS[alert], re.MULTILINE)
    assert ["promql", "1."] == [
        found
        for name, found in (("What to look at.", "promql"), ("What to do.", "1."))
        if f"\n{found}" in part(alert, name).replace("```", "")
    ]


@for_every_alert
def test_what_it_means_names_severities_and_windows(alert):
    """
    Those of the rules, so that a changed rule changes its runbook.
    """
    words = set(re.findall(r"\w+", part(alert, "What it means.")))

    assert {rule["labels"]["severity"] for rule in RULES_OF[alert]} == words & {"critical", "warning"}
    for rule in RULES_OF[alert]:
        window = rule["labels"].get("window")
        hours = {"1h": "hour", "6h": "hours"}.get(window, window)
        assert window is None or {window, hours} & words, window


def test_every_reason_for_a_rejected_row_has_a_remedy():
    """
    Whoever reads "rejected as unknown_class" finds it.
    """
    remedies = part("ModelRowsRejected", "What to do.")

    assert [] == [reason for reason in REASONS if f"`{reason}`" not in remedies]


@for_every_query
def test_every_query_mentions_only_what_exists(alert, query):
    """
    Metrics, recorded series, labels; and it is PromQL.
    """
    assert [] == expression_problems(query, Known(Settings()))


def test_queries_are_fenced_as_such():
    """
    So that none escapes these tests.
    """
    opened = re.findall(r"^ *```(.*)$", TEXT, re.MULTILINE)[::2]

    assert {"promql", "sh"} == set(opened)
    assert len(QUERIES) == opened.count("promql")


def edited(file: Path, alert: str, folder: Path) -> str:
    """A file after the command of the runbook that is for it, with this alert's name."""
    (command,) = re.findall(rf"^ *(sed .* {re.escape(file.name)})$", TEXT, re.MULTILINE)
    shutil.copy(file, folder)
    subprocess.run(command.replace("ModelSegmentWorse", alert), shell=True, cwd=folder, check=True, timeout=60)
    return (folder / file.name).read_text()


@pytest.mark.parametrize("alert", ["ModelSegmentWorse", "ModelVersionWorse"])
def test_one_command_changes_the_margin_for_every_metric(alert, tmp_path):
    """
    As the runbook says it: one number in each rule of that alert, and none in others.
    """
    lines = zip(ALERTS.read_text().splitlines(), edited(ALERTS, alert, tmp_path).splitlines(), strict=True)

    assert len(RULES_OF[alert]) == sum(before != after for before, after in lines)


@pytest.mark.parametrize(("alert", "letter"), [("ModelSegmentWorse", "B"), ("ModelVersionWorse", "C")])
def test_another_command_does_so_in_the_file_for_grafana(alert, letter, tmp_path):
    """
    All three numbers in the query that the runbook names, and nothing else.
    """

    def queries(text: str) -> dict[tuple[str, str], str]:
        groups = yaml.load(text, LOADER)["groups"]
        return {
            (rule["title"], query["refId"]): str(query["model"])
            for group in groups
            for rule in group["rules"]
            for query in rule["data"]
        }

    shipped = ALERTING.read_text()
    expected = queries(shipped)
    for old, new in (("1.25", "1.5"), ("1.05", "1.1"), ("0.95", "0.9")):
        assert 1 == expected[alert, letter].count(old)
        expected[alert, letter] = expected[alert, letter].replace(old, new)
    changed = edited(ALERTING, alert, tmp_path)

    assert expected == queries(changed)
    assert 3 == sum(a != b for a, b in zip(shipped.splitlines(), changed.splitlines(), strict=True))


# Dashboards

PAGES = {path.stem: json.loads(path.read_text()) for path in GRAFANA.glob("dashboards/*.json")}


def panels_of(page: str) -> list[dict]:
    """The panels of a dashboard, with its rows and what is in them."""
    panels = PAGES[page]["panels"]
    return [*panels, *(inner for panel in panels for inner in panel.get("panels", []))]


def test_every_alert_has_its_panel_in_the_table():
    """
    The one where Grafana links it, by the titles that are read there.
    """
    told = {
        alert: (dashboard, panel)
        for alerts, dashboard, panel in re.findall(r"^\| (`Model.*`) \| (.+) \| (.+) \|$", TEXT, re.MULTILINE)
        for alert in alerts.strip("`").split("`, `")
    }
    linked = {
        alert: (PAGES[page]["title"].removeprefix("ML model quality / "), panel["title"])
        for alert, (page, id_) in PANELS.items()
        for panel in panels_of(page)
        if panel["id"] == id_
    }

    assert linked == told


def test_the_link_to_a_panel_begins_as_the_example_says():
    """
    For the model that is the example everywhere.
    """
    (link,) = re.findall(r"`(/d/[^`]*)`", TEXT)
    (rule,) = TWINS_OF["ModelSegmentWorse"]
    annotation = re.sub(r"{{ \$labels\.ml_model_name[^}]*}}", "fraud", rule["annotations"]["dashboard_url"])

    assert annotation.startswith(f"{link}&")


def test_tables_and_rows_of_dashboards_that_are_named_are_there():
    """
    By the titles that are read on the dashboard that is named before them.
    """
    dashboards = {page["title"].removeprefix("ML model quality / "): name for name, page in PAGES.items()}
    section = " ".join(part("ModelSegmentWorse", "What to look at.").split())
    named = [(kind, title) for kind, title in re.findall(r'the (table|row) "([^"]+)"', section)]
    (dashboard,) = re.findall(r"[Oo]n the dashboard (\w+)", section)

    assert ["table", "row"] == [kind for kind, _ in named]
    assert set(named) <= {(panel["type"], panel["title"]) for panel in panels_of(dashboards[dashboard])}


def in_trouble() -> dict[str, str]:
    """What two versions of one model store, over 100 minutes, when all that the runbooks know goes wrong."""
    stored = {}
    overall = {"ml_segment_name": "", "ml_segment_value": ""}
    country = {"ml_segment_name": "country", "ml_segment_value": "DE"}
    for version, born in (("2026.10", 0), ("2026.11", 20)):
        labels = {"ml_model_name": "fraud", "ml_model_version": version, "job": "fraud-service", "instance": version}
        empty = "_x20 " if born else ""

        def store(name, values, empty=empty, labels=labels, **more):
            written = ", ".join(f'{label}="{value}"' for label, value in {**labels, **more}.items() if value)
            stored[f"{name}{{{written}}}"] = empty + values

        for segment in (overall, country):
            for predicted in ("positive", "negative"):
                of = {"ml_model_task": "binary", "ml_class_predicted": predicted, **segment}
                store("ml_model_predictions_total", "0+20x100", **of)
                for actual in ("positive", "negative"):
                    outcome = "correct" if actual == predicted else "wrong"
                    store("ml_model_outcomes_total", "0+10x100", ml_class_actual=actual, ml_outcome=outcome, **of)
            for gauge in ("accuracy", "window_rows"):
                store(f"ml_model_{gauge}", "500x100", **segment)
        for gauge in ("roc_auc", "calibration_error", "window_age_seconds"):
            store(f"ml_model_{gauge}", "0.5x100")
        store("ml_model_objective", "0.9x100", ml_metric="accuracy")
        store("ml_model_rejected_total", "0+5x100", ml_reject_reason="invalid_label")
        store("ml_model_segments_overflowed_total", "0+5x100", ml_segment_name="country")
    return stored


def test_every_query_answers_for_a_model_in_trouble(tmp_path):
    """
    Prometheus evaluates all of them; each gives a series or more.
    """
    case = Case("runbooks", in_trouble())
    for _, query in QUERIES:
        answers = query.replace("offset 1w", "offset 10m")  # a week of rules would take minutes to evaluate
        case.expressions.append(
            {
                "expr": f"count({answers}) > bool 0",
                "eval_time": "95m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
        )

    assert "" == run(tmp_path, [case], [RULES])
