"""A chain so small that all of it runs in a second: two texts, a tokenizer of 300 tokens, two steps a stage."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tiny_model import CORPUS
from training_runs import merged


def chain_plain(folder: Path, /, **changes: Any) -> dict[str, Any]:
    """The recipe as plain values; its text lies in `folder`, and `changes` are laid over it."""
    text = folder / "text.txt"
    if not text.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text.write_text("\n\n".join(f"{line} {number}" for number, line in enumerate(CORPUS)), encoding="utf-8")
    texts = [{"path": str(text), "text_by": "paragraph"}]
    plain = {
        "out": str(folder / "chain"),
        "max_tokens": 64,
        "packing": {"tokens_per_pack": 128},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"device": "cpu", "dtype": "float32", "threads": 1, "max_steps": 2},
        "stages": [
            {
                "name": "tokenizer",
                "stage": "tokenizer",
                "data": texts,
                "tokenizer": {"vocab_size": 300},
                "heldout_share": 0.0,
                "beside": [],
            },
            {
                "name": "base",
                "stage": "pretrain",
                "data": texts,
                "new_model": {"preset": "llama", "hidden_size": 16, "num_layers": 1, "num_heads": 2},
            },
            {"name": "middle", "stage": "mid", "data": [{"task": "spelling", "stop": 16}]},
            {"name": "chat", "stage": "sft", "data": [{"task": "spelling", "stop": 16}]},
        ],
    }
    return merged(deepcopy(plain), changes)


def stage_in(plain: dict[str, Any], name: str) -> dict[str, Any]:
    """A stage of a plain chain, to be changed in place."""
    found: dict[str, Any] = next(stage for stage in plain["stages"] if stage["name"] == name)
    return found


def write_chain(plain: dict[str, Any], path: Path) -> Path:
    """A chain's file."""
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path
