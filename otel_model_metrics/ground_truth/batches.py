"""
Many operations of one model and version, decided together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from otel_model_metrics.ground_truth.cohorts import Changes, Changing
from otel_model_metrics.ground_truth.entries import (
    NEW,
    Decision,
    Label,
    Prediction,
    decide,
    joined_by,
    pack_prediction,
)
from otel_model_metrics.ground_truth.ledger import Scope
from otel_model_metrics.ground_truth.outcomes import LabelOutcome


class Verdict(NamedTuple):
    """
    What a batch comes to.

    Attributes:
        decisions: One for each operation.
        written: The entries to write, by id.
        changes: What it changes in the cohorts.
        due: When each row that has joined and may not be judged yet may be, by id.
    """

    decisions: list[Decision]
    written: dict[str, bytes]
    changes: Changes
    due: dict[str, float]


class Batch:
    """
    Operations of one model and version, in their order.

    Args:
        scope: The model and version.
        given: The operations.
        moments: When each was handed over, seconds since 1970.
        sets: The segment sets that are told apart so far.
    """

    def __init__(
        self,
        scope: Scope,
        given: Sequence[Prediction | Label],
        moments: Sequence[float],
        sets: dict[bytes, bytes] | None = None,
    ) -> None:
        self.scope = scope
        self._sets: dict[bytes, bytes] = {} if sets is None else sets
        self.given = given
        self.ids = [one[0] for one in given]
        self._moments = moments

    @property
    def latest(self) -> float:
        """When the last of them was handed over."""
        return self._moments[-1] if self._moments else 0.0

    def if_all_new(self) -> Verdict | None:
        """
        What the batch comes to if none of its ids is known, as is so for most predictions; None if it has labels, too.
        """
        if set(map(type, self.given)) != {Prediction}:
            return None
        given: Any = self.given
        written = {
            id: pack_prediction(now, time, segments, prediction)
            for (id, time, segments, prediction, _), now in zip(given, self._moments, strict=True)
        }
        if len(written) < len(given):
            return None
        changing = Changing(self.scope.width, self.scope.ttl, self._sets)
        for (_, time, segments, _, _), now in zip(given, self._moments, strict=True):
            changing.predicted(now, segments, time)
        return Verdict([NEW] * len(given), written, changing.cells, {})

    def decide(self, entries: Mapping[str, bytes | None]) -> Verdict:
        """
        What the batch comes to.

        Args:
            entries: The entries there are of its ids.
        """
        ttl, joiner = self.scope.ttl, self.scope.joiner
        changing = Changing(self.scope.width, ttl, self._sets)
        decisions: list[Decision] = []
        written: dict[str, bytes] = {}
        due: dict[str, float] = {}
        for given, now in zip(self.given, self._moments, strict=True):
            id = given[0]
            content = written.get(id) or entries.get(id)
            if type(given) is Prediction:
                if content is None:  # so most of them, and those below: the rest is left to the rules
                    _, time, segments, prediction, _ = given
                    written[id] = pack_prediction(now, time, segments, prediction)
                    changing.predicted(now, segments, time)
                    decisions.append(NEW)
                    continue
            elif content is not None:
                joined: Any = joined_by(content, given, now - ttl, joiner)  # type: ignore[arg-type]
                if joined is not None:
                    _, written[id], _, (received, _, _, _, segments, _, _), _, _, _ = joined
                    changing.labelled(received, segments, now)
                    decisions.append(self._due(id, joined, now, due) if self.scope.maturity else joined)
                    continue
            decision = decide(content, given, now, ttl, joiner)
            decisions.append(self._due(id, decision, now, due) if self.scope.maturity else decision)
            if decision.content is not None:
                written[id] = decision.content
                changing.decided(given, decision, now)
        return Verdict(decisions, written, changing.cells, due)

    def _due(self, id: str, decision: Decision, now: float, due: dict[str, float]) -> Decision:
        """The decision with its `due`, which is noted, if the row has to wait."""
        entry = decision.entry
        if decision.outcome is not LabelOutcome.MATCHED or entry is None:
            return decision
        moment = self.scope.counts_from(entry.predicted, entry.labelled)
        if moment <= now:
            return decision
        due[id] = moment
        return decision._replace(due=moment)
