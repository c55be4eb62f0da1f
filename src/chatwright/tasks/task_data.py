"""Where the files of a task's data set are: below the folder `CHATWRIGHT_DATA`, else on the Hugging Face hub.

This module finds and draws rows; what a row means is its task's to know.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path

from chatwright.conversations.files import RawRow, file_kind
from chatwright.conversations.hub import HUB_PREFIX
from chatwright.conversations.sources import fingerprint, scan_rows
from chatwright.errors import UserError

DATA_VARIABLE = "CHATWRIGHT_DATA"


@dataclass(frozen=True, slots=True)
class DataPlace:
    """Where the rows of one split are.

    Args:
        task: the task's name.
        files: the local files, read in this order; empty to ask the hub.
        hub: the same rows on the hub, such as `openai/gsm8k:main/train`.
        wanted: the files that were looked for, as glob patterns, for messages.
    """

    task: str
    files: tuple[Path, ...]
    hub: str = ""
    wanted: tuple[str, ...] = ()

    def fingerprint(self) -> str | None:
        """sha256 of the local files; None for rows from the hub."""
        return (
            sha256("".join(str(fingerprint(path)) for path in self.files).encode()).hexdigest() if self.files else None
        )


def data_folder() -> Path | None:
    """The folder that `CHATWRIGHT_DATA` names, or None where it isn't set."""
    folder = os.environ.get(DATA_VARIABLE)
    return Path(folder).expanduser() if folder else None


def locate(task: str, patterns: Sequence[str], hub: str) -> DataPlace:
    """The files below `CHATWRIGHT_DATA` that match the first pattern that has any, else the hub's rows.

    Args:
        patterns: globs relative to that folder, such as `gsm8k/train[.-]*`.
    """
    folder = data_folder()
    matches = (sorted(filter(file_kind, folder.glob(pattern))) for pattern in patterns if folder)
    files = next(filter(None, matches), [])
    return DataPlace(task, tuple(files), hub, tuple(patterns))


def draw_rows(place: DataPlace, count: int | None, seed: int) -> list[RawRow]:
    """The first `count` rows (None: all) in an order that only the seed and the rows' numbers decide.

    No more than `count` rows are held, however many there are.

    Raises:
        DataError: a row can't be read. UserError: the data set isn't at hand.
    """
    key = f"{place.task}/{place.hub}/{seed}"
    drawn = ((_draw(key, number), number, raw) for number, raw in enumerate(_rows(place)))
    return [raw for _, _, raw in (sorted(drawn) if count is None else heapq.nsmallest(count, drawn))]


def _draw(key: str, number: int) -> bytes:
    """A row's place in the order: the rows with the lowest come first."""
    return blake2b(f"{key}/{number}".encode(), digest_size=8).digest()


def _rows(place: DataPlace) -> Iterator[RawRow]:
    if not place.files:
        try:
            yield from scan_rows(HUB_PREFIX + place.hub)
        except UserError as error:
            raise _not_at_hand(place, error) from error
    for path in place.files:
        for raw in scan_rows(path):
            if raw.error:
                raise raw.error
            yield raw


def _not_at_hand(place: DataPlace, error: UserError) -> UserError:
    folder, wanted = data_folder(), re.sub(r"\[\W+]\*", ".*", " or ".join(place.wanted))
    local = f"{DATA_VARIABLE}={folder} has no {wanted}" if folder else f"{DATA_VARIABLE} isn't set"
    return UserError(
        f"its data set isn't at hand: {local}, and the hub gave nothing ({error.message})",
        place=f"task {place.task}",
        hint=f"set {DATA_VARIABLE} to a folder that has {wanted}; or use the hub's {place.hub}, with "
        "pip install 'chatwright[hf]' and a network (HF_ENDPOINT for a mirror)",
    )
