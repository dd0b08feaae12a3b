"""
Asks a Grafana whether it has what the folder grafana/ gave it, and whether all of that works.

    python .github/check_grafana.py http://localhost:3000 --wait 600 --log grafana.log

Needs nothing but Python. Says what it checks, one line each; exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent.parent / "grafana"
FOLDER, SOURCE = "ml-model-quality", "prometheus"
# Panels are asked about the last hour: when this runs, nothing is older.
PERIOD = {"from": "now-1h", "to": "now"}
ALERTS = f"provisioning/alerting/{FOLDER}.yaml"

# What the demo has something for, whichever of its models is chosen. Of other panels it is enough that they can be
# asked: those of regression, say, have nothing to show of a classifier.
WITH_DATA = {
    "ml-quality-overview": {"Models at work", "Models", "Predictions"},
    "ml-quality-model": {"Quality", "Evidence", "Objectives", "Quality and its 95 % interval", "Predictions"},
    "ml-quality-segments": {"Segments", "Segments and the model"},
    "ml-quality-ground-truth": {"Labelled rows", "Labels of each model", "Predictions and labels", "Delay of labels"},
}
# What Grafana logs of files that it cannot read or use.
REFUSED = re.compile("failed to (provision|load dashboard|save dashboard)", re.IGNORECASE)

Problems = Iterator[str]


class Grafana:
    """The HTTP API of a Grafana in which anybody is an administrator, as in the image otel-lgtm."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str, **parameters: str) -> Any:
        """The answer to a GET."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        return self._ask(urllib.request.Request(f"{self.url}{path}{query}"))

    def query(self, queries: list[dict[str, Any]]) -> dict[str, Any]:
        """What each of the queries of a panel gives, by its letter."""
        content = json.dumps({"queries": queries, **PERIOD}).encode()
        request = urllib.request.Request(f"{self.url}/api/ds/query", content, {"Content-Type": "application/json"})
        results: dict[str, Any] = self._ask(request).get("results", {})
        return results

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            content = error.read().decode(errors="replace")
            # A query that failed has its own message in it.
            if '"results"' in content:
                return json.loads(content)
            path = urllib.parse.urlsplit(request.full_url).path
            raise OSError(f"{path} answered {error.code}: {content[:300]}") from error


def health(grafana: Grafana) -> Problems:
    """Grafana and its database work."""
    found = grafana.get("/api/health")
    if found.get("database") != "ok":
        yield f"the database is not ok: {found}"


def folder(grafana: Grafana) -> Problems:
    """The folder has all dashboards."""
    found = {one["uid"] for one in grafana.get("/api/search", folderUIDs=FOLDER, type="dash-db")}
    yield from (f"no dashboard {uid} in the folder {FOLDER}" for uid in dashboards() if uid not in found)


def panels(grafana: Grafana) -> Problems:
    """Each dashboard has the panels of its file."""
    for uid, expected in dashboards().items():
        found = grafana.get(f"/api/dashboards/uid/{uid}")["dashboard"]
        ours, theirs = (sorted(str(panel.get("title")) for panel in panels_of(one)) for one in (expected, found))
        if ours != theirs:
            yield f"{uid} has {len(theirs)} panels, its file {len(ours)}: {sorted(set(ours) ^ set(theirs))}"


def rules(grafana: Grafana) -> Problems:
    """Grafana has every alert rule of the file."""
    found = {rule["uid"] for rule in grafana.get("/api/v1/provisioning/alert-rules")}
    yield from (f"no alert rule {uid}" for uid in rule_uids() if uid not in found)


def evaluation(grafana: Grafana) -> Problems:
    """Every alert rule has been evaluated, and none of them failed."""
    groups = grafana.get("/api/prometheus/grafana/api/v1/rules")["data"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    if len(found) < len(rule_uids()):
        yield f"{len(found)} alert rules are evaluated, the file has {len(rule_uids())}"
    for rule in found:
        if rule["health"] not in ("ok", "nodata"):
            yield f"alert rule {rule['name']}: health {rule['health']}: {rule.get('lastError') or 'no reason given'}"
        elif rule["lastEvaluation"].startswith("0001"):  # the first year is Grafana's "never"
            yield f"alert rule {rule['name']}: not evaluated yet"


def queries(grafana: Grafana) -> Problems:
    """Every query of every panel works, for each of the demo's models, and those that must have data have some."""
    for uid, dashboard in dashboards().items():
        for values in choices(grafana, dashboard):
            one = [f", {name} {value}" for name, value in values.items() if name in CHOSEN and value != ".*"]
            where = uid + "".join(one)
            for panel in panels_of(dashboard):
                if panel.get("targets"):
                    needed = panel["title"] in WITH_DATA[uid]
                    yield from answers(grafana, panel, values, f"{where}, panel {panel['title']!r}", needed)


