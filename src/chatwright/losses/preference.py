"""Losses over preference pairs: sums over pairs, never means.

P pairs. Sources: DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7); conservative DPO, label smoothing (Mitchell 2023,
"A note on DPO with noisy preferences"); IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17); RPO's SFT term (Pang et al.
2024, arXiv 2404.19733); the pairwise loss of reward models with a margin (Bradley-Terry; Touvron et al. 2023, arXiv
2307.09288, eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from chatwright.losses.settings import DpoLoss


@dataclass(frozen=True, slots=True)
class PairLoss:
    """A loss over pairs with what is told of them.

    Args:
        total: scalar with a graph, Σ over pairs. each: `[P]`, detached, of every pair.
        metrics: name → Σ over pairs; divided by the number of pairs they are means.
    """

    total: torch.Tensor
    each: torch.Tensor
    metrics: dict[str, float]


def sigmoid_loss(advantages: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """−(1 − ε) log σ(β a) − ε log σ(−β a) of each pair: `[P]` → `[P]`.

    Args:
        advantages: how much more than the reference the policy prefers the better reply, in nats.
        label_smoothing: ε, the share of pairs whose labels are taken for wrong.
    """
    scaled = beta * advantages
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


def ipo_loss(advantages: torch.Tensor, beta: float) -> torch.Tensor:
    """(a − 1 / (2 β))² of each pair: `[P]` → `[P]`; `advantages` as `sigmoid_loss` has them."""
    return (advantages - 1 / (2 * beta)) ** 2


def dpo_loss(
    policy: torch.Tensor,
    reference: torch.Tensor,
    lengths: torch.Tensor,
    *,
    beta: float,
    loss: DpoLoss = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> PairLoss:
    """The loss of pairs whose replies' log-probabilities are known.

    Args:
        policy, reference: `[P, 2]`, log p(better reply), log p(worse reply), summed over tokens, in nats.
        lengths: `[P, 2]`, tokens of each reply. IPO compares means over tokens, since its target doesn't grow with
            the length of replies (as its authors later advised; TRL does so, too).
        beta: how strongly the policy is held to the reference.
        sft_weight: adds so much of the better reply's mean negative log-likelihood.
    """
    reference = reference.to(policy)
    ratios = policy - reference  # [P, 2]
    sizes = lengths.clamp_min(1).to(policy)
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "sigmoid": partial(sigmoid_loss, ratios[:, 0] - ratios[:, 1], beta, label_smoothing),
        "ipo": lambda: ipo_loss(ratios[:, 0] / sizes[:, 0] - ratios[:, 1] / sizes[:, 1], beta),
    }
    each = losses[loss]()
    if sft_weight:
        each = each - sft_weight * policy[:, 0] / sizes[:, 0]
    with torch.no_grad():
        rewards = beta * ratios
        sums = {
            "accuracy": _won(rewards),
            "margin": rewards[:, 0] - rewards[:, 1],
            "reward_chosen": rewards[:, 0],
            "reward_rejected": rewards[:, 1],
            "log_prob_chosen": policy[:, 0],
            "log_prob_rejected": policy[:, 1],
        }
    return PairLoss(each.sum(), each.detach(), _summed(sums))


def reward_loss(scores: torch.Tensor, *, margin: float = 0.0) -> PairLoss:
    """−log σ(r_better − r_worse − margin) of pairs.

    Args:
        scores: `[P, 2]`, of the better and the worse reply.
        margin: by how much the better one should win, beyond winning.
    """
    difference = scores[:, 0] - scores[:, 1]
    with torch.no_grad():
        sums = {
            "accuracy": _won(scores),
            "margin": difference,
            "score_chosen": scores[:, 0],
            "score_rejected": scores[:, 1],
        }
    each = -F.logsigmoid(difference - margin)
    return PairLoss(each.sum(), each.detach(), _summed(sums))


def _won(values: torch.Tensor) -> torch.Tensor:
    """1 where the better side has more, ½ for a draw: a policy that is its reference is right in half of the pairs."""
    return (torch.sign(values[:, 0] - values[:, 1]) + 1) / 2


def _summed(values: dict[str, torch.Tensor]) -> dict[str, float]:
    stacked = torch.stack([each.detach().float().sum() for each in values.values()]).tolist()
    return dict(zip(values, stacked, strict=True))
