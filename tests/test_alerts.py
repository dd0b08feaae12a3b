"""
Alerts, evaluated by Prometheus: each fires when it should, and stays quiet when there is little data, no objective, no
evidence, or only a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from promtool import ALERTS, Case, needed, run, series, shipped_groups, written
from statsmodels.stats.proportion import proportions_ztest

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import escaped, prometheus_name
from otel_model_metrics.provisioning import alerts, promql
from otel_model_metrics.provisioning.expressions import Expression

MODEL = {"ml_model_name": "model", "ml_model_version": "1"}
CELLS = {
    "tp": ("positive", "positive"),
    "fn": ("positive", "negative"),
    "fp": ("negative", "positive"),
    "tn": ("negative", "negative"),
}
# What each task counts in a minute, of good and of bad quality; objectives are between the two.
GOOD: dict[str, dict[str, float]] = {
    "binary": {"tp": 45, "fn": 5, "fp": 5, "tn": 45},
    "multiclass": {"tp": 45, "fn": 5, "fp": 5, "tn": 45},
    "regression": {"n": 100, "over": 50, "under": 50, "squared": 150, "fourth": 500},
    "ranking": {"n": 100, "sum": 80, "squared": 70},
}
BAD: dict[str, dict[str, float]] = {
    "binary": {"tp": 25, "fn": 25, "fp": 25, "tn": 25},
    "multiclass": {"tp": 25, "fn": 25, "fp": 25, "tn": 25},
    "regression": {"n": 100, "over": 250, "under": 50, "squared": 1500, "fourth": 50000},
    "ranking": {"n": 100, "sum": 30, "squared": 20},
}
OBJECTIVES = {"mae": 2.0, "mse": 5.0, "rmse": 2.0, "mean_error": 1.0, **dict.fromkeys(["f1", "accuracy"], 0.7)}


def growing(per_minute: float, minutes: int, start: int = 0) -> str:
    """A counter, in promtool's notation; before `start` there is no series."""
    return (f"_x{start} " if start else "") + f"0+{per_minute:g}x{minutes - start}"


def totals(task: str, counts: dict[str, float], times: float = 1.0, **labels: str) -> dict[str, float]:
    """Every total of a task by series, as it grows in a minute."""
    task_label = {"ml_model_task": task}
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(name: str, value: float, **more: str) -> None:
        found[promql.counter_name(name), tuple({**MODEL, **task_label, **labels, **more}.items())] = value * times

    if task in ("binary", "multiclass"):
        names = (
            {"positive": "positive", "negative": "negative"} if task == "binary" else {"positive": "a", "negative": "b"}
        )
        for cell, (actual, predicted) in CELLS.items():
            outcome = "correct" if actual == predicted else "wrong"
            add(
                "outcomes",
                counts[cell],
                ml_class_actual=names[actual],
                ml_class_predicted=names[predicted],
                ml_outcome=outcome,
            )
        add("predictions", counts["tp"] + counts["fp"], ml_class_predicted=names["positive"])
        add("predictions", counts["tn"] + counts["fn"], ml_class_predicted=names["negative"])
    else:
        add("outcomes", counts["n"])
        add("predictions", counts["n"])
    if task == "regression":
        add("error.absolute", counts["over"], ml_error_direction="over")
        add("error.absolute", counts["under"], ml_error_direction="under")
        add("error.squared", counts["squared"])
        add("error.fourth", counts["fourth"])
    if task == "ranking":
        add("rank.reciprocal", counts["sum"])
        add("rank.reciprocal_squared", counts["squared"])
        for total in catalog.totals_of("ranking"):
            if "ml_k" in promql.labels_of_total(total.name):
                add(total.name, counts["sum"], ml_k="10")
    return {series(name, dict(of)): value for (name, of), value in found.items()}


def stored(per_minute: dict[str, float], minutes: int, start: int = 0) -> dict[str, str]:
    return {name: growing(value, minutes, start) for name, value in per_minute.items()}


def restarted(per_minute: dict[str, float], minutes: int) -> dict[str, str]:
    """Counters that begin at 0 again, twenty minutes before the end."""
    return {name: f"0+{value:g}x{minutes - 20} 0+{value:g}x20" for name, value in per_minute.items()}


def restarts(data: dict[str, str], minute: int) -> dict[str, str]:
    """The same counters, of which those that still grow at this minute begin at 0 again."""
    found = {}
    for name, values in data.items():
        parts = re.fullmatch(r"(?:_x(\d+) )?0\+([\d.e+-]+)x(\d+)", values)
        start = int(parts[1] or 0) if parts else 0
        if parts and start + int(parts[3]) > minute:
            before, after = minute - start, start + int(parts[3]) - minute
            values = (f"_x{start} " if start else "") + f"0+{parts[2]}x{before} 0+{parts[2]}x{after}"
        found[name] = values
    return found


def variant_of(metric: catalog.MetricDefinition, task: str) -> dict[str, str]:
    return {"class": {"ml_average": "macro"}, "k": {"ml_k": "10"}}.get(str(metric.by.get(task)), {})  # type: ignore[call-overload]


def objective(metric: catalog.MetricDefinition, task: str, level: float, minutes: int, **labels: str) -> dict[str, str]:
    attributes = {**MODEL, **variant_of(metric, task), "ml_metric": metric.name, **labels}
    return {series("ml_model_objective", attributes): f"{level}x{minutes}"}


def level_of(metric: catalog.MetricDefinition, task: str) -> float:
    return OBJECTIVES.get(metric.name, 0.55 if task == "ranking" else 0.7)


SHIPPED = [rule for group in shipped_groups(ALERTS) for rule in group["rules"]]


def rules_of(name: str, **labels: str) -> list[dict[str, Any]]:
    """The shipped rules of an alert."""
    found = [rule for rule in SHIPPED if rule["alert"] == name and labels.items() <= rule["labels"].items()]
    assert found, f"{name} {labels or ''} is not in the shipped alerts: make docs"
    return found


