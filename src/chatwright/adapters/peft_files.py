"""Adapters as peft's files, in and out: `adapter_model.safetensors` beside `adapter_config.json`.

The tensors decide which layers are adapted, whatever form `target_modules` has (list, regular expression,
`all-linear`): a layer that peft would have adapted and that has no tensors would not change the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from chatwright.adapters.lora import HEAD_NAME, adapt_layer, adapted_layers, linear_layers
from chatwright.adapters.peft_config import EMBEDDING, PeftLora, read_peft_config, write_peft_config
from chatwright.adapters.token_rows import TokenRowEmbedding, replace_rows, row_modules
from chatwright.errors import ModelError
from chatwright.models.transformer import CausalLM
from chatwright.models.vocabulary import resize_vocab

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
ROWS_KEY = ".token_adapter.trainable_tokens_delta"


def save_peft(
    model: nn.Module, folder: Path | str, base_name: str, tensors: Mapping[str, torch.Tensor] | None = None
) -> list[Path]:
    """Write the model's adapter so that `peft.PeftModel.from_pretrained(base, folder)` gives equal logits.

    `raw` scaling is written as alpha · r, which peft divides by r again. If token ids were added to the base
    vocabulary, peft's user must resize the base's embeddings before loading.

    Args:
        model: with adapted layers, trained token rows or both.
        folder: made if missing.
        base_name: path or hub name of the base model.
        tensors: stored instead of the model's own where a parameter's name is in it (full-precision masters).

    Raises:
        ModelError: the model has no adapter.
    """
    layers, rows = adapted_layers(model), row_modules(model)
    if not layers and not rows:
        raise ModelError("the model has no adapter to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, torch.Tensor] = {}

    def store(key: str, parameter_name: str, parameter: torch.Tensor) -> None:
        source = tensors.get(parameter_name, parameter) if tensors else parameter
        stored[PREFIX + key] = source.detach().cpu().contiguous()

    for name, layer in layers.items():
        store(f"{name}.lora_A.weight", f"{name}.lora_A", layer.lora_A)
        store(f"{name}.lora_B.weight", f"{name}.lora_B", layer.lora_B)
    for name, module in rows.items():
        store(name + ROWS_KEY, f"{name}.token_rows", module.token_rows)
    save_file(stored, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    ids = {isinstance(m, TokenRowEmbedding): tuple(m.token_ids.tolist()) for m in rows.values()}
    tied = isinstance(model, CausalLM) and model.lm_head is None
    some = next(iter(layers.values()), None)
    write_peft_config(
        folder,
        base_name=base_name,
        layers={name: (layer.rank, layer.alpha) for name, layer in layers.items()},
        all_linear=linear_layers(model),
        rslora=some.rslora if some else False,
        dropout=some.dropout if some else 0.0,
        embed_ids=ids.get(True, ()),
        head_ids=None if tied else ids.get(False, ()),
    )
    return [folder / WEIGHTS_NAME, folder / "adapter_config.json"]


@torch.no_grad()
def load_peft(model: nn.Module, folder: Path | str) -> list[str]:
    """Put a saved adapter on its base model: the base is frozen, the adapter trainable.

    Args:
        model: the base model, without an adapter.
        folder: with `adapter_config.json` and `adapter_model.safetensors`, by peft or by `save_peft`.

    Returns:
        The names of the adapted layers.

    Raises:
        ModelError: a file is missing or damaged, a field or tensor isn't supported, or it belongs to another model;
            everything is checked before the model is changed.
    """
    folder = Path(folder)
    config = read_peft_config(folder)
    stored = _read_tensors(folder / WEIGHTS_NAME)
    pairs, rows = _sorted_out(stored, folder)
    if adapted_layers(model) or row_modules(model):
        raise ModelError("the model has an adapter already", place=str(folder), hint="merge it first")
    _check_fit(model, config, pairs, folder)
    embed_ids, head_ids = _row_ids(model, config, rows, folder)
    model.requires_grad_(False)
    names = [name for name in linear_layers(model) if name in pairs]
    for name in names:
        a, b = pairs[name]
        layer = adapt_layer(model, name, a.shape[0], config.alpha_of(name), config.rslora, config.dropout)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
    if rows:
        assert isinstance(model, CausalLM)
        highest = max((*embed_ids, *head_ids))
        if highest >= model.config.vocab_size:
            resize_vocab(model, highest + 1)
        replace_rows(model, embed_ids=embed_ids, head_ids=head_ids)
        for name, module in row_modules(model).items():
            module.token_rows.copy_(rows[name])
    return names


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise ModelError(
            f"can't be read: {error}",
            place=str(path),
            hint="an adapter needs adapter_model.safetensors; convert older .bin files with peft",
        ) from None


def _sorted_out(
    stored: Mapping[str, torch.Tensor], folder: Path
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, torch.Tensor]]:
    """Layer → (A, B), and module → token rows; any other tensor is refused by name."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    rows: dict[str, torch.Tensor] = {}
    unknown = []
    for key, tensor in stored.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(ROWS_KEY):
            rows[name.removesuffix(ROWS_KEY)] = tensor
        elif name.endswith((".lora_A.weight", ".lora_B.weight")):
            layer, half, _ = name.rsplit(".", 2)
            halves.setdefault(layer, {})[half] = tensor
        else:
            unknown.append(key)
    unknown += [f"{layer}.{half}" for layer, found in halves.items() for half in found if len(found) == 1]
    if unknown:
        raise ModelError(
            f"the adapter holds {len(unknown)} tensors that aren't supported here, such as {unknown[0]}",
            place=str(folder),
            hint="merge it into its base model with peft, and use the merged model",
        )
    return {layer: (found["lora_A"], found["lora_B"]) for layer, found in halves.items()}, rows


