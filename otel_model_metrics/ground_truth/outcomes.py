"""
What becomes of a label.
"""

from __future__ import annotations

import enum


class LabelOutcome(str, enum.Enum):
    """
    What became of a label. The values are those of the attribute ``ml.label.outcome``.

    Attributes:
        MATCHED: It joined its prediction, which is a row now.
        PENDING: It came before its prediction. It is kept, and joins when the prediction comes.
        DUPLICATE: The same label was there before: no effect.
        CORRECTED: Another label was there before, and is replaced.
        EXPIRED: Its prediction is older than the store's ``ttl``.
        UNMATCHED: There is no prediction for it: it is itself older than ``ttl``, or was kept for that long.
        REJECTED: It cannot be used; counted in ``ml.model.rejected`` by reason, too.
        QUEUED: A store outside this process has not decided yet. It will, and is counted under what it decides.
        DROPPED: A store outside this process has been away for so long that no more can be kept for it.
    """

    MATCHED = "matched"
    PENDING = "pending"
    DUPLICATE = "duplicate"
    CORRECTED = "corrected"
    EXPIRED = "expired"
    UNMATCHED = "unmatched"
    REJECTED = "rejected"
    QUEUED = "queued"
    DROPPED = "dropped"

    def __str__(self) -> str:
        return self.value


# What can become of a prediction instead: it is forgotten for lack of room, or its time is over without a label.
EVICTED = "evicted"
UNLABELLED = "unlabelled"
# ... or it never reached its store, and its label will be PENDING and then UNMATCHED.
LOST_PREDICTION = "prediction_dropped"

# The values of ml.label.outcome. QUEUED is no end.
COUNTED = (
    *(outcome.value for outcome in LabelOutcome if outcome is not LabelOutcome.QUEUED),
    EVICTED,
    UNLABELLED,
    LOST_PREDICTION,
)
