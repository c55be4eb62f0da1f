"""The one batch type: flat tokens, a layout, and the supervised positions already gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from chatwright.layouts import IGNORED_LABEL, SegmentLayout
from chatwright.templates.rendered import ExampleKey


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """S conversations in T flat tokens, N of which are supervised.

    Targets are already shifted (collate does it, nobody else): the hidden state at flat position
    `supervised_index[i]` must predict `targets[i]`, with loss weight `weights[i]`.

    Args:
        input_ids: int64 `[T]`.
        position_ids: int64 `[T]`, 0 at each segment start.
        layout: how `[T]` is cut into segments.
        supervised_index: int64 `[N]`, flat positions whose *next* token is supervised, ascending.
        targets: int64 `[N]`. weights: float32 `[N]`, all > 0.
        segment_of_target: int64 `[N]`, the segment of each supervised token (its example, by place in `keys`).
        keys: the S segments' examples; None marks padding. Packs of a constant length have several in one segment.
        num_padding: tokens of the padding segment, 0 when there is none.
        per_token: name → `[N]`, what an objective needs to know of each supervised token, such as its advantage.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: SegmentLayout
    supervised_index: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    segment_of_target: torch.Tensor
    keys: tuple[ExampleKey | None, ...]
    num_padding: int = 0
    per_token: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def labels(self) -> torch.Tensor:
        """int64 `[T]` unshifted labels with −100 where nothing is trained, for foreign loss functions."""
        labels = torch.full_like(self.input_ids, IGNORED_LABEL)
        labels[self.supervised_index + 1] = self.targets
        return labels

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        if self.input_ids.device == torch.device(device):
            return self
        moved: dict[str, Any] = {
            each.name: getattr(self, each.name).to(device, non_blocking=True)
            for each in fields(self)
            if isinstance(getattr(self, each.name), torch.Tensor)
        }
        moved["per_token"] = {name: each.to(device, non_blocking=True) for name, each in self.per_token.items()}
        cu_q = self.layout.cu_q.to(device, non_blocking=True)
        same = self.layout.cu_k is self.layout.cu_q
        cu_k = cu_q if same else self.layout.cu_k.to(device, non_blocking=True)
        gather = self.layout.kv_gather
        gather = gather if gather is None else gather.to(device, non_blocking=True)
        return replace(self, layout=replace(self.layout, cu_q=cu_q, cu_k=cu_k, kv_gather=gather), **moved)
