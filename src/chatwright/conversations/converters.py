"""Rows to conversations: the registry of formats, detection, and `convert`.

A new format is one function `(row, source, row_index) -> Conversation`, one entry here and one test. Detection needs
nothing more: the format whose converter accepts most of the first rows is the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from chatwright.conversations.custom_json import convert_custom_json
from chatwright.conversations.files import other_delimiter
from chatwright.conversations.glaive_format import convert_glaive
from chatwright.conversations.instruction_formats import (
    convert_dolly,
    convert_question_answer,
    convert_self_instruct,
)
from chatwright.conversations.message_formats import ROLES_HINT, convert_messages, convert_minimind, convert_nanochat
from chatwright.conversations.oasst import convert_oasst, is_flat_message
from chatwright.conversations.other_formats import (
    convert_alpaca,
    convert_dialogue,
    convert_prompt_completion,
    convert_sharegpt,
)
from chatwright.conversations.places import Place, shown
from chatwright.conversations.schema import Conversation
from chatwright.conversations.task_formats import (
    convert_gsm8k,
    convert_humaneval,
    convert_mbpp,
    convert_multiple_choice,
)
from chatwright.errors import DataError

# The order decides between formats that accept equally many rows: the stricter comes first.
CONVERTERS: dict[str, Callable[[Any, str, int], Conversation]] = {
    "messages": convert_messages,
    "custom_json": convert_custom_json,
    "nanochat": convert_nanochat,
    "minimind": convert_minimind,
    "sharegpt": convert_sharegpt,
    "oasst": convert_oasst,
    "glaive": convert_glaive,
    "humaneval": convert_humaneval,
    "mbpp": convert_mbpp,
    "prompt_completion": convert_prompt_completion,
    "alpaca": convert_alpaca,
    "dolly": convert_dolly,
    "self_instruct": convert_self_instruct,
    "multiple_choice": convert_multiple_choice,
    "gsm8k": convert_gsm8k,
    "question_answer": convert_question_answer,
    "dialogue": convert_dialogue,
    "oasst_flat": convert_oasst,
    "oasst_threads": convert_oasst,
}
NAMED_ONLY = ("oasst_flat", "oasst_threads")
"""Formats that are never detected, since they regroup the rows."""

LABEL_FIELDS = ("label", "kto_tag")
"""Fields that say of a whole conversation, by true or false, whether its reply is wanted."""

_LOOK = "chatwright inspect FILE"
_PAIRS = (("chosen", "rejected"), ("pos_resp", "neg_resp"), ("response_0", "response_1"))
_DETECTED = {name: converter for name, converter in CONVERTERS.items() if name not in NAMED_ONLY}
ROWS_TO_DETECT = 64


def convert(row: Any, format: str, source: str, index: int) -> Conversation:
    """The conversation of one row.

    Args:
        row: a dict, or for some formats a list, as read from the source.
        format: a name of `CONVERTERS`.
        source: the file or data set, for messages and for `Conversation.source`.
        index: the row's number there, counted from 0.

    Raises:
        DataError: naming source, row and field; also for an unknown format.
    """
    if format not in CONVERTERS:
        raise DataError(
            f"unknown format {format!r}", source=source, hint=f"valid formats: auto, {', '.join(CONVERTERS)}"
        )
    return CONVERTERS[format](row, source, index)


def detect_format(rows: Sequence[Any], source: str) -> str:
    """The format of rows: the one whose converter accepts most of the first 64.

    Raises:
        DataError: if there are no rows, they are preference pairs, labelled replies or the messages of trees, or no
            converter accepts any; then it lists the rows' fields and why the nearest formats refused.
    """
    sample = list(islice(rows, ROWS_TO_DETECT))
    if not sample:
        raise DataError("there are no rows", source=source, hint="give a source that has rows")
    _refuse_others(sample, source)
    votes = {name: sum(_accepts(name, row, source) for row in sample) for name in _DETECTED}
    best = max(votes, key=lambda name: votes[name])
    if not votes[best]:
        raise _nothing_fits(sample[0], source)
    return "nanochat" if best == "messages" and any(map(_has_python_part, sample)) else best


def are_preferences(rows: Sequence[Any]) -> bool:
    """Whether rows hold pairs of replies, or replies with a verdict."""
    return any(_pair_fields(row) or _verdict(row) for row in rows if isinstance(row, Mapping))


def _pair_fields(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if all(name in row for name in pair)), None)


def _verdict(row: Mapping[str, Any]) -> str | None:
    return next((name for name in LABEL_FIELDS if isinstance(row.get(name), bool)), None)


def _refuse_others(rows: Sequence[Any], source: str) -> None:
    """Stop at rows that would convert to something else than their makers meant."""
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        if pair := _pair_fields(row):
            raise DataError(
                f"these are preference pairs (fields {pair[0]!r} and {pair[1]!r}), not conversations",
                source=source,
                hint=f"add preference: chosen to train on the chosen replies; look at them with {_LOOK}",
            )
        if verdict := _verdict(row):
            raise DataError(
                f"these are labelled replies, good and bad ones (a field {verdict!r} that is true or false), and "
                "training on them as conversations would teach the bad ones too",
                source=source,
                hint=f"add preference: chosen to train on the good ones; look at them with {_LOOK}; to train on all of "
                f"them, name the format: {', '.join(CONVERTERS)}",
            )
        if is_flat_message(row):
            raise DataError(
                "these are single messages of OpenAssistant trees (fields 'message_id', 'parent_id')",
                source=source,
                hint="name the format: oasst_flat for the best thread of each tree, oasst_threads for all threads",
            )


def _accepts(name: str, row: Any, source: str) -> bool:
    try:
        CONVERTERS[name](row, source, 0)
    except DataError:
        return False
    return True


def _has_python_part(row: Any) -> bool:
    """Whether a row has nanochat's typed parts; the converters agree on it, only the name differs."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    return isinstance(messages, list) and any(
        isinstance(part, Mapping) and part.get("type") in ("python", "python_output")
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _nothing_fits(row: Any, source: str) -> DataError:
    fields = f"fields {', '.join(map(repr, row))}" if isinstance(row, Mapping) else f"{type(row).__name__} {shown(row)}"
    reasons = []
    for name, converter in _DETECTED.items():
        try:
            converter(row, source, 0)
        except DataError as error:
            reasons.append((name, error))
    # A format that got as far as a field of the row is nearer than one whose first field is missing.
    near = [(name, error) for name, error in reasons if error.field and _has(row, error.field)]
    why = "".join(f"\n  - {name}: field {error.field!r}: {error.message}" for name, error in near)
    place = Place(source, 0)
    return place.error(
        f"no known format fits these rows; the first has {fields}{why}",
        f"{_nearest_hint(row, near)}name the format yourself ({', '.join(CONVERTERS)}){_text_hint(row)}",
    )


def _has(row: Any, field: str) -> bool:
    return not isinstance(row, Mapping) or row.get(field.split(".")[0]) is not None


def _nearest_hint(row: Any, near: Sequence[tuple[str, DataError]]) -> str:
    """What is most likely meant, before the list of formats."""
    if role := next((error.hint for _, error in near if error.hint and ROLES_HINT in error.hint), None):
        return f"{role}; or "
    if not isinstance(row, Mapping) or not row:
        return ""
    if delimiter := other_delimiter(list(row)):
        return f"the only field holds {delimiter!r}: save the file with commas between its fields; or "
    if len(row) == 1:
        return ""
    fields = dict(zip(("instruction", "output"), map(str, row), strict=False))
    example = ", ".join(f"{ours}: {theirs}" for ours, theirs in fields.items())
    return f"say in a recipe's data entry what each field is called (ours: theirs), as in columns: {{{example}}}; or "


def _text_hint(row: Any) -> str:
    is_text = isinstance(row, str) or (isinstance(row, Mapping) and isinstance(row.get("text"), str))
    return "; format: text trains on the text as it is" if is_text else ""
