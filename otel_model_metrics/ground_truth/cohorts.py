"""
Cohorts: how many predictions were received at each time, for each segment set, and how many have their label.

Small numbers in place of a walk over a million entries: coverage, pending predictions and their age come from here.
Counts of several processes add up, so a store that is shared keeps one table for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from otel_model_metrics.ground_truth.entries import Decision, Label, Prediction, unpack
from otel_model_metrics.ground_truth.outcomes import LabelOutcome

# Stands in the place of segments for labels that wait for their prediction.
WAITING = b"\0"

# Predictions of further segment sets than these are counted without their segments.
MAX_SETS = 100


class Cell(NamedTuple):
    """
    One segment set in one cohort.

    Attributes:
        cohort: Which one: that of what was received from ``cohort * width`` on.
        segments: The segments, packed; or `WAITING`.
        predicted: Predictions; for `WAITING`, labels that came first.
        labelled: Those of them that have joined.
        lost: Those that were forgotten without having joined.
        first: Earliest time of one of the predictions.
    """

    cohort: int
    segments: bytes
    predicted: int
    labelled: int
    lost: int
    first: float


Key = tuple[int, bytes]
Counts = list[float]  # predicted, labelled, lost, first
Changes = dict[Key, Counts]


def width_of(ttl: float) -> float:
    """
    Seconds of a cohort: between a 1024th and a 512th of ttl, a power of two so that a slightly other ttl changes none.

    >>> width_of(604800.0), width_of(3600.0)
    (1024.0, 4.0)
    """
    return float(2.0 ** math.floor(math.log2(ttl / 512)))


def counted_as(segments: bytes, sets: dict[bytes, bytes]) -> bytes:
    """The segments under which a prediction is counted: its own, if they are among the first that were met."""
    if segments in sets or segments in (WAITING, b""):
        return segments
    if len(sets) >= MAX_SETS:
        return b""
    sets[segments] = segments
    return segments


class Changing:
    """
    Collects what operations change in a table of cohorts.

    Args:
        width: Seconds of a cohort.
        ttl: Cohorts that ended longer ago than this are settled, and change no more.
        sets: The segment sets that are told apart so far; shared by all that change the same table.
    """

    __slots__ = ("_begin", "_end", "_now_at", "_sets", "_ttl", "_width", "cells")

    def __init__(self, width: float, ttl: float, sets: dict[bytes, bytes]) -> None:
        self._width = width
        self._ttl = ttl
        self._sets = sets
        self.cells: Changes = {}
        # The cohort that most predictions belong to, and its cells by their segments.
        self._begin = self._end = 0.0
        self._now_at: dict[bytes, Counts] = {}

    def _at(self, received: float, segments: bytes, now: float, first: float) -> Counts | None:
        cohort = math.floor(received / self._width)
        if over(cohort, self._width, self._ttl, now):
            return None
        segments = counted_as(segments, self._sets)
        counts = self.cells.get((cohort, segments))
        if counts is None:
            counts = self.cells[cohort, segments] = [0, 0, 0, first]
        if first < counts[3]:
            counts[3] = first
        return counts

    def predicted(self, now: float, segments: bytes, time: float) -> None:
        """One more prediction, received now, of this time."""
        if self._begin <= now < self._end:
            known = self._now_at.get(segments)
            if known is not None:
                known[0] += 1
                if time < known[3]:
                    known[3] = time
                return
        counts = self._at(now, segments, now, time)
        if counts is not None:
            counts[0] += 1
            if not self._begin <= now < self._end:
                self._begin = math.floor(now / self._width) * self._width
                self._end = self._begin + self._width
                self._now_at = {}
            if len(self._now_at) < 2 * MAX_SETS:
                self._now_at[segments] = counts

    def labelled(self, received: float, segments: bytes, now: float) -> None:
        """A prediction that was received then has its label."""
        counts = self.cells.get((int(received // self._width), segments)) or self._at(received, segments, now, received)
        if counts is not None:
            counts[1] += 1

    def decided(self, given: Prediction | Label, decision: Decision, now: float) -> None:
        """Whatever an operation changes."""
        if type(given) is Prediction:
            if decision.new:
                self.predicted(now, given.segments, given.time)
            if decision.waited is not None:  # its label was there already
                self.labelled(now, given.segments, now)
                self.labelled(decision.waited, WAITING, now)
        elif decision.outcome is LabelOutcome.MATCHED and decision.entry is not None:
            self.labelled(decision.entry.received, decision.entry.segments, now)
        elif decision.outcome is LabelOutcome.PENDING:
            self.predicted(now, WAITING, now)

    def forgotten(self, content: bytes, now: float) -> bool:
        """An entry is given up for lack of room; returns whether something of it was still waiting."""
        entry = unpack(content)
        if entry.prediction is not None and entry.label is not None:
            return False
        segments = WAITING if entry.prediction is None else entry.segments
        counts = self._at(entry.received, segments, now, entry.received)
        if counts is not None:
            counts[2] += 1
        return counts is not None  # else its time was over anyway, and it has been counted so


class Settled(NamedTuple):
    """What the end of cohorts says: predictions whose label never came, labels whose prediction never came."""

    unlabelled: int = 0
    unmatched: int = 0


def over(cohort: int, width: float, ttl: float, now: float) -> bool:
    """Whether the time of a cohort is over, so that no label can join any more."""
    return (cohort + 1) * width + ttl < now


def settled(cells: Iterable[Cell]) -> Settled:
    """What cells that are over say."""
    unlabelled = unmatched = 0
    for cell in cells:
        left = max(0, cell.predicted - cell.labelled - cell.lost)
        if cell.segments == WAITING:
            unmatched += left
        else:
            unlabelled += left
    return Settled(unlabelled, unmatched)


def cells_of(changes: Changes) -> list[Cell]:
    """A table as a list."""
    return [
        Cell(cohort, segments, int(predicted), int(labelled), int(lost), first)
        for (cohort, segments), (predicted, labelled, lost, first) in changes.items()
    ]
