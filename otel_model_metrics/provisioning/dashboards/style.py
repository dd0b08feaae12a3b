"""
How our dashboards look: variables, links, and one function for each kind of panel.

Whatever grafana-foundation-sdk leaves to its users - ids, data sources, words for "no value" - is settled here, so that
pages only say what is shown.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

with warnings.catch_warnings():
    # The form that Grafana 13 prefers is not read by older ones; theirs is read by all.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        common,
        dashboard,
        heatmap,
        prometheus,
        stat,
        statushistory,
        table,
        timeseries,
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as common_models
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models import heatmap as heatmap_models
    from grafana_foundation_sdk.models import prometheus as prometheus_models

from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import MODEL_PAGE
from otel_model_metrics.provisioning.dashboards.queries import chosen, variable_of
from otel_model_metrics.provisioning.expressions import Expression
from otel_model_metrics.provisioning.promql import MODEL, SEGMENT, VERSION, counter_name, selector

TAG = "ml-model-quality"
TITLE = "ML model quality"

# Colours that people who see no red or green tell apart in brightness; each always comes with a word or a number.
GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "dark-red", "blue", "#8e8e8e"

Steps = Sequence[tuple[float | None, str]]
Words = Sequence[tuple[float | None, str, str]]

# A value that is worse than its objective by less than this is said to be near it.
NEAR = 0.02
MARGIN_STEPS: Steps = ((None, RED), (-NEAR, ORANGE), (0, GREEN))
# A segment that is worse than its model by less than the first is as good as it.
GAP_STEPS: Steps = ((None, RED), (-0.1, ORANGE), (-0.05, "text"))
STATUS: Words = ((None, "LOW", RED), (-NEAR, "NEAR", ORANGE), (0, "OK", GREEN))

SOURCE = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")

# What quality rests on, as `Fleet.evidence` numbers it.
EVIDENCE: Words = (
    (None, "enough rows", GREEN),
    (1, "FEW ROWS", BLUE),
    (2, "NO LABELS", ORANGE),
    (3, "SILENT", RED),
)

Property = models.DynamicConfigValue

# Units as Grafana calls them.
PERCENT, COUNT, NUMBER, SECONDS, PER_SECOND, TEXT = "percentunit", "locale", "none", "s", "cps", "string"


def unit_of(unit: str) -> str:
    """
    What Grafana calls a unit of OpenTelemetry.

    >>> unit_of("{ratio}"), unit_of("{target}"), unit_of("s")
    ('percentunit', 'none', 's')
    """
    counts = dict.fromkeys(("{row}", "{prediction}", "{label}"), COUNT)
    return {"{ratio}": PERCENT, "s": SECONDS, **counts}.get(unit, NUMBER)


# Queries


@dataclass(frozen=True)
class Query:
    """
    One query of a panel.

    Attributes:
        expression: PromQL.
        legend: How its series are called; ``{{label}}`` is a label.
        ref: Its letter, by which overrides know it; by default the next one.
    """

    expression: Expression | str
    legend: str = ""
    ref: str = ""


def _targets(panel: Any, queries: Iterable[Query], form: str, *, instant: bool) -> None:
    for place, query in enumerate(queries):
        target = (
            prometheus.Dataquery()
            .datasource(SOURCE)
            .ref_id(query.ref or chr(ord("A") + place))
            .expr(str(query.expression))
            .legend_format(query.legend or "__auto")
            .format(prometheus_models.PromQueryFormat(form))
            .editor_mode(prometheus_models.QueryEditorMode.CODE)
        )
        panel.with_target(target.instant() if instant else target.range())


def version_name(choice: Choice, *, model: bool = True) -> str:
    """
    How a chart calls the series of one version.

    >>> version_name(Choice())
    '{{ml_model_name}} {{ml_model_version}}'
    """
    labels = (*([MODEL] if model else []), VERSION, *choice.settings.by)
    return " ".join(f"{{{{{label}}}}}" for label in labels)


# Panels


def _panel(panel: Any, id_: int, title: str, description: str, size: tuple[int, int], no_value: str) -> Any:
    return (
        panel.id(id_)
        .title(title)
        .description(description)
        .span(size[0])
        .height(size[1])
        .datasource(SOURCE)
        .no_value(no_value)
    )


def numbers(
    id_: int,
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    size: tuple[int, int],
    unit: str = COUNT,
    steps: Steps = (),
    no_value: str = "no data",
    named: bool = False,
    summed: bool = False,
    decimals: int | None = None,
) -> stat.Panel:
    """
    Large numbers of this moment.

    Args:
        id_: Never changes, for alerts link to it.
        title, description: What it is, and how to read it.
        queries: Each gives some of the numbers.
        size: Width, of 24, and height.
        unit: That of all of them; `per_query` gives one another.
        steps: From which value on which colour; none is neutral.
        no_value: What to say if there is nothing.
        named: Whether each number has its name.
        summed: Whether the queries give one number together.
        decimals: How many; by default as Grafana thinks.
    """
    panel: stat.Panel = _panel(stat.Panel(), id_, title, description, size, no_value).unit(unit)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.graph_mode(common_models.BigValueGraphMode.NONE)
    panel.text_mode(common_models.BigValueTextMode.VALUE_AND_NAME if named else common_models.BigValueTextMode.VALUE)
    panel.thresholds(thresholds(steps))
    panel.color_mode(common_models.BigValueColorMode.BACKGROUND if steps else common_models.BigValueColorMode.NONE)
    if decimals is not None:
        panel.decimals(decimals)
    if unit == PERCENT:
        panel.min(0).max(1)
    queries = [replace(query, legend=query.legend or title) for query in queries]
    if summed:
        panel.with_transformation(_transformation("joinByField", byField="Time", mode="outer"))
        panel.with_transformation(
            _transformation(
                "calculateField", mode="reduceRow", reduce={"reducer": "sum"}, replaceFields=True, alias=title
            )
        )
    _targets(panel, queries, "time_series", instant=True)
    return panel


def lines(
    id_: int,
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    size: tuple[int, int] = (8, 8),
    unit: str = NUMBER,
    no_value: str = "no data",
    stacked: bool = False,
    decimals: int | None = None,
    bounded: bool = True,
) -> timeseries.Panel:
    """
    Values over time. Gaps are gaps: what is undefined is not drawn.

    Args:
        id_, title, description, queries, size, unit, no_value, decimals: As for `numbers`.
        stacked: Whether lines are shares of their sum.
        bounded: Whether a percentage ends at 100.
    """
    panel: timeseries.Panel = _panel(timeseries.Panel(), id_, title, description, size, no_value).unit(unit)
    panel.line_width(2).fill_opacity(30 if stacked else 0).show_points(common_models.VisibilityMode.AUTO)
    panel.span_nulls(False).max_data_points(400)  # each point is a query over the whole window
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.PERCENT).group("A"))
    if unit == PERCENT and bounded:
        panel.max(1)
    if decimals is not None:
        panel.decimals(decimals)
    _targets(panel, queries, "time_series", instant=False)
    return panel


def banded(panel: timeseries.Panel) -> timeseries.Panel:
    """Of series named value, lower, upper and objective: a line in its interval, and a dashed one."""
    no_line = _properties({"custom.lineWidth": 0, "color": _fixed(BLUE), "custom.hideFrom": _hidden(legend=True)})
    panel.override_by_name("value", _properties({"color": _fixed(BLUE)}))
    panel.override_by_regexp("/^(lower|upper)$/", no_line)
    panel.override_by_name("upper", _properties({"custom.fillBelowTo": "lower", "custom.fillOpacity": 15}))
    return dashed(panel, "objective")


def dashed(panel: timeseries.Panel, name: str) -> timeseries.Panel:
    """Series whose names begin so as dashed lines."""
    style = {"fill": "dash", "dash": [10, 10]}
    panel.override_by_regexp(f"/^{name}/", _properties({"color": _fixed(ORANGE), "custom.lineStyle": style}))
    return panel


def history(
    id_: int, title: str, description: str, queries: Sequence[Query], *, size: tuple[int, int], steps: Steps, unit: str
) -> statushistory.Panel:
    """A row of coloured squares for each series: since when something is as it is."""
    panel: statushistory.Panel = _panel(
        statushistory.Panel(), id_, title, description, size, "nothing to judge yet"
    ).unit(unit)
    panel.thresholds(thresholds(steps)).color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    panel.row_height(0.9).show_value(common_models.VisibilityMode.AUTO).decimals(1)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(False)
    )
    panel.max_data_points(48)  # each square costs as much as a number of this moment
    _targets(panel, queries, "time_series", instant=False)
    return panel


def heat(id_: int, title: str, description: str, query: Query, *, size: tuple[int, int], unit: str) -> heatmap.Panel:
    """How a distribution changes over time; the query gives counts of a histogram by ``le``."""
    panel: heatmap.Panel = _panel(heatmap.Panel(), id_, title, description, size, "no data")
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common_models.AxisPlacement.LEFT))
    panel.color(
        heatmap.HeatmapColorOptions()
        .mode(heatmap_models.HeatmapColorMode.SCHEME)
        .scheme("Blues")
        .fill("dark-blue")
        .steps(64)
        .exponent(0.5)
    )
    panel.cell_values(heatmap.CellValues().unit(COUNT))
    panel.calculate(False).show_legend()
    _targets(panel, [query], "heatmap", instant=False)
    return panel


@dataclass(frozen=True)
class Column:
    """
    One column of a table.

    Attributes:
        field: A label, ``Value``, or ``Value #B`` of the query B.
        title: What stands above it.
        unit: How its numbers are written.
        steps: From which value on which colour its text has; none is neutral.
        words: From which value on which word is written instead, in which colour.
        link: Where a click leads.
        width: In pixels.
        filled: Whether the colour is that of the cell.
        decimals: Of its numbers.
    """

    field: str
    title: str
    unit: str = ""
    steps: Steps = ()
    words: Words = ()
    link: tuple[str, str] | None = None
    width: int | None = None
    filled: bool = False
    decimals: int | None = None


def rows(
    id_: int,
    title: str,
    description: str,
    queries: Sequence[Query],
    columns: Sequence[Column],
    *,
    size: tuple[int, int],
    sort: tuple[str, bool] | None = None,
    no_value: str = "",
    merged: Mapping[str, Sequence[str]] | None = None,
) -> table.Panel:
    """
    A table of this moment: a row for each set of labels, a column for each label and query.

    Args:
        id_, title, description, queries, size: As for `numbers`.
        columns: From left to right; whatever else the queries give is left out.
        sort: The title of a column, and whether its largest values come first.
        no_value: What an empty cell says.
        merged: New fields, and which of the queries' fields each of them comes from: that one which a row has.
    """
    panel: table.Panel = _panel(table.Panel(), id_, title, description, size, no_value)
    panel.cell_height(common_models.TableCellHeight.SM).show_header(True).filterable(True)
    panel.unit(TEXT)  # else Grafana writes a version such as 2026.11 as a number
    if len(queries) > 1:
        panel.with_transformation(_transformation("merge"))
    for name, fields in (merged or {}).items():
        reducer = {"reducer": "lastNotNull", "include": list(fields)}
        panel.with_transformation(_transformation("calculateField", mode="reduceRow", reduce=reducer, alias=name))
    panel.with_transformation(
        _transformation("filterFieldsByName", include={"names": [column.field for column in columns]})
    )
    panel.with_transformation(
        _transformation(
            "organize",
            excludeByName={},
            indexByName={column.field: place for place, column in enumerate(columns)},
            renameByName={column.field: column.title for column in columns},
        )
    )
    for column in columns:
        if properties := _column_properties(column):
            panel.override_by_name(column.title, properties)
    if sort:
        panel.sort_by([common.TableSortByFieldState().display_name(sort[0]).desc(sort[1])])
    _targets(panel, queries, "table", instant=True)
    return panel


def margins_and_status(count: int) -> dict[str, list[str]]:
    """What queries M1, M2 ... give, as one number and again to be written as a word."""
    fields = [f"Value #M{place}" for place in range(1, count + 1)]
    return {"Margin": fields, "Status": fields}


def matrix(
    id_: int,
    title: str,
    description: str,
    query: Query,
    *,
    size: tuple[int, int],
    row: str,
    column: str,
    corner: str,
) -> table.Panel:
    """A table of two labels, coloured by its numbers: the more, the darker."""
    panel: table.Panel = _panel(table.Panel(), id_, title, description, size, "0")
    panel.cell_height(common_models.TableCellHeight.SM).show_header(True).unit(TEXT)
    # Rows and columns come in the order in which the store gives the cells.
    panel.with_transformation(_transformation("sortBy", fields={}, sort=[{"field": column}]))
    panel.with_transformation(
        _transformation("groupingToMatrix", rowField=row, columnField=column, valueField="Value", emptyValue="zero")
    )
    panel.with_transformation(_transformation("sortBy", fields={}, sort=[{"field": f"{row}\\{column}"}]))
    panel.with_transformation(
        _transformation("organize", renameByName={f"{row}\\{column}": corner}, indexByName={}, excludeByName={})
    )
    cells = {
        "unit": COUNT,
        "decimals": 0,
        "color": {"mode": models.FieldColorModeId.CONTINUOUS_BLUES.value},
        "custom.cellOptions": {"type": "color-background", "mode": "basic"},
    }
    panel.override_by_field_type("number", _properties(cells))
    _targets(panel, [query], "table", instant=True)
    return panel


def firing_alerts(id_: int, choice: Choice, *, size: tuple[int, int]) -> dashboard.Panel:
    """What Grafana's own alerts of our folder say."""
    panel = dashboard.Panel().id(id_).type("alertlist").title("Alerts").span(size[0]).height(size[1])
    return panel.description(
        f"Alerts that fire now in the folder {choice.folder!r}, and those that Prometheus evaluates. Each leads to its "
        "runbook."
    ).options(
        {
            "alertInstanceLabelFilter": "",
            "alertName": "",
            "dashboardAlerts": False,
            "datasource": "",
            "folder": {"title": choice.folder, "uid": choice.folder_uid},
            "groupBy": [],
            "groupMode": "default",
            "maxItems": 20,
            "showInactiveAlerts": False,
            "sortOrder": 3,  # by importance
            "stateFilter": {"error": True, "firing": True, "noData": False, "normal": False, "pending": True},
            "viewMode": "list",
        }
    )


