"""What the comparisons with TRL share: rows, tokens, TRL's settings, memory, facts of the machine.

Both systems get the same token ids and the same labels: Chatwright renders the rows, and TRL reads them as its
pre-tokenized columns `input_ids` and `labels` (−100 = not trained), which it uses as they are.
"""

from __future__ import annotations

import os
import platform
import random
import subprocess
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from chatwright.batches.token_store import TokenStore
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import load_conversations, read_rows
from chatwright.tasks.registry import make_task

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CHATWRIGHT_SHARED") or REPOSITORY.parent / "shared")
TRL_BATCH = 8
"""TRL's default `per_device_train_batch_size`, without accumulation: its default step, in rows."""

SHORT_TASKS = ("persona", "general", "spelling")
SHORT_FILES = ("data/sft/fastchat_dummy_conversation.json", "data/sft/alpaca_libre_tasks_v2.jsonl")
LONG_FILE = "data/preference/dpo_en_demo.json"


def bench_rows(kind: str, count: int, seed: int = 0) -> list[Conversation]:
    """The conversations to measure with, in an order shuffled once.

    Args:
        kind: `short` (built-in tasks, and questions with short answers from the shared data where it is there),
            `long` (real chats with long answers, shared data only), or a file or folder in any format.

    Raises:
        SystemExit: the shared data isn't there.
    """
    if kind == "short":
        rows = [row for task in SHORT_TASKS for row in make_task(task).conversations("train", count, seed)[:count]]
        for file in SHORT_FILES:
            if (SHARED / file).exists():
                rows += load_conversations(SHARED / file, on_bad_row="skip").conversations[:count]
    elif kind == "long":
        rows = _long_rows()
    else:
        rows = load_conversations(kind, on_bad_row="skip").conversations
    random.Random(seed).shuffle(rows)
    return rows[:count]


def _long_rows() -> list[Conversation]:
    """Questions with the reply that people chose."""
    path = SHARED / LONG_FILE
    if not path.exists():
        raise SystemExit(f"rows 'long': {path} is absent; set CHATWRIGHT_SHARED, or give --rows short or a file")
    turns = [{"conversations": [*row["conversations"], row["chosen"]]} for row in read_rows(path)]
    return load_conversations(turns, format="sharegpt").conversations


def label_rows(store: TokenStore) -> list[dict[str, list[int]]]:
    """The examples as TRL's pre-tokenized rows; a label stands at its own token, the trainer shifts.

    Raises:
        ValueError: a weight is neither 0 nor 1, which labels can't say.
    """
    rows = []
    for index in range(len(store)):
        ids, weights = store.example(index)
        if not np.isin(weights, (0.0, 1.0)).all():
            raise ValueError(f"{store.name(index)}: TRL knows no weights, only trained and not trained")
        labels = np.where(weights > 0, ids, -100)
        labels[0] = -100  # nothing predicts the first token
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def supervised(row: dict[str, list[int]]) -> int:
    """Trained tokens of a row."""
    return sum(label != -100 for label in row["labels"])


def trl_config(folder: str, **changes: Any) -> Any:
    """TRL's `SFTConfig` with its defaults, but for `changes` and what only writes files or hides output.

    Rows keep their order (`train_sampling_strategy`), so that both systems see the same ones. Without a GPU
    `use_cpu=True` is needed: TRL's default bf16 refuses to run otherwise.
    """
    import torch
    from trl import SFTConfig

    quiet = {
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return SFTConfig(**{"output_dir": folder, "train_sampling_strategy": "sequential", **quiet, **changes})


def trl_trainer(config: Any, model: Any, tokenizer_folder: Path, rows: list[dict[str, list[int]]], **more: Any) -> Any:
    """TRL's `SFTTrainer` on rows that are tokens already."""
    import datasets
    from transformers import AutoTokenizer, PrinterCallback
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tokenizer_folder),
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def silence() -> None:
    """Keep libraries from printing over the result and from asking the network; call before importing them."""
    quiet = ("HF_HUB_OFFLINE", "TRL_EXPERIMENTAL_SILENCE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_OFFLINE")
    for name in quiet:
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


def silence_trl() -> None:
    """The same for what can be silenced only once it is imported; only where TRL runs."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


class StepClock:
    """Times the ends of steps; the first step only starts the clock."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = steps, seconds
        self.ends: list[float] = []
        self.began = time.perf_counter()

    def tick(self) -> bool:
        """A step has ended; whether it was the last one to take."""
        self.ends.append(time.perf_counter())
        elapsed = self.ends[-1] - self.ends[0]
        return len(self.ends) > 1 and (len(self.ends) > self.steps or elapsed >= self.seconds)

    def result(self, tokens: list[int], trained: list[int]) -> dict[str, Any]:
        """The rates of the timed steps.

        Args:
            tokens / trained: of each step, the warm-up included.
        """
        count = len(self.ends)
        if count < 2:
            raise SystemExit("the rows are too few for a timed step; raise --count")
        seconds = self.ends[-1] - self.ends[0]
        return {
            "timed_steps": count - 1,
            "timed_seconds": round(seconds, 3),
            "warmup_seconds": round(self.ends[0] - self.began, 3),
            "tokens": sum(tokens[1:count]),
            "supervised_tokens": sum(trained[1:count]),
            "tokens_per_second": round(sum(tokens[1:count]) / seconds, 2),
            "supervised_tokens_per_second": round(sum(trained[1:count]) / seconds, 2),
        }


def peak_memory() -> int:
    """Bytes of the largest resident set of this process so far (on a GPU: of its allocations)."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return _status_bytes("VmHWM")


def resident_memory() -> int:
    """Bytes resident now."""
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status: `ru_maxrss` would also count what the parent held when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource  # macOS has no /proc, and counts in bytes

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def machine_facts() -> dict[str, Any]:
    """Processor, memory, load, versions and commit: what a figure depends on besides the code."""
    import torch

    return {
        "cpu": cpu_name(),
        "cpu_features": [name for name in ("amx_tile", "avx512_bf16", "avx512", "avx2") if _has(torch, name)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("chatwright", "torch", "transformers", "trl", "peft")},
        "commit": _commit(),
    }


def cpu_name() -> str:
    """The processor's own name."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _has(torch: Any, feature: str) -> bool:
    check = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(check and check())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit measured, with `+` where files differ from it."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if dirty.stdout.strip() else "")
