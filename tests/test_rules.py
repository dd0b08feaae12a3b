"""
Recording rules, evaluated by Prometheus over three processes, against the values of one process that saw all rows.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from backends import binary
from conftest import Exports
from promtool import ALERTS, RULES, Case, needed, run, series, shipped_groups
from test_laws import picked
from test_oracles import KS, SCENARIOS, monitor_of, record_batch

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import prometheus_label
from otel_model_metrics.provisioning import promql, rules
from otel_model_metrics.provisioning.promql import Scope, recorded_name

for_every_task = pytest.mark.parametrize("task", catalog.TASKS)
SETTINGS = rules.Settings()
WINDOWS = ("5m", "1h", "6h", "1d")
STEPS = 30  # in a window

Labels = frozenset[tuple[str, str]]


def prometheus(attributes: Any) -> dict[str, str]:
    return {prometheus_label(name): value for name, value in dict(attributes).items()}


class Fleet:
    """Processes with the same model, and one more that is given the rows of all."""

    def __init__(self, make: Any, task: str, processes: int = 3, scenario: str = "any") -> None:
        self.task = task
        rows = SCENARIOS[task][scenario](np.random.default_rng(3))
        share = np.random.default_rng(4).integers(0, processes, len(rows))
        self.stored: dict[str, float] = {}
        for process in range(processes):
            exports = Exports()
            monitor = monitor_of(
                lambda kind, name, exports=exports, **settings: make(
                    kind, name, meter_provider=exports.provider, version="1", **settings
                ),
                task,
                rows,
                "model",
            )
            record_batch(monitor, picked(rows, np.flatnonzero(share == process).tolist()))
            exports.collect()  # series are born at zero
            for total in (*catalog.totals_of(task), *catalog.COUNTS):
                for attributes, value in exports.collect().get(total.instrument, {}).items():
                    labels = {**prometheus(attributes), "instance": str(process)}
                    self.stored[series(promql.counter_name(total.name), labels)] = value
            monitor.close()
        everything = Exports()
        self.whole = monitor_of(
            lambda kind, name, **settings: make(
                kind, name, meter_provider=everything.provider, version="1", **settings
            ),
            task,
            rows,
            "model",
        )
        record_batch(self.whole, rows)
        everything.collect()
        self.exported = everything.collect()
        self.rows = rows

    def growing(self, steps: int) -> dict[str, str]:
        """What is stored if each process records the same rows again at every step."""
        return {name: f"0+{Decimal(repr(value)):f}x{steps}" for name, value in self.stored.items()}

    def totals(self, name: str, times: int) -> Iterator[tuple[dict[str, str], float]]:
        """The total of the fleet, recorded so many times over."""
        for attributes, value in self.exported.get(catalog.NAMESPACE + name, {}).items():
            yield prometheus(attributes), value * times

    def values(self, name: str, times: int, *, every_segment: bool = False) -> Iterator[tuple[dict[str, str], float]]:
        """The values of a metric or bound by the catalogue's functions over arrays, if every row came so many times."""
        reading, _, naming = self.whole.collect()
        sums = {key: value * times for key, value in reading.totals.items()}
        sums = {**catalog.statistics_of(self.task, sums), "age": np.zeros(1)}
        metric = catalog.BY_NAME[name.removesuffix(catalog.LOWER).removesuffix(catalog.UPPER)]
        groups = len(reading.segments) if metric.in_segments or every_segment else 1
        if name == metric.name:
            found = metric.values(self.task, sums, lambda group: {}, groups)
        else:
            interval = metric.intervals[self.task]
            bounds = interval(**metric._select(interval, self.task, sums))  # of every segment, not the whole only
            found = np.asarray(bounds[0] if name.endswith(catalog.LOWER) else bounds[1])[:groups]
        by = metric.by.get(self.task)
        for group in range(groups):
            labels = {
                "ml_model_name": "model",
                "ml_model_version": "1",
                "ml_model_task": self.task,
                **_segment(reading.segments[group]),
            }
            if by == "k":
                ks = KS if self.task == "ranking" else KS[:2]
                yield from (({**labels, "ml_k": str(k)}, value) for k, value in zip(ks, found[group], strict=True))
            elif by == "class":
                for average, function in catalog.AVERAGES.items():
                    yield {**labels, "ml_average": average}, function(found, sums["support"][: len(found)])[group]
                if group == 0 or every_segment:
                    for class_, value in zip(naming.classes, found[group], strict=True):
                        yield {**labels, "ml_class": class_}, value
            else:
                yield labels, found[group]

    def roles(self, role: str, times: int) -> Iterator[tuple[dict[str, str], float]]:
        """Rows of each class as label, as prediction, as both."""
        reading, _, naming = self.whole.collect()
        sums = catalog.statistics_of(self.task, reading.totals)
        of = {"labels": "support", "predictions": "predicted", "correct": "tp"}[role]
        for group, segment in enumerate(reading.segments):
            for class_, value, seen in zip(
                naming.classes, sums[of][group], sums["support"][group] + sums["predicted"][group], strict=True
            ):
                if seen:
                    labels = {"ml_model_name": "model", "ml_model_version": "1", "ml_class": class_}
                    yield {**labels, **_segment(segment)}, value * times


