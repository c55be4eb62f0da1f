"""What a file is called wherever its folder lies: what draws about its rows depend on.

So a data set that was moved or copied gives the same random system prompts, held-out rows and row caps.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path, PurePosixPath

from chatwright.conversations.hub import HUB_PREFIX
from chatwright.conversations.stores import LOCAL_SCHEME, is_url

_PATTERN = "*?["


@lru_cache(maxsize=4096)
def lasting_name(source: str, path: str | None) -> str:
    """A row's source, from the entry's folder on: `a.jsonl`, or `part-2/a.jsonl` below a folder or glob.

    Files of one name in different folders of one entry stay different. Sources that don't stand below the entry's
    path (tasks, hub data sets, rows made in memory) have no place that could change: they keep their whole name.

    Args:
        source: a row's source. path: the entry's path, as the recipe has it.
    """
    if path is None or source.startswith(HUB_PREFIX):
        return source
    file = _steps(source)
    entry = _steps(path if is_url(path) else _expanded(path))
    if file == entry and file:
        return file[-1]
    for root in (entry, _before_pattern(entry)):
        if file[: len(root)] == root and len(file) > len(root):
            return "/".join(file[len(root) :])
    return source


def _expanded(path: str) -> str:
    """A local path as `local_files` reads it."""
    try:
        return str(Path(os.path.expandvars(path.removeprefix(LOCAL_SCHEME))).expanduser())
    except RuntimeError:  # no such user's home: reading it says so
        return path


def _steps(source: str) -> tuple[str, ...]:
    """The parts of a path, or of an address without scheme and query."""
    if is_url(source):
        source = source.partition("://")[2].partition("?")[0].lstrip("/")
    elif os.sep != "/":
        source = source.replace(os.sep, "/")
    return PurePosixPath(source).parts


def _before_pattern(steps: tuple[str, ...]) -> tuple[str, ...]:
    """The folder that a glob's matches stand in."""
    plain = [bool(set(_PATTERN) & set(step)) for step in steps]
    return steps[: plain.index(True)] if True in plain else steps
