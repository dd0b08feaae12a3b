"""
Ids of predictions as digests: whole columns of text or numbers become 128 bits a row, by which labels are joined.

A digest depends on nothing but the id, so that every process and machine comes to the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.cells import arrow_numbers
from otel_model_metrics.columns import BoolArray, shown
from otel_model_metrics.files import FileError
from otel_model_metrics.ground_truth.ids import MAX_LENGTH, id_text

Words = NDArray[np.uint64]

_LONGEST = 4 * MAX_LENGTH  # bytes, in UTF-8
_LARGEST_FLOAT = 2.0**53  # beyond it, floats leave whole numbers out
# Whole numbers as pandas writes them into CSV if one is missing. Not those that floats leave out, nor 007.0.
_WHOLE = r"^(0|-?[1-9][0-9]{0,14}|-?[1-8][0-9]{15})\.0$"
_BINARY = ("binary", "large_binary", "fixed_size_binary")
_CHUNK = 1 << 14  # rows whose digests are computed at a time: what they need stays in the caches of a processor


@dataclass(frozen=True)
class Ids:
    """
    The ids of some rows.

    Attributes:
        first, second: The halves of each digest, shape ``(n,)``; meaningless without a usable id.
        missing: Rows that have none: null, empty text, or NaN.
        unusable: Rows that have something else, such as 1.5 or a list.
    """

    first: Words
    second: Words
    missing: BoolArray
    unusable: BoolArray

    @property
    def usable(self) -> BoolArray:
        """Rows that have a digest, shape ``(n,)``."""
        return ~(self.missing | self.unusable)


def ids_of(raw: Any, text: bool = False, where: str = "") -> Ids:
    """
    The ids of a column.

    A label may come by another way than its prediction. So 42, 42.0 and ``"42"`` are one id, bytes are the text that
    they are in UTF-8 (or else in hexadecimal), and a UUID is its text.

    Args:
        raw: A pyarrow Array, or a list for JSONL.
        text: Whether it is from CSV, where all cells are text. Of these ``42.0`` is 42 too.
        where: The file and the column, for the error.

    Raises:
        FileError: If the column cannot hold ids, such as one of times.

    Cost: about 0.1 microseconds a row of some 16 bytes.

    >>> ids = ids_of(["42", 42, 42.0, 1.5, None])
    >>> len(set(ids.first[:3].tolist())), ids.missing.tolist(), ids.unusable.tolist()
    (1, [False, False, False, False, True], [False, False, False, True, False])
    """
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import compute, types

    if isinstance(raw, list):
        return _of_values(raw)
    kind = raw.type
    if types.is_dictionary(kind):
        of_values = ids_of(raw.dictionary, text, where)
        absent, at = arrow_numbers(raw.indices.is_null()), arrow_numbers(raw.indices, 0)
        if not len(of_values.first):
            return _nothing(len(at))
        return Ids(
            of_values.first[at], of_values.second[at], of_values.missing[at] | absent, of_values.unusable[at] & ~absent
        )
    if types.is_null(kind):
        return _nothing(len(raw))
    if types.is_integer(kind):
        return _of_text(raw.cast(pyarrow.string()))
    if types.is_floating(kind):
        numbers = arrow_numbers(raw.cast(pyarrow.float64()))  # NaN for null
        missing = np.isnan(numbers)
        whole = (np.floor(numbers) == numbers) & (np.abs(numbers) <= _LARGEST_FLOAT)
        ids = _of_text(pyarrow.array(np.where(whole, numbers, 0.0).astype(np.int64)).cast(pyarrow.string()))
        return Ids(ids.first, ids.second, missing, ~(whole | missing))
    if types.is_string(kind) or types.is_large_string(kind):
        if text and compute.any(compute.ends_with(raw, ".0")).as_py():
            raw = compute.replace_substring_regex(raw, _WHOLE, r"\1")
        return _of_text(raw)
    if isinstance(raw, pyarrow.ExtensionArray) or types.is_decimal(kind) or str(kind).startswith(_BINARY):
        return _of_values(raw.to_pylist())
    if str(kind) == "string_view":
        return _of_text(raw.cast(pyarrow.string()))
    raise FileError(f"{where} must hold ids, which are text or whole numbers, got {kind}.")


def expected(value: Any) -> str:
    """What is wrong with an unusable id."""
    hint = "; write whole numbers beyond 2^53 as text" if isinstance(value, float) else ""
    return f"an id must be text of at most {MAX_LENGTH:,} characters or a whole number, got {shown(value)}{hint}."


def _nothing(count: int) -> Ids:
    none = np.zeros(count, np.uint64)
    return Ids(none, none, np.ones(count, np.bool_), np.zeros(count, np.bool_))


def _of_values(values: list[Any]) -> Ids:
    """The ids of Python objects."""
    import pyarrow

    kinds = set(map(type, values))
    try:
        if kinds <= {str, type(None)}:
            return _of_text(pyarrow.array(values, pyarrow.string()))
        if kinds <= {int, type(None)}:
            return _of_text(pyarrow.array(values, pyarrow.int64()).cast(pyarrow.string()))
    except (UnicodeEncodeError, OverflowError):  # half of a character; a number of more than 64 bits
        pass
    texts = [_text_of(value) for value in values]
    ids = _of_text(pyarrow.array(texts, pyarrow.string()))
    missing = np.array([value is None or value != value or value in ("", b"") for value in values], np.bool_)
    return Ids(ids.first, ids.second, missing, (ids.missing | ids.unusable) & ~missing)


def _text_of(value: Any) -> str | None:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) <= _LARGEST_FLOAT else None
    if type(value).__name__ == "Decimal":
        return id_text(int(value)) if value == value.to_integral_value() else None
    return id_text(value)


def _of_text(column: Any) -> Ids:
    """The ids of a string column of pyarrow."""
    from pyarrow import types

    count = len(column)
    _, of_offsets, of_data = column.buffers()
    wide = np.int64 if types.is_large_string(column.type) else np.int32
    if not count or of_offsets is None:
        return _nothing(count)
    offsets = np.frombuffer(of_offsets, wide)[column.offset : column.offset + count + 1].astype(np.int64)
    begin, end = int(offsets[0]), int(offsets[-1])
    data = np.zeros(end - begin + 32, np.uint8)  # so that whole words can be read at its end
    if end > begin:
        data[: end - begin] = np.frombuffer(of_data, np.uint8)[begin:end]
    lengths = np.diff(offsets)
    starts = offsets[:-1] - begin
    absent = lengths == 0
    if column.null_count:
        absent |= arrow_numbers(column.is_null())
    unusable = ~absent & (lengths > _LONGEST)
    if absent.any() or unusable.any():  # null has bytes, too, in what some writers write
        lengths = np.where(absent | unusable, 0, lengths)
    first, second = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for at in range(0, count, _CHUNK):
        rows = slice(at, at + _CHUNK)
        first[rows], second[rows] = murmur3(data, starts[rows], lengths[rows])
    return Ids(first, second, absent, unusable)


_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)  # of the first bytes of a word


def murmur3(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Words, Words]:
    """
    The 128 bits of MurmurHash3 (its x64 variant, seed 0) of many texts at once.

    Args:
        data: Bytes of all texts, and at least 16 more.
        starts, lengths: Where each text is in them, shape ``(n,)``.

    Returns:
        The halves, each of shape ``(n,)``.

    Two of 10 ** 9 ids have the same digest with a probability of 10 ** -21. It is not meant to withstand somebody who
    makes up ids in order to have two with the same.

    Source: Appleby, MurmurHash3_x64_128, https://github.com/aappleby/smhasher (public domain).
    """
    # At each byte the eight from there on, without copying.
    words: Any = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    first, second = np.zeros(len(starts), np.uint64), np.zeros(len(starts), np.uint64)
    blocks = lengths >> 4
    for block in range(int(blocks.max(initial=0))):
        rows: Any = slice(None) if block < blocks.min() else np.flatnonzero(blocks > block)
        at = starts[rows] + 16 * block
        one, two = first[rows], second[rows]
        one = _turned(one ^ _first_of(words[at]), 27) + two
        one = one * np.uint64(5) + np.uint64(0x52DCE729)
        two = _turned(two ^ _second_of(words[at + 8]), 31) + one
        first[rows], second[rows] = one, two * np.uint64(5) + np.uint64(0x38495AB5)
    at, left = starts + (blocks << 4), lengths & 15
    first ^= _first_of(words[at] & _MASKS[np.minimum(left, 8)])
    second ^= _second_of(words[at + 8] & _MASKS[np.maximum(left - 8, 0)])
    sizes = lengths.astype(np.uint64)
    first, second = first ^ sizes, second ^ sizes
    first = first + second
    second = second + first
    first, second = _mixed(first), _mixed(second)
    first = first + second
    return first, second + first


def _first_of(word: Words) -> Words:
    return _turned(word * _C1, 31) * _C2


def _second_of(word: Words) -> Words:
    return _turned(word * _C2, 33) * _C1


def _turned(word: Words, bits: int) -> Words:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


def _mixed(word: Words) -> Words:
    for factor in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        word = (word ^ (word >> np.uint64(33))) * factor
    return word ^ (word >> np.uint64(33))
