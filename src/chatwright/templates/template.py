"""The one door to templates: `load_template` picks the format, the rest of Chatwright speaks to a `Template`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chatwright.settings import build
from chatwright.templates.base import Template, TemplateSettings, TrainOn
from chatwright.templates.jinja import JinjaTemplate
from chatwright.templates.native import NATIVE_FORMATS, NativeTemplate
from chatwright.templates.tokenizer import TextTokenizer

__all__ = ["TEMPLATES", "Template", "TemplateSettings", "TrainOn", "load_template"]

Maker = Callable[[TextTokenizer, TemplateSettings], Template]


def _native(name: str) -> Maker:
    return lambda tokenizer, settings: NativeTemplate(name, tokenizer, settings)


TEMPLATES: dict[str, Maker] = {"jinja": JinjaTemplate, **{name: _native(name) for name in NATIVE_FORMATS}}
"""Every format by name; a new one is one entry."""


def load_template(
    tokenizer: TextTokenizer, settings: TemplateSettings | None = None, folder: str | Path | None = None
) -> Template:
    """The template for a tokenizer.

    Args:
        settings: the format and its options; the defaults when None.
        folder: a folder whose chat template is used instead of the tokenizer's own.

    Raises:
        TemplateError: the format needs what the tokenizer lacks, or the chat template can't be used faithfully.
    """
    settings = settings or TemplateSettings()
    if folder is not None:
        tokenizer = tokenizer.with_chat_templates(TextTokenizer.load(folder).chat_templates)
    if settings.format == "auto":  # settled here, so that a saved model is loaded with the same format
        settings = build(TemplateSettings, {**settings.model_dump(), "format": choose_format(tokenizer)}, "template")
    return TEMPLATES[settings.format](tokenizer, settings)


def choose_format(tokenizer: TextTokenizer) -> str:
    """What `auto` means: the model's own template, else a native format that lacks no token, else ChatML."""
    if tokenizer.chat_template:
        return "jinja"
    fitting = (name for name, form in NATIVE_FORMATS.items() if not form.missing(tokenizer))
    return next(fitting, "chatml")
