"""Spelling in nanochat's shortest form: "Spell the word: apple" → "apple:a,p,p,l,e"."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from chatwright.conversations.schema import Conversation, Message
from chatwright.settings import Settings
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.grading import final_text, spelled_word
from chatwright.tasks.task import Draft, Split, question_and_reply, random_for
from chatwright.tasks.word_lists import WordOptions


class SimpleSpelling(GeneratedTask[WordOptions]):
    """Each word once; the letters stand without spaces, as the tokens that they have inside words."""

    name = "simple_spelling"
    options_type: type[Settings] = WordOptions

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """`size` words of the split."""
        words = list(self.options.of(split))
        random_for(self.name, split, seed).shuffle(words)
        for word in islice(words, self.options.size):
            reply = Message.of("assistant", f"{word}:{','.join(word)}")
            yield Draft(question_and_reply(f"Spell the word: {word}", reply), {"answer": reply.text, "word": word})

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the last word that the reply writes letter by letter is the word asked for."""
        return spelled_word(final_text(reply)) == conversation.extra["word"]

    def fingerprint(self, split: str) -> str | None:
        """sha256 of the word list, if it isn't the shipped one."""
        return self.options.fingerprint()
