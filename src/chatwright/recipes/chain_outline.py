"""What a chain's recipe alone says of its stages, before any of them has run."""

from __future__ import annotations

from dataclasses import dataclass

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig
from chatwright.models.families import config_from_hf
from chatwright.models.weights import read_config
from chatwright.recipes.chain_settings import Chain, ChainStage
from chatwright.recipes.data import prepare_text
from chatwright.recipes.new_model import new_config
from chatwright.recipes.outline import OutlinePlan, outline_run
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.tokenizer_recipe import TokenizerRecipe


@dataclass(frozen=True, slots=True)
class StageOutline:
    """One stage by its recipe; `plan` is None for a tokenizer, which trains no model."""

    name: str
    kind: str
    plan: OutlinePlan | None


def outline_chain(chain: Chain) -> list[StageOutline]:
    """Every stage in order; a stage has the shapes of the one it grows from.

    A new model's vocabulary is its own `vocab_size`, else that of the tokenizer stage before it, which may turn out
    smaller where its text gives no more tokens.

    Raises:
        ModelError: a model or tokenizer from outside the chain isn't there.
    """
    configs: dict[str, DecoderConfig | None] = {}
    found = []
    for stage in chain.stages:
        if not isinstance(stage.settings, RunSettings):
            found.append(StageOutline(stage.name, stage.kind, None))
            continue
        config = _config(chain, stage, stage.settings, configs)
        configs[stage.name] = config
        found.append(StageOutline(stage.name, stage.kind, outline_run(stage.settings, config)))
    return found


def _config(
    chain: Chain, stage: ChainStage, settings: RunSettings, configs: dict[str, DecoderConfig | None]
) -> DecoderConfig | None:
    """A stage's shapes; None for architectures that run through transformers."""
    new, parent = settings.new_model, stage.parent
    if new is not None:
        before = chain[parent].settings if parent is not None else None
        tokens = before.tokenizer.vocab_size if isinstance(before, TokenizerRecipe) else None
        if least := tokens or new.vocab_size:
            return new_config(new, least)
    elif parent is not None:
        return configs[parent]
    raw = read_config(prepare_text(settings).resolved.folder)
    try:
        return config_from_hf(raw)
    except ModelError:
        return None
