"""A filter of system calls: a small BPF program that the kernel runs before each call (seccomp(2)).

It refuses what a Python program has no use for and what past escapes went through: other processes' memory, mounts,
new namespaces, keys, BPF, io_uring, kernel modules, clocks. It also refuses memory that no process limit counts
(memfd, System V shared memory). Sockets are of the kind `AF_UNIX` or none. x86-64 and 64-bit ARM; calls of
another architecture (32-bit code) kill the process, since their numbers mean something else.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from chatwright.inference.sandbox_child import kernel

_SAME_EVERYWHERE = {
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427},
    **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433},
    **{"pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447},
    **{"set_mempolicy_home_node": 450, "statmount": 457, "listmount": 458},
}

DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
        **{"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308},
        **{"keyctl": 250, "add_key": 248, "request_key": 249},
        **{"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "vmsplice": 278},
        **{"kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163},
        **{"init_module": 175, "finit_module": 313, "delete_module": 176, "create_module": 174},
        **{"quotactl": 179, "syslog": 103, "open_by_handle_at": 304, "name_to_handle_at": 303},
        **{"settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159},
        **{"sethostname": 170, "setdomainname": 171, "vhangup": 153, "personality": 135, "lookup_dcookie": 212},
        **{"iopl": 172, "ioperm": 173, "modify_ldt": 154, "uselib": 134, "nfsservctl": 180},
        **{"sysfs": 139, "_sysctl": 156, "ustat": 136},
        **{"memfd_create": 319, "shmget": 29, "shmat": 30, "shmctl": 31, "shmdt": 67},
        **{"semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220},
        **{"msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241},
        **{"fanotify_init": 300, "fanotify_mark": 301},
        **{"mbind": 237, "set_mempolicy": 238, "migrate_pages": 256, "move_pages": 279},
        **_SAME_EVERYWHERE,
    },
    "aarch64": {
        **{"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272},
        **{"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268},
        **{"keyctl": 219, "add_key": 217, "request_key": 218},
        **{"bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "vmsplice": 75},
        **{"kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89},
        **{"init_module": 105, "finit_module": 273, "delete_module": 106},
        **{"quotactl": 60, "syslog": 116, "open_by_handle_at": 265, "name_to_handle_at": 264},
        **{"settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171},
        **{"sethostname": 161, "setdomainname": 162, "vhangup": 58, "personality": 92, "lookup_dcookie": 18},
        **{"nfsservctl": 42},
        **{"memfd_create": 279, "shmget": 194, "shmat": 196, "shmctl": 195, "shmdt": 197},
        **{"semget": 190, "semop": 193, "semctl": 191, "semtimedop": 192},
        **{"msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "mq_open": 180, "mq_unlink": 181},
        **{"fanotify_init": 262, "fanotify_mark": 263},
        **{"mbind": 235, "set_mempolicy": 237, "migrate_pages": 238, "move_pages": 239},
        **_SAME_EVERYWHERE,
    },
}
"""Refused with EPERM whatever their arguments: machine → name → number (Linux's `unistd.h`)."""


ONLY_SELF: dict[str, dict[str, int]] = {
    "x86_64": {
        **{"sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203},
        **{"sched_setattr": 314},
    },
    "aarch64": {
        **{"sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122},
        **{"sched_setattr": 274},
    },
}
"""Allowed on the caller itself (process 0) alone: the supervisor may be a process of the same user."""


_MACHINES = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "socket": 41,
        "socketpair": 53,
        "ioctl": 16,
        "setpriority": 141,
        "setrlimit": 160,
        "prlimit64": 302,
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "socket": 198,
        "socketpair": 199,
        "ioctl": 29,
        "setpriority": 140,
        "setrlimit": 164,
        "prlimit64": 261,
    },
}
"""AUDIT_ARCH_* of `linux/audit.h`, and the numbers of calls whose arguments matter."""

_CLONE3 = 435
_X32_BIT = 0x40000000
_NEW_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
)  # fmt: skip
_AF_UNIX = 1
_RLIMIT_CORE = 4  # set by `confine` so that a crash leaves nothing on the host
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # put words into a terminal's input

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, operand."""


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known here."""
    return kernel.MACHINE in _MACHINES


def _return(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _argument(index: int) -> Instruction:
    """Load the low half of an argument (both machines are little-endian)."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _if_equal(value: int, body: list[Instruction]) -> list[Instruction]:
    """`body` where the loaded number is `value`; it must return."""
    return [(_EQUAL, 0, len(body), value), *body]


def program(machine: str) -> list[Instruction]:
    """The filter for a machine, `x86_64` or `aarch64`."""
    facts = _MACHINES[machine]
    refuse, allow = _return(_ERROR | errno.EPERM), _return(_ALLOW)
    only_unix = [_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _return(_ERROR | errno.EAFNOSUPPORT), allow]
    made: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, facts["audit"]),
        _return(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        made += [(_AT_LEAST, 0, 1, _X32_BIT), _return(_KILL)]
    for number in DENIED[machine].values():
        made += _if_equal(number, [refuse])
    for number in ONLY_SELF[machine].values():
        made += _if_equal(number, [_argument(0), (_EQUAL, 1, 0, 0), refuse, allow])
    made += _if_equal(facts["setpriority"], [_argument(1), (_EQUAL, 1, 0, 0), refuse, allow])
    made += _if_equal(facts["setrlimit"], [_argument(0), (_EQUAL, 0, 1, _RLIMIT_CORE), refuse, allow])
    other_or_core = [_argument(0), (_EQUAL, 1, 0, 0), refuse, _argument(1), (_EQUAL, 0, 1, _RLIMIT_CORE), refuse, allow]
    made += _if_equal(facts["prlimit64"], other_or_core)
    # The C library falls back to clone, whose flags can be looked at: those of clone3 stand behind a pointer.
    made += _if_equal(_CLONE3, [_return(_ERROR | errno.ENOSYS)])
    made += _if_equal(facts["clone"], [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), refuse, allow])
    made += _if_equal(facts["socket"], only_unix)
    made += _if_equal(facts["socketpair"], only_unix)
    terminal = [_argument(1), *_if_equal(_TIOCSTI, [refuse]), *_if_equal(_TIOCLINUX, [refuse]), allow]
    return [*made, *_if_equal(facts["ioctl"], terminal), allow]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install() -> None:
    """Filter the calls of this process and all it will start; needs no_new_privs. It can't be undone.

    Raises:
        OSError: the kernel has no seccomp filters.
    """
    instructions = program(kernel.MACHINE)
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    whole = _Program(len(instructions), ctypes.addressof(buffer))
    kernel.prctl(kernel.PR_SET_SECCOMP, kernel.SECCOMP_MODE_FILTER, ctypes.addressof(whole))
