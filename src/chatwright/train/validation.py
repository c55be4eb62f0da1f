"""Loss on held-out conversations: supervised tokens only, summed over ranks, never a mean of means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from chatwright.batches.packed_batch import PackedBatch
from chatwright.runtime import Runtime


@torch.inference_mode()
def heldout_loss(module: nn.Module, packs: Sequence[PackedBatch], runtime: Runtime) -> tuple[float, float]:
    """Mean loss per unit of weight over `packs`, and that weight.

    Args:
        module: the `StepModule`; its dropout is off while this runs.
        packs: all held-out packs; rank r takes every W-th.
    """
    training = module.training
    module.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in packs[runtime.rank :: runtime.world_size]:
        outcome = module(batch.to(runtime.device))
        sums[0] += float(outcome.total)
        sums[1] += outcome.weight
    module.train(training)
    if runtime.world_size > 1:
        on_device = sums.to(runtime.device)
        runtime.all_reduce(on_device)
        sums.copy_(on_device)
    total, weight = sums.tolist()
    return total / max(weight, 1e-12), weight
