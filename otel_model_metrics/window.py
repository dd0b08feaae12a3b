"""
Memory: the last rows one monitor recorded.

A RingBuffer holds at most `rows` rows, ordered by time, and knows nothing of statistics or OpenTelemetry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

Columns = dict[str, NDArray[Any]]

TIME = "time"

# More slack makes a row cheaper to append, and to hold. A row should take no more than 40 bytes, slack included.
_ROW_BYTES = 40
_MOST_SLACK = 1 / 4
_LEAST_SLACK = 1 / 32


@dataclass(frozen=True)
class Window:
    """
    Which rows count: the newest `rows` rows, and none older than `age` seconds.

    Args:
        rows: Most rows held, >= 1. Bounds memory: about 40 bytes a row, and 8 more where labels come late.
        age: Greatest age of a row in seconds, > 0; None for no limit.
        by: What a row's age counts from: the time its ``"label"`` came, or that of its ``"prediction"``. They differ
            only for labels that come late.
        maturity: A row counts only when its prediction is so many seconds old, >= 0, however soon its label came: where
            bad news comes faster than good, the first labels alone would be the wrong picture. Ages count from then on.

    Raises:
        ValueError, TypeError: If an argument is out of range or of the wrong kind.

    >>> Window(rows=500, age=3600.0)
    Window(rows=500, age=3600.0, by='label', maturity=0.0)
    """

    rows: int = 10_000
    age: float | None = None
    by: Literal["label", "prediction"] = "label"
    maturity: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.rows, bool) or not isinstance(self.rows, (int, np.integer)):
            raise TypeError(f"Window needs rows as a whole number, got {self.rows!r} ({type(self.rows).__name__}).")
        if self.rows < 1:
            raise ValueError(f"Window needs rows >= 1, got {self.rows}.")
        if self.by not in ("label", "prediction"):
            raise ValueError(f"Window needs by='label' or by='prediction', got {self.by!r}.")
        if isinstance(self.maturity, bool) or not isinstance(self.maturity, (int, float, np.integer, np.floating)):
            raise TypeError(
                f"Window needs maturity in seconds, got {self.maturity!r} ({type(self.maturity).__name__})."
            )
        if not (math.isfinite(self.maturity) and self.maturity >= 0):
            raise ValueError(f"Window needs maturity >= 0 seconds, got {self.maturity}.")
        if self.age is None:
            return
        if isinstance(self.age, bool) or not isinstance(self.age, (int, float, np.integer, np.floating)):
            raise TypeError(f"Window needs age in seconds or None, got {self.age!r} ({type(self.age).__name__}).")
        if not (math.isfinite(self.age) and self.age > 0):
            raise ValueError(f"Window needs age > 0 seconds (or None for no limit), got {self.age}.")


class RingBuffer:
    """
    The newest rows, as columns ordered by time.

    The live rows are always one contiguous slice: arrays hold up to a quarter more than `rows`, and when the end
    is reached the live rows slide to the front. Rows that arrive out of order are sorted into their place, so the
    window is always that of the newest rows by time; among equal times the later arrival is the newer.

    Args:
        rows: Most rows held.
        dtypes: Data type of each column beside ``time``; a subarray type gives a column of shape ``(n, k)``.

    >>> ring = RingBuffer(2, {"value": np.int8})
    >>> ring.append({"time": np.array([1.0, 2.0, 3.0]), "value": np.array([7, 8, 9])})
    >>> ring.live(oldest=None)["value"].tolist(), ring.live(oldest=2.5)["value"].tolist()
    ([8, 9], [9])
    """

    def __init__(self, rows: int, dtypes: Mapping[str, DTypeLike]) -> None:
        self._rows = self.rows = int(rows)
        dtypes = {TIME: np.float64, **dtypes}
        row_bytes = sum(np.dtype(dtype).itemsize for dtype in dtypes.values())
        self._slack = max(int(self._rows * min(_MOST_SLACK, max(_LEAST_SLACK, _ROW_BYTES / row_bytes - 1))), 64)
        # np.empty: the operating system commits a page only when a row is written to it
        self._columns: Columns = {name: np.empty(self._rows + self._slack, dtype) for name, dtype in dtypes.items()}
        self._start = self._end = 0

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(column.nbytes for column in self._columns.values())

    def __len__(self) -> int:
        return self._end - self._start

    def clear(self) -> None:
        """Forget all rows."""
        self._start = self._end = 0

    def append(self, chunk: Columns) -> None:
        """
        Add rows; the oldest make room for them.

        Args:
            chunk: Every column, of the same length n; ``time`` in seconds, in any order.

        Cost: O(n), amortised; rows out of order cost a sort of what is newer than the oldest of them.
        """
        times, count = chunk[TIME], len(chunk[TIME])
        follows = self._end == self._start or (count > 0 and self._columns[TIME][self._end - 1] <= times[0])
        if follows and bool((times[1:] >= times[:-1]).all()):
            if count >= self._rows:  # nothing of what is held remains
                self._start = self._end = 0
                chunk = {name: column[count - self._rows :] for name, column in chunk.items()}
            self._write(chunk, keep=self._rows - min(count, self._rows))
            return
        for begin in range(0, count, self._slack):  # in pieces, because the oldest go only after sorting
            begun = self._write(
                {name: column[begin : begin + self._slack] for name, column in chunk.items()}, self._rows
            )
            self._sort_in(begun)
            self._start = max(self._start, self._end - self._rows)

    def _write(self, rows: Columns, keep: int) -> int:
        """Write rows after the newest `keep` of those held; returns where they begin."""
        self._start = max(self._start, self._end - keep)
        if self._end + len(rows[TIME]) > self._rows + self._slack:
            live = self._end - self._start
            for column in self._columns.values():
                # A copy first: source and target may overlap.
                column[:live] = column[self._start : self._end].copy()
            self._start, self._end = 0, live
        begin, self._end = self._end, self._end + len(rows[TIME])
        for name, column in self._columns.items():
            column[begin : self._end] = rows[name]
        return begin

    def _sort_in(self, begin: int) -> None:
        """Sort the rows from `begin` on, which are new, into those before them."""
        times = self._columns[TIME]
        oldest = float(times[begin : self._end].min())
        place = self._start + int(np.searchsorted(times[self._start : begin], oldest, side="right"))
        order = place + np.argsort(times[place : self._end], kind="stable")
        for column in self._columns.values():
            column[place : self._end] = column[order]

    def live(self, oldest: float | None) -> Columns:
        """
        The rows in the window, oldest first.

        Args:
            oldest: Rows with an earlier time are left out; None leaves out none.

        Returns:
            Views, not copies: whoever keeps them must copy.
        """
        start = self._start
        if oldest is not None:
            start += int(np.searchsorted(self._columns[TIME][start : self._end], oldest, side="left"))
        return {name: column[start : self._end] for name, column in self._columns.items()}

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Overwrite one column of all rows held, e.g. after a renumbering."""
        self._columns[name][self._start : self._end] = values

    def until(self, latest: float) -> int:
        """How many rows are no later than `latest`."""
        return int(np.searchsorted(self._columns[TIME][self._start : self._end], latest, side="right"))

    def take(self, count: int) -> Columns:
        """Remove the oldest `count` rows, and return them."""
        end = min(self._start + count, self._end)
        taken = {name: column[self._start : end].copy() for name, column in self._columns.items()}
        self._start = end
        return taken

    def exchange(self, old: Columns, new: Columns) -> bool:
        """
        Overwrite one row with another of the same time.

        Args:
            old: The row's time and some of its columns, each of length 1. Rows that are equal in these are
                interchangeable, so it does not matter which of them is meant.
            new: What to write, each of length 1.

        Returns:
            Whether there is such a row.

        Cost: O(log n), and O(rows of the same time).
        """
        times = self._columns[TIME][self._start : self._end]
        moment = float(old[TIME][0])
        begin = self._start + int(np.searchsorted(times, moment, side="left"))
        end = self._start + int(np.searchsorted(times, moment, side="right"))
        same = np.ones(end - begin, np.bool_)
        for name, value in old.items():
            held = self._columns[name][begin:end]
            wanted = value.astype(held.dtype)
            equal = (held == wanted) | ((held != held) & (wanted != wanted))  # an absent score is NaN
            same &= equal if equal.ndim == 1 else equal.all(axis=tuple(range(1, equal.ndim)))
        if not same.any():
            return False
        place = begin + int(np.argmax(same))
        for name, value in new.items():
            self._columns[name][place] = value[0]
        return True

    def add_column(self, name: str, dtype: DTypeLike, value: Any) -> None:
        """Hold one more column from now on, with this value for the rows that are there."""
        self._columns[name] = np.full(self._rows + self._slack, value, dtype)