def evaluated(
    folder: Path, shipped: Iterable[dict[str, Any]], cases: list[Case], interval: str = "1m", *, messages: bool = False
) -> str:
    """What promtool finds wrong with some alert rules and the recording rules they need."""
    shipped = [dict(rule) for rule in shipped]
    texts = [rule["expr"] for rule in shipped]
    if messages:
        texts += [text for rule in shipped for text in rule["annotations"].values()]
    else:
        for rule in shipped:
            del rule["annotations"]
    group = {"name": "alerts", "interval": "1m", "rules": shipped}
    recording = needed(folder, *texts)
    return run(folder, cases, [recording, written(folder, [group], "alerts.yaml")], interval)


def fires(rule: dict[str, Any], **labels: str) -> dict[str, Any]:
    return {"exp_labels": {**rule["labels"], **labels}}


# Below the objective


def cases_of_quality(metric: catalog.MetricDefinition, task: str, rule: dict[str, Any]) -> list[Case]:
    minutes = promql.seconds(rule["labels"]["window"]) // 60
    # Windows are told apart by their steps, not by their length in seconds: fifteen minutes beyond the window.
    total, at = minutes + 40, f"{minutes + 30}m"
    level = objective(metric, task, level_of(metric, task), total)
    firing = fires(rule, **MODEL, ml_model_task=task, **variant_of(metric, task))
    bad, good = totals(task, BAD[task]), totals(task, GOOD[task])

    def case(name: str, data: dict[str, str], *firing: Any) -> Case:
        made = Case(f"{rule['alert']} {name} ({metric.name}, {task})", data)
        made.expect_alert(rule["alert"], at, *firing)
        return made

    few = {name: value * 0.9 * 100 / minutes / 100 for name, value in bad.items()}
    silent = dict.fromkeys(bad, 0.0)
    restarted = {name: f"0+{value:g}x{minutes - 20} 0+{value:g}x{total - minutes + 20}" for name, value in good.items()}
    restarted_bad = {
        name: f"0+{value:g}x{minutes - 20} 0+{value:g}x{total - minutes + 20}" for name, value in bad.items()
    }
    cases = [
        case("fires when both bounds are beyond the objective", {**stored(bad, total), **level}, firing),
        case("fires though a process was restarted", {**restarted_bad, **level}, firing),
        case("stays quiet when quality is good", {**stored(good, total), **level}),
        case("stays quiet when there are few rows", {**stored(few, total), **level}),
        case("stays quiet when there is no objective", stored(bad, total)),
        case("stays quiet when nothing is labelled", {**stored(silent, total), **level}),
        case("stays quiet when a good process was restarted", {**restarted, **level}),
        case(
            "stays quiet when only another version has an objective",
            {**stored(bad, total), **objective(metric, task, level_of(metric, task), total, ml_model_version="2")},
        ),
    ]
    return cases


QUALITY = [
    pytest.param(metric, task, window, id=f"{metric.name}, {task}, {window}")
    for metric in alerts.bounded_metrics()
    for task in metric.functions
    for window in ("1h", "6h")
]


@pytest.mark.parametrize(("metric", "task", "window"), QUALITY)
def test_quality_below_its_objective_is_told_with_confidence_only(tmp_path, metric, task, window):
    """
    Every metric that has bounds, over both windows; the objective is the one set in code.
    """
    (rule,) = rules_of("ModelQualityBelowObjective", ml_metric=metric.name, window=window)

    assert "" == evaluated(tmp_path, [rule], cases_of_quality(metric, task, rule), "1m" if window == "1h" else "3m")


def test_quality_that_may_be_chance_is_no_alert(tmp_path):
    """
    Of 120 rows 80 % are right: below the objective of 88 %, but so are some samples of a model that has 88 %, and
    alerts look every minute.
    """
    (rule,) = rules_of("ModelQualityBelowObjective", ml_metric="accuracy", window="1h")
    data = stored(totals("binary", {"tp": 0.8, "fn": 0.2, "fp": 0.2, "tn": 0.8}), 100)
    metric = catalog.BY_NAME["accuracy"]
    possible, not_possible = (
        Case(f"an objective of {level}", {**data, **objective(metric, "binary", level, 100)}) for level in (0.88, 0.95)
    )
    possible.expect_alert(rule["alert"], "90m")
    not_possible.expect_alert(rule["alert"], "90m", fires(rule, **MODEL, ml_model_task="binary"))

    assert "" == evaluated(tmp_path, [rule], [possible, not_possible])


def test_a_failed_scrape_does_not_end_an_alert(tmp_path):
    """
    Nor does the restart of the only process: its objective is gone for a moment, and so is its last counter.
    """
    (rule,) = rules_of("ModelQualityBelowObjective", ml_metric="accuracy", window="1h")
    data = stored(totals("binary", confusion(0.5, 100)), 140)
    set_in_code = objective(catalog.BY_NAME["accuracy"], "binary", 0.9, 140)
    with_gap = {name: "0.9x59 stale _x4 0.9x60" for name in set_in_code}
    case = Case("a gap of five minutes", {**data, **with_gap})
    for minute in (50, 60, 62, 65, 70, 90):
        case.expect_alert(rule["alert"], f"{minute}m", fires(rule, **MODEL, ml_model_task="binary"))
    gone = Case("gone for good", {**data, **{name: "0.9x59 stale" for name in set_in_code}})
    gone.expect_alert(rule["alert"], "120m")

    assert "" == evaluated(tmp_path, [rule], [case, gone])


def test_every_metric_can_miss_its_objective(tmp_path):
    """
    A metric has an alert that knows its bounds over the fleet, or one that looks at every process.
    """
    judged = {
        rule["labels"]["ml_metric"]
        for rule in (*rules_of("ModelQualityBelowObjective"), *rules_of("ModelObjectiveMissedEverywhere"))
    }

    assert judged == {metric.name for metric in catalog.METRICS if metric.better}, "make docs"


