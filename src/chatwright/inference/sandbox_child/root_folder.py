"""The root folder of a sandbox: an empty file system in memory, with only what Python needs bound in, read-only.

Called by the first process of new mount and pid namespaces, who may mount there. Nothing of the host is left to reach
afterwards: the old root is detached, and `/proc` and `/sys` don't exist.
"""

from __future__ import annotations

import os
import posixpath

from chatwright.inference.sandbox_child import kernel

TYPE_CHECKING = False  # the modules below take longer to load than the rest of a sandbox's start
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

_BASE = "/tmp"  # any folder that every machine has: the new root is mounted over it
_OLD = "/old"
_WRITTEN = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}  # how mountinfo writes some characters
_LOCKED = kernel.MS_NOSUID | kernel.MS_NODEV
_OPTIONS = {
    "ro": kernel.MS_RDONLY,
    "nosuid": kernel.MS_NOSUID,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
    "noatime": kernel.MS_NOATIME,
    "nodiratime": kernel.MS_NODIRATIME,
    "relatime": kernel.MS_RELATIME,
}


def enter(spec: Mapping[str, Any]) -> int:
    """Build the root folder, make it the root, and forget the old one.

    Args:
        spec: `binds` (paths of the host, found at the same place), `hidden` (folders in them, to be empty), `links`
            (path → target), `devices`, `limits` (`temp_bytes`, `temp_files`), `host_name`.

    Returns:
        A descriptor of the host's `/proc`: user ids of a new namespace are written there. Close it before anything
        untrusted runs.

    Raises:
        OSError: something can't be mounted; the text says what.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("root", _BASE, "tmpfs", _LOCKED | kernel.MS_NOEXEC, "size=1m,nr_inodes=4096,mode=755")
    os.mkdir(_BASE + _OLD)
    kernel.pivot_root(_BASE, _BASE + _OLD)
    os.chdir("/")
    proc = os.open(_OLD + "/proc", os.O_DIRECTORY | os.O_CLOEXEC)
    for path, target in spec["links"].items():
        os.symlink(target, path)
    _bind_all(spec["binds"], proc)
    for path in spec["hidden"]:
        kernel.mount("hidden", path, "tmpfs", _LOCKED | kernel.MS_RDONLY, "size=4k,nr_inodes=2,mode=555")
    for path in spec["devices"]:
        _bind(path)
        kernel.mount("none", path, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID | kernel.MS_NOEXEC)
    _private_folders(spec["limits"])
    kernel.detach(_OLD)
    os.rmdir(_OLD)
    locked = kernel.MS_RDONLY | kernel.MS_NOEXEC | _LOCKED
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | locked)
    kernel.set_host_name(spec["host_name"])
    return proc


def _bind_all(paths: Sequence[str], proc: int) -> None:
    """Bind files and folders of the host at the same place, all that is mounted below them included, read-only."""
    for path in paths:
        _bind(path)
    for place, flags in _mounts(proc):
        if any(place == path or place.startswith(path + "/") for path in paths):
            changed = flags | kernel.MS_RDONLY | _LOCKED
            kernel.mount("none", place, None, kernel.MS_REMOUNT | kernel.MS_BIND | changed)


def _bind(path: str) -> None:
    source = _OLD + path
    os.makedirs(posixpath.dirname(path), mode=0o755, exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(path, mode=0o755, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, path, None, kernel.MS_BIND | kernel.MS_REC)


def _mounts(proc: int) -> Iterator[tuple[str, int]]:
    """Every mount of this namespace that is to be seen here: its place and the flags it has to keep."""
    with open("self/mountinfo", encoding="utf-8", errors="surrogateescape", opener=_opener(proc)) as lines:
        for line in lines:
            fields = line.split(" ")
            place = fields[4]
            for written, character in _WRITTEN.items():  # the backslash last
                place = place.replace(written, character)
            if place == _OLD or place.startswith(_OLD + "/"):
                continue
            yield place, sum(_OPTIONS.get(option, 0) for option in fields[5].split(","))


def _opener(folder: int) -> Any:
    return lambda path, flags: os.open(path, flags, dir_fd=folder)


def _private_folders(limits: Mapping[str, int]) -> None:
    """`/tmp` and, for Python's multiprocessing, `/dev/shm`: in memory, bounded, gone with the sandbox."""
    for path, data in _bounds(limits):
        os.makedirs(path, exist_ok=True)
        kernel.mount("temporary", path, "tmpfs", _LOCKED | kernel.MS_NOEXEC, f"{data},mode=1777")


def bound_private_folders(limits: Mapping[str, int]) -> None:
    """Bound those that bubblewrap has made: it knows no bound on the number of files.

    Raises:
        OSError: the kernel or a security module doesn't let bubblewrap's children do that.
    """
    for path, data in _bounds(limits):
        kernel.mount("none", path, None, kernel.MS_REMOUNT | _LOCKED | kernel.MS_NOEXEC, data)


def _bounds(limits: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    small = max(limits["temp_bytes"] // 16, 4096)
    return (
        ("/tmp", f"size={limits['temp_bytes']},nr_inodes={limits['temp_files'] + 1}"),
        ("/dev/shm", f"size={small},nr_inodes=65"),
    )
