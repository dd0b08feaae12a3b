"""
Labels in files of their own: joined by id, they are what they would be beside the predictions.
"""

from __future__ import annotations

import decimal
import gzip
import json
import re
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import Rows
from sklearn import metrics as sklearn
from test_batch_evaluation import FORMATS, as_parquet, at_random_times, compared, job_of, table_of
from test_oracles import SCENARIOS

from otel_model_metrics import catalog
from otel_model_metrics.batch import Job, Statistics, evaluate, labels, terminal
from otel_model_metrics.batch import ids as of_ids
from otel_model_metrics.batch.ids import ids_of
from otel_model_metrics.batch.reading import Piece, parts_of, pieces
from otel_model_metrics.columns import Coded
from otel_model_metrics.files import FileError, InputError

BINARY = Job("binary", "prediction", id="id")


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are; at the end there is none."""
    folder = tmp_path / "room"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert [] == list(folder.iterdir())


def save(frame: pd.DataFrame, path: Path) -> Path:
    """In the format that the name says."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, row_group_size=100)
    else:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=70)
    return path


def frames(task: str, rows: int = 400) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions, and labels of some of them in another order, and of others."""
    random = np.random.default_rng(1)
    ids = pd.Series([f"txn-{number}" for number in random.permutation(2 * rows)])
    predictions = pd.DataFrame({"id": ids[:rows]})
    given = pd.DataFrame({"id": ids[rows // 4 : rows + rows // 4].sample(frac=1.0, random_state=2)}).reset_index(
        drop=True
    )
    if task == "binary":
        predictions["score"] = random.random(rows)
        predictions["prediction"] = predictions["score"] >= 0.5
        given["label"] = random.random(rows) < 0.4
    elif task == "multiclass":
        predictions["prediction"], given["label"] = random.choice(list("abc"), (2, rows))
    else:
        predictions["prediction"], given["label"] = random.normal(size=(2, rows))
    return predictions, given


RANKINGS = [("ranking", form) for form in ("Parquet", "JSONL")]  # in which labels are of different types


# --- The numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_values_are_those_of_the_joined_table(tmp_path, task):
    """
    As pandas merges it and scikit-learn judges it; rows without a label count for coverage only.
    """
    predictions, given = frames(task)
    joined = predictions.merge(given, on="id")
    job = Job(task, "prediction", score="score" if task == "binary" else None, id="id")

    found = evaluate(save(predictions, tmp_path / "p.parquet"), job, labels=save(given, tmp_path / "l.csv"))

    truth, predicted = joined["label"], joined["prediction"]
    expected = {
        "binary": lambda: {
            "accuracy": sklearn.accuracy_score(truth, predicted),
            "f1": sklearn.f1_score(truth, predicted),
            "roc_auc": sklearn.roc_auc_score(truth, joined["score"]),
        },
        "multiclass": lambda: {"accuracy": sklearn.accuracy_score(truth, predicted)},
        "regression": lambda: {
            "mae": sklearn.mean_absolute_error(truth, predicted),
            "r2": sklearn.r2_score(truth, predicted),
        },
    }[task]()
    assert pytest.approx(expected, rel=1e-9) == {name: found.overall.value(name) for name in expected}
    assert (300, 400, 0.75) == (found.overall.rows, found.predictions, found.overall.value("label.coverage"))
    assert {} == dict(found.rejected)
    expected_counts = {"matched": 300, "unmatched": 100, "duplicate": 0, "corrected": 0, "unlabelled": 0, "rejected": 0}
    assert expected_counts == dict(found.labels)
    assert expected_counts == found.to_dict()["labels"]


@pytest.mark.parametrize(
    ("task", "form"), [("binary", "JSONL"), ("multiclass", "Arrow"), ("regression", "Parquet"), *RANKINGS]
)
def test_every_window_and_segment_is_the_oracles(tmp_path, task, form):
    """
    For each task, and labels of all kinds: truth, numbers, text, and mappings of items to gains.
    """
    rows: Rows = SCENARIOS[task]["any"](np.random.default_rng(7))
    times = at_random_times(rows, seed=8)
    table = table_of(task, rows, times)
    ids = pa.array(range(len(rows)))
    order = pa.array(np.random.default_rng(9).permutation(len(rows)))
    given = pa.table({"id": ids, "label": table["label"]}).take(order)
    path = as_parquet(table.drop_columns("label").append_column("id", ids), tmp_path / "predictions")

    if form == "JSONL":
        given = given.append_column("time", table["time"])  # which the writer wants
    found = evaluate(path, job_of(task, id="id"), labels=FORMATS[form](given, tmp_path / "labels"))

    assert [] == compared(task, found, rows, times)


VALUES = {
    "binary": [True, False, 1, 0, 1.0, "yes", 2, None, "True", [1]],
    "multiclass": ["a", "b", 3, 3.0, True, None, [1], "c", float("nan"), 2**60],
    "regression": [1, 2.5, True, -7, None, "x", 2**60, 1e300, -0.0, [1]],
    "ranking": ["a", ["a", "b"], {"a": 2.0, "b": 1}, 3, None, [], {"a": -1}, ["é"], [1, 2], True],
}


@pytest.mark.parametrize("few", [labels.FEW_VALUES, 1])
@pytest.mark.parametrize("task", catalog.TASKS)
def test_labels_are_what_they_would_be_beside_the_predictions(tmp_path, monkeypatch, task, few):
    """
    Also those that are refused, and whatever order they are met in.
    """
    monkeypatch.setattr(labels, "FEW_VALUES", few)
    random = np.random.default_rng(3)
    shown = {"binary": True, "multiclass": "a", "regression": 1.5, "ranking": ["b", "a", 3]}[task]
    values = [VALUES[task][at] for at in random.integers(0, len(VALUES[task]), 200)]
    both = [{"prediction": shown, "label": value, "id": f"é{at}"} for at, value in enumerate(values)]
    write(tmp_path / "both.jsonl", both)
    write(tmp_path / "l.jsonl", [{"id": row["id"], "label": row["label"]} for row in reversed(both)])
    settings: dict[str, Any] = {"segment_metrics": None}
    beside = evaluate(tmp_path / "both.jsonl", Job(task, "prediction", **settings))

    joined = evaluate(
        tmp_path / "both.jsonl", Job(task, "prediction", id="id", **settings), labels=tmp_path / "l.jsonl"
    )

    assert beside.overall.to_dict() == joined.overall.to_dict()
    assert dict(beside.rejected) == dict(joined.rejected)
    assert beside.statistics.classes == joined.statistics.classes
    assert sum(value is None or value != value for value in values) == joined.labels["unlabelled"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("few", [labels.FEW_VALUES, 1])
def test_values_keep_their_types(tmp_path, monkeypatch, few):
    """
    1 is no 1.0 and no True, for to text it makes a difference.
    """
    monkeypatch.setattr(labels, "FEW_VALUES", few)
    values = [True, 1, 1.0, False, 0, -0.0, -5, 2**47, -(2**47), 2**80, 1e-300, float("inf"), "a", "", [1], {"a": [2]}]
    path = write(tmp_path / "l.jsonl", [{"id": at, "label": value} for at, value in enumerate(values)])

    with labels.sorted_labels(path, Job("ranking", "p", id="id")) as where, labels.LabelTable(where, BINARY) as table:
        piece = Piece(Path("p"), 1, len(values) + 1, {"id": [*range(len(values)), "none"]})
        column = table.join(piece).labels

    assert isinstance(column, Coded)
    assert [*map(repr, values), "None"] == list(map(repr, column.tolist()))


@pytest.mark.parametrize("values", [[1, 2, 3], [1.5, 2.0, 3.0], [1, 2.5, -(2**46)]], ids=["whole", "floats", "both"])
def test_numbers_of_many_values_are_an_array(tmp_path, monkeypatch, values):
    """
    NaN where there is no label; whole numbers stay whole if all rows have one.
    """
    monkeypatch.setattr(labels, "FEW_VALUES", 2)
    path = write(tmp_path / "l.jsonl", [{"id": at, "label": value} for at, value in enumerate(values)])

    with labels.sorted_labels(path, Job("ranking", "p", id="id")) as where, labels.LabelTable(where, BINARY) as table:
        full = table.join(Piece(Path("p"), 1, 3, {"id": [0, 1, 2]})).labels
        gap = table.join(Piece(Path("p"), 1, 4, {"id": [0, 1, 7, 2]})).labels

    assert (values, "i" if values == [1, 2, 3] else "f") == (full.tolist(), full.dtype.kind)
    np.testing.assert_array_equal(gap, [*values[:2], np.nan, values[2]])


# --- Files -----------------------------------------------------------------------------------------

ENDINGS = [".csv", ".jsonl", ".parquet", ".arrow"]


@pytest.mark.parametrize("of_labels", ENDINGS)
@pytest.mark.parametrize("of_predictions", ENDINGS)
def test_every_format_joins_every_other(tmp_path, of_predictions, of_labels):
    """
    Ids are whole numbers in the one and text in the other, and there is one more without.
    """
    predictions = pd.DataFrame({"id": [1, 2, 3, np.nan], "prediction": [True, True, False, True]})
    given = pd.DataFrame({"id": ["3", "2", "1", "4"], "label": [True, True, False, True]})

    found = evaluate(
        save(predictions, tmp_path / f"p{of_predictions}"), BINARY, labels=save(given, tmp_path / f"l{of_labels}")
    )

    assert (3, 4, 1 / 3) == (found.overall.rows, found.predictions, found.overall.value("accuracy"))
    assert (3, 1) == (found.labels["matched"], found.labels["unmatched"])
    assert ["1 row of predictions without an id, so without a label."] == found.notes()


def test_ids_are_a_dictionary(tmp_path):
    """
    In which null is not the first value.
    """
    ids = pa.array(["a", None, "b", None]).dictionary_encode()
    pq.write_table(pa.table({"id": ids, "prediction": [True] * 4}), tmp_path / "p.parquet")
    pq.write_table(pa.table({"id": ids, "label": [True, False, True, False]}), tmp_path / "l.parquet")

    found = evaluate(tmp_path / "p.parquet", BINARY, labels=tmp_path / "l.parquet")

    assert (2, 2, 1.0) == (found.overall.rows, found.labels["rejected"], found.overall.value("accuracy"))


def test_label_files_are_patterns_and_folders_of_several_formats(tmp_path):
    """
    Whose names may be labels, too, as Spark writes them.
    """
    for folder in ("label=true", "label=false", "label=1", "label=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / "labels" / folder).mkdir(parents=True)
    (tmp_path / "labels/label=true/a.csv").write_text("id\na\nb\n")
    (tmp_path / "labels/label=false/b.csv").write_text("id\nc\n")
    write(tmp_path / "labels/label=1/more.jsonl", [{"id": "e"}])
    save(pd.DataFrame({"id": ["f"]}), tmp_path / "labels/label=1/more.parquet")
    save(pd.DataFrame({"id": ["g"]}), tmp_path / "labels/label=__HIVE_DEFAULT_PARTITION__/more.arrow")
    (tmp_path / "more.csv.gz").write_bytes(gzip.compress(b"id,label,other\nd,0,x\n"))
    (tmp_path / "p.csv").write_text("id,prediction\na,1\nb,1\nc,1\nd,1\ne,1\nf,1\ng,1\n")

    found = evaluate(tmp_path / "p.csv", BINARY, labels=[tmp_path / "labels", tmp_path / "mor*.gz"])

    assert {} == dict(found.rejected)
    assert (6, 4 / 6) == (found.overall.rows, found.overall.value("accuracy"))


def test_the_label_column_of_predictions_is_not_read(tmp_path):
    """
    When labels come from elsewhere. It may have another meaning, and need not be there.
    """
    (tmp_path / "p.csv").write_text("id,prediction,label\na,1,0\nb,1,?\n")
    (tmp_path / "l.csv").write_text("id,label\na,1\nb,1\n")

    assert 1.0 == evaluate(tmp_path / "p.csv", BINARY, labels=tmp_path / "l.csv").overall.value("accuracy")


# --- What becomes of labels ------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", [labels.BUCKET_ROWS, 50])
def test_the_last_label_counts_and_what_became_of_the_others_is_told(tmp_path, monkeypatch, bucket):
    """
    In the order of files and rows; the same label again is a duplicate, another one a correction.
    """
    monkeypatch.setattr(labels, "BUCKET_ROWS", bucket)
    random = np.random.default_rng(4)
    some = random.zipf(1.3, 20_000)
    given = pd.DataFrame({"id": np.where(some > 3000, 7, some), "label": random.random(20_000) < 0.7})
    predictions = pd.DataFrame({"id": random.integers(0, 4000, 3000), "prediction": True})
    paths = [save(part, tmp_path / f"l{at}.csv") for at, part in enumerate((given[:9000], given[9000:]))]

    found = evaluate(save(predictions, tmp_path / "p.parquet"), BINARY, labels=paths)

    before = given.groupby("id")["label"].shift()
    last = given.drop_duplicates("id", keep="last")
    joined = predictions.merge(last, on="id")
    assert (joined["label"].mean(), len(joined)) == (found.overall.value("accuracy"), found.overall.rows)
    counts = {
        "matched": last["id"].isin(predictions["id"]).sum(),
        "unmatched": (~last["id"].isin(predictions["id"])).sum(),
        "duplicate": (before == given["label"]).sum(),
        "corrected": (before.notna() & (before != given["label"])).sum(),
        "unlabelled": 0,
        "rejected": 0,
    }
    assert counts == dict(found.labels)


def test_labels_that_are_equal_are_duplicates_however_they_are_written(tmp_path):
    """
    Also numbers of other types, and lists.
    """
    values = [1, 1.0, True, "1", ["x"], ["x"], {"x": 1}, {"x": 1.0}, "x" * 500, "x" * 500, 0.0, -0.0]
    path = write(tmp_path / "l.jsonl", [{"id": "a", "label": value} for value in values])
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prediction": ["x"]}\n')

    found = evaluate(tmp_path / "p.jsonl", Job("ranking", "prediction", id="id"), labels=path).labels

    assert (6, 5, 1) == (found["duplicate"], found["corrected"], found["matched"])


def test_rows_of_labels_that_cannot_be_used_are_counted_and_the_first_is_told(tmp_path):
    """
    And all rows of the label files are accounted for.
    """
    rows = [
        *({"id": "a", "label": True}, {"id": None, "label": True}, {"id": "", "label": True}, {"id": 1.5, "label": 1}),
        *({"id": ["a"], "label": 1}, {"id": "b", "label": None}, {"id": True, "label": True}, {"id": "b", "label": 0}),
        {"id": None, "label": None},
    ]
    path = write(tmp_path / "l.jsonl", rows)
    with path.open("a") as file:
        file.write("{broken\n")
    (tmp_path / "p.csv").write_text("id,prediction\na,1\n")

    found = evaluate(tmp_path / "p.csv", BINARY, labels=path)

    expected = {"matched": 1, "unmatched": 1, "duplicate": 0, "corrected": 0, "unlabelled": 1, "rejected": 7}
    assert expected == dict(found.labels)
    counts = "1 matched, 1 unmatched, 1 unlabelled, 7 rejected"
    line = f"Labels: {counts}, the first: {path}, row 10: broken JSON, or no object"
    assert [line] == [one for one in terminal.remarks(found) if one.startswith("Labels")]


def test_predictions_with_the_same_id_all_get_its_label(tmp_path):
    """
    The label is matched once.
    """
    (tmp_path / "p.csv").write_text("id,prediction\na,1\na,0\nb,1\n")
    (tmp_path / "l.csv").write_text("id,label\na,1\n")

    found = evaluate(tmp_path / "p.csv", BINARY, labels=tmp_path / "l.csv")

    assert (2, 0.5, 1) == (found.overall.rows, found.overall.value("accuracy"), found.labels["matched"])


def test_a_refused_label_says_in_which_file_it_is(tmp_path):
    """
    And which prediction it is for.
    """
    (tmp_path / "p.csv").write_text("id,prediction\na,1\nb,1\n")
    (tmp_path / "l.csv").write_text("id,label\nx,1\ny,1\nb,maybe\n")

    found = evaluate(tmp_path / "p.csv", BINARY, labels=tmp_path / "l.csv")

    message = (
        f"{tmp_path}/l.csv, row 3 (for {tmp_path}/p.csv, row 2): label must be True/False or 0/1, got 'maybe' (str)."
    )
    assert found.first["invalid_label"].startswith(message)
    assert {"invalid_label": 1} == dict(found.rejected)


def test_predictions_whose_id_is_none_are_refused(tmp_path):
    """
    Unlike those that have no id, which have no label.
    """
    write(tmp_path / "p.jsonl", [{"id": value, "prediction": 1} for value in ("a", None, "", 1.5, {"a": 1})])
    (tmp_path / "l.csv").write_text("id,label\na,1\n")

    found = evaluate(tmp_path / "p.jsonl", BINARY, labels=tmp_path / "l.csv")

    assert ({"invalid_id": 2}, 1, 3) == (dict(found.rejected), found.overall.rows, found.predictions)
    message = (
        f"{tmp_path}/p.jsonl, row 4: an id must be text of at most 1,024 characters or a whole number, "
        "got 1.5 (float); write whole numbers beyond 2^53 as text."
    )
    assert message == found.first["invalid_id"]
    assert ["2 rows of predictions without an id, so without a label."] == found.notes()


# --- Mistakes --------------------------------------------------------------------------------------


def test_mistakes_in_arguments_say_what_to_do(tmp_path):
    """
    Before anything is read.
    """
    (tmp_path / "p.csv").write_text("id,prediction\na,1\n")
    cases: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: evaluate("p.csv", Job("binary", "prediction"), labels="l.csv"),
            "Name the column of the ids with id= (--id).",
        ),
        (lambda: evaluate("p.csv", BINARY), "Name these with labels= (--labels), or leave the id away."),
        (
            lambda: Job("binary", "prediction", id="label"),
            "id and label must be different columns, got 'label' for both.",
        ),
        (lambda: evaluate(tmp_path / "p.csv", BINARY, labels="no.csv"), "no.csv: there is no such file"),
        (lambda: evaluate(tmp_path / "p.csv", BINARY, labels=[]), "Name these with labels= (--labels)"),
        (lambda: Statistics.of(BINARY, []), "Labels are joined by 'id', so there must be labels="),
    ]
    for function, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            function()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ID,label\na,1\n", "l.csv has no column 'id'; did you mean 'ID'? Name it with --id. There are: ID, label."),
        ("id,labels\na,1\n", "l.csv has no column 'label'; did you mean 'labels'? Name it with --label."),
        ("id;label\na;1\n", "Columns must be separated by commas, not by semicolons. Say so with --delimiter ';'."),
    ],
)
def test_missing_columns_of_label_files_are_told_with_near_ones(tmp_path, content, message):
    """
    As those of predictions.
    """
    (tmp_path / "p.csv").write_text("id,prediction\na,1\n")
    (tmp_path / "l.csv").write_text(content)

    with pytest.raises(InputError) as raised:
        evaluate(tmp_path / "p.csv", BINARY, labels=tmp_path / "l.csv")

    assert message in str(raised.value)


def test_label_files_that_cannot_be_read_are_problems(tmp_path):
    """
    And all else is evaluated.
    """
    (tmp_path / "p.csv").write_text("id,prediction\na,1\n")
    (tmp_path / "empty.csv").write_text("")
    save(pd.DataFrame({"id": ["a"] * 10, "label": [True] * 10}), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    save(pd.DataFrame({"id": [True], "label": [True]}), tmp_path / "truth.parquet")
    (tmp_path / "good.csv").write_text("id,label\na,1\n")
    names = ["empty.csv", "cut.parquet", "truth.parquet", "good.csv"]

    found = evaluate(tmp_path / "p.csv", BINARY, labels=[tmp_path / name for name in names])

    assert 1 == found.overall.rows
    assert [f"{tmp_path}/{name}" in problem for name, problem in zip(names[:3], found.problems, strict=True)] == [
        True
    ] * 3
    assert found.problems[2].endswith("column 'id' must hold ids, which are text or whole numbers, got bool.")


def test_files_without_any_label_leave_all_rows_without(tmp_path):
    """
    Which is no error: labels may be yet to come.
    """
    (tmp_path / "p.csv").write_text("id,prediction\na,1\n")
    (tmp_path / "l.csv").write_text("id,label\na,\n")

    found = evaluate(tmp_path / "p.csv", BINARY, labels=tmp_path / "l.csv")

    assert (0, 1, 1) == (found.overall.rows, found.predictions, found.labels["unlabelled"])


def test_lack_of_room_is_told(tmp_path, monkeypatch):
    """
    With the setting to change.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    (tmp_path / "l.csv").write_text("id,label\na,1\n")

    with pytest.raises(InputError, match=r"cannot be kept in temporary files: .* environment variable TMPDIR\.$"):
        evaluate(tmp_path / "l.csv", BINARY, labels=tmp_path / "l.csv")


