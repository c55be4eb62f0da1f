"""One entry of a recipe's `data:` list: where its rows are, how they are read, chosen and mixed."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from chatwright.conversations.converters import CONVERTERS
from chatwright.conversations.files import is_text_file
from chatwright.conversations.filters import FilterSettings
from chatwright.conversations.hub import HUB_PREFIX, HubMode
from chatwright.conversations.preference_formats import PREFERENCE_CONVERTERS
from chatwright.conversations.renames import Renames
from chatwright.conversations.text_settings import problems_of_text
from chatwright.conversations.transforms import TransformSettings
from chatwright.settings import Settings

BadRow = Literal["error", "skip"]
TextUnit = Literal["file", "paragraph", "line"]
TEXT = "text"
"""The format of plain text, whose rows are documents."""
RoleName = Literal["system", "user", "assistant", "tool", "function_call"]
"""Roles that `roles` can name; `function_call` is ShareGPT's for a message that is a call."""


class DataSettings(Settings):
    """One source of training conversations (or of plain text): a `path`, or a built-in `task`.

    Args:
        path: a file, folder or glob, here or at an address (`s3://bucket/*.jsonl`, `https://…`); or a hub data set,
            `hub:owner/name[@revision][:config]/split`.
        hub_mode: `cached` downloads a hub data set whole and keeps it; `streaming` fetches rows as they are read.
        task: name of a built-in task, with its `task_options`. split: which of its disjoint parts.
        format: a name of `CONVERTERS`, or `auto` to detect it from the rows; `text` for plain text, which a path that
            ends in `.txt` is anyway. It is trained whole, between begin- and end-of-text, cut to `max_tokens`.
        text_by: what of a `.txt` file is a document. text_field: where a row's text stands.
        keep_notices: leave Project Gutenberg's notice and licence in a `.txt` file.
        preference: `chosen` takes, of pairs, the prompt and the better reply; of labelled replies, the wanted ones.
            Earlier replies in the prompt are trained as `train_on` says.
            `pairs`, which the stages dpo and reward set by themselves, takes both replies.
            `format` is a name of `PREFERENCE_CONVERTERS` then.
        columns: what the rows call a field that the format reads: `{output: answer}`; null leaves a field unread.
        message_columns: the same for the fields of each message: `{role: speaker, content: text}`.
        roles: what the messages call a role: `{user: [human, prompter]}`.
        on_bad_row: `error` stops at the first bad row; `skip` leaves it out and counts it.
        start: first row to use, from 0; `stop`: the row after the last; `step`: use every step-th row.
        max_rows: at most so many rows, drawn by the run's seed (`stop` takes the first ones).
        epochs: how often the source is seen in one epoch of the mixture.
        weight: the source's share of the mixture in rows, beside the other weights; in place of `epochs`.
        name: what reports call the source; the path or task where not given.
        train_on: a mask policy for this source alone; the template's where not given.
        transforms: changes to each row, in order; see `transforms`.
        filters: which rows stay, asked after the transforms; see `filters`.
    """

    path: str | None = None
    hub_mode: HubMode = "cached"
    task: str | None = None
    task_options: dict[str, Any] = Field(default_factory=dict)
    split: Literal["train", "validation", "dev", "test"] = "train"
    format: str = "auto"
    text_by: TextUnit = "file"
    text_field: str = "text"
    keep_notices: bool = False
    preference: Literal["chosen", "pairs"] | None = None
    columns: dict[str, str | None] = Field(default_factory=dict)
    message_columns: dict[str, str | None] = Field(default_factory=dict)
    roles: dict[RoleName, tuple[str, ...]] = Field(default_factory=dict)
    on_bad_row: BadRow = "error"
    start: int | None = Field(default=None, ge=0)
    stop: int | None = Field(default=None, ge=0)
    step: int = Field(default=1, ge=1)
    max_rows: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=1, ge=1)
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    name: str | None = None
    train_on: Literal["assistant", "last", "everything", "flags"] | None = None
    transforms: tuple[TransformSettings, ...] = ()
    filters: tuple[FilterSettings, ...] = ()

    @property
    def source_name(self) -> str:
        """What reports call this source."""
        return self.name or self.path or self.task or ""

    @property
    def is_text(self) -> bool:
        """Whether it gives documents, not conversations."""
        return self.format == TEXT or (self.format == "auto" and is_text_file(self.path or ""))

    @property
    def renames(self) -> Renames | None:
        """What fields and roles are called in the rows; None where they have our names."""
        if not (self.columns or self.message_columns or self.roles):
            return None
        return Renames(self.columns, self.message_columns, {str(role): names for role, names in self.roles.items()})

    @field_validator("roles", mode="before")
    @classmethod
    def _one_name_or_several(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {role: (names,) if isinstance(names, str) else names for role, names in value.items()}

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        given = [name for name in ("path", "task") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'path' and 'task', found {' and '.join(given) or 'neither'}")
        if self.path == "-":
            raise ValueError("path '-' (standard input) can be read only once; save the rows as a file")
        if self.task_options and not self.task:
            raise ValueError("'task_options' belong to a 'task', found a 'path'")
        if self.split != "train" and not self.task:
            raise ValueError("'split' belongs to a 'task'; a path names its own rows (hub:owner/name/split)")
        if self.hub_mode != "cached" and not (self.path or "").startswith(HUB_PREFIX):
            raise ValueError("'hub_mode' belongs to a hub data set (hub:owner/name/split); addresses always stream")
        if self.task and self.renames:
            raise ValueError("'columns', 'message_columns' and 'roles' belong to a 'path', found a 'task'")
        self._check_format()
        if self.stop is not None and self.stop <= (self.start or 0):
            raise ValueError(f"stop ({self.stop}) must be greater than start ({self.start or 0})")
        if self.weight is not None and self.epochs != 1:
            raise ValueError("give either 'epochs' or 'weight', not both")
        return self

    def _check_format(self) -> None:
        if self.is_text:
            problems = list(problems_of_text(self))
            if problems:
                raise ValueError("; ".join(problems))
            return
        for name in ("text_by", "text_field", "keep_notices"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name!r} belongs to plain text; set format: text, or remove it")
        if self.preference and self.task:
            raise ValueError("'preference' belongs to a 'path', found a 'task'")
        if self.format in PREFERENCE_CONVERTERS and self.format not in CONVERTERS and not self.preference:
            chosen = "add preference: chosen to train on the chosen replies, or set stage: dpo for both"
            raise ValueError(f"{self.format} is preference data; {chosen}")
        known = PREFERENCE_CONVERTERS if self.preference else (*CONVERTERS, TEXT)
        if self.format != "auto" and self.format not in known:
            near = difflib.get_close_matches(self.format, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: auto, {', '.join(known)}"
            raise ValueError(f"unknown format {self.format!r}; {hint}")
