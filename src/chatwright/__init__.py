"""Chatwright: exact, fast and clear supervised fine-tuning.

The public names load when they are first used, so that `import chatwright` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Conversation": "chatwright.conversations.schema",
    "Message": "chatwright.conversations.schema",
    "Part": "chatwright.conversations.schema",
    "UserError": "chatwright.errors",
    "RunSettings": "chatwright.recipes.run_settings",
    "load_recipe": "chatwright.recipes.run_settings",
    "build_data": "chatwright.recipes.data",
    "build_model": "chatwright.recipes.model",
    "build_trainer": "chatwright.recipes.build",
    "start_runtime": "chatwright.runtime",
    "Hook": "chatwright.train.hooks",
    "LossSum": "chatwright.losses.loss_sum",
    "weighted_nll": "chatwright.losses.linear_cross_entropy",
    "token_log_probs": "chatwright.losses.linear_cross_entropy",
    "next_token_nll": "chatwright.train.objectives",
    "talk_to": "chatwright.recipes.talking",
    "score_replies": "chatwright.recipes.showcase",
    "SamplingSettings": "chatwright.inference.sampling",
    "SFTConfig": "chatwright.recipes.sft_trainer",
    "SFTTrainer": "chatwright.recipes.sft_trainer",
    "LoraSettings": "chatwright.adapters.settings",
}

__all__ = [
    "Conversation",
    "Hook",
    "LoraSettings",
    "LossSum",
    "Message",
    "Part",
    "RunSettings",
    "SFTConfig",
    "SFTTrainer",
    "SamplingSettings",
    "UserError",
    "__version__",
    "build_data",
    "build_model",
    "build_trainer",
    "load_recipe",
    "next_token_nll",
    "score_replies",
    "start_runtime",
    "talk_to",
    "token_log_probs",
    "weighted_nll",
]

if TYPE_CHECKING:
    from chatwright.adapters.settings import LoraSettings
    from chatwright.conversations.schema import Conversation, Message, Part
    from chatwright.errors import UserError
    from chatwright.inference.sampling import SamplingSettings
    from chatwright.losses.linear_cross_entropy import token_log_probs, weighted_nll
    from chatwright.losses.loss_sum import LossSum
    from chatwright.recipes.build import build_trainer
    from chatwright.recipes.data import build_data
    from chatwright.recipes.model import build_model
    from chatwright.recipes.run_settings import RunSettings, load_recipe
    from chatwright.recipes.sft_trainer import SFTConfig, SFTTrainer
    from chatwright.recipes.showcase import score_replies
    from chatwright.recipes.talking import talk_to
    from chatwright.runtime import start_runtime
    from chatwright.train.hooks import Hook
    from chatwright.train.objectives import next_token_nll


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'chatwright' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
