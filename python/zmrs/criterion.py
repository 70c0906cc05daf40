"""Which inputs are good enough? The condition that ``--select`` gives, read and applied.

A condition such as ``fwhm < 1.5*median and stars > 0.5*median`` compares measured quantities with
numbers and with what is usual among all inputs.  It is read once into nested functions, from a
syntax tree of which only known parts are taken: nothing that a user writes is ever executed.
Arithmetic on values; what the quantities are and how they are measured is `zmrs.quality`'s.
"""

from __future__ import annotations

import ast
import math
import operator
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zmrs.errors import UsageError

__all__ = ["QUANTITIES", "Comparison", "Criterion", "Usual"]

QUANTITIES = ("background", "noise", "stars", "fwhm", "roundness")
"""What a condition may ask for."""

Figures = Mapping[str, float]
"""Measured quantities of one input by name; NaN is one that could not be measured."""

_MOST_CHARACTERS = 1000
_EXAMPLE = "'fwhm < 1.5*median and stars > 0.5*median'"

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b if b else math.nan,
}
_SIGNS: dict[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_RELATIONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    # NaN is not even different from anything: it is not known.
    ast.NotEq: lambda a, b: a < b or a > b,
}


class Usual:
    """What is usual among all inputs: medians and percentiles of what is known of each quantity."""

    def __init__(self, all_figures: Sequence[Figures]) -> None:
        self._known = {
            name: sorted(v for figures in all_figures if not math.isnan(v := figures[name]))
            for name in QUANTITIES
        }

    def median(self, name: str) -> float:
        """Median of a quantity; NaN if no input has it."""
        known = self._known[name]
        return statistics.median(known) if known else math.nan

    def percentile(self, name: str, percent: float) -> float:
        """Percentile, interpolated linearly between the two nearest; NaN if no input has it."""
        known = self._known[name]
        if not known:
            return math.nan
        place = percent / 100 * (len(known) - 1)
        low = int(place)
        high = min(low + 1, len(known) - 1)
        return known[low] + (place - low) * (known[high] - known[low])


@dataclass(frozen=True)
class Comparison:
    """A part of a condition that holds or does not: its text, and the quantities it is about."""

    text: str
    names: tuple[str, ...]


_Number = Callable[[Figures, Usual], float]
_Condition = Callable[[Figures, Usual], tuple[Comparison, ...]]
"""The comparisons that keep a condition from holding; none of them if it holds."""


class Criterion:
    """The condition that an input has to meet.

    Parameters
    ----------
    text
        Comparisons (``< <= > >= == !=``, also chained) of numbers, the quantities of `QUANTITIES`
        and what is usual among all inputs, with ``+ - * /`` between them; joined by ``and``,
        ``or``, ``not`` and parentheses.  ``median(q)`` is the median of a quantity over all inputs
        in which it could be measured, ``percentile(q, P)`` its percentile; ``median`` alone is that
        of the one quantity that the same comparison names.  A comparison with what could not be
        measured does not hold.

    Raises
    ------
    UsageError
        One sentence that names what cannot be understood and what could be.
    """

    def __init__(self, text: object) -> None:
        if not isinstance(text, str):
            raise UsageError(f"--select: {text!r} is no text; give a condition such as {_EXAMPLE}.")
        self.text = " ".join(text.split())
        self._failing = _Reader(self.text).read()

    def failing(self, figures: Figures, usual: Usual) -> tuple[Comparison, ...]:
        """What an input with these figures fails to meet; nothing if the condition holds."""
        return self._failing(figures, usual)


