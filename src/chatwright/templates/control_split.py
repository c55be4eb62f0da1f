"""Splits a rendered text at its control strings, as the tokenizer itself does with its added tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from chatwright.templates.tokenizer import TextTokenizer


class Cut(NamedTuple):
    """A text or a control id, and its place `[start, end)` in the rendered text."""

    content: str | int
    start: int
    end: int


class ControlSplitter:
    """Finds control strings: leftmost first, the longest of several, with the tokens' own `lstrip`/`rstrip` flags.

    Args:
        tokenizer: whose control tokens are looked for.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._ids = tokenizer.control_ids
        flags = sorted(tokenizer.added_token_flags(), key=lambda token: -len(token["content"]))
        self._alternatives = tuple(_pattern(token) for token in flags)

    @lru_cache(maxsize=16)  # noqa: B019 - one splitter lives as long as its template
    def _regex(self, marks: str) -> re.Pattern[str]:
        return re.compile("|".join([*([f"[{re.escape(marks)}]"] if marks else []), *self._alternatives]) or r"(?!)")

    def split(self, text: str, marks: Mapping[int, str], offset: int = 0) -> list[Cut]:
        """The text's cuts in order, without empty texts.

        Args:
            marks: control id → the character that stands for it.
            offset: added to the places.
        """
        by_mark = {mark: index for index, mark in marks.items()}
        cuts: list[Cut] = []
        position = 0
        for match in self._regex("".join(by_mark)).finditer(text):
            if match.start() > position:
                cuts.append(Cut(text[position : match.start()], offset + position, offset + match.start()))
            cuts.append(Cut(self._id(match[0], by_mark), offset + match.start(), offset + match.end()))
            position = match.end()
        if position < len(text):
            cuts.append(Cut(text[position:], offset + position, offset + len(text)))
        return cuts

    def _id(self, found: str, by_mark: Mapping[str, int]) -> int:
        if found in by_mark:
            return by_mark[found]
        return self._ids[found] if found in self._ids else self._ids[found.strip()]


def _pattern(token: Mapping[str, Any]) -> str:
    name = re.escape(token["content"])
    if token.get("single_word"):
        name = rf"(?<!\w){name}(?!\w)"
    return (r"\s*" if token.get("lstrip") else "") + name + (r"\s*" if token.get("rstrip") else "")


def end_of_turn(cuts: Sequence[Cut], ends: Collection[int] | None = None) -> Cut | None:
    """The control token that ends a turn: one with only blanks and control tokens behind it.

    Args:
        ends: the ids that may end a turn; the first of them counts. None: any may, and the last one counts.
    """
    found = None
    for cut in reversed(cuts):
        if isinstance(cut.content, str):
            if cut.content.strip():
                break
        elif ends is None:
            return cut
        elif cut.content in ends:
            found = cut
    return found
