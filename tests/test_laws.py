"""
Laws: what holds for every metric and every total of the catalogue, and for every file of the package.
"""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import Rows
from test_oracles import ITEMS, KS, SCENARIOS, monitor_of, record, record_batch

import otel_model_metrics
from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, RegressionMonitor, Window, catalog

PACKAGE = Path(otel_model_metrics.__file__).parent
KINDS = {
    "binary": BinaryMonitor,
    "multiclass": MulticlassMonitor,
    "regression": RegressionMonitor,
    "ranking": RankingMonitor,
}
EVERY_WINDOW = [
    pytest.param(task, scenario, id=f"{task}, {scenario}")
    for task, scenarios in SCENARIOS.items()
    for scenario in scenarios
]
for_every_task = pytest.mark.parametrize("task", catalog.TASKS)
for_every_window = pytest.mark.parametrize(("task", "scenario"), EVERY_WINDOW)


def window_of(task: str, scenario: str = "any", seed: int = 1) -> Rows:
    rows: Rows = SCENARIOS[task][scenario](np.random.default_rng(seed))
    return rows


def picked(rows: Rows, order: Any) -> Rows:
    """These rows, in this order."""
    segments = {name: [values[row] for row in order] for name, values in (rows.segments or {}).items()}
    return replace(
        rows,
        predictions=[rows.predictions[row] for row in order],
        labels=[rows.labels[row] for row in order],
        scores=None if rows.scores is None else rows.scores[np.array(order, int)],
        segments=segments,
    )


def everything(monitor: Any) -> dict[str, float]:
    """Every defined value, of the whole and of every segment, by a readable name."""
    data = monitor.snapshot().to_dict()
    return {
        **data["values"],
        **{f"{segment} {name}": value for segment, of in data["segments"].items() for name, value in of.items()},
    }


# The numbers


@for_every_window
def test_the_order_of_rows_does_not_matter(make, task, scenario):
    """
    A window is a set of rows; only rounding may differ.
    """
    rows = window_of(task, scenario)
    one, other = monitor_of(make, task, rows, "one"), monitor_of(make, task, rows, "other")

    record_batch(one, rows)
    record_batch(other, picked(rows, np.random.default_rng(2).permutation(len(rows))))

    in_order, shuffled = everything(one), everything(other)
    assert in_order.keys() == shuffled.keys()
    for name, value in in_order.items():
        # Without any spread the bounds of a mean are the root of a rounding error away from it.
        tolerance = 1e-7 if re.search(r"(mae|rmse|mrr)\.(lower|upper)$", name) else 1e-9
        assert value == pytest.approx(shuffled[name], rel=1e-9, abs=tolerance), name


@for_every_task
def test_a_row_recorded_twice_weighs_twice(make, task):
    """
    So recording every row twice changes no value - only how sure one can be of it.
    """
    rows = window_of(task)
    once, twice = monitor_of(make, task, rows, "once"), monitor_of(make, task, rows, "twice")

    record_batch(once, rows)
    for _ in range(2):
        record_batch(twice, rows)

    def values(monitor: Any) -> dict[str, float]:
        return {
            name: value
            for name, value in everything(monitor).items()
            if "window.rows" not in name and ".lower" not in name and ".upper" not in name
        }

    assert values(once) == pytest.approx(values(twice), rel=1e-9, abs=1e-9)
    assert 2 * once.snapshot().rows == twice.snapshot().rows


@for_every_window
def test_undefined_is_absent(make, exports, task, scenario):
    """
    No NaN, no infinity, no None is exported, and no series that a snapshot does not have.
    """
    rows = window_of(task, scenario)
    monitor = monitor_of(make, task, rows, "model")

    record_batch(monitor, rows)
    snapshot = monitor.snapshot()
    exported = exports.collect()

    values = [value for points in exported.values() for value in points.values()]
    assert {float} >= {type(value) for value in values}
    assert all(math.isfinite(value) for value in values)
    gauges = {catalog.NAMESPACE + series.name for series in snapshot.series}
    defined = len(everything(monitor)) if len(rows) else 0  # a monitor that was never used exports nothing
    assert defined == sum(len(exported.get(name, ())) for name in gauges)


