"""`chatwright reward`: what a reward model thinks of the replies in a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

from chatwright.cli.plan_parts import short_name
from chatwright.console import note, out, table
from chatwright.conversations.data_settings import BadRow
from chatwright.errors import UserError
from chatwright.recipes.reward_scoring import RewardScorer, ScoredRow, score_file
from chatwright.runtime import start_runtime

if TYPE_CHECKING:
    from rich.table import Table

ROWS_SHOWN = 20


def run_reward(model: str, data: str, stop: int | None, on_bad_row: str, device: str, as_json: bool) -> None:
    """Print the scores: the first rows as a table, or all as JSON lines; of pairs how often the better one wins.

    Raises:
        UserError: `on_bad_row` is neither error nor skip; see `score_file`.
    """
    if on_bad_row not in get_args(BadRow):
        hint = f"choose {' or '.join(get_args(BadRow))}"
        raise UserError(f"found {on_bad_row!r}", place="--on-bad-row", hint=hint)
    runtime = start_runtime(device)  # type: ignore[arg-type]
    scorer = RewardScorer.load(model, runtime.device)
    found = score_file(scorer, data, stop, on_bad_row)  # type: ignore[arg-type]
    if as_json:
        for row in found:
            print(json.dumps(asdict(row), ensure_ascii=False))
    else:
        out().print(_table(found))
    if pairs := [(row.score, row.rejected) for row in found if row.rejected is not None]:
        won = sum((better > worse) + (better == worse) / 2 for better, worse in pairs)
        margin = sum(better - worse for better, worse in pairs) / len(pairs)
        share = f"{won / len(pairs):.1%} of {len(pairs):,} pairs"
        note(f"the better reply scores higher in {share}; mean margin {margin:.3f}")


def _table(found: list[ScoredRow]) -> Table:
    pairs = any(row.rejected is not None for row in found)
    columns = ("source", "row", *(("chosen", "rejected") if pairs else ("score",)))
    body = [
        (short_name(row.source), row.row, f"{row.score:.3f}", *([f"{row.rejected:.3f}"] if pairs else []))
        for row in found[:ROWS_SHOWN]
    ]
    title = f"scores of {len(found):,} rows" + (f", the first {ROWS_SHOWN}" if len(found) > ROWS_SHOWN else "")
    return table(title, columns, body)
