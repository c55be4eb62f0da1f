"""Words shared by every room: the label that is never trained, and how a flat batch is cut into segments.

Batches are flat: `[T]` tokens with a layout that says where each conversation begins and ends.
Importing this module loads no torch; making a layout does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORED_LABEL = -100
"""The label that foreign loss functions skip (PyTorch's and Hugging Face's default)."""


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """How a flat `[T]` batch is cut into S segments that never see each other.

    Example: lengths 3 and 2 give `cu_q = [0, 3, 5]`; token 3 is the first of segment 1.
    When decoding with a KV cache a segment's keys outnumber its queries (`cu_k` ≠ `cu_q`);
    queries are then the *last* `q` of the segment's `k` positions.

    Args:
        cu_q: int32 `[S+1]`, cumulative query lengths on the batch's device.
        cu_k: int32 `[S+1]`, cumulative key lengths; equal to `cu_q` in training.
        lengths_q: the query lengths on the host, so that no device synchronization is needed.
        lengths_k: the key lengths on the host.
        kv_gather: int64 `[K]` or None: for each key position the flat token that supplies it,
            where segments share a prefix (a prompt computed once for several replies).
    """

    cu_q: torch.Tensor
    cu_k: torch.Tensor
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    kv_gather: torch.Tensor | None = None

    @property
    def max_q(self) -> int:
        """The longest query segment, in tokens."""
        return max(self.lengths_q, default=0)

    @property
    def max_k(self) -> int:
        """The longest key segment, in tokens."""
        return max(self.lengths_k, default=0)

    @property
    def num_segments(self) -> int:
        """S, the number of segments."""
        return len(self.lengths_q)

    @staticmethod
    def from_lengths(
        lengths_q: Sequence[int],
        lengths_k: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> SegmentLayout:
        """Make the layout of segments with these lengths (`lengths_k` defaults to `lengths_q`)."""
        import torch

        def cumulative(lengths: tuple[int, ...]) -> torch.Tensor:
            total, ends = 0, [0]
            for length in lengths:
                total += length
                ends.append(total)
            return torch.tensor(ends, dtype=torch.int32, device=device)

        q = tuple(int(n) for n in lengths_q)
        k = q if lengths_k is None else tuple(int(n) for n in lengths_k)
        if len(q) != len(k):
            raise ValueError(f"{len(q)} query lengths but {len(k)} key lengths")
        cu_q = cumulative(q)
        return SegmentLayout(cu_q, cu_q if k == q else cumulative(k), q, k)
