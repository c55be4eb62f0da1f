"""A model to talk to: weights, engine, template and tools put together from whatever name the user gives."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from chatwright.checkpoints.imports import resolve_model
from chatwright.inference.chat_session import ChatSession
from chatwright.inference.responder import make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.models.foreign import ForeignLM
from chatwright.models.generation_weights import prepare_for_generation
from chatwright.models.transformer import CausalLM
from chatwright.recipes.model import load_weights
from chatwright.recipes.template_record import serving_template
from chatwright.runtime import compute_dtype, start_runtime
from chatwright.templates.template import Template


def talk_to(
    name: str | Path, settings: SamplingSettings | None = None, *, system: str | None = None, device: str = "auto"
) -> ChatSession:
    """Load a model and open a conversation with it.

    Args:
        name: anything `resolve_model` finds.
        settings: how replies are drawn.
        system: the system message.

    Raises:
        ModelError, TemplateError, CheckpointError: it can't be found, loaded, or served as it was trained.
    """
    runtime = start_runtime(device)  # type: ignore[arg-type]
    resolved = resolve_model(name)
    template = serving_template(resolved.text_folder)
    model = load_weights(resolved, torch.float32, runtime.device).to(compute_dtype("auto", runtime.device))
    if isinstance(model, CausalLM):
        prepare_for_generation(model)
    return session_for(cast(CausalLM | ForeignLM, model), template, settings, system=system)


def session_for(
    model: CausalLM | ForeignLM,
    template: Template,
    settings: SamplingSettings | None = None,
    *,
    system: str | None = None,
) -> ChatSession:
    """A conversation with a model in memory, by the template it was trained with."""
    engine = make_engine(model, template)
    return ChatSession(engine, template, toolbox=ToolBox(), system=system, settings=settings or SamplingSettings())
