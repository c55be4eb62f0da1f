"""`chatwright prepare`: the token cache of a recipe, made ahead of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chatwright.cli.plan_parts import print_contamination
from chatwright.console import duration, note, out
from chatwright.errors import UserError
from chatwright.recipes.data import prepare_text, require_data
from chatwright.recipes.planning import contamination_account
from chatwright.recipes.run_settings import RunSettings, load_recipe
from chatwright.recipes.tokens import RecipeTokens, find_tokens


def run_prepare(recipe: str, overrides: Sequence[str], as_json: bool) -> None:
    """Find or make the tokens, and say how many there are, how fast it went and where they are."""
    settings = load_recipe(recipe, overrides)
    if settings.streaming is not None:
        hint = "train it as it is, or add --set streaming=false"
        raise UserError("a streamed recipe reads its rows while it trains", place="streaming", hint=hint)
    require_data(settings, None)
    text = prepare_text(settings)
    tokens = find_tokens(settings, text.template, text.resolved.text_folder, upload_found=True)
    figures = _figures(settings, tokens)
    if as_json:
        compared = contamination_account(settings, tokens.rendered.contamination, tokens.rendered.ledger)
        told = {"contamination": compared.line, "ledger": tokens.rendered.ledger.to_dict()}
        print(json.dumps({**figures, **told}, ensure_ascii=False))
    else:
        _show(settings, tokens, figures)
    if figures["folder"] is None:
        raise UserError(
            "the tokens couldn't be kept, so training will make them again",
            place="preparation",
            hint="see the note above; of a hub data set without a known commit nothing can be kept",
        )
    if settings.preparation.store and not tokens.uploaded:
        raise UserError(
            "the tokens are on this machine only, since the store couldn't be written (see the note above)",
            place=settings.preparation.store,
            hint="check the address and your credentials, then give the same command again",
        )


def _figures(settings: RunSettings, tokens: RecipeTokens) -> dict[str, Any]:
    made, seconds = tokens.rendered, tokens.seconds
    rows = sum(entry.num_rows for entry in made.entries)
    total = made.store.num_tokens + made.heldout.num_tokens
    kept = tokens.folder is not None and tokens.folder.is_dir()
    return {
        "from": tokens.origin,
        "rows": rows,
        "examples": len(made.store),
        "heldout_examples": len(made.heldout),
        "tokens": total,
        "seconds": seconds,
        "rows_per_second": rows / seconds if tokens.origin == "made" else None,
        "tokens_per_second": total / seconds if tokens.origin == "made" else None,
        "folder": str(tokens.folder) if kept else None,
        "store": settings.preparation.store if tokens.uploaded else None,
    }


def _show(settings: RunSettings, tokens: RecipeTokens, figures: dict[str, Any]) -> None:
    out().print(tokens.rendered.ledger.table())
    print_contamination(contamination_account(settings, tokens.rendered.contamination, tokens.rendered.ledger))
    examples = f"{figures['examples']:,} examples"
    if figures["heldout_examples"]:
        examples += f" and {figures['heldout_examples']:,} held out"
    what = f"{figures['rows']:,} rows: {examples}, {figures['tokens']:,} tokens"
    if tokens.origin == "made":
        rates = f"{figures['rows_per_second']:,.0f} rows/s, {figures['tokens_per_second']:,.0f} tokens/s"
        note(f"prepared {what} in {duration(tokens.seconds)}: {rates}")
    else:
        where = "the cache" if tokens.origin == "cache" else f"{settings.preparation.store}"
        note(f"nothing to prepare: found in {where}: {what}")
    if figures["folder"]:
        out().print(f"Tokens:  {figures['folder']}", soft_wrap=True, markup=False)
    if tokens.uploaded:
        out().print(f"In the store:  {figures['store']}", soft_wrap=True, markup=False)
