"""Several models beside each other: answers to the same prompts with their marks, and scores on the same tasks."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from chatwright.checkpoints.imports import resolve_model
from chatwright.conversations.schema import Conversation, Message
from chatwright.evals.run import EvalSettings, Session, TaskResult, evaluate_task
from chatwright.evals.scoreboard import Scoreboard, make_scoreboard
from chatwright.evals.selection import Selected
from chatwright.inference.batch import Batch
from chatwright.inference.chat_session import ChatSession
from chatwright.inference.engine import Engine
from chatwright.inference.requests import Request, StreamedToken
from chatwright.inference.sampling import SamplingSettings
from chatwright.recipes.probes import Answer, Probe, marks
from chatwright.recipes.subjects import open_subject
from chatwright.recipes.talking import talk_to
from chatwright.recipes.template_record import stored_template_settings
from chatwright.templates.base import Template
from chatwright.templates.plain_text import DocumentFrame
from chatwright.templates.tokenizer import TextTokenizer

BY_TEMPLATE, AS_TEXT = "its chat template", "plain text"
"""How a model is asked."""


@dataclass(frozen=True, slots=True)
class Column:
    """A model's side of the comparison.

    Args:
        name: as the user typed it. asked_by: `BY_TEMPLATE`; or `AS_TEXT`: a base model, which knows no turns, is given
            the prompt alone and goes on with it.
        answers: one a probe. marks: of each answer. results: one a task.
        contamination: evaluation → rows trained on that hold items of it; empty where no task was asked for.
    """

    name: str
    asked_by: str
    answers: tuple[Answer, ...]
    marks: tuple[dict[str, bool], ...]
    results: tuple[TaskResult, ...] = ()
    contamination: Mapping[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> tuple[int, int]:
        """How many marks are good, and how many there are."""
        every = [good for each in self.marks for good in each.values()]
        return sum(every), len(every)


def compare_models(
    names: Sequence[str],
    probes: Sequence[Probe],
    settings: SamplingSettings,
    *,
    tasks: Sequence[Selected] = (),
    measured: EvalSettings | None = None,
    device: str = "auto",
) -> Iterator[Column]:
    """Each model's answers in turn; one model is in memory at a time.

    Args:
        tasks: also measured, by the model's template, as `measured` says and in the precision of `eval`; those that
            run code must have been given an executor (`evals.selection.armed`).

    Raises:
        ModelError, TemplateError, CheckpointError: a model can't be loaded, or served as it was trained.
        UserError: a task's data isn't at hand, or it can't be graded.
    """
    for name in names:
        results, contamination = _measured(name, tasks, measured or EvalSettings(), device) if tasks else ((), {})
        session = talk_to(name, settings, device=device)
        chats = has_template(name)
        answers = _answers(session, probes) if chats else _continuations(session, probes)
        judged = tuple(marks(probe, answer) for probe, answer in zip(probes, answers, strict=True))
        yield Column(name, BY_TEMPLATE if chats else AS_TEXT, tuple(answers), judged, results, contamination)
        del session  # before the next one is loaded
        gc.collect()


def _measured(
    name: str, tasks: Sequence[Selected], settings: EvalSettings, device: str
) -> tuple[tuple[TaskResult, ...], Mapping[str, int]]:
    """A model's results as `chatwright eval` has them, and the marks of its training data.

    The model is loaded for this alone: scores need float32 on a CPU, where the answers are drawn as in a chat.
    """
    opened = open_subject(name, device=device)
    results = tuple(evaluate_task(opened.subject, task, settings, Session()) for task in tasks)
    contamination = opened.contamination
    del opened
    gc.collect()
    return results, contamination


def scoreboard_of(columns: Sequence[Column]) -> Scoreboard | None:
    """The scores of all models, differences to the first one; None where no task was asked for."""
    if not columns[0].results:
        return None
    return make_scoreboard([column.results for column in columns], [column.contamination for column in columns])


def has_template(name: str | Path) -> bool:
    """Whether a model folder knows turns: it has a chat template, or a record of the one it was trained with."""
    folder = resolve_model(name).text_folder
    return stored_template_settings(folder) is not None or TextTokenizer.load(folder).chat_template is not None


def _answers(session: ChatSession, probes: Sequence[Probe]) -> list[Answer]:
    """Replies by the model's template, tools in the loop."""
    responder = session.responder
    watched = _Watched(responder.engine)  # the last that this session is used for
    responder.engine = cast(Engine, watched)
    asked = [probe.conversation for probe in probes]
    answers = []
    for conversation, reply in zip(asked, responder.replies(asked, session.settings), strict=True):
        drawn = watched.drawn_after(responder.template.render_prompt(conversation))
        foreign = _foreign(responder.template, drawn)
        answers.append(Answer(reply.message, reply.finish_reason != "length", foreign, reply.reply_tokens))
    return answers


