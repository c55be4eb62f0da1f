"""`chatwright inspect`: which tokens are trained, which are given, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from chatwright.console import note, out
from chatwright.conversations.schema import Conversation
from chatwright.errors import ConfigError
from chatwright.inspection.ledger import Stage
from chatwright.inspection.viewer import example_record, legend, show_example
from chatwright.recipes.data import prepare_text
from chatwright.recipes.rendering import mask_policy, read_entry, render_entries
from chatwright.recipes.run_settings import RunSettings, load_recipe, shipped_recipes
from chatwright.settings import apply_overrides, build
from chatwright.templates.base import Template
from chatwright.templates.laws import check_laws
from chatwright.templates.overflow import Overflow

RECIPE_ENDINGS = (".yaml", ".yml")


def run_inspect(data: str, model: str | None, rows: str, overrides: Sequence[str], as_json: bool) -> None:
    """Show the chosen rows of a data set, or of every entry of a recipe."""
    settings = settings_for(data, model, overrides)
    first, last = parse_rows(rows)
    template = prepare_text(settings).template
    shown: list[tuple[str, list[Conversation]]] = []
    for entry in settings.data:
        conversations, info = read_entry(entry, settings.train.seed)
        shown.append((f"{info.name}: {info.num_rows:,} rows, format {info.format}", conversations[first:last]))
    if as_json:
        for entry, (_, chosen) in zip(settings.data, shown, strict=True):
            for group in template.render_many(chosen, mask_policy(entry, settings)):
                for example in group:
                    print(json.dumps(example_record(example, template.tokenizer), ensure_ascii=False))
        return
    console = out()
    console.print(legend())
    for entry, (title, chosen) in zip(settings.data, shown, strict=True):
        console.rule(title)
        for group in template.render_many(chosen, mask_policy(entry, settings)):
            for example in group:
                console.print(show_example(example, template.tokenizer, marks=not console.is_terminal))
                console.print()
    if not any(chosen for _, chosen in shown):
        note(f"no row in --rows {rows}")
    results = check_laws(template, [conversation for _, chosen in shown for conversation in chosen])
    _print_ledger(settings, template)
    for law in results:
        console.print(f"{'✓' if law.passed else '✗'} {law.name}: {law.detail}")


def _print_ledger(settings: RunSettings, template: Template) -> None:
    """What becomes of every row of the data; over-long rows are counted here, and stop a run unless it says how."""
    lenient = settings.model_copy(update={"overflow": Overflow.DROP})
    if settings.overflow is not Overflow.ERROR:
        lenient = settings
    ledger = render_entries(lenient, template, None).ledger
    out().print(ledger.table())
    if settings.overflow is Overflow.ERROR and ledger.rows(Stage.DROPPED):
        note(
            f"{ledger.rows(Stage.DROPPED):,} rows are longer than max_tokens = {settings.max_tokens}: training stops "
            "at them until max_tokens is raised or overflow is set to drop, truncate or split_turns"
        )


def settings_for(data: str, model: str | None, overrides: Sequence[str]) -> RunSettings:
    """The recipe to inspect with: one that was named, or one made of a data source and a model."""
    if data in shipped_recipes() or (data.endswith(RECIPE_ENDINGS) and _is_recipe(data)):
        return load_recipe(data, [*overrides, *([f"model={model}"] if model else [])])
    if model is None:
        raise ConfigError(
            ["--model is required to inspect data; it names the model whose template renders"], source="inspect"
        )
    entry = {"task": data.removeprefix("task:")} if data.startswith("task:") else {"path": data}
    raw = {"model": model, "data": [entry]}
    return build(RunSettings, apply_overrides(raw, overrides), "inspect")


def _is_recipe(path: str) -> bool:
    """Whether a YAML file is a recipe (data sets can be YAML too)."""
    file = Path(path)
    return not file.is_file() or "model:" in file.read_text(encoding="utf-8", errors="replace")


def parse_rows(text: str) -> tuple[int, int]:
    """`7` → (7, 8); `0:5` → (0, 5).

    Raises:
        ConfigError: neither a number nor a range.
    """
    start, colon, stop = text.partition(":")
    numbers = [start or "0", stop or ("1000000000" if colon else "")]
    if not numbers[0].isdigit() or (colon and not numbers[1].isdigit()):
        raise ConfigError([f"--rows: {text!r} is no row (7) and no range (0:5)"], source="inspect")
    return int(numbers[0]), int(numbers[1]) if colon else int(numbers[0]) + 1
