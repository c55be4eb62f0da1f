"""QLoRA: a frozen base whose linear weights are kept in 4 bits (NF4), with adapters on top at full precision.

T tokens. NF4 stores 16 values spaced as a normal distribution's quantiles, one scale a block of 64 weights (Dettmers
et al. 2023, arXiv:2305.14314); double quantization stores the scales in 8 bits. Quantizing is bitsandbytes' work.
Knows single layers; embeddings, norms and the output head stay as they are. Nothing here can be merged or saved: an
adapter is saved alone, and belongs on the full base.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from chatwright.adapters.lora_linear import LoraLinear
from chatwright.errors import ModelError, UserError

BLOCK = 64
"""Weights that share a scale; bitsandbytes' and transformers' default."""
SCALE_BLOCK = 256
"""Scales that share one of their own with double quantization."""
_DEQUANTIZED = (torch.float32, torch.bfloat16, torch.float16)


def nf4_bytes(num_weights: int, double: bool) -> int:
    """Bytes of so many weights with their scales: 4.5 bits a weight, or 4.127 where the scales have 8 bits."""
    scales = -(-num_weights // BLOCK)
    return -(-num_weights // 2) + (scales + 4 * -(-scales // SCALE_BLOCK) if double else 4 * scales)


class Nf4Weight(nn.Linear):
    """What layers with an NF4 weight share.

    Attributes:
        weight: uint8 `[n/2, 1]`, frozen: two weights a byte. state: bitsandbytes' scales, shape and dtype.
        compute_dtype: the dtype that the layer computes in; follows `model.to(dtype)`.
    """

    state: Any
    compute_dtype: torch.dtype

    def frozen_weight(self) -> torch.Tensor:
        """`[out, in]` in the compute dtype, made anew at each call."""
        return _dequantize(self.weight, self.state, self.compute_dtype)

    def base_product(self, input: torch.Tensor) -> torch.Tensor:
        """`[T, in]` → `[T, out]`; the weight is unpacked once more in the backward instead of being kept."""
        product: torch.Tensor = _Nf4Product.apply(input, self.weight, self.state)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """`model.to(…)`: the scales go to the device, stay float32, and the layer computes in the new dtype."""
        super()._apply(fn, recurse)
        probe = fn(torch.empty(0, dtype=self.compute_dtype, device=self.state.absmax.device))
        self.compute_dtype = probe.dtype
        self.state.dtype = probe.dtype if probe.dtype in _DEQUANTIZED else torch.float32
        self.state.to(self.weight.device)
        return self

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{super().extra_repr()}, nf4"


class Nf4Linear(Nf4Weight):
    """A frozen linear layer in NF4.

    Args:
        base: its weight is read and let go; its bias is taken over.
        double: quantize the scales, too. device: where the result lies; None: where the weight is.
    """

    def __init__(self, base: nn.Linear, double: bool, device: torch.device | str | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.compute_dtype = base.weight.dtype
        weight = base.weight.detach().to(device=device or base.weight.device)
        exact = weight if weight.dtype in _DEQUANTIZED else weight.float()
        packed, self.state = _bitsandbytes().quantize_4bit(
            exact.contiguous(), blocksize=BLOCK, compress_statistics=double, quant_type="nf4"
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = base.bias
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach().to(device=packed.device), requires_grad=False)
        self.training = base.training

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[T, in]` → `[T, out]`."""
        return self.base_product(input)


class Nf4LoraLinear(Nf4Weight, LoraLinear):
    """An adapter on a layer in NF4: y = x dequantized(W)ᵀ + b + scale · (x Aᵀ) Bᵀ."""

    def __init__(self, base: Nf4Linear, rank: int, alpha: float, *, rslora: bool = False, dropout: float = 0.0) -> None:
        self.state, self.compute_dtype = base.state, base.compute_dtype
        LoraLinear.__init__(self, base, rank, alpha, rslora=rslora, dropout=dropout)

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The adapter's dtype can't follow the weight's, which is uint8."""
        return self.compute_dtype

    def merged(self) -> tuple[nn.Linear, float]:
        """Never: what rounding to 4 bits loses is of the size of the update.

        Raises:
            ModelError: always.
        """
        raise refuse_merging("an adapted layer")


def num_weights(model: nn.Module) -> int:
    """The model's parameters, each weight in NF4 counted as one (a byte holds two)."""
    packed = [layer for layer in model.modules() if isinstance(layer, Nf4Weight)]
    hidden = sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in packed)
    return sum(parameter.numel() for parameter in model.parameters()) + hidden


def refuse_merging(name: str) -> ModelError:
    """The error for merging into a quantized weight."""
    return ModelError(
        f"{name} holds quantized weights; merging into them would change the model",
        hint="save the adapter, and merge it into the base in bfloat16 or float32: `chatwright export --merge`",
    )


@torch.no_grad()
def quantize_linears(model: nn.Module, names: list[str], double: bool, device: torch.device | str) -> int:
    """Replace these linear layers by NF4 ones, one after the other, and move the rest of the model to the device.

    Layers go to the device one at a time, so that a GPU never holds more than one unquantized weight.

    Returns:
        Bytes that the quantized weights take.

    Raises:
        UserError: bitsandbytes is missing, or has no 4-bit code for the device.
    """
    total = 0
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        parent, _, child = name.rpartition(".")
        try:
            layer = Nf4Linear(base, double, device)
        except (NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"bitsandbytes can't quantize {name} to NF4 on {device}: {error}",
                place="adapter.base",
                hint="set adapter.base: full, or train on a CUDA GPU or a CPU",
            ) from error
        setattr(model.get_submodule(parent), child, layer)
        total += nf4_bytes(base.in_features * base.out_features, double)
    model.to(device)
    return total


class _Nf4Product(torch.autograd.Function):
    """x Wᵀ with W in NF4. Only x gets a gradient, and only the packed weight is kept for it."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, packed: torch.Tensor, state: Any) -> torch.Tensor:
        """`[T, in]` → `[T, out]`."""
        ctx.save_for_backward(packed)
        ctx.state = state
        return F.linear(input, _dequantize(packed, state, input.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        """`[T, out]` → `[T, in]`."""
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (packed,) = ctx.saved_tensors
        return grads[0] @ _dequantize(packed, ctx.state, grads[0].dtype), None, None


def _dequantize(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    weight: torch.Tensor = _bitsandbytes().dequantize_4bit(packed, state)
    return weight.to(dtype)


def _bitsandbytes() -> Any:
    # it warns of a missing kernel for products in 4 bits, which nothing here uses
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise UserError(
            "an NF4 base needs the package bitsandbytes, which is not installed",
            place="adapter.base",
            hint="pip install bitsandbytes, or set adapter.base: full",
        ) from error
    return bitsandbytes.functional
