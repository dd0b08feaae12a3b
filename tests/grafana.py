"""
What Grafana does with a dashboard before anything is drawn: finds its variables' values, and asks a store its queries.

Its rules, as its source has them: how values are escaped (`written`), how far apart points are (`step_of`), and that
what is no variable's name is left alone, such as the ``$1`` of a label_replace.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends import Store

FOLDER = Path(__file__).parent.parent / "grafana" / "dashboards"
DAY = 24 * 3600
SCRAPE_INTERVAL = 60  # of the data source that we provision
WIDTH = 1000  # of a panel that does not say how many points it draws

# $name, ${name}, ${name:format} and [[name]].
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?:\.[^:}]+)?(?::(?P<form>[^}]+))?\}|\[\[(\w+?)(?::\w+)?\]\]")
_LABEL_VALUES = re.compile(r"label_values\((?:(?P<among>.+),\s*)?(?P<label>\w+)\)")
_LEGEND = re.compile(r"\{\{\s*(.+?)\s*\}\}")
# From which distance of points on, in seconds, Grafana rounds it to which.
_ROUND = ((1, 1), (3, 2), (7.5, 5), (12.5, 10), (17.5, 15), (25, 20), (45, 30), (90, 60), (210, 120), (450, 300))
_ROUND += ((750, 600), (1050, 900), (1500, 1200), (2700, 1800), (5400, 3600), (9000, 7200), (16200, 10800))

Labels = dict[str, str]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """
    What a panel gets to draw.

    Attributes:
        ref: Which query it comes from.
        name: What its legend says.
        labels: Its Prometheus labels.
        points: Times and values; of an instant query a single one.
    """

    ref: str
    name: str
    labels: Labels
    points: Points

    @property
    def value(self) -> float:
        """The last value."""
        return self.points[-1][1]


@dataclass(frozen=True)
class Page:
    """
    A dashboard.

    Attributes:
        content: What its file says.
    """

    content: dict[str, Any]

    @classmethod
    def read(cls, uid: str) -> Page:
        """The one that is committed."""
        return cls(json.loads((FOLDER / f"{uid}.json").read_text()))

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The title of each row, and its panels; those that are open at first have none."""
        found: dict[str, list[dict[str, Any]]] = {"": []}
        for panel in self.content["panels"]:
            if panel["type"] == "row":
                assert panel["collapsed"], panel["title"]
                assert panel["title"] not in found, panel["title"]
                found[panel["title"]] = panel["panels"]
            else:
                found[""].append(panel)
        return found

    @property
    def panels(self) -> list[dict[str, Any]]:
        """All panels that ask something, those in collapsed rows too."""
        return [panel for row in self.rows.values() for panel in row if panel["type"] != "alertlist"]

    def panel(self, title: str, row: str | None = None) -> dict[str, Any]:
        """A panel by its title and the beginning of its row's title; where the latter is empty, one that is open."""
        (found,) = (
            panel
            for name, panels in self.rows.items()
            for panel in panels
            if panel["title"] == title and (row is None or (name.startswith(row) if row else not name))
        )
        return found

    @property
    def annotations(self) -> dict[str, dict[str, Any]]:
        """Annotations by name."""
        return {one["name"]: one for one in self.content["annotations"]["list"]}


@dataclass
class Answers:
    """
    A store as Grafana's data source asks it; the same question only once.

    Attributes:
        store: The store.
        complaints: What it has to say about queries that it answered nevertheless.
    """

    store: Store
    complaints: dict[str, list[str]] = field(default_factory=dict)
    _known: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def get(self, path: str, **parameters: str) -> Any:
        """By POST, as its setting httpMethod says, but for what only takes GET."""
        key = (path, *(f"{name}={value}" for name, value in parameters.items()))
        if key not in self._known:
            self._known[key] = self._get(path, parameters)
        return self._known[key]

    def _get(self, path: str, parameters: dict[str, str]) -> Any:
        url, content = f"{self.store.url}/api/v1/{path}", urllib.parse.urlencode(parameters)
        request = (url + "?" + content, None) if path.startswith("label/") else (url, content.encode())
        try:
            with urllib.request.urlopen(*request, timeout=60) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error}: {error.read().decode()}\n{parameters}") from error
        assert "success" == told["status"], (told, parameters)
        assert not told.get("isPartial"), parameters
        complaints = [*told.get("warnings", ()), *told.get("infos", ())]
        if complaints:
            self.complaints[parameters.get("query", path)] = complaints
        return told["data"]


