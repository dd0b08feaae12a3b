"""
The HTML report of an evaluation: what it says, that names cannot break it, and how a real browser shows it.
"""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Page, chromium
from test_batch_evaluation import job_of, table_of
from test_oracles import SCENARIOS

from otel_model_metrics import catalog
from otel_model_metrics.batch import Evaluation, Job, charts, evaluate, html
from otel_model_metrics.batch.html import MOST_WINDOWS, number, report

START = 1_762_992_000  # 2025-11-13T00:00:00Z
NOW = 1_764_000_000.0
HOUR = 3600
EMPTY, FEW = 17, (30, 31)  # windows without rows, and with few
HOSTILE = {
    "script": "<script>document.title = 'taken'</script>",
    "quotes": "\"'><img src=x onerror=\"document.title = 'taken'\">",
    "template": "{{ 7 * 7 }}{% raw %}",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd",
    "long": "x" * 300,
    "entity": "&lt;b&gt;",
}


def predictions(windows: int = 48, rows: int = 40, segments: dict[str, list[str]] | None = None) -> pa.Table:
    """Rows of a binary model that becomes worse in the last quarter; some have no label."""
    random = np.random.default_rng(5)
    counts = [0 if at == EMPTY else 5 if at in FEW else rows for at in range(windows)]
    at = np.repeat(np.arange(windows), counts)
    label = random.random(len(at)) < 0.4
    score = 1 / (1 + np.exp(-(4.0 * (label - 0.5) + random.normal(0.0, 1.3, len(at)) + (at > windows * 0.75))))
    known = np.where(random.random(len(at)) < 0.9, label, None)
    columns = {
        "predicted": score > 0.5,
        "score": score,
        "label": pa.array([None if one is None else bool(one) for one in known]),
        "time": pa.array(START * 10**6 + at * HOUR * 10**6 + 10**6, pa.timestamp("us", tz="UTC")),
    }
    for name, values in (segments or {"country": ["DE", "FR", "IT"], "channel": ["web", "app"]}).items():
        columns[name] = random.choice(values, len(at))
    return pa.table(columns)


def evaluated(folder: Path, table: pa.Table, **settings: Any) -> Evaluation:
    path = folder / "predictions.parquet"
    pq.write_table(table, path)
    given: dict[str, Any] = {
        "model": "fraud",
        "score": "score",
        "time": "time",
        "segments": ("country", "channel"),
        "objectives": {"f1": 0.6, "recall": 0.99, "precision": 0.85, "brier_score": 0.2},
    }
    return evaluate(path, Job("binary", "predicted", **{**given, **settings}))


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated(tmp_path_factory.mktemp("binary"), predictions())


def of_task(folder: Path, task: str, **settings: Any) -> Evaluation:
    """An evaluation of some rows of a task, over three windows."""
    rows = SCENARIOS[task]["any"](np.random.default_rng(3))
    times = [START + at % 3 * 600 for at in range(len(rows))]
    path = folder / f"{task}.parquet"
    pq.write_table(table_of(task, rows, times), path)
    return evaluate(path, job_of(task, **settings))


