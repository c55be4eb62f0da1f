"""Other systems' files are converted once, into a folder of the cache that is either whole or not there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from chatwright.errors import ModelError

ORIGIN_NAME = "chatwright_origin.json"
"""What a converted folder was made of; written last, so that it marks the folder as whole."""


def is_converted(folder: Path) -> bool:
    """Whether the folder holds a whole conversion."""
    return (folder / ORIGIN_NAME).is_file()


def convert_once(folder: Path, source: Path, write: Callable[[Path], None], name: str | None = None) -> Path:
    """Write a folder aside and rename it, with one line to the user; what another process has made stays.

    Args:
        folder: where it goes, named by its content. source: the file it's made of. name: of it, as it is told.
        write: fills the folder that it is given, `ORIGIN_NAME` included.

    Raises:
        ModelError: the folder can't be written; and what `write` raises.
    """
    size = f"{source.stat().st_size / 1e6:,.0f} MB"
    print(f"converting {name or source.name} ({size}), once, into {folder}", file=sys.stderr)
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        write(aside)
        if not is_converted(folder):  # another process may have made it meanwhile
            aside.rename(folder)
    except OSError as error:
        if is_converted(folder):  # another rank was quicker by a moment
            return folder
        message = f"can't be converted into {folder}: {error}"
        raise ModelError(message, place=str(source), hint="set CHATWRIGHT_CACHE to a folder with space") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
