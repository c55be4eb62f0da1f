"""Runs tasks over a subject: what is left to do is done, shared among ranks, written as it comes, and gathered.

The results depend on the subject, the task and the settings alone: neither on what else is in a batch, nor on how
often the work was interrupted, nor on the number of ranks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from chatwright import __version__
from chatwright.console import ProgressLine
from chatwright.conversations.schema import Conversation
from chatwright.errors import UserError
from chatwright.evals.choice import choose_letters
from chatwright.evals.generate import reply_and_grade
from chatwright.evals.heldout import HeldoutSet, LossMeter
from chatwright.evals.records import FRESH, Header, Key, Record, ResultsFile, file_name
from chatwright.evals.selection import RunsCode, Selected
from chatwright.evals.subject import Subject
from chatwright.evals.trials import Outcome, Trial, asked, prompt_hash
from chatwright.inference.sampling import SamplingSettings
from chatwright.inspection.evaluation_texts import evaluation_name
from chatwright.preparation.crew import Crew
from chatwright.runtime import Runtime, seed_for
from chatwright.settings import Settings

Way = Literal["letters", "replies", "loss"]
"""How a task is measured: by the likeliest letter, by graded replies, by the loss on the reference replies."""
Measure = Callable[[Sequence[Trial]], Iterator[tuple[int, Outcome]]]
"""Puts trials to a subject; gives each one's number and outcome, in any order."""
SAMPLED_TEMPERATURE = 0.8
"""Of several replies a problem: the temperature that Chen et al. (2021) found best for many samples."""
MOST_GRADERS = 8


class EvalSettings(Settings):
    """What is measured of every task.

    Args:
        limit: the first so many problems of the seed's order; all where not given.
        split: in place of each task's own (`test`).
        seed: of the problems' order and of what is drawn.
        samples: replies to a problem, of tasks that the model answers in its own words.
        temperature: 0 takes the likeliest token each time; where not given, 0 for one sample and 0.8 for several.
        top_p: see `SamplingSettings`.
        max_new_tokens: bound on a reply, in place of each task's own.
        system: the system message.
    """

    limit: int | None = Field(default=None, ge=1)
    split: str | None = None
    seed: int = Field(default=0, ge=0)
    samples: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_new_tokens: int | None = Field(default=None, ge=1)
    system: str | None = None

    @model_validator(mode="after")
    def _samples_that_differ(self) -> EvalSettings:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples: {self.samples} equal replies at temperature 0; leave one of the two out")
        return self

    def sampling(self, selected: Selected) -> SamplingSettings:
        """How replies to a task are drawn, but for the seed."""
        drawn = SAMPLED_TEMPERATURE if self.samples > 1 else 0.0
        return SamplingSettings(
            temperature=drawn if self.temperature is None else self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens or selected.task.max_new_tokens,
        )


