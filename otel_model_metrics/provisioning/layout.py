"""
How generated files look: YAML whose texts of several lines stay readable, PromQL with its parts below each other.
"""

from __future__ import annotations

from typing import Any

import promql_parser
import yaml

_WIDTH = 116
# libyaml writes the same in half of the time, but PyYAML may have been built without it.
_BASE: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def formatted(expression: str) -> str:
    """An expression on one line if it fits, else with its parts below each other."""
    if len(expression) <= _WIDTH:
        return expression
    pretty: str = promql_parser.parse(expression).prettify()
    return pretty


def as_yaml(content: Any) -> str:
    """Content as YAML, keys in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100_000, allow_unicode=True)
    return text


class _Dumper(_BASE):  # type: ignore[misc]
    """Writes texts of several lines as they are, and never repeats a part by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
