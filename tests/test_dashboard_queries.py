"""
Every query of every dashboard that we ship, asked of both stores as Grafana would: it is answered, there is something
where something must be, and what it says is what scikit-learn says of the same rows.

A panel that is not in the tables of this file fails a test; metrics get there by the catalogue.
"""

from __future__ import annotations

import math
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from backends import get
from dashboard_fleet import HOUR, MINUTE, Fleet, Row
from oracles import Rows, expected
from statsmodels.stats.proportion import proportion_confint

from grafana import DAY, Answers, Page, Series, View, named, opened, step_of, substituted, written
from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import prometheus_name
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.dashboards import GROUND_TRUTH, MODEL_PAGE, OVERVIEW, SEGMENTS

PAGES = {uid: Page.read(uid) for uid in (OVERVIEW, MODEL_PAGE, SEGMENTS, GROUND_TRUTH)}
# Those on which several models may be chosen, and the others.
OF_ALL, OF_ONE = (OVERVIEW, GROUND_TRUTH), (MODEL_PAGE, SEGMENTS)
STORES = ("victoria_metrics", "prometheus")
# VictoriaMetrics counts exactly. Prometheus' increase() extrapolates each series to the ends of the window, and the
# cells of a matrix of classes do not begin at the same time, so that sums shift a little against each other.
TOLERANCE = {"victoria_metrics": 1e-6, "prometheus": 0.005}
# Rows of a process that has ended: by half an interval in two hours.
ROWS_TOLERANCE = {"victoria_metrics": 1e-9, "prometheus": 0.02}

# Over so long the tests ask: today's rows, while those of yesterday's version are older.
WINDOW, LEAST_ROWS = "6h", "30"
CHOSEN = {"window": WINDOW, "min_rows": LEAST_ROWS}

# The models of the fleet: the task of each, and its objectives.
TASKS = {
    "tumours": "binary",
    "digits": "multiclass",
    "diabetes": "regression",
    "image-search": "ranking",
    "dead": "binary",
    "newborn": "binary",
    "unlabelled": "binary",
    "goalless": "regression",
    "late": "binary",
    "messy": "binary",
}
OBJECTIVES: dict[str, dict[str, float]] = {
    "tumours": {"f1": 0.9, "recall": 0.85},
    "digits": {"accuracy": 0.9},
    "diabetes": {"rmse": 65.0},
    "image-search": {"mrr": 0.9, "ndcg_at_k": 0.75},
    "newborn": {"f1": 0.8},
    "unlabelled": {"f1": 0.8},
    "late": {"accuracy": 0.8},
    "messy": {"accuracy": 0.99},
}
K = 10
DEMO = ("tumours", "digits", "diabetes", "image-search")
EVERY = frozenset(TASKS)
LIVE = EVERY - {"dead"}  # those whose process still reports
LABELLED = EVERY - {"unlabelled"}
JUDGED = LABELLED - {"newborn"}  # those with enough rows
LATE = frozenset({*DEMO, "late"})  # those whose labels come late
GOALS = LIVE - {"goalless"}
CLASSIFIERS = frozenset(model for model, task in TASKS.items() if task in ("binary", "multiclass"))
HEADLINES = {
    task: next(metric.name for metric in catalog.metrics_of(task) if metric.headline) for task in catalog.TASKS
}

ALERTING = Path(__file__).parent.parent / "grafana" / "provisioning" / "alerting" / "ml-model-quality.yaml"
in_both_stores = pytest.mark.parametrize("store", STORES)
on_every_page = pytest.mark.parametrize("uid", PAGES)


@pytest.fixture(scope="session")
def asked(fleet: Fleet) -> dict[str, Answers]:
    """Both stores; each question is asked once, however many tests ask it."""
    return {name: Answers(store) for name, store in fleet.stores.items()}


@pytest.fixture
def look(fleet: Fleet, asked: dict[str, Answers]) -> Callable[..., View]:
    """Opens a page, now or at another time."""

    def open_page(store: str, uid: str, now: int | None = None, **chosen: Any) -> View:
        return opened(PAGES[uid], asked[store], fleet.now if now is None else now, **{**CHOSEN, **chosen})

    return open_page


def by_label(series: Iterable[Series], *names: str) -> dict[Any, float]:
    """The value of each series by these of its labels, or by a single one."""
    found = {
        tuple(one.labels.get(name, "") for name in names) if len(names) > 1 else one.labels.get(names[0], ""): one.value
        for one in series
    }
    assert len(found) == len(list(series)), "labels do not tell the series apart"
    return found


def by_name(series: Iterable[Series]) -> dict[str, float]:
    """The value of each series by what the legend calls it."""
    found = {one.name: one.value for one in series}
    assert len(found) == len(list(series)), "the legend does not tell the series apart"
    return found


# What Grafana does


def test_variables_are_replaced_and_a_group_of_label_replace_is_not():
    """
    Wherever they stand, quotes or not.
    """
    text = 'label_replace(up{job=~"$job"}[$window], "a", "$1", "b", "(.*)") > ${min_rows} [[job]]'

    found = substituted(text, {"job": "api", "window": "1h", "min_rows": "30"})

    assert 'label_replace(up{job=~"api"}[1h], "a", "$1", "b", "(.*)") > 30 api' == found


@pytest.mark.parametrize("text", ["$modell", "${modell}", "${modell:regex}", "[[modell]]"])
def test_an_undefined_variable_is_an_error(text):
    """
    It would be sent to the store as it is.
    """
    with pytest.raises(AssertionError, match="there is no variable modell"):
        substituted(f'up{{job="{text}"}}', {"model": "churn"})


@pytest.mark.parametrize(
    ("variable", "value", "expected_text"),
    [
        ({"name": "a", "multi": True, "includeAll": True, "allValue": ".*"}, ["$__all"], ".*"),
        ({"name": "a", "multi": True, "includeAll": True, "allValue": ".*"}, ["1.0"], r"1\\.0"),
        ({"name": "a", "multi": True, "includeAll": True, "allValue": ".*"}, ["1.0", "c+"], r"(1\\.0|c\\+)"),
        ({"name": "a"}, ["1.0"], "1.0"),
    ],
)
def test_values_are_made_regular_expressions_where_there_may_be_several(variable, value, expected_text):
    """
    And what stands for All is not touched.
    """
    assert expected_text == written(variable, value, ["1.0", "c+"])


@pytest.mark.parametrize(("points", "seconds"), [(1000, 60), (400, 300), (48, 1800)])
def test_points_of_a_day_are_a_round_distance_apart(points, seconds):
    """
    Not closer together than the store gets samples.
    """
    assert seconds == step_of(DAY, points)


@in_both_stores
def test_variables_find_the_models_of_the_fleet(fleet, asked, store):
    """
    Each one, and of a model its versions and segments. The first model is shown to who has chosen none.
    """
    now = fleet.now

    for model in TASKS:
        view = opened(PAGES[SEGMENTS], asked[store], now, model=model, version=["1.0"])
        assert {"model": model, "version": r"1\\.0"} == {name: view.values[name] for name in ("model", "version")}
        segments = {name for row in fleet.truth.made if row.model == model for name in row.segments}
        assert min(segments) == view.values["segment_name"]
        assert ".*" == view.values["segment_value"]
    assert "dead" == opened(PAGES[MODEL_PAGE], asked[store], now).values["model"]
    assert "1h" == opened(PAGES[MODEL_PAGE], asked[store], now).values["window"]


