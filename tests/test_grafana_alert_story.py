"""
The twins fire for whom the alerts of Prometheus fire: on real stores, over one fleet that has all kinds of trouble.

The recording rules are evaluated in their order, at every time that alerts look back to, and what they give is stored.
Then each alert's expression is compared with each twin's queries and condition, the latter by a Grafana in a few lines.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import operator
import random
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from backends import Store, binary, prometheus, victoria_metrics
from promtool import series
from test_alerts import BAD, GOOD, level_of, totals, variant_of

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import escaped
from otel_model_metrics.provisioning import alerts, grafana_alerts, promql
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.rules import Settings, recording_groups

Labels = frozenset[tuple[str, str]]
Numbers = dict[Labels, float]

# Grafana's math


def grafana_math(expression: str, numbers: dict[str, Numbers]) -> Numbers:
    """
    What Grafana's math makes of the numbers that queries gave.

    Numbers with equal labels go together; what has no partner is dropped. NaN stays NaN, unless the left side of && or
    || decides.

    >>> one, other = frozenset({("a", "1")}), frozenset({("a", "2")})
    >>> grafana_math("$A > 1 && $B == 0", {"A": {one: 2.0, other: 2.0}, "B": {one: 0.0}}) == {one: 1.0}
    True
    >>> grafana_math("$A > 1", {"A": {one: math.nan}})[one]
    nan
    """
    python = expression.replace("$", "").replace("&&", "and").replace("||", "or")

    def value(node: ast.AST) -> float | Numbers:
        match node:
            case ast.Name(letter):
                return numbers[letter]
            case ast.Constant(number):
                return float(number)
            case ast.BoolOp(sign, parts):
                result = value(parts[0])
                for part in parts[1:]:
                    result = together("and" if isinstance(sign, ast.And) else "or", result, value(part))
                return result
            case ast.Compare(left, [sign], [right]):
                return together(type(sign), value(left), value(right))
        raise AssertionError(ast.dump(node))

    found = value(ast.parse(python, mode="eval").body)
    assert isinstance(found, dict)
    return found


_SIGNS = {ast.Gt: operator.gt, ast.Lt: operator.lt, ast.GtE: operator.ge, ast.LtE: operator.le, ast.Eq: operator.eq}


def together(sign: Any, one: float | Numbers, other: float | Numbers) -> float | Numbers:
    if isinstance(one, dict) and isinstance(other, dict):
        return {labels: number(sign, one[labels], other[labels]) for labels in one.keys() & other.keys()}
    if isinstance(one, dict):
        return {labels: number(sign, each, other) for labels, each in one.items()}
    assert not isinstance(other, dict)
    return number(sign, one, other)


def number(sign: Any, one: float, other: Any) -> float:
    if (sign == "or" and one != 0 and not math.isnan(one)) or (sign == "and" and one == 0):
        return float(sign == "or")
    if math.isnan(one) or math.isnan(other):
        return math.nan
    if sign in ("and", "or"):
        return float(other != 0)
    return float(_SIGNS[sign](one, other))


# A fleet in trouble

DAY, WEEK = 1440, 10080
# Minutes before now at which a counter is read: often where short windows are asked for, and rarely elsewhere.
USUAL_TIMES = [*range(-2 * DAY, -DAY - 20, 10), *range(-DAY - 20, -DAY), *range(-DAY, -20, 10), *range(-20, 1)]
WEEK_AGO = range(-WEEK - 90, -WEEK + 1)


@dataclass
class Fleet:
    """Samples of the last two days: for each series the minutes before now, and values."""

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def counts(self, per_minute: dict[str, float], born: int = -2 * DAY, until: int = 0, gone: bool = False) -> None:
        """Counters that grow from `born` until `until`, and then stand still, or are gone."""
        for name, rate in per_minute.items():
            times = [minute for minute in USUAL_TIMES if born <= minute and not (gone and minute > until)]
            self.samples[name] = [(minute, rate * (min(minute, until) - born)) for minute in times]

    def reads(
        self, name: str, labels: dict[str, str], values: Callable[[int], float], every: int = 4, until: int = 0
    ) -> None:
        """A series whose value follows from the quarter of a minute, over the last hour."""
        self.samples[series(name, labels)] = [(step / 4, values(step)) for step in range(-240, until + 1, every)]

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.reads(name, labels, lambda minute: value)

    def objectives(self, task: str, metrics: Iterable[catalog.MetricDefinition], level: float | None = None, **of: str):
        for metric in metrics:
            if task in metric.functions:
                chosen = level_of(metric, task) if level is None else level
                labels = {**variant_of(metric, task), "ml_metric": metric.name, **of}
                self.gauge("ml_model_objective", chosen, **labels)


def version(name: str, number: str = "1") -> dict[str, str]:
    return {"ml_model_name": name, "ml_model_version": number}


def mixed(task: str, share_bad: float, times: float = 1.0) -> dict[str, float]:
    return {name: ((1 - share_bad) * GOOD[task][name] + share_bad * BAD[task][name]) * times for name in GOOD[task]}


def fleet_in_trouble() -> Fleet:
    fleet, bounded = Fleet(), alerts.bounded_metrics()
    for task in catalog.TASKS:
        of = {
            case: version(f"{case}-{task}") for case in ("good", "bad", "few", "unlabelled", "free", "short", "paused")
        }
        for labels in of.values():
            if labels is not of["free"]:  # which has no objectives
                fleet.objectives(task, bounded, **labels)
        fleet.counts(totals(task, GOOD[task], **of["good"]))
        for case in ("bad", "free"):
            fleet.counts(totals(task, BAD[task], **of[case]))
        fleet.counts(totals(task, BAD[task], 0.01, **of["few"]))  # 60 rows an hour, 360 in six
        fleet.counts(dict.fromkeys(totals(task, BAD[task], **of["unlabelled"]), 0.0))
        fleet.counts(totals(task, BAD[task], **of["short"]), until=-7)  # over within five minutes, not within an hour
        fleet.counts(totals(task, BAD[task], **of["paused"]), until=-7, gone=True)
        disagreeing(fleet, task, bounded)
        burning(fleet, task, bounded)
        segments(fleet, task, bounded)
        versions(fleet, task, bounded)
    fleet.counts(totals("regression", {**BAD["regression"], "over": 50, "under": 250}, **version("under")))
    fleet.objectives("regression", bounded, **version("under"))
    for task, counts, level in (
        ("binary", {"tp": 50, "fn": 0, "fp": 0, "tn": 50}, 1.0),
        ("regression", {"n": 100, "over": 0, "under": 0, "squared": 0, "fourth": 0}, 0.0),
    ):
        fleet.counts(totals(task, counts, **version(f"perfect-{task}")))
        fleet.objectives(task, bounded, level, **version(f"perfect-{task}"))
    for task in ("binary", "multiclass"):  # two tasks under one name
        fleet.counts(totals(task, BAD[task], **version("both")))
        fleet.objectives(task, bounded, **version("both"))
    fleet.counts(totals("binary", BAD["binary"], **version('a"b\\c'.replace("\\", "\\\\").replace('"', '\\"'))))
    at_the_edge(fleet, bounded)
    everywhere(fleet)
    inputs(fleet)
    return fleet


def disagreeing(fleet: Fleet, task: str, bounded: list[catalog.MetricDefinition]) -> None:
    """Bad, with processes that have different objectives, of which one is met."""
    of = version(f"disagreeing-{task}")
    fleet.counts(totals(task, BAD[task], **of))
    for metric in bounded:
        easy = 0.01 if metric.better == "higher" else 1000
        for instance, level in (("1", easy), ("2", None), ("3", easy)):
            fleet.objectives(task, [metric], level, **of, instance=instance)


def burning(fleet: Fleet, task: str, bounded: list[catalog.MetricDefinition]) -> None:
    """All wrong, or nearly; one of them only until a while ago, and one with an objective that allows no error."""
    wrong = {name: 0.0 for name in GOOD[task]} | {"fn": 50, "fp": 50, "n": 100}
    if task == "ranking":
        wrong |= {"sum": 1, "squared": 0.1}
    if task == "regression":
        return
    for case, right in (("burning", 0.0), ("spent", 0.0), ("halting", 0.0), ("faultless", 0.05)):
        of = version(f"{case}-{task}")
        cells = {**wrong, "tp": 100 * right / 2, "tn": 100 * right / 2}
        fleet.counts(totals(task, cells, **of), until=-7 if case == "spent" else 0, gone=case == "halting")
        if case == "halting":
            fleet.counts(totals(task, cells, **of), until=-9, gone=True)
        fleet.objectives(task, bounded, 1.0 if case == "faultless" else None, **of)
    recovered = version(f"recovered-{task}")  # good since eight minutes
    for name, rate in totals(task, wrong, **recovered).items():
        good = totals(task, GOOD[task], **recovered)[name]
        fleet.samples[name] = [
            (minute, rate * (min(minute, -8) + 2 * DAY) + good * max(minute + 8, 0)) for minute in USUAL_TIMES
        ]
    fleet.objectives(task, bounded, **recovered)


def segments(fleet: Fleet, task: str, bounded: list[catalog.MetricDefinition]) -> None:
    """A part that is worse, of many rows and of few, or better; judged by the headline, or by all metrics."""
    for case in ("judged", "plain"):
        of = version(f"segments-{case}-{task}")
        fleet.counts(totals(task, GOOD[task], **of))
        if case == "judged":
            fleet.objectives(task, bounded, **of)
        for value, share_bad, times in (
            ("DE", 1, 0.2),
            ("FR", 0, 0.2),
            ("IT", 1, 0.001),
            ("AT", 0.1, 0.1),
            ("CH", 0, 0),
        ):
            part = {"ml_segment_name": "country", "ml_segment_value": value}
            fleet.counts(totals(task, mixed(task, share_bad), times, **of, **part))


def versions(fleet: Fleet, task: str, bounded: list[catalog.MetricDefinition]) -> None:
    """A new version that is worse, as good, of few rows, silent again, or long there; and one without a predecessor."""
    # How bad both are, how many rows the second one has, since when and until when, and how long the first one serves.
    cases = {
        "worse": (0.0, 1.0, 1.0, -300, 0, -300),
        "better": (1.0, 0.0, 1.0, -300, 0, -300),
        "slightly": (0.0, 0.1, 1.0, -300, 0, -300),
        "hardly": (0.0, 0.01, 1.0, -300, 0, -300),
        "perhaps": (0.0, 0.12, 0.006, -300, 0, -300),
        "little": (0.0, 1.0, 0.002, -300, 0, -300),
        "withdrawn": (0.0, 1.0, 1.0, -600, -300, -600),
        "vanished": (0.0, 1.0, 1.0, -600, -300, -600),
        "old": (0.0, 1.0, 1.0, -1800, 0, -1800),
        "aged": (0.0, 1.0, 1.0, -1800, 0, 0),
    }
    for case, (before, after, times, born, until, replaced) in cases.items():
        old, new = (version(f"versions-{case}-{task}", number) for number in ("1", "2"))
        for of in (old, new):
            fleet.objectives(task, bounded, **of)
        fleet.counts(totals(task, mixed(task, before), **old), until=replaced)
        fleet.counts(totals(task, mixed(task, after), times, **new), born, until, gone=case == "vanished")
    of = version(f"versions-first-{task}", "2")
    fleet.counts(totals(task, BAD[task], **of), -300)


def at_the_edge(fleet: Fleet, bounded: list[catalog.MetricDefinition]) -> None:
    """Of random quality, near their objectives, with random numbers of rows."""
    chance = random.Random(7)
    for place in range(60):
        task = ("binary", "regression", "ranking")[place % 3]
        of = version(f"edge-{place}")
        times = 10 ** chance.uniform(-3, 0)
        fleet.counts(totals(task, mixed(task, chance.uniform(0, 1.2)), times, **of), -420)
        for name in ("country", "channel"):
            part = {"ml_segment_name": name, "ml_segment_value": "x"}
            share = chance.uniform(0.02, 0.5)
            fleet.counts(totals(task, mixed(task, chance.uniform(0, 1.2)), times * share, **of, **part), -420)
        fleet.objectives(task, bounded, **of)


def everywhere(fleet: Fleet) -> None:
    """Gauges of two processes, of which the better one misses the objective, or does not; with many rows or few."""
    for case, rows in (("missed", 200), ("rare", 20), ("half", 200), ("rowless", None)):
        of = version(f"everywhere-{case}")
        for metric in alerts.unbounded_metrics():
            better, worse = (0.6, 0.5) if metric.better == "higher" else (0.4, 0.5)
            task = next(iter(metric.functions))
            for instance, value in (("1", better), ("2", worse)):
                fleet.gauge(f"ml_model_{metric.name}", value, **of, **variant_of(metric, task), instance=instance)
                if rows:
                    fleet.gauge("ml_model_window_rows", rows, **of, instance=instance)
            hard, easy = (0.7, 0.55) if metric.better == "higher" else (0.3, 0.45)
            fleet.objectives(task, [metric], easy if case == "half" else hard, **of)


def inputs(fleet: Fleet) -> None:
    """What comes in too rarely, or wrongly."""

    def predictions(name: str, rate: float = 10, number: str = "1") -> dict[str, float]:
        return {series("ml_model_predictions_total", {**version(name, number), "ml_model_task": "regression"}): rate}

    def outcomes(name: str, rate: float) -> dict[str, float]:
        return {series("ml_model_outcomes_total", {**version(name), "ml_model_task": "regression"}): rate}

    fleet.counts(predictions("stopped", 100), until=-6)
    fleet.counts(predictions("gone", 100), until=-12, gone=True)
    fleet.counts(predictions("slowly-stopped", 1), until=-70)
    fleet.counts(predictions("slow", 1), until=-30)
    fleet.counts(predictions("quiet", 0.2), until=-120)
    fleet.counts(predictions("yesterday", 100), until=-DAY - 100)
    fleet.counts(predictions("new", 100), born=-10)
    fleet.counts(predictions("moved", 100), until=-120)
    fleet.counts(predictions("moved", 100, "2"), born=-120)
    for name in ("weekend", "weekday"):  # last week it stood still at this time, or did not
        fleet.counts(predictions(name, 100), until=-200)
        of = next(iter(predictions(name)))
        fleet.samples[of] = [
            *((minute, (minute + WEEK + 90) * (10 if name == "weekday" else 0)) for minute in WEEK_AGO),
            *fleet.samples[of],
        ]
    for name, rate, until in (("unlabelled", 10, -80), ("labelled", 10, 0), ("hardly-labelled", 0.1, -80)):
        fleet.counts(predictions(name) | outcomes(name, rate), until=0)
        fleet.counts(outcomes(name, rate), until=until)
    fleet.counts(predictions("unlabelled-and-idle", 0.1) | outcomes("unlabelled-and-idle", 10), until=-80)
    for name, rate, predicted in (
        ("rejected", 1, 10),
        ("hardly-rejected", 0.05, 10),
        ("seldom-rejected", 0.5, 100),
        ("rarely-rejected", 0.01, 0.1),
        ("all-rejected", 1, None),
        ("none-rejected", 0, 0),
        ("none-at-all", 0, None),
    ):
        if predicted is not None:
            fleet.counts(predictions(name, predicted))
        for reason in ("invalid_score", "unknown_class"):
            share = 1 if reason == "invalid_score" else 0.5
            of = {**version(name), "ml_reject_reason": reason}
            fleet.counts({series("ml_model_rejected_total", of): rate * share})
    for name, rate, predicted in (
        ("overflow", 2, 10),
        ("hardly-overflow", 0.1, 10),
        ("rarely-overflow", 0.5, 1),
        ("no-overflow", 0, 0),
        ("overflow-alone", 2, None),
    ):
        if predicted is not None:
            fleet.counts(predictions(name, predicted))
        fleet.counts({series("ml_model_segments_overflowed_total", {**version(name), "ml_segment_name": "user"}): rate})
    of = {"ml_model_task": "regression"}
    turns: dict[str, tuple[Callable[[int], float], int, int]] = {
        "turns": (lambda step: (1000 if step % 8 else 10) + step + 240, 4, 0),
        "third": (lambda step: (10 if step % 12 else 1000) + step + 240, 4, 0),
        "restarted": (lambda step: (step + 240) % 120, 4, 0),
        "single": (lambda step: step + 240, 4, 0),
        # Of two counters of one version one falls often, but at few of its samples; the other one the other way round.
        "between": (lambda step: (step + 240) % 10, 1, 0),
        "between-too": (lambda step: (step + 240) % 8, 4, -36),
        "seldom": (lambda step: (step + 240) % 10, 1, 0),
    }
    for name, (values, every, until) in turns.items():
        labels = {**version(name.removesuffix("-too")), **of, "instance": name}
        fleet.reads("ml_model_predictions_total", labels, values, every, until)
    fleet.counts(totals("binary", BAD["binary"], **version("unwatched")))
    fleet.counts(totals("binary", BAD["binary"], **version("unwatched", "2")), until=-90)
    fleet.counts(totals("binary", BAD["binary"], **version("half-watched")))


def elsewhere(fleet: Fleet) -> Fleet:
    """The same fleet in one region, a part of it in another one, under names with a namespace."""
    found = {}
    for place, (name, samples) in enumerate(fleet.samples.items()):
        for region, wanted in (("eu", True), ("us", place % 3 == 0)):
            if wanted:
                found["acme_" + name.replace("{", f'{{region="{region}", ', 1)] = samples
    return Fleet(found)


# What is recorded of it


class Times:
    """Moments that alerts look at; all are whole ten minutes, where a subquery looks too."""

    def __init__(self) -> None:
        self.now = int(time.time()) // 600 * 600 - 600

    def before(self, minutes: int) -> int:
        return self.now - 60 * minutes


def answer(store: Store, expression: str, at: int) -> list[tuple[dict[str, str], float]]:
    """What a store answers, asked as Grafana does: by POST, at one moment."""
    parameters = urllib.parse.urlencode({"query": expression, "time": at, "step": "60s"}).encode()
    try:
        with urllib.request.urlopen(f"{store.url}/api/v1/query", data=parameters, timeout=60) as response:
            content = json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{error.read().decode()}: {expression}") from error
    return [(one["metric"], float(one["value"][1])) for one in content["data"]["result"]]


Line = tuple[str, float, int]


def imported(store: Store, lines: Iterable[Line]) -> None:
    """Samples, in a VictoriaMetrics, where queries see them at once."""
    body = "".join(f"{name} {value!r} {at * 1000}\n" for name, value, at in lines).encode()
    urllib.request.urlopen(f"{store.url}/api/v1/import/prometheus", data=body, timeout=60).close()
    urllib.request.urlopen(f"{store.url}/internal/force_flush", timeout=60).close()


_NAME = re.compile(r"ml_model:\w+(?::\w+)?")


def in_levels(rules: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rules so that each comes after those that record what it needs."""
    needs: dict[str, set[str]] = {}
    for rule in rules:
        needs.setdefault(rule["record"], set()).update(_NAME.findall(rule["expr"]))
    levels: list[list[dict[str, Any]]] = []
    done: set[str] = set()
    while set(needs) - done:
        ready = {name for name, of in needs.items() if name not in done and of & set(needs) <= done}
        assert ready, set(needs) - done
        levels.append([rule for rule in rules if rule["record"] in ready])
        done |= ready
    return levels


