"""`chatwright lineage`: the trainings that made a model, back to the first."""

from __future__ import annotations

import json

from chatwright.console import note, out, table
from chatwright.recipes.ancestry import Bond, ancestry

SHOWN = 8
"""Characters of a hash that a table shows; `--json` has the whole."""


def run_lineage(model: str, as_json: bool) -> None:
    """Print a model's trainings, the newest first, as a table or as JSON."""
    found = ancestry(model)
    if as_json:
        print(json.dumps([each.to_dict() for each in found], ensure_ascii=False))
        return
    if not found:
        note(f"{model} was not trained here")
        return
    columns = ("stage", "step", "tokens", "weights", "recipe", "data", "parent", "is")
    rows = [
        (
            *(each.stage, each.step, each.tokens),
            *(_short(text) for text in (each.weights, each.recipe, each.data)),
            "" if each.bond is Bond.NEW else _short(each.parent_hash),
            str(each.bond),
        )
        for each in found
    ]
    out().print(table("lineage", columns, rows))
    for each in found:
        note(f"{each.stage}: {each.place}, from {each.parent}")


def _short(text: str | None) -> str:
    return text[:SHOWN] if text else ""
