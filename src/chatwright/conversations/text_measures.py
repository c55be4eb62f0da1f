"""What a text looks like: unfinished, repetitive, full of symbols, wrongly decoded, in which script. Pure functions.

Sources: Rae et al. 2021, "Scaling Language Models" (Gopher), table A1 (repetition); Raffel et al. 2020, "Exploring
the Limits of Transfer Learning" (C4), section 2.2 (lines end in a terminal mark). Both were made for web pages; what
was changed for chat replies stands at each function.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_SYMBOL = re.compile(r"[^\w\s]|_")
_TOKENS = re.compile("[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\\W_]+")
_SPACES = re.compile(r"\s+")

_SENTENCE_END = re.compile("[.!?…][\"'”’)\\]]*\\s|[。！？]")
_TAIL = re.compile(r"#\w|\A\s*[-–—―~]|\n\s*[-–—―~]")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_LISTED = re.compile(r"\s*(?:[-–—―*+•·#>|]|\(?[0-9a-zA-Z]{1,3}[.):、]\s)")
_MARKS = frozenset(".!?。！？`")
_OPENING = frozenset(",，、(（[{「『-–—")
_SHORT_LINE = 40

CUT_CHARACTERS = 200

# A UTF-8 lead byte and its continuation, each read as a cp1252 or latin-1 character.
_CONTINUATION = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MOJIBAKE = re.compile(
    f"[\u00c3\u00c4\u00c5\u00d0\u00d1\u00d8\u00d9][{_CONTINUATION}]"
    f"|\u00c2[\u00a0-\u00bf]|[\u00e0-\u00ef][{_CONTINUATION}]{{2}}|\u00f0\u0178|\ufffd|锟斤拷|烫烫烫"
)

_SCRIPTS = {
    "kana": re.compile("[\u3041-\u30ff]"),
    "hangul": re.compile("[\uac00-\ud7af\u1100-\u11ff]"),
    "han": re.compile("[\u3400-\u9fff\uf900-\ufaff]"),
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
    "cyrillic": re.compile("[\u0400-\u052f]"),
    "greek": re.compile("[\u0370-\u03ff]"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "hebrew": re.compile("[\u0590-\u05ff]"),
    "devanagari": re.compile("[\u0900-\u097f]"),
    "thai": re.compile("[\u0e00-\u0e7f]"),
}


def plain(text: str) -> str:
    """The text for comparing: case folded, runs of whitespace as one space, none at the ends."""
    return _SPACES.sub(" ", text).strip().casefold()


def repeats(prompt: str, reply: str, min_characters: int = 20) -> bool:
    """Whether a reply begins with the whole prompt (case and whitespace aside); short prompts are greeted back."""
    if not plain(reply[:200]).startswith(plain(prompt[:100])[:15]):
        return False  # almost every reply
    asked = plain(prompt)
    return len(asked) >= min_characters and plain(reply[: 2 * len(prompt) + 100]).startswith(asked)


def is_unfinished(text: str, min_characters: int = CUT_CHARACTERS) -> bool:
    """Whether a reply breaks off: an open code block, or prose whose last sentence has no end mark.

    C4 keeps lines that end in a terminal mark. Chat replies are lists, code and tags too, so a reply counts only if
    other sentences in it do end in a mark, the last line is no list item, heading or short line, and what follows the
    last mark is neither hashtags nor the name behind a quotation.

    Args:
        text: the reply. min_characters: shorter ones are never unfinished: limits cut long replies.
    """
    text = text.rstrip()
    if len(text) < min_characters:
        return False
    if text.count("```") % 2:
        return text[-1] not in _MARKS  # else one fence too many or too few, in a text that is whole
    last = text[-1]
    if not (last.isalpha() or last in _OPENING):
        return False
    head, _, line = text.rpartition("\n")
    if (head and len(line) < _SHORT_LINE) or _LISTED.match(line):
        return False
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return bool(ends) and not _TAIL.search(text[ends[-1] :])


def without_code(text: str) -> str:
    """The text with code blocks, code spans and addresses left out."""
    return _CODE.sub(" ", text)


def symbol_share(text: str) -> float:
    """The share of a text's visible characters that are neither letters, marks on letters nor digits; 0 if blank."""
    visible = sum(map(len, text.split()))
    symbols = _SYMBOL.findall(text)
    if not text.isascii():  # the vowel signs of Hindi, Thai and others are marks, not symbols
        symbols = [symbol for symbol in symbols if not unicodedata.category(symbol).startswith("M")]
    return len(symbols) / visible if visible else 0.0


