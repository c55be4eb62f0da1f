"""The stage `rl`: problems are planned as rows are, and each step trains on the model's own replies to its problems.

Nothing is made ahead, since a step's replies need the weights behind the step before. What a step asks is a pure
function of the recipe, and what the model draws of the weights, the run's seed and the step: a run that was stopped
goes on as if it never had been.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from chatwright.batches.loader import StepBatches, on_device
from chatwright.errors import DataError, UserError
from chatwright.evals.selection import Selected
from chatwright.evals.trials import asked
from chatwright.inference.sandbox import sandbox_executor
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM
from chatwright.preparation.crew import Crew
from chatwright.preparation.rows import RowReader
from chatwright.recipes.data import RunData, build_planned
from chatwright.recipes.model import ModelSetup
from chatwright.recipes.planning import context_length
from chatwright.recipes.rendering import plan_entries
from chatwright.recipes.rollout_steps import RolloutStep, rollout_step
from chatwright.recipes.rollouts import Problem, Rollout, Sampler
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.streaming import TrainingData
from chatwright.runtime import Runtime
from chatwright.tasks.registry import make_task
from chatwright.train.objectives import Objective, policy_gradient

NOT_TRAINED = "reference reply: the model's own replies are trained"
NO_SIGNAL = "no signal: the reward is the mean of all replies to the problem"
_OF_THE_PLAN = (Stage.REPEATED, Stage.PACKED, Stage.UNPLACED, Stage.TRAINED)


@dataclass(slots=True)
class RolloutState:
    """What changes while a run goes on.

    Args:
        model: the one in training; None until the objective is built.
        step: steps given so far.
        trained, silent: entry → (examples, tokens) of rollouts that were trained, and that had no signal.
    """

    model: CausalLM | ForeignLM | None = None
    step: int = 0
    trained: dict[str, tuple[int, int]] = field(default_factory=dict)
    silent: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolloutData(RunData):
    """Planned problems; the steps are rollouts.

    Args:
        settings: the recipe. problems: one for each example of the store, which holds their reference replies.
    """

    settings: RunSettings = field(kw_only=True)
    problems: tuple[Problem, ...] = field(kw_only=True)
    state: RolloutState = field(kw_only=True, default_factory=RolloutState)

    @property
    def step_weights(self) -> list[float]:
        """All alike: the schedule runs over steps."""
        return [1.0] * self.num_steps

    def steps(self, start: int, runtime: Runtime, pad_to: int | None) -> Iterator[StepBatches]:
        """This rank's batches of every step from `start` on, each drawn when it is asked for.

        Raises:
            UserError: no model is at hand, a reply can't be graded; on every rank, if on one.
        """
        if self.state.model is None:
            hint = "leave out `objective` in build_trainer: the stage has its own"
            raise UserError("there is no model to draw replies from", place="stage rl", hint=hint)
        rl, seed = self.settings.reinforcement, self.settings.train.seed
        sampler = Sampler(self.state.model, self.text.template, rl, seed)
        crew = Crew.of(runtime)
        self.state.step = start
        for step in range(start, self.num_steps):
            began = time.perf_counter()
            asked_now = [(place, self.problems[each]) for place, each in enumerate(self.plan.examples_of_step(step))]
            mine = asked_now[runtime.rank :: runtime.world_size]
            drawn = crew.together(lambda step=step, mine=mine: sampler.draw(step, mine))  # type: ignore[misc]
            made = self._step(step, _shared(drawn, crew), runtime)
            self._count(step, made)
            seconds = time.perf_counter() - began
            metrics = {**made.batches.metrics, "rollout_seconds": (seconds, 1.0)}
            yield on_device(replace(made.batches, seconds=seconds, metrics=metrics), runtime.device)

    def _step(self, step: int, rollouts: Sequence[Rollout], runtime: Runtime) -> RolloutStep:
        return rollout_step(
            rollouts,
            [self.store.key(int(each)) for each in self.plan.examples_of_step(step)],
            self.settings.reinforcement,
            step=step,
            epoch=int(self.plan.epoch_of_pack[self.plan.step_starts[step]]),
            tokens_per_pack=self.settings.packing.tokens_per_pack,
            rank=runtime.rank,
            world_size=runtime.world_size,
        )

    def _count(self, step: int, made: RolloutStep) -> None:
        examples = self.plan.examples_of_step(step)
        for counts, found in ((self.state.trained, made.trained), (self.state.silent, made.silent)):
            for place, rows, tokens in found:
                name = self.entries[self.entry_index[examples[place]]].name
                before = counts.get(name, (0, 0))
                counts[name] = (before[0] + rows, before[1] + tokens)
        self.state.step = step + 1

    def ledger_after(self, step: int) -> Ledger:
        """The account behind the newest step that was given: rollouts are rows that come besides the problems'."""
        assert step == self.state.step, f"asked for step {step}, given {self.state.step}"
        ledger = Ledger.from_dict(self.ledger.to_dict())
        for name, counts in self.state.trained.items():
            for stage in (Stage.REPEATED, Stage.PACKED, Stage.TRAINED):
                ledger.count(name, stage, *counts)
        for name, counts in self.state.silent.items():
            ledger.count(name, Stage.REPEATED, *counts)
            ledger.count(name, Stage.UNPLACED, *counts, reason=NO_SIGNAL)
        return ledger

    @property
    def without_signal(self) -> bool:
        """Whether replies were drawn, and no step so far had anything to learn from them."""
        return bool(self.state.silent) and not self.state.trained

    def loader_state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: the counts; the next step's number says the rest."""
        assert step == self.state.step, f"asked for step {step}, given {self.state.step}"
        kept = {"trained": self.state.trained, "silent": self.state.silent}
        return {"rollouts": {kind: {name: list(each) for name, each in found.items()} for kind, found in kept.items()}}

    def go_on(self, counters: Mapping[str, Any]) -> None:
        """Stand where a checkpoint's counters say."""
        kept = {kind: {n: (r, t) for n, (r, t) in found.items()} for kind, found in counters["rollouts"].items()}
        self.state.trained, self.state.silent = kept["trained"], kept["silent"]


