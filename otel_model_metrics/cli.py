"""
The command line: ``otel-model-metrics``.

The commands are in `commands.py`. They need optional dependencies, without which this file says what to install.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Modules of the optional dependencies, and the extra that installs them.
_EXTRAS = {
    "click": "demo",
    "distributed": "dask",
    "grafana_foundation_sdk": "grafana",
    "jinja2": "batch",
    "promql_parser": "rules",
    "pyarrow": "batch",
    "redis": "redis",
    "rich": "demo",
    "sklearn": "demo",
    "tomli": "batch",
    "yaml": "rules",
}

# Commands that share modules with others, and the extra that installs those for them.
_SHARED = {"click", "promql_parser", "rich", "yaml"}
_OWN = {"rules": "rules", "check": "rules", "grafana": "grafana", "labels": "batch", "evaluate": "batch"}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line and exit.

    Args:
        arguments: What follows the name of the program; those of the process by default.
    """
    try:
        from otel_model_metrics.commands import group

        group.main(arguments, prog_name="otel-model-metrics")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRAS:
            raise
        extra = _EXTRAS[module]
        if module in _SHARED:
            extra = next((_OWN[word] for word in arguments or sys.argv[1:] if word in _OWN), extra)
        if extra == "grafana" and sys.version_info < (3, 11):
            print("otel-model-metrics: this command needs Python 3.11 or newer.", file=sys.stderr)
            sys.exit(1)
        print(
            f"otel-model-metrics: {module} is not installed, which this command needs. "
            f'Install the extra {extra}: pip install "otel-model-metrics[{extra}]"',
            file=sys.stderr,
        )
        sys.exit(1)
