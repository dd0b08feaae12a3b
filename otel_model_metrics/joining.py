"""
Late labels of one monitor: from its verbs to a store, and from the store's decisions to the recorder.

A prediction is packed in its caller's thread and handed to the ledger; so is a label. Whatever the ledger decides, at
once or in a thread of its own, comes back to `_decided`, which stages rows and counts outcomes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics import encoding
from otel_model_metrics.columns import read_column, shown, to_seconds, to_times
from otel_model_metrics.ground_truth.background import BackgroundLedger, LeftLabel
from otel_model_metrics.ground_truth.cohorts import WAITING
from otel_model_metrics.ground_truth.entries import NEW, Decision, Entry, Label, Prediction
from otel_model_metrics.ground_truth.ids import EXPECTED, MAX_LENGTH, id_text
from otel_model_metrics.ground_truth.ledger import Ledger, Scope
from otel_model_metrics.ground_truth.outcomes import COUNTED, LOST_PREDICTION, LabelOutcome
from otel_model_metrics.ground_truth.stores import open_ledger
from otel_model_metrics.packing import Packing, SegmentPacking, UnusableError
from otel_model_metrics.recorder import FUTURE_TOLERANCE, Correction, Reading, Recorder
from otel_model_metrics.segments import key_of
from otel_model_metrics.statistics.groups import Groups
from otel_model_metrics.tally import DELAY

_logger = logging.getLogger("otel_model_metrics")

_MATCHED = LabelOutcome.MATCHED
# Of a named tuple, in half the time of its own constructor.
_prediction: Callable[[type[Prediction], tuple[Any, ...]], Prediction] = tuple.__new__
_label: Callable[[type[Label], tuple[Any, ...]], Label] = tuple.__new__


class Waiting:
    """
    The predictions that have been made, by group, at the moment of a collection.

    Args:
        groups: Groups of the cells of all cohorts.
        predicted, labelled: Of the cells that are old enough for coverage, shape ``(cells,)``.
        pending: Of every cell, shape ``(cells,)``.
        oldest: Time of the first prediction of each cell, shape ``(cells,)``.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        groups: Groups,
        predicted: NDArray[np.float64],
        labelled: NDArray[np.float64],
        pending: NDArray[np.float64],
        oldest: NDArray[np.float64],
        now: float,
    ) -> None:
        self._now = now
        self.predicted = groups.sums(predicted)
        self.labelled = groups.sums(labelled)
        self.pending = groups.sums(pending)
        self.first = np.full(groups.count, np.inf)
        waits = pending > 0
        by_set = np.full(groups.sets, np.inf)
        np.minimum.at(by_set, groups.codes[waits], oldest[waits])
        np.minimum.at(self.first, groups.pair_group, by_set[groups.pair_set])

    def statistics(self, reading: Reading) -> dict[str, Any]:
        """What the catalogue's functions of label health ask for, each with the reading's groups as its first axis."""
        count = len(reading.segments)
        newest = _padded(reading.newest_labels, count, -np.inf)
        first = _padded(self.first, count, np.inf)
        return {
            "predicted": _padded(self.predicted, count, 0.0),
            "labelled": _padded(self.labelled, count, 0.0),
            "pending": _padded(self.pending, count, 0.0),
            "pending_age": np.maximum(np.where(np.isfinite(first), self._now - first, np.nan), 0.0),
            "label_age": np.maximum(np.where(np.isfinite(newest), reading.now - newest, np.nan), 0.0),
            "delays": _delays_of(reading),
        }


def _padded(values: NDArray[np.float64], count: int, value: float) -> NDArray[np.float64]:
    padded = np.full(count, value)
    padded[: len(values)] = values[:count]
    return padded


def _delays_of(reading: Reading) -> Callable[[int], NDArray[np.float64]]:
    """Gives the delays of a group; rows are put in the order of their sets once."""
    delays = reading.columns.get(DELAY)
    if delays is None:
        return lambda group: np.zeros(0)
    groups = reading.groups
    order = np.argsort(groups.codes, kind="stable")
    in_order = delays[order].astype(np.float64)
    begin = np.searchsorted(groups.codes[order], np.arange(groups.sets + 1))

    def of_group(group: int) -> NDArray[np.float64]:
        if group == 0:
            return in_order
        sets = groups.pair_set[groups.pair_group == group]
        return np.concatenate([in_order[begin[one] : begin[one + 1]] for one in sets]) if len(sets) else np.zeros(0)

    return of_group