def _shared(drawn: Sequence[Rollout], crew: Crew) -> list[Rollout]:
    """The rollouts of all ranks, by problem and sample, on every rank."""
    if crew.alone:
        return list(drawn)
    found = [Rollout.from_line(line) for line in crew.meet({each.to_line() for each in drawn})]
    return sorted(found, key=lambda each: (each.place, each.sample))


def build_rollouts(
    settings: RunSettings, sources: Mapping[str, Any] | None = None, crew: Crew | None = None
) -> RolloutData:
    """The problems of a recipe, read, filtered and planned as rows are; nothing is drawn yet.

    Args:
        settings, crew: see `recipes.data.build_data`. sources: must be None.

    Raises:
        UserError: rows in memory, which have no grade; see `build_planned`; a prompt that leaves no room for a reply.
    """
    if sources is not None:
        hint = "name tasks in the recipe's data; a task of your own goes into chatwright.tasks.registry.TASKS"
        raise DataError("rows in memory have no grade for a reply", source="stage rl", hint=hint)
    crew = crew or Crew()
    planned = build_planned(settings, None, crew)
    problems = crew.together(lambda: tuple(_problems(settings, planned)))
    crew.together(lambda: _require_room(planned, problems))
    known = {each.name: getattr(planned, each.name) for each in fields(RunData)}
    ledger = _without_plan(planned.ledger)
    return RolloutData(**{**known, "ledger": ledger}, settings=settings, problems=problems)


def rollout_objective(settings: RunSettings, data: TrainingData, model: ModelSetup, runtime: Runtime) -> Objective:
    """The policy gradient; from now on `data` draws its replies from the model."""
    assert isinstance(data, RolloutData), f"stage rl with {type(data).__name__}"
    data.state.model = model.model
    return policy_gradient


def _problems(settings: RunSettings, planned: RunData) -> Iterator[Problem]:
    """The problem behind each example of the store, read again as it was transformed and filtered."""
    found: dict[tuple[int, str, int], Problem] = {}
    work = [entry for entry in plan_entries(settings) if not entry.work.heldout]
    for number, (entry, each) in enumerate(zip(settings.data, work, strict=True)):
        made = Selected(entry.source_name, make_task(str(entry.task), **entry.task_options))
        task = made.with_executor(sandbox_executor).task
        runs_code = task is not made.task
        for conversation in RowReader(each.work, settings.train.seed).read(each.read()):
            found[number, conversation.source, conversation.row] = Problem(conversation, task.grade, runs_code)
    for index, entry_number in enumerate(planned.entry_index.tolist()):
        source, row, _ = planned.store.key(index)
        yield found[entry_number, source, row]


def _require_room(planned: RunData, problems: Sequence[Problem]) -> None:
    """Refuse prompts that fill the model's context, before a run begins."""
    context = context_length(planned.text)
    if context is None:
        return
    for index in np.flatnonzero(planned.store.lengths >= context).tolist():  # a prompt is shorter than its example
        length = len(planned.text.template.render_prompt(asked(problems[index].conversation)))
        if length >= context:
            raise DataError(
                f"its prompt has {length:,} tokens, and the model's context is {context:,}: no room for a reply",
                source=planned.store.name(index),
                hint="set max_tokens below the context, and overflow: drop",
            )


def _without_plan(planned: Ledger) -> Ledger:
    """The account of the rows alone: their reference replies are asked for, and not trained."""
    ledger = Ledger()
    kept: dict[str, tuple[int, int]] = {}
    for entry in planned.entries():
        if entry.stage in _OF_THE_PLAN:
            continue
        ledger.count(entry.source, entry.stage, entry.rows, entry.tokens, entry.reason)
        if entry.stage in (Stage.KEPT, Stage.HELD_OUT):
            sign = 1 if entry.stage is Stage.KEPT else -1
            rows, tokens = kept.get(entry.source, (0, 0))
            kept[entry.source] = (rows + sign * entry.rows, tokens + sign * entry.tokens)
    for name, counts in kept.items():
        ledger.count(name, Stage.UNPLACED, *counts, reason=NOT_TRAINED)
    ledger.check()
    return ledger
