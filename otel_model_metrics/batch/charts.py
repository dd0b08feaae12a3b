"""
The geometry of charts: where lines, bands, bars and ticks are. Knows nothing of evaluations, nor of markup.

Lengths are in units of a chart's own box, whose height grows downwards, as SVG has it; a path is SVG's too.
"""

from __future__ import annotations

import datetime
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = 86_400
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, _DAY, 2 * _DAY)
_WEEKS = (7 * _DAY, 14 * _DAY)
_MONDAY = 4 * _DAY  # the first Monday after 1970 began
_MONTH_STEPS = (1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200)

# Of more windows several are drawn as one, so that there are at most half as many: their lines would hide each other,
# for a chart is about as wide in pixels.
MOST_POINTS = 300
# With more, what is under the pointer is not told: each costs 200 bytes of every chart.
_MOST_SPOTS = 240


@dataclass(frozen=True)
class Point:
    """
    One window.

    Attributes:
        number: Consecutive windows have consecutive numbers.
        value, low, high: Of the metric, and its bounds; ``nan`` where there is none.
        labelled, usable: Rows with a label, and all of them.
        text: What is said where a pointer rests on it.
    """

    number: int
    value: float
    low: float
    high: float
    labelled: int
    usable: int
    text: str = ""


@dataclass(frozen=True)
class Tick:
    """A line across a chart, or a mark on the axis of time, and what is written there."""

    at: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Spot:
    """An area that tells of one window."""

    left: float
    width: float
    text: str


@dataclass(frozen=True)
class Note:
    """Something written in a chart: where it stands, `at` being its base line, and which end of it is there."""

    left: float
    at: float
    anchor: str
    text: str


