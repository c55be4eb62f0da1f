"""Formats of their own shape: ShareGPT, Alpaca, prompt/completion, plain dialogues.

Sources of the formats: LLaMA-Factory (`data/README.md`: sharegpt and alpaca with tools, system, history), TRL's data
set formats (prompt/completion), chatterbot-corpus (dialogues as lists of strings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chatwright.conversations.message_formats import (
    find_field,
    finish_message,
    make_conversation,
    read_message,
    read_role,
)
from chatwright.conversations.parts import read_content, read_tool_calls, split_thinking
from chatwright.conversations.places import Place, read_list, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation, Message, Part, Role

SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}


def convert_sharegpt(row: Any, source: str, index: int) -> Conversation:
    """ShareGPT's `{"conversations": [{"from", "value"}], "tools", "system"}`, role/content accepted too.

    A `function_call` right after an assistant message joins it: the two are one turn.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    field = find_field(row, ("conversations", "messages", "conversation"), place)
    messages: list[Message] = []
    for i, item in enumerate(read_list(row[field], place.at(field))):
        message, is_call = _read_sharegpt(item, place.at(field, i))
        last = messages[-1] if messages else None
        if is_call and last and (last.role, last.train, last.weight) == ("assistant", message.train, message.weight):
            messages[-1] = replace(last, parts=last.parts + message.parts)
        else:
            messages.append(message)
    return make_conversation(messages, row, place, used={field})


def _read_sharegpt(item: Any, place: Place) -> tuple[Message, bool]:
    """One message, and whether it is a `function_call`."""
    item = read_mapping(item, place)
    role_field = "from" if "from" in item else "role"
    value_field = "value" if "value" in item else "content"
    name, value, at = item.get(role_field), item.get(value_field), place.at(value_field)
    role = read_role(name, SHAREGPT_ROLES, place.at(role_field))
    if value is None:
        raise at.error("the message has no content", "give it text, or leave the message out")
    if name == "function_call" and isinstance(value, str):
        *thinking, last = split_thinking(read_text(value, at))
        return finish_message(role, (*thinking, *read_tool_calls(last.text, at)), item, place), True
    parts = read_tool_calls(value, at) if name == "function_call" else read_content(value, role, at)
    return finish_message(role, parts, item, place), name == "function_call"


def convert_alpaca(row: Any, source: str, index: int) -> Conversation:
    """Alpaca's `{"instruction", "input", "output", "history", "system"}`; a line break joins instruction and input.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    for name in ("instruction", "output"):
        find_field(row, (name,), place)
    asked = [read_text(row.get(name) or "", place.at(name)) for name in ("instruction", "input")]
    if not any(asked):
        raise place.at("instruction").error("instruction and input are both empty", "leave the row out")
    messages = _read_history(row.get("history"), place.at("history"))
    messages.append(Message.of("user", "\n".join(text for text in asked if text)))
    messages.append(_reply(row["output"], place.at("output")))
    return make_conversation(messages, row, place, used=("instruction", "input", "output", "history"))


def _read_history(value: Any, place: Place) -> list[Message]:
    """Earlier turns: a list of `[question, answer]` pairs."""
    messages: list[Message] = []
    for i, pair in enumerate(read_list(value, place) if value else []):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise place.at(i).error(f"must be a pair [question, answer], found {shown(pair)}")
        messages.append(Message.of("user", read_text(pair[0], place.at(i, 0))))
        messages.append(_reply(pair[1], place.at(i, 1)))
    return messages


def _reply(value: Any, place: Place) -> Message:
    return Message("assistant", split_thinking(read_text(value, place)))


def convert_prompt_completion(row: Any, source: str, index: int) -> Conversation:
    """`{"prompt", "completion"}`, each a string or a list of messages; the prompt's own replies aren't trained.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    prompt = find_field(row, ("prompt",), place)
    completion = find_field(row, ("completion", "response"), place)
    given = [_untrained(message) for message in _read_side(row[prompt], "user", place.at(prompt))]
    messages = [*given, *_read_side(row[completion], "assistant", place.at(completion))]
    return make_conversation(messages, row, place, used=(prompt, completion))


def _read_side(value: Any, role: Role, place: Place) -> list[Message]:
    if isinstance(value, str):
        return [Message(role, read_content(value, role, place))]
    return [read_message(item, place.at(i)) for i, item in enumerate(read_list(value, place))]


def _untrained(message: Message) -> Message:
    return replace(message, train=False) if message.role == "assistant" else message


def convert_dialogue(row: Any, source: str, index: int) -> Conversation:
    """A plain list of strings, user and assistant in turn; or an object that has it as `dialogue` or `dialog`.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    if not isinstance(row, list | tuple | Mapping):
        raise place.error(
            f"must be a list of strings, user and assistant in turn, found {type(row).__name__} {shown(row)}"
        )
    fields: Mapping[str, Any] = row if isinstance(row, Mapping) else {"dialogue": row}
    field = find_field(fields, ("dialogue", "dialog"), place)
    turns = read_list(fields[field], place.at(field))
    texts = [read_text(text, place.at(field, i)) for i, text in enumerate(turns)]
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [Message(roles[i % 2], (Part("text", text),)) for i, text in enumerate(texts)]
    return make_conversation(messages, fields, place, used={field})
