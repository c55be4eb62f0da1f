"""Where rows stand on the page: one anchor a shown example, `#row-SOURCE-N`, and links only to those that are there."""

from __future__ import annotations

from collections.abc import Iterable

from chatwright.inspection.escaping import escape, slug
from chatwright.templates.rendered import ExampleKey


class Anchors:
    """The anchors of the shown examples.

    Args:
        keys: the shown examples in their order; a key that comes again gets an anchor of its own.
    """

    def __init__(self, keys: Iterable[ExampleKey]) -> None:
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

    def link(self, source: str, row: int, words: str) -> str:
        """HTML: a link to the row, or its plain words where it isn't shown."""
        target = self.href(source, row)
        return f'<a href="{target}">{escape(words)}</a>' if target else f"<span>{escape(words)}</span>"
