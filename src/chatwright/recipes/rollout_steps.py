"""Rollouts → one optimizer step's batches: advantages, weights, packs. A pure function, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from chatwright.batches.collate import collate
from chatwright.batches.loader import FAST_MULTIPLE, StepBatches
from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.token_store import TokenStore
from chatwright.recipes.reinforcement_settings import RlSettings
from chatwright.recipes.rollouts import DrawnRound, Rollout
from chatwright.templates.rendered import ExampleKey, RenderedExample
from chatwright.train.objectives import ADVANTAGES, DRAWN_LOG_PROBS

STD_FLOOR = 1e-4
"""Added to a group's standard deviation (as TRL's GRPOTrainer does), so that nearly equal rewards aren't blown up."""


def advantages_of(rewards: np.ndarray, kind: str) -> np.ndarray:
    """float64 `[E, n]` rewards of E groups → how much better each reply was than its group, `[E, n]`.

    Args:
        kind: `mean` or `mean_std` (see `RlSettings`); the deviation is the sample's (n − 1).
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    centred[np.ptp(rewards, axis=1) == 0] = 0.0  # the mean of equal numbers may differ in the last bit
    if kind == "mean":
        return centred
    deviation: np.ndarray = rewards.std(axis=1, ddof=1, keepdims=True)
    return centred / (deviation + STD_FLOOR)


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """A step of rollouts.

    Args:
        batches: this rank's. trained, silent: (problem's place, examples, tokens) of the rollouts that are trained, and
            of those whose advantage is 0, which change nothing and are in no pack.
    """

    batches: StepBatches
    trained: tuple[tuple[int, int, int], ...]
    silent: tuple[tuple[int, int, int], ...]


def rollout_step(
    rollouts: Sequence[Rollout],
    keys: Sequence[ExampleKey],
    settings: RlSettings,
    *,
    step: int,
    epoch: int,
    tokens_per_pack: int,
    rank: int = 0,
    world_size: int = 1,
) -> RolloutStep:
    """A rank's batches of one step.

    Args:
        rollouts: of all ranks, `settings.samples` of each problem, by problem and sample.
        keys: of the step's problems; a rollout's key has its sample as the part.
        tokens_per_pack: the size of a pack; a longer rollout gets one of its own.
    """
    rewards = np.array([each.reward for each in rollouts]).reshape(len(keys), settings.samples)
    advantages = advantages_of(rewards, settings.advantage).reshape(-1)
    weights = [1.0 / each.num_drawn if settings.normalize == "sequence" else 1.0 for each in rollouts]
    loud = [number for number in range(len(rollouts)) if advantages[number] != 0]
    members = [(number, each) for number in loud for each in rollouts[number].rounds]
    examples = [_example(each, weights[n], keys[rollouts[n].place], rollouts[n].sample) for n, each in members]
    store = TokenStore.from_examples(examples)
    own = _Owned(store, np.array([advantages[n] for n, _ in members]), [each for _, each in members])
    packs = list(_packs(store.lengths, tokens_per_pack))
    rounds = -(-len(packs) // world_size)
    mine = [packs[place] if place < len(packs) else [] for place in range(rank, rounds * world_size, world_size)]
    silent = sorted(set(range(len(rollouts))) - set(loud))
    left_out = sum(weights[number] * rollouts[number].num_drawn for number in silent)
    batches = StepBatches(
        step=step,
        epoch=epoch,
        packs=[own.batch(pack) for pack in mine],
        weight=float(store.weight_sums.sum()) + left_out,
        supervised_tokens=int(store.supervised_counts.sum()),
        num_tokens=store.num_tokens,
        num_examples=len(store),
        keys=tuple(store.keys),
        left_out=left_out,
        metrics=_metrics(rollouts, rewards),
    )
    counts = [tuple(_counts(rollouts[number]) for number in group) for group in (loud, silent)]
    return RolloutStep(batches, *counts)


def _counts(rollout: Rollout) -> tuple[int, int, int]:
    tokens = sum(len(each.prompt) + len(each.ids) for each in rollout.rounds)
    return rollout.place, len(rollout.rounds), tokens


def _example(drawn: DrawnRound, weight: float, key: ExampleKey, sample: int) -> RenderedExample:
    """Prompt and reply behind one another; weight on what was drawn, none on what was given or forced."""
    ids = np.array([*drawn.prompt, *drawn.ids], dtype=np.int32)
    own = [0.0 if each is None else weight for each in drawn.logprobs]
    weights = np.concatenate([np.zeros(len(drawn.prompt)), own]).astype(np.float32)
    return RenderedExample(ids, weights, (), ExampleKey(key.source, key.row, sample))


def _packs(lengths: np.ndarray, room: int) -> Iterator[list[int]]:
    """Examples in their order, cut where a pack is full."""
    pack: list[int] = []
    for number, length in enumerate(lengths.tolist()):
        if pack and sum(lengths[pack]) + length > room:
            yield pack
            pack = []
        pack.append(number)
    if pack:
        yield pack


@dataclass(frozen=True, slots=True)
class _Owned:
    """The store's examples with the advantage of each (float64 `[n]`), and the rounds they were made of."""

    store: TokenStore
    advantages: np.ndarray
    drawn: Sequence[DrawnRound]

    def batch(self, pack: Sequence[int]) -> PackedBatch:
        """A pack with each supervised token's advantage, and its log-probability when it was drawn."""
        tokens = int(self.store.lengths[pack].sum()) if pack else 0
        made = collate(self.store, pack, pad_to=max(1, -(-tokens // FAST_MULTIPLE)) * FAST_MULTIPLE)
        if not pack:
            return made
        drawn = [logprob for number in pack for logprob in self.drawn[number].logprobs if logprob is not None]
        of_segment = torch.from_numpy(self.advantages[pack].astype(np.float32))
        per_token = {ADVANTAGES: of_segment[made.segment_of_target], DRAWN_LOG_PROBS: torch.tensor(drawn)}
        return replace(made, per_token=per_token)


def _metrics(rollouts: Sequence[Rollout], rewards: np.ndarray) -> Mapping[str, tuple[float, float]]:
    """What the replies of the step were like; name → (sum, number)."""
    groups, samples = rewards.shape
    count = float(len(rollouts))
    drawn = [each for rollout in rollouts for part in rollout.rounds for each in part.logprobs if each is not None]
    return {
        "reward": (float(rewards.sum()), count),
        f"pass@{samples}": (float((rewards.max(axis=1) >= 1).sum()), float(groups)),
        "groups_with_signal": (float((np.ptp(rewards, axis=1) > 0).sum()), float(groups)),
        "finished_replies": (float(sum(each.finished for each in rollouts)), count),
        "reply_tokens": (float(sum(len(part.ids) for each in rollouts for part in each.rounds)), count),
        "tool_calls": (float(sum(each.tool_calls for each in rollouts)), count),
        "drawn_log_prob": (float(sum(drawn)), float(len(drawn))),
    }
