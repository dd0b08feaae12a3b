"""
A store outside this process: what is handed over is queued, and one thread writes it in batches.

Callers append to a queue and go on. The thread takes all there is, has it decided and written in one transaction, and
tells what was decided. When the store is away, what is queued is kept up to a bound and then dropped, counted.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from otel_model_metrics.ground_truth.batches import Batch
from otel_model_metrics.ground_truth.cohorts import Cell
from otel_model_metrics.ground_truth.entries import Decision, Entry, Label, Prediction
from otel_model_metrics.ground_truth.ledger import Counted, Decided, Scope
from otel_model_metrics.ground_truth.outcomes import UNLABELLED, LabelOutcome

_logger = logging.getLogger("otel_model_metrics")

_LONGEST_BACKOFF = 5.0
_SWEEP_EVERY = 10.0
_LOG_INTERVAL = 60.0
LAST_SECONDS = 5.0
_HANDED_AT_ONCE = 500
# A label that was left is decided by the process that took it within this time, or taken again.
TAKEN_SECONDS = 30.0
# While a write takes longer than this, callers do not wait for it; a connection that takes longer than that hangs.
_OVERDUE = 0.05
_AWAY = 1.0
# Seconds between two readings of the cohorts, for each second that one takes.
_READING_SHARE = 50.0
_PATIENCE = 0.5
_Given = TypeVar("_Given", Prediction, Label)
_DROPPED = Decision(LabelOutcome.DROPPED)


class StoreError(Exception):
    """The store cannot be used at the moment; what was to be written is written later."""


class Handed(NamedTuple):
    """
    What was handed over in one call.

    Attributes:
        ledger: For whom.
        given: What: predictions and labels, in their order.
        now: When, seconds since 1970.
        answer: Where the decisions are waited for.
        left: The labels as they were left in the inbox, if they come from there.
    """

    ledger: BackgroundLedger
    given: Sequence[Prediction | Label]
    now: float
    answer: Answer | None = None
    left: Sequence[LeftLabel] = ()


class LeftLabel(NamedTuple):
    """A label that a process without a monitor has left in a store: its value as JSON."""

    id: str
    time: float
    value: str


class Answer:
    """A place for decisions that somebody waits for."""

    __slots__ = ("_lock", "decisions")

    def __init__(self) -> None:
        self.decisions: Any = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def give(self, decisions: Any) -> None:
        """End the waiting."""
        self.decisions = decisions
        self._lock.release()

    def wait(self, seconds: float) -> Any:
        """The decisions, or None if there are none within so many seconds."""
        self._lock.acquire(timeout=max(0.0, seconds))
        return self.decisions


class Backend(Protocol):
    """
    Where entries are kept. Used by one thread only.

    Every method raises `StoreError` when the store is away.

    Attributes:
        batch: Operations written in one transaction. More are faster, fewer keep other processes waiting for less long.
        hangs_after: Seconds after which a write that has not ended is not waited for at the end of the process.
    """

    batch: int
    hangs_after: float

    def transact(self, batches: Sequence[Batch]) -> list[list[Decision]]:
        """
        Decide and write, all batches or none, by the entries as they are at this moment for every process.

        Returns:
            The decisions of each batch.
        """

    def cells(self, scope: Scope) -> list[Cell]:
        """The cohorts of a model and version."""

    def sweep(self, scope: Scope, now: float) -> tuple[int, int]:
        """Forget what is too old; returns predictions without a label and labels without a prediction."""

    def due(self, scope: Scope, now: float, most: int) -> list[Entry]:
        """Rows that have joined, by whichever process, and may be judged from now on. Nobody else gets them."""

    def inbox(self, scope: Scope, most: int) -> list[LeftLabel]:
        """
        Labels that were left for this model and version by a process that has no monitor. Who asks has `TAKEN_SECONDS`
        to decide them; nobody else gets them meanwhile.
        """

    def taken(self, scope: Scope, labels: Sequence[LeftLabel]) -> None:
        """These have been decided."""

    def knows(self, scope: Scope, id: str) -> bool:
        """Whether there is a prediction of this id."""

    def close(self) -> None:
        """End."""


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
        self._inherited: list[Backend | None] = []
        self.renew()
        _all_writers.add(self)

    def renew(self) -> Any:
        """Nothing queued, no thread, no connection: the state of a forked child. Returns what it held."""
        held = vars(self).get("_backend")
        self._process = os.getpid()
        self._queue: deque[Handed] = deque()
        self._queued = 0  # predictions and labels in it and in `_work`
        self._counting = threading.Lock()
        self._questions: deque[tuple[Callable[[Backend], Any], Answer]] = deque()
        self._work: list[Handed] = []
        self._lock = threading.Lock()
        self._using = threading.Lock()  # held while the store is used
        self._busy_since = math.inf
        self._wake = threading.Event()
        self._round = threading.Condition(threading.Lock())
        self._rounds = 0
        self._thread: threading.Thread | None = None
        self._ending = False
        self._flushing = 0  # how many wait for it
        self._sweep_due = 0.0
        self._backend: Backend | None = None
        self._logged = -math.inf
        self._failing = 0
        return held

    def of_another_process(self) -> bool:
        """Whether this is a child that was forked from the process it was made in."""
        return self._process != os.getpid()

    # In callers' threads

    def add(self, handed: Handed) -> bool:
        """Queue what was handed over; returns False, and queues nothing, if there is no room."""
        with self._counting:
            if self._queued + len(handed[1]) > self._most:
                return False
            self._queued += len(handed[1])
        self._queue.append(handed)
        if self._thread is None:
            self.start()
        if handed[3] is not None:
            self._wake.set()
        return True

    def _count(self, more: int) -> None:
        with self._counting:
            self._queued += more

    def ask(self, question: Callable[[Backend], Any], seconds: float) -> Any:
        """The answer of the store, or None if it has none within so many seconds."""
        if self._thread is None:
            self.start()
        answer = Answer()
        self._questions.append((question, answer))
        self._wake.set()
        return answer.wait(seconds)

    def answers_within(self, seconds: float) -> bool:
        """Whether an answer can be expected so soon."""
        if self._failing:
            return False
        # What hangs fails only later. Whoever has time waits for it nevertheless.
        hangs = self._queued > _HANDED_AT_ONCE or time.monotonic() - self._busy_since > _OVERDUE
        return not hangs or seconds > _OVERDUE

    def away(self) -> bool:
        """Whether the store fails or hangs."""
        backend = self._backend
        hangs = _AWAY if backend is None else backend.hangs_after
        return self._failing > 0 or time.monotonic() - self._busy_since > hangs

    def start(self) -> None:
        """Start the thread, in the process that uses the store."""
        with self._lock:
            if self._thread is not None or self._ending:
                return
            thread = threading.Thread(target=self._run, name=f"otel-model-metrics {self.name}", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError as error:  # too many of them, or the interpreter is ending
                self._thread = None
                self._say(str(error))
                return
        parent = sys.modules.get("multiprocessing.process")
        if parent is not None and parent.parent_process() is not None:
            # A child of multiprocessing ends without atexit. Metrics are exported after this, at -100.
            from multiprocessing.util import Finalize

            Finalize(None, self.end, exitpriority=-50)
        else:
            atexit.register(self.end)

    def flush(self, seconds: float, last: bool = False) -> bool:
        """
        Wait until all that is queued now is written and the cohorts are read again; returns whether it was.

        Args:
            seconds: For how long.
            last: Not for so long if the store is away.
        """
        thread = self._thread
        if thread is None:
            return not self._queue
        deadline = time.monotonic() + seconds
        self._sweep_due = 0.0
        with self._round:
            self._flushing += 1
            try:
                first = self._rounds
                while self._rounds < first + 2 or self._queue or self._work or self._failing:
                    now = time.monotonic()
                    if last and self.away():
                        deadline = min(deadline, now + _PATIENCE)
                    if now >= deadline or self._thread is not thread:
                        return False
                    self._wake.set()
                    self._round.wait(min(deadline - now, 0.05))
            finally:
                self._flushing -= 1
        return True

    def end(self, seconds: float = LAST_SECONDS) -> None:
        """
        Write what is queued, for so many seconds at most, and stop; starts again when it is used again.

        What could not be written is counted as dropped.
        """
        thread = self._thread
        if thread is None or self.of_another_process():
            return
        if (self._queue or self._work) and not self.away():
            self.flush(seconds, last=True)
        self._ending = True
        self._wake.set()
        thread.join(min(seconds, _PATIENCE) if self.away() else seconds)
        if thread.is_alive():  # what it is at now is left to it
            self._give_up(self._taken_from_queue())
        atexit.unregister(self.end)

    # In the thread

    def _run(self) -> None:
        while True:
            with self._using:
                self._do_all()
            with self._round:
                self._rounds += 1
                self._round.notify_all()
            if self._ending and (self._failing or not self._queue):
                break
            if self._failing:
                self._wake.clear()
                self._wake.wait(min(_LONGEST_BACKOFF, 0.05 * 2 ** min(self._failing, 10)))
            elif self._wake.wait(self._interval):
                self._wake.clear()
        self._disconnect()
        work, self._work = self._work, []
        self._give_up(work + self._taken_from_queue())
        with self._lock:
            self._thread = None
            self._ending = False

    def _do_all(self) -> None:
        """Whatever there is to do."""
        self._busy_since = time.monotonic()
        try:
            if self._backend is None:
                self._backend = self._connect()
            backend = self._backend
            self._write(backend)  # first, for somebody may be waiting
            self._answer(backend)
            self._read_inboxes(backend)
            self._write(backend)
            self._mature(backend)
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
            work, self._work = self._work, []  # a fault of ours must not come again and again
            self._tell_dropped(work)
            self._disconnect()
        self._busy_since = math.inf

    def _answer(self, backend: Backend) -> None:
        while self._questions:
            question, answer = self._questions.popleft()
            answer.give(question(backend))

    def _write(self, backend: Backend) -> None:
        """Write all that is queued; what could not be written stays in `_work`, and is what is written next."""
        while True:
            if not self._work:
                count = 0
                while count < backend.batch and self._queue:
                    self._work.append(self._queue.popleft())
                    count += len(self._work[-1].given)
                if not count:
                    return
            by_ledger: dict[BackgroundLedger, list[Handed]] = {}
            for handed in self._work:
                by_ledger.setdefault(handed.ledger, []).append(handed)
            batches = [
                Batch(
                    ledger.scope,
                    [one for handed in of_ledger for one in handed.given],
                    [handed.now for handed in of_ledger for _ in handed.given],
                    ledger.sets,
                )
                for ledger, of_ledger in by_ledger.items()
            ]
            self._busy_since = time.monotonic()
            verdicts = backend.transact(batches)
            self._work = []
            self._count(-sum(len(batch.given) for batch in batches))
            for (ledger, of_ledger), batch, decisions in zip(by_ledger.items(), batches, verdicts, strict=True):
                ledger.decided(batch.given, decisions)
                self._answer_all(of_ledger, decisions)
            for ledger, of_ledger in by_ledger.items():
                left = [one for handed in of_ledger for one in handed.left]
                if left:
                    # Not in the same transaction: if it does not come to this, they are duplicates the next time.
                    backend.taken(ledger.scope, left)

    def _answer_all(self, handed: Sequence[Handed], decisions: Sequence[Decision]) -> None:
        begin = 0
        for one in handed:
            end = begin + len(one.given)
            if one.answer is not None:
                one.answer.give(decisions[begin:end])
            begin = end

    def _taken_from_queue(self) -> list[Handed]:
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._queue.popleft())
        return taken

    def _give_up(self, work: Sequence[Handed]) -> None:
        """The end has come, and the store is away."""
        count = sum(len(handed.given) for handed in work)
        if count:
            _logger.error("%s: %d predictions and labels could not be written and are dropped.", self.name, count)
            self._tell_dropped(work)

    def _tell_dropped(self, work: Sequence[Handed]) -> None:
        for handed in work:
            self._count(-len(handed.given))
            handed.ledger.decided(handed.given, [None] * len(handed.given))

    def _read_inboxes(self, backend: Backend) -> None:
        if self._work:
            return
        for ledger in self.ledgers:
            found = backend.inbox(ledger.scope, backend.batch)
            if found:
                labels = [ledger.read_left(left) for left in found]
                usable = [label for label in labels if label is not None]
                self._count(len(usable))
                self._work.append(Handed(ledger, usable, ledger.clock(), None, found))

    def _mature(self, backend: Backend) -> None:
        for ledger in self.ledgers:
            while ledger.scope.maturity:
                entries = backend.due(ledger.scope, ledger.clock(), backend.batch)
                ledger.matured(entries)
                if len(entries) < backend.batch:
                    break

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
            begin = time.monotonic()
            if ledger.is_due(begin) or self._flushing:
                ledger.known_cells = backend.cells(ledger.scope)
                ledger.was_read(begin, time.monotonic())

    def _disconnect(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            try:
                backend.close()
            except Exception:
                pass  # it is broken already

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._logged >= _LOG_INTERVAL:
            self._logged = now
            _logger.warning(
                "%s: %s. %d predictions and labels are kept until it can be used.", self.name, text, self._queued
            )

    # Around a fork

    def before_fork(self) -> bool:
        """
        Close the store, until `after_fork`; returns False if it is being used for too long.

        A child must not even close a SQLite connection of its parent, and cannot if the parent was using it just then.
        """
        closed = self._using.acquire(timeout=_OVERDUE if self.away() else _PATIENCE)
        if closed:
            self._disconnect()
        return closed

    def after_fork(self) -> None:
        """Go on, in the parent."""
        self._using.release()


_all_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
_forking = threading.local()
_never_closed: list[Any] = []


def _before_fork() -> None:
    _forking.closed = [writer for writer in list(_all_writers) if writer.before_fork()]


def _after_fork_in_parent() -> None:
    for writer in _forking.closed:
        writer.after_fork()


def _after_fork_in_child() -> None:
    for writer in list(_all_writers):
        held = writer.renew()
        if held is not None:
            _never_closed.append(held)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _pieces(given: Sequence[_Given]) -> Sequence[Sequence[_Given]]:
    """Parts that one transaction may have in full, and that may be dropped alone."""
    if len(given) <= _HANDED_AT_ONCE:
        return (given,) if given else ()
    return [given[begin : begin + _HANDED_AT_ONCE] for begin in range(0, len(given), _HANDED_AT_ONCE)]


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

    # Seconds between two readings of the cohorts, at least.
    _CELLS_EVERY = 0.5

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
        # Told of rows that had to wait, and may be judged now.
        self.matured: Callable[[Sequence[Entry]], None] = lambda entries: None
        self._writer = writer
        self._decided = decided
        # The segment sets that cohorts tell apart.
        self.sets: dict[bytes, bytes] = {}
        self._next_reading = -math.inf
        writer.ledgers.append(self)

    def predict(self, given: Prediction, now: float) -> None:
        """Take a prediction."""
        self.predict_many((given,), now)

    def predict_many(self, given: Sequence[Prediction], now: float) -> None:
        """Take predictions."""
        for piece in _pieces(given):
            if not self._writer.add(Handed(self, piece, now)):
                self._decided(piece, [None] * len(piece))

    def label(self, given: Label, now: float, wait: float) -> Decision | None:
        """Take a label."""
        return self.label_many((given,), now, wait)[0]

    def label_many(self, given: Sequence[Label], now: float, wait: float) -> Sequence[Decision | None]:
        """Take labels."""
        # Nobody waits for a store that is away.
        waits = wait > 0 and self._writer.answers_within(wait)
        answers: list[tuple[int, Answer | None, Decision | None]] = []
        for piece in _pieces(given):
            answer = Answer() if waits else None
            if self._writer.add(Handed(self, piece, now, answer)):
                answers.append((len(piece), answer, None))
            else:
                self._decided(piece, [None] * len(piece))
                answers.append((len(piece), None, _DROPPED))
        deadline = time.monotonic() + wait
        decisions: list[Decision | None] = []
        for count, answer, otherwise in answers:
            known = None if answer is None else answer.wait(deadline - time.monotonic())
            decisions += [otherwise] * count if known is None else known
        return decisions

    def awaits(self, id: str, wait: float) -> bool:
        """Whether a prediction of this id is there."""
        return bool(self._writer.ask(lambda backend: backend.knows(self.scope, id), wait))

    def cells(self) -> list[Cell]:
        """The cohorts, as of a second ago."""
        return self.known_cells

    def decided(self, given: Sequence[Prediction | Label], decisions: Sequence[Decision | None]) -> None:
        """Pass decisions on."""
        self._decided(given, decisions)

    def is_due(self, moment: float) -> bool:
        """Whether it is time to read the cohorts again: others may have changed them, too."""
        return moment >= self._next_reading

    def was_read(self, begin: float, end: float) -> None:
        """They were; to read many takes long, and shall take no more than a small part of the time."""
        self._next_reading = end + max(self._CELLS_EVERY, _READING_SHARE * (end - begin))

    def flush(self, seconds: float) -> bool:
        """Wait until all that was taken is decided. From then on this process takes labels that are left, too."""
        self._writer.start()
        return self._writer.flush(seconds)

    def reset(self) -> None:
        """Forget what this process holds, in a forked child: the parent writes it."""
        self.known_cells = []
        self._next_reading = -math.inf
        if self._writer.of_another_process():
            self._writer.renew()

    def close(self) -> None:
        """Write what is queued, and end with the last ledger."""
        written = self._writer.flush(LAST_SECONDS, last=True)
        if self in self._writer.ledgers:
            self._writer.ledgers.remove(self)
        if not self._writer.ledgers:
            self._writer.end(LAST_SECONDS if written else _PATIENCE)
