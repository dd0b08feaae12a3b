"""
What is kept of a prediction until its label comes: the smallest form from which the statistics follow.

One packing a task. It turns one prediction, or one label, into bytes that any process with the same monitor can read,
and many of them back into the columns that the task's encoder takes. Nothing else of a request is kept.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from otel_model_metrics.columns import is_missing, shown
from otel_model_metrics.encoding import (
    INVALID_LABEL,
    INVALID_PREDICTION,
    INVALID_SEGMENT,
    BinaryEncoder,
    Encoder,
    MulticlassEncoder,
    RankingEncoder,
    Refusals,
    RegressionEncoder,
    gains_of,
)
from otel_model_metrics.segments import SegmentTable
from otel_model_metrics.vocabulary import name_of

Lock = Callable[[], AbstractContextManager[Any]]
RawColumns = tuple[Any, Any, Any]  # predictions, labels, scores, as an encoder takes them

_DOUBLE = struct.Struct("<d")
_PREDICTED_WITH_SCORE = struct.Struct("<?d")


class UnusableError(Exception):
    """A prediction or a label that cannot be used: the reason, and what was expected and what came."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


class Packing(Protocol):
    """
    What joining needs to know of a task.

    Attributes:
        plain: Of which types a prediction itself says what `counted` does.
    """

    def prediction(self, prediction: Any, score: Any) -> bytes:
        """One prediction as bytes; raises `UnusableError`."""

    def label(self, label: Any) -> bytes:
        """One label as bytes, equal for equal labels; raises `UnusableError`."""

    plain: frozenset[type]

    def counted(self, packed: bytes) -> Any:
        """What the encoder needs of a prediction to count it, as long as there is no label."""

    def columns(self, predictions: Sequence[bytes], labels: Sequence[bytes]) -> RawColumns:
        """Predictions, labels and scores of n rows, for the encoder."""


class BinaryPacking:
    r"""
    A byte for the prediction, eight for a score, a byte for the label.

    >>> packing = BinaryPacking(BinaryEncoder(None, 0.5), positive=None)
    >>> len(packing.prediction(True, 0.75)), packing.label(False)
    (9, b'\x00')
    """

    def __init__(self, encoder: BinaryEncoder, positive: Hashable | None) -> None:
        self._encoder = encoder
        self._positive = positive
        # Values whose meaning is plain need no encoder. Only what is exactly of this type is looked up, for 1 == True.
        plain: dict[type, dict[Any, bytes]] = {}
        if positive is None or isinstance(positive, str):
            plain[bool] = {True: b"\x01", False: b"\x00"}
        if positive is None:
            plain[int] = {1: b"\x01", 0: b"\x00"}
        self._plain = plain
        self.plain = frozenset(plain)
        # What the encoder takes for positive and for negative.
        text_or_flag = positive is None or isinstance(positive, str)
        self._values = None if text_or_flag else (_Negative(), positive)
        self._meaning: tuple[Any, Any] = self._values or (False, True)

    def prediction(self, prediction: Any, score: Any) -> bytes:
        flags = self._plain.get(type(prediction))
        if flags is not None and prediction in flags:
            if score is None:
                return flags[prediction]
            if type(score) is float and 0.0 <= score <= 1.0:
                return flags[prediction] + _DOUBLE.pack(score)
        encoded = _encoded_one(self._encoder, prediction, None, score)
        flag = bool(encoded.predicted[0])
        known = float(encoded.columns["score"][0])
        return _PREDICTED_WITH_SCORE.pack(flag, known) if known == known else bytes((flag,))

    def label(self, label: Any) -> bytes:
        flags = self._plain.get(type(label))
        if flags is not None and label in flags:
            return flags[label]
        _refuse_no_label(label)
        flag = self._encoder.flag(label)
        if flag < 0:
            raise UnusableError(INVALID_LABEL, self._encoder.expected("label", [label], 0))
        return bytes((flag,))

    def counted(self, packed: bytes) -> Any:
        return self._meaning[packed[0]]

    def columns(self, predictions: Sequence[bytes], labels: Sequence[bytes]) -> RawColumns:
        predicted = np.frombuffer(b"".join([one[:1] for one in predictions]), np.bool_)
        labelled = np.frombuffer(b"".join(labels), np.bool_)
        scored = [one[1:] or _NAN for one in predictions]
        scores = np.frombuffer(b"".join(scored), "<f8")
        known = ~np.isnan(scores)
        column: Any = scores if known.all() else [s if k else None for s, k in zip(scores.tolist(), known, strict=True)]
        if self._values is None:
            return predicted, labelled, column if known.any() else None
        values = self._values
        return (
            [values[flag] for flag in predicted.tolist()],
            [values[flag] for flag in labelled.tolist()],
            column if known.any() else None,
        )


_NAN = _DOUBLE.pack(float("nan"))


class _Negative:
    """Comparable with everything and equal to nothing, so negative whatever `positive` is."""


