"""The loss of preference pairs by a plain program: each side alone, whole logits, its own shift; no batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from chatwright.layouts import SegmentLayout
from chatwright.losses.preference import dpo_loss, reward_loss
from chatwright.losses.settings import DpoSettings, RewardSettings
from chatwright.recipes.data import RunData
from chatwright.recipes.run_settings import RunSettings
from chatwright.train.objectives import Objective
from chatwright.train.pair_objectives import DpoObjective, RewardObjective


class PlainPairs:
    """The pairs of a selftest, their objective as training has it, and the same loss by a plain program.

    The reference of DPO is drawn at random: with the model's own, all pairs would pull alike.
    """

    def __init__(self, settings: RunSettings, pairs: RunData) -> None:
        self.store = pairs.store
        self.dpo = settings.dpo or DpoSettings()
        self.reward = settings.reward or RewardSettings() if settings.stage == "reward" else None
        drawn = torch.rand(len(self.store), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        lengths = torch.from_numpy(np.asarray(self.store.lengths, dtype=np.float64))
        self.reference = -drawn * lengths[:, None]

    @property
    def objective(self) -> Objective:
        """What training minimizes."""
        return RewardObjective(self.reward) if self.reward else DpoObjective(self.reference, self.dpo)

    def loss(self, model: Any, member: int, device: torch.device) -> torch.Tensor:
        """The loss of one pair."""
        ids, weights = self.store.example(member)
        prompt, chosen = int(self.store.prompt_lengths[member]), int(self.store.chosen_lengths[member])
        places = [np.arange(prompt + chosen), np.r_[0:prompt, prompt + chosen : len(ids)]]
        sides = [self._side(model, ids[place], weights[place], device) for place in places]
        values = torch.stack([value for value, _ in sides])[None]  # [1, 2]
        if self.reward:
            return reward_loss(values, margin=self.reward.margin).total
        lengths = torch.tensor([[count for _, count in sides]], device=device)
        chosen_settings = self.dpo.model_dump()
        return dpo_loss(values, self.reference[member][None].to(values), lengths, **chosen_settings).total

    def _side(self, model: Any, ids: np.ndarray, weights: np.ndarray, device: torch.device) -> tuple[torch.Tensor, int]:
        """A side's score, or the log-probability of its reply; and the reply's tokens."""
        x = torch.tensor(ids, device=device).long()
        layout = SegmentLayout.from_lengths([len(x)], device=device)
        hidden, _ = model(x, torch.arange(len(x), device=device), layout)
        if self.reward:
            return model.scores(hidden)[-1], 0
        written = torch.tensor(weights[1:] > 0, device=device)
        losses = F.cross_entropy(model.output_head().logits(hidden)[:-1], x[1:], reduction="none")
        return -(losses * written).sum(), int(written.sum())
