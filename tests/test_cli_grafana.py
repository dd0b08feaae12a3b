"""
`otel-model-metrics grafana`: the shipped files are those of a fresh run; every option changes what it should, and no
more.

What the files say is in test_grafana_files.py.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from promtool import LOADER

from otel_model_metrics import cli, commands
from otel_model_metrics.provisioning import layout

SHIPPED = Path(__file__).parent.parent / "grafana"
# Written by hand, for our own folder.
BY_HAND = {"otel-collector.yaml", "runbooks.md", "dashboards/.lint"}

OVERVIEW, MODEL, SEGMENTS, GROUND_TRUTH = DASHBOARDS = (
    "dashboards/ml-quality-overview.json",
    "dashboards/ml-quality-model.json",
    "dashboards/ml-quality-segments.json",
    "dashboards/ml-quality-ground-truth.json",
)
PROVIDER, SOURCE = "provisioning/dashboards/ml-model-quality.yaml", "provisioning/datasources/prometheus.yaml"
ALERTING, POLICIES = "provisioning/alerting/ml-model-quality.yaml", "provisioning/alerting/policies.yaml.example"
RULES, ALERTS = "prometheus/rules.yaml", "prometheus/alerts.yaml"
KUSTOMIZATION, OPERATOR = "kustomization.yaml", "kubernetes/grafana-operator.yaml"
KUBERNETES_RULES, KUBERNETES_ALERTS = "kubernetes/prometheus-rules.yaml", "kubernetes/prometheus-alerts.yaml"
README = "README.md"

Texts = dict[str, str]

needs_grafana = pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk needs Python 3.11")


def texts(folder: Path) -> Texts:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line, in an empty folder: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            cli.main(arguments)
        return (exited.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def shipped() -> Texts:
    return {name: text for name, text in texts(SHIPPED).items() if name not in BY_HAND}


@functools.cache
def written(*arguments: str) -> Texts:
    """Writes all files, and gives their texts."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as exited:
            cli.main(("grafana", "--out", folder, *arguments))
        assert 0 == exited.value.code, output.getvalue()
        return texts(Path(folder))


def changed(shipped: Texts, *arguments: str) -> Texts:
    """
    Writes all files, and gives the texts of those that are not the shipped ones; README.md says how they were made.
    """
    made = dict(written(*arguments))
    assert shipped.keys() == made.keys()
    assert noted(shipped[README], *arguments) == made.pop(README)
    return {name: text for name, text in made.items() if text != shipped[name]}


def noted(readme: str, *arguments: str) -> str:
    """The shipped README.md with another command line, in which options are in the order of --help."""
    with_them = readme.replace(
        "`otel-model-metrics grafana`", f"`{shlex.join(['otel-model-metrics', 'grafana', *arguments])}`"
    )
    assert bool(arguments) == (with_them != readme)
    return with_them


def command_in(readme: str) -> list[str]:
    """The command that README.md says has made the files, as a shell takes it apart."""
    found = re.search("(?m)^Made by `(.+)`[.]$", readme)
    assert found is not None
    return shlex.split(found[1])


def variables_of(dashboard: str) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in json.loads(dashboard)["templating"]["list"]}


def panels_of(dashboard: str) -> list[dict[str, Any]]:
    return [one for panel in json.loads(dashboard)["panels"] for one in (panel, *panel.get("panels", ()))]


def rules_of(alerting: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.load(alerting, LOADER)["groups"] for rule in group["rules"]]


# The shipped files


@needs_grafana
def test_the_shipped_files_are_those_of_a_fresh_run(command, shipped):
    """
    Byte for byte, and there are no others. If this fails: make docs.
    """
    code, output, errors = command("grafana")

    assert (0, "") == (code, errors)
    assert sorted(f"grafana/{name}: written" for name in shipped) == sorted(output.splitlines())
    assert shipped == texts(Path("grafana"))