class MulticlassPacking:
    """The name of the class; and the probabilities, if there are some, for log loss depends on the label."""

    plain = frozenset((str, int, bool))
    _MOST_REMEMBERED = 4096

    def __init__(self, encoder: MulticlassEncoder, lock: Lock) -> None:
        self._encoder = encoder
        self._lock = lock
        self._names: dict[tuple[type, Any], bytes] = {}

    def prediction(self, prediction: Any, score: Any) -> bytes:
        if is_missing(score):
            return self._name("prediction", INVALID_PREDICTION, prediction)
        # Without the lock: scores are of use only with classes that are fixed.
        probabilities = self._encoder.probabilities(score)
        if isinstance(probabilities, tuple):
            raise UnusableError(*probabilities)
        if is_missing(prediction) or (isinstance(prediction, (float, np.floating)) and prediction != prediction):
            prediction = self._encoder.classes()[int(probabilities.argmax())]
        return self._name("prediction", INVALID_PREDICTION, prediction) + b"\0" + probabilities.astype("<f8").tobytes()

    def label(self, label: Any) -> bytes:
        _refuse_no_label(label)
        return self._name("label", INVALID_LABEL, label)

    def counted(self, packed: bytes) -> Any:
        return packed.partition(b"\0")[0].decode()

    def columns(self, predictions: Sequence[bytes], labels: Sequence[bytes]) -> RawColumns:
        parts = [one.partition(b"\0") for one in predictions]
        scores = [np.frombuffer(scores, "<f8") if there else None for _, there, scores in parts]
        return (
            [name.decode() for name, _, _ in parts],
            [one.decode() for one in labels],
            scores if any(one is not None for one in scores) else None,
        )

    def _name(self, what: str, reason: str, value: Any) -> bytes:
        try:
            known = self._names.get((type(value), value))
        except Exception:  # unhashable, or its __hash__ fails
            known = None
        if known is not None:
            return known
        with self._lock():  # a class not met before gets a code
            problem = self._encoder.problem_of(what, reason, value)
        if problem is not None:
            raise UnusableError(*problem)
        name = name_of(value).encode()
        if len(self._names) < self._MOST_REMEMBERED:
            self._names[type(value), value] = name
        return name


class RegressionPacking:
    """Eight bytes each."""

    plain: frozenset[type] = frozenset()

    def __init__(self, encoder: RegressionEncoder) -> None:
        self._encoder = encoder

    def prediction(self, prediction: Any, score: Any) -> bytes:
        if type(prediction) is float and -1e60 < prediction < 1e60:
            return _DOUBLE.pack(prediction)
        return _DOUBLE.pack(_encoded_one(self._encoder, prediction, None, None).columns["predicted"][0])

    def label(self, label: Any) -> bytes:
        if type(label) is float and -1e60 < label < 1e60:
            return _DOUBLE.pack(label + 0.0)
        _refuse_no_label(label)
        value = _encoded_one(self._encoder, 0.0, label, None).columns["label"][0]
        return _DOUBLE.pack(value + 0.0)  # -0.0 is 0.0

    def counted(self, packed: bytes) -> Any:
        return 0.0

    def columns(self, predictions: Sequence[bytes], labels: Sequence[bytes]) -> RawColumns:
        return np.frombuffer(b"".join(predictions), "<f8"), np.frombuffer(b"".join(labels), "<f8"), None


class RankingPacking:
    """
    Eight bytes for each item shown, and sixteen for each relevant one: a digest, not the item.

    Two different items share a digest once in 10^13 lists of a thousand.
    """

    plain: frozenset[type] = frozenset()

    def __init__(self, encoder: RankingEncoder) -> None:
        self._encoder = encoder

    def prediction(self, prediction: Any, score: Any) -> bytes:
        _encoded_one(self._encoder, prediction, None, None)  # refuses what is no list of different items
        items = prediction.tolist() if isinstance(prediction, np.ndarray) else prediction
        return b"".join([_digest(item, INVALID_PREDICTION) for item in items])

    def label(self, label: Any) -> bytes:
        _refuse_no_label(label)
        gains = gains_of(label)
        if isinstance(gains, str):
            raise UnusableError(INVALID_LABEL, gains)
        return b"".join(sorted(_digest(item, INVALID_LABEL) + _DOUBLE.pack(gain) for item, gain in gains.items()))

    def counted(self, packed: bytes) -> Any:
        return ()

    def columns(self, predictions: Sequence[bytes], labels: Sequence[bytes]) -> RawColumns:
        return (
            [np.frombuffer(one, np.uint64).tolist() for one in predictions],
            [
                {item: gain for item, gain in np.frombuffer(one, [("item", "u8"), ("gain", "<f8")]).tolist()}
                for one in labels
            ],
            None,
        )


def packing_of(encoder: Encoder, positive: Hashable | None, lock: Lock) -> Packing:
    """
    The packing of an encoder's task.

    Args:
        encoder: The encoder.
        positive: What binary values are compared with.
        lock: Gives the lock that guards the encoder's classes.
    """
    if isinstance(encoder, BinaryEncoder):
        return BinaryPacking(encoder, positive)
    if isinstance(encoder, MulticlassEncoder):
        return MulticlassPacking(encoder, lock)
    if isinstance(encoder, RegressionEncoder):
        return RegressionPacking(encoder)
    assert isinstance(encoder, RankingEncoder)
    return RankingPacking(encoder)


