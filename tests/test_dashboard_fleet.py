"""The story that dashboards are asked about is what it says: plain PromQL against scikit-learn, on both stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dashboard_fleet import HOUR, MINUTE, Fleet, Row
from sklearn import metrics as sklearn_metrics

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import prometheus_name
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.promql import Counters, Scope

STORES = ("victoria_metrics", "prometheus")
TOLERANCE = {"victoria_metrics": 1e-6, "prometheus": 0.005}

DEMO = ("tumours", "digits", "diabetes", "image-search")
PLAIN = ("dead", "newborn", "unlabelled", "goalless", "late", "messy")
# The segment of each model of the demonstration that is disturbed.
STRUCK = {
    "tumours": ("clinic", "south"),
    "digits": ("scanner", "mobile"),
    "diabetes": ("laboratory", "B"),
    "image-search": ("app", "phone"),
}

# Labels that a path adds: they differ between the stores.
OF_PATH = ("job", "instance", "service_", "scope_", "otel_scope_", "telemetry_")

in_both_stores = pytest.mark.parametrize("name", STORES)


# What is right


def of_labels(function: Callable[..., float], **arguments: Any) -> Callable[[list[Row]], float]:
    """What a function of scikit-learn says of rows."""
    return lambda rows: function([row.label for row in rows], [row.prediction for row in rows], **arguments)


def mrr(rows: list[Row]) -> float:
    """By the book, because scikit-learn has it only for a single relevant item."""
    ranks = [next((rank for rank, item in enumerate(row.prediction, 1) if item in row.label), np.inf) for row in rows]
    return float(np.mean(1 / np.array(ranks)))


def ndcg(rows: list[Row]) -> float:
    """Of what is shown, among everything that could be."""
    size = 1 + max(max(*row.prediction, *row.label) for row in rows)
    relevant, order = np.zeros((len(rows), size)), np.zeros((len(rows), size))
    for place, row in enumerate(rows):
        relevant[place, list(row.label)] = 1
        order[place, row.prediction] = np.arange(len(row.prediction), 0, -1)
    return sklearn_metrics.ndcg_score(relevant, order, k=len(rows[0].prediction))


# Model, its task, metric, average over classes -> what is right.
TRUTH: dict[tuple[str, str, str, str], Callable[[list[Row]], float]] = {
    ("tumours", "binary", "accuracy", ""): of_labels(sklearn_metrics.accuracy_score),
    ("tumours", "binary", "precision", ""): of_labels(sklearn_metrics.precision_score),
    ("tumours", "binary", "recall", ""): of_labels(sklearn_metrics.recall_score),
    ("tumours", "binary", "f1", ""): of_labels(sklearn_metrics.f1_score),
    ("tumours", "binary", "mcc", ""): of_labels(sklearn_metrics.matthews_corrcoef),
    ("digits", "multiclass", "accuracy", ""): of_labels(sklearn_metrics.accuracy_score),
    ("digits", "multiclass", "f1", "macro"): of_labels(sklearn_metrics.f1_score, average="macro"),
    ("digits", "multiclass", "f1", "weighted"): of_labels(sklearn_metrics.f1_score, average="weighted"),
    ("digits", "multiclass", "precision", "macro"): of_labels(sklearn_metrics.precision_score, average="macro"),
    ("digits", "multiclass", "recall", "macro"): of_labels(sklearn_metrics.recall_score, average="macro"),
    ("diabetes", "regression", "mae", ""): of_labels(sklearn_metrics.mean_absolute_error),
    ("diabetes", "regression", "rmse", ""): of_labels(sklearn_metrics.root_mean_squared_error),
    ("image-search", "ranking", "mrr", ""): mrr,
    ("image-search", "ranking", "ndcg_at_k", ""): ndcg,
}
HEADLINES = {"tumours": "f1", "digits": "accuracy", "diabetes": "rmse", "image-search": "mrr"}


def today(fleet: Fleet, model: str) -> list[Row]:
    return fleet.rows(model, since=fleet.now - 6 * HOUR)


def asked(fleet: Fleet, name: str, model: str, task: Any, metric: str, average: str, scope: Scope) -> dict[Any, float]:
    """Name and value of each segment -> what PromQL says of a metric over six hours; the model has none."""
    of = promql.statistics(task, Counters("6h"), scope)
    (expression,) = (
        str(quantity.expression)
        for quantity in promql.quantities(catalog.BY_NAME[metric], task, of, bounds=False)
        if quantity.average == average and not quantity.per_class
    )
    return {
        tuple(labels.get(label, "") for label in promql.SEGMENT): value
        for labels, value in fleet.stores[name].query(expression, fleet.now)
        if labels[promql.MODEL] == model
    }


def count(fleet: Fleet, name: str, expression: str, time: float | None = None) -> float:
    """The only value, or 0 where nothing is known."""
    found = fleet.stores[name].query(expression, fleet.now if time is None else time)
    assert len(found) <= 1
    return found[0][1] if found else 0.0


# The demonstration


@in_both_stores
@pytest.mark.parametrize("model", [*DEMO, *PLAIN])
def test_six_hours_count_the_rows_of_today(fleet, name, model):
    """
    Every prediction, and every one that has been judged. Prometheus adds half an interval to a process that has ended.
    """
    tolerance = {"victoria_metrics": 0.0, "prometheus": 0.03}[name]
    of_model = f'{{ml_model_name="{model}", ml_segment_name=""}}[6h]'

    outcomes = count(fleet, name, f"sum(increase(ml_model_outcomes_total{of_model}))")
    predictions = count(fleet, name, f"sum(increase(ml_model_predictions_total{of_model}))")

    assert pytest.approx(len(today(fleet, model)), rel=tolerance, abs=1e-6) == outcomes
    assert pytest.approx(fleet.predictions(model, since=fleet.now - 6 * HOUR), rel=tolerance, abs=1e-6) == predictions


@in_both_stores
@pytest.mark.parametrize(("model", "task", "metric", "average"), TRUTH)
def test_quality_of_today_is_what_scikit_learn_says(fleet, name, model, task, metric, average):
    """
    Of both processes together, without yesterday.
    """
    right = TRUTH[model, task, metric, average](today(fleet, model))

    found = asked(fleet, name, model, task, metric, average, Scope())

    assert {("", ""): pytest.approx(right, abs=TOLERANCE[name] * max(1.0, right))} == found


@in_both_stores
@pytest.mark.parametrize(("model", "task", "metric", "average"), [key for key in TRUTH if HEADLINES[key[0]] == key[2]])
def test_the_segment_that_was_struck_is_much_worse_than_its_model(fleet, name, model, task, metric, average):
    """
    And just as bad as scikit-learn says.
    """
    segment, value = STRUCK[model]
    right = TRUTH[model, task, metric, average]([row for row in today(fleet, model) if row.segments[segment] == value])

    found = asked(fleet, name, model, task, metric, average, Scope(segments=True))

    assert pytest.approx(right, abs=TOLERANCE[name] * max(1.0, right)) == found[segment, value]
    worse = found["", ""] - found[segment, value]
    assert (worse if catalog.BY_NAME[metric].better == "higher" else -worse) > 0.05


@in_both_stores
@pytest.mark.parametrize("model", DEMO)
def test_yesterday_there_was_another_version(fleet, name, model):
    """
    It served for two hours, and was not seen again.
    """
    of_version = f'{{ml_model_name="{model}", ml_segment_name="", ml_model_version="0.9"}}'

    then = count(fleet, name, f"sum(increase(ml_model_outcomes_total{of_version}[150m]))", fleet.now - 25 * HOUR)
    since = count(fleet, name, f"sum(count_over_time(ml_model_outcomes_total{of_version}[24h]))")

    assert pytest.approx(len(fleet.rows(model, "0.9")), rel=0.03 if name == "prometheus" else 0.0) == then
    assert 0 == since
    assert len(fleet.rows(model)) == len(fleet.rows(model, "0.9")) + len(fleet.rows(model, "1.0"))


@in_both_stores
@pytest.mark.parametrize(
    ("gauge", "model", "kept"),
    [
        ("ml_model_recall", "tumours", False),
        ("ml_model_accuracy", "digits", False),
        ("ml_model_mrr", "image-search", False),
        ("ml_model_accuracy", "late", True),
    ],
)
def test_objectives_are_clearly_missed_or_kept(fleet, name, gauge, model, kept):
    """
    By each process, as its gauges and their bounds say now. (All these are metrics of which more is better.)
    """
    of_model = f'{{ml_model_name="{model}", ml_segment_name="", ml_average="", ml_class=""}}'
    level = f'{{ml_model_name="{model}", ml_metric="{gauge.removeprefix("ml_model_")}"}}'
    bound = f"min({gauge}_lower{of_model})" if kept else f"max({gauge}_upper{of_model})"

    distance = count(fleet, name, f"{bound} - max(ml_model_objective{level})")

    assert distance > 0.05 if kept else distance < -0.05


# What has happened to the others


@in_both_stores
def test_the_dead_model_is_dead(fleet, name):
    """
    Nothing is known of it now, and something of its time.
    """
    of_model = '{ml_model_name="dead", ml_segment_name=""}'

    assert [] == fleet.stores[name].query('{ml_model_name="dead"}', fleet.now)
    assert count(fleet, name, f"ml_model_f1{of_model}", fleet.now - 2 * HOUR) > 0.5
    assert count(fleet, name, f"sum(increase(ml_model_outcomes_total{of_model}[1d]))") > 300


@in_both_stores
def test_the_newborn_model_is_new(fleet, name):
    """
    Five minutes ago it was not there, and it has a handful of rows.
    """
    of_model = '{ml_model_name="newborn", ml_segment_name=""}'

    assert [] == fleet.stores[name].query('{ml_model_name="newborn"}', fleet.now - 5 * MINUTE)
    assert len(fleet.rows("newborn")) == count(fleet, name, f"ml_model_window_rows{of_model}") < 20


@in_both_stores
def test_the_unlabelled_model_is_busy_and_was_never_judged(fleet, name):
    """
    Its objective is there, and nothing to compare with it.
    """
    of_model = '{ml_model_name="unlabelled", ml_segment_name=""}'

    assert count(fleet, name, f"sum(increase(ml_model_predictions_total{of_model}[10m]))") > 0
    assert 0 == count(fleet, name, f"sum(ml_model_outcomes_total{of_model})")
    assert [] == fleet.stores[name].query(f"ml_model_f1{of_model}", fleet.now)
    assert 0 < count(fleet, name, f"ml_model_objective{of_model}")


@in_both_stores
def test_the_goalless_model_is_judged_and_has_no_objective(fleet, name):
    """
    All others have one.
    """
    store = fleet.stores[name]

    assert count(fleet, name, 'ml_model_rmse{ml_model_name="goalless", ml_segment_name=""}') > 0
    with_one = store.query("count by (ml_model_name) (last_over_time(ml_model_objective[1d]))", fleet.now)
    assert {*DEMO, *PLAIN} - {"goalless"} == {labels["ml_model_name"] for labels, _ in with_one}


@in_both_stores
@pytest.mark.parametrize("health", catalog.HEALTH, ids=lambda health: health.name)
@pytest.mark.parametrize("model", [*DEMO, "late"])
def test_where_labels_come_late_their_health_is_known(fleet, name, model, health):
    """
    Every gauge of it, now.
    """
    gauge = prometheus_name(health.instrument, health.unit, "gauge")

    assert count(fleet, name, f'count({gauge}{{ml_model_name="{model}", ml_segment_name=""}})') > 0


@in_both_stores
@pytest.mark.parametrize("outcome", ["matched", "duplicate", "corrected", "pending", "evicted"])
def test_late_labels_come_to_many_ends(fleet, name, outcome):
    """
    A good number of each.
    """
    of_model = f'{{ml_model_name="late", ml_label_outcome="{outcome}"}}'

    assert count(fleet, name, f"sum(increase(ml_model_labels_total{of_model}[6h]))") > 10


@in_both_stores
def test_the_delays_of_late_labels_are_counted(fleet, name):
    """
    Of each label that was matched.
    """
    matched = len(fleet.rows("late"))

    assert matched == count(fleet, name, 'sum(ml_model_label_delays_total{ml_model_name="late", le="+Inf"})')
    assert 0 < count(fleet, name, 'sum(ml_model_label_delays_total{ml_model_name="late", le="300"})') < matched


@in_both_stores
def test_the_messy_model_has_rows_that_cannot_be_used_and_too_many_countries(fleet, name):
    """
    For two reasons; and one segment has values to spare.
    """
    rejected = fleet.stores[name].query(
        'sum by (ml_reject_reason) (increase(ml_model_rejected_total{ml_model_name="messy"}[6h])) > 0', fleet.now
    )
    beyond = 'ml_model_segments_overflowed_total{ml_model_name="messy", ml_segment_name="country"}'
    countries = [row.segments["country"] for row in fleet.rows("messy")]

    assert {"invalid_label", "invalid_score"} == {labels["ml_reject_reason"] for labels, _ in rejected}
    assert len(countries) - sum(map(countries.count, list(dict.fromkeys(countries))[:2])) == count(fleet, name, beyond)


# The stores


def test_both_stores_were_told_the_same(fleet):
    """
    Every series, now: beside the labels that a path adds there is no difference.
    """

    def known(name: str) -> dict[Any, float]:
        return {
            frozenset((key, value) for key, value in labels.items() if not key.startswith(OF_PATH))
            | {("process", labels.get("instance") or labels["service_instance_id"])}: value
            for labels, value in fleet.stores[name].query('{__name__=~"ml_model_.+"}', fleet.now)
        }

    pushed_to, scraping = (known(name) for name in STORES)

    assert len(pushed_to) > 1000
    assert pytest.approx(pushed_to, rel=1e-9, abs=1e-9) == scraping


@in_both_stores
def test_a_range_has_a_value_for_each_step(fleet, name):
    """
    From its start to its end, both included.
    """
    start = fleet.now - 30 * MINUTE

    ((labels, values),) = fleet.stores[name].range(
        'ml_model_window_rows{ml_model_name="late", ml_segment_name=""}', start, fleet.now, MINUTE
    )

    assert "late" == labels["ml_model_name"]
    assert list(range(start, fleet.now + 1, MINUTE)) == [time for time, _ in values]