@pytest.mark.parametrize("name", [RULES, ALERTS, ALERTING, KUSTOMIZATION, "compose.yaml"])
def test_files_are_the_same_where_pyyaml_has_no_libyaml(monkeypatch, shipped, name):
    """
    Whoever makes them anew elsewhere finds no difference.
    """
    monkeypatch.delattr(yaml, "CSafeDumper", raising=False)
    spec = importlib.util.spec_from_file_location("layout_without_libyaml", layout.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)

    content = yaml.load(shipped[name], LOADER)
    # A part of a file is enough: its groups are alike.
    content = {**content, "groups": content["groups"][:1]} if "groups" in content else content
    assert issubclass(without._Dumper, yaml.SafeDumper)
    assert layout.as_yaml(content) == without.as_yaml(content)


# --check


@needs_grafana
def test_check_says_what_is_missing_or_stale_and_writes_nothing_and_a_run_writes_just_that(command, shipped):
    """
    Exit code 1, for CI; 0 when a fresh run would write the same, as for what is shipped.
    """
    code, output, errors = command("grafana", "--check", "--out", str(SHIPPED))
    assert (0, "") == (code, errors)
    assert sorted(f"{SHIPPED / name}: up to date" for name in shipped) == sorted(output.splitlines())

    for name, text in shipped.items():
        Path("grafana", name).parent.mkdir(parents=True, exist_ok=True)
        Path("grafana", name).write_text(text)
    Path("grafana", OVERVIEW).write_text(shipped[OVERVIEW] + "\n")
    Path("grafana", RULES).unlink()
    Path("grafana", "notes.md").touch()  # not ours
    before = texts(Path("grafana"))

    code, output, errors = command("grafana", "--check")

    wrong = {OVERVIEW: "stale", RULES: "missing"}
    expected = {f"grafana/{name}: {wrong.get(name, 'up to date')}" for name in shipped}
    assert (1, "") == (code, errors)
    assert expected == set(output.splitlines())
    assert before == texts(Path("grafana"))

    untouched = Path("grafana", ALERTS).stat().st_mtime_ns
    assert (0, re.sub("stale|missing", "written", output), "") == command("grafana")
    assert {**shipped, "notes.md": ""} == texts(Path("grafana"))
    assert untouched == Path("grafana", ALERTS).stat().st_mtime_ns


# Options


# An option, a value that is nowhere in our files, what it replaces, and in how many lines of which files.
TEXTS = [
    ("--datasource", "Mimir_1", "prometheus", {**dict.fromkeys(DASHBOARDS, 2), SOURCE: 2, ALERTING: None}),
    ("--datasource-url", "https://mimir.example.org/prometheus", "http://prometheus:9090", {SOURCE: 1}),
    ("--interval", "47s", "60s", {SOURCE: 1}),
    (
        "--folder",
        "Fraud & churn",
        "ML model quality",
        {OVERVIEW: 1, PROVIDER: 1, ALERTING: 3, POLICIES: 2, KUSTOMIZATION: 4, OPERATOR: 1},
    ),
    ("--folder-uid", "fraud-desk", "ml-model-quality", {OVERVIEW: 1, PROVIDER: 1, OPERATOR: 1}),
    (
        "--runbooks",
        "https://wiki.example.org/models",
        "https://example.org/otel-model-metrics/runbooks.md",
        {**dict.fromkeys(DASHBOARDS, 1), ALERTS: 81, KUBERNETES_ALERTS: 81, ALERTING: None},
    ),
]


ALL = tuple(text for option, value, _, _ in TEXTS for text in (option, value))
ALL = (*ALL[:-2], "--naming", "scrape", *ALL[-2:])  # in the order of --help


