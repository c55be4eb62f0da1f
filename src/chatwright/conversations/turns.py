"""The two shapes of tool use and the way between them.

- unfolded: assistant (ends in calls), one `tool` message a result, assistant …
- folded: one assistant message with the results inside, as nanochat has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from chatwright.conversations.schema import Message, Part


def fold_tool_turns(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Join each assistant message with the tool messages and replies after it into one assistant message.

    assistant(text, call) + tool(result) + assistant(text) → assistant(text, call, result, text)

    A reply whose `train` or `weight` differs from the turn's starts a message of its own, since one message has one
    of each; so does one that no tool message leads to. A tool message without an assistant before it stays.

    Args:
        messages: the turns in order.

    Returns:
        The messages in folded shape. `unfold_tool_turns` gives back the same ones if no tool message carried flags
        or several results and no joined message was without parts.
    """
    folded: list[Message] = []
    after_tool = False
    for message in messages:
        last = folded[-1] if folded else None
        joins = last is not None and last.role == "assistant" and _continues(last, message, after_tool)
        if last is not None and joins:
            folded[-1] = replace(last, parts=last.parts + message.parts)
        else:
            folded.append(message)
        after_tool = joins and message.role == "tool"
    return tuple(folded)


def _continues(turn: Message, message: Message, after_tool: bool) -> bool:
    if message.role == "tool":
        return message.train is not True
    return message.role == "assistant" and after_tool and (message.train, message.weight) == (turn.train, turn.weight)


def unfold_tool_turns(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Split each assistant message at its tool results; every result becomes a `tool` message.

    assistant(text, call, result, text) → assistant(text, call) + tool(result) + assistant(text)

    The pieces keep the message's `train` and `weight`; the tool messages have none.

    Args:
        messages: the turns in order.

    Returns:
        The messages in unfolded shape.
    """
    unfolded: list[Message] = []
    for message in messages:
        if message.role == "assistant" and any(part.kind == "tool_result" for part in message.parts):
            unfolded.extend(_split(message))
        else:
            unfolded.append(message)
    return tuple(unfolded)


def _split(message: Message) -> Sequence[Message]:
    pieces: list[Message] = []
    spoken: list[Part] = []
    for part in message.parts:
        if part.kind != "tool_result":
            spoken.append(part)
            continue
        if spoken:
            pieces.append(replace(message, parts=tuple(spoken)))
            spoken = []
        pieces.append(Message("tool", (part,)))
    if spoken:
        pieces.append(replace(message, parts=tuple(spoken)))
    return pieces
