"""`chatwright eval` as a command: tables, files, mistakes, interruption, and two ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chatwright.cli.main import MISTAKE, main
from tiny_model import make_tiny_model
from training_runs import (
    conversations,
    finish_ranks,
    recipe,
    run_command,
    start_command,
    start_ranks,
    train,
    write_rows,
)

SMALL = ("--limit", "5", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "other", seed=5)


@pytest.fixture
def at_work(tmp_path: Path, tiny_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tiny model in it as `model`, and another as `other`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("CHATWRIGHT_DATA", raising=False)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "other").symlink_to(other_model)
    (tmp_path / "bare.yaml").write_text("recipe_version: 1\nmodel: model\ndata: [{task: spelling}]\nout: run\n")
    return tmp_path


def run_eval(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["chatwright", "eval", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def records(path: Path) -> list[dict[str, Any]]:
    """The lines but for the time they took."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_two_models_in_one_table(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(at_work / "data.jsonl", conversations(12))
    arguments = ("model", "other", "--tasks", "letter_counting,spelling", "--heldout", str(data), *SMALL)
    assert run_eval(monkeypatch, *arguments, "--json", "scores.json") == 0
    printed = capsys.readouterr()
    for word in ("letter_counting", "spelling", "held-out: data.jsonl", "bits per byte", "model", "other"):
        assert word in printed.out
    assert "95 %" in printed.err and "evals/other" in printed.err
    told = json.loads((at_work / "scores.json").read_text(encoding="utf-8"))
    assert told["models"] == ["model", "other"] and told["settings"]["limit"] == 5
    by_metric = {(row["task"], row["metric"]): row for row in told["rows"]}
    loss = by_metric["held-out: data.jsonl", "loss"]
    assert loss["problems"] == 5
    first, second = loss["scores"]
    assert first["value"] != second["value"]
    assert second["difference"]["value"] == pytest.approx(second["value"] - first["value"])
    assert sorted(path.name for path in (at_work / "evals" / "other").iterdir()) == [
        "heldout-data.jsonl.jsonl",
        "letter_counting.jsonl",
        "spelling.jsonl",
    ]


