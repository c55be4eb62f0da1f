"""Batched generation with a KV cache. Knows token ids and nothing else: no text, no template, no tool.

A prompt waits until a cache row is free, is prefilled, then decodes together with the others; it leaves when it is
done and its cache row goes to the next prompt (`waves`). Whoever knows the meaning of tokens can put more of them
into a reply through a `Controller` (tool results), and the model goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch

from chatwright.errors import ModelError
from chatwright.inference.sampling import SamplingSettings, row_key
from chatwright.inference.waves import Controller, Row, StopReason, StreamedToken, Wave
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM


@dataclass(slots=True)
class Reply:
    """Everything after the prompt: drawn and forced tokens, the stop token last where one was drawn.

    `logprobs` is as long as `ids`, None for forced tokens.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    stop_reason: StopReason = "length"


class Engine:
    """Generates token ids from token ids.

    Args:
        model: the language model, ours or one of transformers; its device and dtype are used as they are.
        stop_ids: tokens that end a reply.
        num_tokens: ids of the tokenizer; columns of the logits beyond it are padding and never drawn.
        never_ids: further ids that are never drawn: those that only a controller may write.
        cache_bytes: memory for keys and values; as many rows run at once as fit, at least one.
        max_rows: bound on the rows that run at once, whatever fits.
        prefill_tokens: prompts are prefilled together up to this many tokens (one prompt always goes whole).
    """

    def __init__(
        self,
        model: CausalLM | ForeignLM,
        *,
        stop_ids: Sequence[int],
        num_tokens: int | None = None,
        never_ids: Sequence[int] = (),
        cache_bytes: int = 2**30,
        max_rows: int = 64,
        prefill_tokens: int = 4096,
    ) -> None:
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.num_tokens, self.never_ids = num_tokens, tuple(never_ids)
        self.cache_bytes, self.max_rows, self.prefill_tokens = cache_bytes, max_rows, prefill_tokens

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        controller: Controller | None = None,
    ) -> list[Reply]:
        """The replies to all prompts, in their order.

        Raises:
            ModelError: as `stream` does.
        """
        replies = [Reply() for _ in prompts]
        for token in self.stream(prompts, settings, controller):
            reply = replies[token.row]
            reply.ids.append(token.token_id)
            reply.logprobs.append(token.logprob)
            reply.stop_reason = token.stop_reason or reply.stop_reason
        return replies

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        controller: Controller | None = None,
    ) -> Iterator[StreamedToken]:
        """Tokens of all replies as they come, rows interleaved. Close the iterator to cancel.

        Raises:
            ModelError: for an empty prompt, one that leaves no room in the model's context, one that holds an id
                which the model does not have, or logits that are not finite.
        """
        rows = self._rows(prompts, settings)
        device = next(self.model.parameters()).device
        never = torch.tensor(self.never_ids, device=device) if self.never_ids else None
        with _evaluating(self.model):
            for wave, capacity, num_slots in self._waves(rows):
                work = Wave(
                    model=self.model,
                    device=device,
                    cache=self.model.new_cache(num_slots, capacity),
                    settings=settings,
                    controller=controller,
                    stop_ids=self.stop_ids,
                    never=never,
                    num_tokens=self.num_tokens,
                    prefill_tokens=self.prefill_tokens,
                )
                yield from work.run(wave)

    def rows_that_fit(self, capacity: int) -> int:
        """How many rows of `capacity` tokens run at once within the memory for keys and values."""
        return max(1, min(self.max_rows, self.cache_bytes // (self.model.cache_token_bytes() * capacity)))

    def _rows(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> list[Row]:
        """Checked prompts with their bounds and the keys of their random numbers."""
        copies: dict[tuple[int, ...], int] = {}
        rows = []
        for index, prompt in enumerate(prompts):
            ids = tuple(int(token) for token in prompt)
            self._check(index, ids)
            copies[ids] = copies.get(ids, -1) + 1
            limit = min(settings.max_new_tokens, self.model.max_positions - len(ids))
            rows.append(Row(index, row_key(settings.seed, ids, copies[ids]), list(ids), limit))
        return rows

    def _check(self, index: int, ids: tuple[int, ...]) -> None:
        vocab_size, max_positions = self.model.config.vocab_size, self.model.max_positions
        place = f"prompt {index}"
        if not ids:
            raise ModelError("an empty prompt", place=place, hint="begin with the begin-of-text token")
        if len(ids) >= max_positions:
            raise ModelError(
                f"{len(ids)} tokens, and the model's context is {max_positions}",
                place=place,
                hint="shorten the prompt: leave earlier turns out, or start a new conversation",
            )
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = next(token for token in ids if not 0 <= token < vocab_size)
            raise ModelError(
                f"token id {wrong}, and the model has the ids 0 to {vocab_size - 1}",
                place=place,
                hint="use the tokenizer that belongs to this model",
            )

    def _waves(self, rows: list[Row]) -> Iterator[tuple[list[Row], int, int]]:
        """Rows that share a cache, its capacity in tokens and its number of rows.

        All together where the memory allows. Else by length class (powers of two), longest first: so that one long
        prompt does not claim a long cache row for every short one.
        """
        if not rows:
            return
        longest = max(_need(row) for row in rows)
        if self.rows_that_fit(longest) >= min(len(rows), self.max_rows):
            yield rows, longest, min(len(rows), self.max_rows)
            return
        ordered = sorted(rows, key=_need, reverse=True)
        for _, group in groupby(ordered, key=lambda row: _need(row).bit_length()):
            wave = list(group)
            capacity = _need(wave[0])
            yield wave, capacity, min(len(wave), self.rows_that_fit(capacity))


def _need(row: Row) -> int:
    """Tokens of the cache that a row may fill."""
    return len(row.pending) + row.limit


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout inside; the model's mode as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
