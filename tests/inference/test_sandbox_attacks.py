"""Programs that try to get out of the sandbox, use up the host, or pass for right: none gets out, none hangs.

The attacks stand in `sandbox_attacks.txt`, `sandbox_bombs.txt` and `sandbox_fakes.txt`. Whatever a program says of
itself, the host is looked at after each: files, connections, packets, processes, names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox_suite import TEST, Attack, Host, attacks, host

import chatwright
from chatwright.inference.sandbox import Sandbox, SandboxLimits, sandbox_executor
from chatwright.inference.sandbox_methods import NOBODY, Method, python_needs
from chatwright.inference.sandbox_report import METHODS, probe

ISOLATING = [method for method in METHODS if probe(method).isolates]
SLOW_START = 45.0
"""Seconds that making a sandbox and ending it may take on a busy machine, beyond the program's own."""

LIMITS = SandboxLimits(wall_seconds=60)
SMALL = SandboxLimits(
    wall_seconds=0.6,
    cpu_seconds=1,
    memory_bytes=192 * 2**20,
    processes=8,
    file_bytes=2**20,
    open_files=32,
    temp_bytes=8 * 2**20,
    temp_files=64,
    output_bytes=64 * 2**10,
)
ATTACKS, BOMBS, FAKES = (attacks(f"sandbox_{name}.txt") for name in ("attacks", "bombs", "fakes"))

isolated = pytest.mark.skipif(
    not ISOLATING,
    reason="nothing isolates on this machine: " + "; ".join(f"{m}: {probe(m).why_not()}" for m in METHODS),
)
each_method = pytest.mark.parametrize("method", ISOLATING)


def by_name(attack: Attack) -> str:
    return attack.name


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("host")) as laid_out:
        yield laid_out


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) + len(BOMBS) + len(FAKES) >= 60
    names = [attack.name for attack in (*ATTACKS, *BOMBS, *FAKES)]
    assert len(set(names)) == len(names)


@isolated
@each_method
@pytest.mark.parametrize("attack", ATTACKS, ids=by_name)
def test_nothing_gets_out(attack: Attack, method: Method, target: Host) -> None:
    result = Sandbox(LIMITS, method=method).run(target.program(attack))
    said = f"out would be: {attack.out}\n{result.stdout}{result.stderr}"
    assert "held" in result.stdout or result.reason == "signal", said
    assert "OUT" not in result.stdout, said
    assert target.facts["secret"] not in result.stdout + result.stderr, said
    assert result.reason in ("finished", "exited", "signal"), (result.reason, said)
    assert target.damage() == [], said


@isolated
@each_method
@pytest.mark.parametrize("bomb", BOMBS, ids=by_name)
def test_nothing_is_used_up_and_nothing_hangs(bomb: Attack, method: Method, target: Host) -> None:
    seconds = SMALL.wall_seconds if "time" in bomb.notes else LIMITS.wall_seconds
    result = Sandbox(replace(SMALL, wall_seconds=seconds), method=method).run(target.program(bomb))
    said = f"out would be: {bomb.out}\n{result.stdout[:1000]}{result.stderr[:1000]}"
    assert result.reason in (bomb.notes or ("finished",)), (result.reason, said)
    assert "OUT" not in result.stdout, said
    assert "held" in result.stdout or result.reason != "finished", said
    assert result.seconds < seconds + SLOW_START
    assert len(result.stdout.encode()) <= 4 * SMALL.output_bytes  # a bad byte becomes a character of three
    assert target.damage() == [], said


@isolated
@pytest.mark.parametrize("fake", FAKES, ids=by_name)
def test_no_wrong_reply_passes_its_test(fake: Attack) -> None:
    assert not sandbox_executor(LIMITS)(fake.program + TEST)


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if "outside" in attack.notes], ids=by_name)
def test_the_attacks_work_outside(attack: Attack, tmp_path: Path) -> None:
    """The test of the tests: without a sandbox these get through, and the host's side sees what they did."""
    with host(tmp_path) as target:
        done = subprocess.run(
            [sys.executable, "-c", target.program(attack).replace("/tmp/link", str(tmp_path / "link"))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "OUT" in done.stdout, done.stdout + done.stderr
        if attack.name == "signal a process":
            target.victim.wait(10)
        assert target.damage() or target.facts["secret"] in done.stdout or "The attacks on the sandbox" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_nothing_gets_out_of_an_ordinary_users_sandbox() -> None:
    """Root's sandboxes run as nobody, a user's as that user: the same attacks again, by a user without rights."""
    python = next((path for path in (python_needs().python, "/usr/bin/python3") if _runs_as_nobody(path)), None)
    if python is None:
        pytest.skip("no interpreter of this version that every user may run")
    packages = os.pathsep.join([str(Path(chatwright.__file__).parent.parent), str(Path(pytest.__file__).parent.parent)])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o777)
        done = _pytest_as_nobody(python, folder, packages)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def _pytest_as_nobody(python: str, folder: str, packages: str) -> subprocess.CompletedProcess[str]:
    home = {"HOME": folder, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": packages}
    return subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "nothing or wrong", __file__],
        env={**os.environ, **home},
        cwd=Path(__file__).parent,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )


def _runs_as_nobody(python: str) -> bool:
    code = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    try:
        return subprocess.run([python, "-c", code], user=NOBODY, group=NOBODY, check=False).returncode == 0
    except OSError:
        return False
