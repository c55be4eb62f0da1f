"""Constant-length packing beside ours: what is wasted, what is cut, and the held-out loss after as many tokens.

    python bench/packings.py --threads 2 --out bench/results/packings.json

Counted without a model, over all rows: places that hold no token, conversations that are cut, tokens that see another
conversation. Then an adapter is trained on the same rows and tokens by both packings, and the loss on held-out replies
is compared row by row; those are computed alone, as a chat is served.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import start_runtime
from common import SHARED, machine_facts, silence
from measures import loss, loss_change, row_losses

OURS, JOINED = "tokens", "constant_length"
PADDED_BATCH = 8


def settings_of(by: str, seed: int, options: argparse.Namespace, folder: str) -> RunSettings:
    """The recipe of a packing: the same rows, and steps of as many tokens."""
    usable = [{"kind": "field", "field": "status", "allow": ["ok"]}, {"kind": "empty_reply"}]
    rows = {"format": "alpaca", "on_bad_row": "skip", "filters": usable}
    return RunSettings.model_validate(
        {
            "model": "smollm2-135m-q4",
            "data": [{"path": str(SHARED / "data/sft/alpaca_libre_tasks_v2.jsonl"), **rows}],
            "heldout": {
                "data": [
                    {"path": str(SHARED / "data/sft/alpaca_libre_tasks_v3.jsonl"), "max_rows": options.rows, **rows}
                ]
            },
            "template": {"format": "chatml"},
            "max_tokens": 512,
            "overflow": "drop",
            "packing": {"by": by, "tokens_per_pack": 512},
            "adapter": {"rank": 16, "alpha": 32},
            "optimizer": {"learning_rate": 5e-4},
            "schedule": {"name": "linear", "warmup_fraction": 0.1},
            "train": {"max_steps": options.steps, "seed": seed, "threads": options.threads},
            "eval": {"at": []},
            "out": f"{folder}/run",
        }
    )


def counted(data: RunData) -> dict[str, Any]:
    """Of a run's packs: the shares of empty places, cut conversations, and tokens that see another conversation."""
    plan, store = data.plan, data.store
    packs = [plan.pack(index) for index in range(plan.num_packs)]
    placed = int(store.lengths[plan.members].sum())
    keys = [store.key(int(index)) for index in plan.members]
    return {
        "packs": plan.num_packs,
        "empty": 1 - placed / (plan.num_packs * plan.tokens_per_pack),
        "conversations_cut": (len(keys) - len(set(keys))) / len(set(keys)),
        "tokens_that_see_another": sum(int(store.lengths[pack[1:]].sum()) for pack in packs) / placed
        if plan.joined
        else 0.0,
        "supervised_tokens": int(store.supervised_counts[plan.members].sum()),
    }


def padded_empty(lengths: np.ndarray, batch: int = PADDED_BATCH) -> float:
    """The share of empty places where rows are padded to the longest of their batch, in the order of the data."""
    batches = [lengths[at : at + batch] for at in range(0, len(lengths), batch)]
    return 1 - int(lengths.sum()) / sum(int(each.max()) * len(each) for each in batches)


def run_packing(by: str, seed: int, options: argparse.Namespace) -> tuple[np.ndarray, dict[str, Any]]:
    """Train by one packing with one seed; the held-out rows' losses, and facts."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(by, seed, options, folder)
        runtime = start_runtime(settings.train.device, options.threads)
        epoch = settings.model_copy(update={"train": settings.train.model_copy(update={"max_steps": None})})
        whole = build_data(epoch)
        data = build_data(settings)
        assert isinstance(data, RunData) and isinstance(whole, RunData)
        model = build_model(settings, data.text, runtime)
        trainer = build_trainer(settings, data, model, runtime, show_progress=False)
        trainer.trainer.save = None
        began = time.perf_counter()
        result = trainer.train()
        seconds = time.perf_counter() - began
        losses = row_losses(model.model, data.heldout)
        facts = {"by": by, "seed": seed, "an_epoch": counted(whole), "tokens": result.progress.tokens}
        if not whole.plan.joined:
            facts["padded_to_the_longest_of_8_empty"] = padded_empty(whole.store.lengths)
        return losses, facts | {"seconds": round(seconds, 1), "heldout": loss(losses)}


def main() -> None:
    """Both packings with every seed; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of 512 tokens")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=80, help="held-out rows")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    options = parser.parse_args()
    silence()
    measured: dict[str, list[np.ndarray]] = {OURS: [], JOINED: []}
    runs = []
    for seed in range(options.seeds):
        for by in measured:
            losses, facts = run_packing(by, seed, options)
            measured[by].append(losses)
            runs.append(facts)
            print(json.dumps(facts), flush=True)
    ours, joined = (np.mean(measured[by], axis=0) for by in (OURS, JOINED))
    change = loss_change(ours, joined)
    found = {"bench": "packings", "options": vars(options), "runs": runs, "joined_from_ours": change}
    found["machine"] = machine_facts()
    table = Table("packing.by", "seed", "empty", "cut", "see another", "held-out loss")
    for run in runs:
        an_epoch = run["an_epoch"]
        shares = [f"{an_epoch[name]:.1%}" for name in ("empty", "conversations_cut", "tokens_that_see_another")]
        table.add_row(run["by"], str(run["seed"]), *shares, f"{run['heldout']['nats_per_token']:.4f}")
    console = Console(highlight=False, width=110)
    console.print(table)
    console.print(f"constant_length − tokens: {change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})")
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
