"""`chatwright inspect` as a user types it: samples by seed, the page, and losses where a run exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_commands import Command, command, write_chats

__all__ = ["command"]

RUN = ("--set", "train.dtype=float32", "--set", "train.max_steps=2", "--set", "optimizer.learning_rate=1e-2")


def write_recipe(folder: Path, **changes: Any) -> None:
    chats = write_chats(folder / "chats.jsonl")
    recipe = {"model": "model", "data": [{"path": str(chats)}], "packing": {"tokens_per_pack": 256}} | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"max_tokens": 256, "out": "run"} | recipe), encoding="utf-8")


def facts(page: Path) -> list[dict[str, Any]]:
    """What the page's script is given of each shown example."""
    text = re.search(r'id="facts">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert text is not None
    found: list[dict[str, Any]] = json.loads(text[1])["examples"]
    return found


def rows_of(page: Path) -> list[int]:
    return [int(row) for row in re.findall(r'id="row-chats.jsonl-(\d+)"', page.read_text(encoding="utf-8"))]


def test_a_sample_is_fixed_by_its_seed(command: Command, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    drawn = [command("inspect", "recipe.yaml", "--sample", "3", "--seed", seed, "--json").out for seed in "001"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0].splitlines()) == 3
    assert "row 4" in command("inspect", "recipe.yaml", "--sample", "48").out


def test_the_page_of_a_data_file(command: Command, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl")
    result = command("inspect", "chats.jsonl", "--model", "model", "--html", "page.html", "--rows", "2:5")
    assert result.code == 0, result.err
    assert rows_of(tmp_path / "page.html") == [2, 3, 4]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "3 of 48 training examples are shown: rows 2:5 of every source." in page
    assert "before" not in facts(tmp_path / "page.html")[0]


def test_lint_points_at_rows_and_the_page_shows_them(command: Command, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    silent = {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": ""}]}
    with (tmp_path / "chats.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(silent) + "\n")
    assert command("inspect", "recipe.yaml", "--html", "page.html", "--rows", "0:1").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 48 in rows_of(tmp_path / "page.html")
    lint = page[page.index('<section id="findings">') : page.index('<section id="packing">')]
    assert "rule empty_reply" in lint and '<a href="#row-chats.jsonl-48"' in lint


def test_a_mistake_leaves_no_page_behind(command: Command, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "chats.jsonl").write_text('{"messages": 3}\n', encoding="utf-8")
    assert command("inspect", "recipe.yaml", "--html", "page.html").code == 2
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "page.html").write_text("an older page", encoding="utf-8")
    assert command("inspect", "recipe.yaml", "--html", "page.html").code == 2
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "an older page"
    assert command("inspect", "recipe.yaml", "--html", "absent/page.html").code == 2
    assert not (tmp_path / "absent").exists()


def test_held_out_and_overlong_rows_are_shown_as_such(command: Command, tmp_path: Path) -> None:
    write_recipe(tmp_path, heldout={"share": 0.25})
    long = {"messages": [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "yes"}]}
    with (tmp_path / "chats.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(long) + "\n")
    assert command("inspect", "recipe.yaml", "--html", "page.html", "--rows", "0:49").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("held out: measured on, never trained on") == 12
    assert page.count("more than max_tokens = 256</p>") == 1


def test_losses_are_the_trainers_own(command: Command, tmp_path: Path) -> None:
    write_recipe(tmp_path, packing={"tokens_per_pack": 256, "packs_per_step": 2}, max_tokens=128)
    assert command("train", "recipe.yaml", *RUN).code == 0
    traced = json.loads(command("trace", "run", "--step", "1", "--json").out)["examples"]
    result = command("inspect", "recipe.yaml", "--html", "page.html", "--rows", "0:48", *RUN[:2])
    assert result.code == 0, result.err
    shown = dict(zip(rows_of(tmp_path / "page.html"), facts(tmp_path / "page.html"), strict=True))
    assert traced
    for example in traced:
        before = shown[example["row"]]["before"].values()
        assert len(before) == example["supervised_tokens"]
        assert sum(before) / len(before) == pytest.approx(example["loss"], abs=2e-3)
        after = shown[example["row"]]["after"].values()
        assert sum(after) < sum(before)


def test_a_named_run_lends_its_recipe_to_other_data(command: Command, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    assert command("train", "recipe.yaml", *RUN).code == 0
    write_chats(tmp_path / "other.jsonl", 3)
    result = command("inspect", "other.jsonl", "--run", "run", "--html", "page.html")
    assert result.code == 0, result.err
    assert "after" in facts(tmp_path / "page.html")[0]


def test_losses_under_another_template_are_refused(command: Command, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    assert command("train", "recipe.yaml", *RUN).code == 0
    other = ("--html", "page.html", "--set", "template.format=chatml", "--set", "template.default_system=Hello.")
    named = command("inspect", "recipe.yaml", *other, "--run", "run")
    assert named.code != 0 and "was trained with another template" in named.err
    found = command("inspect", "recipe.yaml", *other)
    assert found.code == 0 and "the page shows no losses" in found.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rows", "0:2", "--sample", "2"), "--rows and --sample"),
        (("--json", "--html", "page.html"), "--json and --html"),
        (("--run", "run"), "--run: losses are shown on the page only"),
        (("--html", "no/such/page.html"), "no/such/page.html"),
        (("--html", "page.html", "--run", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_gets_one_clear_message(
    command: Command, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    write_recipe(tmp_path)
    result = command("inspect", "recipe.yaml", *options)
    assert result.code != 0 and words in result.err and "Traceback" not in result.err
