"""Lint rules for tool use: calls without output, calls of unknown tools, arguments that don't fit the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chatwright.conversations.schema import Conversation, Part
from chatwright.inspection.lint_types import Hit, LintInput, excerpt

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def call_without_output(data: LintInput) -> Iterator[Hit]:
    """Calls that are followed by text or a user although no tool has answered; a call may end the row."""
    for conversation in data.conversations:
        waiting: list[tuple[int, Part]] = []
        for number, part in _parts(conversation):
            if part is not None and part.kind == "tool_call":
                waiting.append((number, part))
            elif part is not None and part.kind == "tool_result":
                # A result that names no call answers all of them: many data sets put all outputs into one message.
                named = [each for each in waiting if part.call_id and each[1].call_id == part.call_id]
                waiting = [each for each in waiting if each not in named] if named else []
            elif waiting and (part is None or (part.kind == "text" and part.text.strip())):
                place, call = waiting[0]
                yield Hit(conversation, place, f"no output of {call.tool or 'the call'}", excerpt(call.text))
                break


def _parts(conversation: Conversation) -> Iterator[tuple[int, Part | None]]:
    """(message number, part); None where a user speaks."""
    for number, message in enumerate(conversation.messages):
        if message.role == "user":
            yield number, None
            continue
        yield from ((number, part) for part in message.parts if message.role != "system")


def unknown_tool(data: LintInput) -> Iterator[Hit]:
    """Calls of a tool that the row doesn't offer."""
    for conversation, number, part in _calls(data):
        known = _schemas(conversation)
        if known and part.tool and part.tool not in known:
            offered = ", ".join(sorted(known))
            yield Hit(conversation, number, f"calls {part.tool!r}; offered: {offered:.80}", excerpt(part.text))


def call_arguments(data: LintInput) -> Iterator[Hit]:
    """Arguments that are no JSON object, or don't fit the schema of a tool that the row offers."""
    for conversation, number, part in _calls(data):
        schema = _schemas(conversation).get(part.tool or "")
        if schema is None:
            continue
        try:
            arguments = json.loads(part.text)
        except ValueError as error:
            yield Hit(conversation, number, f"{part.tool}: no JSON ({error})", excerpt(part.text))
            continue
        problem = schema_problem(arguments, {"type": "object", **schema})
        if problem:
            yield Hit(conversation, number, f"{part.tool}: {problem}", excerpt(part.text))


def _calls(data: LintInput) -> Iterator[tuple[Conversation, int, Part]]:
    for conversation in data.conversations:
        for number, message in enumerate(conversation.messages):
            for part in message.parts:
                if part.kind == "tool_call":
                    yield conversation, number, part


def _schemas(conversation: Conversation) -> dict[str, Mapping[str, Any]]:
    """Tool name → the schema of its arguments."""
    functions = (tool.get("function", tool) for tool in conversation.tools)
    return {
        str(function["name"]): function["parameters"] if isinstance(function.get("parameters"), Mapping) else {}
        for function in functions
    }


def schema_problem(value: Any, schema: Mapping[str, Any], where: str = "arguments") -> str | None:
    """The first way in which a value doesn't fit a JSON schema, in words, or None.

    Reads type, enum, required, properties and items; an object with named properties takes no others unless
    `additionalProperties` says so. What else a schema may say (references, patterns, choices) is not judged.
    """
    types = schema.get("type")
    names = [types] if isinstance(types, str) else types if isinstance(types, list) else []
    known = [name for name in names if name in _TYPES]
    if known and not any(_is_a(value, name) for name in known):
        return f"{where} must be {' or '.join(known)}, found {json.dumps(value, ensure_ascii=False):.40}"
    choices = schema.get("enum")
    if isinstance(choices, list) and value not in choices:
        return f"{where} must be one of {choices!r:.60}, found {value!r:.40}"
    if isinstance(value, dict):
        return _object_problem(value, schema, where)
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, Mapping):
        found = (schema_problem(item, items, f"{where}[{index}]") for index, item in enumerate(value))
        return next(filter(None, found), None)
    return None


def _object_problem(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    required, properties = schema.get("required"), schema.get("properties")
    for name in required if isinstance(required, list) else ():
        if name not in value:
            return f"{where} lacks {name!r}"
    if not isinstance(properties, Mapping) or not properties:
        return None
    for name, item in value.items():
        inner = properties.get(name)
        if inner is None and not schema.get("additionalProperties"):
            return f"{where} has {name!r}, which the schema doesn't know"
        problem = schema_problem(item, inner, name) if isinstance(inner, Mapping) else None
        if problem:
            return problem
    return None


def _is_a(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])
