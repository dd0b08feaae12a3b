"""
History: files are evaluated and sent, and what real stores then say of any past window is what the oracles say of it.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from backends import Store, binary, eventually, prometheus, victoria_metrics, vmagent
from oracles import Rows, expected
from test_batch_evaluation import job_of, table_of
from test_oracles import SCENARIOS

from otel_model_metrics import catalog
from otel_model_metrics.batch import Evaluation, evaluate, openmetrics, sending
from otel_model_metrics.batch.identity import prometheus_target, resource_of
from otel_model_metrics.batch.points import points
from otel_model_metrics.prometheus_names import prometheus_name
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.promql import Counters, Scope

HOUR = 3600
SILENT = 2  # of six windows, the one without rows
WINDOWS = [0, 1, 3, 4, 5]


@dataclass(frozen=True)
class History:
    """What was sent: the evaluation of each task, its rows by the end of their window, and the stores that have it."""

    evaluations: dict[str, Evaluation]
    rows: dict[str, dict[float, Rows]]
    stores: dict[str, Store]


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> Iterator[History]:
    folder = tmp_path_factory.mktemp("history")
    start = int(time.time()) // HOUR * HOUR - 12 * HOUR
    evaluations, of_tasks = {}, {}
    for task in catalog.TASKS:
        tables, of_tasks[task] = [], {}
        for window in WINDOWS:
            begin = start + window * HOUR
            rows = SCENARIOS[task]["any"](np.random.default_rng(window))
            times = begin + np.random.default_rng(window).uniform(0, HOUR, len(rows))
            tables.append(table_of(task, rows, times.tolist()))
            of_tasks[task][begin + HOUR] = rows
        for number, table in enumerate(tables):
            pq.write_table(table, folder / f"{task}-{number}.parquet")
        evaluations[task] = evaluate(folder / f"{task}-*.parquet", job_of(task, every="1h", model=task))
    sent = {task: points(evaluation) for task, evaluation in evaluations.items()}
    resources = {task: resource_of(None, [f"{task}-*.parquet"], evaluations[task].job) for task in sent}

    for task in sent:
        with (folder / f"{task}.txt").open("w", encoding="utf-8") as file:
            openmetrics.write(sent[task], prometheus_target(resources[task].attributes), file)
        load = [binary("promtool"), "tsdb", "create-blocks-from", "openmetrics", folder / f"{task}.txt"]
        subprocess.run([*load, folder / "loaded" / "prometheus"], check=True, capture_output=True)

    (folder / "written").mkdir()
    with (
        victoria_metrics(folder) as victoria,
        prometheus(folder / "loaded", "127.0.0.1:1") as loaded,
        prometheus(folder / "written", "127.0.0.1:1", out_of_order="2d") as written,
        vmagent(folder / "written", written) as agent,
    ):
        for url in (victoria.url, agent):
            for _ in range(2):  # a second run changes nothing
                for task, of_task in sent.items():
                    answer = sending.send(of_task, resources[task], endpoint=f"{url}/opentelemetry")
                    assert (None, of_task.count) == (answer.refusal, answer.points)
        stores = {"VictoriaMetrics": victoria, "Prometheus, blocks": loaded, "Prometheus, remote write": written}
        last = max(of_tasks["ranking"])
        for store in stores.values():
            eventually(lambda store=store: len(store.query("ml_model_window_rows", last)) >= 4, store.url)
        yield History(evaluations, of_tasks, stores)


STORES = ("VictoriaMetrics", "Prometheus, blocks", "Prometheus, remote write")
in_every_store = pytest.mark.parametrize("name", STORES)


def of_window(store: Store, expression: str, ends: Any) -> dict[float, dict[tuple[str, ...], float]]:
    """What a query gives at the end of each window, by the segment and the other labels of its series."""
    start, end = min(ends), max(ends)
    found: dict[float, dict[tuple[str, ...], float]] = {}
    for labels, values in store.range(expression, start, end, HOUR):
        key = tuple(labels.get(label, "") for label in (*promql.SEGMENT, promql.K, promql.AVERAGE, promql.CLASS))
        for at, value in values:
            assert key not in found.setdefault(at, {}), f"{key} twice"
            found[at][key] = value
    return found


@in_every_store
@pytest.mark.parametrize("task", catalog.TASKS)
def test_fleet_expressions_over_a_past_window_are_the_oracles(history, task, name):
    """
    For the whole and for each segment, as the dashboards ask; a silent window has none.
    """
    compared: dict[str, list[tuple[float, float, str]]] = {}
    for segments in (False, True):
        scope = Scope(segments=segments, matchers=(f'ml_model_name="{task}"',))
        of = promql.statistics(task, Counters("1h"), scope)
        for metric in catalog.metrics_of(task):
            if metric.always or not promql.is_function_of_totals(metric, task):
                continue
            for quantity in promql.quantities(metric, task, of, bounds=False):
                if quantity.per_class:
                    continue
                found = of_window(history.stores[name], str(quantity.expression), history.rows[task])
                for end, rows in history.rows[task].items():
                    for (segment, value, k, _, _), number in found.get(end, {}).items():
                        part = rows if not segment else rows.where([one == value for one in rows.segments[segment]])
                        variant = {"average": quantity.average} if quantity.average else {"k": int(k)} if k else {}
                        right = expected(task, metric.name, part, **variant)
                        compared.setdefault(metric.name, []).append((right, number, f"{variant} {value} {end}"))

    # A window whose errors are a millionth of those before it is the difference of two large totals.
    assert [] == [
        (metric, right, number, where)
        for metric, values in compared.items()
        for right, number, where in values
        if not math.isclose(right, number, rel_tol=1e-6, abs_tol=1e-9 * max(1.0, *(abs(one[0]) for one in values)))
    ]
    assert sum(map(len, compared.values())) >= 5 * 3 * len(WINDOWS)


@in_every_store
@pytest.mark.parametrize("task", catalog.TASKS)
def test_gauges_of_history_are_the_evaluations(history, task, name):
    """
    To the last digit that a store keeps, with the end of the window as their time.
    """
    evaluation, store = history.evaluations[task], history.stores[name]
    compared = 0
    for definition in catalog.instruments_of(task, evaluation.job.selection.metrics):
        if definition.kind != "gauge" or definition.name.startswith(("ml.model.label.", "ml.model.objective")):
            continue
        series = prometheus_name(definition.name, definition.unit, "gauge")
        found = of_window(store, f'{series}{{ml_model_name="{task}"}}', [w.end for w in evaluation.windows])
        for window in evaluation.windows:
            for one in window.snapshot.series:
                if catalog.NAMESPACE + one.name != definition.name:
                    continue
                for group, value in enumerate(one.values.tolist()):
                    segment = window.snapshot.segments[group] or ("", "")
                    variant = dict(one.variant)
                    key = (*segment, *(variant.get(a, "") for a in (catalog.K, catalog.AVERAGE, catalog.CLASS)))
                    stored = found.get(window.end, {}).get(key, math.nan)
                    assert stored == pytest.approx(value, rel=1e-12, nan_ok=True), (series, key, window.end)
                    compared += 1
    assert compared > 100


@in_every_store
def test_a_silent_window_has_no_rows_and_its_totals_stay(history, name):
    """
    Rather than nothing: absence of rows is a fact, too.
    """
    store = history.stores[name]
    end = min(history.rows["binary"]) + SILENT * HOUR

    (rows,) = store.query('ml_model_window_rows{ml_model_name="binary", ml_segment_name=""}', end)
    counted = store.query('sum(increase(ml_model_outcomes_total{ml_model_name="binary", ml_segment_name=""}[1h]))', end)

    assert 0 == rows[1]
    assert [0.0] == [value for _, value in counted]


@in_every_store
def test_all_windows_together_count_every_row_once(history, name):
    """
    Although everything was sent twice.
    """
    store = history.stores[name]
    for task, windows in history.rows.items():
        total = f'sum(increase(ml_model_outcomes_total{{ml_model_name="{task}", ml_segment_name=""}}[6h]))'

        (counted,) = [value for _, value in store.query(total, max(windows))]

        assert sum(map(len, windows.values())) == pytest.approx(counted, rel=1e-6)
