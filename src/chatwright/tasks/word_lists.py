"""The words that spelling tasks draw from: the shipped list, or the large one of dwyl/english-words."""

from __future__ import annotations

import zipfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from chatwright.errors import DataError, UserError
from chatwright.settings import Settings
from chatwright.tasks.embedded import split_of_word, words_of
from chatwright.tasks.task import Split
from chatwright.tasks.task_data import DATA_VARIABLE, data_folder

LARGE_LIST = "words/words_alpha"


class WordOptions(Settings):
    """Options of the tasks that spell.

    Args:
        size: rows of the whole split.
        words: `shipped`, 2,713 common words; or `large`, nanochat's 370,099 of words_alpha,
            from `CHATWRIGHT_DATA`.
    """

    size: PositiveInt = 1_000
    words: Literal["shipped", "large"] = "shipped"

    def of(self, split: Split) -> tuple[str, ...]:
        """The words of a split, in a fixed order.

        Raises:
            UserError: if the large list isn't at hand.
        """
        if self.words == "shipped":
            return words_of(split)
        path = _large_file()
        return _large_words(path, path.stat().st_mtime_ns, split)

    def fingerprint(self) -> str:
        """sha256 of the large list, empty for the shipped one."""
        return "" if self.words == "shipped" else sha256(_large_file().read_bytes()).hexdigest()


def _large_file() -> Path:
    folder = data_folder()
    for ending in (".txt", ".zip"):
        if folder and (folder / f"{LARGE_LIST}{ending}").is_file():
            return folder / f"{LARGE_LIST}{ending}"
    raise UserError(
        f"the large word list isn't at hand: {f'{DATA_VARIABLE}={folder}' if folder else DATA_VARIABLE + ' (not set)'} "
        f"has no {LARGE_LIST}.txt or .zip",
        place="task_options.words",
        hint="put words_alpha.zip of github.com/dwyl/english-words there, or take words: shipped",
    )


@cache
def _large_words(path: Path, changed: int, split: Split) -> tuple[str, ...]:
    """Words of two letters or more (one can't be spelled); read once for each time that the file `changed`."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                text = archive.read("words_alpha.txt").decode()
        else:
            text = path.read_text(encoding="utf-8")
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"is no word list that can be read: {error}", source=str(path)) from None
    return tuple(word for word in text.split() if len(word) > 1 and split_of_word(word) == split)
