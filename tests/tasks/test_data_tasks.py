"""The tasks over public data sets: counts, both layouts of each, nanochat's words, and grades."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import UserError
from chatwright.tasks.humaneval import HumanEval
from chatwright.tasks.registry import make_task
from chatwright.templates.template import Template, TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer
from shared_files import shared

CHOICE = [("arc", {"subset": "ARC-Easy"}), ("arc", {"subset": "ARC-Challenge"}), ("mmlu", {})]


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> Path:
    """`CHATWRIGHT_DATA` with the shared copies."""
    folder = shared("data/arc").parent
    monkeypatch.setenv("CHATWRIGHT_DATA", str(folder))
    return folder


@pytest.fixture(scope="module")
def nanochat() -> Template:
    tokenizer = TextTokenizer.load(shared("data/tokenizers/gpt2"))
    return load_template(tokenizer, TemplateSettings(format="nanochat"))


def golden(name: str) -> dict[str, Any]:
    lines = shared("goldens/nanochat-render.jsonl").read_text(encoding="utf-8").split("\n")
    return next(row for row in map(json.loads, filter(None, lines)) if row["name"] == name)


@pytest.mark.parametrize(
    ("name", "options", "split", "rows"),
    [
        ("arc", {"subset": "ARC-Easy"}, "train", 2_251),
        ("arc", {"subset": "ARC-Easy"}, "test", 2_376),
        ("arc", {"subset": "ARC-Challenge"}, "train", 1_119),
        ("arc", {"subset": "ARC-Challenge"}, "test", 1_172),
        ("gsm8k", {}, "train", 7_473),
        ("gsm8k", {}, "test", 1_319),
        ("mmlu", {}, "test", 14_042),
        ("mmlu", {}, "dev", 285),
        ("mmlu", {"subset": "anatomy"}, "test", 135),
        ("humaneval", {}, "test", 164),
    ],
)
def test_every_row_is_there(at_hand: Path, name: str, options: dict[str, Any], split: str, rows: int) -> None:
    made = make_task(name, **options).conversations(split)
    assert len(made) == len({(row.source, row.row) for row in made}) == rows
    assert all([message.role for message in row.messages] == ["user", "assistant"] for row in made)


ARC_QUESTION = "Which material is the best conductor of electricity?"
ARC_CHOICES = ["wood", "plastic", "copper", "rubber"]
INLINE = {
    "instruction": f"Please choose the correct answer to the question: {ARC_QUESTION}\n\nAnswer1: wood "
    "Answer2: plastic Answer3: copper Answer4: rubber\n\nAnswer format: answer1/answer2/answer3/answer4",
    "input": "",
    "output": "the correct answer is answer3",
    "answer": "answer3",
}
HUB = {"id": "X_1", "question": ARC_QUESTION, "choices": {"text": ARC_CHOICES, "label": list("ABCD")}, "answerKey": "C"}
HUB_DIGITS = {**HUB, "choices": {"text": ARC_CHOICES, "label": list("1234")}, "answerKey": "3"}
MMLU_CSV = "question,choice0,choice1,choice2,choice3,answer\n" + f"{ARC_QUESTION},{','.join(ARC_CHOICES)},2\n"
MMLU_HUB = {"question": ARC_QUESTION, "subject": "college_physics", "choices": ARC_CHOICES, "answer": 2}
ARC_FOLDER, MMLU_FOLDER = "arc/ARC-Easy", "mmlu"
LAYOUTS = {
    "arc, LLM-Adapters": ("arc", f"{ARC_FOLDER}/test.json", [INLINE], {"subset": "ARC-Easy"}),
    "arc, hub": ("arc", f"{ARC_FOLDER}/test-00000-of-00001.parquet", [HUB], {"subset": "ARC-Easy"}),
    "arc, hub, digits": ("arc", f"{ARC_FOLDER}/test.jsonl", [HUB_DIGITS], {"subset": "ARC-Easy"}),
    "mmlu, csv": ("mmlu", f"{MMLU_FOLDER}/test/college_physics_test.csv", MMLU_CSV, {"subject": "college_physics"}),
    "mmlu, hub": ("mmlu", f"{MMLU_FOLDER}/all/test-00000-of-00001.parquet", [MMLU_HUB], {"subject": "college_physics"}),
}


def write_layout(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows if path.suffix == ".json" else rows[0]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_golden_conversation(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, path, rows, extra = LAYOUTS[layout]
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    write_layout(tmp_path / path, rows)
    (made,) = make_task(task).conversations("test")
    assert made == Conversation(
        (
            Message.of(
                "user",
                f"Multiple Choice question: {ARC_QUESTION}\n- wood=A\n- plastic=B\n- copper=C\n- rubber=D\n\n"
                "Respond only with the letter of the correct answer.",
            ),
            Message.of("assistant", "C"),
        ),
        source=str(tmp_path / path),
        row=0,
        extra={"letters": ("A", "B", "C", "D"), "answer": "C", **extra},
    )


@pytest.mark.parametrize("layout", ["arc, hub", "mmlu, csv"])
def test_choices_render_as_nanochats(
    nanochat: Template, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, path, rows, _ = LAYOUTS[layout]
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    write_layout(tmp_path / path, rows)
    (example,) = nanochat.render(make_task(task).conversations("test")[0])
    assert example.ids.tolist() == golden("choice")["ids"]
    assert (example.weights > 0).astype(int).tolist() == golden("choice")["mask"]


def test_gsm8k_renders_as_nanochats(nanochat: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = golden("tool-gsm8k")
    asked, said = wanted["conversation"]["messages"]
    marked = "".join(
        {"text": part["text"], "python": f"<<{part['text']}=", "python_output": f"{part['text']}>>"}[part["type"]]
        for part in said["content"]
    )
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").write_text(json.dumps({"question": asked["content"], "answer": marked}))
    (made,) = make_task("gsm8k").conversations("test")
    (example,) = nanochat.render(made)
    assert example.ids.tolist() == wanted["ids"]
    assert (example.weights > 0).astype(int).tolist() == wanted["mask"]


@pytest.mark.parametrize(("name", "options"), CHOICE)
def test_choices_of_the_shared_copies(at_hand: Path, name: str, options: dict[str, Any]) -> None:
    task = make_task(name, **options)
    for row in task.conversations("test", 500):
        letters, answer = row.extra["letters"], row.extra["answer"]
        assert 3 <= len(letters) <= 5
        assert answer in letters
        assert all(f"={letter}\n" in row.messages[0].text for letter in letters)
        assert row.extra["subset"] in row.source if name == "arc" else row.extra["subject"] in row.source
        assert task.grade(row, row.messages[-1])
        assert [task.grade(row, Message.of("assistant", letter)) for letter in letters].count(True) == 1


def test_a_first_row_of_each_shared_copy(at_hand: Path) -> None:
    """The gold answers, read by eye from the files."""
    easy = {row.row: row for row in make_task("arc").conversations("train")}
    assert "likely cause a person to develop a fever?\n- a leg muscle" in easy[0].messages[0].text
    assert [easy[row].extra["answer"] for row in range(3)] == ["B", "B", "D"]
    algebra = {row.row: row for row in make_task("mmlu", subset="abstract_algebra").conversations("test")}
    assert "\n- 0=A\n- 4=B\n- 2=C\n- 6=D\n" in algebra[0].messages[0].text
    assert [algebra[row].extra["answer"] for row in range(3)] == ["B", "C", "D"]


def test_grade_of_a_choice_wants_the_letter(at_hand: Path) -> None:
    task = make_task("arc")
    row = task.conversations("test", 1)[0]
    right = row.extra["answer"]
    for text in (right, f" {right}\n", f"({right})", f"{right}."):
        assert task.grade(row, Message.of("assistant", text)), text
    wrong = next(letter for letter in row.extra["letters"] if letter != right)
    for text in (wrong, right.lower(), f"The answer is {right}", "", "I can't say."):
        assert not task.grade(row, Message.of("assistant", text)), text
    assert task.grade(row, Message("assistant", (Part("thinking", wrong), Part("text", right))))


def test_gsm8k_calls_the_calculator(at_hand: Path) -> None:
    task = make_task("gsm8k")
    rows = task.conversations("train")
    weng = next(row for row in rows if row.row == 1)
    assert weng.messages[1].parts == (
        Part("text", "Weng earns 12/60 = $"),
        Part("tool_call", "12/60", tool="calculator"),
        Part("tool_result", "0.2", tool="calculator"),
        Part("text", "0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $"),
        Part("tool_call", "0.2*50", tool="calculator"),
        Part("tool_result", "10", tool="calculator"),
        Part("text", "10.\n#### 10"),
    )
    calls = sum(part.kind == "tool_call" for row in rows for part in row.messages[1].parts)
    assert calls == 23_716
    for row in rows:
        assert task.grade(row, row.messages[1])
        assert "<<" not in row.messages[1].text


def test_grade_of_gsm8k(at_hand: Path) -> None:
    task = make_task("gsm8k")
    row = next(row for row in task.conversations("train") if row.row == 1)
    for text, right in {
        "#### 10": True,
        "Ten dollars.\n#### 10.00": True,
        "#### 1,0": True,
        "#### 11": False,
        "10": False,
        "####": False,
        "#### 9 or #### 10": False,
        "": False,
    }.items():
        assert task.grade(row, Message.of("assistant", text)) is right, text
    tool = Message("assistant", (Part("tool_call", "5+5"), Part("tool_result", "#### 10")))
    assert not task.grade(row, tool)


def run_here(program: str) -> bool:
    """Runs trusted programs: the reference solutions and the few lines of this file."""
    try:
        exec(compile(program, "program", "exec"), {})  # noqa: S102
    except (AssertionError, SyntaxError, NameError, TypeError):
        return False
    return True


def test_humaneval_needs_an_executor(at_hand: Path) -> None:
    task = make_task("humaneval")
    row = task.conversations("test", 1)[0]
    with pytest.raises(UserError, match="executor"):
        task.grade(row, row.messages[-1])


def test_humaneval_accepts_every_reference_solution(at_hand: Path) -> None:
    task = HumanEval(make_task("humaneval").options).with_executor(run_here)
    for row in task.conversations("test"):
        assert row.extra["entry_point"] in row.messages[0].text
        assert task.grade(row, row.messages[-1]), row.extra["task_id"]


def test_humaneval_reads_code_as_models_write_it(at_hand: Path) -> None:
    task = HumanEval(make_task("humaneval").options).with_executor(run_here)
    rows = {row.extra["task_id"]: row for row in task.conversations("test")}
    row = rows["HumanEval/53"]  # def add(x: int, y: int)
    body = "    return x + y"
    whole = "def add(x, y):\n    return x + y"
    for text, right in {
        body: True,
        whole: True,
        f"Here it is:\n```python\n{whole}\n```\nIt adds.": True,
        f"```\n{whole}\n```": True,
        f"```python\n{body}\n```": True,
        whole.replace("+", "-"): False,
        f"```python\n{whole.replace('+', '-')}\n```\n```python\n{whole}\n```": False,
        "I would add them.": False,
        "": False,
    }.items():
        assert task.grade(row, Message.of("assistant", text)) is right, text
    helper = rows["HumanEval/38"]  # the prompt has a helper that a whole function may call
    decode = "def decode_cyclic(s):\n    return encode_cyclic(encode_cyclic(s))"
    assert task.grade(helper, Message.of("assistant", decode))
