"""From a recipe to a model ready to train: weights, grown vocabulary, adapter, trained token rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from chatwright.adapters.lora import adapted_layers, attach_lora, linear_layers, require_learnable
from chatwright.adapters.peft_files import load_peft
from chatwright.adapters.quantized import quantize_linears
from chatwright.adapters.settings import LoraSettings
from chatwright.adapters.token_rows import attach_token_rows
from chatwright.checkpoints.imports import ResolvedModel
from chatwright.errors import ConfigError, ModelError
from chatwright.models.families import config_from_hf
from chatwright.models.foreign import ForeignLM, load_any
from chatwright.models.reward_model import RewardModel, load_reward_model, with_score
from chatwright.models.transformer import CausalLM
from chatwright.models.vocabulary import init_token_rows, resize_vocab
from chatwright.models.weights import init_model, is_classifier, read_config
from chatwright.recipes.data import TextSetup
from chatwright.recipes.experts import apply_expert_settings
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """A model ready to train.

    Args:
        model: float32 (or float64) parameters; the optimizer makes the compute copies.
        adapted: names of the layers that carry an adapter; empty for full fine-tuning.
        fresh_rows: token ids whose rows were made new.
    """

    model: CausalLM | ForeignLM
    adapted: tuple[str, ...]
    fresh_rows: tuple[int, ...]

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def load_weights(
    resolved: ResolvedModel,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    seed: int = 0,
    adapter: LoraSettings | None = None,
    scores: bool = False,
) -> CausalLM | ForeignLM:
    """The model of a resolved folder, with its adapter applied where it has one; a new model's weights are drawn.

    Args:
        adapter: the recipe's, whose base is kept in 4 bits if it says so.
        scores: a reward model is wanted, or a language model to make one of.

    Raises:
        ModelError: the weights can't be used, or can't be kept in 4 bits.
    """
    if resolved.new:
        return init_model(config_from_hf(read_config(resolved.folder)), seed, dtype).to(device)
    quantized = adapter is not None and adapter.base == "nf4"
    if is_classifier(read_config(resolved.folder)) and scores:
        if quantized:  # its trained score is one of the linear layers
            raise ModelError(
                "is a reward model already, whose base isn't kept in 4 bits",
                place=resolved.source,
                hint="set adapter.base: full, or begin from a language model",
            )
        return load_reward_model(resolved.folder, dtype=dtype, device=device)
    model = load_any(resolved.folder, dtype=dtype, device="cpu" if quantized else device)
    if adapter is not None and quantized:
        quantize_linears(model, linear_layers(model), adapter.double_quantization, device)
    if resolved.adapter is not None:
        load_peft(model, resolved.adapter)
    return model


def build_model(settings: RunSettings, text: TextSetup, runtime: Runtime) -> ModelSetup:
    """Load the weights and make them ready for the recipe.

    Raises:
        ModelError: the folder's weights can't be used. ConfigError: an adapter pattern matches nothing.
    """
    precision = torch.float64 if settings.train.dtype == "float64" else torch.float32
    resolved, seed = text.resolved, settings.train.seed
    if resolved.adapter is not None and settings.adapter is None:
        raise ConfigError(
            [
                "adapter: the model is an adapter on a base; set adapter to train it on, "
                "or merge it first with `chatwright export --merge`"
            ],
            source=settings.model_name,
        )
    scores = settings.stage == "reward"
    model = load_weights(resolved, precision, runtime.device, seed=seed, adapter=settings.adapter, scores=scores)
    apply_expert_settings(model, settings)
    _require_same_adapter(model, settings)
    require_learnable(model)
    fresh = _fresh_rows(text)
    if fresh and resolved.adapter is not None:  # its rows would start at random, stay frozen, and not be saved
        names = ", ".join(text.tokenizer.control_names[index] for index in fresh)
        raise ConfigError(
            [
                f"template: adds or maps {names}, whose rows the model's adapter doesn't train; "
                "merge it first with `chatwright export --merge`, or keep its template"
            ],
            source=settings.model_name,
        )
    _make_room(model, text, settings.model_name)
    adapted: tuple[str, ...] = tuple(adapted_layers(model))
    if settings.adapter is not None and resolved.adapter is None:
        adapted = tuple(attach_lora(model, settings.adapter, seed=seed))
        if fresh:
            attach_token_rows(model, fresh, seed)
    elif fresh and isinstance(model, CausalLM):
        init_token_rows(model, fresh, seed)
    if scores:
        model = _scoring(model, settings)
    model.train()
    return ModelSetup(model, adapted, fresh)


def _scoring(model: CausalLM | ForeignLM, settings: RunSettings) -> RewardModel:
    """The reward model that a run trains.

    Raises:
        ModelError: the architecture runs through transformers.
    """
    if isinstance(model, ForeignLM):
        raise ModelError(
            f"a {model.config.model_type} model runs through transformers, where no reward model can be made of it",
            place=settings.model_name,
            hint="take a model of another family: llama, mistral, qwen2, qwen3 …",
        )
    return with_score(model, settings.train.seed)


def _require_same_adapter(model: nn.Module, settings: RunSettings) -> None:
    """A model that carries an adapter goes on with that one; the recipe must say the same.

    Raises:
        ConfigError: the recipe's rank or strength differ from the adapter's.
    """
    wanted = settings.adapter
    for layer in adapted_layers(model).values():
        if wanted is None or (layer.rank, layer.scale) == (wanted.rank, wanted.scale):
            continue
        raise ConfigError(
            [
                f"adapter: the model carries one of rank {layer.rank} and scale {layer.scale:g}, and the recipe asks "
                f"for rank {wanted.rank} and scale {wanted.scale:g}; write the same, or merge it first with "
                "`chatwright export --merge`"
            ],
            source=settings.model_name,
        )


def _make_room(model: nn.Module, text: TextSetup, name: str) -> None:
    """Grow the vocabulary for tokens that the template added.

    Raises:
        ModelError: the architecture runs through transformers, where new rows can't be made or trained.
    """
    if isinstance(model, CausalLM):
        if text.tokenizer.vocab_size > model.config.vocab_size:
            resize_vocab(model, text.tokenizer.vocab_size)
    elif text.template.trained_token_ids:
        raise ModelError(
            "this architecture runs through transformers, where new token rows can't be trained",
            place=name,
            hint="use the model's own template with template.tools: auto or none",
        )


def _fresh_rows(text: TextSetup) -> tuple[int, ...]:
    """Control tokens that the model never learned: without those of the template that it was trained with."""
    return tuple(sorted(set(text.template.trained_token_ids) - text.learned_ids))