@dataclass(frozen=True, slots=True)
class Session:
    """Where an evaluation runs, and where its results go.

    Args:
        folder: of the results; None keeps them in memory.
        fresh: begin anew where there are results already.
        rank, size: this process among those that share the work. crew: how they meet.
        show_progress: a bar for each task, on rank 0.
    """

    folder: Path | None = None
    fresh: bool = False
    rank: int = 0
    size: int = 1
    crew: Crew = field(default_factory=Crew)
    show_progress: bool = True

    @staticmethod
    def of(runtime: Runtime, folder: Path | None = None, *, fresh: bool = False) -> Session:
        """The session of this rank; all ranks must ask for it."""
        return Session(folder, fresh, runtime.rank, runtime.world_size, Crew.of(runtime))

    def share(self, records: Sequence[Record]) -> list[Record]:
        """The records of all ranks, on every rank."""
        if self.size == 1:
            return list(records)
        return [Record.from_line(line) for line in self.crew.meet({record.to_line() for record in records})]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a subject did on a task.

    Args:
        evaluation: what contamination reports call the task.
        records: of every trial, in order.
        chance: the share of right answers that guessing gives.
        samples: replies a problem. seconds: of this session; 0 where everything was there already.
    """

    subject: str
    label: str
    split: str
    way: Way
    evaluation: str
    records: tuple[Record, ...]
    chance: float = 0.0
    samples: int = 1
    seconds: float = 0.0


def evaluate_task(subject: Subject, selected: Selected, settings: EvalSettings, session: Session) -> TaskResult:
    """Measure a subject on one task.

    Raises:
        UserError: no such split, no data, a task that can't be graded, results of another evaluation in the folder,
            a subject that can't do what is asked.
    """
    split = selected.split(settings.split)
    problems = selected.problems(split, settings.limit, settings.seed)
    way: Way = "letters" if all("letters" in each.extra for each in problems) else "replies"
    samples = settings.samples if way == "replies" else 1
    trials = [Trial(number, one, each) for number, each in enumerate(problems) for one in range(samples)]
    options = selected.task.options.model_dump(mode="json")
    key = {"task": selected.task.name, "options": options, "data": selected.task.fingerprint(split), "split": split}
    key |= {"seed": settings.seed, "system": settings.system, "by": way}
    if way == "replies":
        key |= settings.sampling(selected).model_dump(mode="json", exclude={"seed"})
    began = time.monotonic()
    with _measure(subject, selected, settings, way) as measure:
        show = partial(asked, system=settings.system)
        records = collect(subject, selected.label, trials, measure, key, session, show)
    seconds = time.monotonic() - began
    names = (subject.name, selected.label, split, way, evaluation_name(selected.task))
    return TaskResult(*names, records, chance(problems), samples, seconds)


class MeasuresLoss(Subject, Protocol):
    """A subject whose model is at hand."""

    @property
    def losses(self) -> LossMeter:
        """Measures the loss."""
        ...


def evaluate_heldout(
    subject: MeasuresLoss, heldout: HeldoutSet, session: Session, limit: int | None = None
) -> TaskResult:
    """Measure a subject's loss and bits per byte on held-out conversations, the first `limit` of them.

    Raises:
        UserError: there are none, or none that fits the model's context and has something supervised.
    """
    trials = [Trial(number, 0, each) for number, each in enumerate(heldout.conversations[:limit])]
    if not trials:
        raise UserError("there are no held-out conversations", place=heldout.name)
    key = {"task": heldout.name, "train_on": sorted({str(policy) for policy in heldout.train_on}), "by": "loss"}
    began = time.monotonic()
    measure = partial(subject.losses.measure, heldout=heldout)
    records = collect(subject, f"heldout {heldout.name}", trials, measure, key, session, lambda each: each)
    if all("unanswered" in record.details for record in records):
        reasons = ", ".join(sorted({record.details["unanswered"] for record in records}))
        raise UserError(f"no conversation can be measured by {subject.name}: {reasons}", place=heldout.name)
    label = f"held-out: {heldout.name}"
    return TaskResult(subject.name, label, "", "loss", "", records, seconds=time.monotonic() - began)


def chance(problems: Sequence[Conversation]) -> float:
    """The expected share of right guesses: 1 / letters of each question, 0 where there is nothing to choose from."""
    return sum(1 / len(each.extra["letters"]) for each in problems if each.extra.get("letters")) / len(problems)


@contextmanager
def _measure(subject: Subject, selected: Selected, settings: EvalSettings, way: Way) -> Iterator[Measure]:
    """How the trials of a task are measured, with threads for grading where it runs code."""
    if way == "letters":
        yield lambda trials: choose_letters(subject, trials, settings.system)
        return
    sampling = settings.sampling(selected)
    threads = min(MOST_GRADERS, os.cpu_count() or 1) if isinstance(selected.task, RunsCode) else 0
    graders = ThreadPoolExecutor(threads, thread_name_prefix="grade") if threads else None

    def measure(trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        seeds = [seed_for(settings.seed, selected.label, each.problem, each.sample) for each in trials]
        drawn = [sampling.model_copy(update={"seed": seed}) for seed in seeds]
        return reply_and_grade(subject, trials, drawn, selected.task.grade, system=settings.system, graders=graders)

    try:
        yield measure
    finally:
        if graders is not None:
            graders.shutdown(cancel_futures=True)


def collect(
    subject: Subject,
    label: str,
    trials: Sequence[Trial],
    measure: Measure,
    key: dict[str, Any],
    session: Session,
    show: Callable[[Conversation], Conversation],
) -> tuple[Record, ...]:
    """The record of every trial, in order: those on disk, and those that are still to be made.

    Args:
        key: what the results depend on, besides the subject's identity.
        show: what of a trial's conversation the subject is shown.

    Raises:
        UserError: as `evaluate_task` does; on every rank, if it is raised on one.
    """
    hashes = {Key(each.problem, each.sample): prompt_hash(show(each.conversation)) for each in trials}
    file = _file(subject, label, key, session)
    found = session.crew.together(
        lambda: file.recover(fresh=session.fresh) if file is not None and session.rank == 0 else []
    )
    done = {record.key: record for record in session.share(found)}
    changed = [record for record in done.values() if hashes.get(record.key, record.prompt) != record.prompt]
    if changed:
        problem = f"problem {changed[0].key.problem} is another than when these results were made: the data has changed"
        raise UserError(problem, place=str(file.path if file else label), hint=FRESH)
    left = [each for each in trials if Key(each.problem, each.sample) not in done]
    bar = ProgressLine(f"{subject.name} {label}", "examples") if session.show_progress and session.rank == 0 else None
    mine = left[session.rank :: session.size]
    try:
        made = session.crew.together(lambda: _work(mine, measure, hashes, file, bar, len(trials) - len(left)))
    finally:
        if bar is not None:
            bar.stop()
        if file is not None:
            file.close()
    done |= {record.key: record for record in session.share(made)}
    if file is not None and left:
        session.crew.together(lambda: file.complete(list(done.values())))
        session.crew.together(file.drop_part)  # only now: what isn't written whole yet must not be lost
    return tuple(done[wanted] for wanted in hashes)


def _file(subject: Subject, label: str, key: dict[str, Any], session: Session) -> ResultsFile | None:
    if session.folder is None:
        return None
    header = Header({"subject": subject.identity(), **key}, {"model": subject.name, "version": __version__})
    return ResultsFile(session.folder / f"{file_name(label)}.jsonl", header, session.rank)


def _work(
    trials: Sequence[Trial],
    measure: Measure,
    hashes: dict[Key, str],
    file: ResultsFile | None,
    bar: ProgressLine | None,
    done: int,
) -> list[Record]:
    """This rank's records, each written as soon as it is there."""
    records: list[Record] = []
    began, scores, graded = time.monotonic(), 0.0, 0
    if bar is not None and trials:
        bar.start(done=done, total=done + len(trials))
    for number, outcome in measure(trials) if trials else ():
        problem, sample, conversation = trials[number]
        key = Key(problem, sample)
        seconds = time.monotonic() - began
        place = (conversation.source, conversation.row, hashes[key])
        record = Record(key, *place, outcome.score, seconds, outcome.details)
        records.append(record)
        if file is not None:
            file.append(record)
        if outcome.score is not None:
            scores, graded = scores + outcome.score, graded + 1
        if bar is not None:
            bar.advance(note=f"{scores / graded:.1%} of these" if graded else None)
    return records
