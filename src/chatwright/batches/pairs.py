"""Preference pairs → one batch in which each prompt stands once and serves both replies.

Worked miniature: one pair of a prompt of 2 tokens, a better reply of 3 and a worse one of 2, all of them written.

    flat position      0   1   2   3   4  |  5   6
    input_ids         10  11  20  21  22  | 30  31
    position_ids       0   1   2   3   4  |  2   3
    lengths_q = 5, 2    lengths_k = 5, 4    kv_gather = [0 1 2 3 4 | 0 1 5 6]
    predicted by       ·   ·   1   2   3  |  1   5

The worse reply's tokens are queries of a second segment, whose keys are the prompt's (computed once) and their own. The
state of the last prompt token, flat position 1, predicts the first token of both replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from chatwright.batches.collate import PADDING_ID, collate
from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.token_store import TokenStore
from chatwright.layouts import SegmentLayout
from chatwright.templates.rendered import ExampleKey


@dataclass(frozen=True, slots=True)
class PairBatch(PackedBatch):
    """P pairs: segments 0 … P − 1 are the prompts with their better replies, P … 2P − 1 the worse replies.

    Unlike in other batches, `supervised_index` isn't ascending: a prompt's last state predicts two tokens.

    Args:
        pairs: int64 `[P]`, each pair's number among all that a run knows; objectives keep tables by it.
    """

    pairs: torch.Tensor = field(kw_only=True)

    @property
    def num_pairs(self) -> int:
        """P."""
        return len(self.pairs)

    def last_states(self) -> torch.Tensor:
        """int64 `[2P]`, the flat positions of the last token of each side, the better sides first."""
        return self.layout.cu_q[1 : 2 * self.num_pairs + 1].long() - 1

    def unshared(self) -> PairBatch:
        """The same pairs with each prompt written out for both replies, for models that can't share it."""
        layout = self.layout
        if layout.kv_gather is None:
            return self
        starts = layout.cu_k[:-1].long()
        return replace(
            self,
            input_ids=self.input_ids[layout.kv_gather],
            position_ids=self.position_ids[layout.kv_gather],
            layout=SegmentLayout(layout.cu_k, layout.cu_k, layout.lengths_k, layout.lengths_k),
            supervised_index=starts[self.segment_of_target] + self.position_ids[self.supervised_index],
        )


def collate_pairs(
    store: TokenStore, members: Sequence[int] | np.ndarray, *, pad_to: int | None = None, first: int = 0
) -> PackedBatch:
    """Lay pairs out with shared prompts, and shift their labels.

    Args:
        store: examples that are pairs. members, pad_to: see `collate`; without members its dummy pack.
        first: the number of the store's first pair.

    Raises:
        ValueError: the pairs have more than `pad_to` tokens.
    """
    if not len(members):
        return collate(store, members, pad_to=pad_to)
    numbers = np.asarray(members, dtype=np.int64)
    examples = [store.example(int(number)) for number in numbers]
    prompts, chosen = store.prompt_lengths[numbers].astype(int), store.chosen_lengths[numbers].astype(int)
    whole = prompts + chosen
    worse = np.array([len(ids) for ids, _ in examples]) - whole
    total = int(whole.sum() + worse.sum())
    if pad_to is not None and total > pad_to:
        raise ValueError(f"a pack of {total} tokens doesn't fit into {pad_to}")
    padding = pad_to - total if pad_to is not None else 0

    lengths_q = [*whole, *worse, *([padding] if padding else [])]
    starts = np.cumsum([0, *lengths_q])[:-1]  # [S]
    count = len(numbers)
    ids, weights, gather, positions, states, segments = ([] for _ in range(6))  # type: ignore[var-annotated]
    for segment, (length, start) in enumerate(zip(lengths_q[: 2 * count], starts, strict=False)):
        pair, is_worse = segment % count, segment >= count
        own_ids, own_weights = examples[pair]
        part = slice(int(whole[pair]), None) if is_worse else slice(0, int(whole[pair]))
        before = int(prompts[pair]) if is_worse else 0
        place = np.arange(length) + before
        state = start + np.arange(-1, length - 1)
        if is_worse:
            prompt = starts[pair] + np.arange(before)
            state[0] = prompt[-1] if before else -1
            gather.append(prompt)
        gather.append(start + np.arange(length))
        ids.append(own_ids[part])
        weights.append(np.where(place > 0, own_weights[part], 0.0))  # nothing predicts a sequence's first token
        positions.append(place)
        states.append(state)
        segments.append(np.full(length, segment))
    if padding:
        tail = np.arange(padding)
        gather.append(total + tail)
        positions.append(tail)
    flat = np.concatenate(ids)
    weight = np.concatenate(weights).astype(np.float32)
    trained = np.flatnonzero(weight)
    keys: list[ExampleKey | None] = [store.key(int(number)) for number in numbers]
    layout = SegmentLayout.from_lengths(lengths_q, [*whole, *(prompts + worse), *([padding] if padding else [])])
    return PairBatch(
        input_ids=torch.from_numpy(np.concatenate([flat, np.full(padding, PADDING_ID)]).astype(np.int64)),
        position_ids=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        layout=replace(layout, kv_gather=torch.from_numpy(np.concatenate(gather).astype(np.int64))),
        supervised_index=torch.from_numpy(np.concatenate(states)[trained].astype(np.int64)),
        targets=torch.from_numpy(flat[trained].astype(np.int64)),
        weights=torch.from_numpy(weight[trained]),
        segment_of_target=torch.from_numpy(np.concatenate(segments)[trained].astype(np.int64)),
        keys=tuple(keys * 2 + [None] * bool(padding)),
        num_padding=padding,
        pairs=torch.from_numpy(numbers + first),
    )
