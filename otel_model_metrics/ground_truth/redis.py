"""
The store in Redis: predictions from one machine, labels at another.

Entries are read with one MGET and decided here; a script then writes all of them, but only if none has been changed by
another process in between. So the rules of joining are those of `entries.py`, and a label joins exactly once. Redis
itself forgets what is too old.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from otel_model_metrics.ground_truth.background import TAKEN_SECONDS, LeftLabel, StoreError
from otel_model_metrics.ground_truth.batches import Batch, Verdict
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

# A server that hangs is away: its answers come within milliseconds.
_TIMEOUT = 2.0
_MOST_CONFLICTS = 20
_PROOF_MILLIS = 600_000

# KEYS: entries. ARGV: proof, its milliseconds; for each entry what it was, what it will be, for how many milliseconds;
# then key, field, kind and number of each count, and for how many milliseconds; a row that is due later comes like one.
_WRITE = """
local entries = #KEYS
if entries > 0 then
  local now = redis.call('MGET', unpack(KEYS))
  for i = 1, entries do
    if (now[i] or '') ~= ARGV[3 * i] then return 0 end
  end
end
for i = 1, entries do
  redis.call('SET', KEYS[i], ARGV[3 * i + 1], 'PX', ARGV[3 * i + 2])
end
local at = 3 * entries + 3
while at < #ARGV do
  if ARGV[at + 2] == 'due' then
    redis.call('ZADD', ARGV[at], ARGV[at + 3], ARGV[at + 1])
  elseif ARGV[at + 2] == 'first' then
    local first = redis.call('HGET', ARGV[at], ARGV[at + 1] .. 'f')
    if not first or tonumber(ARGV[at + 3]) < tonumber(first) then
      redis.call('HSET', ARGV[at], ARGV[at + 1] .. 'f', ARGV[at + 3])
    end
  else
    redis.call('HINCRBY', ARGV[at], ARGV[at + 1] .. ARGV[at + 2], ARGV[at + 3])
  end
  redis.call('PEXPIRE', ARGV[at], ARGV[at + 4])
  at = at + 5
end
redis.call('SET', ARGV[1], '1', 'PX', ARGV[2])
return 1
"""
# Takes fields out of a hash: of two processes only one gets each.
_TAKE = """
local found = {}
for i, field in ipairs(ARGV) do
  found[i] = redis.call('HGET', KEYS[1], field) or ''
  redis.call('HDEL', KEYS[1], field)
end
return found
"""
# KEYS: inbox, then each label. ARGV: milliseconds, then id, time, whether that is known, and what goes into the inbox.
# The same label once more has no effect, unless it is said to be of a later time.
_LEAVE = """
local new = 0
for i = 2, #KEYS do
  local at = 4 * i - 6
  local before = redis.call('GET', KEYS[i])
  if not before or (ARGV[at + 2] == '1' and tonumber(ARGV[at + 1]) > tonumber(before)) then
    redis.call('SET', KEYS[i], ARGV[at + 1], 'PX', ARGV[1])
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 3])
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    new = new + 1
  end
end
return new
"""
_TAKEN = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
_LEFT_FOR = 30 * 86_400_000
_LEFT_AT_ONCE = 500


@dataclass
class Attempt:
    """
    Writes of which it is not known whether they arrived: the connection broke before the answer came.

    Attributes:
        ids: Of what was to be written, by batch.
        decisions: What had been decided each time it was tried, likewise, by a key that is there if it arrived. At most
            one of them does, for each is refused if an entry is not what it was.
    """

    ids: list[list[str]] = field(default_factory=list)
    decisions: dict[str, list[list[Decision]]] = field(default_factory=dict)


def redis_settings(url: str) -> tuple[Callable[[], Any], Attempt]:
    """
    What makes a client, and the memory of attempts that outlives its connection.

    Raises:
        ModuleNotFoundError: If the extra is not installed.
        ValueError: If the URL is none.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'A store in Redis needs the extra redis: pip install "otel-model-metrics[redis]"', name="redis"
        ) from error

    def make() -> Any:
        # Retries are made above: the thread of the store waits for nothing else.
        return redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, retry=Retry(NoBackoff(), 0)
        )

    try:
        make().connection_pool.make_connection()  # connects to nothing
    except TypeError as error:
        raise ValueError(f"A setting in the URL of the store is not known to redis-py: {error}.") from error
    return make, Attempt()


