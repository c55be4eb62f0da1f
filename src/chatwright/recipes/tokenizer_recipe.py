"""A tokenizer from a recipe's data: trained, kept in a folder with its template, and compared with others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from chatwright import __version__
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.documents import scan_texts
from chatwright.conversations.schema import Conversation
from chatwright.errors import DataError, ModelError, UserError
from chatwright.preparation.prepare import plan_entry
from chatwright.preparation.rows import RowReader
from chatwright.recipes.new_model import tokenizer_folder
from chatwright.recipes.rendering import fingerprints
from chatwright.recipes.template_record import save_template_record
from chatwright.settings import Settings, build
from chatwright.tasks.task_data import data_folder
from chatwright.templates.template import TrainOn, load_template
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tokenizer_report import Compression, compare_compression
from chatwright.templates.tokenizer_training import TokenizerSettings, train_tokenizer

RECORD = "tokenizer_training.json"
GPT2 = "gpt2"
OWN_FILES = frozenset(
    {
        RECORD,
        "chat_template.jinja",
        "chatwright.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
"""All that a tokenizer's folder holds; one with anything else is never replaced."""
REPORT_BYTES = 2_000_000
"""As much held-out text is kept for the report."""


class TokenizerRecipe(Settings):
    """A tokenizer to train.

    Args:
        data: plain text, or conversations, of which every text counts.
        tokenizer: what it is like.
        heldout_share: of the texts, by their hash, that aren't counted but compressed for the report.
        beside: tokenizers to compare with: folders, models, or `gpt2`.
        out: the folder to make.
    """

    recipe_version: Literal[1] = 1
    stage: Literal["tokenizer"] = "tokenizer"
    data: tuple[DataSettings, ...] = Field(min_length=1)
    tokenizer: TokenizerSettings = TokenizerSettings()
    heldout_share: float = Field(0.01, ge=0, lt=1)
    beside: tuple[str, ...] = (GPT2,)
    out: str = "runs/tokenizer"

    def identity(self) -> str | None:
        """sha256 of what decides the tokenizer; None where the data can't be told from other data without reading."""
        found = fingerprints(self.data)
        if found is None:
            return None
        decisive = [__version__, found, self.tokenizer.model_dump(mode="json"), self.heldout_share]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """What came of it.

    Args:
        folder: the tokenizer's. made: now, or found as the same recipe had made it.
        compression: beside the others, on text that wasn't counted. notes: what else to know.
    """

    folder: Path
    made: bool
    texts: int
    characters: int
    vocab_size: int
    compression: tuple[Compression, ...]
    notes: tuple[str, ...] = ()


def make_tokenizer(
    recipe: TokenizerRecipe, *, force: bool = False, watch: Callable[[int], None] = lambda characters: None
) -> TrainedTokenizer:
    """Train, save and compare; a folder that the same recipe has made is left as it is.

    Args:
        force: replace the tokenizer that the folder holds.
        watch: called with the characters read so far.

    Raises:
        UserError: the folder holds another tokenizer, or (whatever `force` says) anything that is none.
        ModelError: a tokenizer to compare with isn't there. DataError: bad rows, or no text.
        TemplateError: too little text.
    """
    folder, identity = Path(recipe.out), recipe.identity()
    if (found := _made_before(folder, identity)) is not None and not force:
        return found
    _require_free(folder, force)
    others, notes = _others(recipe)
    texts = _Texts(recipe, watch)
    tokenizer = train_tokenizer(texts.counted(), recipe.tokenizer)
    rows = _compare({folder.name: tokenizer, **others}, texts, notes)
    if tokenizer.vocab_size < recipe.tokenizer.vocab_size:
        notes.append(f"the texts gave {tokenizer.vocab_size:,} tokens, not {recipe.tokenizer.vocab_size:,}: too few")
    made = TrainedTokenizer(
        folder, True, texts.number, texts.characters, tokenizer.vocab_size, tuple(rows), tuple(notes)
    )
    _save(made, recipe, tokenizer, identity)
    return made


def _require_free(folder: Path, force: bool) -> None:
    """Refuse to replace what isn't a tokenizer's folder, and that, too, unless it's asked for."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name} if folder.exists() else set()
    if not found:
        return
    if not folder.is_dir() or RECORD not in found or found - OWN_FILES:
        raise UserError("holds something else already", place=str(folder), hint="name another folder")
    if not force:
        hint = "name another folder, or replace it with --force"
        raise UserError("holds another tokenizer already", place=str(folder), hint=hint)


class _Texts:
    """The texts of a recipe's data; the held-out ones are put aside while the others are counted."""

    def __init__(self, recipe: TokenizerRecipe, watch: Callable[[int], None]) -> None:
        self.recipe, self.watch = recipe, watch
        self.number = self.characters = self.kept_bytes = 0
        self.heldout: list[str] = []
        self.first: list[str] = []

    def counted(self) -> Iterator[str]:
        """Every text that isn't held out."""
        for entry in self.recipe.data:
            for text in entry_texts(entry):
                if self.kept_bytes < REPORT_BYTES and _share(text) < self.recipe.heldout_share:
                    self.heldout.append(text)
                    self.kept_bytes += len(text.encode())
                    continue
                if len(self.first) < 50:
                    self.first.append(text[:20_000])
                self.number += 1
                self.characters += len(text)
                self.watch(self.characters)
                yield text


