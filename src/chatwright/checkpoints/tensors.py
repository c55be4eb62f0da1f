"""Tensors in safetensors files, and the state that training needs beside the model's own weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chatwright.errors import CheckpointError

STATE_NAME = "training_state"
_METADATA_KEY = "chatwright"


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write named tensors of any dtype and shape, bit for bit; `metadata` is any JSON."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    owners: set[int] = set()
    for name, tensor in plain.items():  # the format stores no aliases: views of one buffer are written one by one
        storage = tensor.untyped_storage().data_ptr()
        if storage in owners:
            plain[name] = tensor.clone()
        owners.add(storage)
    # one entry only: the format writes several in random order, and equal states must be equal files
    save_file(plain, path, metadata={_METADATA_KEY: json.dumps(metadata)} if metadata else {"format": "pt"})


def load_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the metadata that `save_tensors` wrote; plain safetensors files have no metadata.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"can't be read: {error}", place=str(path)) from None


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that a run needs, beside the fp32 weights, to go on as if it had never stopped.

    Random state is not among it: every seed is counted from (seed, step, pack).

    Args:
        step, tokens, supervised_tokens: done so far.
        optimizer: its tensors by name. counters: its scalars, the loader's position and the loop's, as JSON.
        ledger: `Ledger.to_dict()`.
    """

    step: int
    tokens: int
    supervised_tokens: int
    optimizer: Mapping[str, torch.Tensor]
    counters: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write training_state.safetensors and training_state.json."""
        save_tensors(self.optimizer, folder / f"{STATE_NAME}.safetensors")
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "optimizer"}
        text = json.dumps(values, ensure_ascii=False, indent=1)
        (folder / f"{STATE_NAME}.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> TrainingState:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the folder has no training state (an export, a foreign model) or it's damaged.
        """
        path = folder / f"{STATE_NAME}.json"
        if not path.exists():
            message = "has no training state: an export can be trained from, but not resumed"
            raise CheckpointError(message, place=str(folder), hint="give the run folder, or use it as `model`")
        optimizer, _ = load_tensors(folder / f"{STATE_NAME}.safetensors", device)
        try:
            return cls(optimizer=optimizer, **json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"can't be read: {error}", place=str(path)) from None
