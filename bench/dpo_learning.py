"""Does preference tuning tell apart pairs that it never saw? Held-out accuracy before and after, with its interval.

    python bench/dpo_learning.py --threads 2 --out bench/results/dpo-learning.json

SmolLM2-135M-Instruct with an adapter, twice: on pairs made by a rule that must carry over (the better reply ends with a
full stop, the worse one is the same without it), and on short pairs of hh-rlhf, where people's taste is the rule. Both
draws of what is held out are the recipe's own. Log-ratios are rounded in bf16, so that a mean margin of about 0.02 and
less (β = 0.1) means nothing, whatever the accuracy is.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chatwright.evals.statistics import wilson
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import start_runtime
from common import SHARED, machine_facts, silence

HH = "data/preference/hh_rlhf_harmless_base_test.jsonl.gz"
NAMES = "Tom Lily Ben Sue Max Anna Sam Mia Tim Jane Bob Kim Leo Eva Jack Rose"
THINGS = "ball dog cat tree car cake book hat bird fish boat star shoe flower box kite"
VERBS = "saw found lost liked took made wanted painted"
KINDS = "big red small old happy new"
ARMS: dict[str, dict[str, Any]] = {
    "rule: ends with a full stop": {"tokens_per_pack": 512, "learning_rate": 1e-4, "heldout": 0.33},
    "hh-rlhf, pairs of up to 80 tokens": {"tokens_per_pack": 512, "learning_rate": 3e-4, "heldout": 0.3},
}


def rule_rows(count: int) -> list[dict[str, str]]:
    """Pairs that differ in the full stop at the end."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        name, thing, verb, kind = (rng.choice(words.split()) for words in (NAMES, THINGS, VERBS, KINDS))
        reply = f"{name} {verb} a {kind} {thing}"
        rows.append({"prompt": f"What did {name} do with the {thing}?", "chosen": f"{reply}.", "rejected": reply})
    return rows


def run_arm(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train on an arm's pairs; held-out accuracy, margin and loss before and after."""
    chosen = ARMS[arm]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        file.write_text("\n".join(map(json.dumps, rule_rows(96))), encoding="utf-8")
        settings = RunSettings.model_validate(
            {
                "stage": "dpo",
                "model": "smollm2-135m-q4",
                "data": [{"path": str(file if arm.startswith("rule") else SHARED / HH), "on_bad_row": "skip"}],
                "heldout": {"share": chosen["heldout"]},
                "template": {"format": "chatml", "tools": "none"},
                "max_tokens": 80,
                "overflow": "drop",
                "packing": {"by": "tokens", "tokens_per_pack": chosen["tokens_per_pack"]},
                "adapter": {"rank": 16, "alpha": 16},
                "optimizer": {"learning_rate": chosen["learning_rate"]},
                "schedule": {"name": "linear", "warmup_fraction": 0.1},
                "train": {"seed": 0, "threads": options.threads, "dtype": "bfloat16"},
                "eval": {"at": [0, 1]},
                "out": f"{folder}/run",
            }
        )
        runtime = start_runtime(settings.train.device, options.threads)
        data = build_data(settings)
        assert isinstance(data, RunData)
        model = build_model(settings, data.text, runtime)
        trainer = build_trainer(settings, data, model, runtime, show_progress=False)
        trainer.trainer.save = None
        began = time.perf_counter()
        result = trainer.train()
        seconds = time.perf_counter() - began
        lines = trainer.run.read_metrics()
    measured = [line for line in lines if "heldout_accuracy" in line]
    held = len(data.heldout)
    facts: dict[str, Any] = {"arm": arm, **chosen, "pairs": len(data.store), "held_out": held}
    facts |= {"steps": result.progress.step, "seconds": round(seconds, 1)}
    facts["first_margin"] = next(line["margin"] for line in lines if "margin" in line)  # before any update: rounding
    for name, line in (("before", measured[0]), ("after", measured[-1])):
        interval = wilson(line["heldout_accuracy"] * held, held)
        facts[name] = {each: line[f"heldout_{each}"] for each in ("accuracy", "margin", "loss")}
        facts[name] |= {"low": interval.low, "high": interval.high}
    return facts


def main() -> None:
    """Both arms; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    options = parser.parse_args()
    silence()
    runs = [run_arm(arm, options) for arm in ARMS]
    table = Table("pairs", "trained", "held out", "steps", "accuracy before", "after", "margin", "loss")
    for run in runs:
        before, after = run["before"], run["after"]
        accuracy = f"{after['accuracy']:.0%} ({after['low']:.0%} to {after['high']:.0%})"
        counts = [str(run[name]) for name in ("pairs", "held_out", "steps")]
        values = [f"{before['accuracy']:.0%}", accuracy, f"{after['margin']:+.3f}", f"{after['loss']:.3f}"]
        table.add_row(run["arm"], *counts, *values)
    Console(highlight=False, width=130).print(table)
    found = {"bench": "dpo_learning", "options": {"threads": options.threads}, "runs": runs, "machine": machine_facts()}
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
