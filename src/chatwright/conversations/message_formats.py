"""Formats that are lists of role/content messages: OpenAI `messages`, nanochat, MiniMind.

Sources of the formats: OpenAI's chat fine-tuning guide (messages, tools, weight), TRL's data set formats
(`chat_template_kwargs`), karpathy/nanochat (`tasks/customjson.py`, `tasks/gsm8k.py`), jingyaogong/minimind
(`dataset/lm_dataset.py`), LLaMA-Factory (typed parts with `value`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chatwright.conversations.parts import name_and_id, read_content, read_tool_calls, read_tools
from chatwright.conversations.places import Place, compact_json, read_json, read_list, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation, Message, Part, Role

LARGEST_WEIGHT = 1_000_000
"""A loss weight above this is a mistake: sums of weights are kept in float32 on the way."""

EXTRA_FIELD = "chatwright_extra"
"""Further fields of a row, as one JSON object: parquet files that `chatwright convert` writes have fixed columns."""

ROLES_HINT = "a recipe's data entry can say which role is meant, as in roles: "
_LONGEST_ROLE = 40

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def convert_messages(row: Any, source: str, index: int) -> Conversation:
    """OpenAI's `{"messages": […], "tools": […]}`, with LLaMA-Factory's and nanochat's typed parts.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    return read_conversation(row, find_field(row, ("messages", "conversation"), place), place)


def convert_nanochat(row: Any, source: str, index: int) -> Conversation:
    """nanochat's rows: a bare list of messages, or `{"messages": […]}` with `text`, `python`, `python_output` parts.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    return convert_messages({"messages": row} if isinstance(row, list | tuple) else row, source, index)


def convert_minimind(row: Any, source: str, index: int) -> Conversation:
    """MiniMind's `{"conversations": […]}` with role/content; tools stand on the system message.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    return read_conversation(row, find_field(row, ("conversations",), place), place)


def find_field(row: Mapping[str, Any], names: Sequence[str], place: Place) -> str:
    """The first of `names` that the row has a value for.

    Raises:
        DataError: if it has none.
    """
    for name in names:
        if row.get(name) is not None:
            return name
    wanted = " or ".join(repr(name) for name in names)
    raise place.error(f"the row has no field {wanted}; its fields are {', '.join(map(repr, row)) or 'none'}")


def read_conversation(row: Mapping[str, Any], field: str, place: Place) -> Conversation:
    """The conversation of a row whose `field` is a list of role/content messages."""
    items = read_list(row[field], place.at(field))
    messages = [read_message(item, place.at(field, i)) for i, item in enumerate(items)]
    tools = read_tools(row.get("functions"), place.at("functions")) or _tools_on_system(items, place.at(field))
    return make_conversation(messages, row, place, used={field, "functions"}, tools=tools)


def _tools_on_system(items: Sequence[Mapping[str, Any]], place: Place) -> tuple[Mapping[str, Any], ...]:
    """Tool definitions that stand on a system message, as in MiniMind's data."""
    for index, item in enumerate(items):
        for name in ("tools", "functions"):
            if item.get("role") in ("system", "developer") and item.get(name):
                return read_tools(item[name], place.at(index, name))
    return ()


def make_conversation(
    messages: Sequence[Message],
    row: Mapping[str, Any],
    place: Place,
    *,
    used: Iterable[str],
    tools: tuple[Mapping[str, Any], ...] = (),
) -> Conversation:
    """Add what stands beside the messages: `system`, `tools`, `chat_template_kwargs`; the rest goes to `extra`.

    Args:
        messages: the turns so far.
        row: the whole row.
        place: the row's place.
        used: fields of the row that the messages were made from.
        tools: definitions found inside the messages, used when the row has no `tools` of its own.
    """
    row = _unpacked(row, place)
    known = {*used, "tools", "system", "chat_template_kwargs"}
    at = place.at("chat_template_kwargs")
    variables = read_mapping(read_json(row.get("chat_template_kwargs") or {}, at), at)
    if variables:
        compact_json(variables, at)  # texts that a template may write
    return Conversation(
        messages=name_results(_with_system(messages, row.get("system"), place.at("system"))),
        tools=read_tools(row.get("tools"), place.at("tools")) or tools,
        variables=dict(variables),
        source=place.source,
        row=place.row,
        extra={key: value for key, value in row.items() if key not in known and value is not None},
    )


