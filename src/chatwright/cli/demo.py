"""`chatwright demo`: train the shipped recipe and show what changed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from chatwright.cli.train import INTERRUPTED, prepare, report
from chatwright.console import duration, note, out, table
from chatwright.conversations.schema import Message
from chatwright.evals.run import TaskResult
from chatwright.evals.scoreboard import footnotes, make_scoreboard, table_columns, table_rows
from chatwright.inference.sampling import SamplingSettings
from chatwright.recipes.run_settings import load_recipe
from chatwright.recipes.showcase import PROMPTS, answers, score_tasks, shown
from chatwright.recipes.talking import session_for, talk_to
from chatwright.run_folder import RunFolder
from chatwright.runtime import start_runtime

SCORED = {"letter_counting": 50, "arithmetic": 20, "general": 20}
SAMPLING = SamplingSettings(max_new_tokens=64)


def run_demo(overrides: Sequence[str], resume: bool) -> None:
    """Before, training, after: answers, scores, held-out loss, speed, and the command to go on with."""
    began = time.perf_counter()
    settings = load_recipe("demo", overrides)
    runtime = start_runtime(settings.train.device, settings.train.threads)
    console = out()
    console.rule("1 · the model before")
    note(f"loading {settings.model_name}")
    session = talk_to(settings.model_name, SAMPLING, device=settings.train.device)
    before = answers(session, PROMPTS)
    scores_before = score_tasks(session, "before", SCORED)
    del session
    _print_answers(before, None)

    console.rule("2 · training")
    resume = resume or RunFolder(settings.out).holds_run()
    prepared = prepare(settings, runtime, resume)
    result = prepared.trainer.train()
    report(prepared, result, "demo")
    if result.interrupted:
        raise SystemExit(INTERRUPTED)
    losses = [line["heldout_loss"] for line in prepared.trainer.run.read_metrics() if "heldout_loss" in line]

    console.rule("3 · before and after")
    session = session_for(prepared.model.model.eval(), prepared.data.text.template, SAMPLING)
    after = answers(session, PROMPTS)
    scores_after = score_tasks(session, "after", SCORED)
    _print_answers(before, after)
    _print_scores(scores_before, scores_after, losses)
    share = result.progress.supervised_tokens / max(result.progress.tokens, 1)
    note(
        f"{share:.0%} of the trained tokens were supervised; "
        f"the whole demo took {duration(time.perf_counter() - began)}"
    )
    console.print(f"Chat with it:            chatwright chat {settings.out}")
    console.print("See what was trained:    chatwright inspect demo")
    console.print("Prove that it's exact:   chatwright selftest demo")


def _print_answers(before: Sequence[Message], after: Sequence[Message] | None) -> None:
    columns = ("prompt", "before") if after is None else ("prompt", "before", "after")
    rows = []
    for index, prompt in enumerate(PROMPTS):
        cells = [prompt, _short(shown(before[index]))]
        if after is not None:
            cells.append(_short(shown(after[index])))
        rows.append(cells)
    out().print(table(None, columns, rows))


def _short(text: str, most: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _print_scores(before: Sequence[TaskResult], after: Sequence[TaskResult], losses: Sequence[float]) -> None:
    """Held-out problems with their intervals and the change; the held-out loss behind them."""
    board = make_scoreboard([before, after])
    rows = table_rows(board)
    if losses:
        rows.append(("held-out loss", "nats a token", f"{losses[0]:.3f}", f"{losses[-1]:.3f}"))
    out().print(table("scores on held-out problems", table_columns(board), rows))
    for line in footnotes(board):
        note(line)
