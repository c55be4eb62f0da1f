"""`chatwright init`: a recipe written from what is found in the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from chatwright.console import note, out, warn
from chatwright.conversations.files import file_kind, is_text_file
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import load_conversations
from chatwright.errors import ConfigError, TemplateError, UserError
from chatwright.inspection.lint_replies import has_placeholder
from chatwright.inspection.lint_rules import RULES
from chatwright.recipes.data import prepare_text
from chatwright.recipes.planning import context_length
from chatwright.recipes.run_settings import RunSettings
from chatwright.settings import build, parse_yaml

SAMPLE = 2000


def run_init(data: str, model: str, out_path: str, force: bool) -> None:
    """Look at up to 2,000 rows, choose lengths and steps to fit, and write the recipe."""
    path = Path(out_path)
    if path.exists() and not force:
        raise UserError(
            "this file exists already", place=out_path, hint="--force overwrites it, --out writes elsewhere"
        )
    if _is_text(data):
        _write(path, _of_text(data, model, out_path), out_path)
        return
    loaded = load_conversations(data, on_bad_row="skip", stop=SAMPLE)
    calling = [c for c in loaded.conversations if any(p.kind == "tool_call" for m in c.messages for p in m.parts)]
    template = {"tools": "add"} if calling and not _renders(model, calling[0]) else {}
    raw = {"model": model, "data": [{"path": data, "format": loaded.format}], "template": template}
    text = prepare_text(build(RunSettings, raw, "init"))
    groups = text.template.render_many(loaded.conversations)
    lengths = np.array([len(example.ids) for group in groups for example in group])
    longest = int(lengths.max())
    context = context_length(text)
    max_tokens = min(max(256, 1 << (longest - 1).bit_length()), context or longest * 2 + 256)
    over = int((lengths > max_tokens).sum())
    first = f"the first {SAMPLE:,} rows" if loaded.num_rows == SAMPLE else f"{loaded.num_rows:,} rows"
    share = "0.05" if len(loaded.conversations) >= 40 else "0"
    lines = [
        f"# Written by `chatwright init` from {first} of {data}: format {loaded.format},",
        f"# {lengths.mean():.0f} tokens on average, {longest:,} in the longest.",
        f"# `chatwright plan {out_path}` shows the run.",
        "recipe_version: 1",
        "stage: sft",
        f"model: {_yaml(model)}",
        "data:",
        f"  - {{path: {_yaml(data)}, format: {loaded.format}{', on_bad_row: skip' if loaded.skipped else ''}}}",
        f"heldout: {{share: {share}}}",
        *(
            ["template: {tools: add}  # the data calls tools, and the model's own template has none"]
            if template
            else []
        ),
        f"max_tokens: {max_tokens}",
        f"overflow: error  # {_overflow(over, max_tokens)}drop, truncate, split_turns",
        f"packing: {{by: tokens, tokens_per_pack: {max(2048, max_tokens)}, packs_per_step: 1}}",
        "optimizer: {learning_rate: 2.0e-5}",
        "schedule: {name: cosine, warmup_fraction: 0.03, min_ratio: 0.1}",
        "train: {epochs: 2, seed: 0, save_every: 200}",
        *(["eval: {every: 50}"] if share != "0" else []),
        f"out: {_yaml('runs/' + (Path(data).stem.split(':')[-1].replace('*', 'all') or 'sft'))}",
    ]
    _write(path, lines, out_path)
    for field, count in loaded.skip_counts.items():
        note(f"{count:,} bad rows (field {field}) will be skipped: {loaded.skip_places[field]}")
    if loaded.num_rows == SAMPLE:
        note(f"only {first} were read; later ones may be longer or bad: chatwright plan {out_path} reads all")
    if over:
        warn(f"{over:,} rows are longer than the {max_tokens:,} tokens that the model was made for: choose overflow")
    if unfilled := sum(map(has_placeholder, loaded.conversations)):
        warn(f"{unfilled:,} rows hold placeholders such as {{{{name}}}}; {RULES['placeholders'].fix} fills them")


def _write(path: Path, lines: list[str], out_path: str) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out().print(
        f"wrote {out_path}\nSee what is trained:  chatwright inspect {out_path}\n"
        f"Train:                chatwright train {out_path}"
    )


def _overflow(over: int, max_tokens: int) -> str:
    return f"{over:,} rows are longer than the model's context of {max_tokens:,}: choose " if over else "or "


def _is_text(data: str) -> bool:
    """Whether data is plain text: a `.txt` file, or a folder that holds such and no rows."""
    if not Path(data).is_dir():
        return is_text_file(data)
    files = [file for file in Path(data).rglob("*") if file.is_file()]
    return any(map(is_text_file, files)) and not any(map(file_kind, files))


def _of_text(data: str, model: str, out_path: str) -> list[str]:
    """The recipe of plain text, cut into pieces of at most the model's context."""
    text = prepare_text(build(RunSettings, {"model": model}, "init"))
    max_tokens = min(2048, context_length(text) or 2048)
    return [
        f"# Written by `chatwright init` for the plain text in {data}: every token is trained.",
        f"# `chatwright plan {out_path}` shows the run.",
        "recipe_version: 1",
        "stage: mid",
        f"model: {_yaml(model)}",
        "data:",
        f"  - {{path: {_yaml(data)}, format: text}}  # text_by: paragraph or line for smaller documents",
        f"max_tokens: {max_tokens}  # documents are cut into pieces of so many tokens",
        f"packing: {{by: tokens, tokens_per_pack: {max(2048, max_tokens)}, packs_per_step: 1}}",
        "optimizer: {learning_rate: 2.0e-5}",
        "schedule: {name: cosine, warmup_fraction: 0.03, min_ratio: 0.1}",
        "train: {epochs: 2, seed: 0, save_every: 200}",
        f"out: {_yaml('runs/' + (Path(data).stem or 'text'))}",
    ]


def _yaml(text: str) -> str:
    """A text as it must stand inside `{…}` of a recipe: in quotes where YAML would read it otherwise (`*.jsonl`)."""
    try:
        plain = parse_yaml(f"{{name: {text}}}", "init") == {"name": text}
    except ConfigError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def _renders(model: str, conversation: Conversation) -> bool:
    """Whether the model's own template can render the tool calls of a conversation."""
    template = prepare_text(build(RunSettings, {"model": model}, "init")).template
    try:
        template.render(conversation)
    except TemplateError:
        return False
    return True
