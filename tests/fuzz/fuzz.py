"""The fuzzer: `python -m tests.fuzz.fuzz --minutes 20` from the repository's root.

Hypothesis makes the inputs and shrinks what fails; each finding is kept in `corpus/`, which the tests replay.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from checks import CHECKS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from inputs import files, rows

CORPUS = Path(__file__).parent / "corpus"
WORDS = (
    *("model: m\n", "data:\n", "- path: a\n", "  ", "\t", "train: ", "{", "}", "[", "]", "&a ", "*a", "<<: ", ": "),
    *(
        "max_tokens: ",
        "1e999",
        "0x",
        "9" * 5000,
        "2024-99-99",
        "!!int ",
        "!!binary ",
        "null",
        "~",
        "\n",
        "'",
        '"',
        "\0",
    ),
    *(
        "packing: {by: tokens}\n",
        "heldout: {share: ",
        "template: ",
        "optimizer: {learning_rate: ",
        "? ",
        "---\n",
        "|\n",
    ),
)
INPUTS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "row": rows().map(lambda row: (row,)),
    "file": files(),
    "recipe": st.lists(st.sampled_from(WORDS), max_size=12).map(lambda words: ("".join(words),)),
}


def run_round(kind: str, examples: int) -> tuple[tuple[Any, ...], str] | None:
    """Try so many inputs; the smallest that fails with its traceback, or None."""
    last: list[tuple[Any, ...]] = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(INPUTS[kind])
    def attempt(arguments: tuple[Any, ...]) -> None:
        last[:] = [arguments]
        CHECKS[kind](*arguments)

    try:
        attempt()
    except Exception:  # noqa: BLE001  (whatever it is, it is the finding)
        return last[0], traceback.format_exc(limit=-6)
    return None


def keep(kind: str, arguments: tuple[Any, ...]) -> Path:
    """Save a finding for the tests."""
    plain = [base64.b64encode(a).decode() if isinstance(a, bytes) else a for a in arguments]
    text = json.dumps({"kind": kind, "arguments": plain}, indent=1)
    path = CORPUS / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    CORPUS.mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def kept(path: Path) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The check and the input of a kept finding."""
    case = json.loads(path.read_text(encoding="utf-8"))
    arguments = case["arguments"]
    if case["kind"] == "file":
        arguments = [arguments[0], base64.b64decode(arguments[1])]
    return CHECKS[case["kind"]], tuple(arguments)


def main() -> None:
    """Fuzz for some minutes, print and keep what falls out; exit status 1 if something did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--kinds", nargs="+", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--examples", type=int, default=400, help="inputs a round")
    options = parser.parse_args()
    began, tried, findings = time.monotonic(), 0, 0
    while time.monotonic() - began < 60 * options.minutes:
        for kind in options.kinds:
            found = run_round(kind, options.examples)
            tried += options.examples
            if found is not None:
                findings += 1
                print(f"{keep(kind, found[0])}\n{found[1]}", flush=True)
        print(f"{(time.monotonic() - began) / 60:.1f} min, {tried:,} inputs, {findings} findings", flush=True)
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