def test_prometheus_complains_of_what_is_no_counter(fleet):
    """
    So that a page that asks something foolish would be noticed.
    """
    answers = Answers(fleet.stores["prometheus"])

    answers.get("query", query="rate(ml_model_accuracy[5m])", time=str(fleet.now))

    ((_, (complaint,)),) = answers.complaints.items()
    assert "metric might not be a counter" in complaint


# Every query is answered


def every_choice(uid: str, models: Iterable[str]) -> list[dict[str, Any]]:
    """All models at once, or one after the other."""
    return [{}] if uid in OF_ALL else [{"model": model} for model in models]


@in_both_stores
@on_every_page
@pytest.mark.parametrize("window", ["15m", "1h", WINDOW, "1d"])
def test_every_query_is_answered(look, asked, store, uid, window):
    """
    Of each panel, also in rows that are closed at first, for each model, and without complaints.
    """
    for choice in every_choice(uid, TASKS if window == WINDOW else DEMO):
        view = look(store, uid, **choice, window=window)
        for panel in PAGES[uid].panels:
            view.instant(panel)

    assert {} == asked[store].complaints


@in_both_stores
@on_every_page
def test_every_query_is_answered_for_a_day(look, asked, store, uid):
    """
    At as many points as Grafana draws.
    """
    for choice in every_choice(uid, DEMO):
        view = look(store, uid, **choice, window="1h")
        for panel in PAGES[uid].panels:
            view.shown(panel)

        for name in PAGES[uid].annotations:
            view.annotated(name)

    assert {} == asked[store].complaints


# There is something where something must be

# Of each panel: the models for which it has something to show of the last hours, when they are chosen.
SHOWN: dict[str, dict[tuple[str, str], frozenset[str]]] = {
    OVERVIEW: {
        ("", "Objectives missed"): JUDGED & GOALS,
        ("", "Models without labels"): EVERY,
        ("", "Models at work"): EVERY,
        ("", "Models"): EVERY,
        ("", "Predictions"): LIVE,
        ("Since when", "Worst objective over time"): JUDGED & GOALS,
    },
    GROUND_TRUTH: {
        ("", "Labelled rows"): EVERY,
        ("", "Newest label"): LATE,
        ("", "Least coverage"): EVERY,
        ("", "Labels and rows that are of no use"): frozenset({"late", "messy"}),
        ("", "Labels of each model"): EVERY,
        ("", "Predictions and labels"): LIVE,
        ("How late labels come", "Delay of labels"): LATE,
        ("How late labels come", "Distribution of the delay"): LATE,
        ("What waits, and what became of labels", "Predictions that wait for their label"): LATE,
        ("What waits, and what became of labels", "Longest wait"): LATE,
        ("What waits, and what became of labels", "What became of labels"): LIVE & LABELLED,
        ("Processes", "Processes that report"): LIVE,
        ("Processes", "Time since the last report"): LIVE,
    },
    SEGMENTS: {
        ("", "Worse segments"): JUDGED & LABELLED,
        ("", "Largest gap"): JUDGED & LABELLED,
        ("", "Segments not judged"): LABELLED,
        ("", "Rows not told apart"): EVERY,
        ("", "Segments"): EVERY,
        ("", "Segments and the model"): LABELLED,
        ("Since when, and how much of the traffic", "Gap to the model over time"): JUDGED,
        ("Since when, and how much of the traffic", "Share of the traffic"): LIVE,
        ("Every metric of each segment", "Metrics"): EVERY,
    },
    MODEL_PAGE: {
        ("", "Quality"): LABELLED,
        ("", "Evidence"): EVERY,
        ("", "Objectives"): GOALS,
        ("", "Quality and its 95 % interval"): LABELLED,
        ("", "By version"): LABELLED,
        ("", "Predictions"): LIVE,
        ("Binary: every metric", "Confusion matrix"): frozenset(m for m, task in TASKS.items() if task == "binary"),
        ("Multiclass: every metric", "Confusion matrix"): frozenset({"digits"}),
        ("Multiclass: every metric", "Classes"): frozenset({"digits"}),
        ("Versions compared", "Versions"): EVERY,
        ("Worst segments", "Worst segments"): LABELLED,
        ("Each process by itself", "accuracy of each process"): LIVE & LABELLED & CLASSIFIERS,
        ("Each process by itself", "mae or mrr of each process"): LIVE & LABELLED - CLASSIFIERS,
        ("Each process by itself", "Rows in the window of each process"): LIVE,
        ("Each process by itself", "Age of the oldest row of each process"): LIVE,
        ("Each process by itself", "Right and wrong predictions"): LIVE & CLASSIFIERS,
    },
}


def row_of(task: str) -> str:
    return f"{task.capitalize()}: every metric"


def title_of(metric: catalog.MetricDefinition, task: Any) -> str:
    return metric.name + (" (macro average)" if metric.by.get(task) == "class" else "")


def of_metrics() -> dict[tuple[str, str], frozenset[str]]:
    """A panel for each metric of each task: for models of that task, and that have rows."""
    found = {}
    for task in catalog.TASKS:
        for metric in catalog.metrics_of(task):
            if metric.better:
                of_fleet = promql.is_function_of_totals(metric, task)
                # Gauges do not say of which task they are: both rows have what binary and multiclass models share.
                tasks = {task} if of_fleet else set(metric.functions)
                models = {model for model in LABELLED if TASKS[model] in tasks}
                found[row_of(task), title_of(metric, task)] = frozenset(models if of_fleet else models & LIVE)
    return found


SHOWN[MODEL_PAGE] |= of_metrics()
RARE = {"Labels and rows that are of no use"}


@on_every_page
def test_every_panel_is_in_the_table(uid):
    """
    A new one must say for which models it has something to show.
    """
    panels = [(row, panel["title"]) for row, panels in PAGES[uid].rows.items() for panel in panels]

    assert sorted(SHOWN[uid]) == sorted(panel for panel in panels if panel != ("", "Alerts"))


@in_both_stores
@on_every_page
def test_panels_show_something_for_the_models_that_have_it_and_for_no_others(look, store, uid):
    """
    An objective alone is nothing. What happens rarely is looked for over the day, the rest at its end.
    """
    found: dict[tuple[str, str], set[str]] = {key: set() for key in SHOWN[uid]}
    for model in TASKS:
        view = look(store, uid, model=model)
        for row, title in found:
            ask = view.shown if title in RARE else view.instant
            if any(not one.name.startswith("objective") for one in ask(PAGES[uid].panel(title, row))):
                found[row, title].add(model)

    assert SHOWN[uid] == found


@in_both_stores
@on_every_page
def test_legends_tell_series_apart(look, store, uid):
    """
    Of whatever model is shown.
    """
    for choice in every_choice(uid, TASKS):
        view = look(store, uid, **choice)
        for panel in PAGES[uid].panels:
            summed = any(one["id"] == "calculateField" for one in panel.get("transformations", ()))
            if panel["type"] != "table" and not summed:
                names = [one.name for one in view.instant(panel)]
                assert len(names) == len(set(names)), (panel["title"], names)


@in_both_stores
def test_objectives_are_drawn_beside_their_metrics(look, store):
    """
    Of every model that has one, at its level; and beside no others of its task.
    """
    for model, objectives in OBJECTIVES.items():
        view, task = look(store, MODEL_PAGE, model=model), TASKS[model]
        found = {
            metric.name: one.value
            for metric in catalog.metrics_of(task)
            if metric.better
            for one in view.instant(PAGES[MODEL_PAGE].panel(title_of(metric, task), row_of(task)))
            if one.name.startswith("objective")
        }
        assert objectives == found


