"""
The store in a SQLite file: shared by all processes of a machine, and there after a restart.

Writes are transactions of many operations, made by one thread a process (`background.py`) in WAL mode, so readers and
writers of several processes do not wait for each other longer than one of them takes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from otel_model_metrics.ground_truth.background import TAKEN_SECONDS, LeftLabel, StoreError
from otel_model_metrics.ground_truth.batches import Batch
from otel_model_metrics.ground_truth.cohorts import Cell, over, settled
from otel_model_metrics.ground_truth.entries import (
    REMEMBERED,
    Decision,
    Entry,
    is_known_prediction,
    received_at,
    unpack,
)
from otel_model_metrics.ground_truth.ledger import Scope

_logger = logging.getLogger("otel_model_metrics")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS scopes (
    number INTEGER PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, UNIQUE (model, version)
);
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,
    scope INTEGER NOT NULL, id TEXT NOT NULL, content BLOB NOT NULL, until REAL NOT NULL, UNIQUE (scope, id)
);
CREATE TABLE IF NOT EXISTS cohorts (
    scope INTEGER NOT NULL, width REAL NOT NULL, cohort INTEGER NOT NULL, segments BLOB NOT NULL,
    predicted INTEGER NOT NULL, labelled INTEGER NOT NULL, lost INTEGER NOT NULL, first REAL NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (scope, width, cohort, segments)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inbox (
    scope INTEGER NOT NULL, id TEXT NOT NULL, value TEXT NOT NULL, time REAL NOT NULL,
    taken REAL NOT NULL, -- 0 while it is left, 1 when it was decided, else until when a process is at it
    PRIMARY KEY (scope, id, value)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS due (
    scope INTEGER NOT NULL, moment REAL NOT NULL, id TEXT NOT NULL, PRIMARY KEY (scope, moment, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inbox_left ON inbox (scope) WHERE taken <> 1;
"""
# The same label once more has no effect, unless it is said to be of a later time.
_LEAVE = """
INSERT INTO inbox VALUES (?1, ?2, ?3, ?4, 0) ON CONFLICT DO UPDATE SET
    time = excluded.time, taken = 0 WHERE ?5 AND excluded.time > time
"""
_BUSY_SECONDS = 5.0
_CACHE_KIB = 16_384
_CHECKPOINT_PAGES = 4_000  # of four KiB each
# A sweep looks at so many entries, in as many transactions as keep others waiting for milliseconds only, and goes on
# next time where it ended.
_SWEPT_AT_ONCE = 5000
_SWEPT_IN_ALL = 100_000
_LEFT_FOR = 90 * 86_400.0
# The most values that a statement may have; it was 999 before SQLite 3.32.
_VALUES_AT_ONCE = 5000 if sqlite3.sqlite_version_info >= (3, 32) else 900
_OVERWRITE = "ON CONFLICT (scope, id) DO UPDATE SET content = excluded.content, until = excluded.until"
_ADD = """
ON CONFLICT DO UPDATE SET predicted = predicted + excluded.predicted, labelled = labelled + excluded.labelled,
    lost = lost + excluded.lost, first = min(first, excluded.first)
"""
# What SQLite says of a file that is none of its own, or no longer.
_CORRUPT = ("malformed", "not a database", "corrupt", "unsupported file format")