@for_every_task
def test_an_empty_window_exports_that_it_is_empty(make, exports, clock, task):
    """
    Its rows and age, the objectives and the totals; no quality, for there is none.
    """
    rows = window_of(task)
    first = next(metric.name for metric in catalog.metrics_of(task) if not metric.always)
    monitor = make(KINDS[task], window=Window(age=60.0), objectives={first: 0.5})
    record(monitor, replace(rows, scores=None))
    assert catalog.NAMESPACE + first in exports.collect()

    clock.tick(61.0)
    exported = {name for name, points in exports.collect().items() if points}

    totals = {total.instrument for total in (*catalog.totals_of(task), *catalog.COUNTS) if total is not catalog.DELAYS}
    assert {"ml.model.window.rows", "ml.model.window.age", "ml.model.objective"} | totals == exported
    for name in ("ml.model.window.rows", "ml.model.window.age"):
        assert {0.0} == set(exports.collect()[name].values())


@for_every_task
def test_a_monitor_that_has_recorded_nothing_exports_nothing(make, exports, task):
    """
    The parent of forked workers has models too, and no traffic.
    """
    make(KINDS[task])

    assert {} == {name: points for name, points in exports.collect().items() if points}


@for_every_task
@pytest.mark.parametrize("labelled", [1.0, 0.6, 0.0])
def test_segments_of_a_partition_add_up_to_the_whole(make, exports, task, labelled):
    """
    For every total: each row is in one segment of a name, "__other__" included, so their sum is the overall series.
    """
    random = np.random.default_rng(6)
    monitor = make(KINDS[task], max_segment_values=3)
    rows = window_of(task)
    parts = [f"part-{number}" for number in random.integers(0, 6, len(rows))]
    for row in range(len(rows)):
        label = rows.labels[row] if random.random() < labelled else None
        monitor.record(rows.predictions[row], label, segments={"part": parts[row]})
    exports.collect()  # series are born at zero

    exported = exports.collect()
    for total in catalog.totals_of(task):
        whole: dict[Any, float] = {}
        sums: dict[Any, float] = defaultdict(float)
        for series, value in exported.get(total.instrument, {}).items():
            attributes = dict(series)
            of = attributes.pop(catalog.SEGMENT_VALUE, None)
            attributes.pop(catalog.SEGMENT_NAME, None)
            key = frozenset(attributes.items())
            if of is None:
                whole[key] = value
            else:
                sums[key] += value
        assert whole == pytest.approx(sums), total.name
        assert (sum(whole.values()) > 0) is (labelled > 0 or total.name == "predictions"), total.name
    rows_of_parts = dict(exported["ml.model.window.rows"])
    overall = rows_of_parts.pop(frozenset(monitor.attributes.items()))
    assert overall == sum(rows_of_parts.values())


@for_every_task
def test_statistics_of_processes_add_up_to_those_of_the_fleet(make, task):
    """
    What a metric is over three processes follows from the sum of their totals, whenever it needs no rows.
    """
    rows = window_of(task, "any", seed=3)
    share = np.random.default_rng(4).integers(0, 3, len(rows))
    fleet = monitor_of(make, task, rows, "fleet")
    record_batch(fleet, rows)
    added: dict[str, Any] = {}
    for process in range(3):
        monitor = monitor_of(make, task, rows, f"process {process}")
        record_batch(monitor, picked(rows, np.flatnonzero(share == process).tolist()))
        for name, values in monitor.collect()[0].totals.items():
            added[name] = added.get(name, 0) + values[:1]

    sums = {**catalog.statistics_of(task, added), "age": np.zeros(1)}
    additive = [one for one in catalog.metrics_of(task) if not one.always and not one.needs_rows(task)]
    assert additive
    for metric in additive:
        values = metric.values(task, sums, lambda group: {}, 1)[0]
        by = metric.by.get(task)
        if by == "k":
            found = [fleet.snapshot().value(metric.name, k=k) for k in (KS if task == "ranking" else KS[:2])]
        elif by == "class":
            found = [fleet.snapshot().value(metric.name, class_=one) for one in rows.classes]
        else:
            found, values = [fleet.snapshot().value(metric.name)], [values]
        assert [None if math.isnan(value) else value for value in values] == pytest.approx(found), metric.name


