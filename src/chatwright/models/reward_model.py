"""A decoder that scores: one number from the hidden state of a reply's last token.

The same parameters and names as Hugging Face's `…ForSequenceClassification` with one label: the decoder without an
output head, and `score.weight` `[1, D]` without a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig
from chatwright.models.families import config_to_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import is_classifier, load_model, read_config

CAUSAL, CLASSIFIER = "ForCausalLM", "ForSequenceClassification"
CLASSIFIED_FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2")
"""Families that transformers can load as a classifier of one label with these parameter names."""


class RewardModel(CausalLM):
    """A decoder with a linear score; it has no output head, so it writes nothing.

    Attributes:
        score: `[D]` → 1, in the place of the head.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(replace(config, tied=True))  # tied: without a head of its own
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[N, D]` → `[N]`, at least float32: in bf16, scores near 1 would be steps of 1/128 apart, as pairs may be."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return F.linear(hidden.to(wide), self.score.weight.to(wide)).squeeze(-1)


def with_score(model: CausalLM, seed: int) -> RewardModel:
    """A reward model of a language model's weights, which it takes over; one that scores already stays as it is.

    The score begins as N(0, 1 / (D + 1)) (Stiennon et al. 2020, arXiv 2009.01325, as released), drawn from `seed`.
    """
    if isinstance(model, RewardModel):
        return model
    weight = model.model.embed_tokens.weight
    with torch.device("meta"):
        made = RewardModel(model.config)
    made.model = model.model
    size = model.config.hidden_size
    drawn = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) / (size + 1) ** 0.5
    made.score = nn.Linear(size, 1, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.score.weight.copy_(drawn)
    return made


def load_reward_model(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> RewardModel:
    """Load a folder that holds a classifier of one label.

    Raises:
        ModelError: it is a language model, has several labels, or its weights can't be used.
    """
    raw = read_config(folder)
    if not is_classifier(raw):
        raise ModelError(
            "this model writes replies and scores none",
            place=str(folder),
            hint="train a reward model from it with stage: reward",
        )
    model = load_model(folder, dtype=dtype, device=device, make=RewardModel)
    assert isinstance(model, RewardModel)
    return model


def reward_config(config: DecoderConfig, stop_ids: Sequence[int], control_ids: Sequence[int]) -> dict[str, Any]:
    """The config.json of a reward model.

    transformers scores the last token that isn't the padding, so the padding must not be a token that ends replies.

    Args:
        stop_ids: what ends a reply. control_ids: tokens that no text gives.

    Raises:
        ModelError: transformers has no such classifier, or every control token ends replies.
    """
    content = config_to_hf(config)
    [architecture] = content["architectures"]
    padding = [index for index in sorted(control_ids) if index not in stop_ids]
    if config.family not in CLASSIFIED_FAMILIES:
        known = ", ".join(CLASSIFIED_FAMILIES)
        raise ModelError(f"reward models can't be saved for the family {config.family}; known here: {known}")
    if not padding:
        raise ModelError(
            "every control token of this template ends a reply, and the padding of a reward model must not",
            hint="add one with template.add_tokens: [<pad>]",
        )
    return {
        **content,
        "architectures": [architecture.replace(CAUSAL, CLASSIFIER)],
        "num_labels": 1,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": padding[0],
    }