@dataclass(frozen=True)
class Course:
    """
    The course of a metric over windows, with the rows of each under it.

    Attributes:
        width, height: Of the box.
        left, right, top, bottom: Where the metric is drawn.
        floor: Where bars stand, which begin at `ceiling`.
        line, dots, band, labelled, usable: Paths, dots being windows without a neighbour; empty where nothing is to be
            drawn.
        levels, times: Ticks.
        objectives: Heights of the objective: two for a bias, one for others.
        note: What is written there, where the line leaves room.
        most: Rows of the highest bar, as text.
        merged: So many windows are drawn as one: the line is their median, the band from their lowest to their highest,
            a bar all their rows. Else it is 1, and the band is between the bounds.
        spots: Areas that tell of windows, if these are not too many.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    ceiling: int
    floor: int
    line: str
    dots: str
    band: str
    labelled: str
    usable: str
    levels: tuple[Tick, ...]
    times: tuple[Tick, ...]
    objectives: tuple[float, ...]
    note: Note
    most: str
    merged: int
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Gauge:
    """
    One value with its bounds and its objective, on a line. `low` and `high` are equal without bounds.
    """

    width: int
    value: float
    low: float
    high: float
    objectives: tuple[float, ...]


def course(
    points: Sequence[Point],
    start: float,
    seconds: float,
    *,
    objectives: Sequence[float] = (),
    objective: str = "",
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Course:
    """
    Draw a metric over windows.

    Args:
        points: Windows that have rows, oldest first; at least one.
        start: When window number 0 begins, in seconds since 1970.
        seconds: Length of a window.
        objectives: The levels that are drawn across.
        objective: What is written there.
        limits: Between which the metric is by definition.

    Cost: a path of at most `MOST_POINTS` points, whatever the number of windows.
    """
    width, height, left, right, top, bottom, ceiling, floor = 520, 242, 52, 510, 14, 158, 176, 214
    first, last = points[0].number, points[-1].number + 1
    merged = 1 if len(points) <= MOST_POINTS else math.ceil((last - first) / (MOST_POINTS // 2))
    if merged > 1:  # the band is not of bounds then
        bounded = [replace(one, low=math.nan, high=math.nan) for one in points]
        low, high = domain(bounded, objectives, limits)
    else:
        low, high = domain(points, objectives, limits)
    ticks, digits = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(number: float) -> float:
        return left + (number - first) / (last - first) * (right - left)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return bottom - (inside - low) / (high - low) * (bottom - top)

    runs = list(_runs(points, first, merged))
    most = max(1, max(bucket.usable for bucket in _buckets(points, first, merged)))

    def bars(kind: str) -> str:
        found = []
        for bucket in _buckets(points, first, merged):
            rows = getattr(bucket, kind)
            if rows:
                wide = min(60.0, max(0.7, (x(first + merged) - left) * 0.82))
                tall = max(1.0, rows / most * (floor - ceiling))
                middle = min(x(bucket.number + merged / 2), right)
                found.append(f"M{middle - wide / 2:.1f} {floor - tall:.1f}h{wide:.1f}V{floor}h-{wide:.1f}z")
        return "".join(found)

    spots = [Spot(x(one.number), x(one.number + 1) - x(one.number), one.text) for one in points]
    drawn = [[(x(at), y(value)) for at, value, _, _ in run] for run in runs]
    line = "".join("M" + "L".join(f"{here:.1f} {there:.1f}" for here, there in run) for run in drawn if len(run) > 1)
    # A line of no length is a dot, if its ends are round.
    dots = "".join(f"M{run[0][0]:.1f} {run[0][1]:.1f}h0" for run in drawn if len(run) == 1)
    heights = [y(level) for level in objectives]
    band = "".join(
        _area([(x(at), y(below), y(above)) for at, _, below, above in part]) for run in runs for part in _split(run)
    )
    return Course(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        ceiling=ceiling,
        floor=floor,
        line=line,
        dots=dots,
        band=band,
        labelled=bars("labelled"),
        usable=bars("usable"),
        levels=tuple(Tick(y(tick), text) for tick, text in zip(ticks, _level_texts(ticks, digits), strict=True)),
        times=tuple(
            Tick(at, text, "start" if at < left + 30 else "end" if at > right - 30 else "middle")
            for at, text in (
                (x(first + (moment - start) / seconds - first), text)
                for moment, text in time_ticks(start + first * seconds, start + last * seconds)
            )
        ),
        objectives=tuple(heights),
        note=_note(objective, heights, [place for run in drawn for place in run], (left, right, top, bottom)),
        most=short_count(most),
        merged=merged,
        spots=tuple(spots) if len(spots) <= _MOST_SPOTS else (),
    )


def gauge(value: float, low: float, high: float, objectives: Sequence[float], limits: tuple[float, float]) -> Gauge:
    """Place a value with bounds and objective on a line of its own; all but `value` may be absent or ``nan``."""
    width = 240
    low, high = (low, high) if math.isfinite(low) and math.isfinite(high) else (value, value)
    known = [value, low, high, *objectives]
    least, most = padded(min(known), max(known), limits, 0.25)

    def x(at: float) -> float:
        return 4 + (at - least) / (most - least) * (width - 8)

    return Gauge(width, x(value), x(low), x(high), tuple(map(x, objectives)))


def padded(low: float, high: float, limits: tuple[float, float], share: float) -> tuple[float, float]:
    """
    A range with some room around, but not beyond limits.

    >>> padded(0.5, 1.0, (0.0, 1.0), 0.1)
    (0.45, 1.0)
    """
    room = (high - low) * share or abs(high) * 0.05 or 1.0
    below, above = max(low - room, limits[0]), min(high + room, limits[1])
    return (below, above) if above > below else (low - 1.0, low + 1.0)


def domain(points: Iterable[Point], objectives: Sequence[float], limits: tuple[float, float]) -> tuple[float, float]:
    """
    What the axis spans: all values and objectives, and nine tenths of the bounds, for those of a window of few rows
    would leave no room for the others.
    """
    points = list(points)
    values = [*objectives, *(one.value for one in points if math.isfinite(one.value))]
    below = sorted(one.low for one in points if math.isfinite(one.low))
    above = sorted(one.high for one in points if math.isfinite(one.high))
    if below and above:
        values += [below[len(below) // 10], above[-1 - len(above) // 10]]
    if not values:
        values = [one for one in limits if math.isfinite(one)] or [0.0, 1.0]
    return padded(min(values), max(values), limits, 0.06)


def nice_ticks(low: float, high: float) -> tuple[list[float], int]:
    """
    Three to six round numbers within a range, and the digits that tell them apart.

    >>> nice_ticks(0.68, 0.97)
    ([0.7, 0.75, 0.8, 0.85, 0.9, 0.95], 2)
    """
    size = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(size * times for times in (5, 2, 1) if (high - low) / (size * times) >= 2.4 or times == 1)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [round(number * step, digits + 2) for number in numbers] or [low, high], digits


def time_ticks(start: float, end: float, most: int = 5) -> list[tuple[float, str]]:
    """
    Round times within a period, in UTC, and what is written there: the day where one begins, and the year likewise.

    >>> [text for _, text in time_ticks(1_700_000_000, 1_700_000_000 + 86_400)]
    ['15 Nov', '06:00', '12:00', '18:00']
    """
    found: list[tuple[float, str]] = []
    for step in (*_STEPS, *_WEEKS):
        offset = _MONDAY if step in _WEEKS else 0
        first, last = math.ceil((start - offset) / step), math.floor((end - offset) / step)
        if last - first < most:
            found = [(at := offset + number * step, _named(at, step)) for number in range(first, last + 1)]
            break
    else:
        for months in _MONTH_STEPS:
            found = [(at, _named(at, months * 30 * _DAY)) for at in _months(start, end, months)]
            if len(found) <= most:
                break
    if found and not found[0][1].isdigit():  # the first says the day or year that is not said anywhere else
        moment = _moment(found[0][0])
        text = found[0][1]
        if ":" in text and all(":" in other for _, other in found):
            found[0] = found[0][0], f"{moment.day} {_MONTHS[moment.month - 1]} {text}"
        elif text in _MONTHS and not any(other.isdigit() for _, other in found):
            found[0] = found[0][0], f"{text} {moment.year}"
    return found


def short_count(count: float) -> str:
    """
    A number of rows in few characters.

    >>> short_count(950), short_count(1_240), short_count(2_000_000)
    ('950', '1.2k', '2M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}" if count >= 10 * size else f"{count / size:.2g}{letter}"
    return f"{count:g}"


def _level_texts(ticks: Sequence[float], digits: int) -> list[str]:
    """Short ones, if they still differ."""
    greatest = max(map(abs, ticks))
    if greatest < 1e-3:
        return [f"{tick:.3g}" for tick in ticks]
    if greatest < 10_000 and digits <= 6:
        return [f"{tick:,.{digits}f}" for tick in ticks]
    texts = [("-" if tick < 0 else "") + short_count(abs(tick)) for tick in ticks]
    return texts if len(set(texts)) == len(texts) else [f"{tick:.7g}" for tick in ticks]


@dataclass
class _Bucket:
    number: int
    labelled: int = 0
    usable: int = 0


def _buckets(points: Iterable[Point], first: int, merged: int) -> list[_Bucket]:
    found: dict[int, _Bucket] = {}
    for one in points:
        at = (one.number - first) // merged
        bucket = found.setdefault(at, _Bucket(first + at * merged))
        bucket.labelled += one.labelled
        bucket.usable += one.usable
    return list(found.values())


_Drawn = tuple[float, float, float, float]  # number in the middle, value, low, high


def _runs(points: Sequence[Point], first: int, merged: int) -> Iterable[list[_Drawn]]:
    """What is drawn without a gap: a window without a value, or without rows, ends a run."""
    run: list[_Drawn] = []
    before = None
    for at, group in itertools.groupby(points, lambda one: (one.number - first) // merged):
        inside = [one for one in group if math.isfinite(one.value)]
        if not inside:
            continue
        if run and at - 1 != before:
            yield run
            run = []
        before = at
        middle = first + (at + 0.5) * merged
        if merged == 1:
            run.append((middle, inside[0].value, inside[0].low, inside[0].high))
        else:
            values = [one.value for one in inside]
            run.append((middle, statistics.median(values), min(values), max(values)))
    if run:
        yield run


def _split(run: list[_Drawn]) -> Iterable[list[_Drawn]]:
    """The parts of a run that have bounds."""
    for bounded, part in itertools.groupby(run, lambda one: math.isfinite(one[2]) and math.isfinite(one[3])):
        if bounded:
            yield list(part)


def _note(
    text: str,
    heights: Sequence[float],
    places: Sequence[tuple[float, float]],
    box: tuple[int, int, int, int],
) -> Note:
    """A text above or below one of some heights, at an end or in the middle: where the line is farthest from it."""
    left, right, top, bottom = box
    wide = 8.5 * len(text)  # of the larger letters that small screens have
    best = -1.0, Note(right, bottom, "end", text)
    for height in heights:
        for at, middle in ((height - 6, height - 11), (height + 16, height + 11)):
            if not top <= middle <= bottom:
                continue
            for x, begin, anchor in (
                (right - 4, right - wide, "end"),
                (left + 4, left, "start"),
                ((left + right) / 2, (left + right - wide) / 2, "middle"),
            ):
                near = (abs(there - middle) for here, there in places if begin - 6 <= here <= begin + wide + 6)
                room = min(near, default=math.inf)
                if room > best[0]:
                    best = room, Note(x, at, anchor, text)
    return best[1]


def _area(places: Sequence[tuple[float, float, float]]) -> str:
    """What is between two lines; of one place a stroke as wide as it is seen."""
    if len(places) == 1:
        x, low, high = places[0]
        places = [(x - 1.5, low, high), (x + 1.5, low, high)]
    there = "L".join(f"{x:.1f} {high:.1f}" for x, _, high in places)
    back = "L".join(f"{x:.1f} {low:.1f}" for x, low, _ in reversed(places))
    return f"M{there}L{back}z"


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _months(start: float, end: float, step: int) -> list[float]:
    """Beginnings of months within a period, those of every so many months."""
    begin = _moment(start)
    number = -(-(begin.year * 12 + begin.month - 1) // step) * step
    found = []
    while number // 12 <= datetime.MAXYEAR:
        at = datetime.datetime(number // 12, number % 12 + 1, 1, tzinfo=datetime.timezone.utc).timestamp()
        if at > end:
            break
        if at >= start:
            found.append(at)
        number += step
    return found


def _named(at: float, step: float) -> str:
    moment = _moment(at)
    if step < 60:
        return f"{moment:%H:%M:%S}"
    if step < _DAY and (moment.hour or moment.minute):
        return f"{moment:%H:%M}"
    if step < 28 * _DAY:
        return f"{moment.day} {_MONTHS[moment.month - 1]}"
    return str(moment.year) if moment.month == 1 else _MONTHS[moment.month - 1]