def stable_id(*names: str) -> int:
    """
    An id for a panel that follows from the catalogue: the same for ever, and above those given by hand.
    """
    return 1000 + crc32("/".join(names).encode()) % 1_000_000


def per_query(panel: Any, ref: str, unit: str, steps: Steps = (), **more: Any) -> Any:
    """Another unit for what one query gives."""
    properties: dict[str, Any] = {"unit": unit, **more}
    if steps:
        properties["thresholds"] = {"mode": "absolute", "steps": [{"value": at, "color": of} for at, of in steps]}
    if unit == PERCENT:
        properties |= {"max": 1}
    return panel.override_by_query(ref, _properties(properties))


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """From which value on which colour; none is neutral."""
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=at, color=colour) for at, colour in (steps or ((None, "text"),))])
    )


def link(choice: Choice, uid: str, title: str, *, of_row: bool = True, **variables: str) -> tuple[str, str]:
    """
    A link to another of our dashboards, which keeps time, data source and variables.

    Args:
        choice: What the user chose.
        uid: Where it leads.
        title: What it says.
        of_row: Whether the labels that split a fleet are columns of the row that was clicked on.
        variables: Those that it sets.
    """
    by = choice.settings.by
    kept = ["datasource", "window", "min_rows", *(() if of_row else (*by, "version"))]
    variables |= {label: field(column_title(label)) for label in by if of_row}
    parts = ["${__url_time_range}", *(f"${{{name}:queryparam}}" for name in kept)]
    parts += [f"var-{name}={value}" for name, value in variables.items()]
    return title, f"/d/{uid}?{'&'.join(parts)}"


