"""The commands as a user types them: the whole road on a tiny model, and one clear message for every mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from chatwright.cli.main import main
from tiny_model import make_tiny_model


class Result(NamedTuple):
    """What a command printed, and its exit status."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run a command in a folder of its own, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    torch.set_num_threads(1)
    make_tiny_model(tmp_path / "model")

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["chatwright", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run


def write_chats(path: Path, count: int = 48) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Tell me a colour, number {index}."},
                {"role": "assistant", "content": "Blue is a colour."},
            ]
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_whole_road(command: Command, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "my chats, 1.jsonl")
    assert command("init", str(data), "--model", "model").code == 0
    recipe = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "format: messages" in recipe and "heldout: {share: 0.05}" in recipe

    planned = json.loads(command("plan", "recipe.yaml", "--json").out)["plan"]
    assert planned["rows"] == 48
    assert planned["examples"] + planned["heldout_examples"] == 48
    assert planned["parameters"] == planned["trainable_parameters"]

    lines = command("inspect", "recipe.yaml", "--rows", "0:2", "--json").out.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["row"] for record in records] == [0, 1]
    assert records[0]["supervised"][0]["text"] == "Blue is a colour.<|im_end|>"
    shown = command("inspect", "recipe.yaml", "--rows", "0:2")
    assert "ledger" in shown.out and "✓" in shown.out

    settings = ["--set", "train.epochs=1", "--set", "out=run", "--set", "train.dtype=float32"]
    assert command("train", "recipe.yaml", *settings).code == 0
    again = command("train", "recipe.yaml", *settings)
    assert again.code == 2 and "holds a run already" in again.err and "--resume" in again.err

    reply = command("chat", "run", "--prompt", "Tell me a colour.", "--max-new-tokens", "4")
    assert reply.code == 0 and "you ›" not in reply.out
    traced = json.loads(command("trace", "run", "--step", "1", "--json").out)
    assert traced["examples"] and {"source", "row", "part", "loss"} <= set(traced["examples"][0])
    assert command("export", "run", "exported").code == 0
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "exported" / "generation_config.json").read_text())["eos_token_id"]


def test_two_models_answer_side_by_side(command: Command) -> None:
    result = command("chat", "model", "--compare", "model", "--prompt", "Hi", "--max-new-tokens", "3")
    assert result.code == 0
    assert result.out.count("model") >= 2


def test_data_in_another_format(command: Command, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 3)
    done = command("convert", "chats.jsonl", "chats.parquet", "--to", "sharegpt")
    assert done.code == 0 and "wrote chats.parquet: 3 of 3 rows" in done.out
    assert command("convert", "chats.parquet", "back.jsonl", "--to", "messages").code == 0
    rows = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    weighted = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 2}]}'
    (tmp_path / "weighted.jsonl").write_text(weighted, encoding="utf-8")
    refused = command("convert", "weighted.jsonl", "out.jsonl", "--to", "alpaca")
    assert refused.code == 2 and "weights: 1 rows" in refused.err and "--lossy" in refused.err
    kept = command("convert", "weighted.jsonl", "out.jsonl", "--to", "alpaca", "--lossy")
    assert kept.code == 0 and "1 rows lost what alpaca can't hold" in kept.err and "weights: 1 rows" in kept.err


