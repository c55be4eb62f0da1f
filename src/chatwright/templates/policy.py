"""From a conversation to turns: tool turns arranged as the template wants them, and the weight of each.

The parts keep their order when tool turns are folded or unfolded, so every part's origin is found by counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.turns import fold_tool_turns, unfold_tool_turns
from chatwright.errors import TemplateError
from chatwright.templates.base import TrainOn


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as the template renders it.

    Args:
        message: the message.
        origins: for each of its parts the (message, part) of the conversation as given.
        weight: the loss weight of what the model writes here; 0 = given.
    """

    message: Message
    origins: tuple[tuple[int, int], ...]
    weight: float = 0.0

    @property
    def origin(self) -> int:
        """The message it came from, or −1."""
        return self.origins[0][0] if self.origins else -1


def arrange_turns(
    conversation: Conversation, *, fold: bool, default_system: str | None, train_on: TrainOn
) -> list[Turn]:
    """The turns to render, with their weights.

    Args:
        fold: put tool results inside the assistant's message; else make them messages of their own.
        default_system: the system message of a conversation that has none.

    Raises:
        TemplateError: a message that the model never writes is marked to be trained.
    """
    messages = (fold_tool_turns if fold else unfold_tool_turns)(conversation.messages)
    origins = iter([(m, p) for m, message in enumerate(conversation.messages) for p in range(len(message.parts))])
    turns = [Turn(message, tuple(next(origins) for _ in message.parts)) for message in messages]
    if default_system is not None and (not messages or messages[0].role != "system"):
        turns.insert(0, Turn(Message.of("system", default_system), ((-1, -1),)))
    weights = turn_weights([turn.message for turn in turns], train_on, conversation)
    return [Turn(turn.message, turn.origins, weight) for turn, weight in zip(turns, weights, strict=True)]


def turn_weights(messages: Sequence[Message], train_on: TrainOn, conversation: Conversation) -> list[float]:
    """The loss weight of each message's written tokens: the policy, then the message's own `train` and `weight`.

    Raises:
        TemplateError: a message that isn't the assistant's has `train: true`.
    """
    last = _last_reply(messages)
    weights = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            if message.train is True and train_on is not TrainOn.EVERYTHING:
                raise TemplateError(
                    f"message {index} is from {message.role!r} and has train: true, but the model writes replies only",
                    place=place_of(conversation),
                    hint="remove the flag, or use train_on: everything",
                )
            weights.append(0.0)
            continue
        chosen = {
            TrainOn.ASSISTANT: True,
            TrainOn.EVERYTHING: True,
            TrainOn.LAST: index >= last,
            TrainOn.FLAGS: False,
        }[train_on]
        trained = chosen if message.train is None else message.train
        weights.append(message.weight if trained else 0.0)
    return weights


def _last_reply(messages: Sequence[Message]) -> int:
    """Where the last reply begins: an assistant message and those before it that only tool messages part from it."""
    first = len(messages)
    for index in range(len(messages) - 1, -1, -1):
        role = messages[index].role
        if role == "assistant":
            first = index
        elif role != "tool" and first < len(messages):
            break
    return first


def join_parts(parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """The parts without empty texts and thoughts, neighbouring texts joined; each with the index of its first part."""
    joined: list[tuple[Part, int]] = []
    for index, part in enumerate(parts):
        if part.kind in ("text", "thinking") and not part.text:
            continue
        if part.kind == "text" and joined and joined[-1][0].kind == "text":
            before, first = joined[-1]
            joined[-1] = (Part("text", before.text + part.text), first)
        else:
            joined.append((part, index))
    return joined


def plain_text(turn: Turn, conversation: Conversation) -> str:
    """The text of a system, user or tool message.

    Raises:
        TemplateError: it has parts that only a reply can have.
    """
    allowed = ("text", "tool_result") if turn.message.role == "tool" else ("text",)
    for part in turn.message.parts:
        if part.kind not in allowed:
            raise TemplateError(
                f"message {turn.origin} from {turn.message.role!r} has a part of kind {part.kind!r}",
                place=place_of(conversation),
                hint="only an assistant message can hold thinking and tool calls",
            )
    return "".join(part.text for part in turn.message.parts)


def place_of(conversation: Conversation) -> str:
    """Where a conversation came from, in words."""
    return f"{conversation.source}, row {conversation.row}"