def column_title(label: str) -> str:
    """What stands above the column of a label that splits a fleet."""
    return label.replace("_", " ")


def columns_of(choice: Choice) -> list[Column]:
    """A column for each label that splits a fleet."""
    return [Column(label, column_title(label)) for label in choice.settings.by]


def field(title: str) -> str:
    """The value of a column in the row that was clicked on."""
    return f"${{__data.fields[{title!r}]:percentencode}}".replace("'", '"')


def _column_properties(column: Column) -> list[Property]:
    properties: dict[str, Any] = {}
    if column.unit:
        properties["unit"] = column.unit
        if column.unit == PERCENT:
            properties |= {"max": 1}
    if column.decimals is not None:
        properties["decimals"] = column.decimals
    if column.steps:
        properties["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": at, "color": of} for at, of in column.steps],
        }
    if column.words:
        properties["mappings"] = _mappings(column.words)
    elif column.steps:
        properties["mappings"] = [_NOTHING]
    if column.steps or column.words:
        properties["custom.cellOptions"] = {"type": "color-background" if column.filled else "color-text"}
    if column.link:
        title, url = column.link
        properties["links"] = [{"title": title, "url": url, "targetBlank": False}]
    if column.width:
        properties["custom.width"] = column.width
    return _properties(properties)


