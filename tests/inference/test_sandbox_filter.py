"""The filter of system calls by itself: its numbers against the kernel's headers, its decisions on single calls."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from chatwright.inference.sandbox_child.seccomp import DENIED, ONLY_SELF, Instruction, program

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "x86_64": {
        "read": 0,
        "execve": 59,
        "clone": 56,
        "socket": 41,
        "socketpair": 53,
        "ioctl": 16,
        "setpriority": 141,
        "setrlimit": 160,
        "prlimit64": 302,
    },
    "aarch64": {
        "read": 63,
        "execve": 221,
        "clone": 220,
        "socket": 198,
        "socketpair": 199,
        "ioctl": 29,
        "setpriority": 140,
        "setrlimit": 164,
        "prlimit64": 261,
    },
}
ALLOW, KILL = 0x7FFF0000, 0x80000000
MACHINES = sorted(DENIED)


def refuse(code: int) -> int:
    return 0x00050000 | code


def decide(filter_program: list[Instruction], architecture: int, number: int, *arguments: int) -> int:
    """Run the program as the kernel does, on one call."""
    words = {0: number, 4: architecture}
    for index, argument in enumerate(arguments):
        words |= {16 + 8 * index: argument & 0xFFFFFFFF, 20 + 8 * index: argument >> 32}
    accumulator, place = 0, 0
    while True:
        code, if_true, if_false, operand = filter_program[place]
        place += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = words.get(operand, 0)
            continue
        held = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[code]
        place += if_true if held else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_the_kernels(machine: str) -> None:
    found = [Path(path) for path in HEADERS[machine] if Path(path).exists()]
    if not found:
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    text = found[0].read_text(encoding="utf-8")
    numbers = {name: int(value) for name, value in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    ours = {**DENIED[machine], **ONLY_SELF[machine], **CALLS[machine]}
    checked = [name for name in ours if name in numbers]
    assert len(checked) > 50
    assert {name: ours[name] for name in checked} == {name: numbers[name] for name in checked}


@pytest.mark.parametrize("machine", MACHINES)
def test_dangerous_calls_are_refused_and_others_are_not(machine: str) -> None:
    made, audit, calls = program(machine), AUDIT[machine], CALLS[machine]
    for number in DENIED[machine].values():
        assert decide(made, audit, number) == refuse(errno.EPERM)
    for name in ("read", "execve"):
        assert decide(made, audit, calls[name]) == ALLOW
    assert decide(made, audit, 435) == refuse(errno.ENOSYS)  # clone3


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_they_matter(machine: str) -> None:
    made, audit, calls = program(machine), AUDIT[machine], CALLS[machine]
    thread = 0x3D0F00
    assert decide(made, audit, calls["clone"], thread) == ALLOW
    assert decide(made, audit, calls["clone"], 17) == ALLOW  # fork
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(made, audit, calls["clone"], bit | 17) == refuse(errno.EPERM)
    for call in ("socket", "socketpair"):
        assert decide(made, audit, calls[call], 1, 1) == ALLOW
        for family in (0, 2, 10, 16, 17, 38, 40):
            assert decide(made, audit, calls[call], family, 1) == refuse(errno.EAFNOSUPPORT)
    for number in ONLY_SELF[machine].values():
        assert decide(made, audit, number, 0) == ALLOW
        assert decide(made, audit, number, 1) == refuse(errno.EPERM)
    assert decide(made, audit, calls["setpriority"], 0, 0) == ALLOW
    assert decide(made, audit, calls["setpriority"], 0, 1) == refuse(errno.EPERM)
    assert decide(made, audit, calls["setrlimit"], 7) == ALLOW
    assert decide(made, audit, calls["setrlimit"], 4) == refuse(errno.EPERM)
    assert decide(made, audit, calls["prlimit64"], 0, 7) == ALLOW
    assert decide(made, audit, calls["prlimit64"], 1, 7) == refuse(errno.EPERM)
    assert decide(made, audit, calls["prlimit64"], 0, 4) == refuse(errno.EPERM)
    assert decide(made, audit, calls["ioctl"], 0, 0x5401) == ALLOW
    assert decide(made, audit, calls["ioctl"], 0, 0x5412) == refuse(errno.EPERM)
    assert decide(made, audit, calls["ioctl"], 0, 0x100005412) == refuse(errno.EPERM)  # only the low half counts


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_of_another_architecture_kill(machine: str) -> None:
    made = program(machine)
    assert decide(made, 0x40000003, CALLS[machine]["read"]) == KILL
    if machine == "x86_64":
        assert decide(made, AUDIT[machine], 0x40000000) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernel_would_take_the_program(machine: str) -> None:
    made = program(machine)
    assert len(made) < 4096
    assert all(0 <= if_true < 256 and 0 <= if_false < 256 for _, if_true, if_false, _ in made)
    assert made[-1][0] == 0x06
