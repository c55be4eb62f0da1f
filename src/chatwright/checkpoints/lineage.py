"""Where a model came from: the hash that tells whether two folders hold the same model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from chatwright.checkpoints.manifest import hash_file, in_threads
from chatwright.models.weights import read_config, weight_files

# what a re-save by another program changes without changing the model
_NO_PART = {"transformers_version", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype", "use_cache"}


def model_hash(folder: Path, *, new: bool = False) -> str:
    """The identity of a model folder: sha256 over its configuration and the sorted hashes of its weight files.

    A tokenizer or template that changes doesn't change it: they have identities of their own.

    Args:
        new: the model is yet to be made: only its configuration counts.

    Raises:
        ModelError: if the folder has no config.json or no safetensors weights.
    """
    config, weights = read_config(folder), [] if new else sorted(weight_files(folder))
    lines = [json.dumps({key: config[key] for key in sorted(config) if key not in _NO_PART}, sort_keys=True)]
    lines += [f"{path.name} {found}" for path, found in zip(weights, in_threads(hash_file, weights), strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weights_hash(folder: Path, adapter: Path | None = None) -> str:
    """The identity of a model's weights: `model_hash`, and the files of the adapter on it.

    Raises:
        ModelError: as `model_hash` does.
    """
    found = model_hash(folder)
    if adapter is None:
        return found
    files = sorted([*adapter.glob("adapter_*.safetensors"), *adapter.glob("adapter_config.json")])
    return hashlib.sha256("\n".join([found, *map(hash_file, files)]).encode()).hexdigest()
