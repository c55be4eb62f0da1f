"""The contamination index as a folder of arrays, which any number of processes can map into memory and share.

A folder is written aside and renamed, so it is either complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from chatwright.errors import DataError
from chatwright.inspection.contamination import ContaminationIndex, ContaminationSettings
from chatwright.inspection.evaluation_texts import EvalText, Evaluations
from chatwright.inspection.ngram_index import GramIndex
from chatwright.inspection.word_hashes import Words

INDEX_FORMAT = 1
"""Raised whenever the files, the words or the hashes change, which makes every older index stale."""

_GRAM_ARRAYS = ("hashes", "offsets", "texts", "slots", "per_text")
_ITEMS = "items.jsonl"
_ITEM_OFFSETS = "item_offsets"


class KeptTexts(Sequence[EvalText]):
    """Evaluation texts in a file, read one at a time when asked for.

    Args:
        lines: uint8, mapped: a JSON list a line. offsets: int64 `[t+1]`, where each line begins.
    """

    def __init__(self, lines: np.ndarray, offsets: np.ndarray) -> None:
        self.lines, self.offsets = lines, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> EvalText: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[EvalText]: ...
    def __getitem__(self, place: int | slice) -> EvalText | Sequence[EvalText]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return EvalText(*json.loads(self.lines[self.offsets[place] : self.offsets[place + 1]].tobytes()))


def index_folder(cache: Path, evaluations: Evaluations, settings: ContaminationSettings) -> Path:
    """Where the index of these texts belongs: a folder below `cache`, named by a hash of all that decides it."""
    facts = json.dumps([INDEX_FORMAT, evaluations.identity, settings.n])
    return cache / f"contamination-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def prepare_index(evaluations: Evaluations, settings: ContaminationSettings, cache: Path) -> Path:
    """Build the index unless `cache` has it, and give its folder, for `load_index` in any process."""
    folder = index_folder(cache, evaluations, settings)
    if not folder.exists():
        save_index(ContaminationIndex.build(evaluations.texts, settings), folder)
    return folder


def save_index(index: ContaminationIndex, folder: Path) -> None:
    """Write the index; where another process was faster, its folder stays."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    lines = [
        json.dumps([item.task, item.split, item.source, item.row, item.text, item.field]).encode()
        for item in index.items
    ]
    (aside / _ITEMS).write_bytes(b"".join(lines) or b"\n")
    offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)
    arrays = {_ITEM_OFFSETS: offsets, "words": index.words.hashes, "bounds": index.words.bounds}
    arrays |= {
        "questions": index.questions,
        "exact": index.exact,
        "whole": index.whole,
        "whole_texts": index.whole_texts,
        "n": np.array(index.n),
    }
    for name, grams in (("ngrams", index.ngrams), ("shingles", index.shingles)):
        arrays |= {f"{name}_{each}": getattr(grams, each) for each in _GRAM_ARRAYS}
    for name, array in arrays.items():
        np.save(aside / f"{name}.npy", array)
    try:
        aside.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(aside)


def load_index(folder: Path, settings: ContaminationSettings) -> ContaminationIndex:
    """Map a saved index into memory; the settings' thresholds are those it matches by.

    Raises:
        DataError: the folder isn't complete, or was made for another `n`.
    """

    def read(name: str) -> np.ndarray:
        array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r")
        return array

    try:
        n = int(read("n"))
        grams = [GramIndex(*(read(f"{name}_{each}") for each in _GRAM_ARRAYS)) for name in ("ngrams", "shingles")]
        items = KeptTexts(np.memmap(folder / _ITEMS, dtype=np.uint8, mode="r"), read(_ITEM_OFFSETS))
        words = Words(read("words"), read("bounds"))
        marks = (read("questions"), read("exact"))
        whole = (read("whole"), read("whole_texts"))
    except (OSError, ValueError) as error:
        hint = "delete the folder; it is built anew"
        raise DataError(f"is no complete contamination index: {error}", source=str(folder), hint=hint) from None
    if n != settings.n:
        raise DataError(f"was built for runs of {n} words, not {settings.n}", source=str(folder), field="n")
    return ContaminationIndex(
        items, words, *marks, grams[0], grams[1], *whole, n, settings.min_share, settings.near_threshold
    )
