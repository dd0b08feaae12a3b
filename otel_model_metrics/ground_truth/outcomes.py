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


# What can become of a prediction that gets no label.
EVICTED = "evicted"
UNLABELLED = "unlabelled"
LOST_PREDICTION = "prediction_dropped"
PREDICTION_OUTCOMES = {
    EVICTED: "A prediction was forgotten before its label came, for lack of room in memory (`capacity=`).",
    UNLABELLED: "A prediction waited for `ttl=`, and no label came.",
    LOST_PREDICTION: "A prediction never reached its store, which had been away for too long.",
}

# The values of ml.label.outcome. QUEUED is no end.
COUNTED = (
    *(outcome.value for outcome in LabelOutcome if outcome is not LabelOutcome.QUEUED),
    *PREDICTION_OUTCOMES,
)
