"""The policy gradient of replies that the model itself has drawn, as a sum over their tokens.

REINFORCE (Williams 1992) with advantages that are given: Σ weight · advantage · −log π(token). Its gradient is that of
−E[reward], if the replies were drawn by the very model that is trained. Sums, never means: the caller divides, once.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.losses.loss_sum import LossSum
from chatwright.models.output_head import OutputHead


def policy_gradient_loss(
    hidden: torch.Tensor,
    head: OutputHead,
    targets: torch.Tensor,
    weights: torch.Tensor,
    advantages: torch.Tensor,
    *,
    chunk_bytes: int | None = None,
) -> LossSum:
    """Σ weights · advantages · −log π(target); log π is the model's own, over the whole vocabulary at temperature 1.

    Args:
        hidden: `[N, D]`, the hidden states before each drawn token. head: what makes the logits.
        targets: int64 `[N]`, the drawn tokens.
        weights: `[N]`, > 0: each token's part of the divisor, such as 1, or 1 / tokens of its reply.
        advantages: `[N]`, of either sign: how much better the token's reply was than its group.
        chunk_bytes: as in `weighted_nll`.

    Returns:
        The sum; its `weight` is Σ weights, without the advantages; `per_token` is −log π of each token.

    Raises:
        ValueError: if the shapes don't agree.
    """
    if advantages.shape != weights.shape:
        raise ValueError(f"{list(weights.shape)} weights, but {list(advantages.shape)} advantages")
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    factors = weights.to(wide) * advantages.to(wide)
    found = weighted_nll(hidden, head, targets, factors, chunk_bytes=chunk_bytes)
    on_host = weights.detach().cpu().double()  # this order: MPS has no float64
    return replace(found, weight=float(on_host.sum()), supervised_tokens=len(on_host))
