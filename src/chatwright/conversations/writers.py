"""Conversations to rows: the mirror of `converters`, with a check that nothing was lost on the way.

A new target is one function `Conversation → row`, one entry of `WRITERS` and one schema in `row_files`. What a target
can't hold isn't listed by hand: the row is read back by the converter of the same name, and compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from chatwright.conversations.message_formats import EXTRA_FIELD
from chatwright.conversations.parts import split_thinking
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.turns import unfold_tool_turns

Row = dict[str, Any]
Writer = Callable[[Conversation], Row]

_BESIDE = ("tools", "system", "chat_template_kwargs", EXTRA_FIELD)
_MAY_LACK = ("history", "system")
_SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def write_messages(conversation: Conversation) -> Row:
    """OpenAI's `{"messages": […], "tools": […]}`; holds everything of a conversation.

    Turns that OpenAI's fields can't hold (several texts, a call before a text, results inside a turn) become typed
    parts. Template variables are TRL's `chat_template_kwargs`; `extra` stands beside them.
    """
    return with_rest({"messages": [message_row(message) for message in conversation.messages]}, conversation)


def message_row(message: Message) -> Row:
    """One message of the role/content kind."""
    return {"role": message.role, **_content(message), **_flags(message)}


def _content(message: Message) -> Row:
    parts = message.parts
    if message.role == "tool" and len(parts) == 1 and parts[0].kind == "tool_result":
        return {"content": parts[0].text, **_given(name=parts[0].tool, tool_call_id=parts[0].call_id)}
    first = 1 if parts and parts[0].kind == "thinking" else 0
    last = len(parts)
    while last > first and parts[last - 1].kind == "tool_call":
        last -= 1
    thinking, texts, calls = parts[:first], parts[first:last], parts[last:]
    if not _fits_plain_fields(message.role, thinking, texts, calls):
        return {"content": [_typed(part) for part in parts]}
    row: Row = {"content": texts[0].text if texts else ""}
    if thinking:
        row["reasoning_content"] = thinking[0].text
    if calls:
        row["tool_calls"] = [_openai_call(part) for part in calls]
    return row


def _fits_plain_fields(role: str, thinking: Sequence[Part], texts: Sequence[Part], calls: Sequence[Part]) -> bool:
    """Whether `reasoning_content`, one `content` and `tool_calls` say it all, and the content is read as it stands."""
    if any(part.kind != "text" for part in texts) or len(texts) > 1 or not all(part.text for part in thinking):
        return False
    if texts and not texts[0].text and (thinking or calls):
        return False
    return role != "assistant" or not texts or split_thinking(texts[0].text) == (texts[0],)


def _openai_call(part: Part) -> Row:
    function = {"name": part.tool or "", "arguments": part.text}
    return {**_given(id=part.call_id), "type": "function", "function": function}


def _typed(part: Part) -> Row:
    if part.kind == "tool_call":
        return {"type": part.kind, **_given(id=part.call_id), "name": part.tool or "", "arguments": part.text}
    return {"type": part.kind, "text": part.text, **_given(name=part.tool, tool_call_id=part.call_id)}


def _given(**fields: Any) -> Row:
    return {name: value for name, value in fields.items() if value is not None}


def _flags(message: Message) -> Row:
    return _given(train=message.train, weight=None if message.weight == 1.0 else message.weight)


def with_rest(row: Row, conversation: Conversation) -> Row:
    """Add tools, template variables and the fields of `extra` that have a name of their own and are JSON."""
    taken = {*row, *_BESIDE}
    if conversation.tools:
        row["tools"] = [dict(tool) for tool in conversation.tools]
    if conversation.variables:
        row["chat_template_kwargs"] = dict(conversation.variables)
    own = {key: value for key, value in conversation.extra.items() if key not in taken and value is not None}
    return row | {key: value for key, value in own.items() if json_text(value) is not None}


def json_text(value: Any) -> str | None:
    """`value` as JSON; None where JSON has no word for it (dates, NaN, field names that are no text)."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)  # half characters stay as escapes
    except (TypeError, ValueError, RecursionError):
        return None
    try:
        return text if json.loads(text) == value else None
    except (ValueError, RecursionError):
        return None


def write_sharegpt(conversation: Conversation) -> Row:
    """ShareGPT's `{"conversations": [{"from", "value"}], "tools"}`, with `function_call` and `observation` turns."""
    turns = [turn for message in unfold_tool_turns(conversation.messages) for turn in _sharegpt_turns(message)]
    return with_rest({"conversations": turns}, conversation)


def _sharegpt_turns(message: Message) -> list[Row]:
    name, flags = _SHAREGPT_NAMES[message.role], _flags(message)
    if message.role == "tool":
        ids = [_given(name=part.tool, tool_call_id=part.call_id) for part in message.parts]
        texts = [part.text for part in message.parts]
        return [{"from": name, "value": text, **named, **flags} for text, named in zip(texts, ids, strict=True)]
    calls = [part for part in message.parts if part.kind == "tool_call"]
    spoken = any(part.kind == "text" for part in message.parts)
    text = _thinking_inline(message)
    turns = [] if calls and not spoken else [{"from": name, "value": text, **flags}]
    if calls:
        written = [_sharegpt_call(part) for part in calls]
        value = json.dumps(written[0] if len(written) == 1 else written, ensure_ascii=False)
        turns.append({"from": "function_call", "value": value if spoken else text + value, **flags})
    return turns


def _thinking_inline(message: Message) -> str:
    """The texts of a message, with its thinking before them as `<think>…</think>`."""
    thinking = [part.text for part in message.parts if part.kind == "thinking"]
    head = "<think>\n" + "\n\n".join(thinking) + "\n</think>\n\n" if thinking else ""
    return head + message.text


def _sharegpt_call(part: Part) -> Row:
    """A call with its arguments as an object, where that gives back the same text; else as they were written."""
    arguments: Any = part.text
    try:
        parsed = json.loads(part.text)
        if isinstance(parsed, dict) and json.dumps(parsed, ensure_ascii=False, separators=(",", ":")) == part.text:
            arguments = parsed
    except (ValueError, RecursionError):
        pass  # bare code: a string, as it is
    return {"name": part.tool or "", "arguments": arguments, **_given(id=part.call_id)}


def write_alpaca(conversation: Conversation) -> Row:
    """Alpaca's `{"instruction", "input", "output"}` with `system` and earlier turns as `history`.

    Texts of one side that follow each other are joined; what tools were called with and gave back is left out.
    """
    pairs: list[list[str]] = []
    for message in conversation.messages:
        if message.role in ("user", "assistant"):
            _add_text(pairs, message)
    *history, last = pairs or [["", ""]]
    system = "\n\n".join(message.text for message in conversation.messages if message.role == "system")
    row: Row = {"instruction": last[0], "input": "", "output": last[1], "history": history, "system": system}
    return {name: value for name, value in with_rest(row, conversation).items() if value or name not in _MAY_LACK}


def _add_text(pairs: list[list[str]], message: Message) -> None:
    """Add a message to `[question, answer]` pairs."""
    text = _thinking_inline(message)
    if message.role == "user":
        if pairs and not pairs[-1][1]:
            pairs[-1][0] += "\n\n" + text
        else:
            pairs.append([text, ""])
    elif not pairs:
        pairs.append(["", text])
    else:
        pairs[-1][1] += ("\n\n" if pairs[-1][1] else "") + text


WRITERS: dict[str, Writer] = {
    "messages": write_messages,
    "sharegpt": write_sharegpt,
    "alpaca": write_alpaca,
}
