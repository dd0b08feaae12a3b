"""
Groups: which rows count together.

Group 0 is the whole window, every further group one segment. A row carries one "segment set" code; a set
belongs to one or more groups. Counting by set first and adding sets up afterwards costs one pass over the
rows, however many segments a row is in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# A dense table of sets x cells beyond this many cells is replaced by sorting the occupied ones.
_DENSE_CELLS = 1 << 20
# Beyond this many cells adding up whole rows of the table is faster than adding up one cell after the other.
_FEW_CELLS = 16


@dataclass(frozen=True)
class Groups:
    """
    The groups of n rows.

    Attributes:
        codes: Segment set of each row, shape ``(n,)``, values in ``[0, sets)``.
        sets: Number of segment sets.
        count: Number of groups G.
        pair_set, pair_group: Set ``pair_set[i]`` belongs to group ``pair_group[i]``; shape ``(pairs,)``.
        windows: Where rows of several windows are counted at once, as `in_windows` makes it: how many. Sets and groups
            are then those of the first window, those of the second, and so on.

    >>> groups = Groups(np.array([0, 1, 1]), sets=2, count=2, pair_set=np.array([0, 1, 1]),
    ...                 pair_group=np.array([0, 0, 1]))
    >>> groups.rows_per_cell(np.array([0, 0, 1]), 2).tolist()   # all three rows, then the two of group 1
    [[2, 1], [1, 1]]
    >>> groups.sums(np.array([1.0, 2.0, 4.0])).tolist()
    [7.0, 6.0]
    """

    codes: NDArray[np.integer]
    sets: int = 1
    count: int = 1
    pair_set: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))
    pair_group: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))
    windows: int = 1

    def in_windows(self, window: NDArray[np.integer], windows: int) -> Groups:
        """
        The same rows, each counted in a window of its own: groups are told apart by window first.

        Args:
            window: Window of each row, shape ``(n,)``, values in ``[0, windows)``.
            windows: Number of windows W.

        Returns:
            W * G groups.

        >>> both = Groups(np.zeros(3, np.int64)).in_windows(np.array([0, 1, 1]), 2)
        >>> both.rows().tolist()
        [1, 2]
        """
        if windows == 1:
            return self
        each = np.arange(windows)[:, np.newaxis]
        return Groups(
            window.astype(np.int64) * self.sets + self.codes,
            windows * self.sets,
            windows * self.count,
            (each * self.sets + self.pair_set).ravel(),
            (each * self.count + self.pair_group).ravel(),
            windows,
        )

    def rows_per_cell(self, cells: NDArray[np.integer], n_cells: int) -> IntArray:
        """
        How many rows of each group are in each cell.

        Args:
            cells: Cell of each row, shape ``(n,)``, values in ``[0, n_cells)``.
            n_cells: Number of cells.

        Returns:
            Shape ``(G, n_cells)``, int64.

        Cost: O(n + sets * n_cells + pairs * n_cells) time; for very many cells O(n log n) instead.
        """
        if self.sets == 1 and self.count == 1:
            return np.bincount(cells, minlength=n_cells)[np.newaxis, :]
        table = self.sets * n_cells
        joint = self.codes.astype(np.int64)
        joint *= n_cells
        joint += cells
        if table <= _DENSE_CELLS:
            by_set = np.bincount(joint, minlength=table).reshape(self.sets, n_cells)
            if n_cells > _FEW_CELLS:
                result = np.zeros((self.count, n_cells), np.int64)
                order = np.argsort(self.pair_group, kind="stable")
                occupied, first = np.unique(self.pair_group[order], return_index=True)
                result[occupied] = np.add.reduceat(by_set[self.pair_set[order]], first)
                return result
            of_pairs = by_set[self.pair_set].astype(np.float64)
            result = np.empty((self.count, n_cells), np.int64)
            for cell in range(n_cells):
                result[:, cell] = np.bincount(self.pair_group, weights=of_pairs[:, cell], minlength=self.count)
            return result
        occupied, counts = np.unique(joint, return_counts=True)
        sparse = np.zeros((self.count, n_cells), np.int64)
        of_set, of_cell = np.divmod(occupied, n_cells)
        order = np.argsort(self.pair_set, kind="stable")
        first = np.searchsorted(self.pair_set[order], np.arange(self.sets + 1))
        repeats = first[of_set + 1] - first[of_set]
        offsets = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        groups = self.pair_group[order][np.repeat(first[of_set], repeats) + offsets]
        np.add.at(sparse, (groups, np.repeat(of_cell, repeats)), np.repeat(counts, repeats))
        return sparse

    def rows(self) -> IntArray:
        """Number of rows in each group, shape ``(G,)``."""
        if self.sets == 1 and self.count == 1:
            return np.array([len(self.codes)], np.int64)
        by_set = np.bincount(self.codes, minlength=self.sets)
        return np.bincount(self.pair_group, weights=by_set[self.pair_set], minlength=self.count).astype(np.int64)

    def sums(self, values: FloatArray) -> FloatArray:
        """
        Sum of `values` over the rows of each group.

        Args:
            values: Shape ``(n,)`` or ``(n, k)``, float64.

        Returns:
            Shape ``(G,)`` or ``(G, k)``, float64.
        """
        if values.ndim == 2:
            columns = [self.sums(column) for column in values.T]
            return np.stack(columns, axis=1) if columns else np.zeros((self.count, 0))
        if self.sets == 1 and self.count == 1:
            return np.array([values.sum()])
        by_set: FloatArray = np.bincount(self.codes, weights=values, minlength=self.sets).astype(np.float64)
        sums = np.bincount(self.pair_group, weights=by_set[self.pair_set], minlength=self.count).astype(np.float64)
        if self.windows == 1:
            sums[0] = values.sum()  # pairwise summation: more exact than adding one row after the other
        return sums

    def members(self, group: int) -> BoolArray:
        """Which rows are in a group, shape ``(n,)``, bool."""
        if group == 0:
            return np.ones(len(self.codes), np.bool_)
        in_group: BoolArray = np.zeros(self.sets, np.bool_)
        in_group[self.pair_set[self.pair_group == group]] = True
        members: BoolArray = in_group[self.codes]
        return members
