"""
What Prometheus calls things: the names of instruments and attributes after translation, and how text is written.
"""

from __future__ import annotations

import re
from typing import Literal

Naming = Literal["otlp", "scrape"]
NAMINGS: tuple[Naming, ...] = ("otlp", "scrape")

_UNITS = {"s": "seconds", "ms": "milliseconds", "%": "percent", "By": "bytes", "1": "ratio"}
_PER = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


def prometheus_name(
    instrument: str, unit: str, kind: Literal["gauge", "counter"], naming: Naming = "otlp", namespace: str = ""
) -> str:
    """
    The name under which Prometheus knows an instrument.

    Args:
        instrument: OpenTelemetry name, e.g. ``ml.model.outcomes``.
        unit: OpenTelemetry unit; an annotation such as ``{row}`` adds nothing to the name.
        kind: What the instrument is.
        naming: ``otlp`` for Prometheus' and the Collector's translation, ``scrape`` for that of the Python exporter.
            They differ for gauges of unit ``1`` only, which this library has none of.
        namespace: Put in front, as the Collector's exporter does with its setting of that name.

    >>> prometheus_name("ml.model.outcomes", "{prediction}", "counter")
    'ml_model_outcomes_total'
    >>> prometheus_name("ml.model.window.age", "s", "gauge", namespace="acme")
    'acme_ml_model_window_age_seconds'
    """
    plain, _, per = re.sub(r"\{[^}]*\}", "", unit).partition("/")
    words = [word for word in re.split(r"[^a-zA-Z0-9]+", instrument) if word]
    suffix = _UNITS.get(plain, plain)
    if plain == "1" and (kind == "counter" or naming == "scrape" or per):
        suffix = ""
    for word in (suffix, f"per_{_PER.get(per, per)}" if per else ""):
        if word and not "_".join(words).endswith(word):
            words.append(word)
    if kind == "counter":
        words = [*(word for word in words if word != "total"), "total"]
    return "_".join([*([namespace] if namespace else []), *words])


def prometheus_label(attribute: str) -> str:
    """
    The Prometheus label of an attribute.

    >>> prometheus_label("ml.segment.name")
    'ml_segment_name'
    """
    return re.sub(r"[^a-zA-Z0-9_]", "_", attribute)


def escaped(value: str) -> str:
    """A label value between double quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
