"""Preference formats: each converter makes one `PreferencePair` or `LabelledReply` of a row, or says why it makes none.

Sources of the formats: anthropics/hh-rlhf, CValues-Comparison (prompt, pos_resp, neg_resp), PKU-SafeRLHF's card,
LLaMA-Factory (`data/README.md`: preference and KTO data), TRL's data set formats, ultrafeedback_binarized,
orca_dpo_pairs. A new one is one function, one entry of `PREFERENCE_CONVERTERS` and one test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from chatwright.conversations.converters import LABEL_FIELDS
from chatwright.conversations.instruction_formats import reply_of
from chatwright.conversations.message_formats import convert_messages, find_field, make_conversation, read_message
from chatwright.conversations.other_formats import convert_alpaca, convert_prompt_completion, convert_sharegpt
from chatwright.conversations.places import Place, read_list, read_mapping, read_text, shown
from chatwright.conversations.preference_types import Dropped, LabelledReply, Preference, PreferencePair
from chatwright.conversations.schema import Message
from chatwright.conversations.transcripts import is_transcript, read_transcript

IDENTICAL = "the two replies are identical"
NO_SHARED_PROMPT = "the two sides share no prompt"
PARTS_EARLY = "the two sides part before the last reply"
BOTH_UNSAFE = "both replies are unsafe"

_CHOSEN, _REJECTED = "chosen", "rejected"
OTHER_PROMPTS = ("instruction", "question", "query", "input", "conversations", "messages", "context")
_INSIDE_WORD = re.compile(r"[A-Za-z0-9]")


def convert_hh_rlhf_pair(row: Any, source: str, index: int) -> Preference:
    """hh-rlhf's two transcripts: the turns they share are the prompt, what follows the two replies.

    Dropped: identical transcripts, those that share no turn, and those that part before the last reply.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    sides = [read_transcript(row.get(name), place.at(name)) for name in (_CHOSEN, _REJECTED)]
    return _pair_of_whole(sides[0], sides[1], row, place, used=(_CHOSEN, _REJECTED))


def convert_llama_factory(row: Any, source: str, index: int) -> Preference:
    """LLaMA-Factory's `{"conversations": […], "chosen": {"from", "value"}, "rejected": {…}}`, or its Alpaca form.

    The Alpaca form has `instruction`, `input` and `history` before two strings.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    asked = find_field(row, ("conversations", "instruction"), place)
    beside = {name: value for name, value in row.items() if name not in (_CHOSEN, _REJECTED)}
    if asked == "conversations":
        replies = [_sharegpt_message(row.get(name), place.at(name)) for name in (_CHOSEN, _REJECTED)]
        prompt = convert_sharegpt(beside, source, index).messages
    else:
        replies = [reply_of(row.get(name), place, name) for name in (_CHOSEN, _REJECTED)]
        prompt = convert_alpaca({**beside, "output": ""}, source, index).messages[:-1]
    return _checked(prompt, replies[:1], replies[1:], row, place, used=(asked, "input", "history"))


def _sharegpt_message(value: Any, place: Place) -> Message:
    item = read_mapping(value, place)
    find_field(item, ("from",), place)
    return convert_sharegpt({"conversations": [item]}, place.source, place.row).messages[0]


def convert_cvalues(row: Any, source: str, index: int) -> Preference:
    """CValues' `{"prompt", "pos_resp", "neg_resp"}`.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    return _question_and_replies(row, Place(source, index), "prompt", "pos_resp", "neg_resp")


def convert_orca(row: Any, source: str, index: int) -> Preference:
    """Orca DPO pairs: `{"system", "question", "chosen", "rejected"}`, all strings.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    return _question_and_replies(row, Place(source, index), "question", _CHOSEN, _REJECTED)


def convert_safe_rlhf(row: Any, source: str, index: int) -> Preference:
    """PKU-SafeRLHF: the safe reply beats the unsafe one; of two safe replies the better one wins.

    Dropped: two unsafe replies, identical ones. Fields: `prompt`, `response_0/1`, `is_response_0/1_safe`,
    `better_response_id`.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    safe = [_read_flag(row, f"is_response_{i}_safe", place) for i in (0, 1)]
    if not any(safe):
        return Dropped(BOTH_UNSAFE)
    better = row.get("better_response_id") if all(safe) else safe.index(True)
    if isinstance(better, bool) or better not in (0, 1):
        raise place.at("better_response_id").error(f"must be 0 or 1, found {shown(better)}")
    return _question_and_replies(row, place, "prompt", f"response_{better}", f"response_{1 - better}")