@dataclass(frozen=True)
class View:
    """
    A dashboard, opened.

    Attributes:
        page: The dashboard.
        answers: The store it asks.
        now: The end of its time range, in seconds since 1970.
        values: What each variable stands for in a query.
        span: The length of its time range, in seconds.
    """

    page: Page
    answers: Answers
    now: int
    values: Mapping[str, str]
    span: int = DAY

    def instant(self, panel: Mapping[str, Any], ref: str | None = None) -> list[Series]:
        """The end of what a panel shows: all that a table shows, and what lines end with."""
        return list(self._ask(panel, ref, ranges=False))

    def shown(self, panel: Mapping[str, Any], ref: str | None = None) -> list[Series]:
        """What a panel shows: of this moment or over its time range."""
        return list(self._ask(panel, ref, ranges=True))

    def annotated(self, name: str) -> list[tuple[int, Labels]]:
        """
        When an annotation is drawn, and what it is about.

        Points that follow each other are one, drawn from the first to the last.
        """
        annotation = self.page.annotations[name]
        step = step_of(self.span, self.span, annotation["step"])
        return [
            (int(at), series.labels)
            for series in self._range(annotation["expr"], step, "", "")
            for place, (at, value) in enumerate(series.points)
            if value and (place == 0 or at - series.points[place - 1][0] > step)
        ]

    def _ask(self, panel: Mapping[str, Any], ref: str | None, *, ranges: bool) -> Iterator[Series]:
        for target in panel["targets"]:
            if ref not in (None, target["refId"]) or target.get("hide"):
                continue
            of = target["expr"], target["refId"], target["legendFormat"]
            assert target["instant"] != target["range"], of
            if target["range"] and ranges:
                step = step_of(self.span, panel.get("maxDataPoints") or WIDTH, panel.get("interval"))
                yield from self._range(of[0], step, *of[1:])
            else:
                yield from self._instant(*of)

    def _instant(self, expression: str, ref: str, legend: str) -> Iterator[Series]:
        query = self.resolved(expression, SCRAPE_INTERVAL)
        for one in self.answers.get("query", query=query, time=str(self.now))["result"]:
            yield Series(ref, named(legend, one["metric"]), one["metric"], _points([one["value"]]))

    def _range(self, expression: str, step: int, ref: str, legend: str) -> Iterator[Series]:
        query = self.resolved(expression, step)
        start, end = ((moment // step) * step for moment in (self.now - self.span, self.now))
        found = self.answers.get("query_range", query=query, start=str(start), end=str(end), step=str(step))
        for one in found["result"]:
            yield Series(ref, named(legend, one["metric"]), one["metric"], _points(one["values"]))

    def resolved(self, text: str, step: int) -> str:
        """The text with what its variables stand for."""
        own = {
            "__interval": f"{step}s",
            "__rate_interval": f"{max(step + SCRAPE_INTERVAL, 4 * SCRAPE_INTERVAL)}s",
            "__range": f"{self.span}s",
        }
        return substituted(text, {**self.values, **own})


def opened(page: Page, answers: Answers, now: int, **chosen: str | list[str]) -> View:
    """
    Open a dashboard.

    Args:
        page: The dashboard.
        answers: The store that it asks.
        now: The end of its time range, in seconds since 1970.
        chosen: What somebody chose for a variable; a list where there are several. Otherwise it is what the file says,
            or the first of the values there are. ``$__all`` is "All".

    Raises:
        AssertionError: If there is no such variable, or it cannot have this value.
    """
    variables = page.content["templating"]["list"]
    unknown = chosen.keys() - {variable["name"] for variable in variables}
    assert not unknown, f"{page.content['uid']} has no variable {unknown}"
    values: dict[str, str] = {}
    for variable in variables:  # each may use those before it
        name = variable["name"]
        options = _options(variable, answers, now, values)
        value: Any = chosen.get(name) or (variable.get("current") or {}).get("value") or options[:1]
        several = [value] if isinstance(value, str) else value
        values[name] = written(variable, several, options)
        values[f"{name}:regex"] = variable["allValue"] if several == ["$__all"] else as_regex(several)
    return View(page, answers, now, values)


def _options(variable: Mapping[str, Any], answers: Answers, now: int, values: Mapping[str, str]) -> list[str]:
    """What somebody may choose."""
    if variable["type"] == "datasource":
        return [variable["current"]["value"]]
    if variable["type"] == "custom":
        assert variable["query"].split(",") == [option["value"] for option in variable["options"]], variable["name"]
        return variable["query"].split(",")
    assert "query" == variable["type"], variable["name"]
    assert "${datasource}" == variable["datasource"]["uid"], variable["name"]
    return label_values(substituted(variable["query"], values), answers, now)


def label_values(query: str, answers: Answers, now: int) -> list[str]:
    """What ``label_values(selector, label)`` gives over the last 24 hours, in natural order."""
    asked = _LABEL_VALUES.fullmatch(query)
    assert asked, query
    span = {"start": str(now - DAY), "end": str(now)}
    found = answers.get(f"label/{asked['label']}/values", **{"match[]": asked["among"]}, **span)
    # Older data sources ask for series instead.
    series = answers.get("series", **{"match[]": asked["among"]}, **span)
    assert {one[asked["label"]] for one in series if asked["label"] in one} == set(found), query
    return sorted(found, key=lambda value: [(not part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", value)])


def written(variable: Mapping[str, Any], value: list[str], options: list[str]) -> str:
    """
    What stands in a query for the values of a variable.

    Only where several may be chosen is a value made a regular expression that nothing else matches.
    """
    name, several = variable["name"], variable.get("multi") or variable.get("includeAll")
    if value == ["$__all"]:
        assert variable["includeAll"], f"{name} cannot be All"
        return variable["allValue"]
    assert value, f"{name} has no value"
    assert set(value) <= set(options), f"{name} can be one of {options}, not {value}"
    if not several:
        (only,) = value
        return only.replace("\\", "\\\\").replace("'", "\\\\'")
    each = [re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", one.replace("\\", "\\\\\\\\")) for one in value]
    return each[0] if len(each) == 1 else f"({'|'.join(each)})"


def as_regex(values: list[str]) -> str:
    """What ``${name:regex}`` stands for: exactly these values, as a regular expression."""
    each = [re.sub(r"[\\^$.*+?()\[\]{}|]", r"\\\g<0>", value) for value in values]
    return each[0] if len(each) == 1 else f"({'|'.join(each)})"


def substituted(text: str, values: Mapping[str, str]) -> str:
    """
    The text with the values of its variables.

    Raises:
        AssertionError: If there is no such variable. ``$1`` is none.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2] or found[4]
        if name.isdigit():
            return found[0]
        assert name in values, f"there is no variable {name}: {text}"
        return values[f"{name}:regex" if found["form"] == "regex" else name]

    return _VARIABLE.sub(value, text)


def step_of(span: int, points: int, least: str | None = None) -> int:
    """How many seconds points are apart; `least` is the panel's own limit, instead of the data source's."""
    exact = span / points
    rounded = next((to for below, to in _ROUND if exact < below), 6 * 3600)
    limit = SCRAPE_INTERVAL if least is None else int(least.removesuffix("s"))
    return max(rounded, limit)


def named(legend: str, labels: Labels) -> str:
    """What the legend calls a series; by itself, by its labels."""
    if legend == "__auto":
        return ", ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "Value"
    return _LEGEND.sub(lambda found: labels.get(found[1], ""), legend)


def _points(values: list[list[Any]]) -> Points:
    return [(float(at), float(value)) for at, value in values]
