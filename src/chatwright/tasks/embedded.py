"""The data files that ship with the package: words, questions with answers, persona phrasings."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from chatwright.tasks.task import Split, split_of

PROBE_WORDS = frozenset({"strawberry", "banana", "apple", "bookkeeper"})
"""Words that people try first: always in the test split, so that the demo never shows a memorized answer."""


def read_text(name: str) -> str:
    """The text of the shipped file `data/<name>`."""
    return files("chatwright.tasks").joinpath("data", name).read_text(encoding="utf-8")


@cache
def read_records(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of the shipped JSONL file `data/<name>`."""
    return tuple(json.loads(line) for line in read_text(name).split("\n") if line)


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """The shipped English words that belong to `split`, in alphabetical order."""
    return tuple(word for word in read_text("words.txt").split() if split_of_word(word) == split)


def split_of_word(word: str) -> Split:
    """`test` for the probe words and a hashed fifth of all words, else `train`; the same for every task."""
    return "test" if word in PROBE_WORDS else split_of(f"word/{word}")
