"""Before and after: the same prompts and the same held-out problems for two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from chatwright.conversations.schema import Conversation, Message
from chatwright.evals.local import LocalSubject
from chatwright.evals.run import EvalSettings, Session, TaskResult, evaluate_task
from chatwright.evals.selection import select_tasks
from chatwright.inference.chat_session import ChatSession

PROMPTS = (
    "Who are you?",
    "你是谁？",
    "How many r are in strawberry?",
    "What is 123 * 456?",
    "What is the capital of France?",
)


Reward = Callable[[Conversation, Message], float | bool]
"""A user's own judgement of a reply: True or False, or any number."""


@dataclass(frozen=True, slots=True)
class Score:
    """The rewards of `total` replies added up; with rewards of 0 and 1, how many were right."""

    rewards: float
    total: int

    @property
    def mean(self) -> float:
        """The mean reward, 0 without replies."""
        return self.rewards / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.rewards:g}/{self.total} ({self.mean:.0%})"


def answers(session: ChatSession, prompts: Sequence[str]) -> list[Message]:
    """A reply to each prompt, each in a conversation of its own."""
    return session.reply_many([Conversation((Message.of("user", prompt),)) for prompt in prompts])


def score_replies(session: ChatSession, problems: Sequence[Conversation], reward: Reward) -> Score:
    """Let the model answer each problem's last message by itself (tools in the loop) and add up the rewards.

    Args:
        problems: conversations whose last message is the reference reply; the model sees those before it.
        reward: called with the problem and the model's reply; a task's `grade`, or your own.
    """
    asked = [replace(problem, messages=problem.messages[:-1]) for problem in problems]
    replies = session.reply_many(asked)
    rewards = sum(float(reward(problem, reply)) for problem, reply in zip(problems, replies, strict=True))
    return Score(rewards, len(problems))


def score_tasks(session: ChatSession, name: str, tasks: Mapping[str, int]) -> list[TaskResult]:
    """The model's own replies to so many held-out problems of each built-in task, graded by the task.

    Args:
        name: what tables call the model as it is now.
    """
    subject = LocalSubject(name, session.responder, "in memory")
    room = session.settings.max_new_tokens
    return [
        evaluate_task(subject, task, EvalSettings(limit=count, max_new_tokens=room), Session())
        for label, count in tasks.items()
        for task in select_tasks(label)
    ]


def shown(message: Message) -> str:
    """A reply as a reader sees it, tool calls and results included."""
    marks = {"tool_call": "⟨{}⟩", "tool_result": "→ {} ", "thinking": "({}) ", "text": "{}"}
    return "".join(marks[part.kind].format(part.text) for part in message.parts).strip()
