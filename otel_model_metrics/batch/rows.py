"""
From a piece of a file to encoded rows: which can be used, in which window and segments they are, and what the encoder
of the task makes of them. The others are refused, with the file and the row.
"""

from __future__ import annotations

import datetime
import functools
import math
import zoneinfo
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.batch.job import Job
from otel_model_metrics.batch.reading import Piece
from otel_model_metrics.cells import CellError, arrow_labels, arrow_numbers, arrow_values, time_of, value_of
from otel_model_metrics.columns import BoolArray, Coded, Column, is_missing
from otel_model_metrics.encoding import INVALID_ID, INVALID_SEGMENT, INVALID_TIMESTAMP, Refusals
from otel_model_metrics.files import FileError
from otel_model_metrics.segments import UNUSABLE_SET, SegmentTable, SetCodes
from otel_model_metrics.window import Columns

# Values of a segment's column that are told apart while files are read. Which of them are shown is decided at the end,
# when it is known how many rows each has.
MOST_VALUES = 1_000

_MICROS = 1_000_000
_NO_TIME = np.iinfo(np.int64).min
_BEYOND = "time that is missing, or not between the years 1 and 9999 (is it in milliseconds?)"
_MOST_JOINT = 1 << 20

Refuse = Callable[[str, int, str], None]


@dataclass(frozen=True)
class Rows:
    """
    Encoded rows of one piece.

    Attributes:
        columns: The encoder's columns of the rows that have a label.
        sets, windows, micros: Segment set, number of the window, and time since 1970 in microseconds, of each of them.
        unlabelled: The same of rows without a label: class predicted (None where a task has none), set, window.
    """

    columns: Columns
    sets: SetCodes
    windows: NDArray[np.int64]
    micros: NDArray[np.int64]
    unlabelled: tuple[NDArray[Any] | None, SetCodes, NDArray[np.int64]]


@dataclass(frozen=True)
class Joined:
    """
    Labels from other files, for the rows of one piece.

    Attributes:
        labels: The column that they would be in the piece.
        unusable: Rows whose id can be none, shape ``(n,)``.
        why: What is wrong with the id in such a row.
        source: The file and row of the label that a row has.
    """

    labels: Column
    unusable: BoolArray
    why: Callable[[int], str]
    source: Callable[[int], str]


class Joining(Protocol):
    """What knows the labels of other files; `labels.LabelTable`."""

    def join(self, piece: Piece) -> Joined:
        """The labels of the rows of a piece."""


