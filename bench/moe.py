"""Training speed of a small mixture of experts, beside a dense model as large as its active part, and transformers.

    python bench/moe.py --json bench/results/DATE-moe-MACHINE.json

One step here is forward and backward of a pack of equal segments (no optimizer, no padding for anybody), with the
load-balance loss where the model has experts. The systems take turns, and each figure is the median of its rounds:

    moe            ours, the experts' slices one after the other
    dense          ours, a feed-forward block as large as the experts that a token goes to
    transformers   Qwen3MoeForCausalLM with its default for experts (one kernel for all where torch has it)
    transformers-eager   the same with a loop over the experts

All have the same shapes and random weights of one seed (transformers loads our saved folder). Close other programs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatwright.batches.collate import collate
from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.token_store import TokenStore
from chatwright.models.config import active_parameters, flops_per_token, num_parameters
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, save_model
from chatwright.templates.rendered import ExampleKey, RenderedExample
from chatwright.train.objectives import next_token_nll
from common import machine_facts

Step = Callable[[], None]
SYSTEMS = ("moe", "dense", "transformers", "transformers-eager")


def shapes(options: argparse.Namespace, *, dense: bool) -> dict[str, Any]:
    """The Hugging Face config of the mixture, or of the dense model with as many active weights."""
    common = {
        "vocab_size": options.vocab,
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": max(1, options.hidden // 256),
        "head_dim": 64,
        "max_position_embeddings": options.segment,
        "tie_word_embeddings": True,
        "intermediate_size": options.inner * options.chosen,
    }
    if dense:
        return {**common, "model_type": "qwen3"}
    experts = {"num_experts": options.experts, "num_experts_per_tok": options.chosen, "norm_topk_prob": True}
    return {**common, **experts, "model_type": "qwen3_moe", "moe_intermediate_size": options.inner}


def make_pack(options: argparse.Namespace) -> PackedBatch:
    """Random tokens in equal segments, all trained but each first one."""
    draw = np.random.default_rng(0)
    examples = [
        RenderedExample(
            draw.integers(0, options.vocab, options.segment).astype(np.int32),
            np.ones(options.segment, dtype=np.float32),
            (),
            ExampleKey("bench", row, 0),
        )
        for row in range(options.tokens // options.segment)
    ]
    return collate(TokenStore.from_examples(examples), range(len(examples))).to(options.device)


def our_step(model: CausalLM, pack: PackedBatch) -> Step:
    """Ours: loss and gradients."""

    def step() -> None:
        model.zero_grad(set_to_none=False)
        outcome = next_token_nll(model, pack)
        (outcome.total / outcome.weight).backward()  # type: ignore[no-untyped-call]

    return step


def their_step(folder: str, options: argparse.Namespace, dtype: torch.dtype, kind: str | None) -> Step:
    """transformers': the same rows as a batch without padding, its auxiliary loss on."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(options.device).train()
    if kind is not None:
        model.set_experts_implementation(kind)
    ids = make_pack(options).input_ids.view(-1, options.segment)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model(input_ids=ids, labels=ids, output_router_logits=True, use_cache=False).loss.backward()

    return step


def steps_of(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Step]:
    """The systems' steps by name."""
    pack = make_pack(options)
    found: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as folder:
        mixture = init_model(config_from_hf(shapes(options, dense=False)), seed=0)
        save_model(mixture, folder)
        for name in options.systems:
            if name == "moe":
                found[name] = our_step(mixture.to(options.device, dtype), pack)
            elif name == "dense":
                model = init_model(config_from_hf(shapes(options, dense=True)), seed=0)
                found[name] = our_step(model.to(options.device, dtype), pack)
            else:
                found[name] = their_step(folder, options, dtype, "eager" if name.endswith("eager") else None)
    return found


def timed(step: Step, device: str) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(options: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Every system's median, the systems taking turns."""
    steps = steps_of(options, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, options.device))
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        row = {"system": name, "dtype": str(dtype).removeprefix("torch."), "seconds": [round(t, 4) for t in times]}
        rows.append({**row, "tokens_per_second": round(options.tokens / median, 1)})
    return rows


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Parameters and FLOPs a token of both models."""
    found = {}
    for name, dense in (("moe", False), ("dense", True)):
        config = config_from_hf(shapes(options, dense=dense))
        counts = {"parameters": num_parameters(config), "active_parameters": active_parameters(config)}
        found[name] = {**counts, "flops_per_token": flops_per_token(config, options.segment)}
    return found


def main() -> None:
    """Measure, print a table, store the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"hidden": 512, "layers": 4, "inner": 512, "experts": 8, "chosen": 2, "vocab": 6400}
    numbers |= {"tokens": 2048, "segment": 256, "rounds": 5, "threads": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the figures there, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = machine_facts()
    rows = [row for name in options.dtypes for row in measure(options, getattr(torch, name))]
    print("| system | dtype | tokens/s |\n|---|---|---|")
    for row in rows:
        print(f"| {row['system']} | {row['dtype']} | {row['tokens_per_second']:,.0f} |")
    if options.json:
        chosen = {name: getattr(options, name) for name in numbers}
        record = {"date": str(date.today()), "machine": facts, "shapes": chosen, "sizes": sizes(options), "cases": rows}
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
