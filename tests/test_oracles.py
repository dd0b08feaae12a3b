"""
Every metric against an independent implementation, on many random windows, through the monitors a user has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from oracles import ORACLES, Rows, expected

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, RegressionMonitor, catalog

TOLERANCE = 1e-9
# Bounds of a mean come from a sum of squares: without any spread, what is left is the root of a rounding error.
TOLERANCE_WITHOUT_SPREAD = 1e-6

CLASSES = ("ant", "bee", "cat", "dog", "eel")
KS = (1, 3, 10)

# Explained by tests of their own in test_window.py: they describe the window, not the model.
OF_THE_WINDOW = {"window.rows", "window.age"}

Random = np.random.Generator


def shares(random: Random, count: int) -> np.ndarray:
    """Unequal frequencies that add up to 1; some are close to 0."""
    return random.dirichlet(np.full(count, 0.5))


def segments_of(random: Random, count: int) -> dict[str, list[Any]]:
    return {
        "country": random.choice(["DE", "FR", "US", None], count, p=shares(random, 4)).tolist(),
        "channel": random.choice(["web", "app", None], count).tolist(),
    }


def rows_of(random: Random, predictions: Any, labels: Any, scores: Any = None, classes: Any = ()) -> Rows:
    return Rows(list(predictions), list(labels), scores, classes, segments_of(random, len(labels)))


# Binary


def binary(random: Random, count: int, decimals: int = 17) -> Rows:
    labels = random.random(count) < random.random()
    scores = np.clip(random.normal(0.3 + 0.4 * labels, random.uniform(0.05, 0.5)), 0, 1).round(decimals)
    predictions = (scores >= random.random()) ^ (random.random(count) < 0.1)
    return rows_of(random, predictions.tolist(), labels.tolist(), scores)


def labels_all(random: Random, value: bool) -> Rows:
    rows = binary(random, 40)
    return rows_of(random, rows.predictions, [value] * 40, rows.scores)


def predictions_all(random: Random, value: bool) -> Rows:
    rows = binary(random, 40)
    return rows_of(random, [value] * 40, rows.labels, rows.scores)


def certain(random: Random) -> Rows:
    rows = binary(random, 60)
    return rows_of(random, rows.predictions, rows.labels, random.choice([0.0, 1.0, 0.5], 60, p=[0.4, 0.4, 0.2]))


def some_without_score(random: Random) -> Rows:
    rows = binary(random, 60, decimals=2)
    assert rows.scores is not None
    return rows_of(random, rows.predictions, rows.labels, np.where(random.random(60) < 0.4, np.nan, rows.scores))


BINARY = {
    "any": lambda random: binary(random, int(random.integers(2, 250))),
    "ties": lambda random: binary(random, int(random.integers(2, 120)), decimals=1),
    "few": lambda random: binary(random, int(random.integers(1, 6)), decimals=1),
    "one row": lambda random: binary(random, 1),
    "no row": lambda random: binary(random, 0),
    "labels all positive": lambda random: labels_all(random, True),
    "labels all negative": lambda random: labels_all(random, False),
    "predictions all positive": lambda random: predictions_all(random, True),
    "predictions all negative": lambda random: predictions_all(random, False),
    "scores of 0 and 1": certain,
    "scores on the edges of bins": lambda random: binary(random, 200, decimals=1),
    "all scores equal": lambda random: rows_of(
        random, [True, False] * 20, (random.random(40) < 0.5).tolist(), np.full(40, 0.3)
    ),
    "some without score": some_without_score,
    "none with a score": lambda random: rows_of(
        random, [True, False] * 10, (random.random(20) < 0.5).tolist(), np.full(20, np.nan)
    ),
}


# Multiclass


def multiclass(random: Random, count: int, *, scores: bool = True) -> Rows:
    labels = random.choice(CLASSES, count, p=shares(random, 5))
    predictions = np.where(random.random(count) < 0.6, labels, random.choice(CLASSES, count, p=shares(random, 5)))
    matrix = random.dirichlet(np.ones(5), count) if scores else None
    return rows_of(random, predictions.tolist(), labels.tolist(), matrix, CLASSES)


def multiclass_ties(random: Random) -> Rows:
    rows = multiclass(random, 60)
    return rows_of(random, rows.predictions, rows.labels, random.multinomial(4, np.full(5, 0.2), 60) / 4, CLASSES)


def multiclass_some_without_score(random: Random) -> Rows:
    rows = multiclass(random, 60)
    assert rows.scores is not None
    return rows_of(
        random,
        rows.predictions,
        rows.labels,
        np.where((random.random(60) < 0.4)[:, np.newaxis], np.nan, rows.scores),
        CLASSES,
    )


MULTICLASS = {
    "any": lambda random: multiclass(random, int(random.integers(2, 250))),
    "ties": multiclass_ties,
    "few": lambda random: multiclass(random, int(random.integers(1, 6))),
    "one row": lambda random: multiclass(random, 1),
    "no row": lambda random: multiclass(random, 0),
    "one class": lambda random: rows_of(random, ["bee"] * 9, ["bee"] * 9, random.dirichlet(np.ones(5), 9), CLASSES),
    "labels of one class": lambda random: rows_of(
        random, random.choice(CLASSES, 30).tolist(), ["dog"] * 30, None, CLASSES
    ),
    "predictions of one class": lambda random: rows_of(
        random, ["dog"] * 30, random.choice(CLASSES, 30).tolist(), None, CLASSES
    ),
    "labels and predictions of different classes": lambda random: rows_of(
        random, random.choice(CLASSES[:2], 30).tolist(), random.choice(CLASSES[2:], 30).tolist(), None, CLASSES
    ),
    "no score": lambda random: multiclass(random, 80, scores=False),
    "some without score": multiclass_some_without_score,
    "certain scores": lambda random: rows_of(
        random, random.choice(CLASSES, 40).tolist(), random.choice(CLASSES, 40).tolist(), np.eye(5)[[1] * 40], CLASSES
    ),
}


# Regression


def regression(random: Random, count: int, decimals: int = 17) -> Rows:
    scale = 10 ** random.uniform(-2, 3)
    labels = random.normal(random.normal(), 1, count) * scale
    errors = random.standard_t(3, count) * scale * random.random()
    return rows_of(random, (labels + errors).round(decimals).tolist(), labels.round(decimals).tolist())


REGRESSION = {
    "any": lambda random: regression(random, int(random.integers(2, 250))),
    "few": lambda random: regression(random, int(random.integers(1, 6))),
    "whole numbers, many of them 0": lambda random: rows_of(
        random, random.integers(-2, 3, 60).tolist(), random.integers(-2, 3, 60).tolist()
    ),
    "one row": lambda random: regression(random, 1),
    "no row": lambda random: regression(random, 0),
    "labels all equal": lambda random: rows_of(random, random.normal(size=30).tolist(), [0.1] * 30),
    "labels all 0": lambda random: rows_of(random, random.normal(size=30).tolist(), [0.0] * 30),
    "predictions all right": lambda random: rows_of(random, *[random.normal(size=30).tolist()] * 2),
    "one wild error": lambda random: rows_of(random, [*random.normal(size=30), 1e6], [0.5] * 31),
}


# Ranking

ITEMS = [f"item-{number}" for number in range(20)]


def ranking(random: Random, count: int, *, longest: int = 15, gains: int = 1, least: int = 0) -> Rows:
    predictions = [random.permutation(ITEMS)[: random.integers(least, longest + 1)].tolist() for _ in range(count)]
    labels = [
        {item: int(random.integers(1, gains + 1)) for item in random.permutation(ITEMS)[: random.integers(1, 7)]}
        for _ in range(count)
    ]
    return rows_of(random, predictions, labels)


def no_hit(random: Random) -> Rows:
    return rows_of(random, [random.permutation(ITEMS)[:5].tolist() for _ in range(12)], [{"absent": 1}] * 12)


RANKING = {
    "any": lambda random: ranking(random, int(random.integers(2, 60))),
    "few": lambda random: ranking(random, int(random.integers(1, 5))),
    "one row": lambda random: ranking(random, 1),
    "no row": lambda random: ranking(random, 0),
    "short lists": lambda random: ranking(random, 30, longest=2),
    "empty lists": lambda random: ranking(random, 5, longest=0),
    "no hit": no_hit,
    "best order": lambda random: rows_of(random, [ITEMS[:6]] * 8, [{ITEMS[0]: 3, ITEMS[1]: 2, ITEMS[2]: 1}] * 8),
    "graded gains": lambda random: ranking(random, 40, gains=5),
}


def monitor_of(make: Callable[..., Any], task: str, rows: Rows, name: str) -> Any:
    every = [metric.name for metric in catalog.metrics_of(task) if not metric.always]
    settings: dict[str, Any] = {"segment_metrics": every, "strict": True}
    if task == "binary":
        return make(BinaryMonitor, name, **settings)
    if task == "multiclass":
        fixed = {"classes": rows.classes} if rows.scores is not None else {}
        return make(MulticlassMonitor, name, k=KS[:2], **fixed, **settings)
    if task == "regression":
        return make(RegressionMonitor, name, **settings)
    return make(RankingMonitor, name, k=KS, **settings)


def record(monitor: Any, rows: Rows) -> None:
    """One call for each row."""
    for row in range(len(rows)):
        score = {}
        if rows.scores is not None and not np.isnan(rows.scores[row]).any():
            score = {"score": rows.scores[row].tolist()}
        segments = {name: values[row] for name, values in rows.segments.items()}
        monitor.record(rows.predictions[row], rows.labels[row], segments=segments, **score)


def record_batch(monitor: Any, rows: Rows) -> None:
    """Two calls, of which the second has its columns as arrays where it can."""
    half = len(rows) // 3
    for part, convert in ((slice(half), list), (slice(half, None), np.array)):
        scores = {}
        if rows.scores is not None:
            given = [None if np.isnan(row).any() else row.tolist() for row in rows.scores]
            scores = {"scores": given[part] if None in given else convert(given[part])}
        numeric = convert if monitor.task != "ranking" else list
        segments = {name: values[part] for name, values in rows.segments.items()}
        if len(rows.labels[part]):
            monitor.record_batch(
                numeric(rows.predictions[part]), numeric(rows.labels[part]), segments=segments, **scores
            )


def variants_of(metric: catalog.MetricDefinition, task: str, rows: Rows) -> Iterator[dict[str, Any]]:
    """The arguments that pick each value of a metric."""
    by = metric.by.get(task)
    if by == "k":
        yield from ({"k": k} for k in (KS if task == "ranking" else KS[:2]))
    elif by == "class":
        yield from ({"average": average} for average in catalog.AVERAGES)
        yield from ({"class_": one} for one in rows.classes)
    else:
        yield {}


def names_of(metric: catalog.MetricDefinition, task: str) -> list[str]:
    return (
        [metric.name] if task not in metric.intervals else [metric.name, f"{metric.name}.lower", f"{metric.name}.upper"]
    )


def same(wanted: float, found: float | None, tolerance: float) -> bool:
    """Undefined is None in a snapshot and nan in an oracle."""
    if math.isnan(wanted) or found is None:
        return math.isnan(wanted) and found is None
    return abs(wanted - found) <= tolerance * max(1.0, abs(wanted))


def differences(task: str, monitor: Any, rows: Rows, tolerance: float = TOLERANCE) -> list[str]:
    """Where a monitor and the oracles disagree: every metric, variant and bound, for the whole and each segment."""
    snapshot = monitor.snapshot()
    parts: dict[Any, Rows] = {None: rows}
    for name, values in rows.segments.items():
        for value in set(values) - {None}:
            parts[name, value] = rows.where([one == value for one in values])
    found = []
    for metric in catalog.metrics_of(task):
        if metric.name in OF_THE_WINDOW:
            continue
        for variant in variants_of(metric, task, rows):
            for name in names_of(metric, task):
                for segment, part in parts.items():
                    if segment is not None and (name != metric.name or "class_" in variant):
                        continue  # bounds, and values of single classes, are those of the whole
                    wanted = expected(task, name, part, **variant)
                    value = snapshot.value(name, segment, **variant)
                    if not same(wanted, value, tolerance):
                        found.append(f"{name} {variant or ''} {segment or 'overall'}: {value} instead of {wanted}")
    return found


SCENARIOS = {"binary": BINARY, "multiclass": MULTICLASS, "regression": REGRESSION, "ranking": RANKING}
REPETITIONS = {"any": 8, "ties": 5, "few": 12, "graded gains": 4, "some without score": 3}
CASES = [
    pytest.param(task, scenario, seed, id=f"{task}, {scenario}, {seed}")
    for task, scenarios in SCENARIOS.items()
    for scenario in scenarios
    for seed in range(REPETITIONS.get(scenario, 1))
]


@pytest.mark.parametrize(("task", "scenario", "seed"), CASES)
def test_every_value_is_the_oracles(make, task, scenario, seed):
    """
    Every metric, average, class, cut-off and bound, of the whole window and of each segment, recorded either way.
    """
    rows = SCENARIOS[task][scenario](np.random.default_rng(seed))
    one_by_one, at_once = (monitor_of(make, task, rows, name) for name in ("one by one", "at once"))

    record(one_by_one, rows)
    record_batch(at_once, rows)

    assert len(rows) == one_by_one.snapshot().rows == at_once.snapshot().rows
    assert [] == differences(task, one_by_one, rows)
    assert one_by_one.snapshot().to_dict()["values"] == pytest.approx(at_once.snapshot().to_dict()["values"], rel=1e-12)
    assert one_by_one.snapshot().to_dict()["segments"].keys() == at_once.snapshot().to_dict()["segments"].keys()
    for segment, values in one_by_one.snapshot().to_dict()["segments"].items():
        assert values == pytest.approx(at_once.snapshot().to_dict()["segments"][segment], rel=1e-12), segment


@pytest.mark.parametrize("error", [0.1, 1 / 3, 1e3, 1e8])
@pytest.mark.parametrize("spread", [0.0, 1e-6])
def test_bounds_hold_when_all_errors_are_nearly_equal(make, error, spread):
    """
    Then the sum of squares and the square of the sum cancel, and rounding must not move a bound by a millionth.
    """
    random = np.random.default_rng(7)
    labels = random.integers(0, 100, 50).astype(float)
    rows = rows_of(random, labels + error * (1 + spread * random.normal(size=50)), labels)
    monitor = monitor_of(make, "regression", rows, "model")

    record_batch(monitor, rows)

    assert [] == differences("regression", monitor, rows, TOLERANCE_WITHOUT_SPREAD)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_bounds_hold_when_all_rankings_are_alike(make, count):
    """
    The bounds of mrr are then the value itself, but for rounding.
    """
    random = np.random.default_rng(7)
    rows = rows_of(random, [ITEMS] * count, [{ITEMS[2]: 1}] * count)
    monitor = monitor_of(make, "ranking", rows, "model")

    record(monitor, rows)

    assert [] == differences("ranking", monitor, rows, TOLERANCE_WITHOUT_SPREAD)


def test_gains_need_not_be_whole(make):
    """
    trec_eval knows whole gains only; doubling all of them changes no order and no normalised value.
    """
    random = np.random.default_rng(5)
    whole = ranking(random, 30, gains=5)
    halved = rows_of(random, whole.predictions, [{i: gain / 2 for i, gain in gains.items()} for gains in whole.labels])
    monitor = monitor_of(make, "ranking", halved, "model")

    record(monitor, halved)

    wanted = [expected("ranking", "ndcg_at_k", whole, k=k) for k in KS]
    assert wanted == pytest.approx([monitor.snapshot().value("ndcg_at_k", k=k) for k in KS], abs=TOLERANCE)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda gains: next(iter(gains)),
        set,
        frozenset,
        list,
        lambda gains: np.array(list(gains)),
        lambda gains: {**gains, "of no use": 0.0},
    ],
    ids=["item", "set", "frozenset", "list", "array", "mapping with a gain of 0"],
)
def test_a_relevant_item_may_be_given_in_several_ways(make, spelling):
    """
    One item, a set, a list, an array, a mapping item -> gain.
    """
    rows = ranking(np.random.default_rng(11), 20)
    rows = rows_of(np.random.default_rng(3), rows.predictions, [dict(list(gains.items())[:1]) for gains in rows.labels])
    monitor = monitor_of(make, "ranking", rows, "model")

    for items, gains, country in zip(rows.predictions, rows.labels, rows.segments["country"], strict=True):
        monitor.record(items, spelling(gains), segments={"country": country})
    part = {"segments": {"country": rows.segments["country"]}}

    assert [] == differences("ranking", monitor, Rows(rows.predictions, rows.labels, **part))


def test_every_metric_has_an_oracle():
    """
    A metric is not finished before something that is not ours agrees with it.
    """
    missing = [
        f'@oracle("{task}", "{name}")'
        for task in catalog.TASKS
        for metric in catalog.metrics_of(task)
        if metric.name not in OF_THE_WINDOW
        for name in names_of(metric, task)
        if (task, name) not in ORACLES
    ]

    assert [] == missing, (
        "These metrics of catalog.METRICS have no oracle. For each, add to tests/oracles.py a function from Rows to a "
        "float (nan where undefined) that calls scikit-learn, SciPy or ir-measures, or loops over the rows in plain "
        "Python; for bounds @bounded(task, name) registers '.lower' and '.upper' at once:\n" + "\n".join(missing)
    )


def test_every_oracle_has_a_metric():
    """
    An oracle whose metric was renamed or dropped goes too.
    """
    known = {
        (task, name) for task in catalog.TASKS for metric in catalog.metrics_of(task) for name in names_of(metric, task)
    }

    assert set() == set(ORACLES) - known


def test_every_value_of_a_snapshot_is_compared(make):
    """
    Nothing is exported that the comparison above does not ask for: no variant or bound slips through.
    """
    asked = {
        (name, *sorted(str(value) for value in variant.values()))
        for task in catalog.TASKS
        for metric in catalog.metrics_of(task)
        if metric.name not in OF_THE_WINDOW
        for variant in variants_of(metric, task, Rows([], [], classes=CLASSES))
        for name in names_of(metric, task)
    }
    exported = set()
    for task in catalog.TASKS:
        rows = SCENARIOS[task]["any"](np.random.default_rng(2))
        monitor = monitor_of(make, task, rows, task)
        record(monitor, rows)
        exported |= {(one.name, *sorted(value for _, value in one.variant)) for one in monitor.snapshot().series}

    assert {(name,) for name in OF_THE_WINDOW} == exported - asked