def _read_flag(row: Mapping[str, Any], name: str, place: Place) -> bool:
    value = row.get(name)
    if not isinstance(value, bool):
        raise place.at(name).error(f"must be true or false, found {shown(value)}")
    return value


def _question_and_replies(row: Any, place: Place, asked: str, better: str, worse: str) -> Preference:
    """A pair of three strings and, where it has one, a `system` prompt."""
    row = read_mapping(row, place)
    for name in (asked, better, worse):
        find_field(row, (name,), place)
    prompt = [Message.of("user", read_text(row[asked], place.at(asked)))]
    replies = [reply_of(row[name], place, name) for name in (better, worse)]
    return _checked(prompt, replies[:1], replies[1:], row, place, used=(asked, better, worse))


def convert_ultrafeedback(row: Any, source: str, index: int) -> Preference:
    """UltraFeedback-binarized: `prompt` as string, `chosen` and `rejected` as whole message lists with that prompt.

    Raises:
        DataError: naming the row and field that can't be read, or if the lists ask something else than `prompt`.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    prompt = read_text(row.get("prompt"), place.at("prompt"))
    sides = [_messages(row.get(name), place.at(name)) for name in (_CHOSEN, _REJECTED)]
    for name, messages in zip((_CHOSEN, _REJECTED), sides, strict=True):
        asked = [message.text for message in messages if message.role == "user"]
        if prompt not in asked:
            raise place.at(name).error(f"doesn't hold the row's prompt {shown(prompt)} as a user's message")
    return _pair_of_whole(sides[0], sides[1], row, place, used=("prompt", _CHOSEN, _REJECTED))


def convert_trl(row: Any, source: str, index: int) -> Preference:
    """TRL's pairs: `chosen` and `rejected`, strings or message lists, with a `prompt` of the same kind or without one.

    Without a prompt it is what the two share: whole messages; of strings the beginning up to a word's end (TRL cuts
    at the first letter that differs, which may fall into a word). A prompt that is an hh-rlhf transcript is split by
    speaker.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    for name in (_CHOSEN, _REJECTED):
        find_field(row, (name,), place)
    for name in OTHER_PROMPTS:
        if row.get(name) is not None:
            raise place.at(name).error("stands beside the replies; TRL's rows ask in 'prompt'", "rename the field")
    used = ("prompt", _CHOSEN, _REJECTED)
    texts = [isinstance(row[name], str) for name in (_CHOSEN, _REJECTED)]
    if row.get("prompt") is None:
        if not all(texts):
            sides = [_messages(row[name], place.at(name)) for name in (_CHOSEN, _REJECTED)]
            return _pair_of_whole(sides[0], sides[1], row, place, used=used)
        cut = _shared_length(row[_CHOSEN], row[_REJECTED])
        if not cut:
            return Dropped(IDENTICAL if row[_CHOSEN] == row[_REJECTED] else NO_SHARED_PROMPT)
        row = {**row, "prompt": row[_CHOSEN][:cut], **{name: row[name][cut:] for name in (_CHOSEN, _REJECTED)}}
    prompt = _prompt(row["prompt"], place.at("prompt"))
    sides = [
        [reply_of(row[name], place, name)] if isinstance(row[name], str) else _messages(row[name], place.at(name))
        for name in (_CHOSEN, _REJECTED)
    ]
    return _checked(prompt, sides[0], sides[1], row, place, used=used)


def _prompt(value: Any, place: Place) -> list[Message]:
    if is_transcript(value):
        return read_transcript(value, place, open_end=True)
    return [Message.of("user", read_text(value, place))] if isinstance(value, str) else _messages(value, place)


def _messages(value: Any, place: Place) -> list[Message]:
    if isinstance(value, str):
        raise place.error(f"must be a list of messages, found str {shown(value)}")
    return [read_message(item, place.at(i)) for i, item in enumerate(read_list(value, place))]


def _shared_length(first: str, second: str) -> int:
    """How many characters two texts share from the beginning, cut back to a word's end; 0 where they are the same."""
    if first == second:
        return 0
    cut = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    while cut and _INSIDE_WORD.match(first[cut - 1]) and any(_INSIDE_WORD.match(text, cut) for text in (first, second)):
        cut -= 1
    return len(first[:cut].rstrip())


