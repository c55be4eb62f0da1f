"""Evaluation during training, as the trainer gets it: a model in memory → losses, scores and sample replies.

The ranks share the work. Each measures its part by itself, then all meet and add up: so none waits for a message of one
that failed, and a mistake that one finds ends all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from chatwright.batches.collate import collate
from chatwright.batches.packed_batch import PackedBatch
from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import UserError
from chatwright.evals.choice import LetterTokens
from chatwright.evals.local import LocalSubject
from chatwright.evals.run import EvalSettings, Session, TaskResult, evaluate_task
from chatwright.evals.scores import is_binary, scores_of
from chatwright.evals.selection import Selected
from chatwright.evals.trials import asked
from chatwright.inference.responder import Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.sandbox import sandbox_executor
from chatwright.inference.tools import ToolBox
from chatwright.models.foreign import ForeignLM
from chatwright.models.generation_weights import generating
from chatwright.models.transformer import CausalLM
from chatwright.packing.plan import plan_packs
from chatwright.preparation.crew import Crew
from chatwright.recipes.evaluation_settings import EvaluationSettings, EvaluationTask
from chatwright.recipes.pair_settings import PAIR_STAGES
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.showcase import shown
from chatwright.recipes.streaming import TrainingData
from chatwright.runtime import Runtime
from chatwright.templates.base import Template
from chatwright.train.evaluation import BITS_PER_BYTE, HELDOUT_LOSS, LOSSES, Evaluation, EvaluationPlan, Score
from chatwright.train.objectives import Objective
from chatwright.train.step import StepModule
from chatwright.train.validation import HeldoutSums, heldout_sums


def plan_evaluations(
    settings: RunSettings,
    data: TrainingData,
    model: CausalLM | ForeignLM,
    objective: Objective,
    runtime: Runtime,
) -> EvaluationPlan | None:
    """What the recipe's `eval` asks for; None where it comes to nothing.

    All that a task needs (its data, letters that are one token each, a sandbox) is looked for here: what is missing
    must not end a run in its middle.

    Args:
        model: the model in training, measured as it is, by its compute weights.

    Raises:
        UserError: a task's data, letters or sandbox can't be had, or a prompt is too long.
    """
    chosen, steps = settings.eval, settings.eval.steps(data.num_steps)
    has_rows = len(data.heldout) > 0
    pairs = settings.stage in PAIR_STAGES
    metrics = chosen.metrics(has_heldout=has_rows, pairs=pairs)
    best = chosen.chosen_best(has_heldout=has_rows, pairs=pairs)
    if not has_rows and (chosen.heldout or (best is not None and best not in metrics)):
        hint = "the ledger (`chatwright plan`) says why: choose other data, a larger max_tokens, or another overflow"
        raise UserError("no held-out row is left to measure on", place="eval", hint=hint)
    measures_heldout = chosen.measures_heldout(has_rows)
    if not steps or not (measures_heldout or chosen.tasks or chosen.prompts):
        return None
    crew = Crew.of(runtime)
    heldout = HeldoutMeasure.of(settings, data, model, objective, runtime) if measures_heldout else None
    template = data.text.template
    session = Session(None, False, runtime.rank, runtime.world_size, crew, show_progress=False)
    tasks = crew.together(lambda: tuple(prepare_task(task, template) for task in chosen.tasks))
    crew.together(lambda: _require_room(chosen.prompts, model, template))
    return EvaluationPlan(
        Evaluator(chosen, model, template, session, tasks, heldout, chosen.task_steps(data.num_steps)),
        steps,
        best,
        higher_is_better=best not in LOSSES,
        keep_best=chosen.best is not None,
    )


@dataclass(frozen=True, slots=True)
class KeptTask(Selected):
    """A task of the recipe, by its metric's name; its problems are read once."""

    settings: EvalSettings
    kept: tuple[Conversation, ...] = field(repr=False)

    def problems(self, split: str, limit: int | None, seed: int) -> list[Conversation]:
        """Those that were read."""
        return list(self.kept)


def prepare_task(wanted: EvaluationTask, template: Template) -> KeptTask:
    """Read a task's problems, and find what its grading needs.

    Raises:
        UserError: its data isn't at hand, a letter isn't one token under the template, or there is no sandbox.
    """
    made = Selected(wanted.metric, wanted.make()).with_executor(sandbox_executor)
    split = made.split(wanted.split)
    settings = EvalSettings(
        split=split,
        limit=wanted.limit,
        samples=wanted.samples,
        temperature=wanted.temperature,
        max_new_tokens=wanted.max_new_tokens,
    )
    problems = made.problems(split, wanted.limit, settings.seed)
    letters = LetterTokens(template)
    for each in {tuple(each.extra["letters"]): each for each in problems if "letters" in each.extra}.values():
        letters.of(asked(each), each.extra["letters"])
    return KeptTask(made.label, made.task, settings, tuple(problems))


def _require_room(prompts: Sequence[str], model: CausalLM | ForeignLM, template: Template) -> None:
    for number, prompt in enumerate(prompts):
        length = len(template.render_prompt(_conversation(prompt)))
        if length >= model.max_positions:
            message = f"{length:,} tokens, and the model's context is {model.max_positions:,}"
            raise UserError(message, place=f"eval.prompts.{number}", hint="shorten the prompt")


def _conversation(prompt: str) -> Conversation:
    return Conversation((Message.of("user", prompt),))


