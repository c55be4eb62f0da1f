"""Laws of tasks that make their problems: pure, distinct, disjoint splits, right results, grades that see the truth."""

from __future__ import annotations

import operator
import re
import subprocess
import sys

import pytest

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import ConfigError
from chatwright.inference.calculator import calculate
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.embedded import PROBE_WORDS, words_of
from chatwright.tasks.registry import TASKS, make_task

NAMES = sorted(name for name, task in TASKS.items() if issubclass(task, GeneratedTask))
SPLITS = ("train", "test")
TOOL_TASKS = ("arithmetic", "letter_counting", "spelling_bee")
WORD_TASKS = ("letter_counting", "simple_spelling", "spelling", "spelling_bee")


def worked_out(code: str) -> str:
    """What the calculator must say, worked out without the code under test."""
    if count := re.fullmatch(r'"([a-z]+)"\.count\("([a-z])"\)', code):
        word, letter = count.groups()
        return str(sum(1 for character in word if character == letter))
    problem = re.fullmatch(r"(\d+)([-+*/])(\d+)", code)
    assert problem, code
    a, sign, b = problem.groups()
    result = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[sign](int(a), int(b))
    assert result == int(result), code
    return str(int(result))


def unordered(problem: str) -> str:
    """`30+12` and `12+30` as one problem, as are `30*12` and `12*30`."""
    a, sign, b = re.split(r"([-+*/])", problem)
    return sign.join(sorted((a, b)) if sign in "+*" else (a, b))


