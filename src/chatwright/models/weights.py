"""Model folders: safetensors and config.json in and out, in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig
from chatwright.models.families import config_from_hf, config_to_hf
from chatwright.models.initialization import initialize
from chatwright.models.transformer import CausalLM

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Gemma 3 with vision: where the text model's weights stand (transformers 4 early, 4.52+ and 5), and what is left out.
_TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def read_config(folder: Path | str) -> dict[str, Any]:
    """The content of `folder/config.json`.

    Raises:
        ModelError: if there is none, or it is no JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            "no config.json here", place=str(folder), hint="give the folder of a model in Hugging Face's layout"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"can't be read as JSON: {error}", place=str(path)) from None
    if not isinstance(raw, dict):
        raise ModelError(f"must be a JSON object, found {type(raw).__name__}", place=str(path))
    return raw


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    make: Callable[[DecoderConfig], CausalLM] = CausalLM,
) -> CausalLM:
    """Load a model folder into our decoder; each tensor exists once, already in `dtype` on `device`.

    Args:
        make: what it becomes, where that isn't a language model.

    Raises:
        ModelError: the folder holds a model that only scores; for an unknown family, unreadable files, or missing,
            unexpected or misshapen tensors, all listed.
    """
    folder = Path(folder)
    raw = read_config(folder)
    if make is CausalLM and is_classifier(raw):
        raise ModelError(
            "this is a reward model: it scores replies and writes none",
            place=str(folder),
            hint=f"chatwright reward {folder} FILE scores the conversations of a file",
        )
    config = config_from_hf(raw)
    with torch.device("meta"):
        model = make(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    loaded: dict[str, torch.Tensor] = {}
    unexpected: list[str] = []
    for path in weight_files(folder):
        for name, tensor in _read_tensors(path, dtype, device):
            (loaded.__setitem__(name, tensor) if name in expected or name == _HEAD else unexpected.append(name))
    _settle_tied_head(loaded, config, folder)
    _check_complete(loaded, expected, unexpected, folder)
    model.load_state_dict(loaded, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model that scores texts, such as a reward model."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model folder's weights.

    Raises:
        ModelError: if there are none, or the index names a file that isn't there.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"the index names files that aren't here: {', '.join(missing)}", place=str(index))
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    raise ModelError(
        f"neither {SINGLE_NAME} nor {INDEX_NAME} here",
        place=str(folder),
        hint="convert older .bin or .pth weights to safetensors first",
    )


def _read_tensors(path: Path, dtype: torch.dtype, device: torch.device | str) -> Iterable[tuple[str, torch.Tensor]]:
    """Each tensor of one file under our names; those of a vision tower and saved rotary buffers are left out."""
    try:
        with safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118 - safe_open is no dict
                if stored.startswith(_VISION_PREFIXES) or stored.endswith("rotary_emb.inv_freq"):
                    continue
                name = stored
                for prefix, ours in _TEXT_PREFIXES:
                    if stored.startswith(prefix):
                        name = ours + stored.removeprefix(prefix)
                yield name, file.get_tensor(stored).to(device=device, dtype=dtype)
    except SafetensorError as error:
        raise ModelError(f"can't be read: {error}", place=str(path), hint="download or copy the file again") from None


def _settle_tied_head(loaded: dict[str, torch.Tensor], config: DecoderConfig, folder: Path) -> None:
    """Drop a stored head that repeats a tied embedding; refuse one that differs from it."""
    if not config.tied or _HEAD not in loaded:
        return
    head = loaded.pop(_HEAD)
    if _EMBED in loaded and not torch.equal(head, loaded[_EMBED]):
        raise ModelError(
            "config.json ties the output head to the embedding, but the stored lm_head.weight differs from it",
            place=str(folder),
            hint='set "tie_word_embeddings": false in config.json if the stored head is the trained one',
        )


def _check_complete(
    loaded: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], unexpected: list[str], folder: Path
) -> None:
    problems = []
    missing = [name for name in expected if name not in loaded]
    unexpected = unexpected + [name for name in loaded if name not in expected]
    for title, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            problems.append(f"{len(names)} {title}: {shown}")
    for name, shape in expected.items():
        if name in loaded and tuple(loaded[name].shape) != shape:
            problems.append(f"{name} is {list(loaded[name].shape)} in the file, but config.json says {list(shape)}")
    if problems:
        raise ModelError(
            "the weights don't fit config.json:\n  " + "\n  ".join(problems),
            place=str(folder),
            hint="check that config.json belongs to these weights",
        )


def init_model(config: DecoderConfig, seed: int, dtype: torch.dtype = torch.float32) -> CausalLM:
    """A fresh model whose weights are drawn as `config.initialization` says, one after the other from one seed."""
    with torch.device("meta"):
        model = CausalLM(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        initialize(name, parameter, config, generator)
    return model.to(dtype)


def save_weights(
    named_tensors: Mapping[str, torch.Tensor], folder: Path | str, max_shard_bytes: int = 5 * 2**30
) -> list[Path]:
    """Write tensors as model.safetensors, or as numbered shards with an index when they exceed one shard.

    Returns:
        the files written, the index last.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in named_tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    count = len(shards)
    names = [SINGLE_NAME] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    written = []
    for file_name, shard in zip(names, shards, strict=True):
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in shard.items()}
        save_file(ready, folder / file_name, metadata={"format": "pt"})
        written.append(folder / file_name)
    if count > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in named_tensors.values())
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        written.append(folder / INDEX_NAME)
    return written


def save_model(
    model: nn.Module, folder: Path | str, dtype: torch.dtype | None = None, max_shard_bytes: int = 5 * 2**30
) -> list[Path]:
    """Write config.json and the weights so that transformers loads the folder.

    Args:
        model: a `CausalLM` without unmerged adapters, or a `ForeignLM`, which saves itself.
        dtype: of the stored weights; None keeps the model's.

    Raises:
        ModelError: if the model holds tensors that a plain model hasn't, such as an adapter's.
    """
    if not isinstance(model, CausalLM):
        return model.save(folder, dtype, max_shard_bytes)  # type: ignore[operator]
    folder = Path(folder)
    with torch.device("meta"):
        plain = CausalLM(model.config).state_dict()
    state = model.state_dict()
    foreign = [name for name in state if name not in plain]
    if foreign:
        raise ModelError(
            f"the model holds {len(foreign)} tensors that a plain {model.config.family} hasn't, such as {foreign[0]}",
            hint="merge the adapter first, or save it as an adapter",
        )
    stored = dtype or next(model.parameters()).dtype
    files = save_weights({name: tensor.to(stored) for name, tensor in state.items()}, folder, max_shard_bytes)
    content = {**config_to_hf(model.config), "dtype": str(stored).removeprefix("torch.")}
    path = folder / "config.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [path, *files]