@pytest.mark.parametrize(
    "rule", rules_of("ModelObjectiveMissedEverywhere"), ids=lambda rule: rule["labels"]["ml_metric"]
)
def test_an_objective_missed_by_every_process_is_told(tmp_path, rule):
    """
    For what no totals give; one process that reaches it is enough to stay quiet, for then the fleet may too.
    """
    metric = catalog.BY_NAME[rule["labels"]["ml_metric"]]
    task = next(iter(metric.functions))
    variant = variant_of(metric, task)
    name = prometheus_name(catalog.NAMESPACE + metric.name, metric.unit, "gauge")
    miss, hit = ("0.5", "0.8") if metric.better == "higher" else ("0.8", "0.5")
    level = objective(metric, task, 0.7, 100)

    def data(one: str, other: str, rows: int) -> dict[str, str]:
        return {
            series(name, {**MODEL, **variant, "instance": "1"}): f"{one}x100",
            series(name, {**MODEL, **variant, "instance": "2"}): f"{other}x100",
            series("ml_model_window_rows", {**MODEL, "instance": "1"}): f"{rows}x100",
            series("ml_model_window_rows", {**MODEL, "instance": "2"}): f"{rows}x100",
        }

    cases = {
        "fires when every process misses it": ({**data(miss, miss, 60), **level}, True),
        "stays quiet when one process reaches it": ({**data(miss, hit, 60), **level}, False),
        "stays quiet when there are few rows": ({**data(miss, miss, 40), **level}, False),
        "stays quiet when there is no objective": (data(miss, miss, 60), False),
        "stays quiet when the value is undefined": (
            {name: values for name, values in data(miss, miss, 60).items() if "rows" in name} | level,
            False,
        ),
    }
    made = []
    for promise, (content, firing) in cases.items():
        case = Case(f"{rule['alert']} {promise}", content)
        case.expect_alert(rule["alert"], "90m", *([fires(rule, **MODEL, **variant)] if firing else []))
        case.expect_alert(rule["alert"], "20m")  # not before it has lasted
        made.append(case)

    assert "" == evaluated(tmp_path, [rule], made)


# Burn of the error budget

# Shares of wrong rows at which errors come faster than the objective allows: 14.4 and 6 times, or what is possible.
BURNS = {0.8: (0.6, 0.4), 0.9: (0.55, 0.325), 0.95: (0.525, 0.2875), 0.99: (0.144, 0.06)}


EVENTS = [metric for metric in alerts.bounded_metrics() if metric.events]
BURNT = [
    pytest.param(metric, name, level, id=f"{name}, {metric.name}, {level}")
    for name in ("ModelErrorBudgetFastBurn", "ModelErrorBudgetSlowBurn")
    for metric in EVENTS
    for level in (BURNS if metric.name == "accuracy" else [0.9])
]


@pytest.mark.parametrize(("metric", "name", "level"), BURNT)
def test_errors_that_use_up_the_budget_fast_are_told_whatever_the_objective(tmp_path, metric, name, level):
    """
    Just above the threshold it fires, just below it does not; at an objective of 90 % too, where 14.4 times as many
    errors as allowed cannot happen.
    """
    (rule,) = rules_of(name, ml_metric=metric.name)
    task = "ranking" if "ranking" in metric.functions else "binary"
    wrong = BURNS[level]["Slow" in name]
    minutes = promql.seconds(rule["labels"]["window"]) // 60
    total, at = minutes + 150, f"{minutes + 145}m"
    set_in_code = objective(metric, task, level, total)

    def traffic(share: float, n: float = 1000) -> dict[str, float]:
        right = (1 - share) * n
        if task == "ranking":
            return totals(task, {"n": n, "sum": right, "squared": right})
        return totals(task, {"tp": right, "fn": share * n, "fp": share * n, "tn": right})

    def case(promise: str, data: dict[str, str], *firing: Any) -> Case:
        made = Case(f"{name} {promise} ({metric.name} at {level})", data)
        made.expect_alert(name, at, *firing)
        return made

    firing = fires(rule, **MODEL, ml_model_task=task, **variant_of(metric, task))
    good = traffic(0.0)
    ended = {
        series_name: f"0+{value:g}x{total - 110} {value * (total - 110):g}+{good[series_name]:g}x110"
        for series_name, value in traffic(min(1.0, wrong * 1.6)).items()
    }
    cases = [
        case("fires just above its threshold", {**stored(traffic(wrong * 1.03), total), **set_in_code}, firing),
        case("fires when every row is wrong", {**stored(traffic(1.0), total), **set_in_code}, firing),
        case("stays quiet just below it", {**stored(traffic(wrong * 0.97), total), **set_in_code}),
        case("stays quiet when there are few rows", {**stored(traffic(1.0, n=45 / minutes), total), **set_in_code}),
        case("stays quiet when there is no objective", stored(traffic(1.0), total)),
        case("stays quiet when nothing is labelled", {**stored(dict.fromkeys(good, 0.0), total), **set_in_code}),
        case("stays quiet when it is over", {**ended, **set_in_code}),
        case("stays quiet when a good process is restarted", {**restarted(good, total), **set_in_code}),
        case("fires though a process is restarted", {**restarted(traffic(1.0), total), **set_in_code}, firing),
    ]

    assert "" == evaluated(tmp_path, [rule], cases, "1m" if minutes == 60 else "3m")


def test_the_speed_of_burn_can_happen_at_every_objective(tmp_path):
    """
    The threshold is above 0 and below the objective, so between 1 and 1 / budget times the errors allowed.
    """
    levels = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
    stored_levels = {series("level", {"objective": str(level)}): f"{level}x5" for level in levels}
    case = Case("levels", stored_levels)
    for factor, share in ((alerts.FAST_BURN, alerts.FAST_SHARE), (alerts.SLOW_BURN, alerts.SLOW_SHARE)):
        threshold = str(alerts.burn_level(Expression("level", ["objective"]), factor, share))
        speed = f"(1 - ({threshold})) / (1 - level)"
        for impossible in (f"{speed} <= 1", f"{speed} >= 1 / (1 - level)", f"{speed} > {factor} + 1e-6"):
            case.expressions.append({"expr": impossible, "eval_time": "2m", "exp_samples": []})
        case.expect(
            f"{speed} > 1", "2m", [({"objective": str(v)}, min(factor, (1 - share * v) / (1 - v))) for v in levels], 6
        )

    assert "" == run(tmp_path, [case], [])


# Comparisons