@in_both_stores
def test_a_day_shows_what_has_been(look, store):
    """
    The dead model in the panels of its processes; labels that were of no use and rows that were rejected, all kinds of
    them; and for how long objectives have been missed, also of the dead one, which had enough rows.
    """
    page, overview, labels = PAGES[MODEL_PAGE], PAGES[OVERVIEW], PAGES[GROUND_TRUTH]

    processes = look(store, MODEL_PAGE, model="dead").shown(page.panel("roc_auc", "Binary"))
    useless = look(store, GROUND_TRUTH).shown(labels.panel("Labels and rows that are of no use"))
    ends = look(store, GROUND_TRUTH).shown(labels.panel("What became of labels"))
    worst = look(store, OVERVIEW, window="1h").shown(overview.panel("Worst objective over time"))

    assert {"lowest process", "highest process"} == {one.name for one in processes}
    assert {"duplicate", "rejected: invalid_label", "rejected: invalid_score"} == {one.name for one in useless}
    assert {"matched", "duplicate", "corrected", "evicted", "pending", "unlabelled"} == {one.name for one in ends}
    assert {f"{model} 1.0" for model in {*JUDGED, "dead"} - {"goalless"}} == {one.name for one in worst}


# It is what scikit-learn says


def told(rows: list[Row], task: str) -> Rows:
    """Rows as the oracles want them."""
    predictions, labels = [row.prediction for row in rows], [row.label for row in rows]
    if task == "binary":
        return Rows([bool(one) for one in predictions], [bool(one) for one in labels])
    if task == "multiclass":
        return Rows([int(one) for one in predictions], [int(one) for one in labels], classes=tuple(range(10)))
    if task == "ranking":
        labels = [dict.fromkeys(one, 1.0) for one in labels]
    return Rows(predictions, labels)


_KNOWN: dict[tuple[Any, ...], float] = {}


def right(rows: list[Row], task: Any, metric: str, suffix: str = "") -> float:
    """A metric of rows, or one of its bounds; of classes their macro average."""
    key = (*map(id, rows), metric, suffix)  # of rows that live as long as the fleet; some oracles take a second
    if key not in _KNOWN:
        by = catalog.BY_NAME[metric].by.get(task)
        variant: dict[str, Any] = {"class": {"average": "macro"}, "k": {"k": K}}.get(str(by), {})
        _KNOWN[key] = expected(task, metric + suffix, told(rows, task), **variant)
    return _KNOWN[key]


def better_by(metric: str, value: float, reference: float) -> float:
    """By what share a value is better than a reference."""
    share = (value - reference) / abs(reference)
    return share if catalog.BY_NAME[metric].better == "higher" else -share


def notably_worse(metric: str, value: float, reference: float) -> bool:
    """Whether a value is worse than a reference by so much that an alert may fire: see the runbooks."""
    if catalog.BY_NAME[metric].better == "lower":
        return value > 1.05 * reference
    if catalog.BY_NAME[metric].unit == "{ratio}":
        return 1 - value > 1.25 * (1 - reference)  # a quarter more errors
    return value < 0.95 * reference


def about(value: Any, store: str, scale: float = 1.0) -> Any:
    """As exact as the store counts; Prometheus relative to what is larger than 1."""
    if isinstance(value, dict):
        return {key: about(one, store, scale) for key, one in value.items()}
    tolerance = TOLERANCE[store]
    return pytest.approx(value, rel=tolerance * scale, abs=tolerance * scale if store == "prometheus" else 1e-9)


def counted(value: Any, store: str) -> Any:
    """Rows; Prometheus may be one beside it."""
    return pytest.approx(value, rel=ROWS_TOLERANCE[store], abs=1e-6 if store == "victoria_metrics" else 1.0)


of_every_demo_model = pytest.mark.parametrize("model", DEMO)

# What is looked at: how long before now, over which window, and which versions are chosen (None: all).
LOOKS = {
    "today": (0, WINDOW, None),
    "yesterday": (DAY, WINDOW, None),
    # A day that ends in the middle of today begins in the middle of yesterday, so that the choice makes a difference.
    "the old version": (2 * HOUR, "1d", "0.9"),
    "the new version": (2 * HOUR, "1d", "1.0"),
    "both versions": (2 * HOUR, "1d", None),
}
# There Prometheus loses what was counted between the window's beginning and the first export in it.
CUT = ("the old version", "the new version", "both versions")
at_every_look = pytest.mark.parametrize(
    ("store", "at"), [(store, at) for at in LOOKS for store in STORES if at not in CUT or store == "victoria_metrics"]
)


def looked_at(fleet: Fleet, look: Callable[..., View], store: str, model: str, at: str) -> tuple[View, list[Row]]:
    """The page of a model, and the rows that it is about."""
    ago, window, version = LOOKS[at]
    now = fleet.now - ago
    rows = fleet.rows(model, version, since=now - promql.seconds(window))
    chosen = {} if version is None else {"version": [version]}
    view = look(store, MODEL_PAGE, now, model=model, window=window, **chosen)
    return view, [row for row in rows if row.judged <= now]


def rows_of(fleet: Fleet, model: str, version: str = "1.0") -> list[Row]:
    """All rows of a version; the window holds them now, or did a day ago."""
    return fleet.rows(model, version, since=fleet.now - 6 * HOUR - (DAY if version == "0.9" else 0))


def test_a_choice_of_versions_makes_a_difference(fleet, look):
    """
    To the quality of each model, or tests of it would be none.
    """
    for model in DEMO:
        rows = [looked_at(fleet, look, "victoria_metrics", model, at)[1] for at in CUT]
        values = {round(right(of, TASKS[model], HEADLINES[TASKS[model]]), 3) for of in rows}
        assert len(CUT) == len(values), model


@of_every_demo_model
@at_every_look
def test_quality_and_its_interval(fleet, look, store, model, at):
    """
    Of the main metric: as a number, as a line in a band, and of each version.
    """
    view, rows = looked_at(fleet, look, store, model, at)
    task, page = TASKS[model], PAGES[MODEL_PAGE]
    metric = HEADLINES[task]
    value, lower, upper = (right(rows, task, metric, suffix) for suffix in ("", *catalog.BOUNDS))
    of_versions = {
        version: [row for row in rows if row.version == version] for version in {row.version for row in rows}
    }

    quality = by_name(view.instant(page.panel("Quality")))
    band = by_name(view.instant(page.panel("Quality and its 95 % interval")))
    chart = by_name(view.instant(page.panel("By version")))
    table = [
        by_label([one for ref in refs for one in view.instant(page.panel("Versions"), ref)], promql.VERSION)
        for refs in ("AD", "BE", "CF")
    ]

    band.pop("objective", None)
    assert about({metric: value}, store) == quality
    assert about({"value": value, "lower": lower, "upper": upper}, store) == band
    if metric == "accuracy":
        correct = sum(row.prediction == row.label for row in rows)
        assert about(band["lower"], store) == proportion_confint(correct, len(rows), method="wilson")[0]
    for suffix, column in zip(("", *catalog.BOUNDS), table, strict=True):
        truth = {version: right(of, task, metric, suffix) for version, of in of_versions.items()}
        assert about(truth, store) == column
        if not suffix:
            assert about({f"version {version}": one for version, one in truth.items()}, store) == chart


