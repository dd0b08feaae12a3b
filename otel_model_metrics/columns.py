"""
Whatever holds a column: lists, numpy arrays, pandas and pyarrow objects, read without importing their libraries.
"""

from __future__ import annotations

import array
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Coded:
    """
    A column of few different values: each of them once, and which one a row has. As files and categoricals hold them.

    Attributes:
        values: The different values; None for what is missing.
        codes: Place in `values` of each row's value, shape ``(n,)``, integers in ``[0, len(values))``.

    >>> countries = Coded(["DE", "FR"], np.array([0, 1, 0]))
    >>> len(countries), countries[2], countries.take(np.array([True, False, True])).tolist()
    (3, 'DE', ['DE', 'DE'])
    """

    values: Sequence[Any]
    codes: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> Any:
        return self.values[int(self.codes[row])]

    def take(self, rows: BoolArray) -> Coded:
        """The rows of a mask."""
        return Coded(self.values, self.codes[rows])

    def spread(self, of_values: NDArray[Any]) -> NDArray[Any]:
        """For each row what `of_values` has for its value."""
        return cast(NDArray[Any], of_values[self.codes])

    def tolist(self) -> list[Any]:
        """The value of each row."""
        values = list(self.values)
        return [values[code] for code in self.codes.tolist()]


RawColumn = list[Any] | NDArray[Any]
Column = RawColumn | Coded


def read_column(values: Any, what: str) -> RawColumn:
    """
    One batch argument as a list of Python objects or a one-dimensional (for scores also two-dimensional) array.

    Missing values of pandas and pyarrow become None.

    Args:
        values: A list, tuple, other iterable, numpy array, pandas Series or Categorical, pyarrow array, or anything
            with ``__array__``.
        what: Name of the argument, for the error.

    Raises:
        TypeError: If it is a single value or cannot be read.

    Cost: O(n); nothing is copied for a list or a numpy array.
    """
    if isinstance(values, np.ma.MaskedArray):
        column: Any = values.tolist()  # None where masked
    elif isinstance(values, (list, np.ndarray)):
        column = values
    elif isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{what} must be an array or list with one entry a row, got {type(values).__name__}.")
    elif hasattr(values, "to_pylist"):  # pyarrow
        column = (
            values.to_pylist()
            if values.null_count or not _is_numeric_arrow(values)
            else values.to_numpy(**_copy(values))
        )
    elif hasattr(values, "to_numpy"):  # pandas Series and Index, polars Series
        plain = getattr(values, "ndim", 1) > 1 or isinstance(getattr(values, "dtype", None), np.dtype)
        column = values.to_numpy() if plain else _objects_of(values)
    elif hasattr(values, "categories") and hasattr(values, "codes"):  # pandas Categorical
        column = _objects_of(values)
    elif hasattr(values, "__array__"):
        column = np.asarray(values)
    else:
        column = list(values)
    if isinstance(column, np.ndarray):
        if column.ndim == 0:
            raise TypeError(f"{what} must be an array or list with one entry a row, got a single value.")
        if column.ndim == 1 and column.dtype.kind not in "biuf":
            return list(column.tolist())
    return cast(RawColumn, column)


def _is_numeric_arrow(values: Any) -> bool:
    kind = str(values.type)
    return kind.startswith(("int", "uint", "float", "double", "half", "bool"))


def _copy(values: Any) -> dict[str, bool]:
    # Only a plain Array asks for leave to copy; a ChunkedArray always copies.
    return {} if hasattr(values, "chunks") else {"zero_copy_only": False}


def _objects_of(values: Any) -> list[Any]:
    """A pandas object of an extension or categorical type, with None for missing values."""
    items = list(values)
    if getattr(values, "hasnans", True) is False:
        return items
    # Asked by type first, for the truth of `pandas.NA != pandas.NA` is an error.
    return [None if is_missing(item) or item != item else item for item in items]


