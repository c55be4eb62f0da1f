"""Runs untrusted Python: a fresh, isolated process for each program, which is gone with all it made when it ends.

What isolates, and what is enforced on this machine, is found by trying (`sandbox_report`); where a machine can't
isolate, nothing is run unless the caller insists. See docs/sandbox.md for what this does and doesn't protect from.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chatwright.errors import UserError
from chatwright.inference.sandbox_methods import Method, SandboxLimits, specification
from chatwright.inference.sandbox_process import Ended, run_process
from chatwright.inference.sandbox_report import SandboxReport, best_report, probe

Reason = Literal["finished", "exited", "error", "signal", "time", "cpu", "memory", "output"]
"""Why a run ended. `finished`: behind its last line. `exited`: it ended itself before, with status 0. `error`: an
uncaught exception, or another status. `signal`: the kernel or the program itself killed it. `time`, `cpu`, `memory`,
`output`: it went beyond that limit."""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a run went.

    Args:
        ok: it ended by itself with status 0 (`finished` or `exited`).
        stdout, stderr: what it printed, bytes that are no UTF-8 replaced.
        reason: why it ended. exit_code: its status, −n for signal n; None where the run was cut off.
        seconds: from the call to the end.
    """

    ok: bool
    stdout: str
    stderr: str
    reason: Reason
    exit_code: int | None
    seconds: float


class SandboxError(UserError):
    """Untrusted code can't be run here."""


class Sandbox:
    """Runs programs apart from everything; each run begins anew. Safe to use from several threads.

    Args:
        limits: what one run may use.
        method: one isolating method; by default the first that isolates on this machine.
        allow_unsafe: run even where nothing isolates: with limits on resources, but as this user, with this user's
            files and network in reach.

    Raises:
        SandboxError: this machine can't isolate, and `allow_unsafe` isn't set.
    """

    def __init__(
        self, limits: SandboxLimits | None = None, *, method: Method | None = None, allow_unsafe: bool = False
    ) -> None:
        self.limits = limits or SandboxLimits()
        self.report: SandboxReport = best_report() if method is None else probe(method)
        if self.report.isolates:
            self.method = self.report.method
        elif allow_unsafe and sys.platform != "win32":
            self.method = "none"
        else:
            raise refusal(self.report)

    def run(self, program: str, *, stdin: str = "", show_value: bool = False, as_main: bool = True) -> SandboxResult:
        """Run a program to its end or its limits.

        Args:
            program: Python source; it has the standard library only, and runs in an empty folder.
            stdin: what it reads from standard input.
            show_value: print the value of its last line, if that is an expression, as an interactive session does.
            as_main: run it as module `__main__`; else as `program`, so that what it keeps for a run as a script
                (`if __name__ == "__main__":`) isn't run.

        Raises:
            SandboxError: the process could not be started or confined.
        """
        if self.method != "none":
            return self._run(program, stdin, "/tmp", show_value=show_value, as_main=as_main)
        with tempfile.TemporaryDirectory(prefix="chatwright-", ignore_cleanup_errors=True) as folder:
            return self._run(program, stdin, folder, show_value=show_value, as_main=as_main)

    def _run(self, program: str, stdin: str, folder: str, *, show_value: bool, as_main: bool) -> SandboxResult:
        spec = specification(self.method, self.limits, program, show_value=show_value, folder=folder, as_main=as_main)
        try:
            ended = run_process(self.method, self.limits, spec, stdin.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise SandboxError(f"the sandbox can't be started: {error}", place="sandbox") from None
        if ended.error is not None:
            raise SandboxError(
                ended.error, place="sandbox", hint="`chatwright sandbox` shows what works on this machine"
            )
        reason = _reason(ended, self.limits)
        ok = reason in ("finished", "exited")
        stdout, stderr = (text.decode("utf-8", "replace") for text in (ended.stdout, ended.stderr))
        return SandboxResult(ok, stdout, stderr, reason, ended.exit_code, ended.seconds)


def _reason(ended: Ended, limits: SandboxLimits) -> Reason:
    if ended.stopped is not None:
        return ended.stopped  # type: ignore[return-value]
    code = ended.exit_code
    if code == 0:
        return "finished" if ended.finished else "exited"
    if code is not None and code > 0:
        return "error"
    killed = code in (None, -signal.SIGKILL) and ended.cpu_seconds >= limits.cpu_seconds
    return "cpu" if killed or code == -signal.SIGXCPU else "signal"


def refusal(report: SandboxReport) -> SandboxError:
    """The error that says why nothing is run here, and what to do about it."""
    if sys.platform == "linux":
        hint = (
            "install bubblewrap (apt install bubblewrap), or let users make namespaces (user.max_user_namespaces > 0, "
            "kernel.apparmor_restrict_unprivileged_userns = 0; a container needs --security-opt seccomp=unconfined or "
            "--privileged); to run the code as yourself, unprotected: allow_unsafe=True or --allow-unsafe-code"
        )
    elif sys.platform == "win32":
        hint = "use Linux, for example WSL 2"
    else:
        hint = (
            "use Linux, for example in a virtual machine; to run the code as yourself, unprotected: "
            "allow_unsafe=True or --allow-unsafe-code"
        )
    return SandboxError(f"can't isolate untrusted code: {report.why_not()}", place="sandbox", hint=hint)


EXECUTOR_LIMITS = SandboxLimits(wall_seconds=60.0, cpu_seconds=10)
"""For grading: processor time decides, so that a busy machine doesn't; the clock only ends what waits."""


def sandbox_executor(limits: SandboxLimits | None = None, *, allow_unsafe: bool = False) -> Callable[[str], bool]:
    """A `tasks.code_task.Executor`: whether a program with its tests ran to its last line, and ended with status 0.

    A program that ends itself before its tests have run doesn't pass, whatever its status or words. It isn't run as
    `__main__`: a reply's own example run is no part of what is graded.

    Args:
        limits: `EXECUTOR_LIMITS` by default.

    Raises:
        SandboxError: this machine can't isolate, and `allow_unsafe` isn't set.
    """
    sandbox = Sandbox(limits or EXECUTOR_LIMITS, allow_unsafe=allow_unsafe)
    return lambda program: sandbox.run(program, as_main=False).reason == "finished"
