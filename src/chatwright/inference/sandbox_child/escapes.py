"""Tries to get out, from inside: the probe's program. Each attempt says what it got hold of, or nothing.

Reads from standard input what the host has laid out for it (a file, a listening socket, a segment of shared memory, its
own process id), and prints what became of each attempt as JSON: name → "" where the sandbox held.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
Laid = Mapping[str, Any]


def read_host_file(laid: Laid) -> str:
    """A file of the host's that only this check knows of, the table of passwords, the home folder."""
    for path in (laid["canary"], "/etc/shadow", "/etc/passwd", os.path.join(laid["home"], ".ssh"), "/proc/1/root/etc"):
        if os.path.lexists(path):
            return f"{path} is there"
    return ""


def write_outside(_: Laid) -> str:
    """New files beside what is bound in."""
    for folder in ("/", "/usr/lib", "/etc", os.path.dirname(os.__file__), os.path.dirname(sys.executable)):
        path = os.path.join(folder, "written")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            os.unlink(path)
        except OSError:
            continue
        return f"wrote {path}"
    return ""


def see_processes(laid: Laid) -> str:
    """The host's process by its number, and the processes that `/proc` lists."""
    listed = [name for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []
    if len(listed) > 3 or os.getppid() != 1:
        return f"sees {len(listed)} processes, parent {os.getppid()}"
    try:
        os.kill(laid["pid"], 0)
    except OSError:
        return ""
    return f"process {laid['pid']} can be signalled" if laid["pid"] > 3 else ""


def reach_network(laid: Laid) -> str:
    """A listener of the host's by its abstract address, and any network by IP."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect("\0" + laid["listener"])
            return "connected to a socket of the host"
        except OSError:
            pass
    for family, address in ((socket.AF_INET, ("192.0.2.1", 9)), (socket.AF_INET6, ("2001:db8::1", 9))):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.connect(address)  # sends nothing: asks for a route
                return "found a route to the network"
        except OSError:
            continue
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()  # a virtual machine's way to its host
    except OSError:
        return ""
    return "made a socket to the machine that this one is run by"


def reach_shared_memory(laid: Laid) -> str:
    """A System V segment of the host's."""
    return "found the host's shared memory" if libc.shmget(laid["segment"], 1, 0) >= 0 else ""


def see_name(laid: Laid) -> str:
    """The host's name."""
    return f"the host name is {os.uname().nodename}" if os.uname().nodename != laid["host_name"] else ""


def be_root(_: Laid) -> str:
    """User 0, and capabilities."""
    words = (ctypes.c_uint32 * 6)()
    libc.capget(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), ctypes.byref(words))
    if any(words) or 0 in (os.getuid(), os.geteuid(), os.getgid()):
        return f"user {os.getuid()}, capabilities {list(words)}"
    return "became user 0" if libc.setuid(0) == 0 else ""


def gain_privileges(_: Laid) -> str:
    """Whether set-user-id programs would work."""
    return "" if libc.prctl(39, 0, 0, 0, 0) == 1 else "new privileges are allowed"  # PR_GET_NO_NEW_PRIVS


def pass_filter(_: Laid) -> str:
    """Calls that the filter refuses."""
    if libc.prctl(21, 0, 0, 0, 0) != 2:  # PR_GET_SECCOMP
        return "there is no filter"
    return "made a user namespace" if libc.unshare(0x10000000) == 0 else ""


def see_environment(_: Laid) -> str:
    """Variables of the host's."""
    foreign = set(os.environ) - {"HOME", "TMPDIR", "PYTHONHASHSEED", "LC_CTYPE"}
    return f"sees {', '.join(sorted(foreign))}" if foreign else ""


def see_descriptors(_: Laid) -> str:
    """Descriptors that were left open: 0, 1, 2 and the verdict's are the program's."""
    found = []
    for number in {3, *range(5, 256)}:
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return f"descriptors {found} are open" if found else ""


def start_too_many(laid: Laid) -> str:
    """More processes than allowed."""
    bound, children = laid["limits"]["processes"], []
    try:
        for _ in range(bound + 1):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        return ""
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"started {len(children)} processes"


def take_too_much_memory(laid: Laid) -> str:
    """One block that is too large."""
    try:
        bytearray(laid["limits"]["memory_bytes"])
    except MemoryError:
        return ""
    return "got more memory than allowed"


def write_too_much(laid: Laid) -> str:
    """A file that is too large, and the room of `/tmp`."""
    limits, path = laid["limits"], os.path.join(os.environ["TMPDIR"], "large")
    with open(path, "wb") as file:
        try:
            os.truncate(file.fileno(), limits["file_bytes"] + 1)
            return "wrote a file that is too large"
        except OSError:
            pass
    os.unlink(path)
    room = os.statvfs(os.environ["TMPDIR"])
    too_much = room.f_blocks * room.f_frsize > limits["temp_bytes"] + 4096
    return f"the temporary folder holds {room.f_blocks * room.f_frsize} bytes" if too_much else ""


def write_too_many(laid: Laid) -> str:
    """How many files `/tmp` takes."""
    count = os.statvfs(os.environ["TMPDIR"]).f_files
    return f"the temporary folder takes {count} files" if count > laid["limits"]["temp_files"] + 1 else ""


def open_too_many(laid: Laid) -> str:
    """More descriptors than allowed."""
    opened: list[int] = []
    try:
        for _ in range(laid["limits"]["open_files"]):
            opened.append(os.dup(0))
    except OSError:
        return ""
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return f"opened {len(opened)} descriptors"


def compute_too_long(laid: Laid) -> str:
    """The bound on processor time, as the kernel tells it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    return "" if 0 <= soft <= laid["limits"]["cpu_seconds"] and hard >= 0 else "processor time has no bound"


ATTEMPTS: tuple[Callable[[Laid], str], ...] = (
    *(read_host_file, write_outside, see_processes, reach_network, reach_shared_memory, see_name),
    *(be_root, gain_privileges, pass_filter, see_environment, see_descriptors),
    *(start_too_many, take_too_much_memory, write_too_much, write_too_many, open_too_many, compute_too_long),
)


def main() -> None:
    """Try everything."""
    laid = json.load(sys.stdin)
    print(json.dumps({attempt.__name__: attempt(laid) for attempt in ATTEMPTS}))


if __name__ == "__main__":
    main()
