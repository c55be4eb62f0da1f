"""Replies that the model in training draws, tools in the loop, each with its reward: what reinforcement trains on.

The engine's own ids are kept, with the log-probabilities that they were drawn by: nothing is ever tokenized again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from typing import NamedTuple

from chatwright.conversations.schema import Conversation
from chatwright.evals.generate import Grade
from chatwright.evals.trials import asked
from chatwright.inference.responder import ChatReply, Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tool_choice import choose_tools
from chatwright.models.foreign import ForeignLM
from chatwright.models.generation_weights import generating
from chatwright.models.transformer import CausalLM
from chatwright.recipes.reinforcement_settings import RlSettings
from chatwright.runtime import seed_for
from chatwright.templates.base import Template

MOST_GRADERS = 8
"""Threads that wait for programs under test."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked.

    Args:
        conversation: with the reference reply as its last message. grade: its task's.
        runs_code: grading runs a program, which is worth a thread.
    """

    conversation: Conversation
    grade: Grade
    runs_code: bool = False


class DrawnRound(NamedTuple):
    """What was given and drawn at one go: `logprobs` has None where an id was forced (a tool's result)."""

    prompt: list[int]
    ids: list[int]
    logprobs: list[float | None]

    @property
    def num_drawn(self) -> int:
        """Tokens that the model drew."""
        return sum(each is not None for each in self.logprobs)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A reply and what it got.

    Args:
        place: its problem's place in the step. sample: which of the replies to it.
        reward: the task's grade, 0 for a reply that didn't end by itself. finished: whether it did.
        tool_calls: how many were run.
        rounds: a reply with JSON calls has several, others one.
    """

    place: int
    sample: int
    reward: float
    finished: bool
    tool_calls: int
    rounds: tuple[DrawnRound, ...]

    @property
    def num_drawn(self) -> int:
        """Tokens that the model drew, over all rounds."""
        return sum(each.num_drawn for each in self.rounds)

    def to_line(self) -> str:
        """As JSON, exact."""
        return json.dumps(astuple(self))

    @staticmethod
    def from_line(line: str) -> Rollout:
        """What `to_line` gave."""
        place, sample, reward, finished, tool_calls, rounds = json.loads(line)
        return Rollout(place, sample, reward, finished, tool_calls, tuple(DrawnRound(*each) for each in rounds))


class Sampler:
    """Draws and grades replies of a model as it is now.

    Args:
        model: the model in training, by its compute weights. template: renders problems and reads replies.
        settings: how many replies, and how they are drawn. seed: of the run.

    Raises:
        UserError: a tool can't be had here.
    """

    def __init__(self, model: CausalLM | ForeignLM, template: Template, settings: RlSettings, seed: int) -> None:
        self.model, self.template, self.settings, self.seed = model, template, settings, seed
        self.tools = choose_tools(settings.tools)

    def draw(self, step: int, problems: Sequence[tuple[int, Problem]]) -> list[Rollout]:
        """The replies to a step's problems, in the order of problems and samples.

        A reply's random numbers depend on the run's seed, the step, its problem's place and its number alone.

        Args:
            problems: with their places in the step.

        Raises:
            UserError: a prompt is too long, or a reply can't be graded.
        """
        # One reply to every problem first: their prompts are computed together, and the others copy them.
        order = [(place, problem, sample) for sample in range(self.settings.samples) for place, problem in problems]
        questions = {place: asked(problem.conversation) for place, problem in problems}
        seeds = [seed_for(self.seed, "rollout", step, place) for place, *_ in order]
        drawn = sampling_of(self.settings)
        sampling = [drawn.model_copy(update={"seed": seed}) for seed in seeds]
        threads = min(MOST_GRADERS, os.cpu_count() or 1) if any(each.runs_code for _, each in problems) else 0
        made: list[tuple[int, ChatReply, Callable[[], float]]] = []
        with (
            generating(self.model) if isinstance(self.model, CausalLM) else nullcontext(),
            ThreadPoolExecutor(threads) if threads else nullcontext() as graders,
        ):
            for number, reply in self._responder().finished([questions[place] for place, *_ in order], sampling):
                grade = partial(_reward, order[number][1], reply)
                made.append((number, reply, grade if graders is None else graders.submit(grade).result))
            rollouts = [_rollout(order[number][0], order[number][2], reward(), reply) for number, reply, reward in made]
        return sorted(rollouts, key=lambda each: (each.place, each.sample))

    def _responder(self) -> Responder:
        engine = make_engine(self.model, self.template, max_rows=self.settings.batch_rows)
        toolbox = self.tools.toolbox if self.tools else None
        return Responder(engine, self.template, toolbox, self.settings.max_tool_calls)


def sampling_of(settings: RlSettings) -> SamplingSettings:
    """How replies are drawn, but for the seed."""
    names = ("temperature", "top_k", "top_p", "stop", "max_new_tokens")
    return SamplingSettings(**{name: getattr(settings, name) for name in names})


def _reward(problem: Problem, reply: ChatReply) -> float:
    """The task's grade; a reply that was cut off is none."""
    return float(problem.grade(problem.conversation, reply.message)) if reply.finish_reason == "stop" else 0.0


def _rollout(place: int, sample: int, reward: float, reply: ChatReply) -> Rollout:
    calls = sum(part.kind == "tool_result" for part in reply.message.parts)
    rounds = tuple(DrawnRound(list(each.prompt), list(each.ids), list(each.logprobs)) for each in reply.rounds)
    return Rollout(place, sample, reward, reply.finish_reason == "stop", calls, rounds)
