"""What sharing prompts saves in preference tuning: tokens over whole files, and seconds of a step, TRL's beside.

    python bench/dpo.py --tokens                          # counts only, over the shared preference data
    python bench/dpo.py --threads 2 [--trl] [--json OUT]  # forward + backward of the same pairs, three ways

The same pairs, as the same token ids, go through the same weights (SmolLM2-135M, bf16, all parameters trained), the
reference's log-probabilities known before: packed with each prompt once, packed with each prompt twice, and TRL's
DPOTrainer, which pads chosen and rejected rows to the longest. Optimizers are left out: they'd be the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatwright.batches.pairs import PairBatch, collate_pairs
from chatwright.batches.token_store import TokenStore
from chatwright.checkpoints.imports import resolve_model
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.preference_types import PairConversation
from chatwright.losses.settings import DpoSettings
from chatwright.models.weights import load_model
from chatwright.recipes.rendering import read_entry
from chatwright.templates.pairs import render_pairs
from chatwright.templates.template import TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.train.pair_objectives import DpoObjective, side_log_probs
from common import SHARED, machine_facts, silence, silence_trl

FILES = ("hh_rlhf_harmless_base_test.jsonl.gz", "dpo_en_demo.json", "dpo_zh_demo.json")
MODEL = "smollm2-135m-q4"


def pairs_of(file: str, most: int = 1024) -> TokenStore:
    """The pairs of a shared file that fit, as SmolLM2's tokens."""
    entry = DataSettings(path=str(SHARED / "data/preference" / file), preference="pairs", on_bad_row="skip")
    rows, _ = read_entry(entry, seed=0)
    template = load_template(
        TextTokenizer.load(resolve_model(MODEL).text_folder), TemplateSettings(format="chatml", tools="none")
    )
    rendered = render_pairs(template, [row for row in rows if isinstance(row, PairConversation)])
    return TokenStore.from_examples([each for each in rendered if len(each.ids) <= most], template.tokenizer.vocab_size)


def counts(store: TokenStore, batch_pairs: int = 4) -> dict[str, Any]:
    """Tokens computed for all pairs of a store, each way.

    Args:
        batch_pairs: pairs of a padded batch, drawn in a fixed random order.
    """
    prompts, chosen = store.prompt_lengths.astype(int), store.chosen_lengths.astype(int)
    rejected = store.lengths - prompts - chosen
    order = np.random.default_rng(0).permutation(len(store))
    longest = prompts + np.maximum(chosen, rejected)
    padded = sum(
        int(longest[group].max()) * 2 * len(group)
        for group in (order[first : first + batch_pairs] for first in range(0, len(order), batch_pairs))
    )
    shared, twice = int(store.lengths.sum()), int(store.lengths.sum() + prompts.sum())
    return {
        "pairs": len(store),
        "prompt_tokens": round(float(prompts.mean()), 1),
        "reply_tokens": round(float((chosen + rejected).mean() / 2), 1),
        "shared": shared,
        "twice": twice,
        "padded": padded,
        "saved_of_twice": round(1 - shared / twice, 4),
        "saved_of_padded": round(1 - shared / padded, 4),
    }


def batches_of(store: TokenStore, count: int, tokens: int) -> list[list[int]]:
    """`count` groups of random pairs of up to `tokens` tokens, prompts counted once."""
    groups: list[list[int]] = [[]]
    room = tokens
    for index in np.random.default_rng(1).permutation(len(store)).tolist():
        size = int(store.lengths[index])
        if size > room:
            if len(groups) == count:
                break
            groups.append([])
            room = tokens
        groups[-1].append(index)
        room -= size
    return groups


def timed(step: Callable[[int], float], count: int) -> dict[str, Any]:
    """Seconds of all steps together, after one that isn't counted; and the mean loss."""
    step(0)
    began = time.perf_counter()
    losses = [step(number) for number in range(count)]
    return {"seconds": round(time.perf_counter() - began, 3), "loss": round(float(np.mean(losses)), 5)}


def ours(
    store: TokenStore, groups: list[list[int]], model: Any, table: torch.Tensor, *, shared: bool
) -> dict[str, Any]:
    """Forward and backward of every group in one pack."""
    objective = DpoObjective(table, DpoSettings())

    def step(number: int) -> float:
        batch = collate_pairs(store, groups[number])
        assert isinstance(batch, PairBatch)
        model.zero_grad()
        outcome = objective(model, batch if shared else batch.unshared())
        outcome.total.backward()  # type: ignore[no-untyped-call]
        return outcome.total.item() / outcome.weight

    return timed(step, len(groups))


def trl(store: TokenStore, groups: list[list[int]], folder: Path, table: torch.Tensor) -> dict[str, Any]:
    """TRL's DPOTrainer: its collator, loss and backward on the same groups, its reference known before, too."""
    silence_trl()
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    config = DPOConfig(output_dir=tempfile.mkdtemp(), bf16=False, gradient_checkpointing=False, **quiet)
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # not used: ids are given
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = DPOTrainer(model, None, args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.precompute_ref_logps = True
    model.train()

    def step(number: int) -> float:
        examples = []
        for index in groups[number]:
            ids = store.example(index)[0].tolist()
            prompt, end = (
                int(store.prompt_lengths[index]),
                int(store.prompt_lengths[index] + store.chosen_lengths[index]),
            )
            known = {"ref_chosen_logps": float(table[index, 0]), "ref_rejected_logps": float(table[index, 1])}
            examples.append(
                {"prompt_ids": ids[:prompt], "chosen_ids": ids[prompt:end], "rejected_ids": ids[end:], **known}
            )
        model.zero_grad()
        loss = trainer.compute_loss(model, trainer.data_collator(examples))
        loss.backward()
        return loss.item()

    return timed(step, len(groups))


def main() -> None:
    """Count, or time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", action="store_true", help="count tokens only")
    parser.add_argument("--file", default=FILES[0], help="a shared preference file, for the timing")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--pack", type=int, default=1024, help="tokens of a pack")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    silence()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"machine": machine_facts()}
    if options.tokens:
        result["tokens"] = {file: counts(pairs_of(file)) for file in FILES}
    else:
        store, folder = pairs_of(options.file), resolve_model(MODEL).folder
        groups = batches_of(store, options.batches, options.pack)
        model = load_model(folder, dtype=torch.bfloat16)
        table = torch.zeros(len(store), 2, dtype=torch.float64)
        with torch.no_grad():
            for group in groups:
                batch = collate_pairs(store, group)
                assert isinstance(batch, PairBatch)
                table[batch.pairs] = side_log_probs(model, batch).sums.double()
        chosen = store.take(np.array([index for group in groups for index in group]))
        result |= {"file": options.file, "pack": options.pack, "pairs": counts(chosen), "batches": len(groups)}
        for name, shared in (("shared", True), ("twice", False)):
            result[name] = ours(store, groups, model, table, shared=shared)
            print(name, result[name], flush=True)
        if options.trl:
            del model
            result["trl"] = trl(store, groups, folder, table)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
