"""Attention against the cache: what one pass needs to know about it, worked out once for all layers.

T new tokens · R queries of a decoding step, one a cache row · L keys of a group · H query heads · G key/value heads ·
D head_dim.

The H / G query heads that share a key head are handed to the kernel as that many queries of one head: they read the
same keys. While decoding, neighbouring cache rows of similar length go through one masked call; the cache is read as
it lies. Measured (bf16, 9 and 3 heads, two threads of a 2-core AVX-512 machine without AMX, µs a layer):

    rows × keys     every head apart     grouped, fused kernel     grouped, two products
    1 × 100                       71                        22                        79
    8 × 200                      957                       169                       193
    32 × 150                   2,938                       543                       350
    32 × 300                   5,849                       978                       600

Hence: `PRODUCTS_FROM` rows or more in bf16 on a CPU go through two batched products, all else through the fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from chatwright.layouts import SegmentLayout
from chatwright.models.kv_cache import KVCache
from chatwright.models.segment_attention import Scores, attend_segments, capped_attention, scaled_attention, visible

PRODUCTS_FROM = 12
"""Rows of a group from which two batched products are faster than the fused kernel (bf16 on a CPU)."""
CALL_COST = 600
"""Keys of one row that cost as much as one more call on a CPU; elsewhere all rows go in one call."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Neighbouring cache rows that decode in one call.

    Args:
        first, last: the rows `first : last`. length: keys of the longest. shortest: of the shortest.
        ends: int64 `[last − first]`, keys of each row.
        start: where its queries stand once they are sorted by row.
    """

    first: int
    last: int
    length: int
    shortest: int
    ends: torch.Tensor
    start: int


class CacheView:
    """The cache of one pass, the row of each segment, and where the new tokens go.

    Args:
        rows: the cache row of each segment. lengths_q: its new tokens.

    Attributes:
        num_decoding: segments at the beginning that bring one token to a row that holds some: they decode together.
        is_prefill: whether the rows of all other segments were empty.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int], lengths_q: Sequence[int]) -> None:
        self.cache, self.rows, self.lengths_q = cache, tuple(rows), tuple(lengths_q)
        self.places = cache.places(self.rows, self.lengths_q)
        self.lengths = [cache.lengths[row] + new for row, new in zip(self.rows, self.lengths_q, strict=True)]
        past = [cache.lengths[row] for row in self.rows]
        behind = (i for i, (new, held) in enumerate(zip(self.lengths_q, past, strict=True)) if new != 1 or not held)
        self.num_decoding = next(behind, len(self.rows))
        self.is_prefill = not any(past[self.num_decoding :])
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}
        self._biases: dict[tuple[int, int | None], torch.Tensor] = {}

    @cached_property
    def layout(self) -> SegmentLayout:
        """The segments that don't decode, with all their keys."""
        rest = slice(self.num_decoding, None)
        return SegmentLayout.from_lengths(self.lengths_q[rest], self.lengths[rest], self.cache.keys.device)

    @cached_property
    def order(self) -> list[int]:
        """The decoding queries sorted by cache row."""
        return sorted(range(self.num_decoding), key=self.rows.__getitem__)

    @cached_property
    def back(self) -> torch.Tensor | None:
        """int64 `[R]`: where each query stands in that order; None if they are sorted already."""
        if self.order == list(range(self.num_decoding)):
            return None
        return torch.tensor(self.order, device=self.cache.keys.device).argsort()

    @cached_property
    def groups(self) -> list[RowGroup]:
        """The calls of a decoding step: a row joins its neighbours before it where that costs less than a call."""
        groups: list[list[int]] = []
        longest = 0  # keys of the last group's longest row
        for query in self.order:
            new = self.lengths[query]
            follows = groups and self.rows[query] == self.rows[groups[-1][-1]] + 1
            if follows and self._joins(len(groups[-1]), longest, new):
                groups[-1].append(query)
                longest = max(longest, new)
            else:
                groups.append([query])
                longest = new
        made, start = [], 0
        for group in groups:
            lengths = [self.lengths[query] for query in group]
            ends = torch.tensor(lengths, device=self.cache.keys.device)
            first = self.rows[group[0]]
            made.append(RowGroup(first, first + len(group), max(lengths), min(lengths), ends, start))
            start += len(group)
        return made

    def _joins(self, size: int, longest: int, new: int) -> bool:
        """Whether a row of `new` keys joins `size` rows, the longest of `longest` keys."""
        if self.cache.keys.device.type != "cpu":
            return True
        return (size + 1) * max(longest, new) <= size * longest + new + CALL_COST

    def mask(self, number: int, window: int | None) -> torch.Tensor | None:
        """bool `[rows, 1, 1, L]`: the keys that each row of a group sees; None if it sees them all."""
        if (number, window) not in self._masks:
            group = self.groups[number]
            begin = first_key(group, window)
            mask = None
            if group.shortest != group.length:
                position = torch.arange(begin, group.length, device=group.ends.device)
                ends = group.ends[:, None, None, None]
                mask = position < ends
                if window is not None:
                    mask &= position >= ends - window
            self._masks[number, window] = mask
        return self._masks[number, window]

    def bias(self, number: int, window: int | None) -> torch.Tensor | None:
        """The mask as what is added to scores: float32 `[rows, 1, L, 1]`, 0 or −∞."""
        mask = self.mask(number, window)
        if mask is not None and (number, window) not in self._biases:
            hidden = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
            self._biases[number, window] = hidden.transpose(2, 3)
        return None if mask is None else self._biases[number, window]


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
    cache, n = view.cache, view.num_decoding
    cache.append(layer, view.places, k, v)
    keys, values = cache.layers[layer]
    out = [attend_decode(q[:n], keys, values, view, scores)] if n else []
    if n < len(view.rows):
        out.append(_attend_rest(q[n:], k[n:], v[n:], view, layer, scores))
    return out[0] if len(out) == 1 else torch.cat(out)