@needs_grafana
def test_options_that_are_a_text_are_written_where_it_belongs_and_change_nothing_else(shipped):
    """
    All at once, with values that cannot be mistaken for another: taken out again, what is shipped is left. And
    however metrics come to Prometheus, files are the same. A source of another uid has that for its name, because
    there may be one that is called Prometheus.
    """
    made = dict(written(*ALL))

    assert noted(shipped[README], *ALL) == made.pop(README)
    source = made[SOURCE]
    assert ("Mimir_1", "Prometheus") == tuple(
        yaml.safe_load(text)["datasources"][0]["name"] for text in (source, shipped[SOURCE])
    )
    for option, value, default, expected in TEXTS:
        found = {name: sum(value in line for line in text.splitlines()) for name, text in made.items() if value in text}
        # How many alerts there are is said elsewhere.
        found = {name: None if expected.get(name, 0) is None else count for name, count in found.items()}
        assert expected == found, option
        made = {name: text.replace(value, default) for name, text in made.items()}
    made[SOURCE] = made[SOURCE].replace("name: prometheus", "name: Prometheus")
    assert shipped == {**made, README: shipped[README]}


@needs_grafana
def test_the_data_source_is_that_of_every_alert_and_the_default_of_dashboards():
    """
    Alerts cannot choose one, dashboards can.
    """
    made = written(*ALL)

    for rule in rules_of(made[ALERTING]):
        asked = [query for query in rule["data"] if query["datasourceUid"] != "__expr__"]
        assert asked
        for query in asked:
            assert ("Mimir_1", "Mimir_1") == (query["datasourceUid"], query["model"]["datasource"]["uid"]), rule[
                "title"
            ]
    for name in DASHBOARDS:
        assert {"selected": True, "text": "Mimir_1", "value": "Mimir_1"} == variables_of(made[name])["datasource"][
            "current"
        ]
        assert '"uid":"Mimir_1"' not in made[name]
    assert "Mimir_1" == yaml.safe_load(made[SOURCE])["datasources"][0]["uid"]


@needs_grafana
def test_the_folder_is_that_of_dashboards_alerts_and_the_list_of_alerts():
    """
    Whoever provisions them.
    """
    made = written(*ALL)

    provider = yaml.safe_load(made[PROVIDER])["providers"][0]
    assert ("Fraud & churn", "fraud-desk") == (provider["folder"], provider["folderUid"])
    assert {"Fraud & churn"} == {group["folder"] for group in yaml.load(made[ALERTING], LOADER)["groups"]}
    lists = [panel["options"]["folder"] for panel in panels_of(made[OVERVIEW]) if panel["type"] == "alertlist"]
    assert [{"title": "Fraud & churn", "uid": "fraud-desk"}] == lists
    annotations = [
        one["options"]["annotations"]
        for one in yaml.safe_load(made[KUSTOMIZATION])["configMapGenerator"]
        if "annotations" in one["options"]
    ]
    assert [{"grafana_folder": "Fraud & churn"}] * 4 == annotations
    folder = next(yaml.safe_load_all(made[OPERATOR]))["spec"]
    assert ("Fraud & churn", "fraud-desk") == (folder["title"], folder["uid"])


WINDOWS = ("--dashboard-window", "2h", "--window", "30m", "--window", "12h")


@needs_grafana
def test_dashboards_begin_with_the_window_and_offer_it_among_the_others(shipped):
    """
    In order of their lengths; nothing else changes, whatever the windows of alerts are.
    """
    made = changed(shipped, *WINDOWS)

    for name in DASHBOARDS:
        window = variables_of(made[name])["window"]
        assert ("2h", "15m,1h,2h,6h,1d") == (window["current"]["value"], window["query"])
        assert ["2h"] == [option["value"] for option in window["options"] if option["selected"]]
        default = variables_of(shipped[name])["window"]
        assert json.loads(shipped[name]) == with_variable(made[name], default)


