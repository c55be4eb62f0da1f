"""From the content of one message to its parts: text, thinking, tool calls, tool results.

A new part type is one function and one entry of `PART_READERS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from chatwright.conversations.places import Place, compact_json, read_json, read_list, read_mapping, read_text, shown
from chatwright.conversations.schema import Part

_THINKING = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def split_thinking(text: str) -> tuple[Part, ...]:
    """The parts of an assistant's string: `<think>…</think>` at its start becomes a thinking part.

    Line breaks at the edges of the thinking and before the answer belong to the notation and are dropped, as the chat
    templates of Qwen3 and MiniMind do. An empty block stays as an empty thinking part: it says "did not think".
    """
    match = _THINKING.match(text)
    if not match:
        return (Part("text", text),)
    thinking = Part("thinking", match[1].strip("\n"))
    answer = text[match.end() :].lstrip("\n")
    return (thinking, Part("text", answer)) if answer else (thinking,)


def read_content(value: Any, role: str, place: Place) -> tuple[Part, ...]:
    """The parts of a message's `content`: a string, or a list of typed parts.

    Raises:
        DataError: if it is neither, or a part has an unknown type.
    """
    if isinstance(value, str):
        text = read_text(value, place)
        return split_thinking(text) if role == "assistant" else (Part("text", text),)
    if not isinstance(value, list | tuple):
        found = "nothing (null)" if value is None else f"{type(value).__name__} {shown(value)}"
        raise place.error(f"must be text or a list of parts, found {found}", "write the message's text as a string")
    if not value:
        raise place.error("is an empty list of parts", "write the message's text, or leave the message out")
    return tuple(part for index, item in enumerate(value) for part in _read_part(item, place.at(index)))


def _read_part(item: Any, place: Place) -> tuple[Part, ...]:
    item = read_mapping(item, place)
    kind = item.get("type")
    reader = PART_READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise place.at("type").error(
            f"unknown part type {shown(kind)}",
            f"known types: {', '.join(PART_READERS)}; images and sound aren't trained",
        )
    return reader(item, place)


def _part_text(item: Mapping[str, Any], place: Place) -> str:
    """The text of a part, under the part's own type name, `text`, `value` or `content`."""
    for name in ("text", "value", "content", str(item["type"])):
        if item.get(name) is not None:
            return read_text(item[name], place.at(name))
    raise place.error("this part has no text", "give it a field 'text'")


def _text(item: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    return (Part("text", _part_text(item, place)),)


def _thinking(item: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    return (Part("thinking", _part_text(item, place)),)


def _tool_call(item: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    for name in ("tool_call", "value", "text"):
        if item.get(name) is not None:
            return read_tool_calls(item[name], place.at(name))
    return read_tool_calls({key: value for key, value in item.items() if key != "type"}, place)


def _tool_result(item: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    return (Part("tool_result", _part_text(item, place), *name_and_id(item, place)),)


def _python(item: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    return (Part("tool_call", _part_text(item, place), "python"),)


def _python_output(item: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    return (Part("tool_result", _part_text(item, place), "python"),)


PART_READERS: dict[str, Callable[[Mapping[str, Any], Place], tuple[Part, ...]]] = {
    "text": _text,
    "thinking": _thinking,
    "reasoning": _thinking,
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "python": _python,
    "python_output": _python_output,
}


def name_and_id(item: Mapping[str, Any], place: Place) -> tuple[str | None, str | None]:
    """The tool's name and the call's id of a tool result, where given."""
    name, call_id = item.get("name"), item.get("tool_call_id")
    return (
        None if name is None else read_text(name, place.at("name")),
        None if call_id is None else read_text(call_id, place.at("tool_call_id")),
    )


def read_tool_calls(value: Any, place: Place) -> tuple[Part, ...]:
    """One call or a list of them, as objects or JSON text; each `{"name", "arguments"}` or OpenAI's `{"function": …}`.

    Raises:
        DataError: if a call has no name, or its arguments are neither an object nor a string.
    """
    value = read_json(value, place)
    if isinstance(value, Mapping):
        return (_read_call(value, place),)
    return tuple(
        _read_call(read_mapping(call, place.at(i)), place.at(i)) for i, call in enumerate(read_list(value, place))
    )


def _read_call(call: Mapping[str, Any], place: Place) -> Part:
    call_id = call.get("id")
    if call.get("function") is not None:
        place = place.at("function")
        call = read_mapping(call["function"], place)
    name = call.get("name")
    if not isinstance(name, str) or not name:
        raise place.at("name").error(f"a tool call needs the tool's name, found {shown(name)}")
    arguments = call.get("arguments", call.get("parameters"))
    at = place.at("arguments")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, str):
        arguments = compact_json(read_mapping(arguments, at), at)
    return Part(
        "tool_call",
        read_text(arguments, at),
        read_text(name, place.at("name")),
        None if call_id is None else read_text(call_id, place.at("id")),
    )


def read_tools(value: Any, place: Place) -> tuple[Mapping[str, Any], ...]:
    """Tool definitions in OpenAI's schema, from a list, one definition, or JSON text of either; empty means none.

    A bare `{"name": …, "parameters": …}` is wrapped as `{"type": "function", "function": …}`.

    Raises:
        DataError: if a definition has no name.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    value = read_json(value, place)
    if isinstance(value, Mapping):
        value = [value] if value else []
    if not isinstance(value, list | tuple):
        raise place.error(f"must be a list of tool definitions, found {type(value).__name__} {shown(value)}")
    return tuple(_read_tool(item, place.at(index)) for index, item in enumerate(value))


def _read_tool(item: Any, place: Place) -> Mapping[str, Any]:
    tool = read_mapping(read_json(item, place), place)
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise place.error(
            f"a tool definition needs a name, found {shown(item)}",
            'write {"type": "function", "function": {"name": …, "parameters": …}}',
        )
    compact_json(tool, place)  # what a template will write
    return tool if "function" in tool else {"type": "function", "function": tool}
