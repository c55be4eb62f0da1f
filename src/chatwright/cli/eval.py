"""`chatwright eval`: measure one or several models on tasks and held-out conversations, side by side."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from chatwright.console import note, out, table
from chatwright.errors import ConfigError, UserError
from chatwright.evals.endpoint import ChoiceBy, endpoint_subject
from chatwright.evals.heldout import HeldoutSet
from chatwright.evals.local import LocalSubject
from chatwright.evals.records import file_name
from chatwright.evals.run import EvalSettings, Session, TaskResult, evaluate_heldout, evaluate_task
from chatwright.evals.scoreboard import Scoreboard, footnotes, make_scoreboard, table_columns, table_rows
from chatwright.evals.selection import Selected, armed, gradable_tasks, look_ahead, select_tasks
from chatwright.evals.subject import Subject
from chatwright.models.generation_weights import GenerationWeights, generation_weights
from chatwright.preparation.crew import Crew
from chatwright.recipes.subjects import heldout_set, open_subject, results_folder
from chatwright.run_folder import write_whole
from chatwright.runtime import Runtime, start_runtime
from chatwright.settings import build

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""
STANDARD_OUTPUT = "-"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The options of a model on a server: see `endpoint_subject`."""

    url: str
    model: str | None = None
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    tools: bool = False


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What the command line asks for.

    Args:
        models: any names that `resolve_model` finds. endpoint: one more, on a server.
        tasks: see `select_tasks`. heldout: see `heldout_set`.
        settings: fields of `EvalSettings`.
        examples: the folder of the results. fresh: begin anew. json_file: of the summary; `-` is standard output.
    """

    models: tuple[str, ...]
    tasks: str | None
    heldout: tuple[str, ...]
    settings: Mapping[str, Any]
    endpoint: Endpoint | None = None
    choice_by: str = "logprobs"
    batch_rows: int | None = None
    device: str = "auto"
    dtype: str | None = None
    weights: str = GenerationWeights.PACKED
    examples: str | None = None
    fresh: bool = False
    json_file: str | None = None
    allow_unsafe: bool = False


@dataclass(slots=True)
class _Column:
    """A subject's results, and what is told beside them."""

    results: list[TaskResult]
    identity: str
    folder: Path
    contamination: dict[str, int] = field(default_factory=dict)


def run_eval(request: EvalRequest) -> None:
    """Measure every model on everything asked for, one model in memory at a time; print the table."""
    settings = build(EvalSettings, dict(request.settings), "eval")
    _require(request)
    selected = armed(select_tasks(request.tasks) if request.tasks else [], request.allow_unsafe)
    runtime = start_runtime(request.device)  # type: ignore[arg-type]
    try:
        crew = Crew.of(runtime)
        crew.together(lambda: look_ahead(request.models, selected, settings.split, settings.seed))
        sets = [heldout_set(name, crew) for name in request.heldout]
        if runtime.is_main and request.json_file not in (None, STANDARD_OUTPUT):
            Path(str(request.json_file)).touch()  # a place that can't be written is found before the work
        columns = []
        for open_one in _openers(request):
            with open_one() as (subject, column):
                session = _session(runtime, crew, column.folder, fresh=request.fresh)
                _measure(subject, column, selected, sets, settings, session)
            columns.append(column)
        if runtime.is_main:
            _show(request, settings, columns)
    except KeyboardInterrupt:
        note("stopped; what is finished is kept: the same command goes on from here")
        raise SystemExit(INTERRUPTED) from None
    finally:
        runtime.close()


