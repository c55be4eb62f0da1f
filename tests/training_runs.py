"""What tests of training share: conversations, recipes, runs in this process or as a command, and comparisons."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from chatwright.batches.token_store import TokenStore
from chatwright.checkpoints.store import latest_checkpoint
from chatwright.checkpoints.tensors import load_tensors
from chatwright.recipes.build import RunTrainer, build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import ModelSetup, build_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.settings import build
from chatwright.templates.rendered import RenderedExample
from chatwright.train.hooks import Hook, StepRecord
from chatwright.train.trainer import TrainResult

CPU = Runtime(torch.device("cpu"))
SUBJECTS = ["the cat", "a bird", "my river", "that hill", "one bat", "the letter b", "two and three", "a colour"]
VERBS = ["flies", "is behind the house", "counts", "names an animal"]


def with_weights(store: TokenStore, weights: np.ndarray) -> TokenStore:
    """The same examples with other weights (float32 `[total]`)."""
    parts = zip(store.keys, store.offsets[:-1], store.offsets[1:], strict=True)
    examples = [RenderedExample(store.ids[a:b], weights[a:b].astype(np.float32), (), key) for key, a, b in parts]
    return TokenStore.from_examples(examples)


def conversations(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different conversations of uneven lengths, every third with two turns, in OpenAI's shape."""
    rows = []
    for index in range(start, start + count):
        subject, verb = SUBJECTS[index % len(SUBJECTS)], VERBS[index // len(SUBJECTS) % len(VERBS)]
        turns = [
            {"role": "user", "content": f"Tell me: {subject} {verb}? ({index})"},
            {"role": "assistant", "content": f"Yes, {subject} {verb}" + ", indeed" * (index % 5) + "."},
        ]
        if index % 3 == 0:
            turns += [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": f"Because {verb} {index}."},
            ]
        rows.append({"messages": turns})
    return rows


def preference_pairs(count: int) -> list[dict[str, Any]]:
    """Rows of prompt, chosen and rejected: yes is preferred."""
    return [
        {"prompt": f"Tell me {row}?", "chosen": f"Yes, {row}." + " so" * (row % 4), "rejected": f"No {row}, never."}
        for row in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with nested `changes`."""
    result = dict(base)
    for key, value in changes.items():
        inside = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if inside else value
    return result


def recipe(model: Path, data: Path | None, out: Path, /, **changes: Any) -> RunSettings:
    """A small recipe: 4 steps an epoch of 16 conversations in float32."""
    plain = {
        "model": str(model),
        "data": [{"path": str(data)}] if data else [],
        "template": {"format": "chatml"},
        "max_tokens": 160,
        "packing": {"by": "tokens", "tokens_per_pack": 256, "packs_per_step": 1},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"device": "cpu", "dtype": "float32", "threads": 1, "seed": 1},
        "out": str(out),
    }
    return build(RunSettings, merged(plain, changes), "test recipe")


@dataclass
class Run:
    """A finished run in this process."""

    trainer: RunTrainer
    data: RunData
    model: ModelSetup
    result: TrainResult

    @property
    def folder(self) -> Path:
        """Its newest checkpoint."""
        found = latest_checkpoint(self.trainer.run.path)
        assert found is not None
        return found

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The trained parameters at full precision."""
        return self.trainer.trainer.optimizer.master_state()

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are steps."""
        return [line for line in self.trainer.run.read_metrics() if "loss" in line]


def prepare(settings: RunSettings, sources: Any = None, **options: Any) -> tuple[RunTrainer, RunData, ModelSetup]:
    """All but the training."""
    data = build_data(settings, sources)
    model = build_model(settings, data.text, CPU)
    return build_trainer(settings, data, model, CPU, show_progress=False, **options), data, model


def train(settings: RunSettings, sources: Any = None, **options: Any) -> Run:
    """Train in this process to the end."""
    trainer, data, model = prepare(settings, sources, **options)
    return Run(trainer, data, model, trainer.train())


def relative_distances(ours: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """‖ours − other‖ / ‖other‖ of each tensor; the names must be the same."""
    assert set(ours) == set(other)
    return {
        name: float((ours[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-30))
        for name, value in other.items()
    }


def farthest(ours: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest relative distance of any tensor."""
    return max(relative_distances(ours, other).values())


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by file and name."""
    return {
        f"{path.name}:{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_tensors(path)[0].items()
    }


def differing_bits(first: Path, second: Path) -> list[str]:
    """What differs between two runs' newest checkpoints and logs, timings aside; empty if equal bit for bit."""
    ours, theirs = latest_checkpoint(first, verify="full"), latest_checkpoint(second, verify="full")
    assert ours is not None and theirs is not None
    found = [] if ours.name == theirs.name else [f"{ours.name} or {theirs.name}"]
    names = {path.name for path in (*ours.iterdir(), *theirs.iterdir())} - {"manifest.json"}
    found += [
        f"{ours.name}/{name}"
        for name in sorted(names)
        if not ((ours / name).exists() and (theirs / name).exists())
        or (ours / name).read_bytes() != (theirs / name).read_bytes()
    ]
    for name in ("metrics.jsonl", "trace.jsonl"):
        if log_lines(first / name) != log_lines(second / name):
            found.append(name)
    return found


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log without timings."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines]


# Runs as commands


def write_recipe(settings: RunSettings, path: Path) -> Path:
    """A recipe file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    return path


def start_command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`python -m chatwright …` in a process of its own, output and errors in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "chatwright", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def run_command(*arguments: object, status: int = 0, timeout: float = 240, **environment: str) -> str:
    """Run a command to its end; returns what it printed."""
    process = start_command(*arguments, **environment)
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == status, printed
    return printed


def start_ranks(count: int, *arguments: object, each: Sequence[Mapping[str, str]] = ()) -> list[subprocess.Popen[str]]:
    """The command as `count` ranks on this machine, as torchrun starts them; `each` changes a rank's environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(count)]
    return [
        start_command(*arguments, **{**names, **dict(each[rank] if each else {})}) for rank, names in enumerate(own)
    ]


def finish_ranks(ranks: Sequence[subprocess.Popen[str]], timeout: float = 240) -> list[str]:
    """Wait for all ranks; returns what each printed."""
    try:
        printed = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(printed)
    return printed


class Crash(Exception):
    """Stands for anything that ends a run without warning."""


class CrashAfter(Hook):
    """Raises after a step; what that step changed is lost unless it was saved before."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record: StepRecord) -> None:
        """Count, and crash."""
        if record.step == self.step:
            raise Crash
