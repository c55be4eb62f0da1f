"""MBPP, BoolQ, PIQA and IFEval on rows made by hand in the hub's layouts: words, right answers, grades, bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations.schema import Message
from chatwright.errors import DataError, UserError
from chatwright.tasks.ifeval import OTHERS
from chatwright.tasks.instruction_checks import CHECKS
from chatwright.tasks.mbpp import Mbpp
from chatwright.tasks.registry import make_task

MBPP_FULL = {
    "task_id": 601,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\r\n  return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
MBPP_SANITIZED = {
    "source_file": "Benchmark Questions Verification V2.ipynb",
    "task_id": 2,
    "prompt": "Write a function to find the square root.",
    "code": "def root(x):\n  return math.sqrt(x)",
    "test_imports": ["import math"],
    "test_list": ["assert root(9) == 3"],
}
BOOLQ = {
    "question": "is the sky blue",
    "passage": "The sky looks blue by day, since air scatters short waves of light most.",
    "answer": True,
}
PIQA = {"goal": "To open a jar,", "sol1": "hit it with a feather.", "sol2": "turn its lid.", "label": 1}
EMPTY = {"num_words": None, "relation": None, "keywords": None, "end_phrase": None}
IFEVAL = [
    {
        "key": 1000,
        "prompt": "Write a long sentence without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [EMPTY, {**EMPTY, "num_words": 5, "relation": "at least"}],
    },
    {
        "key": 1001,
        "prompt": "Answer in French.",
        "instruction_id_list": ["language:response_language"],
        "kwargs": [{**EMPTY, "language": "fr"}],
    },
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`CHATWRIGHT_DATA`, empty."""
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    return tmp_path


def write(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_here(program: str) -> bool:
    """Runs the few trusted programs of this file."""
    try:
        exec(compile(program, "program", "exec"), {})  # noqa: S102
    except (AssertionError, SyntaxError, NameError):
        return False
    return True


@pytest.mark.parametrize(("subset", "row"), [("full", MBPP_FULL), ("sanitized", MBPP_SANITIZED)])
@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "test.jsonl"])
def test_mbpp_runs_the_rows_own_tests(data: Path, subset: str, row: dict[str, Any], name: str) -> None:
    write(data / f"mbpp/{subset}/{name}", row)
    task = make_task("mbpp", subset=subset)
    assert isinstance(task, Mbpp)
    (problem,) = task.conversations("test")
    asked = problem.messages[0].text
    assert asked.startswith(row.get("text") or row["prompt"]) and asked.endswith("\n".join(row["test_list"]))
    with pytest.raises(UserError, match="no executor was handed in"):
        task.grade(problem, problem.messages[-1])
    able = task.with_executor(run_here)
    assert type(able) is Mbpp and able.options == task.options and task.executor is None
    assert able.grade(problem, problem.messages[-1])
    assert able.grade(problem, Message.of("assistant", f"Here:\n```python\n{row['code']}\n```\nDone."))
    for wrong in ("", "I can't.", row["code"].replace("+", "-").replace("sqrt", "floor")):
        assert not able.grade(problem, Message.of("assistant", wrong)), wrong


def test_boolq_asks_for_yes_or_no(data: Path) -> None:
    write(data / "boolq/data/validation-00000-of-00001.parquet", BOOLQ, {**BOOLQ, "answer": False})
    task = make_task("boolq")
    rows = sorted(task.conversations("validation"), key=lambda each: each.row)
    assert rows[0].messages[0].text == (
        "Multiple Choice question: The sky looks blue by day, since air scatters short waves of light most.\n\n"
        "Question: is the sky blue?\n- yes=A\n- no=B\n\nRespond only with the letter of the correct answer."
    )
    assert [row.extra["answer"] for row in rows] == ["A", "B"]
    assert all(task.grade(row, row.messages[-1]) for row in rows)
    assert not task.grade(rows[0], Message.of("assistant", "B"))


def test_the_original_boolq_calls_its_validation_dev(data: Path) -> None:
    write(data / "boolq/dev.jsonl", {**BOOLQ, "title": "Sky"})
    assert len(make_task("boolq").conversations("validation")) == 1
    with pytest.raises(UserError, match="isn't at hand"):
        make_task("boolq").conversations("train")


def test_piqa_asks_which_of_two_works(data: Path) -> None:
    write(data / "piqa/plain_text/validation-00000-of-00001.parquet", PIQA)
    task = make_task("piqa")
    (row,) = task.conversations("validation")
    assert "To open a jar,\n- hit it with a feather.=A\n- turn its lid.=B\n" in row.messages[0].text
    assert row.extra["answer"] == "B" and task.grade(row, row.messages[-1])


@pytest.mark.parametrize(
    ("task", "place", "row", "field"),
    [
        ("boolq", "boolq/train.jsonl", {**BOOLQ, "answer": "yes"}, "answer"),
        ("boolq", "boolq/train.jsonl", {**BOOLQ, "passage": None}, "passage"),
        ("piqa", "piqa/train.jsonl", {**PIQA, "label": -1}, "label"),
        ("piqa", "piqa/train.jsonl", {**PIQA, "sol2": None}, "sol2"),
        ("mbpp", "mbpp/full/train.jsonl", {**MBPP_FULL, "test_list": 5}, "test_list"),
        ("ifeval", "ifeval/input_data.jsonl", {**IFEVAL[0], "kwargs": [{}]}, "instruction_id_list"),
        ("ifeval", "ifeval/input_data.jsonl", {**IFEVAL[1], "instruction_id_list": ["a:b"]}, "instruction_id_list"),
    ],
)
def test_a_bad_row_is_named(data: Path, task: str, place: str, row: dict[str, Any], field: str) -> None:
    write(data / place, row)
    with pytest.raises(DataError, match=rf"row 0, field '{field}'"):
        make_task(task).conversations("test" if task == "ifeval" else "train")


def test_ifeval_leaves_out_what_it_cannot_check_and_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data / "ifeval/ifeval_input_data.jsonl", *IFEVAL)
    task = make_task("ifeval")
    (row,) = task.conversations("test")
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 prompts are left out" in said and "language:response_language (1)" in said
    assert row.messages[0].text == IFEVAL[0]["prompt"] and row.messages[1].text == ""
    assert row.extra["instructions"] == (
        ("punctuation:no_comma", {}),
        ("length_constraints:number_words", {"num_words": 5, "relation": "at least"}),
    )
    shares = make_task("ifeval", level="instruction")
    for text, strict, share in [
        ("These are five words here", True, 1.0),
        ("Only four, words here", False, 0.0),
        ("These are five words, here", False, 0.5),
        ("  \n", False, 0.0),
    ]:
        reply = Message.of("assistant", text)
        assert (task.grade(row, reply), shares.grade(row, reply)) == (strict, share), text


def test_ifevals_instructions_are_all_known() -> None:
    """The 25 ids of its data (arXiv:2311.07911, table 1)."""
    checked = {name for name in CHECKS if not name.startswith("case:")}
    assert len(checked) == 20 and len(OTHERS) == 5 and not checked & set(OTHERS)
