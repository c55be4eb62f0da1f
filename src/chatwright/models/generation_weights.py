"""Make a model that only generates faster on a CPU: its linear layers are replaced by compact ones.

For good (`prepare_for_generation`), or for a block within a training (`generating`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from chatwright.errors import ConfigError, ModelError
from chatwright.models.attention import Attention
from chatwright.models.compact_linear import Int8Linear, PackedLinear
from chatwright.models.feed_forward import FeedForward, PlainFeedForward
from chatwright.models.moe import MixtralExpert
from chatwright.models.transformer import CausalLM

Compact = PackedLinear | Int8Linear


class GenerationWeights(StrEnum):
    """How a model that only generates holds the weights of its linear layers.

    `packed`: in the model's dtype, laid out for its kernels where the device has any (CPUs). `int8`: 8 bits with one
    scale an output (CPUs); half the memory of bf16, faster for one or two rows, and no longer quite the same model.
    """

    PACKED = "packed"
    INT8 = "int8"


def generation_weights(name: str) -> GenerationWeights:
    """The kind of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in list(GenerationWeights):
        known = " or ".join(GenerationWeights)
        raise ConfigError([f"weights: must be {known} (found {name!r})"], source="weights")
    return GenerationWeights(name)


def prepare_for_generation(model: CausalLM, weights: GenerationWeights = GenerationWeights.PACKED) -> None:
    """Make a model that only generates faster on a CPU: its linear layers are replaced.

    q, k and v become one, gate and up too.
    Adapted layers stay as they are. On other devices, and in dtypes without such kernels, `packed` changes nothing.
    The model can't be trained or saved afterwards; `generating` undoes it.

    Raises:
        ModelError: int8 is asked for where there is no kernel for it.
    """
    _replace(model, weights, [])


@contextmanager
def generating(model: CausalLM) -> Iterator[None]:
    """A model in training, fast to generate with inside the block; its own layers are back afterwards."""
    changes: list[tuple[Any, str, Any]] = []
    try:
        _replace(model, GenerationWeights.PACKED, changes)
        yield
    finally:
        for owner, name, before in reversed(changes):
            setattr(owner, name, before)


def _replace(model: CausalLM, weights: GenerationWeights, changes: list[tuple[Any, str, Any]]) -> None:
    """Replace what can be replaced; `changes` gets (owner, attribute, what stood there) before each change."""
    weight = model.model.embed_tokens.weight
    make: type[Compact] = PackedLinear
    if weights is GenerationWeights.INT8:
        _require_int8(weight)
        make = Int8Linear
    elif not _can_pack(weight):
        return

    def put(owner: Any, name: str, value: Any) -> None:
        changes.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for part in list(model.modules()):
        if isinstance(part, Attention):
            _replace_together(part, ("q_proj", "k_proj", "v_proj"), "qkv_proj", make, put)
            _replace_one(part, "o_proj", make, put)
        elif isinstance(part, FeedForward | MixtralExpert):
            gate, up, down = part.PROJECTIONS
            _replace_together(part, (gate, up), "gate_up_proj", make, put)
            _replace_one(part, down, make, put)
        elif isinstance(part, PlainFeedForward):
            _replace_one(part, "fc1", make, put)
            _replace_one(part, "fc2", make, put)
    owner = model.model.embed_tokens if model.lm_head is None else model.lm_head
    put(model, "packed_head", make(owner.weight))


def _replace_together(
    part: Any, names: Sequence[str], whole: str, make: type[Compact], put: Callable[[Any, str, Any], None]
) -> None:
    """One layer for several that read the same input; where one of them is adapted, each by itself."""
    plain = [layer for layer in (getattr(part, name) for name in names) if type(layer) is nn.Linear]
    if len(plain) < len(names) or len({layer.bias is None for layer in plain}) > 1:
        for name in names:
            _replace_one(part, name, make, put)
        return
    biases: list[torch.Tensor] = [layer.bias for layer in plain if layer.bias is not None]
    weight = torch.cat([layer.weight.detach() for layer in plain])
    put(part, whole, make(weight, torch.cat(biases) if biases else None))
    for name in names:
        put(part, name, None)


def _replace_one(part: Any, name: str, make: type[Compact], put: Callable[[Any, str, Any], None]) -> None:
    layer = getattr(part, name)
    if type(layer) is nn.Linear:
        put(part, name, make(layer.weight, layer.bias))


def _can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN has kernels for this dtype here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    half = weight.dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return half or weight.dtype is torch.float32


def _require_int8(weight: torch.Tensor) -> None:
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float32):
        raise ModelError(
            f"int8 weights run on a CPU in bfloat16 or float32, and the model is on {weight.device} in {weight.dtype}",
            hint="take packed weights there (the default)",
        )
