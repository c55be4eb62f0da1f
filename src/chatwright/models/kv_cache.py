"""Keys and values of the tokens already seen, one row a conversation.

Knows rows, lengths and tensors; knows no token, no mask and no sampling. Lengths stand on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Places:
    """Where one pass writes its new tokens: made once, used by every layer.

    Args:
        slices: for each segment its cache row and the positions there.
        flat: int64 `[R]` for one new token a row: row · capacity + position; else None.
    """

    slices: tuple[tuple[int, slice], ...]
    flat: torch.Tensor | None


class KVCache:
    """Room for `num_rows` conversations of up to `capacity` tokens each.

    A forward pass with the cache appends its segments' keys and values layer by layer (`append`) and then moves
    the lengths on once (`advance`). Inference only: nothing here carries a gradient.

    Args:
        config: the model's shapes.
        num_rows: how many conversations are held at once.
        capacity: tokens a row can hold.
        dtype, device: of the keys and values: the model's.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_rows, self.capacity = num_rows, capacity
        self.lengths = [0] * num_rows
        shape = (config.num_layers, num_rows, capacity, config.num_kv_heads, config.head_dim)
        # Normal tensors even when made under inference mode, so that they can be written from anywhere;
        # zeros, since a masked position still meets the values (0 · NaN is NaN).
        with torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)  # [layers, rows, capacity, KV heads, D]
            self.values = torch.zeros(shape, dtype=dtype, device=device)

    def check_room(self, rows: Sequence[int], lengths_q: Sequence[int]) -> None:
        """Refuse a pass that doesn't fit.

        Raises:
            ModelError: naming the row that would overflow.
            ValueError: if rows repeat or their number differs from that of the segments.
        """
        if len(rows) != len(lengths_q) or len(set(rows)) != len(rows):
            raise ValueError(f"{len(lengths_q)} segments need as many different cache rows, got {list(rows)}")
        for row, new in zip(rows, lengths_q, strict=True):
            if self.lengths[row] + new > self.capacity:
                raise ModelError(
                    f"conversation in cache row {row} has {self.lengths[row]} tokens and gets {new} more, "
                    f"but a row holds {self.capacity}",
                    hint="make the cache larger, or shorten the conversation",
                )

    def places(self, rows: Sequence[int], lengths_q: Sequence[int]) -> Places:
        """Where a pass with these new tokens writes: behind the rows' tokens."""
        starts = [self.lengths[row] for row in rows]
        slices = tuple(
            (row, slice(start, start + new)) for row, start, new in zip(rows, starts, lengths_q, strict=True)
        )
        flat = None
        if len(slices) > 1 and all(new == 1 for new in lengths_q):
            at = [row * self.capacity + start for row, start in zip(rows, starts, strict=True)]
            flat = torch.tensor(at, device=self.keys.device)
        return Places(slices, flat)

    def append(self, layer: int, places: Places, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write one layer's new keys and values `[T, KV heads, D]`; lengths stay."""
        with torch.no_grad():
            for cached, new in ((self.keys[layer], k), (self.values[layer], v)):
                if places.flat is not None:
                    cached.flatten(0, 1).index_copy_(0, places.flat, new)
                    continue
                start = 0
                for row, place in places.slices:
                    end = start + place.stop - place.start
                    cached[row, place] = new[start:end]
                    start = end

    def advance(self, rows: Sequence[int], lengths_q: Sequence[int]) -> None:
        """Count the tokens that a whole pass appended."""
        for row, new in zip(rows, lengths_q, strict=True):
            self.lengths[row] += new

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} has {self.lengths[row]} tokens and can't be cut to {length}")
        self.lengths[row] = length

    def reset(self, row: int) -> None:
        """Empty a row for another conversation."""
        self.lengths[row] = 0

    def copy_row(self, source: int, target: int) -> None:
        """Make `target` a copy of `source`: one prompt, several replies."""
        length = self.lengths[source]
        with torch.no_grad():
            self.keys[:, target, :length] = self.keys[:, source, :length]
            self.values[:, target, :length] = self.values[:, source, :length]
        self.lengths[target] = length
