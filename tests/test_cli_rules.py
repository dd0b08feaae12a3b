"""
`otel-model-metrics rules`: the shipped files are those of a fresh run; every choice gives files that Prometheus takes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from backends import binary

from otel_model_metrics import __version__, cli
from otel_model_metrics.provisioning import checking, documents
from otel_model_metrics.provisioning.rules import Settings

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "grafana" / "prometheus"
# Said wherever something made here differs from the shipped files.
STALE = "the shipped files are not those of a fresh run? make docs"

Files = dict[str, list[dict[str, Any]]]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line, in an empty folder: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            cli.main(arguments)
        return (exited.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def written(command) -> Callable[..., Files]:
    """Writes files, and gives the groups of each."""

    def write(*arguments: str) -> Files:
        expected = (0, "out/rules.yaml: written\nout/alerts.yaml: written\n", "")
        assert expected == command("rules", "--out", "out", *arguments)
        return {name: yaml.safe_load(Path("out", name).read_text())["groups"] for name in documents.FILES}

    return write


def the_rules(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rule for group in groups for rule in group["rules"]]


def default() -> Files:
    return {name: yaml.safe_load((SHIPPED / name).read_text())["groups"] for name in documents.FILES}


# The shipped files


def test_the_shipped_files_are_those_of_a_fresh_run():
    """
    If this fails: make docs.
    """
    assert [] == documents.stale(SHIPPED, Settings()), STALE


def test_the_command_without_options_writes_the_shipped_files(command):
    """
    Into the folder prometheus, and only what changed.
    """
    assert (0, "prometheus/rules.yaml: written\nprometheus/alerts.yaml: written\n", "") == command("rules")
    for name in documents.FILES:
        assert (SHIPPED / name).read_text() == Path("prometheus", name).read_text(), STALE

    assert (0, "prometheus/rules.yaml: up to date\nprometheus/alerts.yaml: up to date\n", "") == command("rules")


@pytest.mark.parametrize("name", documents.FILES)
def test_files_say_by_what_they_were_made(name):
    """
    Whoever finds one knows how to make it anew.
    """
    lines = (SHIPPED / name).read_text().splitlines()

    assert f"# Made by otel-model-metrics {__version__} (otel-model-metrics rules --help)." == lines[1]


# --check


def test_check_says_what_is_missing_or_stale_and_writes_nothing(command):
    """
    Exit code 1, for CI; 0 when a fresh run would write the same.
    """
    missing = "prometheus/rules.yaml: missing\nprometheus/alerts.yaml: missing\n"
    assert (1, missing, "") == command("rules", "--check")
    assert not Path("prometheus").exists()

    command("rules")
    alerts = Path("prometheus", "alerts.yaml")
    assert (0, missing.replace("missing", "up to date"), "") == command("rules", "--check")

    edited = alerts.read_text() + "# mine\n"
    alerts.write_text(edited)
    assert (1, "prometheus/rules.yaml: up to date\nprometheus/alerts.yaml: stale\n", "") == command("rules", "--check")
    assert edited == alerts.read_text()


def test_check_compares_with_the_same_choice(command):
    """
    Files written for other windows are stale without --window.
    """
    command("rules", "--window", "30m")

    assert 0 == command("rules", "--window", "30m", "--check")[0]
    assert 1 == command("rules", "--check")[0]


# Choices


def test_windows_are_recorded_and_the_shortest_is_critical(written):
    """
    Whatever order they are given in; what other alerts need is still recorded.
    """
    groups = written("--window", "12h", "--window", "30m")

    assert ["5m", "30m", "1h", "6h", "12h", "1d", "30d", "versions"] == [
        group["name"].removeprefix("ml_model:") for group in groups["rules.yaml"]
    ]
    assert {("30m", "critical"), ("12h", "warning")} == {
        (rule["labels"]["window"], rule["labels"]["severity"])
        for rule in the_rules(groups["alerts.yaml"])
        if rule["alert"] == "ModelQualityBelowObjective"
    }


def test_the_least_number_of_rows_is_in_every_alert_that_had_the_default(written):
    """
    And nothing else changes.
    """
    ours, shipped = (
        the_rules(written("--min-rows", "12345")["alerts.yaml"]),
        the_rules(default()["alerts.yaml"]),
    )

    expressions = [" ".join(rule["expr"].split()) for rule in ours]
    assert [" ".join(rule["expr"].split()).replace(">= 100", ">= 12345") for rule in shipped] == expressions, STALE
    assert {True} == {
        ">= 12345" in expression
        for rule, expression in zip(ours, expressions, strict=True)
        if rule["alert"] in ("ModelQualityBelowObjective", "ModelSegmentWorse")
    }


def test_a_namespace_is_in_front_of_what_is_stored_not_of_what_is_recorded(written):
    """
    Every metric has it in rules, alerts and the queries of messages.
    """
    files = written("--namespace", "acme")
    for name, groups in files.items():
        ours, shipped = ("".join(str(of).replace("\\n", "").split()) for of in (groups, default()[name]))
        assert shipped == ours.replace("acme_ml_model_", "ml_model_"), STALE  # but for the layout

    recorded = {rule["record"] for rule in the_rules(files["rules.yaml"])}
    assert recorded == {rule["record"] for rule in the_rules(default()["rules.yaml"])}, STALE


def test_a_label_that_splits_fleets_is_in_every_aggregation_and_message(written):
    """
    Wherever the model's name is: staging must not be judged together with production.
    """
    label = "deployment_environment_name"
    files = written("--by", label)

    for rule in the_rules(files["rules.yaml"]) + the_rules(files["alerts.yaml"]):
        for place in ("by (", "on ("):
            for listed in rule["expr"].split(place)[1:]:
                labels = listed.partition(")")[0].split(", ")
                assert label in labels, rule
    for rule in the_rules(files["alerts.yaml"]):
        assert f"({{{{ $labels.{label} }}}})" in rule["annotations"]["summary"]


def test_alerts_link_to_where_the_runbooks_are(written):
    """
    With the alert's name as the anchor.
    """
    alerts = the_rules(written("--runbooks", "https://wiki.example.org/models")["alerts.yaml"])

    assert {f"https://wiki.example.org/models#{rule['alert'].lower()}" for rule in alerts} == {
        rule["annotations"]["runbook_url"] for rule in alerts
    }


def test_both_ways_to_prometheus_have_the_same_rules(written):
    """
    Pushed or scraped.
    """
    written("--naming", "scrape")

    for name in documents.FILES:
        assert (SHIPPED / name).read_text() == Path("out", name).read_text(), STALE


CHOICES = [
    [],
    ["--window", "30m", "--window", "12h"],
    ["--window", "90s"],
    ["--window", "1h"],
    ["--window", "2w"],
    ["--window", "60m", "--window", "30m", "--window", "30m"],
    ["--min-rows", "1"],
    ["--namespace", "acme"],
    ["--by", "deployment_environment_name"],
    ["--by", "job", "--by", "team", "--namespace", "a_b", "--window", "15m", "--min-rows", "1000"],
    ["--naming", "scrape", "--runbooks", "https://wiki.example.org/models"],
]


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_every_choice_gives_files_that_prometheus_takes_and_that_have_no_problem(written, choice):
    """
    By promtool with all its lints, and by our own check, which knows every name.
    """
    written(*choice)
    files = [f"out/{name}" for name in documents.FILES]
    namespace = choice[choice.index("--namespace") + 1] if "--namespace" in choice else ""
    assert [] == checking.problems([Path(name) for name in files], Settings(namespace=namespace))

    done = subprocess.run(
        [binary("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *files], capture_output=True, text=True
    )

    assert 0 == done.returncode, done.stdout + done.stderr


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--window", "30d"],
            "A window must be at least 1m and below 30d, got '30d'.",
        ),
        (["--window", "1s"], "A window must be at least 1m and below 30d, got '1s'."),
        (
            ["--window", "1m1h"],
            "A duration is a number and a unit (s, m, h, d, w), such as 30m, 6h or 1h30m; got '1m1h'.",
        ),
        (
            ["--by", "ml_class"],
            "by must name Prometheus labels that are not ours already, each once; got 'ml_class'.",
        ),
        (
            ["--by", "a", "--by", "a"],
            "by must name Prometheus labels that are not ours already, each once; got 'a'.",
        ),
        (
            ["--window", "1 hour"],
            "A duration is a number and a unit (s, m, h, d, w), such as 30m, 6h or 1h30m; got '1 hour'.",
        ),
        (["--window", ""], "A duration is a number and a unit (s, m, h, d, w), such as 30m, 6h or 1h30m; got ''."),
        (["--window", "1h", "--window", "0m"], "A duration must be longer than 0, got '0m'."),
        (["--min-rows", "0"], "min_rows must be at least 1, got 0."),
        (["--min-rows", "many"], "Invalid value for '--min-rows': 'many' is not a valid integer."),
        (["--namespace", "9x"], "namespace must be a Prometheus name (letters, digits, _), got '9x'."),
        (["--by", "team", "--by", "a.b"], "by must be a Prometheus name (letters, digits, _), got 'a.b'."),
        (["--by", ""], "by must be a Prometheus name (letters, digits, _), got ''."),
        (["--naming", "push"], "Invalid value for '--naming': 'push' is not one of 'otlp', 'scrape'."),
        (["--out", __file__], f"Invalid value for '--out': Directory '{__file__}' is a file."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "--out" not in value else "",
)
def test_wrong_usage_says_what_is_right(command, tmp_path, arguments, message):
    """
    Exit code 2, no traceback, nothing written.
    """
    code, output, errors = command("rules", *arguments)

    assert (2, "", f"Error: {message}") == (code, output, errors.splitlines()[-1])
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["click", "yaml", "promql_parser"])
@pytest.mark.parametrize("arguments", [["rules"], ["check", "a.yaml"]], ids=" ".join)
def test_without_the_extra_the_command_line_names_it(tmp_path, module, arguments):
    """
    One line and an exit code, no traceback.
    """
    (tmp_path / "a.yaml").write_text("groups: []")
    code = f"import sys; sys.modules[{module!r}] = None; from otel_model_metrics.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    expected = (
        f"otel-model-metrics: {module} is not installed, which this command needs. "
        'Install the extra rules: pip install "otel-model-metrics[rules]"\n'
    )
    assert (1, "", expected) == (done.returncode, done.stdout, done.stderr)


def test_a_window_is_spelled_in_one_way(written):
    """
    60m is 1h, so alerts ask for what is recorded; a window given twice counts once.
    """
    files = written("--window", "60m", "--window", "30m", "--window", "30m")

    windows = [rule["labels"]["window"] for rule in alerts_named(files, "ModelQualityBelowObjective")]
    assert ["30m", "1h"] == list(dict.fromkeys(windows))
    assert 2 * len(
        set(rule["labels"]["ml_metric"] for rule in alerts_named(files, "ModelQualityBelowObjective"))
    ) == len(windows)


def alerts_named(files: Files, name: str) -> list[dict[str, Any]]:
    return [rule for rule in the_rules(files["alerts.yaml"]) if rule["alert"] == name]


def test_check_too_tells_a_wrong_namespace(command, tmp_path):
    """
    As a wrong usage, not as a traceback.
    """
    path = tmp_path / "rules.yaml"
    path.write_text("groups: []")

    code, output, errors = command("check", str(path), "--namespace", "a-b")

    message = "Error: namespace must be a Prometheus name (letters, digits, _), got 'a-b'."
    assert (2, "", message) == (code, output, errors.splitlines()[-1])