def test_json_alone_on_standard_output(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_eval(monkeypatch, "model", "-t", "spelling", *SMALL, "--examples", "results", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"][0]["problems"] == 5 and told["examples"] == ["results/model"]
    assert (at_work / "results" / "model" / "spelling.jsonl").is_file() and not (at_work / "evals").exists()


def test_several_samples_give_pass_at_k(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_eval(monkeypatch, "model", "-t", "spelling", *SMALL, "-k", "3") == 0
    printed = capsys.readouterr().out
    assert "pass@1" in printed and "pass@3" in printed
    assert len(records(at_work / "evals" / "model" / "spelling.jsonl")) == 1 + 15


def test_a_runs_results_stand_in_its_folder_by_checkpoint(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(at_work / "data.jsonl", conversations(16))
    settings = recipe(at_work / "model", data, at_work / "run", heldout={"share": 0.25}, train={"max_steps": 2})
    trained = train(settings)
    heldout = [line["heldout_loss"] for line in trained.trainer.run.read_metrics() if "heldout_loss" in line]
    assert run_eval(monkeypatch, "run", "--heldout", "run", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    loss = next(row for row in told["rows"] if row["metric"] == "loss")
    assert loss["problems"] == 4
    assert loss["scores"][0]["value"] == pytest.approx(heldout[-1], rel=1e-4), "what training reports as held-out loss"
    folder = at_work / "run" / "evals" / "step-000002"
    assert told["examples"] == [str(folder)] and (folder / "heldout-run.jsonl").is_file()
    assert {each["source"] for each in records(folder / "heldout-run.jsonl")[1:]} == {str(data)}


def test_a_runs_contamination_is_marked(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on the very problems that `letter_counting` tests with."""
    from chatwright.tasks.registry import make_task

    problems = make_task("letter_counting").conversations("test", 40)
    rows = [
        {"messages": [{"role": each.role, "content": each.text} for each in problem.messages]} for problem in problems
    ]
    data = write_rows(at_work / "data.jsonl", rows)
    settings = recipe(
        at_work / "model",
        data,
        at_work / "run",
        contamination={"evaluations": ["letter_counting", "spelling"]},
        train={"max_steps": 1},
    )
    train(settings)
    assert run_eval(monkeypatch, "model", "run", "-t", "letter_counting,spelling", *SMALL) == 0
    printed = capsys.readouterr()
    marked = [line for line in printed.out.splitlines() if "†" in line]
    assert len(marked) == 1 and "letter_counting" in marked[0]
    assert "† run has met items of letter_counting in training: 40 training rows" in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which model?"),
        (("model",), "what is to be measured?"),
        (("model", "-t", "speling"), "did you mean 'spelling'"),
        (("model", "-t", "spelling", "-n", "0"), "limit"),
        (("model", "-t", "spelling", "-k", "0"), "samples"),
        (("model", "-t", "spelling", "--temperature", "-1"), "temperature"),
        (("model", "-t", "spelling", "--max-new-tokens", "0"), "max_new_tokens"),
        (("model", "-t", "spelling", "--batch-rows", "0"), "batch-rows"),
        (("model", "-t", "spelling", "--choice-by", "luck"), "logprobs or text"),
        (("model", "-t", "spelling", "--split", "dev"), "must be one of train, test"),
        (("model", "-t", "spelling", "--dtype", "float7"), "unknown dtype 'float7'"),
        (("model", "-t", "spelling", "--device", "abacus"), "'abacus' isn't available"),
        (("model", "model", "-t", "spelling"), "model is named twice"),
        (("model", "mode", "-t", "spelling"), "did you mean"),
        (("model", "-t", "gsm8k"), "CHATWRIGHT_DATA isn't set"),
        (("model", "-t", "smoltalk"), "--heldout task:smoltalk"),
        (("model", "--heldout", "nothing.jsonl"), "there is no such file"),
        (("model", "--heldout", "task:speling"), "speling"),
        (("model", "--heldout", "bare.yaml"), "holds nothing out"),
        (("--endpoint", "http://127.0.0.1:9", "--heldout", "x.jsonl"), "the loss needs the model itself"),
        (("--endpoint", "http://127.0.0.1:9", "-t", "spelling"), "no answer"),
        (("model", "-t", "spelling", "--json", "no/such/folder.json"), "No such file"),
    ],
    ids=lambda each: "-".join(each)[:40] if isinstance(each, tuple) else "",
)
def test_a_mistake_is_one_clear_message(
    at_work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run_eval(monkeypatch, *arguments) == MISTAKE
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err and printed.out == ""
    assert not (at_work / "evals").exists(), "a mistake leaves nothing behind"


def test_results_of_other_settings_are_not_mixed(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("model", "-t", "spelling", *SMALL)
    assert run_eval(monkeypatch, *arguments) == 0
    assert run_eval(monkeypatch, *arguments, "--system", "Be brief.") == MISTAKE
    assert "--fresh" in capsys.readouterr().err
    assert run_eval(monkeypatch, *arguments, "--system", "Be brief.", "--fresh") == 0


def test_ctrl_c_says_how_to_go_on(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chatwright.cli.eval.evaluate_task", interrupt)
    assert run_eval(monkeypatch, "model", "-t", "spelling", *SMALL) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(at_work: Path) -> None:
    arguments = ("eval", "model", "-t", "spelling,letter_counting", "-n", "60", "--max-new-tokens", "100")
    run_command(*arguments, "--examples", "whole")
    path = at_work / "parts" / "model" / "spelling.jsonl"
    process = start_command(*arguments, "--batch-rows", "2", "--examples", "parts")
    end = time.monotonic() + 120
    while time.monotonic() < end and not (path.exists() and path.read_text().count("\n") > 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = path.read_text().count("\n")
    assert 3 < kept < 61, "killed in the middle"
    run_command(*arguments, "--examples", "parts")
    for name in ("spelling.jsonl", "letter_counting.jsonl"):
        assert records(at_work / "parts" / "model" / name) == records(at_work / "whole" / "model" / name)


@pytest.mark.slow
def test_two_ranks_share_the_work(at_work: Path) -> None:
    data = write_rows(at_work / "data.jsonl", conversations(11))
    arguments = ("eval", "model", "-t", "spelling", "--heldout", str(data), *SMALL, "-k", "2")
    run_command(*arguments, "--examples", "alone", "--json", "alone.json")
    printed = finish_ranks(start_ranks(2, *arguments, "--examples", "ranks", "--json", "ranks.json"))
    alone, shared = (json.loads((at_work / name).read_text(encoding="utf-8")) for name in ("alone.json", "ranks.json"))
    assert "spelling" in printed[0] and "spelling" not in printed[1], "rank 0 alone tells"
    assert shared["rows"][:2] == alone["rows"][:2] and len(shared["rows"]) == len(alone["rows"]) == 4
    for name in ("spelling.jsonl", "heldout-data.jsonl.jsonl"):
        ours, theirs = (records(at_work / folder / "model" / name) for folder in ("alone", "ranks"))
        if name == "spelling.jsonl":
            assert ours == theirs
        else:
            assert [each["nats"] for each in ours[1:]] == pytest.approx([each["nats"] for each in theirs[1:]], rel=1e-5)
    assert sorted(path.name for path in (at_work / "ranks" / "model").iterdir()) == [
        "heldout-data.jsonl.jsonl",
        "spelling.jsonl",
    ]


@pytest.mark.slow
def test_a_mistake_on_two_ranks_ends_both(at_work: Path) -> None:
    ranks = start_ranks(2, "eval", "model", "-t", "gsm8k", *SMALL)
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [MISTAKE, MISTAKE]
    assert all("CHATWRIGHT_DATA" in each and "Traceback" not in each for each in printed)
