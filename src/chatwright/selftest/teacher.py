"""Makes the real engine write known replies, and keeps the logits it had at every token.

The engine's own code runs: prefill, cache, positions, ragged rows, forced tool results, stopping. Only the choice
of the token is taken over: the head hands on logits whose largest is the known next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from chatwright.layouts import SegmentLayout
from chatwright.models.kv_cache import KVCache


class NotingCache(KVCache):
    """A cache that knows which tokens its rows hold."""

    def __init__(self, config: Any, num_rows: int, capacity: int, *where: Any) -> None:
        super().__init__(config, num_rows, capacity, *where)
        self.ids: list[list[int]] = [[] for _ in range(num_rows)]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """As ever, ids too."""
        super().copy_prefix(source, target, length)
        self.ids[target] = self.ids[source][:length]

    def resized(self, num_rows: int, capacity: int, rows: Sequence[int]) -> NotingCache:
        """As ever, ids too."""
        other = super().resized(num_rows, capacity, rows)
        assert isinstance(other, NotingCache)
        for target, source in enumerate(rows):
            other.ids[target] = list(self.ids[source])
        return other


class Teacher(nn.Module):
    """Stands before a model in an engine.

    Args:
        model: the model under test.
        sequences: ids of whole examples; what a cache row holds must always be the beginning of one.

    Attributes:
        seen: `[V]` logits by (sequence, position): what the model said about the token at that position.
    """

    def __init__(self, model: nn.Module, sequences: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config
        self.sequences = [list(ids) for ids in sequences]
        self.seen: dict[tuple[int, int], torch.Tensor] = {}
        self.now: list[list[int]] = []

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        layout: SegmentLayout,
        cache: KVCache | None = None,
        cache_rows: Sequence[int] | None = None,
    ) -> Any:
        """As the model's, writing down what each cache row now holds."""
        assert isinstance(cache, NotingCache) and cache_rows is not None, "the engine runs with this model's cache"
        self.now = []
        for slot, new in zip(cache_rows, input_ids.split(list(layout.lengths_q)), strict=True):
            cache.ids[slot] = [*cache.ids[slot][: cache.lengths[slot]], *new.tolist()]
            self.now.append(cache.ids[slot])
        return self.model(input_ids, position_ids, layout, cache=cache, cache_rows=cache_rows)

    @property
    def max_positions(self) -> int:
        """The model's."""
        return int(self.model.max_positions)  # type: ignore[arg-type]

    def cache_token_bytes(self) -> int:
        """The model's."""
        return int(self.model.cache_token_bytes())  # type: ignore[operator]

    def new_cache(self, num_rows: int, capacity: int) -> Any:
        """One like the model's, that also notes ids."""
        cache: KVCache = self.model.new_cache(num_rows, capacity)  # type: ignore[operator]
        return NotingCache(self.config, num_rows, capacity, cache.keys.dtype, cache.keys.device)

    def output_head(self) -> TeacherHead:
        """The head's stand-in."""
        return TeacherHead(self)

    def next_token(self, held: Sequence[int]) -> tuple[int, int]:
        """The sequence that begins with `held`, and its next token.

        Raises:
            AssertionError: there is none: the engine wrote something else than it was made to draw.
        """
        for number, ids in enumerate(self.sequences):
            if len(ids) > len(held) and ids[: len(held)] == list(held):
                return number, ids[len(held)]
        raise AssertionError(f"the engine holds {len(held)} tokens that begin no example (the last one: {held[-1]})")


class TeacherHead:
    """Keeps the true logits, and hands on ones that make a greedy engine draw the known token."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[B, D]` → `[B, V]`: 1 at the token that must come next in each row, 0 elsewhere."""
        true: torch.Tensor = self.teacher.model.output_head().logits(hidden)  # type: ignore[operator]
        wanted = torch.zeros_like(true)
        for row, held in enumerate(self.teacher.now):
            number, token = self.teacher.next_token(held)
            self.teacher.seen[number, len(held)] = true[row].clone()
            wanted[row, token] = 1.0
        return wanted