# Without it nothing has the colour of the lowest values, as if it were one.
_NOTHING = {"type": "special", "options": {"match": "null+nan", "result": {"text": "-", "color": "text", "index": 9}}}


def _mappings(words: Words) -> list[dict[str, Any]]:
    """Ranges, each from its value to the next one; the later one has the value they share."""
    ends = [*(at for at, _, _ in words[1:]), None]
    ranges = [
        {"type": "range", "options": {"from": at, "to": end, "result": {"text": text, "color": colour, "index": place}}}
        for place, ((at, text, colour), end) in enumerate(zip(words, ends, strict=True))
    ]
    return [_NOTHING, *ranges[::-1]]  # the first one that fits counts


def _properties(values: Mapping[str, Any]) -> list[Property]:
    return [Property(id_val=name, value=value) for name, value in values.items()]


def _fixed(colour: str) -> dict[str, str]:
    return {"mode": "fixed", "fixedColor": colour}


def _hidden(**where: bool) -> dict[str, bool]:
    return {"legend": False, "tooltip": False, "viz": False, **where}


def _transformation(id_: str, **options: Any) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(id_val=id_, options=options)


# The page


def page(choice: Choice, uid: str, title: str, description: str, *, segments: bool = False) -> dashboard.Dashboard:
    """
    An empty page with what all of ours have: data source, models and versions to choose, links, annotations.

    Args:
        choice: What the user chose.
        uid: Of the dashboard.
        title: What follows the common beginning of our titles.
        description: What the page answers.
        segments: Whether a segment is chosen too.
    """
    made = (
        dashboard.Dashboard(f"{TITLE} / {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-24h", "now")
        .refresh("1m")
        .timezone("browser")
    )
    made.link(
        dashboard.DashboardLink(TITLE)
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
        .icon("external link")
    )
    made.link(
        dashboard.DashboardLink("Runbooks")
        .type(models.DashboardLinkType.LINK)
        .url(choice.settings.runbooks)
        .icon("doc")
        .target_blank(True)
        .tooltip("What to do about each alert")
    )
    single = (MODEL, SEGMENT[0]) if segments else (MODEL,) if uid == MODEL_PAGE else ()
    for annotation in _annotations(choice):
        made.annotation(annotation)
    for variable in _variables(choice, single, segments=segments):
        made.with_variable(variable)
    return made


