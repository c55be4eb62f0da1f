"""What a step over preference pairs minimizes. The unit of weight is the pair: a step divides by its pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.pairs import PairBatch
from chatwright.losses.linear_cross_entropy import token_log_probs
from chatwright.losses.loss_sum import LossSum
from chatwright.losses.preference import PairLoss, dpo_loss, reward_loss
from chatwright.losses.settings import DpoSettings, RewardSettings
from chatwright.models.transformer import CausalLM
from chatwright.train.auxiliary import with_auxiliary


@dataclass(frozen=True, slots=True)
class SideLogProbs:
    """Log-probabilities of both sides of P pairs.

    Args:
        sums: `[P, 2]` with a graph, over each reply's tokens, in nats; the better reply first.
        lengths: int64 `[P, 2]`, their tokens.
        aux: what the model gave beside the hidden states.
    """

    sums: torch.Tensor
    lengths: torch.Tensor
    aux: Mapping[str, torch.Tensor] = field(default_factory=dict)


def laid_out_for(model: Any, batch: PairBatch) -> PairBatch:
    """The batch as the model takes it: prompts written out for both replies where it runs through transformers."""
    return batch if isinstance(model, CausalLM) else batch.unshared()


def side_log_probs(model: Any, batch: PairBatch) -> SideLogProbs:
    """One forward over all pairs of a batch."""
    batch = laid_out_for(model, batch)
    hidden, aux = model(batch.input_ids, batch.position_ids, batch.layout)
    found = token_log_probs(hidden[batch.supervised_index], model.output_head(), batch.targets)  # [N]
    count = batch.num_pairs
    sums = found.new_zeros(2 * count).index_add(0, batch.segment_of_target, found)
    lengths = torch.bincount(batch.segment_of_target, minlength=2 * count)
    return SideLogProbs(sums.view(2, count).t(), lengths.view(2, count).t(), aux)


def nothing_to_train(model: Any, batch: PackedBatch) -> LossSum:
    """The sum of a pack without pairs: zero, with a graph."""
    hidden, _ = model(batch.input_ids, batch.position_ids, batch.layout)
    return LossSum(hidden.sum() * 0.0, 0.0, 0, hidden.detach().new_zeros(0).float())


def pair_sum(found: PairLoss, batch: PairBatch, model: Any, aux: Mapping[str, torch.Tensor]) -> LossSum:
    """The loss of P pairs as sums, experts' balance added; every metric has the weight P.

    `per_token` shares a pair's loss evenly among its written tokens, so that an example's losses add up to its own.
    """
    pairs = batch.num_pairs
    owner = batch.segment_of_target % pairs  # [N]
    per_token = (found.each / torch.bincount(owner, minlength=pairs))[owner].float()
    metrics = {name: (total, float(pairs)) for name, total in found.metrics.items()}
    outcome = LossSum(found.total, float(pairs), len(batch.targets), per_token, metrics)
    halves = torch.full((2 * pairs,), 0.5, device=per_token.device)  # a pair is two segments, padding none
    weights = torch.cat([halves, halves.new_zeros(batch.layout.num_segments - 2 * pairs)])
    return with_auxiliary(outcome, model, aux, batch, weights)


@dataclass(frozen=True, slots=True)
class DpoObjective:
    """The DPO loss of pairs, against log-probabilities of a reference that were made before.

    Args:
        reference: float64 `[pairs, 2]` on the CPU, by the pairs' numbers: log p(better), log p(worse).
    """

    reference: torch.Tensor
    settings: DpoSettings
    weighs_as_planned: ClassVar[bool] = True

    def __call__(self, model: Any, batch: PackedBatch) -> LossSum:
        """The sums of a batch of pairs."""
        if not isinstance(batch, PairBatch):
            return nothing_to_train(model, batch)
        sides = side_log_probs(model, batch)
        reference = self.reference[batch.pairs.cpu()].to(sides.sums)  # cast first: MPS has no float64
        chosen = self.settings
        found = dpo_loss(
            sides.sums,
            reference,
            sides.lengths,
            beta=chosen.beta,
            loss=chosen.loss,
            label_smoothing=chosen.label_smoothing,
            sft_weight=chosen.sft_weight,
        )
        return pair_sum(found, batch, model, sides.aux)


@dataclass(frozen=True, slots=True)
class RewardObjective:
    """The pairwise loss of a reward model's scores, read at each reply's last token."""

    settings: RewardSettings
    weighs_as_planned: ClassVar[bool] = True

    def __call__(self, model: Any, batch: PackedBatch) -> LossSum:
        """The sums of a batch of pairs; `model` is a `RewardModel`."""
        if not isinstance(batch, PairBatch):
            return nothing_to_train(model, batch)
        hidden, aux = model(batch.input_ids, batch.position_ids, batch.layout)
        scores = model.scores(hidden[batch.last_states()]).view(2, batch.num_pairs).t()
        return pair_sum(reward_loss(scores, margin=self.settings.margin), batch, model, aux)
