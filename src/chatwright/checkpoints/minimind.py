"""Reads MiniMind's `.pth` files: converts one, once, into a Hugging Face folder in the cache.

The file holds bare weights in half precision, so the shapes come from the weights, the rest from the generation of
MiniMind that their names tell (`minimind_names`), or from `<file>.json` beside it. What is missing or left over is an
error. Weights become float32: training goes on from there at full precision.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatwright.checkpoints.converted import ORIGIN_NAME, convert_once, is_converted
from chatwright.checkpoints.minimind_names import (
    BUFFERS,
    EMBED,
    HEAD,
    from_minimind_lm,
    halves_from_pairs,
    is_minimind_lm,
    to_minimind_lm,
)
from chatwright.checkpoints.minimind_shapes import infer_config
from chatwright.checkpoints.unpickling import load_torch_file
from chatwright.errors import ModelError
from chatwright.models.families import config_from_hf, config_to_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import save_weights
from chatwright.templates.tokenizer import TextTokenizer

_NAME = re.compile(r"(?P<file>.+\.pth)(:(?P<tokenizer>.+))?", re.DOTALL)
_WRAPPERS = ("module.", "_orig_mod.")
_TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "*.jinja", "chatwright.json")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class PthName:
    """A `.pth` file as a user names it.

    Args:
        file: the weights. tokenizer: the folder named behind a colon, or None.
    """

    file: Path
    tokenizer: Path | None

    @property
    def source(self) -> str:
        """What finds the same file and tokenizer from any working folder."""
        return f"{self.file.resolve()}" + (f":{self.tokenizer.resolve()}" if self.tokenizer else "")


def read_pth_name(name: str) -> PthName | None:
    """`FILE.pth` or `FILE.pth:TOKENIZER_FOLDER`; None if it names no file of this kind."""
    match = _NAME.fullmatch(name)
    if match is None or not Path(match["file"]).expanduser().is_file():
        return None
    tokenizer = Path(match["tokenizer"]).expanduser() if match["tokenizer"] else None
    return PthName(Path(match["file"]).expanduser(), tokenizer)


def convert_minimind(name: PthName, cache: Path) -> Path:
    """The Hugging Face folder of a `.pth` file with its tokenizer, made on first use below `cache`, with one line.

    Raises:
        ModelError: the file isn't MiniMind's, lacks weights or has others, or there is no tokenizer for it.
    """
    path = name.file.resolve()
    try:
        tokenizer = find_tokenizer(name)
    except ModelError:
        read_weights(path)  # a damaged file, or one of something else, isn't helped by a tokenizer
        raise
    folder = cache / "models" / f"{path.stem}-{_identity(path, tokenizer)[:12]}"
    if is_converted(folder):
        return folder
    weights = read_weights(path)
    config = settle_config(weights, path, TextTokenizer.load(tokenizer))
    return convert_once(folder, path, lambda aside: _write(aside, weights, config, tokenizer, path.name))


def find_tokenizer(name: PthName) -> Path:
    """The tokenizer's folder: as named, else what our export wrote beside the file, else MiniMind's own places.

    Raises:
        ModelError: none has a tokenizer.json.
    """
    path = name.file.resolve()
    places = [path.with_name(f"{path.stem}_tokenizer"), path.parent]
    places += [path.parent.parent / "model", path.parent.parent / "model" / "minimind_tokenizer"]
    if name.tokenizer is not None:
        places = [name.tokenizer.resolve()]
    found = [place for place in places if (place / "tokenizer.json").is_file()]
    if not found:
        raise ModelError(
            f"no tokenizer.json for these weights in {', '.join(map(str, places))}",
            place=str(name.file),
            hint=f"name its folder behind a colon: {name.file}:FOLDER (MiniMind keeps it in `model/`)",
        )
    return found[0]


def _identity(path: Path, tokenizer: Path) -> str:
    """sha256 of the weights, of what is said beside them, and of the tokenizer's files."""
    digest = hashlib.sha256()
    for file in [path, _beside(path), *sorted(_tokenizer_files(tokenizer))]:
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(f"{file.name}\n".encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _tokenizer_files(folder: Path) -> set[Path]:
    return {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a `.pth` file by the names they have in it; of a `…_resume.pth`, its model.

    Raises:
        ModelError: it holds no weights by name.
    """
    content = load_torch_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]  # MiniMind's file to resume from: the optimizer's state stays behind
    if not isinstance(content, Mapping) or not content:
        raise ModelError("holds no weights by name", place=str(path), hint="give a file such as out/full_sft_512.pth")
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ModelError(f"holds {name!r}, which is no tensor", place=str(path))
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        weights[name] = tensor
    if any(".lora." in name for name in weights):
        hint = "convert the full weights that MiniMind's merge_lora writes"
        raise ModelError("holds a LoRA of MiniMind, not a whole model", place=str(path), hint=hint)
    return weights


def settle_config(weights: dict[str, torch.Tensor], path: Path, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The Hugging Face config of weights; they get our names and order of rows in place.

    Raises:
        ModelError: what is missing, left over or of another shape, all at once.
    """
    older = is_minimind_lm(list(weights))
    config = infer_config(weights, _said_beside(path), str(path))
    buffers = [name for name in weights if name.endswith(BUFFERS)]
    for name in buffers:
        del weights[name]
    unexpected = _rename(weights) if older else []
    config["tie_word_embeddings"] = _settle_head(weights)
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    decoder = config_from_hf(config | special)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in CausalLM(decoder).state_dict().items()}
    _check(weights, expected, unexpected, path, older=older)
    if tokenizer.vocab_size > decoder.vocab_size:
        raise ModelError(
            f"has {decoder.vocab_size:,} rows of embedding, but the tokenizer found for it has "
            f"{tokenizer.vocab_size:,} ids",
            place=str(path),
            hint=f"name the right one behind a colon: {path.name}:FOLDER",
        )
    if older:
        for name in weights:
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = decoder.num_heads if "q_proj" in name else decoder.num_kv_heads
                weights[name] = halves_from_pairs(weights[name], heads)
    return config_to_hf(decoder)


def _said_beside(path: Path) -> dict[str, Any]:
    beside = _beside(path)
    if not beside.is_file():
        return {}
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"can't be read: {error}", place=str(beside)) from None
    if not isinstance(said, dict):
        raise ModelError(f"must hold one JSON object, found {type(said).__name__}", place=str(beside))
    return said


