"""
Runbooks: every alert has one, its link leads there, and every query in it can be pasted and answers something.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from promtool import ALERTS, RULES, Case, run

from otel_model_metrics.encoding import REASONS
from otel_model_metrics.provisioning.alerts import alert_groups
from otel_model_metrics.provisioning.checking import Known, expression_problems
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.grafana_alerts import alerting_file
from otel_model_metrics.provisioning.rules import Settings

TEXT = (Path(__file__).parent.parent / "grafana" / "runbooks.md").read_text()
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


@pytest.mark.parametrize("alert", ["ModelSegmentWorse", "ModelVersionWorse"])
def test_one_command_changes_the_margin_for_every_metric(alert, tmp_path):
    """
    As the runbook says it: one number in each rule of that alert, and none in others.
    """
    (command,) = re.findall(r"^ *(sed .*)$", TEXT, re.MULTILINE)
    shutil.copy(ALERTS, tmp_path / "alerts.yaml")

    subprocess.run(command.replace("ModelSegmentWorse", alert), shell=True, cwd=tmp_path, check=True, timeout=60)

    lines = zip(ALERTS.read_text().splitlines(), (tmp_path / "alerts.yaml").read_text().splitlines(), strict=True)
    assert len(RULES_OF[alert]) == sum(before != after for before, after in lines)


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