class RowReader:
    """
    Reads the rows of one part. Classes and segments are numbered as they are met.

    Args:
        job: What the columns are.
        refuse: Called with reason, number of rows, and where and what was wrong, for rows that cannot be used.
        table: Has the labels, if they are in other files.
    """

    def __init__(self, job: Job, refuse: Refuse, table: Joining | None = None) -> None:
        self._job = job
        self._refuse = refuse
        self._table = table
        self.encoder = job.encoder()
        self.segments = SegmentTable(job.segments, MOST_VALUES)

    def read(self, piece: Piece) -> Rows:
        """
        The rows of a piece that can be used.

        Raises:
            FileError: If a column of the file cannot be understood at all.
        """
        job, count = self._job, piece.count
        refusals = _Refusals(piece, np.arange(count))
        micros = self._micros(piece, refusals)
        sets = self._sets(piece)
        if sets.min(initial=0) == UNUSABLE_SET:
            refusals.add(INVALID_SEGMENT, sets == UNUSABLE_SET, lambda row: self.segments.problem)
        joined = None if self._table is None else self._table.join(piece)
        if joined is not None and joined.unusable.any():
            refusals.add(INVALID_ID, joined.unusable, joined.why)
        given = {
            "predictions": None if job.prediction is None else column_of(piece, job.prediction),
            "labels": column_of(piece, job.label) if joined is None else joined.labels,
            "scores": self._scores(piece),
        }
        missing = _missing(given["labels"])
        usable = refusals.kept
        chosen = [usable if missing is None else usable & ~missing]
        chosen += [] if missing is None else [usable & missing]
        refusals.tell(self._refuse)
        windows = micros // job.window_micros if job.time is not None else np.zeros(count, np.int64)
        encoded = []
        for at, rows in enumerate(chosen):
            everything = bool(rows.all())
            places = np.arange(count) if everything else np.flatnonzero(rows)
            columns = {
                name: column if everything or column is None else _taken(column, rows) for name, column in given.items()
            }
            if at:
                columns["labels"] = None
            told = _Refusals(piece, places, joined)
            one = self.encoder.encode(**columns, count=len(places), refusals=told)
            told.tell(self._refuse)
            kept = told.kept if one.labelled is None or at else told.kept & one.labelled
            encoded.append((one, places[kept], kept))
        labelled, places, kept = encoded[0]
        without: tuple[Any, Any, Any] = (None, sets[:0], windows[:0])
        if len(encoded) > 1:
            other, at_rows, of_them = encoded[1]
            predicted = None if other.predicted is None else other.predicted[of_them]
            without = predicted, sets[at_rows], windows[at_rows]
        elif labelled.predicted is not None:
            without = labelled.predicted[:0], sets[:0], windows[:0]
        return Rows(
            {name: column[kept] for name, column in labelled.columns.items()},
            sets[places],
            windows[places],
            micros[places],
            without,
        )

    def _scores(self, piece: Piece) -> Any:
        names = self._job.scores
        if not names:
            return None
        columns = [column_of(piece, name) for name in names]
        if self._job.task == "binary":
            return _numbers_or_none(columns[0])
        if len(columns) == 1:
            return columns[0].tolist() if isinstance(columns[0], Coded) else columns[0]
        matrix = np.stack([_numbers(column) for column in columns], axis=1)
        absent = np.asarray(np.isnan(matrix).all(axis=1))
        if not absent.any():
            return matrix
        return [None if absent[row] else matrix[row] for row in range(len(matrix))]

    def _sets(self, piece: Piece) -> SetCodes:
        """Segment set of each row, by way of the few combinations of values that a piece has."""
        names = self._job.segments
        if not names:
            return np.zeros(piece.count, np.int32)
        columns = [_as_coded(column_of(piece, name, as_written=True)) for name in names]
        joint = columns[0].codes.astype(np.int64)
        size = len(columns[0].values)
        for column in columns[1:]:
            joint = joint * len(column.values) + column.codes
            size *= len(column.values)
        if size <= _MOST_JOINT:
            met = np.flatnonzero(np.bincount(joint, minlength=1))
            place = np.zeros(max(size, 1), np.int64)
            place[met] = np.arange(len(met))
            inverse = place[joint]
        else:
            met, inverse = np.unique(joint, return_inverse=True)
        keys = []
        for number in met.tolist():
            values = []
            for column in reversed(columns):
                number, code = divmod(number, len(column.values))
                values.append(column.values[code])
            keys.append(tuple(zip(names, reversed(values), strict=True)))
        return self.segments.encode_keys(keys)[inverse] if keys else np.zeros(0, np.int32)

    def _micros(self, piece: Piece, refusals: Refusals) -> NDArray[np.int64]:
        """Time of each row; 0 for those that are refused."""
        job = self._job
        if job.time is None:
            return np.zeros(piece.count, np.int64)
        raw = piece.columns[job.time]
        column = _text_of(raw) if isinstance(raw, list) else raw
        micros, bad = (None, None) if column is None else self._whole_column(column, piece)
        if micros is None:
            values = raw if isinstance(raw, list) else arrow_values(raw)
            micros, bad = np.zeros(piece.count, np.int64), np.zeros(piece.count, np.bool_)
            problems: dict[int, str] = {}
            for row, value in enumerate(values):
                try:
                    seconds = self._time_of(value)
                    if not _YEAR_1 <= seconds < _YEAR_10000:
                        raise CellError(_BEYOND)
                    micros[row] = round(seconds * _MICROS)
                except CellError as error:
                    bad[row] = True
                    problems[row] = str(error)
            hint = " Say which one it is, e.g. --timezone UTC."

            def what(row: int) -> str:
                return f"{problems[row]}, got {values[row]!r}." + (hint if "time zone" in problems[row] else "")

            refusals.add(INVALID_TIMESTAMP, bad, what)
        elif bad is not None and bad.any():
            refusals.add(
                INVALID_TIMESTAMP,
                bad,
                lambda row: f"{_BEYOND}, got {str(raw[row])!r}.",
            )
        return micros

    def _whole_column(self, raw: Any, piece: Piece) -> tuple[NDArray[np.int64] | None, BoolArray | None]:
        """The times of a column of pyarrow and which are missing; None if they must be looked at one by one."""
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import compute, types

        kind = raw.type
        try:
            if types.is_string(kind):
                # Needs a zone in every one. By way of nanoseconds, for it takes no more digits than it has room for.
                raw = raw.cast(pyarrow.timestamp("ns", tz="UTC")).cast(pyarrow.timestamp("us", tz="UTC"), safe=False)
            elif types.is_integer(kind) or types.is_floating(kind):
                seconds = arrow_numbers(raw.cast(pyarrow.float64(), safe=False))
                bad = ~((seconds >= _YEAR_1) & (seconds < _YEAR_10000))
                return np.rint(np.where(bad, 0.0, seconds) * _MICROS).astype(np.int64), bad
            elif types.is_date(kind) or types.is_timestamp(kind):
                zone = None if types.is_date(kind) else kind.tz
                fewer_digits = compute.CastOptions(pyarrow.timestamp("us", tz=zone), allow_time_truncate=True)
                raw = raw.cast(options=fewer_digits)
                if zone is None:
                    if self._job.timezone is None:
                        raise FileError(
                            f"{piece.path}: times in column {self._job.time!r} have no time zone. "
                            "Say which one they are in, e.g. --timezone UTC."
                        )
                    if self._job.timezone != "UTC":
                        raw = compute.assume_timezone(
                            raw, self._job.timezone, ambiguous="earliest", nonexistent="earliest"
                        )
            else:
                return None, None
        except pyarrow.ArrowInvalid as error:
            if types.is_temporal(kind):
                raise FileError(f"{piece.path}: times in column {self._job.time!r} cannot be read: {error}.") from error
            return None, None
        micros = arrow_numbers(raw.cast(pyarrow.int64()), _NO_TIME)
        bad = (micros < _YEAR_1 * _MICROS) | (micros >= _YEAR_10000 * _MICROS)
        return (np.where(bad, 0, micros), bad) if bad.any() else (micros, None)

    def _time_of(self, value: Any) -> float:
        if value is None:
            raise CellError("no time")
        if isinstance(value, str) and self._job.timezone is not None:
            try:
                naive = datetime.datetime.fromisoformat(value.strip())
            except ValueError:
                naive = None
            if naive is not None and naive.tzinfo is None:
                return naive.replace(tzinfo=_zone(self._job.timezone)).timestamp()
        return time_of(value)


