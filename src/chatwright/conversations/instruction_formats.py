"""Instruction and question formats: Dolly, self-instruct, plain question/answer pairs.

Sources of the formats: databricks-dolly-15k, yizhongw/self-instruct (`instances`), pwxcoo/chinese-xinhua
(riddle/answer), OpenOrca (system_prompt, question, response).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chatwright.conversations.message_formats import find_field, make_conversation
from chatwright.conversations.parts import split_thinking
from chatwright.conversations.places import Place, read_list, read_mapping, read_text
from chatwright.conversations.schema import Conversation, Message

# Columns that a question can't be asked without: a row that has one of them is no plain pair.
_NEEDED_TO_ANSWER = ("choices", "options", "choice0", "context", "passage", "paragraph", "document", "messages")


def convert_dolly(row: Any, source: str, index: int) -> Conversation:
    """Dolly's `{"instruction", "context", "response", "category"}`; a blank line joins instruction and context.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    if "context" not in row and "category" not in row:
        raise place.error("the row has neither 'context' nor 'category', which Dolly's rows have")
    for name in ("instruction", "response"):
        find_field(row, (name,), place)
    messages = [_question(row, ("instruction", "context"), "\n\n", place), reply_of(row["response"], place, "response")]
    return make_conversation(messages, row, place, used=("instruction", "context", "response"))


def _question(row: Mapping[str, Any], names: Iterable[str], joined_by: str, place: Place) -> Message:
    """The user's turn: those of the row's fields that hold words, joined."""
    texts = [read_text(row.get(name) or "", place.at(name)) for name in names]
    said = joined_by.join(text for text in texts if text.strip())
    if not said:
        raise place.at(next(iter(names))).error("there is nothing asked", "leave the row out")
    return Message.of("user", said)


def reply_of(value: Any, place: Place, name: str) -> Message:
    """The assistant's turn from the text of a field, `<think>` at its start read as thinking."""
    return Message("assistant", split_thinking(read_text(value, place.at(name))))


def convert_self_instruct(row: Any, source: str, index: int) -> Conversation:
    """Self-instruct's `{"instruction", "instances": [{"input", "output"}]}`.

    A row with several instances becomes one conversation in which the instruction is asked anew for each input.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    find_field(row, ("instruction",), place)
    field = find_field(row, ("instances",), place)
    messages: list[Message] = []
    for i, item in enumerate(read_list(row[field], place.at(field))):
        at = place.at(field, i)
        item = read_mapping(item, at)
        find_field(item, ("output",), at)
        asked = {"instruction": row["instruction"], "input": item.get("input")}
        messages += [_question(asked, ("instruction", "input"), "\n", at), reply_of(item["output"], at, "output")]
    return make_conversation(messages, row, place, used=("instruction", field))


def convert_question_answer(row: Any, source: str, index: int) -> Conversation:
    """A plain pair: `question` or `riddle`, and `answer` or `response`; `system_prompt` becomes the system message.

    A row with choices or a text to read beside the question is refused, since the question alone would lose them.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    question = find_field(row, ("question", "riddle"), place)
    answer = find_field(row, ("answer", "response"), place)
    for name in _NEEDED_TO_ANSWER:
        if row.get(name) is not None:
            raise place.at(name).error(
                "stands beside the question, and a plain question/answer pair would lose it",
                "name another format, or write the row as messages",
            )
    system = read_text(row.get("system_prompt") or "", place.at("system_prompt"))
    messages = [Message.of("system", system)] if system else []
    messages += [_question(row, (question,), "", place), reply_of(row[answer], place, answer)]
    return make_conversation(messages, row, place, used=(question, answer, "system_prompt"))
