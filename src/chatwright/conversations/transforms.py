"""Changes to rows, each recorded by name: random system prompts, empty thinking, placeholders, whitespace and more.

Every transform is a pure function of (seed, source, row): the same in every process, in every order, after a resume,
and wherever the source's folder lies.
A new one is one class, one entry of `TransformSettings`, and a test that it changes a row and one that it doesn't.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, field_validator

from chatwright.conversations.code_identity import library_version
from chatwright.conversations.kinds import KindSettings
from chatwright.conversations.lasting_names import lasting_name
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import UserError

_LINE_ENDS = re.compile(r"\r\n?")


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers that depend on their key alone: (seed, place of the transform, source, row)."""

    key: str

    def unit(self, purpose: str) -> float:
        """A number in [0, 1), the same for the same key and purpose."""
        digest = hashlib.blake2b(f"{self.key}/{purpose}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53


class Transform(KindSettings, ABC):
    """What every transform has."""

    def prepare(self) -> None:
        """Load what the transform needs, before the first row.

        Raises:
            UserError: a library is missing.
        """

    @abstractmethod
    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The changed conversation, or the very same one."""


class RandomSystem(Transform):
    """Gives some rows a system message, so that the model learns to work with and without one (MiniMind: 20 %).

    Rows that have tools or a system message stay as they are.

    Args:
        probability: of a row to get one. prompts: one of them is drawn, each as often.
    """

    kind: Literal["random_system"] = "random_system"
    probability: float = Field(default=0.2, gt=0, le=1)
    prompts: tuple[str, ...] = Field(min_length=1)

    @field_validator("prompts")
    @classmethod
    def _not_blank(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(prompt.strip() for prompt in value):
            raise ValueError("a system prompt is blank; remove it (rows without one come from 'probability')")
        return value

    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The row with a system message in front, or as it was."""
        has_system = any(message.role == "system" for message in conversation.messages)
        if has_system or conversation.tools or draws.unit("whether") >= self.probability:
            return conversation
        prompt = self.prompts[int(draws.unit("which") * len(self.prompts))]
        return replace(conversation, messages=(Message.of("system", prompt), *conversation.messages))


class DropEmptyThinking(Transform):
    """Takes the empty thinking blocks out of a row, all or none (MiniMind takes them out of 80 to 95 % of rows).

    A template that writes an empty block of its own, as MiniMind's does, still does so.

    Args:
        probability: of a row that has empty ones to lose them.
    """

    kind: Literal["drop_empty_thinking"] = "drop_empty_thinking"
    probability: float = Field(default=0.8, gt=0, le=1)

    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The row without empty thinking parts, or as it was; a part that is alone in its message stays."""
        if draws.unit("whether") >= self.probability:
            return conversation
        return _each_message(conversation, _without_empty_thinking)


def _without_empty_thinking(message: Message) -> Message:
    parts = tuple(part for part in message.parts if part.kind != "thinking" or part.text.strip())
    return message if not parts or len(parts) == len(message.parts) else replace(message, parts=parts)


class Fill(Transform):
    """Fills placeholders such as `{{name}}` in every text.

    Args:
        values: for `{{name}}` the text under `name`; other placeholders stay.
    """

    kind: Literal["fill"] = "fill"
    values: dict[str, str] = Field(min_length=1)

    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The row with its placeholders filled."""
        pattern = _placeholders(tuple(self.values))
        return _each_text(conversation, lambda text: pattern.sub(lambda found: self.values[found[1]], text))


@lru_cache(maxsize=64)
def _placeholders(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\{\{\s*(" + "|".join(map(re.escape, names)) + r")\s*\}\}")


class Whitespace(Transform):
    """Tidies texts and thinking: line breaks as `\\n`, nothing blank at a message's ends, fewer blank lines.

    Tool calls and results stay byte for byte, and so does whitespace inside a line.

    Args:
        max_blank_lines: at most so many in a row; null leaves them.
    """

    kind: Literal["whitespace"] = "whitespace"
    max_blank_lines: int | None = Field(default=2, ge=0)

    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The row with tidy texts."""
        return _each_message(conversation, self._tidy)

    def _tidy(self, message: Message) -> Message:
        parts = list(message.parts)
        for index, part in enumerate(parts):
            if part.kind not in ("text", "thinking"):
                continue
            text = _LINE_ENDS.sub("\n", part.text)
            if self.max_blank_lines is not None:
                text = _few_blank_lines(text, self.max_blank_lines)
            text = text.lstrip() if index == 0 else text
            text = text.rstrip() if index == len(parts) - 1 else text
            parts[index] = part if text == part.text else replace(part, text=text)
        return message if all(a is b for a, b in zip(parts, message.parts, strict=True)) else _with(message, parts)


def _few_blank_lines(text: str, most: int) -> str:
    return re.sub(rf"\n(?:[ \t]*\n){{{most + 1},}}", "\n" * (most + 1), text)


def _with(message: Message, parts: Sequence[Part]) -> Message:
    return replace(message, parts=tuple(parts))


class FixMojibake(Transform):
    """Repairs text that was decoded wrongly, such as `schÃ¶n` for `schön`, with ftfy; needs the extra `data`."""

    kind: Literal["fix_mojibake"] = "fix_mojibake"

    def prepare(self) -> None:
        """Load ftfy."""
        _fix_encoding()

    def identity(self) -> str:
        """The library's version."""
        return library_version("ftfy")

    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The row with its texts repaired."""
        return _each_text(conversation, _fix_encoding())


@lru_cache(maxsize=1)
def _fix_encoding() -> Callable[[str], str]:
    try:
        from ftfy import fix_encoding
    except ImportError:
        raise UserError(
            "repairing wrongly decoded text needs the library 'ftfy'",
            place="transforms: fix_mojibake",
            hint="pip install 'chatwright[data]'",
        ) from None
    return fix_encoding


class DropSystem(Transform):
    """Takes system messages out."""

    kind: Literal["drop_system"] = "drop_system"

    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The row without system messages; one that has nothing else stays."""
        rest = tuple(message for message in conversation.messages if message.role != "system")
        if not rest or len(rest) == len(conversation.messages):
            return conversation
        return replace(conversation, messages=rest)


class KeepLastTurns(Transform):
    """Keeps system messages and the last exchanges; what came before is cut away.

    Args:
        turns: how many; one begins with a user message and ends before the next one.
    """

    kind: Literal["keep_last_turns"] = "keep_last_turns"
    turns: int = Field(ge=1)

    def apply(self, conversation: Conversation, draws: Draws) -> Conversation:
        """The shortened row."""
        messages = conversation.messages
        starts = [index for index, message in enumerate(messages) if message.role == "user"]
        if len(starts) <= self.turns:
            return conversation
        first = starts[-self.turns]
        system = tuple(message for message in messages[:first] if message.role == "system")
        return replace(conversation, messages=system + messages[first:])


TransformSettings = Annotated[
    RandomSystem | DropEmptyThinking | Fill | Whitespace | FixMojibake | DropSystem | KeepLastTurns,
    Field(discriminator="kind"),
]
"""Any transform, told apart by `kind`."""


@dataclass(frozen=True, slots=True)
class RowTransforms:
    """The transforms of one data entry, in the recipe's order; can be pickled and sent to worker processes.

    Args:
        path: the entry's path: draws depend on a file's place below it, see `lasting_name`.
    """

    transforms: tuple[Transform, ...] = ()
    path: str | None = None

    def apply(self, conversation: Conversation, seed: int) -> tuple[Conversation, tuple[str, ...]]:
        """The row after all transforms, and the names of those that changed it.

        Args:
            conversation: the row; its `source` and `row` seed the draws. seed: the run's.
        """
        changed: list[str] = []
        name, row = lasting_name(conversation.source, self.path), conversation.row
        for place, transform in enumerate(self.transforms):
            draws = Draws(f"{seed}/{transform.label}/{place}/{name}/{row}")
            after = transform.apply(conversation, draws)
            if after is not conversation:
                changed.append(transform.label)
            conversation = after
        return conversation, tuple(changed)


def build_transforms(settings: Sequence[TransformSettings], path: str | None = None) -> RowTransforms:
    """The transforms of a data entry, ready for the first row.

    Args:
        settings: the entry's `transforms`. path: the entry's `path`.

    Raises:
        UserError: a library that a transform needs is missing.
    """
    for transform in settings:
        transform.prepare()
    return RowTransforms(tuple(settings), path)


def _each_message(conversation: Conversation, change: Callable[[Message], Message]) -> Conversation:
    messages = tuple(map(change, conversation.messages))
    if all(after is before for after, before in zip(messages, conversation.messages, strict=True)):
        return conversation
    return replace(conversation, messages=messages)


def _each_text(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """The conversation with `change` applied to every part's text; the same object where nothing changed."""

    def changed(message: Message) -> Message:
        texts = [change(part.text) for part in message.parts]
        if all(text == part.text for text, part in zip(texts, message.parts, strict=True)):
            return message
        return _with(message, [replace(part, text=text) for text, part in zip(texts, message.parts, strict=True)])

    return _each_message(conversation, changed)
