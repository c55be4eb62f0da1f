"""`chatwright compare`: the answers of several models side by side, marked, and their scores on tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chatwright.console import note, out, table
from chatwright.errors import UserError
from chatwright.evals.run import EvalSettings
from chatwright.evals.scoreboard import footnotes, table_columns, table_rows
from chatwright.evals.selection import armed, look_ahead, select_tasks
from chatwright.inference.sampling import SamplingSettings
from chatwright.inspection.escaping import visible
from chatwright.recipes.comparing import Column, asked, compare_models, scoreboard_of
from chatwright.recipes.comparison_document import answer_text, comparison_document, marks_text, totals_table
from chatwright.recipes.probes import Probe, built_in_probes, read_probes
from chatwright.reports.page import write_page
from chatwright.settings import build

MOST_SHOWN = 400
"""Characters of an answer on the terminal; `--json` and `--html` have the whole."""
BESIDE = 3
"""So many models stand side by side on the terminal; more stand below each other."""


class Request(NamedTuple):
    """What the command line asks for."""

    models: list[str]
    prompts: str | None
    max_new_tokens: int
    device: str
    html: str | None
    as_json: bool
    tasks: str | None = None
    limit: int | None = None
    allow_unsafe: bool = False


def run_compare(request: Request) -> None:
    """Ask every model every prompt; print the answers and the marks, or write them."""
    if request.as_json and request.html is not None:
        raise UserError("--json and --html exclude each other", place="compare", hint="give one of them")
    probes = built_in_probes() if request.prompts is None else read_probes(request.prompts)
    tasks = armed(select_tasks(request.tasks) if request.tasks else [], request.allow_unsafe)
    settings = build(SamplingSettings, {"max_new_tokens": request.max_new_tokens}, "compare")
    measured = EvalSettings(limit=request.limit)
    look_ahead(request.models, tasks, measured.split, measured.seed)
    if request.html is not None:
        Path(request.html).touch()  # a place that can't be written is found before the work
    columns: list[Column] = []
    how: dict[str, Any] = {"tasks": tasks, "measured": measured, "device": request.device}
    for column in compare_models(request.models, probes, settings, **how):
        columns.append(column)
        good, total = column.passed
        note(f"{column.name}: {good} of {total} marks, asked by {column.asked_by}")
    if request.as_json:
        print(json.dumps(_plain(probes, columns), ensure_ascii=False))
    elif request.html is not None:
        write_page(request.html, comparison_document(probes, columns))
        size = Path(request.html).stat().st_size / 1e3
        out().print(f"{request.html}: {size:.0f} kB; open it in a browser", markup=False, soft_wrap=True)
    else:
        _print(probes, columns)


def _print(probes: Sequence[Probe], columns: Sequence[Column]) -> None:
    names = [column.name for column in columns]
    if len(columns) <= BESIDE:
        rows = [[_short(asked(probe)), *(_cell(column, at) for column in columns)] for at, probe in enumerate(probes)]
        out().print(table("answers", ("prompt", *names), rows))
    else:
        for at, probe in enumerate(probes):
            rows = [[column.name, _cell(column, at)] for column in columns]
            out().print(table(_short(asked(probe)), ("model", "answer"), rows))
    totals = totals_table(columns, probes)
    out().print(table("marks", totals.heads, totals.rows))
    board = scoreboard_of(columns)
    if board is not None:
        out().print(table("scores", table_columns(board), table_rows(board)))
        for line in footnotes(board):
            note(line)


def _cell(column: Column, at: int) -> str:
    return f"{_short(answer_text(column.answers[at]))}\n{marks_text(column.marks[at])}"


def _short(text: str) -> str:
    text = visible(text)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _plain(probes: Sequence[Probe], columns: Sequence[Column]) -> dict[str, Any]:
    board = scoreboard_of(columns)
    return {
        "scores": board.to_dict()["rows"] if board is not None else [],
        "probes": [probe.model_dump(mode="json", exclude_defaults=True) for probe in probes],
        "models": [
            {
                "model": column.name,
                "asked_by": column.asked_by,
                "answers": [
                    {
                        "text": answer.message.text,
                        "parts": [[part.kind, part.text] for part in answer.message.parts],
                        "ended": answer.ended,
                        "tokens": answer.num_tokens,
                        "foreign_control_tokens": list(answer.foreign),
                        "marks": marks,
                    }
                    for answer, marks in zip(column.answers, column.marks, strict=True)
                ],
            }
            for column in columns
        ],
    }
