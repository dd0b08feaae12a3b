"""
What asks a real Grafana about our files: the workflow of GitHub, and its script, here against a Grafana that is played.
"""

from __future__ import annotations

import copy
import http.server
import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from promtool import LOADER

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "grafana.yaml"
SCRIPT = ROOT / ".github" / "check_grafana.py"
GRAFANA = ROOT / "grafana"
ALERTING = yaml.load((GRAFANA / "provisioning/alerting/ml-model-quality.yaml").read_text(), LOADER)
MODELS = ["churn", "fraud"]

Answer = tuple[int, Any]


def loaded() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_grafana", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = loaded()


# The workflow


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return content


def test_the_workflow_runs_when_our_files_change_and_every_week(workflow):
    """
    Every week, for the image and what the demo is installed from change as well. YAML takes "on" for true.
    """
    when = workflow[True]

    assert {"push", "pull_request", "schedule", "workflow_dispatch"} == when.keys()
    assert {"branches": ["main"]} == when["push"]
    for path in when["pull_request"]["paths"]:
        assert list(ROOT.glob(path)), path
    assert {"grafana/**", "otel_model_metrics/provisioning/**"} <= set(when["pull_request"]["paths"])
    (cron,) = when["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", cron["cron"])


def test_the_workflow_may_only_read_ends_in_time_and_uses_known_versions(workflow):
    """
    Of the actions, the major one.
    """
    (job,) = workflow["jobs"].values()
    used = [step["uses"] for step in job["steps"] if "uses" in step]

    assert {"contents": "read"} == workflow["permissions"]
    assert 0 < job["timeout-minutes"] <= 40
    assert ["actions/checkout", "actions/upload-artifact"] == [name.partition("@")[0] for name in used]
    assert [] == [name for name in used if not re.fullmatch(r"[\w/-]+@v\d+", name)]


def test_the_workflow_starts_our_compose_file_asks_it_and_keeps_logs_of_a_failure(workflow):
    """
    All of what it names is there; Grafana's own log is not dropped by the image.
    """
    (job,) = workflow["jobs"].values()
    commands = "\n".join(step.get("run", "") for step in job["steps"])

    assert "docker compose -f grafana/compose.yaml up -d --wait" in commands
    paths = re.findall(r"[\w./]+/[\w./]+\.(?:yaml|py)", commands)
    assert {"grafana/compose.yaml", ".github/check_grafana.py"} == set(paths)
    assert {True} == {(ROOT / path).is_file() for path in paths}
    asked = re.search(r"check_grafana\.py (.+)", commands)
    assert asked is not None
    assert ["http://localhost:3000", "--wait", "1200", "--log", "containers.log"] == asked[1].split()
    compose = yaml.safe_load((GRAFANA / "compose.yaml").read_text())
    assert "${ENABLE_LOGS_GRAFANA:-false}" == compose["services"]["lgtm"]["environment"]["ENABLE_LOGS_GRAFANA"]
    assert {"ENABLE_LOGS_GRAFANA": "true"} == job["env"]
    *_, collect, keep = job["steps"]
    assert ["failure()", "failure()"] == [collect["if"], keep["if"]]
    assert collect["run"].endswith(f" > {keep['with']['path']}")


# A Grafana that is played


class Played:
    """
    What a Grafana answers that has all of our files, and data for them; a test spoils some of it.

    Attributes:
        asked: Queries that came.
    """

    def __init__(self) -> None:
        self.database = "ok"
        self.dashboards = {one["uid"]: one for one in CHECK.dashboards().values()}
        self.rules = [
            {"uid": rule["uid"], "name": rule["title"], "health": "ok", "lastEvaluation": "2026-11-25T03:00:00Z"}
            for group in ALERTING["groups"]
            for rule in group["rules"]
        ]
        self.models = MODELS
        self.result: Callable[[dict[str, Any]], dict[str, Any]] = lambda query: frames(1.0)
        self.asked: list[dict[str, Any]] = []

    def get(self, path: str, parameters: dict[str, list[str]]) -> Answer:
        if path == "/api/health":
            return 200, {"database": self.database}
        if path == "/api/search":
            assert {"folderUIDs": ["ml-model-quality"], "type": ["dash-db"]} == parameters
            return 200, [{"uid": uid} for uid in self.dashboards]
        if path.startswith("/api/dashboards/uid/"):
            found = self.dashboards.get(path.rpartition("/")[2])
            return (200, {"dashboard": found}) if found else (404, {"message": "Dashboard not found"})
        if path == "/api/v1/provisioning/alert-rules":
            return 200, [{"uid": rule["uid"]} for rule in self.rules]
        if path == "/api/prometheus/grafana/api/v1/rules":
            return 200, {"data": {"groups": [{"name": "all", "rules": self.rules}]}}
        label = re.fullmatch(r"/api/datasources/uid/prometheus/resources/api/v1/label/(\w+)/values", path)
        if label:
            (selector,) = parameters["match[]"]
            assert "$" not in selector
            return 200, {"data": self.models if label[1] == "ml_model_name" else ["country"]}
        return 404, {"message": f"no {path}"}

    def post(self, path: str, content: dict[str, Any]) -> Answer:
        assert "/api/ds/query" == path
        assert {"from": "now-1h", "to": "now"} == {key: content[key] for key in ("from", "to")}
        self.asked += content["queries"]
        results = {query["refId"]: self.result(query) for query in content["queries"]}
        return (400 if any("error" in result for result in results.values()) else 200), {"results": results}


