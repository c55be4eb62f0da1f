"""Losses that keep a router from favouring few experts, and what is told of its choices.

M layers with experts · S segments · E experts · k experts a token. For one layer and a set of tokens, f is an expert's
share of the choices and P its mean probability; E · Σ f · P is 1 where all is even (Fedus et al. 2021, "Switch
Transformers", eq. 4-6). Which set of tokens decides whether a step may be split: over a segment the loss is that
segment's own; over a batch it is of whatever happened to be computed together.
"""

from __future__ import annotations

import torch

MOST_NAMED_EXPERTS = 16
"""Up to so many experts, each one's share of the choices is a metric."""


def segment_load_balance(counts: torch.Tensor, probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Each segment's own loss, summed over layers: `[M, S, E]` twice → `[S]`, M where all is even.

    The sequence-wise loss of DeepSeek-V2 (2024, eq. 12-14; also MiniMind's `seq_aux`, before its weight).

    Args:
        counts: how many of the segment's tokens chose each expert. probs: its tokens' probabilities, added up; the
            gradient flows through them alone.
        lengths: `[S]`, its tokens.
    """
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1.0)  # [M, S, E]
    return counts.shape[-1] * (shares * (probs / lengths[:, None])).sum((0, 2))


def batch_load_balance(counts: torch.Tensor, probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """One loss of all segments and layers together, a scalar, k where all is even.

    transformers' `load_balancing_loss_func`: layers are pooled before the product, and f adds up to k.

    Args:
        counts, probs, lengths: as for `segment_load_balance`, of the segments that are no padding.
    """
    tokens = counts.shape[0] * lengths.sum()
    return counts.shape[-1] * ((counts.sum((0, 1)) / tokens) * (probs.sum((0, 1)) / tokens)).sum()


def router_metrics(counts: torch.Tensor) -> dict[str, tuple[float, float]]:
    """What a training log tells of the choices, as name → (sum, weight).

    `expert_load_max`: the busiest expert's choices ÷ an even share, mean over layers (and packs, by their tokens).
    `expert_unused`: the share of experts that no token of a pack chose. With few experts `expert_share_E`, each one's
    share of all choices.

    Args:
        counts: `[M, S, E]`, of the segments that are no padding.
    """
    loads = counts.sum(1).double().cpu()  # [M, E]
    num_experts = loads.shape[1]
    total = float(loads.sum())
    if not total:
        return {}
    found = {
        "expert_load_max": (num_experts * float(loads.amax(1).sum()), total),
        "expert_unused": (float((loads == 0).sum()), float(loads.numel())),
    }
    if num_experts <= MOST_NAMED_EXPERTS:
        shares = loads.sum(0).tolist()
        found |= {f"expert_share_{expert}": (share, total) for expert, share in enumerate(shares)}
    return found