class RedisBackend:
    """
    A Redis database. Keys begin with ``omm:``.

    Args:
        make: Makes a client.
        attempt: Memory of the last write.

    Raises:
        StoreError: If it cannot be reached.
    """

    batch = 500
    hangs_after = _TIMEOUT / 2

    def __init__(self, make: Callable[[], Any], attempt: Attempt) -> None:
        self._attempt = attempt
        self._known: set[tuple[str, str]] = set()
        with self._faults():
            self._client = make()
            self._client.ping()
            self._write, self._take, self._leave, self._taken = (
                self._client.register_script(script) for script in (_WRITE, _TAKE, _LEAVE, _TAKEN)
            )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def transact(self, batches: Sequence[Batch]) -> list[list[Decision]]:
        """Decide and write, all or nothing."""
        with self._faults():
            attempt = self._attempt
            ids = [batch.ids for batch in batches]
            if attempt.ids != ids:
                attempt.ids, attempt.decisions = ids, {}
            for batch in batches:
                self._note(batch.scope)
            keys = [_entry_key(batch.scope, id) for batch in batches for id in batch.ids]
            expected_new = all(batch.if_all_new() is not None for batch in batches)
            for _ in range(_MOST_CONFLICTS):
                found = [None] * len(keys) if expected_new else self._client.mget(keys)
                expected_new = False  # if that was wrong, they are looked at
                # After the entries are read: a write that arrives still later makes the script refuse this one.
                for proof, decisions in attempt.decisions.items():
                    if self._client.exists(proof):
                        attempt.ids = []
                        return decisions
                entries = dict(zip(keys, found, strict=True))
                verdicts = [
                    batch.decide({id: entries[_entry_key(batch.scope, id)] for id in batch.ids}) for batch in batches
                ]
                proof = f"omm:proof:{uuid.uuid4().hex}"
                decisions = attempt.decisions[proof] = [verdict.decisions for verdict in verdicts]
                if self._written(proof, entries, batches, verdicts):
                    attempt.ids = []
                    return decisions
                del attempt.decisions[proof]
            raise StoreError("entries are changed all the time by other processes")

    def _written(
        self, proof: str, entries: Mapping[str, bytes | None], batches: Sequence[Batch], verdicts: Sequence[Verdict]
    ) -> bool:
        """Write what was decided, unless an entry is not what it was; returns whether it was written."""
        keys: list[str] = []
        arguments: list[Any] = [proof, _PROOF_MILLIS]
        counts: list[Any] = []
        for batch, verdict in zip(batches, verdicts, strict=True):
            scope, now = batch.scope, batch.latest
            ttl = scope.ttl * REMEMBERED - now
            for id, content in verdict.written.items():
                key = _entry_key(scope, id)
                keys.append(key)
                arguments += (entries[key] or b"", content, max(1, int(1000 * (received_at(content) + ttl))))
            of_cohorts, millis = _cohorts_key(scope), int(scope.ttl * 2000 + scope.width * 1000)
            for (cohort, segments), (predicted, labelled, lost, first) in verdict.changes.items():
                start = b"%d:%s:" % (cohort, segments)
                counts += (of_cohorts, start, "first", repr(first), millis)
                for kind, count in (("p", predicted), ("l", labelled), ("x", lost)):
                    if count:
                        counts += (of_cohorts, start, kind, int(count), millis)
            for id, moment in verdict.due.items():
                counts += (_due_key(scope), id, "due", repr(moment), millis)
        return not keys or bool(self._write(keys=keys, args=arguments + counts))

    def cells(self, scope: Scope) -> list[Cell]:
        """The cohorts of a model and version."""
        with self._faults():
            return list(self._cells(scope).values())

    def _cells(self, scope: Scope) -> dict[bytes, Cell]:
        """Cells by the beginning of their fields."""
        found: dict[bytes, dict[str, Any]] = {}
        for name, value in self._client.hgetall(_cohorts_key(scope)).items():
            found.setdefault(name[:-1], {})[chr(name[-1])] = value
        cells = {}
        for start, counts in found.items():
            cohort, _, segments = start[:-1].partition(b":")
            predicted, labelled, lost = (int(counts.get(kind, 0)) for kind in "plx")
            cells[start] = Cell(int(cohort), segments, predicted, labelled, lost, float(counts.get("f", 0)))
        return cells

    def sweep(self, scope: Scope, now: float) -> tuple[int, int]:
        """Settle the cohorts that are over. Entries go by themselves."""
        with self._faults():
            ended = [
                (start, cell)
                for start, cell in self._cells(scope).items()
                if over(cell.cohort, scope.width, scope.ttl, now)
            ]
            if not ended:
                return settled([])
            fields = [start + kind for start, _ in ended for kind in (b"p", b"l", b"x", b"f")]
            counts = [
                int(count or 0) if index % 4 < 3 else 0
                for index, count in enumerate(self._take(keys=[_cohorts_key(scope)], args=fields))
            ]
            return settled(
                cell._replace(predicted=predicted, labelled=labelled, lost=lost)
                for (_, cell), predicted, labelled, lost in zip(
                    ended, counts[::4], counts[1::4], counts[2::4], strict=True
                )
            )

    def due(self, scope: Scope, now: float, most: int) -> list[Entry]:
        """Rows that may be judged from now on."""
        with self._faults():
            key = _due_key(scope)
            found = self._client.zrangebyscore(key, "-inf", now, start=0, num=most)
            if not found:
                return []
            pipeline = self._client.pipeline(transaction=False)
            for id in found:
                pipeline.zrem(key, id)
            mine = [id.decode() for id, removed in zip(found, pipeline.execute(), strict=True) if removed]
            contents = self._client.mget([_entry_key(scope, id) for id in mine]) if mine else []
            return [unpack(content) for content in contents if content is not None]

    def inbox(self, scope: Scope, most: int) -> list[LeftLabel]:
        """Labels left for a model and version, which no other process takes meanwhile."""
        with self._faults():
            _, found = self._client.hscan(_inbox_key(scope.model, scope.version), count=most)
            left = []
            for id, value in list(found.items())[:most]:
                try:
                    left.append(_left(id, value))
                except (ValueError, TypeError):  # nothing that this library has written
                    self._client.hdel(_inbox_key(scope.model, scope.version), id)
            pipeline = self._client.pipeline(transaction=False)
            for one in left:
                pipeline.set(_claim_key(scope, one), "1", nx=True, px=int(1000 * TAKEN_SECONDS))
            return [one for one, claimed in zip(left, pipeline.execute(), strict=True) if claimed]

    def taken(self, scope: Scope, labels: Sequence[LeftLabel]) -> None:
        """These have been decided."""
        with self._faults():
            arguments: list[Any] = []
            for left in labels:
                arguments += (left.id, _left_value(left))
            self._taken(keys=[_inbox_key(scope.model, scope.version)], args=arguments)

    def knows(self, scope: Scope, id: str) -> bool:
        """Whether there is a prediction of this id."""
        with self._faults():
            return is_known_prediction(self._client.get(_entry_key(scope, id)))

    # For the inbox

    def versions(self, model: str) -> list[str]:
        """The versions of a model that this store has heard of, the newest last."""
        with self._faults():
            return [version.decode() for version in self._client.lrange(f"omm:versions:{_safe(model)}", 0, -1)]

    def leave(self, model: str, versions: Sequence[str], labels: Sequence[LeftLabel], timed: Sequence[bool]) -> int:
        """Leave labels for a model; arguments and answer as `SqliteBackend.leave`."""
        with self._faults():
            by_version: dict[str, list[tuple[LeftLabel, bool]]] = {}
            known: dict[str, list[Any]] = {
                version: self._client.mget([_entry_key_of(model, version, left.id) for left in labels])
                for version in (versions if len(versions) > 1 else ())
            }
            for index, left in enumerate(labels):
                knowing = [version for version, contents in known.items() if contents[index] is not None]
                for version in knowing or versions[-1:]:
                    by_version.setdefault(version, []).append((left, timed[index]))
            new = 0
            for version, left_for in by_version.items():
                for begin in range(0, len(left_for), _LEFT_AT_ONCE):
                    keys, arguments = [_inbox_key(model, version)], [str(_LEFT_FOR)]
                    for left, of_known_time in left_for[begin : begin + _LEFT_AT_ONCE]:
                        keys.append(f"omm:left:{_safe(model)}:{_safe(version)}:{left.id}:{_digest(left.value)}")
                        arguments += (left.id, repr(left.time), str(int(of_known_time)), _left_value(left))
                    new += int(self._leave(keys=keys, args=arguments))
            return new

    # Inside

    def _note(self, scope: Scope) -> None:
        """Remember which versions of a model there are."""
        if (scope.model, scope.version) not in self._known:
            key = f"omm:versions:{_safe(scope.model)}"
            if scope.version.encode() not in self._client.lrange(key, 0, -1):
                self._client.rpush(key, scope.version)
            self._known.add((scope.model, scope.version))

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        import redis

        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreError(f"Redis cannot be used ({error})") from error