# --- Memory, processes and temporary files ---------------------------------------------------------


def test_workers_change_nothing(tmp_path, monkeypatch):
    """
    Each opens the same files of labels, and what they used is put together.
    """
    monkeypatch.setattr("otel_model_metrics.batch.reading.PART_ROWS", 100)
    monkeypatch.setattr("otel_model_metrics.batch.reading.PIECE_ROWS", 30)
    predictions, given = frames("regression")
    predictions["part"] = [f"{row % 5}" for row in range(400)]
    predictions = pd.concat([pd.DataFrame({"prediction": [1.0], "part": ["0"]}), predictions] * 2)
    paths = save(predictions, tmp_path / "p.parquet"), save(pd.concat([given, given[:50]]), tmp_path / "l.jsonl")
    job = Job("regression", "prediction", id="id", segments=("part",), max_segment_values=2)

    alone = evaluate(paths[0], job, labels=paths[1])
    together = evaluate(paths[0], job, labels=paths[1], workers=2)

    assert (300, 100, 50) == tuple(alone.labels[what] for what in ("matched", "unmatched", "duplicate"))
    assert (600, 2) == (alone.overall.rows, alone.statistics.without_id)
    assert alone.to_dict() == together.to_dict()


def test_statistics_of_different_labels_are_not_added_up(tmp_path):
    """
    For nobody could say how many of either are unmatched.
    """
    path = write(tmp_path / "l.jsonl", [{"id": "a", "label": 1}])
    with labels.sorted_labels(path, BINARY) as one, labels.sorted_labels(path, BINARY) as other:
        parts = [Statistics.of(BINARY, [], where) for where in (one, other)]

    with pytest.raises(ValueError, match=r"^Statistics joined with different labels cannot be added up: "):
        parts[0].merge(parts[1])