def _check_fit(
    model: nn.Module, config: PeftLora, pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], folder: Path
) -> None:
    modules = dict(model.named_modules())
    known = set(linear_layers(model))
    problems = []
    for name, (a, b) in pairs.items():
        module = modules.get(name)
        if name not in known or not isinstance(module, nn.Linear):
            is_head = name.rpartition(".")[2] == HEAD_NAME
            problems.append(f"{name} " + ("is the output head, which can't be adapted" if is_head else "isn't in it"))
            continue
        expected = (config.rank_of(name), module.in_features), (module.out_features, config.rank_of(name))
        if (tuple(a.shape), tuple(b.shape)) != expected:
            problems.append(f"{name} has A {list(a.shape)} and B {list(b.shape)}, expected {expected}")
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ModelError(
            f"the adapter doesn't fit this model: {shown}",
            place=str(folder),
            hint=f"it was made for {config.base_name or 'another model'}",
        )


def _row_ids(
    model: nn.Module, config: PeftLora, rows: Mapping[str, torch.Tensor], folder: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Trained rows of embedding and head, checked against the tensors."""
    head_ids = config.head_ids or ()
    if isinstance(model, CausalLM) and model.lm_head is None and f"model.{EMBEDDING}" in rows:
        head_ids = ()  # tied: peft stores the embedding's rows once
    expected = {name: ids for name, ids in ((f"model.{EMBEDDING}", config.embed_ids), (HEAD_NAME, head_ids)) if ids}
    if rows and not isinstance(model, CausalLM):
        raise ModelError("this model can't have trained token rows", place=str(folder))
    counts = {name: len(ids) for name, ids in expected.items()}
    if counts != {name: tensor.shape[0] for name, tensor in rows.items()}:
        raise ModelError(
            f"trainable_token_indices names {counts or 'no rows'}, but the tensors are "
            f"{ {name: list(tensor.shape) for name, tensor in rows.items()} }",
            place=str(folder),
        )
    width = model.config.hidden_size if isinstance(model, CausalLM) else 0
    if any(tensor.shape[1] != width for tensor in rows.values()):
        raise ModelError(f"trained token rows aren't {width} wide as the model's", place=str(folder))
    return config.embed_ids if rows else (), head_ids