def _encoded_one(encoder: Encoder, prediction: Any, label: Any, score: Any) -> Any:
    """One row as its encoder sees it; raises `UnusableError` with what the encoder says."""
    refusals = Refusals(1)
    try:
        scores = None if score is None else [score]
        encoded = encoder.encode([prediction], None if label is None else [label], scores, 1, refusals)
    except Exception:
        raise UnusableError(
            INVALID_PREDICTION, f"prediction fails when it is looked at: {shown(prediction)}."
        ) from None
    for reason, (_, text) in refusals.reasons.items():
        raise UnusableError(reason, text)
    return encoded


def _refuse_no_label(label: Any) -> None:
    if is_missing(label):
        raise UnusableError(INVALID_LABEL, f"label must be the truth, got {shown(label)}. Record it when it is known.")


def _digest(item: Any, reason: str) -> bytes:
    """
    The same for items that are equal in Python, in every process: ``3`` and ``3.0``, but not ``"3"``.
    """
    try:
        if isinstance(item, np.generic):
            item = item.item()
        if isinstance(item, str):
            content = b"s" + item.encode("utf-8", "surrogatepass")
        elif isinstance(item, bytes):
            content = b"b" + item
        elif isinstance(item, (bool, int)):
            content = b"n%d" % item
        elif isinstance(item, (float, Decimal, Fraction)):
            # Numbers that are equal have the same hash, in every process.
            content = b"n%d" % int(item) if item % 1 == 0 else b"f%d" % hash(item)
        elif isinstance(item, tuple):
            content = b"t" + b"".join(_digest(one, reason) for one in item)
        else:
            content = b"o" + str(item).encode("utf-8", "surrogatepass")
    except Exception:
        what = "label" if reason == INVALID_LABEL else "prediction"
        raise UnusableError(reason, f"{what} must hold items that can be written as text, got {shown(item)}.") from None
    return hashlib.blake2b(content, digest_size=8).digest()


class SegmentPacking:
    """
    Segments as bytes: numbers of groups within a process, names and values where other processes read them.

    Values beyond the bound of their name are ``__other__`` already.

    Args:
        table: The monitor's segments.
        lock: Holds while the table is changed.
        portable: Whether other processes read it.
    """

    # Both ways are remembered; beyond this many, all are looked up anew.
    _MOST_REMEMBERED = 8192
    _LONGEST_REMEMBERED = 256

    def __init__(self, table: SegmentTable, portable: bool) -> None:
        self._table = table
        self._portable = portable
        # What to stage for a key, and the key packed.
        self.known: dict[Any, tuple[Any, bytes]] = {(): (0, b"")}
        self._groups: dict[bytes, tuple[int, ...]] = {b"": ()}

    def pack(self, key: Any) -> tuple[Any, bytes]:
        """
        What stands for a key of `segments.key_of` when it is staged, and the key as bytes; with the table's lock held.

        Raises:
            UnusableError: If the segments cannot be used.
        """
        code = int(self._table.encode_keys([key])[0])
        if code < 0:
            raise UnusableError(INVALID_SEGMENT, self._table.problem)
        groups = self._table.groups_of_set(code)
        if self._portable:
            named = [self._table.groups[group] for group in groups]
            packed = json.dumps(named, ensure_ascii=False, separators=(",", ":")).encode() if named else b""
        else:
            packed = struct.pack(f"<{len(groups)}I", *groups)
        try:
            found = self._table.key_ids.get(key, key), packed
        except Exception:  # unhashable
            return key, packed
        if sum(len(value) for _, value in key if isinstance(value, (str, bytes))) <= self._LONGEST_REMEMBERED:
            self._remember(self.known, key, found)
        return found

    def set_code(self, packed: bytes) -> int:
        """The segment set of packed segments, with the table's lock held."""
        return self._table.set_of_groups(self.groups(packed))

    def groups(self, packed: bytes) -> tuple[int, ...]:
        """The groups of packed segments, with the table's lock held, without names that the monitor does not allow."""
        groups = self._groups.get(packed)
        if groups is None:
            if self._portable:
                try:
                    named = json.loads(packed)
                    found = {self._table.group_named(str(name), str(value)) for name, value in named}
                except (ValueError, TypeError):  # of another version of this library
                    found = set()
                groups = tuple(sorted(group for group in found if group >= 0))
            else:
                groups = struct.unpack(f"<{len(packed) // 4}I", packed)
            self._remember(self._groups, packed, groups)
        return groups

    def _remember(self, memory: dict[Any, Any], key: Any, value: Any) -> None:
        try:
            if len(memory) >= self._MOST_REMEMBERED:
                memory.clear()
            memory[key] = value
        except Exception:  # unhashable
            pass