@for_every_window
def test_every_value_is_within_its_bounds_and_its_range(make, task, scenario):
    """
    lower <= value <= upper, and a ratio of which more is better is between 0 and 1.
    """
    rows = window_of(task, scenario)
    monitor = monitor_of(make, task, rows, "model")
    record_batch(monitor, rows)

    values = everything(monitor)
    for name, value in values.items():
        base = re.sub(r"\.(lower|upper)", "", name)
        metric = catalog.BY_NAME[base.split("{")[0].split(" ")[-1]]
        if metric.better == "higher" and metric.unit == "{ratio}":
            assert 0.0 <= value <= 1.0, name
        if ".lower" in name:
            assert value <= values[base] + 1e-12, name
            assert values[base] <= values[name.replace(".lower", ".upper")] + 1e-12, name


PERFECT = {
    "binary": Rows([True, False] * 10, [True, False] * 10, np.array([1.0, 0.0] * 10), segments={}),
    "multiclass": Rows(list("abc") * 5, list("abc") * 5, np.tile(np.eye(3), (5, 1)), tuple("abc"), segments={}),
    "regression": Rows([1.0, 2.0, 5.0], [1.0, 2.0, 5.0], segments={}),
    "ranking": Rows([ITEMS] * 3, [dict.fromkeys(ITEMS[: max(KS)], 1)] * 3, segments={}),
}


@for_every_task
def test_a_model_without_fault_has_the_best_value_of_every_metric(make, task):
    """
    1 where more is better, 0 where less is; so `better`, on which alerts and colours depend, tells the truth.
    """
    monitor = monitor_of(make, task, PERFECT[task], "model")
    record(monitor, PERFECT[task])

    snapshot = monitor.snapshot()
    for metric in catalog.metrics_of(task):
        if metric.better:
            k = {"k": max(KS)} if task == "ranking" and metric.by else {}
            best = 1.0 if metric.better == "higher" else 0.0
            assert best == pytest.approx(snapshot.value(metric.name, **k), abs=1e-12), metric.name


@for_every_task
def test_a_row_recorded_while_a_snapshot_is_computed_does_not_disturb_it(make, monkeypatch, task):
    """
    Statistics are computed without the lock; new classes and segments may come meanwhile.
    """
    first, second = {
        "binary": ((True, True), (False, True)),
        "multiclass": (("a", "a"), ("b", "c")),
        "regression": ((1.0, 1.0), (2.0, 1.0)),
        "ranking": ((["a"], "a"), (["b"], "a")),
    }[task]
    monitor = make(KINDS[task])
    monitor.record(*first, segments={"country": "DE"})
    recorder = monitor._recorder
    sums = recorder.sums

    def sums_with_traffic(reading: Any) -> Any:
        monitor.record(*second, segments={"country": "FR"})
        recorder.drain()
        return sums(reading)

    wanted = monitor.snapshot().to_dict()
    monkeypatch.setattr(recorder, "sums", sums_with_traffic)

    assert wanted == monitor.snapshot().to_dict()


# The table


@pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda metric: metric.name)
def test_every_metric_has_what_its_derivatives_need(metric):
    """
    Name, unit, sentence and direction, from which instrument, documentation, panel and alert follow.
    """
    assert re.fullmatch(r"[a-z][a-z0-9]*([._][a-z0-9]+)*", metric.name)
    assert not metric.name.endswith(("_total", "_ratio", "_seconds", "_count", "_sum", "_bucket", "_info"))
    assert re.fullmatch(r"\{[a-z]+(\^2)?\}|s", metric.unit), "never '1', whose Prometheus name differs by path"
    assert re.fullmatch(r"[A-Z].*[a-z]\.", metric.description), "a sentence"
    assert metric.better or metric.always
    assert set(metric.functions) <= set(catalog.TASKS)
    assert set(metric.by) <= set(metric.functions)


@pytest.mark.parametrize("total", [*catalog.TOTALS, *catalog.COUNTS], ids=lambda total: total.name)
def test_every_total_has_what_its_derivatives_need(total):
    """
    And no name that Prometheus would double.
    """
    assert re.fullmatch(r"[a-z][a-z0-9]*([._][a-z0-9]+)*", total.name)
    assert not total.name.endswith("total")
    assert re.fullmatch(r"\{[a-z]+(\^[24])?\}", total.unit)
    assert re.fullmatch(r"[A-Z].*[a-z0-9_]\.", total.description)


