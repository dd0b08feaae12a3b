"""
What users pass to a monitor, or to a job that evaluates files: checked once, with what was expected in the error.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from otel_model_metrics.columns import is_number
from otel_model_metrics.vocabulary import Vocabulary, clean_name


def text(value: Any, what: str) -> str:
    """A name, as every backend stores it."""
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{what} must be a non-empty string, got {value!r} ({type(value).__name__}).")
    return clean_name(value)


def positive_int(value: Any, what: str) -> int:
    """A whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{what} must be a whole number >= 1, got {value!r} ({type(value).__name__}).")
    return int(value)


def segment_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of segments, each once; None for any."""
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f'segments must be several names, got the single string {names!r}. Write ("{names}",).')
    names = tuple(text(name, "a segment name") for name in names)
    if len(set(names)) != len(names):
        raise ValueError(f"segments must not name a segment twice, got {names!r}.")
    return names


def constant_attributes(attributes: Mapping[str, str] | None) -> dict[str, str]:
    """Attributes for everything exported."""
    checked: dict[str, str] = {}
    for key, value in (attributes or {}).items():
        if not isinstance(value, (str, int, float, bool)):
            raise TypeError(f"attributes[{key!r}] must be a string, got {value!r} ({type(value).__name__}).")
        if key.startswith("ml."):
            raise ValueError(
                f"attributes must not begin with 'ml.', which is the library's own namespace, got {key!r}."
            )
        checked[text(key, "an attribute name")] = clean_name(str(value))
    return checked


def cut_offs(k: int | Sequence[int]) -> tuple[int, ...]:
    """Cut-offs of metrics at k, ascending."""
    given = [k] if isinstance(k, (int, np.integer)) else list(k)
    ks = tuple(positive_int(one, "k") for one in given)
    if not ks or len(set(ks)) != len(ks):
        raise ValueError(f"k must be one cut-off or several different ones, got {k!r}.")
    return tuple(sorted(ks))


def class_vocabulary(classes: Sequence[Hashable] | None, max_classes: int) -> Vocabulary:
    """The classes given, and no other; or room for as many as may be met."""
    if classes is None:
        return Vocabulary(min(positive_int(max_classes, "max_classes"), np.iinfo(np.int16).max))
    if isinstance(classes, str) or len(classes) < 2:
        raise ValueError(f"classes must name at least two classes, got {classes!r}.")
    vocabulary = Vocabulary(len(classes), values=classes, closed=True)
    if len(vocabulary) != len(classes):
        raise ValueError(f"classes must be different when written as text, got {list(classes)!r}.")
    return vocabulary


def probability_threshold(threshold: float) -> float:
    """From which score on a prediction is positive."""
    if not is_number(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a probability in [0, 1], got {threshold!r}.")
    return float(threshold)


def positive_class(positive: Any) -> Hashable | None:
    """The value that means positive; None for booleans and 0/1."""
    if positive is not None and (not isinstance(positive, Hashable) or positive != positive):
        raise TypeError(f"positive must be the value that means positive, such as 'fraud' or 1, got {positive!r}.")
    return positive
