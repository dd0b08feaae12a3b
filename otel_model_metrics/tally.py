"""
What counts: the rows of the window, those whose predictions are not old enough yet, and the totals of all.

A tally takes encoded rows and is told the time. It knows nothing of staging, locks or OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.encoding import Encoder
from otel_model_metrics.segments import MAX_REMEMBERED_KEYS, SegmentTable, SetCodes
from otel_model_metrics.statistics.groups import Groups
from otel_model_metrics.totals import Sums, Totals
from otel_model_metrics.window import TIME, Columns, RingBuffer, Window

SETS = "segments"  # the ring's column of segment set codes
DELAY = "delay"  # and of seconds from prediction to label; only held where labels come late

# Upper ends, in seconds, of the cells in which delays are counted; one more is without end.
DELAY_BOUNDS = (
    1,
    10,
    60,
    300,
    900,
    3600,
    10_800,
    21_600,
    43_200,
    86_400,
    172_800,
    259_200,
    604_800,
    1_209_600,
    2_592_000,
)

# Rows whose predictions are not old enough yet, at most. Beyond it the oldest count early.
MOST_WAITING = 1_000_000


class Tally:
    """
    Window and totals of one monitor.

    Args:
        encoder: The encoder of its task.
        window: Which rows count, and when.
        segments: Its segments.
        most_waiting: Rows that may wait to be old enough.
    """

    def __init__(
        self, encoder: Encoder, window: Window, segments: SegmentTable, most_waiting: int = MOST_WAITING
    ) -> None:
        self._encoder = encoder
        self._window = window
        self._segments = segments
        dtypes = {SETS: np.int32, **encoder.dtypes}
        self._ring = RingBuffer(window.rows, dtypes)
        self._waiting = RingBuffer(most_waiting, dtypes) if window.maturity else None
        # After compaction there are at most as many as rows in the rings and remembered keys.
        self._max_sets = 2 * (window.rows + MAX_REMEMBERED_KEYS + (most_waiting if window.maturity else 0))
        self._with_delays = False
        self.clear()

    @property
    def nbytes(self) -> int:
        """Memory of the window, in bytes."""
        return self._ring.nbytes

    @property
    def counted(self) -> int:
        """Rows taken so far, with a label or without."""
        return self.labelled + self.unlabelled

    def clear(self) -> None:
        """Forget every row and total."""
        self._ring.clear()
        if self._waiting is not None:
            self._waiting.clear()
        self._totals = Totals()
        self.labelled = self.unlabelled = 0
        self.delays: NDArray[np.int64] = np.zeros(len(DELAY_BOUNDS) + 1, np.int64)
        self.newest_labels: NDArray[np.float64] = np.full(1, -np.inf)  # for each group

    def add_unlabelled(self, predicted: NDArray[Any] | None, sets: SetCodes) -> None:
        """Count predictions whose label is not known."""
        self._count_unlabelled(predicted, sets, 1)
        self.unlabelled += len(sets)

    def add_labelled(self, columns: Columns, now: float) -> None:
        """Count rows that came with their label."""
        self.labelled += len(columns[TIME])
        if self._waiting is not None and len(columns[TIME]):
            columns = {**columns, TIME: columns[TIME] + self._window.maturity}
            waiting = columns[TIME] > now
            if waiting.any():
                later = {name: column[waiting] for name, column in columns.items()}
                self._count_unlabelled(self._encoder.predicted(later), later[SETS], 1)
                self._wait(later, now)
                columns = {name: column[~waiting] for name, column in columns.items()}
        if len(columns[TIME]):
            self._enter(columns, now)

    def add_joined(self, columns: Columns, labelled: NDArray[np.float64], now: float) -> None:
        """
        Count rows whose label came later than their prediction, which has been counted: here or elsewhere.

        Args:
            columns: The rows; `TIME` is that of the prediction.
            labelled: Time of each label, shape ``(n,)``.
            now: Seconds since 1970.
        """
        if not self._with_delays:
            self._with_delays = True
            for ring in (self._ring, self._waiting):
                if ring is not None:
                    ring.add_column(DELAY, np.float32, np.nan)
        predicted = columns[TIME]
        delay = np.maximum(labelled - predicted, 0.0)
        columns = {**columns, TIME: self._entry(predicted, labelled), DELAY: delay}
        waiting = columns[TIME] > now
        if self._waiting is not None and waiting.any():
            self._wait({name: column[waiting] for name, column in columns.items()}, now)
            columns = {name: column[~waiting] for name, column in columns.items()}
        self._enter_late(columns, now)

    def correct(self, old: Columns, new: Columns, labelled: float) -> bool:
        """
        Give a row another label; returns whether it was still there. Totals keep the first label.

        Args:
            old, new: The row before and after, each column of length 1; `TIME` is that of the prediction.
            labelled: Time of its first label.
        """
        entry = self._entry(old[TIME], np.array([labelled]))
        old, new = {**old, TIME: entry}, {**new, TIME: entry}
        return any(ring.exchange(old, new) for ring in (self._ring, self._waiting) if ring is not None)

    def mature(self, now: float) -> None:
        """Let those rows in whose time has come."""
        if self._waiting is not None and len(self._waiting):
            self._enter_late(self._waiting.take(self._waiting.until(now)), now)

    def live(self, now: float) -> Columns:
        """The rows in the window, oldest first: views."""
        return self._ring.live(None if self._window.age is None else now - self._window.age)

    def totals(self) -> Sums:
        """Totals with every statistic and every known group in them, if only as zeros."""
        nothing = {name: column[:0] for name, column in self._ring.live(None).items()}
        groups = self._segments.groups_of(nothing[SETS])
        predicted = np.zeros(0, np.int64)
        sums = self._encoder.sums(nothing, groups, len(self._encoder.classes()))
        self._totals.add({**sums, "unlabelled": self._encoder.unlabelled(predicted, groups)})
        return self._totals.copy()

    def _entry(self, predicted: NDArray[np.float64], labelled: NDArray[np.float64]) -> NDArray[np.float64]:
        """When rows may enter the window, which is where their age counts from."""
        old_enough = predicted + self._window.maturity
        return old_enough if self._window.by == "prediction" else np.maximum(old_enough, labelled)

    def _wait(self, columns: Columns, now: float) -> None:
        assert self._waiting is not None
        beyond = len(self._waiting) + len(columns[TIME]) - self._waiting.rows
        if beyond > 0:  # better early than lost
            self._enter_late(self._waiting.take(beyond), now)
        self._waiting.append(self._with_delay(columns))

    def _enter_late(self, columns: Columns, now: float) -> None:
        """Rows that count from now on, whose predictions have been counted before."""
        if len(columns[TIME]):
            self._count_unlabelled(self._encoder.predicted(columns), columns[SETS], -1)
            self._enter(columns, now)

    def _enter(self, columns: Columns, now: float) -> None:
        """Rows that count from now on, in the totals and, if they are young enough, in the window."""
        groups = self._segments.groups_of(columns[SETS])
        self._totals.add(self._encoder.sums(columns, groups, len(self._encoder.classes())))
        age = self._window.age
        if age is not None and columns[TIME].min() < now - age:
            # A row older than the window must not push out one that is in it.
            recent = columns[TIME] >= now - age
            columns = {name: column[recent] for name, column in columns.items()}
        self._ring.append(self._with_delay(columns))

    def _with_delay(self, columns: Columns) -> Columns:
        """Rows that came with their label have none."""
        if not self._with_delays or DELAY in columns:
            return columns
        return {**columns, DELAY: np.full(len(columns[TIME]), np.nan)}

    def compact(self) -> None:
        """Forget the segment sets that no row is in, if they are too many. Codes given before hold no more."""
        if self._segments.sets <= self._max_sets:
            return
        rings = [ring for ring in (self._ring, self._waiting) if ring is not None]
        held = [ring.live(None)[SETS] for ring in rings]
        codes: Sequence[Any] = np.split(
            self._segments.compact(np.concatenate(held)), np.cumsum([len(one) for one in held])[:-1]
        )
        for ring, renumbered in zip(rings, codes, strict=True):
            ring.replace(SETS, renumbered)

    def _count_unlabelled(self, predicted: NDArray[Any] | None, sets: SetCodes, sign: int) -> None:
        """
        Predictions are counted when they are made, rows when they count: what was counted without a label is taken off
        when it gets one, so that predictions are the sum of both, in every process and over all of them.
        """
        counts = self._encoder.unlabelled(predicted, self._segments.groups_of(sets))
        self._totals.add({"unlabelled": sign * counts})

    def note_labels(self, predicted: NDArray[np.float64], labelled: NDArray[np.float64], sets: SetCodes) -> None:
        """Count the delays of labels that have come, whether their rows may be judged yet or not."""
        delay = np.maximum(labelled - predicted, 0.0)
        self.delays += np.bincount(np.searchsorted(DELAY_BOUNDS, delay), minlength=len(self.delays))
        groups: Groups = self._segments.groups_of(sets)
        newest = np.full(groups.count, -np.inf)
        newest[: len(self.newest_labels)] = self.newest_labels
        by_set = np.full(groups.sets, -np.inf)
        np.maximum.at(by_set, sets, labelled)
        np.maximum.at(newest, groups.pair_group, by_set[groups.pair_set])
        self.newest_labels = newest
