"""`chatwright inspect`: which tokens are trained, which are given, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from chatwright.cli.inspect_preferences import HOW_TO_TRAIN, inspect_preferences, preference_entry
from chatwright.cli.plan_parts import print_contamination
from chatwright.console import note, out
from chatwright.conversations.data_settings import TEXT, DataSettings
from chatwright.conversations.preference_types import PairConversation
from chatwright.conversations.schema import Conversation
from chatwright.errors import ConfigError
from chatwright.inspection.contamination_report import ContaminationReport
from chatwright.inspection.viewer import example_record, legend, show_example
from chatwright.recipes.data import TextSetup, prepare_text
from chatwright.recipes.looking import LookedEntry, Wanted, look
from chatwright.recipes.pair_settings import PAIR_STAGES, overflow_choices
from chatwright.recipes.planning import contamination_account, stage_notes
from chatwright.recipes.run_settings import HeldoutSettings, RunSettings, load_recipe, shipped_recipes
from chatwright.recipes.tokens import find_tokens
from chatwright.settings import apply_overrides, build
from chatwright.templates.base import Template, TrainOn
from chatwright.templates.laws import check_laws
from chatwright.templates.overflow import Overflow
from chatwright.templates.plain_text import split_document
from chatwright.templates.rendered import RenderedExample

RECIPE_ENDINGS = (".yaml", ".yml")
PAGE_SAMPLE = 24
"""Rows on the page where none were asked for."""
PIECES_SHOWN = 3
"""Pieces shown of a document that is cut into many."""
HITS_SHOWN = 3
"""Contaminated rows shown side by side with what they hold, of each evaluation."""


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
    pairs = None if is_recipe(data) or data.startswith("task:") else preference_entry(data, overrides)
    if pairs is not None:
        if page is not None:
            problem = f"--html shows what is trained, and these are preferences; {HOW_TO_TRAIN}"
            raise ConfigError([problem], source="inspect")
        inspect_preferences(pairs, wanted, as_json=as_json)
        return
    settings = settings_for(data, model, overrides, run)
    if page is not None and settings.stage in PAIR_STAGES:
        raise ConfigError(["--html shows conversations, and these are pairs; leave it out"], source="inspect")
    if page is not None:
        from chatwright.cli.inspect_page import write_inspection

        write_inspection(settings, wanted, page, title=Path(data).name or data, run=run)
        return
    text = prepare_text(settings)
    template = text.template
    looked = look(settings, wanted)
    if as_json:
        _print_json(template, looked, settings.max_tokens)
        return
    console = out()
    console.print(legend())
    for entry in looked:
        console.rule(f"{entry.info.name}: {entry.info.num_rows:,} rows, format {entry.info.format}")
        for what, count in entry.info.changed.items():
            note(f"{what}: {count:,} rows")
        for example in _examples(template, entry, settings.max_tokens, PIECES_SHOWN):
            console.print(show_example(example, template.tokenizer, marks=not console.is_terminal))
            console.print()
    if not any(entry.shown for entry in looked):
        note(f"no row in {wanted.words}")
    results = check_laws(template, [conversation for entry in looked for conversation in entry.shown])
    _print_ledger(settings, text)
    _print_lint(template, looked)
    for law in results:
        console.print(f"{'✓' if law.passed else '✗'} {law.name}: {law.detail}")


def wanted_rows(
    rows: str | None, sample: int | None, seed: int, *, as_json: bool, page: str | None, run: str | None
) -> Wanted:
    """The rows that the options ask for; a page without any shows a sample.

    Raises:
        ConfigError: options that can't be meant together, or rows that are no range.
    """
    problems = []
    if rows is not None and sample is not None:
        problems.append("--rows and --sample: give one of them")
    if as_json and page is not None:
        problems.append("--json and --html: give one of them")
    if run is not None and page is None:
        problems.append("--run: losses are shown on the page only; add --html page.html")
    elif run is not None and not (Path(run) / "recipe.yaml").is_file():
        problems.append(f"--run: {run!r} is no run folder (there is no recipe.yaml in it)")
    if problems:
        raise ConfigError(problems, source="inspect")
    if rows is None and sample is None and page is not None:
        sample = PAGE_SAMPLE
    return Wanted(*parse_rows(rows or "0:5"), sample, seed)


def _print_json(template: Template, looked: Sequence[LookedEntry], max_tokens: int) -> None:
    for entry in looked:
        for example in _examples(template, entry, max_tokens):
            print(json.dumps(example_record(example, template.tokenizer), ensure_ascii=False))


def _examples(
    template: Template, entry: LookedEntry, max_tokens: int, most: int | None = None
) -> Iterator[RenderedExample]:
    """The shown rows as examples; of documents their pieces, at most so many of each."""
    if entry.planned.work.entry.preference == "pairs":
        yield from _sides(template, entry.shown)
        return
    groups = template.render_many(entry.shown, entry.planned.work.train_on)
    for conversation, group in zip(entry.shown, groups, strict=True):
        if not conversation.document:
            yield from group
            continue
        pieces = split_document(group[0], max_tokens)
        yield from pieces[:most]
        if most is not None and len(pieces) > most:
            note(f"row {conversation.row} of {conversation.source} has {len(pieces) - most:,} more pieces")


def _sides(template: Template, rows: Sequence[Conversation]) -> Iterator[RenderedExample]:
    """Both sides of the shown pairs, the better first; each is named by its row and what it is."""
    for row in rows:
        assert isinstance(row, PairConversation)
        for name, side in (("better reply", row), ("worse reply", row.worse)):
            example = template.render(side, TrainOn.LAST)[-1]
            yield replace(example, key=example.key._replace(source=f"{example.key.source}, {name}"))


def _print_lint(template: Template, looked: Sequence[LookedEntry]) -> None:
    """What lint finds in each entry, with the entry's own mask policy."""
    for entry in looked:
        if entry.planned.work.format == TEXT:
            continue  # its rules are for conversations
        out().print(entry.lint(template).renderable(entry.info.name))


