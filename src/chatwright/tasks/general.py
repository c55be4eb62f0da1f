"""Short general questions: facts, definitions, how-tos, small talk, lists, JSON, code one-liners, some in Chinese."""

from __future__ import annotations

from chatwright.conversations.schema import Conversation, Message
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.embedded import read_records
from chatwright.tasks.grading import final_text, mentions_any
from chatwright.tasks.task import Draft, NoOptions, Split, question_and_reply, random_for


class General(GeneratedTask[NoOptions]):
    """Questions and answers written for this project; the test questions carry keywords to grade by."""

    name = "general"

    def drafts(self, split: Split, seed: int) -> list[Draft]:
        """Every question of the split once, in an order of the seed."""
        drafts = general_drafts(split)
        random_for(self.name, split, seed).shuffle(drafts)
        return drafts

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the final text mentions one of the keywords."""
        return mentions_any(final_text(reply), conversation.extra["keywords"])


def general_drafts(split: Split) -> list[Draft]:
    """Every general question of `split` with its answer, in file order; a train row's keyword is its whole answer."""
    return [
        Draft(
            question_and_reply(row["question"], Message.of("assistant", row["answer"])),
            {"answer": row["answer"], "keywords": tuple(row["keywords"] if split == "test" else (row["answer"],))},
        )
        for row in read_records(f"general_{split}.jsonl")
    ]
