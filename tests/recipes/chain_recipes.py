"""A chain so small that all of it runs in a second: two texts, a tokenizer of 300 tokens, two steps a stage."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatwright.recipes.chain import StageStatus, look_at, run_chain, train_quietly
from chatwright.recipes.chain_record import State
from chatwright.recipes.chain_settings import make_chain
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.train.trainer import TrainResult
from tiny_model import CORPUS
from training_runs import CPU, merged

RUNS = ("base", "middle", "chat")
"""Its stages that train a model."""


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


def run(plain: dict[str, Any], **options: Any) -> list[StageStatus] | None:
    """Run it in this process."""
    return run_chain(make_chain(plain, "test"), CPU, **options)


def states(plain: dict[str, Any]) -> dict[str, State]:
    """How far its stages are."""
    return {status.stage.name: status.state for status in look_at(make_chain(plain, "test"))}


class Trains:
    """Trains stages, and remembers which; stops the one called `stop` as Ctrl-C would, after a step."""

    def __init__(self, stop: str | None = None) -> None:
        self.trained: list[str] = []
        self.stop = stop

    def __call__(self, settings: RunSettings, runtime: Runtime, resume: bool) -> TrainResult:
        """As `train_quietly`."""
        name = Path(settings.out).name
        self.trained.append(name)
        if name != self.stop:
            return train_quietly(settings, runtime, resume)
        from chatwright.train import trainer

        original = trainer.Trainer._one_step

        def one_step(self: Any, step: Any) -> Any:
            self.stop_requested = True
            return original(self, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.Trainer, "_one_step", one_step)
            return train_quietly(settings, runtime, resume)