def answers(grafana: Grafana, panel: dict[str, Any], values: dict[str, str], where: str, needed: bool) -> Problems:
    """What is wrong with the answers to the queries of a panel, among it that there are none where they are needed."""
    more = {"intervalMs": 60_000, "maxDataPoints": panel.get("maxDataPoints", 1000)}
    targets = [{**substituted(target, values), **more} for target in panel["targets"]]
    results = grafana.query(targets)
    rows = 0
    for target in targets:
        result = results.get(target["refId"], {"error": "no answer"})
        if result.get("error"):
            yield f"{where}, query {target['refId']}: {result['error']}"
        for frame in result.get("frames") or []:
            columns = frame.get("data", {}).get("values", [])
            rows += len(columns[0]) if columns else 0
    if needed and not rows:
        yield f"{where}: no data"


# Variables


# Of these variables each value is tried that there is, where they have no "All".
CHOSEN = ("model", "segment_name")


def choices(grafana: Grafana, dashboard: dict[str, Any]) -> list[dict[str, str]]:
    """All that can be chosen in a dashboard: a value for each of its variables."""
    found: list[dict[str, str]] = [{}]
    for variable in dashboard["templating"]["list"]:
        name, kind = variable["name"], variable["type"]
        if kind == "datasource":
            found = [{**values, name: SOURCE} for values in found]
        elif kind == "custom":
            found = [{**values, name: variable["current"]["value"]} for values in found]
        elif variable["includeAll"]:
            found = [{**values, name: variable["allValue"]} for values in found]
        else:
            found = [
                {**values, name: one} for values in found for one in label_values(grafana, variable["query"], values)
            ]
    return found


def label_values(grafana: Grafana, query: str, values: dict[str, str]) -> list[str]:
    """What Grafana offers for a variable whose query is ``label_values(SELECTOR, LABEL)``."""
    parts = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    if not parts:
        raise OSError(f"a variable asks {query!r}, which this script does not know")
    path = f"/api/datasources/uid/{SOURCE}/resources/api/v1/label/{parts[2]}/values"
    found = grafana.get(path, **{"match[]": substituted(parts[1], values)})["data"]
    if not found:
        raise OSError(f"no values for {query}: the demo's metrics have not arrived")
    return sorted(found)


def substituted(item: Any, values: dict[str, str]) -> Any:
    """With values instead of variables; those that Grafana itself knows stay, such as $__rate_interval."""
    if isinstance(item, str):
        return re.sub(r"\$(?:(\w+)|\{(\w+)(?::\w+)?\})", lambda found: values.get(found[1] or found[2], found[0]), item)
    if isinstance(item, dict):
        return {key: substituted(value, values) for key, value in item.items()}
    return item


# Our files


def dashboards() -> dict[str, dict[str, Any]]:
    """By uid."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((FILES / "dashboards").glob("*.json"))]
    return {one["uid"]: one for one in found}


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those below the titles of collapsed rows, too."""
    return [one for panel in dashboard["panels"] for one in (panel, *panel.get("panels", ()))]


def rule_uids() -> list[str]:
    """Each stands on a line of its own: Python has no parser for YAML."""
    return re.findall(r"^  - uid: (\S+)$", (FILES / ALERTS).read_text(encoding="utf-8"), re.MULTILINE)


def log(path: Path) -> Problems:
    """Grafana logged no complaint about our files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not any("logger=provisioning" in line for line in lines):
        yield f"{path} is not the log of a Grafana that was provisioned; is ENABLE_LOGS_GRAFANA=true set?"
    yield from (line for line in lines if REFUSED.search(line))


# The command


def problems_of(check: Callable[[Grafana], Problems], grafana: Grafana) -> list[str]:
    """What a check finds, a Grafana that does not answer among it."""
    found: list[str] = []
    try:
        found.extend(check(grafana))
    except (OSError, ValueError, KeyError) as error:
        found.append(f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error))
    return found


def main() -> None:
    """Check one thing after the other, each until it is as it should be or the time is over."""
    parser = argparse.ArgumentParser(description="Asks a Grafana whether it has what the folder grafana/ gave it.")
    parser.add_argument("url", help="such as http://localhost:3000")
    parser.add_argument("--wait", type=float, default=0, help="for so many seconds: data come and rules are evaluated")
    parser.add_argument("--log", type=Path, help="what Grafana logged, to look for complaints")
    arguments = parser.parse_args()
    grafana, deadline, wrong = Grafana(arguments.url), time.monotonic() + arguments.wait, 0
    for check in (health, folder, panels, rules, evaluation, queries):
        print((check.__doc__ or "").strip(), end=" ", flush=True)
        while (problems := problems_of(check, grafana)) and time.monotonic() < deadline:
            time.sleep(5)
        wrong += report(problems)
    if arguments.log:
        print((log.__doc__ or "").strip(), end=" ", flush=True)
        wrong += report(list(log(arguments.log)))
    sys.exit(1 if wrong else 0)


def report(problems: list[str]) -> int:
    """Say what is wrong, and how much of it there is."""
    print("NO" if problems else "yes", flush=True)
    for problem in problems[:20]:
        print(f"  {problem}", flush=True)
    if len(problems) > 20:
        print(f"  ... and {len(problems) - 20} more", flush=True)
    return len(problems)


if __name__ == "__main__":
    main()
