"""From the hidden states of some rows to their next tokens, or to the log-probabilities of tokens that are known.

B rows · N places · D hidden size · V columns of logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from chatwright.errors import ModelError
from chatwright.inference.requests import Row, StreamedToken
from chatwright.inference.sampling import SamplingSettings, chosen_log_probs, sample

_PLACES = 64
"""Places whose logits exist at one time while a known text is scored."""


class Drawer:
    """Draws the next token of each row by that row's own settings.

    Args:
        model: has `output_head()`.
        num_tokens: ids of the tokenizer; columns beyond it are padding and never drawn.
        never_ids: further ids that are never drawn: those that only a controller may write.
    """

    def __init__(self, model: Any, num_tokens: int | None, never_ids: Sequence[int]) -> None:
        self.model, self.num_tokens = model, num_tokens
        device = next(model.parameters()).device
        self.never = torch.tensor(list(never_ids), device=device) if never_ids else None

    def draw(self, rows: Sequence[Row], hidden: torch.Tensor) -> list[StreamedToken]:
        """The next token of each row: `[B, D]` → B tokens.

        Raises:
            ModelError: logits that are not finite.
        """
        logits = self.model.output_head().logits(hidden).contiguous().float()  # [B, V]
        ids = torch.zeros(len(rows), dtype=torch.long, device=logits.device)
        for settings, members in _alike(rows):
            some = logits if len(members) == len(rows) else logits[members]
            ids[members] = self._sample(some, settings, [rows[place] for place in members])
        log_probs = chosen_log_probs(logits, ids).tolist()
        tokens = []
        for place, (row, token, log_prob) in enumerate(zip(rows, ids.tolist(), log_probs, strict=True)):
            allowed: tuple[float, ...] = ()
            if row.request.allowed is not None:
                token, log_prob, allowed = _choose(row, logits[place])
            _require_finite(row, log_prob)
            tokens.append(StreamedToken(row.number, token, log_prob, None, allowed))
        return tokens

    def _sample(self, logits: torch.Tensor, settings: SamplingSettings, rows: Sequence[Row]) -> torch.Tensor:
        keys, steps = [row.key for row in rows], [row.made for row in rows]
        seen = None
        if settings.repetition_penalty != 1.0:
            seen = torch.zeros(len(rows), logits.shape[-1], dtype=torch.bool, device=logits.device)
            for place, row in enumerate(rows):
                seen[place, row.held] = True
        return sample(logits, settings, keys, steps, num_tokens=self.num_tokens, never=self.never, seen=seen)

    def score(self, row: Row, hidden: torch.Tensor, targets: Sequence[int]) -> list[StreamedToken]:
        """Every target with its log-probability, `[N, D]` → N tokens; the last one ends the reply.

        Raises:
            ModelError: logits that are not finite.
        """
        head, wanted = self.model.output_head(), torch.tensor(targets, device=hidden.device)
        tokens: list[StreamedToken] = []
        for some, ids in zip(hidden.split(_PLACES), wanted.split(_PLACES), strict=True):
            logits = head.logits(some).float()  # [≤ _PLACES, V]
            drawable = logits if self.num_tokens is None else logits[:, : self.num_tokens]
            if self.never is not None:
                drawable = drawable.index_fill(-1, self.never, -torch.inf)
            best = drawable.argmax(dim=-1)
            log_probs = chosen_log_probs(logits, ids).tolist()
            for token, log_prob, is_best in zip(ids.tolist(), log_probs, (best == ids).tolist(), strict=True):
                _require_finite(row, log_prob)
                tokens.append(StreamedToken(row.number, token, log_prob, None, is_best=is_best))
        tokens[-1] = tokens[-1]._replace(stop_reason="length")
        return tokens


def _alike(rows: Sequence[Row]) -> list[tuple[SamplingSettings, list[int]]]:
    """The rows that are drawn by the same rule; seeds are in their keys."""
    groups: dict[tuple[object, ...], tuple[SamplingSettings, list[int]]] = {}
    for place, row in enumerate(rows):
        settings = row.request.settings
        rule = (settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty)
        groups.setdefault(rule, (settings, []))[1].append(place)
    return list(groups.values())


def _choose(row: Row, logits: torch.Tensor) -> tuple[int, float, tuple[float, ...]]:
    """The drawn token among the allowed ones, its log-probability and theirs, over all columns: `[V]` logits."""
    request = row.request
    allowed = torch.tensor(list(request.allowed or ()), device=logits.device)
    log_probs = logits[allowed] - torch.logsumexp(logits, dim=-1)
    rule = request.settings.model_copy(update={"repetition_penalty": 1.0})
    place = int(sample(log_probs[None], rule, [row.key], [row.made])[0])
    found = log_probs.tolist()
    return int(allowed[place]), found[place], tuple(found)


def _require_finite(row: Row, log_prob: float) -> None:
    if not math.isfinite(log_prob):
        raise ModelError(
            f"the logits of prompt {row.number} are not finite (log-probability {log_prob})",
            place=f"token {row.made} of the reply",
            hint="check the weights (training diverged?), or run in float32 instead of float16",
        )
