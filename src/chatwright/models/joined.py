"""Projections that read the same input as one product: q, k and v; gate and up.

For a model that only generates. The parameters keep their names and their values and become views of one buffer, so
nothing is kept twice and writing to them in place still counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Joined:
    """Linear layers whose weights lie in one buffer.

    Args:
        layers: plain linear layers with as many inputs, all with a bias or all without one.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.weight = _one_buffer([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _one_buffer(biases) if biases else None

    def holds(self, layers: Sequence[nn.Module]) -> bool:
        """Whether these layers' weights are still the buffer's: not replaced, adapted, cast or moved since."""
        weights = [layer.weight for layer in layers if type(layer) is nn.Linear]
        biases = [layer.bias for layer in layers if type(layer) is nn.Linear and layer.bias is not None]
        return (
            len(weights) == len(layers)
            and _is_buffer(self.weight, weights)
            and (_is_buffer(self.bias, biases) if self.bias is not None else not biases)
        )


def join(layers: Sequence[nn.Module]) -> Joined | None:
    """Put the layers' weights into one buffer; None where one of them is more than a plain linear layer."""
    plain = [layer for layer in layers if type(layer) is nn.Linear]
    if len(plain) < len(layers) or len({layer.bias is None for layer in plain}) > 1:
        return None
    if len({(layer.weight.dtype, layer.weight.device) for layer in plain}) > 1:
        return None
    return Joined(plain)


def _one_buffer(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        buffer = torch.cat([tensor.detach() for tensor in tensors])
        for tensor, part in zip(tensors, buffer.split([len(tensor) for tensor in tensors]), strict=True):
            tensor.data = part
    return buffer


def _is_buffer(buffer: torch.Tensor, tensors: Sequence[torch.Tensor]) -> bool:
    place = buffer.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != place or tensor.dtype is not buffer.dtype:
            return False
        place += tensor.nbytes
    return True
