"""What one raw row becomes: a conversation of the entry's format, a document, a pair, or the chosen side of one."""

from __future__ import annotations

from chatwright.conversations.converters import convert
from chatwright.conversations.data_settings import TEXT
from chatwright.conversations.documents import columns_beside, document_conversation, document_of
from chatwright.conversations.files import RawRow
from chatwright.conversations.preference_formats import PREFERENCE_CONVERTERS
from chatwright.conversations.preference_types import Dropped, chosen_conversation, pair_conversation
from chatwright.conversations.schema import Conversation, Document
from chatwright.preparation.work import EntryWork

MOST_CHARACTERS = 4_000_000
"""Text that is held and encoded at a time: documents, unlike conversations, may be whole books."""


def convert_row(row: RawRow, work: EntryWork) -> Conversation | Dropped:
    """The row as the entry's settings ask for it; or why a good row isn't trained on.

    Raises:
        DataError: the row can't be read.
    """
    if row.error:
        raise row.error
    if isinstance(row.value, Conversation):
        return row.value
    field = work.entry.text_field
    if work.format == TEXT:
        return document_conversation(document_of(row, field), columns_beside(row, field))
    if work.entry.preference:
        take = pair_conversation if work.entry.preference == "pairs" else chosen_conversation
        return take(PREFERENCE_CONVERTERS[work.format](row.value, row.source, row.number))
    return convert(row.value, work.format, row.source, row.number)


def cut_of(row: RawRow) -> str | None:
    """What was cut off the file that the row begins, for counting."""
    return row.value.cut if isinstance(row.value, Document) else None


def size_of(row: RawRow | Conversation) -> int:
    """How many characters of plain text a row holds; 0 for what isn't a document."""
    if isinstance(row, Conversation):
        return len(row.messages[0].text) if row.document else 0
    return len(row.value.text) if isinstance(row.value, Document) else 0
