"""Words: a bounded map from whatever users pass to small codes and to text that every backend stores."""

from __future__ import annotations

import decimal
import enum
import unicodedata
import uuid

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_model_metrics.vocabulary import EMPTY, MISSING, OVERFLOW, UNUSABLE, Vocabulary, clean_name, name_of


class Country(enum.Enum):
    GERMANY = "DE"


class Hostile:
    """A value whose chosen methods fail, in turn and with different errors."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing

    def _fail(self, method: str) -> None:
        if method in self.failing:
            raise RuntimeError(f"{method} fails")

    def __hash__(self) -> int:
        self._fail("hash")
        return 1

    def __eq__(self, other: object) -> bool:
        self._fail("eq")
        return self is other

    def __str__(self) -> str:
        self._fail("str")
        return "hostile"

    __repr__ = __str__


# Text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("DE", "DE"),
        (3, "3"),
        (3.0, "3"),
        (-0.0, "0"),
        (3.5, "3.5"),
        (1e300, str(int(1e300))[:119] + "…"),
        (float("inf"), "inf"),
        (True, "true"),
        (False, "false"),
        (np.bool_(True), "true"),
        (np.int64(3), "3"),
        (np.float32(3.0), "3"),
        (np.str_("DE"), "DE"),
        (b"DE", "DE"),
        (b"\xff", "\ufffd"),
        (Country.GERMANY, "DE"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (("a", 1), "('a', 1)"),
        ("", EMPTY),
        ("   ", EMPTY),
        ("\t", "\ufffd"),
        ("new\nline", "new\ufffdline"),
        ("nul\x00", "nul\ufffd"),
        ("\x7f\x85", "\ufffd\ufffd"),
        ("\ud800", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("Köln 東京 🙂", "Köln 東京 🙂"),
        ("non\u00a0breaking\u200bzero width", "non\u00a0breaking\u200bzero width"),
        ("x" * 120, "x" * 120),
        ("x" * 121, "x" * 119 + "…"),
        ("x" * 10_000, "x" * 119 + "…"),
    ],
    ids=ascii,
)
def test_a_value_is_written_as_one_would_read_it(value, text):
    """
    Without control characters, lone surrogates or emptiness, and never longer than 120 characters.
    """
    assert text == name_of(value)


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_becomes_one_that_every_backend_stores(text):
    """
    It can be encoded, is neither empty nor long, has no control characters, and is stable when cleaned again.
    """
    cleaned = clean_name(text)

    cleaned.encode("utf-8")
    assert cleaned.strip()
    assert 120 >= len(cleaned)
    assert set() == {unicodedata.category(one) for one in cleaned} & {"Cc", "Cs"}
    assert cleaned == clean_name(cleaned)


# Codes


def test_codes_follow_the_order_of_appearance():
    """
    The first value is 0, the next new one 1.
    """
    words = Vocabulary(limit=10)

    assert [0, 1, 0, 2] == words.encode(["DE", "FR", "DE", "IT"]).tolist()
    assert ["DE", "FR", "IT"] == words.names
    assert 3 == len(words)


def test_values_written_alike_share_a_code():
    """
    They would share an exported series.
    """
    words = Vocabulary(limit=10)

    assert [0] * 6 == words.encode([3, "3", 3.0, np.int64(3), b"3", decimal.Decimal(3)]).tolist()
    assert ["3"] == words.names


def test_known_values_come_first_and_in_their_order():
    """
    Also in a closed vocabulary, which takes no others.
    """
    words = Vocabulary(limit=10, values=["b", "a"], closed=True)

    assert [1, 0, OVERFLOW] == words.encode(["a", "b", "c"]).tolist()
    assert ["b", "a"] == words.names


@pytest.mark.parametrize("nothing", [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT], ids=repr)
def test_none_and_nan_are_no_value(nothing):
    """
    Whatever the library that stands behind them; "" on the other hand is a value.
    """
    words = Vocabulary(limit=10)

    assert [MISSING] == words.encode([nothing]).tolist()
    assert [0, MISSING, 1] == words.encode(["DE", nothing, ""]).tolist()
    assert ["DE", EMPTY] == words.names


@pytest.mark.parametrize(
    "value",
    [
        ["a list"],
        {"a": "dict"},
        {"a set"},
        np.array([1, 2]),
        pd.Series([1, 2]),
        Hostile("hash"),
        Hostile("str"),
        Hostile("hash", "eq", "str"),
        ("a", Hostile("hash")),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'failing', '')}",
)
@pytest.mark.parametrize("known", [True, False], ids=["others known", "others new"])
def test_an_unusable_value_hurts_no_other(value, known):
    """
    It has no code; the others of its column have theirs, and nothing is raised.
    """
    words = Vocabulary(limit=10, values=["DE", "FR"] if known else [])

    assert [0, UNUSABLE, 1] == words.encode(["DE", value, "FR"]).tolist()
    assert UNUSABLE == words.code(value)
    assert [UNUSABLE] == words.encode([value]).tolist()


def test_values_that_cannot_be_compared_hurt_no_other():
    """
    Two values of the same hash whose comparison fails: at least all the others have their codes.
    """
    words = Vocabulary(limit=10)

    codes = words.encode(["DE", Hostile("eq"), Hostile("eq"), "FR"]).tolist()

    assert ["DE", "FR"] == [words.names[codes[0]], words.names[codes[3]]]


# Bounds


def test_a_million_different_values_leave_a_vocabulary_small():
    """
    Beyond the limit nothing is kept, neither values nor spellings. (200,000 of them, to be quick.)
    """
    words = Vocabulary(limit=50)

    codes = np.concatenate([words.encode([f"user-{i}" for i in range(j, j + 1000)]) for j in range(0, 200_000, 1000)])

    assert list(range(50)) == codes[:50].tolist()
    assert {OVERFLOW} == set(codes[50:].tolist())
    assert 50 == len(words)
    assert 4 * 50 + 16 >= len(words._places)


def test_many_spellings_of_a_value_are_not_all_remembered():
    """
    Different objects that are written alike are one value, and take no memory each.
    """
    words = Vocabulary(limit=2)

    for spaces in range(1000):
        words.code(decimal.Decimal("1." + "0" * spaces))  # all equal
        words.code(Country.GERMANY if spaces % 2 else "DE")
        words.code(b"x" * 121 + bytes([65 + spaces % 26]))

    assert 2 == len(words)
    assert 4 * 2 + 16 >= len(words._places)


def test_long_values_are_cut_and_not_remembered_whole():
    """
    10 kB of text has a code, its first 119 characters, and no place in memory.
    """
    words = Vocabulary(limit=10)
    long = "x" * 10_000

    assert [0, 0, 1] == words.encode([long, long + "y", "short"]).tolist()
    assert ["x" * 119 + "…", "short"] == words.names
    assert 256 >= max(len(known) for known in words._places if isinstance(known, str))


@pytest.mark.parametrize("limit", [1, 2, 252, 253, 254, 255, 256, 257, 300])
def test_every_limit_is_kept_exactly(limit):
    """
    Also where codes stop fitting a byte.
    """
    words = Vocabulary(limit=limit)
    values = [f"v{number}" for number in range(400)]
    wanted = [number if number < limit else OVERFLOW for number in range(400)]

    assert wanted == words.encode(values).tolist()
    assert wanted == words.encode(values).tolist()
    assert wanted[:limit] == words.encode(values[:limit]).tolist()
    assert [MISSING, limit - 1] == words.encode([None, values[limit - 1]]).tolist()


values = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2, width=16) | st.text("ab", max_size=2)


@given(st.lists(values | st.just([]), max_size=30), st.integers(1, 6))
def test_a_column_has_the_codes_of_its_values(column, limit):
    """
    `encode` is `code` for each value in turn, however it is sped up.
    """
    at_once, one_by_one = Vocabulary(limit), Vocabulary(limit)

    for _ in range(2):  # new values, then known ones
        assert [one_by_one.code(value) for value in column] == at_once.encode(column).tolist()
        assert one_by_one.names == at_once.names
