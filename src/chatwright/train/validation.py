"""Loss on held-out conversations or pairs, and the objective's metrics, as sums that add up over packs and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import log, nan

import torch
from torch import nn

from chatwright.batches.packed_batch import PackedBatch


@dataclass(frozen=True, slots=True)
class HeldoutSums:
    """What packs add up to.

    Args:
        total: Σ weight · loss. weight: Σ weight.
        nats: unweighted losses of the supervised tokens that stand for text. text_bytes: bytes of that text.
        metrics: the objective's own, name → (sum, weight).
    """

    total: float
    weight: float
    nats: float
    text_bytes: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Nats a unit of weight."""
        return self.total / max(self.weight, 1e-12)

    @property
    def bits_per_byte(self) -> float:
        """What a byte of text costs, control tokens left out on both sides (as in nanochat's loss_eval)."""
        return self.nats / log(2) / self.text_bytes if self.text_bytes else nan


@torch.inference_mode()
def heldout_sums(module: nn.Module, packs: Iterable[PackedBatch], token_bytes: torch.Tensor) -> HeldoutSums:
    """Add up the losses of some packs.

    Args:
        module: the `StepModule`, in evaluation mode. packs: on the model's device.
        token_bytes: int64 `[V]` on the CPU: bytes of text that each token stands for (`TextTokenizer.token_bytes`).
    """
    sums = torch.zeros(4, dtype=torch.float64)
    metrics: dict[str, tuple[float, float]] = {}
    for batch in packs:
        outcome = module(batch)
        for name, (total, weight) in outcome.metrics.items():
            before = metrics.get(name, (0.0, 0.0))
            metrics[name] = (before[0] + total, before[1] + weight)
        counts = token_bytes[batch.targets.cpu()]
        losses = outcome.per_token.cpu().double()  # this order: MPS has no float64
        sums += torch.tensor(
            [float(outcome.total), outcome.weight, float(losses[counts > 0].sum()), float(counts.sum())],
            dtype=torch.float64,
        )
    total, weight, nats, text_bytes = sums.tolist()
    return HeldoutSums(total, weight, nats, text_bytes, metrics)
