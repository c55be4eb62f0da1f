"""One conversation set up for a Jinja template: contents escaped, messages as dicts, each rendering made once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import TemplateError
from chatwright.templates.jinja_program import JinjaProgram
from chatwright.templates.policy import Turn
from chatwright.templates.replies import THINK_CLOSE, THINK_OPEN, json_object
from chatwright.templates.sentinels import Sentinels, all_strings

_FORCED_THINKING = re.compile(rf"{re.escape(THINK_OPEN)}\s*(?:{re.escape(THINK_CLOSE)}\s*)?$")
BARE_ARGUMENT = "expression"
"""The argument's name under which bare code such as `12/60` goes into a JSON call."""


@dataclass(slots=True)
class Scene:
    """A conversation as a template sees it.

    Args:
        program: the template.
        messages: the turns as dicts, contents escaped.
        tools: escaped tool schemas, or None.
        variables: what else the template is given.
        sentinels: the map that takes the escapes back.
        where: the conversation's source and row, for errors.
        model_writes_thinking: leave the thinking block out of the generation prompt.
    """

    program: JinjaProgram
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any]
    sentinels: Sentinels
    where: str = ""
    model_writes_thinking: bool = False
    _made: dict[tuple[int, bool], str] = field(default_factory=dict)

    def upto(self, count: int) -> str:
        """The first `count` messages, rendered."""
        return self._render(count, False)

    def prompt(self, count: int) -> str:
        """The first `count` messages and the generation prompt."""
        text = self._render(count, True)
        return _FORCED_THINKING.sub("", text) if self.model_writes_thinking else text

    def _render(self, count: int, generation: bool) -> str:
        if (count, generation) not in self._made:
            place = f"{self.where}, {self.program.name}" if self.where else self.program.name
            text = self.program.render(
                self.messages[:count], self.tools, self.variables, add_generation_prompt=generation, place=place
            )
            altered = self.sentinels.altered(text)
            if altered:
                raise TemplateError(
                    f"rewrites characters of a message (as {altered}), so text and control tokens can't be kept apart",
                    place=place,
                    hint="use another template, or a native format such as template.format: chatml",
                )
            self._made[count, generation] = text
        return self._made[count, generation]


def strings_of(turns: Sequence[Turn], conversation: Conversation, variables: Mapping[str, Any]) -> Iterator[str]:
    """Every string of a conversation that reaches the template."""
    for turn in turns:
        for part in turn.message.parts:
            yield part.text
            yield from (name for name in (part.tool, part.call_id) if name)
    yield from all_strings(conversation.tools)
    yield from all_strings(conversation.variables)
    yield from all_strings(variables)


def with_call_ids(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with an id for every call (`call00000` …, nine characters as Mistral demands) and its result."""
    count = 0
    waiting: list[str] = []
    result = []
    for turn in turns:
        parts = []
        for part in turn.message.parts:
            if part.kind == "tool_call":
                part = replace(part, call_id=part.call_id or f"call{count:05d}")
                waiting.append(part.call_id or "")
                count += 1
            elif part.kind == "tool_result":
                first = waiting.pop(0) if waiting else None
                part = replace(part, call_id=part.call_id or first)
            parts.append(part)
        result.append(replace(turn, message=replace(turn.message, parts=tuple(parts))))
    return result


def call_arguments(part: Part) -> dict[str, Any]:
    """A call's arguments as an object; bare code becomes the one argument `expression`."""
    found = json_object(part.text)
    return found if found is not None else {BARE_ARGUMENT: part.text}


def call_name(part: Part) -> str:
    """A call's tool; bare calls without a name are the calculator's."""
    return part.tool or "calculator"


def canonical_call(part: Part, with_id: bool) -> Part:
    """A call as a JSON grammar gives it back."""
    arguments = json.dumps(call_arguments(part), ensure_ascii=False)
    return Part("tool_call", arguments, call_name(part), part.call_id if with_id else None)


def call_dict(part: Part, sentinels: Sentinels) -> dict[str, Any]:
    """A call in OpenAI's shape, its arguments as an object."""
    function = {"name": sentinels.escape(call_name(part)), "arguments": sentinels.escape_all(call_arguments(part))}
    return {"type": "function", "id": sentinels.escape(part.call_id or ""), "function": function}


def tool_dict(message: Message, text: str, sentinels: Sentinels) -> dict[str, Any]:
    """A tool message."""
    (first, *_) = message.parts or (Part("tool_result", ""),)
    result: dict[str, Any] = {"role": "tool", "content": sentinels.escape(text)}
    if first.tool:
        result["name"] = sentinels.escape(first.tool)
    if first.call_id:
        result["tool_call_id"] = sentinels.escape(first.call_id)
    return result