class Document(HTMLParser):
    """The tables of a page by the section they are in: rows of cells, each its text and the numbers behind it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, list[float]]]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._section, self._cell = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "section":
            self._section = str(given["aria-labelledby"])
        rows = self.tables.setdefault(self._section, [])
        if tag == "tr":
            rows.append([])
        elif tag in ("td", "th"):
            rows[-1].append(("", []))
            self._cell = True
        elif tag == "data" and self._cell:
            rows[-1][-1][1].append(float(str(given["value"])))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            rows = self.tables[self._section]
            text, numbers = rows[-1][-1]
            rows[-1][-1] = text + data, numbers

    def row(self, section: str, name: str) -> list[tuple[str, list[float]]]:
        return next(row for row in self.tables[section] if row and row[0][0].strip() == name)


# What it says


@pytest.mark.parametrize("task", catalog.TASKS)
def test_the_table_has_every_value_of_the_snapshot(tmp_path, task):
    """
    All metrics of all rows, with their bounds, to the last digit; what is undefined has no number.
    """
    evaluation = of_task(tmp_path, task)
    page = Document(report(evaluation, now=NOW))
    overall = evaluation.overall

    seen = 0
    for series in overall.series:
        base = series.name.removesuffix(catalog.LOWER).removesuffix(catalog.UPPER)
        variant = dict(series.variant)
        if catalog.CLASS in variant or (base in catalog.BY_NAME and catalog.BY_NAME[base].always):
            continue
        row = page.row("metrics", " ".join([base, *variant.values()]))
        of_series = {catalog.AVERAGE: "average", catalog.K: "k"}
        value = overall.value(series.name, **{of_series[key]: one for key, one in variant.items()})
        cell, place = (row[1], 0) if base == series.name else (row[2], 0 if series.name.endswith(catalog.LOWER) else 1)
        assert ([] if value is None else [value]) == cell[1][place : place + 1], series.name
        seen += 1
    assert seen > 10


@pytest.mark.parametrize("task", catalog.TASKS)
def test_segments_are_shown_the_worst_first(tmp_path, task):
    """
    Each with its values to the last digit, in the order of the metric that stands for the task.
    """
    evaluation = of_task(tmp_path, task, segment_metrics=None)
    page = Document(report(evaluation, now=NOW))
    headline = next(one for one in catalog.metrics_of(task) if one.headline)

    rows = page.tables["segments"]
    values = {}
    for segment in evaluation.overall.segments:
        if segment is not None:
            cell = next(row for row in rows if row[0][0] == segment[1])
            values[segment] = evaluation.overall.value(headline.name, segment=segment)
            assert [] if values[segment] is None else [values[segment]] == cell[3][1]
    order = {row[0][0]: at for at, row in enumerate(rows)}
    for name in ("country", "channel"):
        known = [(order[segment[1]], value) for segment, value in values.items() if segment[0] == name and value]
        by_badness = sorted(known, key=lambda one: one[1] if headline.better == "higher" else -one[1])
        assert len(known) > 1
        assert sorted(known) == by_badness


def test_windows_are_told_one_by_one(binary):
    """
    The newest first, each with its rows and its values.
    """
    page = Document(report(binary, now=NOW))
    columns = [text for text, _ in page.tables["windows"][0]]

    rows = page.tables["windows"][1:]
    assert 47 == len(rows) == len(binary.windows)
    for row, window in zip(rows, reversed(binary.windows), strict=True):
        assert [f"{window.predictions}", f"{window.snapshot.rows}"] == [row[1][0], row[2][0]]
        for name, (_, numbers) in list(zip(columns, row, strict=True))[3:]:
            value = window.snapshot.value(name)
            assert ([] if value is None else [value]) == numbers
    assert "2025-11-14 23:00 \N{EN DASH} 24:00" == rows[0][0][0]
    assert {"accuracy", "f1", "recall", "precision", "brier_score"} == set(columns[3:])


def test_objectives_are_judged_in_words(tmp_path):
    """
    Missed and met only with confidence; without bounds by the value; else there is too little data to tell.
    """
    reached = evaluated(tmp_path, predictions(4)).overall.value("accuracy")
    objectives = {"f1": 0.2, "recall": 0.999, "accuracy": reached, "brier_score": 0.01, "log_loss": 9.0}
    evaluation = evaluated(tmp_path, predictions(4), objectives=objectives)
    page = report(evaluation, now=NOW)

    cards = re.findall(r"<article.*?</article>", page, re.S)
    said = {
        re.search("<h3>(.*?)</h3>", card)[1]: re.search(r'<p class="pill (\w+)">.*?</svg>\s*(.*?)</p>', card, re.S)
        for card in cards
    }
    assert {
        "f1": ("met", "Met with confidence"),
        "recall": ("missed", "Missed with confidence"),
        "accuracy": ("unsure", "Too little data to tell"),
        "brier_score": ("missed", "Missed"),
        "log_loss": ("met", "Met"),
    } == {name: found.groups() for name, found in said.items()}
    missed = {one.name for one in evaluation.missed()}
    assert missed == {name for name, found in said.items() if found[1] == "missed"}
    assert "Objectives are missed: recall, brier_score." in page
    assert "but the 95 % interval reaches to both sides of it." in page


def test_a_bias_may_be_off_to_either_side(tmp_path):
    """
    The objective of a metric that should be near zero is drawn and said as a range.
    """
    page = report(of_task(tmp_path, "regression", objectives={"mean_error": 500.0}), now=NOW)

    assert "Objective: within ±" in page
    chart = next(one for one in re.findall(r"<figure.*?</figure>", page, re.S) if "<h3>mean_error</h3>" in one)
    assert 2 == chart.count('<path class="objective"')
    assert "objective ± 500" in chart


def test_the_header_counts_rows(binary):
    """
    Rows read, usable and labelled, the share of labels, the period and the windows.
    """
    page = report(binary, now=NOW)
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd><data value=\"([^\"]+)\">", page))

    assert {
        "Rows read": str(binary.rows),
        "Usable": str(binary.predictions),
        "With a label": str(binary.overall.rows),
        "Label coverage": repr(binary.overall.value("label.coverage")),
    } == facts
    assert "2025-11-13 \N{EN DASH} 2025-11-14 UTC, in 47 windows of 1 hour" in page
    assert 0 < binary.overall.rows < binary.predictions


def test_the_confusion_matrix_counts_labels_and_predictions(binary, tmp_path):
    """
    Rows are labels, columns predictions; each cell has its count and its share of the label.
    """
    cells = binary.statistics.sums["matrix"][:, 0].sum(axis=0)
    rows = Document(report(binary, now=NOW)).tables["matrix"]

    assert ["negative", "positive", "labels"] == [text for text, _ in rows[0][1:]]
    for row, name, counts in zip(rows[1:], ("negative", "positive"), cells, strict=True):
        shares = [f"{count}{count / counts.sum() * 100:.1f} %" for count in counts]
        assert [name, *shares, f"{counts.sum()}"] == [text for text, _ in row]


def test_of_many_classes_the_largest_are_shown(tmp_path):
    """
    A matrix of 30 classes is cut to 20, and says how many rows that leaves out.
    """
    labels = np.repeat([f"c{at}" for at in range(30)], np.arange(1, 31))
    table = pa.table({"predicted": labels, "label": labels})
    path = tmp_path / "many.parquet"
    pq.write_table(table, path)
    page = report(evaluate(path, Job("multiclass", "predicted")), now=NOW)
    document = Document(page)

    assert [f"c{at}" for at in range(10, 30)] == [row[0][0] for row in document.tables["matrix"][1:]]
    assert "Of 30 classes these are the 20 with the most rows; 55 rows are of others." in document.text
    assert ["c29", "c28"] == [row[0][0] for row in document.tables["classes"][1:3]]
    assert 31 == len(document.tables["classes"])


def test_what_was_not_used_is_said(tmp_path):
    """
    Reasons with their rows and the first of them, and files with a problem.
    """
    path = tmp_path / "rows.csv"
    path.write_text("predicted,label\ntrue,false\nmaybe,true\nfalse,false\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    evaluation = evaluate([path, tmp_path / "broken.parquet"], Job("binary", "predicted"))
    document = Document(report(evaluation, now=NOW))

    assert evaluation.problems
    assert {reason: count for reason, count in evaluation.rejected.items() if count} == {
        row[0][0]: int(row[1][0]) for row in document.tables["remarks"][1:]
    }
    assert all(where in document.text for where in (*evaluation.first.values(), *evaluation.problems))


def test_without_windows_there_is_all_but_the_course(tmp_path):
    """
    One window, or no column of times, makes no line; everything else is there.
    """
    none = Document(report(evaluated(tmp_path, predictions(4), time=None), now=NOW))
    one = Document(report(evaluated(tmp_path, predictions(4), every="7d"), now=NOW))

    for document in (none, one):
        assert {"metrics", "matrix", "segments"} <= document.tables.keys()
        assert "courses" not in document.tables
    assert "windows" not in none.tables
    assert 2 == len(one.tables["windows"])


def test_nothing_usable_is_a_page_that_says_so(tmp_path):
    """
    Also a file without rows, and one without a label.
    """
    table = predictions(2)
    unlabelled = table.set_column(2, "label", pa.nulls(len(table), pa.bool_()))
    nothing = report(evaluated(tmp_path, table[:0]), now=NOW)
    without = report(evaluated(tmp_path, unlabelled), now=NOW)

    assert "Nothing could be evaluated: no row could be used." in nothing
    assert "No row has a label, so no metric is defined." in without
    for page in (nothing, without):
        assert not {"objectives", "courses", "metrics", "matrix", "segments"} & Document(page).tables.keys()


@pytest.mark.parametrize("task", catalog.TASKS)
def test_every_name_and_direction_is_the_catalogues(tmp_path, task):
    """
    Each metric of the task has its row, its sentence and its direction.
    """
    document = Document(report(of_task(tmp_path, task), now=NOW))

    for metric in catalog.metrics_of(task):
        if not metric.always:
            row = next(row for row in document.tables["metrics"] if row[0][0].split(" ")[0] == metric.name)
            better = {"zero": "near 0"}.get(metric.better, metric.better)
            assert (metric.description, better) == (row[4][0], row[5][0])


def test_the_same_evaluation_makes_the_same_page(binary):
    """
    But for the time when it was made, which is an argument.
    """
    page = report(binary, now=NOW)

    assert page == report(binary, now=NOW)
    assert "at 2025-11-24 16:00 UTC" in page
    assert page.replace("2025-11-24 16:00", "2025-11-24 17:00") == report(binary, now=NOW + HOUR)


def test_the_job_is_told(binary):
    """
    What was asked for stands at the end, so that a page that was mailed around explains itself.
    """
    footer = report(binary, now=NOW).partition("<footer>")[2]
    options = dict(re.findall(r"<dt>(.*?)</dt><dd><bdi>(.*?)</bdi></dd>", footer))

    assert ("binary", "predicted", "label") == tuple(options[name] for name in ("task", "prediction", "label"))
    assert "f1=0.6, recall=0.99, precision=0.85, brier_score=0.2" == options["objectives"]
    assert "country, channel" == options["segments"]
    assert "delimiter" not in options


# What it is made of


def test_names_cannot_break_the_page(tmp_path):
    """
    Names and values from outside are text, whatever they contain.
    """
    plain = evaluated(tmp_path, predictions(3, segments={"country": ["a", "b"]}), segments=("country",))
    segments = {HOSTILE["quotes"]: list(HOSTILE.values())}
    names = {"model": HOSTILE["script"], "version": HOSTILE["long"], "segments": (HOSTILE["quotes"],)}
    page = report(evaluated(tmp_path, predictions(3, segments=segments), **names), now=NOW)

    def kinds(text: str) -> set[str]:
        return {tag for tag, _ in Document(text).tags}

    assert kinds(report(plain, now=NOW)) == kinds(page)
    used = {name for _, given in Document(page).tags for name in given if not name.startswith("aria-")}
    assert not {name for name in used if name.startswith("on") or name in ("src", "href")}
    assert {"class", "value"} <= used
    text = Document(page).text
    assert all(value in text for value in HOSTILE.values())


def test_what_no_document_may_contain_is_replaced(binary):
    """
    Names of files may have control characters, and bytes that are no text.
    """
    page = report(dataclasses.replace(binary, problems=("a\x00b\x1b.csv", "c\udcff.csv")), now=NOW)

    assert ["a\ufffdb\ufffd.csv", "c\ufffd.csv"] == re.findall(r"<li><bdi>(.*?)</bdi>", page)
    page.encode("utf-8")


def test_nothing_is_loaded_and_no_script_is_there(binary):
    """
    No address of anything elsewhere, and a policy that would forbid it.
    """
    page = report(binary, now=NOW)

    assert [] == re.findall(
        r"<(?:script|link|img|iframe|object|embed|base|form)\b|\b(?:src|href)=|url\(|@import|//", page
    )
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_thousands_of_windows_make_a_light_page(tmp_path):
    """
    2,000 windows are below 2 MB; the newest are in the table, which says how many are not.
    """
    objectives = {"f1": 0.6, "recall": 0.9}
    evaluation = evaluated(tmp_path, predictions(2_000, rows=4), score=None, objectives=objectives)
    page = report(evaluation, now=NOW)

    left = len(evaluation.windows) - MOST_WINDOWS
    assert 999 == left
    assert f"1,000 windows of 1 hour, the newest first; the first {left} are left out" in page
    assert len(page.encode()) < 2_000_000
    assert page.count("<path") < 2_000
    assert "so many windows of 1 hour that 14 are drawn as one" in page
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert 4 == len(figures)
    assert max(map(len, figures)) < 100_000


def test_without_jinja_the_error_names_the_extra(binary, monkeypatch):
    """
    The template needs it, and the extra `batch` has it.
    """
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "jinja2":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    html._template.cache_clear()

    with pytest.raises(ModuleNotFoundError) as raised:
        report(binary)

    message = 'A report as HTML needs the extra batch: pip install "otel-model-metrics[batch]"'
    assert (message, "jinja2") == (str(raised.value), raised.value.name)


# Where lines are


def points(values: list[float | None], numbers: list[int] | None = None) -> list[charts.Point]:
    return [
        charts.Point(at, math.nan if value is None else value, math.nan, math.nan, 3, 4)
        for at, value in zip(numbers or range(len(values)), values, strict=True)
    ]


def test_a_line_is_open_where_there_is_no_value():
    """
    A window that is undefined or absent ends a line; one between two such is a dot.
    """
    chart = charts.course(points([0.1, 0.2, None, 0.5, None, 0.3, 0.3, 0.4], [0, 1, 2, 3, 4, 5, 6, 9]), 0.0, 60.0)

    assert 2 == chart.line.count("M")
    assert 2 == chart.line.count("L")
    assert 2 == chart.dots.count("M")
    assert 8 == chart.labelled.count("M")


def test_a_line_is_where_its_values_are():
    """
    The higher the value the higher it is drawn, between the ticks that it is between, and time runs to the right.
    """
    chart = charts.course(points([0.0, 0.5, 1.0]), 0.0, 60.0, objectives=[0.5], limits=(0.0, 1.0))

    places = [tuple(map(float, place.split())) for place in chart.line.removeprefix("M").split("L")]
    heights = {tick.text: tick.at for tick in chart.levels}
    assert (heights["0.0"], heights["1.0"]) == (chart.bottom, chart.top)
    assert [chart.bottom, (chart.bottom + chart.top) / 2, chart.top] == [y for _, y in places]
    assert [(chart.bottom + chart.top) / 2] == list(chart.objectives)
    wide = (chart.right - chart.left) / 3
    assert pytest.approx([chart.left + wide / 2, chart.left + wide * 1.5, chart.left + wide * 2.5], abs=0.06) == [
        x for x, _ in places
    ]


def test_merged_windows_keep_the_lowest_and_the_highest():
    """
    A single bad window among thousands is still seen, and no row is lost from the bars.
    """
    values: list[float | None] = [0.9] * 20_000
    values[3_210], values[1_234] = 0.1, 1.0
    chart = charts.course(points(values), 0.0, 60.0, limits=(0.0, 1.0))

    lines, bands = (
        [float(place.split()[1]) for place in re.split("[ML]", path.rstrip("z"))[1:]]
        for path in (chart.line, chart.band)
    )
    assert {lines[0]} == set(lines)
    lowest, usual, highest = max(bands), lines[0], min(bands)
    assert [1, 1] == [bands.count(lowest), bands.count(highest)]
    heights = {tick.text: tick.at for tick in chart.levels}
    assert heights["1.0"] == highest < usual < heights["0.2"] < lowest
    assert len(lines) <= charts.MOST_POINTS / 2
    assert charts.short_count(chart.merged * 4) == chart.most


@pytest.mark.parametrize(
    ("start", "seconds", "texts"),
    [
        (START, 1, ["13 Nov 00:00:00", "00:00:01"]),
        (START + 5 * HOUR, 6 * HOUR, ["13 Nov 06:00", "08:00", "10:00"]),
        (START + HOUR / 2, 48 * HOUR, ["12:00", "14 Nov", "12:00", "15 Nov"]),
        (START, 40 * 24 * HOUR, ["24 Nov", "8 Dec", "22 Dec"]),
        (START, 100 * 24 * HOUR, ["Dec", "2026", "Feb"]),
        (START + 60 * 24 * HOUR, 100 * 24 * HOUR, ["Feb 2026", "Mar", "Apr"]),
        (START, 3000 * 24 * HOUR, ["2026", "2028", "2030", "2032", "2034"]),
    ],
)
def test_times_are_round(start, seconds, texts):
    """
    At most five on the axis; the day and the year are said where they begin, and once in any case.
    """
    assert texts == [text for _, text in charts.time_ticks(start, start + seconds)]


@pytest.mark.parametrize("value", [0.0, -0.98765, 1.23456, 9.99999, 123.456, 98_765.4, 1.5e7, 3e-7, 2e15])
def test_numbers_are_as_exact_as_they_need_to_be(value):
    """
    What is shown is within a ten-thousandth of the value, or of one.
    """
    shown = float(number(value).replace(",", ""))

    assert abs(shown - value) <= 5.1e-5 * max(1.0, abs(value))


# In a real browser

SHOWN = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]

# Every visible text with its colour and what is behind it, as red, green, blue from 0 to 255; what is transparent lets
# through what is behind it.
TEXTS = """
(() => {
  const parse = (text) => {
    const parts = (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return parts.length < 4 ? [...parts, 1] : parts;
  };
  const over = (top, below) => top.slice(0, 3).map((one, at) => one * top[3] + below[at] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((one) => one.nodeType === 3).map((one) => one.data.trim()).join("");
    const box = element.getBoundingClientRect();
    if (!own || !box.width || !box.height || element.tagName === "title") continue;
    const style = getComputedStyle(element), drawn = element instanceof SVGElement;
    const matrix = drawn ? element.getScreenCTM().a : 1;
    found.push({
      text: own.slice(0, 30), drawn, size: parseFloat(style.fontSize) * matrix,
      colour: parse(drawn ? style.fill : style.color).slice(0, 3), behind: behind(element),
      left: box.left, right: box.right,
    });
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module", params=SHOWN, ids=[f"{width} px, {scheme}" for width, scheme in SHOWN])
def shown(
    request: pytest.FixtureRequest, browser: Page, binary: Evaluation, tmp_path_factory: pytest.TempPathFactory
) -> Page:
    """The report, in a window of some width, with all that can be unfolded unfolded."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report(binary, now=NOW), encoding="utf-8")
    browser.open(path, *request.param)
    browser.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    return browser


def contrast(one: list[float], other: list[float]) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines 2 define it: from 1 to 21."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted([luminance(one), luminance(other)])
    return (bright + 0.05) / (dark + 0.05)


def test_a_browser_loads_the_file_alone_and_complains_of_nothing(shown):
    """
    One request, no message of any kind.
    """
    requests = [one["request"]["url"] for one in shown.told("Network.requestWillBeSent")]

    assert ["report.html"] == [url.rpartition("/")[2] for url in requests]
    for kind in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed"):
        assert [] == shown.told(kind)


def test_a_browser_draws_the_charts(shown):
    """
    Each has its line, its band if it has bounds, its bars, its objective and its ticks, with a size and on the screen.
    """
    figures = shown.ask(
        """[...document.querySelectorAll("figure")].map((figure) => {
          const boxes = (what) => [...figure.querySelectorAll(what)].map((one) => {
            const box = one.getBoundingClientRect();
            return [box.left, box.right, box.top, box.bottom, one.getTotalLength ? one.getTotalLength() : 0];
          });
          return {
            name: figure.querySelector("h3").textContent, svg: boxes("svg")[0], line: boxes("path.line"),
            band: boxes("path.band"), labelled: boxes("path.labelled"), objective: boxes("path.objective"),
            text: boxes("text"),
          };
        })"""
    )
    assert ["f1", "recall", "precision", "brier_score", "accuracy"] == sorted(
        (one["name"] for one in figures), key=["f1", "recall", "precision", "brier_score", "accuracy"].index
    )
    for one in figures:
        left, right, top, bottom, _ = one["svg"]
        assert 0 <= left < right <= shown.width
        assert right - left > 250
        kinds = ["line", "labelled", *(["band"] if one["name"] != "brier_score" else [])]
        for kind in kinds:
            for box in one[kind]:
                assert box[1] - box[0] > 200, kind
                assert box[3] - box[2] > 5, kind
        assert all(one[kind] for kind in kinds)
        assert (1 if one["name"] != "accuracy" else 0) == len(one["objective"])
        assert len(one["text"]) >= 7
        for box in (box for kind in (*kinds, "objective", "text") for box in one[kind]):
            assert left - 1 <= box[0] <= box[1] <= right + 1
            assert top - 1 <= box[2] <= box[3] <= bottom + 1


def test_a_browser_need_not_scroll_sideways(shown):
    """
    Wide tables scroll in boxes of their own.
    """
    # Not innerWidth: a telephone zooms out until all is seen.
    assert shown.width >= shown.ask("document.documentElement.scrollWidth")
    boxes = shown.ask("[...document.querySelectorAll('.scroll')].map((one) => one.getBoundingClientRect().right)")
    assert len(boxes) >= 4
    assert max(boxes) <= shown.width
    cells = "[...document.querySelectorAll('th, td, h1, h2, h3, p, dd')].filter((one) => one.offsetParent)"
    assert [] == shown.ask(f"{cells}.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.outerHTML)")


def test_text_is_large_enough_on_every_screen(shown):
    """
    At least 9 px as it is seen in charts, and 12 px elsewhere; ticks of an axis do not run into each other.
    """
    texts = shown.ask(TEXTS)

    assert 20 < len([one for one in texts if one["drawn"]])
    assert [] == [one for one in texts if one["size"] < (9 if one["drawn"] else 12)]
    axes = shown.ask(
        """[...document.querySelectorAll(".course")].map((one) => [...one.querySelectorAll(".time")].map((text) => {
          const box = text.getBoundingClientRect();
          return [box.left, box.right];
        }))"""
    )
    for axis in axes:
        assert len(axis) > 2
        assert all(one[1] + 3 < other[0] for one, other in itertools.pairwise(axis))


def test_text_stands_out_from_what_is_behind(shown):
    """
    A contrast of 4.5 to 1 at least, of every text.
    """
    texts = shown.ask(TEXTS)

    weak = [(one["text"], contrast(one["colour"], one["behind"])) for one in texts]
    assert [] == [(text, ratio) for text, ratio in weak if ratio < 4.5]


def test_light_and_dark_differ(browser, binary, tmp_path):
    """
    The page follows what its reader prefers, and is dark where they prefer dark.
    """
    path = tmp_path / "report.html"
    path.write_text(report(binary, now=NOW), encoding="utf-8")
    behind = {}
    for scheme in ("light", "dark"):
        browser.open(path, 1280, scheme)
        texts = browser.ask(TEXTS)
        behind[scheme] = {json.dumps(one["behind"]) for one in texts}, max(sum(one["behind"]) for one in texts)

    assert set() == behind["light"][0] & behind["dark"][0]
    assert behind["dark"][1] < 3 * 128


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_is_not_misled_by_names(browser, tmp_path, width):
    """
    Nothing is run, and names of 300 letters do not widen the page.
    """
    segments = {HOSTILE["quotes"]: list(HOSTILE.values()), HOSTILE["long"]: ["a", "b"]}
    names = {"model": HOSTILE["script"], "version": HOSTILE["long"], "segments": tuple(segments)}
    path = tmp_path / "report.html"
    page = report(evaluated(tmp_path, predictions(3, segments=segments), **names), now=NOW)
    path.write_text(page, encoding="utf-8")

    browser.open(path, width, "light")

    assert 1 == len(browser.told("Network.requestWillBeSent"))
    assert [] == browser.told("Log.entryAdded")
    assert browser.ask("document.title").startswith("<script>")
    assert width >= browser.ask("document.documentElement.scrollWidth")
    assert browser.ask("document.querySelector('h1').getBoundingClientRect().right") <= width
    assert browser.ask("Math.max(...[...document.querySelectorAll('tr')].map((one) => one.clientHeight))") < 400


def test_tables_scroll_by_the_keyboard(shown):
    """
    Each box can be reached without a pointer and says what it is; headers say what they are of.
    """
    wrong = shown.ask(
        """[
          ...[...document.querySelectorAll(".scroll")].filter((one) => one.tabIndex !== 0 ||
            !(one.ariaLabel || document.getElementById(one.getAttribute("aria-labelledby")))),
          ...[...document.querySelectorAll("th")].filter((one) => !one.scope),
          ...[...document.querySelectorAll("svg[role=img]")].filter((one) => !one.ariaLabel),
        ].map((one) => one.outerHTML.slice(0, 100))"""
    )

    assert [] == wrong
