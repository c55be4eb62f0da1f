"""Requests at work together: admitted when there is room, prefilled, decoded, and gone when they are done.

Knows token ids only. The rows at work always lie in the first rows of the cache, one behind the other: what decoding
reads best. A cache of another size is made when longer or more rows are asked for, within `cache_bytes`; while its
contents are copied, the old one is there, too.

Letters: T tokens of one forward, B rows of one forward, N places whose logits are wanted, D hidden size, V columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from chatwright.errors import ModelError
from chatwright.inference.drawing import Drawer
from chatwright.inference.prefixes import LEAST_SHARED, PrefixFinder
from chatwright.inference.requests import Request, Row, StopReason, StreamedToken
from chatwright.inference.sampling import row_key
from chatwright.layouts import SegmentLayout
from chatwright.models.foreign import ForeignCache
from chatwright.models.kv_cache import KVCache

_ROUND = 64
"""Cache rows hold a multiple of this many tokens."""
_GROW = 8
"""The cache gets at least this many rows at once, where they fit."""


class Batch:
    """A running batch; requests may join and leave at any step.

    Args:
        model: CausalLM or ForeignLM, in evaluation mode.
        drawer: from hidden states to tokens.
        stop_ids: tokens that end a reply.
        cache_bytes: bound on the memory of keys and values. max_rows: bound on the rows at work.
        prefill_tokens: prompts are prefilled together up to this many tokens (one prompt always goes whole).
    """

    def __init__(
        self,
        model: Any,
        drawer: Drawer,
        *,
        stop_ids: frozenset[int],
        cache_bytes: int,
        max_rows: int,
        prefill_tokens: int,
    ) -> None:
        self.model, self.drawer, self.stop_ids = model, drawer, stop_ids
        self.cache_bytes, self.max_rows, self.prefill_tokens = cache_bytes, max_rows, prefill_tokens
        self.device = next(model.parameters()).device
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []  # in the order of their slots
        self.cache: KVCache | ForeignCache | None = None
        self.num_submitted = 0
        self._events: list[StreamedToken] = []
        self._failed = False

    # Coming and going

    def submit(self, request: Request) -> int:
        """Queue a request; returns its number, which its tokens carry.

        Raises:
            ModelError: for an empty prompt, one that leaves no room in the model's context, one that holds an id which
                the model does not have, or one that needs more memory than there is.
        """
        number = self.num_submitted
        prompt = [int(token) for token in request.prompt]
        self._check(number, prompt, request)
        room = self.model.max_positions - len(prompt)
        targets = request.targets
        limit = len(targets) if targets is not None else min(request.settings.max_new_tokens, room)
        key = row_key(request.settings.seed, prompt, request.copy)
        row = Row(number, request, key, limit, [*prompt, *(() if targets is None else targets[:-1])])
        self._require_memory(number, row)
        self.num_submitted += 1
        if targets is not None and len(targets) == 0:
            self._events.append(StreamedToken(number, -1, None, "length"))
        else:
            self.waiting.append(row)
        return number

    def cancel(self, number: int) -> None:
        """Take a request back, whether it waits or is at work; its last token says so. One that is done stays done."""
        for row in [row for row in (*self.waiting, *self.active) if row.number == number and not row.finished]:
            row.finished = True
            self._events.append(StreamedToken(number, -1, None, "cancelled"))
            if row in self.waiting:
                self.waiting.remove(row)

    def forget_events(self) -> None:
        """Give out nothing more of requests that were cancelled."""
        self._events = []

    def sort_waiting(self) -> None:
        """Those that need most memory first: for a set of requests that is known whole and doesn't fit at once.

        So that the cache is laid out for long rows while there are any, and for many short ones afterwards.
        """
        if not self._fits(len(self.waiting), max((row.need for row in self.waiting), default=0)):
            self.waiting = deque(sorted(self.waiting, key=lambda row: -row.need))

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.waiting or self._events) and all(row.finished for row in self.active)

    def step(self) -> list[StreamedToken]:
        """One forward over all rows, the new prompts among them, and the tokens that it gives.

        Raises:
            ModelError: logits that are not finite; or an earlier step failed, after which no row can be trusted.
        """
        if self._failed:
            raise ModelError("an earlier step of this batch failed", hint="begin anew with `Engine.open`")
        self._failed = True
        tokens = self._step()
        self._failed = False
        return tokens

    def _step(self) -> list[StreamedToken]:
        self._adopt()
        self._leave()
        self._admit()
        # Rows with one more token first: their attention is computed together.
        rows = sorted(self.active, key=lambda row: len(row.pending) > 1 or not row.held)
        events, self._events = self._events, []
        return [*events, *(self._advance(rows) if rows else ())]

    # Room

    def _fits(self, num_rows: int, longest: int) -> bool:
        return num_rows <= self.max_rows and fits(self.model, num_rows, longest, self.cache_bytes)

    def _require_memory(self, number: int, row: Row) -> None:
        if self._fits(1, row.need):
            return
        per_token = self.model.cache_token_bytes()
        raise ModelError(
            f"prompt and reply may take {row.need:,} tokens, whose keys and values need "
            f"{_rounded(row.need) * per_token / 2**20:,.0f} MiB, and {self.cache_bytes / 2**20:,.0f} MiB are allowed",
            place=f"prompt {number}",
            hint="lower max_new_tokens, shorten the prompt, or allow more memory (cache_bytes)",
        )

    def _adopt(self) -> None:
        """A waiting prompt that goes on from a finished row (the next turn of a chat) takes its place, keys and all."""
        done = [row for row in self.active if row.finished]
        if not (done and self.waiting) or self.cache is None or not self.cache.shares_prefixes:
            return
        row, finder = self.waiting[0], PrefixFinder()
        for other in sorted(self.active, key=lambda other: not other.finished):  # of equals the first is taken
            finder.add(other.held, other)
        shared, source = finder.longest(row.pending)
        if source is None or not source.finished:  # a row at work has more in common: it is copied from
            return
        shared = min(shared, len(row.request.prompt) - 1)
        longest = max([row.need, *(other.need for other in self.active if not other.finished)])
        if shared < LEAST_SHARED or not self._fits(len(self.active), longest):
            return
        self.waiting.popleft()
        self._make_room(len(self.active), longest)
        self.cache.truncate(source.slot, shared)
        self.active[source.slot], row.slot = row, source.slot
        row.held, row.pending = row.pending[:shared], row.pending[shared:]

    def _leave(self) -> None:
        """Rows that are done give their place to the last ones."""
        for row in [row for row in self.active if row.finished]:
            last = self.active.pop()
            if last is not row:
                assert self.cache is not None
                self.cache.move(last.slot, row.slot)
                self.active[row.slot] = last
                last.slot = row.slot

    def _admit(self) -> None:
        """Waiting rows that go to work now: as many as memory holds and one prefill takes, at least one if any can.

        A prompt that shares its beginning with another one of this prefill waits for the next: it's copied then.
        """
        if not self.waiting or len(self.active) >= self.max_rows:
            return
        tokens, finder = 0, PrefixFinder()
        sharing = self.cache is None or self.cache.shares_prefixes
        if sharing:
            for row in self.active:
                finder.add(row.held, row)
        fresh = PrefixFinder()
        while self.waiting:
            row = self.waiting[0]
            longest = max([row.need, *(other.need for other in self.active)])
            if not self._fits(len(self.active) + 1, longest):
                break
            shared, source = finder.longest(row.pending) if sharing else (0, None)
            shared = min(shared, len(row.request.prompt) - 1)
            left = len(row.pending) - shared
            if tokens and tokens + left > self.prefill_tokens:
                break
            if sharing and fresh.longest(row.pending)[0] >= shared + LEAST_SHARED:
                break
            self.waiting.popleft()
            fresh.add(row.pending, row)
            self._place(row, longest, shared if shared >= LEAST_SHARED else 0, source)
            tokens += left

    def _place(self, row: Row, longest: int, shared: int, source: Row | None) -> None:
        self._make_room(len(self.active) + 1, longest)
        assert self.cache is not None
        row.slot = len(self.active)
        self.cache.reset(row.slot)
        if shared and source is not None:
            self.cache.copy_prefix(source.slot, row.slot, shared)
            row.held, row.pending = row.pending[:shared], row.pending[shared:]
        self.active.append(row)

    def _make_room(self, num_rows: int, longest: int) -> None:
        """A cache that holds so many rows of this length; a new one where it doesn't, with what the old one held."""
        longest = _rounded(longest)
        if self.cache is not None and self.cache.num_rows >= num_rows and self.cache.capacity >= longest:
            return
        wanted = max(num_rows, min(len(self.active) + len(self.waiting) + 1, self.max_rows), _GROW)
        while wanted > num_rows and not self._fits(wanted, longest):
            wanted -= 1
        held = [row.slot for row in self.active]
        self.cache = (
            self.model.new_cache(wanted, longest) if self.cache is None else self.cache.resized(wanted, longest, held)
        )

    # Work

    @torch.inference_mode()
    def _advance(self, rows: list[Row]) -> list[StreamedToken]:
        """One forward over what is pending in `rows`, and what follows from it."""
        cache, device = self.cache, self.device
        assert cache is not None
        lengths = [len(row.pending) for row in rows]
        past = [len(row.held) for row in rows]
        flat = torch.tensor([token for row in rows for token in row.pending], device=device)  # [T]
        places = [place for start, n in zip(past, lengths, strict=True) for place in range(start, start + n)]
        keys = [start + n for start, n in zip(past, lengths, strict=True)]
        layout = SegmentLayout.from_lengths(lengths, keys, device)
        hidden, _ = self.model(  # [T, D]
            flat, torch.tensor(places, device=device), layout, cache=cache, cache_rows=[row.slot for row in rows]
        )
        for row in rows:
            row.held += row.pending
            row.pending = []
        known = [row for row in rows if row.request.targets is not None]
        events = self._score(known, rows, lengths, hidden) if known else []
        drawing = [row for row in rows if row.request.targets is None]
        if drawing:
            if len(known) or len(flat) > len(rows):
                ends = dict(zip((row.number for row in rows), layout.cu_q[1:].tolist(), strict=True))
                hidden = hidden[[ends[row.number] - 1 for row in drawing]]  # [B, D], the last token of each row
            events += self._draw(drawing, hidden)
        return events

    def _draw(self, rows: list[Row], hidden: torch.Tensor) -> list[StreamedToken]:
        events: list[StreamedToken] = []
        for row, drawn in sorted(zip(rows, self.drawer.draw(rows, hidden), strict=True), key=lambda one: one[0].number):
            events += self._accept(row, drawn)
        return events

    def _score(
        self, known: list[Row], rows: list[Row], lengths: list[int], hidden: torch.Tensor
    ) -> list[StreamedToken]:
        """The targets of `known` with their log-probabilities: all of them at once, and the rows are done."""
        parts = dict(zip((row.number for row in rows), hidden.split(lengths), strict=True))
        events: list[StreamedToken] = []
        for row in known:
            targets = [] if row.request.targets is None else list(row.request.targets)
            events += self.drawer.score(row, parts[row.number][-len(targets) :], targets)
            row.finished = True
        return events

    def _accept(self, row: Row, drawn: StreamedToken) -> list[StreamedToken]:
        """The drawn token and what the controller forces after it, as events; decides whether the row goes on."""
        row.pending, row.made = [drawn.token_id], row.made + 1
        reason: StopReason | None = "stop" if drawn.token_id in self.stop_ids else None
        if reason is None and row.made < row.limit and row.request.controller is not None:
            forced = row.request.controller.on_token(row.number, drawn.token_id)
            if forced is None:
                reason = "controller"
            else:
                row.pending += list(forced)[: row.limit - row.made]
                row.made += len(row.pending) - 1
        if reason is None and row.made >= row.limit:
            reason = "length"
        row.finished = reason is not None
        events = [drawn, *(StreamedToken(row.number, forced_id, None, None) for forced_id in row.pending[1:])]
        if reason is not None:
            events[-1] = events[-1]._replace(stop_reason=reason)
        return events

    def _check(self, number: int, prompt: Sequence[int], request: Request) -> None:
        vocab_size, max_positions = self.model.config.vocab_size, self.model.max_positions
        place = f"prompt {number}"
        if request.allowed is not None and len(request.allowed) == 0:
            raise ModelError("nothing is allowed as its reply", place=place, hint="allow at least one token id")
        if not prompt:
            raise ModelError("an empty prompt", place=place, hint="begin with the begin-of-text token")
        targets = () if request.targets is None else request.targets
        allowed = () if request.allowed is None else request.allowed
        tokens = len(prompt) + max(len(targets) - 1, 0)
        if tokens >= max_positions + (request.targets is not None):
            raise ModelError(
                f"{tokens} tokens, and the model's context is {max_positions}",
                place=place,
                hint="shorten the prompt: leave earlier turns out, or start a new conversation",
            )
        for token in (*prompt, *targets, *allowed):
            if not 0 <= token < vocab_size:
                raise ModelError(
                    f"token id {token}, and the model has the ids 0 to {vocab_size - 1}",
                    place=place,
                    hint="use the tokenizer that belongs to this model",
                )


def fits(model: Any, num_rows: int, longest: int, cache_bytes: int) -> bool:
    """Whether keys and values of so many rows of `longest` tokens fit."""
    return bool(num_rows * _rounded(longest) * model.cache_token_bytes() <= cache_bytes)


def _rounded(tokens: int) -> int:
    return -(-tokens // _ROUND) * _ROUND
