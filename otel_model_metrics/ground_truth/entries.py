"""
What a store keeps of one prediction, and the rules by which its label joins it.

Pure functions on bytes, the same for every store: a store reads an entry, has it decided here, and writes the answer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from otel_model_metrics.ground_truth.outcomes import LabelOutcome

# How much longer than its ttl an entry is remembered, so that a label which comes too late is told so.
REMEMBERED = 1.25

# Which of the two are there; times received, predicted and labelled; who joined them; bytes of the segments and of the
# prediction.
_HEADER = struct.Struct("<BdddIHI")
_PREDICTION, _LABEL, _BOTH = 1, 2, 3
_MATCHED = LabelOutcome.MATCHED
# Of a named tuple, in half the time of its own constructor.
_entry: Callable[[type[Entry], tuple[Any, ...]], Entry] = tuple.__new__
_decision: Callable[[type[Decision], tuple[Any, ...]], Decision] = tuple.__new__
_received = struct.Struct("<d").unpack_from  # after the first byte
_pack, _unpack, _size = _HEADER.pack, _HEADER.unpack_from, _HEADER.size


class Entry(NamedTuple):
    """
    One prediction, one label, or both.

    Attributes:
        received: When the store first heard of it, seconds since 1970; its ttl counts from here.
        predicted, labelled: Time of the prediction and of the first label; 0.0 while there is none.
        joiner: In which monitor of which process they joined, as a number; 0 before. The row is in its window only.
        segments: The prediction's segments, packed.
        prediction: The prediction, packed; None while there is none.
        label: The label, packed; None while there is none.
    """

    received: float
    predicted: float
    labelled: float
    joiner: int
    segments: bytes
    prediction: bytes | None
    label: bytes | None


class Prediction(NamedTuple):
    """A prediction on its way to a store; `raw` is the caller's, and comes back with the decision."""

    id: str
    time: float
    segments: bytes
    prediction: bytes
    raw: Any = None


class Label(NamedTuple):
    """A label on its way to a store."""

    id: str
    time: float
    label: bytes


class Decision(NamedTuple):
    """
    What an operation does.

    Attributes:
        outcome: What becomes of the label; None for a prediction for which no label waits.
        content: What to write; None to leave the entry as it is.
        new: Whether a prediction is there that was not there before.
        entry: The entry after it, where a label joined or was corrected; or the one that was given up.
        before: The entry before it, where the label of a joined prediction was corrected.
        waited: Since when the label had waited, where a prediction found one.
        due: When the row may be judged, if that is later and the store sees to it.
    """

    outcome: LabelOutcome | None = None
    content: bytes | None = None
    new: bool = False
    entry: Entry | None = None
    before: Entry | None = None
    waited: float | None = None
    due: float | None = None


def pack(entry: Entry) -> bytes:
    """
    An entry as bytes.

    >>> unpack(pack(Entry(1.0, 2.0, 0.0, 0, b"", b"yes", None)))
    Entry(received=1.0, predicted=2.0, labelled=0.0, joiner=0, segments=b'', prediction=b'yes', label=None)
    """
    received, predicted, labelled, joiner, segments, prediction, label = entry
    there = (_PREDICTION if prediction is not None else 0) | (_LABEL if label is not None else 0)
    prediction = prediction or b""
    return (
        _pack(there, received, predicted, labelled, joiner, len(segments), len(prediction))
        + segments
        + prediction
        + (label or b"")
    )


def pack_prediction(received: float, predicted: float, segments: bytes, prediction: bytes) -> bytes:
    """An entry that is a prediction without a label, which is most of them."""
    return _pack(_PREDICTION, received, predicted, 0.0, 0, len(segments), len(prediction)) + segments + prediction


def unpack(content: bytes) -> Entry:
    """The entry that was packed."""
    there, received, predicted, labelled, joiner, of_segments, of_prediction = _unpack(content)
    begin = _size + of_segments
    end = begin + of_prediction
    return Entry(
        received,
        predicted,
        labelled,
        joiner,
        content[_size:begin],
        content[begin:end] if there & _PREDICTION else None,
        content[end:] if there & _LABEL else None,
    )


def received_at(content: bytes) -> float:
    """When the store first heard of an entry."""
    received: float = _received(content, 1)[0]
    return received


def is_known_prediction(content: bytes | None) -> bool:
    """Whether an entry has a prediction."""
    return content is not None and bool(content[0] & _PREDICTION)


_NOTHING = Decision()
NEW = Decision(new=True)  # what most predictions come to


def decide_prediction(content: bytes | None, given: Prediction, now: float, ttl: float, joiner: int) -> Decision:
    """
    What a prediction does.

    Args:
        content: The entry of its id, or None.
        given: The prediction.
        now: Seconds since 1970.
        ttl: Seconds after which an entry counts no more.
        joiner: Who asks.
    """
    if content is not None:
        entry = unpack(content)
        if now - entry.received <= ttl:
            if entry.prediction is not None:
                return _NOTHING  # told twice
            joined = Entry(
                entry.received, given.time, entry.labelled, joiner, given.segments, given.prediction, entry.label
            )
            return Decision(LabelOutcome.MATCHED, pack(joined), True, joined, waited=entry.received)
    return Decision(content=pack_prediction(now, given.time, given.segments, given.prediction), new=True)


def decide_label(content: bytes | None, given: Label, now: float, ttl: float, joiner: int) -> Decision:
    """What a label does; arguments as for `decide_prediction`."""
    if content is not None:
        entry = unpack(content)
        if now - entry.received > ttl:
            if entry.prediction is not None:
                return Decision(LabelOutcome.EXPIRED)
        elif entry.label == given.label:
            return Decision(LabelOutcome.DUPLICATE)
        elif entry.prediction is None:
            changed = entry._replace(label=given.label, labelled=given.time)
            return Decision(LabelOutcome.CORRECTED, pack(changed))
        elif entry.label is not None:
            # The row keeps its place in the window, so its time stays that of the first label.
            changed = entry._replace(label=given.label)
            return Decision(LabelOutcome.CORRECTED, pack(changed), False, changed, entry)
        else:
            joined = entry._replace(label=given.label, labelled=given.time, joiner=joiner)
            return Decision(LabelOutcome.MATCHED, pack(joined), False, joined)
    if given.time < now - ttl:
        return Decision(LabelOutcome.UNMATCHED)
    waiting = Entry(now, 0.0, given.time, 0, b"", None, given.label)
    return Decision(LabelOutcome.PENDING, pack(waiting))


def joined_by(content: bytes, given: Label, oldest: float, joiner: int) -> Decision | None:
    """
    What a label does to a prediction that has none yet; None if the entry is none, or is older than `oldest`.
    """
    there, received, predicted, _, _, of_segments, of_prediction = _unpack(content)
    if there != _PREDICTION or received < oldest:
        return None
    middle = _size + of_segments
    _, time, label = given
    joined = _entry(Entry, (received, predicted, time, joiner, content[_size:middle], content[middle:], label))
    written = _pack(_BOTH, received, predicted, time, joiner, of_segments, of_prediction) + content[_size:] + label
    return _decision(Decision, (_MATCHED, written, False, joined, None, None, None))


def decide(content: bytes | None, given: Prediction | Label, now: float, ttl: float, joiner: int) -> Decision:
    """What a prediction or a label does."""
    if type(given) is Prediction:
        return decide_prediction(content, given, now, ttl, joiner)
    return decide_label(content, given, now, ttl, joiner)  # type: ignore[arg-type]