def _text_of(values: list[Any]) -> Any:
    """A list of text as a column of pyarrow; None if there is something else in it."""
    import pyarrow

    if not set(map(type, values)) <= {str, type(None)}:
        return None
    try:
        return pyarrow.array(values, pyarrow.string())
    except UnicodeEncodeError:  # half of a character, which JSON can spell
        return None


@functools.lru_cache(maxsize=4)
def _zone(name: str) -> datetime.tzinfo:
    return datetime.timezone.utc if name == "UTC" else zoneinfo.ZoneInfo(name)


_YEAR_1, _YEAR_10000 = -62_135_596_800.0, 253_402_300_800.0


class _Refusals(Refusals):
    """Refusals that say where: rows are those at `places` of a piece."""

    def __init__(self, piece: Piece, places: NDArray[np.int64], joined: Joined | None = None) -> None:
        super().__init__(len(places))
        self._piece = piece
        self._places = places
        self._joined = joined

    def add(self, reason: str, rows: BoolArray, message: Any) -> None:
        def placed(row: int) -> str:
            place = int(self._places[row])
            where, what = f"{self._piece.path}, row {self._piece.row(place)}", message(row)
            if self._joined is not None and what.startswith("label "):
                where = f"{self._joined.source(place)} (for {where})"
            return f"{where}: {what}"

        super().add(reason, rows, placed)

    def tell(self, refuse: Refuse) -> None:
        """Report what was refused."""
        for reason, (count, text) in self.reasons.items():
            refuse(reason, count, text)