@needs_grafana
def test_alerts_compare_over_their_windows(shipped):
    """
    Those of Prometheus and those of Grafana: the shortest one is critical. What shows nothing of them stays.
    """
    made = changed(shipped, *WINDOWS)

    assert {*DASHBOARDS, RULES, ALERTS, KUBERNETES_RULES, KUBERNETES_ALERTS, ALERTING} == made.keys()
    name = "ModelQualityBelowObjective"
    of_prometheus = [rule["labels"] for rule in rules_of(made[ALERTS]) if name == rule["alert"]]
    of_grafana = [rule["labels"] for rule in rules_of(made[ALERTING]) if name == rule["title"].partition(" ")[0]]
    for labels in (of_prometheus, of_grafana):
        assert {("30m", "critical"), ("12h", "warning")} == {(one["window"], one["severity"]) for one in labels}
    assert ["5m", "30m", "1h", "6h", "12h", "1d", "30d", "versions"] == [
        group["name"].removeprefix("ml_model:") for group in yaml.load(made[RULES], LOADER)["groups"]
    ]


@needs_grafana
def test_the_least_number_of_rows_is_that_of_alerts_and_the_default_of_dashboards(shipped):
    """
    Where 100 was, and nowhere else; dashboards offer 100 still.
    """
    made = changed(shipped, "--min-rows", "12345")

    assert {*DASHBOARDS, ALERTS, KUBERNETES_ALERTS, ALERTING} == made.keys()
    for name in (ALERTS, KUBERNETES_ALERTS, ALERTING):
        assert squeezed(shipped[name]) == squeezed(made[name]).replace("12345", "100")
    for name in DASHBOARDS:
        variable = variables_of(made[name])["min_rows"]
        assert ("12345", "30,100,300,12345") == (variable["current"]["value"], variable["query"])
        assert json.loads(shipped[name]) == with_variable(made[name], variables_of(shipped[name])["min_rows"])


@needs_grafana
def test_a_namespace_is_in_front_of_every_metric_that_is_stored(shipped):
    """
    In dashboards, rules and alerts; not of labels, nor of what is recorded.
    """
    made = changed(shipped, "--namespace", "acme")

    assert {*DASHBOARDS, RULES, ALERTS, KUBERNETES_RULES, KUBERNETES_ALERTS, ALERTING} == made.keys()
    for name, text in made.items():
        assert squeezed(shipped[name]) == squeezed(text).replace("acme_ml_model_", "ml_model_")
        bare = set(re.findall(r"(?<!\w)ml_model_\w+", text))
        assert bare <= {"ml_model_name", "ml_model_version", "ml_model_task"}


@needs_grafana
def test_a_label_that_splits_fleets_is_a_variable_and_a_column(shipped):
    """
    And whatever is summed for a model is summed for each of its values.
    """
    label = "deployment_environment_name"
    made = changed(shipped, "--by", label)

    assert {*DASHBOARDS, RULES, ALERTS, KUBERNETES_RULES, KUBERNETES_ALERTS, ALERTING, POLICIES} == made.keys()
    for name in DASHBOARDS:
        variables = variables_of(made[name])
        assert ["datasource", label, "model", "version"] == list(variables)[:4]
        variable = variables[label]
        assert ("deployment environment name", True, True) == (
            variable["label"],
            variable["multi"],
            variable["includeAll"],
        )
        assert f"label_values(ml_model_predictions_total, {label})" == variable["query"]
        assert f"{label}=~`${{{label}:regex}}`" in variables["model"]["query"]
        for expression in expressions_of(made[name]):
            # A version is counted once, wherever it serves.
            inner = expression.replace("count(group by (ml_model_name, ml_model_version)", "count(")
            for labels in re.findall(r"\b(?:by|on) \(([^)]*ml_model_version[^)]*)\)", inner):
                assert label in labels.split(", "), expression
    columns = {
        panel["title"]: list(transformation["options"]["renameByName"])
        for name in DASHBOARDS
        for panel in panels_of(made[name])
        for transformation in panel.get("transformations", ())
        if transformation["id"] == "organize" and "ml_model_version" in transformation["options"]["renameByName"]
    }
    assert {"Models", "Labels of each model"} <= columns.keys()
    assert [] == [title for title, names in columns.items() if label not in names]
    for rule in rules_of(made[ALERTING]):
        assert f"$labels.{label}" in rule["annotations"]["summary"], rule["title"]


