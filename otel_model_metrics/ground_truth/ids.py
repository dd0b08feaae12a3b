"""
Ids of predictions: whatever a service calls them by, as the one text under which every store keeps them.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

MAX_LENGTH = 1024

EXPECTED = f"id must be a non-empty string of at most {MAX_LENGTH} characters, an integer, bytes or a UUID"


def id_text(value: Any) -> str | None:
    """
    An id as text; None for what can be none.

    A label may come by another way than its prediction, from a CSV file for example, where every id is text. So
    ``42`` and ``"42"`` are one id, and so are a UUID and its text. Bytes are text in UTF-8, or else in hexadecimal.

    >>> id_text("txn-1"), id_text(42), id_text(b"txn-1"), id_text(uuid.UUID(int=1))
    ('txn-1', '42', 'txn-1', '00000000-0000-0000-0000-000000000001')
    >>> id_text(""), id_text(None), id_text(1.5), id_text(True), id_text("x" * 2000)
    (None, None, None, None, None)
    """
    if isinstance(value, str):
        text = str.__str__(value)
    elif isinstance(value, (bool, np.bool_)):
        return None
    elif isinstance(value, (int, np.integer)):
        number = int(value)
        if number.bit_length() > 256:  # to write a huge integer takes very long
            return None
        text = str(number)
    elif isinstance(value, (bytes, bytearray)):
        if len(value) > MAX_LENGTH:
            return None
        try:
            text = bytes(value).decode()
        except UnicodeDecodeError:
            text = bytes(value).hex()
    elif isinstance(value, uuid.UUID):
        text = str(value)
    else:
        return None
    if not 0 < len(text) <= MAX_LENGTH:
        return None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, which no store can write
            return None
    return text if "\0" not in text else None
