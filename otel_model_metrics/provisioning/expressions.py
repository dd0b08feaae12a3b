"""
Expressions: formulas that write themselves down as PromQL.

An `Expression` stands in for an array wherever a function uses only operators and numpy functions (see
`statistics/intervals.py`). Undefined (``nan``) in numpy is absent in PromQL: where numpy chooses between a value and
``nan``, PromQL filters. The classes of a model, in numpy the last axis of an array, are the Prometheus label `CLASS`.

>>> import numpy as np
>>> tp, fp = (Expression(name, labels=("ml_model_name",)) for name in ("tp", "fp"))
>>> whole = tp + fp
>>> print(tp / np.where(np.not_equal(whole, 0), whole, np.nan))
tp / (tp + fp != 0)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

CLASS = "ml_class"

# How tightly PromQL's operators bind; what binds less tightly than its place asks for is put in parentheses.
_OR, _AND, _COMPARISON, _SUM, _PRODUCT, _ATOM = range(6)


class Expression:
    """
    A PromQL expression.

    Args:
        text: The expression.
        labels: The Prometheus labels that tell its series apart; empty for a number. Two expressions with different
            labels are matched on those they share, one series of the one with several of the other.
        binding: How tightly its outermost operator binds.
    """

    def __init__(self, text: str, labels: Iterable[str] = (), binding: int = _ATOM) -> None:
        self.text = text
        self.labels = tuple(labels)
        self.binding = binding
        self.aggregation: tuple[str, str] | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def __add__(self, other: Any) -> Expression:
        return _operation("+", self, other, _SUM)

    def __radd__(self, other: Any) -> Expression:
        return _operation("+", other, self, _SUM)

    def __sub__(self, other: Any) -> Expression:
        return _operation("-", self, other, _SUM)

    def __rsub__(self, other: Any) -> Expression:
        return _operation("-", other, self, _SUM)

    def __mul__(self, other: Any) -> Expression:
        return _operation("*", self, other, _PRODUCT)

    def __rmul__(self, other: Any) -> Expression:
        return _operation("*", other, self, _PRODUCT)

    def __truediv__(self, other: Any) -> Expression:
        if isinstance(other, Expression) and self.aggregation and other.aggregation:
            (one, of), (by, what) = self.aggregation, other.aggregation
            if (one, by) == ("sum", "count") and of == what:
                return Expression("avg" + self.text.removeprefix("sum"), self.labels)
        return _operation("/", self, other, _PRODUCT)

    def __rtruediv__(self, other: Any) -> Expression:
        return _operation("/", other, self, _PRODUCT)

    def __pow__(self, exponent: float) -> Expression:
        return Expression(f"{_operand(self, _ATOM)} ^ {number(exponent)}", self.labels)

    def over_classes(self, aggregation: str) -> Expression:
        """All classes of a model together."""
        labels = tuple(label for label in self.labels if label != CLASS)
        result = Expression(f"{aggregation} by ({', '.join(labels)}) ({self.text})", labels)
        result.aggregation = (aggregation, self.text)
        return result

    def or_else(self, other: Any) -> Expression:
        """The series of `self`, and those of `other` that `self` does not have."""
        return _set_operation("or", self, other, _OR)

    def where(self, condition: Expression, on: Iterable[str] | None = None) -> Expression:
        """The series of `self` that `condition` has too; they agree in all labels, or in those of `on`."""
        return _set_operation("and", self, condition, _AND, on)

    def unless(self, condition: Expression) -> Expression:
        """The series of `self` that `condition` does not have."""
        return _set_operation("unless", self, condition, _AND)

    # numpy's two dispatch protocols

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        function = _UFUNCS.get(ufunc)
        if function is None or method != "__call__":
            raise _no_promql(ufunc.__name__)
        return function(*inputs)

    def __array_function__(self, function: Any, types: Any, arguments: Any, settings: Any) -> Any:
        ours = _FUNCTIONS.get(function)
        if ours is None:
            raise _no_promql(function.__name__)
        return ours(*arguments, **settings)


def _no_promql(name: str) -> TypeError:
    known = ", ".join(sorted(one.__name__ for one in (*_UFUNCS, *_FUNCTIONS)))
    return TypeError(
        f"np.{name} has no PromQL form yet. A function over totals may use + - * / ** and np.: {known}; a new one goes "
        "into _UFUNCS or _FUNCTIONS of provisioning/expressions.py."
    )


class Statistic(Expression):
    """
    A sum over rows of some kinds, which knows how to name the rows of several kinds together.

    Args:
        kinds: The kinds of rows it counts, such as ``tp``.
        unions: The shortest expression for some unions of kinds; ``tp`` and ``fp`` are all positive predictions.
            Others are added as they come up.
    """

    def __init__(self, kinds: frozenset[str], unions: dict[frozenset[str], Expression]) -> None:
        known = unions[kinds]
        super().__init__(known.text, known.labels, known.binding)
        self.kinds = kinds
        self.unions = unions

    def __add__(self, other: Any) -> Expression:
        if isinstance(other, Statistic) and other.unions is self.unions and not self.kinds & other.kinds:
            together = self.kinds | other.kinds
            if together not in self.unions:
                self.unions[together] = super().__add__(other)
            return Statistic(together, self.unions)
        return super().__add__(other)

    def __sub__(self, other: Any) -> Expression:
        if isinstance(other, Statistic) and other.unions is self.unions and other.kinds < self.kinds:
            rest = self.kinds - other.kinds
            if rest in self.unions:
                return Statistic(rest, self.unions)
        return super().__sub__(other)


class _Condition(Expression):
    """A comparison, which keeps the series of its left side for which it holds."""

    def __init__(self, text: str, of: Expression) -> None:
        super().__init__(text, of.labels, _COMPARISON)
        self.of = of
        self.aggregation = of.aggregation


class _Defined:
    """Where an expression has a value, or (negated) where it has none."""

    def __init__(self, of: Expression, negated: bool = False) -> None:
        self.of = of
        self.negated = negated

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        return _Defined(self.of, not self.negated) if ufunc is np.invert else NotImplemented

    def __invert__(self) -> _Defined:
        return _Defined(self.of, not self.negated)

    def __array_function__(self, function: Any, types: Any, arguments: Any, settings: Any) -> Any:
        return Expression.__array_function__(self.of, function, types, arguments, settings)


def number(value: float) -> str:
    """A number as PromQL writes it, to the last digit."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _operand(value: Any, binding: int) -> str:
    if not isinstance(value, Expression):
        return number(value)
    return value.text if value.binding >= binding else f"({value.text})"