@needs_grafana
@pytest.mark.parametrize("url", [(), ("--datasource-url", "")])
def test_a_data_source_that_grafana_knows_has_no_file(shipped, url):
    """
    Given by its uid, without a URL: Grafana would make a second one. README.md says what is needed instead.
    """
    made = written("--datasource", "mimir-prod", *url)

    assert shipped.keys() - {SOURCE} == made.keys()
    assert {"mimir-prod", "__expr__"} == {
        query["datasourceUid"] for rule in rules_of(made[ALERTING]) for query in rule["data"]
    }
    assert "and of a data source with the uid `mimir-prod`" in made[README]
    assert "with the uid" not in shipped[README]
    assert f"`{SOURCE}`" in shipped[README]
    assert SOURCE not in made[README]
    assert made == written(*command_in(made[README])[2:])


@needs_grafana
@pytest.mark.parametrize("datasource", [(), ("--datasource", "mimir-prod")])
def test_a_data_source_with_a_url_has_a_file(shipped, datasource):
    """
    Whatever its uid, and also at the address that is the default without one.
    """
    for url in ("https://mimir.example.org/prometheus", "http://prometheus:9090"):
        made = written(*datasource, "--datasource-url", url)

        assert shipped.keys() == made.keys()
        source = yaml.safe_load(made[SOURCE])["datasources"][0]
        assert (datasource[-1] if datasource else "prometheus", url) == (source["uid"], source["url"])
        assert "with the uid" not in made[README]


@needs_grafana
def test_check_asks_for_no_file_of_a_data_source_that_grafana_knows(command):
    """
    It is neither missing nor stale; with a URL it is missing.
    """
    known = ("grafana", "--datasource", "mimir-prod")
    assert 0 == command(*known)[0]

    code, output, _ = command(*known, "--check")
    assert 0 == code
    assert SOURCE not in output
    code, output, _ = command(*known, "--datasource-url", "http://mimir:9009", "--check")
    assert 1 == code
    assert f"grafana/{SOURCE}: missing" in output.splitlines()


# How README.md says that the files were made, and other ways to say it.
RUNS = [
    ((), ()),
    (ALL, ALL),
    (WINDOWS, ("--window", "30m", "--window", "12h", "--dashboard-window", "2h")),
    (("--window", "12h", "--window", "1d"), ("--window", "24h", "--window", "12h", "--min-rows", "100")),
    ((), ("--window", "1h", "--window", "6h", "--datasource", "prometheus", "--folder", "ML model quality")),
    (("--folder", "Ann's 'models' & \"more\"; # `x`"), ("--folder", "Ann's 'models' & \"more\"; # `x`")),
    (("--models", r"fraud\.v2|churn *"), ("--models", r"fraud\.v2|churn *")),
    (("--datasource-url", ""), ("--datasource-url", "")),
    (
        ("--datasource", "mimir", "--datasource-url", "http://prometheus:9090"),
        ("--datasource-url", "http://prometheus:9090", "--datasource", "mimir"),
    ),
    (
        ("--min-rows", "50", "--namespace", "acme", "--by", "region", "--by", "team"),
        ("--by", "region", "--by", "team", "--namespace", "acme", "--min-rows", "50"),
    ),
]


@needs_grafana
@pytest.mark.parametrize(("arguments", "given"), RUNS, ids=lambda one: " ".join(one) or "nothing")
def test_the_command_in_the_readme_makes_the_same_files(arguments, given):
    """
    With the options that are not as they would be anyway, in the order of --help; a shell may run it.
    """
    made = written(*given)

    assert ["otel-model-metrics", "grafana", *arguments] == command_in(made[README])
    assert made == written(*arguments)


@needs_grafana
def test_the_command_in_the_readme_knows_every_option():
    """
    Where files go, and whether they are only looked at, is no part of what they say.
    """
    options = {option.opts[0] for option in commands.grafana.params} - {"--out", "--check"}
    given = [
        (option, *value)
        for arguments, _ in RUNS
        for option, *value in zip(arguments[::2], arguments[1::2], strict=True)
    ]

    assert options == {option for option, _ in given}


