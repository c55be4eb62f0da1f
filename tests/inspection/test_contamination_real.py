"""Contamination on real data: what is planted is found, and what is found in clean sets was looked at, hit by hit."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.sources import load_conversations
from chatwright.inspection.contamination import ContaminationIndex, ContaminationSettings
from chatwright.inspection.evaluation_texts import Evaluations, collect_evaluations
from chatwright.tasks.registry import make_task
from shared_files import shared

pytestmark = pytest.mark.slow

NAMES = ["arc", "mmlu", "gsm8k", "humaneval", "general"]


@pytest.fixture(scope="module")
def evaluations() -> Evaluations:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATWRIGHT_DATA", str(shared("data")))
        return collect_evaluations(NAMES)


@pytest.fixture(scope="module")
def index(evaluations: Evaluations) -> ContaminationIndex:
    return ContaminationIndex.build(evaluations.texts, ContaminationSettings())


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(shared("data")))


def hits(index: ContaminationIndex, rows: list[Conversation]) -> Counter[str]:
    """Rows hit, by evaluation."""
    return Counter(task for found in index.matches(rows) for task in {index.items[match.text].task for match in found})


def share_found(index: ContaminationIndex, task: str, rows: list[Conversation]) -> float:
    return hits(index, rows)[task] / len(rows)


@pytest.mark.parametrize(
    ("task", "options", "least"),
    [
        ("gsm8k", {}, 1.0),
        ("humaneval", {}, 1.0),
        ("arc:ARC-Easy", {"subset": "ARC-Easy"}, 0.999),
        ("arc:ARC-Challenge", {"subset": "ARC-Challenge"}, 0.999),
        ("mmlu", {}, 0.97),
    ],
)
def test_training_on_the_test_split_is_found(
    index: ContaminationIndex, task: str, options: dict[str, str], least: float
) -> None:
    rows = make_task(task.partition(":")[0], **options).conversations("test")
    assert share_found(index, task, rows) >= least


def edited(task: str, change: str, count: int = 400) -> list[Conversation]:
    """Questions of the test split, changed, in a conversation of other words."""
    rng = random.Random(0)
    rows = []
    for row in make_task(task).conversations("test", count):
        text = row.messages[0].text
        if change == "numbers":
            text = re.sub(r"\d+", lambda _: str(rng.randint(2, 99)), text)
        elif change == "a word in ten":
            words = text.split()
            for place in range(rng.randrange(10), len(words), 10):
                words[place] = "something"
            text = " ".join(words)
        else:
            text = re.sub(r"[^\w\s]", " ", text).upper().replace(" ", "\n")
        rows.append(Conversation((Message.of("user", f"Please help. {text}"), Message.of("assistant", "Gladly."))))
    return rows


@pytest.mark.parametrize(
    ("task", "change", "least"),
    [
        ("gsm8k", "case", 1.0),
        ("gsm8k", "a word in ten", 0.98),
        ("gsm8k", "numbers", 0.85),
        ("humaneval", "a word in ten", 0.98),
        ("mmlu", "case", 0.97),
    ],
)
def test_edited_questions_are_found(index: ContaminationIndex, task: str, change: str, least: float) -> None:
    assert share_found(index, task, edited(task, change)) >= least


def test_train_splits_hold_few_test_questions(index: ContaminationIndex) -> None:
    """GSM8K's three are real (the same story with other numbers); ARC repeats stories and questions."""
    assert hits(index, make_task("gsm8k").conversations("train")) == {"gsm8k": 3}
    easy = make_task("arc", subset="ARC-Easy").conversations("train")
    assert 10 <= len([found for found in index.matches(easy) if found]) <= 40  # of 2,251
    dev = make_task("mmlu").conversations("dev")
    assert 15 <= hits(index, dev)["mmlu"] <= 35  # of 285: passages that several questions share


def test_chat_data_holds_only_what_it_really_asks(index: ContaminationIndex) -> None:
    """ "What is the capital of Japan?" and its like stand in Alpaca as they do in the task `general`."""
    for name, most in (("alpaca_libre_tasks_v1.jsonl", 12), ("alpaca_libre_tasks_v2.jsonl", 12)):
        rows = load_conversations(shared(f"data/sft/{name}"), on_bad_row="skip").conversations
        found = hits(index, rows)
        assert found["general"] >= 5
        assert sum(found.values()) <= most
        assert not found["gsm8k"] and not found["humaneval"]
    for name in ("glaive_toolcall_zh_demo.json", "fastchat_dummy_conversation.json", "reason_tool_use_demo_50.jsonl"):
        rows = load_conversations(shared(f"data/sft/{name}"), on_bad_row="skip").conversations
        assert not hits(index, rows)
