"""The trainer beside a plain loop of transformers and torch on the same tokens: gradients, weights, held-out loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.batches.loader import step_batches
from chatwright.batches.token_store import TokenStore
from chatwright.optim.schedules import multipliers
from chatwright.train.step import accumulate_step
from training_runs import Run, conversations, farthest, prepare, recipe, train, with_weights, write_rows

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

STEPS = 5
SETTINGS: dict[str, Any] = {
    "packing": {"by": "tokens", "tokens_per_pack": 300, "packs_per_step": 3},
    "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1.0, "betas": [0.9, 0.95]},
    "schedule": {"name": "linear", "warmup_fraction": 0.3},
    "train": {"epochs": 9, "max_steps": STEPS},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """16 conversations."""
    return write_rows(tmp_path / "rows.jsonl", conversations(16))


def their_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def naive_sum(model: Any, store: TokenStore, examples: Any) -> tuple[torch.Tensor, float]:
    """Σ of −log p over the trained tokens, conversation by conversation, whole logits; and their number."""
    total, count = torch.zeros(()), 0.0
    for index in examples:
        ids, weights = (torch.from_numpy(array.copy()) for array in store.example(int(index)))
        log_p = model(ids.long()[None]).logits[0, :-1].log_softmax(-1)
        nll = -log_p.gather(1, ids[1:, None].long())[:, 0]
        total = total + (nll * weights[1:]).sum()
        count += float(weights[1:].sum())
    return total, count


def named(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def test_the_gradient_of_a_step(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    trainer, data, _ = prepare(recipe(tiny_model, rows, tmp_path / "run", **SETTINGS))
    inner = trainer.trainer
    sums = accumulate_step(inner.module, step_batches(data.store, data.plan, 0), inner.runtime, seed=0)
    views = dict(zip(inner.optimizer.parameters, inner.optimizer.gradients.views, strict=True))
    theirs = their_model(tiny_model)
    total, count = naive_sum(theirs, data.store, data.plan.examples_of_step(0))
    (total / count).backward()
    assert sums.weight == count and sums.loss == pytest.approx(total.item(), rel=1e-5)
    wanted = {name: parameter.grad for name, parameter in named(theirs).items()}
    assert farthest({name: view / sums.weight for name, view in views.items()}, wanted) <= 1e-5


@pytest.fixture
def run(tiny_model: Path, rows: Path, tmp_path: Path) -> Run:
    """Five steps of ours, with held-out rows measured at the end."""
    held = write_rows(tmp_path / "held.jsonl", conversations(7, start=200))
    return train(recipe(tiny_model, rows, tmp_path / "run", **SETTINGS, heldout={"data": [{"path": str(held)}]}))


def test_five_steps_of_adamw(tiny_model: Path, run: Run) -> None:
    data = run.data
    theirs = their_model(tiny_model)
    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    supervised = data.plan.step_sums(data.store.supervised_counts).tolist()
    settings = recipe(Path("x"), None, Path("x"), **SETTINGS)
    losses = []
    for step, rate in enumerate(multipliers(settings.schedule, supervised)):
        total, count = naive_sum(theirs, data.store, data.plan.examples_of_step(step))
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append((float(total / count), float(norm)))
    ours = [(line["loss"], line["grad_norm"]) for line in run.steps]
    assert [pair[0] for pair in ours] == pytest.approx([pair[0] for pair in losses], rel=1e-5)
    assert [pair[1] for pair in ours] == pytest.approx([pair[1] for pair in losses], rel=1e-4)
    assert farthest(run.weights, named(theirs)) <= 2e-5  # seen: 1.01e-5 on a processor without AMX, less on others


def test_the_saved_model_gives_the_held_out_loss_in_transformers(run: Run) -> None:
    with torch.no_grad():
        total, count = naive_sum(their_model(run.folder), run.data.heldout, range(len(run.data.heldout)))
    assert run.result.heldout_loss == pytest.approx(float(total) / count, rel=1e-5)
    assert len(run.data.heldout) == 7


def test_the_mask_matters_to_these_comparisons(tiny_model: Path, run: Run) -> None:
    """With every token trained, the naive loss is far from ours: the tests above would fail."""
    store = run.data.store
    everything = with_weights(store, store.weights * 0 + 1)
    theirs = their_model(tiny_model)
    with torch.no_grad():
        right, count = naive_sum(theirs, store, run.data.plan.examples_of_step(0))
        wrong, more = naive_sum(theirs, everything, run.data.plan.examples_of_step(0))
    assert float(right / count) == pytest.approx(run.steps[0]["loss"], rel=1e-5)
    assert abs(float(wrong / more) - run.steps[0]["loss"]) > 1e-3 and more > 1.5 * count
