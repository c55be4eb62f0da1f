"""The shape that every data format is converted to: Conversation → Message → Part.

This module knows nothing of files, formats, templates or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PartKind = Literal["text", "thinking", "tool_call", "tool_result"]
Role = Literal["system", "user", "assistant", "tool"]

PART_KINDS: tuple[PartKind, ...] = ("text", "thinking", "tool_call", "tool_result")
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message.

    Args:
        kind: `text`, `thinking`, `tool_call` or `tool_result`.
        text: the words; for a tool call its arguments as written (a JSON object, or bare code such as
            `"12/60"`), for a tool result the tool's output.
        tool: the tool's name, for calls and (where known) results.
        call_id: ties a result to its call, where the data has such ids.
    """

    kind: PartKind
    text: str
    tool: str | None = None
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One speaker's turn.

    Tool use has two shapes, and templates translate between them: results inside the assistant's own
    message (text, call, result, text: one turn), or a `tool` message after an assistant message that
    ends in calls.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        parts: the pieces in order.
        train: True or False to force or forbid training on this message, None to let the policy decide.
        weight: the loss weight of the message's trained tokens.
    """

    role: Role
    parts: tuple[Part, ...]
    train: bool | None = None
    weight: float = 1.0

    @property
    def text(self) -> str:
        """The `text` parts joined; thinking, calls and results left out."""
        return "".join(part.text for part in self.parts if part.kind == "text")

    @staticmethod
    def of(role: Role, text: str, **options: Any) -> Message:
        """A message of one text part."""
        return Message(role, (Part("text", text),), **options)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole dialogue, with where it came from.

    Args:
        messages: the turns in order.
        tools: tool definitions in OpenAI's schema (plain dicts), given to the template.
        variables: template variables such as `enable_thinking`.
        source: the file or data set; `row`: its row there, counted from 0.
        extra: what a task needs for grading (letters, answer, entry point …); never rendered.
        document: no dialogue but plain text, which stands in the one message; no template goes around it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    source: str = "memory"
    row: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    document: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for pre-training, with where it came from.

    Args:
        cut: what was taken off the file that it begins, for counting, or None.
    """

    text: str
    source: str = "memory"
    row: int = 0
    cut: str | None = None
