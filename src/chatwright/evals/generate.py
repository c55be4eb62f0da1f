"""Tasks that a model answers in its own words, tools in the loop: replies drawn, then graded by the task.

Grading that runs programs goes to threads, which wait for the sandbox while the next tokens are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

from chatwright.conversations.schema import Conversation, Message
from chatwright.evals.subject import Subject, Unanswered
from chatwright.evals.trials import Outcome, Trial, asked
from chatwright.inference.responder import ChatReply
from chatwright.inference.sampling import SamplingSettings

Grade = Callable[[Conversation, Message], float | bool]
"""A judgement of a reply to a problem: right or wrong, or any number."""


def reply_and_grade(
    subject: Subject,
    trials: Sequence[Trial],
    settings: Sequence[SamplingSettings],
    grade: Grade,
    *,
    system: str | None = None,
    graders: Executor | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """The graded reply to each trial, with its number, as they are done.

    Args:
        settings: one a trial.
        grade: called with the problem, reference reply and all, and the model's reply.
        graders: where grades are made while replies go on; None grades between them.

    Raises:
        UserError: as `Subject.replies` does, or the grade can't be made.
    """
    waiting: dict[Future[float | bool], tuple[int, ChatReply]] = {}
    questions = [asked(trial.conversation, system) for trial in trials]
    for number, reply in subject.replies(questions, settings):
        if isinstance(reply, Unanswered):
            yield number, Outcome(0.0, {"unanswered": reply.reason})
        elif graders is None:
            yield number, _outcome(reply, grade(trials[number].conversation, reply.message))
        else:
            waiting[graders.submit(grade, trials[number].conversation, reply.message)] = (number, reply)
            yield from _done(waiting, 0)
    while waiting:
        yield from _done(waiting, None)


def _done(
    waiting: dict[Future[float | bool], tuple[int, ChatReply]], timeout: float | None
) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of the grades that are made by now, or of the next one."""
    finished, _ = wait(waiting, timeout, return_when=FIRST_COMPLETED)
    for future in finished:
        number, reply = waiting.pop(future)
        yield number, _outcome(reply, future.result())


def _outcome(reply: ChatReply, score: float | bool) -> Outcome:
    parts = [
        {"kind": part.kind, "text": part.text, **({"tool": part.tool} if part.tool else {})}
        for part in reply.message.parts
    ]
    counts = {"prompt_tokens": reply.prompt_tokens, "reply_tokens": reply.reply_tokens}
    return Outcome(float(score), {"reply": parts, "finish": reply.finish_reason, **counts})
