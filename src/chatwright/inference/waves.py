"""One wave of rows through one KV cache: admit, prefill, decode, hand freed cache rows to waiting prompts.

Knows token ids only. Letters: T tokens of one forward, B rows of one forward, D hidden size, V columns of logits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch

from chatwright.errors import ModelError
from chatwright.inference.sampling import SamplingSettings, chosen_log_probs, sample
from chatwright.layouts import SegmentLayout
from chatwright.models.foreign import ForeignCache
from chatwright.models.kv_cache import KVCache

StopReason = Literal["stop", "length", "controller"]
"""`stop`: a stop token was drawn. `length`: `max_new_tokens` or the model's context is used up.
`controller`: the controller ended the reply."""


class Controller(Protocol):
    """Watches the tokens of the replies and may force what comes next."""

    def on_token(self, row: int, token_id: int) -> Sequence[int] | None:
        """Called with each *drawn* token of prompt number `row` but the last.

        Returns:
            Ids that follow the token in the reply, mostly none of them; None ends the reply.
        """


class StreamedToken(NamedTuple):
    """One token of a reply, as soon as it exists.

    Args:
        row: which prompt it belongs to.
        logprob: the model's log-probability of the token; None for a forced one.
        stop_reason: set on the last token of the reply, None before.
    """

    row: int
    token_id: int
    logprob: float | None
    stop_reason: StopReason | None


@dataclass(slots=True)
class Row:
    """One prompt at work.

    Args:
        index: its number among the prompts. key: of its random numbers.
        pending: tokens that the cache does not hold yet; the whole prompt at first.
        limit: bound on the tokens of the reply. made: those it has.
        slot: its row of the cache while it is at work.
    """

    index: int
    key: int
    pending: list[int]
    limit: int
    made: int = 0
    slot: int = -1
    finished: bool = False


@dataclass(slots=True)
class Wave:
    """Rows that share a cache; more of them than the cache has rows wait for their turn."""

    model: Any  # CausalLM or ForeignLM, with the cache that its new_cache made
    device: torch.device
    cache: KVCache | ForeignCache
    settings: SamplingSettings
    controller: Controller | None
    stop_ids: frozenset[int]
    never: torch.Tensor | None
    num_tokens: int | None
    prefill_tokens: int
    seen: torch.Tensor | None = None  # bool [slots, V], with a repetition penalty only

    def run(self, rows: Sequence[Row]) -> Iterator[StreamedToken]:
        """The tokens of all `rows`, as they come."""
        waiting, free = deque(rows), list(range(self.cache.num_rows))
        active: list[Row] = []
        while waiting or active:
            fresh = self._admit(waiting, free)
            yield from self._advance(fresh or active)
            active = [*active, *fresh]
            free += [row.slot for row in active if row.finished]
            active = sorted((row for row in active if not row.finished), key=lambda row: row.slot)

    def _admit(self, waiting: deque[Row], free: list[int]) -> list[Row]:
        """Waiting rows that get a cache row now: as many as one prefill takes, at least one where any is free.

        The longest gets the first cache row: neighbours of like length decode faster.
        """
        fresh: list[Row] = []
        tokens = 0
        while waiting and len(fresh) < len(free):
            if fresh and tokens + len(waiting[0].pending) > self.prefill_tokens:
                break
            fresh.append(waiting.popleft())
            tokens += len(fresh[-1].pending)
        fresh.sort(key=lambda row: -len(row.pending))
        free.sort()
        for row in fresh:
            row.slot = free.pop(0)
            self.cache.reset(row.slot)
            if self.seen is not None:
                self.seen[row.slot] = False
        return fresh

    def _advance(self, rows: list[Row]) -> list[StreamedToken]:
        """One forward over what is pending in `rows`, and the token that each draws."""
        ids, log_probs = self._draw(rows)
        events: list[StreamedToken] = []
        drawn = zip(rows, ids, log_probs, strict=True)
        for row, token, log_prob in sorted(drawn, key=lambda one: one[0].index):
            if not math.isfinite(log_prob):
                raise ModelError(
                    f"the logits of prompt {row.index} are not finite (log-probability {log_prob})",
                    place=f"token {row.made} of the reply",
                    hint="check the weights (training diverged?), or run in float32 instead of float16",
                )
            events += self._accept(row, token, log_prob)
        return events

    @torch.inference_mode()
    def _draw(self, rows: list[Row]) -> tuple[list[int], list[float]]:
        device = self.device
        lengths = [len(row.pending) for row in rows]
        held = self.cache.lengths
        past = [held[row.slot] for row in rows]
        flat = torch.tensor([token for row in rows for token in row.pending], device=device)  # [T]
        places = [place for start, n in zip(past, lengths, strict=True) for place in range(start, start + n)]
        layout = SegmentLayout.from_lengths(
            lengths, [start + n for start, n in zip(past, lengths, strict=True)], device
        )
        slots = [row.slot for row in rows]
        hidden, _ = self.model(  # [T, D]
            flat, torch.tensor(places, device=device), layout, cache=self.cache, cache_rows=slots
        )
        if len(flat) > len(rows):
            hidden = hidden[layout.cu_q[1:].long() - 1]  # [B, D], the last token of each row
        logits = self.model.output_head().logits(hidden).contiguous().float()  # [B, V]
        seen = self._mark_seen(slots, lengths, flat, logits.shape[-1])
        keys, steps = [row.key for row in rows], [row.made for row in rows]
        ids = sample(logits, self.settings, keys, steps, num_tokens=self.num_tokens, never=self.never, seen=seen)
        return ids.tolist(), chosen_log_probs(logits, ids).tolist()

    def _mark_seen(
        self, slots: list[int], lengths: list[int], flat: torch.Tensor, num_columns: int
    ) -> torch.Tensor | None:
        """bool `[B, V]`: the tokens that each row holds; None where nothing asks for it."""
        if self.settings.repetition_penalty == 1.0:
            return None
        if self.seen is None:
            self.seen = torch.zeros(self.cache.num_rows, num_columns, dtype=torch.bool, device=flat.device)
        rows = torch.tensor(slots, device=flat.device)
        self.seen[rows.repeat_interleave(torch.tensor(lengths, device=flat.device)), flat] = True
        return self.seen[rows]

    def _accept(self, row: Row, token: int, log_prob: float) -> list[StreamedToken]:
        """The drawn token and what the controller forces after it, as events; decides whether the row goes on."""
        row.pending, row.made = [token], row.made + 1
        reason: StopReason | None = "stop" if token in self.stop_ids else None
        if reason is None and row.made < row.limit and self.controller is not None:
            forced = self.controller.on_token(row.index, token)
            if forced is None:
                reason = "controller"
            else:
                row.pending += list(forced)[: row.limit - row.made]
                row.made += len(row.pending) - 1
        if reason is None and row.made >= row.limit:
            reason = "length"
        row.finished = reason is not None
        events = [StreamedToken(row.index, token, log_prob, None)]
        events += [StreamedToken(row.index, forced_id, None, None) for forced_id in row.pending[1:]]
        events[-1] = events[-1]._replace(stop_reason=reason)
        return events