class Joining:
    """
    Late labels of one monitor.

    Args:
        recorder: Where rows go.
        packing: The packing of the monitor's task.
        segments: Makes the packing of its segments, from whether it must be portable.
        store: ``"memory"``, or the URL of a store.
        scope: Whose predictions they are, and how long and how many are kept.
        clock: Seconds since 1970.
        strict: Whether the recorder raises for rows that cannot be used.
    """

    def __init__(
        self,
        recorder: Recorder,
        packing: Packing,
        segments: Callable[[bool], SegmentPacking],
        store: str,
        scope: Scope,
        clock: Callable[[], float],
        strict: bool,
    ) -> None:
        self._recorder = recorder
        self._packing = packing
        self._scope = scope
        self._limit = 1 if strict else recorder.staging_limit
        self._clock = clock
        self._ledger: Ledger = open_ledger(store, scope, self._decided_many, self._counted, clock)
        self._segments = segments(self._ledger.portable)
        if isinstance(self._ledger, BackgroundLedger):
            self._ledger.read_left = self._read_left
            self._ledger.matured = self._matured
        recorder.unpack_with(packing, self._segments)
        self._fresh()

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self._used = False

    # What monitors call

    def predict(self, id: Any, prediction: Any, score: Any, segments: Any, timestamp: Any) -> None:
        """Take one prediction."""
        now = self._clock()
        try:
            key: Any = () if segments is None else tuple(segments.items())
            packed_key = self._segments.known.get(key)
        except Exception:  # no mapping, or not hashable
            key, packed_key = key_of(segments), None
        try:
            given = self._prediction(id, prediction, score, key, packed_key, timestamp, now)
        except UnusableError as error:
            self._recorder.refuse(error.reason, error.text)
            return
        decision = self._ledger.predict(given, now)
        if decision is NEW and self._used:  # by far the most
            _, time, _, _, (counted, key) = given
            staged = self._recorder.staged
            staged.extend((time, counted, None, None, key))
            if len(staged) >= self._limit:
                self._recorder.drain_if_due()
        elif decision is not None:
            self._decided(given, decision)

    def predict_many(self, ids: Any, predictions: Any, scores: Any, segments: Any, timestamps: Any) -> None:
        """Take many predictions; what cannot be used is left out."""
        count = 0
        try:
            id_column = _list(ids, "ids")
            count = len(id_column)
            columns = [
                _column(values, what, count) for values, what in ((predictions, "predictions"), (scores, "scores"))
            ]
            keys = _keys(segments, count)
            times = _times(timestamps, count)
        except Exception as error:
            self._recorder.refuse(encoding.UNEQUAL_LENGTH, f"record_prediction_batch: {_said(error)}", max(count, 1))
            return
        now = self._clock()
        packed_keys: dict[Any, tuple[Any, bytes]] = {}
        given: list[Prediction] = []
        for id, prediction, score, key, time in zip(id_column, *columns, keys, times, strict=True):
            try:
                packed_key = packed_keys.get(key)
                if packed_key is None:
                    packed_key = packed_keys[key] = self._packed_key(key)
            except Exception:  # unhashable, or unusable, as will be said below
                packed_key = None
            try:
                given.append(self._prediction(id, prediction, score, key, packed_key, time, now))
            except UnusableError as error:
                self._recorder.refuse(error.reason, error.text)
        decisions = self._ledger.predict_many(given, now)
        if decisions is not None:
            self._decided_many(given, decisions)

    def label(self, id: Any, label: Any, timestamp: Any, wait: float | None) -> LabelOutcome:
        """Take one label."""
        now = self._clock()
        try:
            given = self._label(id, label, timestamp, now)
        except UnusableError as error:
            return self._refuse_label(error)
        ledger = self._ledger
        decision = ledger.label(given, now, ledger.answer_within if wait is None else wait)
        if decision is None:
            return LabelOutcome.QUEUED
        if ledger.immediate:
            if decision[0] is _MATCHED and self._used:  # by far the most
                self._join(decision)
            else:
                self._decided(given, decision)
        return decision[0] or LabelOutcome.QUEUED

    def label_many(self, ids: Any, labels: Any, timestamps: Any, wait: float | None) -> list[LabelOutcome]:
        """Take many labels; the outcome of each."""
        count = 0
        try:
            id_column = _list(ids, "ids")
            count = len(id_column)
            label_column = _column(labels, "labels", count)
            times = _times(timestamps, count)
        except Exception as error:
            text = f"record_label_batch: {_said(error)}"
            return [self._refuse_label(UnusableError(encoding.UNEQUAL_LENGTH, text), max(count, 1))] * max(count, 1)
        now = self._clock()
        outcomes: list[LabelOutcome] = []
        usable: list[Label] = []
        places: list[int] = []
        for id, label, time in zip(id_column, label_column, times, strict=True):
            try:
                usable.append(self._label(id, label, time, now))
                places.append(len(outcomes))
                outcomes.append(LabelOutcome.QUEUED)
            except UnusableError as error:
                outcomes.append(self._refuse_label(error))
        wait = self._ledger.answer_within if wait is None else wait
        decisions = self._ledger.label_many(usable, now, wait)
        if self._ledger.immediate:
            self._decided_many(usable, decisions)
        for place, decision in zip(places, decisions, strict=True):
            if decision is not None and decision.outcome is not None:
                outcomes[place] = decision.outcome
        return outcomes

    def awaits(self, id: Any, wait: float) -> bool:
        """Whether a prediction of this id is known, as far as the store says so within `wait` seconds."""
        text = id_text(id)
        return text is not None and self._ledger.awaits(text, wait)

    def flush(self, seconds: float) -> bool:
        """Wait until the store has decided all that was handed to it; returns whether it has."""
        return self._ledger.flush(seconds)

    def close(self) -> None:
        """Write what is not written yet, and end."""
        self._ledger.close()

    def reset(self) -> None:
        """Start empty, in a forked child."""
        self._fresh()
        self._ledger.reset()

    # What collections call

    @property
    def counts(self) -> dict[str, int] | None:
        """Labels by outcome, without matched ones that the recorder counts; None as long as none came late."""
        with self._lock:
            return dict(self._counts) if self._used else None

    def waiting(self) -> Waiting | None:
        """The predictions made and those that wait, by group; None as long as there was none."""
        if not self._used:
            return None
        now = self._clock()
        cells = [cell for cell in self._ledger.cells() if cell.segments != WAITING]
        with self._recorder.locked():
            codes = {packed: self._segments.set_code(packed) for packed in {cell.segments for cell in cells}}
            sets = np.array([codes[cell.segments] for cell in cells], np.int32)
            groups = self._recorder.groups_of(sets)
        numbers = np.array([(cell.cohort, cell.predicted, cell.labelled, cell.lost) for cell in cells], np.float64)
        cohort, predicted, labelled, lost = numbers.reshape(-1, 4).T
        width, mature = self._scope.width, now - self._scope.maturity
        horizon = self._scope.horizon or self._scope.ttl
        counts = (cohort + 1) * width > mature - horizon
        if self._scope.maturity:
            counts &= (cohort + 1) * width <= mature
        return Waiting(
            groups,
            np.where(counts, predicted, 0.0),
            np.where(counts, labelled, 0.0),
            np.maximum(predicted - labelled - lost, 0.0),
            np.array([cell.first for cell in cells], np.float64),
            now,
        )

    # From and to the ledger

    def _prediction(
        self, id: Any, prediction: Any, score: Any, key: Any, packed_key: Any, time: Any, now: float
    ) -> Prediction:
        """A prediction, packed; `packed_key` is None if the key has to be. Raises `UnusableError`."""
        packing = self._packing
        try:
            if type(id) is not str or not id.isascii() or not 0 < len(id) <= MAX_LENGTH or "\0" in id:
                id = _checked_id(id)
            packed = packing.prediction(prediction, score)
            key, of_segments = self._packed_key(key) if packed_key is None else packed_key
            time = now if time is None else _checked_time(time, now)
            counted = prediction if type(prediction) in packing.plain else packing.counted(packed)
            return _prediction(Prediction, (id, time, of_segments, packed, (counted, key)))
        except UnusableError:
            raise
        except Exception as error:
            raise _unforeseen(error) from error

    def _packed_key(self, key: Any) -> tuple[Any, bytes]:
        with self._recorder.locked():
            return self._segments.pack(key)

    def _label(self, id: Any, label: Any, time: Any, now: float) -> Label:
        """A label, packed; raises `UnusableError`."""
        try:
            if type(id) is not str or not id.isascii() or not 0 < len(id) <= MAX_LENGTH or "\0" in id:
                id = _checked_id(id)
            return _label(Label, (id, now if time is None else _checked_time(time, now), self._packing.label(label)))
        except UnusableError:
            raise
        except Exception as error:
            raise _unforeseen(error) from error

    def _join(self, decision: Decision) -> None:
        """A prediction and its label are a row now."""
        entry: Any = decision[3]
        _, predicted, labelled, _, segments, prediction, label = entry
        joined = self._recorder.joined
        joined.extend((predicted, labelled, prediction, label, segments))
        if len(joined) >= self._limit:
            self._recorder.drain_if_due()

    def _read_left(self, left: LeftLabel) -> Label | None:
        """A label that was left in the store, or None if it cannot be used."""
        try:
            return self._label(left.id, json.loads(left.value), left.time, self._clock())
        except UnusableError as error:
            self._refuse_label(error)
        except ValueError:
            self._refuse_label(UnusableError(encoding.INVALID_LABEL, f"label must be JSON, got {shown(left.value)}."))
        return None

    def _refuse_label(self, error: UnusableError, count: int = 1) -> LabelOutcome:
        self._use()
        self._counted(LabelOutcome.REJECTED.value, count)
        self._recorder.refuse(error.reason, error.text, count)
        return LabelOutcome.REJECTED

    def _decided_many(self, given: Sequence[Prediction | Label], decisions: Sequence[Decision | None]) -> None:
        """Do what the ledger has decided in its own thread; None means that it has given up what was given."""
        if not given:
            return
        staged: list[Any] = []
        joined: list[Any] = []
        for one, decision in zip(given, decisions, strict=True):
            if decision is NEW:
                _, time, _, _, (counted, key) = one  # type: ignore[misc]
                staged += (time, counted, None, None, key)
            elif decision is not None and decision[0] is _MATCHED and type(one) is Label and decision[6] is None:
                entry: Any = decision[3]
                _, predicted, labelled, _, segments, prediction, label = entry
                joined += (predicted, labelled, prediction, label, segments)
            else:
                # A correction must find its row, which may have joined in the same batch.
                self._recorder.joined.extend(joined)
                joined.clear()
                self._decided(one, decision)
        if not self._used:
            self._use()
        # Each at once, for rows of other threads must not come between the fields of one.
        self._recorder.staged.extend(staged)
        self._recorder.joined.extend(joined)
        self._drain()

    def _matured(self, entries: Sequence[Entry]) -> None:
        """Rows that the store has kept until they may be judged."""
        rows: list[Any] = []
        for _, predicted, labelled, _, segments, prediction, label in entries:
            if prediction is not None and label is not None:
                rows += (predicted, labelled, prediction, label, segments)
        if rows:
            self._use()
            self._recorder.matured.extend(rows)

    def _drain(self) -> None:
        if len(self._recorder.staged) >= self._limit or len(self._recorder.joined) >= self._limit:
            self._recorder.drain_if_due()

    def _decided(self, given: Prediction | Label, decision: Decision | None) -> None:
        """Do what the ledger has decided."""
        try:
            self._do(given, decision)
        except Exception:
            _logger.exception("Internal error of otel_model_metrics with late labels of model %r", self._scope.model)

    def _do(self, given: Prediction | Label, decision: Decision | None) -> None:
        if not self._used:
            self._use()
        recorder = self._recorder
        if type(given) is Prediction and (decision is None or decision.new):
            # A prediction is counted when it is known to be new, like any that has no label.
            counted, key = given.raw
            recorder.staged.extend((given.time, counted, None, None, key))
            self._drain()
        if decision is None:
            dropped = type(given) is Prediction
            self._counted(LOST_PREDICTION if dropped else LabelOutcome.DROPPED.value, 1)
            return
        outcome, entry, before = decision.outcome, decision.entry, decision.before
        if outcome is None:
            return
        if outcome is _MATCHED and decision.due is None:  # counted when the recorder takes it
            self._join(decision)
            return
        self._counted(outcome.value, 1)
        if decision.due is not None and entry is not None:  # the row comes when it may be judged
            recorder.labelled.extend((entry.predicted, entry.labelled, entry.segments))
        if before is None or entry is None or before.prediction is None:
            return
        if before.joiner == self._scope.joiner:  # else the row is in the window of another process
            labels = before.label or b"", entry.label or b""
            recorder.correct(Correction(before.predicted, before.labelled, before.prediction, labels, before.segments))

    def _counted(self, outcome: str, count: int) -> None:
        with self._lock:
            self._counts[outcome] += count

    def _use(self) -> None:
        self._used = True
        self._recorder.mark_used()