def test_no_name_is_in_the_table_twice():
    """
    A name is one instrument, whatever the task.
    """
    names = [metric.instrument for metric in catalog.METRICS]
    totals = {total.instrument for total in (*catalog.TOTALS, *catalog.COUNTS)}

    assert len(names) == len(set(names))
    assert set() == totals & set(names)
    for total in totals:  # one instrument has one unit and one description, whichever task creates it
        assert 1 == len({(one.unit, one.description) for one in catalog.TOTALS if one.instrument == total}) or (
            total in {one.instrument for one in catalog.COUNTS}
        )


# Names a user gives


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["brier"]}, "Unknown metric 'brier'; did you mean 'brier_score'? Known: {known}. (metrics=)"),
        ({"metrics": ["F1"]}, "Unknown metric 'F1'; did you mean 'f1'? Known: {known}. (metrics=)"),
        (
            {"metrics": ["f1", "average precision"]},
            "Unknown metric 'average precision'; did you mean 'average_precision' or 'precision'? "
            "Known: {known}. (metrics=)",
        ),
        ({"metrics": ["zzz"]}, "Unknown metric 'zzz'. Known: {known}. (metrics=)"),
        ({"metrics": ["mae"]}, "Unknown metric 'mae'. Known: {known}. (metrics=)"),
        ({"metrics": [7]}, "Unknown metric 7. Known: {known}. (metrics=)"),
        (
            {"metrics": ["f1", "recall"], "segment_metrics": ["precision"]},
            "Unknown metric 'precision'. Known: f1, recall. (segment_metrics=)",
        ),
        (
            {"metrics": ["f1", "recall"], "objectives": {"f2": 0.9}},
            "Unknown metric 'f2'; did you mean 'f1'? Known: f1, recall. (objectives=)",
        ),
    ],
    ids=str,
)
def test_an_unknown_metric_is_refused_with_the_nearest_names(make, arguments, message):
    """
    And with all those there are.
    """
    known = ", ".join(metric.name for metric in catalog.metrics_of("binary") if not metric.always)

    with pytest.raises(ValueError, match="Unknown metric") as raised:
        make(BinaryMonitor, **arguments)

    assert message.format(known=known) == str(raised.value)


@pytest.mark.parametrize("argument", ["metrics", "segment_metrics"])
def test_several_names_are_not_one_string(make, argument):
    """
    Or each of its letters would be looked up.
    """
    with pytest.raises(TypeError) as raised:
        make(BinaryMonitor, **{argument: "f1"})

    assert f"{argument} must be several names, got the single string 'f1'. Write [\"f1\"]." == str(raised.value)


@for_every_task
def test_every_metric_can_be_asked_for_alone(make, task):
    """
    `metrics=` computes that one, and what explains its absence; asking a snapshot for another is an error.
    """
    names = [metric.name for metric in catalog.metrics_of(task) if not metric.always]
    rows = window_of(task)
    for name in names:
        monitor = make(KINDS[task], name, metrics=[name], segment_metrics=[name])
        record_batch(monitor, replace(rows, scores=None))

        computed = {series.name.removesuffix(".lower").removesuffix(".upper") for series in monitor.snapshot().series}
        assert {name, "window.rows", "window.age"} == computed
        other = next(one for one in names if one != name)
        with pytest.raises(KeyError, match="not in its metrics="):
            monitor.snapshot().value(other)


# The house

RUNNING = {
    *("monitors", "window", "vocabulary", "statistics", "catalog", "ground_truth", "instruments", "otlp", "batch"),
    *("pipeline", "recorder", "segments", "encoding", "columns", "totals", "snapshot", "version"),
    *("tally", "packing", "joining", "labels_http", "arguments", "files", "cells", "prometheus_names"),
}
APPLICATIONS = {"labels_files", "cli", "commands", "evaluate_command", "evaluate_outputs", "__main__", "demo"}
API = {"instruments", "monitors", "otlp", "batch"}
SDK = {"otlp", "pipeline", "batch"}
# Which rooms a room may import, where the design says so: only rooms below it.
BELOW = {
    "version": set(),
    "vocabulary": set(),
    "columns": set(),
    "totals": set(),
    "statistics": {"statistics"},
    "window": {"vocabulary"},
    "catalog": {"statistics"},
    "segments": {"statistics", "vocabulary"},
    "provisioning": {"provisioning", "catalog", "prometheus_names", "version"},
    "prometheus_names": set(),
    "ground_truth": {"ground_truth"},
}


