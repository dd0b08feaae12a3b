"""
Bytes that hold a header and arrays: what statistics are in while they are carried to another process, machine or year.

Neither pickle, which runs whatever it is given, nor a format that needs a library. What is in the header is not known
here. Version 1: the magic bytes, one byte with the version, and all that follows as a stream of zlib, which notices if
it is cut or damaged: the length of the header (4 bytes, little-endian), the header as JSON in UTF-8, and the bytes of
the arrays (C order, little-endian), whose names, types and shapes the header lists under ``arrays``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"otel-model-metrics statistics\n"
VERSION = 1

_FAST = 1  # counts become as small as with more effort, and other numbers hardly become smaller at all


def packed(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """
    A header and arrays as bytes.

    Args:
        header: Plain data fit for JSON.
        arrays: Numbers or booleans by name. Integers are held in as few bytes as the largest of them needs.

    Cost: about 20 ns a byte.

    >>> header, arrays = unpacked(packed({"a": 1}, {"b": np.array([[1], [2]])}))
    >>> header["a"], arrays["b"].tolist()
    (1, [[1], [2]])
    """
    listed, data = [], []
    for name, array in arrays.items():
        held = _narrowed(array)
        listed.append([name, array.dtype.newbyteorder("<").str, held.dtype.str, list(array.shape)])
        data.append(held.tobytes())
    head = json.dumps({**header, "arrays": listed}, separators=(",", ":")).encode()
    content = b"".join([len(head).to_bytes(4, "little"), head, *data])
    return MAGIC + bytes([VERSION]) + zlib.compress(content, _FAST)


def unpacked(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """
    The header and arrays of what `packed` gave.

    Raises:
        ValueError: If it is something else, of a later version, cut or damaged.
    """
    data = bytes(data)
    if not data.startswith(MAGIC):
        raise ValueError(
            f"These are no statistics, which begin with {MAGIC!r}: got {len(data):,} bytes that begin with "
            f"{data[: len(MAGIC)]!r}."
        )
    version = data[len(MAGIC) : len(MAGIC) + 1]
    if version and version[0] != VERSION:
        raise ValueError(
            f"These statistics are of version {version[0]} of the format, and only {VERSION} is known here. "
            "Use the same release of otel-model-metrics for both."
        )
    stream = zlib.decompressobj()
    try:
        content = memoryview(stream.decompress(data[len(MAGIC) + 1 :]))
    except zlib.error as error:
        raise ValueError(f"These statistics are damaged: {error}.") from error
    if not stream.eof or stream.unused_data:
        what = "have something after their end" if stream.eof else "are cut off"
        raise ValueError(f"These statistics {what}: got {len(data):,} bytes.")
    at = 4 + int.from_bytes(content[:4], "little")
    header: dict[str, Any] = json.loads(bytes(content[4:at]))
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, held, shape in header.pop("arrays"):
        count = int(np.prod(shape, dtype=np.int64))
        # A copy, which can be written to.
        arrays[name] = np.frombuffer(content, held, count, at).reshape(shape).astype(dtype)
        at += count * np.dtype(held).itemsize
    return header, arrays


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    """Integers in the smallest type that holds all of them."""
    if array.dtype.kind in "iu" and array.size:
        smallest = np.result_type(np.min_scalar_type(array.min()), np.min_scalar_type(array.max()))
        if smallest.kind in "iu" and smallest.itemsize < array.dtype.itemsize:
            array = array.astype(smallest)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
