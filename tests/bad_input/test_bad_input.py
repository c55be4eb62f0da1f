"""Broken inputs through the real command line: one clear message each, status 2, and nothing left behind."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import file_cases
import pytest
import row_cases
import torch
from bad_case import Case

from chatwright.cli.main import main
from tiny_model import make_tiny_model

SECONDS = 8.0
MEGABYTES = 700
CASES = [*file_cases.CASES, *row_cases.CASES]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model for all cases."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """A case that hangs is stopped."""

    def stop(signum: int, frame: FrameType | None) -> None:
        pytest.fail(f"took more than {SECONDS} s")

    torch.set_num_threads(1)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 3 * SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def files_in(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size."""
    return {str(path): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def peak_megabytes() -> float | None:
    """The most memory this process has held since `reset_peak`; None where the system doesn't tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def reset_peak() -> float | None:
    """Begin to measure anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_megabytes()


def test_the_corpus_is_as_large_as_it_says() -> None:
    assert len(CASES) >= 120
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_one_clear_message(
    case: Case, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "model").symlink_to(model)
    case.make(tmp_path)
    before = files_in(tmp_path)
    for command in case.commands:
        monkeypatch.setattr(sys, "argv", ["chatwright", *command])
        base, began = reset_peak(), time.monotonic()
        with pytest.raises(SystemExit) as stop:
            main()
        seconds, peak = time.monotonic() - began, peak_megabytes()
        printed = capsys.readouterr()
        shown = f"{command}: {printed.out[-2000:]}{printed.err[-2000:]}"
        assert stop.value.code == 2, shown
        assert printed.err.count("error:") == 1 or "Usage:" in printed.err, shown
        assert "Traceback" not in printed.err + printed.out, shown
        assert len(printed.err) < 8000, "a message, not a dump"
        for words in case.says:
            assert words in printed.err, f"{words!r} is not in {shown}"
        assert files_in(tmp_path) == before, "nothing may be left behind"
        assert seconds < SECONDS
        assert base is None or peak is None or peak - base < MEGABYTES