BAD = [
    (("train", "none.yaml"), "shipped recipes are"),
    (("plan", "demo", "--set", "train.epoch=3"), "did you mean 'epochs'"),
    (("plan", "demo", "--set", "nonsense"), "write it as name=value"),
    (("inspect", "none.jsonl", "--model", "model"), "no such file"),
    (("inspect", "bad.jsonl", "--model", "model"), "bad.jsonl, row 1"),
    (("inspect", "bad.jsonl"), "--model is required"),
    (("inspect", "binary.jsonl", "--model", "model"), "binary.jsonl"),
    (("inspect", "empty.jsonl", "--model", "model"), "no rows"),
    (("inspect", "good.jsonl", "--model", "model", "--rows", "x:2"), "is no row (7) and no range"),
    (("inspect", "good.jsonl", "--model", "model", "--rows", "5:2"), "'5:2' holds no row"),
    (("inspect", "good.jsonl", "--model", "model", "--rows", "3:3"), "'3:3' holds no row"),
    (("chat", "nowhere", "--prompt", "x"), "there is no such model"),
    (("chat", "model", "--prompt", "x", "--temperature=-1"), "temperature"),
    (("trace", "nowhere", "--step", "1"), "holds no run"),
    (("export", "model", "good.jsonl"), "good.jsonl"),
    (("plan", "long.yaml"), "longer than max_tokens"),
    (("plan", "mute.yaml"), "has no token to train on"),
    (("plan", "future.yaml"), "recipe_version"),
    (("plan", "good.yaml", "--set", "optimizer.learning_rate=inf"), "learning_rate"),
    (("plan", "good.yaml", "--set", "train.epochs=1e300"), "less than or equal to 10000"),
    (("train", "good.yaml", "--set", "out=."), "other files in it"),
    (("init", "good.jsonl", "--model", "model", "--out", "no/such/recipe.yaml"), "no/such/recipe.yaml"),
    (("plan", "rank.yaml"), "matches no linear layer"),
    (("plan", "good.jsonl"), "chatwright init good.jsonl"),
    (("inspect", "good.jsonl", "--html", "p.html", "--run", "nope"), "--run: 'nope' is no run folder"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), BAD, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_a_mistake_gets_one_clear_message(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    write_chats(tmp_path / "good.jsonl", 4)
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    (tmp_path / "bad.jsonl").write_text(good + good.replace('"user"', '"usr"'), encoding="utf-8")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)))
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "mute.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n', encoding="utf-8")
    for name, lines in {
        "good": "data: [{path: good.jsonl}]\n",
        "long": "data: [{path: good.jsonl}]\nmax_tokens: 5\n",
        "mute": "data: [{path: mute.jsonl, format: messages}]\n",
        "future": "data: [{path: good.jsonl}]\nrecipe_version: 2\n",
        "rank": "data: [{path: good.jsonl}]\nadapter: {targets: [nothing_proj]}\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text("model: model\n" + lines, encoding="utf-8")
    result = command(*arguments)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err + result.out
    assert result.err.count("error:") == 1


def test_a_filter_may_stand_in_the_working_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_chats(tmp_path / "chats.jsonl", 6)
    (tmp_path / "my_own_rules.py").write_text("def keep(row):\n    return row.row % 2 == 0\n", encoding="utf-8")
    head = "model: model\npreparation: {workers: 2, rows_per_shard: 2}\ndata:\n"
    entry = "  - {path: chats.jsonl, filters: [{kind: empty_reply}, {kind: python, function: 'MODULE:keep'}]}\n"
    (tmp_path / "own.yaml").write_text(head + entry.replace("MODULE", "my_own_rules"), encoding="utf-8")
    planned = command("plan", "own.yaml", "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["plan"]["examples"] == 3
    (tmp_path / "own.yaml").write_text(head + entry.replace("MODULE", "not_here"), encoding="utf-8")
    absent = command("plan", "own.yaml")
    assert absent.code == 2 and "data.0.filters.1.function: 'not_here:keep': No module named" in absent.err
    assert "put not_here.py into" in absent.err


def test_init_says_what_it_has_not_read_and_what_does_not_fit(command: Command, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "word " * 300 + "{{name}}"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "long.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    made = command("init", "long.jsonl", "--model", "model")
    assert made.code == 0 and "1 rows hold placeholders" in made.err and "longer than the 256 tokens" in made.err
    recipe = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "max_tokens: 256" in recipe and "overflow: error  # 1 rows are longer than the model's context" in recipe
    assert "only the first" not in made.err
    planned = json.loads(command("plan", "recipe.yaml", "--json", "--set", "max_tokens=2000").out)["plan"]
    assert any("1 rows hold placeholders" in each for each in planned["warnings"])
    write_chats(tmp_path / "many.jsonl", 2001)
    many = command("init", "many.jsonl", "--model", "model", "--force")
    assert "only the first 2,000 rows were read" in many.err and "placeholders" not in many.err


def test_init_writes_a_recipe_for_plain_text(command: Command, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Once upon a time. " * 200, encoding="utf-8")
    assert command("init", "book.txt", "--model", "model").code == 0
    assert "format: text" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    planned = command("plan", "recipe.yaml", "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["plan"]["longest_example"] <= 256


def test_a_source_that_weights_repeat_is_named(command: Command, tmp_path: Path) -> None:
    write_chats(tmp_path / "few.jsonl", 2)
    write_chats(tmp_path / "many.jsonl", 40)
    for weight, told in ((1, True), (0.1, False)):
        entries = f"data: [{{path: few.jsonl, weight: {weight}}}, {{path: many.jsonl, weight: 1}}]\n"
        (tmp_path / "mixed.yaml").write_text(f"model: model\n{entries}", encoding="utf-8")
        warnings = json.loads(command("plan", "mixed.yaml", "--json").out)["plan"]["warnings"]
        assert any("few.jsonl is seen 20 times an epoch" in each for each in warnings) == told, warnings


def test_a_run_folder_is_inspected_by_its_own_recipe(command: Command, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 4)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("model: model\ndata: [{path: chats.jsonl}]\n", encoding="utf-8")
    shown = command("inspect", "run", "--rows", "0:1", "--json")
    assert shown.code == 0 and json.loads(shown.out)["row"] == 0, shown.err


def test_what_may_not_be_meant_is_said(command: Command, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    asked = {"role": "user", "content": "word " * 300}
    rows = [
        {"messages": [asked, {"role": "assistant", "content": ""}]},
        {"messages": [asked, {"role": "assistant", "content": "yes"}], "tools": [tool]},
    ]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = "model: model\ndata: [{path: odd.jsonl}]\ntemplate: {tools: add}\n"
    (tmp_path / "odd.yaml").write_text(recipe, encoding="utf-8")
    warnings = json.loads(command("plan", "odd.yaml", "--json").out)["plan"]["warnings"]
    assert len(warnings) == 3
    for words in (
        "1 rows offer tools",
        "no setting changes that",
        "1 rows have an empty reply",
        "the model was made for 256",
    ):
        assert any(words in warning for warning in warnings), warnings


def test_bytes_that_are_no_text_are_read_as_replacements(command: Command) -> None:
    assert command("chat", "model", "--prompt", "\udcff hello", "--max-new-tokens", "2").code == 0
