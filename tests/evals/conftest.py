"""Lets the tests below this folder use the fakes and models of the engine's tests, also when they run alone."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "inference"))
