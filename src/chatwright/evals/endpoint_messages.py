"""Between our conversations and OpenAI's chat messages: what a request says, and what an answer holds.

Servers differ: a `content` of null or of typed parts, thinking as `reasoning_content` or `reasoning`, arguments as an
object, no `usage`, no `logprobs`. All of that is read; what can't be read is an error that quotes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatwright.conversations.parts import read_content, read_tool_calls
from chatwright.conversations.places import Place, shown
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.turns import unfold_tool_turns
from chatwright.errors import UserError
from chatwright.templates.scene import call_arguments, call_name

Json = dict[str, Any]

_THINKING = ("reasoning_content", "reasoning")


def openai_messages(conversation: Conversation) -> list[Json]:
    """The messages of a request; thinking of earlier turns is left out, as chat templates leave it out.

    Raises:
        UserError: the conversation ends in an assistant message, which no OpenAI request can go on with.
    """
    if conversation.messages and conversation.messages[-1].role == "assistant":
        raise UserError(
            "ends in the beginning of a reply, which an OpenAI request can't go on with",
            place=f"{conversation.source}, row {conversation.row}",
            hint="measure this task on a local model",
        )
    rows: list[Json] = []
    waiting: list[str] = []
    for message in unfold_tool_turns(conversation.messages):
        if message.role == "tool":
            rows += [_result(part, part.call_id or (waiting.pop(0) if waiting else "")) for part in message.parts]
            continue
        row: Json = {"role": message.role, "content": message.text}
        calls = [part for part in message.parts if part.kind == "tool_call"]
        if calls:
            first = sum(len(made.get("tool_calls", ())) for made in rows)
            ids = [part.call_id or f"call{first + number:05d}" for number, part in enumerate(calls)]
            row["tool_calls"] = [_call(part, call_id) for part, call_id in zip(calls, ids, strict=True)]
            waiting = ids
        rows.append(row)
    return rows


def _call(part: Part, call_id: str) -> Json:
    arguments = json.dumps(call_arguments(part), ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": call_name(part), "arguments": arguments}}


def _result(part: Part, call_id: str) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": part.text}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answer says.

    Args:
        message: its parts: thinking, text, calls.
        finish_reason: the server's word, such as `stop`, `length`, `tool_calls` or `content_filter`.
        prompt_tokens, reply_tokens: as the server counts them; 0 where it doesn't.
        top: the likeliest first tokens with their log-probabilities; None where the server doesn't tell.
        spoken: content and thinking by the server's own names, as the next round of the same reply repeats them.
    """

    message: Message
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    top: tuple[tuple[str, float], ...] | None
    spoken: Mapping[str, Any]

    @property
    def calls(self) -> list[Part]:
        """The tool calls among the parts."""
        return [part for part in self.message.parts if part.kind == "tool_call"]

    def as_request(self) -> Json:
        """The message as the next round's request repeats it; only a reply with calls has a next round."""
        calls = [_call(part, part.call_id or f"call{number:05d}") for number, part in enumerate(self.calls)]
        return {"role": "assistant", **self.spoken, "tool_calls": calls}

    def results_as_request(self, results: Sequence[Part]) -> list[Json]:
        """The results of the calls, in their order, as the next request gives them."""
        return [_result(part, part.call_id or f"call{number:05d}") for number, part in enumerate(results)]


def read_answer(answer: Mapping[str, Any], where: str) -> Answer:
    """The first choice of an answer.

    Args:
        where: the server, for errors.

    Raises:
        UserError: it isn't what OpenAI's chat completions look like.
    """
    place = Place(where, 0)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise UserError(f"the answer has no choices: {shown(answer)}", place=where)
    choice = choices[0]
    said = choice.get("message")
    if not isinstance(said, Mapping):
        raise UserError(f"the answer has no message: {shown(choice)}", place=where)
    usage = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return Answer(
        Message("assistant", _parts(said, place)),
        str(choice.get("finish_reason") or "stop"),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _top(choice.get("logprobs")),
        {"content": said.get("content") or "", **{name: said[name] for name in _THINKING if said.get(name)}},
    )


def _parts(said: Mapping[str, Any], place: Place) -> tuple[Part, ...]:
    thinking = next((said[name] for name in _THINKING if said.get(name)), None)
    parts = [Part("thinking", thinking)] if isinstance(thinking, str) else []
    content = said.get("content")
    if content:
        parts += read_content(content, "assistant", place.at("content"))
    if said.get("tool_calls"):
        parts += read_tool_calls(said["tool_calls"], place.at("tool_calls"))
    return tuple(parts)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _top(value: Any) -> tuple[tuple[str, float], ...] | None:
    """The likeliest first tokens; None where there are none, or only the drawn one, which weighs nothing."""
    content = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], Mapping):
        return None
    known = [pair for item in content[0].get("top_logprobs") or () if (pair := _pair(item)) is not None]
    return tuple(sorted(known, key=lambda pair: -pair[1])) if len(known) > 1 else None


def _pair(item: Any) -> tuple[str, float] | None:
    """A token and its log-probability; several tokens may look alike (broken characters)."""
    if not isinstance(item, Mapping) or "token" not in item or not isinstance(item.get("logprob"), int | float):
        return None
    return str(item["token"]), float(item["logprob"])


def letter_log_probs(letters: Sequence[str], top: Sequence[tuple[str, float]]) -> list[float] | None:
    """The log-probability of each letter, from the likeliest tokens alone.

    A letter is the token of just that letter; where a server lists none of them bare, tokens with a blank before the
    letter (` A`, `▁A`) are taken. A letter that isn't listed gets an upper bound: it is below the least likely token
    listed, and below the probability that the listed ones leave over.

    Returns:
        None where not one letter is listed.
    """
    bare: dict[str, float] = {}
    stripped: dict[str, float] = {}
    for token, log_prob in top:
        bare.setdefault(token, log_prob)
        stripped.setdefault(token.strip(" ▁Ġ"), log_prob)
    table = bare if any(letter in bare for letter in letters) else stripped
    if not any(letter in table for letter in letters):
        return None
    bound = _bound([log_prob for _, log_prob in top])
    return [table.get(letter, bound) for letter in letters]


def _bound(log_probs: Sequence[float]) -> float:
    """What a token that isn't listed can have at most, and a little less, so that it loses to every listed one."""
    smallest = min(log_probs)
    rest = 1.0 - sum(math.exp(min(each, 0.0)) for each in log_probs)
    left_over = math.log(rest) if rest > 0 else smallest
    return math.nextafter(min(smallest, left_over), -math.inf)