def test_a_segment_worse_than_its_model_is_told(tmp_path):
    """
    Beyond chance, by 5 % of the model's value at least, with enough rows of the segment.
    """
    (rule,) = rules_of("ModelSegmentWorse", ml_metric="accuracy")
    accuracy = catalog.BY_NAME["accuracy"]
    total, at = 400, "390m"

    def traffic(share_right: float, n: float) -> dict[str, float]:
        return {
            "tp": share_right * n / 2,
            "fn": (1 - share_right) * n / 2,
            "fp": (1 - share_right) * n / 2,
            "tn": share_right * n / 2,
        }

    def data(of_segment: float, n: float, others: float = 10) -> dict[str, str]:
        rest = traffic(0.9, others)
        part = traffic(of_segment, n)
        whole = {cell: rest[cell] + part[cell] for cell in CELLS}
        segment = {"ml_segment_name": "country", "ml_segment_value": "DE"}
        others = {"ml_segment_name": "country", "ml_segment_value": "FR"}
        return stored(
            totals("binary", whole) | totals("binary", part, **segment) | totals("binary", rest, **others), total
        )

    def case(promise: str, content: dict[str, str], *firing: Any) -> Case:
        made = Case(f"ModelSegmentWorse {promise}", content)
        made.expect_alert("ModelSegmentWorse", at, *firing)
        return made

    of_f1 = objective(catalog.BY_NAME["f1"], "binary", 0.5, total)
    of_accuracy = objective(accuracy, "binary", 0.5, total)
    firing = fires(rule, **MODEL, ml_model_task="binary", ml_segment_name="country", ml_segment_value="DE")
    cases = [
        case("fires when a segment is clearly worse", data(0.7, 2), firing),
        case("fires when accuracy is what the model is judged by", {**data(0.7, 2), **of_accuracy}, firing),
        case("fires when there is an objective for another metric only", {**data(0.7, 2), **of_f1}, firing),
        case("stays quiet when the difference is certain but small", data(0.88, 100, others=1000)),
        case("fires when there are a third more errors", data(0.86, 100, others=1000), firing),
        case("stays quiet when it may be chance", data(0.8, 0.35)),
        case("stays quiet when the segment has few rows", data(0.1, 0.2)),
        case("stays quiet when the segment has no labels", data(0.7, 0)),
        case("stays quiet when the segment is better", data(0.99, 2)),
        case("stays quiet when a process is restarted", restarts(data(0.9, 2), total - 60)),
        case("fires though a process is restarted", restarts(data(0.7, 2), total - 60), firing),
    ]

    assert "" == evaluated(tmp_path, [rule], cases, "2m")


COMPARED = [
    pytest.param(metric, task, id=f"{metric.name}, {task}")
    for metric in alerts.compared_metrics()
    for task in metric.functions
]


@pytest.mark.parametrize(("metric", "task"), [case for case in COMPARED if case.values[0].in_segments])
def test_a_segment_is_compared_by_every_metric_that_segments_have(tmp_path, metric, task):
    """
    Whichever direction is better.
    """
    (rule,) = rules_of("ModelSegmentWorse", ml_metric=metric.name)
    segment = {"ml_segment_name": "country", "ml_segment_value": "DE"}
    good, bad = GOOD[task], BAD[task]
    level = objective(metric, task, level_of(metric, task), 400)

    def data(of_segment: dict[str, float]) -> dict[str, str]:
        whole = {cell: 9 * good[cell] + of_segment[cell] for cell in good}
        return {**stored(totals(task, whole) | totals(task, of_segment, **segment), 400), **level}

    worse, better = Case(f"worse {metric.name}", data(bad)), Case(f"the same {metric.name}", data(good))
    firing = fires(rule, **MODEL, ml_model_task=task, **variant_of(metric, task), **segment)
    worse.expect_alert(rule["alert"], "390m", firing)
    better.expect_alert(rule["alert"], "390m")

    assert "" == evaluated(tmp_path, [rule], [worse, better], "2m")


def test_a_metric_without_objective_is_not_compared_unless_it_is_the_headline(tmp_path):
    """
    One bad segment is one alert, or as many as there are objectives.
    """
    (rule,) = rules_of("ModelSegmentWorse", ml_metric="f1")
    segment = {"ml_segment_name": "country", "ml_segment_value": "DE"}
    part = totals("binary", confusion(0.6, 10), **segment)
    data = stored(totals("binary", confusion(0.9, 100)) | part, 400)
    without = case_of("ModelSegmentWorse", "stays quiet when there is no objective", data, "390m")
    set_in_code = objective(catalog.BY_NAME["f1"], "binary", 0.5, 400)
    firing = fires(rule, **MODEL, **segment, ml_model_task="binary")
    having = case_of("ModelSegmentWorse", "fires when there is one", {**data, **set_in_code}, "390m", firing)

    assert "" == evaluated(tmp_path, [rule], [without, having], "2m")


def versions(
    task: str, old: dict[str, float], new: dict[str, float], *, since: int = 120, until: int = 240
) -> dict[str, str]:
    """Version 1 until minute `since`, then version 2 instead of it until minute `until`."""
    first = {
        name: f"0+{value:g}x{since} {value * since:g}x{until - since}" for name, value in totals(task, old).items()
    }
    return first | stored(totals(task, new, ml_model_version="2"), until, since)


@pytest.mark.parametrize(("metric", "task"), COMPARED)
def test_a_version_is_compared_with_the_one_it_replaced_by_every_metric(tmp_path, metric, task):
    """
    Whichever direction is better; if it is as good as before, or better, nothing is said.
    """
    (rule,) = rules_of("ModelVersionWorse", ml_metric=metric.name)
    new = {"ml_model_version": "2"}
    level = objective(metric, task, level_of(metric, task), 240, **new)
    firing = fires(rule, **{**MODEL, **new}, ml_model_task=task, **variant_of(metric, task))
    cases = []
    for promise, old, now, alarm in (
        ("fires when it is worse", GOOD, BAD, [firing]),
        ("stays quiet when it is as good", GOOD, GOOD, []),
        ("stays quiet when it is better", BAD, GOOD, []),
    ):
        case = Case(f"ModelVersionWorse {promise}", {**versions(task, old[task], now[task]), **level})
        case.expect_alert(rule["alert"], "220m", *alarm)
        case.expect_alert(rule["alert"], "116m")
        cases.append(case)

    assert "" == evaluated(tmp_path, [rule], cases, "4m")


