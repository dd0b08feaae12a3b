"""
What the cells of files mean: text, numbers and times, and the values of pyarrow's columns.
"""

from __future__ import annotations

import datetime
import functools
import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

_YEAR_10000 = 253_402_300_800.0

_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?")
# Not datetime.fromisoformat: before Python 3.11 it knows neither Z nor fractions other than of 3 or 6 digits.
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?)? ?(Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)


class CellError(Exception):
    """A cell cannot be used; says why, in words that rows with the same fault share."""


@functools.lru_cache(maxsize=10_000)  # labels are few and come again and again
def value_of(text: str) -> bool | int | float | str:
    """
    What a cell of a CSV file means.

    >>> value_of("True"), value_of("3"), value_of("0.5"), value_of("1e-05"), value_of("cat"), value_of("1.2.3")
    (True, 3, 0.5, 1e-05, 'cat', '1.2.3')
    """
    bare = text.strip()
    if _WHOLE.fullmatch(bare):
        try:
            return int(bare)
        except ValueError:  # of thousands of digits
            return text
    if _DECIMAL.fullmatch(bare):
        return float(bare)
    return {"true": True, "false": False}.get(bare.lower(), text)


def time_of(value: Any) -> float:
    """A time as seconds since 1970."""
    if isinstance(value, str):
        try:
            seconds = float(value)
        except ValueError:
            seconds = _seconds_of_iso(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < _YEAR_10000 else math.nan
    else:
        seconds = math.nan
    if not abs(seconds) < _YEAR_10000:  # milliseconds, probably
        raise CellError("time that is neither seconds since 1970 nor ISO 8601")
    return seconds


def _seconds_of_iso(text: str) -> float:
    """
    A time in ISO 8601 as seconds since 1970; NaN if it is none.

    >>> _seconds_of_iso("1970-01-02T02:00:00.5+02:00"), _seconds_of_iso("1970-01-02 00:00Z"), _seconds_of_iso("now")
    (86400.5, 86400.0, nan)
    """
    match = _ISO.fullmatch(text.strip())
    if match is None:
        return math.nan
    day, minutes, seconds, fraction, zone = match.groups()
    if zone is None:
        raise CellError("time without a time zone")
    zone = "+00:00" if zone in "Zz" else f"{zone[:3]}:{zone[3:].strip(':') or '00'}"
    try:
        whole = datetime.datetime.fromisoformat(f"{day}T{minutes or '00:00'}{seconds or ':00'}{zone}").timestamp()
    except ValueError:  # a 13th month
        return math.nan
    return whole + float(f"0.{fraction or 0}")


def arrow_labels(column: Any) -> list[Any]:
    """The values of a column of pyarrow, with maps and structs as dictionaries of what they have."""
    from pyarrow import types  # type: ignore[import-untyped]

    kind, values = column.type, arrow_values(column)
    if types.is_map(kind):
        return [None if value is None else dict(value) for value in values]
    if types.is_struct(kind):
        # pandas writes mappings so, each with the keys of all.
        return [
            None if value is None else {key: one for key, one in value.items() if one is not None} for value in values
        ]
    if types.is_decimal(kind):
        return [float(value) if isinstance(value, Decimal) else value for value in values]
    return values


def arrow_values(column: Any) -> list[Any]:
    """The values of a column of pyarrow, None where there is none."""
    import pyarrow

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        if not pyarrow.types.is_string(column.type):
            raise
    # As in CSV files, what is not UTF-8 costs its row and not the file.
    return [
        None if value is None else value.decode(errors="surrogateescape")
        for value in column.cast(pyarrow.binary()).to_pylist()
    ]


def arrow_numbers(column: Any, missing: Any = math.nan) -> NDArray[Any]:
    """
    A column of pyarrow of integers, floats or booleans, as an array; not to be written to.

    Not by its own to_numpy() or fill_null(): for these it imports pandas where there is one, which takes half a second.

    Args:
        column: An Array.
        missing: Stands for what is missing, and must be of a type that the array can hold.
    """
    from pyarrow import types

    kind, count, start = column.type, len(column), column.offset
    if types.is_boolean(kind):
        dtype = np.dtype(np.bool_)
    else:
        dtype = np.dtype({"halffloat": "f2", "float": "f4", "double": "f8"}.get(str(kind), str(kind)))
    if not count:
        return np.zeros(0, dtype)
    there, data = column.buffers()
    if types.is_boolean(kind):
        values: NDArray[Any] = _bits(data, start, count)
    else:
        values = np.frombuffer(data, dtype, count, start * dtype.itemsize)
    if column.null_count:
        return np.where(_bits(there, start, count), values, dtype.type(missing))
    return values


def _bits(buffer: Any, start: int, count: int) -> NDArray[np.bool_]:
    first = start // 8
    some = np.frombuffer(buffer, np.uint8, -(-(start + count) // 8) - first, first)
    return np.unpackbits(some, count=start - 8 * first + count, bitorder="little")[start - 8 * first :].view(np.bool_)


def arrow_times(column: Any) -> list[Any]:
    """The times of a column of pyarrow, as `time_of` takes them."""
    import pyarrow

    kind = column.type
    if not pyarrow.types.is_timestamp(kind):
        return arrow_values(column)
    if kind.tz is None:
        return list(column.cast(pyarrow.string()).to_pylist())  # as text, which says that its zone is missing
    # By way of integers: Python's datetime has no nanoseconds, and is slower.
    micros = column.cast(pyarrow.timestamp("us", tz=kind.tz), safe=False).cast(pyarrow.int64())
    return [None if value is None else value / 1e6 for value in micros.to_pylist()]