def entry_texts(entry: DataSettings, seed: int = 0) -> Iterator[str]:
    """Every text of a data entry: documents whole, of conversations each part of each message.

    Raises:
        DataError: a bad row, or no rows.
    """
    planned = plan_entry(entry, entry.source_name, 0, TrainOn.EVERYTHING, rows_per_shard=1 << 40, seed=seed)
    for conversation in RowReader(planned.work, seed).read(planned.read()):
        yield from _texts_of(conversation)


def _texts_of(conversation: Conversation) -> Iterator[str]:
    return (part.text for message in conversation.messages for part in message.parts if part.text)


def _share(text: str) -> float:
    """Where in [0, 1) a text's hash falls."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _others(recipe: TokenizerRecipe) -> tuple[dict[str, TextTokenizer], list[str]]:
    """The tokenizers to compare with, and a note where GPT-2's can't be had."""
    others, notes = {}, []
    for each in recipe.beside:
        try:
            others[each] = named_tokenizer(each)
        except ModelError as error:
            if each != GPT2:
                raise
            notes.append(f"not compared with {each}: {error.message}")
    return others, notes


def _compare(tokenizers: dict[str, TextTokenizer], texts: _Texts, notes: list[str]) -> list[Compression]:
    name, sample = "held-out text", texts.heldout
    if not sample:
        name, sample = "text it was trained on", texts.first
        notes.append("no text was held out for the comparison: it is made on text that the tokenizer was trained on")
    return compare_compression(tokenizers, {name: sample})


def named_tokenizer(name: str) -> TextTokenizer:
    """A tokenizer by folder, model, or `gpt2`: below `CHATWRIGHT_DATA` (tokenizers/gpt2), else from the hub.

    Raises:
        ModelError: it can't be had. TemplateError: its files are damaged.
    """
    if name == GPT2 and not Path(GPT2).is_dir():
        here = data_folder()
        if here is not None and (here / "tokenizers" / GPT2 / "tokenizer.json").is_file():
            return TextTokenizer.load(here / "tokenizers" / GPT2)
        return TextTokenizer.load(_hub_tokenizer("openai-community/gpt2"))
    try:
        return TextTokenizer.load(tokenizer_folder(name))
    except ModelError as error:
        raise ModelError(error.message, place=name, hint=error.hint) from error


def _hub_tokenizer(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["tokenizer*.json", "special_tokens_map.json"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"it can't be downloaded: {reason}", place=name, hint="name its folder by --beside") from error


def _save(made: TrainedTokenizer, recipe: TokenizerRecipe, tokenizer: TextTokenizer, identity: str | None) -> None:
    """Write aside and rename, so that a folder is whole or absent."""
    made.folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=made.folder.parent, prefix=".making-"))
    try:
        template = load_template(tokenizer, recipe.tokenizer.template)
        save_template_record(aside, template)
        record: dict[str, Any] = {
            "identity": identity,
            "texts": made.texts,
            "characters": made.characters,
            "vocab_size": made.vocab_size,
            "compression": [each.to_dict() for each in made.compression],
            "notes": list(made.notes),
            "recipe": recipe.model_dump(mode="json"),
        }
        (aside / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if made.folder.is_dir():
            shutil.rmtree(made.folder)
        os.replace(aside, made.folder)  # noqa: PTH105 - a folder that took its place meanwhile is an error, not replaced
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _made_before(folder: Path, identity: str | None) -> TrainedTokenizer | None:
    path = folder / RECORD
    if identity is None or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [{k: v for k, v in row.items() if k != "bytes_per_token"} for row in record["compression"]]
        if record["identity"] != identity:
            return None
        counts = (record["texts"], record["characters"], record["vocab_size"])
        return TrainedTokenizer(
            folder, False, *counts, tuple(Compression(**row) for row in rows), tuple(record["notes"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"can't be read: {error}", place=str(path), hint="make it anew with --force") from None


def text_entry(path: str, text_field: str = "text", text_by: str = "file") -> DataSettings:
    """A data entry of every text of a file or folder: plain text, rows whose text stands in `text_field`, or
    conversations, where the first row has no such field.

    Raises:
        DataError: the source is missing.
    """
    first = next(iter(scan_texts(path)), None)
    value = first.value if first is not None and not first.error else None
    entry: dict[str, Any] = {"path": path, "on_bad_row": "skip"}
    if isinstance(value, dict) and text_field not in value:
        return build(DataSettings, entry, path)
    entry["format"] = "text"
    place = {"text_field": text_field} if isinstance(value, dict) else {"text_by": text_by}
    return build(DataSettings, entry | place, path)


def read_texts(sources: Sequence[str]) -> dict[str, list[str]]:
    """The texts of files and folders by name, to measure tokenizers on.

    Raises:
        DataError: a source is missing or empty.
    """
    found = {source: list(entry_texts(text_entry(source))) for source in sources}
    for source, texts in found.items():
        if not texts:
            raise DataError("there is no text", source=source, hint="name a file that has some")
    return found
