"""
The store in memory: a dictionary, bounded by number and by age. What it holds is gone with its process.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence

from otel_model_metrics.ground_truth.cohorts import Cell, Changing, cells_of, over, settled
from otel_model_metrics.ground_truth.entries import (
    NEW,
    REMEMBERED,
    Decision,
    Label,
    Prediction,
    decide_label,
    decide_prediction,
    is_known_prediction,
    joined_by,
    pack_prediction,
    received_at,
)
from otel_model_metrics.ground_truth.ledger import Counted, Scope
from otel_model_metrics.ground_truth.outcomes import EVICTED, UNLABELLED, LabelOutcome

# What is too old is looked for at every so many operations, and when cohorts are read.
_BETWEEN_SWEEPS = 1024
_SWEPT_AT_ONCE = 2048


class MemoryLedger:
    """
    A ledger in memory.

    Args:
        scope: Whose predictions, how long and how many.
        counted: Told of evictions, and of what is over.
        clock: Seconds since 1970.

    Cost: a few dictionary operations; below 250 bytes for each of a million predictions, their ids of 36 characters
        included.
    """

    immediate = True
    portable = False
    answer_within = 0.0

    def __init__(self, scope: Scope, counted: Counted, clock: Callable[[], float]) -> None:
        self._scope = scope
        self._ttl = scope.ttl
        self._capacity = scope.capacity
        self._counted = counted
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._joiner = self._scope.joiner  # another one in a forked child
        self._lock = threading.Lock()
        self._entries: dict[str, bytes] = {}
        # In the order in which they came. (The first key of a dictionary is slow to find once many have left.)
        self._order: deque[str] = deque()
        self._cohorts = Changing(self._scope.width, self._scope.ttl, {})
        self._until_sweep = _BETWEEN_SWEEPS
        self._first_end = -math.inf  # when the first cohort ends

    def __len__(self) -> int:
        return len(self._entries)

    def predict(self, given: Prediction, now: float) -> Decision:
        """Take a prediction."""
        id, time, segments, prediction, _ = given
        with self._lock:
            content = self._entries.get(id)
            if content is None:
                self._entries[id] = pack_prediction(now, time, segments, prediction)
                self._order.append(id)
                self._cohorts.predicted(now, segments, time)
                self._until_sweep -= 1
                if self._until_sweep <= 0 or len(self._order) > self._capacity:
                    self._make_room(now)
                return NEW
            decision = decide_prediction(content, given, now, self._ttl, self._joiner)
            if decision.content is not None:
                self._entries[id] = decision.content
                self._cohorts.decided(given, decision, now)
            return decision

    def label(self, given: Label, now: float, wait: float = 0.0) -> Decision:
        """Take a label."""
        id = given[0]
        entries = self._entries
        with self._lock:
            content = entries.get(id)
            if content is not None:
                decision = joined_by(content, given, now - self._ttl, self._joiner)
                if decision is not None:
                    _, entries[id], _, (received, _, _, _, segments, _, _), _, _, _ = decision  # type: ignore[assignment, misc]
                    self._cohorts.labelled(received, segments, now)
                    return decision
            decision = decide_label(content, given, now, self._ttl, self._joiner)
            if decision.content is not None:
                entries[id] = decision.content
                self._cohorts.decided(given, decision, now)
                if content is None:
                    self._order.append(id)
                    self._make_room(now)
            return decision

    def predict_many(self, given: Sequence[Prediction], now: float) -> list[Decision]:
        """Take predictions."""
        return [self.predict(one, now) for one in given]

    def label_many(self, given: Sequence[Label], now: float, wait: float = 0.0) -> list[Decision | None]:
        """Take labels."""
        return [self.label(one, now) for one in given]

    def awaits(self, id: str, wait: float = 0.0) -> bool:
        """Whether a prediction of this id is there."""
        return is_known_prediction(self._entries.get(id))

    def cells(self) -> list[Cell]:
        """The cohorts."""
        with self._lock:
            self._sweep(self._clock())
            changes = dict(self._cohorts.cells)
        return cells_of(changes)  # not under the lock, for there may be many

    def flush(self, seconds: float) -> bool:
        """Nothing is ever under way."""
        return True

    def close(self) -> None:
        """Nothing to write."""

    def _make_room(self, now: float) -> None:
        """Hold to the bound on number; the oldest go first, whether they have their label or not."""
        while len(self._entries) > self._capacity:
            content = self._entries.pop(self._order.popleft())
            if self._cohorts.forgotten(content, now):
                self._counted(EVICTED, 1)
        if self._until_sweep <= 0:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Forget what is too old."""
        self._until_sweep = _BETWEEN_SWEEPS
        scope, entries, order = self._scope, self._entries, self._order
        oldest = now - scope.ttl * REMEMBERED
        for _ in range(_SWEPT_AT_ONCE):
            if not order or received_at(entries[order[0]]) >= oldest:
                break
            del entries[order.popleft()]
        else:
            self._until_sweep = 0  # there are more; the next prediction goes on, so that none is kept waiting for all
        if now <= self._first_end:
            return
        cells = self._cohorts.cells
        ended = [key for key in cells if over(key[0], scope.width, scope.ttl, now)]
        first = min((key[0] for key in cells if not over(key[0], scope.width, scope.ttl, now)), default=None)
        # The cohort of now is the last to end, and may not be there yet.
        self._first_end = (now // scope.width if first is None else first + 1) * scope.width + scope.ttl
        if ended:
            unlabelled, unmatched = settled(cells_of({key: cells.pop(key) for key in ended}))
            self._counted(UNLABELLED, unlabelled)
            self._counted(LabelOutcome.UNMATCHED.value, unmatched)