@needs_grafana
def test_windows_are_those_of_the_command_for_rules(command):
    """
    The same option gives the same files for Prometheus.
    """
    windows = ("--window", "30m", "--window", "12h")
    code, _, errors = command("rules", "--out", "alone", *windows)

    assert (0, "") == (code, errors)
    assert texts(Path("alone")) == {
        name.removeprefix("prometheus/"): text for name, text in written(*windows).items() if name in (RULES, ALERTS)
    }


_CHOSEN = "ml_model_name=~`${model:regex}`"


@needs_grafana
def test_models_are_those_of_the_expression_in_dashboards_and_in_alerts(shipped):
    """
    Dashboards ask for what their variables offer, of which "All" is the expression itself; Prometheus' own rules are
    for all models. Between double quotes PromQL takes a backslash for one of its own.
    """
    matcher = r'ml_model_name=~"fraud\\.v2|churn-.*"'
    made = changed(shipped, "--models", r"fraud\.v2|churn-.*")

    assert {*DASHBOARDS, ALERTING} == made.keys()
    for name in DASHBOARDS:
        variables = variables_of(made[name])
        model = variables.pop("model")
        assert f"label_values(ml_model_predictions_total{{{matcher}}}, ml_model_name)" == model["query"]
        assert model["includeAll"] == (name in (OVERVIEW, GROUND_TRUTH))
        if model["includeAll"]:
            assert r"fraud\.v2|churn-.*" == model["allValue"]
        for variable in variables.values():
            if "label_values" in variable["query"]:
                assert _CHOSEN in variable["query"], variable["name"]
        for expression in expressions_of(made[name]):
            for selector in selectors_of(expression):
                assert plainly(_CHOSEN) in selector or matcher in selector, selector
    for rule in rules_of(made[ALERTING]):
        for query in rule["data"]:
            for selector in selectors_of(query["model"].get("expr", "")):
                assert matcher in selector, (rule["title"], selector)


def selectors_of(expression: str) -> list[str]:
    """What stands in braces, and metrics without any."""
    unquoted = re.sub(r'"[^"]*"', "", expression)
    bare = re.findall(r"\bml_model[_:][\w:]+(?![\w:{])", unquoted)
    labels = {"ml_model_name", "ml_model_version", "ml_model_task"}
    plain = plainly(expression)
    return re.findall(r"\{[^{}]*\}", plain) + [name for name in bare if name not in labels]


def plainly(text: str) -> str:
    """With $model for ${model:regex}, so that braces are those of selectors."""
    return re.sub(r"\$\{(\w+):regex\}", r"$\1", text)


def squeezed(text: str) -> str:
    """Without what only lays a text out."""
    return re.sub(r"\s|\|2?-", "", text)


def with_variable(dashboard: str, variable: dict[str, Any]) -> dict[str, Any]:
    """A dashboard with a variable instead of its own of that name."""
    content: dict[str, Any] = json.loads(dashboard)
    variables = content["templating"]["list"]
    content["templating"]["list"] = [variable if one["name"] == variable["name"] else one for one in variables]
    return content


def expressions_of(dashboard: str) -> Iterator[str]:
    """Every query of a dashboard."""
    for panel in panels_of(dashboard):
        yield from (target["expr"] for target in panel.get("targets", ()))


# Wrong usage

UID = "a uid: at most 40 letters, digits, - and _, the first a letter or digit"
DURATION = "A duration is a number and a unit (s, m, h, d, w), such as 30m, 6h or 1h30m"


