"""Filters that look at one row: each a settings class with one question, whether the row goes and why.

A new filter is one class here (or in a file beside), one entry of `filters.FilterSettings`, and a test that it drops
and one that it keeps.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from chatwright.conversations.code_identity import library_version
from chatwright.conversations.exchanges import answers, exchanges, written_length
from chatwright.conversations.kinds import KindSettings
from chatwright.conversations.languages import known_languages, language_of
from chatwright.conversations.schema import Conversation, Role
from chatwright.conversations.text_measures import CUT_CHARACTERS, is_unfinished, repeats, repetition, symbol_share
from chatwright.errors import ConfigError


class RowFilter(KindSettings, ABC):
    """What every row filter has."""

    def prepare(self) -> None:
        """Load what the filter needs, before the first row.

        Raises:
            UserError: a library, module or function is missing, or a value isn't known.
        """

    @abstractmethod
    def reason(self, conversation: Conversation) -> str | None:
        """Why the row goes, in words that hold for many rows; None = it stays."""


class LengthFilter(RowFilter):
    """Keeps rows whose length lies between two bounds, both included.

    Args:
        of: the whole `conversation`, or each of its `replies` or `prompts` (the user's messages).
        unit: `characters` (tool results not counted), or `turns`: messages of the conversation, or how many replies
            or prompts it has.
        min, max: the bounds; at least one.
    """

    kind: Literal["length"] = "length"
    of: Literal["conversation", "replies", "prompts"] = "conversation"
    unit: Literal["characters", "turns"] = "characters"
    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> LengthFilter:
        if self.min is None and self.max is None:
            raise ValueError("give 'min', 'max' or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self

    def reason(self, conversation: Conversation) -> str | None:
        """`under 20 characters (replies)`."""
        for length in self._lengths(conversation):
            if self.min is not None and length < self.min:
                return f"under {self.min:,} {self.unit} ({self.of})"
            if self.max is not None and length > self.max:
                return f"over {self.max:,} {self.unit} ({self.of})"
        return None

    def _lengths(self, conversation: Conversation) -> list[int]:
        messages = list(conversation.messages)
        if self.of == "replies":
            messages = [exchange.reply for exchange in exchanges(conversation)]
        elif self.of == "prompts":
            messages = [message for message in messages if message.role == "user"]
        if self.unit == "turns":
            return [len(messages)]
        lengths = [written_length(message) for message in messages]
        return [sum(lengths)] if self.of == "conversation" else lengths


class EmptyReplyFilter(RowFilter):
    """Drops rows in which a reply says nothing: no text but whitespace, and no tool call."""

    kind: Literal["empty_reply"] = "empty_reply"

    def reason(self, conversation: Conversation) -> str | None:
        """Words for a row with such a reply, or with no reply at all."""
        replies = [exchange.reply for exchange in exchanges(conversation)]
        if not replies:
            return "no reply"
        return None if all(map(answers, replies)) else "a reply says nothing"


class RepeatsPromptFilter(RowFilter):
    """Drops rows in which a reply begins with the whole prompt.

    Args:
        min_characters: shorter prompts may be repeated, as greetings are.
    """

    kind: Literal["repeats_prompt"] = "repeats_prompt"
    min_characters: int = Field(default=20, ge=1)

    def reason(self, conversation: Conversation) -> str | None:
        """Words for a row with such a reply."""
        found = any(repeats(each.prompt, each.reply.text, self.min_characters) for each in exchanges(conversation))
        return "a reply repeats the prompt" if found else None


class SymbolsFilter(RowFilter):
    """Drops rows with a reply of which too much is neither letter nor digit.

    Args:
        max_share: the largest share of a reply's visible characters.
        min_characters: shorter replies stay.
    """

    kind: Literal["symbols"] = "symbols"
    max_share: float = Field(default=0.4, ge=0, le=1)
    min_characters: int = Field(default=20, ge=1)

    def reason(self, conversation: Conversation) -> str | None:
        """Words for a row with such a reply."""
        for _, reply, _ in exchanges(conversation):
            if len(reply.text) >= self.min_characters and symbol_share(reply.text) > self.max_share:
                return f"more than {self.max_share:.0%} symbols in a reply"
        return None


class RepetitionFilter(RowFilter):
    """Drops rows with a reply that repeats its lines or n-grams, by Gopher's limits (Rae et al. 2021, table A1).

    Args:
        min_words: shorter replies stay (a Chinese or Japanese character counts as a word).
    """

    kind: Literal["repetition"] = "repetition"
    min_words: int = Field(default=50, ge=1)

    def reason(self, conversation: Conversation) -> str | None:
        """The rule that the first such reply breaks."""
        found = (repetition(each.reply.text, self.min_words) for each in exchanges(conversation))
        return next(filter(None, found), None)


class TruncatedFilter(RowFilter):
    """Drops rows with a reply that breaks off: an open code block, or prose without an end mark (after C4's rule).

    Args:
        min_characters: shorter replies stay.
    """

    kind: Literal["truncated"] = "truncated"
    min_characters: int = Field(default=CUT_CHARACTERS, ge=1)

    def reason(self, conversation: Conversation) -> str | None:
        """Words for a row with such a reply."""
        found = any(is_unfinished(each.reply.text, self.min_characters) for each in exchanges(conversation))
        return "a reply breaks off" if found else None


class LanguageFilter(RowFilter):
    """Keeps rows in the languages that are allowed; needs the extra `data`.

    Args:
        allow: ISO 639-1 codes, such as `[en, zh]`.
        of: what is read: all user and assistant text, or that of the `replies` or `prompts`.
        min_confidence: a language found with less confidence keeps the row.
        min_letters: texts with fewer letters stay (a Chinese, Japanese or Korean one counts as three).
    """

    kind: Literal["language"] = "language"
    allow: tuple[str, ...] = Field(min_length=1)
    of: Literal["conversation", "replies", "prompts"] = "conversation"
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    min_letters: int = Field(default=20, ge=1)

    def prepare(self) -> None:
        """Load the library and check the codes."""
        known = known_languages()
        unknown = sorted(set(self.allow) - set(known))
        if unknown:
            problem = f"allow: no such language: {', '.join(unknown)}; known: {', '.join(known)}"
            raise ConfigError([problem], source="filters: language")

    def identity(self) -> str:
        """The library's version."""
        return library_version("py3langid")

    def reason(self, conversation: Conversation) -> str | None:
        """The language that was found."""
        found = language_of("\n".join(self._texts(conversation)), self.min_letters)
        if found is None or found[0] in self.allow or found[1] < self.min_confidence:
            return None
        return f"in language {found[0]}"

    def _texts(self, conversation: Conversation) -> Iterator[str]:
        if self.of != "prompts":  # replies come first, since only the beginning is read
            yield from (exchange.reply.text for exchange in exchanges(conversation))
        if self.of != "replies":
            yield from (message.text for message in conversation.messages if message.role == "user")


class PatternFilter(RowFilter):
    """Keeps rows by a regular expression (Python's `re`, searched anywhere in a part of a message).

    Args:
        match: at least one message must hold it. forbid: no message may hold it. One of the two.
        role: whose messages are searched.
        ignore_case: capitals don't matter.
    """

    kind: Literal["pattern"] = "pattern"
    match: str | None = None
    forbid: str | None = None
    role: Role | Literal["any"] = "any"
    ignore_case: bool = False

    @field_validator("match", "forbid")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _one(self) -> PatternFilter:
        if (self.match is None) == (self.forbid is None):
            raise ValueError("give exactly one of 'match' and 'forbid'")
        return self

    def reason(self, conversation: Conversation) -> str | None:
        """`forbidden 'as an AI' (assistant)`."""
        pattern = re.compile(self.match or self.forbid or "", re.IGNORECASE if self.ignore_case else 0)
        texts = (
            part.text
            for message in conversation.messages
            if self.role in ("any", message.role)
            for part in message.parts
        )
        found = any(pattern.search(text) for text in texts)
        if self.match is not None:
            return None if found else f"no {self.match!r} ({self.role})"
        return f"forbidden {self.forbid!r} ({self.role})" if found else None


class FieldFilter(RowFilter):
    """Keeps rows by a column that stands beside the messages, such as `status: ok` or KTO's `label: true`.

    Args:
        field: the column. A row without it is one whose value is null.
        allow: the values that stay. forbid: the values that go. One of the two.
    """

    kind: Literal["field"] = "field"
    field: str = Field(min_length=1)
    allow: tuple[bool | int | float | str | None, ...] | None = None
    forbid: tuple[bool | int | float | str | None, ...] | None = None

    @model_validator(mode="after")
    def _one(self) -> FieldFilter:
        if (self.allow is None) == (self.forbid is None):
            raise ValueError("give exactly one of 'allow' and 'forbid'")
        return self

    def reason(self, conversation: Conversation) -> str | None:
        """`status isn't allowed`."""
        value = conversation.extra.get(self.field)
        listed = self.forbid if self.allow is None else self.allow
        # JSON's true is no 1: bool is told apart from numbers.
        found = any(isinstance(each, bool) == isinstance(value, bool) and each == value for each in listed or ())
        if found == (self.allow is not None):
            return None
        return f"{self.field} is {'forbidden' if self.allow is None else 'not allowed'}"
