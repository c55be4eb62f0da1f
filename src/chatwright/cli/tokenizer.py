"""`chatwright tokenizer`: train a tokenizer, and measure how tokenizers compress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chatwright.templates.tokenizer_report import Compression

tokenizer_app = typer.Typer(help="Train a tokenizer, and measure how tokenizers compress.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Beside = Annotated[
    list[str] | None, typer.Option("--beside", help="Another tokenizer: a folder, a model, gpt2, none (repeatable).")
]


@tokenizer_app.command()
def train(
    data: Annotated[list[str], typer.Argument(help="Texts or conversations: files, folders, hub:owner/name/split.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to make.")] = "runs/tokenizer",
    preset: Annotated[
        str, typer.Option("--preset", help="Whose control tokens: nanochat, minimind, minimind-older.")
    ] = "nanochat",
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Tokens in all.")] = 32_768,
    special: Annotated[list[str] | None, typer.Option("--special", help="One more control token (repeatable).")] = None,
    text_field: Annotated[str, typer.Option("--text-field", help="The column of rows' text.")] = "text",
    text_by: Annotated[str, typer.Option("--text-by", help="What of a .txt file is a text: file, paragraph, line.")] = (
        "paragraph"
    ),
    heldout_share: Annotated[float, typer.Option("--heldout-share", help="Of the texts, kept for the report.")] = 0.01,
    max_characters: Annotated[int | None, typer.Option("--max-characters", help="Count so many at most.")] = None,
    document_characters: Annotated[
        int | None, typer.Option("--document-characters", help="Of each text, count so many at most.")
    ] = None,
    beside: Beside = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the tokenizer there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train byte-level BPE on texts, and compare it with GPT-2's on text that it wasn't trained on."""
    from chatwright.recipes.tokenizer_recipe import GPT2, TokenizerRecipe, text_entry
    from chatwright.settings import build

    limits = {"max_characters": max_characters, "document_characters": document_characters}
    recipe: dict[str, Any] = {
        "data": [text_entry(path, text_field, text_by) for path in data],
        "tokenizer": {"preset": preset, "vocab_size": vocab_size, "special": special or [], **limits},
        "heldout_share": heldout_share,
        "beside": [name for name in beside or [GPT2] if name != "none"],
        "out": out,
    }
    run_tokenizer(build(TokenizerRecipe, recipe, "chatwright tokenizer train"), force=force, as_json=as_json)


@tokenizer_app.command()
def report(
    tokenizers: Annotated[list[str], typer.Argument(help="Tokenizers: folders, models, or gpt2.")],
    text: Annotated[list[str], typer.Option("--text", help="A file or folder of texts or conversations (repeatable).")],
    as_json: AsJson = False,
) -> None:
    """Compare how tokenizers compress texts."""
    from chatwright.recipes.tokenizer_recipe import named_tokenizer, read_texts
    from chatwright.templates.tokenizer_report import compare_compression

    found = {name: named_tokenizer(name) for name in dict.fromkeys(tokenizers)}
    rows = compare_compression(found, read_texts(text))
    if as_json:
        _print_json([row.to_dict() for row in rows])
        return
    _print_table(rows)


def run_tokenizer(recipe: Any, *, force: bool = False, as_json: bool = False) -> None:
    """Make a recipe's tokenizer, and say what came of it."""
    from chatwright.console import note, out, progress, warn
    from chatwright.recipes.tokenizer_recipe import make_tokenizer

    with progress(None, "reading", unit="characters") as bar:
        made = make_tokenizer(recipe, force=force, watch=bar.update)
    if as_json:
        rows = [row.to_dict() for row in made.compression]
        counts = {"texts": made.texts, "characters": made.characters, "vocab_size": made.vocab_size}
        _print_json({"folder": str(made.folder), "made": made.made, **counts, "compression": rows})
        return
    for each in made.notes:
        warn(each)
    how = "trained on" if made.made else "there already, trained on"
    note(f"{made.vocab_size:,} tokens, {how} {made.texts:,} texts of {made.characters:,} characters")
    _print_table(made.compression)
    out().print(f"wrote {made.folder}", markup=False, soft_wrap=True)


def _print_table(rows: Sequence[Compression]) -> None:
    from chatwright.console import out, table

    columns = ("text", "tokenizer", "vocabulary", "bytes", "tokens", "bytes/token", "bits/byte")
    body = [(row.text, row.tokenizer, row.vocab_size, row.num_bytes, row.num_tokens, *_ratios(row)) for row in rows]
    out().print(table("compression", columns, body))
    out().print(
        "bits/byte: what the text costs when each token costs by its own share in it, without context",
        style="dim",
        soft_wrap=True,
    )


def _ratios(row: Compression) -> tuple[str, str]:
    return f"{row.bytes_per_token:.3f}", f"{row.bits_per_byte:.3f}"


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))