@of_every_demo_model
@at_every_look
def test_every_metric_that_totals_tell(fleet, look, store, model, at):
    """
    With its bounds, where the panel has them.
    """
    view, rows = looked_at(fleet, look, store, model, at)
    task = TASKS[model]

    wrong, seen = {}, 0
    for metric in catalog.metrics_of(task):
        if not metric.better or not promql.is_function_of_totals(metric, task):
            continue
        suffix = f", k = {K}" if metric.by.get(task) == "k" else ""
        found = by_name(view.instant(PAGES[MODEL_PAGE].panel(title_of(metric, task), row_of(task))))
        found.pop("objective" + suffix, None)
        named_so = {"value" + suffix: "", "lower": catalog.LOWER, "upper": catalog.UPPER}
        truth = {name: right(rows, task, metric.name, named_so[name]) for name in found}
        assert "value" + suffix in found, metric.name
        assert ("lower" in found) == ("upper" in found), metric.name
        seen += len(found)
        if about(truth, store) != found:
            wrong[metric.name] = truth, found

    assert {} == wrong
    assert seen > 2


@pytest.mark.parametrize("model", ["tumours", "digits"])
@at_every_look
def test_the_matrix_of_classes(fleet, look, store, model, at):
    """
    Each cell that has a row; Prometheus may be one row beside it.
    """
    view, rows = looked_at(fleet, look, store, model, at)
    task = TASKS[model]
    names = {False: "negative", True: "positive"} if task == "binary" else {n: str(n) for n in range(10)}
    truth = Counter((names[row.label], names[row.prediction]) for row in rows)

    cells = view.instant(PAGES[MODEL_PAGE].panel("Confusion matrix", row_of(task)))

    found = {key: value for key, value in by_label(cells, promql.ACTUAL, promql.PREDICTED).items() if value}
    assert counted(dict(truth), store) == found
    assert all(value == round(value) for value in found.values())


@at_every_look
def test_each_class(fleet, look, store, at):
    """
    Precision, recall, F1, labels and predictions of every digit.
    """
    view, rows = looked_at(fleet, look, store, "digits", at)
    panel = PAGES[MODEL_PAGE].panel("Classes")
    of = told(rows, "multiclass")
    truth = {
        metric: {str(n): expected("multiclass", metric, of, class_=n) for n in range(10)}
        for metric in ("precision", "recall", "f1")
    }
    columns = {
        field.removeprefix("Value #"): title
        for transformation in panel["transformations"]
        if transformation["id"] == "organize"
        for field, title in transformation["options"]["renameByName"].items()
    }

    found = {title: by_label(view.instant(panel, ref), promql.CLASS) for ref, title in columns.items() if len(ref) == 1}

    assert {"precision", "recall", "f1", "Labels", "Predictions"} == found.keys()
    for metric in truth:
        assert about(truth[metric], store, 4.0) == found[metric]  # a class has a tenth of the rows
    assert counted({str(n): sum(row.label == n for row in rows) for n in range(10)}, store) == found["Labels"]
    assert counted({str(n): sum(row.prediction == n for row in rows) for n in range(10)}, store) == found["Predictions"]


def margins(fleet: Fleet, model: str) -> dict[str, float]:
    """By what share each metric that has an objective is better than it; too few rows are not judged."""
    rows = rows_of(fleet, model)
    if len(rows) < int(LEAST_ROWS):
        return {}
    return {
        metric: better_by(metric, right(rows, TASKS[model], metric), objective)
        for metric, objective in OBJECTIVES.get(model, {}).items()
    }


@in_both_stores
@pytest.mark.parametrize("model", sorted(GOALS))
def test_distances_to_objectives(fleet, look, store, model):
    """
    Of every metric that has an objective, with the objective.
    """
    panel, of_metric = PAGES[MODEL_PAGE].panel("Objectives"), (promql.METRIC,)

    view = look(store, MODEL_PAGE, model=model)
    refs = [target["refId"] for target in panel["targets"] if target["refId"] != "O"]
    found = [one for ref in refs for one in view.instant(panel, ref)]

    assert about(margins(fleet, model), store) == by_label(found, *of_metric)
    assert OBJECTIVES[model] == by_label(view.instant(panel, "O"), *of_metric)
    assert {"1.0"} == {one.labels[promql.VERSION] for one in view.instant(panel, "O")}


@in_both_stores
def test_the_overview_names_the_worst_metric_of_each_model(fleet, look, store):
    """
    And how far it is from its objective; how many are missed stands above.
    """
    page, view = PAGES[OVERVIEW], look(store, OVERVIEW)
    of_models = {model: margins(fleet, model) for model in TASKS}
    worst = {model: min(of.items(), key=lambda one: one[1]) for model, of in of_models.items() if of}
    table, status = page.panel("Models"), page.panel("Worst objective over time")
    refs = [target["refId"] for target in table["targets"] if target["refId"].startswith("M")]

    found = [one for ref in refs for one in view.instant(table, ref)]

    truth = {(model, "1.0", metric): margin for model, (metric, margin) in worst.items()}
    assert about(truth, store) == by_label(found, promql.MODEL, promql.VERSION, promql.METRIC)
    assert about({model: margin for model, (_, margin) in worst.items()}, store) == by_label(
        view.instant(status), promql.MODEL
    )
    missed = sum(margin < 0 for of in of_models.values() for margin in of.values())
    assert missed > len([margin for _, margin in worst.values() if margin < 0]) > 1, "models that miss several"
    assert missed == sum(one.value for one in view.instant(page.panel("Objectives missed")))


@in_both_stores
def test_the_overview_shows_the_main_metric_of_each_model_and_what_it_was(fleet, look, store):
    """
    Of ten models, with the rows it rests on; and of those that served yesterday, how it has changed.
    """
    table, view = PAGES[OVERVIEW].panel("Models"), look(store, OVERVIEW)
    values = {model: right(rows_of(fleet, model), TASKS[model], HEADLINES[TASKS[model]]) for model in LABELLED}
    yesterday = {
        model: better_by(
            HEADLINES[TASKS[model]],
            values[model],
            right(rows_of(fleet, model, "0.9"), TASKS[model], HEADLINES[TASKS[model]]),
        )
        for model in DEMO
    }

    found = by_label([one for ref in ("V0", "V1") for one in view.instant(table, ref)], promql.MODEL)

    assert about(values, store) == found
    assert about(yesterday, store) == by_label(view.instant(table, "C"), promql.MODEL)
    assert counted({model: len(rows_of(fleet, model)) for model in TASKS}, store) == by_label(
        view.instant(table, "R"), promql.MODEL
    )


# What quality rests on: 0 enough rows, 1 few, 2 predictions without labels, 3 silence.
EVIDENCE = {**dict.fromkeys(EVERY, 0.0), "newborn": 1.0, "unlabelled": 2.0, "dead": 3.0}


@in_both_stores
@pytest.mark.parametrize(
    ("uid", "title", "ref"), [(OVERVIEW, "Models", "E"), (GROUND_TRUTH, "Labels of each model", "E")]
)
def test_what_quality_rests_on(look, store, uid, title, ref):
    """
    Of each model one code.
    """
    found = look(store, uid).instant(PAGES[uid].panel(title), ref)

    assert EVIDENCE == by_label(found, promql.MODEL)
    assert {"1.0"} == {one.labels[promql.VERSION] for one in found}