def _variables(choice: Choice, single: tuple[str, ...], *, segments: bool) -> Iterable[Any]:
    settings = choice.settings
    counter = counter_name("predictions", settings.naming, settings.namespace)
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield source.current(models.VariableOption(selected=True, text=choice.datasource, value=choice.datasource))
    known: list[str] = []
    for label in (*settings.by, MODEL, VERSION):
        title = {MODEL: "Model", VERSION: "Version"}.get(label, column_title(label))
        among = selector(counter, None, (*choice.matchers, *chosen(known)))
        # All models are those of the choice: beside them a store may have others.
        every = choice.models if label == MODEL and choice.models else ".*"
        several = label not in single
        yield _query_variable(variable_of(label), title, among, label, several=several, every=every)
        known.append(label)
    if segments:
        for label, title in zip(SEGMENT, ("Segment", "Segment value"), strict=True):
            among = selector(counter, None, (f'{SEGMENT[0]}!=""', *chosen(known)))
            yield _query_variable(variable_of(label), title, among, label, several=label not in single)
            known.append(label)
    windows = sorted({"15m", "1h", "6h", "1d", choice.window}, key=promql.seconds)
    yield _custom_variable("window", "Window", windows, choice.window, "Quality is that of the rows of so long")
    least = sorted({30, 100, 300, settings.min_rows})
    yield _custom_variable(
        "min_rows",
        "Least rows",
        list(map(str, least)),
        str(settings.min_rows),
        "With fewer labelled rows nothing is judged",
    )


