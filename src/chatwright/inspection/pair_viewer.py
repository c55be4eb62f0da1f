"""Preference data for people: what became of its rows, and pairs with both replies side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chatwright.console import table
from chatwright.conversations.preference_types import LabelledReply, PreferencePair
from chatwright.conversations.preferences import LoadedPreferences
from chatwright.conversations.schema import Message
from chatwright.conversations.sources import skip_places
from chatwright.inspection.viewer import printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

SIDE_BY_SIDE = 100
"""Columns of a terminal from which two replies stand side by side; below, one stands under the other."""
BETTER, WORSE, GIVEN = "green", "red", "dim"


def preference_counts(loaded: LoadedPreferences) -> Table:
    """Every row read, by what became of it, with the reason and where."""
    rows: list[tuple[str, int, str]] = [("read", loaded.num_rows, loaded.format)]
    if loaded.pairs:
        margins = sum(pair.margin is not None for pair in loaded.pairs)
        rows.append(("pairs", len(loaded.pairs), f"{margins:,} with a margin" if margins else ""))
    if loaded.labelled:
        wanted = sum(reply.desirable for reply in loaded.labelled)
        rows += [("wanted replies", wanted, ""), ("unwanted replies", len(loaded.labelled) - wanted, "")]
    for reason, count in Counter(row.reason for row in loaded.dropped).most_common():
        first = next(row.row for row in loaded.dropped if row.reason == reason)
        rows.append(("dropped", count, f"{reason}; first row {first}"))
    places = skip_places(loaded.skipped)
    rows += [("skipped", count, f"bad {field}: {places[field]}") for field, count in loaded.skip_counts.items()]
    return table(None, ("", "rows", ""), rows)


def show_preference(item: PreferencePair | LabelledReply, width: int) -> Group:
    """A pair with its shared prompt above both replies, or a labelled reply.

    Args:
        width: of the terminal, in columns.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if isinstance(item, LabelledReply):
        *prompt, reply = item.conversation.messages
        told, style = ("wanted", BETTER) if item.desirable else ("unwanted", WORSE)
        head = _head(item.conversation.source, item.conversation.row, told)
        return Group(head, _turns(prompt, GIVEN), _side(told, [reply], style), Text())
    margin = f"margin {item.margin:g}" if item.margin is not None else ""
    head = _head(item.source, item.row, margin)
    sides = [_side("chosen", item.chosen, BETTER), _side("rejected", item.rejected, WORSE)]
    if width < SIDE_BY_SIDE:
        return Group(head, _turns(item.prompt, GIVEN), *sides, Text())
    grid = Table.grid(padding=(0, 3), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(*sides)
    return Group(head, _turns(item.prompt, GIVEN), grid, Text())


def _head(source: str, row: int, more: str) -> Text:
    from rich.text import Text

    return Text(f"{printable(source)}, row {row}{f' · {more}' if more else ''}", style="bold")


def _side(name: str, messages: Sequence[Message], style: str) -> Text:
    from rich.text import Text

    return Text(f"── {name} ──\n", style=f"bold {style}").append(_turns(messages, style, name_lone=False))


def _turns(messages: Iterable[Message], style: str, *, name_lone: bool = True) -> Text:
    """Turns with their roles; the one turn of a reply needs none."""
    from rich.text import Text

    messages, text = list(messages), Text()
    for number, message in enumerate(messages):
        if name_lone or len(messages) > 1:
            text.append(f"{message.role}: ", style="bold")
        for part in message.parts:
            mark = "" if part.kind == "text" else f"[{part.kind}{f' {part.tool}' if part.tool else ''}] "
            text.append(printable(mark + part.text), style=style)
        text.append("\n" if number + 1 < len(messages) else "")
    return text
