"""Where rows stand on the page: one anchor a shown example, `#row-SOURCE-N`, and links only to those that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from chatwright.inspection.escaping import escape, slug
from chatwright.templates.rendered import ExampleKey


class Anchors:
    """The anchors of the shown examples.

    Args:
        keys: the shown examples in their order; a key that comes again gets an anchor of its own.
        sources: every source that the page names, besides those of the keys.
    """

    def __init__(self, keys: Sequence[ExampleKey], sources: Iterable[str] = ()) -> None:
        named = {*sources, *(key.source for key in keys)}
        self._tails = Counter(_tail(source) for source in named)
        self._slugs: dict[str, str] = {}
        self._names: list[str] = []
        self._first: dict[ExampleKey, str] = {}
        taken: set[str] = set()
        for key in keys:
            name = base = f"row-{self._slug(key.source)}-{key.row}" + (f"-part-{key.part}" if key.part else "")
            again = 2
            while name in taken:
                name, again = f"{base}-again-{again}", again + 1
            taken.add(name)
            self._names.append(name)
            self._first.setdefault(key, name)
            self._first.setdefault(key._replace(part=-1), name)

    def _slug(self, source: str) -> str:
        """A name of its own for every source, since two folders may hold files of one name."""
        if source not in self._slugs:
            made = base = slug(source)
            again = 2
            while made in self._slugs.values():
                made, again = f"{base}-{again}", again + 1
            self._slugs[source] = made
        return self._slugs[source]

    def name(self, number: int) -> str:
        """The anchor of the shown example `number`."""
        return self._names[number]

    def href(self, source: str, row: int, part: int | None = None) -> str | None:
        """`#row-…` of a row (or of one part of it), None where it isn't shown."""
        found = self._first.get(ExampleKey(source, row, -1 if part is None else part))
        return f"#{found}" if found else None

    def short(self, source: str) -> str:
        """A source's name to read: the last piece of its path, the whole where two sources end alike."""
        tail = _tail(source)
        return tail if self._tails[tail] < 2 else source

    def named(self, source: str) -> str:
        """HTML: the short name, the whole one to be seen by hovering."""
        return f'<span title="{escape(source)}">{escape(self.short(source))}</span>'

    def link(self, source: str, row: int, part: int | None = None) -> str:
        """HTML: a link to the row (or one part of it), or its plain name where it isn't shown."""
        words = escape(f"{self.short(source)} row {row:,}" + (f" part {part}" if part else ""))
        target = self.href(source, row, part)
        if target:
            return f'<a href="{target}" title="{escape(source)}">{words}</a>'
        return f'<span title="{escape(source)}">{words}</span>'


def _tail(source: str) -> str:
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2] or source