def frames(*values: float) -> dict[str, Any]:
    """A result with one frame."""
    return {"status": 200, "frames": [{"data": {"values": [[1.7e12] * len(values), list(values)]}}]}


@pytest.fixture
def grafana() -> Iterator[tuple[Played, str]]:
    """A Grafana that is played, and its URL."""
    played = Played()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            self._answer(*played.get(address.path, parse_qs(address.query)))

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*played.post(self.path, content))

        def _answer(self, code: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield played, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def checked(grafana, monkeypatch, capsys) -> Callable[..., tuple[int, list[str]]]:
    """Runs the script against it: exit code, and what it says."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["check_grafana.py", grafana[1], *arguments])
        with pytest.raises(SystemExit) as exited:
            CHECK.main()
        return int(exited.value.code or 0), capsys.readouterr().out.splitlines()

    return run


WELL = [
    "Grafana and its database work. yes",
    "The folder has all dashboards. yes",
    "Each dashboard has the panels of its file. yes",
    "Grafana has every alert rule of the file. yes",
    "Every alert rule has been evaluated, and none of them failed. yes",
    "Every query of every panel works, for each of the demo's models, and those that must have data have some. yes",
]


def test_the_script_is_content_with_a_grafana_that_has_everything(grafana, tmp_path):
    """
    In a Python without any package, as on the machine of the workflow; a line for each thing it checks.
    """
    log = tmp_path / "containers.log"
    log.write_text("lgtm-1  | logger=provisioning.alerting level=info msg=finished\n")
    command = [sys.executable, "-I", "-S", str(SCRIPT), grafana[1], "--log", str(log)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert [*WELL, "Grafana logged no complaint about our files. yes"] == done.stdout.splitlines()
    assert (0, "") == (done.returncode, done.stderr)


def test_the_script_asks_every_query_of_every_panel_as_grafana_would(grafana, checked):
    """
    For each model where one is chosen; without variables, but with those that Grafana itself knows.
    """
    assert (0, WELL) == checked()

    asked = grafana[0].asked
    one, each = (
        [
            query["expr"]
            for name in names
            for panel in CHECK.panels_of(grafana[0].dashboards[f"ml-quality-{name}"])
            for query in panel.get("targets", ())
        ]
        for names in (("overview", "ground-truth"), ("model", "segments"))
    )
    assert len(one) + len(MODELS) * len(each) == len(asked)
    left = {name for query in asked for name in re.findall(r"\$\{?(\w+)", json.dumps(query))}
    assert {"__rate_interval", "1"} == left  # the latter is a group of a regular expression
    assert {"prometheus"} == {query["datasource"]["uid"] for query in asked}
    everything = "\n".join(query["expr"] for query in asked)
    for selected in ("ml_model_name=~`fraud`", "ml_model_name=~`.*`", "ml_segment_name=~`country`", "[1h]", ">= 100"):
        assert selected in everything


def no_dashboard(played: Played) -> None:
    del played.dashboards["ml-quality-segments"]


def no_panel(played: Played) -> None:
    changed = copy.deepcopy(played.dashboards["ml-quality-overview"])
    changed["panels"] = [panel for panel in changed["panels"] if panel["title"] != "Models"]
    played.dashboards["ml-quality-overview"] = changed


def no_rule(played: Played) -> None:
    del played.rules[3]


def failed_rule(played: Played) -> None:
    played.rules[3] |= {"health": "error", "lastError": "no data source"}


def waiting_rule(played: Played) -> None:
    played.rules[3] |= {"lastEvaluation": "0001-01-01T00:00:00Z"}


def refused_query(played: Played) -> None:
    def result(query: dict[str, Any]) -> dict[str, Any]:
        refused = query["refId"] == "M2" and "ml_model_name=~`fraud`" in query["expr"]
        return {"status": 400, "error": "parse error"} if refused else frames(1.0)

    played.result = result


def no_data(played: Played) -> None:
    played.result = lambda query: {"status": 200, "frames": [{"data": {"values": []}}]}


def no_models(played: Played) -> None:
    played.models = []


def broken(played: Played) -> None:
    played.database = "failing"


FOURTH = ALERTING["groups"][0]["rules"][3]
PANELS = {uid: sum(1 for _ in CHECK.panels_of(one)) for uid, one in CHECK.dashboards().items()}


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (
            no_dashboard,
            {
                1: ["no dashboard ml-quality-segments in the folder ml-model-quality"],
                2: ['/api/dashboards/uid/ml-quality-segments answered 404: {"message": "Dashboard not found"}'],
            },
        ),
        (
            no_panel,
            {
                2: [
                    f"ml-quality-overview has {PANELS['ml-quality-overview'] - 1} panels, its file "
                    f"{PANELS['ml-quality-overview']}: ['Models']"
                ]
            },
        ),
        (
            no_rule,
            {
                3: [f"no alert rule {FOURTH['uid']}"],
                4: [
                    "{} alert rules are evaluated, the file has {}".format(
                        *(len(CHECK.rule_uids()) - n for n in (1, 0))
                    )
                ],
            },
        ),
        (failed_rule, {4: [f"alert rule {FOURTH['title']}: health error: no data source"]}),
        (waiting_rule, {4: [f"alert rule {FOURTH['title']}: not evaluated yet"]}),
        (refused_query, {5: ["ml-quality-model, model fraud, panel 'Objectives', query M2: parse error"]}),
        (
            no_data,
            {
                5: [
                    f"{uid}{chosen}, panel {panel['title']!r}: no data"
                    for uid, dashboard in CHECK.dashboards().items()
                    for chosen in (
                        [
                            f", model {model}{', segment_name country' * (uid == 'ml-quality-segments')}"
                            for model in MODELS
                        ]
                        if uid in ("ml-quality-model", "ml-quality-segments")
                        else [""]
                    )
                    for panel in CHECK.panels_of(dashboard)
                    if panel["title"] in CHECK.WITH_DATA[uid]
                ]
            },
        ),
        (
            no_models,
            {
                5: [
                    "no values for label_values(ml_model_predictions_total, ml_model_name): "
                    "the demo's metrics have not arrived"
                ]
            },
        ),
        (broken, {0: ["the database is not ok: {'database': 'failing'}"]}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_script_says_what_is_wrong(grafana, checked, spoil, messages):
    """
    Below the line of what it checked, whole; and what is well is well.
    """
    spoil(grafana[0])
    expected = []
    for place, line in enumerate(WELL):
        wrong = messages.get(place, [])
        shown = [*wrong[:20], *([f"... and {len(wrong) - 20} more"] if len(wrong) > 20 else [])]
        expected += [line.removesuffix("yes") + "NO" if wrong else line, *(f"  {message}" for message in shown)]

    code, lines = checked()

    assert expected == lines
    assert 1 == code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "logger=provisioning level=info\nlgtm | Failed to provision alerting: rule X\n",
            "lgtm | Failed to provision alerting: rule X",
        ),
        (
            'logger=provisioning.dashboard level=error msg="failed to load dashboard from x.json"\n',
            'logger=provisioning.dashboard level=error msg="failed to load dashboard from x.json"',
        ),
        (
            "nothing of Grafana\n",
            "{} is not the log of a Grafana that was provisioned; is ENABLE_LOGS_GRAFANA=true set?",
        ),
    ],
    ids=["alerting", "dashboard", "no log"],
)
def test_the_script_finds_complaints_in_the_log_of_grafana(checked, tmp_path, text, message):
    """
    And notices if there is no such log.
    """
    log = tmp_path / "containers.log"
    log.write_text(text)

    code, lines = checked("--log", str(log))

    assert (1, [*WELL, "Grafana logged no complaint about our files. NO", f"  {message.format(log)}"]) == (code, lines)


def test_the_script_waits_for_data(grafana, checked, monkeypatch):
    """
    As long as it may: the demo has to begin, and Grafana to evaluate.
    """
    played, slept = grafana[0], []
    waiting_rule(played)
    played.models = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        played.rules[3]["lastEvaluation"] = "2026-11-25T03:01:00Z"
        if len(slept) > 1:
            played.models = MODELS

    monkeypatch.setattr(CHECK.time, "sleep", sleep)

    assert (0, WELL) == checked("--wait", "600")
    assert [5, 5] == slept


def test_the_script_says_so_if_there_is_no_grafana(monkeypatch, capsys):
    """
    No traceback.
    """
    monkeypatch.setattr(sys, "argv", ["check_grafana.py", "http://127.0.0.1:1"])
    with pytest.raises(SystemExit) as exited:
        CHECK.main()

    lines = capsys.readouterr().out.splitlines()
    assert 1 == exited.value.code
    assert [line.removesuffix("yes") + "NO" for line in WELL] == lines[::2]
    assert {"  <urlopen error [Errno 111] Connection refused>"} == set(lines[1::2])


# What the script takes for granted of our files


def test_the_script_finds_every_rule_without_a_parser_for_yaml():
    """
    In the order of the file.
    """
    assert [rule["uid"] for group in ALERTING["groups"] for rule in group["rules"]] == CHECK.rule_uids()


def test_panels_that_must_have_data_are_there():
    """
    By their titles.
    """
    dashboards = CHECK.dashboards()

    assert dashboards.keys() == CHECK.WITH_DATA.keys()
    for uid, titles in CHECK.WITH_DATA.items():
        assert titles <= {panel["title"] for panel in CHECK.panels_of(dashboards[uid]) if panel.get("targets")}


def test_the_script_knows_the_folder_and_the_data_source():
    """
    They are those of our files.
    """
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/ml-model-quality.yaml").read_text())["providers"][0]
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]

    assert (provider["folderUid"], source["uid"]) == (CHECK.FOLDER, CHECK.SOURCE)
