"""One broken input: what stands in the folder, which command meets it, and what the message must say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
GOOD_LINE = json.dumps(GOOD).encode() + b"\n"
RECIPE = "model: model\ndata: [{path: %s}]\n"


class Case(NamedTuple):
    """A broken input.

    Args:
        name: of the case. file: of the data file, or of the recipe.
        make: writes what is needed into a folder.
        says: what the message must contain.
        commands: the command lines that must each fail so.
    """

    name: str
    make: Callable[[Path], Any]
    says: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


def data_commands(file: str) -> tuple[tuple[str, ...], ...]:
    """The commands that read data."""
    return (
        ("plan", "recipe.yaml"),
        ("convert", file, "out.jsonl", "--to", "messages"),
        ("inspect", file, "--model", "model"),
    )


def data(name: str, file: str, content: bytes, *says: str, entry: str = "") -> Case:
    """A data file of these bytes; the recipe and the commands name it."""

    def make(folder: Path) -> None:
        (folder / file).write_bytes(content)
        (folder / "recipe.yaml").write_text(RECIPE % (json.dumps(file) + entry), encoding="utf-8")

    commands = data_commands(file) if not entry else (("plan", "recipe.yaml"),)
    return Case(name, make, says, commands)


def line(name: str, row: Any, *says: str) -> Case:
    """A second line after a good one: bytes as they are, anything else as JSON; format `messages`."""
    content = row if isinstance(row, bytes) else json.dumps(row).encode()
    return data(name, "bad.jsonl", GOOD_LINE + content + b"\n", "bad.jsonl, row 1", *says, entry=", format: messages")


def message(name: str, item: Any, *says: str) -> Case:
    """A row whose second message is wrong."""
    return line(name, {"messages": [GOOD["messages"][0], item]}, *says)


def formatted(name: str, format: str, row: Any, *says: str) -> Case:
    """A row that is wrong in a named format."""
    content = json.dumps(row).encode() + b"\n"
    return data(name, "bad.jsonl", content, "bad.jsonl, row 0", *says, entry=f", format: {format}")


def recipe(name: str, text: str | bytes, *says: str, command: tuple[str, ...] = ("plan", "recipe.yaml")) -> Case:
    """A broken recipe beside a good data file `good.jsonl`."""

    def make(folder: Path) -> None:
        (folder / "good.jsonl").write_bytes(GOOD_LINE * 4)
        (folder / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())

    return Case(name, make, says, (command,))


def place(name: str, make: Callable[[Path], Any], path: str, *says: str) -> Case:
    """A path that can't be read; `make` puts it there."""

    def make_all(folder: Path) -> None:
        make(folder)
        (folder / "recipe.yaml").write_text(RECIPE % json.dumps(path), encoding="utf-8")

    return Case(name, make_all, says, data_commands(path))
