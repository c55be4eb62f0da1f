"""From logits to token ids, one row at a time in meaning and all rows at once in work.

Every filter is a floor on a row's logits: what lies below it can't be drawn. The draw itself inverts the cumulative
distribution at one number per row and step, which depends on the row's key and the step alone. So a row's text is
the same whatever else is in the batch, and no random state exists.

Shapes: B rows, V columns of logits, of which the first `num_tokens` are real tokens (the rest is padding).
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from chatwright.settings import Settings

_FEW = 256
"""Top-p looks at this many tokens first and sorts a whole row only when they hold too little."""


class SamplingSettings(Settings):
    """How replies are drawn.

    Args:
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: draw among the k most likely tokens only (all that tie with the k-th are kept).
        top_p: draw among the fewest most likely tokens that together hold this probability
            (Holtzman et al. 2020, nucleus sampling); applied after temperature and `top_k`.
        max_new_tokens: bound on the tokens of a reply, forced ones (tool results) included.
        repetition_penalty: divides positive and multiplies negative logits of every token that the row already
            holds, prompt included (Keskar et al. 2019, CTRL; as transformers does).
        seed: same seed, same prompt, same text.
        stop: texts that end a reply and aren't part of it; the responder looks for them, for the engine knows no text.
    """

    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_new_tokens: int = Field(default=256, ge=1)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()


def row_key(seed: int, prompt: Sequence[int], copy: int = 0) -> int:
    """The 64-bit key of a row's random numbers: the seed, the prompt and how many equal prompts came before it.

    Copies of a prompt differ from each other; a prompt alone draws what it draws in any batch.
    """
    digest = hashlib.blake2b(array("q", [seed, copy, *prompt]).tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def uniform(key: int, step: int) -> float:
    """A number in [0, 1) that depends on `key` and `step` alone; a multiple of 2⁻³²."""
    digest = hashlib.blake2b(struct.pack("<QQ", key, step), digest_size=4).digest()
    return int.from_bytes(digest, "little") * 2.0**-32


def sample(
    logits: torch.Tensor,
    settings: SamplingSettings,
    keys: Sequence[int],
    steps: Sequence[int],
    *,
    num_tokens: int | None = None,
    never: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw the next token of each row.

    Args:
        logits: `[B, V]`, any float dtype; not changed.
        keys: B row keys (`row_key`). steps: B counters, the tokens that the row's reply already has.
        num_tokens: ids at and beyond it are never drawn (padded vocabularies); V by default.
        never: int64 `[n]`, further ids that are never drawn.
        seen: bool `[B, V]`, the tokens that each row holds; needed where there is a repetition penalty.

    Returns:
        int64 `[B]`.
    """
    scores = (logits if num_tokens is None else logits[:, :num_tokens]).float()  # [B, num_tokens]
    if never is not None:
        scores = scores.index_fill(-1, never, -torch.inf)
    if settings.repetition_penalty != 1.0:
        assert seen is not None, "a repetition penalty needs the tokens seen so far"
        scores = penalized(scores, seen[:, : scores.shape[1]], settings.repetition_penalty)
    if settings.temperature == 0.0:
        return scores.max(dim=-1).indices  # as argmax, and faster
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / settings.temperature
    scores = filtered(scores, settings)
    mass = torch.softmax(scores, dim=-1).cumsum(dim=-1, dtype=torch.float64)  # [B, num_tokens]
    draws = torch.tensor([uniform(k, n) for k, n in zip(keys, steps, strict=True)], dtype=torch.float64)
    # The first id whose cumulative mass exceeds the draw: never one of probability 0, as `uniform` stays below 1.
    wanted = draws.to(mass.device)[:, None] * mass[:, -1:]
    # (Not a number anywhere in a row gives V: kept in range here, and told by its log-probability.)
    return torch.searchsorted(mass, wanted, right=True)[:, 0].clamp_(max=mass.shape[-1] - 1)


def penalized(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """`[B, V]` scores with those of `seen` tokens made less likely by `penalty` > 1."""
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def filtered(scores: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """`[B, V]` float32 scores, −∞ for what top-k and then top-p leave out; ties with the last one kept stay in."""
    if settings.top_k is not None and settings.top_k < scores.shape[-1]:
        floor = scores.topk(settings.top_k, dim=-1).values[:, -1:]  # [B, 1]
        scores = torch.where(scores < floor, -torch.inf, scores)
    if settings.top_p < 1.0:
        floor = _nucleus_floor(scores, settings.top_p)
        scores = torch.where(scores < floor, -torch.inf, scores)
    return scores


def _nucleus_floor(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """`[B, 1]`: the score of the last token that is needed to reach `top_p`."""
    total = torch.logsumexp(scores, dim=-1, keepdim=True)  # [B, 1]
    few = min(_FEW, scores.shape[-1])
    ranked = scores.topk(few, dim=-1).values  # [B, few], descending
    mass = (ranked - total).exp().cumsum(dim=-1, dtype=torch.float64)
    if few < scores.shape[-1] and bool((mass[:, -1] < top_p).any()):
        ranked = scores.sort(dim=-1, descending=True).values
        mass = (ranked - total).exp().cumsum(dim=-1, dtype=torch.float64)
    last = (mass < top_p).sum(dim=-1, keepdim=True).clamp_(max=ranked.shape[-1] - 1)
    return ranked.gather(-1, last)


def chosen_log_probs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float32 `[B]`: the model's own log-probability of `ids`, before temperature, penalty and filters.

    Over all V columns, as the training loss counts them.
    """
    wide = logits.float()
    return wide.gather(-1, ids[:, None])[:, 0] - torch.logsumexp(wide, dim=-1)
