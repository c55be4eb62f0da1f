"""How the text of a reply is read when it is graded."""

from __future__ import annotations

import re
from collections.abc import Iterable

from chatwright.conversations.schema import Message

_NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?<!\d)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_MARKED_NUMBER = re.compile(r"#### (-?\d[\d,]*(?:\.\d+)?)")
_NUMBER_WORDS = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905
_NUMBER_WORD = re.compile(rf"\b({'|'.join(_NUMBER_WORDS)})\b", re.IGNORECASE)
_SPELLED = re.compile(r"(?<![A-Za-z])[A-Za-z](?:[\s,.–-]+[A-Za-z](?![A-Za-z]))+")


def final_text(reply: Message) -> str:
    """The text parts after the last tool call or result: what the reply comes to."""
    last_tool = max((i for i, part in enumerate(reply.parts) if part.kind.startswith("tool_")), default=-1)
    return "".join(part.text for part in reply.parts[last_tool + 1 :] if part.kind == "text")


def last_number(text: str) -> float | None:
    """The last number written in digits (`56,088`, `-18`, `2.5`), else the last number word up to twelve, else None."""
    digits = _NUMBER.findall(text.replace("−", "-"))
    if digits:
        return float(digits[-1].replace(",", ""))
    words = _NUMBER_WORD.findall(text)
    return float(_NUMBER_WORDS.index(words[-1].lower())) if words else None


def marked_number(text: str) -> float | None:
    """The number behind the first `####`, the mark of GSM8K's answers (`#### 1,234`), or None."""
    match = _MARKED_NUMBER.search(text)
    return float(match[1].replace(",", "")) if match else None


def spelled_word(text: str) -> str | None:
    """The last word written letter by letter (`a-p-p-l-e`, `A P P L E`, `a, p, p, l, e`) in lower case, or None."""
    runs = _SPELLED.findall(text)
    return re.sub("[^a-z]", "", runs[-1].lower()) if runs else None


def mentions_any(text: str, keywords: Iterable[str]) -> bool:
    """Whether a keyword stands in `text`, whatever the case; one of Latin letters or digits only as a whole word."""
    return any(_mentions(text.casefold(), keyword.casefold()) for keyword in keywords)


def _mentions(text: str, keyword: str) -> bool:
    before = r"(?<![a-z0-9])" if keyword[:1].isascii() and keyword[:1].isalnum() else ""
    after = r"(?![a-z0-9])" if keyword[-1:].isascii() and keyword[-1:].isalnum() else ""
    return re.search(before + re.escape(keyword) + after, text) is not None