def matching(one: Iterable[str], other: Iterable[str]) -> str:
    """How series with these Prometheus labels find each other; empty if all labels are the same."""
    ours, theirs = tuple(one), tuple(other)
    if set(ours) == set(theirs) or not ours or not theirs:  # a number goes with everything
        return ""
    shared = ", ".join(label for label in ours if label in theirs)
    side = "group_left" if set(ours) > set(theirs) else "group_right"
    return f"on ({shared}) {side} () "


def _operation(sign: str, one: Any, other: Any, binding: int) -> Expression:
    if not isinstance(one, Expression) or not isinstance(other, Expression):
        labels = (one if isinstance(one, Expression) else other).labels
        return Expression(f"{_operand(one, binding)} {sign} {_operand(other, binding + 1)}", labels, binding)
    how = matching(one.labels, other.labels)
    labels = max(one.labels, other.labels, key=len)
    return Expression(f"{_operand(one, binding)} {sign} {how}{_operand(other, binding + 1)}", labels, binding)


def _set_operation(word: str, one: Expression, other: Any, binding: int, on: Iterable[str] | None = None) -> Expression:
    if on is None and set(one.labels) != set(other.labels):
        on = [label for label in one.labels if label in other.labels]
    how = "" if on is None else f"on ({', '.join(on)}) "
    return Expression(f"{_operand(one, binding)} {word} {how}{_operand(other, binding + 1)}", one.labels, binding)


def compare(one: Expression, sign: str, other: Expression | float) -> Expression:
    """The series of `one` for which the comparison with a number, or with the matching series of `other`, holds."""
    how = matching(one.labels, other.labels) if isinstance(other, Expression) else ""
    return _Condition(f"{_operand(one, _COMPARISON)} {sign} {how}{_operand(other, _COMPARISON + 1)}", one)


def _comparison(sign: str) -> Callable[[Any, Any], Expression]:
    return lambda one, other: compare(one, sign, other)


def _call(function: str) -> Callable[[Expression], Expression]:
    return lambda of: Expression(f"{function}({of.text})", of.labels)


def _where(condition: _Condition | _Defined, one: Any, other: Any) -> Expression:
    if isinstance(condition, _Condition):
        if one is condition.of and other is np.nan:
            return condition
        if isinstance(one, Expression) and other is np.nan:
            return one.where(condition)
    elif condition.negated:  # where(isnan(x), ...)
        if one is np.nan and isinstance(other, Expression):
            return other.where(condition.of)
        if other is condition.of:
            known: Expression = condition.of
            return known.or_else(one)
    raise TypeError("np.where needs a value that is undefined, or one to put in its place")


def _clip(value: Expression, low: float, high: float) -> Expression:
    bounded = (math.isfinite(low), math.isfinite(high))
    if bounded == (True, True):
        return Expression(f"clamp({value.text}, {number(low)}, {number(high)})", value.labels)
    if bounded == (True, False):
        return _at_least(value, low)
    if bounded == (False, True):
        return Expression(f"clamp_max({value.text}, {number(high)})", value.labels)
    return value


def _at_least(value: Expression, low: float) -> Expression:
    return Expression(f"clamp_min({value.text}, {number(low)})", value.labels)


def _nansum(value: Expression, axis: int) -> Expression:
    return value.over_classes("sum")


def _count_nonzero(defined: _Defined, axis: int) -> Expression:
    return defined.of.over_classes("count")


_UFUNCS: dict[Any, Callable[..., Any]] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.true_divide: operator.truediv,
    np.not_equal: _comparison("!="),
    np.greater: _comparison(">"),
    np.sqrt: _call("sqrt"),
    np.maximum: _at_least,
    np.isnan: lambda of: _Defined(of, negated=True),
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.where: _where,
    np.clip: _clip,
    np.nansum: _nansum,
    np.count_nonzero: _count_nonzero,
}
