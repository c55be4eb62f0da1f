"""Which language a text is in, through py3langid (over a hundred languages, its table comes with it).

Loaded on first use; there is no fallback: without the library a language can't be asked for.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from chatwright.conversations.text_measures import without_code
from chatwright.errors import UserError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

READ_CHARACTERS = 400
"""How much of a text is looked at: enough to be sure, little enough to be quick."""

_LETTERS = re.compile(r"[^\W\d_]+")
_WIDE = re.compile("[\u2e80-\ud7af\uf900-\ufaff]")
_LETTERS_OF_A_WIDE_ONE = 3


@cache
def identifier() -> LanguageIdentifier:
    """The identifier, with probabilities between 0 and 1.

    Raises:
        UserError: py3langid isn't installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "telling languages apart needs the library 'py3langid'",
            place="filters: language",
            hint="pip install 'chatwright[data]'",
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known_languages() -> list[str]:
    """The ISO 639-1 codes that can be told apart, sorted."""
    return sorted(identifier().labels)


def language_of(text: str, min_letters: int = 20) -> tuple[str, float] | None:
    """The language code of a text and how sure that is (0 to 1), code blocks and addresses left out.

    Args:
        text: any text; its first 400 characters decide.
        min_letters: with fewer letters there is no answer; a Chinese, Japanese or Korean one counts as three.
    """
    words = _LETTERS.findall(without_code(text[: 4 * READ_CHARACTERS]))
    read = " ".join(words)[:READ_CHARACTERS]
    if len(read) < min_letters and len(read) + (_LETTERS_OF_A_WIDE_ONE - 1) * len(_WIDE.findall(read)) < min_letters:
        return None
    code, sure = identifier().classify(read)
    return str(code), float(sure)