def confusion(share_right: float, n: float) -> dict[str, float]:
    """Counts in a minute of a model that is right in this share of n rows."""
    right, wrong = share_right * n / 2, (1 - share_right) * n / 2
    return {"tp": right, "fn": wrong, "fp": wrong, "tn": right}


def test_a_version_stays_unaccused_without_reason(tmp_path):
    """
    Few rows, a difference that does not matter, no version before it, not serving any more, or not new any more.
    """
    (rule,) = rules_of("ModelVersionWorse", ml_metric="accuracy")
    name, new = rule["alert"], {"ml_model_version": "2"}
    good, bad = confusion(0.9, 100), confusion(0.7, 100)
    firing = fires(rule, **{**MODEL, **new}, ml_model_task="binary")

    def case(promise: str, data: dict[str, str], at: str = "220m", *alarm: Any) -> Case:
        made = Case(f"{name} {promise}", data)
        made.expect_alert(name, at, *alarm)
        return made

    both = stored(totals("binary", good), 240) | stored(totals("binary", bad, **new), 240)
    cases = [
        case("fires when it is worse", versions("binary", good, bad), "220m", firing),
        case("stays quiet when it has few rows", versions("binary", good, confusion(0.5, 0.5))),
        case("stays quiet when the difference is small", versions("binary", confusion(0.9, 1e5), confusion(0.88, 1e5))),
        case("stays quiet when it is the first version", stored(totals("binary", bad, **new), 240, 120)),
        case("stays quiet when both have been there from the start", both),
        case("stays quiet when it has no labels", versions("binary", good, confusion(0.5, 0))),
        case("stays quiet when a process of it is restarted", restarts(versions("binary", good, good), 180)),
        case("fires though a process of it is restarted", restarts(versions("binary", good, bad), 180), "220m", firing),
    ]
    assert "" == evaluated(tmp_path, [rule], cases, "4m")

    old_by_now = versions("binary", good, bad, since=120, until=1680)
    ended = {
        key: f"_x120 0+{value:g}x200 {value * 200:g}x200" for key, value in totals("binary", bad, **new).items()
    } | stored(totals("binary", good), 120)
    cases = [
        case("fires for as long as it is new", old_by_now, "1540m", firing),
        case("stays quiet when it is new no more", old_by_now, "1620m"),
        case("fires while it serves", ended, "340m", firing),
        case("stays quiet when it does not serve any more", ended, "440m"),
    ]
    rolled_back = {
        **{name: f"_x120 0+{value:g}x60" for name, value in totals("binary", bad, ml_model_version="broken").items()},
        **{name: f"0+{value:g}x1980" for name, value in totals("binary", good).items()},
        **stored(totals("binary", bad, **new), 2100, 1980),
    }
    cases.append(case("fires though another version was rolled back between them", rolled_back, "2080m", firing))
    assert "" == evaluated(tmp_path, [rule], cases, "4m")


@pytest.mark.parametrize("n", [120, 800, 2000])
@pytest.mark.parametrize("drop", [0.02, 0.05, 0.08, 0.12, 0.2])
def test_versions_are_told_apart_when_the_test_of_two_proportions_says_so(tmp_path, n, drop):
    """
    statsmodels' z-test at 99.9 %, on the same counts; none of these cases is borderline.
    """
    (rule,) = rules_of("ModelVersionWorse", ml_metric="accuracy")
    before, after = 0.9, 0.9 - drop
    statistic, p = proportions_ztest([before * 12_000, after * n], [12_000, n])
    assert not 1 / 10 < p / 0.001 < 3  # Newcombe's intervals are a little wider
    new = {"ml_model_version": "2"}
    data = versions("binary", confusion(before, 100), confusion(after, n / 60), since=120, until=180)
    case = Case(f"{n} rows, {drop} worse", data)
    alarm = [fires(rule, **{**MODEL, **new}, ml_model_task="binary")] if p < 0.001 else []
    case.expect_alert(rule["alert"], "180m", *alarm)

    assert statistic > 0
    assert "" == evaluated(tmp_path, [rule], [case], "1m")


# What comes in


def case_of(alert: str, promise: str, data: dict[str, str], at: str, *firing: dict[str, Any]) -> Case:
    made = Case(f"{alert} {promise}", data)
    made.expect_alert(alert, at, *firing)
    return made


def predictions(values: str, **labels: str) -> dict[str, str]:
    of = {**MODEL, "ml_model_task": "regression", **labels}
    return {series("ml_model_predictions_total", of): values}


def outcomes(values: str) -> dict[str, str]:
    return {series("ml_model_outcomes_total", {**MODEL, "ml_model_task": "regression"}): values}


def test_predictions_that_stop_are_told(tmp_path):
    """
    Whether the processes stand still or are gone; in minutes where many come, in an hour where few do.
    """
    (rule,) = rules_of("ModelPredictionsStopped")
    name, firing = rule["alert"], {"exp_labels": {**rule["labels"], "ml_model_name": "model"}}
    cases = [
        case_of(name, "fires when processes are gone", predictions("0+100x120"), "132m", firing),
        case_of(name, "fires when nothing is asked of them", predictions("0+100x120 12000x60"), "132m", firing),
        case_of(name, "fires later when few come", predictions("0+5x120 600x120"), "190m", firing),
        case_of(name, "stays quiet before that", predictions("0+5x120 600x120"), "170m"),
        case_of(name, "stays quiet while some come", predictions("0+100x180"), "170m"),
        case_of(name, "stays quiet when a process is restarted", predictions("0+100x118 0+100x60"), "132m"),
        case_of(name, "stays quiet when very few come anyway", predictions("0+0.1x120 12x120"), "230m"),
        case_of(
            name,
            "stays quiet when another version goes on",
            predictions("0+100x120") | predictions("_x100 0+100x100", ml_model_version="2"),
            "150m",
        ),
        case_of(name, "stays quiet about a model that was never used", predictions("0x200"), "150m"),
    ]
    assert "" == evaluated(tmp_path, [rule], cases)


