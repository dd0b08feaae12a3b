"""
The inbox of a store: labels from a process that has no monitor, left for a service that has.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from otel_model_metrics.ground_truth.background import LeftLabel, StoreError
from otel_model_metrics.ground_truth.ids import id_text
from otel_model_metrics.ground_truth.stores import connector, sqlite_path


class Inbox:
    """
    Labels left for models whose monitors are elsewhere.

    Args:
        backend: The store.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __enter__(self) -> Inbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.close()

    def deposit(
        self,
        model: str,
        version: str | None,
        ids: Sequence[Any],
        labels: Sequence[Any],
        times: Sequence[float | None] | None = None,
    ) -> Counter[str]:
        """
        Leave labels. The same label of the same id has no effect when it is left again, unless its time is later.

        Args:
            model: Name of the model.
            version: Its version. None leaves each label to the version that has made the prediction; where none has, to
                the one that the store met last.
            ids, labels: One entry a label; labels are what JSON can say.
            times: When each truth was known, seconds since 1970; now where there is none.

        Returns:
            How many were ``handed_over``, ``known`` from before, and ``rejected`` for their id.

        Raises:
            LookupError: If no version is given and the store has not met the model.
            OSError: If the store cannot be used.
        """
        now = time.time()
        left = []
        timed = []
        counts: Counter[str] = Counter()
        for index, (id, label) in enumerate(zip(ids, labels, strict=True)):
            text = id_text(id)
            if text is None:
                counts["rejected"] += 1
                continue
            moment = None if times is None else times[index]
            timed.append(moment is not None)
            left.append(LeftLabel(text, now if moment is None else float(moment), json.dumps(label)))
        try:
            versions = self._backend.versions(model) if version is None else [version]
            if not versions:
                raise LookupError(
                    f"The store has not met a model {model!r} yet. Is it the right store? Name the model's version, "
                    "or let its service record something first."
                )
            new = self._backend.leave(model, versions, left, timed) if left else 0
        except StoreError as error:
            raise OSError(str(error)) from error
        # One label may be left for several versions, so there may be more new ones than labels.
        counts["handed_over"] += min(new, len(left))
        counts["known"] += len(left) - counts["handed_over"]
        return counts


def open_inbox(store: str) -> Inbox:
    """
    The inbox of a store.

    Args:
        store: ``"sqlite:///path"`` or ``"redis://host:port/db"``.

    Raises:
        ValueError: For any other URL.
        ModuleNotFoundError: If it needs an extra that is not installed.
        OSError: If it cannot be reached.
    """
    if store == "memory":
        raise ValueError("A store in memory cannot be reached from another process; use sqlite:/// or redis://.")
    connect, name, _ = connector(store)
    path = sqlite_path(store)
    if path is not None and not path.exists():
        raise OSError(f"There is no {name} yet. Is the path right? The service makes it when it is used first.")
    try:
        return Inbox(connect())
    except StoreError as error:
        raise OSError(str(error)) from error