def _unforeseen(error: Exception) -> UnusableError:
    return UnusableError(
        encoding.INTERNAL_ERROR, f"a value of the row fails when it is looked at ({type(error).__name__})."
    )


def _checked_id(value: Any) -> str:
    text = id_text(value)
    if text is None:
        raise UnusableError(encoding.INVALID_ID, f"{EXPECTED}, got {shown(value)}.")
    return text


def _checked_time(value: Any, now: float) -> float:
    seconds = to_seconds(value)
    if not 0 <= seconds <= now + FUTURE_TOLERANCE:
        raise UnusableError(
            encoding.INVALID_TIMESTAMP,
            f"timestamp must be seconds since 1970 (or an aware datetime) and not in the future, got {shown(value)}.",
        )
    return seconds


def _list(values: Any, what: str) -> list[Any]:
    if values is None:
        raise TypeError(f"{what} must be an array or list with one entry a row, got None.")
    column = read_column(values, what)
    return column.tolist() if isinstance(column, np.ndarray) and column.ndim == 1 else list(column)


def _column(values: Any, what: str, count: int) -> Sequence[Any]:
    if values is None:
        return [None] * count
    column = _list(values, what)
    if len(column) != count:
        raise ValueError(f"arrays must be of equal length, got {count} ids, {len(column)} {what}.")
    return column


