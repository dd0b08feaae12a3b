"""
A store outside this process: what is handed over is queued, and one thread writes it in batches.

Callers append to a queue and go on. The thread takes all there is, has it decided and written in one transaction, and
tells what was decided. When the store is away, what is queued is kept up to a bound and then dropped, counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from otel_model_metrics.ground_truth.cohorts import Cell, Changes, Changing
from otel_model_metrics.ground_truth.entries import Decision, Label, Prediction, decide
from otel_model_metrics.ground_truth.ledger import Counted, Decided, Scope
from otel_model_metrics.ground_truth.outcomes import UNLABELLED, LabelOutcome

_logger = logging.getLogger("otel_model_metrics")

_LONGEST_BACKOFF = 5.0
_SWEEP_EVERY = 10.0
_LOG_INTERVAL = 60.0
LAST_SECONDS = 5.0
_HANDED_AT_ONCE = 1000
_DROPPED = Decision(LabelOutcome.DROPPED)


class StoreError(Exception):
    """The store cannot be used at the moment; what was to be written is written later."""


class Operation(NamedTuple):
    """
    What was handed over.

    Attributes:
        ledger: For whom.
        given: What.
        now: When.
        answer: Where the decision is waited for, and at which place in it.
        left: The label as it was left in the inbox, if it comes from there.
    """

    ledger: BackgroundLedger
    given: Prediction | Label
    now: float
    answer: tuple[Answer, int] | None = None
    left: LeftLabel | None = None


class LeftLabel(NamedTuple):
    """A label that a process without a monitor has left in a store: its value as JSON."""

    id: str
    time: float
    value: str


class Answer:
    """A place for decisions that somebody waits for."""

    __slots__ = ("_decisions", "_left", "_lock")

    def __init__(self, count: int) -> None:
        self._decisions: list[Any] = [None] * count
        self._left = count
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self, place: int, decision: Any) -> None:
        """Give one decision; the last one ends the waiting."""
        self._decisions[place] = decision
        self._left -= 1
        if not self._left:
            self._lock.release()

    def wait(self, seconds: float) -> list[Any]:
        """The decisions made within so many seconds."""
        self._lock.acquire(timeout=max(0.0, seconds))
        return list(self._decisions)


class Backend(Protocol):
    """
    Where entries are kept. Used by one thread only.

    Every method raises `StoreError` when the store is away.

    Attributes:
        batch: Operations written in one transaction. More are faster, fewer keep other processes waiting for less long.
    """

    batch: int

    def transact(self, work: Sequence[Operation], decide_all: DecideAll) -> list[Decision]:
        """
        Decide and write, all or nothing: `decide_all` is given the entries there are, as they are at this moment for
        every process, and says what to write.
        """

    def cells(self, scope: Scope) -> list[Cell]:
        """The cohorts of a model and version."""

    def sweep(self, scope: Scope, now: float) -> tuple[int, int]:
        """Forget what is too old; returns predictions without a label and labels without a prediction."""

    def inbox(self, scope: Scope, most: int) -> list[LeftLabel]:
        """Labels that were left for this model and version by a process that has no monitor."""

    def taken(self, scope: Scope, labels: Sequence[LeftLabel]) -> None:
        """These have been decided."""

    def knows(self, scope: Scope, id: str) -> bool:
        """Whether there is a prediction of this id."""

    def close(self) -> None:
        """End."""


Place = tuple["BackgroundLedger", str]
# From the entries there are to the decisions, the entries to write, and what changes in each ledger's cohorts.
DecideAll = Callable[
    [dict[Place, bytes | None]], tuple[list[Decision], dict[Place, bytes], dict["BackgroundLedger", Changes]]
]


def decider(work: Sequence[Operation]) -> DecideAll:
    """What decides these operations, in their order."""

    def decide_all(
        entries: dict[Place, bytes | None],
    ) -> tuple[list[Decision], dict[Place, bytes], dict[BackgroundLedger, Changes]]:
        decisions: list[Decision] = []
        written: dict[Place, bytes] = {}
        changing: dict[BackgroundLedger, Changing] = {}
        for ledger, given, now, _, _ in work:
            place = ledger, given.id
            content = written.get(place)
            decision = decide(entries.get(place) if content is None else content, given, now, ledger.scope.ttl)
            decisions.append(decision)
            if decision.content is not None:
                written[place] = decision.content
                changes = changing.get(ledger)
                if changes is None:
                    changes = changing[ledger] = Changing(ledger.scope.width, ledger.scope.ttl)
                changes.decided(given, decision, now)
        return decisions, written, {ledger: changes.cells for ledger, changes in changing.items()}

    return decide_all


class Writer:
    """
    The queue and the thread of one store.

    Args:
        name: What log lines call the store; no password in it.
        connect: Opens it; called in the thread, and again after a fault.
        interval: Seconds between two writes: what was handed over since the last one is lost if the process is killed.
        most: Operations kept while the store is away.
    """

    def __init__(self, name: str, connect: Callable[[], Backend], interval: float, most: int) -> None:
        self.name = name
        self._connect = connect
        self._interval = interval
        self._most = most
        self.ledgers: list[BackgroundLedger] = []
        self.renew()

    def renew(self) -> None:
        """Nothing queued, no thread, no connection: the state of a forked child."""
        self._process = os.getpid()
        self._queue: deque[Operation] = deque()
        self._questions: deque[tuple[Callable[[Backend], Any], Answer]] = deque()
        self._work: list[Operation] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._round = threading.Condition(threading.Lock())
        self._rounds = 0
        self._thread: threading.Thread | None = None
        self._ending = False
        self._sweep_due = 0.0
        self._backend: Backend | None = None
        self._logged: tuple[str, float] = ("", 0.0)
        self._failing = 0

    def of_another_process(self) -> bool:
        """Whether this is a child that was forked from the process it was made in."""
        return self._process != os.getpid()

    # In callers' threads

    def add(self, operations: Sequence[Operation], urgent: bool) -> bool:
        """Queue operations; returns False, and queues none, if there is no room."""
        if len(self._queue) + len(self._work) + len(operations) > self._most:
            return False
        self._queue.extend(operations)
        if self._thread is None:
            self.start()
        if urgent:
            self._wake.set()
        return True

    def ask(self, question: Callable[[Backend], Any], seconds: float = 1.0) -> Any:
        """The answer of the store, or None if it has none within so many seconds."""
        if self._thread is None:
            self.start()
        answer = Answer(1)
        self._questions.append((question, answer))
        self._wake.set()
        return answer.wait(seconds)[0]

    def healthy(self) -> bool:
        """Whether the store did not fail lately."""
        return not self._failing

    def start(self) -> None:
        """Start the thread, in the process that uses the store."""
        with self._lock:
            if self._thread is not None or self._ending:
                return
            self._thread = threading.Thread(target=self._run, name=f"otel-model-metrics {self.name}", daemon=True)
            self._thread.start()
        parent = sys.modules.get("multiprocessing.process")
        if parent is not None and parent.parent_process() is not None:
            # A child of multiprocessing ends without atexit. Metrics are exported after this, at -100.
            from multiprocessing.util import Finalize

            Finalize(None, self.end, exitpriority=-50)
        else:
            atexit.register(self.end)

    def flush(self, seconds: float) -> bool:
        """Wait until all that is queued now is written and the cohorts are read again; returns whether it was."""
        if self._thread is None:
            return not self._queue
        deadline = time.monotonic() + seconds
        self._sweep_due = 0.0
        with self._round:
            first = self._rounds
            while self._rounds < first + 2 or self._queue or self._work or self._failing:
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    return False
                self._wake.set()
                self._round.wait(min(left, 0.05))
        return True

    def end(self, seconds: float = LAST_SECONDS) -> None:
        """Write what is queued, for so many seconds at most, and stop; starts again when it is used again."""
        thread = self._thread
        if thread is None or self.of_another_process():
            return
        if self._queue or self._work:
            self.flush(seconds if self.healthy() else min(seconds, 0.5))
        self._ending = True
        self._wake.set()
        thread.join(seconds)
        self._thread = None
        self._ending = False
        atexit.unregister(self.end)

    # In the thread

    def _run(self) -> None:
        while not self._ending:
            try:
                if self._backend is None:
                    self._backend = self._connect()
                backend = self._backend
                self._answer(backend)
                self._read_inboxes(backend)
                self._write(backend)
                self._sweep(backend)
                self._refresh(backend)
                self._failing = 0
            except StoreError as error:
                self._failing += 1
                self._say(str(error))
                self._disconnect()
            except Exception:
                self._failing += 1
                _logger.exception("Internal error of otel_model_metrics with %s", self.name)
                self._give_up()
                self._disconnect()
            with self._round:
                self._rounds += 1
                self._round.notify_all()
            if self._failing:
                self._wake.clear()
                self._wake.wait(min(_LONGEST_BACKOFF, 0.05 * 2 ** min(self._failing, 10)))
            elif self._wake.wait(self._interval):
                self._wake.clear()
        self._disconnect()

    def _answer(self, backend: Backend) -> None:
        while self._questions:
            question, answer = self._questions.popleft()
            answer.set(0, question(backend))

    def _write(self, backend: Backend) -> None:
        """Write all that is queued; what could not be written stays in `_work`, and is what is written next."""
        work = self._work
        while True:
            if not work:
                while len(work) < backend.batch and self._queue:
                    work.append(self._queue.popleft())
                if not work:
                    return
            decisions = backend.transact(work, decider(work))
            done, self._work = work, []
            work = self._work
            left: dict[BackgroundLedger, list[LeftLabel]] = {}
            for operation, decision in zip(done, decisions, strict=True):
                operation.ledger.decided(operation.given, decision)
                if operation.answer is not None:
                    answer, place = operation.answer
                    answer.set(place, decision)
                if operation.left is not None:
                    left.setdefault(operation.ledger, []).append(operation.left)
            for ledger, labels in left.items():
                # Not in the same transaction: if it does not come to this, they are duplicates the next time.
                backend.taken(ledger.scope, labels)

    def _give_up(self) -> None:
        """A fault of ours must not come again and again."""
        work, self._work = self._work, []
        for operation in work:
            operation.ledger.decided(operation.given, None)

    def _read_inboxes(self, backend: Backend) -> None:
        if self._work:
            return
        for ledger in self.ledgers:
            unusable = []
            for left in backend.inbox(ledger.scope, backend.batch):
                label = ledger.read_left(left)
                if label is None:
                    unusable.append(left)
                else:
                    self._work.append(Operation(ledger, label, ledger.clock(), None, left))
            if unusable:
                backend.taken(ledger.scope, unusable)

    def _sweep(self, backend: Backend) -> None:
        if time.monotonic() < self._sweep_due:
            return
        self._sweep_due = time.monotonic() + _SWEEP_EVERY
        for ledger in self.ledgers:
            unlabelled, unmatched = backend.sweep(ledger.scope, ledger.clock())
            if unlabelled:
                ledger.counted(UNLABELLED, unlabelled)
            if unmatched:
                ledger.counted(LabelOutcome.UNMATCHED.value, unmatched)

    def _refresh(self, backend: Backend) -> None:
        for ledger in self.ledgers:
            if ledger.changed(time.monotonic()):
                ledger.known_cells = backend.cells(ledger.scope)

    def _disconnect(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            try:
                backend.close()
            except Exception:
                pass  # it is broken already

    def _say(self, text: str) -> None:
        now = time.monotonic()
        said, when = self._logged
        if text != said or now - when >= _LOG_INTERVAL:
            self._logged = text, now
            kept = len(self._queue) + len(self._work)
            _logger.warning("%s: %s. %d predictions and labels are kept until it can be used.", self.name, text, kept)


class BackgroundLedger:
    """
    One model and version in a store outside this process.

    Args:
        writer: The store.
        scope: Whose predictions.
        decided: Told of every decision.
        counted: Told of what is over.
        clock: Seconds since 1970.
        answer_within: Seconds that a label waits for its decision by default.
    """

    immediate = False
    portable = True

    _CELLS_EVERY = 1.0

    def __init__(
        self,
        writer: Writer,
        scope: Scope,
        decided: Decided,
        counted: Counted,
        clock: Callable[[], float],
        answer_within: float,
    ) -> None:
        self.scope = scope
        self.counted = counted
        self.clock = clock
        self.answer_within = answer_within
        self.known_cells: list[Cell] = []
        # From a label that was left to one of this model, or None if it is refused; set by whoever knows the task.
        self.read_left: Callable[[LeftLabel], Label | None] = lambda left: None
        self._writer = writer
        self._decided = decided
        self._changed = True
        self._refreshed = -self._CELLS_EVERY
        writer.ledgers.append(self)

    def predict(self, given: Prediction, now: float) -> None:
        """Take a prediction."""
        if not self._writer.add((Operation(self, given, now),), urgent=False):
            self._decided(given, None)

    def label(self, given: Label, now: float, wait: float) -> Decision | None:
        """Take a label."""
        return self.label_many([given], now, wait)[0]

    def label_many(self, given: list[Label], now: float, wait: float) -> list[Decision | None]:
        """Take labels."""
        if not given:
            return []
        # Nobody waits for a store that is away.
        answer = Answer(len(given)) if wait > 0 and self._writer.healthy() else None
        dropped: set[int] = set()
        for begin in range(0, len(given), _HANDED_AT_ONCE):
            operations = [
                Operation(self, one, now, None if answer is None else (answer, place))
                for place, one in enumerate(given[begin : begin + _HANDED_AT_ONCE], start=begin)
            ]
            if not self._writer.add(operations, urgent=answer is not None):
                for place, operation in enumerate(operations, start=begin):
                    dropped.add(place)
                    self._decided(operation.given, None)
                    if answer is not None:
                        answer.set(place, _DROPPED)
        decisions = [None] * len(given) if answer is None else answer.wait(wait)
        return [_DROPPED if place in dropped else decision for place, decision in enumerate(decisions)]

    def awaits(self, id: str) -> bool:
        """Whether a prediction of this id is there."""
        return bool(self._writer.ask(lambda backend: backend.knows(self.scope, id)))

    def cells(self) -> list[Cell]:
        """The cohorts, as of a second ago."""
        return self.known_cells

    def decided(self, given: Prediction | Label, decision: Decision | None) -> None:
        """Pass a decision on."""
        self._changed = True
        self._decided(given, decision)

    def changed(self, moment: float) -> bool:
        """Whether it is time to read the cohorts again: others may have changed them, too."""
        if self._changed or moment - self._refreshed >= self._CELLS_EVERY:
            self._changed, self._refreshed = False, moment
            return True
        return False

    def flush(self, seconds: float) -> bool:
        """Wait until all that was taken is decided."""
        self._changed = True
        return self._writer.flush(seconds)

    def reset(self) -> None:
        """Forget what this process holds, in a forked child: the parent writes it."""
        self.known_cells = []
        self._changed = True
        if self._writer.of_another_process():
            self._writer.renew()

    def close(self) -> None:
        """Write what is queued, and end with the last ledger."""
        self._writer.flush(LAST_SECONDS if self._writer.healthy() else 0.5)
        if self in self._writer.ledgers:
            self._writer.ledgers.remove(self)
        if not self._writer.ledgers:
            self._writer.end()
