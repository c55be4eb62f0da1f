"""Short sums with the calculator: "What is 123 * 456?" → `123*456` → 56088."""

from __future__ import annotations

import random
from collections.abc import Iterator

from chatwright.conversations.schema import Conversation, Message
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.grading import final_text, last_number
from chatwright.tasks.task import (
    Draft,
    NoOptions,
    Split,
    calculator_reply,
    question_and_reply,
    random_for,
    split_of,
)

DEFAULT_COUNT = 1_000
PHRASINGS = (
    "What is {a} {sign} {b}?",
    "What's {a} {sign} {b}?",
    "what is {a}{sign}{b}",
    "{a} {sign} {b} = ?",
    "{a}{sign}{b}=",
    "{a} {sign} {b}",
    "{a}{sign}{b}?",
    "Calculate {a} {sign} {b}.",
    "Compute {a} {sign} {b}",
    "How much is {a} {sign} {b}?",
    "What is {a} {word} {b}?",
    "What's {a} {word} {b}?",
    "How much is {a} {word} {b}?",
    "Calculate {a} {word} {b}.",
    "Can you compute {a} {sign} {b}?",
    "{a} {word} {b}",
    "{a} {sign} {b} 等于多少？",
    "{a} {chinese} {b} 等于几？",
)
SIGNS = {"+": ("+",), "-": ("-",), "*": ("*", "*", "x", "×"), "/": ("/", "/", "÷")}
WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
CHINESE = {"+": "加", "-": "减", "*": "乘以", "/": "除以"}
LARGEST = {"+": (99, 999, 9_999), "-": (99, 999, 9_999), "*": (12, 99, 999), "/": (12, 99)}
"""The largest number in a problem of each size, easy ones first; for divisions, of the divisor and the quotient."""


class Arithmetic(GeneratedTask[NoOptions]):
    """Sums, differences, products and whole quotients of two whole numbers."""

    name = "arithmetic"

    def default_count(self, split: Split) -> int | None:
        """1,000 of the problems without end."""
        return DEFAULT_COUNT

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the last number of the final text is the result."""
        return last_number(final_text(reply)) == float(conversation.extra["answer"])

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Problems without end; a drawn problem of the other split, or one that came before, is drawn anew."""
        rng = random_for(self.name, split, seed)
        seen: set[str] = set()
        while True:
            operator, a, b = _problem(rng)
            key = problem_key(operator, a, b)
            if key not in seen and split_of(key) == split:
                seen.add(key)
                yield _draft(operator, a, b, rng)


def problem_key(operator: str, a: int, b: int) -> str:
    """What makes two problems the same: `12+30` and `30+12` are one, `12-30` and `30-12` are two."""
    first, second = (min(a, b), max(a, b)) if operator in "+*" else (a, b)
    return f"{first}{operator}{second}"


def _problem(rng: random.Random) -> tuple[str, int, int]:
    operator = rng.choice("+-*/")
    largest = rng.choice(LARGEST[operator])
    a, b = rng.randint(2, largest), rng.randint(2, largest)
    if operator == "-" and a < b and rng.random() < 0.8:
        a, b = b, a
    if operator == "/":
        a *= b
    return operator, a, b


def _draft(operator: str, a: int, b: int, rng: random.Random) -> Draft:
    sign = rng.choice(SIGNS[operator])
    question = rng.choice(PHRASINGS).format(a=a, b=b, sign=sign, word=WORDS[operator], chinese=CHINESE[operator])
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    reply = calculator_reply(f"{a}{operator}{b}", str(result), f"{a} {operator} {b} = {result}")
    return Draft(question_and_reply(question, reply), {"answer": result, "problem": f"{a}{operator}{b}"})
