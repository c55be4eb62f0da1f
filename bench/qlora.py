"""QLoRA beside LoRA: bytes of the weights, peak memory, seconds a step, and the loss, on the same rows and steps.

    python bench/qlora.py --threads 2 --out bench/results/qlora.json

Each base in a process of its own: bfloat16; NF4; NF4 with double quantization; the same adapter, rows and steps. The
peak is the process's, loading included, where all weights are float32 still; what a run holds afterwards is counted
tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from chatwright.adapters.quantized import Nf4Weight
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.planning import plan_run
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import start_runtime
from common import SHARED, machine_facts, peak_memory, silence
from measures import loss, loss_change, row_losses

BASES: dict[str, dict[str, Any]] = {
    "bfloat16": {"base": "full"},
    "NF4": {"base": "nf4"},
    "NF4, double quantization": {"base": "nf4", "double_quantization": True},
}


def settings_of(base: str, options: argparse.Namespace, folder: str) -> RunSettings:
    """The recipe of a base: general instructions, an adapter on every linear layer."""
    usable = [{"kind": "field", "field": "status", "allow": ["ok"]}, {"kind": "empty_reply"}]
    rows = {"format": "alpaca", "on_bad_row": "skip", "filters": usable}
    return RunSettings.model_validate(
        {
            "model": "smollm2-135m-q4",
            "data": [{"path": str(SHARED / "data/sft/alpaca_libre_tasks_v2.jsonl"), "max_rows": 400, **rows}],
            "heldout": {
                "data": [{"path": str(SHARED / "data/sft/alpaca_libre_tasks_v3.jsonl"), "max_rows": 60, **rows}]
            },
            "template": {"format": "chatml"},
            "max_tokens": 512,
            "overflow": "drop",
            "packing": {"by": "tokens", "tokens_per_pack": 512},
            "adapter": {"rank": 16, "alpha": 32, **BASES[base]},
            "optimizer": {"learning_rate": 5e-4},
            "schedule": {"name": "linear", "warmup_fraction": 0.1},
            "train": {"max_steps": options.steps, "seed": 0, "dtype": "bfloat16", "threads": options.threads},
            "eval": {"at": []},
            "out": f"{folder}/run",
        }
    )


def held_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, and of the scales beside quantized weights."""
    total = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    for module in model.modules():
        if isinstance(module, Nf4Weight):
            state = module.state
            total += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return total


def run_base(base: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one base in this process."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(base, options, folder)
        runtime = start_runtime("cpu" if not torch.cuda.is_available() else "auto", options.threads)
        data = build_data(settings)
        assert isinstance(data, RunData)
        model = build_model(settings, data.text, runtime)
        trainer = build_trainer(settings, data, model, runtime, show_progress=False)
        trainer.trainer.save = None
        before = row_losses(model.model, data.heldout)
        began = time.perf_counter()
        result = trainer.train()
        seconds = time.perf_counter() - began
        after = row_losses(model.model, data.heldout)
        return {
            "base": base,
            "planned_weight_bytes": plan_run(settings, data).memory["weights"],
            "held_bytes": held_bytes(model.model),
            "peak_bytes": peak_memory(),
            "seconds": round(seconds, 2),
            "tokens": result.progress.tokens,
            "before": loss(before),
            "after": loss(after),
            "rows_before": before.tolist(),
            "rows_after": after.tolist(),
        }


def print_result(found: dict[str, Any]) -> None:
    """The table, with differences to the bfloat16 base over the same rows."""
    columns = ("base", "weights held", "peak", "seconds", "loss before", "loss after", "after, from bfloat16's")
    table = Table(*columns)
    for run in found["runs"]:
        change = run["against_bfloat16"]
        against = f"{change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})" if change else ""
        table.add_row(
            run["base"],
            f"{run['held_bytes'] / 1e6:.1f} MB",
            f"{run['peak_bytes'] / 1e6:,.0f} MB",
            f"{run['seconds']:.1f}",
            f"{run['before']['nats_per_token']:.4f}",
            f"{run['after']['nats_per_token']:.4f}",
            against,
        )
    Console(highlight=False, width=150).print(table)


def main() -> None:
    """One process a base; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--base", help="run this one here and print JSON")
    parser.add_argument("--out")
    options = parser.parse_args()
    silence()
    if options.base:
        print(json.dumps(run_base(options.base, options)))
        return
    runs = []
    for base in BASES:
        command = [sys.executable, __file__, "--base", base, "--steps", str(options.steps)]
        command += ["--threads", str(options.threads)] if options.threads else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    first = np.array(runs[0]["rows_after"])
    for run in runs:
        rows = np.array(run.pop("rows_after"))
        del run["rows_before"]
        run["against_bfloat16"] = loss_change(first, rows) if run is not runs[0] else None
    found = {"bench": "qlora", "options": {"steps": options.steps, "threads": options.threads}, "runs": runs}
    found["machine"] = machine_facts()
    print_result(found)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