@in_both_stores
@pytest.mark.parametrize(
    ("uid", "title", "ref"), [(OVERVIEW, "Models", "L"), (GROUND_TRUTH, "Labels of each model", "C")]
)
def test_coverage(fleet, look, store, uid, title, ref):
    """
    Where labels come with predictions the share of rows. Where they come late it is what the process that has most of
    them says, of predictions that are old enough.
    """
    found = by_label(look(store, uid).instant(PAGES[uid].panel(title), ref), promql.MODEL)

    gauge = 'max by (ml_model_name) (ml_model_label_coverage{ml_segment_name=""})'
    of_late = {labels["ml_model_name"]: value for labels, value in fleet.stores[store].query(gauge, fleet.now)}
    plain = {
        model: len(rows_of(fleet, model)) / fleet.predictions(model, since=fleet.now - 6 * HOUR)
        for model in EVERY - LATE
    }
    assert of_late.keys() == LATE
    assert all(0.7 < value <= 1 for value in of_late.values())
    assert about({**plain, **of_late}, store) == found


@in_both_stores
def test_models_are_counted(look, store):
    """
    Those of which no label came, those at work, and those that were: the dead one made predictions in six hours, but
    not in one.
    """
    page, now, hour = PAGES[OVERVIEW], look(store, OVERVIEW), look(store, OVERVIEW, window="1h")

    assert [1.0] == [one.value for one in now.instant(page.panel("Models without labels"))]
    assert {"at work": 10.0, "known": 10.0} == by_name(now.instant(page.panel("Models at work")))
    assert {"at work": 9.0, "known": 10.0} == by_name(hour.instant(page.panel("Models at work")))


@in_both_stores
@pytest.mark.parametrize("model", sorted(EVERY))
def test_evidence_of_a_model(fleet, look, store, model):
    """
    How many rows, and how many were of no use; its versions say the same.
    """
    view, page = look(store, MODEL_PAGE, model=model), PAGES[MODEL_PAGE]
    rows = len(rows_of(fleet, model))
    predictions = fleet.predictions(model, since=fleet.now - 6 * HOUR)

    found, versions = by_name(view.instant(page.panel("Evidence"))), page.panel("Versions")

    assert counted(rows, store) == found["labelled rows"]
    assert (found["rejected"] > 200) if model == "messy" else (0 == found["rejected"])
    assert ("newest label" in found) == (model in LATE)
    assert counted({"1.0": rows}, store) == by_label(view.instant(versions, "G"), promql.VERSION)
    assert counted({"1.0": predictions}, store) == by_label(view.instant(versions, "H"), promql.VERSION)
    assert {"1.0": EVIDENCE[model]} == by_label(view.instant(versions, "I"), promql.VERSION)


def rows_by_segment(fleet: Fleet, model: str, name: str | None = None) -> dict[tuple[str, str], list[Row]]:
    """The rows of each segment; what comes after the first values is one segment."""
    found: dict[tuple[str, str], list[Row]] = {}
    rest = {"messy": 2}.get(model, 50)
    for row in fleet.rows(model):
        for one, value in row.segments.items():
            if name in (None, one):
                known = [key for key in found if key[0] == one and key[1] != "__other__"]
                key = (one, value) if (one, value) in found or len(known) < rest else (one, "__other__")
                found.setdefault(key, []).append(row)
    now = fleet.now - 6 * HOUR
    return {key: [row for row in rows if row.judged > now] for key, rows in found.items()}


@in_both_stores
@pytest.mark.parametrize("model", sorted(LABELLED))
def test_segments_against_their_model(fleet, look, store, model):
    """
    The value of each, its interval, its rows, and how much worse it is than the model; which are judged, which of them
    are notably worse, and the worst.
    """
    task, metric = TASKS[model], HEADLINES[TASKS[model]]
    view, page = look(store, SEGMENTS, model=model), PAGES[SEGMENTS]
    table = page.panel("Segments")
    name = view.values["segment_name"]
    rows = {key: of for key, of in rows_by_segment(fleet, model, name).items() if of}
    whole = right(rows_of(fleet, model), task, metric)
    gaps = {key: better_by(metric, right(of, task, metric), whole) for key, of in rows.items()}
    enough = [key for key, of in rows.items() if len(of) >= int(LEAST_ROWS)]
    judged = [gaps[key] for key in enough]

    def found(*refs: str) -> dict[Any, float]:
        return by_label([one for ref in refs for one in view.instant(table, ref)], *promql.SEGMENT)

    assert about(gaps, store) == found("G")
    assert counted({key: len(of) for key, of in rows.items()}, store) == {k: v for k, v in found("R").items() if v}
    for refs, suffix in ((("A", "D"), ""), (("B", "E"), catalog.LOWER), (("C", "F"), catalog.UPPER)):
        assert about({key: right(of, task, metric, suffix) for key, of in rows.items()}, store) == found(*refs)
    assert pytest.approx(1.0) == sum(found("S").values())
    worse, largest = (view.instant(page.panel(title)) for title in ("Worse segments", "Largest gap"))
    count = sum(notably_worse(metric, right(rows[key], task, metric), whole) for key in enough)
    assert ([float(count)] if judged else []) == [one.value for one in worse]
    assert ([about(min(judged), store)] if judged else []) == [one.value for one in largest]
    counts = by_name(view.instant(page.panel("Segments not judged")))
    assert {"too few rows": len(rows) - len(judged), "all": len(rows)} == counts
    lines = {value: right(of, task, metric) for (_, value), of in rows.items()}
    chart, squares = (
        by_name(view.instant(page.panel(title))) for title in ("Segments and the model", "Gap to the model over time")
    )
    assert about({**lines, "the model": whole}, store) == chart
    assert about({value: gaps[name, value] for (_, value), of in rows.items() if len(of) >= 30}, store) == squares
    told_apart = by_name(view.instant(page.panel("Rows not told apart")))
    rest = sum(len(of) for (_, value), of in rows_by_segment(fleet, model).items() if value == "__other__")
    predictions = fleet.predictions(model, since=fleet.now - 6 * HOUR)
    assert counted({"in __other__": rest, "all": predictions}, store) == told_apart
    assert (rest > 0) == (model == "messy")


@in_both_stores
def test_worse_segments_are_counted_by_the_margins_of_the_alert(fleet, look, store):
    """
    Whichever segments are chosen. Each kind of metric has some that are worse and some that are not, and a share of
    the value, of which a twentieth is little for an accuracy, would not tell them.
    """
    panel = PAGES[SEGMENTS].panel("Worse segments")
    truth: dict[tuple[str, str], float] = {}
    found: dict[tuple[str, str], float] = {}
    verdicts: set[tuple[str, bool]] = set()
    otherwise = set()
    for model in JUDGED:
        task, metric = TASKS[model], HEADLINES[TASKS[model]]
        whole = right(rows_of(fleet, model), task, metric)
        for key, of in rows_by_segment(fleet, model).items():
            if len(of) >= int(LEAST_ROWS):
                value = right(of, task, metric)
                worse = notably_worse(metric, value, whole)
                truth[model, key[0]] = truth.get((model, key[0]), 0.0) + worse
                verdicts.add((metric, worse))
                if worse != (better_by(metric, value, whole) < -0.05):
                    otherwise.add((model, *key))
        for name in {name for of, name in truth if of == model}:
            view = look(store, SEGMENTS, model=model, segment_name=name)
            (found[model, name],) = (one.value for one in view.instant(panel))

    assert truth == found
    assert {(metric, worse) for metric in HEADLINES.values() for worse in (True, False)} == verdicts
    assert {("late", "country", "DE")} == otherwise


