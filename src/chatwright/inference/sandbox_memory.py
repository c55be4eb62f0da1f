"""How much memory a tree of processes holds, from Linux's `/proc`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_COUNTED = ("RssAnon:", "RssShmem:")  # what the processes made themselves, not the files they have mapped


def can_watch() -> bool:
    """Whether this machine tells a process's children (the kernel's CONFIG_PROC_CHILDREN)."""
    return any(Path("/proc/self/task").glob("*/children"))


def memory_of_tree(pid: int) -> int:
    """Bytes held by the descendants of a process; pages that they share count once for each.

    Processes that end meanwhile count as nothing; a tree that can't be read is empty.
    """
    return sum(_memory_of(child) for child in _descendants(pid))


def _descendants(pid: int) -> Iterator[int]:
    waiting, seen = [pid], {pid}
    while waiting:
        for child in set(_children(waiting.pop())) - seen:
            seen.add(child)
            waiting.append(child)
            yield child


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text(encoding="ascii").split())
    except OSError:
        return found  # gone meanwhile
    return found


def _memory_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_COUNTED))