def many(tmp_path: Path, ids: Any) -> tuple[Path, Path]:
    """Labels with these ids, and predictions for one in a hundred."""
    table = pa.table({"id": ids, "label": np.arange(len(ids)) % 3 == 0})
    pq.write_table(table, tmp_path / "l.parquet")
    pq.write_table(
        pa.table({"id": table["id"][::100], "prediction": [True] * len(table["id"][::100])}), tmp_path / "p.parquet"
    )
    return tmp_path / "p.parquet", tmp_path / "l.parquet"


def test_memory_is_bounded_whatever_the_number_of_labels(tmp_path, monkeypatch):
    """
    Buckets that have too many are divided again.
    """
    monkeypatch.setattr(labels, "BUCKET_ROWS", 3000)
    monkeypatch.setattr(labels, "_BITS", 1)  # two buckets, of which one alone would be too large
    monkeypatch.setattr("otel_model_metrics.batch.reading.PIECE_ROWS", 4096)
    ids = np.random.default_rng(5).permutation(300_000)
    predictions, given = many(tmp_path, ids[:10])
    evaluate(predictions, BINARY, labels=given)  # what is imported for it needs memory, too
    many(tmp_path, ids)
    found: list[Any] = []

    tracemalloc.start()
    with labels.sorted_labels(given, BINARY) as where, labels.LabelTable(where, BINARY) as table:
        for part in parts_of([predictions], BINARY.wanted):
            for piece in pieces(part, BINARY.wanted, pytest.fail):
                found += table.join(piece).labels.tolist()
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2e6, "all labels need 9.6e6"
    assert [at % 3 == 0 for at in range(0, 300_000, 100)] == found
    assert (3000, 297_000) == tuple(where.counts(table.used)[what] for what in ("matched", "unmatched"))