def test_a_quiet_night_or_weekend_is_no_alarm(tmp_path):
    """
    What is usual is what there was at this time a week ago, or else a day ago.
    """
    (rule,) = rules_of("ModelPredictionsStopped")
    name, firing = rule["alert"], {"exp_labels": {**rule["labels"], "ml_model_name": "model"}}
    # Steps of 2 minutes: a working day of 12 hours, and its night.
    day, count, parts = 360, 0, []
    for number in range(9):
        working = number % 7 < 5
        parts.append(f"{count}+{100 if working else 0}x{day - 1}")
        count += 100 * (day - 1) if working else 0
        parts.append(f"{count}x{day - 1}")
    case = Case(f"{name} over nine days", predictions(" ".join(parts)), interval="2m")
    case.expect_alert(name, "40h")  # the second night
    case.expect_alert(name, "182h")  # the second Monday morning, before work
    stopped = Case(f"{name} on a day that should have been a working day", predictions("0+100x400"), interval="2m")
    stopped.expect_alert(name, "14h", firing)

    assert "" == evaluated(tmp_path, [rule], [case, stopped], "4m")


def test_labels_that_stop_while_predictions_come_are_told(tmp_path):
    """
    A model that never had labels, or gets them once a day, is left alone; so is one that predicts nothing either.
    """
    (rule,) = rules_of("ModelLabelsStopped")
    name, firing = rule["alert"], {"exp_labels": {**rule["labels"], "ml_model_name": "model"}}
    flowing = predictions("0+10x400")
    cases = [
        case_of(name, "fires when they stop", flowing | outcomes("0+10x120 1200x200"), "200m", firing),
        case_of(name, "stays quiet while some come", flowing | outcomes("0+10x400"), "200m"),
        case_of(name, "stays quiet when there never were any", flowing | outcomes("0x400"), "200m"),
        case_of(
            name,
            "stays quiet when predictions stopped too",
            predictions("0+10x120 1200x200") | outcomes("0+10x120 1200x200"),
            "240m",
        ),
        case_of(name, "stays quiet when few come anyway", flowing | outcomes("0+0.1x120 12x200"), "240m"),
        case_of(name, "stays quiet when a process is restarted", flowing | outcomes("0+10x120 0+10x200"), "200m"),
    ]
    # Labels of a day come from the second to the third hour of the next one.
    nightly = "0x119 0+100x60 6000x1379 6000+100x60 12000x900"
    cases.append(
        case_of(
            name, "stays quiet between labels that come once a day", predictions("0+10x2600") | outcomes(nightly), "30h"
        )
    )
    missed = "0x119 0+100x60 6000x2000"
    cases.append(
        case_of(
            name, "fires when the daily ones do not come", predictions("0+10x2600") | outcomes(missed), "27h20m", firing
        )
    )
    assert "" == evaluated(tmp_path, [rule], cases)


def test_rows_that_cannot_be_used_are_told(tmp_path):
    """
    More than one in a hundred, and more than a few.
    """
    (rule,) = rules_of("ModelRowsRejected")
    name = rule["alert"]
    reason = {"ml_reject_reason": "invalid_score"}
    firing = {"exp_labels": {**rule["labels"], **MODEL, **reason}}

    def rejected(values: str) -> dict[str, str]:
        return {series("ml_model_rejected_total", {**MODEL, **reason}): values}

    cases = [
        case_of(name, "fires at 2 %", predictions("0+98x100") | rejected("0+2x100"), "90m", firing),
        case_of(name, "fires when all are rejected", predictions("0x100") | rejected("0+2x100"), "90m", firing),
        case_of(name, "fires when there never was a prediction", rejected("0+2x100"), "90m", firing),
        case_of(name, "stays quiet at 0.5 %", predictions("0+199x100") | rejected("0+1x100"), "90m"),
        case_of(name, "stays quiet when they are few", predictions("0+1x100") | rejected("0+0.1x100"), "90m"),
        case_of(name, "stays quiet when there are none", predictions("0+100x100") | rejected("0x100"), "90m"),
        case_of(
            name, "stays quiet when a process is restarted", predictions("0+100x100") | rejected("500x50 0x50"), "90m"
        ),
    ]
    assert "" == evaluated(tmp_path, [rule], cases)


def test_segment_values_that_are_not_told_apart_are_told(tmp_path):
    """
    When they are more than one row in twenty, and enough to be judged.
    """
    (rule,) = rules_of("ModelSegmentsOverflow")
    name = rule["alert"]
    firing = {"exp_labels": {**rule["labels"], **MODEL, "ml_segment_name": "user"}}

    def overflowed(values: str) -> dict[str, str]:
        return {series("ml_model_segments_overflowed_total", {**MODEL, "ml_segment_name": "user"}): values}

    cases = [
        case_of(name, "fires at 10 %", predictions("0+100x100") | overflowed("0+10x100"), "90m", firing),
        case_of(name, "stays quiet at 4 %", predictions("0+100x100") | overflowed("0+4x100"), "90m"),
        case_of(name, "stays quiet when there are few rows", predictions("0+2x100") | overflowed("0+1x100"), "90m"),
        case_of(name, "stays quiet when there are none", predictions("0+100x100") | overflowed("0x100"), "90m"),
        case_of(
            name, "stays quiet when a process is restarted", predictions("0+100x100") | overflowed("90x50 0x50"), "90m"
        ),
    ]
    assert "" == evaluated(tmp_path, [rule], cases)


def test_two_writers_of_one_series_are_told(tmp_path):
    """
    Their counters take turns; two processes with an identity each do not, nor does one that is restarted.
    """
    (rule,) = rules_of("ModelWritersShareIdentity")
    name = rule["alert"]
    firing = {"exp_labels": {**rule["labels"], **MODEL}}
    turns = " ".join(f"{1000 + step} {10 + step}" for step in range(30))
    scraped = " ".join(str(1000 + step if step % 3 else 10 + step) for step in range(60))
    cases = [
        case_of(name, "fires when two take turns", predictions(turns), "40m", firing),
        case_of(name, "fires when one of three answers a scrape", predictions(scraped), "40m", firing),
        case_of(
            name,
            "stays quiet when each has its own identity",
            predictions("1000+1x60", instance="1") | predictions("10+1x60", instance="2"),
            "40m",
        ),
        case_of(name, "stays quiet when one is restarted", predictions("0+1x30 0+1x30"), "40m"),
        case_of(name, "stays quiet when one is restarted three times", predictions("0+1x10 0+1x5 0+1x5 0+1x40"), "24m"),
    ]
    assert "" == evaluated(tmp_path, [rule], cases)


