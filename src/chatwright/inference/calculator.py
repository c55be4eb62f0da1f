"""A calculator for tool calls: arithmetic, comparisons, `len("…")` and `"…".count("…")`, and nothing else.

It reads the expression with a parser of its own. There are no names, attributes, calls or statements in the
grammar, so nothing has to be forbidden; Python's `eval`, `exec` and `compile` are never reached.
The work is bounded too: length of the text, nesting, size of numbers and of exponents (the constants below).

Grammar, in Python's precedence (`**` binds to the right and tighter than a minus on its left):

    comparison = sum [("<" | "<=" | ">" | ">=" | "==" | "!=") sum]
    sum        = product {("+" | "-") product}
    product    = signed {("*" | "/" | "//" | "%") signed}
    signed     = {"-" | "+"} power
    power      = atom ["**" signed]
    atom       = number | "(" comparison ")" | string ".count(" string ")" | "len(" string ")"
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import NamedTuple

MAX_CHARACTERS = 1000
MAX_DEPTH = 40
MAX_BITS = 512  # numbers up to about 10^154, so that the float of every integer is finite
SIGNIFICANT_DIGITS = 12

Number = int | float

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
    | (?P<string>"[^"\\\n]*"|'[^'\\\n]*')
    | (?P<word>len|\.\s*count)(?![A-Za-z_0-9])
    | (?P<sign>\*\*|//|<=|>=|==|!=|[-+*/%()<>])
    )""",
    re.VERBOSE | re.ASCII,
)
_COMPARISONS: dict[str, Callable[[Number, Number], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: dict[str, Callable[[Number, Number], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


class CalculatorError(Exception):
    """An expression that can't be worked out; the text says why, in words for the model to read."""


class _Token(NamedTuple):
    kind: str
    text: str


def calculate(expression: str) -> str:
    """Work out `expression` and write the result as `format_number` does.

    Examples: `123*456` → `56088`, `12/60` → `0.2`, `10/5` → `2`, `"strawberry".count("r")` → `3`, `2 > 1` → `True`.

    Raises:
        CalculatorError: for anything outside the grammar or the bounds, and for division by zero.
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculatorError(f"expression longer than {MAX_CHARACTERS} characters")
    return format_number(_Parser(_tokens(expression)).whole())


def format_number(value: Number) -> str:
    """The result as text: integers and whole floats without a point, other floats with 12 significant digits.

    So `10/5` gives `2` and `0.1+0.2` gives `0.3`, as people write them: 97 % of the 27,998 marks in GSM8K's
    answers (`<<10/5=2>>`) hold the calculator's very text, and all but one its value; the rest is money such as `4.00`.
    Comparisons give `True` or `False`.
    """
    if isinstance(value, bool | int):
        return str(value)
    rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return str(int(rounded)) if rounded.is_integer() and abs(rounded) < 1e16 else repr(rounded)


def _tokens(expression: str) -> list[_Token]:
    tokens, position, text = [], 0, expression.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise CalculatorError(f"can't read {text[position : position + 20].strip()!r}")
        tokens.append(_Token(match.lastgroup or "", match[match.lastgroup or 0]))
        position = match.end()
    return [*tokens, _Token("end", "end of the expression")]


class _Parser:
    """Recursive descent over the tokens; every method evaluates what it reads."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def whole(self) -> Number:
        if self.tokens[0].kind == "end":
            raise CalculatorError("empty expression")
        value = self.comparison()
        if self.peek().kind != "end":
            raise CalculatorError(f"unexpected {self.peek().text!r}")
        return value

    def comparison(self) -> Number:
        left = self.sum()
        compare = _COMPARISONS.get(self.peek().text)
        if compare is None:
            return left
        self.take()
        return compare(left, self.sum())

    def sum(self) -> Number:
        value = self.product()
        while self.peek().text in ("+", "-"):
            value = _bounded(_ARITHMETIC[self.take().text], value, self.product())
        return value

    def product(self) -> Number:
        value = self.signed()
        while self.peek().text in ("*", "/", "//", "%"):
            value = _bounded(_ARITHMETIC[self.take().text], value, self.signed())
        return value

    def signed(self) -> Number:
        negative = False
        while self.peek().text in ("-", "+"):
            negative ^= self.take().text == "-"
        value = self.power()
        return -value if negative else value

    def power(self) -> Number:
        base = self.atom()
        if self.peek().text != "**":
            return base
        self.take()
        self.depth += 1
        self.check_depth()
        exponent = self.signed()
        self.depth -= 1
        return _bounded(_power, base, exponent)

    def atom(self) -> Number:
        token = self.take()
        if token.kind == "number":
            return _number(token.text.replace(",", ""))
        if token.text == "(":
            self.depth += 1
            self.check_depth()
            value = self.comparison()
            self.depth -= 1
            self.expect(")")
            return value
        if token.kind == "string":
            return self.count(token.text[1:-1])
        if token.text == "len":
            self.expect("(")
            text = self.string()
            self.expect(")")
            return len(text)
        raise CalculatorError(f"unexpected {token.text!r}")

    def count(self, text: str) -> int:
        """`.count("…")` after a string."""
        if self.peek().kind != "word" or self.peek().text == "len":
            raise CalculatorError('a text only works as "text".count("t") or len("text")')
        self.take()
        self.expect("(")
        wanted = self.string()
        self.expect(")")
        return text.count(wanted)

    def string(self) -> str:
        token = self.take()
        if token.kind != "string":
            raise CalculatorError(f"expected a text in quotes, found {token.text!r}")
        return token.text[1:-1]

    def peek(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.tokens[self.position]
        self.position = min(self.position + 1, len(self.tokens) - 1)
        return token

    def expect(self, text: str) -> None:
        token = self.take()
        if token.text != text or token.kind == "string":
            raise CalculatorError(f"expected {text!r}, found {token.text!r}")

    def check_depth(self) -> None:
        if self.depth > MAX_DEPTH:
            raise CalculatorError(f"nested deeper than {MAX_DEPTH} levels")


def _number(text: str) -> Number:
    value: Number = int(text) if text.isdigit() else float(text)
    return _checked(value)


def _power(base: Number, exponent: Number) -> Number:
    """`base ** exponent`, refused before the work where the result would be out of bounds."""
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        if abs(base) > 1 and exponent * (abs(base).bit_length() - 1) > MAX_BITS:
            raise CalculatorError("number too large")
    elif base < 0 and not float(exponent).is_integer():
        raise CalculatorError("power of a negative number with a fraction as exponent")
    result: Number = base**exponent
    return result


def _bounded(work: Callable[[Number, Number], Number], left: Number, right: Number) -> Number:
    try:
        return _checked(work(left, right))
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("number too large") from None


def _checked(value: Number) -> Number:
    too_large = value.bit_length() > MAX_BITS if isinstance(value, int) else not math.isfinite(value)
    if too_large:
        raise CalculatorError("number too large")
    return value
