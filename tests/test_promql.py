"""PromQL made from the catalogue: complete expressions, so that a reviewer sees what ships."""

from __future__ import annotations

import inspect

import numpy as np
import promql_parser
import pytest

from otel_model_metrics import catalog
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.expressions import Expression, compare
from otel_model_metrics.provisioning.promql import Counters, Recorded, Scope

WHOLE = Scope()


def expression(name: str, task: catalog.Task, source: promql.Source, scope: Scope = WHOLE, average: str = "") -> str:
    statistics = promql.statistics(task, source, scope)
    metric = catalog.BY_NAME[name.removesuffix(".lower").removesuffix(".upper")]
    (found,) = [
        one for one in promql.quantities(metric, task, statistics) if (one.name, one.average) == (name, average)
    ]
    return str(found.expression)


GOLDEN = [
    (
        ("accuracy", "binary", Counters("1h")),
        """
        sum by (ml_model_name, ml_model_version) (
          increase(ml_model_outcomes_total{ml_model_task="binary", ml_outcome="correct", ml_segment_name=""}[1h]))
        / (sum by (ml_model_name, ml_model_version) (
          increase(ml_model_outcomes_total{ml_model_task="binary", ml_segment_name=""}[1h])) != 0)
        """,
    ),
    (
        ("f1", "binary", Recorded("6h")),
        """
        2 * sum by (ml_model_name, ml_model_version) (ml_model:outcomes:6h{ml_model_task="binary",
          ml_class_actual="positive", ml_class_predicted="positive", ml_segment_name=""})
        / (sum by (ml_model_name, ml_model_version) (ml_model:outcomes:6h{ml_model_task="binary",
          ml_class_predicted="positive", ml_segment_name=""})
        + sum by (ml_model_name, ml_model_version) (ml_model:outcomes:6h{ml_model_task="binary",
          ml_class_actual="positive", ml_segment_name=""}) != 0)
        """,
    ),
    (
        ("rmse", "regression", Counters("30m", namespace="acme"), Scope(by=("region",), matchers=('region=~"eu.*"',))),
        """
        sqrt(sum by (ml_model_name, ml_model_version, region) (
          increase(acme_ml_model_error_squared_total{ml_segment_name="", region=~"eu.*"}[30m]))
        / (sum by (ml_model_name, ml_model_version, region) (increase(acme_ml_model_outcomes_total{
          ml_model_task="regression", ml_segment_name="", region=~"eu.*"}[30m])) != 0))
        """,
    ),
    (
        ("hit_rate_at_k", "ranking", Recorded("1h"), Scope(segments=True)),
        """
        ml_model:rank_hits:1h / on (ml_model_name, ml_model_version, ml_segment_name, ml_segment_value) group_left ()
        (sum by (ml_model_name, ml_model_version, ml_segment_name, ml_segment_value) (
          ml_model:outcomes:1h{ml_model_task="ranking"}) != 0)
        """,
    ),
    (
        ("recall", "multiclass", Recorded("1h"), WHOLE, "macro"),
        """
        avg by (ml_model_name, ml_model_version) (
          ml_model:class_correct:1h{ml_segment_name=""} / (ml_model:class_labels:1h{ml_segment_name=""} != 0))
        """,
    ),
    (
        ("recall.lower", "binary", Recorded("1h")),
        """
        clamp((
          sum by (ml_model_name, ml_model_version) (ml_model:outcomes:1h{ml_model_task="binary",
            ml_class_actual="positive", ml_class_predicted="positive", ml_segment_name=""})
          + 1.9207294103470627 - 1.959963984540054 * sqrt(
            sum by (ml_model_name, ml_model_version) (ml_model:outcomes:1h{ml_model_task="binary",
              ml_class_actual="positive", ml_class_predicted="positive", ml_segment_name=""})
            * sum by (ml_model_name, ml_model_version) (ml_model:outcomes:1h{ml_model_task="binary",
              ml_class_actual="positive", ml_class_predicted="negative", ml_segment_name=""})
            / (sum by (ml_model_name, ml_model_version) (ml_model:outcomes:1h{ml_model_task="binary",
              ml_class_actual="positive", ml_segment_name=""}) != 0) + 0.9603647051735313)
        ) / (sum by (ml_model_name, ml_model_version) (ml_model:outcomes:1h{ml_model_task="binary",
          ml_class_actual="positive", ml_segment_name=""}) + 3.8414588206941254), 0, 1)
        """,
    ),
]


