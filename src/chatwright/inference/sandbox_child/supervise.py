"""The first process of a sandbox: starts the program, confined; reaps, watches, reports; and ends with it.

It is the init of the sandbox's pid namespace, so its end is the end of every process inside. It holds what the program
can't reach: the descriptor that reports to the host, and the token that tells a program that ran to its last line
from one that ended itself before (`driver`).
"""

from __future__ import annotations

import os
import select
import signal
import sys

from chatwright.inference.sandbox_child import confine, kernel

TYPE_CHECKING = False  # the modules below take longer to load than the rest of a sandbox's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

_TOKEN_BYTES = 32


def supervise(spec: Mapping[str, Any], report: int, lifeline: int, proc: int) -> None:
    """Run the program of `spec` to its end, or until the host lets the lifeline go.

    Args:
        spec: the host's wishes, see `sandbox_methods.specification`.
        report: descriptor of a pipe to the host, for the lines `started`, `error WORDS` and
            `ended STATUS SECONDS 1` (or 0, where the program did not run to its last line).
        lifeline: descriptor of a pipe whose other end the host holds as long as the program may run.
        proc: descriptor of the host's `/proc`, or −1.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux" and not spec["isolated"]:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    wakeup = _wake_on_child_end()
    verdict_read, verdict_write = os.pipe()
    given_read, given_write = os.pipe()
    asked, ask = os.pipe()
    answer, answering = os.pipe()
    os.set_blocking(verdict_read, False)
    child = os.fork()
    if child == 0:
        os.close(given_write)
        _start(spec, confine.Descriptors(given_read, verdict_write, report, proc, ask, answer))
    for descriptor in (ask, answer, given_read, verdict_write):
        os.close(descriptor)
    try:
        _step_back(spec, asked, answering, proc)
    except OSError as error:
        tell(report, f"error the supervisor can't step back: {error.strerror or error}")
        return
    tell(report, "started")
    token = os.urandom(_TOKEN_BYTES).hex()
    _hand_over(given_write, spec, token)
    ended = _wait(child, wakeup, lifeline)
    if ended is not None:
        tell(report, f"ended {ended} {int(_read_some(verdict_read) == token.encode())}")
    if not spec["isolated"]:
        _end_descendants(child)


def tell(report: int, line: str) -> None:
    """Say something to the host."""
    os.write(report, line.replace("\n", " ").encode("utf-8", "replace") + b"\n")


def _step_back(spec: Mapping[str, Any], asked: int, answering: int, proc: int) -> None:
    """Do what needs privileges for the child, then give them up; no process of the same user may look in here."""
    if spec["nest"]:
        confine.write_user_map(spec, asked, answering, proc)
    for descriptor in (asked, answering, proc):
        if descriptor >= 0:
            os.close(descriptor)
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        if spec["isolated"]:
            kernel.drop_capabilities()
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _start(spec: Mapping[str, Any], descriptors: confine.Descriptors) -> NoReturn:
    """In the child: confine it and become the program's interpreter; a failure is reported to the host."""
    descriptors = descriptors.arranged()
    try:
        for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        confine.confine(spec, descriptors)
        arguments = [spec["python"], "-S", "-s", "-P", "-B", "-X", "utf8", "-c", spec["driver"]]
        os.execve(spec["python"], arguments, spec["environment"])
    except OSError as error:
        tell(descriptors.report, f"error the program can't be confined: {error.strerror or error}")
    finally:
        os._exit(125)


def _wake_on_child_end() -> int:
    """A descriptor that becomes readable when a child has ended."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_end


def _hand_over(pipe: int, spec: Mapping[str, Any], token: str) -> None:
    """Give the driver the token and the program. It may die before it has read all."""
    flags = f"{'show' if spec['show_value'] else ''} {'main' if spec['as_main'] else ''}"
    words = f"{token}\n{flags}\n{spec['program']}"
    try:
        with os.fdopen(pipe, "wb") as file:
            file.write(words.encode("utf-8", "surrogatepass"))
    except BrokenPipeError:
        return


def _read_some(pipe: int) -> bytes:
    """What was written to the verdict, no more than a right one is long plus one."""
    try:
        return os.read(pipe, 2 * _TOKEN_BYTES + 1)
    except BlockingIOError:
        return b""


def _wait(child: int, wakeup: int, lifeline: int) -> str | None:
    """The child's status and its processor time in seconds; None if the host let go before. Reaps whatever ends."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    ended = None
    while ended is None:
        if any(descriptor == lifeline for descriptor, _ in poll.poll()):
            return None
        _read_all(wakeup)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child:
                ended = f"{os.waitstatus_to_exitcode(status)} {usage.ru_utime + usage.ru_stime:.3f}"
    return ended


def _read_all(pipe: int) -> None:
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        return


def _end_descendants(child: int) -> None:
    """Without a pid namespace: end the program's process group, and whoever left it and came back to its reaper."""
    children = f"/proc/self/task/{os.getpid()}/children"
    for _ in range(1000):
        try:
            with open(children, encoding="ascii") as file:
                left = [int(pid) for pid in file.read().split()]
        except OSError:
            left = []
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        try:
            os.killpg(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            if not left:
                return
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
