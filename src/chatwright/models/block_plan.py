"""How segments are cut into blocks of scores for `block_attention`: a pure function of their lengths.

T flat tokens · H query heads · G key/value heads · R = H / G · n segments of a block · L their (padded) length.

Short segments of similar length share a block, padded on the right: under a causal mask a real token never sees the
padding. Long segments are cut into blocks of rows, so that most of the upper triangle is never computed.

Example: lengths 5, 4 and 300 with blocks of 256 rows give the blocks (segment 2, rows 0–149), (segment 2, rows
150–299) and (segments 0 and 1, padded to 5, rows 0–4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

ROWS_PER_BLOCK = 256
SCORES_PER_BLOCK = 2**18
"""Short segments share a block up to this many scores (1 MiB in float32: half of a core's level-2 cache)."""
SHARE_FROM = 0.8
"""A segment joins a block of length L if it is at least this share of L (or at most `SHARE_SLACK` tokens shorter)."""
SHARE_SLACK = 8


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of n segments of one length against the keys they can see.

    Args:
        batch: n · G. length: L. first_row, last_row: the query rows of each segment, end excluded.
        first_key: the first visible key (0 without a window); the last is `last_row`.
        q_start, k_start, p_start: where the block's rows stand in the gathered queries, keys and scores.
        mask: float32 `[rows, masked keys]`, 0 or −inf, for the last keys of the block.
    """

    batch: int
    length: int
    first_row: int
    last_row: int
    first_key: int
    q_start: int
    k_start: int
    p_start: int
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The blocks of one batch, and the way from flat tokens to blocks and back.

    Args:
        q_index: int64, for each gathered query row its row in `[T · H, D]`; padding repeats a first token.
        k_index: the same for `[T · G, D]`.
        q_padding: int64, the gathered query rows that are padding.
        q_inverse, k_inverse: int64 `[T · H]` and `[T · G]`, where each flat row stands among the gathered ones.
        num_scores: over all blocks.
    """

    blocks: tuple[Block, ...]
    q_index: torch.Tensor
    k_index: torch.Tensor
    q_padding: torch.Tensor
    q_inverse: torch.Tensor
    k_inverse: torch.Tensor
    num_scores: int


@lru_cache(maxsize=16)
def plan_blocks(lengths: tuple[int, ...], num_heads: int, num_kv_heads: int, window: int | None) -> BlockPlan:
    """Cut segments of these lengths into blocks (the same for every layer of a step, hence the cache)."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    repeats = num_heads // num_kv_heads
    heads = torch.arange(num_heads).view(num_kv_heads, repeats)
    blocks: list[Block] = []
    q_parts: list[torch.Tensor] = []
    k_parts: list[torch.Tensor] = []
    q_pads: list[torch.Tensor] = []
    k_pads: list[torch.Tensor] = []
    q_start = k_start = p_start = 0
    for group in _groups(lengths, num_heads):
        length, n = lengths[group[0]], len(group)
        batch = n * num_kv_heads
        position = torch.arange(length)
        own = torch.tensor([lengths[i] for i in group])[:, None]
        first = torch.tensor([starts[i] for i in group])[:, None]
        padding = position >= own  # [n, L]
        token = torch.where(padding, first, first + position)  # [n, L]
        k_parts.append((token[:, None] * num_kv_heads + torch.arange(num_kv_heads)[:, None]).flatten())
        k_pads.append(padding[:, None].expand(-1, num_kv_heads, -1).flatten())
        for row, end in pairwise(_cuts(length)):
            first_key = 0 if window is None else max(0, row - window + 1)
            mask = _mask(row, end, first_key, window)
            blocks.append(Block(batch, length, row, end, first_key, q_start, k_start, p_start, mask))
            q_parts.append((token[:, None, None, row:end] * num_heads + heads[:, :, None]).flatten())
            q_pads.append(padding[:, None, None, row:end].expand(-1, num_kv_heads, repeats, -1).flatten())
            q_start += batch * repeats * (end - row)
            p_start += batch * repeats * (end - row) * (end - first_key)
        k_start += batch * length
    q_index, q_padding = torch.cat(q_parts), torch.cat(q_pads)
    k_index, k_padding = torch.cat(k_parts), torch.cat(k_pads)
    return BlockPlan(
        tuple(blocks),
        q_index,
        k_index,
        q_padding.nonzero()[:, 0],
        _inverse(q_index, q_padding, starts[-1] * num_heads),
        _inverse(k_index, k_padding, starts[-1] * num_kv_heads),
        p_start,
    )


def _groups(lengths: Sequence[int], num_heads: int) -> list[list[int]]:
    """Segments that share blocks, the longest first in each group and over all."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] == 0:
            continue
        if groups:
            length = lengths[groups[-1][0]]
            room = (len(groups[-1]) + 1) * num_heads * length * length <= SCORES_PER_BLOCK
            if room and lengths[i] >= length * SHARE_FROM - SHARE_SLACK:
                groups[-1].append(i)
                continue
        groups.append([i])
    return groups


def _cuts(length: int) -> list[int]:
    """Borders of equal blocks of rows, each at most ROWS_PER_BLOCK."""
    count = -(-length // ROWS_PER_BLOCK)
    return [length * i // count for i in range(count + 1)]


def _mask(row: int, end: int, first_key: int, window: int | None) -> torch.Tensor:
    """Causal and window mask of a block; without a window only the last `end - row` keys need one."""
    keys = torch.arange(row if window is None else first_key, end)
    distance = torch.arange(row, end)[:, None] - keys
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


def _inverse(index: torch.Tensor, padding: torch.Tensor, size: int) -> torch.Tensor:
    inverse = torch.empty(size, dtype=torch.int64)
    real = (~padding).nonzero()[:, 0]
    inverse[index[real]] = real
    return inverse