class _Reader:
    """Makes functions of a syntax tree, part by part, and refuses what is not in its tables."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self) -> _Condition:
        if not self._text:
            raise self._refusal("it is empty")
        if len(self._text) > _MOST_CHARACTERS:
            raise self._refusal(f"it has more than {_MOST_CHARACTERS} characters")
        try:
            with warnings.catch_warnings():
                # Such as "1and 2": what is odd is refused or understood, never muttered about.
                warnings.simplefilter("ignore")
                tree = ast.parse(self._text, mode="eval")
            return self._condition(tree.body)
        except SyntaxError as error:
            raise self._refusal(f"it cannot be read ({error.msg})") from None
        except (ValueError, RecursionError, MemoryError):
            raise self._refusal("it cannot be read") from None

    def _refusal(self, cause: str) -> UsageError:
        shown = self._text if len(self._text) <= 80 else f"{self._text[:77]}…"
        return UsageError(
            f"--select: in '{shown}' {cause}; write comparisons of {', '.join(QUANTITIES)} with "
            f"numbers, median or percentile(…, P), such as {_EXAMPLE}."
        )

    def _source(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or ast.unparse(node)

    def _condition(self, node: ast.expr) -> _Condition:
        match node:
            case ast.Compare():
                return self._comparison(node)
            case ast.BoolOp(op=ast.And()):
                return _all_of([self._condition(part) for part in node.values])
            case ast.BoolOp():
                return _any_of([self._condition(part) for part in node.values])
            case ast.UnaryOp(op=ast.Not()):
                names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
                return _not(
                    self._condition(node.operand),
                    Comparison(self._source(node), _quantities(names)),
                )
        raise self._refusal(f"'{self._source(node)}' is no comparison")

    def _comparison(self, node: ast.Compare) -> _Condition:
        parts = [node.left, *node.comparators]
        about = _quantities([name for part in parts for name in _bare_names(part)])
        numbers = [self._number(part, about) for part in parts]
        unknown = [op for op in node.ops if type(op) not in _RELATIONS]
        if unknown:
            raise self._refusal(f"'{self._source(node)}' compares with neither < nor its like")
        relations = [_RELATIONS[type(op)] for op in node.ops]
        mentioned = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
        told = (Comparison(self._source(node), _quantities(mentioned)),)

        def failing(figures: Figures, usual: Usual) -> tuple[Comparison, ...]:
            values = [number(figures, usual) for number in numbers]
            pairs = zip(relations, values, values[1:], strict=False)
            return () if all(relation(a, b) for relation, a, b in pairs) else told

        return failing

    def _number(self, node: ast.expr, about: tuple[str, ...]) -> _Number:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self._constant(value)
            case ast.Name(id="median"):
                if len(about) != 1:
                    raise self._refusal(
                        f"median alone stands beside {len(about)} quantities, so it is not clear of"
                        " which it is (median(fwhm) says it)"
                    )
                return lambda _, usual: usual.median(about[0])
            case ast.Name(id=name) if name in QUANTITIES:
                return lambda figures, _: figures[name]
            case ast.Name(id=name):
                raise self._refusal(f"the name '{name}' is not known")
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
                sign, inner = _SIGNS[type(op)], self._number(operand, about)
                return lambda figures, usual: sign(inner(figures, usual))
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                calculate = _ARITHMETIC[type(op)]
                left, right = self._number(node.left, about), self._number(node.right, about)
                return lambda figures, usual: calculate(left(figures, usual), right(figures, usual))
            case ast.Call(func=ast.Name(id=function), keywords=[]):
                return self._usual(node, function)
        raise self._refusal(f"'{self._source(node)}' is no number")

    def _constant(self, value: float) -> _Number:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._refusal("a number is too large")
        return lambda *_: number

    def _usual(self, node: ast.Call, function: str) -> _Number:
        """``median(q)`` and ``percentile(q, P)``."""
        match function, node.args:
            case "median", [ast.Name(id=name)] if name in QUANTITIES:
                return lambda _, usual: usual.median(name)
            case "percentile", [ast.Name(id=name), ast.Constant(value=int() | float() as percent)]:
                if name in QUANTITIES and 0 <= percent <= 100:
                    return lambda _, usual: usual.percentile(name, percent)
        raise self._refusal(
            f"'{self._source(node)}' is neither median of a quantity nor percentile of one and a "
            "number from 0 to 100"
        )


def _bare_names(node: ast.expr) -> list[str]:
    """Names of an expression that are no part of a call."""
    if isinstance(node, ast.Call):
        return []
    if isinstance(node, ast.Name):
        return [node.id]
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return [name for child in inner for name in _bare_names(child)]


def _quantities(names: Sequence[str]) -> tuple[str, ...]:
    """The quantities among names, each once, in the order of `QUANTITIES`."""
    return tuple(name for name in QUANTITIES if name in names)


def _all_of(parts: Sequence[_Condition]) -> _Condition:
    return lambda figures, usual: tuple(one for part in parts for one in part(figures, usual))


def _any_of(parts: Sequence[_Condition]) -> _Condition:
    def failing(figures: Figures, usual: Usual) -> tuple[Comparison, ...]:
        each = [part(figures, usual) for part in parts]
        return tuple(one for found in each for one in found) if all(each) else ()

    return failing


def _not(part: _Condition, told: Comparison) -> _Condition:
    return lambda figures, usual: () if part(figures, usual) else (told,)
