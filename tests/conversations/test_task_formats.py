"""Multiple choice, GSM8K, HumanEval and MBPP rows; MBPP's and ARC's by hand in their published schemas."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from chatwright.conversations.converters import convert
from chatwright.conversations.schema import Part
from chatwright.conversations.sources import load_conversations
from chatwright.conversations.task_formats import multiple_choice_question
from chatwright.errors import DataError
from shared_files import shared

METALS = ["wood", "plastic", "copper", "rubber"]


def test_a_choice_question_reads_as_nanochat_asks_it():
    goldens = [json.loads(line) for line in shared("goldens/nanochat-render.jsonl").read_text("utf-8").splitlines()]
    golden = next(row["conversation"] for row in goldens if row["name"] == "choice")
    row = {"question": "Which material is the best conductor of electricity?", "choices": METALS, "answer": 2}
    found = convert(row, "multiple_choice", "hand", 0)
    assert [m.text for m in found.messages] == [m["content"] for m in golden["messages"]]
    assert list(found.extra["letters"]) == golden["letters"]


@pytest.mark.parametrize(
    "row",
    [
        {"choices": METALS, "answer": 2},
        {"choices": METALS, "answer": "2"},
        {"choices": METALS, "answer": "C"},
        {"choices": METALS, "answer": "copper"},
        {"choices": json.dumps(METALS), "answer": 2},
        {"options": METALS, "answer": "C"},
        {"options": dict(zip("ABCD", METALS, strict=True)), "answer": "C"},
        {"choices": {"text": METALS, "label": list("ABCD")}, "answerKey": "C"},
        {**{f"choice{i}": text for i, text in enumerate(METALS)}, "answer": "2"},
        {**dict(zip("ABCD", METALS, strict=True)), "answer": "C"},
    ],
)
def test_choices_and_answers_of_every_kind(row):
    found = convert({"question": "?", "subject": "physics", **row}, "multiple_choice", "hand", 0)
    assert found.messages[0].text == multiple_choice_question("?", "ABCD", METALS)
    assert found.messages[1].text == "C"
    assert found.extra == {"subject": "physics", "letters": ("A", "B", "C", "D"), "answer": "C"}


def test_arc_rows_keep_their_own_labels():
    choices = {"text": ["dry", "wet", "oil"], "label": ["1", "2", "3"]}
    found = convert({"question": "?", "choices": choices, "answerKey": "1"}, "multiple_choice", "hand", 0)
    assert found.messages[1].text == "1"
    assert "- dry=1\n- wet=2\n" in found.messages[0].text


def test_digits_that_are_choices_too_are_an_index_only_in_numbered_columns():
    numbers = ["0", "4", "2", "6"]
    columns = {f"choice{i}": text for i, text in enumerate(numbers)}
    assert convert({"question": "?", **columns, "answer": "2"}, "multiple_choice", "hand", 0).extra["answer"] == "C"
    with pytest.raises(DataError, match="must name one of 4 choices"):
        convert({"question": "?", "choices": numbers, "answer": "2"}, "multiple_choice", "hand", 0)


def test_real_mmlu_rows():
    found = load_conversations(shared("data/mmlu/dev/anatomy_dev.csv")).conversations[0]
    assert found.messages[0].text.startswith("Multiple Choice question: What is the embryological origin of the hyoid")
    assert found.messages[1].text == found.extra["answer"]


def test_gsm8k_marks_become_calculator_calls_in_one_turn():
    row = {"question": "?", "answer": "12/60 = $<<12/60=0.2>>0.2.\nSo <<0.2*50=10>>10.\n#### 1,010"}
    found = convert(row, "gsm8k", "hand", 0)
    assert found.messages[1].parts == (
        Part("text", "12/60 = $"),
        Part("tool_call", "12/60", "calculator"),
        Part("tool_result", "0.2", "calculator"),
        Part("text", "0.2.\nSo "),
        Part("tool_call", "0.2*50", "calculator"),
        Part("tool_result", "10", "calculator"),
        Part("text", "10.\n#### 1,010"),
    )
    assert found.extra == {"answer": "1010"}


def test_real_gsm8k_rows_keep_every_mark_and_word():
    path = shared("data/gsm8k/train.jsonl")
    loaded = load_conversations(path)
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    kinds = Counter(part.kind for c in loaded.conversations for part in c.messages[1].parts)
    assert kinds["tool_call"] == kinds["tool_result"] == 23_716
    for row, found in zip(rows, loaded.conversations, strict=True):
        written = {"text": "{}", "tool_call": "<<{}=", "tool_result": "{}>>"}
        again = "".join(written[part.kind].format(part.text) for part in found.messages[1].parts)
        assert again == row["answer"]
        assert found.extra["answer"] == row["answer"].split("#### ")[1].replace(",", "")


def test_humaneval_replies_with_the_whole_program():
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):\n",
        "canonical_solution": "    return x\n",
        "test": "check(f)",
        "entry_point": "f",
    }
    found = convert(row, "humaneval", "hand", 0)
    assert [m.text for m in found.messages] == ["def f(x):\n", "def f(x):\n    return x\n"]
    assert found.extra == {"task_id": "HumanEval/0", "test": "check(f)", "entry_point": "f"}


def test_every_real_humaneval_reply_is_python():
    conversations = load_conversations(shared("data/humaneval/HumanEval.jsonl.gz")).conversations
    assert len(conversations) == 164
    for found in conversations:
        compile(found.messages[1].text, str(found.extra["task_id"]), "exec")


@pytest.mark.parametrize("task", ["text", "prompt"])
def test_mbpp_asks_with_its_tests(task):
    row = {"task_id": 2, task: "Write f.", "code": "def f(): return 1", "test_list": ["assert f() == 1", "assert f()"]}
    found = convert(row, "mbpp", "hand", 0)
    tests = "assert f() == 1\nassert f()"
    assert found.messages[0].text == f"Write f.\n\nYour code should pass these tests:\n\n{tests}"
    assert found.messages[1].text == "def f(): return 1"
    assert found.extra == {"task_id": 2, "test_list": row["test_list"]}


@pytest.mark.parametrize(
    ("format", "row", "field", "says"),
    [
        ("multiple_choice", {"question": "?", "answer": 1}, None, "no choices"),
        ("multiple_choice", {"question": "?", "choices": METALS, "answer": 4}, "answer", "letters A, B, C, D"),
        ("multiple_choice", {"question": "?", "choices": METALS, "answer": True}, "answer", "True"),
        ("multiple_choice", {"question": "?", "choices": METALS, "answer": "gold"}, "answer", "'gold'"),
        ("multiple_choice", {"question": "?", "choices": ["a"], "answer": 0}, "choices", "two or more"),
        ("multiple_choice", {"question": "?", "choices": {"text": ["a", "b"], "label": ["A"]}, "answer": 0}, "choices",
         "letter of its own"),
        ("gsm8k", {"question": "?", "answer": "4"}, "answer", "'#### answer'"),
        ("gsm8k", {"question": "?", "answer": "<<4>>\n#### 4"}, "answer", "'<<4>>'"),
        ("humaneval", {"prompt": "x", "canonical_solution": "y", "test": "z"}, None, "'entry_point'"),
        ("mbpp", {"text": "x", "code": "y", "test_list": [1]}, "test_list.0", "int 1"),
    ],
)  # fmt: skip
def test_a_bad_row_names_its_field_and_value(format, row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, format, "hand", 5)
    assert (caught.value.row, caught.value.field) == (5, field)
    assert says in caught.value.message