def _attend_rest(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, view: CacheView, layer: int, scores: Scores
) -> torch.Tensor:
    """The segments that bring several tokens, or the first one, to their rows."""
    if view.is_prefill:  # a row is the segment
        return attend_segments(q, k, v, view.layout, scores)
    keys, values = view.cache.layers[layer]
    rest = slice(view.num_decoding, None)
    parts = zip(q.split(view.lengths_q[rest]), view.rows[rest], view.lengths[rest], strict=True)
    return torch.cat([_attend_row(part, keys[row, :, :n], values[row, :, :n], scores) for part, row, n in parts])


def _attend_row(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores) -> torch.Tensor:
    """The last Lq of a row's L positions: `[Lq, H, D]`, `[G, L, D]` → `[Lq, H, D]`."""
    num_q, num_k = q.shape[0], k.shape[1]
    window = scores.window if scores.window is not None and scores.window < num_k else None
    plain = num_q == num_k and window is None and scores.soft_cap is None
    mask = None if plain else visible(num_q, num_k, window, q.device)
    return scaled_attention(q.transpose(0, 1)[None], k[None], v[None], mask, scores)[0].transpose(0, 1)


def attend_decode(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: CacheView, scores: Scores
) -> torch.Tensor:
    """One new token a row against one layer of the cache `[all rows, G, capacity, D]`: `[R, H, D]` → `[R, H, D]`."""
    if view.back is not None:
        q = q[view.order]
    num_kv = keys.shape[1]
    out = []
    for number, group in enumerate(view.groups):
        rows = group.last - group.first
        q_ = q[group.start : group.start + rows].unflatten(1, (num_kv, -1))  # [rows, G, H / G, D]
        part = slice(first_key(group, scores.window), group.length)
        k, v = keys[group.first : group.last, :, part], values[group.first : group.last, :, part]  # [rows, G, L, D]
        out.append(_attend_group(q_, k, v, view, number, scores).flatten(1, 2))
    whole = out[0] if len(out) == 1 else torch.cat(out)
    return whole if view.back is None else whole[view.back]


def _attend_group(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, view: CacheView, number: int, scores: Scores
) -> torch.Tensor:
    """`[rows, G, H / G, D]`, `[rows, G, L, D]` → `[rows, G, H / G, D]`."""
    mask = view.mask(number, scores.window)
    if scores.soft_cap is not None:
        return capped_attention(q, k, v, mask, scores)
    if q.shape[0] < PRODUCTS_FROM or q.dtype is not torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scores.scale)
    logits = torch.matmul(k, q.transpose(2, 3)).float().mul_(scores.scale)  # [rows, G, L, H / G]
    bias = view.bias(number, scores.window)
    if bias is not None:
        logits += bias
    weights = logits.transpose(2, 3).softmax(-1).to(v.dtype)  # [rows, G, H / G, L]
    return torch.matmul(weights, v)