# What is said


def said() -> dict[str, tuple[dict[str, str], dict[str, str], str, dict[str, str], str, str]]:
    """For each kind of message: rule, what is stored, when, further labels, and the whole summary and description."""
    accuracy, ndcg, rmse = (catalog.BY_NAME[name] for name in ("accuracy", "ndcg_at_k", "rmse"))
    binary = {"ml_model_task": "binary"}
    of_accuracy = objective(accuracy, "binary", 0.85, 420)
    segment = {"ml_segment_name": "country", "ml_segment_value": "DE"}
    new = {"ml_model_version": "2"}
    rejected = {series("ml_model_rejected_total", {**MODEL, "ml_reject_reason": "invalid_score"}): "0+2x100"}
    overflowed = {series("ml_model_segments_overflowed_total", {**MODEL, "ml_segment_name": "user"}): "0+10x100"}
    auc = {
        series("ml_model_roc_auc", {**MODEL, "instance": "1"}): "0.61x100",
        series("ml_model_window_rows", {**MODEL, "instance": "1"}): "250x100",
    }
    return {
        "ModelQualityBelowObjective": (
            {"ml_metric": "accuracy", "window": "1h"},
            {**stored(totals("binary", confusion(0.8, 12.3)), 420), **of_accuracy},
            "100m",
            {**MODEL, **binary},
            "accuracy of model 1 is 80% over 1h, its objective is 85%",
            "Over the last hour accuracy of model 1 was 80% (95 % bounds 76.96% to 82.73%) in 738 labelled rows of all "
            "its processes. Its objective is 85%.",
        ),
        "ModelQualityBelowObjective of a ranking": (
            {"ml_metric": "ndcg_at_k", "window": "1h"},
            {**stored(totals("ranking", BAD["ranking"]), 100), **objective(ndcg, "ranking", 0.5, 100)},
            "90m",
            {**MODEL, "ml_model_task": "ranking", "ml_k": "10"},
            "ndcg_at_k (k 10) of model 1 is 0.3 over 1h, its objective is 0.5",
            "Over the last hour ndcg_at_k (k 10) of model 1 was 0.3 (95 % bounds 0.2885 to 0.3117) in 6000 labelled "
            "rows of all its processes. Its objective is 0.5.",
        ),
        "ModelQualityBelowObjective of a regression": (
            {"ml_metric": "rmse", "window": "6h"},
            {**stored(totals("regression", BAD["regression"]), 420), **objective(rmse, "regression", 2, 420)},
            "400m",
            {**MODEL, "ml_model_task": "regression"},
            "rmse of model 1 is 3.873 over 6h, its objective is 2",
            "Over the last 6 hours rmse of model 1 was 3.873 (95 % bounds 3.851 to 3.895) in 36000 labelled rows of "
            "all its processes. Its objective is 2.",
        ),
        "ModelObjectiveMissedEverywhere": (
            {"ml_metric": "roc_auc"},
            {**auc, **objective(catalog.BY_NAME["roc_auc"], "binary", 0.7, 100)},
            "90m",
            MODEL,
            "roc_auc of model 1 is 0.61 at best, its objective is 0.7",
            "For 30 minutes no process has reached the objective of 0.7 for roc_auc of model 1: the best one has 0.61. "
            "There are 250 labelled rows in the windows of all processes.",
        ),
        "ModelErrorBudgetFastBurn": (
            {"ml_metric": "accuracy"},
            {**stored(totals("binary", confusion(0.2, 100)), 420), **of_accuracy},
            "100m",
            {**MODEL, **binary},
            "accuracy of model 1 is 20% over 1h: errors come 5.3 times as fast as its objective of 85% allows",
            "Over the last hour accuracy of model 1 was 20% (95 % bounds 19.01% to 21.03%) in 6000 labelled rows of "
            "all its processes, and 20% over the last 5 minutes. Its objective is 85%: errors come 5.3 times as fast "
            "as that allows.",
        ),
        "ModelErrorBudgetFastBurn of a model that must not err": (
            {"ml_metric": "accuracy"},
            {
                **stored(totals("binary", confusion(0.2, 100)), 420),
                **objective(accuracy, "binary", 1.0, 420),
            },
            "100m",
            {**MODEL, **binary},
            "accuracy of model 1 is 20% over 1h: errors come infinitely many times as fast as its objective of 100% "
            "allows",
            "Over the last hour accuracy of model 1 was 20% (95 % bounds 19.01% to 21.03%) in 6000 labelled rows of "
            "all its processes, and 20% over the last 5 minutes. Its objective is 100%: errors come infinitely many "
            "times as fast as that allows.",
        ),
        "ModelErrorBudgetSlowBurn": (
            {"ml_metric": "accuracy"},
            {**stored(totals("binary", confusion(0.2, 100)), 420), **of_accuracy},
            "400m",
            {**MODEL, **binary},
            "accuracy of model 1 is 20% over 6h: errors come 5.3 times as fast as its objective of 85% allows",
            "Over the last 6 hours accuracy of model 1 was 20% (95 % bounds 19.59% to 20.42%) in 36000 labelled rows "
            "of all its processes, and 20% over the last hour. Its objective is 85%: errors come 5.3 times as fast as "
            "that allows.",
        ),
        "ModelSegmentWorse": (
            {"ml_metric": "accuracy"},
            stored(totals("binary", confusion(0.9, 100)) | totals("binary", confusion(0.6, 10), **segment), 420),
            "400m",
            {**MODEL, **binary, **segment},
            "accuracy of model 1 is 60% for country DE, 90% over all",
            "Over the last 6 hours accuracy of model 1 was 60% for the segment country DE (3600 labelled rows) and 90% "
            "over all (36000 labelled rows). Chance does not explain it (99.9 %). The objective is not set.",
        ),
        "ModelVersionWorse": (
            {"ml_metric": "accuracy"},
            {
                **versions("binary", confusion(0.9, 100), confusion(0.8, 100)),
                **objective(accuracy, "binary", 0.85, 240, **new),
            },
            "220m",
            {**MODEL, **binary, **new},
            "accuracy of the new version model 2 is 80%, that of 1 was 90%",
            "Since it serves, accuracy of model 2 is 80% in 10000 labelled rows; version 1, which it replaced, had "
            "90%. Chance does not explain it (99.9 %). The objective is 85%.",
        ),
        "ModelPredictionsStopped": (
            {},
            predictions("0+100x120"),
            "132m",
            {"ml_model_name": "model"},
            "model makes no predictions any more",
            "No process of model reports predictions, though at this time there usually are 42 within 5m or 1h.",
        ),
        "ModelLabelsStopped": (
            {},
            predictions("0+10x400") | outcomes("0+10x120 1200x200"),
            "200m",
            {"ml_model_name": "model"},
            "model gets no labels any more",
            "In the last hour model made 600 predictions and got no label, though at this time there usually are 50 an "
            "hour. Its quality is not known.",
        ),
        "ModelRowsRejected": (
            {},
            predictions("0+98x100") | rejected,
            "90m",
            {**MODEL, "ml_reject_reason": "invalid_score"},
            "2% of the rows of model 1 are rejected: invalid_score",
            "In the last hour 120 rows of model 1 could not be used (invalid_score); no metric counts them. The log of "
            "the service says what came and what was expected.",
        ),
        "ModelSegmentsOverflow": (
            {},
            predictions("0+100x100") | overflowed,
            "90m",
            {**MODEL, "ml_segment_name": "user"},
            "10% of the rows of model 1 have a user that is not told apart",
            "In the last hour 600 rows of model 1 had a user beyond the first max_segment_values ones, which are one "
            "segment, __other__.",
        ),
        "ModelWritersShareIdentity": (
            {},
            predictions(" ".join(f"{1000 + step} {10 + step}" for step in range(30))),
            "40m",
            MODEL,
            "Several processes of model 1 report as one",
            "Within 15m a counter of model 1 fell 7 times: several processes write the same series (one "
            "service.instance.id, or one scraped port, for several workers), or one restarts all the time. Its totals "
            "are wrong until that ends.",
        ),
    }