def test_memory_is_bounded_if_one_id_comes_again_and_again(tmp_path, monkeypatch):
    """
    Its bucket cannot be divided; it need not be.
    """
    monkeypatch.setattr(labels, "BUCKET_ROWS", 1000)
    predictions, given = many(tmp_path, np.zeros(100_000, np.int64))

    found = evaluate(predictions, BINARY, labels=given)

    assert (1, 33_333, 66_666) == tuple(found.labels[what] for what in ("matched", "duplicate", "corrected"))
    assert 1.0 == found.overall.value("accuracy")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("call", [1, 2])
def test_temporary_files_are_gone_whatever_happens(tmp_path, room, error, call):
    """
    Also when one gives up, while labels or predictions are read. The fixture looks.
    """
    (tmp_path / "p.csv").write_text("id,prediction\na,1\n")
    (tmp_path / "l.csv").write_text("id,label\na,1\n")
    seen = []

    def progress(size: int, rows: int) -> None:
        seen.append(list(room.iterdir()))
        if len(seen) == call:
            raise error

    with pytest.raises(error):
        evaluate(tmp_path / "p.csv", BINARY, labels=tmp_path / "l.csv", progress=progress)

    assert [1] * call == [len(folders) for folders in seen[:call]]


def test_labels_that_a_machine_does_not_have_are_told(tmp_path):
    """
    As those of another machine.
    """
    where = labels.Labels(tmp_path / "elsewhere", 1, (), {}, "", ())

    with pytest.raises(InputError, match=r"cannot be read here: .* share in the environment variable TMPDIR\.$"):
        Statistics.of(BINARY, [], where)