def _unpacked(row: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """The row with the fields that `EXTRA_FIELD` holds in their own places."""
    if row.get(EXTRA_FIELD) is None:
        return row
    at = place.at(EXTRA_FIELD)
    further = read_mapping(read_json(row[EXTRA_FIELD], at), at)
    return {**further, **{key: value for key, value in row.items() if key != EXTRA_FIELD}}


def _with_system(messages: Sequence[Message], system: Any, place: Place) -> tuple[Message, ...]:
    if system is None or system == "":
        return tuple(messages)
    text = read_text(system, place)
    if messages and messages[0].role == "system":
        if messages[0].text != text:
            raise place.error(
                f"the row has two system prompts: {shown(text)} and, as first message, {shown(messages[0].text)}",
                "keep one of them",
            )
        return tuple(messages)
    return (Message.of("system", text), *messages)


def name_results(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, each tool result without a name named like the call that has its id."""
    names = {part.call_id: part.tool for m in messages for part in m.parts if part.kind == "tool_call" and part.call_id}
    if not names:
        return tuple(messages)
    return tuple(replace(message, parts=tuple(_named(part, names) for part in message.parts)) for message in messages)


def _named(part: Part, names: Mapping[str, str | None]) -> Part:
    if part.kind == "tool_result" and part.tool is None and part.call_id and part.call_id in names:
        return replace(part, tool=names[part.call_id])
    return part


def read_role(value: Any, names: Mapping[str, Role], place: Place) -> Role:
    """The role a name stands for.

    Raises:
        DataError: for an unknown name, listing the known ones.
    """
    if not isinstance(value, str) or value not in names:
        near = value.strip().casefold() if isinstance(value, str) else ""
        hint = f"known roles: {', '.join(names)}"
        if near in names:
            hint = f"did you mean {near!r}? {hint}"
        elif near and len(near) <= _LONGEST_ROLE:
            hint = f"{ROLES_HINT}{{{_likely_role(near)}: [{value}]}}; {hint}"
        raise place.error(f"unknown role {shown(value)}", hint)
    return names[value]


def _likely_role(name: str) -> str:
    """The role that an unknown name most likely stands for."""
    near = difflib.get_close_matches(name, ("user", "assistant", "system", "tool"), n=1, cutoff=0.5)
    return near[0] if near else "assistant" if "bot" in name or name in ("ai", "model") else "user"


def read_message(item: Any, place: Place) -> Message:
    """One message of the role/content kind.

    Raises:
        DataError: for an unknown role, missing or wrong content, or calls outside an assistant message.
    """
    item = read_mapping(item, place)
    role = read_role(item.get("role"), ROLE_NAMES, place.at("role"))
    parts: list[Part] = []
    reasoning = item.get("reasoning_content", item.get("reasoning"))
    if reasoning:
        parts.append(Part("thinking", read_text(reasoning, place.at("reasoning_content"))))
    calls = read_tool_calls(item["tool_calls"], place.at("tool_calls")) if item.get("tool_calls") else ()
    if item.get("function_call"):  # OpenAI's older name for one call
        calls += read_tool_calls(item["function_call"], place.at("function_call"))
    content = item.get("content")
    if content is None:
        content = item.get("parts")  # typed parts that have a column of their own in parquet
    if content is None and not calls and not parts:
        raise place.at("content").error(
            "the message has no content", "give it text, or tool calls, or leave the message out"
        )
    if content is not None and not (content == "" and (calls or parts)):
        parts.extend(read_content(content, role, place.at("content")))
    return finish_message(role, (*parts, *calls), item, place)


def finish_message(role: Role, parts: tuple[Part, ...], item: Mapping[str, Any], place: Place) -> Message:
    """The message of these parts with its `train` and `weight`; a tool's text becomes a tool result.

    Raises:
        DataError: if a part can't stand in a message of this role, or `train` or `weight` is out of range.
    """
    if role == "tool":
        parts = _as_results(parts, item, place)
    allowed = _ALLOWED_KINDS[role]
    for part in parts:
        if part.kind not in allowed:
            raise place.error(
                f"a {role} message can't hold a {part.kind} part", "only an assistant thinks and calls tools"
            )
    train, weight = _read_flags(item, place)
    return Message(role, parts, train, weight)


_ALLOWED_KINDS: dict[Role, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text",),
    "assistant": ("text", "thinking", "tool_call", "tool_result"),
    "tool": ("tool_result",),
}


def _as_results(parts: tuple[Part, ...], item: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    """All text of a tool message is one result; typed results stay as they are."""
    if any(part.kind != "text" for part in parts):
        return parts
    return (Part("tool_result", "".join(part.text for part in parts), *name_and_id(item, place)),)


def _read_flags(item: Mapping[str, Any], place: Place) -> tuple[bool | None, float]:
    train, weight = item.get("train"), item.get("weight")
    if train is not None and not isinstance(train, bool):
        raise place.at("train").error(f"must be true or false, found {shown(train)}")
    if weight is None:
        return train, 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= LARGEST_WEIGHT:
        raise place.at("weight").error(f"must be a number from 0 to {LARGEST_WEIGHT:,}, found {shown(weight)}")
    if weight == 0 and train:
        raise place.at("weight").error("is 0 while 'train' is true", "keep one of the two")
    return (False if weight == 0 else train), float(weight)
