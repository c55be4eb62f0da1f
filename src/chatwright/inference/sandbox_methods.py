"""The ways to isolate a process on this machine, and what Python needs to find there.

- `bubblewrap`: where `bwrap` is installed. It makes the namespaces and the root folder.
- `namespaces`: our own launcher does, by the kernel's calls; as root without a user namespace for the outside, else
  within one.
- `none`: no isolation at all, only resource limits; for `allow_unsafe`.

In all of them the same supervisor starts the program with the same limits and the same filter of system calls.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Method = Literal["bubblewrap", "namespaces", "none"]

HOST_NAME = "sandbox"
NOBODY = 65534
"""The user and group inside; the host's, too, where root starts the sandbox."""

_CHILD = Path(__file__).parent / "sandbox_child"
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_PACKAGES = ("site-packages", "dist-packages")  # installed by the user: not for the program to read
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LAUNCH = (
    # the package without its first file, which loads more than a launcher needs
    "import sys; package = type(sys)('chatwright'); package.__path__ = [{folder!r} + '/chatwright']; "
    "sys.modules['chatwright'] = package; from chatwright.inference.sandbox_child.launch import main; {call}"
)
_LAUNCHER_INSIDE = "/launcher"
_SUPERVISOR_KEEPS = ("CAP_SYS_ADMIN",)  # to bound the number of files in /tmp; given up before the program begins
_ROOTS_KEEPS = ("CAP_SETUID", "CAP_SETGID")  # to write the map of users of the program's own namespace


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one run may use.

    Args:
        wall_seconds: from the program's start to the end of all its processes.
        cpu_seconds: of each process.
        memory_bytes: address space of each process, and memory of all of them together (looked at every
            20 milliseconds).
        processes: how many at once, threads counted.
        file_bytes: size of a file. open_files: descriptors of a process.
        temp_bytes, temp_files: what `/tmp` holds, in memory.
        output_bytes: of each of standard output and standard error; more ends the run.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 * 2**20
    processes: int = 16
    file_bytes: int = 16 * 2**20
    open_files: int = 64
    temp_bytes: int = 64 * 2**20
    temp_files: int = 1024
    output_bytes: int = 2**20


@dataclass(frozen=True, slots=True)
class Needs:
    """What of the host is bound in, read-only: `binds` at the same place, without `hidden`; `links` path → target."""

    python: str
    binds: tuple[str, ...]
    hidden: tuple[str, ...]
    links: Mapping[str, str]
    devices: tuple[str, ...]


@cache
def python_needs() -> Needs:
    """The interpreter that this process's environment is made from, its library, and the system's."""
    python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    own = (os.path.dirname(os.path.dirname(os.__file__)), f"{sys.base_exec_prefix}/{sys.platlibdir}")  # noqa: PTH120
    links, binds = {}, {python, "/etc/ld.so.cache"}
    for path in {*_LIBRARIES, *own}:
        binds.add(os.path.realpath(path))
        if path in _LIBRARIES and Path(path).is_symlink():
            links[path] = os.readlink(path)  # noqa: PTH115
    existing = sorted(path for path in binds if Path(path).exists())
    outermost = [path for path in existing if not any(path.startswith(other + "/") for other in existing)]
    packages = (str(found) for path in outermost for kind in _PACKAGES for found in Path(path).glob(f"python*/{kind}"))
    devices = tuple(path for path in _DEVICES if Path(path).exists())
    return Needs(python, tuple(outermost), tuple(sorted(packages)), links, devices)


def available(method: Method) -> bool:
    """Whether the method's tools are here; whether they isolate is for the probe to find out."""
    if sys.platform != "linux":
        return False
    return method == "namespaces" or (method == "bubblewrap" and shutil.which("bwrap") is not None)


def becomes_nobody() -> bool:
    """Whether the program runs as the host's `nobody`: root starts it, and has such a user to become."""
    if os.geteuid() != 0:
        return False
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= NOBODY < first + count for first, _, count in ranges)


def specification(
    method: Method, limits: SandboxLimits, program: str, *, show_value: bool, folder: str, as_main: bool = True
) -> dict[str, Any]:
    """The wishes that the launcher is sent.

    Args:
        folder: where the program begins to run. show_value, as_main: as for `Sandbox.run`.
    """
    needs = python_needs()
    isolated, switch = method != "none", becomes_nobody() if method != "none" else False
    return {
        "method": method,
        "isolated": isolated,
        "nest": method == "namespaces" or (isolated and switch),
        "switch_user": switch,
        "user": NOBODY,
        "host_user": NOBODY if switch else os.geteuid(),
        "host_group": NOBODY if switch else os.getegid(),
        "host_name": HOST_NAME,
        "python": needs.python,
        "driver": (_CHILD / "driver.py").read_text(encoding="utf-8"),
        "program": program,
        "show_value": show_value,
        "as_main": as_main,
        "folder": folder,
        "environment": {"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"},  # equal programs do equal things
        "binds": needs.binds,
        "hidden": needs.hidden,
        "links": needs.links,
        "devices": needs.devices,
        "limits": asdict(limits),
    }


def command(method: Method, limits: SandboxLimits, descriptors: tuple[int, int, int, int]) -> list[str]:
    """The command line that starts the launcher.

    Args:
        descriptors: those of `launch.main`.
    """
    call = f"main{descriptors}"
    python = [python_needs().python, "-I", "-S", "-c"]
    if method == "bubblewrap":
        return [*_bubblewrap(limits), *python, _LAUNCH.format(folder=_LAUNCHER_INSIDE, call=call)]
    return [*python, _LAUNCH.format(folder=str(_CHILD.parent.parent.parent), call=call)]


def _bubblewrap(limits: SandboxLimits) -> list[str]:
    """`bwrap` with the same root folder that `root_folder` builds.

    Its own init is left out (`--as-pid-1`): the supervisor is the first process, and its end is the end of all.
    """
    needs = python_needs()
    made = [shutil.which("bwrap") or "bwrap", "--as-pid-1", "--clearenv", "--chdir", "/", "--cap-drop", "ALL"]
    made += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-cgroup-try"]
    made += ["--unshare-uts", "--hostname", HOST_NAME]
    as_root = becomes_nobody()
    kept = (*_SUPERVISOR_KEEPS, *(_ROOTS_KEEPS if as_root else ()))
    made += [word for name in kept for word in ("--cap-add", name)]
    if not as_root:
        made += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    launcher = f"{_LAUNCHER_INSIDE}/chatwright/inference/sandbox_child"
    places = (*needs.binds, *needs.devices, launcher)
    parents = {str(parent) for path in places for parent in Path(path).parents}
    for path in sorted(parents - {"/"}):  # shortest first; bwrap by itself makes some that only root may enter
        made += ["--perms", "0755", "--dir", path]
    for path in needs.binds:
        made += ["--ro-bind", path, path]
    for path in needs.hidden:
        made += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
    for path, target in needs.links.items():
        made += ["--symlink", target, path]
    for path in needs.devices:
        made += ["--dev-bind", path, path]
    made += ["--ro-bind", str(_CHILD), launcher]
    for path, size in (("/tmp", limits.temp_bytes), ("/dev/shm", limits.temp_bytes // 16)):
        made += ["--perms", "1777", "--size", str(max(size, 4096)), "--tmpfs", path]
    return [*made, "--remount-ro", "/", "--"]
