"""
Cohorts: how many predictions of each time and segment set there are, and how many of them have their label.

Small numbers in place of a walk over a million entries: coverage, pending predictions and their age come from here.
Counts of several processes add up, so a store that is shared keeps one table for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from otel_model_metrics.ground_truth.entries import Decision, Label, Prediction, is_known_prediction, unpack
from otel_model_metrics.ground_truth.outcomes import LabelOutcome

# Stands in the place of segments for labels that wait for their prediction.
WAITING = b"\0"

# A cohort is this part of the time that coverage looks back, but there are at most so many in a ttl.
_COHORTS_OF_HORIZON = 32
_COHORTS_OF_TTL = 1024
# Predictions of more segment sets than this are counted without their segments.
MAX_CELLS = 65_536


class Cell(NamedTuple):
    """
    One segment set in one cohort.

    Attributes:
        cohort: Which one; it begins at ``cohort * width``.
        segments: The segments, packed; or `WAITING`.
        predicted: Predictions; for `WAITING`, labels that came first.
        labelled: Those of them that have joined.
        lost: Those that were forgotten without having joined.
        first: Earliest time of one of them.
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


def width_of(ttl: float, horizon: float | None, maturity: float = 0.0) -> float:
    """
    Seconds of a cohort.

    Args:
        ttl: Seconds that a prediction is kept.
        horizon: Seconds that coverage looks back; None for ttl.
        maturity: Seconds that a prediction must be old to be asked for its label.

    >>> width_of(604800.0, None), width_of(604800.0, 3600.0)
    (18900.0, 590.625)
    """
    finest = min(ttl, horizon or ttl, maturity * 8 or ttl) / _COHORTS_OF_HORIZON
    return max(finest, ttl / _COHORTS_OF_TTL)


class Changing:
    """
    Collects what operations change in a table of cohorts.

    Args:
        width: Seconds of a cohort.
        ttl: Cohorts that ended longer ago than this are settled, and change no more.
        cells: Where the counts go; a new table by default.
    """

    __slots__ = ("_begin", "_end", "_now_at", "_ttl", "_width", "cells")

    def __init__(self, width: float, ttl: float, cells: Changes | None = None) -> None:
        self._width = width
        self._ttl = ttl
        self.cells: Changes = {} if cells is None else cells
        # The cohort that most predictions belong to, and its cells by their segments.
        self._begin = self._end = 0.0
        self._now_at: dict[bytes, Counts] = {}

    def _at(self, time: float, segments: bytes, now: float) -> Counts | None:
        cohort = math.floor(time / self._width)
        if (cohort + 1) * self._width + self._ttl < now:
            return None
        counts = self.cells.get((cohort, segments))
        if counts is None:
            if len(self.cells) >= MAX_CELLS and segments != WAITING:
                segments = b""
                counts = self.cells.get((cohort, segments))
            if counts is None:
                counts = self.cells[cohort, segments] = [0, 0, 0, time]
        if time < counts[3]:
            counts[3] = time
        return counts

    def predicted(self, time: float, segments: bytes, now: float) -> None:
        """One more prediction."""
        if self._begin <= time < self._end:
            known = self._now_at.get(segments)
            if known is not None and known[3] <= time:
                known[0] += 1
                return
        counts = self._at(time, segments, now)
        if counts is not None:
            counts[0] += 1
            cohort = math.floor(time / self._width)
            if not self._begin <= time < self._end:
                self._begin, self._end = cohort * self._width, (cohort + 1) * self._width
                self._now_at = {}
            if (cohort, segments) in self.cells:
                self._now_at[segments] = counts

    def labelled(self, time: float, segments: bytes, now: float) -> None:
        """The prediction of this time has its label."""
        counts = self.cells.get((int(time // self._width), segments)) or self._at(time, segments, now)
        if counts is not None:
            counts[1] += 1

    def decided(self, given: Prediction | Label, decision: Decision, now: float) -> None:
        """Whatever an operation changes."""
        if decision.new and type(given) is Prediction:
            self.predicted(given.time, given.segments, now)
        if decision.outcome is LabelOutcome.MATCHED and decision.entry is not None:
            self.labelled(decision.entry.predicted, decision.entry.segments, now)
            if decision.waited is not None:
                self.labelled(decision.waited, WAITING, now)
        elif decision.outcome is LabelOutcome.PENDING:
            self.predicted(now, WAITING, now)

    def forgotten(self, content: bytes, now: float) -> bool:
        """An entry is given up for lack of room; returns whether something of it was still waiting."""
        entry = unpack(content)
        if entry.prediction is not None and entry.label is not None:
            return False
        of_prediction = is_known_prediction(content)
        counts = self._at(
            entry.predicted if of_prediction else entry.received, entry.segments if of_prediction else WAITING, now
        )
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
