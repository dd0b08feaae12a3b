"""
Files are evaluated: every value of every window and segment is that of the oracles, however the rows are divided.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import Rows
from test_oracles import CLASSES, KS, SCENARIOS, differences

from otel_model_metrics import catalog
from otel_model_metrics.batch import Evaluation, Job, Statistics, evaluate, running
from otel_model_metrics.batch import statistics as of_statistics
from otel_model_metrics.batch.reading import parts_of

START = 1_700_000_400  # 2023-11-14T22:20:00Z
EVERY = 600


def job_of(task: str, **settings: Any) -> Job:
    every = tuple(metric.name for metric in catalog.metrics_of(task) if not metric.always)
    of_task: dict[str, dict[str, Any]] = {
        "binary": {"score": "score"},
        "multiclass": {"score": "score", "classes": CLASSES, "k": tuple(KS[:2])},
        "regression": {},
        "ranking": {"k": tuple(KS)},
    }
    given = {"time": "time", "every": EVERY, "segments": ("country", "channel"), "segment_metrics": every}
    return Job(task, "prediction", **{**given, **of_task[task], **settings})


def table_of(task: str, rows: Rows, times: Sequence[float]) -> pa.Table:
    scores: Any = None
    if rows.scores is not None:
        scores = [None if np.isnan(row).any() else row.tolist() for row in rows.scores]
    labels: Any = rows.labels
    if task == "ranking":
        labels = pa.array([list(label.items()) for label in labels], pa.map_(pa.string(), pa.int64()))
    columns = {
        "prediction": pa.array(rows.predictions, pa.list_(pa.string()) if task == "ranking" else None),
        "label": labels,
        "time": pa.array([round(time * 1e6) for time in times], pa.timestamp("us", tz="UTC")),
        **{name: pa.array(values, pa.string()) for name, values in (rows.segments or {}).items()},
        **({} if scores is None else {"score": scores}),
    }
    return pa.table(columns)


def as_parquet(table: pa.Table, path: Path) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(table, path, row_group_size=17)
    return path


def as_arrow(table: pa.Table, path: Path) -> Path:
    path = path.with_suffix(".arrow")
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=13)
    return path


def as_jsonl(table: pa.Table, path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    with path.open("w", encoding="utf-8") as file:
        for row in table.to_pylist():
            label = dict(row["label"]) if isinstance(row["label"], list) else row["label"]
            file.write(json.dumps({**row, "label": label, "time": row["time"].isoformat()}) + "\n")
    return path


FORMATS = {"Parquet": as_parquet, "Arrow": as_arrow, "JSONL": as_jsonl}


def at_random_times(rows: Rows, seed: int) -> list[float]:
    return (START + np.random.default_rng(seed).uniform(0, 3 * EVERY, len(rows))).tolist()


def windows_of(rows: Rows, times: Sequence[float]) -> dict[float, Rows]:
    begins = [math.floor(time / EVERY) * EVERY for time in times]
    windows = {}
    for begin in sorted(set(begins)):
        inside = [one == begin for one in begins]
        segments = {
            name: [value for value, keep in zip(values, inside, strict=True) if keep]
            for name, values in (rows.segments or {}).items()
        }
        part = rows.where(inside)
        windows[float(begin)] = Rows(part.predictions, part.labels, part.scores, part.classes, segments)
    return windows


def compared(task: str, evaluation: Evaluation, rows: Rows, times: Sequence[float]) -> list[str]:
    """Where an evaluation and the oracles disagree."""
    found = differences(task, SimpleNamespace(snapshot=lambda: evaluation.overall), rows)
    windows = windows_of(rows, times)
    assert list(windows) == [window.start for window in evaluation.windows]
    for window in evaluation.windows:
        found += differences(task, SimpleNamespace(snapshot=lambda now=window.snapshot: now), windows[window.start])
    return found


@pytest.mark.parametrize(
    ("task", "scenario"),
    [
        pytest.param(task, scenario, id=f"{task}, {scenario}")
        for task, scenarios in SCENARIOS.items()
        for scenario in scenarios
        if scenario not in ("no row",) and not (task == "multiclass" and "without scores" in scenario)
    ],
)
def test_every_value_of_every_window_and_segment_is_the_oracles(tmp_path, task, scenario):
    """
    Also of all rows together, and with bounds.
    """
    rows: Rows = SCENARIOS[task][scenario](np.random.default_rng(5))
    times = at_random_times(rows, seed=6)
    settings = {} if rows.scores is not None or task not in ("binary", "multiclass") else {"score": None}
    path = as_parquet(table_of(task, rows, times), tmp_path / "rows")

    evaluation = evaluate(path, job_of(task, **settings))

    assert {} == dict(evaluation.rejected)
    assert () == evaluation.problems
    assert len(rows) == evaluation.rows == evaluation.predictions == evaluation.overall.rows
    assert [] == compared(task, evaluation, rows, times)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("task", catalog.TASKS)
def test_every_format_says_the_same(tmp_path, task, form):
    """
    As Parquet does, which is compared with the oracles.
    """
    rows: Rows = SCENARIOS[task]["any"](np.random.default_rng(7))
    times = at_random_times(rows, seed=8)
    path = FORMATS[form](table_of(task, rows, times), tmp_path / "rows")

    assert [] == compared(task, evaluate(path, job_of(task)), rows, times)


def test_csv_is_understood_as_it_was_written(tmp_path):
    """
    Text, numbers, truth and times; an empty cell is no value.
    """
    rows: Rows = SCENARIOS["binary"]["some without score"](np.random.default_rng(7))
    times = at_random_times(rows, seed=8)
    path = tmp_path / "rows.csv"
    table_of("binary", rows, times).to_pandas().to_csv(path, index=False)

    assert [] == compared("binary", evaluate(path, job_of("binary")), rows, times)


def test_several_columns_of_scores_are_one_for_each_class(tmp_path):
    """
    In the order of the classes.
    """
    rows: Rows = SCENARIOS["multiclass"]["any"](np.random.default_rng(9))
    times = at_random_times(rows, seed=8)
    table = table_of("multiclass", rows, times).drop_columns("score")
    assert rows.scores is not None
    names = tuple(f"p{number}" for number in range(len(CLASSES)))
    for name, column in zip(names, rows.scores.T, strict=True):
        table = table.append_column(name, pa.array(column))
    frame = table.to_pandas()
    frame.to_csv(tmp_path / "rows.csv", index=False)

    assert [] == compared("multiclass", evaluate(tmp_path / "rows.csv", job_of("multiclass", score=names)), rows, times)


def numbers(values: Any) -> Any:
    """Everything that a dictionary of an evaluation has, without the places of files."""
    return json.loads(json.dumps(values, sort_keys=True))


def some_parts(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, list[Path]]:
    """Seven parts of two files."""
    monkeypatch.setattr("otel_model_metrics.batch.reading.PART_ROWS", 40)
    paths = []
    for number, seed in enumerate((1, 2)):
        random = np.random.default_rng(seed)
        rows = Rows(*_of_many(task, random))
        paths.append(as_parquet(table_of(task, rows, at_random_times(rows, seed)), tmp_path / f"rows{number}"))
    job = job_of(task)
    assert 7 <= len(parts_of(paths, job.wanted))
    return job, paths


def _of_many(task: str, random: np.random.Generator) -> tuple[Any, ...]:
    parts = [SCENARIOS[task]["any"](random) for _ in range(6)]
    rows = [row for part in parts for row in zip(part.predictions, part.labels, strict=True)][:200]
    while len(rows) < 200:
        rows += rows[: 200 - len(rows)]
    scores = None
    if parts[0].scores is not None:
        scores = np.resize(np.concatenate([part.scores for part in parts]), (200, *parts[0].scores.shape[1:]))
    segments = {"country": random.choice(["DE", "FR", "US"], 200).tolist(), "channel": ["web", "app"] * 100}
    return [row[0] for row in rows], [row[1] for row in rows], scores, parts[0].classes, segments


@pytest.mark.parametrize("task", catalog.TASKS)
def test_counts_do_not_depend_on_the_order_of_merging(tmp_path, monkeypatch, task):
    """
    Only the rounding of sums does.
    """
    job, paths = some_parts(tmp_path, task, monkeypatch)
    parts = [running.statistics_of(job, part) for part in parts_of(paths, job.wanted)]
    expected = Evaluation.of(running.merged(job, parts))

    for seed in range(3):
        waiting = [parts[at] for at in np.random.default_rng(seed).permutation(len(parts))]
        while len(waiting) > 1:
            waiting.insert(0, waiting.pop().merge(waiting.pop(seed % len(waiting))))
        merged = Evaluation.of(waiting[0])
        assert expected.rows == merged.rows
        for one, other in zip([expected.overall], [merged.overall], strict=True):
            values, others = one.to_dict()["values"], other.to_dict()["values"]
            assert others == pytest.approx(values, rel=1e-9, abs=1e-9)
            assert one.to_dict()["segments"].keys() == other.to_dict()["segments"].keys()
        assert {w.start: w.snapshot.rows for w in expected.windows} == {
            w.start: w.snapshot.rows for w in merged.windows
        }


def test_merging_leaves_both_as_they_are(tmp_path, monkeypatch):
    """
    So that a tree of merges may use one of them twice.
    """
    job, paths = some_parts(tmp_path, "binary", monkeypatch)
    one, other = (running.statistics_of(job, part) for part in parts_of(paths, job.wanted)[:2])
    before = pickle.dumps((one, other))

    one.merge(other)

    assert pickle.loads(before)[0].sums["matrix"].tolist() == one.sums["matrix"].tolist()
    assert numbers(Evaluation.of(pickle.loads(before)[1]).to_dict()) == numbers(Evaluation.of(other).to_dict())


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_beyond_a_size_values_are_within_the_bound_that_is_stated(tmp_path, task):
    """
    Those that need rows in order; means stay exact.
    """
    rows: Rows = SCENARIOS[task]["any"](np.random.default_rng(5))
    times = at_random_times(rows, seed=6)
    path = as_parquet(table_of(task, rows, times), tmp_path / "rows")

    exact = evaluate(path, job_of(task, exact_rows=len(rows)))
    summarised = evaluate(path, job_of(task, exact_rows=2))

    assert {} == exact.overall.inexact
    if task == "binary":  # of errors, each of these bins has a single one, which is known then
        assert {"roc_auc", "average_precision"} == summarised.overall.inexact.keys()
    assert summarised.overall.inexact.keys() <= {"roc_auc", "average_precision", "median_absolute_error"}
    for name, value in exact.overall.to_dict()["values"].items():
        error = summarised.overall.inexact.get(name, 0.0)
        assert abs(summarised.overall.to_dict()["values"][name] - value) <= error + 1e-9 * max(1, abs(value)), name


def test_a_window_just_small_enough_is_exact(tmp_path):
    """
    And one row more is not, whatever parts the rows came in.
    """
    rows = Rows([True, False] * 20, [True, True, False, False] * 10, np.linspace(0.30001, 0.31001, 40), (), {})
    times = [START + 1.0] * 40
    path = as_parquet(table_of("binary", rows, times), tmp_path / "rows")

    def inexact(most: int) -> bool:
        return bool(evaluate(path, job_of("binary", segments=(), exact_rows=most)).windows[0].snapshot.inexact)

    assert not inexact(40)
    assert inexact(39)


def test_rows_without_a_label_count_for_coverage(tmp_path):
    """
    By window and segment; for nothing else.
    """
    table = pa.table(
        {
            "prediction": [True, False, True, True],
            "label": [True, None, None, False],
            "time": [START, START + 1, START + EVERY, START + 2],
            "country": ["DE", "DE", "FR", "FR"],
        }
    )
    evaluation = evaluate(as_parquet(table, tmp_path / "rows"), job_of("binary", score=None, segments=("country",)))

    assert {} == dict(evaluation.rejected)
    assert (4, 2) == (evaluation.predictions, evaluation.overall.rows)
    assert 0.5 == evaluation.overall.value("label.coverage")
    assert [2 / 3, 0.0] == [window.snapshot.value("label.coverage") for window in evaluation.windows]
    assert [3, 1] == [window.predictions for window in evaluation.windows]
    assert 0.5 == evaluation.windows[0].snapshot.value("accuracy")
    assert evaluation.windows[1].snapshot.value("accuracy") is None


def test_segments_beyond_the_bound_are_counted_together(tmp_path):
    """
    Those with the most rows are told apart, whether they come first or not.
    """
    values = ["rare", *["often"] * 6, "seldom", *["usual"] * 4]
    table = pa.table({"prediction": [True] * 12, "label": [True] * 12, "country": values})
    job = Job("binary", "prediction", segments=("country",), max_segment_values=2)

    overall = evaluate(as_parquet(table, tmp_path / "rows"), job).overall

    rows = {segment: overall.value("window.rows", segment) for segment in overall.segments}
    assert {None: 12, ("country", "often"): 6, ("country", "usual"): 4, ("country", "__other__"): 2} == rows


def test_a_value_that_some_part_could_not_tell_apart_is_not_told_apart(tmp_path, monkeypatch):
    """
    For then its rows in that part are counted under __other__. Every value that is shown is exact.
    """
    monkeypatch.setattr("otel_model_metrics.batch.rows.MOST_VALUES", 3)
    monkeypatch.setattr(of_statistics, "MOST_VALUES", 3)
    monkeypatch.setattr("otel_model_metrics.batch.reading.PART_ROWS", 6)
    values = ["a", "b", "c", "d", "a", "b", "a", "d", "e", "f", "b", "a"]
    table = pa.table({"prediction": [True] * 12, "label": [True] * 12, "country": values})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=6)

    evaluation = evaluate(tmp_path / "rows.parquet", Job("binary", "prediction", segments=("country",)))

    overall = evaluation.overall
    rows = {segment: overall.value("window.rows", segment) for segment in overall.segments}
    assert {None: 12, ("country", "a"): 4, ("country", "__other__"): 8} == rows
    assert ("country",) == evaluation.crowded


def test_classes_beyond_the_bound_are_rejected(tmp_path, monkeypatch):
    """
    Also where each part alone is within it.
    """
    monkeypatch.setattr("otel_model_metrics.batch.reading.PART_ROWS", 4)
    table = pa.table(
        {"prediction": ["a", "b", "a", "b", "c", "a", "c", "c"], "label": ["a"] * 4 + ["c", "a", "a", "c"]}
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=4)

    evaluation = evaluate(tmp_path / "rows.parquet", Job("multiclass", "prediction", max_classes=2))

    assert {"unknown_class": 3} == dict(evaluation.rejected)
    assert (5, 3 / 5) == (evaluation.overall.rows, evaluation.overall.value("accuracy"))


def test_objectives_are_missed_only_with_confidence(tmp_path):
    """
    A bound misses them too; too few rows to tell are no miss.
    """

    def missed(rows: int, objective: float) -> list[str]:
        table = pa.table({"prediction": [True] * rows, "label": [True, False] * (rows // 2)})
        job = Job("binary", "prediction", objectives={"accuracy": objective})
        return [one.name for one in evaluate(as_parquet(table, tmp_path / "rows"), job).missed()]

    assert ["accuracy"] == missed(1000, 0.6)
    assert [] == missed(10, 0.6)
    assert [] == missed(1000, 0.5)


def test_statistics_can_be_made_of_tables_of_ones_own(tmp_path):
    """
    For whoever brings rows from elsewhere.
    """
    assert Statistics(job_of("binary")).predictions().sum() == 0
    assert 0 == Evaluation.of(Statistics(job_of("binary"))).overall.rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "clustering"}, "task must be one of binary, multiclass, regression, ranking, got 'clustering'."),
        ({"every": "1 hour"}, "every must be the length of a window, a number and a unit"),
        ({"every": 0.5}, "every must be the length of a window"),
        ({"timezone": "Mars/Base"}, "timezone must be a name such as UTC or Europe/Berlin, got 'Mars/Base'."),
        ({"prediction": None}, "A job needs the column of the predictions"),
        ({"task": "regression", "score": "s"}, "score= is for classification; the task regression has none."),
        ({"score": ("a", "b")}, "Several columns of scores are for multiclass"),
        ({"objectives": {"f2": 0.5}}, "Unknown metric 'f2'"),
        ({"exact_rows": 0}, "exact_rows must be a whole number >= 1"),
    ],
)
def test_a_job_says_what_is_wrong_with_it(settings, message):
    """
    At once, before any file is opened.
    """
    with pytest.raises((ValueError, TypeError)) as raised:
        Job(**{"task": "binary", "prediction": "p", **settings})

    assert message in str(raised.value)


@pytest.mark.parametrize(
    "times",
    [
        ["2026-11-01T10:00Z", "\ud800", None],
        [1_793_000_000, 1_793_000_000_000, None],
        ["2026-11-01T10:00Z", 1e300, "0000-01-01T00:00Z"],
    ],
    ids=["text", "numbers", "mixed"],
)
def test_times_that_are_none_cost_their_rows_only(tmp_path, times):
    """
    Also half of a character, which JSON can spell, and years that no calendar has.
    """
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prediction": True, "label": True, "time": time}) + "\n" for time in times))

    evaluation = evaluate(path, job_of("binary", score=None, segments=()))

    assert {"invalid_timestamp": 2} == dict(evaluation.rejected)
    assert f"{path}, row 2: " in evaluation.first["invalid_timestamp"]
    assert (1, 1) == (evaluation.overall.rows, len(evaluation.to_dict()["windows"]))


def test_times_of_parquet_beyond_the_calendar_cost_their_rows_only(tmp_path):
    """
    As when milliseconds were taken for seconds.
    """
    times = pa.array([1_793_000_000, 1_793_000_000_000, None], pa.timestamp("s", tz="UTC"))
    table = pa.table({"prediction": [True] * 3, "label": [True] * 3, "time": times})

    evaluation = evaluate(as_parquet(table, tmp_path / "rows"), job_of("binary", score=None, segments=()))

    assert {"invalid_timestamp": 2} == dict(evaluation.rejected)
    assert 1 == len(evaluation.to_dict()["windows"])