def _require(request: EvalRequest) -> None:
    """Refuse what can't be meant.

    Raises:
        UserError: nothing to measure, nothing to measure it on, or options that exclude each other.
    """
    if not request.models and request.endpoint is None:
        raise UserError("which model?", place="eval", hint="chatwright eval MODEL --tasks arc,gsm8k, or --endpoint URL")
    if not request.tasks and not request.heldout:
        known = ", ".join(["chatcore", "all", *gradable_tasks()])
        hint = f"--tasks with one or more of {known}; or --heldout with data or a recipe"
        raise UserError("what is to be measured?", place="eval", hint=hint)
    twice = sorted({name for name in request.models if request.models.count(name) > 1})
    problems = [f"models: {name} is named twice" for name in twice]
    called = [Path(name).name for name in request.heldout]
    for label in sorted({each for each in called if called.count(each) > 1}):
        problems.append(f"heldout: two sets are called {label}; rename one of the files, or measure them apart")
    if request.endpoint is not None and request.heldout:
        problems.append("heldout: the loss needs the model itself, which a server doesn't give away")
    if request.choice_by not in get_args(ChoiceBy):
        problems.append(f"choice-by: must be {' or '.join(get_args(ChoiceBy))} (found {request.choice_by!r})")
    if request.batch_rows is not None and request.batch_rows < 1:
        problems.append(f"batch-rows: must be 1 or more (found {request.batch_rows})")
    if problems:
        raise ConfigError(problems, source="eval")


Opener = Callable[[], Any]


def _openers(request: EvalRequest) -> Iterator[Opener]:
    """One a model: opens it for a `with` block and lets go of it afterwards."""
    for name in request.models:
        yield lambda name=name: _local(name, request)  # type: ignore[misc]
    endpoint = request.endpoint
    if endpoint is not None:
        yield lambda: _remote(request, endpoint)


@contextmanager
def _local(name: str, request: EvalRequest) -> Iterator[tuple[Subject, _Column]]:
    how: dict[str, Any] = {"device": request.device, "dtype": request.dtype, "choice_by": request.choice_by}
    how["weights"] = generation_weights(request.weights)
    opened = open_subject(name, batch_rows=request.batch_rows, **how)
    folder = Path(request.examples) / file_name(name) if request.examples else opened.folder
    yield opened.subject, _Column([], opened.subject.identity(), folder, opened.contamination)
    del opened
    gc.collect()


@contextmanager
def _remote(request: EvalRequest, endpoint: Endpoint) -> Iterator[tuple[Subject, _Column]]:
    choice: Any = request.choice_by
    subject = endpoint_subject(
        endpoint.url,
        endpoint.model,
        key_env=endpoint.key_env,
        concurrency=endpoint.concurrency,
        tools=endpoint.tools,
        choice_by=choice,
    )
    own = results_folder(subject.name, None)
    yield subject, _Column([], subject.identity(), Path(request.examples) / own.name if request.examples else own)


def _session(runtime: Runtime, crew: Crew, folder: Path, *, fresh: bool) -> Session:
    return Session(folder, fresh, runtime.rank, runtime.world_size, crew)


def _measure(
    subject: Subject,
    column: _Column,
    selected: Sequence[Selected],
    sets: Sequence[HeldoutSet],
    settings: EvalSettings,
    session: Session,
) -> None:
    """Everything of one subject, into its column."""
    for task in selected:
        column.results.append(evaluate_task(subject, task, settings, session))
    for heldout in sets:
        assert isinstance(subject, LocalSubject)
        column.results.append(evaluate_heldout(subject, heldout, session, settings.limit))


def _show(request: EvalRequest, settings: EvalSettings, columns: Sequence[_Column]) -> None:
    """The table with its notes, or JSON."""
    board = make_scoreboard([column.results for column in columns], [column.contamination for column in columns])
    summary = json.dumps(_summary(board, settings, columns), ensure_ascii=False, indent=1) + "\n"
    if request.json_file == STANDARD_OUTPUT:
        print(summary, end="")
    else:
        out().print(table("scores", table_columns(board), table_rows(board)))
        for line in footnotes(board):
            note(line)
        if request.json_file is not None:
            write_whole(Path(request.json_file), summary)
    for column in columns:
        note(f"every example: {column.folder}")


def _summary(board: Scoreboard, settings: EvalSettings, columns: Sequence[_Column]) -> dict[str, Any]:
    identities = [column.identity for column in columns]
    asked = settings.model_dump(mode="json")
    folders = [str(column.folder) for column in columns]
    return {**board.to_dict(), "identities": identities, "settings": asked, "examples": folders}