def needed_by(names: set[str], rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules that record these names, and what they need themselves."""
    found: set[str] = set()
    while names - found:
        found |= names
        for rule in rules:
            if rule["record"] in found:
                names = names | set(_NAME.findall(rule["expr"]))
    return [rule for rule in rules if rule["record"] in found]


def record(store: Store, settings: Settings, times: Times) -> list[Line]:
    """What rules record for alerts, at the moments that these look at; it is in the store, too, and returned."""
    asked = {promql.recorded_name("predictions", window) for window in settings.recorded_windows}
    for group in alerts.alert_groups(settings):
        asked |= set(_NAME.findall(" ".join(rule["expr"] for rule in group["rules"])))
    # An alert needs the bound on one side, depending on the metric; twins look at both.
    asked |= {
        re.sub(r"(_lower|_upper)?(:\w+)$", rf"{suffix}\2", name) for name in asked for suffix in ("_lower", "_upper")
    }
    rules = needed_by(asked, [rule for group in recording_groups(settings) for rule in group["rules"]])
    looked_back = re.compile("ml_model:(predictions|outcomes|window_rows):(5m|1h|1d)")
    past = needed_by({rule["record"] for rule in rules if looked_back.fullmatch(rule["record"])}, rules)
    recorded: list[Line] = []
    moments = [(times.before(minutes), past) for minutes in (WEEK, 2 * DAY - 60, 1790, DAY, 590, 400, 290, 60)]
    for moment, wanted in [*moments, (times.now, rules)]:
        for level in in_levels(wanted):
            lines = []
            for rule in level:
                for labels, value in answer(store, rule["expr"], moment):
                    labels = {**labels, **rule.get("labels", {})}
                    labels.pop("__name__", None)
                    if is_watched(rule["record"], labels["ml_model_name"]):
                        labels = {label: escaped(text) for label, text in labels.items()}
                        lines.append((series(rule["record"], labels), value, moment))
            imported(store, lines)
            recorded += lines
    return recorded


def is_watched(name: str, model: str) -> bool:
    """Whether rules record this: one model has none, and of one those over a day are missing."""
    return model != "unwatched" and not (model == "half-watched" and name.endswith(":1d"))


@dataclass
class World:
    """Stores that have the same samples, and rules for them."""

    settings: Settings
    stores: dict[str, Store]
    now: int


WORLDS = {
    "shipped": (Settings(), lambda fleet: fleet),
    "split": (Settings(windows=("30m", "2h"), min_rows=50, namespace="acme", by=("region",)), elsewhere),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request, tmp_path_factory) -> Iterator[World]:
    settings, changed = WORLDS[request.param]
    folder, times = tmp_path_factory.mktemp("world"), Times()
    fleet = changed(fleet_in_trouble())
    raw = [
        (name, value, times.now + int(60 * minute))
        for name, samples in fleet.samples.items()
        for minute, value in samples
    ]
    with contextlib.ExitStack() as stack:
        victoria = stack.enter_context(victoria_metrics(folder))
        imported(victoria, raw)
        recorded = record(victoria, settings, times)
        lately = [line for line in raw if line[2] >= times.before(70)]
        blocks(folder, [*lately, *recorded])
        stored = stack.enter_context(prometheus(folder, "127.0.0.1:9"))
        yield World(settings, {"VictoriaMetrics": victoria, "Prometheus": stored}, times.now)


def compact(name: str) -> str:
    """A series as OpenMetrics has it, which knows no spaces between labels."""
    return name.replace('", ', '",')


def blocks(folder: Path, lines: Iterable[Line]) -> None:
    """Samples as Prometheus stores them."""
    text, openmetrics = sorted(lines, key=lambda line: (line[0], line[2])), folder / "samples.om"
    openmetrics.write_text("".join(f"{compact(name)} {value!r} {at}\n" for name, value, at in text) + "# EOF\n")
    command = ["tsdb", "create-blocks-from", "--max-block-duration=10d", "openmetrics", str(openmetrics)]
    done = subprocess.run(
        [binary("promtool"), *command, str(folder / "prometheus")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# Who fires


@dataclass
class Instances:
    """What a rule says at a moment."""

    firing: set[Labels] = field(default_factory=set)
    normal: set[Labels] = field(default_factory=set)


def of_prometheus(store: Store, settings: Settings, now: int) -> dict[str, set[Labels]]:
    """For each alert the labels of those for whom it fires."""
    found: dict[str, set[Labels]] = {}
    for group in alerts.alert_groups(settings):
        for rule in group["rules"]:
            firing = found.setdefault(rule["alert"], set())
            for labels, _ in answer(store, rule["expr"], now):
                labels.pop("__name__", None)
                firing.add(frozenset({**labels, **rule["labels"]}.items()))
    return found


def of_grafana(store: Store, choice: Choice, now: int) -> dict[str, Instances]:
    """The same for the twins, with those who are watched and do not fire."""
    found: dict[str, Instances] = {}
    content = yaml.safe_load(grafana_alerts.alerting_file(choice))
    for rule in (rule for group in content["groups"] for rule in group["rules"]):
        *queries, condition = rule["data"]
        numbers: dict[str, Numbers] = {}
        for query in queries:
            series_found = answer(store, query["model"]["expr"], now)
            numbers[query["refId"]] = {frozenset(labels.items()): value for labels, value in series_found}
            assert len(series_found) == len(numbers[query["refId"]])
        check_numbers(rule["title"], numbers)
        decided = grafana_math(condition["model"]["expression"], numbers)
        assert decided.keys() == numbers["A"].keys(), rule["title"]
        extra = {label: value for label, value in rule["labels"].items() if label != "alert"}
        instances = found.setdefault(rule["labels"]["alert"], Instances())
        for labels, value in decided.items():
            # Grafana takes whatever is not 0 for firing, NaN as well
            side = instances.normal if value == 0 else instances.firing
            side.add(frozenset({**dict(labels), **extra}.items()))
    return found


def check_numbers(title: str, numbers: dict[str, Numbers]) -> None:
    """Every query has the same series, none has a name, and every value is a number."""
    for letter, values in numbers.items():
        assert numbers["A"].keys() == values.keys(), f"{title}, {letter}: {numbers['A'].keys() ^ values.keys()}"
        assert not any(label == "__name__" for labels in values for label, _ in labels), f"{title}, {letter}"
        assert all(map(math.isfinite, values.values())), f"{title}, {letter}"


@pytest.mark.parametrize("name", ["VictoriaMetrics", "Prometheus"])
def test_twins_fire_for_whom_the_alerts_of_prometheus_fire(world, name):
    """
    For the same models, versions, metrics, windows, segments and reasons, and for nobody else.
    """
    store = world.stores[name]
    expected = of_prometheus(store, world.settings, world.now)
    twins = of_grafana(store, Choice(world.settings), world.now)

    missing = twins.pop(grafana_alerts.RULES_MISSING)
    assert expected.keys() == twins.keys()
    for alert, firing in expected.items():
        assert readable(firing) == readable(twins[alert].firing), alert
        assert twins[alert].normal, f"{alert} fires for all that it watches"
    assert {"unwatched", "half-watched"} == {dict(labels)["ml_model_name"] for labels in missing.firing}
    assert len(missing.normal) > 50


def readable(instances: Iterable[Labels]) -> list[str]:
    return sorted(series("", dict(labels)) for labels in instances)


@pytest.mark.parametrize("name", ["VictoriaMetrics", "Prometheus"])
def test_every_rule_of_prometheus_fires_in_this_fleet(world, name):
    """
    For every metric and window; so the comparison above says something of each.
    """
    found = of_prometheus(world.stores[name], world.settings, world.now)
    fired = {
        (alert, dict(labels).get("ml_metric"), dict(labels).get("window"))
        for alert, firing in found.items()
        for labels in firing
    }
    rules = [rule for group in alerts.alert_groups(world.settings) for rule in group["rules"]]

    assert {(rule["alert"], rule["labels"].get("ml_metric"), rule["labels"].get("window")) for rule in rules} == fired
