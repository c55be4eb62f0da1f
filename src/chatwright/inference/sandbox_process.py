"""One run, seen from the host: start the launcher, feed and read its pipes, watch time, output and memory, end it.

Nothing here trusts what runs: every read is bounded, every wait ends, and when this process dies the sandbox does, too
(its supervisor notices that the lifeline's other end is gone).
"""

from __future__ import annotations

import marshal
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, cast

from chatwright.inference.sandbox_memory import memory_of_tree
from chatwright.inference.sandbox_methods import Method, SandboxLimits, command

_START_SECONDS = 30.0
"""For making the namespaces; the program's own time begins afterwards."""

_GRACE_SECONDS = 2.0
"""From letting the sandbox go to killing it by hand, and from its end to giving up on its pipes."""

WATCH_SECONDS = 0.02
"""How often the memory of all processes is looked at."""

_CHUNK = 65536
_REPORT_BYTES = 65536


@dataclass(slots=True)
class Ended:
    """What the host saw of a run.

    Args:
        stdout, stderr: as far as they were read.
        error: why the program could not be started; None if it was.
        stopped: why the host ended the run: `time`, `output` or `memory`; None if it ended by itself.
        exit_code: of the program, −n for signal n; None if the supervisor reported none.
        finished: the program ran to its last line. cpu_seconds: of its first process.
        seconds: the whole run, start included.
    """

    stdout: bytes
    stderr: bytes
    error: str | None
    stopped: str | None
    exit_code: int | None
    finished: bool
    cpu_seconds: float
    seconds: float


