"""
The command line: ``otel-model-metrics``.

The commands are in `commands.py`. They need optional dependencies, without which this file says what to install.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Modules of the optional dependencies, and the extra that installs them.
_EXTRAS = {"click": "demo", "yaml": "rules", "promql_parser": "rules", "rich": "demo", "sklearn": "demo"}


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
        extra = "rules" if {"rules", "check"} & set(arguments or sys.argv[1:]) else _EXTRAS[module]
        print(
            f"otel-model-metrics: {module} is not installed, which this command needs. "
            f'Install the extra {extra}: pip install "otel-model-metrics[{extra}]"',
            file=sys.stderr,
        )
        sys.exit(1)
