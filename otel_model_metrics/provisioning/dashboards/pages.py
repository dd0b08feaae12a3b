"""
The pages there are, and their files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import GROUND_TRUTH, MODEL_PAGE, OVERVIEW, SEGMENTS, style
from otel_model_metrics.provisioning.dashboards.ground_truth import ground_truth
from otel_model_metrics.provisioning.dashboards.model import model
from otel_model_metrics.provisioning.dashboards.overview import overview
from otel_model_metrics.provisioning.dashboards.segments import segments

if TYPE_CHECKING:  # at run time style.py comes first, which keeps the SDK from warning of what we know
    from grafana_foundation_sdk.builders import dashboard

# By uid, in the order in which one looks at them.
PAGES: dict[str, Callable[[Choice], dashboard.Dashboard]] = {
    OVERVIEW: overview,
    MODEL_PAGE: model,
    SEGMENTS: segments,
    GROUND_TRUTH: ground_truth,
}


def _file(make: Callable[[Choice], dashboard.Dashboard], choice: Choice) -> str:
    return style.written(make(choice))


# The name of each file, and what makes its text.
FILES: dict[str, Callable[[Choice], str]] = {f"{uid}.json": partial(_file, make) for uid, make in PAGES.items()}
