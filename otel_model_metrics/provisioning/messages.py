"""
What alerts say: parts of messages, as templates that Prometheus and vmalert fill in.
"""

from __future__ import annotations

from collections.abc import Iterable

from otel_model_metrics import catalog
from otel_model_metrics.catalog import MetricDefinition
from otel_model_metrics.provisioning.promql import METRIC, MODEL, SEGMENT, VERSION, recorded_name
from otel_model_metrics.provisioning.rules import NOT_A_PART, Settings, variant_labels

# How a looked-up count is written, and the value of an alert's expression that is a count or a share.
COUNT = 'value | printf "%.0f"'
VALUE_AS_COUNT = '{{ $value | printf "%.0f" }}'
VALUE_AS_SHARE = "{{ $value | humanizePercentage }}"


def shown_as(metric: MetricDefinition) -> str:
    """The template function that writes a value of this metric."""
    # not humanize, which makes 610m of 0.61
    return "humanizePercentage" if metric.unit == "{ratio}" else 'printf "%.4g"'


def value(metric: MetricDefinition) -> str:
    """The value of the alert's expression."""
    return f"{{{{ $value | {shown_as(metric)} }}}}"


def label(name: str) -> str:
    """
    The value of one of the alert's labels.

    >>> label("ml_reject_reason")
    '{{ $labels.ml_reject_reason }}'
    """
    return f"{{{{ $labels.{name} }}}}"


def model(settings: Settings, *, version: bool = True) -> str:
    """The model, its version, and by what else fleets are told apart."""
    return " ".join([label(MODEL), *([label(VERSION)] if version else []), *(f"({label(by)})" for by in settings.by)])


def metric_name(metric: MetricDefinition) -> str:
    """The metric, with its average or cut-off if it has one."""
    variants = (
        f"{{{{ with $labels.{name} }}}} ({name.removeprefix('ml_')} {{{{ . }}}}){{{{ end }}}}"
        for name in variant_labels(metric)
    )
    return "".join([metric.name, *variants])


def looked_up(query: str, labels: Iterable[str], then: str, otherwise: str = "?") -> str:
    """
    What a query answers.

    Args:
        query: PromQL with ``%+q`` for the value of each of the labels (with the sign, because names may hold anything).
        labels: Labels of the alert.
        then: What to do with the first series of the answer.
        otherwise: What to say if there is none.

    >>> looked_up("up{job=%+q}", ["job"], "value | humanize")
    '{{ with printf `up{job=%+q}` $labels.job | query }}{{ . | first | value | humanize }}{{ else }}?{{ end }}'
    """
    values = "".join(f" $labels.{name}" for name in labels)
    found = f"{{{{ . | first | {then} }}}}"
    return f"{{{{ with printf `{query}`{values} | query }}}}{found}{{{{ else }}}}{otherwise}{{{{ end }}}}"


def same(labels: Iterable[str], **fixed: str) -> str:
    """
    Matchers for series with the same labels as the alert, and the given ones.

    >>> same(["ml_model_name"], ml_segment_name="")
    '{ml_model_name=%+q, ml_segment_name=""}'
    """
    return "{" + ", ".join([*(f"{name}=%+q" for name in labels), *(f'{k}="{v}"' for k, v in fixed.items())]) + "}"


def recorded(metric: MetricDefinition, suffix: str, window: str, settings: Settings) -> str:
    """The value of a metric of the whole version, or one of its bounds."""
    labels = (*settings.version, *variant_labels(metric))
    query = recorded_name(metric.name + suffix, window) + same(labels, **NOT_A_PART)
    return looked_up(query, labels, f"value | {shown_as(metric)}")


def bounds(metric: MetricDefinition, window: str, settings: Settings) -> str:
    """Both bounds of a metric of the whole version."""
    return " to ".join(recorded(metric, suffix, window, settings) for suffix in catalog.BOUNDS)


def objective(metric: MetricDefinition, settings: Settings) -> str:
    """The objective of a metric."""
    labels = (*settings.version, *variant_labels(metric))
    return looked_up(_objective(metric, labels, settings), labels, f"value | {shown_as(metric)}", "not set")


def _objective(metric: MetricDefinition, labels: tuple[str, ...], settings: Settings) -> str:
    gauge = settings.gauge(catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT)
    return settings.lately(gauge + same(labels, **{METRIC: metric.name}))


def burn(metric: MetricDefinition, window: str, settings: Settings) -> str:
    """How many times as fast as the objective allows errors come."""
    labels = (*settings.version, *variant_labels(metric))
    value = recorded_name(metric.name, window) + same(labels, **NOT_A_PART)
    # An objective of 1 allows none, and then there is no number to say.
    query = f"(1 - max({value})) / (1 - min({_objective(metric, labels, settings)}) > 0)"
    return looked_up(query, (*labels, *labels), 'value | printf "%.1f"', "infinitely many")


def spoken(window: str) -> str:
    """
    A window in words.

    >>> spoken("1h"), spoken("30m"), spoken("1h30m")
    ('hour', '30 minutes', '1h30m')
    """
    count, unit = window[:-1], {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week"}[window[-1]]
    if not count.isdigit():
        return window
    return unit if count == "1" else f"{count} {unit}s"


def rows(window: str, settings: Settings, *, of_segment: bool = False) -> str:
    """Labelled rows of the version, or of the alert's segment."""
    labels = (*settings.version, *(SEGMENT if of_segment else ()))
    query = recorded_name("window.rows", window) + same(labels, **({} if of_segment else {SEGMENT[0]: ""}))
    return looked_up(query, labels, COUNT) + " labelled rows"


def total(name: str, window: str, labels: tuple[str, ...], **fixed: str) -> str:
    """A recorded total with the labels of the alert, summed."""
    return looked_up(f"sum({recorded_name(name, window)}{same(labels, **fixed)})", labels, COUNT)