@needs_grafana
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasource", "${datasource}"], f"datasource must be {UID}; got '${{datasource}}'."),
        (["--datasource", ""], f"datasource must be {UID}; got ''."),
        (
            ["--datasource-url", "prometheus:9090"],
            "datasource_url must be an address such as http://prometheus:9090, got 'prometheus:9090'.",
        ),
        (["--interval", "often"], f"{DURATION}; got 'often'."),
        (["--interval", "0s"], "A duration must be longer than 0, got '0s'."),
        (["--folder", "models/churn"], "folder must be a title on one line, without / and $; got 'models/churn'."),
        (["--folder-uid", "ML models"], f"folder_uid must be {UID}; got 'ML models'."),
        (["--dashboard-window", "1 hour"], f"{DURATION}; got '1 hour'."),
        (["--window", "1 hour"], f"{DURATION}; got '1 hour'."),
        (["--window", "30d"], "A window must be at least 1m and below 30d, got '30d'."),
        (["--min-rows", "0"], "min_rows must be at least 1, got 0."),
        (["--naming", "push"], "Invalid value for '--naming': 'push' is not one of 'otlp', 'scrape'."),
        (["--namespace", "9x"], "namespace must be a Prometheus name (letters, digits, _), got '9x'."),
        (["--by", "ml_class"], "by must name Prometheus labels that are not ours already, each once; got 'ml_class'."),
        (
            ["--models", "^fraud$"],
            'models must be a regular expression on one line, without ", ` and $ (it is compared with the whole name '
            "anyway); got '^fraud$'.",
        ),
        (
            ["--models", "a("],
            "models must be a regular expression as Prometheus takes it, such as fraud|churn-.*; got 'a(': "
            "illegal regex for a(.",
        ),
        (["--out", __file__], f"Invalid value for '--out': Directory '{__file__}' is a file."),
        (["--window", "1h", "everything"], "Got unexpected extra argument (everything)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "--out" not in value else "",
)
def test_wrong_usage_says_what_is_right(command, tmp_path, arguments, message):
    """
    Exit code 2, no traceback, nothing written.
    """
    code, output, errors = command("grafana", *arguments)

    assert (2, "", f"Error: {message}") == (code, output, errors.splitlines()[-1])
    assert [] == list(tmp_path.iterdir())


@needs_grafana
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_what_is_found_only_while_files_are_made_is_wrong_usage_too(command, tmp_path, check):
    """
    A query that stores would refuse: the first files are fine, and are not written either.
    """
    models = "|".join(f"model-{number}" for number in range(100))

    code, output, errors = command("grafana", "--models", models, *check)

    message = (
        r"Error: A query of an alert would have \d+ bytes; stores refuse more than 16000. Choose a shorter regular "
        "expression for models, or fewer labels to split the fleet by."
    )
    assert (2, "") == (code, output)
    assert re.fullmatch(message, errors.splitlines()[-1]), errors
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["click", "yaml", "promql_parser", "grafana_foundation_sdk"])
def test_without_the_extra_the_command_line_names_it(tmp_path, module):
    """
    One line and an exit code, no traceback, nothing written.
    """
    if module == "grafana_foundation_sdk" and sys.version_info < (3, 11):
        pytest.skip("there another message is right")
    done = hidden(tmp_path, module)

    expected = (
        f"otel-model-metrics: {module} is not installed, which this command needs. "
        'Install the extra grafana: pip install "otel-model-metrics[grafana]"\n'
    )
    assert (1, "", expected) == done
    assert [] == list(tmp_path.iterdir())


def test_on_python_310_it_says_that_a_newer_one_is_needed(tmp_path):
    """
    There the extra would not help.
    """
    done = hidden(
        tmp_path,
        "grafana_foundation_sdk",
        "cli.sys = types.SimpleNamespace(version_info=(3, 10, 14), stderr=sys.stderr, exit=sys.exit)",
    )

    assert (1, "", "otel-model-metrics: this command needs Python 3.11 or newer.\n") == done


def hidden(folder: Path, module: str, more: str = "") -> tuple[int, str, str]:
    """What the command does in a Python that lacks a module: exit code, output and errors."""
    code = f"import sys, types; sys.modules[{module!r}] = None; from otel_model_metrics import cli; {more}\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}cli.main(['grafana'])"],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr
