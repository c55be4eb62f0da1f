"""What a run would do, without touching a weight: rows, tokens, steps, learning rates, parameters, memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from chatwright.adapters.lora import attach_lora
from chatwright.errors import ModelError
from chatwright.losses.linear_cross_entropy import ACCELERATOR_CHUNK_BYTES, CPU_CHUNK_BYTES
from chatwright.models.config import DecoderConfig, flops_per_token, num_parameters
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.vocabulary import resize_vocab
from chatwright.models.weights import read_config
from chatwright.optim.schedules import multipliers
from chatwright.recipes.data import RunData
from chatwright.recipes.planned_sources import PlannedSource, planned_sources
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import available_devices, compute_dtype


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The figures of a planned run. Memory in bytes; learning rates of up to 60 evenly spaced steps.

    What is counted by epoch is what an epoch of the mixture draws, on average.
    """

    rows: int
    examples: int
    heldout_examples: int
    tokens_per_epoch: int
    supervised_tokens_per_epoch: int
    supervised_share: float
    longest_example: int
    epochs: float
    steps: int
    packs: int
    tokens: int
    supervised_tokens: int
    packing_waste: float
    mean_tokens_per_step: float
    learning_rates: list[float]
    parameters: int | None
    trainable_parameters: int | None
    training_flops: float | None
    memory: dict[str, int] = field(default_factory=dict)
    sources: list[PlannedSource] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def learning_rate_multipliers(settings: RunSettings, data: RunData) -> list[float]:
    """The schedule's multiplier of every planned step, by the planned fraction of supervised weight."""
    return multipliers(settings.schedule, data.plan.step_sums(data.store.weight_sums).tolist())


def plan_run(settings: RunSettings, data: RunData) -> RunPlan:
    """The plan's figures.

    Raises:
        ModelError: the model's configuration can't be read.
    """
    store, plan = data.store, data.plan
    lengths = store.lengths
    drawn, epochs = plan.draws, max(plan.num_epochs, 1)
    tokens, supervised = int((drawn * lengths).sum()), int((drawn * store.supervised_counts).sum())
    steps_tokens, steps_supervised = plan.step_sums(lengths), plan.step_sums(store.supervised_counts)
    rates = np.array(learning_rate_multipliers(settings, data)) * settings.optimizer.learning_rate
    shown = np.unique(np.linspace(0, len(rates) - 1, min(60, len(rates))).astype(int))
    config = _decoder_config(data)
    parameters = num_parameters(config) if config else None
    trainable = _trainable(settings, config, data) if config else None
    mean_length = float(lengths.mean())
    return RunPlan(
        rows=sum(entry.num_rows for entry in data.entries),
        examples=len(store),
        heldout_examples=len(data.heldout),
        tokens_per_epoch=round(tokens / epochs),
        supervised_tokens_per_epoch=round(supervised / epochs),
        supervised_share=supervised / max(tokens, 1),
        longest_example=int(lengths.max()),
        epochs=settings.train.epochs,
        steps=plan.num_steps,
        packs=plan.num_packs,
        tokens=int(steps_tokens.sum()),
        supervised_tokens=int(steps_supervised.sum()),
        packing_waste=plan.waste(lengths).fraction,
        mean_tokens_per_step=float(steps_tokens.mean()),
        learning_rates=[float(rates[index]) for index in shown],
        parameters=parameters,
        trainable_parameters=trainable,
        training_flops=flops_per_token(config, mean_length) * float(steps_tokens.sum()) if config else None,
        memory=_memory(settings, config, data, trainable or 0) if config else {},
        sources=planned_sources(settings, data),
        warnings=_warnings(data, int(lengths.max())),
    )


def _warnings(data: RunData, longest: int) -> list[str]:
    """What can be done as asked, but may not be what was meant."""
    found = [
        f"{entry.name}: {count:,} rows {reason}" for entry in data.entries for reason, count in entry.notes.items()
    ]
    context = read_config(data.text.resolved.folder).get("max_position_embeddings")
    if isinstance(context, int) and longest > context:
        found.append(
            f"the longest example has {longest:,} tokens, but the model was made for {context:,}: "
            "lower max_tokens and set overflow"
        )
    return found


def _decoder_config(data: RunData) -> DecoderConfig | None:
    """The model's shapes, grown for added tokens; None for architectures that run through transformers."""
    raw = read_config(data.text.resolved.folder)
    try:
        config = config_from_hf(raw)
    except ModelError:
        return None
    if data.text.tokenizer.vocab_size <= config.vocab_size:
        return config
    with torch.device("meta"):
        model = CausalLM(config)
        resize_vocab(model, data.text.tokenizer.vocab_size)
    return model.config


def _trainable(settings: RunSettings, config: DecoderConfig, data: RunData) -> int:
    """Trained parameters, counted on a model without memory (torch's meta device)."""
    if settings.adapter is None:
        return num_parameters(config)
    with torch.device("meta"):
        model = CausalLM(config)
        attach_lora(model, settings.adapter, seed=0)
    rows = len(set(data.text.template.trained_token_ids) - data.text.learned_ids)
    ends = 1 if config.tied else 2
    return sum(p.numel() for p in model.parameters() if p.requires_grad) + rows * config.hidden_size * ends


def _memory(settings: RunSettings, config: DecoderConfig, data: RunData, trainable: int) -> dict[str, int]:
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
    tokens = min(settings.packing.tokens_per_pack, int(data.plan.step_sums(data.store.lengths).max()))
    d, f = config.hidden_size, config.intermediate_size
    per_token_layer = 6 * d + 2 * config.num_heads * config.head_dim + 2 * config.num_kv_heads * config.head_dim + 3 * f
    kept_layers = 1 if settings.train.activation_checkpointing else config.num_layers
    activations = tokens * width * (per_token_layer * kept_layers + d * config.num_layers)
    moments = 2 if settings.optimizer.name == "adamw8bit" else 8
    estimate = {
        "weights": num_parameters(config) * width,
        "masters": trainable * 4 if low else 0,
        "gradients": trainable * 4,
        "optimizer": trainable * moments,
        "activations": activations,
        "loss": (CPU_CHUNK_BYTES if kind == "cpu" else ACCELERATOR_CHUNK_BYTES)
        + (config.vocab_size * d * 4 if settings.adapter is None else 0),
    }
    return {**estimate, "total": sum(estimate.values())}
