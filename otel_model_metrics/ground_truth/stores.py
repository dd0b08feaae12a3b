"""
Which store a URL names.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from otel_model_metrics.ground_truth.background import BackgroundLedger, Writer
from otel_model_metrics.ground_truth.ledger import Counted, Decided, Ledger, Scope
from otel_model_metrics.ground_truth.memory import MemoryLedger
from otel_model_metrics.ground_truth.redis import RedisBackend, redis_settings
from otel_model_metrics.ground_truth.sqlite import SqliteBackend

# What may stand behind the question mark, with what it is if it does not.
_SETTINGS = {"interval": 0.1, "buffer": 200_000.0, "wait": 0.0005}
_SYNCHRONOUS = ("off", "normal", "full", "extra")
_EXPECTED = 'store must be "memory", "sqlite:///path/to/file.db" or "redis://host:6379/0"'

_writers: dict[str, Writer] = {}
_writers_lock = threading.Lock()


def _renew_lock_in_child() -> None:
    """A thread of the parent may have been opening a store when the child was forked."""
    global _writers_lock
    _writers_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock_in_child)


def open_ledger(store: str, scope: Scope, decided: Decided, counted: Counted, clock: Callable[[], float]) -> Ledger:
    """
    A ledger in the store that is named. Connects later: when it is used first, in the process that uses it.

    Args:
        store: ``"memory"``, ``"sqlite:///path"`` or ``"redis://host:port/db"``. Behind a question mark may stand
            ``interval`` (seconds between two writes, 0.1: what a killed process loses), ``buffer`` (most predictions
            and labels kept while the store is away, 200,000), ``wait`` (seconds that a label waits for its outcome,
            0.0005) and, for SQLite, ``synchronous`` (``normal``; ``full`` survives a crash of the machine, too).
        scope: Whose predictions.
        decided: Told of every decision that is not made at once.
        counted: Told of evictions, and of what is over.
        clock: Seconds since 1970.

    Raises:
        ValueError: If no such store is known, or a setting is none.
        ModuleNotFoundError: If it needs an extra that is not installed; the message names it.
    """
    if store == "memory":
        return MemoryLedger(scope, counted, clock)
    connect, name, settings = connector(store)
    with _writers_lock:
        writer = _writers.get(store)
        if writer is None:  # monitors with the same store share its thread
            writer = _writers[store] = Writer(name, connect, settings["interval"], int(settings["buffer"]))
    return BackgroundLedger(writer, scope, decided, counted, clock, settings["wait"])


def connector(store: str) -> tuple[Callable[[], Any], str, dict[str, float]]:
    """
    What opens a store, its name without a password, and its settings.

    Raises:
        ValueError, ModuleNotFoundError: As `open_ledger`.
    """
    if not isinstance(store, str):
        raise ValueError(f"{_EXPECTED}, got {store!r}.")
    parts = urlsplit(store)
    given = dict(parse_qsl(parts.query))
    settings = {name: _number(name, given.pop(name), default) for name, default in _SETTINGS.items() if name in given}
    settings = {**_SETTINGS, **settings}
    if parts.scheme == "sqlite":
        # Three slashes are a relative path and four an absolute one, as SQLAlchemy has it.
        path = unquote(parts.path)[1:]
        synchronous = given.pop("synchronous", "normal")
        if parts.netloc or not path:
            raise ValueError(
                f"{_EXPECTED}, got {store!r}. An absolute path has four slashes: sqlite:////var/lib/labels.db."
            )
        if synchronous not in _SYNCHRONOUS:
            raise ValueError(f"synchronous must be one of {', '.join(_SYNCHRONOUS)}, got {synchronous!r}.")
        _refuse_unknown(given, (*_SETTINGS, "synchronous"))
        absolute = sqlite_path(store)
        assert absolute is not None
        return lambda: SqliteBackend(absolute, synchronous), f"SQLite store {path}", settings
    if parts.scheme in ("redis", "rediss", "redis+unix", "unix"):
        query = "&".join(f"{name}={value}" for name, value in given.items())
        client = redis_settings(store.partition("?")[0] + (f"?{query}" if query else ""))
        where = parts.hostname or parts.path
        return lambda: RedisBackend(*client), f"Redis store {where}{f':{parts.port}' if parts.port else ''}", settings
    shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # without a password
    raise ValueError(f"{_EXPECTED}, got {shown!r}.")


def sqlite_path(store: str) -> Path | None:
    """The file of a SQLite store; None for another one."""
    parts = urlsplit(store)
    return Path(unquote(parts.path)[1:]).absolute() if parts.scheme == "sqlite" else None


def _number(name: str, text: str, default: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    least = 1.0 if name == "buffer" else 0.0
    if not least <= number < 1e9:
        raise ValueError(
            f"{name} of a store must be a number >= {least:g}, got {text!r}. It is {default:g} by default."
        )
    return number


def _refuse_unknown(given: dict[str, str], known: tuple[str, ...]) -> None:
    for name in given:
        raise ValueError(f"Unknown setting {name!r} of a store. Known: {', '.join(known)}.")
