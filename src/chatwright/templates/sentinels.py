"""Private-use characters that stand in for characters a control token could be made of, while Jinja renders.

Contents go into a template with every character replaced that begins or ends a control string, so whatever control
string comes out was written by the template. The map is one to one and uses characters that the conversation doesn't
have, so taking it back is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_FIRST, _LAST = 0xE000, 0xF8FF
_PRIVATE = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_ESCAPED = re.compile(r"(?i)\\u(?:\{)?(e[0-9a-f]{3}|f[0-8][0-9a-f]{2})|&#x(e[0-9a-f]{3}|f[0-8][0-9a-f]{2});|&#(\d{5});")
_PERCENT = re.compile(r"(?i)%e[ef]%[89ab][0-9a-f]%[89ab][0-9a-f]")

_SCHEMA_WORDS = """
type function name description parameters properties required items enum arguments role content id title default
additionalProperties anyOf oneOf allOf format strict return
"""
SCHEMA_KEYS = frozenset(_SCHEMA_WORDS.split())
"""Keys of OpenAI's tool schema that templates look up: never replaced."""


def base_characters(control: Iterable[str]) -> tuple[str, ...]:
    """The characters that begin or end a control string, blanks at its edges left aside."""
    return tuple(sorted({character for name in control for character in (name.strip()[0], name.strip()[-1])}))


@dataclass(frozen=True, slots=True)
class Sentinels:
    """One conversation's map.

    Args:
        table: ordinal of a character → its stand-in, for `str.translate`.
        back: ordinal of a stand-in → the character.
        marks: control id → the character that stands for it inside a content.
        inner: what control strings hold between their first and last character: a name that equals one of these is
            guarded at its first character too, since a template may write `<` + name + `>`.
    """

    table: Mapping[int, str]
    back: Mapping[int, str]
    marks: Mapping[int, str]
    inner: frozenset[str]

    def escape(self, text: str) -> str:
        """The text as it may go into a template."""
        escaped = text.translate(self.table)
        word = text.strip()
        if word in self.inner:
            guard = chr(next(iter(ordinal for ordinal, real in self.back.items() if real == word[0])))
            escaped = escaped.replace(word[0], guard)
        return escaped

    def unescape(self, text: str) -> str:
        """The text as the user wrote it."""
        return text.translate(self.back)

    def escape_all(self, value: Any) -> Any:
        """Every string inside plain data escaped, keys included."""
        if isinstance(value, str):
            return self.escape(value)
        if isinstance(value, Mapping):
            return {
                key if key in SCHEMA_KEYS else self.escape(str(key)): self.escape_all(item)
                for key, item in value.items()
            }
        return [self.escape_all(item) for item in value] if isinstance(value, list | tuple) else value

    def altered(self, rendered: str) -> str | None:
        """The first stand-in that a template has rewritten, such as `\\ue000`, or None."""
        used = {*self.back, *(ord(mark) for mark in self.marks.values())}
        for match in _ESCAPED.finditer(rendered):
            code = int(match[1] or match[2], 16) if match[1] or match[2] else int(match[3])
            if code in used:
                return match[0]
        for match in _PERCENT.finditer(rendered):
            if ord(bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "replace")[0]) in used:
                return match[0]
        return None


class SentinelMaker:
    """Makes the sentinels of each conversation; the usual map is made once.

    Args:
        control: the tokenizer's control strings.
        marked_ids: control ids that contents may hold (in-turn tools and thinking).
    """

    def __init__(self, control: Iterable[str], marked_ids: Iterable[int]) -> None:
        names = [name.strip() for name in control]
        self._inner = frozenset(name[1:-1].strip() for name in names if len(name) > 2) - {""}
        base = base_characters(names)
        self._base = base
        self._characters = tuple(dict.fromkeys((*base, *sorted({word[0] for word in self._inner}))))
        self._marked = tuple(dict.fromkeys(marked_ids))
        self._usual = self._make(iter(range(_FIRST, _LAST + 1)))

    def _make(self, free: Iterator[int]) -> Sentinels:
        stand_ins = {character: chr(next(free)) for character in self._characters}
        return Sentinels(
            table={ord(character): stand_ins[character] for character in self._base},
            back={ord(stand_in): character for character, stand_in in stand_ins.items()},
            marks={index: chr(next(free)) for index in self._marked},
            inner=self._inner,
        )

    def for_texts(self, texts: Iterable[str]) -> Sentinels:
        """Sentinels that none of these texts contains, neither as characters nor written out (`\\ue000`)."""
        taken: set[int] = set()
        for text in texts:
            if not text.isascii():
                taken.update(map(ord, _PRIVATE.findall(text)))
            if "\\" in text or "&#" in text or "%" in text:
                taken.update(_written_out(text))
        if not taken:
            return self._usual
        return self._make(code for code in range(_FIRST, _LAST + 1) if code not in taken)


def _written_out(text: str) -> Iterator[int]:
    for match in _ESCAPED.finditer(text):
        yield int(match[1] or match[2], 16) if match[1] or match[2] else int(match[3])
    for match in _PERCENT.finditer(text):
        yield ord(bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "replace")[0])


def all_strings(value: Any) -> Iterator[str]:
    """Every string inside plain data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from all_strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from all_strings(item)