def _rename(weights: dict[str, torch.Tensor]) -> list[str]:
    """Give `MiniMindLM`'s weights Hugging Face's names; returns the names that it has no weight for."""
    unexpected = []
    for name in list(weights):
        ours = from_minimind_lm(name)
        tensor = weights.pop(name)
        if ours is None:
            unexpected.append(name)
        else:
            weights[ours] = tensor
    return unexpected


def _settle_head(weights: dict[str, torch.Tensor]) -> bool:
    """Whether head and embedding are one; a repeated head is dropped."""
    head = weights.get(HEAD)
    if head is None:
        return True
    embed = weights.setdefault(EMBED, head)
    tied = torch.equal(head, embed)
    if tied:
        del weights[HEAD]
    return tied


def _check(
    weights: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...]],
    unexpected: list[str],
    path: Path,
    *,
    older: bool,
) -> None:
    def shown(names: list[str]) -> str:
        written = [(to_minimind_lm(name) or name) if older else name for name in names]
        return ", ".join(written[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

    missing = [name for name in expected if name not in weights]
    unexpected = unexpected + [name for name in weights if name not in expected]
    problems = [f"{len(missing)} missing: {shown(missing)}"] if missing else []
    problems += [f"{len(unexpected)} unexpected: {shown(unexpected)}"] if unexpected else []
    for name, shape in expected.items():
        if name in weights and tuple(weights[name].shape) != shape:
            problems.append(f"{shown([name])} is {list(weights[name].shape)}, where {list(shape)} fits the others")
    if problems:
        raise ModelError(
            "the weights don't make a MiniMind model:\n  " + "\n  ".join(problems),
            place=str(path),
            hint=f"a shape that the weights don't tell can be given in {_beside(path).name}, such as "
            '{"num_attention_heads": 16}',
        )


def _write(
    folder: Path, weights: Mapping[str, torch.Tensor], config: dict[str, Any], tokenizer: Path, name: str
) -> None:
    save_weights({key: tensor.to(torch.float32) for key, tensor in weights.items()}, folder)
    for file in _tokenizer_files(tokenizer):
        shutil.copyfile(file, folder / file.name)
    _write_json(folder / "config.json", {**config, "dtype": "float32"})
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})
    origin = {"source": name, "dtype": " and ".join(dtypes), "note": "MiniMind weights, expanded to float32"}
    _write_json(folder / ORIGIN_NAME, origin)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