# What the columns of the table are called, and the metrics they are.
OF_SEGMENTS = {
    "binary": ("accuracy", "precision", "recall", "f1"),
    "multiclass": ("accuracy", "precision", "recall", "f1"),
    "regression": ("mae", "rmse", "mean_error"),
    "ranking": ("mrr", "ndcg_at_k"),
}


@in_both_stores
@pytest.mark.parametrize("model", sorted(LABELLED))
def test_every_metric_of_each_segment(fleet, look, store, model):
    """
    Of the chosen segments, with their rows; of classes the macro average, of rankings each cut-off. What is undefined
    is not there, and neither are metrics of other tasks.
    """
    task = TASKS[model]
    view, panel = look(store, SEGMENTS, model=model), PAGES[SEGMENTS].panel("Metrics")
    (columns,) = (one["renameByName"] for one in options_of(panel, "organize"))
    rows = {key: of for key, of in rows_by_segment(fleet, model, view.values["segment_name"]).items() if of}
    labels = (*promql.SEGMENT, promql.K)

    def found(ref: str) -> dict[Any, float]:
        return by_label(view.instant(panel, ref), *labels)

    titles = {title.removesuffix(" of the first k"): field.removeprefix("Value #") for field, title in columns.items()}
    values = {name: found(titles[name]) for name in {name for names in OF_SEGMENTS.values() for name in names}}
    assert {*values, "Segment", "Value", "k", "Rows"} == titles.keys()
    assert {"ndcg_at_k"} == {title.split()[0] for title in columns.values() if title.endswith(" of the first k")}
    assert {name for name, of in values.items() if of} == set(OF_SEGMENTS[task])
    for name in OF_SEGMENTS[task]:
        k = str(K) if name == "ndcg_at_k" else ""
        truth = {(*key, k): right(of, task, name) for key, of in rows.items()}
        defined = {key: value for key, value in truth.items() if not math.isnan(value)}
        assert about(defined, store) == values[name], name
    of_rows = {key: value for key, value in found(titles["Rows"]).items() if value}
    assert counted({(*key, ""): len(of) for key, of in rows.items()}, store) == of_rows


@in_both_stores
@pytest.mark.parametrize("model", sorted(LABELLED))
def test_the_worst_segments_of_a_model(fleet, look, store, model):
    """
    Of all its segments; the ten worst of those with enough rows.
    """
    task, metric = TASKS[model], HEADLINES[TASKS[model]]
    rows = {key: of for key, of in rows_by_segment(fleet, model).items() if of}
    whole = right(rows_of(fleet, model), task, metric)
    truth = {
        key: better_by(metric, right(of, task, metric), whole) for key, of in rows.items() if len(of) >= int(LEAST_ROWS)
    }

    panel, view = PAGES[MODEL_PAGE].panel("Worst segments"), look(store, MODEL_PAGE, model=model)

    assert len(truth) <= 10
    assert about(truth, store) == by_label(view.instant(panel, "A"), *promql.SEGMENT)
    assert counted({key: len(of) for key, of in rows.items()}, store) == by_label(
        view.instant(panel, "B"), *promql.SEGMENT
    )


@in_both_stores
def test_labels_of_all_models(fleet, look, store):
    """
    How many there are, of how large a share of predictions, and how old the newest one is; and of each model how many
    predictions wait, for how long at most.
    """
    view, page = look(store, GROUND_TRUTH), PAGES[GROUND_TRUTH]
    table, whole = page.panel("Labels of each model"), '{ml_segment_name=""}'

    def gauge(name: str, aggregation: str) -> dict[Any, float]:
        found = fleet.stores[store].query(f"{aggregation} by (ml_model_name) ({name}{whole})", fleet.now)
        return {labels["ml_model_name"]: value for labels, value in found}

    (rows,), (newest,), (least,) = (
        [one.value for one in view.instant(page.panel(title))]
        for title in ("Labelled rows", "Newest label", "Least coverage")
    )

    assert counted(sum(len(rows_of(fleet, model)) for model in TASKS), store) == rows
    assert 0.0 == least  # of the unlabelled one
    age = gauge("ml_model_label_age_seconds", "min")
    assert age.keys() == LATE
    assert max(age.values()) == newest < 5 * MINUTE
    assert age == by_label(view.instant(table, "A"), promql.MODEL)
    for name, ref, chart in (
        ("ml_model_label_pending", "W", "Predictions that wait for their label"),
        ("ml_model_label_pending_age_seconds", "O", "Longest wait"),
    ):
        of_model = gauge(name, "max")
        assert of_model == by_label(view.instant(table, ref), promql.MODEL)
        assert of_model == by_label(view.instant(page.panel(chart)), promql.MODEL)
    half, most = (by_label(view.instant(table, ref), promql.MODEL) for ref in ("D", "N"))
    assert half.keys() == most.keys() == LATE
    assert all(0 < half[model] < most[model] < HOUR for model in LATE)
    delays = list(by_name(view.instant(page.panel("Delay of labels"))).values())
    assert sorted(delays) == delays
    assert min(half.values()) < delays[0] < max(half.values())


@in_both_stores
def test_processes_that_report(look, store):
    """
    Two of each model of the demonstration, one of the others. The dead one is not told apart from one that never was:
    the row of its evidence says that it is silent.
    """
    view, page = look(store, GROUND_TRUTH), PAGES[GROUND_TRUTH]

    counts = by_label(view.instant(page.panel("Processes that report")), promql.MODEL)
    silence = by_label(view.instant(page.panel("Time since the last report")), promql.MODEL)

    assert {model: 2.0 if model in DEMO else 1.0 for model in LIVE} == counts
    assert dict.fromkeys(LIVE, 0.0) == silence


@in_both_stores
def test_predictions_a_second(look, store):
    """
    Four a minute of each process of the demonstration, three of the others, in the middle of their lives.
    """
    view = look(store, OVERVIEW)

    rates = {
        one.labels[promql.MODEL]: [rate for at, rate in one.points if -2 * HOUR < at - view.now < -HOUR]
        for one in view.shown(PAGES[OVERVIEW].panel("Predictions"))
    }

    truth = {model: (8 if model in DEMO else 3) / MINUTE for model in LIVE - {"newborn"}}
    assert pytest.approx(truth, rel=0.02) == {model: sum(rates[model]) / len(rates[model]) for model in truth}
    both = {
        one.name: sum(rate for at, rate in one.points if -2 * HOUR < at - view.now < -HOUR) / HOUR
        for one in look(store, GROUND_TRUTH).shown(PAGES[GROUND_TRUTH].panel("Predictions and labels"))
    }
    assert {"predictions", "labelled rows"} == both.keys()
    assert 0.8 < both["labelled rows"] / both["predictions"] < 1


# What no total tells


