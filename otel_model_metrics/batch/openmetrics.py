"""
Points as OpenMetrics text with timestamps, which ``promtool tsdb create-blocks-from openmetrics`` loads into Prometheus
however old they are. The names are those that Prometheus gives to points that come over OTLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from otel_model_metrics.batch.points import Family, Points, TimeSeries
from otel_model_metrics.prometheus_names import escaped, prometheus_label, prometheus_name


def write(
    points: Points, target: Mapping[str, str], file: TextIO, progress: Callable[[int], None] | None = None
) -> None:
    """
    Write points as OpenMetrics text.

    Args:
        points: What to write.
        target: Labels on everything, such as ``job`` and ``instance``.
        file: Where to; its encoding must be UTF-8.
        progress: Called with the number of points after each series.

    Cost: about a microsecond and 150 bytes a point.
    """
    for family in points.families:
        name = prometheus_name(family.name, family.unit, family.kind)
        for line in _head(family, name):
            file.write(line + "\n")
        for series in family.series:
            file.writelines(_lines(name, series, target))
            if progress is not None:
                progress(len(series.micros))
    file.write("# EOF\n")


def _head(family: Family, name: str) -> Iterator[str]:
    shown = name.removesuffix("_total") if family.kind == "counter" else name
    yield f"# TYPE {shown} {family.kind}"
    if family.unit == "s":
        yield f"# UNIT {shown} seconds"
    yield f"# HELP {shown} {escaped(family.description)}"


def _lines(name: str, series: TimeSeries, target: Mapping[str, str]) -> Iterator[str]:
    labels = {**{prometheus_label(attribute): value for attribute, value in series.attributes.items()}, **target}
    selected = ",".join(f'{label}="{escaped(value)}"' for label, value in sorted(labels.items()))
    for micros, value in zip(series.micros.tolist(), series.values.tolist(), strict=True):
        yield f"{name}{{{selected}}} {value!r} {micros / 1e6:.3f}\n"
