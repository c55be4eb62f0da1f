"""`chatwright inspect`: which tokens are trained, which are given, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatwright.console import note, out
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.schema import Conversation
from chatwright.errors import ConfigError
from chatwright.inspection.ledger import Stage
from chatwright.inspection.sampling import sample_rows
from chatwright.inspection.viewer import example_record, legend, show_example
from chatwright.recipes.data import prepare_text
from chatwright.recipes.rendering import mask_policy, read_entry, render_entries
from chatwright.recipes.run_settings import HeldoutSettings, RunSettings, load_recipe, shipped_recipes
from chatwright.settings import apply_overrides, build
from chatwright.templates.base import Template
from chatwright.templates.laws import check_laws
from chatwright.templates.overflow import Overflow

RECIPE_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look at: rows by their numbers (`7`, `0:5`), or a random sample over all entries by a seed."""

    rows: str | None = None
    sample: int | None = None
    seed: int = 0

    def words(self, default: str) -> str:
        """How the rows were chosen, for people."""
        if self.sample is not None:
            return f"a random sample of {self.sample:,} rows over all sources, seed {self.seed}"
        return f"rows {self.rows or default} of every source"

    def choose(self, conversations: Sequence[list[Conversation]], default: str) -> list[list[Conversation]]:
        """The wanted conversations of each entry; `default` are the rows where neither was asked for."""
        if self.sample is None:
            first, last = parse_rows(self.rows or default)
            return [rows[first:last] for rows in conversations]
        drawn = sample_rows([len(rows) for rows in conversations], self.sample, self.seed)
        return [[rows[at] for at in places] for rows, places in zip(conversations, drawn, strict=True)]


def run_inspect(
    data: str,
    model: str | None,
    wanted: Wanted,
    overrides: Sequence[str],
    *,
    as_json: bool = False,
    page: str | None = None,
    run: str | None = None,
) -> None:
    """Show the chosen rows of a data set, or of every entry of a recipe: on the terminal, as JSON, or as a page."""
    _check_options(wanted, as_json, page, run)
    settings = settings_for(data, model, overrides, run)
    if page is not None:
        from chatwright.cli.inspect_page import write_inspection

        write_inspection(settings, wanted, page, title=Path(data).name or data, run=run)
        return
    template = prepare_text(settings).template
    read = [read_entry(entry, settings.train.seed) for entry in settings.data]
    shown = wanted.choose([conversations for conversations, _ in read], "0:5")
    if as_json:
        _print_json(settings, template, shown)
        return
    console = out()
    console.print(legend())
    for entry, (_, info), chosen in zip(settings.data, read, shown, strict=True):
        console.rule(f"{info.name}: {info.num_rows:,} rows, format {info.format}")
        for group in template.render_many(chosen, mask_policy(entry, settings)):
            for example in group:
                console.print(show_example(example, template.tokenizer, marks=not console.is_terminal))
                console.print()
    if not any(shown):
        note(f"no row in {wanted.words('0:5')}")
    results = check_laws(template, [conversation for chosen in shown for conversation in chosen])
    _print_ledger(settings, template)
    for law in results:
        console.print(f"{'✓' if law.passed else '✗'} {law.name}: {law.detail}")


def _check_options(wanted: Wanted, as_json: bool, page: str | None, run: str | None) -> None:
    """Refuse what can't be meant together.

    Raises:
        ConfigError: naming the options.
    """
    problems = []
    if wanted.rows is not None and wanted.sample is not None:
        problems.append("--rows and --sample: give one of them")
    if as_json and page is not None:
        problems.append("--json and --html: give one of them")
    if run is not None and page is None:
        problems.append("--run: losses are shown on the page only; add --html page.html")
    if problems:
        raise ConfigError(problems, source="inspect")


def _print_json(settings: RunSettings, template: Template, shown: Sequence[list[Conversation]]) -> None:
    for entry, chosen in zip(settings.data, shown, strict=True):
        for group in template.render_many(chosen, mask_policy(entry, settings)):
            for example in group:
                print(json.dumps(example_record(example, template.tokenizer), ensure_ascii=False))


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


def settings_for(data: str, model: str | None, overrides: Sequence[str], run: str | None = None) -> RunSettings:
    """The recipe to inspect with: one that was named, or one made of a data source and a model (or a run's recipe)."""
    if data in shipped_recipes() or (data.endswith(RECIPE_ENDINGS) and _is_recipe(data)):
        return load_recipe(data, [*overrides, *([f"model={model}"] if model else [])])
    entry = {"task": data.removeprefix("task:")} if data.startswith("task:") else {"path": data}
    if model is None and run is not None:
        of_run = load_recipe(run, overrides).model_copy(update={"heldout": HeldoutSettings()})
        return of_run.model_copy(update={"data": (build(DataSettings, entry, "inspect"),)})
    if model is None:
        raise ConfigError(
            ["--model is required to inspect data; it names the model whose template renders"], source="inspect"
        )
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