def _keys(segments: Any, count: int) -> Sequence[Any]:
    """A key of segments for each row, from columns or values by name, or from one mapping or list of tags a row."""
    if segments is None:
        return [()] * count
    if not hasattr(segments, "items"):
        return [() if row is None else key_of(row) for row in _column(segments, "segments", count)]
    named = [
        (name, None if _is_single(values) else _column(values, f"segments[{name!r}]", count), values)
        for name, values in segments.items()
    ]
    if all(column is None for _, column, _ in named):
        return [tuple((name, value) for name, _, value in named)] * count
    names = [name for name, _, _ in named]
    columns = [[value] * count if column is None else column for _, column, value in named]
    return [tuple(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_single(values: Any) -> bool:
    return isinstance(values, (str, bytes)) or not hasattr(values, "__iter__")


def _times(timestamps: Any, count: int) -> Sequence[Any]:
    if timestamps is None:
        return [None] * count
    if hasattr(timestamps, "__iter__") and not isinstance(timestamps, (str, bytes)):
        if isinstance(timestamps, list) and None in timestamps:
            times: list[Any] = [None if one is None else to_seconds(one) for one in timestamps]
        else:
            times = to_times(timestamps).tolist()
        if len(times) != count:
            raise ValueError(f"arrays must be of equal length, got {count} ids, {len(times)} timestamps.")
        return times
    return [to_seconds(timestamps)] * count


def _said(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return type(error).__name__