@dataclass(slots=True)
class _Run:
    """The pipes of one run and what came through them.

    Args:
        lifeline: the sandbox lives as long as this descriptor is open.
        deadline: of what is waited for now: the start, the program's end, the last output.
        read: what came through each output so far.
        stopped: why the host let the sandbox go.
        over: the supervisor is gone.
    """

    process: subprocess.Popen[bytes]
    limits: SandboxLimits
    lifeline: int
    deadline: float
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    read: dict[str, bytearray] = field(default_factory=dict)
    stopped: str | None = None
    over: bool = False
    looked: float = 0.0

    def add_input(self, file: IO[bytes], data: bytes) -> None:
        """Write `data` to a pipe as fast as it takes it, then close it."""
        os.set_blocking(file.fileno(), False)
        self.selector.register(file, selectors.EVENT_WRITE, memoryview(data))

    def add_output(self, name: str, file: IO[bytes]) -> None:
        """Read a pipe into `read[name]`."""
        os.set_blocking(file.fileno(), False)
        self.read[name] = bytearray()
        self.selector.register(file, selectors.EVENT_READ, name)

    def stop(self, why: str) -> None:
        """Let go of the sandbox: its supervisor ends, and with it all inside."""
        if self.stopped is None:
            self.stopped = why
            os.close(self.lifeline)
            self._wait_no_longer()

    def pump(self) -> None:
        """Until every output is closed, or the time for that is over."""
        while any(isinstance(key.data, str) for key in self.selector.get_map().values()):
            now = time.monotonic()
            if now >= self.deadline:
                if self.stopped is not None or self.over:
                    return
                self.stop("time")
            for key, _ in self.selector.select(min(WATCH_SECONDS, max(self.deadline - now, 0.0))):
                self._take(key) if isinstance(key.data, str) else self._write(key)
            self._watch()

    def end(self) -> None:
        """Leave nothing behind: no process, no descriptor."""
        self.stop("over")
        try:
            self.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the launcher's session: itself and the supervisor
            self.process.wait()
        for key in list(self.selector.get_map().values()):
            self._close(key)
        self.selector.close()

    def _close(self, key: selectors.SelectorKey) -> None:
        self.selector.unregister(key.fileobj)
        cast(IO[bytes], key.fileobj).close()

    def _write(self, key: selectors.SelectorKey) -> None:
        try:
            sent = os.write(key.fd, key.data[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:  # nobody will read the rest
            sent = len(key.data)
        if sent == len(key.data):
            self._close(key)
        else:
            self.selector.modify(key.fileobj, selectors.EVENT_WRITE, key.data[sent:])

    def _take(self, key: selectors.SelectorKey) -> None:
        data = os.read(key.fd, _CHUNK)
        if not data:
            self._close(key)
            if key.data == "report":
                self.over = True
                self._wait_no_longer()
            return
        bound = _REPORT_BYTES if key.data == "report" else self.limits.output_bytes
        room = bound - len(self.read[key.data])
        self.read[key.data] += data[:room]
        if len(data) > room:
            self.stop("output")
        if key.data == "report" and b"started\n" in data and self.stopped is None:
            self.deadline = time.monotonic() + self.limits.wall_seconds

    def _watch(self) -> None:
        now = time.monotonic()
        if self.stopped is None and now - self.looked >= WATCH_SECONDS:
            self.looked = now
            if memory_of_tree(self.process.pid) > self.limits.memory_bytes:
                self.stop("memory")

    def _wait_no_longer(self) -> None:
        self.deadline = min(self.deadline, time.monotonic() + _GRACE_SECONDS)


def run_process(method: Method, limits: SandboxLimits, spec: Mapping[str, Any], stdin: bytes) -> Ended:
    """Run what `spec` says, by one of the methods, to its end.

    Args:
        spec: made by `specification`. stdin: what the program reads from standard input.
    """
    began = time.monotonic()
    (wishes_read, wishes_write), (report_read, report_write), (life_read, life_write) = (os.pipe() for _ in range(3))
    proc = os.open("/proc", os.O_DIRECTORY) if method == "bubblewrap" else -1
    theirs = [wishes_read, report_write, life_read, proc]
    inherited = [descriptor for descriptor in theirs if descriptor >= 0]
    try:
        process = subprocess.Popen(
            command(method, limits, (wishes_read, report_write, life_read, proc)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            start_new_session=True,
            env={},
            cwd="/",
        )
    except OSError:
        for descriptor in (wishes_write, report_read, life_write):
            os.close(descriptor)
        raise
    finally:
        for descriptor in inherited:
            os.close(descriptor)
    run = _Run(process, limits, life_write, began + _START_SECONDS)
    assert process.stdin and process.stdout and process.stderr
    run.add_input(os.fdopen(wishes_write, "wb", 0), marshal.dumps(dict(spec)))
    run.add_input(process.stdin, stdin)
    for name, file in (
        ("report", os.fdopen(report_read, "rb", 0)),
        ("stdout", process.stdout),
        ("stderr", process.stderr),
    ):
        run.add_output(name, file)
    try:
        run.pump()
        stopped = run.stopped
    finally:
        run.end()
    return _ended(run, stopped, time.monotonic() - began)


def _ended(run: _Run, stopped: str | None, seconds: float) -> Ended:
    lines = run.read["report"].decode("utf-8", "replace").splitlines()
    report = {word: rest for word, _, rest in (line.partition(" ") for line in lines)}
    error = report.get("error")
    if error is None and "started" not in report:
        said = run.read["stderr"].decode("utf-8", "replace").strip().splitlines()
        late = f"did not start within {_START_SECONDS:g} seconds; is the machine overloaded?"
        early = f"the launcher ended early: {said[-1] if said else f'status {run.process.returncode}'}"
        error = late if stopped == "time" else early
    code, cpu_seconds, finished = report["ended"].split() if "ended" in report else (None, "0", "0")
    return Ended(
        stdout=bytes(run.read["stdout"]),
        stderr=bytes(run.read["stderr"]),
        error=error,
        stopped=stopped,
        exit_code=None if code is None else int(code),
        finished=finished == "1",
        cpu_seconds=float(cpu_seconds),
        seconds=seconds,
    )
