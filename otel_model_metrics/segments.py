"""
Segments: named slices of traffic, such as country DE, and which rows are in which.

A row's segments are turned into one small "segment set" code. Values beyond the bound of a name become
"__other__", whose statistics are computed like any other segment's.
"""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.statistics.groups import Groups
from otel_model_metrics.vocabulary import MISSING, OTHER, OVERFLOW, SHIFT, UNUSABLE, Vocabulary

TAG_NAME = "segment"
MAX_NAMES = 32
UNUSABLE_SET = -1

MAX_REMEMBERED_KEYS = 4096
_MAX_REMEMBERED_LENGTH = 256
_MAX_TABLES = 16
_MAX_JOINT = 1 << 62
_OVERFLOW_PLACE = OVERFLOW + SHIFT
_UNUSABLE_PLACE = UNUSABLE + SHIFT

Key = Any  # None, or a tuple of (name, value) pairs, as staged by record()
SetCodes = NDArray[np.int32]


class UnusableKey:
    """Stands in for segments that could not even be read in the caller's thread."""

    def __init__(self, message: str) -> None:
        self.message = message


def key_of(segments: Any) -> Key:
    """
    A row's segments as a key that later changes by the caller cannot reach. Never raises.

    >>> key_of({"country": "DE"}), key_of(["gold", "beta"])
    ((('country', 'DE'),), (('segment', 'gold'), ('segment', 'beta')))
    """
    try:
        if isinstance(segments, Mapping):
            return tuple(segments.items())
        if isinstance(segments, (list, tuple, set, frozenset)):
            return tuple((TAG_NAME, value) for value in segments)
    except Exception as error:
        return UnusableKey(f"segments could not be read ({error!r}).")
    return UnusableKey(
        f"segments must be a mapping name -> value or a list of tags, got {_shown(segments)}. "
        f'Write segments={{"country": "DE"}}, or segments=["DE"] for a tag.'
    )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "a value that cannot be shown"
    return f"{text[:80]} ({type(value).__name__})"


