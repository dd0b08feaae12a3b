"""
What is sent: the body of a request, and one label in it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from otel_model_metrics.ground_truth.ids import id_text
from otel_model_metrics.labels_http.openapi import FIELDS, MAX_DEPTH, MAX_ID, MAX_TIMESTAMP, MIN_ID, REQUIRED


class UnreadableError(Exception):
    """The body as a whole cannot be read."""


def rows_of(body: bytes) -> tuple[list[Any], bool]:
    """
    The labels of a body, not looked at yet; and whether there is a number in it that no float64 can be.

    Raises:
        UnreadableError: If it is not JSON, or something else than labels.
    """
    content, overflows = _parse(body)
    if isinstance(content, dict) and "labels" in content:
        others = [name for name in content if name != "labels"]
        if others:
            raise UnreadableError(f"Beside labels there must be nothing else in the object, got {shown(others[0])}.")
        content = content["labels"]
        if not isinstance(content, list):
            raise UnreadableError(f"labels must be an array, got {shown(content)}.")
    if isinstance(content, dict):
        return [content], overflows
    if isinstance(content, list):
        return content, overflows
    raise UnreadableError(f"The body must be a label, or an array of labels, got {shown(content)}.")


def _parse(body: bytes) -> tuple[Any, bool]:
    overflows = False

    def to_float(text: str) -> float:
        nonlocal overflows
        number = float(text)
        overflows = overflows or math.isinf(number)
        return number

    if _is_deep(body):
        raise UnreadableError(f"The body must not be nested deeper than {MAX_DEPTH} arrays and objects.")
    try:
        content = json.loads(
            body.decode(),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=to_float,
        )
        if b"\\ud" in body.lower():  # perhaps half a character, which no store can write
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise UnreadableError("The body must be UTF-8, and is not.") from None
    except UnicodeEncodeError:
        raise UnreadableError("The body must be Unicode, got half of a surrogate pair.") from None
    except json.JSONDecodeError as fault:
        raise UnreadableError(f"The body must be JSON: {fault}.") from None
    except ValueError:  # more digits than Python reads, see sys.set_int_max_str_digits
        raise UnreadableError("The body has an integer with too many digits.") from None
    return content, overflows


def _is_deep(body: bytes) -> bool:
    """
    Whether JSON is nested deeper than `MAX_DEPTH`.

    Asked before it is parsed, because how deep the parser can go depends on Python and on the stack of the thread.

    Cost: about 40 ms for a megabyte of labels.

    >>> _is_deep(b'[{"a": "[[[["}, []]' + b"[]" * 100), _is_deep(b"[" * 100)
    (False, True)
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    # Without escaped quotes, every second part is outside of strings.
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(outside).translate(_ALL_SQUARE, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        outer = brackets.replace(b"[]", b"")
        if len(outer) == len(brackets):  # nothing left, or no JSON: the parser will say why, if it can go so deep
            return outer.count(b"[") > MAX_DEPTH
        brackets = outer
    return bool(brackets)


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ALL_SQUARE = bytes.maketrans(b"{}", b"[]")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise UnreadableError(f"An object must not have a name twice, got {shown(name)}.")
    return found


def _no_constant(name: str) -> float:
    raise UnreadableError(f"The body must be JSON, which has no {name}.")


class LabelRow(NamedTuple):
    """One label, read and found to be well-formed."""

    model: str
    version: str | None
    id: str | int
    label: Any
    timestamp: float | None


class MalformedError(Exception):
    """One label is not as described."""


def read_label(row: Any, overflows: bool) -> LabelRow:
    """
    One label of a body.

    Args:
        row: Whatever JSON has.
        overflows: Whether there is a number in the body that no float64 can be.

    Raises:
        MalformedError: If it is not as described; says what was expected, and what came.
    """
    if not isinstance(row, dict):
        raise MalformedError(f"A label must be an object with {', '.join(REQUIRED)}, got {shown(row)}.")
    for field in row:
        if field not in FIELDS:
            raise MalformedError(unknown("field", field, FIELDS))
    missing = [field for field in REQUIRED if field not in row]
    if missing:
        raise MalformedError(f"A label must have {', '.join(REQUIRED)}; {' and '.join(missing)} missing.")
    model, version, id, timestamp = row["model"], row.get("version"), row["id"], row.get("timestamp")
    if not isinstance(model, str):
        raise MalformedError(f"model must be a string, got {shown(model)}.")
    if version is not None and not isinstance(version, str):
        raise MalformedError(f"version must be a string, got {shown(version)}. Write it in quotes.")
    if not is_id(id):
        raise MalformedError(f"{_EXPECTED_ID}, got {shown(id)}. Longer integers may be written in quotes.")
    if row["label"] is None:
        raise MalformedError("label must be a value, got null. Send it when it is known.")
    if timestamp is not None and not _is_timestamp(timestamp):
        raise MalformedError(
            f"timestamp must be seconds since 1970, in [0, {MAX_TIMESTAMP}], got {shown(timestamp)}. "
            "If these are milliseconds, divide by 1000."
        )
    if overflows and not _is_finite(row["label"]):
        raise MalformedError("label must have numbers that a float64 can be, got one that is too large.")
    return LabelRow(model, version, int(id) if isinstance(id, float) else id, row["label"], timestamp)


_EXPECTED_ID = "id must be a non-empty string of at most 1024 characters without NUL, or an integer of 64 bits"


def is_id(value: Any) -> bool:
    """Whether a value can be an id."""
    if isinstance(value, float):  # in JSON 1.0 is an integer; beyond 2**53 it is not known which
        return value.is_integer() and abs(value) <= 2**53
    if isinstance(value, int):
        return not isinstance(value, bool) and MIN_ID <= value <= MAX_ID
    return id_text(value) is not None


def _is_timestamp(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_TIMESTAMP


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def shown(value: Any) -> str:
    """
    A value for a message, as JSON has it.

    >>> shown(None), shown("x" * 500) == '"' + "x" * 78 + "…", shown([[1], [2]])
    ('null', True, 'an array')
    """
    if isinstance(value, (list, dict)):
        return "an array" if isinstance(value, list) else "an object"
    text = json.dumps(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:79] + "…"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """
    What to say of a name that is not known. Without a guess what was meant, for guesses take seconds for 10,000 labels.

    >>> unknown("model", "frod", ["fraud", "churn"])
    'Unknown model "frod". Known: "fraud", "churn".'
    """
    names = list(itertools.islice(known, 11))
    listed = ", ".join(map(shown, names[:10])) or "none"
    return f"Unknown {what} {shown(name)}. Known: {listed}{', …' if len(names) > 10 else ''}."
