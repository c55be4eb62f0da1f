"""How a model folder remembers the template it was trained with, so that serving is as training was.

`chatwright.json` in a model folder holds the template's settings and its identity. A model from
elsewhere has no such file: its own chat template then decides.
"""

from __future__ import annotations

import json
from pathlib import Path

from chatwright.errors import TemplateError
from chatwright.settings import build
from chatwright.templates.base import Template, TemplateSettings
from chatwright.templates.template import load_template
from chatwright.templates.tokenizer import TextTokenizer

RECORD_NAME = "chatwright.json"


def save_template_record(folder: Path, template: Template) -> None:
    """Write the tokenizer, the chat template, the stop ids and the record into a model folder."""
    template.tokenizer.save(folder, chat_template=template.jinja, stop_ids=template.stop_ids)
    record = {"template": template.settings.model_dump(mode="json"), "template_identity": template.identity}
    (folder / RECORD_NAME).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def stored_template_settings(folder: Path) -> TemplateSettings | None:
    """The template settings a model folder was trained with; None for models from elsewhere.

    Raises:
        TemplateError: the record is damaged.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return build(TemplateSettings, record["template"], str(path))
    except (ValueError, KeyError, TypeError) as error:
        raise TemplateError(
            f"can't be read: {error}", place=str(path), hint="delete it to use the chat template"
        ) from None


def serving_template(folder: Path) -> Template:
    """The template to talk to a model with: the recorded one, verified, or the model's own.

    Raises:
        TemplateError: the folder's tokenizer or chat template is not what the model was trained with.
    """
    settings = stored_template_settings(folder)
    template = load_template(TextTokenizer.load(folder), settings or TemplateSettings(), folder=folder)
    if settings is not None:
        trained = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))["template_identity"]
        if template.identity != trained:
            raise TemplateError(
                f"the template or tokenizer here (identity {template.identity[:12]}) is not the one the model was "
                f"trained with ({trained[:12]}); its replies would be wrong",
                place=str(folder),
                hint="restore the folder's tokenizer.json and chat template, or export the checkpoint again",
            )
    return template
