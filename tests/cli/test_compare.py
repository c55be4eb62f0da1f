"""`chatwright compare`: answers side by side on tiny models, in the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import chatwright.inference.sandbox as sandbox_module
import chatwright.recipes.comparing as comparing
from chatwright.checkpoints.export import MARKER_NAME
from chatwright.cli.main import main
from chatwright.inference.sandbox_report import SandboxReport
from chatwright.tasks.registry import TASKS
from tiny_model import make_tiny_model

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run the command in a folder with two chat models, `one` and `two`, and a prompt file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    torch.set_num_threads(1)
    for task in TASKS.values():
        monkeypatch.setattr(task, "max_new_tokens", 8)  # these models ramble
    make_tiny_model(tmp_path / "one")
    make_tiny_model(tmp_path / "two", seed=1)
    (tmp_path / "prompts.txt").write_text("Who are you?\nTell me a colour.\n", encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["chatwright", "compare", *arguments, "--max-new-tokens", "8"])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def make_rambler(folder: Path) -> Path:
    """A model that writes control tokens of other turns, whatever it is asked.

    Every row of its output head is zero but two that are opposites, so that one of the two always wins.
    """
    make_tiny_model(folder, tie_word_embeddings=False)
    state = load_file(folder / "model.safetensors")
    direction = state["lm_head.weight"][5].clone()
    state["lm_head.weight"].zero_()
    state["lm_head.weight"][0], state["lm_head.weight"][1] = direction, -direction  # <|endoftext|>, <|im_start|>
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_base(folder: Path) -> Path:
    """A model without a chat template."""
    make_tiny_model(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_models_stand_side_by_side_with_their_marks(compare: Command) -> None:
    code, out, err = compare("one", "two", "--prompts", "prompts.txt")
    assert code == 0, err
    assert "Who are you?" in out and "Tell me a colour." in out
    assert "own turn" in out and "how it was asked" in out
    assert "one: " in err and "two: " in err


def test_more_than_three_models_stand_below_each_other(compare: Command) -> None:
    code, out, _ = compare("one", "two", "one", "two", "--prompts", "prompts.txt")
    assert code == 0
    assert out.count("Who are you?") == 1 and out.count(" two ") >= 4


def test_json_has_every_answer_with_its_marks(compare: Command) -> None:
    code, out, _ = compare("one", "two", "--json")
    found = json.loads(out)
    assert code == 0
    assert [each["model"] for each in found["models"]] == ["one", "two"]
    assert found["probes"][0]["prompt"] == "What is the capital of France?"
    for model in found["models"]:
        assert len(model["answers"]) == len(found["probes"])
        assert all(0 < each["tokens"] <= 8 and "ends" in each["marks"] for each in model["answers"])
    first, second = ([each["text"] for each in model["answers"]] for model in found["models"])
    assert first != second, "two models with other weights answer alike"


def test_a_model_compared_with_itself_answers_alike(compare: Command) -> None:
    _, out, _ = compare("one", "one", "--prompts", "prompts.txt", "--json")
    first, second = json.loads(out)["models"]
    assert first == second


def test_control_tokens_of_other_turns_are_named_and_marked(compare: Command, tmp_path: Path) -> None:
    make_rambler(tmp_path / "rambler")
    _, out, _ = compare("rambler", "one", "--prompts", "prompts.txt", "--json")
    rambler, one = json.loads(out)["models"]
    for each in rambler["answers"]:
        assert set(each["foreign_control_tokens"]) & {"<|endoftext|>", "<|im_start|>"}
        assert each["marks"] == {"own turn": False, "ends": False}
    assert any(each["marks"]["own turn"] for each in one["answers"])


def test_a_base_model_is_given_the_prompt_alone_and_that_is_said(compare: Command, tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    _, out, err = compare("base", "one", "--prompts", "prompts.txt", "--json")
    base, chat = json.loads(out)["models"]
    assert (base["asked_by"], chat["asked_by"]) == ("plain text", "its chat template")
    assert "base: " in err and "asked by plain text" in err
    compare("base", "one", "--prompts", "prompts.txt", "--html", "page.html")
    assert "no chat template" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_shows_every_answer(compare: Command, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("<script>alert(1)</script>\nWho are you?\n", encoding="utf-8")
    code, _, err = compare("one", "two", "--prompts", "prompts.txt", "--html", "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert code == 0, err
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<td>one</td>") == page.count("<td>two</td>") == 2
    assert "chatwright compare --html" in page and "chatwright report" not in page


def test_tasks_are_scored_with_intervals_and_the_change_to_the_first_model(compare: Command, tmp_path: Path) -> None:
    measured = ("--prompts", "prompts.txt", "--tasks", "letter_counting,spelling", "--limit", "3")
    _, out, _ = compare("one", "two", *measured, "--json")
    rows = json.loads(out)["scores"]
    assert [(row["task"], row["problems"]) for row in rows] == [("letter_counting", 3), ("spelling", 3)]
    for row in rows:
        before, after = row["scores"]
        assert (before["model"], after["model"]) == ("one", "two")
        assert before["low"] <= before["value"] <= before["high"] and before["high"] > before["low"]
        assert "difference" not in before and after["difference"]["to"] == "one"
    _, out, err = compare("one", "two", *measured)
    assert "letter_counting" in out and "its difference to one" in err
    compare("one", "two", *measured, "--html", "page.html")
    assert "letter_counting" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_tasks_there_are_no_scores(compare: Command, tmp_path: Path) -> None:
    _, out, _ = compare("one", "--prompts", "prompts.txt", "--json")
    assert json.loads(out)["scores"] == []
    compare("one", "--prompts", "prompts.txt", "--html", "page.html")
    assert 'id="scores"' not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_scores_are_those_of_eval_in_float32_with_the_marks_of_the_training_data(
    compare: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"checkpoint": "step-000001", "contamination": {"letter_counting": 40}}
    (tmp_path / "two" / MARKER_NAME).write_text(json.dumps(record), encoding="utf-8")
    asked = ("two", "--tasks", "letter_counting,spelling", "--limit", "1", "--device", "cpu")
    identities, evaluate = [], comparing.evaluate_task

    def watched(subject: Any, *given: Any) -> Any:
        identities.append(subject.identity())
        return evaluate(subject, *given)

    monkeypatch.setattr(comparing, "evaluate_task", watched)
    _, out, _ = compare(*asked, "--prompts", "prompts.txt", "--json")
    rows = json.loads(out)["scores"]
    monkeypatch.setattr(sys, "argv", ["chatwright", "eval", *asked, "--json", "-"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    told = json.loads(capsys.readouterr().out)
    assert rows == told["rows"] and list(dict.fromkeys(identities)) == told["identities"]
    assert all(" float32," in each for each in identities)
    assert [[score["contaminated_rows"] for score in row["scores"]] for row in rows] == [[40], [None]]


def test_tasks_that_run_code_are_graded_in_the_sandbox_or_refused_before_the_work(
    compare: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = SandboxReport("namespaces", problem="unshare: Operation not permitted")
    monkeypatch.setattr(sandbox_module, "best_report", lambda: report)
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path / "data"))
    row = {"task_id": "a/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "entry_point": "f"}
    row["test"] = "def check(candidate):\n    assert candidate() == 1\n"
    asked = ("one", "--prompts", "prompts.txt", "--tasks", "humaneval", "--json")
    code, out, err = compare(*asked, "--allow-unsafe-code")
    assert code == 2 and out == "" and "humaneval" in err and "marks" not in err, "missing data is found first"
    (tmp_path / "data" / "humaneval").mkdir(parents=True)
    (tmp_path / "data" / "humaneval" / "HumanEval.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    code, out, err = compare(*asked)
    assert code == 2 and out == "" and "can't isolate" in err and "marks" not in err
    code, out, err = compare(*asked, "--allow-unsafe-code")
    assert code == 0, err
    assert [(each["task"], each["problems"]) for each in json.loads(out)["scores"]] == [("humaneval", 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("one", "two", "--json", "--html", "page.html"), "exclude each other"),
        (("one", "--prompts", "absent.txt"), "no such file"),
        (("one", "absent"), "no such model"),
        (("one", "--tasks", "letter_count"), "letter_counting"),
        (("one", "--html", "no/folder/page.html"), "No such file"),
    ],
)
def test_mistakes_are_told_in_one_message(compare: Command, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = compare(*arguments)
    assert code == 2
    assert words in err and "Traceback" not in err
