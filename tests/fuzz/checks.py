"""What must hold for any input: an answer or a `UserError`, never another exception; and nothing lost in writing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from inputs import add_test_folders

from chatwright.conversations.converters import CONVERTERS, detect_format
from chatwright.conversations.converting import losses
from chatwright.conversations.preferences import PREFERENCE_CONVERTERS
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import load_conversations
from chatwright.conversations.writers import WRITERS, json_text
from chatwright.errors import UserError
from chatwright.recipes.run_settings import RunSettings
from chatwright.settings import build, parse_yaml
from chatwright.templates.template import Template

add_test_folders()

from template_families import family_template, native_template  # noqa: E402  (the folder is added above)

FAMILIES = ("qwen2.5", "qwen3", "llama3", "mistral")


@cache
def templates() -> list[Template]:
    """Templates with tools of each grammar, and native ones."""
    return [*(family_template(name) for name in FAMILIES), native_template("nanochat"), native_template("chatml")]


def check_row(row: Any) -> None:
    """Every converter reads a row or refuses it; what it reads can be written and rendered, or is refused."""
    for name, converter in {**CONVERTERS, **PREFERENCE_CONVERTERS}.items():
        try:
            found = converter(row, "fuzz", 0)
        except UserError as error:
            _require_short(error)
            continue
        if isinstance(found, Conversation):
            _check_written(found, name)
            _check_rendered(found)
    try:
        detect_format([row], "fuzz")
    except UserError as error:
        _require_short(error)


def _require_short(error: UserError) -> None:
    text = str(error)
    text.encode()  # a message must be printable
    assert len(text) < 20_000, f"a message of {len(text):,} characters"


def _check_written(conversation: Conversation, name: str) -> None:
    for target, writer in WRITERS.items():
        row = writer(conversation)
        try:
            lost = losses(conversation, row, target)
        except UserError:
            continue
        text = json_text(row)
        assert text is not None, f"{target} wrote what JSON can't hold, from {name}"
        assert losses(conversation, json.loads(text), target) == lost
        if target == "messages":
            unheld = [reason for reason in lost if not reason.startswith("the field")]
            assert not unheld, f"messages lost {unheld}, from {name}"


def _check_rendered(conversation: Conversation) -> None:
    for template in templates():
        try:
            examples = template.render(conversation)
        except UserError as error:
            _require_short(error)
            continue
        for example in examples:
            assert len(example.ids) == len(example.weights)


def check_file(ending: str, content: bytes) -> None:
    """A file is read, its bad rows counted, or it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fuzz{ending}"
        path.write_bytes(content)
        for on_bad_row in ("error", "skip"):
            try:
                loaded = load_conversations(path, on_bad_row=on_bad_row)
            except UserError as error:
                _require_short(error)
                continue
            assert loaded.num_rows == len(loaded.conversations) + len(loaded.skipped)


def check_recipe(text: str) -> None:
    """A recipe is read or refused."""
    try:
        data = parse_yaml(text, "fuzz")
        if isinstance(data, dict):
            build(RunSettings, data, "fuzz")
    except UserError as error:
        _require_short(error)


CHECKS: dict[str, Callable[..., None]] = {"row": check_row, "file": check_file, "recipe": check_recipe}