def is_number(value: Any) -> bool:
    """Whether an argument is a real number; True and False are not."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def is_missing(value: Any) -> bool:
    """Whether a value stands for "no value (yet)": None or pandas' NA. NaN does not: that is a bad number."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def missing_mask(column: Column | None, count: int) -> BoolArray | None:
    """Which entries are missing, shape ``(n,)``; None if none is. An absent column is missing throughout."""
    if column is None:
        return np.ones(count, np.bool_)
    if isinstance(column, np.ndarray):
        return None
    if isinstance(column, Coded):
        missing = missing_mask(list(column.values), len(column.values))
        return None if missing is None else column.spread(missing)
    kinds = set(map(type, column))
    if kinds == {type(None)}:
        return np.ones(count, np.bool_)
    if all(kind.__name__ not in ("NoneType", "NAType", "NaTType") for kind in kinds):
        return None
    return np.fromiter((is_missing(value) for value in column), np.bool_, len(column))


def to_floats(column: Column) -> FloatArray:
    """
    The numbers of a column, shape ``(n,)`` float64; NaN for everything that is not a real number.

    Cost: about 20 ns a row for a list, 1 ns for an array.
    """
    if isinstance(column, Coded):
        return column.spread(to_floats(list(column.values)))
    floats = floats_or_none(column)
    if floats is not None:
        return floats
    return np.array([to_float(value) for value in column], np.float64)


def floats_or_none(column: Column) -> FloatArray | None:
    """As `to_floats`, if every entry is a real number; else None."""
    if isinstance(column, np.ndarray):
        return column.astype(np.float64, copy=False)
    if isinstance(column, Coded):
        floats = floats_or_none(list(column.values))
        return None if floats is None else column.spread(floats)
    try:
        # Twice as fast as np.array, and unlike it, it takes no number written as text.
        return np.frombuffer(array.array("d", column), np.float64)
    except Exception:  # something else among them, or an integer beyond float64
        return None


def to_float(value: Any) -> float:
    """One real number as float; NaN for everything else."""
    try:
        return float(array.array("d", (value,))[0])  # the same judge as for whole columns, see `floats_or_none`
    except Exception:  # no number, beyond float64, or its __float__ fails
        return math.nan


def to_seconds(value: Any) -> float:
    """
    A timestamp as seconds since 1970; NaN for what is none.

    Args:
        value: A number of seconds, or a `datetime` that knows its time zone.

    >>> to_seconds(datetime.datetime(1970, 1, 2, tzinfo=datetime.timezone.utc)), to_seconds("now")
    (86400.0, nan)
    """
    try:
        if isinstance(value, datetime.datetime):
            return value.timestamp() if value.tzinfo is not None else math.nan
        if isinstance(value, np.datetime64):
            return float(value.astype("datetime64[us]").astype(np.int64)) / 1e6 if not np.isnat(value) else math.nan
        if isinstance(value, (bool, np.bool_)):
            return math.nan
        return to_float(value)
    except Exception:  # e.g. a time zone that fails
        return math.nan


def to_times(values: Any) -> FloatArray:
    """
    A column of timestamps as seconds since 1970, shape ``(n,)`` float64; NaN for what is no time.

    Args:
        values: Numbers of seconds, aware datetimes, or a numpy ``datetime64`` array (taken as UTC).
    """
    if hasattr(values, "to_numpy") and str(getattr(values, "dtype", "")).startswith("datetime64"):
        values = values.to_numpy(dtype="datetime64[us]")
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        seconds = values.astype("datetime64[us]").astype(np.int64) / 1e6
        return np.where(np.isnat(values), np.nan, seconds)
    column = read_column(values, "timestamps")
    if isinstance(column, np.ndarray) and column.dtype.kind in "iuf" and column.ndim == 1:
        return column.astype(np.float64)
    return np.array([to_seconds(value) for value in column], np.float64)


def shown(value: Any) -> str:
    """A value for a message: its repr, cut to 80 characters, and its type. Never raises."""
    try:
        if isinstance(value, (str, bytes)):
            value = value[:100]  # to write a long one takes long
        elif isinstance(value, (list, tuple, set, frozenset, dict)) and len(value) > 100:
            return f"{len(value):,} values ({type(value).__name__})"
        text = repr(value)
    except Exception:
        text = "<no repr>"
    text = text if len(text) <= 80 else text[:79] + "…"
    return f"{text} ({type(value).__name__})"
