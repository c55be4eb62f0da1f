"""One flat buffer that all gradients add up in: float32, fixed layout, one all-reduce a step.

Micro-batches add to it undivided; the optimizer divides once. Low-precision parameters never keep a `.grad`
of their own: a hook adds each to the buffer as soon as autograd has made it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

ALIGNMENT = 16
"""Each parameter starts at a multiple of this many elements (64 bytes of float32)."""
BLOCK = 4096
"""Elements whose squares are summed together by `norm`, whatever the number of threads."""


class FlatGradients:
    """The gradients of `parameters` as views into `flat`.

    Args:
        parameters: trainable, all on one device; their order fixes the layout.

    Attributes:
        flat: `[total]`, float32 (float64 if any parameter is float64); padding stays 0. Read it through `settle`.
        views: one per parameter, in its shape.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = tuple(parameters)
        devices = {parameter.device for parameter in self.parameters}
        if len(devices) != 1:
            raise ValueError(f"all trainable parameters must be on one device, found {sorted(map(str, devices))}")
        double = any(parameter.dtype == torch.float64 for parameter in self.parameters)
        self.dtype = torch.float64 if double else torch.float32
        self.flat = torch.zeros(_padded_total(self.parameters), dtype=self.dtype, device=devices.pop())
        self.views = flat_views(self.flat, self.parameters)
        self._stale = [False] * len(self.parameters)
        self._handles = [self._connect(index) for index in range(len(self.parameters))]

    def _connect(self, index: int) -> torch.utils.hooks.RemovableHandle | None:
        parameter, view = self.parameters[index], self.views[index]
        if parameter.dtype == self.dtype:
            parameter.grad = view  # autograd adds in place
            return None
        parameter.grad = None

        def add_to_buffer(tensor: torch.Tensor) -> None:
            if tensor.grad is None:
                return
            if self._stale[index]:
                view.copy_(tensor.grad)  # the step's first: saves emptying the view and reading it back
                self._stale[index] = False
            else:
                view.add_(tensor.grad)
            tensor.grad = None

        handle: torch.utils.hooks.RemovableHandle = parameter.register_post_accumulate_grad_hook(add_to_buffer)
        return handle

    def zero(self) -> None:
        """Empty the buffer; connects again what someone's `zero_grad()` cut off.

        A low-precision parameter's view is only marked: its next gradient overwrites it, and `settle` empties
        it where none came.
        """
        for index, (parameter, view) in enumerate(zip(self.parameters, self.views, strict=True)):
            if parameter.dtype != self.dtype:
                self._stale[index] = True
                continue
            view.zero_()
            if parameter.grad is not view:
                parameter.grad = view

    def settle(self) -> torch.Tensor:
        """`flat` with every view true: those that got no gradient since `zero` are emptied."""
        for index, view in enumerate(self.views):
            if self._stale[index]:
                view.zero_()
                self._stale[index] = False
        return self.flat

    def require_connected(self) -> None:
        """Assert that gradients really went into the buffer."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            expected = view if parameter.dtype == self.dtype else None
            assert parameter.grad is expected, "a .grad was replaced behind the buffer (zero_grad(set_to_none=True)?)"

    def norm(self) -> float:
        """The 2-norm of the whole buffer; blocks of fixed size are summed in float64, so it repeats exactly."""
        blocks = torch.linalg.vector_norm(self.settle().view(-1, BLOCK), dim=1)  # [total / BLOCK]
        return float(torch.linalg.vector_norm(blocks.cpu().double()))

    def close(self) -> None:
        """Take the hooks and views off the parameters."""
        for handle in self._handles:
            if handle is not None:
                handle.remove()
        for parameter in self.parameters:
            parameter.grad = None


def flat_views(flat: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views into `flat` in the parameters' shapes, each aligned."""
    views, start = [], 0
    for parameter in parameters:
        views.append(flat[start : start + parameter.numel()].view(parameter.shape))
        start += _aligned(parameter.numel())
    return views


def _aligned(count: int) -> int:
    return math.ceil(count / ALIGNMENT) * ALIGNMENT


def _padded_total(parameters: Sequence[torch.Tensor]) -> int:
    total = sum(_aligned(parameter.numel()) for parameter in parameters)
    return max(1, math.ceil(total / BLOCK)) * BLOCK
