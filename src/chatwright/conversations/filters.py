"""Which rows stay: the union of all filter settings, and the filters of one data entry as one question a row.

Row filters are answered here; duplicates need the whole source and are found by `duplicates` with the settings that
`RowFilters.duplicates` hands on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from chatwright.conversations.kinds import KindSettings
from chatwright.conversations.python_filter import PythonFilter
from chatwright.conversations.row_filters import (
    EmptyReplyFilter,
    FieldFilter,
    LanguageFilter,
    LengthFilter,
    PatternFilter,
    RepeatsPromptFilter,
    RepetitionFilter,
    RowFilter,
    SymbolsFilter,
    TruncatedFilter,
)
from chatwright.conversations.schema import Conversation
from chatwright.errors import ConfigError


class ExactDuplicates(KindSettings):
    """Drops rows that repeat an earlier row word for word (whitespace aside); the first stays."""

    kind: Literal["exact_duplicates"] = "exact_duplicates"


class NearDuplicates(KindSettings):
    """Drops rows that share most 5-word shingles with an earlier row that stays; under 8 words only its equals.

    Args:
        threshold: the estimated Jaccard similarity from which two rows are the same.
    """

    kind: Literal["near_duplicates"] = "near_duplicates"
    threshold: float = Field(default=0.8, ge=0.3, le=1)


FilterSettings = Annotated[
    LengthFilter
    | EmptyReplyFilter
    | RepeatsPromptFilter
    | SymbolsFilter
    | RepetitionFilter
    | TruncatedFilter
    | LanguageFilter
    | PatternFilter
    | FieldFilter
    | PythonFilter
    | ExactDuplicates
    | NearDuplicates,
    Field(discriminator="kind"),
]
"""Any filter, told apart by `kind`."""


@dataclass(frozen=True, slots=True)
class RowFilters:
    """The filters of one data entry; can be pickled and sent to worker processes.

    Args:
        rows: the filters that look at one row, in the recipe's order.
        duplicates: those that need the whole source.
    """

    rows: tuple[RowFilter, ...] = ()
    duplicates: tuple[ExactDuplicates | NearDuplicates, ...] = ()

    def reason(self, conversation: Conversation) -> str | None:
        """Why the row goes: the first filter that drops it, `name: words`; None = it stays.

        Raises:
            DataError: a user's function failed on the row.
        """
        for each in self.rows:
            words = each.reason(conversation)
            if words is not None:
                return f"{each.label}: {words}"
        return None


def prepare_filters(settings: Sequence[FilterSettings], place: str = "filters") -> None:
    """Load what filters need.

    Args:
        place: where the settings stand in the recipe, such as `data.0.filters`.

    Raises:
        UserError: see `build_filters`.
    """
    for number, each in enumerate(settings):
        if isinstance(each, RowFilter):
            try:
                each.prepare()
            except ConfigError as error:
                problems = [f"{place}.{number}.{problem}" for problem in error.problems]
                raise ConfigError(problems, source="recipe") from error


def build_filters(settings: Sequence[FilterSettings]) -> RowFilters:
    """The filters of a data entry, ready for the first row.

    Args:
        settings: the entry's `filters`.

    Raises:
        UserError: a library, module, function or language that a filter needs is missing.
    """
    prepare_filters(settings)
    rows = tuple(each for each in settings if isinstance(each, RowFilter))
    return RowFilters(rows, tuple(each for each in settings if isinstance(each, ExactDuplicates | NearDuplicates)))
