"""The library's door: every public name loads, and the program is five build lines."""

from __future__ import annotations

import subprocess
import sys

import pytest

import chatwright


@pytest.mark.parametrize("name", chatwright.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(chatwright, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = chatwright.nothing


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['chatwright', '--help']\n"
        "from chatwright.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print('LOADED', [m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "selftest" in done.stdout
    assert done.stdout.strip().endswith("LOADED []"), done.stdout[-200:] + done.stderr
