"""Attention against the cache: what one pass needs to know about it, worked out once for all layers.

T new tokens · R queries of a decoding step, one a cache row · L keys of a group · H query heads · G key/value heads ·
D head_dim.

While decoding, neighbouring cache rows of similar length go through one masked call; the cache is read as it lies.
Measured (bf16, 9 and 3 heads, one CPU thread, µs a layer, row by row / one call): 32 rows of 100 tokens 1,561 / 576,
8 rows of 200 333 / 192, 32 rows of 60–308 1,569 / 1,512. So a call costs as much as about `CALL_COST` keys, and rows
are put together where padding costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from chatwright.layouts import SegmentLayout
from chatwright.models.kv_cache import KVCache
from chatwright.models.segment_attention import Scores, attend_segments, scaled_attention

CALL_COST = 150
"""Keys of one row that cost as much as one more call on a CPU; elsewhere all rows go in one call."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Neighbouring cache rows that decode in one call.

    Args:
        first, last: the rows `first : last`; those without a query are read and thrown away.
        length: keys of its longest row. shortest: of its shortest one with a query.
        take: int64 `[last − first]`, the query of each row (any for a row without one), or None for `start : end`.
        ends: int64 `[last − first]`, keys of each row.
        start, end: where its queries stand once they are sorted by row.
        keep: int64 `[end − start]`, the rows of the group that have a query, or None for all.
    """

    first: int
    last: int
    length: int
    shortest: int
    take: torch.Tensor | None
    ends: torch.Tensor
    keep: torch.Tensor | None
    start: int
    end: int


class CacheView:
    """The cache of one pass, the row of each segment, and where the new tokens go.

    Args:
        rows: the cache row of each segment. lengths_q: its new tokens.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int], lengths_q: Sequence[int]) -> None:
        self.cache, self.rows, self.lengths_q = cache, tuple(rows), tuple(lengths_q)
        self.places = cache.places(self.rows, self.lengths_q)
        self.lengths = [cache.lengths[row] + new for row, new in zip(self.rows, self.lengths_q, strict=True)]
        self.is_prefill = not any(cache.lengths[row] for row in self.rows)
        self.is_decode = not self.is_prefill and all(new == 1 for new in self.lengths_q)
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    @cached_property
    def layout(self) -> SegmentLayout:
        """The segments with all their keys."""
        return SegmentLayout.from_lengths(self.lengths_q, self.lengths, self.cache.keys.device)

    @cached_property
    def order(self) -> list[int]:
        """The queries sorted by cache row."""
        return sorted(range(len(self.rows)), key=self.rows.__getitem__)

    @cached_property
    def back(self) -> torch.Tensor | None:
        """int64 `[R]`: where each query stands in that order; None if they are sorted already."""
        if self.order == list(range(len(self.rows))):
            return None
        return torch.tensor(self.order, device=self.cache.keys.device).argsort()

    @cached_property
    def groups(self) -> list[RowGroup]:
        """The calls of a decoding step: a query joins the rows before it where that adds less than a call costs."""
        groups: list[list[int]] = []
        for query in self.order:
            if groups and self._joins(groups[-1], query):
                groups[-1].append(query)
            else:
                groups.append([query])
        starts = [0]
        for group in groups:
            starts.append(starts[-1] + len(group))
        return [self._group(group, start) for group, start in zip(groups, starts[:-1], strict=True)]

    def _joins(self, group: list[int], query: int) -> bool:
        if self.cache.keys.device.type != "cpu":
            return True
        first, last, new = self.rows[group[0]], self.rows[group[-1]] + 1, self.rows[query] + 1
        longest = max(self.lengths[other] for other in group)
        together = (new - first) * max(longest, self.lengths[query])
        return together <= (last - first) * longest + self.lengths[query] + CALL_COST

    def _group(self, group: list[int], start: int) -> RowGroup:
        device, first, last = self.cache.keys.device, self.rows[group[0]], self.rows[group[-1]] + 1
        lengths = [self.lengths[query] for query in group]
        ends, take, keep = [1] * (last - first), [group[0]] * (last - first), []
        for query in group:
            at = self.rows[query] - first
            ends[at], take[at] = self.lengths[query], query
            keep.append(at)
        full = len(group) == last - first
        in_place = full and self.back is None
        return RowGroup(
            first,
            last,
            max(lengths),
            min(lengths),
            None if in_place else torch.tensor(take, device=device),
            torch.tensor(ends, device=device),
            None if full else torch.tensor(keep, device=device),
            start,
            start + len(group),
        )

    def mask(self, number: int, window: int | None) -> torch.Tensor | None:
        """bool `[rows, 1, 1, L]`: the keys that each row of a group sees; None if it sees them all."""
        if (number, window) not in self._masks:
            group = self.groups[number]
            begin = first_key(group, window)
            mask = None
            if len(group.ends) > 1 and not (group.shortest == group.length and group.keep is None):
                position = torch.arange(begin, group.length, device=group.ends.device)
                ends = group.ends[:, None, None, None]
                mask = position < ends
                if window is not None:
                    mask &= position >= ends - window
                    # A row without a query sees its first key: no row of the softmax may be empty.
                    mask[..., 0] |= ~mask.any(-1)
            self._masks[number, window] = mask
        return self._masks[number, window]


def first_key(group: RowGroup, window: int | None) -> int:
    """The first key that any query of the group sees."""
    return 0 if window is None else max(0, group.shortest - window)


def attend_cached(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, view: CacheView, layer: int, scores: Scores
) -> torch.Tensor:
    """Append to the cache, then let each segment's tokens see their whole row: `[T, H, D]`, `[T, G, D]` → `[T, H, D]`.

    Args:
        layer: whose keys and values these are.
    """
    cache = view.cache
    cache.append(layer, view.places, k, v)
    if view.is_prefill:  # the row is the segment
        return attend_segments(q, k, v, view.layout, scores)
    keys, values = cache.keys[layer], cache.values[layer]
    if view.is_decode:
        return attend_decode(q, keys, values, view, scores)
    k = torch.cat([keys[row, :length] for row, length in zip(view.rows, view.lengths, strict=True)])
    v = torch.cat([values[row, :length] for row, length in zip(view.rows, view.lengths, strict=True)])
    return attend_segments(q, k, v, view.layout, scores)


def attend_decode(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: CacheView, scores: Scores
) -> torch.Tensor:
    """One new token a row against one layer of the cache `[all rows, capacity, G, D]`: `[R, H, D]` → `[R, H, D]`."""
    out = []
    for number, group in enumerate(view.groups):
        q_ = q[group.start : group.end] if group.take is None else q[group.take]
        part = slice(first_key(group, scores.window), group.length)
        k, v = (cached[group.first : group.last, part].transpose(1, 2) for cached in (keys, values))  # [rows, G, L, D]
        mixed = scaled_attention(q_[:, :, None], k, v, view.mask(number, scores.window), scores)[:, :, 0]
        out.append(mixed if group.keep is None else mixed[group.keep])
    whole = out[0] if len(out) == 1 else torch.cat(out)
    return whole if view.back is None else whole[view.back]
