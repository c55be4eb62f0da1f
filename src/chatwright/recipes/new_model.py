"""A model that begins from nothing: a preset's shapes and a tokenizer, as a folder without weights.

The folder looks like any model's, so that planning, templates and text set-up need to know nothing of it; the weights
are drawn when the model is built (`models.weights.init_model`), by the run's seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from chatwright.checkpoints.imports import ResolvedModel, cache_folder, resolve_model
from chatwright.errors import ConfigError, ModelError
from chatwright.models.config import DecoderConfig
from chatwright.models.families import config_to_hf
from chatwright.models.presets import preset_config
from chatwright.recipes.new_model_settings import NewModelSettings
from chatwright.recipes.template_record import RECORD_NAME, save_template_record
from chatwright.templates.template import TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tokenizer_training import TOKENIZER_PRESETS, byte_tokenizer

_BYTES = "bytes:"


def tokenizer_folder(name: str) -> Path:
    """The folder of a tokenizer that is named by itself, or by a model that has it.

    Raises:
        ModelError: there is neither.
    """
    if name.startswith(_BYTES):
        return _byte_tokenizer_folder(name.removeprefix(_BYTES))
    path = Path(os.path.expandvars(name)).expanduser()
    if (path / "tokenizer.json").is_file():
        return path
    try:
        return resolve_model(os.path.expandvars(name)).text_folder
    except ModelError as error:
        hint = "give a folder with tokenizer.json (`chatwright tokenizer train` makes one), or a model that has one"
        raise ModelError("there is no such tokenizer", place=f"new_model.tokenizer: {name}", hint=hint) from error


def new_model_folder(settings: NewModelSettings, cache: Path | None = None) -> ResolvedModel:
    """The folder of a model to make: config.json and the tokenizer's files, in the cache by their content.

    Raises:
        ConfigError: the preset or an option is unknown. ModelError, TemplateError: the tokenizer can't be had.
    """
    source = tokenizer_folder(settings.tokenizer)
    tokenizer = TextTokenizer.load(source)
    config = config_to_hf(new_config(settings, tokenizer.vocab_size))
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    text = json.dumps({**config, **special}, indent=2, sort_keys=True) + "\n"
    record = (source / RECORD_NAME).read_bytes() if (source / RECORD_NAME).is_file() else b""
    key = hashlib.sha256(text.encode() + tokenizer.identity.encode() + _template_text(tokenizer) + record).hexdigest()
    folder = cache_folder(cache) / "new-models" / key[:32]
    if not folder.is_dir():
        _write(folder, text, tokenizer, source)
    return ResolvedModel(folder, settings.name, new=True)


def new_config(settings: NewModelSettings, tokens: int) -> DecoderConfig:
    """The preset's shapes for a tokenizer of so many tokens.

    Raises:
        ConfigError: the preset or an option is unknown or impossible.
    """
    rows = settings.vocab_size or tokens
    if rows < tokens:
        raise ConfigError([f"new_model.vocab_size: {rows:,} rows are too few for the tokenizer's {tokens:,} tokens"])
    try:
        config = preset_config(settings.preset, rows, settings.options)
    except ModelError as error:
        raise ConfigError([f"new_model: {error.message}"]) from None
    return config if rows == tokens else replace(config, tokenizer_vocab_size=tokens)


def _byte_tokenizer_folder(preset: str) -> Path:
    """A tokenizer of bytes in the cache, with the template that speaks its control tokens."""
    tokenizer = byte_tokenizer(preset)
    folder = cache_folder() / "tokenizers" / f"bytes-{preset}-{tokenizer.identity[:12]}"
    if not folder.is_dir():
        template = TemplateSettings(format=TOKENIZER_PRESETS[preset].format)
        _into_place(folder, lambda aside: save_template_record(aside, load_template(tokenizer, template)))
    return folder


def _template_text(tokenizer: TextTokenizer) -> bytes:
    return json.dumps(tokenizer.chat_templates, sort_keys=True).encode()


def _write(folder: Path, config: str, tokenizer: TextTokenizer, source: Path) -> None:
    def write(aside: Path) -> None:
        tokenizer.save(aside, chat_template=tokenizer.chat_template)
        (aside / "config.json").write_text(config, encoding="utf-8")
        if (source / RECORD_NAME).is_file():
            shutil.copyfile(source / RECORD_NAME, aside / RECORD_NAME)

    _into_place(folder, write)


def _into_place(folder: Path, write: Callable[[Path], None]) -> None:
    """Write aside and rename; where another process was quicker, its folder holds the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        write(aside)
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