# --- Ids -------------------------------------------------------------------------------------------


def digests(column: Any, text: bool = False) -> list[str]:
    ids = ids_of(column, text)
    halves = zip(ids.first.tolist(), ids.second.tolist(), ids.usable.tolist(), strict=True)
    return [f"{first:016x}{second:016x}" if usable else "" for first, second, usable in halves]


def test_digests_are_those_that_others_compute():
    """
    So they are the same in every process and on every machine.
    """
    expected = {
        "foo": "e271865701f545617eaf87e42bba7d87",
        "hello": "cbd8a7b341bd9b025b1e906a48ae1d19",
        "The quick brown fox jumps over the lazy dog": "e34bbc7bbc071b6c7a433ca9c49a9347",
    }

    assert list(expected.values()) == digests(list(expected))


def test_a_million_ids_in_sequence_have_different_digests():
    """
    Even each half of them differs.
    """
    ids = ids_of(pa.array(np.arange(1_000_000)))

    for half in (ids.first, ids.second):
        assert 0 < np.diff(np.sort(half)).min()


def test_ids_that_differ_in_little_have_different_digests():
    """
    In their length only, in zero bytes at their end, in a single bit, or in how a letter is composed.
    """
    texts = ["a" * count for count in range(1, 100)]
    texts += ["a" + "\0" * count for count in range(1, 100)] + ["\0" * count for count in range(1, 40)]
    texts += ["é", "e\u0301", "日本", "日本語", "🙂", "ä" * 20, "ab" * 8, "ba" * 8, " a", "a "]
    texts += ["".join("b" if at == changed else "a" for at in range(70)) for changed in range(70)]

    assert len(set(texts)) == len(set(digests(texts)))


