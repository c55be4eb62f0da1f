"""Every finding of the fuzzer stays found, and a short run finds nothing new."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import CORPUS, INPUTS, kept, run_round


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_a_kept_finding_stays_mended(path: Path) -> None:
    check, arguments = kept(path)
    check(*arguments)


@pytest.mark.parametrize("kind", INPUTS)
def test_a_short_run_finds_nothing(kind: str) -> None:
    found = run_round(kind, 40)
    assert found is None, found
