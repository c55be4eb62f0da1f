"""`chatwright import-recipe`: another system's configuration written as a recipe."""

from __future__ import annotations

import json
from pathlib import Path

from chatwright.console import out, table
from chatwright.errors import UserError
from chatwright.recipes.foreign_recipes import read_foreign_recipe


def run_import(config: str, out_path: str, force: bool, as_json: bool) -> None:
    """Print what became what and what has no place in a recipe, and write the recipe."""
    path = Path(out_path)
    found = read_foreign_recipe(config)
    if path.exists() and not force:
        raise UserError(
            "this file exists already", place=out_path, hint="--force overwrites it, --out writes elsewhere"
        )
    path.write_text(found.text(config), encoding="utf-8")
    if as_json:
        facts = {"system": found.system, "recipe": found.recipe, "mapped": found.mapped, "unmapped": found.unmapped}
        print(json.dumps(facts, ensure_ascii=False, default=str))
        return
    console = out()
    console.print(table(f"{found.system} → recipe", ("theirs", "ours"), found.mapped))
    if found.unmapped:
        rows = [(key, str(value), why) for key, value, why in found.unmapped]
        console.print(table("has no place in the recipe", ("theirs", "value", "why"), rows))
    console.print(f"wrote {out_path}\nSee what it does:  chatwright plan {out_path}", soft_wrap=True)