def convert_kto(row: Any, source: str, index: int) -> Preference:
    """Labelled replies: a conversation beside `label` (TRL, LLaMA-Factory's demo) or `kto_tag` (LLaMA-Factory).

    The conversation stands in `messages`, `conversations`, `prompt` and `completion`, or Alpaca's fields.

    Raises:
        DataError: naming the row and field that can't be read, or if no reply of the assistant stands last.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    verdict = find_field(row, LABEL_FIELDS, place)
    desirable = _read_flag(row, verdict, place)
    converter = _LABELLED[find_field(row, tuple(_LABELLED), place)]
    found = converter({name: value for name, value in row.items() if name != verdict}, source, index)
    if found.messages[-1].role != "assistant":
        raise place.error("the label belongs to a reply, and the last message isn't the assistant's")
    return LabelledReply(found, desirable)


_LABELLED = {
    "messages": convert_messages,
    "conversations": convert_sharegpt,
    "prompt": convert_prompt_completion,
    "instruction": convert_alpaca,
}


def _pair_of_whole(
    chosen: Sequence[Message], rejected: Sequence[Message], row: Mapping[str, Any], place: Place, used: Iterable[str]
) -> Preference:
    """The pair of two whole conversations: the prompt is the longest run of turns that they share.

    It ends before the last assistant turn of each, so that a side which goes on where the other ends keeps a reply, and
    not with the assistant, whose turns in a row are one reply.
    """
    most = min(_last_reply(side, place) for side in (chosen, rejected))
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1
    if list(chosen) == list(rejected):
        return Dropped(IDENTICAL)
    if not shared:
        return Dropped(NO_SHARED_PROMPT)
    return _checked(chosen[:shared], chosen[shared:], rejected[shared:], row, place, used)


def _last_reply(messages: Sequence[Message], place: Place) -> int:
    """The position of the last assistant turn."""
    found = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if not found:
        raise place.error("one side holds no reply of the assistant", "leave the row out, or set on_bad_row: skip")
    return found[-1]


def _checked(
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    row: Mapping[str, Any],
    place: Place,
    used: Iterable[str],
) -> Preference:
    """The pair, if the two replies differ, say something and answer the same prompt."""
    if not any(message.role == "user" for message in prompt):
        raise place.error("nobody asks anything in the prompt", "a pair needs a user's message before the replies")
    for name, reply in ((_CHOSEN, chosen), (_REJECTED, rejected)):
        if any(message.role not in ("assistant", "tool") for message in reply):
            return Dropped(PARTS_EARLY)
        if not any(part.text.strip() for message in reply for part in message.parts):
            raise place.error(f"the {name} reply is empty", "leave the row out, or set on_bad_row: skip")
    if list(chosen) == list(rejected):
        return Dropped(IDENTICAL)
    beside = make_conversation(prompt, row, place, used={*used, _CHOSEN, _REJECTED, "margin"})
    return PreferencePair(
        prompt=beside.messages,
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        tools=beside.tools,
        margin=_margin(row, place),
        source=place.source,
        row=place.row,
        extra=beside.extra,
    )


def _margin(row: Mapping[str, Any], place: Place) -> float | None:
    """The row's `margin`, or how far its scores lie apart."""
    if row.get("margin") is not None:
        return _read_number(row["margin"], place.at("margin"))
    names = ("score_chosen", "score_rejected")
    if any(row.get(name) is None for name in names):
        return None
    better, worse = (_read_number(row[name], place.at(name)) for name in names)
    return better - worse


def _read_number(value: Any, place: Place) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise place.error(f"must be a number, found {shown(value)}")
    return float(value)


# The order decides between formats that accept equally many rows: the stricter comes first.
PREFERENCE_CONVERTERS: dict[str, Callable[[Any, str, int], Preference]] = {
    "hh_rlhf": convert_hh_rlhf_pair,
    "llama_factory": convert_llama_factory,
    "safe_rlhf": convert_safe_rlhf,
    "cvalues": convert_cvalues,
    "kto": convert_kto,
    "ultrafeedback": convert_ultrafeedback,
    "orca": convert_orca,
    "trl": convert_trl,
}
