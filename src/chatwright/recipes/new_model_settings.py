"""How a recipe names a model that begins from nothing."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, PositiveInt

from chatwright.settings import Settings


class NewModelSettings(Settings):
    """A model to make.

    Args:
        preset: a name of `models.presets.PRESETS`; every other key is an option of it, such as `depth` or `num_layers`.
        tokenizer: a folder with tokenizer.json, or any name of a model whose tokenizer it takes; `$VARIABLE` is
            replaced. Or `bytes:PRESET`: that way's control tokens and the 256 bytes, which needs no file.
        vocab_size: rows of the embedding where they are more than the tokenizer's tokens; with it the run can be
            planned before there is a tokenizer.
    """

    model_config = ConfigDict(extra="allow")

    preset: str = Field(min_length=1)
    tokenizer: str = Field(min_length=1)
    vocab_size: PositiveInt | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The preset's options that the recipe gives."""
        return dict(self.model_extra or {})

    @property
    def name(self) -> str:
        """In a few words, for reports."""
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"new {self.preset} model" + (f" ({options})" if options else "")