def problems(task: str, split: str) -> set[str]:
    """What identifies the problems of a split: the word, the numbers, or every question."""
    rows = make_task(task).conversations(split, 3_000, seed=5)
    if task in WORD_TASKS:
        return {row.extra["word"] for row in rows}
    if task == "arithmetic":
        return {unordered(row.extra["problem"]) for row in rows}
    return {
        message.text.lower().strip("?.!？。！") for row in rows for message in row.messages if message.role == "user"
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_pure_distinct_and_counted(name: str, split: str) -> None:
    task = make_task(name)
    rows = task.conversations(split, 40, seed=3)
    assert len(rows) == 40
    assert len({row.messages for row in rows}) == 40
    assert [row.row for row in rows] == list(range(40))
    assert {row.source for row in rows} == {f"task:{name}"}
    assert rows == make_task(name).conversations(split, 40, seed=3)
    assert rows[:11] == task.conversations(split, 11, seed=3)
    assert rows != task.conversations(split, 40, seed=4)
    assert task.conversations(split, 0, seed=3) == []


def test_the_same_in_another_process() -> None:
    code = (
        "import sys; from chatwright.tasks.registry import make_task\n"
        f"for name in {NAMES}: print(make_task(name).conversations('train', 5, 1))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONUTF8": "1"},
    )
    assert done.stdout.splitlines() == [str(make_task(name).conversations("train", 5, 1)) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_problem(name: str) -> None:
    train, test = problems(name, "train"), problems(name, "test")
    assert len(test) >= 30
    assert not train & test


@pytest.mark.parametrize("name", TOOL_TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_tool_results_are_right(name: str, split: str) -> None:
    for row in make_task(name).conversations(split, 1_500, seed=2):
        call, result, answer = row.messages[-1].parts[-3:]
        assert (call.kind, result.kind, answer.kind) == ("tool_call", "tool_result", "text")
        assert call.tool == result.tool == "calculator"
        assert result.text == worked_out(call.text) == calculate(call.text) == str(row.extra["answer"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_grade_accepts_the_reference_and_rejects_another(name: str, split: str) -> None:
    task = make_task(name)
    for row in task.conversations(split, 300, seed=6):
        assert task.grade(row, row.messages[-1]), row
        assert not task.grade(row, Message.of("assistant", "I would rather not say.")), row
        assert not task.grade(row, Message("assistant", ())), row


@pytest.mark.parametrize("name", TOOL_TASKS)
def test_grade_reads_the_answer_and_not_the_tool(name: str) -> None:
    task = make_task(name)
    row = task.conversations("test", 1)[0]
    *_, call, result, _ = row.messages[-1].parts
    mark = "#### " if name == "spelling_bee" else ""
    wrong = Part("text", f"It is {mark}{row.extra['answer'] + 1}.")
    assert not task.grade(row, Message("assistant", (call, result, wrong)))
    assert not task.grade(row, Message("assistant", (call, result)))
    assert task.grade(row, Message.of("assistant", f"It is {mark}{row.extra['answer']}"))


def test_grade_of_spelling_refuses_the_word_itself_and_a_wrong_letter() -> None:
    task = make_task("spelling")
    row = task.conversations("test", 1)[0]
    word = row.extra["word"]
    assert task.grade(row, Message.of("assistant", f"It is {', '.join(word.upper())}."))
    assert not task.grade(row, Message.of("assistant", word))
    assert not task.grade(row, Message.of("assistant", "-".join(word + "q")))


@pytest.mark.parametrize("name", WORD_TASKS)
def test_every_word_comes_once_before_one_comes_again(name: str) -> None:
    task = make_task(name)
    for split in SPLITS:
        words = [row.extra["word"] for row in task.conversations(split)]
        if "size" in type(task.options).model_fields:
            assert len(words) == (1000 if split == "train" or name == "spelling_bee" else len(words_of(split)))
            words = [row.extra["word"] for row in make_task(name, size=len(words_of(split))).conversations(split)]
        assert sorted(words) == list(words_of(split))
    assert set(words_of("test")) >= PROBE_WORDS


def test_letter_counts_vary() -> None:
    counts = [row.extra["answer"] for row in make_task("letter_counting").conversations("train", 240)]
    assert {0, 1, 2, 3} <= set(counts)
    assert max(counts.count(n) for n in set(counts)) < 0.7 * len(counts)


@pytest.mark.parametrize("split", SPLITS)
def test_fewer_come_back_only_when_all_are_out(split: str) -> None:
    general = make_task("general").conversations(split, 10_000)
    assert len(general) == len(make_task("general").conversations(split))
    assert len(make_task("persona").conversations(split, 10_000)) > 100


@pytest.mark.parametrize("name", NAMES)
def test_conversations_are_short_and_take_turns(name: str) -> None:
    for row in make_task(name).conversations("train", 400):
        assert [message.role for message in row.messages] == ["user", "assistant"] * (len(row.messages) // 2)
        length = sum(len(part.text) for message in row.messages for part in message.parts)
        assert length < (600 if name == "spelling_bee" else 300)
        assert all(part.text.strip() for message in row.messages for part in message.parts)


def persona_text(row: Conversation) -> str:
    return " ".join(message.text for message in row.messages if message.role == "assistant")


def test_persona_takes_another_name_and_maker() -> None:
    task = make_task("persona", name="Robin", author="Ann Lee")
    rows = task.conversations("train", 400)
    assert all("Robin" in persona_text(row) for row in rows)
    assert not any("Chatwright" in persona_text(row) for row in rows)
    assert any("由Ann Lee" in persona_text(row) for row in rows)
    rows_zh = make_task("persona", author="Ann Lee", author_zh="李安").conversations("train", 400)
    assert any("由李安" in persona_text(row) for row in rows_zh)
    assert not any("由Ann" in persona_text(row) for row in rows_zh)
    reply = Message.of("assistant", "I'm SmolLM, made by Hugging Face.")
    assert not any(task.grade(row, reply) for row in rows if len(row.messages) == 2)


def test_persona_speaks_two_languages_in_one_turn_and_more() -> None:
    rows = make_task("persona").conversations("train", 200)
    chinese = sum(not row.messages[0].text.isascii() for row in rows)
    several = sum(len(row.messages) > 2 for row in rows)
    assert 30 <= chinese <= 100
    assert 20 <= several <= 80


def test_test_persona_always_ends_with_a_question_about_the_assistant() -> None:
    assert {row.extra["keywords"] for row in make_task("persona").conversations("test", 500)} == {("Chatwright",)}


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'letter_counting'"):
        make_task("leter_counting")
    with pytest.raises(ConfigError, match="did you mean 'author'"):
        make_task("persona", autor="Ann")
    with pytest.raises(ConfigError, match="split: must be one of train, test"):
        make_task("general").conversations("valid")
    with pytest.raises(ConfigError, match="count: must be 0 or more"):
        make_task("general").conversations("test", -1)