def test_a_digest_depends_on_nothing_but_the_id(monkeypatch):
    """
    Not on what is beside it, nor on how it is kept.
    """
    random = np.random.default_rng(6)
    texts = ["".join(random.choice(list("aé日🙂"), random.integers(1, 60))) for _ in range(300)]
    expected = [digests([text])[0] for text in texts]
    monkeypatch.setattr(of_ids, "_CHUNK", 64)

    column = pa.array(["before", *texts, "after"])
    assert expected == digests(texts)
    assert expected == digests(column.slice(1, 300))
    assert expected == digests(column.cast(pa.large_string()).slice(1, 300))
    assert expected == digests(column.dictionary_encode().slice(1, 300))
    assert expected == digests(column.cast(pa.binary()).slice(1, 300))


SAME = {
    "42": [
        *(["42"], [42], [42.0], pa.array(["42"]), pa.array([42], pa.int8()), pa.array([42], pa.uint64())),
        *(pa.array([42.0]), pa.array([42.0], pa.float16()), pa.array([b"42"]), pa.array(["42"], pa.string_view())),
        pa.array([decimal.Decimal(42)], pa.decimal128(38, 0)),
        pa.array([decimal.Decimal("42.00")], pa.decimal128(38, 2)),
    ],
    "-7": [["-7"], [-7], pa.array([-7]), pa.array([-7.0])],
    str(2**64 - 1): [[2**64 - 1], pa.array([2**64 - 1], pa.uint64())],
    "00000000-0000-0000-0000-000000000001": [pa.array([uuid.UUID(int=1).bytes], pa.uuid())]
    if hasattr(pa, "uuid")
    else [],
    "007": [["007"], pa.array(["007"]).dictionary_encode()],
    "42.0": [["42.0"], pa.array(["42.0"])],
}