def _safe(name: str) -> str:
    """A name that cannot be taken for two."""
    return name.replace("%", "%25").replace(":", "%3a")


def _entry_key(scope: Scope, id: str) -> str:
    return _entry_key_of(scope.model, scope.version, id)


def _entry_key_of(model: str, version: str, id: str) -> str:
    return f"omm:entry:{_safe(model)}:{_safe(version)}:{id}"


def _cohorts_key(scope: Scope) -> str:
    return f"omm:cohorts:{_safe(scope.model)}:{_safe(scope.version)}:{scope.width:g}"


def _claim_key(scope: Scope, left: LeftLabel) -> str:
    """There while a process is at a label. Another label of the same id is another matter."""
    return f"omm:taken:{_safe(scope.model)}:{_safe(scope.version)}:{left.id}:{_digest(_left_value(left))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _due_key(scope: Scope) -> str:
    return f"omm:due:{_safe(scope.model)}:{_safe(scope.version)}"


def _inbox_key(model: str, version: str) -> str:
    return f"omm:inbox:{_safe(model)}:{_safe(version)}"


def _left_value(left: LeftLabel) -> str:
    return json.dumps([left.time, left.value])


def _left(id: bytes, value: bytes) -> LeftLabel:
    time, label = json.loads(value)
    return LeftLabel(id.decode(), time, label)
