"""Reads nanochat's checkpoints: finds one by source, tag and step, and converts it, once, into a Hugging Face folder.

    ~/.cache/nanochat/                     (NANOCHAT_BASE_DIR)
        chatsft_checkpoints/d10/           a source's folder, a model tag
            model_000700.pt, meta_000700.json
        tokenizer/tokenizer.pkl, token_bytes.pt

Nothing of these files is executed (see `unpickling`). What the model's form of December 2025 doesn't have is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatwright.checkpoints.converted import ORIGIN_NAME, convert_once, is_converted
from chatwright.checkpoints.nanochat_names import config_of, hugging_face_weights
from chatwright.checkpoints.tiktoken_files import read_encoding, token_lengths, write_tokenizer_json
from chatwright.checkpoints.unpickling import load_torch_file
from chatwright.errors import ModelError
from chatwright.models.weights import save_weights

SOURCES = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
"""nanochat's names of its stages, and their folders (its checkpoint_manager)."""
PREFIX = "nanochat:"
_NAME = re.compile(r"nanochat:(?P<place>.+?)(@(?P<step>\d+))?", re.DOTALL)
_MODEL = re.compile(r"model_(\d+)\.pt")
_TAG = re.compile(r"d(\d+)")
_BOS, _END = "<|bos|>", "<|assistant_end|>"


@dataclass(frozen=True, slots=True)
class NanochatCheckpoint:
    """One checkpoint: the folder of its model tag, and its step."""

    folder: Path
    step: int

    @property
    def source(self) -> str:
        """What finds it again from any working folder."""
        return f"{PREFIX}{self.folder}@{self.step}"

    @property
    def model(self) -> Path:
        """The weights."""
        return self.folder / f"model_{self.step:06d}.pt"

    @property
    def meta(self) -> Path:
        """The settings it was made with."""
        return self.folder / f"meta_{self.step:06d}.json"


def find_checkpoint(name: str) -> NanochatCheckpoint | None:
    """The checkpoint that a name means; None where the name is none of nanochat's.

    Args:
        name: `nanochat:SOURCE`, `nanochat:SOURCE/TAG` (base, mid, sft, rl below NANOCHAT_BASE_DIR, or else
            ~/.cache/nanochat), `nanochat:FOLDER`, or the folder of a tag, or a `model_000700.pt` in it; `@700` chooses
            the step. Without a tag the deepest model is taken, without a step the last.

    Raises:
        ModelError: there is no such checkpoint, with what there is.
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        folder = _folder_of(match["place"])
        return _at_step(folder, int(match["step"]) if match["step"] else None)
    path = Path(name).expanduser()
    found = _MODEL.fullmatch(path.name)
    if found is not None and path.is_file():
        return _at_step(path.resolve().parent, int(found[1]))
    if path.is_dir() and not (path / "config.json").exists() and _steps(path):
        return _at_step(path.resolve(), None)
    return None


def base_folder() -> Path:
    """Where nanochat keeps everything: $NANOCHAT_BASE_DIR, else ~/.cache/nanochat."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()


def _folder_of(place: str) -> Path:
    """The folder of a model tag."""
    source, _, tag = place.partition("/")
    path = Path(place).expanduser()
    if source in SOURCES:  # whatever folders stand here: ./sft names one
        path = base_folder() / SOURCES[source]
        if tag:
            return path / tag
    if not path.is_dir() and "@" in place:
        wrong = place.rpartition("@")[2]
        raise ModelError(f"the step behind @ must be a number, found {wrong!r}", place=place, hint="such as @700")
    if not path.is_dir():
        named = ", ".join(PREFIX + name for name in SOURCES)
        hint = f"give nanochat:FOLDER, or one of {named} (below $NANOCHAT_BASE_DIR or ~/.cache/nanochat)"
        raise ModelError("there is no such folder of nanochat's checkpoints", place=str(path), hint=hint)
    path = path.resolve()
    if _steps(path):
        return path
    there = [name for name, folder in SOURCES.items() if (path / folder).is_dir()]
    if there:
        named = ", ".join(f"{PREFIX}{path / SOURCES[name]}" for name in there)
        raise ModelError("holds several stages", place=str(path), hint=f"choose one: {named}")
    return path / _deepest(path)


def _deepest(path: Path) -> str:
    """The tag of the largest depth, or the newest of other tags, as nanochat's `find_largest_model` chooses."""
    tags = [folder for folder in path.iterdir() if folder.is_dir() and _steps(folder)]
    if not tags:
        raise ModelError("holds no checkpoint of nanochat (model_000000.pt)", place=str(path))
    depths = [(int(match[1]), folder.name) for folder in tags if (match := _TAG.match(folder.name))]
    if depths:
        return max(depths)[1]
    return max(tags, key=lambda folder: folder.stat().st_mtime).name


