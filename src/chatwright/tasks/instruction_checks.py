"""Whether a text follows an instruction that a program can check: a length, words, a format, the case, an ending.

The names, arguments and readings are those of IFEval (Zhou et al. 2023, arXiv:2311.07911), in its strict form: the text
is taken as it is. Left out are those of its instructions that it judges with other programs' tables: the language of a
text, and what nltk takes for a sentence or a word in capitals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from chatwright.settings import Settings

Check = Callable[..., bool]
"""Called with the text and the instruction's own arguments by name."""
Instruction = tuple[str, Mapping[str, Any]]
"""The id of a check, and its arguments."""
LESS, AT_LEAST = "less than", "at least"
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


class FollowingOptions(Settings):
    """What a reply gets: `prompt`, 1 if it follows all instructions, else 0; `instruction`, the share that it follows.

    IFEval's accuracy by instruction weighs prompts by their instructions; the mean over prompts of this share doesn't.
    """

    level: Literal["prompt", "instruction"] = "prompt"

    def grade(self, text: str, instructions: Sequence[Instruction]) -> bool | float:
        """The grade of a text."""
        followed = [follows(text, *each) for each in instructions]
        return all(followed) if self.level == "prompt" else sum(followed) / len(followed)


def follows(text: str, instruction: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a text follows an instruction of `CHECKS`; an empty text follows none.

    Raises:
        ValueError: the arguments aren't those of the instruction.
    """
    if not text.strip():
        return False
    try:
        return CHECKS[instruction](text, **arguments)
    except (TypeError, AttributeError, re.error) as error:
        raise ValueError(f"{instruction} can't be checked with {dict(arguments)}: {error}") from None


def _compared(count: int, relation: str, wanted: int) -> bool:
    if relation not in (LESS, AT_LEAST):
        raise TypeError(f"relation must be {LESS!r} or {AT_LEAST!r}, found {relation!r}")
    return count < wanted if relation == LESS else count >= wanted


def _has(text: str, words: Iterable[str]) -> Iterable[bool]:
    return (re.search(word, text, re.IGNORECASE) is not None for word in words)


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """Runs of letters, digits and underscores count as words."""
    return _compared(len(re.findall(r"\w+", text)), relation, num_words)


def keywords(text: str, *, keywords: Sequence[str]) -> bool:
    """All of them stand in it, whatever the case."""
    return all(_has(text, keywords))


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """How often the keyword stands in it, whatever the case."""
    return _compared(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """None of them stands in it as a word."""
    return not any(_has(text, (rf"\b{word}\b" for word in forbidden_words)))


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """How often a letter stands in it, whatever the case."""
    return _compared(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def number_bullets(text: str, *, num_bullets: int) -> bool:
    """Lines that begin with `*` (and not with `**`) or `-`; exactly so many."""
    return len(re.findall(r"^\s*(?:\*[^*]|-).*$", text, re.MULTILINE)) == num_bullets


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Pieces between `***`; exactly so many, none of them empty but before the first and behind the last divider."""
    first, *rest = (piece.strip() for piece in text.split("***"))
    between, last = (rest[:-1], rest[-1:]) if rest else ([], [])
    return all(between) and len(between) + bool(first) + bool(last and last[0]) == num_paragraphs


def paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs between empty lines; exactly so many, and the n-th begins with the word."""
    paragraphs = text.split("\n\n")
    count = sum(bool(each.strip()) for each in paragraphs)
    chosen = paragraphs[nth_paragraph - 1].split() if nth_paragraph <= count else []
    word = re.split(r"[.,?!'\"]", chosen[0].lstrip("'").lstrip('"').lower())[0] if chosen else ""
    return count == num_paragraphs and word == first_word.lower() and word != ""


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many `[placeholders]`."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker of a postscript stands in it, whatever the case."""
    marker = postscript_marker.strip()
    return re.search(_POSTSCRIPTS.get(marker, marker.lower()), text.lower()) is not None


def number_highlights(text: str, *, num_highlights: int) -> bool:
    """At least so many `*highlights*`; a `**strong**` one counts once."""
    single, double = (re.findall(rf"{mark}[^\n*]*{mark}", text) for mark in (r"\*", r"\*\*"))
    return sum(bool(each.strip("*").strip()) for each in (*single, *double)) >= num_highlights


def number_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings such as `Section 1`."""
    return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections


def json_only(text: str) -> bool:
    """All of it is JSON, between code fences or not."""
    inner = re.sub(r"\A```(?:json|Json|JSON)?", "", text.strip()).removesuffix("```")
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """A title between `<<` and `>>`."""
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def constrained_response(text: str) -> bool:
    """One of the three answers that IFEval offers."""
    return any(f"My answer is {each}." in text for each in ("yes", "no", "maybe"))


def two_responses(text: str) -> bool:
    """Two different answers with `******` between them."""
    first, *rest = (piece.strip() for piece in text.split("******"))
    pieces = [first, *rest]
    filled = [piece for piece in pieces if piece]
    return all(pieces[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """It begins with the request."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_phrase(text: str, *, end_phrase: str) -> bool:
    """It ends with the phrase, whatever the case."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """All of it stands in double quotation marks."""
    whole = text.strip()
    return len(whole) > 1 and whole[0] == whole[-1] == '"'


def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text


CHECKS: dict[str, Check] = {
    "keywords:existence": keywords,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "length_constraints:number_words": number_words,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullets,
    "detectable_format:number_highlighted_sections": number_highlights,
    "detectable_format:multiple_sections": number_sections,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_only,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_phrase,
    "startend:quotation": quotation,
    "punctuation:no_comma": no_comma,
    "case:lower": str.islower,
    "case:upper": str.isupper,
}
"""IFEval's instructions by their ids; `case:` are our own, without its question for the language."""