def _print_ledger(settings: RunSettings, text: TextSetup) -> None:
    """What becomes of every row of the data; over-long rows are counted here, and stop a run unless it says how."""
    rendered = find_tokens(settings, text.template, text.resolved.text_folder, lenient=True).rendered
    ledger = rendered.ledger
    out().print(ledger.table())
    for each in stage_notes(settings):
        note(each)
    print_contamination(contamination_account(settings, rendered.contamination, ledger))
    if rendered.contamination is not None:
        out().print(ContaminationReport.from_dict(rendered.contamination).renderable(most=HITS_SHOWN))
    too_long = sum(entry.num_too_long for entry in (*rendered.entries, *rendered.heldout_entries))
    if settings.overflow is Overflow.ERROR and too_long:
        note(
            f"{too_long:,} rows are longer than max_tokens = {settings.max_tokens}: training stops "
            f"at them until max_tokens is raised or overflow is set to {overflow_choices(settings.stage)}"
        )


def settings_for(data: str, model: str | None, overrides: Sequence[str], run: str | None = None) -> RunSettings:
    """The recipe to inspect with: one that was named, or one made of a data source and a model (or a run's recipe)."""
    if is_recipe(data):
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


def is_recipe(data: str) -> bool:
    """Whether a recipe is named, by file, run folder or as a shipped one (data sets can be YAML files, too)."""
    if (Path(data) / "recipe.yaml").is_file():
        return True
    if not data.endswith(RECIPE_ENDINGS):
        return data.replace("-", "_") in shipped_recipes() and not Path(data).exists()
    file = Path(data)
    return not file.is_file() or "model:" in file.read_text(encoding="utf-8", errors="replace")


def parse_rows(text: str) -> tuple[int, int]:
    """`7` → (7, 8); `0:5` → (0, 5).

    Raises:
        ConfigError: neither a number nor a range, or a range without a row.
    """
    start, colon, stop = text.partition(":")
    numbers = [start or "0", stop or ("1000000000" if colon else "")]
    if not numbers[0].isdigit() or (colon and not numbers[1].isdigit()):
        raise ConfigError([f"--rows: {text!r} is no row (7) and no range (0:5)"], source="inspect")
    first, last = int(numbers[0]), int(numbers[1]) if colon else int(numbers[0]) + 1
    if first >= last:
        raise ConfigError([f"--rows: {text!r} holds no row; the first must be below the last (0:5)"], source="inspect")
    return first, last
