"""The attacks on the sandbox, read from text files, and the host that they are aimed at."""

from __future__ import annotations

import ctypes
import os
import platform
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chatwright.inference.sandbox_child.seccomp import DENIED

_HERE = Path(__file__).parent

PREAMBLE = """
import ctypes, errno, mmap, os, resource, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def attempt(function, *arguments):
    try:
        result = function(*arguments)
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        print("held", type(error).__name__, getattr(error, "errno", None), flush=True)
    else:
        print("OUT", getattr(function, "__name__", function), repr(result)[:300], flush=True)

def call(name, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(name), *arguments) if isinstance(name, int) else getattr(libc, name)(*arguments)
    code = ctypes.get_errno()
    print(*(("held", errno.errorcode.get(code, code)) if result == -1 else ("OUT", name, result)), flush=True)

def read(path):
    with open(path, "rb") as file:
        return file.read(4096)

def write(path):
    with open(path, "wb") as file:
        return file.write(b"written from inside")

"""
"""What every attack may use: `attempt` a function of Python's, or `call` one of the C library or the kernel."""

TEST = "\n\ndef check(candidate):\n    assert candidate(1) == 2\n\ncheck(f)\n"
"""What stands behind a reply to be graded, as in HumanEval."""


class Attack(NamedTuple):
    """A program from one of the text files.

    Args:
        name: of the attack. out: what getting out would look like. notes: further words of its heading.
        program: without the preamble.
    """

    name: str
    out: str
    notes: tuple[str, ...]
    program: str


def attacks(file: str) -> list[Attack]:
    """The attacks of a text file: each begins at a heading, `## name | out | notes`, and ends before a blank line."""
    found = []
    for block in ("\n" + (_HERE / file).read_text(encoding="utf-8")).split("\n## ")[1:]:
        heading, _, program = block.partition("\n")
        name, out, notes = [*(field.strip() for field in heading.split("|")), "", ""][:3]
        lines = [line for line in program.splitlines() if not line.startswith("# ")]
        found.append(Attack(name, out, tuple(notes.split()), "\n".join(lines).strip("\n") + "\n"))
    return found


@dataclass(slots=True)
class Host:
    """What there is to reach on the host, and whether something has reached it.

    Args:
        facts: what attacks are told of it, as `H`.
    """

    facts: dict[str, Any]
    folder: Path
    canary: Path
    listeners: tuple[socket.socket, ...]
    packets: socket.socket
    victim: subprocess.Popen[bytes]

    def program(self, attack: Attack) -> str:
        """The whole program, with the host's facts in it."""
        return f"H = {self.facts!r}\n{PREAMBLE}{attack.program}"

    def damage(self) -> list[str]:
        """What has been reached, written, connected, ended or left behind."""
        found = [f"new in the open folder: {path.name}" for path in self.folder.iterdir() if path.name != "socket"]
        if self.canary.read_text(encoding="utf-8") != self.facts["secret"] or self.canary.stat().st_nlink != 1:
            found.append("the canary has changed")
        for listener in self.listeners:
            with suppress(BlockingIOError):
                listener.accept()[0].close()
                found.append(f"a connection to {listener.getsockname()!r}")
        with suppress(BlockingIOError):
            found.append(f"a packet: {self.packets.recv(100)!r}")
        if self.victim.poll() is not None or self._state_of_victim() in "TtZ":
            found.append("the victim is ended or stopped")
        if socket.gethostname() != self.facts["host"]:
            found.append("the host has another name")
        found += [f"{path} exists" for path in ("/escaped", "/usr/lib/escaped") if os.path.lexists(path)]
        return found + [f"process {pid} goes on" for pid in self.marked()]

    def _state_of_victim(self) -> str:
        words = Path(f"/proc/{self.victim.pid}/stat").read_text(encoding="ascii")
        return words.rsplit(")", 1)[1].split()[0]

    def marked(self) -> list[int]:
        """Processes that carry the name which attacks give to what they leave behind."""
        found = []
        for path in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                if path.read_text(encoding="utf-8").strip() == self.facts["marker"]:
                    found.append(int(path.parent.name))
        return found


def _numbers() -> dict[str, int]:
    machine = platform.machine()
    return {**DENIED.get(machine, {}), "clone": 56 if machine == "x86_64" else 220}


@contextmanager
def host(folder: Path) -> Iterator[Host]:
    """Lay out files, listeners, a process and shared memory for the attacks to reach for."""
    secret, marker, key = secrets.token_hex(12), f"m{secrets.token_hex(6)}", secrets.randbelow(2**31 - 1) + 1
    open_folder, canary = folder / "open", folder / "canary"
    open_folder.mkdir()
    for place in (folder, open_folder):
        place.chmod(0o777)
    canary.write_text(secret, encoding="utf-8")
    canary.chmod(0o644)
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(key, 4096, 0o1666)
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        packets = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        packets.bind(("127.0.0.1", 0))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + marker)
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(str(open_folder / "socket"))
        for listener in (abstract, named):
            listener.listen()
        for each in (tcp, packets, abstract, named):
            each.setblocking(False)
        victim = subprocess.Popen(["sleep", "600"], start_new_session=True)
        stack.callback(victim.wait)
        stack.callback(victim.send_signal, signal.SIGKILL)
        stack.callback(libc.shmctl, segment, 0, None)
        facts = {
            **{"canary": str(canary), "open": str(open_folder), "secret": secret, "marker": marker, "segment": key},
            **{"tcp": tcp.getsockname(), "udp": packets.getsockname(), "abstract": marker, "victim": victim.pid},
            **{"home": str(Path.home()), "test": __file__, "project": str(_HERE.parent.parent)},
            **{"host": socket.gethostname(), "disk": canary.stat().st_dev, "nr": _numbers()},
            **{"machine": platform.machine(), "free_port": tcp.getsockname()[1] + 1},
        }
        yield Host(facts, open_folder, canary, (tcp, abstract, named), packets, victim)
