"""A model's size and what training it takes, without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from chatwright.adapters.lora import attach_lora, linear_layers
from chatwright.adapters.quantized import nf4_bytes
from chatwright.errors import ModelError
from chatwright.losses.linear_cross_entropy import ACCELERATOR_CHUNK_BYTES, CPU_CHUNK_BYTES
from chatwright.models.config import DecoderConfig, flops_per_token, num_parameters
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.vocabulary import resize_vocab
from chatwright.models.weights import read_config
from chatwright.recipes.data import TextSetup
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import available_devices, compute_dtype


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Parameters, those that are trained, and memory in bytes; nothing for those that run through transformers."""

    config: DecoderConfig | None
    parameters: int | None = None
    trainable: int | None = None
    memory: dict[str, int] = field(default_factory=dict)

    def flops(self, mean_length: float, tokens: float) -> float | None:
        """Training on so many tokens, in conversations of this mean length."""
        return flops_per_token(self.config, mean_length) * tokens if self.config else None


def model_figures(settings: RunSettings, text: TextSetup, most_tokens: int) -> ModelFigures:
    """The figures of a recipe's model.

    Args:
        most_tokens: of a step, where it has fewer than a full pack.

    Raises:
        ModelError: the model's configuration can't be read.
    """
    config = _decoder_config(text)
    if config is None:
        return ModelFigures(None)
    rows = len(set(text.template.trained_token_ids) - text.learned_ids) if settings.adapter is not None else 0
    return figures_of(settings, config, trained_parameters(settings, config, rows), most_tokens)


def figures_of(settings: RunSettings, config: DecoderConfig, trainable: int, most_tokens: int) -> ModelFigures:
    """The figures of known shapes; see `model_figures`.

    Args:
        trainable: parameters that are trained.
    """
    memory = _memory(settings, config, most_tokens, trainable)
    return ModelFigures(config, num_parameters(config), trainable, memory)


def _decoder_config(text: TextSetup) -> DecoderConfig | None:
    """The model's shapes, grown for added tokens; None for architectures that run through transformers."""
    raw = read_config(text.resolved.folder)
    try:
        config = config_from_hf(raw)
    except ModelError:
        return None
    if text.tokenizer.vocab_size <= config.vocab_size:
        return config
    with torch.device("meta"):
        model = CausalLM(config)
        resize_vocab(model, text.tokenizer.vocab_size)
    return model.config


def trained_parameters(settings: RunSettings, config: DecoderConfig, token_rows: int = 0) -> int:
    """Trained parameters, counted on a model without memory (torch's meta device).

    Args:
        token_rows: rows of the vocabulary that are trained beside an adapter.
    """
    if settings.adapter is None:
        return num_parameters(config)
    with torch.device("meta"):
        model = CausalLM(config)
        attach_lora(model, settings.adapter, seed=0)
    ends = 1 if config.tied else 2
    return sum(p.numel() for p in model.parameters() if p.requires_grad) + token_rows * config.hidden_size * ends


def _weight_bytes(settings: RunSettings, config: DecoderConfig, width: int) -> int:
    """Of all weights; those of linear layers are smaller where the recipe quantizes them."""
    total = num_parameters(config) * width
    if settings.adapter is None or settings.adapter.base != "nf4":
        return total
    with torch.device("meta"):
        model = CausalLM(config)
    sizes = [model.get_submodule(name).weight.numel() for name in linear_layers(model)]  # type: ignore[operator, union-attr]
    return total - sum(sizes) * width + sum(nf4_bytes(size, settings.adapter.double_quantization) for size in sizes)


def _inner_activations(config: DecoderConfig) -> int:
    """Numbers that a token keeps within a layer's feed-forward block, the mean over layers."""
    dense = (3 if config.gated else 2) * config.intermediate_size
    if (moe := config.moe) is None:
        return dense
    routed = moe.experts_per_token * (3 * moe.intermediate_size + 2 * config.hidden_size)  # its rows in and out
    sparse = routed + moe.num_shared * dense + 2 * moe.num_experts
    return (len(moe.layers) * sparse + (config.num_layers - len(moe.layers)) * dense) // config.num_layers


def _memory(settings: RunSettings, config: DecoderConfig, most_tokens: int, trainable: int) -> dict[str, int]:
    """An estimate in bytes: weights, masters, gradients, moments, activations kept for the backward, and the loss."""
    kinds = available_devices()
    kind = kinds[0] if settings.train.device == "auto" else settings.train.device
    absent = kind not in kinds  # planned here, run elsewhere: `auto` is bf16 on any accelerator worth planning for
    width = (
        2
        if absent and settings.train.dtype == "auto"
        else compute_dtype(settings.train.dtype, torch.device(kind)).itemsize
    )
    low = width == 2
    tokens = min(settings.packing.tokens_per_pack, most_tokens)
    d = config.hidden_size
    inner = _inner_activations(config)
    per_token_layer = 6 * d + 2 * (config.num_heads + config.num_kv_heads) * config.head_dim + inner
    kept_layers = 1 if settings.train.activation_checkpointing else config.num_layers
    activations = tokens * width * (per_token_layer * kept_layers + d * config.num_layers)
    outside = config.vocab_size * d * (1 if config.tied else 2)  # of the layers: AdamW's
    muons = max(0, trainable - outside) if settings.optimizer.name == "muon" else 0
    moments = 2 if settings.optimizer.name == "adamw8bit" else 8
    estimate = {
        "weights": _weight_bytes(settings, config, width),
        "masters": trainable * 4 if low else 0,
        "gradients": trainable * 4,
        "optimizer": trainable * moments - 4 * muons,  # Muon keeps one average
        "activations": activations,
        "loss": (CPU_CHUNK_BYTES if kind == "cpu" else ACCELERATOR_CHUNK_BYTES)
        + (config.vocab_size * d * 4 if settings.adapter is None else 0),
    }
    return {**estimate, "total": sum(estimate.values())}