def _foreign(template: Template, drawn: Sequence[int]) -> tuple[str, ...]:
    """The control tokens in a reply that have no place in one."""
    own = {*template.stop_ids, *(template.grammar.token_ids().values() if template.grammar else ())}
    names = template.tokenizer.control_names
    found = dict.fromkeys(names[index] for index in drawn if index in names and index not in own)
    return tuple(name for name in found if "think" not in name and "tool" not in name)


class _Watched:
    """An engine that remembers what it drew after each prompt."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.drawn: dict[tuple[int, ...], list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def open(self) -> _WatchedBatch:
        """A batch whose tokens are remembered."""
        return _WatchedBatch(self.engine.open(), self.drawn)

    def drawn_after(self, prompt: Sequence[int]) -> list[int]:
        """The tokens of every round of the reply to `prompt`; later rounds begin with it."""
        start = tuple(prompt)
        return [index for asked, ids in self.drawn.items() if asked[: len(start)] == start for index in ids]


class _WatchedBatch:
    """A batch that writes down the tokens of each prompt."""

    def __init__(self, batch: Batch, drawn: dict[tuple[int, ...], list[int]]) -> None:
        self.batch, self.drawn = batch, drawn
        self.prompts: dict[int, tuple[int, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)

    def submit(self, request: Request) -> int:
        """As the batch does."""
        number = self.batch.submit(request)
        self.prompts[number] = tuple(request.prompt)
        return number

    def step(self) -> list[StreamedToken]:
        """As the batch does."""
        tokens = list(self.batch.step())
        for token in tokens:
            self.drawn.setdefault(self.prompts[token.row], []).append(token.token_id)
        return tokens


def _continuations(session: ChatSession, probes: Sequence[Probe]) -> list[Answer]:
    """What a base model writes behind each prompt, up to its end-of-text token."""
    template = session.responder.template
    tokenizer, frame = template.tokenizer, DocumentFrame.of(template.tokenizer)
    begin = [] if frame.begin is None else [frame.begin]
    texts = ["\n\n".join(message.text for message in probe.conversation.messages) for probe in probes]
    prompts = [[*begin, *tokenizer.encode_text(text, at_start=True)] for text in texts]
    engine = session.responder.engine
    engine.stop_ids = frozenset(index for index in (frame.end, tokenizer.eos_id) if index is not None)
    answers = []
    for reply in engine.generate(prompts, session.settings):
        ended = reply.stop_reason != "length"
        text = tokenizer.decode([index for index in reply.ids if index not in engine.stop_ids])
        answers.append(Answer(Message.of("assistant", text.strip()), ended, (), len(reply.ids)))
    return answers


def asked(probe: Probe) -> str:
    """The prompt as it is shown, its system message before it."""
    return _joined(probe.conversation)


def _joined(conversation: Conversation) -> str:
    return "\n".join(f"[{m.role}] {m.text}" if m.role == "system" else m.text for m in conversation.messages)