@pytest.mark.parametrize("text", SAME)
def test_an_id_is_the_same_however_it_is_written(text):
    """
    Numbers are their decimal text, which text that is no number is not.
    """
    for column in SAME[text]:
        assert digests([text]) == digests(column), column


def test_whole_numbers_of_csv_may_look_like_decimals():
    """
    As pandas writes them if one is missing; other text stays as it is.
    """
    texts = ["42.0", "0.0", "-3.0", f"{2**52}.0", "42.5", "007.0", "1.0.0", "9" * 16 + ".0"]

    assert digests(["42", "0", "-3", f"{2**52}", *texts[4:]]) == digests(pa.array(texts), text=True)


@pytest.mark.parametrize(
    ("column", "missing", "unusable"),
    [
        ([None, "", float("nan"), 1.5, True, [1], {}, "\ud800", 2.0**60, float("inf")], 3, 7),
        (pa.array(["a", None, "", "x" * 5000]), 2, 1),
        (pa.array([1.0, None, float("nan"), 1.5, 2.0**60]), 2, 2),
        (pa.array([1, None]), 1, 0),
        (pa.nulls(3), 3, 0),
        (pa.array(["a", None, ""]).dictionary_encode(), 2, 0),
        (pa.array([None, None], pa.string()).dictionary_encode(), 2, 0),
        (pa.array([], pa.string()), 0, 0),
    ],
    ids=str,
)
def test_what_is_no_id_is_missing_or_unusable(column, missing, unusable):
    """
    And the others are neither.
    """
    ids = ids_of(column)

    assert (missing, unusable) == (ids.missing.sum(), ids.unusable.sum())
    assert len(column) - missing - unusable == ids.usable.sum()


