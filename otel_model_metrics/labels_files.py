"""
Files of labels: CSV, JSONL or Parquet, read in batches and handed over to the inbox of a store.

Memory is bounded by the batch, not by the file. What is wrong with one row costs that row, what is wrong with one file
the rest of that file; both are told, and everything else is handed over.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from otel_model_metrics.cells import CellError, arrow_labels, arrow_times, arrow_values, time_of, value_of
from otel_model_metrics.files import (
    CSV,
    JSONL,
    LONGEST_LINE,
    PARQUET,
    SHOWN_COLUMNS,
    ColumnError,
    CountedFile,
    FileError,
    csv_header,
    find_files,
    has_ending,
    json_columns,
    json_object,
    missing_column,
    need_columns,
    parquet_file,
    told_faults,
    unpacked,
)
from otel_model_metrics.ground_truth.ids import id_text

ENDINGS = (*CSV, *JSONL, *PARQUET)
BATCH_ROWS = 10_000

_LONGEST_LINE = LONGEST_LINE


class Inbox(Protocol):
    """What labels are handed over to; `ground_truth/inbox.py` has the real ones."""

    def deposit(
        self, model: str, version: str | None, ids: list[Any], labels: list[Any], times: list[float | None] | None
    ) -> Counter[str]:
        """
        Take labels, and count them as handed_over, known or rejected.

        OSError if the store is not there; LookupError if it cannot tell the version.
        """


class ModelError(Exception):
    """The store does not know of which version the model is."""


class StoreError(Exception):
    """The store cannot be reached any more; says how far it went."""


@dataclass(frozen=True)
class Columns:
    """
    Which columns of a file are read, and how.

    Attributes:
        id, label: Names of the columns.
        time: Name of the column; None for ``time`` where there is one.
        text: Whether labels of CSV files stay text, so that "007" is no number.
    """

    id: str = "id"
    label: str = "label"
    time: str | None = None
    text: bool = False


class Batch(NamedTuple):
    """Labels to hand over together, and the first and last of their lines."""

    ids: list[Any]
    labels: list[Any]
    times: list[float | None]
    lines: tuple[int, int]


@dataclass
class Tally:
    """
    What has become of the rows so far.

    Attributes:
        files: How many files there are.
        handed_over, known, unlabelled: Rows handed over, handed over before, and without a label yet.
        rejected: Unusable rows by reason.
        first: Where the first of each reason is.
        problems: One message for each file of which nothing, or not all, could be read.
    """

    files: int = 0
    handed_over: int = 0
    known: int = 0
    unlabelled: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def fed(self) -> int:
        """Labels that the store has now, of this run and of those before."""
        return self.handed_over + self.known

    @property
    def rows(self) -> int:
        """All rows read."""
        return self.fed + self.unlabelled + self.rejected.total()

    def reject(self, reason: str, where: str, count: int = 1) -> None:
        """Count unusable rows."""
        self.rejected[reason] += count
        self.first.setdefault(reason, where)

    def __str__(self) -> str:
        unread = f" ({len(self.problems)} with a problem)" if self.problems else ""
        reasons = "; ".join(
            f"{reason} {count:,}: {self.first[reason]}" for reason, count in self.rejected.most_common()
        )
        return (
            f"{self.files:,} file{'' if self.files == 1 else 's'}{unread}: "
            f"{self.handed_over:,} label{'' if self.handed_over == 1 else 's'} handed over, "
            f"{self.known:,} known before, {self.unlabelled:,} without a label, "
            f"{self.rejected.total():,} rejected{f' ({reasons})' if reasons else ''}"
        )


def find(arguments: Sequence[str]) -> list[Path]:
    """
    The files of labels that are meant, each once; see `find_files`.
    """
    return find_files(arguments, ENDINGS)


def feed(inbox: Inbox, model: str, version: str | None, files: Sequence[LabelFile], tally: Tally) -> None:
    """
    Hand over all labels of some files.

    Args:
        inbox: Of the store.
        model: Name of the model.
        version: Its version; None for that of the prediction with the same id.
        files: To read.
        tally: Counts what becomes of the rows. Another thread may read it meanwhile, to show it.

    Raises:
        ModelError: If no version is given and the store has not met the model.
        StoreError: If the store cannot be reached any more.
    """
    for file in files:
        try:
            for batch in file.batches(tally):
                first, last = (f"{file.path}:{line}" for line in batch.lines)
                times = batch.times if any(time is not None for time in batch.times) else None
                try:
                    counts = inbox.deposit(model, version, batch.ids, batch.labels, times)
                except LookupError as error:
                    raise ModelError(str(error)) from error
                except OSError as error:
                    raise StoreError(
                        f"The store cannot be reached any more, at {first}: {str(error).rstrip('.')}. "
                        f"Handed over until then: {tally.handed_over:,}, known before: {tally.known:,}. "
                        "Running the same command again is safe: what was handed over counts once."
                    ) from error
                tally.handed_over += counts["handed_over"]
                tally.known += counts["known"]
                if counts["rejected"]:  # not by our own check of ids, so nobody knows which
                    tally.reject("refused by the store", f"{first} to {last}", counts["rejected"])
        except FileError as error:
            tally.problems.append(str(error))


_Row = tuple[int, Any, Any, Any]  # its line, id, label (None: not known yet) and time


class LabelFile:
    """
    One file of labels.

    Args:
        path: The file; its name says what is in it. Whether it is compressed, its first bytes do.
        columns: Which columns to read.

    Raises:
        ColumnError: If it has no such column. A file that cannot be read is no error here; `batches` says so.

    Attributes:
        size: Its bytes.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._columns = columns
        self._raw: CountedFile | None = None
        self._part = 0.0
        self._is_parquet = has_ending(path, PARQUET)
        self._is_csv = has_ending(path, CSV)
        try:
            with told_faults(self.path):
                self._check()
        except FileError:
            pass  # nothing of it can be handed over by mistake, and other files are still to come
        self._part, self._raw = 0.0, None

    @property
    def position(self) -> int:
        """How many of its bytes are read."""
        return self._raw.taken if self._raw is not None else int(self._part * self.size)

    def batches(self, tally: Tally) -> Iterator[Batch]:
        """
        The labels that can be handed over, some thousands at a time; the others are counted.
        """
        before = tally.rows
        rows = self._usable_rows(tally)
        fault: FileError | None = None
        some = False
        while fault is None:
            batch: list[_Row] = []
            try:
                for row in itertools.islice(rows, BATCH_ROWS):
                    batch.append(row)
            except FileError as error:
                fault = error  # what came before is good
            if not batch:
                break
            some = True
            lines, ids, labels, times = (list(column) for column in zip(*batch, strict=True))
            yield Batch(ids, labels, times, (lines[0], lines[-1]))
        self._part, self._raw = 1.0, None
        if fault is not None:
            raise fault
        if not some and tally.rows == before:
            raise FileError(f"{self.path} has no rows.")

    def _usable_rows(self, tally: Tally) -> Iterator[_Row]:
        with told_faults(self.path):
            if not self.size:
                raise FileError(f"{self.path} is empty.")
            read = self._parquet_rows if self._is_parquet else self._csv_rows if self._is_csv else self._jsonl_rows
            for line, id_, label, time in read(tally):
                try:
                    if label is None:
                        tally.unlabelled += 1
                    else:
                        yield line, _usable_id(id_), _usable_label(label), None if time is None else time_of(time)
                except CellError as error:
                    tally.reject(str(error), f"{self.path}:{line}")

    def _check(self) -> None:
        """Find the columns, without reading more than is needed for it."""
        if not self.size:
            return
        if self._is_parquet:
            with parquet_file(self.path) as parquet:
                self._need(list(parquet.schema_arrow.names))
                self._check_types(parquet.schema_arrow)
        elif self._is_csv:
            with self._text() as text:
                self._need(csv_header(self.path, csv.reader(self._lines(text), strict=True)))
        else:
            with self._text() as text:
                names = json_columns(self._lines(text))
            if names and self._columns.id not in names:  # the others may come later
                raise missing_column(self.path, names, "id", self._columns.id)

    def _need(self, names: list[str]) -> None:
        need_columns(self.path, names, self._wanted(), "," if self._is_csv else None)

    def _wanted(self) -> list[tuple[str, str]]:
        """Options, and the columns they name."""
        named = [("id", self._columns.id), ("label", self._columns.label)]
        return [*named, ("time", self._columns.time)] if self._columns.time is not None else named

    # CSV and JSONL

    @contextmanager
    def _text(self) -> Iterator[TextIO]:
        with CountedFile(self.path) as self._raw, unpacked(self._raw) as stream:
            # What is not UTF-8 becomes lone surrogates, so that it costs its row and not the file.
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _lines(self, text: TextIO) -> Iterator[str]:
        while line := text.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise FileError(f"{self.path} has a line of more than {_LONGEST_LINE:,} characters.")
            yield line

    def _csv_rows(self, tally: Tally) -> Iterator[_Row]:
        with self._text() as text:
            reader = csv.reader(self._lines(text), strict=True)
            header = csv_header(self.path, reader)
            self._need(header)
            width = len(header)
            at_id, at_label = header.index(self._columns.id), header.index(self._columns.label)
            time = self._columns.time or "time"
            at_time = header.index(time) if time in header else None
            value = _same if self._columns.text else value_of
            while True:
                line = reader.line_num + 1
                try:
                    row = next(reader, None)
                except csv.Error:
                    # The reader forgets what it had of this row, and goes on with the next line.
                    tally.reject("broken CSV", f"{self.path}:{line}")
                    continue
                if row is None:
                    return
                if not row:
                    continue
                if len(row) < width:
                    tally.reject("too few cells", f"{self.path}:{line}")
                elif len(row) > width and any(row[width:]):  # a comma in a text without quotes: all cells are shifted
                    tally.reject("too many cells", f"{self.path}:{line}")
                else:
                    cell = row[at_label]
                    label = value(cell) if cell and not cell.isspace() else None
                    yield line, row[at_id], label, None if at_time is None else row[at_time].strip() or None

    def _jsonl_rows(self, tally: Tally) -> Iterator[_Row]:
        id_, label, time = self._columns.id, self._columns.label, self._columns.time or "time"
        names: dict[str, None] = {}  # for the message only, so the first ones are enough
        missing = {id_, label} | ({self._columns.time} if self._columns.time else set())
        with self._text() as text:
            for number, line in enumerate(self._lines(text), 1):
                if line.isspace():
                    continue
                row = json_object(line)
                if row is None:
                    tally.reject("broken JSON", f"{self.path}:{number}")
                    continue
                if missing:
                    missing -= row.keys()
                    if len(names) < SHOWN_COLUMNS:
                        names.update(dict.fromkeys(row))
                yield number, row.get(id_), row.get(label), row.get(time)
        for option, name in self._wanted():
            if names and name in missing:
                raise FileError(str(missing_column(self.path, list(names), option, name)))

    # Parquet

    def _check_types(self, schema: Any) -> None:
        from pyarrow import types  # type: ignore[import-untyped]

        label, id_ = schema.field(self._columns.label).type, schema.field(self._columns.id).type
        if types.is_map(label) and not (types.is_string(label.key_type) or types.is_large_string(label.key_type)):
            raise ColumnError(
                f"{self.path}: the maps in column {self._columns.label!r} must have text as keys, got {label.key_type}."
            )
        if types.is_temporal(label) or "binary" in str(label):
            raise ColumnError(
                f"{self.path}: column {self._columns.label!r} must hold booleans, numbers, text, lists or maps, "
                f"got {label}."
            )
        if types.is_floating(id_) or types.is_temporal(id_) or types.is_boolean(id_) or types.is_nested(id_):
            raise ColumnError(
                f"{self.path}: column {self._columns.id!r} must hold text or whole numbers, got {id_}. "
                "Whole numbers become decimals where one is missing; write them as text."
            )

    def _parquet_rows(self, tally: Tally) -> Iterator[_Row]:
        with parquet_file(self.path) as parquet:
            self._need(list(parquet.schema_arrow.names))
            self._check_types(parquet.schema_arrow)
            time = self._columns.time or "time"
            names = [self._columns.id, self._columns.label]
            names += [time] if time in parquet.schema_arrow.names else []
            line, total = 1, parquet.metadata.num_rows
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(names))):
                ids, labels = arrow_values(batch.column(names[0])), arrow_labels(batch.column(names[1]))
                times = arrow_times(batch.column(time)) if len(names) > 2 else [None] * len(ids)
                yield from zip(itertools.count(line), ids, labels, times)
                line += len(ids)
                self._part = line / max(total, 1)


def _same(text: str) -> str:
    return text


def _usable_id(value: Any) -> str | int:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise CellError("empty id")
    text = id_text(value)
    if text is None:
        raise CellError("unusable id")
    return value if type(value) is int else text


def _usable_label(value: Any) -> Any:
    """A label, if it can be written as JSON."""
    if isinstance(value, (bool, int)):
        return value
    try:
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise CellError("label that is not finite")
        else:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise CellError("label that is not UTF-8") from None
    except (ValueError, TypeError, RecursionError):
        raise CellError("unusable label") from None
    return value
