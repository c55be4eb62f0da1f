"""The entrance of a sandbox's own process: makes the namespaces, and hands over to the supervisor inside.

Run as a program of its own by the host (`python -I -S -c …`), never imported into a process with other work: it
changes what it runs in beyond return. Needs only the standard library and the modules of this folder.
"""

from __future__ import annotations

import marshal
import os
import sys

from chatwright.inference.sandbox_child import confine, kernel, root_folder
from chatwright.inference.sandbox_child.supervise import supervise, tell

TYPE_CHECKING = False  # the modules below take longer to load than the rest of a sandbox's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)  # fmt: skip


def main(wishes: int, report: int, lifeline: int, proc: int) -> None:
    """Read the host's wishes from a pipe and run the program.

    Args:
        wishes, report, lifeline: descriptors of pipes to the host. The wishes are marshalled by the same interpreter.
        proc: descriptor of the host's `/proc`, or −1: the launcher opens it itself.
    """
    with os.fdopen(wishes, "rb") as file:
        spec = marshal.load(file)
    child = 0
    try:
        if spec["method"] == "namespaces":
            _leave(spec)
            child = os.fork()
            proc = root_folder.enter(spec) if child == 0 else -1
        elif spec["method"] == "bubblewrap":
            _bound_files(spec)
    except OSError as error:
        tell(report, f"error {error.strerror or error}")
        os._exit(1)
    if child == 0:
        supervise(spec, report, lifeline, proc)
        os._exit(0)
    for descriptor in (report, lifeline, 0, 1, 2):
        os.close(descriptor)
    os.waitpid(child, 0)  # the first process inside is gone when all of its namespace are


def _leave(spec: Mapping[str, Any]) -> None:
    """Enter new namespaces: of its own user's where it isn't root, since only a user namespace gives the right to."""
    if spec["switch_user"]:
        os.setgroups([])
        kernel.unshare(_NAMESPACES)
        return
    user, group = os.getuid(), os.getgid()
    kernel.unshare(_NAMESPACES | kernel.CLONE_NEWUSER)
    proc = os.open("/proc", os.O_DIRECTORY | os.O_CLOEXEC)
    confine.write_map_files(proc, "self", f"{user} {user} 1", f"{group} {group} 1")
    os.close(proc)


def _bound_files(spec: Mapping[str, Any]) -> None:
    try:
        root_folder.bound_private_folders(spec["limits"])
    except OSError:  # not allowed everywhere; the probe tells that their number isn't bounded then
        return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
