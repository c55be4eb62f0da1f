"""Per-row columns of an entry: keys and signatures, made with the rows and looked at once all rows are there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from chatwright.conversations.duplicates import content_key, dedup_key, dedup_text, key_array
from chatwright.conversations.filters import ExactDuplicates, NearDuplicates, RowFilters
from chatwright.conversations.minhash import minhash_many
from chatwright.conversations.oasst import TREE_FIELD
from chatwright.conversations.schema import Conversation
from chatwright.templates.rendered import RenderedExample

Columns = Mapping[str, np.ndarray]
"""Arrays by name; row r of each belongs to the r-th row that was rendered."""
CONTENT, EXACT, NEAR, TREE = "content", "exact", "near", "tree"
_HELD_BYTES = 64 << 20
_ROWS_AT_ONCE = 16_384


class RowColumns:
    """Gathers the columns that an entry's duplicate filters and the held-out draw need; nothing where there are none.

    Args:
        compared: rows are told apart by what they say, for the held-out draw.
    """

    def __init__(self, filters: RowFilters, *, compared: bool) -> None:
        self.compared = compared
        self.exact = any(isinstance(each, ExactDuplicates) for each in filters.duplicates)
        self.near = any(isinstance(each, NearDuplicates) for each in filters.duplicates)
        self._parts: dict[str, list[np.ndarray]] = {}
        self._row_of: list[np.ndarray] = []
        self._rows = 0

    def add(self, group: Sequence[Conversation], examples: Sequence[RenderedExample]) -> None:
        """Add a group of rows and the examples that were made of them."""
        if not (self.exact or self.near or self.compared):
            return
        place = {(c.source, c.row): self._rows + index for index, c in enumerate(group)}
        self._row_of.append(np.array([place[e.key.source, e.key.row] for e in examples], dtype=np.int64))
        self._rows += len(group)
        contents = [content_key(c) for c in group] if self.exact or self.compared else []
        if self.compared:
            self._keep(CONTENT, key_array(contents))
            self._keep(TREE, np.array([_tree(c) for c in group], dtype=np.uint64))
        if self.exact:
            self._keep(EXACT, key_array([dedup_key(c, key) for c, key in zip(group, contents, strict=True)]))
        if self.near:
            self._keep(NEAR, minhash_many([dedup_text(conversation) for conversation in group]))

    def _keep(self, name: str, values: np.ndarray) -> None:
        self._parts.setdefault(name, []).append(values)

    def finish(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The columns, and each example's row in them."""
        if not self._row_of:
            return {}, np.empty(0, dtype=np.int64)
        columns = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        return columns, np.concatenate(self._row_of)


def _tree(conversation: Conversation) -> int:
    """A hash of the tree that a thread was cut from; 0 for a row that stands alone."""
    tree = conversation.extra.get(TREE_FIELD)
    if tree is None:
        return 0
    digest = hashlib.blake2b(str(tree).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


@contextmanager
def gathered(
    parts: Sequence[Callable[[], Columns]], name: str, rows: np.ndarray, folder: Path | None
) -> Iterator[np.ndarray]:
    """Chosen rows of one column over all ranges of an entry, as one array.

    Args:
        parts: each gives a range's columns when called. rows: int64, ascending, at least one.
        folder: large columns are written to a file here and memory-mapped; None holds them in memory.

    Raises:
        OSError: `folder` can't be written.
    """
    chunks = _chunks(parts, name, rows)
    first = next(chunks)
    if folder is None or len(rows) * first[0].nbytes <= _HELD_BYTES:
        yield np.concatenate([first, *chunks])
        return
    with TemporaryFile(dir=folder) as file:
        file.write(np.ascontiguousarray(first).data.cast("B"))
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).data.cast("B"))
        file.flush()
        yield np.memmap(file, dtype=first.dtype, mode="r", shape=(len(rows), *first.shape[1:]))


def _chunks(parts: Sequence[Callable[[], Columns]], name: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    first = 0
    for part in parts:
        column = part().get(name)
        if column is None:
            continue
        start, stop = np.searchsorted(rows, [first, first + len(column)])
        for begin in range(start, stop, _ROWS_AT_ONCE):
            yield column[rows[begin : min(begin + _ROWS_AT_ONCE, stop)] - first]
        first += len(column)
