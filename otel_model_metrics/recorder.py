"""
The way of a row from its caller to the tally: staged without a lock, drained into columns, refused if it is unusable.

The lock is held to encode and to copy, never to compute a statistic of the window, so a caller of `record` waits
for neither an export nor another caller.
"""

from __future__ import annotations

import array
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics import encoding
from otel_model_metrics.columns import RawColumn, read_column, to_times
from otel_model_metrics.encoding import Encoder, Refusals
from otel_model_metrics.packing import Packing, SegmentPacking
from otel_model_metrics.segments import UNUSABLE_SET, SegmentTable, key_of
from otel_model_metrics.statistics.groups import Groups
from otel_model_metrics.tally import SETS, Tally
from otel_model_metrics.totals import Sums
from otel_model_metrics.window import TIME, Columns, Window

Refused = tuple[str, int, str]  # reason, number of rows, what was wrong with the first of them

STAGED_FIELDS = 5  # time, prediction, label, score, segment key
JOINED_FIELDS = 5  # time of prediction, time of label, prediction, label, segments; the last three packed
_JOINED_AT_ONCE = 4096
_TRIES = 3  # of drains, to find the row that a correction is about

_logger = logging.getLogger("otel_model_metrics")

# A clock may be a little ahead on another machine; a timestamp in milliseconds is far beyond this.
FUTURE_TOLERANCE = 300.0
_BATCH_PIECE = 65_536
# Callers leave draining to whoever holds the lock, until this many times the usual number of rows is staged.
_STAGING_BACKLOG = 16
_LOG_INTERVAL = 60.0


@dataclass(frozen=True)
class Reading:
    """
    Everything a snapshot is made of, copied in one moment.

    Attributes:
        columns: The rows in the window, oldest first.
        groups: Their groups.
        segments: Name and value of each group; None for group 0, the whole.
        segment_names: Names allowed or met so far.
        classes: Names of the classes met so far, in the order of their codes.
        age: Seconds since the oldest row in the window, 0.0 for an empty one.
        totals: Statistics of all rows of this process; ``unlabelled`` is that of `Encoder.unlabelled`.
        rejected: Rows not used, by reason.
        labelled, unlabelled: Number of rows of this process that came with their label, and without.
        matched: Number of labels of this process that came later, and found their prediction.
        delays: How many labels came late by how much: one number for each of `tally.DELAY_BOUNDS`, and one beyond.
        newest_labels: Time of the newest label that came late, for each group; minus infinity where there is none.
        now: When it was read.
        used: Whether this process has recorded anything.
    """

    columns: Columns
    groups: Groups
    segments: list[tuple[str, str] | None]
    segment_names: list[str]
    classes: list[str]
    age: float
    totals: Sums
    rejected: dict[str, int]
    labelled: int
    unlabelled: int
    matched: int
    delays: NDArray[np.int64]
    newest_labels: NDArray[np.float64]
    now: float
    used: bool


class Correction(NamedTuple):
    """
    Another label for a row.

    Attributes:
        predicted, labelled: Time of the prediction, and of its first label.
        prediction: The prediction, packed.
        labels: The label before and after, packed.
        segments: The segments, packed.
    """

    predicted: float
    labelled: float
    prediction: bytes
    labels: tuple[bytes, bytes]
    segments: bytes


