"""The system calls of Linux that the sandbox needs and Python 3.11 doesn't offer, each raising `OSError` by name."""

from __future__ import annotations

import ctypes
import os

MACHINE = os.uname().machine

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 0x20, 0x400, 0x800, 0x1000, 0x4000
MS_PRIVATE, MS_RELATIME, MS_STRICTATIME = 0x40000, 0x200000, 0x1000000
MNT_DETACH = 0x2

PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 4, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NO_ROOT_LOCKED = 0b11  # SECBIT_NOROOT and its lock: being user 0 gives no capability
_CAPABILITY_VERSION_3 = 0x20080522
_HIGHEST_CAPABILITY = 63

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, *arguments: object) -> None:
    """Call a function of the C library.

    Raises:
        OSError: it failed; the text names the call.
    """
    if getattr(_libc, what)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name for new ones."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    try:
        _call("mount", *encoded, ctypes.c_ulong(flags), None if data is None else os.fsencode(data))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({source} on {target})") from None


def detach(target: str) -> None:
    """Unmount a whole tree, busy or not."""
    _call("umount2", os.fsencode(target), MNT_DETACH)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root folder; the old one is found at `put_old`.

    Raises:
        OSError: it failed, or the machine is of a kind whose number of the call isn't known here.
    """
    number = _PIVOT_ROOT.get(MACHINE)
    if number is None:
        raise OSError(f"pivot_root: not known for {MACHINE} machines")
    if _libc.syscall(ctypes.c_long(number), os.fsencode(new_root), os.fsencode(put_old)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"pivot_root: {os.strerror(code)}")


def set_host_name(name: str) -> None:
    """The host name of this UTS namespace."""
    encoded = os.fsencode(name)
    _call("sethostname", encoded, len(encoded))


def prctl(option: int, *arguments: int) -> None:
    """prctl(2) with whole numbers."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    _call("prctl", option, *(ctypes.c_ulong(argument) for argument in padded))


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    highest = os.sysconf("SC_OPEN_MAX")
    close_range = getattr(_libc, "close_range", None)
    if close_range is None or close_range(ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0) != 0:
        os.closerange(first, highest if 0 < highest < 2**20 else 2**20)


def forbid_new_capabilities() -> None:
    """Empty the bounding and ambient sets, so that no program brings capabilities back. Needs CAP_SETPCAP."""
    for capability in range(_HIGHEST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if capability == 0 or error.errno != 22:  # EINVAL: behind the last one that this kernel has
                raise
            break
    prctl(PR_SET_SECUREBITS, _NO_ROOT_LOCKED)


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), ctypes.byref(none))
