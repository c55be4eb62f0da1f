"""What every task does the same way: options kept, requests checked, conversations counted and numbered.

`GeneratedTask` makes its problems itself; a task over a data set is a `chatwright.tasks.data_task.DataTask`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar, cast

from chatwright.conversations.schema import Conversation, Message
from chatwright.settings import Settings
from chatwright.tasks.task import Draft, NoOptions, Split, build_conversations, check_request

Options = TypeVar("Options", bound=Settings)


class BaseTask(ABC, Generic[Options]):
    """A task with options of type `options_type`, which has the splits `splits`."""

    name: str
    options_type: type[Settings] = NoOptions
    splits: tuple[str, ...] = ("train", "test")
    max_new_tokens: int = 256

    def __init__(self, options: Options) -> None:
        self.options = options

    def conversations(self, split: str, count: int | None = None, seed: int = 0) -> list[Conversation]:
        """See `Task`."""
        check_request(self.name, self.splits, split, count)
        return self.build(split, count, seed)

    @abstractmethod
    def build(self, split: str, count: int | None, seed: int) -> list[Conversation]:
        """The conversations of a request that is known to be possible."""

    @abstractmethod
    def grade(self, conversation: Conversation, reply: Message) -> bool | float:
        """See `Task`."""

    @abstractmethod
    def fingerprint(self, split: str) -> str | None:
        """See `Task`."""


class GeneratedTask(BaseTask[Options]):
    """A task that makes its own problems from a seed; its splits share none of them."""

    @abstractmethod
    def drafts(self, split: Split, seed: int) -> Iterable[Draft]:
        """The problems of a split in an order of the seed, perhaps without end."""

    def default_count(self, split: Split) -> int | None:
        """How many conversations come where no count is asked for; None for all."""
        return None

    def build(self, split: str, count: int | None, seed: int) -> list[Conversation]:
        """The first `count` distinct problems."""
        half = cast(Split, split)
        wanted = self.default_count(half) if count is None else count
        return build_conversations(self.name, self.drafts(half, seed), wanted)

    def fingerprint(self, split: str) -> str | None:
        """Empty: the program and its options alone decide what comes."""
        return ""