@pytest.mark.parametrize("kind", said())
def test_a_message_says_what_is_wrong_in_numbers(tmp_path, kind):
    """
    Model, version, value, objective, rows; and where to read what to do.
    """
    chosen, data, at, labels, summary, description = said()[kind]
    name = kind.split()[0]
    (rule,) = rules_of(name, **chosen)
    runbook = f"https://example.org/otel-model-metrics/runbooks.md#{name.lower()}"
    annotations = {"summary": summary, "description": description, "runbook_url": runbook}
    case = case_of(name, "says", data, at, {**fires(rule, **labels), "exp_annotations": annotations})

    interval = "2m" if rule["labels"].get("window") == "6h" else "1m"
    assert "" == evaluated(tmp_path, [rule], [case], interval, messages=True)


def test_every_alert_has_a_message_above():
    """
    So that no template breaks in silence.
    """
    assert {rule["alert"] for rule in SHIPPED} == {kind.split()[0] for kind in said()}, "if it is above: make docs"


def test_a_name_may_hold_anything(tmp_path):
    """
    What is no text is replaced before it is exported; queries in messages must still be PromQL.
    """
    (rule,) = rules_of("ModelRowsRejected")
    name = 'a"b\\c \ufffd ü'
    odd = {"ml_model_name": name, "ml_model_version": "1"}
    written = escaped(name).replace("\ufffd", "\\ufffd")  # which PromQL takes escaped only
    stored_as = f'ml_model_rejected_total{{ml_model_name="{written}", ml_model_version="1", ml_reject_reason="r"}}'
    case = Case("ModelRowsRejected of an odd name", {stored_as: "0+2x99"})
    annotations = {
        "summary": f"100% of the rows of {name} 1 are rejected: r",
        "description": f"In the last hour 120 rows of {name} 1 could not be used (r); no metric counts them. The log "
        "of the service says what came and what was expected.",
        "runbook_url": "https://example.org/otel-model-metrics/runbooks.md#modelrowsrejected",
    }
    case.expect_alert(
        rule["alert"], "90m", {**fires(rule, **odd, ml_reject_reason="r"), "exp_annotations": annotations}
    )

    assert "" == evaluated(tmp_path, [rule], [case], messages=True)


def test_one_name_in_two_tasks_breaks_no_rule(tmp_path):
    """
    A service may go from one kind of monitor to another without a new version; both are in the window for a while.
    """
    segment = {"ml_segment_name": "country", "ml_segment_value": "DE"}
    data = {}
    for task in catalog.TASKS:
        bad = {name: value * 0.1 for name, value in BAD[task].items()}
        whole = {name: GOOD[task][name] + bad[name] for name in bad}
        data |= stored(totals(task, whole) | totals(task, bad, **segment), 400)
    for metric in alerts.bounded_metrics():
        for task in metric.functions:
            data |= objective(metric, task, 0.99 if metric.better == "higher" else 0.01, 400)
    rules = rules_of("ModelQualityBelowObjective", ml_metric="accuracy", window="1h")
    rules += rules_of("ModelSegmentWorse", ml_metric="accuracy")
    rules += rules_of("ModelQualityBelowObjective", ml_metric="f1", window="6h")
    case = Case("two tasks", data)
    both = ("binary", "multiclass")
    case.expect_alert(
        "ModelQualityBelowObjective",
        "390m",
        *(fires(rules[0], **MODEL, ml_model_task=task) for task in both),
        *(
            fires(rules[2], **MODEL, ml_model_task=task, **({"ml_average": "macro"} if task == "multiclass" else {}))
            for task in both
        ),
    )
    case.expect_alert(
        "ModelSegmentWorse", "390m", *(fires(rules[1], **MODEL, **segment, ml_model_task=task) for task in both)
    )

    assert "" == evaluated(tmp_path, rules, [case], "3m")
