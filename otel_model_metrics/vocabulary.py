"""
Words: a bounded map from the values users pass (classes, segment values) to small codes.

A Vocabulary never grows beyond its limit, whatever is passed: that keeps memory, and the number of
exported series, bounded. It knows nothing of rows, statistics or OpenTelemetry.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

OTHER = "__other__"
EMPTY = "__empty__"
MAX_NAME_LENGTH = 120

# What `Vocabulary.code` says of a value that has no code of its own.
OVERFLOW = -1  # a new value, but the vocabulary is full or closed
MISSING = -2  # None or NaN: no value at all
UNUSABLE = -3  # unhashable, several values in one, or it cannot be written as text

# Codes are kept shifted by three, so that a whole column goes through bytes(), which takes nothing negative.
SHIFT = 3
_BYTE_LIMIT = 256 - SHIFT
# Longer keys are not remembered: 50 remembered values of 10 kB would be half a megabyte per segment name.
_MAX_REMEMBERED_LENGTH = 256

IntArray = NDArray[np.int64]


def clean_name(text: str) -> str:
    r"""
    Text that every backend stores unchanged: no control characters or lone surrogates, never empty, bounded.

    >>> clean_name("new\nline"), clean_name(""), len(clean_name("x" * 10_000))
    ('new�line', '__empty__', 120)
    """
    text = text[: MAX_NAME_LENGTH + 1]
    if not text.isprintable():  # one fast check for the usual case
        text = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    if len(text) > MAX_NAME_LENGTH:
        text = text[: MAX_NAME_LENGTH - 1] + "…"
    return text if text.strip() else EMPTY


def name_of(value: Any) -> str:
    """
    The text under which a value is exported: ``3``, ``3.0``, ``np.int64(3)`` and ``"3"`` are all ``"3"``.

    Raises whatever the value's own ``__str__`` raises.

    >>> name_of(3.0), name_of(True), name_of(b"DE"), name_of("DE")
    ('3', 'true', 'DE', 'DE')
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return "true" if value else "false"  # as OpenTelemetry writes a boolean attribute
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return clean_name(str(value))


class Vocabulary:
    """
    A bounded map value -> code, in order of first appearance.

    Values that are written alike share a code, for they would share an exported series.

    Args:
        limit: How many values get a code, at least 1.
        values: Values known from the start, in the order of their codes.
        closed: Whether later values are refused (``OVERFLOW``) even below the limit.

    Cost: about 20 ns a value in `encode` when all values are known; memory for at most
    ``4 * limit`` remembered spellings.

    >>> countries = Vocabulary(limit=2)
    >>> countries.encode(["DE", "FR", "DE", "IT", None]).tolist()
    [0, 1, 0, -1, -2]
    >>> countries.names
    ['DE', 'FR']
    """

    def __init__(self, limit: int, *, values: Iterable[Any] = (), closed: bool = False) -> None:
        self.limit = limit
        self.names: list[str] = []
        self._by_name: dict[str, int] = {}
        # An exact dict, not a subclass: itemgetter is three times faster on it.
        self._places: dict[Hashable, int] = {None: MISSING + SHIFT}
        self._closed = False
        for value in values:
            self.code(value)
        self._closed = closed

    def __len__(self) -> int:
        return len(self.names)

    def code(self, value: Any) -> int:
        """The code of one value: 0 or more, or `OVERFLOW`, `MISSING`, `UNUSABLE`."""
        if isinstance(value, (tuple, frozenset)):
            return UNUSABLE  # several values are not one
        try:
            known = self._places.get(value)
        except Exception:  # unhashable, or its __hash__ or __eq__ fails
            return UNUSABLE
        if known is not None:
            return known - SHIFT
        try:
            if _is_missing(value):
                return MISSING
            name = name_of(value)
        except Exception:  # a value whose __eq__ or __str__ fails is the caller's, and must not hurt the caller
            return UNUSABLE
        code = self._by_name.get(name)
        if code is None:
            if self._closed or len(self.names) >= self.limit:
                return OVERFLOW
            code = self._by_name[name] = len(self.names)
            self.names.append(name)
        if len(self._places) < 4 * self.limit + 16 and not (
            isinstance(value, (str, bytes)) and len(value) > _MAX_REMEMBERED_LENGTH
        ):
            self._places[value] = code + SHIFT
        return code

    def encode(self, values: Sequence[Any]) -> IntArray:
        """
        The codes of a whole column.

        Args:
            values: n values, a list.

        Returns:
            Shape ``(n,)``, int64; negative where a value has no code, as in `code`.
        """
        return np.subtract(self.places(values), SHIFT, dtype=np.int64)

    def places(self, values: Sequence[Any]) -> NDArray[np.uint8] | IntArray:
        """
        As `encode`, but shifted by `SHIFT`, so that no number is negative.

        Cost: about 15 ns a value when all are known.
        """
        if len(values) > 1:  # itemgetter of one key returns no tuple
            try:
                places = itemgetter(*values)(self._places)
                if len(self.names) < _BYTE_LIMIT:
                    return np.frombuffer(bytes(places), np.uint8)
                return np.array(places, np.int64)
            except Exception:  # values not seen before, unhashable ones, or such whose __hash__ or __eq__ fails
                pass
        try:  # each distinct value is looked up once
            known = {value: self.code(value) for value in dict.fromkeys(values)}
            codes = [known[value] for value in values]
        except Exception:
            codes = [self.code(value) for value in values]
        return np.array(codes, np.int64) + SHIFT


def _is_missing(value: Any) -> bool:
    """None, NaN, and what pandas uses for a missing value (without importing pandas)."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))