@pytest.mark.parametrize("column", [pa.array([True]), pa.array([["a"]]), pa.array([0], pa.timestamp("s"))], ids=str)
def test_a_column_that_cannot_hold_ids_is_an_error(column):
    """
    For nothing in it could be joined.
    """
    with pytest.raises(FileError, match=r"^f: column 'id' must hold ids, which are text or whole numbers, got "):
        ids_of(column, where="f: column 'id'")


def test_ids_that_share_half_of_a_digest_are_told_apart(tmp_path, monkeypatch):
    """
    Which happens by chance among billions of them.
    """

    def halved(*arguments: Any) -> Any:
        ids = ids_of(*arguments)
        return of_ids.Ids(ids.first % np.uint64(5), ids.second, ids.missing, ids.unusable)

    predictions, given = frames("binary")
    given = pd.concat([given, given.assign(label=~given["label"])])
    paths = save(predictions, tmp_path / "p.parquet"), save(given, tmp_path / "l.csv")
    expected = evaluate(paths[0], BINARY, labels=paths[1])
    monkeypatch.setattr(labels, "ids_of", halved)

    found = evaluate(paths[0], BINARY, labels=paths[1])

    assert (300, 400) == (found.labels["matched"], found.labels["corrected"])
    assert expected.to_dict() == found.to_dict()
