"""glaive-function-calling-v2 as published: `{"system", "chat"}`, two strings with the turns marked inside them.

    SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -
    {"name": …, "parameters": …}

    USER: …  ASSISTANT: <functioncall> {"name": "f", "arguments": '{"a": 1}'} <|endoftext|>  FUNCTION RESPONSE: {…}

The ShareGPT edition of the same data (`conversations`, `tools`) is read by `convert_sharegpt`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from chatwright.conversations.message_formats import find_field, make_conversation
from chatwright.conversations.parts import read_tool_calls, read_tools
from chatwright.conversations.places import Place, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation, Message, Part

_TURN = re.compile(r"(?:\A|\n\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_END = "<|endoftext|>"
_CALL = "<functioncall>"
# Arguments as a JSON text between single quotes, which isn't JSON as a whole.
_QUOTED_CALL = re.compile(r"""\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)


def convert_glaive(row: Any, source: str, index: int) -> Conversation:
    """Glaive's raw rows: definitions from `system`, turns, calls and results from `chat`.

    Raises:
        DataError: if the chat begins with no speaker, or a definition or call can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    field = find_field(row, ("chat",), place)
    system, tools = _read_system(row.get("system"), place.at("system"))
    messages = [Message.of("system", system)] if system else []
    messages += _read_chat(row[field], place.at(field))
    given = {name: value for name, value in row.items() if name != "system"}
    return make_conversation(messages, given, place, used=(field,), tools=tools)


def _read_system(value: Any, place: Place) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """The words of the system prompt, and the definitions that follow them."""
    text = read_text(value or "", place).removeprefix("SYSTEM:").strip()
    begin = text.find("{")
    if begin < 0:
        return text, ()
    definitions: list[Any] = []
    rest = text[begin:]
    while rest:
        try:
            definition, end = json.JSONDecoder().raw_decode(rest)
        except ValueError as error:
            raise place.error(f"holds a function definition that is not JSON ({error}): {shown(rest)}") from None
        definitions.append(definition)
        rest = rest[end:].lstrip(" \n\r\t,")
    return text[:begin].rstrip(" -\n"), read_tools(definitions, place)


def _read_chat(value: Any, place: Place) -> list[Message]:
    text = read_text(value, place)
    head, *pieces = _TURN.split(text)
    if head.strip() or not pieces:
        raise place.error(f"must begin with 'USER:' or 'ASSISTANT:', found {shown(text[:60])}")
    return [_read_turn(name, said, place) for name, said in zip(pieces[::2], pieces[1::2], strict=True)]


def _read_turn(name: str, said: str, place: Place) -> Message:
    said = said.strip().removesuffix(_END).strip()
    if name == "USER":
        return Message.of("user", said)
    if name == "FUNCTION RESPONSE":
        return Message("tool", (Part("tool_result", said),))
    words, *calls = said.split(_CALL)
    parts = [Part("text", words.strip())] if words.strip() or not calls else []
    for call in calls:
        parts += _read_call(call.replace(_END, "").strip(), place)
    return Message("assistant", tuple(parts))


def _read_call(text: str, place: Place) -> tuple[Part, ...]:
    quoted = _QUOTED_CALL.fullmatch(text)
    if quoted is None:
        return read_tool_calls(text, place)
    arguments = quoted[2].replace("\\'", "'")
    try:
        read_mapping(json.loads(arguments), place)
    except ValueError as error:
        raise place.error(f"a call's arguments are not JSON ({error}): {shown(arguments)}") from None
    return (Part("tool_call", arguments, quoted[1]),)