def heldout_packs(data: TrainingData, settings: RunSettings, runtime: Runtime) -> list[PackedBatch]:
    """The held-out examples in packs, in the order of the data; this rank's share of them."""
    room = max(settings.packing.tokens_per_pack, settings.max_tokens)  # only a stream is cut, held-out rows aren't
    packing = settings.packing.model_copy(update={"by": "tokens", "shuffle": False, "tokens_per_pack": room})
    plan = plan_packs(data.heldout.lengths, packing, seed=0, epochs=1, name_of=data.heldout.name)
    mine = range(runtime.rank, plan.num_packs, runtime.world_size)
    make = data.collate_heldout or collate
    return [make(data.heldout, plan.pack(index)).to(runtime.device) for index in mine]


@dataclass(frozen=True, slots=True)
class HeldoutMeasure:
    """The held-out loss of this rank's packs, and that of all ranks."""

    module: nn.Module
    packs: list[PackedBatch]
    token_bytes: torch.Tensor
    runtime: Runtime
    pairs: bool = False

    @staticmethod
    def of(
        settings: RunSettings, data: TrainingData, model: nn.Module, objective: Objective, runtime: Runtime
    ) -> HeldoutMeasure:
        """For the recipe's held-out data, and the loss that is trained."""
        sizes = torch.from_numpy(data.text.template.tokenizer.token_bytes)
        packs, pairs = heldout_packs(data, settings, runtime), settings.stage in PAIR_STAGES
        return HeldoutMeasure(StepModule(model, objective), packs, sizes, runtime, pairs)

    def here(self) -> HeldoutSums:
        """This rank's share."""
        return heldout_sums(self.module, self.packs, self.token_bytes)

    def values(self, here: HeldoutSums) -> dict[str, float]:
        """The metrics over all ranks; of pairs, whose loss is no text's, without the bits per byte."""
        names = self.runtime.union(set(here.metrics))
        own = [part for name in names for part in here.metrics.get(name, (0.0, 0.0))]
        added = self.runtime.all_reduce_scalars([here.total, here.weight, here.nats, here.text_bytes, *own])
        sums = HeldoutSums(added[0], added[1], added[2], added[3])
        found = {f"heldout_{n}": t / max(w, 1e-12) for n, t, w in zip(names, added[4::2], added[5::2], strict=True)}
        return {HELDOUT_LOSS: sums.loss, **({} if self.pairs else {BITS_PER_BYTE: sums.bits_per_byte}), **found}


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Measures all that a recipe asks for; tasks and prompts only after `task_steps`."""

    chosen: EvaluationSettings
    model: CausalLM | ForeignLM
    template: Template
    session: Session
    tasks: tuple[KeptTask, ...]
    heldout: HeldoutMeasure | None
    task_steps: frozenset[int]

    def __call__(self, step: int) -> Evaluation:
        """What the model as it is gives, the same on every rank.

        Raises:
            UserError: the model, its template or a task can't be measured so; on every rank, if on one.
        """
        values: dict[str, float] = {}
        if self.heldout is not None:
            values |= self.heldout.values(self.session.crew.together(self.heldout.here))
        if step not in self.task_steps or not (self.tasks or self.chosen.prompts):
            return Evaluation(step, values)
        with generating(self.model) if isinstance(self.model, CausalLM) else nullcontext():
            engine = make_engine(self.model, self.template, max_rows=self.chosen.batch_rows)
            responder = Responder(engine, self.template, ToolBox())
            subject = LocalSubject("the model in training", responder, f"step {step}")
            results = [evaluate_task(subject, task, task.settings, self.session) for task in self.tasks]
            samples = self._samples(responder)
        scores = {name: score for result in results for name, score in metrics_of(result).items()}
        values |= {name: score.mean for name, score in scores.items()}
        return Evaluation(step, values, scores, samples)

    def _samples(self, responder: Responder) -> tuple[tuple[str, str], ...]:
        """Every prompt with its reply, those of other ranks too."""
        prompts, session = self.chosen.prompts, self.session
        mine = range(session.rank, len(prompts), session.size)
        sampling = SamplingSettings(max_new_tokens=self.chosen.prompt_tokens)
        replies = session.crew.together(
            lambda: responder.reply_many([_conversation(prompts[number]) for number in mine], sampling)
        )
        told = {json.dumps([number, shown(reply)]) for number, reply in zip(mine, replies, strict=True)}
        by_number = dict(json.loads(each) for each in session.crew.meet(told))
        return tuple((prompt, by_number[number]) for number, prompt in enumerate(prompts))


def metrics_of(result: TaskResult) -> dict[str, Score]:
    """A task's score by its name; of several replies that are right or wrong, `NAME pass@k` besides."""
    found = {result.label: score_of(result)}
    if result.samples > 1 and is_binary(result):
        told = {each.metric: Score(sum(each.amounts.values()), len(each.amounts)) for each in scores_of(result)}
        found |= {f"{result.label} {metric}": score for metric, score in told.items() if metric != "pass@1"}
    return found


def score_of(result: TaskResult) -> Score:
    """The points of a task: of several replies to a problem their mean; none for a prompt that can't be answered."""
    points: dict[int, float] = {}
    for record in result.records:
        points[record.key.problem] = points.get(record.key.problem, 0.0) + (record.score or 0.0) / result.samples
    return Score(sum(points.values()), len(points))
