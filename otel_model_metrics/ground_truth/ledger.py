"""
What a monitor asks of a store: one ledger for each model and version.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from otel_model_metrics.ground_truth.cohorts import Cell, width_of
from otel_model_metrics.ground_truth.entries import Decision, Label, Prediction


@dataclass(frozen=True)
class Scope:
    """
    Whose predictions a ledger keeps, and for how long.

    Attributes:
        model, version: Name and version of the model.
        ttl: Seconds that a prediction waits for its label, > 0.
        horizon: Seconds that coverage looks back; None for ttl.
        capacity: Most predictions kept, where the store is bounded by number.
        maturity: Seconds that a prediction must be old to be asked for its label.
        by_prediction: Whether a row counts from the time of its prediction, rather than of its label.
        salt: A random number.
    """

    model: str
    version: str
    ttl: float
    horizon: float | None
    capacity: int
    maturity: float = 0.0
    by_prediction: bool = False
    salt: int = field(default_factory=lambda: random.SystemRandom().getrandbits(32))

    @property
    def joiner(self) -> int:
        """What tells this monitor of this process from all others that share a store; another one in a forked child."""
        return self.salt ^ os.getpid() & 0xFFFFFFFF

    def counts_from(self, predicted: float, labelled: float) -> float:
        """When a row may be judged."""
        old_enough = predicted + self.maturity
        return old_enough if self.by_prediction else max(old_enough, labelled)

    @cached_property
    def width(self) -> float:
        """Seconds of a cohort."""
        return width_of(self.ttl)


# Told of decisions that are not immediate once they hold, from the thread that made them; with None for the decision,
# of what was given up. And told of counts by outcome that belong to nothing that was given: evictions and the like.
Decided = Callable[[Sequence[Prediction | Label], Sequence[Decision | None]], None]
Counted = Callable[[str, int], None]


class Ledger(Protocol):
    """
    Predictions of one model and version, waiting for their labels.

    Attributes:
        immediate: Whether decisions are made, and returned, at once; else they are told to `Decided`, later.
        portable: Whether others read it too, so that segments must be packed as text.
        answer_within: Seconds that a label waits for a decision by default; 0.0 if it is made at once.
    """

    immediate: bool
    portable: bool
    answer_within: float

    def predict(self, given: Prediction, now: float) -> Decision | None:
        """Take a prediction; returns the decision if it is immediate. Never waits for disk or network, never raises."""

    def predict_many(self, given: Sequence[Prediction], now: float) -> Sequence[Decision] | None:
        """Take predictions; as `predict` for each."""

    def label(self, given: Label, now: float, wait: float) -> Decision | None:
        """Take a label; None if there is no decision within so many seconds, which then is made later."""

    def label_many(self, given: Sequence[Label], now: float, wait: float) -> Sequence[Decision | None]:
        """Take labels; as `label` for each, with one wait for all."""

    def awaits(self, id: str, wait: float) -> bool:
        """Whether a prediction of this id is there. May read from disk or network, for so many seconds at most."""

    def cells(self) -> list[Cell]:
        """The cohorts; for a store outside this process as of some moments ago."""

    def flush(self, seconds: float) -> bool:
        """Wait until all that was taken is decided and `cells` knows of it; returns whether that was in time."""

    def reset(self) -> None:
        """Forget what this process holds, in a forked child."""

    def close(self) -> None:
        """Write what is not written yet, and end."""