def column_of(piece: Piece, name: str, as_written: bool = False) -> Column:
    """
    A column as encoders take it. Text of CSV files and of paths means what it looks like; `as_written` keeps it as it
    is, so that the segment 007 is no number.
    """
    raw = piece.columns[name]
    text = (piece.text or name in piece.keys) and not as_written
    if isinstance(raw, list):
        if text:
            return Coded([None if raw[0] is None else value_of(raw[0])], np.zeros(len(raw), np.int64))
        return raw
    import pyarrow
    from pyarrow import types

    kind = raw.type
    if types.is_dictionary(kind):
        values = arrow_values(raw.dictionary)
        codes = raw.indices
        if codes.null_count:  # the code for these may be one more than the type of the others has room for
            codes = codes.cast(pyarrow.int64())
        codes = arrow_numbers(codes, len(values))
        if raw.indices.null_count:
            values = [*values, None]
        return Coded([value_of(one) if text and one is not None else one for one in values], codes)
    if types.is_string(kind) or types.is_large_string(kind):
        if not piece.text:
            return _recoded(raw.dictionary_encode(), piece, name)
        try:  # numbers, or else they would have been read as a dictionary
            return arrow_numbers(raw.cast(pyarrow.float64()))
        except pyarrow.ArrowInvalid:
            return [None if one is None else value_of(one) for one in arrow_values(raw)]
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        if not raw.null_count or types.is_floating(kind):
            return arrow_numbers(raw)
        return _recoded(raw.dictionary_encode(), piece, name)
    return arrow_labels(raw)


def _recoded(raw: Any, piece: Piece, name: str) -> Column:
    return column_of(Piece(piece.path, piece.first_row, piece.count, {name: raw}), name)


def _as_coded(column: Column) -> Coded:
    if isinstance(column, Coded):
        return column
    values: dict[Any, int] = {}
    listed = column.tolist() if isinstance(column, np.ndarray) else column
    hashable = [tuple(one) if isinstance(one, list) else one for one in listed]
    hashable = [None if isinstance(one, float) and math.isnan(one) else one for one in hashable]
    try:
        codes = [values.setdefault(one, len(values)) for one in hashable]
    except TypeError:  # such as a mapping
        return Coded(hashable, np.arange(len(hashable)))
    return Coded(list(values), np.array(codes, np.int64))


def is_nothing(value: Any) -> bool:
    """Whether a value is none: null, or NaN, which is how pandas writes it."""
    return is_missing(value) or (isinstance(value, float) and math.isnan(value))


def _missing(column: Column | None) -> BoolArray | None:
    """Which entries stand for no value: empty cells, null, and NaN, which is how pandas writes them."""
    if column is None:
        return None
    if isinstance(column, Coded):
        of_values = np.array([is_nothing(value) for value in column.values], np.bool_)
        return column.spread(of_values) if of_values.any() else None
    if isinstance(column, np.ndarray):
        missing = np.isnan(column) if column.dtype.kind == "f" else None
        return missing if missing is not None and missing.any() else None
    missing = np.array([is_nothing(value) for value in column], np.bool_)
    return missing if missing.any() else None


def _numbers(column: Column) -> NDArray[np.float64]:
    if isinstance(column, np.ndarray):
        return column.astype(np.float64)
    values: Sequence[Any] = column.tolist() if isinstance(column, Coded) else column
    return np.array([value if isinstance(value, (int, float)) else math.nan for value in values], np.float64)


def _numbers_or_none(column: Column) -> Column | None:
    """Scores, of which NaN is no score."""
    missing = _missing(column)
    if missing is None:
        return column
    values = column if isinstance(column, list) else column.tolist()
    return [None if gone else value for gone, value in zip(missing.tolist(), values, strict=True)]


def _taken(column: Column, rows: BoolArray) -> Column:
    if isinstance(column, Coded):
        return column.take(rows)
    if isinstance(column, np.ndarray):
        return column[rows]
    return [column[row] for row in np.flatnonzero(rows).tolist()]