def mojibake_at(text: str) -> int:
    """Where the first wrongly decoded character stands, such as `â€™` for `’`, or U+FFFD; −1 where there is none."""
    found = _MOJIBAKE.search(text)
    return found.start() if found else -1


def main_script(text: str, min_letters: int = 10) -> str | None:
    """The script of most of a text's letters (kana beside Chinese characters: `kana`), or None where none leads.

    Args:
        text: any text. min_letters: with fewer letters there is no answer.
    """
    if text.isascii():
        return "latin" if len(_SCRIPTS["latin"].findall(text)) >= min_letters else None
    counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    if counts["kana"] * 8 >= counts["han"]:
        counts["kana"] += counts["han"] if counts["kana"] else 0
    if counts["kana"] > counts["han"]:
        counts["han"] = 0
    total = sum(counts.values())
    best = max(counts, key=lambda name: counts[name])
    return best if total >= min_letters and counts[best] > 0.7 * total else None


class RepetitionLimits(NamedTuple):
    """The largest shares that Gopher allows (table A1): of lines, and of characters.

    Args:
        lines: duplicate lines among the lines. line_characters: their characters among all.
        top: for n = 2, 3, 4 the characters of the most frequent n-gram.
        duplicates: for n = 5 … 10 the characters inside n-grams that came before.
    """

    lines: float = 0.30
    line_characters: float = 0.20
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    duplicates: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)


GOPHER_LIMITS = RepetitionLimits()


def repetition(text: str, min_words: int = 50, limits: RepetitionLimits = GOPHER_LIMITS) -> str | None:
    """The first of Gopher's repetition rules that a text breaks, in words, or None.

    Each Chinese or Japanese character counts as a word. Texts of fewer words pass: the shares mean nothing there.
    """
    words = _TOKENS.findall(text)
    if len(words) < min_words:
        return None
    return _repeated_lines(text, limits) or _frequent_grams(words, limits) or _repeated_grams(words, limits)


def _repeated_lines(text: str, limits: RepetitionLimits) -> str | None:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    counts = Counter(lines)
    if len(counts) == len(lines):
        return None
    if (len(lines) - len(counts)) / len(lines) > limits.lines:
        return f"more than {limits.lines:.0%} of the lines are repeated"
    again = sum((count - 1) * len(line) for line, count in counts.items())
    if again / sum(map(len, lines)) > limits.line_characters:
        return f"repeated lines hold more than {limits.line_characters:.0%} of the text"
    return None


def _frequent_grams(words: Sequence[str], limits: RepetitionLimits) -> str | None:
    total = sum(map(len, words))
    for n, limit in enumerate(limits.top, 2):
        (gram, count) = Counter(zip(*(words[i:] for i in range(n)), strict=False)).most_common(1)[0]
        if count == 1:
            return None
        if count * sum(map(len, gram)) / total > limit:
            return f"one {n}-gram makes up more than {limit:.0%} of the text"
    return None


def _repeated_grams(words: Sequence[str], limits: RepetitionLimits) -> str | None:
    total = sum(map(len, words))
    for n, limit in enumerate(limits.duplicates, 5):
        grams = list(zip(*(words[i:] for i in range(n)), strict=False))
        if len(set(grams)) == len(grams):
            return None  # without a repeated n-gram there is no longer one
        seen: set[tuple[str, ...]] = set()
        again = place = 0
        while place < len(grams):
            repeated = grams[place] in seen
            again += sum(map(len, grams[place])) if repeated else 0
            seen.add(grams[place])
            place += n if repeated else 1
        if again / total > limit:
            return f"repeated {n}-grams make up more than {limit:.0%} of the text"
    return None