@in_both_stores
@pytest.mark.parametrize("model", ["tumours", "digits", "diabetes"])
def test_what_no_total_tells_is_what_processes_say(fleet, look, store, model):
    """
    The lowest and the highest of the two, and no mean of them.
    """
    view, task = look(store, MODEL_PAGE, model=model), TASKS[model]

    for metric in catalog.metrics_of(task):
        if not metric.better or promql.is_function_of_totals(metric, task):
            continue
        gauge = prometheus_name(metric.instrument, metric.unit, "gauge")
        asked_for = f'{gauge}{{ml_model_name="{model}", ml_segment_name="", ml_class=""}}'
        of_processes = [value for _, value in fleet.stores[store].query(asked_for, fleet.now)]
        found = by_name(view.instant(PAGES[MODEL_PAGE].panel(title_of(metric, task), row_of(task))))
        assert 2 == len(set(of_processes)), metric.name
        suffix = f", k = {next(iter(found)).rpartition(' ')[2]}" if metric.by.get(task) == "k" else ""
        lowest, highest = f"lowest process{suffix}", f"highest process{suffix}"
        assert {lowest: min(of_processes), highest: max(of_processes)} == found


@in_both_stores
@of_every_demo_model
def test_each_process_is_shown_by_itself(fleet, look, store, model):
    """
    With its name, which the two stores have under different labels.
    """
    page, task = PAGES[MODEL_PAGE], TASKS[model]
    metric = catalog.BY_NAME[HEADLINES[task]]
    title = "accuracy of each process" if model in CLASSIFIERS else "mae or mrr of each process"
    gauge = prometheus_name(metric.instrument, metric.unit, "gauge")

    found = by_name(look(store, MODEL_PAGE, model=model).instant(page.panel(title)))

    asked_for = f'{gauge}{{ml_model_name="{model}", ml_segment_name=""}}'
    label = {"victoria_metrics": "service_instance_id", "prometheus": "instance"}[store]
    plain = {labels[label]: value for labels, value in fleet.stores[store].query(asked_for, fleet.now)}
    assert {"today-1", "today-2"} == plain.keys()
    assert {f"1.0 {process}": value for process, value in plain.items()} == found


# Objectives that no model of the fleet has


def test_objectives_of_averages_and_of_what_no_total_tells(fleet):
    """
    An average over classes is compared with its objective, and so is the best process where no total tells a metric.
    """
    now = fleet.now - 8 * DAY  # long before the story, of which other tests ask
    minutes = range(-60, 1)
    of_classes = 'ml_model_name="letters", ml_model_version="1.0"'
    of_scores = 'ml_model_name="spam", ml_model_version="1.0"'
    rows = {("a", "a"): 3, ("a", "b"): 1, ("b", "b"): 2, ("b", "c"): 1, ("c", "c"): 1}  # each minute

    def outcomes(of: str, task: str, actual: str, predicted: str) -> str:
        outcome = "correct" if actual == predicted else "wrong"
        labels = f'ml_class_actual="{actual}", ml_class_predicted="{predicted}", ml_outcome="{outcome}"'
        return f'ml_model_outcomes_total{{{of}, ml_model_task="{task}", {labels}}}'

    counts = {outcomes(of_classes, "multiclass", *cell): count for cell, count in rows.items()}
    counts |= {
        outcomes(of_scores, "binary", actual, predicted): 1
        for actual in promql.BINARY_CLASSES
        for predicted in promql.BINARY_CLASSES
    }
    levels = {
        f'ml_model_objective{{{of_classes}, ml_metric="recall", ml_average="macro"}}': 0.9,
        f'ml_model_objective{{{of_scores}, ml_metric="roc_auc"}}': 0.9,
        f'ml_model_objective{{{of_scores}, ml_metric="log_loss"}}': 0.3,
        f'ml_model_roc_auc{{{of_scores}, service_instance_id="a"}}': 0.72,
        f'ml_model_roc_auc{{{of_scores}, service_instance_id="b"}}': 0.81,
        f'ml_model_log_loss{{{of_scores}, service_instance_id="a"}}': 0.45,
        f'ml_model_log_loss{{{of_scores}, service_instance_id="b"}}': 0.6,
    }
    predictions = [f"ml_model_predictions_total{{{of}}}" for of in (of_classes, of_scores)]
    write(
        fleet,
        (
            f"{series} {value * (minute + 60) if series in counts else value} {(now + minute * MINUTE) * 1000}"
            for series, value in {**counts, **levels, **dict.fromkeys(predictions, 1)}.items()
            for minute in minutes
        ),
    )
    answers = Answers(fleet.stores["victoria_metrics"])
    overview, panel = opened(PAGES[OVERVIEW], answers, now, **CHOSEN), PAGES[MODEL_PAGE].panel("Objectives")

    of_metrics = {
        one.labels[promql.METRIC]: one.value
        for model in ("letters", "spam")
        for one in opened(PAGES[MODEL_PAGE], answers, now, **CHOSEN, model=model).instant(panel)
        if one.ref != "O"
    }
    worst = by_name(overview.instant(PAGES[OVERVIEW].panel("Worst objective over time")))

    recall = (3 / 4 + 2 / 3 + 1 / 1) / 3
    assert pytest.approx({"recall": recall / 0.9 - 1, "roc_auc": 0.81 / 0.9 - 1, "log_loss": -0.5}) == of_metrics
    assert pytest.approx({"letters 1.0": recall / 0.9 - 1, "spam 1.0, best process": -0.5}) == worst
    missed = overview.instant(PAGES[OVERVIEW].panel("Objectives missed"))
    assert 3 == sum(one.value for one in missed)


# Annotations