def sources() -> Iterator[tuple[str, str, Path]]:
    """Module and room (the part of the house) of every file of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), parts[0], path


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports when it runs, and whether at once (or only when a function is called)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports are absolute"
                # `from package import module` names a module; `from module import name` does too, one level up
                yield from ((f"{child.module}.{alias.name}", at_once) for alias in child.names)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, at_once and not inside)

    return walk(tree, True)


def rooms_imported(path: Path) -> set[str]:
    """Rooms of ours that a file imports, at once or later."""
    return {
        name.split(".")[1]
        for name, _ in imports_of(path)
        if name.startswith("otel_model_metrics.")  # the bare package is the name-plate
    }


def test_imports_run_downwards_only():
    """
    Whoever opens a file needs to know nothing of the rooms above it.
    """
    wrong = [
        f"{module} imports {room}"
        for module, own, path in sources()
        for room in sorted(rooms_imported(path))
        if own in BELOW and room not in BELOW[own]
    ]

    assert [] == wrong


def test_no_rooms_import_each_other():
    """
    Not even by a detour.
    """
    below: dict[str, set[str]] = defaultdict(set)
    for _, room, path in sources():
        below[room] |= rooms_imported(path) - {room}

    def reached(room: str, seen: set[str]) -> set[str]:
        for one in below[room] - seen:
            seen.add(one)
            reached(one, seen)
        return seen

    assert [] == [room for room in sorted(below) if room in reached(room, set())]


def test_only_a_few_files_know_opentelemetry():
    """
    Instruments and monitors the API, configure() and the batch the SDK, which they import when called.
    """
    wrong = []
    for module, room, path in sources():
        if room in APPLICATIONS:
            continue
        for name, at_once in imports_of(path):
            if name.split(".")[0] not in ("opentelemetry", "grpc", "google", "requests"):
                continue
            of_api = name == "opentelemetry.metrics" or name.startswith("opentelemetry.metrics.")
            if not (room in API if of_api else room in SDK and not (at_once and room in ("otlp", "pipeline"))):
                wrong.append(f"{module} imports {name}")

    assert [] == wrong


def test_the_running_wing_does_not_know_the_generating_one():
    """
    Dashboards, alerts, the demo and the command line are built on the library, not into it.
    """
    wrong = [
        f"{module} imports {room}"
        for module, own, path in sources()
        for room in sorted(rooms_imported(path))
        if own in RUNNING and room in {"provisioning", "reference", *APPLICATIONS}
    ]

    assert [] == wrong


def test_every_room_has_a_place_in_the_house():
    """
    A new file at the top is named above, so that the laws of imports hold for it too.
    """
    rooms = {room for _, room, _ in sources()}

    assert set() == rooms - RUNNING - APPLICATIONS - {"__init__", "provisioning", "reference"}


def test_the_literatures_words_stay_inside_statistics():
    """
    Elsewhere there are predictions, labels and scores.
    """
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number}: {word}"
        for _, room, path in sources()
        if room not in ("statistics", "catalog")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for word in re.findall(r"y_(?:true|pred|score|hat)\b|ground_?truth_label|y_actual", line)
    ]

    assert [] == wrong


def test_importing_the_library_is_cheap():
    """
    Neither the SDK nor an exporter, gRPC, HTTP client or data frame library is loaded with it.
    """
    heavy = ["opentelemetry.sdk", "opentelemetry.exporter", "grpc", "requests", "pandas", "pyarrow", "sklearn", "scipy"]
    script = f"""
import sys
import otel_model_metrics
monitor = otel_model_metrics.BinaryMonitor("model")
monitor.record_batch([True, False], [True, True], scores=[0.5, 0.5], segments={{"country": ["DE", "FR"]}})
monitor.snapshot()
print([name for name in {heavy!r} if name in sys.modules])
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert ("[]\n", "") == (done.stdout, done.stderr)


def test_the_name_plate_names_what_is_there():
    """
    Every public name exists, is named once, and can be imported with a star.
    """
    names = otel_model_metrics.__all__

    assert len(names) == len(set(names))
    assert [] == [name for name in names if not hasattr(otel_model_metrics, name)]
