"""Where tests find the shared data: `CHATWRIGHT_SHARED`, or the folder `shared` beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(path: str) -> Path:
    """The file or folder `path` of the shared data, such as `"data/sft/identity.json"`; skips the test when absent.

    Args:
        path: relative to the shared folder.
    """
    root = os.environ.get("CHATWRIGHT_SHARED") or Path(__file__).resolve().parents[1].parent / "shared"
    found = Path(root) / path
    if not found.exists():
        pytest.skip(f"shared data is absent: {path} (set CHATWRIGHT_SHARED to the folder that holds it)")
    return found
