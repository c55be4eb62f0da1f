"""Keys and values of the tokens already seen, one row a conversation.

Knows rows, lengths and tensors; knows no token, no mask and no sampling. Lengths stand on the host. Heads come before
positions, so that one head's keys lie together: what a decoding step reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig

FLAT_TOKENS = 1024
"""Up to so many new tokens of a pass are written by their places, one call a layer; more by rows, as slices."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where one pass writes its new tokens: made once, used by every layer.

    Args:
        slices: for each segment its cache row and the positions there.
        flat: int64 `[T · G]` for a few new tokens: (row · G + head) · capacity + position; else None.
    """

    slices: tuple[tuple[int, slice], ...]
    flat: torch.Tensor | None


class KVCache:
    """Room for `num_rows` conversations of up to `capacity` tokens each.

    Attributes:
        layers: keys and values of each layer, `[rows, KV heads, capacity, D]`.

    A forward pass with the cache appends its segments' keys and values layer by layer (`append`) and then moves
    the lengths on once (`advance`). Inference only: nothing here carries a gradient.

    Args:
        config: the model's shapes.
        num_rows: how many conversations are held at once.
        capacity: tokens a row can hold.
        dtype, device: of the keys and values: the model's.
    """

    shares_prefixes = True
    """Whether `copy_prefix` saves the work of the tokens it copies."""

    def __init__(
        self,
        config: DecoderConfig,
        num_rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.num_rows, self.capacity = num_rows, capacity
        self.lengths = [0] * num_rows
        shape = (config.num_layers, num_rows, config.num_kv_heads, capacity, config.head_dim)
        # Normal tensors even when made under inference mode, so that they can be written from anywhere;
        # zeros, since a masked position still meets the values (0 · NaN is NaN).
        with torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)  # [layers, rows, KV heads, capacity, D]
            self.values = torch.zeros(shape, dtype=dtype, device=device)
            # Views made once, since a decoding step asks for them at every layer.
            self.layers = list(zip(self.keys.unbind(), self.values.unbind(), strict=True))
            self._flat = [(k.view(-1, config.head_dim), v.view(-1, config.head_dim)) for k, v in self.layers]

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
        if sum(lengths_q) <= FLAT_TOKENS:
            num_heads, heads = self.config.num_kv_heads, range(self.config.num_kv_heads)
            at = [
                (row * num_heads + head) * self.capacity + position
                for row, place in slices
                for position in range(place.start, place.stop)
                for head in heads
            ]
            flat = torch.tensor(at, device=self.keys.device)
        return Places(slices, flat)

    def append(self, layer: int, places: Places, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write one layer's new keys and values `[T, KV heads, D]`; lengths stay."""
        with torch.no_grad():
            if places.flat is not None:
                for cached, new in zip(self._flat[layer], (k, v), strict=True):
                    cached.index_copy_(0, places.flat, new.reshape(-1, new.shape[-1]))
                return
            for cached, new in zip(self.layers[layer], (k, v), strict=True):
                start = 0
                for row, place in places.slices:
                    end = start + place.stop - place.start
                    cached[row, :, place] = new[start:end].transpose(0, 1)
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

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`: what two prompts begin with is computed once."""
        if not 0 <= length <= self.lengths[source]:
            raise ValueError(f"row {source} has {self.lengths[source]} tokens and can't give {length}")
        if source != target:
            with torch.no_grad():
                self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
                self.values[:, target, :, :length] = self.values[:, source, :, :length]
        self.lengths[target] = length

    def move(self, source: int, target: int) -> None:
        """Make `target` what `source` is, and empty `source`."""
        self.copy_prefix(source, target, self.lengths[source])
        self.lengths[source] = 0

    def resized(self, num_rows: int, capacity: int, rows: Sequence[int]) -> KVCache:
        """A cache of another size that holds these rows' tokens in its first rows, in the order given."""
        other = type(self)(self.config, num_rows, capacity, self.keys.dtype, self.keys.device)
        with torch.no_grad():
            for target, source in enumerate(rows):
                length = self.lengths[source]
                other.keys[:, target, :, :length] = self.keys[:, source, :, :length]
                other.values[:, target, :, :length] = self.values[:, source, :, :length]
                other.lengths[target] = length
        return other
