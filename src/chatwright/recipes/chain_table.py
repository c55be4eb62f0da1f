"""A chain's table: its stages' models as columns, tasks as rows, each score with its interval.

Every example is kept below the chain's folder, so that an interrupted table goes on; a table that is there is shown.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatwright.console import duration
from chatwright.evals.run import EvalSettings, Session, TaskResult, evaluate_task
from chatwright.evals.scoreboard import Scoreboard, footnotes, make_scoreboard, table_columns, table_rows
from chatwright.evals.selection import Selected, armed
from chatwright.recipes.chain import StageStatus
from chatwright.recipes.chain_settings import Chain, ChainEvaluation, titles
from chatwright.recipes.evaluation_settings import EvaluationTask
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.subjects import open_subject
from chatwright.reports.document import Document, Section, Table
from chatwright.reports.markdown import markdown
from chatwright.run_folder import write_whole
from chatwright.runtime import Runtime

JSON_NAME, MARKDOWN_NAME, FOLDER = "table.json", "table.md", "table"
_ROOM = "max_new_tokens of that task, under evaluate.tasks in the recipe"


@dataclass(frozen=True, slots=True)
class ChainTable:
    """The table as it is shown.

    Args:
        made: now; else it was there already. heads, rows: cells of text. notes: what its numbers mean.
    """

    made: bool
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def require_tasks(chain: Chain) -> None:
    """Find what the table would only lack when all is trained.

    Raises:
        ConfigError: a task has no such split. UserError: its data isn't at hand, or nothing isolates code here.
    """
    for task in chain.table.tasks if chain.table else ():
        selected, settings = _selected(task, chain.table)  # type: ignore[arg-type]
        selected.problems(selected.split(settings.split), 1, settings.seed)


def measure_chain(chain: Chain, statuses: Sequence[StageStatus], runtime: Runtime) -> ChainTable | None:
    """Measure the stages' models, write table.json and table.md; None where the chain asks for no table.

    Raises:
        UserError: a task's data isn't at hand, a task runs code and nothing isolates it here, or a model can't be
            served.
    """
    if chain.table is None:
        return None
    columns = _columns(chain, chain.table, statuses)
    key = _key(chain.table, columns)
    found = runtime.broadcast_object(_read(chain.out, key) if runtime.is_main else None)
    if found is not None:
        return found
    tasks = [_selected(task, chain.table) for task in chain.table.tasks]
    results = [_measured(status, tasks, chain, key, runtime) for status in columns]
    board = _named(make_scoreboard(results), titles([status.stage for status in columns]))
    table = _shown(columns, board)
    if runtime.is_main:
        _write(chain, key, board, table)
    return table


def _columns(chain: Chain, wanted: ChainEvaluation, statuses: Sequence[StageStatus]) -> list[StageStatus]:
    names = wanted.stages or tuple(stage.name for stage in chain.writers)
    return [status for status in statuses if status.stage.name in names]


def _key(wanted: ChainEvaluation, columns: Sequence[StageStatus]) -> str:
    """What the table depends on: which models, which tasks."""
    models = [[status.stage.name, status.result] for status in columns]
    plain = json.dumps([models, wanted.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _selected(task: EvaluationTask, wanted: ChainEvaluation) -> tuple[Selected, EvalSettings]:
    (selected,) = armed([Selected(task.metric, task.make())], allow_unsafe=False)
    settings = EvalSettings(
        limit=task.limit,
        split=task.split,
        seed=wanted.seed,
        samples=task.samples,
        temperature=task.temperature,
        max_new_tokens=task.max_new_tokens,
    )
    return selected, settings


def _measured(
    status: StageStatus, tasks: Sequence[tuple[Selected, EvalSettings]], chain: Chain, key: str, runtime: Runtime
) -> list[TaskResult]:
    """One model on every task; it alone is in memory meanwhile."""
    assert chain.table is not None and isinstance(status.stage.settings, RunSettings)
    device = status.stage.settings.train.device
    opened = open_subject(str(status.folder), device=device, batch_rows=chain.table.batch_rows)
    session = Session.of(runtime, chain.out / FOLDER / key[:12] / status.stage.name)
    results = [evaluate_task(opened.subject, selected, settings, session) for selected, settings in tasks]
    del opened
    gc.collect()
    return results


def _named(board: Scoreboard, names: Sequence[str]) -> Scoreboard:
    return replace(board, subjects=tuple(names))


def _shown(columns: Sequence[StageStatus], board: Scoreboard) -> ChainTable:
    """The scores alone: how they differ from the first column's is for programs (table.json)."""
    plain = [replace(row, cells=tuple(replace(cell, difference=None) for cell in row.cells)) for row in board.rows]
    notes = [line for line in footnotes(board, _ROOM) if not line.startswith("below each score")]
    rows = tuple(tuple(map(str, row)) for row in table_rows(replace(board, rows=tuple(plain))))
    return ChainTable(True, table_columns(board), (*_figures(columns), *rows), tuple(notes))


def _figures(columns: Sequence[StageStatus]) -> list[tuple[str, ...]]:
    """How long and on how much each stage trained."""
    records = [status.record for status in columns]
    return [
        ("trained", "steps", *(f"{record.step:,}" if record else "" for record in records)),
        ("trained", "tokens", *(f"{record.tokens:,}" if record else "" for record in records)),
        ("trained", "time", *(duration(record.seconds) if record else "" for record in records)),
    ]


def _document(chain: Chain, table: ChainTable) -> Document:
    rows = tuple(tuple(cell.replace("\n", "; ") for cell in row) for row in table.rows)
    section = Section("scores", "What each stage adds", tables=(Table(table.heads, rows),), notes=table.notes)
    stages = " → ".join(stage.name for stage in chain.stages)
    return Document(title=chain.out.name, subtitle=stages, tiles=(), sections=(section,))


def _write(chain: Chain, key: str, board: Scoreboard, table: ChainTable) -> None:
    shown = {"heads": table.heads, "rows": table.rows, "notes": table.notes}
    plain: dict[str, Any] = {"key": key, **board.to_dict(), "shown": shown}
    write_whole(chain.out / MARKDOWN_NAME, markdown(_document(chain, table)))
    write_whole(chain.out / JSON_NAME, json.dumps(plain, ensure_ascii=False, indent=1) + "\n")


def _read(folder: Path, key: str) -> ChainTable | None:
    """The table that is there, if it is of these models and tasks; a damaged one is made anew."""
    try:
        plain = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        shown = plain["shown"]
        rows = tuple(tuple(row) for row in shown["rows"])
        return ChainTable(False, tuple(shown["heads"]), rows, tuple(shown["notes"])) if plain["key"] == key else None
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
