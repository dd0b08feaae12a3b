"""
`otel-model-metrics labels`: what can be fed is fed once, what cannot is told, and memory does not grow with the file.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
import types
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from otel_model_metrics import labels_files
from otel_model_metrics.commands import group
from otel_model_metrics.ground_truth.sqlite import SqliteBackend

STORE = "sqlite:///labels.db"


class FakeInbox:
    """An inbox in memory; away once it has taken `lasts` batches."""

    def __init__(self) -> None:
        self.labels: dict[tuple[str, str | None, str], str] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.lasts = 1_000_000

    def deposit(
        self, model: str, version: str | None, ids: list[Any], labels: list[Any], times: list[float | None] | None
    ) -> Counter[str]:
        if len(self.calls) >= self.lasts:
            raise ConnectionRefusedError("connection refused.")
        assert len(ids) == len(labels) == len(ids if times is None else times)
        self.calls.append((model, version, ids, labels, times))
        counts: Counter[str] = Counter()
        for id_, label in zip(ids, labels, strict=True):
            key, text = (model, version, str(id_)), json.dumps(label)
            counts["known" if self.labels.get(key) == text else "rejected" if id_ == "refused" else "handed_over"] += 1
            self.labels[key] = text
        return counts

    @property
    def taken(self) -> list[tuple[Any, Any]]:
        """Ids and labels, in the order they came."""
        return [pair for _, _, ids, labels, _ in self.calls for pair in zip(ids, labels, strict=True)]


@pytest.fixture
def inbox(monkeypatch) -> FakeInbox:
    """What the command feeds."""
    fake = FakeInbox()

    @contextlib.contextmanager
    def open_inbox(url: str) -> Iterator[FakeInbox]:
        if url.startswith("away:"):
            raise ConnectionRefusedError("connection refused.")
        if not url.startswith("sqlite:///"):
            raise ValueError(f"Expected sqlite:///PATH, got {url!r}.")
        yield fake

    module = types.ModuleType("inbox")
    module.open_inbox = open_inbox
    monkeypatch.setitem(sys.modules, "otel_model_metrics.ground_truth.inbox", module)
    return fake


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Files are named as somebody in their folder would name them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def feed(*arguments: str, store: str = STORE) -> Result:
    result = CliRunner().invoke(group, ["labels", *arguments, "--store", store, "--model", "fraud"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def answer(result: Result) -> tuple[int, str, str]:
    return result.exit_code, result.stdout, result.stderr


def wrong_usage(result: Result) -> str:
    """The message of a wrong usage."""
    assert (2, "") == (result.exit_code, result.stdout)
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


def write(name: str, text: str | bytes) -> str:
    content = text.encode() if isinstance(text, str) else text
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


def parquet(name: str, **columns: Any) -> str:
    pq.write_table(pa.table(columns), name)
    return name


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- What a file says ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz", "LABELS.CSV"])
def test_cells_of_csv_become_what_they_say(inbox, name):
    """
    Booleans in any case, whole numbers, decimals, and text; ids stay text.
    """
    cells = ["true", "FALSE", "3", "-4", "0.5", "1e-05", "cat", "1.2.3", '"a, b"', "007"]
    write(name, "id,label\n" + "".join(f"{number},{cell}\n" for number, cell in enumerate(cells)))

    assert (0, "1 file: 10 labels handed over, 0 known before, 0 without a label, 0 rejected\n", "") == answer(
        feed(name)
    )

    expected = [True, False, 3, -4, 0.5, 1e-05, "cat", "1.2.3", "a, b", 7]
    assert [(str(number), value) for number, value in enumerate(expected)] == inbox.taken
    assert list(map(type, expected)) == [type(label) for _, label in inbox.taken]


def test_labels_can_stay_as_they_are_written(inbox):
    """
    With --text the class 007 is no number, nor is the class true a boolean.
    """
    feed(write("labels.csv", "id,label\n1,007\n2,true\n3, x\n"), "--text")

    assert [("1", "007"), ("2", "true"), ("3", " x")] == inbox.taken


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz", "labels.jsonl", "labels.jsonl.gz"])
def test_a_byte_order_mark_belongs_to_no_column(inbox, name):
    """
    Excel writes one.
    """
    text = "id,label\n1,x\n" if ".csv" in name else jsonl({"id": "1", "label": "x"})

    assert 0 == feed(write(name, "\ufeff" + text)).exit_code
    assert [("1", "x")] == inbox.taken


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.jsonl.gz"])
def test_labels_of_jsonl_are_taken_as_they_are(inbox, name):
    """
    Also lists and mappings, for ranking; numbers in quotes stay text.
    """
    labels = [True, 3, 0.5, "7", "", ["a", "b"], {"a": 3.0}, []]
    write(name, jsonl(*({"id": number, "label": label} for number, label in enumerate(labels))))

    assert 0 == feed(name).exit_code

    assert list(enumerate(labels)) == inbox.taken


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (pa.bool_(), [True, False]),
        (pa.int8(), [3, 4]),
        (pa.float32(), [0.5, 0.25]),
        (pa.decimal128(5, 2), [0.5, 0.25]),
        (pa.string(), ["cat", "dog"]),
        (pa.dictionary(pa.int8(), pa.string()), ["cat", "dog"]),
        (pa.list_(pa.string()), [["a", "b"], []]),
        (pa.map_(pa.string(), pa.float64()), [{"a": 3.0}, {}]),
        (pa.struct({"a": pa.float64(), "b": pa.float64()}), [{"a": 3.0}, {"a": 1.0, "b": 2.0}]),
    ],
    ids=str,
)
def test_labels_of_parquet_are_plain_values(inbox, kind, labels):
    """
    Of every type that can be a label; nulls in a struct are what pandas fills mappings with.
    """
    column = pa.array([0.5, 0.25]).cast(kind) if pa.types.is_decimal(kind) else pa.array(labels, kind)
    parquet("labels.parquet", id=["1", "2"], label=column)

    assert 0 == feed("labels.parquet").exit_code

    assert list(zip(["1", "2"], labels, strict=True)) == inbox.taken


def test_columns_can_have_other_names(inbox):
    """
    In every kind of file.
    """
    write("a.csv", "when,txn,truth\n10,1,x\n")
    write("b.jsonl", jsonl({"truth": "x", "txn": "2", "when": 20}))
    parquet("c.parquet", truth=["x"], txn=["3"], when=[30])

    feed("a.csv", "b.jsonl", "c.parquet", "--id", "txn", "--label", "truth", "--time", "when")

    assert [("1", "x"), ("2", "x"), ("3", "x")] == inbox.taken
    assert [[10.0], [20.0], [30.0]] == [times for *_, times in inbox.calls]


def test_model_and_version_go_with_every_label(inbox):
    """
    Without a version, None.
    """
    write("labels.csv", "id,label\n1,x\n")
    feed("labels.csv", "--version", "7")
    feed("labels.csv")

    assert [("fraud", "7"), ("fraud", None)] == [(model, version) for model, version, *_ in inbox.calls]


def test_a_missing_label_is_not_known_yet(inbox):
    """
    Passed over and counted: an empty cell, null, no such key; that is no fault.
    """
    write("a.csv", "id,label\n1,\n2,  \n3,x\n")
    write("b.jsonl", jsonl({"id": 4, "label": None}, {"id": 5}, {"id": 6, "label": "x"}))
    parquet("c.parquet", id=[7, 8], label=[None, "x"])

    summary = "3 files: 3 labels handed over, 0 known before, 5 without a label, 0 rejected\n"
    assert (0, summary, "") == answer(feed("a.csv", "b.jsonl", "c.parquet"))
    assert ["3", 6, 8] == [id_ for id_, _ in inbox.taken]


# --- Times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("86400", 86400.0),
        ("86400.5", 86400.5),
        ("1970-01-02T00:00:00Z", 86400.0),
        ("1970-01-02 02:00:00.5+02:00", 86400.5),
        ("1970-01-01T19:00-0500", 86400.0),
        ("1970-01-02T00:00:00.123456789+00", 86400.123456789),
        ("", None),
    ],
)
def test_times_are_seconds_or_have_a_time_zone(inbox, cell, seconds):
    """
    In CSV and JSONL; a time that is missing is no fault.
    """
    write("a.csv", f"id,label,time\n1,x,{cell}\n2,x,0\n")
    write("b.jsonl", jsonl({"id": 1, "label": "x", "time": cell or None}, {"id": 2, "label": "x", "time": 0}))

    assert 0 == feed("a.csv", "b.jsonl").exit_code

    assert [[pytest.approx(seconds, abs=1e-6), 0.0]] * 2 == [times for *_, times in inbox.calls]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_parquet_know_their_zone(inbox, unit):
    """
    In every unit, whatever the zone is.
    """
    moment = datetime(1970, 1, 2, tzinfo=timezone.utc)
    parquet("a.parquet", id=[1, 2], label=["x", "x"], time=pa.array([moment, None], pa.timestamp(unit, "Asia/Tokyo")))

    feed("a.parquet")

    assert [[86400.0, None]] == [times for *_, times in inbox.calls]


def test_without_a_column_of_times_there_are_none(inbox):
    """
    Then the store uses its own clock.
    """
    write("a.csv", "id,label\n1,x\n")
    parquet("c.parquet", id=[1], label=["x"])

    feed("a.csv", "c.parquet")

    assert [None, None] == [times for *_, times in inbox.calls]


# --- Bad rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "id,label\n1,x\n,x\n3,x\n", "empty id 1: a.csv:3"),
        ("a.csv", f"id,label\n1,x\n{'9' * 2000},x\n3,x\n", "unusable id 1: a.csv:3"),
        ("a.csv", "id,label,n\n1,x,\n2,x\n3,x,\n", "too few cells 1: a.csv:3"),
        ("a.csv", "id,label\n1,x\n2,x,y\n3,x\n", "too many cells 1: a.csv:3"),
        ("a.csv", 'id,label\n1,x\n"2"2,x\n3,x\n', "broken CSV 1: a.csv:3"),
        ("a.csv", 'id,label,n\n1,x,\n3,x,"a\nb"\n4,"x,\n', "broken CSV 1: a.csv:5"),
        ("a.csv", b"id,label\n1,x\n2,\xe4\n3,x\n", "label that is not UTF-8 1: a.csv:3"),
        ("a.csv", b"id,label\n1,x\n\xe4,x\n3,x\n", "unusable id 1: a.csv:3"),
        ("a.csv", "id,label\n1,x\n2,1e999\n3,x\n", "label that is not finite 1: a.csv:3"),
        (
            "a.csv",
            "id,label,time\n1,x,1\n2,x,1970-01-02T00:00:00\n3,x,3\n",
            "time without a time zone 1: a.csv:3",
        ),
        (
            "a.csv",
            "id,label,time\n1,x,1\n2,x,1760000000000\n3,x,3\n",
            "time that is neither seconds since 1970 nor ISO 8601 1: a.csv:3",
        ),
        (
            "a.csv",
            "id,label,time\n1,x,1\n2,x,2026-13-01T00:00Z\n3,x,3\n",
            "time that is neither seconds since 1970 nor ISO 8601 1: a.csv:3",
        ),
        (
            "a.jsonl",
            '{"id": "1", "label": "x"}\n\n{"id": "2", \n{"id": "3", "label": "x"}\n',
            "broken JSON 1: a.jsonl:3",
        ),
        ("a.jsonl", '{"id": "1", "label": "x"}\n\n[1]\n{"id": "3", "label": "x"}\n', "broken JSON 1: a.jsonl:3"),
        (
            "a.jsonl",
            '{"id": "1", "label": "x"}\n{"id": 2.0, "label": "x"}\n{"id": "3", "label": "x"}\n',
            "unusable id 1: a.jsonl:2",
        ),
        (
            "a.jsonl",
            '{"id": "1", "label": "x"}\n{"id": 2, "label": {"a": NaN}}\n{"id": "3", "label": "x"}\n',
            "unusable label 1: a.jsonl:2",
        ),
        (
            "a.jsonl",
            '{"id": "1", "label": "x"}\n{"id": 2, "label": "x", "time": true}\n{"id": "3", "label": "x"}\n',
            "time that is neither seconds since 1970 nor ISO 8601 1: a.jsonl:2",
        ),
    ],
)
def test_a_bad_row_costs_itself_only(inbox, name, content, reason):
    """
    Counted by reason, the first of each shown with file and line; the good ones before and after it are fed.
    """
    write(name, content)

    summary = f"1 file: 2 labels handed over, 0 known before, 0 without a label, 1 rejected ({reason})\n"
    assert (0, summary, "") == answer(feed(name))
    assert [("1", "x"), ("3", "x")] == inbox.taken


def test_reasons_are_counted_over_all_files_most_frequent_first(inbox):
    """
    Each with the place of its first row.
    """
    write("a.csv", "id,label\n1\n,x\n")
    write("b.csv", "id,label\n,x\n,x\n2,x\n")

    assert (
        "2 files: 1 label handed over, 0 known before, 0 without a label, "
        "4 rejected (empty id 3: a.csv:3; too few cells 1: a.csv:2)\n"
    ) == feed("a.csv", "b.csv").stdout


def test_timestamps_of_parquet_without_a_zone_are_rejected(inbox):
    """
    Nobody knows which moment they mean.
    """
    parquet("a.parquet", id=[1, 2], label=["x", "x"], time=pa.array([None, datetime(2026, 1, 1)], pa.timestamp("us")))

    assert "1 label handed over" in feed("a.parquet").stdout
    assert "1 rejected (time without a time zone 1: a.parquet:2)" in feed("a.parquet").stdout


def test_text_of_parquet_that_is_not_utf_8_costs_its_row(inbox):
    """
    Some writers do not look.
    """
    label = pa.array([b"x", b"\xe4", None, b"y"]).view(pa.string())
    parquet("a.parquet", id=[1, 2, 3, 4], label=label)

    summary = feed("a.parquet").stdout
    assert "1 without a label, 1 rejected (label that is not UTF-8 1: a.parquet:2)" in summary
    assert [(1, "x"), (4, "y")] == inbox.taken


def test_what_the_store_refuses_is_told_with_its_batch(inbox):
    """
    The store gives counts only.
    """
    write("a.csv", "id,label\n1,x\nrefused,x\n3,x\n")

    assert "1 rejected (refused by the store 1: a.csv:2 to a.csv:4)" in feed("a.csv").stdout


# --- Files that are not as expected ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("bad.csv", "", "bad.csv is empty."),
        ("bad.csv.gz", "", "bad.csv.gz is empty."),
        ("bad.jsonl", "", "bad.jsonl is empty."),
        ("bad.parquet", "", "bad.parquet is empty."),
        ("bad.csv", "\n\n", "bad.csv is empty."),
        ("bad.csv", "id,label\n", "bad.csv has no rows."),
        ("bad.jsonl", "\n\n", "bad.jsonl has no rows."),
        ("bad.csv", "id,label\n1,x\n".encode("utf-16"), "bad.csv is UTF-16. Save it as UTF-8."),
        (
            "bad.jsonl",
            jsonl({"id": 1, "lable": "x"}),
            "bad.jsonl has no column 'label'; did you mean 'lable'? Name it with --label. There are: id, lable.",
        ),
    ],
)
def test_a_file_with_nothing_to_feed_says_why(inbox, name, content, problem):
    """
    With exit code 2 if it is alone, for then nothing was fed; beside another one the other one is fed.
    """
    write(name, content)
    write("good.csv", "id,label\n1,x\n")

    code, output, errors = answer(feed(name))
    assert (2, problem + "\n") == (code, errors)
    assert output.startswith("1 file (1 with a problem): 0 labels handed over, 0 known before")
    code, output, errors = answer(feed(name, "good.csv"))
    assert (0, problem + "\n") == (code, errors)
    assert output.startswith("2 files (1 with a problem): 1 label handed over")


def test_a_truncated_parquet_file_says_so(inbox):
    """
    By name; without the end of a Parquet file nothing of it can be read.
    """
    parquet("a.parquet", id=list(range(1000)), label=list(range(1000)))
    content = Path("a.parquet").read_bytes()
    write("a.parquet", content[: len(content) // 2])

    code, output, errors = answer(feed("a.parquet"))

    assert 2 == code
    assert errors.startswith("a.parquet is cut off, damaged or no Parquet file: Parquet magic bytes not found in foot")
    assert 1 == errors.count("\n")
    assert output.startswith("1 file (1 with a problem): 0 labels handed over")


def test_a_damaged_parquet_file_says_so(inbox):
    """
    Though its columns can still be told.
    """
    parquet("a.parquet", id=[str(number) for number in range(1000)], label=list(range(1000)))
    content = bytearray(Path("a.parquet").read_bytes())
    content[4:2000] = b"\xff" * 1996
    write("a.parquet", bytes(content))

    code, _, errors = answer(feed("a.parquet"))

    assert (2, True) == (code, errors.startswith("a.parquet is cut off, damaged or no Parquet file: ")), errors


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_of_a_truncated_gzip_file_the_first_part_is_fed(inbox, kind):
    """
    Each whole row of it, and no broken one.
    """
    rows = {
        "csv": "id,label\n" + "".join(f"{number},label-{number * 7919 % 100_003}\n" for number in range(50_000)),
        "jsonl": jsonl(*({"id": str(n), "label": f"label-{n * 7919 % 100_003}"} for n in range(50_000))),
    }
    whole = gzip.compress(rows[kind].encode())
    write(f"a.{kind}", whole[: len(whole) // 2])  # also shows that gzip is told by content
    os.rename(f"a.{kind}", f"a.{kind}.gz")

    code, output, errors = answer(feed(f"a.{kind}.gz"))

    assert f"a.{kind}.gz is cut off or damaged, as its compression tells: " in errors
    count = len(inbox.taken)
    assert count > 10_000
    assert [(str(number), f"label-{number * 7919 % 100_003}") for number in range(count)] == inbox.taken
    assert (0, f"1 file (1 with a problem): {count:,} labels") == (code, output.partition(" handed")[0])


def test_whether_a_file_is_compressed_is_told_by_its_content(inbox):
    """
    Downloads get unpacked on their way without a new name, or packed.
    """
    write("a.csv", gzip.compress(b"id,label\n1,x\n"))
    write("b.csv.gz", "")
    Path("b.csv.gz").write_text("id,label\n2,x\n")

    feed("a.csv", "b.csv.gz")

    assert [("1", "x"), ("2", "x")] == inbox.taken


def test_a_line_without_an_end_is_not_read_into_memory(inbox, monkeypatch):
    """
    What is before it is fed.
    """
    monkeypatch.setattr(labels_files, "_LONGEST_LINE", 1000)
    write("a.csv", "id,label\n1,x\n" + "y" * 5000)

    code, _, errors = answer(feed("a.csv"))

    assert (0, "a.csv has a line of more than 1,000 characters.\n") == (code, errors)
    assert [("1", "x")] == inbox.taken


# --- Wrong usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            "id,lable,score",
            [],
            "a.csv has no column 'label'; did you mean 'lable'? Name it with --label. There are: id, lable, score.",
        ),
        ("ID,label", [], "a.csv has no column 'id'; did you mean 'ID'? Name it with --id. There are: ID, label."),
        (
            "id,truth",
            ["--label", "TRUTH"],
            "a.csv has no column 'TRUTH'; did you mean 'truth'? Name it with --label. There are: id, truth.",
        ),
        ("id,truth", [], "a.csv has no column 'label'. Name it with --label. There are: id, truth."),
        (
            "id,label,when",
            ["--time", "whem"],
            "a.csv has no column 'whem'; did you mean 'when'? Name it with --time. There are: id, label, when.",
        ),
        (
            "id;label",
            [],
            "a.csv has only one column, 'id;label'. Columns must be separated by commas, not by semicolons.",
        ),
        (
            "id\tlabel",
            [],
            "a.csv has only one column, 'id\\tlabel'. Columns must be separated by commas, not by tabs.",
        ),
        ("id,label,label", [], "a.csv has more than one column 'label'."),
        (
            "txn," + ",".join(f"c{number}" for number in range(30)),
            [],
            "a.csv has no column 'id'. Name it with --id. "
            f"There are: txn, {', '.join(f'c{number}' for number in range(19))} and 11 more.",
        ),
    ],
)
def test_a_missing_column_is_told_before_anything_is_fed(inbox, header, options, message):
    """
    With the columns there are and the nearest of them; not even a good file before it is fed.
    """
    write("0.csv", "id,label,whem,TRUTH\n1,x,1,x\n")
    write("a.csv", header + "\n1,x,1\n")

    assert message == wrong_usage(feed("0.csv", "a.csv", *options))
    assert [] == inbox.calls


def test_a_missing_column_of_other_kinds_of_files_is_told_too(inbox):
    """
    JSONL by its first rows, Parquet by its schema.
    """
    write("a.jsonl", jsonl({"key": 1, "label": "x"}, {"key": 2, "label": "x", "more": 1}))
    parquet("a.parquet", id=[1], labels=["x"])

    assert "a.jsonl has no column 'id'. Name it with --id. There are: key, label, more." == wrong_usage(feed("a.jsonl"))
    assert (
        "a.parquet has no column 'label'; did you mean 'labels'? Name it with --label. There are: id, labels."
    ) == wrong_usage(feed("a.parquet"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "label",
            pa.array([0], pa.timestamp("us")),
            "a.parquet: column 'label' must hold booleans, numbers, text, lists or maps, got timestamp[us].",
        ),
        (
            "label",
            pa.array([b"x"]),
            "a.parquet: column 'label' must hold booleans, numbers, text, lists or maps, got binary.",
        ),
        (
            "label",
            pa.array([{1: 2.0}], pa.map_(pa.int64(), pa.float64())),
            "a.parquet: the maps in column 'label' must have text as keys, got int64.",
        ),
        (
            "id",
            pa.array([1.0]),
            "a.parquet: column 'id' must hold text or whole numbers, got double. "
            "Whole numbers become decimals where one is missing; write them as text.",
        ),
    ],
)
def test_a_parquet_column_of_a_wrong_type_is_told_before_anything_is_fed(inbox, column, values, message):
    """
    Rather than row by row.
    """
    parquet("a.parquet", **{"id": [1], "label": ["x"], column: values})

    assert message == wrong_usage(feed("a.parquet"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("none.csv", "none.csv: there is no such file, and none that matches it."),
        ("*.csv.gz", "*.csv.gz: there is no such file, and none that matches it."),
        ("a.txt", "a.txt: expected a name that ends in .csv, .csv.gz, .jsonl, .jsonl.gz, .parquet."),
        ("sub", "sub: there is no file in it that ends in .csv, .csv.gz, .jsonl, .jsonl.gz, .parquet."),
    ],
)
def test_an_argument_that_is_no_file_of_labels_says_what_is_expected(inbox, argument, message):
    """
    With exit code 2.
    """
    write("a.txt", "id,label\n1,x\n")
    Path("sub").mkdir()
    write("sub/_part.csv", "id,label\n1,x\n")

    assert message == wrong_usage(feed(argument))


def test_a_store_of_an_unknown_kind_is_wrong_usage(inbox):
    """
    The message is the store's.
    """
    write("a.csv", "id,label\n1,x\n")

    message = "Invalid value for --store: Expected sqlite:///PATH, got 'mysql://db'."
    assert message == wrong_usage(feed("a.csv", store="mysql://db"))


def test_a_model_that_the_store_has_not_met_needs_its_version(inbox, monkeypatch):
    """
    Wrong usage, in the words of the store.
    """

    def deposit(*given: Any) -> Counter[str]:
        raise LookupError("The store has not met a model 'fraud' yet.")

    monkeypatch.setattr(inbox, "deposit", deposit)

    assert "The store has not met a model 'fraud' yet." == wrong_usage(feed(write("a.csv", "id,label\n1,x\n")))


# --- Many files ------------------------------------------------------------------------------------


def test_patterns_and_folders_are_files_each_once(inbox):
    """
    Where no shell has expanded them; hidden files and those of other kinds are passed over.
    """
    Path("out", "day=1").mkdir(parents=True)
    for number, name in enumerate(["b.csv", "a.csv", "out/c.csv", "out/day=1/d.csv", "out/_e.csv", "out/.f.csv"]):
        write(name, f"id,label\n{number},x\n")
    write("out/_SUCCESS", "")
    write("out/notes.txt", "")

    assert feed("*.csv", "a.csv", "out/../a.csv", "out").stdout.startswith("4 files: 4 labels handed over")
    assert ["1", "0", "2", "3"] == [id_ for id_, _ in inbox.taken]


def test_a_file_whose_name_is_a_pattern_is_itself(inbox):
    """
    As shells do.
    """
    write("[1].csv", "id,label\n1,x\n")

    assert 0 == feed("[1].csv").exit_code


def test_a_second_run_changes_nothing(inbox):
    """
    And exits with 0, for all is where it belongs.
    """
    write("a.csv", "id,label\n1,x\n2,y\n")
    feed("a.csv")
    before = dict(inbox.labels)

    summary = "1 file: 0 labels handed over, 2 known before, 0 without a label, 0 rejected\n"
    assert (0, summary, "") == answer(feed("a.csv"))
    assert before == inbox.labels


@pytest.mark.parametrize("content", ["id,label\n1,\n", "id,label\n,x\n"])
def test_a_run_that_could_feed_nothing_exits_with_2(inbox, content):
    """
    So that a nightly job is not green over an export that has gone wrong.
    """
    assert 2 == feed(write("a.csv", content)).exit_code


# --- The store is away -----------------------------------------------------------------------------


def test_a_store_that_is_away_is_told_before_reading(inbox):
    """
    With exit code 1.
    """
    write("a.csv", "id,label\n1,x\n")

    message = "Error: The store cannot be reached: connection refused. Nothing was handed over.\n"
    assert (1, "", message) == answer(feed("a.csv", store="away:"))


def test_a_store_that_goes_away_leaves_a_run_that_can_be_repeated(inbox, monkeypatch):
    """
    The message says how far it came; the repetition feeds the rest.
    """
    monkeypatch.setattr(labels_files, "BATCH_ROWS", 10)
    write("a.csv", "id,label\n" + "".join(f"{number},x\n" for number in range(35)))
    inbox.lasts = 2

    message = (
        "Error: The store cannot be reached any more, at a.csv:22: connection refused. "
        "Handed over until then: 20, known before: 0. "
        "Running the same command again is safe: what was handed over counts once.\n"
    )
    assert (1, "", message) == answer(feed("a.csv"))

    inbox.lasts = 1000
    assert feed("a.csv").stdout.startswith("1 file: 15 labels handed over, 20 known before")
    assert 35 == len(inbox.labels)


# --- Size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(inbox, monkeypatch, kind):
    """
    Twenty times the rows need no more than half as much again, whether they have labels or not.
    """
    seen = []
    monkeypatch.setattr(labels_files, "BATCH_ROWS", 500)
    monkeypatch.setattr(inbox, "deposit", lambda *given: seen.append(len(given[2])) or Counter(handed_over=1))

    def peak(rows: int) -> int:
        name = f"{rows}.{kind}"
        if kind == "parquet":
            pq.write_table(
                pa.table({"id": [f"id-{n}" for n in range(rows)], "label": [n % 7 for n in range(rows)]}), name
            )
        elif kind == "jsonl":
            write(name, jsonl(*({"id": f"id-{n}", "label": n % 7} for n in range(rows))))
        else:
            write(name, "id,label\n" + "".join(f"id-{n},{n % 7}\n" for n in range(rows)))
        seen.clear()
        tracemalloc.start()
        try:
            assert 0 == feed(name).exit_code
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2_000)  # imports and caches
    small, large = peak(2_000), peak(40_000)

    assert [500] * 80 == seen
    assert large < 1.5 * small, (small, large)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "damaged"])
def test_a_file_that_is_over_is_read_in_full_for_the_bar(name, whole):
    """
    Even if its rest cannot be read; before, nothing of it counts, though its columns were looked at.
    """
    if name == "a.parquet":
        parquet(name, id=["1"], label=["x"])
    else:
        write(name, "id,label\n1,x\n" if name == "a.csv" else jsonl({"id": "1", "label": "x"}))
    if not whole:
        write(name, "\xff\xfe".encode("latin-1") + Path(name).read_bytes()[:-4])
    file = labels_files.LabelFile(Path(name), labels_files.Columns())
    assert 0 == file.position

    tally = labels_files.Tally()
    labels_files.feed(FakeInbox(), "fraud", None, [file], tally)

    assert ((1, 0) if whole else (0, 1)) == (tally.fed, len(tally.problems))
    assert file.size == file.position


# --- The program -----------------------------------------------------------------------------------


PROGRAM = [sys.executable, "-m", "otel_model_metrics", "labels"]


def program(*arguments: str) -> tuple[int, str, str]:
    """The command in a process of its own, which feeds a real SQLite store."""
    done = subprocess.run(
        [*PROGRAM, *arguments, "--store", STORE, "--model", "fraud", "--version", "7"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def a_service_has_made_the_store() -> None:
    SqliteBackend(Path("labels.db")).close()


def test_a_store_that_is_not_there_is_not_made():
    """
    The path may be mistyped, and nobody would ever take the labels from there.
    """
    write("a.csv", "id,label\n1,true\n")

    code, output, error = program("a.csv")

    assert (1, "") == (code, output)
    assert "There is no SQLite store labels.db yet. Is the path right?" in error
    assert not Path("labels.db").exists()


def test_the_program_feeds_a_store_once():
    """
    A real one: the second run hands nothing over, a corrected label it does; no bar where there is no terminal.
    """
    a_service_has_made_the_store()
    write("a.csv", "id,label,time\n1,true,2026-01-01T00:00:00Z\n2,0.5,\n3,cat,\n4,,\n")
    write("b.jsonl", jsonl({"id": 5, "label": ["a", "b"]}, {"id": 6, "label": {"a": 3.0}}, {"id": None, "label": 1}))
    parquet("c.parquet", id=[7, 8], label=["x", "y"])
    files = ["a.csv", "b.jsonl", "c.parquet"]

    rest = "1 without a label, 1 rejected (empty id 1: b.jsonl:3)\n"
    assert (0, "3 files: 7 labels handed over, 0 known before, " + rest, "") == program(*files)
    assert (0, "3 files: 0 labels handed over, 7 known before, " + rest, "") == program(*files)

    write("a.csv", "id,label,time\n1,false,\n2,0.5,\n3,cat,\n4,dog,\n")
    assert (0, "1 file: 2 labels handed over, 2 known before, 0 without a label, 0 rejected\n", "") == program("a.csv")


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
def test_a_terminal_gets_a_bar_with_rows_speed_and_time_left():
    """
    On the standard error, so that the output is the summary alone.
    """
    import pty

    a_service_has_made_the_store()
    write("a.csv", "id,label\n" + "".join(f"{number},x\n" for number in range(30_000)))
    ours, theirs = pty.openpty()
    command = [*PROGRAM, "a.csv", "--store", STORE, "--model", "fraud", "--version", "7"]
    with subprocess.Popen(
        command, env={**os.environ, "COLUMNS": "100", "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(ours, 65536):
                shown += chunk
        output = process.stdout.read()
    os.close(ours)

    assert b"1 file: 30,000 labels handed over, 0 known before, 0 without a label, 0 rejected\n" == output
    last = shown.decode().split("\r")[-2]
    assert re.search(r"━.* 30,000 rows, [1-9][\d,]* rows/s .*0:00:00", last), last


@pytest.mark.parametrize(
    ("module", "extra"), [("click", "batch"), ("pyarrow", "batch"), ("rich", "batch"), ("redis", "redis")]
)
def test_without_the_extra_the_command_line_names_it(module, extra):
    """
    One line and an exit code, no traceback.
    """
    a_service_has_made_the_store()
    parquet("a.parquet", id=[1], label=["x"])
    arguments = ["labels", "a.parquet", "--model", "fraud", "--store"]
    arguments.append("redis://127.0.0.1:1" if module == "redis" else STORE)
    terminal = "sys.stderr.isatty = lambda: True; " if module == "rich" else ""
    code = (
        f"import sys; sys.modules[{module!r}] = None; {terminal}"
        f"from otel_model_metrics.cli import main; main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    expected = (
        f"otel-model-metrics: {module} is not installed, which this command needs. "
        f'Install the extra {extra}: pip install "otel-model-metrics[{extra}]"\n'
    )
    assert (1, "", expected) == (done.returncode, done.stdout, done.stderr)