class SqliteBackend:
    """
    A SQLite file.

    Args:
        path: The file; made, with its folder, if it is not there. A corrupt one is moved aside.
        synchronous: SQLite's setting. With ``normal`` what was written survives the end of the process, however it
            comes; a crash of the machine may take the last transactions with it, but with ``full`` none.

    Raises:
        StoreError: If it cannot be opened.
    """

    batch = 5000
    hangs_after = _BUSY_SECONDS  # other processes may be writing

    def __init__(self, path: Path, synchronous: str = "normal") -> None:
        self._path = path
        self._scopes: dict[tuple[str, str], int] = {}
        self._swept = 0
        with self._faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):  # nobody moves it aside meanwhile
                # Used by one thread at a time, but closed by another one before a fork.
                self._connection = sqlite3.connect(
                    path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
                )
                self._file = _identity(path)
            try:
                run = self._connection.execute
                if run("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                    raise StoreError(f"{path} cannot be written in WAL mode; it needs a local disk")
                run(f"PRAGMA synchronous = {synchronous}")
                # Ids are looked up all over the file; with SQLite's own two megabytes it is read again and again.
                run(f"PRAGMA cache_size = -{_CACHE_KIB}")
                run(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                self._connection.executescript(_SCHEMA)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def transact(self, batches: Sequence[Batch]) -> list[list[Decision]]:
        """Decide and write in one transaction."""
        with self._faults(), self._transaction():
            return [self._written(batch) for batch in batches]

    def _written(self, batch: Batch) -> list[Decision]:
        number = self._scope(batch.scope)
        verdict = batch.if_all_new()
        if verdict is None or not self._inserted(number, verdict.written, batch.scope):
            verdict = batch.decide(self._entries(number, batch.ids))
            self._insert(number, verdict.written, batch.scope, _OVERWRITE)
        width, ends = batch.scope.width, batch.scope.width + 2 * batch.scope.ttl
        self._insert_rows(
            "cohorts",
            [
                (number, width, cohort, segments, *counts, cohort * width + ends)
                for (cohort, segments), counts in verdict.changes.items()
            ],
            _ADD,
        )
        self._insert_rows("due", [(number, moment, id) for id, moment in verdict.due.items()], "ON CONFLICT DO NOTHING")
        return verdict.decisions

    def _entries(self, number: int, ids: Sequence[str]) -> dict[str, bytes]:
        """The entries there are of these ids."""
        found: list[tuple[str, str]] = []
        for begin in range(0, len(ids), _VALUES_AT_ONCE):
            some = ids[begin : begin + _VALUES_AT_ONCE]
            found += self._rows(
                "id, hex(content)",
                f"entries WHERE scope = ? AND id IN ({', '.join('?' * len(some))})",
                (number, *some),
            )
        return {id: bytes.fromhex(content) for id, content in found}

    def _insert(self, number: int, entries: dict[str, bytes], scope: Scope, otherwise: str = "") -> None:
        remembered = scope.ttl * REMEMBERED
        rows = [(id, content, received_at(content) + remembered) for id, content in entries.items()]
        self._insert_rows("entries (scope, id, content, until)", rows, otherwise, f"{number}, ")

    def _inserted(self, number: int, entries: dict[str, bytes], scope: Scope) -> bool:
        """Write entries if none of their ids is there; returns whether it was so."""
        run = self._connection.execute
        run("SAVEPOINT new")
        try:
            self._insert(number, entries, scope)
        except sqlite3.IntegrityError:
            run("ROLLBACK TO new")
            return False
        finally:
            if self._connection.in_transaction:
                run("RELEASE new")
        return True

    # Python gives up its lock at every step of a statement, and gets it back after 5 ms if the service is busy: 200
    # rows a second. So what is done for many rows must be one step, not one for each.

    def _insert_rows(self, table: str, rows: Sequence[tuple[Any, ...]], otherwise: str = "", same: str = "") -> None:
        """Insert rows, which `same` may give values that are the same in all."""
        if not rows:
            return
        places = f"({same}{', '.join('?' * len(rows[0]))})"
        at_once = _VALUES_AT_ONCE // len(rows[0])
        for begin in range(0, len(rows), at_once):
            some = rows[begin : begin + at_once]
            self._connection.execute(
                f"INSERT INTO {table} VALUES {', '.join([places] * len(some))} {otherwise}",
                list(itertools.chain.from_iterable(some)),
            )

    def _rows(self, columns: str, rest: str, values: tuple[Any, ...]) -> Any:
        """All rows of a query, as one. Blobs must be read as ``hex(...)``; of real numbers 15 digits come back."""
        found = self._connection.execute(f"SELECT json_group_array(json_array({columns})) FROM {rest}", values)
        return json.loads(found.fetchone()[0])

    def cells(self, scope: Scope) -> list[Cell]:
        """The cohorts of a model and version."""
        with self._faults():
            return self._cells(self._scope(scope), scope.width)

    def _cells(self, number: int, width: float) -> list[Cell]:
        found = self._rows(
            "cohort, hex(segments), predicted, labelled, lost, first",
            "cohorts WHERE scope = ? AND width = ?",
            (number, width),
        )
        return [Cell(cohort, bytes.fromhex(segments), *counts) for cohort, segments, *counts in found]

    def sweep(self, scope: Scope, now: float) -> tuple[int, int]:
        """Forget what is too old."""
        with self._faults(), self._transaction():
            number, width = self._scope(scope), scope.width
            ended = [cell for cell in self._cells(number, width) if over(cell.cohort, width, scope.ttl, now)]
            if ended:
                self._connection.execute(
                    "DELETE FROM cohorts WHERE scope = ? AND width = ? AND cohort <= ?",
                    (number, width, max(cell.cohort for cell in ended)),
                )
            run = self._connection.execute
            run("DELETE FROM inbox WHERE scope = ? AND time < ?", (number, now - scope.ttl * REMEMBERED))
            # What nobody has a monitor for any more goes, too.
            run("DELETE FROM inbox WHERE time < ?", (now - _LEFT_FOR,))
            run("DELETE FROM cohorts WHERE until < ?", (now,))
            run("DELETE FROM due WHERE moment < ?", (now - _LEFT_FOR,))
        self._sweep_entries(now)
        return settled(ended)

    def _sweep_entries(self, now: float) -> None:
        """Forget what is too old, of whatever model."""
        with self._faults():
            first, last = self._connection.execute("SELECT min(number), max(number) FROM entries").fetchone()
            if last is None:
                return
            begin = max(self._swept, first - 1)
            end = min(begin + _SWEPT_IN_ALL, last)
            for number in range(begin, end, _SWEPT_AT_ONCE):
                with self._transaction():
                    self._connection.execute(
                        "DELETE FROM entries WHERE number > ? AND number <= ? AND until < ?",
                        (number, min(number + _SWEPT_AT_ONCE, end), now),
                    )
            self._swept = end if end < last else 0

    def due(self, scope: Scope, now: float, most: int) -> list[Entry]:
        """Rows that may be judged from now on."""
        with self._faults():
            self._check_place()
            number = self._scope(scope)
            waiting = "due WHERE scope = ? AND moment <= ?"
            if not self._any(waiting, (number, now)):  # as nearly always, and a transaction would keep others waiting
                return []
            with self._transaction():
                rows = self._rows("id", f"(SELECT id FROM {waiting} ORDER BY moment LIMIT ?)", (number, now, most))
                ids = [id for (id,) in rows]
                self._connection.execute(
                    f"DELETE FROM {waiting} AND id IN (SELECT value FROM json_each(?))", (number, now, json.dumps(ids))
                )
                entries = self._entries(number, ids)
            return [unpack(content) for content in entries.values()]

    def inbox(self, scope: Scope, most: int) -> list[LeftLabel]:
        """Labels left for a model and version, which no other process takes meanwhile."""
        with self._faults():
            self._check_place()
            number, now = self._scope(scope), time.time()
            left = "inbox WHERE scope = ? AND taken <> 1 AND taken < ?"
            if not self._any(left, (number, now)):
                return []
            with self._transaction():
                found = self._rows("id, time, value", f"(SELECT * FROM {left} LIMIT ?)", (number, now, most))
                labels = [LeftLabel(*one) for one in found]
                self._mark(number, labels, now + TAKEN_SECONDS)
            return labels

    def taken(self, scope: Scope, labels: Sequence[LeftLabel]) -> None:
        """These have been decided. They stay, to be known when they are left again."""
        with self._faults(), self._transaction():
            self._mark(self._scope(scope), labels, 1.0)

    def _mark(self, number: int, labels: Sequence[LeftLabel], taken: float) -> None:
        self._connection.execute(
            "UPDATE inbox SET taken = ? WHERE scope = ? AND (id, value) IN "
            "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))",
            (taken, number, json.dumps([(left.id, left.value) for left in labels])),
        )

    def _any(self, rest: str, values: tuple[Any, ...]) -> bool:
        return self._connection.execute(f"SELECT 1 FROM {rest} LIMIT 1", values).fetchone() is not None

    def knows(self, scope: Scope, id: str) -> bool:
        """Whether there is a prediction of this id."""
        with self._faults():
            found = self._connection.execute(
                "SELECT content FROM entries WHERE scope = ? AND id = ?", (self._scope(scope), id)
            ).fetchone()
            return found is not None and is_known_prediction(found[0])

    # For the inbox

    def versions(self, model: str) -> list[str]:
        """The versions of a model that this store has heard of, the newest last."""
        with self._faults():
            found = self._connection.execute("SELECT version FROM scopes WHERE model = ? ORDER BY number", (model,))
            return [version for (version,) in found]

    def leave(self, model: str, versions: Sequence[str], labels: Sequence[LeftLabel], timed: Sequence[bool]) -> int:
        """
        Leave labels for a model.

        Args:
            model: Name of the model.
            versions: The versions that may know the id, the last of which gets what none knows.
            labels: The labels.
            timed: Whether the time of each is known; else it is that of leaving it.

        Returns:
            How many were not known before.
        """
        with self._faults(), self._transaction():
            numbers = [self._number(model, version) for version in versions]
            new = 0
            run = self._connection.execute
            for left, known in zip(labels, timed, strict=True):
                knowing = [number for number in numbers if len(numbers) > 1 and self._has(number, left.id)]
                for number in knowing or numbers[-1:]:
                    if run(_LEAVE, (number, left.id, left.value, left.time, known)).rowcount > 0:
                        new += 1
                        run(
                            "UPDATE inbox SET taken = 1 WHERE scope = ? AND id = ? AND value <> ? AND taken <> 1",
                            (number, left.id, left.value),
                        )
            return new

    def _has(self, number: int, id: str) -> bool:
        found = self._connection.execute("SELECT 1 FROM entries WHERE scope = ? AND id = ?", (number, id))
        return found.fetchone() is not None

    # Inside

    def _scope(self, scope: Scope) -> int:
        number = self._scopes.get((scope.model, scope.version))
        if number is None:
            number = self._scopes[scope.model, scope.version] = self._number(scope.model, scope.version)
        return number

    def _number(self, model: str, version: str) -> int:
        run = self._connection.execute
        run("INSERT OR IGNORE INTO scopes (model, version) VALUES (?, ?)", (model, version))
        found = run("SELECT number FROM scopes WHERE model = ? AND version = ?", (model, version))
        return int(found.fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._check_place()
        run = self._connection.execute
        known = dict(self._scopes)
        run("BEGIN IMMEDIATE")
        try:
            yield
            run("COMMIT")
        except BaseException:
            self._scopes = known  # what was added to the table is rolled back, too
            if self._connection.in_transaction:
                run("ROLLBACK")
            raise

    def _check_place(self) -> None:
        """Whoever writes to a file that was deleted or moved is told nothing by SQLite."""
        if _identity(self._path) != self._file:
            raise StoreError(f"{self._path} was deleted or moved")

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """What SQLite and the file system raise, as `StoreError`; a corrupt file is moved aside."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            text = str(error)
            if _says_corrupt(error):
                try:
                    self._move_aside(text)
                except OSError as obstacle:
                    text = f"{text}, and cannot be moved aside: {obstacle}"
            raise StoreError(f"{self._path} cannot be used ({text})") from error

    def _move_aside(self, problem: str) -> None:
        """
        Keep a corrupt file for whoever wants to look at it, and make room for a new one.

        Of several processes that find it corrupt one moves it; the others find a good one in its place.
        """
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self._connection.close()
        with _locked(self._path.parent):
            if not _is_corrupt(self._path):
                return
            aside = self._path.with_name(f"{self._path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")
            _logger.error(
                "%s is corrupt (%s) and was moved to %s. A new one is made; the labels of predictions that were in it "
                "will be unmatched.",
                self._path,
                problem,
                aside,
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that takes its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_corrupt(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok")
    except sqlite3.Error as error:
        return _says_corrupt(error)


def _says_corrupt(error: Exception) -> bool:
    return isinstance(error, sqlite3.DatabaseError) and any(word in str(error).lower() for word in _CORRUPT)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock among the processes of this machine, where the system has one."""
    try:
        import fcntl
    except ImportError:  # Windows refuses to move a file that another process has open
        yield
        return
    number = os.open(folder, os.O_RDONLY)  # the folder itself: a file for it could be deleted by another process
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
