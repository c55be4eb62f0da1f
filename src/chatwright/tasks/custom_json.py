"""Conversations out of a file of your own, in the form of nanochat's CustomJSON: one list of messages a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from chatwright.conversations.converters import convert
from chatwright.conversations.schema import Conversation
from chatwright.errors import UserError
from chatwright.settings import Settings
from chatwright.tasks.data_task import TrainingTask
from chatwright.tasks.task_data import DATA_VARIABLE, DataPlace, data_folder


class CustomJsonOptions(Settings):
    """The file: `path`, from the working folder, else below `CHATWRIGHT_DATA`."""

    path: str = Field(min_length=1)


class CustomJson(TrainingTask[CustomJsonOptions]):
    """A JSON-lines file, each line `[{"role": "user", "content": …}, …]`; to train on only."""

    name = "custom_json"
    options_type: type[Settings] = CustomJsonOptions
    splits: tuple[str, ...] = ("train",)

    def place(self, split: str) -> DataPlace:
        """The file itself.

        Raises:
            UserError: if it is in neither folder.
        """
        folders = [folder for folder in (Path(), data_folder()) if folder is not None]
        for folder in folders:
            path = folder / Path(self.options.path).expanduser()
            if path.is_file():
                return DataPlace(self.name, (path,))
        raise UserError(
            f"there is no file {self.options.path!r} in {' or '.join(str(folder.resolve()) for folder in folders)}",
            place=f"task {self.name}",
            hint='write one conversation a line: [{"role": "user", "content": "…"}, {"role": "assistant", …}]; '
            f"the path counts from the working folder or from {DATA_VARIABLE}",
        )

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A list of messages, user and assistant in turn."""
        return convert(row, "custom_json", source, index)