def when(events: list[tuple[int, dict[str, str]]], now: int) -> dict[tuple[str, str], list[int]]:
    """Model and version -> at which minutes, before now, something is marked."""
    found: dict[tuple[str, str], list[int]] = {}
    for at, labels in events:
        found.setdefault((labels[promql.MODEL], labels[promql.VERSION]), []).append((at - now) // MINUTE)
    return found


def write(fleet: Fleet, lines: Iterable[str]) -> None:
    """Tell VictoriaMetrics something beside the story; Prometheus takes no samples from tests."""
    url = fleet.stores["victoria_metrics"].url
    content = "\n".join(lines).encode()
    with urllib.request.urlopen(f"{url}/api/v1/import/prometheus", data=content, timeout=10) as answer:
        assert answer.status == 204
    get(f"{url}/internal/force_flush")


@in_both_stores
def test_the_first_predictions_of_a_version_are_marked_once(fleet, look, store):
    """
    Two processes that begin together are one beginning, and later exports are none. A mark is at most an export and a
    point late.
    """
    events = when(look(store, OVERVIEW).annotated("New version"), fleet.now)

    begin = {**dict.fromkeys(EVERY, -180), "dead": -240, "newborn": -5}
    assert {(model, "1.0") for model in EVERY} == events.keys()
    late = {model: [minute - begin[model] for minute in minutes] for (model, _), minutes in events.items()}
    assert all(len(minutes) == 1 and 0 <= minutes[0] <= 4 for minutes in late.values()), late


def test_a_restart_is_no_new_version(fleet, asked):
    """
    Another process of the same version, after hours of silence. But the next version is one, and its end is none.
    """
    now = fleet.now - 4 * DAY  # long before the story, of which other tests ask
    lives = (("1.0", "a", -600, -480), ("1.0", "b", -360, -240), ("2.0", "b", -240, -120), ("1.0", "c", -120, 0))
    write(
        fleet,
        (
            f'ml_model_predictions_total{{ml_model_name="restarted", ml_model_version="{version}", '
            f'service_instance_id="{process}"}} {minute - begin} {(now + minute * MINUTE) * 1000}'
            for version, process, begin, end in lives
            for minute in range(begin, end)
        ),
    )

    events = opened(PAGES[OVERVIEW], asked["victoria_metrics"], now).annotated("New version")

    found = when(events, now)
    assert {("restarted", "1.0"), ("restarted", "2.0")} == found.keys()
    assert [-600] == [pytest.approx(minute, abs=1) for minute in found["restarted", "1.0"]]
    assert [-240] == [pytest.approx(minute, abs=1) for minute in found["restarted", "2.0"]]


def test_alerts_of_prometheus_are_marked_where_they_begin_to_fire(fleet):
    """
    Ours, of the chosen models; with the name of the alert, and the model, version and metric it is about.
    """
    of_metric = 'ml_model_name="tumours", ml_model_version="1.0", ml_metric="recall"'
    others = (
        f'alertname="ModelQualityBelowObjective", alertstate="pending", {of_metric}',
        'alertname="ModelSilent", alertstate="firing", ml_model_name="late", ml_model_version="1.0"',
        f'alertname="Disk", alertstate="firing", {of_metric}',
    )
    ours = f'alertname="ModelQualityBelowObjective", alertstate="firing", {of_metric}'
    write(
        fleet,
        (
            f"ALERTS{{{labels}}} 1 {(fleet.now + minute * MINUTE) * 1000}"
            for labels in (ours, *others)
            for minute in range(-60, -30)
        ),
    )
    annotation = PAGES[MODEL_PAGE].annotations["Alerts of Prometheus"]

    def alerts(store: str, uid: str, **chosen: str) -> list[tuple[int, dict[str, str]]]:
        answers = Answers(fleet.stores[store])  # others have asked before there were any
        return opened(PAGES[uid], answers, fleet.now, **chosen).annotated("Alerts of Prometheus")

    events = alerts("victoria_metrics", MODEL_PAGE, model="tumours")

    assert {("tumours", "1.0"): [pytest.approx(-60, abs=1)]} == when(events, fleet.now)
    ((_, labels),) = events
    assert "ModelQualityBelowObjective" == named(annotation["titleFormat"], labels)
    assert "tumours 1.0 recall" == named(annotation["textFormat"], labels)
    assert [] == alerts("victoria_metrics", MODEL_PAGE, model="digits")
    assert {"tumours", "late"} == {labels[promql.MODEL] for _, labels in alerts("victoria_metrics", OVERVIEW)}
    assert [] == alerts("prometheus", OVERVIEW)


# Tables


def tables(uid: str) -> list[dict[str, Any]]:
    return [panel for panel in PAGES[uid].panels if panel["type"] == "table"]


def options_of(panel: dict[str, Any], transformation: str) -> list[dict[str, Any]]:
    return [one["options"] for one in panel["transformations"] if one["id"] == transformation]


@in_both_stores
@on_every_page
def test_the_columns_of_tables_are_what_queries_give(look, store, uid):
    """
    Each is a label of some model's answer, the value of a query, or made of such values.
    """
    for panel in tables(uid):
        labels = {promql.AVERAGE}  # only of objectives of averages over classes, which no model of the fleet has
        for choice in every_choice(uid, TASKS):
            labels |= {name for one in look(store, uid, **choice).instant(panel) for name in one.labels}
        values = {f"Value #{target['refId']}" for target in panel["targets"]}
        made = {one["alias"]: set(one["reduce"]["include"]) for one in options_of(panel, "calculateField")}
        for columns in options_of(panel, "filterFieldsByName"):
            assert set(columns["include"]["names"]) <= {*labels, *values, *made}, panel["title"]
            assert values <= {*columns["include"]["names"]}.union(*made.values()), panel["title"]
        assert all(of <= values for of in made.values()), panel["title"]
        for matrix in options_of(panel, "groupingToMatrix"):
            assert {matrix["rowField"], matrix["columnField"]} <= labels, panel["title"]


def word(panel: dict[str, Any], title: str, value: float | None) -> str:
    """What a cell says instead of a number: the first mapping that fits."""
    (properties,) = (
        {one["id"]: one["value"] for one in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
        if override["matcher"] == {"id": "byName", "options": title}
    )
    for mapping in properties["mappings"]:
        options = mapping["options"]
        if mapping["type"] == "special":
            fits = "null+nan" == options["match"] and value is None
        else:
            assert "range" == mapping["type"]
            low, high = (options[end] for end in ("from", "to"))
            fits = value is not None and (low is None or low <= value) and (high is None or value <= high)
        if fits:
            return options["result"]["text"]
    raise AssertionError(f"no mapping of {title} fits {value}")


@in_both_stores
@pytest.mark.parametrize(
    ("uid", "title"), [(OVERVIEW, "Models"), (GROUND_TRUTH, "Labels of each model"), (MODEL_PAGE, "Versions")]
)
def test_evidence_is_written_as_words(look, store, uid, title):
    """
    Of each model of the fleet the right one.
    """
    panel = PAGES[uid].panel(title)
    ref = next(
        field.removeprefix("Value #")
        for of in options_of(panel, "organize")
        for field, column in of["renameByName"].items()
        if column == "Evidence"
    )

    codes: dict[str, float] = {}
    for choice in every_choice(uid, TASKS):
        codes |= by_label(look(store, uid, **choice).instant(panel, ref), promql.MODEL)

    others = {"newborn": "FEW ROWS", "unlabelled": "NO LABELS", "dead": "SILENT"}
    words = {model: others.get(model, "enough rows") for model in EVERY}
    assert words == {model: word(panel, "Evidence", code) for model, code in codes.items()}


@pytest.mark.parametrize(("uid", "title"), [(OVERVIEW, "Models"), (MODEL_PAGE, "Objectives")])
@pytest.mark.parametrize(
    ("margin", "status"), [(-1.0, "LOW"), (-0.021, "LOW"), (-0.019, "NEAR"), (0.0, "OK"), (0.5, "OK"), (None, "-")]
)
def test_distances_are_written_as_words(uid, title, margin, status):
    """
    What is not missed by much is near; without an objective or enough rows there is none.
    """
    assert status == word(PAGES[uid].panel(title), "Status", margin)


# Alerts


@in_both_stores
def test_the_fleet_answers_every_query_of_grafanas_alerts(fleet, store):
    """
    Here no rule records anything: what rests on records has no values, what does not has them, and ModelRulesMissing
    tells of every model that makes predictions. Whom each fires for is said in test_grafana_alert_story.py.
    """
    rules = {
        rule["title"]: {
            query["refId"]: query["model"]["expr"] for query in rule["data"] if query["datasourceUid"] != "__expr__"
        }
        for group in yaml.safe_load(ALERTING.read_text())["groups"]
        for rule in group["rules"]
    }

    found = {
        title: {ref: fleet.stores[store].query(expression, fleet.now) for ref, expression in queries.items()}
        for title, queries in rules.items()
    }

    assert 13 == len(found)
    live = {"ModelRulesMissing", "ModelWritersShareIdentity", "ModelObjectiveMissedEverywhere"}
    silent = {title for title, answers in found.items() if not any(answers.values())}
    assert rules.keys() - live <= silent | {"ModelRowsRejected", "ModelSegmentsOverflow"}, silent
    missing = found["ModelRulesMissing"]
    made = {labels[promql.MODEL]: value for labels, value in missing["A"] if value > 0}
    recorded = {labels[promql.MODEL]: value for labels, value in missing["B"]}
    assert set(EVERY) - {"dead"} == made.keys()
    assert dict.fromkeys(made, 0.0) == {model: recorded[model] for model in made}