class Recorder:
    """
    Staging lists and tally of one monitor.

    Args:
        title: What log lines call the monitor, e.g. ``model 'fraud' 2026.11``.
        encoder: What turns the task's raw rows into columns.
        window: Which rows count.
        segments: The monitor's segments.
        clock: Seconds since 1970.
        strict: Raise for rows that cannot be used, after keeping the others.
    """

    def __init__(
        self,
        title: str,
        encoder: Encoder,
        window: Window,
        segments: SegmentTable,
        clock: Callable[[], float],
        strict: bool,
    ) -> None:
        self._title = title
        self._encoder = encoder
        self._segments = segments
        self._clock = clock
        self._strict = strict
        self._tally = Tally(encoder, window, segments)
        self.staged: list[Any] = []
        # Rows whose label came late, as stores keep them; what unpacks them is set by whoever stages them.
        self.joined: list[Any] = []
        self.matured: list[Any] = []  # likewise, but their labels were counted when they came ...
        self.labelled: list[Any] = []  # ... here: time of prediction, time of label, segments
        self._corrections: list[tuple[int, Correction]] = []  # each with how often its row is still looked for
        self._unpack: tuple[Packing, SegmentPacking] | None = None
        self.staging_limit = encoder.staging_rows * STAGED_FIELDS
        self.reset()

    @property
    def nbytes(self) -> int:
        """Memory of the window, in bytes."""
        return self._tally.nbytes

    def locked(self) -> threading.Lock:
        """The lock that guards classes and segments."""
        return self._lock

    def unpack_with(self, packing: Packing, segments: SegmentPacking) -> None:
        """How what is in `joined` is to be read."""
        self._unpack = packing, segments

    def reset(self) -> None:
        """Forget every row and total, and renew the lock: a forked child starts empty."""
        self._lock = threading.Lock()
        self.staged.clear()
        self.joined.clear()
        self.matured.clear()
        self.labelled.clear()
        self._corrections.clear()
        self._tally.clear()
        self.matched = 0  # labels that came late and found their prediction
        self._rejected = dict.fromkeys(encoding.REASONS, 0)
        self._used = False
        self._logged: dict[str, tuple[float, int]] = {}

    def drain_if_due(self) -> None:
        """
        Encode the staged rows, unless another thread is at it. Never raises, unless strict.

        Waits only when that thread has fallen far behind, for staging must stay bounded.
        """
        backlog = len(self.staged) + len(self.joined) >= _STAGING_BACKLOG * self.staging_limit
        if self._lock.acquire(blocking=backlog):
            try:
                refusals = self._drain(self._clock())
            finally:
                self._lock.release()
            self._raise_if_strict(refusals)

    def drain(self) -> None:
        """Encode the staged rows now; raises ValueError for bad ones if strict."""
        with self._lock:
            refusals = self._drain(self._clock())
        self._raise_if_strict(refusals)

    def add_batch(
        self, predictions: Any, labels: Any, scores: Any, segments: Any, timestamps: Any, matrices: tuple[str, ...]
    ) -> None:
        """
        Record many rows. Never raises, unless strict.

        Args:
            predictions, labels, scores: One entry a row, or None.
            segments: Name -> column or single value; or one mapping or list of tags a row; or None.
            timestamps: One time for all or one a row, or None for now.
            matrices: Which of the arguments may have two dimensions.
        """
        given = {"predictions": predictions, "labels": labels, "scores": scores}
        try:
            columns = {what: _read(values, what, what in matrices) for what, values in given.items()}
            lengths = {what: len(column) for what, column in columns.items() if column is not None}
            if not ("predictions" in lengths or "scores" in lengths):
                raise TypeError("there must be predictions, or scores that a threshold turns into them.")
            count = next(iter(lengths.values()))
            keys, by_name = _read_segments(segments, count, lengths)
            times = _read_times(timestamps, lengths)
        except Exception as error:
            self._refuse_call(encoding.INVALID_PREDICTION, _length_of(given.values()), f"record_batch: {_said(error)}")
            return
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{length} {what}" for what, length in lengths.items())
            self._refuse_call(
                encoding.UNEQUAL_LENGTH, count, f"record_batch needs arrays of equal length, got {found}."
            )
            return
        for begin in range(0, count, _BATCH_PIECE):
            rows = slice(begin, min(begin + _BATCH_PIECE, count))
            piece = [_piece(column, rows, count) for column in columns.values()]
            with self._lock:
                now = self._clock()
                refusals = self._drain(now)
                self._take_guarded(
                    np.full(rows.stop - begin, now) if times is None else np.broadcast_to(times, count)[rows],
                    *piece,
                    keys=_piece(keys, rows, count),
                    by_name=None
                    if by_name is None
                    else {name: _piece(column, rows, count) for name, column in by_name.items()},
                    now=now,
                    refusals=refusals,
                )
            self._raise_if_strict(refusals)

    def read(self) -> Reading:
        """A consistent copy of the window and the totals, after draining what is staged."""
        with self._lock:
            now = self._clock()
            self._drain(now)
            self._tally.mature(now)
            live = self._tally.live(now)
            times = live.pop(TIME)
            # Copied under the lock and used outside it: 100,000 rows take about 0.1 ms.
            columns = {name: column.copy() for name, column in live.items()}
            return Reading(
                columns=columns,
                groups=self._segments.groups_of(columns[SETS]),
                segments=list(self._segments.groups),
                classes=self._encoder.classes(),
                segment_names=list(self._segments.names.names),
                age=max(0.0, now - float(times[0])) if len(times) else 0.0,
                totals=self._tally.totals(),
                rejected=dict(self._rejected),
                labelled=self._tally.labelled,
                unlabelled=self._tally.unlabelled,
                matched=self.matched,
                delays=self._tally.delays.copy(),
                newest_labels=self._tally.newest_labels,
                now=now,
                used=self._used,
            )

    def sums(self, reading: Reading) -> Sums:
        """The statistics of the rows in the window."""
        return self._encoder.sums(reading.columns, reading.groups, len(reading.classes))

    def _drain(self, now: float) -> list[Refused]:
        """Encode staged rows, with the lock held; returns what was refused."""
        staged = self.staged
        refusals: list[Refused] = []
        length = len(staged)  # always whole rows: each is one atomic extend()
        if length:
            # Others may append meanwhile, beyond `length`; only this method, under the lock, removes.
            fields = [staged[field:length:STAGED_FIELDS] for field in range(STAGED_FIELDS)]
            del staged[:length]
            times, predictions, labels, scores, keys = fields
            self._take_guarded(
                times,
                predictions,
                labels,
                scores,
                keys=keys,
                by_name=None,
                now=now,
                refusals=refusals,
            )
        while self.joined:
            self.matched += min(len(self.joined) // JOINED_FIELDS, _JOINED_AT_ONCE)
            refusals += self._drain_joined(self.joined, now, noted=False)
        while self.matured:
            refusals += self._drain_joined(self.matured, now, noted=True)
        if self.labelled:
            self._drain_labelled()
        self._tally.compact()
        if self._corrections:
            waiting, self._corrections = self._corrections, []
            for tries, correction in waiting:
                if not self._corrected(correction) and tries > 1:
                    self._corrections.append((tries - 1, correction))
        return refusals

    def _drain_labelled(self) -> None:
        length = len(self.labelled)
        predicted, labelled, segments = (self.labelled[field:length:3] for field in range(3))
        del self.labelled[:length]
        try:
            self._tally.note_labels(
                np.array(predicted, np.float64), np.array(labelled, np.float64), self._sets(segments)
            )
        except Exception:
            _logger.exception("Internal error of otel_model_metrics with late labels of %s", self._title)

    def _drain_joined(self, joined: list[Any], now: float, noted: bool) -> list[Refused]:
        """
        Rows whose label came late; what cannot be used any more is refused like any other row.

        Args:
            joined: Where they are staged.
            now: Seconds since 1970.
            noted: Whether the delays of their labels have been counted already.
        """
        length = min(len(joined), _JOINED_AT_ONCE * JOINED_FIELDS)
        predicted, labelled, predictions, labels, segments = (
            joined[field:length:JOINED_FIELDS] for field in range(JOINED_FIELDS)
        )
        del joined[:length]
        self._used = True
        count = len(predicted)
        try:
            columns, refusals = self._unpacked(predicted, predictions, labels, segments)
            times = np.array(labelled, np.float64)
            if refusals:
                kept = refusals.kept
                columns, times = {name: column[kept] for name, column in columns.items()}, times[kept]
            if len(times):
                if not noted:
                    self._tally.note_labels(columns[TIME], times, columns[SETS])
                self._tally.add_joined(columns, times, now)
            found = [(reason, refused, text) for reason, (refused, text) in refusals.reasons.items()]
        except Exception:
            _logger.exception("Internal error of otel_model_metrics with late labels of %s", self._title)
            found = [(encoding.INTERNAL_ERROR, count, "see the traceback in the log.")]
        for reason, refused, text in found:
            self._reject(reason, refused, text, now)
        return found

    def _unpacked(
        self,
        predicted: Sequence[float],
        predictions: Sequence[bytes],
        labels: Sequence[bytes],
        segments: Sequence[bytes],
    ) -> tuple[Columns, Refusals]:
        """Packed rows as the ring's columns; `TIME` is that of the prediction."""
        assert self._unpack is not None
        packing, _ = self._unpack
        refusals = Refusals(len(predicted))
        encoded = self._encoder.encode(*packing.columns(predictions, labels), len(predicted), refusals)
        times = np.array(predicted, np.float64)
        return {TIME: times, SETS: self._sets(segments), **encoded.columns}, refusals

    def _sets(self, segments: Sequence[bytes]) -> NDArray[np.int32]:
        """Segment sets of packed segments."""
        assert self._unpack is not None
        codes = {packed: self._unpack[1].set_code(packed) for packed in set(segments)}
        return np.array([codes[packed] for packed in segments], np.int32)

    def groups_of(self, sets: NDArray[np.int32]) -> Groups:
        """The groups of these segment sets, with the lock held."""
        return self._segments.groups_of(sets)

    def mark_used(self) -> None:
        """From now on there is something to export, if only that there is nothing yet."""
        self._used = True

    def correct(self, correction: Correction) -> None:
        """
        Give a row another label, if it is in the window, or waits to be. Totals keep the first label.

        The row may not be there yet, though it was joined before: the thread that joined it may be about to stage it.
        """
        with self._lock:
            self._corrections.append((_TRIES, correction))
            self._drain(self._clock())

    def _corrected(self, correction: Correction) -> bool:
        predicted, labelled, prediction, labels, segments = correction
        try:
            both, refusals = self._unpacked([predicted] * 2, [prediction] * 2, labels, [segments] * 2)
            if refusals:
                return True
            old, new = ({name: column[row : row + 1] for name, column in both.items()} for row in (0, 1))
            return self._tally.correct(old, new, labelled)
        except Exception:
            _logger.exception("Internal error of otel_model_metrics with a corrected label of %s", self._title)
            return True

    def refuse(self, reason: str, text: str, count: int = 1) -> None:
        """Reject rows that cannot be used; raises ValueError if strict."""
        self._refuse_call(reason, count, text)

    def _take_guarded(
        self,
        times: Sequence[float] | NDArray[np.float64],
        *args: Any,
        now: float,
        refusals: list[Refused],
        **kwargs: Any,
    ) -> None:
        """As `_take`, but a fault of ours costs the rows, counted, and never reaches the caller."""
        self._used = True
        before = self._tally.counted
        try:
            found = self._take(times, *args, now=now, **kwargs)
        except Exception:
            _logger.exception("Internal error of otel_model_metrics with rows of %s", self._title)
            lost = len(times) - (self._tally.counted - before)
            found = [(encoding.INTERNAL_ERROR, lost, "see the traceback in the log.")]
        for reason, count, text in found:
            self._reject(reason, count, text, now)
        refusals.extend(found)

    def _take(
        self,
        moments: Sequence[float] | NDArray[np.float64],
        predictions: RawColumn | None,
        labels: RawColumn | None,
        scores: RawColumn | None,
        *,
        keys: list[Any] | None,
        by_name: Mapping[str, list[Any]] | None,
        now: float,
    ) -> list[Refused]:
        """Encode rows, add them to ring and totals, and return what was refused."""
        count = len(moments)
        refusals = Refusals(count)
        try:
            times = moments if isinstance(moments, np.ndarray) else np.frombuffer(array.array("d", moments), np.float64)
            encoded = self._encoder.encode(predictions, labels, scores, count, refusals)
            if by_name is not None:
                sets = self._segments.encode_columns(by_name, count)
            else:
                sets = np.zeros(count, np.int32) if keys is None else self._segments.encode_keys(keys)
        except Exception:
            # Something in it fails even to be looked at. Halves tell where; nothing has been counted yet.
            if count == 1:
                text = "a value of the row fails when it is looked at."
                return [(encoding.INTERNAL_ERROR, 1, text)]
            found: list[Refused] = []
            for half in (slice(0, count // 2), slice(count // 2, count)):
                columns = [None if column is None else column[half] for column in (predictions, labels, scores)]
                found += self._take(
                    moments[half],
                    *columns,
                    keys=None if keys is None else keys[half],
                    by_name=None if by_name is None else {name: column[half] for name, column in by_name.items()},
                    now=now,
                )
            return found
        if sets.min(initial=0) < 0:
            problem = self._segments.problem
            refusals.add(encoding.INVALID_SEGMENT, sets == UNUSABLE_SET, lambda row: problem)
        timely = (times >= 0) & (times <= now + FUTURE_TOLERANCE)
        if not timely.all():
            refusals.add(
                encoding.INVALID_TIMESTAMP,
                ~timely,
                lambda row: f"timestamp must be seconds since 1970 and not in the future, got {times[row]:g}.",
            )

        kept = refusals.kept if refusals else None
        labelled = encoded.labelled
        if labelled is not None:
            unlabelled = ~labelled if kept is None else ~labelled & kept
            labelled = labelled if kept is None else labelled & kept
            if unlabelled.any():
                predicted = None if encoded.predicted is None else encoded.predicted[unlabelled]
                self._tally.add_unlabelled(predicted, sets[unlabelled])
        elif kept is not None:
            labelled = kept
        columns_of_rows: Columns = {TIME: times, SETS: sets, **encoded.columns}
        if labelled is not None:
            columns_of_rows = {name: column[labelled] for name, column in columns_of_rows.items()}
        if len(columns_of_rows[TIME]):
            self._tally.add_labelled(columns_of_rows, now)
        return [(reason, refused, text) for reason, (refused, text) in refusals.reasons.items()]

    def _refuse_call(self, reason: str, count: int, text: str) -> None:
        with self._lock:
            self._used = True
            self._reject(reason, count, text, self._clock())
        self._raise_if_strict([(reason, count, text)])

    def _reject(self, reason: str, count: int, text: str, now: float) -> None:
        """Count refused rows, and log them once per reason and minute."""
        self._rejected[reason] += count
        last, unsaid = self._logged.get(reason, (-math.inf, 0))
        if 0 <= now - last < _LOG_INTERVAL:
            self._logged[reason] = (last, unsaid + count)
            return
        self._logged[reason] = (now, 0)
        earlier = f" ({unsaid} more since the last such line)" if unsaid else ""
        _logger.warning("%s: %d row(s) rejected as %s%s: %s", self._title, count, reason, earlier, text)

    def _raise_if_strict(self, refusals: list[Refused]) -> None:
        if self._strict and refusals:
            raise ValueError(f"{refusals[0][2]} ({self._title})")


def _read(values: Any, what: str, matrix_allowed: bool) -> RawColumn | None:
    if values is None:
        return None
    column = read_column(values, what)
    if isinstance(column, np.ndarray) and column.ndim > 1 and not matrix_allowed:
        hint = " Pass the probability of the positive class, e.g. scores[:, 1]." if what == "scores" else ""
        raise TypeError(f"{what} must have one dimension, got shape {column.shape}.{hint}")
    return column


def _piece(column: Any, rows: slice, count: int) -> Any:
    """Some rows of a column that may be absent; all of them are not copied."""
    return column if column is None or rows == slice(0, count) else column[rows]


def _read_segments(
    segments: Any, count: int, lengths: dict[str, int]
) -> tuple[list[Any] | None, dict[str, list[Any]] | None]:
    """Segments of a batch, either as one key a row or as columns by name."""
    if segments is None:
        return None, None
    if not isinstance(segments, Mapping):
        keys = [None if row is None else key_of(row) for row in read_column(segments, "segments")]
        lengths["segments"] = len(keys)
        return keys, None
    by_name: dict[str, list[Any]] = {}
    for name, values in segments.items():
        if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
            by_name[name] = [values] * count
            continue
        column = read_column(values, f"segments[{name!r}]")
        by_name[name] = column.tolist() if isinstance(column, np.ndarray) else column
        lengths[f"segments[{name!r}]"] = len(column)
    return None, by_name


def _read_times(timestamps: Any, lengths: dict[str, int]) -> NDArray[np.float64] | None:
    if timestamps is None:
        return None
    if hasattr(timestamps, "__iter__") and not isinstance(timestamps, (str, bytes)):
        times = to_times(timestamps)
        lengths["timestamps"] = len(times)
        return times
    return to_times([timestamps])


def _said(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return type(error).__name__


def _length_of(columns: Any) -> int:
    """Number of rows in a call that could not be read: of the first column that knows its length, else 1."""
    for column in columns:
        try:
            if column is not None and not isinstance(column, (str, bytes)):
                return len(column)
        except Exception:
            continue
    return 1
