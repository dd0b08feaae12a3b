"""
Totals: statistics of every row since the process started. They only grow, so they add up over processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Sums = dict[str, NDArray[Any]]


class Totals:
    """
    Accumulated statistics, each an array with the groups as its first axis.

    Groups and classes are added as they are met, so arrays grow; what was counted keeps its place.

    >>> totals = Totals()
    >>> totals.add({"n": np.array([2])})
    >>> totals.add({"n": np.array([1, 1])})
    >>> totals.copy()["n"].tolist()
    [3, 1]
    """

    def __init__(self) -> None:
        self._sums: Sums = {}

    def add(self, sums: Sums) -> None:
        """Add the statistics of some rows."""
        for name, values in sums.items():
            total = self._sums.get(name)
            if total is None:
                self._sums[name] = values.copy()
            elif total.shape == values.shape:
                total += values
            else:
                shape = tuple(max(sizes) for sizes in zip(total.shape, values.shape, strict=True))
                self._sums[name] = _grown(total, shape) + _grown(values, shape)

    def copy(self) -> Sums:
        """The totals as they are now, safe from later additions."""
        return {name: values.copy() for name, values in self._sums.items()}


def _grown(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    grown = np.zeros(shape, values.dtype)
    grown[tuple(slice(size) for size in values.shape)] = values
    return grown
