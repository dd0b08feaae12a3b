"""
Summaries of rows: whatever the rows and however they were cut, the metric of the rows is within the error stated.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from otel_model_metrics import catalog
from otel_model_metrics.statistics import summaries
from otel_model_metrics.statistics.summaries import ErrorSummary, ScoreSummary

Random = np.random.Generator
Columns = dict[str, np.ndarray]

# Row metrics that are exact up to a size and absent beyond, and why no summary can tell more: (task, name) -> reason.
WITHOUT_A_SUMMARISED_FORM: dict[tuple[str, str], str] = {}


def outcomes(y_true: Any, y_score: Any) -> Columns:
    return {"y_true": np.asarray(y_true, np.float64), "y_score": np.asarray(y_score, np.float64)}


def numbers(y_true: Any, y_pred: Any) -> Columns:
    return {"y_true": np.asarray(y_true, np.float64), "y_pred": np.asarray(y_pred, np.float64)}


def any_outcomes(random: Random, count: int | None = None, decimals: int = 17, share: float | None = None) -> Columns:
    count = int(random.integers(0, 400)) if count is None else count
    positive = random.random(count) < (random.random() if share is None else share)
    score = np.clip(random.normal(0.3 + 0.4 * positive, random.uniform(0.05, 0.5)), 0, 1)
    return outcomes(positive, score.round(decimals))


def rare(random: Random) -> Columns:
    """Calibrated scores around 1e-4."""
    score = np.minimum(np.exp(random.normal(-9, 2, 5000)), 1.0)
    return outcomes(random.random(5000) < 20 * score, score)


def in_one_bin(random: Random) -> Columns:
    """Some equal, some not, all between 0.4 and 0.40001."""
    count = int(random.integers(2, 14))
    return outcomes(random.random(count) < random.random(), 0.4 + random.integers(0, 4, count) * 1e-6)


def in_few_bins(random: Random) -> Columns:
    count = int(random.integers(2, 60))
    score = random.choice([1e-4, 0.4, 0.9], count) + random.integers(0, 4, count) * 1e-8
    return outcomes(random.random(count) < random.random(), score)


EDGES = np.array(
    [
        edge
        for middle in (0.0, 2.0**-1074, 2.0**-1022, 2.0**-31, 2.0**-30, 0.1, 0.25, 0.5, 0.7, 0.75, 1 - 2.0**-30, 1.0)
        for edge in (np.nextafter(middle, 0), middle, np.nextafter(middle, 1))
        if 0 <= edge <= 1
    ]
)

SCENARIOS: dict[str, dict[str, Callable[[Random], Columns]]] = {
    "binary": {
        "any": any_outcomes,
        "many": lambda random: any_outcomes(random, 20_000),
        "one decimal": lambda random: any_outcomes(random, decimals=1),
        "three decimals": lambda random: any_outcomes(random, 3000, decimals=3),
        "few": lambda random: any_outcomes(random, int(random.integers(1, 6)), decimals=1),
        "no row": lambda random: any_outcomes(random, 0),
        "one row": lambda random: any_outcomes(random, 1),
        "two rows": lambda random: any_outcomes(random, 2),
        "all scores equal": lambda random: outcomes(random.random(40) < 0.5, np.full(40, 0.3)),
        "all positive": lambda random: any_outcomes(random, 50, share=1.0),
        "all negative": lambda random: any_outcomes(random, 50, share=0.0),
        "rare": rare,
        "nearly certain": lambda random: {name: 1.0 - values for name, values in rare(random).items()},
        "certain": lambda random: outcomes(random.random(60) < 0.3, random.choice([0.0, -0.0, 1.0], 60)),
        "on the edges of bins": lambda random: outcomes(random.random(200) < 0.3, random.choice(EDGES, 200)),
        "in one bin": in_one_bin,
        "in few bins": in_few_bins,
    },
    "regression": {
        "any": lambda random: any_numbers(random),
        "many": lambda random: any_numbers(random, 20_000),
        "two decimals": lambda random: any_numbers(random, decimals=2),
        "few": lambda random: any_numbers(random, int(random.integers(1, 6)), decimals=1),
        "no row": lambda random: any_numbers(random, 0),
        "one row": lambda random: any_numbers(random, 1),
        "two rows": lambda random: any_numbers(random, 2),
        "whole numbers, many of them 0": lambda random: numbers(random.integers(-2, 3, 60), random.integers(-2, 3, 60)),
        "labels all equal": lambda random: numbers(np.full(30, 0.1), random.normal(size=30)),
        "labels all 0": lambda random: numbers(random.choice([0.0, -0.0], 30), random.normal(size=30)),
        "predictions all right": lambda random: numbers(*[random.normal(size=30)] * 2),
        "half of the predictions right": lambda random: numbers(np.arange(30), np.arange(30) + [0.0, 0.3] * 15),
        "labels far from 0": lambda random: numbers(*random.normal(1e4, 1, (2, 500))),
        "one wild error": lambda random: numbers([*random.normal(size=30), 0.5], [*random.normal(size=30), 1e6]),
        "tiny": lambda random: numbers(*random.normal(size=(2, 41)) * 1e-60),
        "huge": lambda random: numbers(*random.normal(size=(2, 40)) * 1e60),
        "smallest and largest": lambda random: numbers(*random.choice([-1e70, -1e-60, 1e-60, 1e70], (2, 40))),
        "all magnitudes": lambda random: numbers(*10 ** random.uniform(-60, 60, (2, 60))),
        "errors too small for bins": lambda random: numbers(random.choice([0.0, 1e-90], 40), random.random(40) * 1e-80),
        "errors in one bin": lambda random: numbers(np.zeros(12), 1 + random.integers(0, 4, 12) * 1e-4),
    },
}


def any_numbers(random: Random, count: int | None = None, decimals: int = 17) -> Columns:
    count = int(random.integers(0, 400)) if count is None else count
    scale = 10 ** random.uniform(-2, 3)
    label = random.normal(random.normal(), 1, count) * scale
    return numbers(label.round(decimals), (label + random.standard_t(3, count) * scale).round(decimals))


for_every_window = pytest.mark.parametrize(
    ("task", "scenario"),
    [
        pytest.param(task, scenario, id=f"{task}, {scenario}")
        for task, scenarios in SCENARIOS.items()
        for scenario in scenarios
    ],
)
for_every_task = pytest.mark.parametrize("task", list(SCENARIOS))


def windows_of(task: str, scenario: str, count: int = 20) -> Iterator[tuple[Random, Columns]]:
    for seed in range(count):
        random = np.random.default_rng(seed)
        yield random, SCENARIOS[task][scenario](random)


def in_pieces(task: str, rows: Columns, random: Random, pieces: int = 5) -> Any:
    """Rows dealt to pieces, some of them empty, that are merged in any order and association."""
    share = random.integers(0, pieces, len(rows["y_true"]))
    found = [catalog.SUMMARIES[task].of(**{k: v[share == piece] for k, v in rows.items()}) for piece in range(pieces)]
    found.append(catalog.SUMMARIES[task].of(**{name: values[:0] for name, values in rows.items()}))
    while len(found) > 1:
        random.shuffle(found)
        found.append(found.pop().merge(found.pop()))
    return found[0]


def summarised(task: str) -> list[catalog.MetricDefinition]:
    return [metric for metric in catalog.metrics_of(task) if task in metric.summarised]


def values_of(task: str, summary: Any) -> dict[str, tuple[float, float]]:
    return {metric.name: metric.summarised[task](summary) for metric in summarised(task)}


def the_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], names: list[str] | None = None) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in names or one
    )


# The values


@for_every_window
def test_the_metric_of_the_rows_is_within_the_error(task, scenario):
    """
    For every row metric of the catalogue that has a summarised form; and undefined for the same windows.
    """
    for random, rows in windows_of(task, scenario):
        for summary in (catalog.SUMMARIES[task].of(**rows), in_pieces(task, rows, random)):
            assert len(rows["y_true"]) == summary.rows
            for metric in summarised(task):
                exact = metric.functions[task](**rows)
                value, error = metric.summarised[task](summary)
                # What has the label's unit may be of any size, also of 1e-60.
                rounding = 1e-9 * (abs(exact) if metric.unit == "{target}" else max(1.0, abs(exact)))
                assert (type(value), type(error)) == (float, float), metric.name
                assert error >= 0, metric.name
                if math.isnan(exact):
                    assert math.isnan(value), metric.name
                    assert 0.0 == error, metric.name
                else:
                    assert abs(value - exact) <= error + rounding, (metric.name, exact, value, error)


@for_every_window
def test_pieces_may_be_merged_in_any_order(task, scenario):
    """
    Counts are the same to the last row, values but for rounding.
    """
    for random, rows in windows_of(task, scenario, 5):
        whole = catalog.SUMMARIES[task].of(**rows)
        wanted = values_of(task, whole)
        for pieces in (2, 7):
            merged = in_pieces(task, rows, random, pieces)

            assert the_same(whole.state(), merged.state(), ["keys", "counts", "only"])
            for name, found in values_of(task, merged).items():
                assert wanted[name] == pytest.approx(found, rel=1e-12, abs=1e-12, nan_ok=True), name


@for_every_task
def test_merging_changes_neither_summary(task):
    """
    So a summary may take part in several others: its window, its segment, the whole.
    """
    for scenario in ("any", "no row"):
        one, other = (catalog.SUMMARIES[task].of(**rows) for _, rows in windows_of(task, scenario, 2))
        before = [{name: values.copy() for name, values in each.state().items()} for each in (one, other)]

        merged = one.merge(other)

        assert type(one) is type(merged)
        assert the_same(before[0], one.state())
        assert the_same(before[1], other.state())


@for_every_window
def test_a_summary_can_be_sent(task, scenario):
    """
    As arrays, without pickles and without loss; what arrives may be read-only, and is as good as the original.
    """
    for random, rows in windows_of(task, scenario, 3):
        summary = in_pieces(task, rows, random)
        file = io.BytesIO()
        np.savez(file, **summary.state())
        file.seek(0)
        state = dict(np.load(file, allow_pickle=False))
        for values in state.values():
            values.flags.writeable = False

        received = type(summary).from_state(state)

        assert the_same(summary.state(), received.state())
        assert the_same(summary.merge(summary).state(), received.merge(received).state())
        assert repr(values_of(task, summary)) == repr(values_of(task, received))


# How near they are


def of_a_million(random: Random, name: str) -> Columns:
    count = 1_000_000
    if name == "one in five":
        positive = random.random(count) < 0.2
        return outcomes(positive, np.where(positive, random.beta(4, 3, count), random.beta(2, 6, count)))
    if name == "one in a hundred":
        positive = random.random(count) < 0.01
        return outcomes(positive, 1 / (1 + np.exp(-random.normal(np.where(positive, -2, -5), 1.5))))
    score = np.minimum(np.exp(random.normal(-9, 1.5, count)), 1.0)  # calibrated, around 1e-4
    return outcomes(random.random(count) < score, score)


@pytest.mark.parametrize("name", ["one in five", "one in a hundred", "one in a thousand"])
def test_errors_of_a_million_scores_are_small(name):
    """
    Stated ones below what a dashboard shows, and real ones still smaller.
    """
    rows = of_a_million(np.random.default_rng(1), name)
    summary = ScoreSummary.of(**rows)

    found = {metric.name: metric.summarised["binary"](summary) for metric in summarised("binary")}
    print(name, {metric: error for metric, (_, error) in found.items() if error}, f"{summary.nbytes} bytes")

    assert 0 < found["roc_auc"][1] < 1e-3
    assert 0 < found["average_precision"][1] < 2e-3
    assert {"roc_auc", "average_precision"} == {metric for metric, (_, error) in found.items() if error}
    assert catalog.BY_NAME["roc_auc"].functions["binary"](**rows) == pytest.approx(found["roc_auc"][0], abs=5e-5)


@pytest.mark.parametrize("scale", [1e-60, 1e-3, 1.0, 1e60])
def test_the_error_of_a_median_is_less_than_three_in_a_thousand(scale):
    """
    Of the median itself, whatever its size.
    """
    random = np.random.default_rng(1)
    for _ in range(50):
        summary = ErrorSummary.of(*(random.lognormal(0, 2, (2, 10_000)) * scale))

        value, error = summaries.median_absolute_error(summary)

        assert 0 < error / value < 0.003


def test_rounded_scores_and_whole_errors_are_known_exactly():
    """
    A bin that holds one number states no error: three decimals of a score, errors up to 512, certain scores.
    """
    random = np.random.default_rng(1)
    rounded = any_outcomes(random, 100_000, decimals=3)
    certain = outcomes(random.random(1000) < 0.5, random.integers(0, 2, 1000))
    whole = numbers(random.integers(0, 512, 10_000), np.zeros(10_000))

    for task, rows in (("binary", rounded), ("binary", certain), ("regression", whole)):
        for metric in summarised(task):
            value, error = metric.summarised[task](in_pieces(task, rows, random))
            assert 0.0 == error, metric.name
            assert metric.functions[task](**rows) == pytest.approx(value, rel=1e-12), metric.name


@pytest.mark.parametrize(
    ("order", "auc", "precision"),
    [
        ("negatives first, then each positive", 1.0, 1.0),
        ("positives first, then each negative", 0.0, (1 / 3 + 2 / 4 + 3 / 5) / 3),
    ],
)
def test_the_errors_of_one_bin_are_reached(order, auc, precision):
    """
    Both extremes can happen, so no smaller error would be true.
    """
    positive = [0, 0, 1, 1, 1] if order.startswith("negatives") else [1, 1, 1, 0, 0]
    rows = outcomes(positive, 0.4 + np.arange(5) * 1e-6)
    summary = ScoreSummary.of(**rows)
    middle = (1.0 + (1 / 3 + 2 / 4 + 3 / 5) / 3) / 2

    assert (0.5, 0.5) == summaries.roc_auc(summary)
    assert (middle, 1 - middle) == pytest.approx(summaries.average_precision(summary))
    assert auc == pytest.approx(catalog.BY_NAME["roc_auc"].functions["binary"](**rows))
    assert precision == pytest.approx(catalog.BY_NAME["average_precision"].functions["binary"](**rows))


def test_equal_positive_scores_are_the_best_there_is():
    """
    Below a negative row they all have the precision of the last of them, so they beat any order without ties.
    """
    tied = outcomes([0, 1, 1, 1, 1], [0.9, 0.40001, 0.40001, 0.40001, 0.4])

    value, error = summaries.average_precision(ScoreSummary.of(**tied))

    assert value + error == pytest.approx(4 / 5)
    assert value - error == pytest.approx((1 / 2 + 2 / 3 + 3 / 4 + 4 / 5) / 4)


# The bins


def test_a_higher_score_is_never_in_a_lower_bin():
    """
    At no edge, least of all at 0, 0.5, 1, and where numbers lose their precision.
    """
    random = np.random.default_rng(1)
    spread = 2.0 ** random.uniform(-40, -1, 200_000)
    near_edges = np.ldexp(1 + np.arange(257) / 256, np.arange(-33, -1)[:, np.newaxis]).ravel()
    near_edges = np.concatenate([np.nextafter(near_edges, 0), near_edges, np.nextafter(near_edges, 1)])
    scores = np.concatenate([EDGES, spread, 1 - spread, random.random(200_000), near_edges, 1 - near_edges])
    scores = np.unique(scores[scores <= 1.0])

    bins = summaries._bins_of_scores(scores)

    assert np.all(np.diff(bins) >= 0)
    assert (0, 2 * bins[scores == 0.5][0]) == (bins[0], bins[-1])
    for certain in (0.0, 0.5, 1.0):  # nothing else is in their bins
        assert 1 == np.count_nonzero(bins == bins[scores == certain])
    assert [0, 0] == summaries._bins_of_scores(np.array([0.0, -0.0])).tolist()


def test_an_error_is_between_the_edges_of_its_bin():
    """
    And these are at most 1 / 256 apart.
    """
    random = np.random.default_rng(1)
    errors = np.concatenate([10 ** random.uniform(-320, 71, 100_000), [0.0, 2.0**-256, 2.0**-1074, 1e70, 2e70]])
    errors = np.concatenate([errors, np.ldexp(1.0, np.arange(-260, 230))])
    errors = np.sort(np.concatenate([np.nextafter(errors, 0), errors, np.nextafter(errors, np.inf)]))

    bins = summaries._bins_of(errors, summaries._SMALLEST_ERROR)
    low, high = summaries._edges_of(bins, summaries._SMALLEST_ERROR)

    assert np.all(np.diff(bins) >= 0)
    assert np.all((low <= errors) & ((errors < high) | (errors == 0)))
    assert np.all((high - low)[bins >= 2] <= low[bins >= 2] / 256)


def test_differences_of_harmonic_numbers():
    """
    Against adding them up, and the difference of two equal ones is nothing.
    """
    starts = [0, 1, 2, 7, 100, 12_345, 10**9]
    counts = [0, 1, 2, 10, 1000, 54_321]
    start, count = (values.ravel().astype(float) for values in np.meshgrid(starts, counts))

    found = summaries._harmonic_difference(start, count)

    wanted = [math.fsum(1 / (one + i) for i in range(1, int(many) + 1)) for one, many in zip(start, count, strict=True)]
    assert wanted == pytest.approx(found.tolist(), rel=1e-13, abs=1e-15)


# The size


@pytest.mark.parametrize(
    ("summary", "limit"),
    [
        (lambda random: ScoreSummary.of(**any_outcomes(random, 10)), 500),
        (lambda random: ErrorSummary.of(**any_numbers(random, 10)), 500),
        (lambda random: ScoreSummary.of(**of_a_million(random, "one in a hundred")), 150_000),
        (lambda random: ErrorSummary.of(*random.normal(size=(2, 1_000_000))), 200_000),
    ],
    ids=["ten scores", "ten errors", "a million scores", "a million errors"],
)
def test_a_summary_is_small(summary, limit):
    """
    Whatever the number of rows; and only bins with rows take any room.
    """
    found = summary(np.random.default_rng(1))

    assert sum(values.nbytes for values in found.state().values()) <= limit
    assert found.nbytes <= limit


def test_no_scores_make_a_summary_larger_than_its_documentation_says():
    """
    All bins occupied: from below one in a billion to its mirror image.
    """
    every = np.ldexp(1 + (np.arange(256) + 0.5) / 256, np.arange(-31, -1)[:, np.newaxis]).ravel()
    scores = np.concatenate([[0.0, 0.5, 1.0], every, 1 - every])

    summary = ScoreSummary.of(np.zeros(len(scores)), scores)

    assert 2 * summaries._HALF + 1 == len(summary.bins.keys)
    assert 410_000 < summary.nbytes <= 420_000


def test_no_errors_make_a_summary_larger_than_its_documentation_says():
    """
    All bins occupied: from 1e-77 to the largest there are.
    """
    every = np.ldexp(1 + (np.arange(256) + 0.5) / 256, np.arange(-257, 234)[:, np.newaxis]).ravel()
    every = np.append(every[every <= 2e70], 0.0)

    summary = ErrorSummary.of(np.zeros(len(every)), every)

    assert 2_000_000 < summary.nbytes <= 2_600_000


# The catalogue


def test_every_row_metric_has_a_summarised_form():
    """
    Or a reason, for it is absent from windows of more rows than are kept.
    """
    without = {
        (task, metric.name)
        for task in catalog.TASKS
        for metric in catalog.metrics_of(task)
        if metric.needs_rows(task) and task not in metric.summarised
    }

    assert set(WITHOUT_A_SUMMARISED_FORM) == without, (
        "For each, add a function of the task's summary to statistics/summaries.py and `summarised=` to its entry in "
        "catalog.METRICS, or say in WITHOUT_A_SUMMARISED_FORM why it has none."
    )


def test_a_summarised_form_belongs_to_a_metric_that_needs_rows():
    """
    Of a task that has a summary, and that is compared with the rows above.
    """
    assert set(SCENARIOS) == set(catalog.SUMMARIES)
    for metric in catalog.METRICS:
        assert [] == [task for task in metric.summarised if task not in catalog.SUMMARIES], metric.name
        assert [] == [task for task in metric.summarised if not metric.needs_rows(task)], metric.name
