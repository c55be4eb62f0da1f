"""What the program's own process does before it becomes the program: each step takes something away for good.

Order matters: limits, own session, an own user namespace with an unprivileged user, no capabilities, no new
privileges, no descriptors but the program's five, the filter of system calls last.
"""

from __future__ import annotations

import fcntl
import os
import resource
import sys

from chatwright.inference.sandbox_child import kernel, seccomp

TYPE_CHECKING = False  # the modules below take longer to load than the rest of a sandbox's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_GIVEN, _VERDICT, _REPORT = 3, 4, 5
_SPARE = 16  # descriptors are moved to here and beyond before they get their final numbers


class Descriptors:
    """The child's descriptors: `given` and `verdict` are the program's (3 and 4), `report` closes when it begins.

    `proc` is the host's `/proc`; through `ask` and `answer` the child talks to the supervisor. −1 for none.
    """

    def __init__(self, given: int, verdict: int, report: int, proc: int, ask: int, answer: int) -> None:
        self.given, self.verdict, self.report = given, verdict, report
        self.proc, self.ask, self.answer = proc, ask, answer

    def arranged(self) -> Descriptors:
        """The same, the three lasting ones with their numbers."""
        ours = (self.given, self.verdict, self.report, self.proc, self.ask, self.answer)
        moved = [one if one < 0 else fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _SPARE) for one in ours]
        for source, number, lasting in zip(moved, (_GIVEN, _VERDICT, _REPORT), (True, True, False), strict=False):
            os.dup2(source, number, inheritable=lasting)
        return Descriptors(_GIVEN, _VERDICT, _REPORT, *moved[3:])


def confine(spec: Mapping[str, Any], descriptors: Descriptors) -> None:
    """Take everything away from this process that the program must not have.

    Raises:
        OSError: a step failed; nothing untrusted may run then.
    """
    os.setsid()
    os.umask(0o077)
    linux = sys.platform == "linux"
    if spec["nest"]:
        _enter_user_namespace(descriptors)
    kernel.close_from(_REPORT + 1)
    _set_limits(spec["limits"], count_processes=spec["isolated"])
    if spec["isolated"]:
        if spec["nest"]:
            kernel.forbid_new_capabilities()
            os.setresgid(*[spec["user"]] * 3)
            os.setresuid(*[spec["user"]] * 3)
        kernel.drop_capabilities()
    if linux:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    os.chdir(spec["folder"])
    if linux and seccomp.supported():
        seccomp.install()


def _enter_user_namespace(descriptors: Descriptors) -> None:
    """A user namespace that holds one unprivileged user; the supervisor, who stands outside, writes its map."""
    pid_there = os.readlink("self", dir_fd=descriptors.proc)
    kernel.unshare(kernel.CLONE_NEWUSER)
    os.write(descriptors.ask, pid_there.encode())
    if os.read(descriptors.answer, 1) != b"y":
        raise OSError("the supervisor could not write the map of users")


def write_user_map(spec: Mapping[str, Any], asked: int, answer: int, proc: int) -> None:
    """In the supervisor: let the child's new namespace have the unprivileged user and nobody else.

    Raises:
        OSError: the kernel refused.
    """
    pid = os.read(asked, 16).decode()
    if not pid:
        return  # the child failed before, and reports why
    write_map_files(proc, pid, f"{spec['user']} {spec['host_user']} 1", f"{spec['user']} {spec['host_group']} 1")
    os.write(answer, b"y")


def write_map_files(proc: int, pid: str, users: str, groups: str) -> None:
    """Write the maps of a process's user namespace; extra groups can't be dropped or changed inside from then on."""
    for name, text in (("setgroups", "deny"), ("uid_map", users), ("gid_map", groups)):
        with open(f"{pid}/{name}", "w", opener=lambda path, _: os.open(path, os.O_WRONLY, dir_fd=proc)) as file:
            file.write(text)


def _set_limits(limits: Mapping[str, int], *, count_processes: bool) -> None:
    """Resource limits, soft and hard, never above those in force.

    Processes are counted per user and user namespace (Linux 5.14; before that per user of the whole host), so they
    are bounded only where the namespace is the sandbox's own.
    """
    _set_limit("RLIMIT_CPU", limits["cpu_seconds"], limits["cpu_seconds"] + 1)  # a signal, then the end
    _set_limit("RLIMIT_AS", limits["memory_bytes"])
    _set_limit("RLIMIT_FSIZE", limits["file_bytes"])
    _set_limit("RLIMIT_NOFILE", limits["open_files"])
    _set_limit("RLIMIT_CORE", 1)  # 0 would not keep a crash from the host's dump handler (core(5)); 1 does
    for name in ("RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO"):
        _set_limit(name, 0)
    _set_limit("RLIMIT_SIGPENDING", 128)
    if count_processes:
        _set_limit("RLIMIT_NPROC", limits["processes"])


def _set_limit(name: str, soft: int, hard: int | None = None) -> None:
    kind = getattr(resource, name, None)
    if kind is None:
        return  # this system has no such limit
    ceiling = resource.getrlimit(kind)[1]
    wanted = soft if hard is None else hard
    top = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
    resource.setrlimit(kind, (min(soft, top), top))