@pytest.mark.parametrize(("arguments", "golden"), GOLDEN, ids=[f"{one[0][0]}, {one[0][1]}" for one in GOLDEN])
def test_an_expression_is_as_short_as_a_person_would_write_it(arguments, golden):
    """
    Cells that share a label are one selector, and nothing is summed twice.
    """
    assert str(promql_parser.parse(golden)) == str(promql_parser.parse(expression(*arguments)))


@pytest.mark.parametrize("source", [Counters("$window"), Recorded("1h")], ids=["counters", "recorded"])
@pytest.mark.parametrize("task", catalog.TASKS)
def test_every_expression_is_promql(task, source):
    """
    With and without segments; a variable of a dashboard may stand for the window.
    """
    for segments in (False, True):
        statistics = promql.statistics(task, source, Scope(segments=segments))
        for metric in catalog.metrics_of(task):
            if promql.is_function_of_totals(metric, task):
                for quantity in promql.quantities(metric, task, statistics):
                    assert promql_parser.parse(str(quantity.expression).replace("$window", "5m"))


def test_whatever_follows_from_totals_has_an_expression():
    """
    What has none needs the rows, or sums that are not exported.
    """
    without = {
        (task, metric.name)
        for task in catalog.TASKS
        for metric in catalog.metrics_of(task)
        if not promql.is_function_of_totals(metric, task)
    }

    not_exported = {(task, "window.age") for task in catalog.TASKS} | {
        ("multiclass", "log_loss"),
        ("multiclass", "top_k_accuracy"),
    }
    needs_rows = {
        (task, metric.name) for task in catalog.TASKS for metric in catalog.metrics_of(task) if metric.needs_rows(task)
    }
    assert needs_rows | not_exported == without


def test_statistics_in_promql_are_named_as_functions_ask_for_them():
    """
    A total that nobody asks for, or a statistic without a total, is a slip of the pen.
    """
    for task in catalog.TASKS:
        asked = {
            name
            for metric in catalog.metrics_of(task)
            if promql.is_function_of_totals(metric, task)
            for function in (metric.functions[task], metric.intervals.get(task, metric.functions[task]))
            for name in inspect.signature(function).parameters
        }
        assert asked == set(promql.statistics(task, Counters("1h"))) - ({"tn"} if task == "multiclass" else set())


def test_sides_with_different_labels_are_matched_on_those_they_share():
    """
    One value for each k, divided by one number of rows.
    """
    by_k, rows = Expression("hits", ["model", "k"]), Expression("rows", ["model"])

    assert "hits / on (model) group_left () rows" == str(by_k / rows)
    assert "rows - on (model) group_right () hits" == str(rows - by_k)
    assert "hits and on (model) rows" == str(by_k.where(rows))
    assert "hits > on (model) group_left () rows" == str(compare(by_k, ">", rows))


def test_operators_keep_their_order():
    """
    Parentheses are where PromQL would bind otherwise, and only there.
    """
    a, b, c = (Expression(name, ["model"]) for name in "abc")

    assert "a - (b - c)" == str(a - (b - c))
    assert "a - b - c" == str(a - b - c)
    assert "(a + b) * c / (a / b)" == str((a + b) * c / (a / b))
    assert "1 - 0.5 * (1 - a)" == str(1 - 0.5 * (1 - a))
    assert "(a or b) > 2" == str(compare(a.or_else(b), ">", 2))
    assert "a unless b > 2 or c" == str(a.unless(compare(b, ">", 2)).or_else(c))
    assert "(a - b) ^ 2" == str((a - b) ** 2)


def test_a_function_that_cannot_be_written_in_promql_says_so():
    """
    Rather than something wrong: there is no median of sums.
    """
    a = Expression("a", ["model"])

    with pytest.raises(
        TypeError, match=r"^np\.median has no PromQL form yet\. A function over totals may use \+ - \* /"
    ):
        np.median(a)
    with pytest.raises(TypeError, match=r"^np\.log has no PromQL form yet\."):
        np.log(a)
    with pytest.raises(TypeError, match=r"^np\.where needs a value that is undefined, or one to put in"):
        np.where(np.greater(a, 1), a, 0.0)