class SegmentTable:
    """
    The segments of one monitor: bounded names, bounded values, and sets of segments.

    Group 0 is the overall window; group g > 0 is the segment ``groups[g]``, a pair (name, value).

    Args:
        names: Allowed segment names; None allows any, up to 32.
        max_values: Values kept apart for each name, at least 1; the rest become ``__other__``.

    >>> table = SegmentTable(names=("country",), max_values=1)
    >>> table.encode_keys([None, (("country", "DE"),), (("country", "FR"),)]).tolist()
    [0, 1, 2]
    >>> table.groups
    [None, ('country', 'DE'), ('country', '__other__')]
    """

    def __init__(self, names: Sequence[str] | None, max_values: int) -> None:
        self._fixed = names is not None
        self._max_values = max_values
        self.names = Vocabulary(
            MAX_NAMES if names is None else max(len(names), 1), values=names or (), closed=self._fixed
        )
        self.groups: list[tuple[str, str] | None] = [None]
        self._values: dict[str, Vocabulary] = {}
        self._group_of: dict[tuple[str, str], int] = {}
        self.problem = ""  # why the last unusable row was unusable
        # The first keys met get a number that stays theirs. A caller that stages the number keeps no tuple alive,
        # which is kinder to the garbage collector, and numbers are encoded faster.
        self.key_ids: dict[Key, int] = {}
        self._forget_sets()
        self._remember((), 0)

    def _forget_sets(self) -> None:
        self._sets: list[tuple[int, ...]] = []
        self._set_of: dict[tuple[int, ...], int] = {}
        self._pair_set: list[int] = []
        self._pair_group: list[int] = []
        self._pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._code_of_id: list[int] = []
        self._codes_of_ids: SetCodes = np.zeros(0, np.int32)
        self._later_keys: dict[Key, int] = {}
        self._tables: dict[tuple[str, ...], NDArray[np.int32]] = {}
        self._set_code(())

    @property
    def sets(self) -> int:
        """How many different segment sets there are."""
        return len(self._sets)

    def groups_of(self, codes: SetCodes) -> Groups:
        """The groups of rows with these set codes."""
        if self._pairs is None:
            self._pairs = np.array(self._pair_set, np.int64), np.array(self._pair_group, np.int64)
        return Groups(codes, len(self._sets), len(self.groups), *self._pairs)

    def encode_keys(self, keys: Sequence[Key | int]) -> SetCodes:
        """
        Set code of each key, shape ``(n,)``, int32; `UNUSABLE_SET` where the segments cannot be used.

        Args:
            keys: Keys, or numbers of keys from `key_ids`.

        Cost: about 10 ns a row for numbers.
        """
        if len(self._code_of_id) != len(self._codes_of_ids):
            self._codes_of_ids = np.array(self._code_of_id, np.int32)
        try:
            return self._codes_of_ids.take(np.frombuffer(array.array("i", keys), np.int32))
        except TypeError:  # keys among them
            pass
        ids = self._code_of_id
        return np.array([ids[key] if type(key) is int else self._code_of_key(key) for key in keys], np.int32)

    def encode_columns(self, columns: Mapping[str, Sequence[Any]], count: int) -> SetCodes:
        """
        Set code of each of `count` rows, whose segments are given as one column for each name.

        Args:
            columns: For each name a list of `count` values; None or NaN means the row is not in such a segment.
            count: Number of rows n.

        Returns:
            Shape ``(n,)``, int32; `UNUSABLE_SET` where the segments cannot be used.

        Cost: about 20 ns a row for each name.
        """
        names = tuple(columns)
        for name in names:
            if self._name_code(name) == UNUSABLE:
                return np.full(count, UNUSABLE_SET, np.int32)
        # Each value's place in its own vocabulary ...
        base = self._max_values + SHIFT
        if base ** len(names) > _MAX_JOINT:
            rows = zip(*(columns[name] for name in names), strict=True)
            return self.encode_keys([tuple(zip(names, row, strict=True)) for row in rows])
        joint = np.zeros(count, np.int64)
        unusable: NDArray[np.bool_] | None = None
        for name in names:
            places = self._vocabulary(name).places(columns[name])
            if places.min(initial=SHIFT) == _UNUSABLE_PLACE:
                bad = places == _UNUSABLE_PLACE
                unusable = bad if unusable is None else unusable | bad
            joint *= base
            joint += places
        # ... so that a whole set is one number, looked up in a table while that is small.
        if base ** len(names) <= 1 << 16:
            table = self._tables.get(names)
            if table is None:
                if len(self._tables) >= _MAX_TABLES:
                    self._tables.clear()
                table = self._tables[names] = np.full(base ** len(names), UNUSABLE_SET, np.int32)
            result = table.take(joint)
            if result.min(initial=0) < 0:
                for number in np.unique(joint[result < 0]):
                    table[number] = self._code_of_number(int(number), names, base)
                result = table.take(joint)
        else:
            distinct, inverse = np.unique(joint, return_inverse=True)
            codes_of = np.array([self._code_of_number(int(number), names, base) for number in distinct], np.int32)
            result = codes_of[inverse]
        if unusable is not None:  # tuples of several values, and what cannot be used: row by row
            odd = np.flatnonzero(unusable)
            result[odd] = self.encode_keys(
                [tuple((name, columns[name][row]) for name in names) for row in odd.tolist()]
            )
        return result

    def groups_of_set(self, code: int) -> tuple[int, ...]:
        """The groups of a segment set, without the overall one. Unlike codes of sets, those of groups stay for ever."""
        return self._sets[code]

    def set_of_groups(self, groups: tuple[int, ...]) -> int:
        """The code of a segment set."""
        return self._set_code(groups)

    def group_named(self, name: str, value: str) -> int:
        """The group of a segment that another process has named, or less than 0 if it is not allowed here."""
        if value != OTHER:
            return self._group(name, value)
        return UNUSABLE if self._name_code(name) == UNUSABLE else self._register(name, OTHER)

    def compact(self, codes: SetCodes) -> SetCodes:
        """
        Forget every set that no row in `codes` has, and renumber the rest; segments themselves stay.

        Sets, unlike segments, are bounded only by the rows that have them.
        """
        used, inverse = np.unique(codes, return_inverse=True)
        kept = [self._sets[code] for code in used]
        numbered = [self._sets[code] for code in self._code_of_id]
        self._forget_sets()
        codes_kept = np.array([self._set_code(groups) for groups in kept], np.int32)
        self._code_of_id = [self._set_code(groups) for groups in numbered]
        return codes_kept[inverse]

    def _code_of_key(self, key: Key) -> int:
        if key is None:
            return 0
        try:
            number = self.key_ids.get(key)
            known = self._later_keys.get(key) if number is None else self._code_of_id[number]
        except Exception:  # unhashable, or its __hash__ or __eq__ fails
            known = None
        if known is not None:
            return known
        if isinstance(key, UnusableKey):
            self.problem = key.message
            return UNUSABLE_SET
        groups: set[int] = set()
        length = 0
        for name, value in key:
            for one in value if isinstance(value, (tuple, frozenset)) else (value,):
                group = self._group(name, one)
                if group == UNUSABLE:
                    return UNUSABLE_SET
                if group != MISSING:
                    groups.add(group)
                length += len(one) if isinstance(one, (str, bytes)) else 0
        code = self._set_code(tuple(sorted(groups)))
        if length <= _MAX_REMEMBERED_LENGTH:
            self._remember(key, code)
        return code

    def _remember(self, key: Key, code: int) -> None:
        try:
            if len(self.key_ids) < MAX_REMEMBERED_KEYS:
                self.key_ids[key] = len(self.key_ids)
                self._code_of_id.append(code)
                return
            if len(self._later_keys) >= MAX_REMEMBERED_KEYS:
                self._later_keys.clear()
            self._later_keys[key] = code
        except Exception:  # unhashable: looked up anew each time
            pass

    def _code_of_number(self, number: int, names: tuple[str, ...], base: int) -> int:
        groups = []
        for name in reversed(names):
            number, place = divmod(number, base)
            if place == _OVERFLOW_PLACE:
                groups.append(self._register(name, OTHER))
            elif place >= SHIFT:
                groups.append(self._register(name, self._vocabulary(name).names[place - SHIFT]))
        return self._set_code(tuple(sorted(set(groups))))

    def _set_code(self, groups: tuple[int, ...]) -> int:
        code = self._set_of.get(groups)
        if code is None:
            code = self._set_of[groups] = len(self._sets)
            self._sets.append(groups)
            members = (0, *groups)  # every set belongs to the overall group too
            self._pair_set.extend([code] * len(members))
            self._pair_group.extend(members)
            self._pairs = None
        return code

    def _name_code(self, name: Any) -> int:
        code = self.names.code(name) if isinstance(name, str) else UNUSABLE
        if code == UNUSABLE or (self._fixed and code < 0):
            known = ", ".join(self.names.names) or "none"
            self.problem = f"segment name must be one of those given to the monitor ({known}), got {_shown(name)}."
            return UNUSABLE
        return code

    def _vocabulary(self, name: str) -> Vocabulary:
        code = self._name_code(name)
        exported = OTHER if code == OVERFLOW else self.names.names[code]
        vocabulary = self._values.get(exported)
        if vocabulary is None:
            # Values of names beyond the bound are not told apart: a closed vocabulary, so all are "__other__".
            vocabulary = self._values[exported] = Vocabulary(self._max_values, closed=exported == OTHER)
        return vocabulary

    def _group(self, name: Any, value: Any) -> int:
        """Group of one segment, `MISSING` where there is no value, `UNUSABLE` with `problem` set."""
        if self._name_code(name) == UNUSABLE:
            return UNUSABLE
        vocabulary = self._vocabulary(name)
        code = vocabulary.code(value)
        if code == UNUSABLE:
            several = ", or a tuple of several" if isinstance(value, (list, set)) else ""
            self.problem = f"segment values must be hashable{several}, got {_shown(value)} for {name!r}."
        if code in (UNUSABLE, MISSING):
            return code
        return self._register(name, OTHER if code == OVERFLOW else vocabulary.names[code])

    def _register(self, name: str, value: str) -> int:
        code = self._name_code(name)
        segment = (OTHER if code == OVERFLOW else self.names.names[code], value)
        group = self._group_of.get(segment)
        if group is None:
            group = self._group_of[segment] = len(self.groups)
            self.groups.append(segment)
        return group
