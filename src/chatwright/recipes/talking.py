"""A model to talk to: weights, engine, template and tools put together from whatever name the user gives."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.errors import ModelError
from chatwright.inference.chat_session import ChatSession
from chatwright.inference.responder import make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.models.foreign import ForeignLM
from chatwright.models.generation_weights import GenerationWeights, prepare_for_generation
from chatwright.models.transformer import CausalLM
from chatwright.recipes.model import load_weights
from chatwright.recipes.template_record import serving_template
from chatwright.runtime import compute_dtype, start_runtime
from chatwright.templates.template import Template


def load_for_generation(
    resolved: ResolvedModel,
    device: torch.device,
    dtype: torch.dtype,
    weights: GenerationWeights = GenerationWeights.PACKED,
) -> CausalLM | ForeignLM:
    """A model that only generates, and can't be trained or saved.

    Raises:
        ModelError: it can't be loaded, or int8 weights are asked for where there are no kernels for them.
    """
    model = load_weights(resolved, torch.float32, device).to(dtype)
    if isinstance(model, CausalLM):
        prepare_for_generation(model, weights)
    elif weights is not GenerationWeights.PACKED:
        raise ModelError(
            f"a {model.config.model_type} model runs through transformers, where weights can't be {weights}",
            place=str(resolved.source),
            hint="leave --weights out",
        )
    return cast(CausalLM | ForeignLM, model)


def talk_to(
    name: str | Path,
    settings: SamplingSettings | None = None,
    *,
    system: str | None = None,
    device: str = "auto",
    weights: GenerationWeights = GenerationWeights.PACKED,
    **limits: int,
) -> ChatSession:
    """Load a model and open a conversation with it.

    Args:
        name: anything `resolve_model` finds.
        settings: how replies are drawn.
        system: the system message.
        limits: `cache_bytes` and `max_rows` of `Engine`.
        weights: `int8` halves the memory on a CPU and is faster, but no longer quite the same model.

    Raises:
        ModelError, TemplateError, CheckpointError: it can't be found, loaded, or served as it was trained.
    """
    runtime = start_runtime(device)  # type: ignore[arg-type]
    resolved = resolve_model(name)
    template = serving_template(resolved.text_folder)
    model = load_for_generation(resolved, runtime.device, compute_dtype("auto", runtime.device), weights)
    return session_for(model, template, settings, system=system, **limits)


def session_for(
    model: CausalLM | ForeignLM,
    template: Template,
    settings: SamplingSettings | None = None,
    *,
    system: str | None = None,
    **limits: int,
) -> ChatSession:
    """A conversation with a model in memory, by the template it was trained with."""
    engine = make_engine(model, template, **limits)
    return ChatSession(engine, template, toolbox=ToolBox(), system=system, settings=settings or SamplingSettings())