def _query_variable(
    name: str, title: str, among: str, label: str, *, several: bool, every: str = ".*"
) -> dashboard.QueryVariable:
    variable = (
        dashboard.QueryVariable(name)
        .label(title)
        .datasource(SOURCE)
        .query(f"label_values({among}, {label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(several)
        .include_all(several)
    )
    if several:
        variable.all_value(every).current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return variable


def _custom_variable(
    name: str, title: str, values: Sequence[str], first: str, description: str
) -> dashboard.CustomVariable:
    options = [models.VariableOption(selected=value == first, text=value, value=value) for value in values]
    return (
        dashboard.CustomVariable(name)
        .label(title)
        .description(description)
        .values(",".join(values))
        .options(options)
        .current(models.VariableOption(selected=True, text=first, value=first))
    )


def _annotations(choice: Choice) -> Iterable[dashboard.AnnotationQuery]:
    settings = choice.settings
    counter = counter_name("predictions", settings.naming, settings.namespace)
    labels = ", ".join((MODEL, VERSION, *settings.by))
    of = selector(counter, {SEGMENT[0]: ""}, chosen((MODEL, VERSION, *settings.by)))
    yield (
        dashboard.AnnotationQuery()
        .name("New version")
        .datasource(SOURCE)
        .enable(True)
        .icon_color(BLUE)
        # Both sides look back as far, or an export that is missing would end the mark, and the next begin another one.
        .expr(
            f"group by ({labels}) (last_over_time({of}[5m])) "
            f"unless group by ({labels}) (last_over_time({of}[1d] offset 5m))"
        )
        .step("60s")
        .title_format(f"New version of {{{{{MODEL}}}}}")
        .text_format(f"First predictions of version {{{{{VERSION}}}}}")
    )
    yield (
        dashboard.AnnotationQuery()
        .name("Alerts of Prometheus")
        .datasource(SOURCE)
        .enable(True)
        .icon_color(RED)
        .expr(selector("ALERTS", {"alertstate": "firing"}, (*chosen([MODEL]), 'alertname=~"Model.*"')))
        .step("60s")
        .title_format("{{alertname}}")
        .text_format(f"{{{{{MODEL}}}}} {{{{{VERSION}}}}} {{{{ml_metric}}}}")
    )


def row(made: dashboard.Dashboard, id_: int, title: str, panels: Sequence[Any] = ()) -> None:
    """Panels below a title that is clicked on to see them: until then they ask nothing of the store."""
    collapsed = dashboard.Row(title).id(id_)
    for panel in panels:
        collapsed.with_panel(panel)
    made.with_row(collapsed)


_DEFAULTS: dict[str, Any] = {"transparent": False, "repeatDirection": "h", "panels": []}


def written(made: dashboard.Dashboard) -> str:
    """The page as Grafana reads it, always in the same order."""
    content = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    # The SDK moves links and annotations into a menu, where nobody looks for them.
    for item in (*content["links"], *content["annotations"]["list"]):
        item.pop("placement", None)
    panels = content.pop("panels")
    flat = [one for panel in panels for one in (panel, *panel.get("panels", ()))]
    for panel in flat:  # what Grafana takes for granted
        for name, value in _DEFAULTS.items():
            if panel.get(name) == value:
                del panel[name]
    # A line for each panel: small enough for a ConfigMap, and a reviewer sees which ones have changed.
    lines_ = ",\n".join(
        json.dumps(panel, sort_keys=True, ensure_ascii=False, separators=(",", ":")) for panel in panels
    )
    rest = json.dumps(content, sort_keys=True, ensure_ascii=False, indent=1)
    return f'{rest.removesuffix(chr(10) + "}")},\n "panels": [\n{lines_}\n ]\n}}\n'
