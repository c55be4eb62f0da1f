"""DPO and IPO losses and their gradients on the same batch as TRL's DPOTrainer: run here, or as it gave them.

`dpo_trl_golden.json` holds what TRL 1.16.0 (transformers 5.23, torch 2.13, CPU) gave for the pairs below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.batches.pairs import PairBatch, collate_pairs
from chatwright.losses.settings import DpoSettings
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, read_config, save_model
from chatwright.train.pair_objectives import DpoObjective, side_log_probs
from pair_examples import pair_store

GOLDEN = Path(__file__).parent / "dpo_trl_golden.json"
PAIRS = [(12, 7, 5), (3, 9, 9), (20, 2, 14)]
KINDS: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.1},
    "sigmoid, beta 0.5": {"beta": 0.5},
    "ipo": {"beta": 0.25, "loss": "ipo"},
}


def store_of_pairs():
    return pair_store(PAIRS, vocab_size=300, seed=11, gaps=False)


def models(folder: Path) -> tuple[CausalLM, CausalLM]:
    """The policy, and the reference that it has moved away from."""
    config = config_from_hf({**read_config(folder), "vocab_size": 320})
    policy, reference = init_model(config, seed=1), init_model(config, seed=1)
    other = init_model(config, seed=2)
    with torch.no_grad():
        for own, their in zip(policy.parameters(), other.parameters(), strict=True):
            own.lerp_(their, 0.1)
    return policy, reference


def ours(policy: CausalLM, reference: CausalLM, kind: str) -> dict[str, float]:
    store = store_of_pairs()
    batch = collate_pairs(store, range(len(store)))
    assert isinstance(batch, PairBatch)
    with torch.no_grad():
        table = side_log_probs(reference, batch).sums.double()
    found = DpoObjective(table, DpoSettings(**KINDS[kind]))(policy, batch)
    found.total.backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters()]).norm() / len(store)
    told = {name: total / weight for name, (total, weight) in found.metrics.items()}
    return {
        "loss": found.total.item() / found.weight,
        "gradient": float(norm),
        "margin": told["margin"],
        "accuracy": told["accuracy"],
        "log_prob_chosen": told["log_prob_chosen"],
    }


def trl(policy: CausalLM, reference: CausalLM, kind: str, folder: Path) -> dict[str, float]:
    """The same of TRL's DPOTrainer on the same token ids."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    loaded = []
    for name, model in (("policy", policy), ("reference", reference)):
        save_model(model, folder / name)
        loaded.append(AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32))
    options = KINDS[kind]
    config = DPOConfig(
        output_dir=str(folder / "out"),
        beta=options["beta"],
        loss_type=[options.get("loss", "sigmoid")],
        per_device_train_batch_size=len(PAIRS),
        gradient_checkpointing=False,
        bf16=False,
        report_to=[],
        use_cpu=True,
    )
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # its own tokens are not used
    words = Tokenizer(WordLevel({"a": 3, "b": 4, "c": 5, "<e>": 0}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>", pad_token="<e>")
    trainer = DPOTrainer(loaded[0], loaded[1], args=config, train_dataset=rows, processing_class=tokenizer)
    store = store_of_pairs()
    examples = []
    for index, (prompt, chosen, _) in enumerate(PAIRS):
        ids = store.example(index)[0].tolist()
        parts_of = {"prompt_ids": ids[:prompt], "chosen_ids": ids[prompt : prompt + chosen]}
        examples.append({**parts_of, "rejected_ids": ids[prompt + chosen :]})
    batch = trainer.data_collator(examples)
    loaded[0].train()
    loss = trainer.compute_loss(loaded[0], batch)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in loaded[0].parameters() if p.grad is not None]).norm()
    told = trainer._metrics["train"]
    return {
        "loss": loss.item(),
        "gradient": float(norm),
        "margin": told["rewards/margins"][-1],
        "accuracy": told["rewards/accuracies"][-1],
        "log_prob_chosen": told["logps/chosen"][-1],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_that_trl_gave(kind: str, tiny_model: Path) -> None:
    found, golden = ours(*models(tiny_model), kind), json.loads(GOLDEN.read_text())[kind]
    assert found == pytest.approx(golden, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_trl(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    theirs = trl(*models(tiny_model), kind, tmp_path)
    assert ours(*models(tiny_model), kind) == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert theirs == pytest.approx(json.loads(GOLDEN.read_text())[kind], rel=1e-4, abs=1e-4)
