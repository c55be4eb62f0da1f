"""Before and after: the same prompts and the same held-out problems for two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chatwright.conversations.schema import Conversation, Message
from chatwright.inference.chat_session import ChatSession
from chatwright.tasks.registry import make_task

PROMPTS = (
    "Who are you?",
    "你是谁？",
    "How many r are in strawberry?",
    "What is 123 * 456?",
    "What is the capital of France?",
)


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers out of `total` on one task's held-out problems."""

    task: str
    correct: int
    total: int

    def __str__(self) -> str:
        return f"{self.correct}/{self.total} ({self.correct / max(self.total, 1):.0%})"


def answers(session: ChatSession, prompts: Sequence[str]) -> list[Message]:
    """A reply to each prompt, each in a conversation of its own."""
    return session.reply_many([Conversation((Message.of("user", prompt),)) for prompt in prompts])


def score(session: ChatSession, task_name: str, count: int, seed: int = 0) -> Score:
    """Grade the model's own replies to `count` held-out problems of a task (tools in the loop)."""
    task = make_task(task_name)
    problems = task.conversations("test", count, seed)
    asked = [replace(problem, messages=problem.messages[:-1]) for problem in problems]
    replies = session.reply_many(asked)
    right = sum(task.grade(problem, reply) for problem, reply in zip(problems, replies, strict=True))
    return Score(task_name, right, len(problems))


def shown(message: Message) -> str:
    """A reply as a reader sees it, tool calls and results included."""
    marks = {"tool_call": "⟨{}⟩", "tool_result": "→ {} ", "thinking": "({}) ", "text": "{}"}
    return "".join(marks[part.kind].format(part.text) for part in message.parts).strip()