def _segment(segment: Any) -> dict[str, str]:
    return {} if segment is None else dict(zip(promql.SEGMENT, segment, strict=True))


def defined(samples: Iterator[tuple[dict[str, str], float]]) -> list[tuple[dict[str, str], float]]:
    return [(labels, value) for labels, value in samples if math.isfinite(value)]


def digits_for(samples: list[tuple[dict[str, str], float]]) -> int:
    """Digits after the point that leave nine in all, for rounding differs in the last ones."""
    largest = max((abs(value) for _, value in samples), default=1.0)
    return 9 - max(0, math.ceil(math.log10(largest))) if largest > 1 else 9


def expectations(fleet: Fleet, window: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every recorded series of a window, by name."""
    times = STEPS
    expected: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for name in dict.fromkeys(total.name for total in catalog.TOTALS):
        drop = () if "ml_model_task" in promql.labels_of_total(name) else ("ml_model_task",)
        expected[recorded_name(name, window)] = [
            ({key: value for key, value in labels.items() if key not in drop}, value)
            for labels, value in fleet.totals(name, times)
        ]
    for count in catalog.COUNTS:
        expected[recorded_name(count.name, window)] = list(fleet.totals(count.name, times))
    for role in promql.ROLES:
        expected[recorded_name(f"class_{role}", window)] = (
            list(fleet.roles(role, times)) if fleet.task == "multiclass" else []
        )
    for metric, task in rules.fleet_metrics():
        for suffix in ("", *(catalog.BOUNDS if task in metric.intervals else ())):
            name = recorded_name(metric.name + suffix, window)
            found = defined(fleet.values(metric.name + suffix, times)) if task == fleet.task else []
            expected[name] += found
    return expected


@for_every_task
@pytest.mark.parametrize("window", WINDOWS)
def test_every_recorded_value_is_that_of_one_process_that_saw_all_rows(make, tmp_path, task, window):
    """
    Totals, metrics, bounds, averages, classes, cut-offs and segments; nothing else is recorded.
    """
    fleet = Fleet(make, task)
    step = promql.seconds(window) // STEPS
    case = Case(f"{task} over {window}", fleet.growing(STEPS + 2), interval=f"{step}s")
    expected = expectations(fleet, window)
    for name, samples in expected.items():
        case.expect(name, f"{step * (STEPS + 1)}s", samples, digits_for(samples))

    assert "" == run(tmp_path, [case], [RULES], interval=f"{step}s")

    recorded = {rule["record"] for group in rules.recording_groups(SETTINGS) for rule in group["rules"]}
    assert {name for name in recorded if name.endswith(f":{window}")} == set(expected)


EDGES = [
    ("binary", "labels all positive"),
    ("binary", "predictions all negative"),
    ("multiclass", "labels of one class"),
    ("multiclass", "labels and predictions of different classes"),
    ("regression", "one wild error"),
    ("regression", "predictions all right"),
    ("ranking", "no hit"),
]


@pytest.mark.parametrize(("task", "scenario"), EDGES)
def test_what_is_undefined_in_a_process_is_absent_from_the_fleet(make, tmp_path, task, scenario):
    """
    A class never predicted, no error, no hit: the same values and the same gaps.
    """
    fleet = Fleet(make, task, scenario=scenario)
    case = Case(scenario, fleet.growing(STEPS + 2), interval="2m")
    for name, samples in expectations(fleet, "1h").items():
        case.expect(name, f"{2 * (STEPS + 1)}m", samples, digits_for(samples))

    assert "" == run(tmp_path, [case], [RULES], interval="2m")


@for_every_task
@pytest.mark.parametrize("segments", [False, True])
def test_queries_that_need_no_rule_give_the_same_values(make, tmp_path, task, segments):
    """
    What panels ask for goes to the counters themselves.
    """
    fleet = Fleet(make, task)
    case = Case(task, fleet.growing(STEPS + 2), interval="2m")
    statistics = promql.statistics(task, promql.Counters("1h"), Scope(segments=segments))
    asked = 0
    for metric, of in rules.fleet_metrics():
        for quantity in promql.quantities(metric, of, statistics) if of == task else ():
            samples = [
                ({name: value for name, value in labels.items() if name not in ("ml_model_task", "ml_average")}, value)
                for labels, value in defined(fleet.values(quantity.name, STEPS, every_segment=segments))
                if labels.get("ml_average", "") == quantity.average
                and ("ml_class" in labels) == quantity.per_class
                and (segments or "ml_segment_name" not in labels)
            ]
            case.expect(str(quantity.expression), f"{2 * (STEPS + 1)}m", samples, digits_for(samples))
            asked += 1

    assert asked >= 10
    assert "" == run(tmp_path, [case], [], interval="2m")


@pytest.mark.parametrize("task", ["binary", "multiclass", "ranking"])
def test_the_error_budget_of_a_month_is_what_its_hours_left(make, tmp_path, task):
    """
    Of a month with the same traffic every hour: 1 - errors / allowed errors, for metrics that are a share of rows.
    """
    # promtool loads few samples at a time: so few cells, and no segments, which a month has none of anyway
    fleet = Fleet(make, task, scenario="labels of one class" if task == "multiclass" else "any")
    stored = {name: values for name, values in fleet.growing(31 * 144).items() if "ml_segment_name" not in name}
    of_model = {"ml_model_name": "model", "ml_model_version": "1"}
    expected: dict[str, list[Any]] = defaultdict(list)
    for metric, of in rules.fleet_metrics():
        if of != task or not metric.events:
            continue
        for labels, value in fleet.values(metric.name, 1):
            if "ml_segment_name" in labels or "ml_class" in labels or not math.isfinite(value):
                continue
            expected[metric.name].append((labels, value))
            if labels.get("ml_average") == "weighted":
                continue  # objectives of a metric by class are for its macro average
            variant = {name: labels[name] for name in ("ml_average", "ml_k") if name in labels}
            objective = {**of_model, **variant, "ml_metric": metric.name}
            stored[series("ml_model_objective", objective)] = f"0.9x{31 * 144}"
            expected["error_budget_left"].append(({**objective, "ml_model_task": task}, 1 - (1 - value) / (1 - 0.9)))
    case = Case(task, stored, interval="10m")
    for name in {"error_budget_left", *(metric.name for metric, _ in rules.fleet_metrics() if metric.events)}:
        case.expect(recorded_name(name, "30d"), "31d", expected[name], 6)

    assert "" == run(tmp_path, [case], [needed(tmp_path, *(one["expr"] for one in case.expressions))], interval="1h")
    assert expected["error_budget_left"]


def test_the_newest_version_is_told_from_the_one_it_replaced(tmp_path):
    """
    By the time at which each was first seen with rows; a version that is a day old is new no more.
    """

    def rows(version: str, start: int, end: int) -> dict[str, str]:
        labels = {"ml_model_name": "model", "ml_model_version": version, "ml_model_task": "regression"}
        growing = f"_x{start} " * (start > 0) + f"0+10x{end - start}"
        return {series("ml_model_outcomes_total", labels): growing}

    # Steps of 10 minutes: 1 serves for two days, 2 from then on, and 3 beside it for the last hours of the fifth day.
    case = Case("versions", {**rows("1", 0, 288), **rows("2", 288, 720), **rows("3", 680, 720)}, interval="10m")

    def version(number: str) -> dict[str, str]:
        return {"ml_model_name": "model", "ml_model_version": number}

    day = 86400.0
    case.expect(rules.NEWEST, "12h", [(version("1"), 600.0)])
    case.expect(rules.NEWEST, "36h", [])
    case.expect(rules.NEWEST, "60h", [(version("2"), 2 * day + 600)])
    case.expect(rules.REPLACED, "60h", [(version("1"), 600.0)])
    case.expect(rules.NEWEST, "100h", [])
    case.expect(rules.NEWEST, "118h", [(version("3"), 680 * 600 + 600.0)])
    case.expect(rules.REPLACED, "118h", [(version("2"), 2 * day + 600)])

    assert "" == run(tmp_path, [case], [needed(tmp_path, rules.NEWEST, rules.REPLACED)], interval="10m")


@for_every_task
def test_a_model_is_judged_by_its_headline_and_by_what_it_has_objectives_for(make, tmp_path, task):
    """
    So segments and versions of every model are compared, and no objective switches that off.
    """
    fleet = Fleet(make, task)
    without, having = ({"ml_model_name": "model", "ml_model_version": version} for version in ("1", "2"))
    stored = {name.replace('version="1"', f'version="{v}"'): of for v in "12" for name, of in fleet.growing(40).items()}
    metric = next(
        metric
        for metric, of in rules.fleet_metrics()
        if of == task and metric.in_segments and metric.better and not metric.headline
    )
    variant = {"class": {"ml_average": "macro"}, "k": {"ml_k": "10"}}.get(metric.by.get(task, ""), {})
    stored[series("ml_model_objective", {**having, **variant, "ml_metric": metric.name})] = "0.9x40"
    headline = next(metric for metric in catalog.metrics_of(task) if metric.headline)
    case = Case(task, stored, interval="48m")
    case.expect(
        rules.JUDGED,
        "1492m",
        [
            ({**without, "ml_metric": headline.name}, 1.0),
            ({**having, "ml_metric": headline.name}, 1.0),
            ({**having, **variant, "ml_metric": metric.name}, 1.0),
        ],
    )

    assert "" == run(tmp_path, [case], [needed(tmp_path, rules.JUDGED)], interval="4m")


def test_the_rules_are_in_an_order_in_which_each_needs_only_earlier_ones():
    """
    Within a group Prometheus evaluates one after the other: so all of a window rest on the same sums.
    """
    for group in shipped_groups(RULES)[: len(WINDOWS)]:
        known: set[str] = set()
        for rule in group["rules"]:
            needed = set(re.findall(r"ml_model:\w+:\w+", rule["expr"]))
            assert needed <= known, rule["record"]
            known.add(rule["record"])


def test_prometheus_and_vmalert_accept_the_shipped_files():
    """
    Without a warning, duplicates included.
    """
    for command in (
        [binary("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(RULES), str(ALERTS)],
        [binary("vmalert"), "-dryRun", f"-rule={RULES}", f"-rule={ALERTS}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert 0 == done.returncode, done.stdout + done.stderr
