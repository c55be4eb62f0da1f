"""What a recipe says of a model's experts, put into the model's configuration, where checkpoints keep it."""

from __future__ import annotations

from dataclasses import replace

from chatwright.errors import ConfigError
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM
from chatwright.recipes.run_settings import RunSettings


def apply_expert_settings(model: CausalLM | ForeignLM, settings: RunSettings) -> None:
    """Set the weight and the scope of the load-balance loss.

    Raises:
        ConfigError: the recipe has `moe`, and the model no experts of our own decoder.
    """
    wanted = settings.moe
    if wanted is None:
        return
    if not isinstance(model, CausalLM) or model.config.moe is None:
        reason = "has no experts" if isinstance(model, CausalLM) else "runs through transformers, without this loss"
        raise ConfigError([f"moe: the model {reason}; remove moe from the recipe"], source=settings.model_name)
    weight = model.config.moe.aux_loss_weight if wanted.aux_loss_weight is None else wanted.aux_loss_weight
    exact = model.config.moe.aux_per_segment if wanted.exact is None else wanted.exact
    moe = replace(model.config.moe, aux_loss_weight=weight, aux_per_segment=exact)
    model.config = replace(model.config, moe=moe)