def _steps(folder: Path) -> list[int]:
    """The steps whose weights are there; a file with another name, such as a backup, is none."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.glob("model_*.pt") if (match := _MODEL.fullmatch(path.name)))


def _at_step(folder: Path, step: int | None) -> NanochatCheckpoint:
    steps = _steps(folder)
    if not steps:
        near = [path.name for path in sorted(folder.parent.glob("*")) if _steps(path)]
        hint = f"there are: {', '.join(near)}" if near else None
        raise ModelError("holds no checkpoint of nanochat (model_000000.pt)", place=str(folder), hint=hint)
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps))
        raise ModelError(f"has no checkpoint of step {step}", place=str(folder), hint=f"its steps are {known}")
    return NanochatCheckpoint(folder, steps[-1] if step is None else step)


def convert_nanochat(checkpoint: NanochatCheckpoint, cache: Path) -> Path:
    """The Hugging Face folder of a checkpoint with its tokenizer, made on first use below `cache`, with one line.

    Raises:
        ModelError: a file is missing, damaged or asks to run code; the model has another form; names don't fit; the
            tokenizer is another model's.
    """
    tokenizer = _tokenizer_of(checkpoint)
    folder = cache / "models" / f"nanochat-{checkpoint.folder.name}-{_identity(checkpoint, tokenizer)[:12]}"
    if is_converted(folder):
        return folder
    place = checkpoint.model
    return convert_once(folder, place, lambda aside: _write(checkpoint, tokenizer, aside), str(place))


def _tokenizer_of(checkpoint: NanochatCheckpoint) -> Path:
    """tokenizer.pkl: in nanochat's own place, or beside the weights, as its published models have it."""
    folder = checkpoint.folder
    places = [folder.parent.parent / "tokenizer", folder, folder / "tokenizer"]
    found = [place / "tokenizer.pkl" for place in places if (place / "tokenizer.pkl").is_file()]
    if not found:
        looked = ", ".join(map(str, places))
        raise ModelError(f"its tokenizer.pkl is in none of {looked}", place=str(checkpoint.model), hint="copy it there")
    return found[0]


def _identity(checkpoint: NanochatCheckpoint, tokenizer: Path) -> str:
    digest = hashlib.sha256()
    for path in (checkpoint.model, checkpoint.meta, tokenizer):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a `meta_….json`.

    Raises:
        ModelError: it is missing, damaged, or has no model_config.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"can't be read: {error}", place=str(path), hint="it is saved beside model_….pt") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("model_config"), dict):
        raise ModelError("has no model_config", place=str(path))
    return meta


def _write(checkpoint: NanochatCheckpoint, tokenizer: Path, folder: Path) -> None:
    meta = read_meta(checkpoint.meta)
    config = config_of(meta["model_config"], str(checkpoint.meta))
    encoding = read_encoding(tokenizer)
    if encoding.vocab_size != config["vocab_size"]:
        message = f"the tokenizer has {encoding.vocab_size:,} tokens, the model {config['vocab_size']:,}"
        raise ModelError(message, place=str(tokenizer), hint="give the tokenizer that the model was trained with")
    _check_token_bytes(tokenizer.with_name("token_bytes.pt"), token_lengths(encoding))
    lacking = [name for name in (_BOS, _END) if name not in encoding.special]
    if lacking:
        raise ModelError(f"has no special token {', '.join(lacking)}", place=str(tokenizer))
    weights = hugging_face_weights(load_torch_file(checkpoint.model), config, str(checkpoint.model))
    save_weights(weights, folder)
    ids = {"bos_token_id": encoding.special[_BOS], "pad_token_id": encoding.special[_END]}
    config |= ids | {"eos_token_id": encoding.special[_END]}
    _write_json(folder / "config.json", config)
    # its engine stops at both
    _write_json(
        folder / "generation_config.json", {**ids, "eos_token_id": [encoding.special[_END], ids["bos_token_id"]]}
    )
    names = {"bos_token": _BOS, "eos_token": _END, "pad_token": _END}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    write_tokenizer_json(encoding, folder / "tokenizer.json", str(tokenizer))
    known: dict[str, Any] = {name: meta[name] for name in ("step", "val_bpb", "user_config") if name in meta}
    _write_json(folder / ORIGIN_NAME, {"source": checkpoint.model.name, "tag": checkpoint.folder.name, **known})


def _check_token_bytes(path: Path, lengths: list[int]) -> None:
    """nanochat's table of token lengths, where it is there, must be this tokenizer's."""
    if not path.is_file():
        return
    found = load_torch_file(path)
    if not isinstance(found, torch.Tensor) or found.tolist() != lengths:
        message = "isn't of the tokenizer.pkl beside it: its bytes a token are other ones"
        raise ModelError(message, place=str(path), hint="bring back the two files of one tokenizer, or remove this one")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
