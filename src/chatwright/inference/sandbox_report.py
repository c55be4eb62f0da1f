"""The sandbox tries to break out of itself, and says what it enforces on this machine.

The claims are the outcome of real attempts (`sandbox_child/escapes.py`), made once a process and method: files, a
listening socket and shared memory are laid out on the host, and a program inside the sandbox reaches for them.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from chatwright.inference.sandbox_memory import can_watch
from chatwright.inference.sandbox_methods import HOST_NAME, Method, SandboxLimits, available, specification
from chatwright.inference.sandbox_process import Ended, run_process

METHODS: tuple[Method, ...] = ("bubblewrap", "namespaces")
"""The isolating methods, the preferred one first."""

_ESCAPES = Path(__file__).parent / "sandbox_child" / "escapes.py"


class Claim(NamedTuple):
    """What one attempt is about.

    Args:
        words: what holds if the attempt fails.
        required: untrusted code doesn't run where this doesn't hold.
    """

    words: str
    required: bool = True


CLAIMS: dict[str, Claim] = {
    "read_host_file": Claim("the host's files can't be read, but for Python and the system's libraries"),
    "write_outside": Claim("nothing can be written outside /tmp and /dev/shm, both private and in memory"),
    "see_processes": Claim("no process of the host can be seen or signalled"),
    "reach_network": Claim("no network, not even this machine's own"),
    "reach_shared_memory": Claim("the host's shared memory and queues can't be reached"),
    "see_name": Claim("the host's name isn't known"),
    "be_root": Claim("the user is unprivileged and has no capabilities"),
    "gain_privileges": Claim("no program gives new privileges"),
    "pass_filter": Claim("a filter refuses dangerous system calls"),
    "see_environment": Claim("no environment variable of the host"),
    "see_descriptors": Claim("no open file of the host"),
    "start_too_many": Claim("processes and threads are bounded"),
    "take_too_much_memory": Claim("each process's memory is bounded"),
    "memory_together": Claim("the memory of all processes together is bounded, looked at every 20 ms", required=False),
    "write_too_much": Claim("the size of files and of /tmp is bounded"),
    "write_too_many": Claim("the number of files in /tmp is bounded", required=False),
    "open_too_many": Claim("open files are bounded"),
    "compute_too_long": Claim("each process's processor time is bounded"),
}
"""Attempt → claim, in the order of the report."""


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What the sandbox enforces on this machine.

    Args:
        method: how it isolates; `none` if it doesn't.
        held: claims that held. broken: claims that didn't, each with what the attempt got hold of.
        problem: why nothing could be tried at all, or None.
    """

    method: Method
    held: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    problem: str | None = None

    @property
    def isolates(self) -> bool:
        """Whether everything held that untrusted code needs."""
        return self.problem is None and not self._required_and_broken()

    def why_not(self) -> str:
        """What keeps this method from isolating, in words."""
        return self.problem or "; ".join(f"not so: {words} ({found})" for words, found in self._required_and_broken())

    def _required_and_broken(self) -> list[tuple[str, str]]:
        needed = {claim.words for claim in CLAIMS.values() if claim.required}
        return [(words, found) for words, found in self.broken if words in needed]


@cache
def probe(method: Method) -> SandboxReport:
    """Try to break out of a sandbox of this kind, once a process."""
    if not available(method):
        missing = "bwrap is not installed" if sys.platform == "linux" else f"there are no namespaces on {sys.platform}"
        return SandboxReport(method, problem=missing)
    return attempt(method)


def attempt(method: Method) -> SandboxReport:
    """Lay out what there is to reach on the host, and have a program of this kind of sandbox reach for it."""
    limits = SandboxLimits()
    program = _ESCAPES.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, _laid_out() as laid:
        inside = "/tmp" if method in METHODS else folder
        spec = specification(method, limits, program, show_value=False, folder=inside)
        given = json.dumps({**laid, "limits": asdict(limits)}).encode()
        try:
            ended = run_process(method, limits, spec, given)
        except OSError as error:
            return SandboxReport(method, problem=f"{error.filename}: {error.strerror}")
    return _read(method, ended)


def _read(method: Method, ended: Ended) -> SandboxReport:
    """What the attempts printed, as claims that held or didn't."""
    if ended.error is not None:
        return SandboxReport(method, problem=ended.error)
    try:
        found: dict[str, str] = json.loads(ended.stdout)
    except ValueError:
        said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
        problem = f"the probe did not end well ({ended.stopped or f'status {ended.exit_code}'})"
        return SandboxReport(method, problem=f"{problem}: {said[-1]}" if said else problem)
    found["memory_together"] = "" if can_watch() else "the kernel doesn't tell a process's children"
    return SandboxReport(
        method,
        held=tuple(claim.words for name, claim in CLAIMS.items() if not found[name]),
        broken=tuple((claim.words, found[name]) for name, claim in CLAIMS.items() if found[name]),
    )


def best_report() -> SandboxReport:
    """Of the first method that isolates; else of the last one, which says why it doesn't."""
    reports = (probe(method) for method in METHODS)
    return next((report for report in reports if report.isolates), probe(METHODS[-1]))


@contextmanager
def _laid_out() -> Iterator[dict[str, Any]]:
    """What the attempts reach for, as long as they run."""
    name, key = f"chatwright-{secrets.token_hex(8)}", secrets.randbelow(2**31 - 1) + 1
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(key, 4096, 0o1666)  # IPC_CREAT, for everyone
    with tempfile.NamedTemporaryFile() as canary, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        os.chmod(canary.name, 0o644)  # noqa: PTH101
        listener.bind("\0" + name)
        listener.listen()
        try:
            yield {
                **{"canary": canary.name, "listener": name, "segment": key, "pid": os.getpid()},
                **{"home": str(Path.home()), "host_name": HOST_NAME},
            }
        finally:
            if segment >= 0:
                libc.shmctl(segment, 0, None)  # IPC_RMID
