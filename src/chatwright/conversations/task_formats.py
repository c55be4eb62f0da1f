"""Rows of benchmarks and task sets: multiple choice, GSM8K, HumanEval, MBPP.

What a grader needs (letters, answer, tests, entry point) goes to `extra`. Sources of the formats: cais/mmlu,
allenai/ai2_arc, openai/grade-school-math, openai/human-eval, google-research/mbpp; the words of a multiple-choice
question and the calculator parts of GSM8K are those of karpathy/nanochat's tasks.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from chatwright.conversations.message_formats import find_field, make_conversation
from chatwright.conversations.places import Place, read_json, read_list, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation, Message, Part

CALCULATOR = "calculator"
"""The tool that a calculation is a call of."""

_CHOICE_COLUMNS = (tuple(f"choice{i}" for i in range(26)), tuple(string.ascii_uppercase))
_MARK = re.compile(r"<<(.*?)>>", re.DOTALL)
_FINAL = re.compile(r"(?:^|\n)#### *(\S.*?)\s*\Z")


def multiple_choice_question(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """The words of a multiple-choice question, letter after each choice, as nanochat asks it.

    Letters come after the choices since small models bind them better that way (nanochat, `tasks/common.py`).
    """
    listed = "".join(f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=True))
    return f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."


def convert_multiple_choice(row: Any, source: str, index: int) -> Conversation:
    """A question, its choices and the right one; the reply is the letter alone.

    Choices: a list `choices` or `options` (MMLU), `{"text", "label"}` (ARC), `{"A": …}`, or columns `choice0…` or
    `A…`. Answer (`answer` or `answerKey`): an index from 0, a letter or label, or the whole text of a choice.
    `extra` gets `letters` and `answer`.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    question = read_text(row[find_field(row, ("question",), place)], place.at("question"))
    letters, choices, used = _read_choices(row, place)
    field = find_field(row, ("answer", "answerKey"), place)
    letter = letters[_right_choice(row[field], letters, choices, "choice0" in used, place.at(field))]
    messages = [
        Message.of("user", multiple_choice_question(question, letters, choices)),
        Message.of("assistant", letter),
    ]
    found = make_conversation(messages, row, place, used=("question", field, *used))
    return replace(found, extra={**found.extra, "letters": letters, "answer": letter})


def _read_choices(row: Mapping[str, Any], place: Place) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The letters, the choices, and the names of the columns that held them."""
    for name in ("choices", "options"):
        if row.get(name) is not None:
            return (*_listed_choices(row[name], place.at(name)), [name])
    for names in _CHOICE_COLUMNS:
        used = list(takewhile(lambda name: row.get(name) is not None, names))
        if len(used) > 1:
            choices = [read_text(row[name], place.at(name)) for name in used]
            return tuple(string.ascii_uppercase[: len(used)]), choices, used
    raise place.error("the row has no choices: no 'choices', 'options', 'choice0' … or 'A' …")


def _listed_choices(value: Any, place: Place) -> tuple[tuple[str, ...], list[str]]:
    value = read_json(value, place)
    labels: Sequence[Any] = string.ascii_uppercase
    if isinstance(value, Mapping) and "text" in value:
        value, labels = value["text"], read_list(value.get("label"), place.at("label"))
    elif isinstance(value, Mapping):
        labels, value = list(value), list(value.values())
    texts = [read_text(text, place.at(i)) for i, text in enumerate(read_list(value, place))]
    letters = tuple(read_text(label, place.at("label")) for label in labels[: len(texts)])
    if len(texts) < 2 or len(letters) != len(texts) or len(set(letters)) != len(letters):
        raise place.error(f"must be two or more choices, each with a letter of its own, found {shown(value)}")
    return letters, texts


def _right_choice(answer: Any, letters: Sequence[str], choices: Sequence[str], by_index: bool, place: Place) -> int:
    """The position of the right choice; `by_index` says that digits can only be an index (columns `choice0` …)."""
    if isinstance(answer, str):
        said = answer.strip()
        if said in letters:
            return letters.index(said)
        if said.isdecimal() and (by_index or said not in choices):
            answer = int(said)
        elif not said.isdecimal() and list(choices).count(answer) == 1:
            return list(choices).index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise place.error(
        f"must name one of {len(choices)} choices (letters {', '.join(letters)}), found {shown(answer)}",
        "give a letter, an index from 0, or the choice's own text",
    )


def convert_gsm8k(row: Any, source: str, index: int) -> Conversation:
    """GSM8K's `{"question", "answer"}`: each `<<12/60=0.2>>` becomes a calculator call and its result.

    The calls stand inside the assistant's one turn; the words around them stay, `#### answer` too. `extra["answer"]`
    is the answer without thousands separators.

    Raises:
        DataError: if the answer doesn't end in `#### answer`, or a mark holds no `=`.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    for name in ("question", "answer"):
        find_field(row, (name,), place)
    at = place.at("answer")
    answer = read_text(row["answer"], at)
    final = _FINAL.search(answer)
    if final is None:
        raise at.error(f"must end in a line '#### answer', found {shown(answer[-40:])}")
    messages = [
        Message.of("user", read_text(row["question"], place.at("question"))),
        Message("assistant", _calculated(answer, at)),
    ]
    found = make_conversation(messages, row, place, used=("question", "answer"))
    return replace(found, extra={**found.extra, "answer": final[1].replace(",", "")})


def _calculated(text: str, place: Place) -> tuple[Part, ...]:
    parts: list[Part] = []
    for i, piece in enumerate(_MARK.split(text)):
        if i % 2 == 0:
            parts += [Part("text", piece)] if piece else []
            continue
        code, equals, result = piece.rpartition("=")
        if not equals:
            raise place.error(f"a calculation must read <<12/60=0.2>>, found {shown(f'<<{piece}>>')}")
        parts += [Part("tool_call", code, CALCULATOR), Part("tool_result", result, CALCULATOR)]
    return tuple(parts)


def convert_humaneval(row: Any, source: str, index: int) -> Conversation:
    """HumanEval's `{"prompt", "canonical_solution", "test", "entry_point"}`: the reply is the whole program.

    `extra` keeps `test`, `entry_point` and `task_id`.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    for name in ("prompt", "canonical_solution", "test", "entry_point"):
        find_field(row, (name,), place)
    prompt = read_text(row["prompt"], place.at("prompt"))
    solution = read_text(row["canonical_solution"], place.at("canonical_solution"))
    messages = [Message.of("user", prompt), Message.of("assistant", prompt + solution)]
    return make_conversation(messages, row, place, used=("prompt", "canonical_solution"))


def convert_mbpp(row: Any, source: str, index: int) -> Conversation:
    """MBPP's `{"text" or "prompt", "code", "test_list"}`: task and tests are asked, the code is the reply.

    The tests stand in the question since they alone name the function (as in the MBPP paper, arXiv 2108.07732);
    `extra` keeps `test_list` and the rest.

    Raises:
        DataError: naming the row and field that can't be read.
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    task = find_field(row, ("text", "prompt"), place)
    for name in ("code", "test_list"):
        find_field(row, (name,), place)
    at = place.at("test_list")
    tests = "\n".join(read_text(test, at.at(i)) for i, test in enumerate(read_list(row["test_list"], at)))
    asked = f"{read_text(row[task], place.at(task))}\n\nYour code should pass these tests:\n\n{tests}"
    messages = [Message.of("user", asked), Message.of("assistant", read_text(row["code"], place.at("code")))]
    return make_conversation(messages, row, place, used=(task, "code"))
