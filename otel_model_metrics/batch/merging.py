"""
The fixed tree in which the results of parts are merged: neighbours first, then neighbouring pairs, and so on.

Its shape depends on the number of parts only, so sums of numbers are rounded the same way whoever computes the parts,
and in whatever order they are finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Tree(Generic[T]):
    """
    Merges what is put into it as soon as its neighbour is there.

    Args:
        merge: Makes one of two neighbours, the left one first.

    Cost: holds as many results as the number of parts has binary digits, if they come in order; if they do not, as
    many more as parts are being waited for.

    >>> tree = Tree("({} {})".format)
    >>> for place in (4, 1, 0, 3, 2):
    ...     tree.put(place, str(place))
    >>> tree.merged()
    '(((0 1) (2 3)) 4)'
    """

    def __init__(self, merge: Callable[[T, T], T]) -> None:
        self._merge = merge
        self._held: dict[tuple[int, int], T] = {}  # by the place at which it begins and the number of parts

    def put(self, place: int, result: T) -> None:
        """Add the result of the part at a place, in whatever order."""
        size = 1
        while (place ^ size, size) in self._held:
            other = self._held.pop((place ^ size, size))
            result = self._merge(other, result) if place & size else self._merge(result, other)
            place, size = place & ~size, 2 * size
        self._held[place, size] = result

    def merged(self) -> T | None:
        """All that was put in, as one; None if that was nothing."""
        total: T | None = None
        for _, result in sorted(self._held.items(), key=lambda held: held[0], reverse=True):
            total = result if total is None else self._merge(result, total)
        self._held.clear()
        return total
