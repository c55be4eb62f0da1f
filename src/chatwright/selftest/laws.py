"""The registry of laws, and how they are run one after the other on a recipe."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatwright.console import progress
from chatwright.errors import UserError
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.selftest.context import Context
from chatwright.selftest.gradients import chunked_loss_law, gradient_laws
from chatwright.selftest.isolation import isolation_law
from chatwright.selftest.masks import labels_law, mask_laws
from chatwright.selftest.outcome import LawOutcome, Status, not_applicable, stopped
from chatwright.selftest.resume import resume_law
from chatwright.selftest.saving import merging_law, saving_laws
from chatwright.selftest.serving import serving_laws

Law = Callable[[Context], list[LawOutcome]]

LAWS: dict[str, Law] = {
    "mask": mask_laws,
    "labels": labels_law,
    "gradients": gradient_laws,
    "chunked loss": chunked_loss_law,
    "isolation": isolation_law,
    "serving": serving_laws,
    "resume": resume_law,
    "saving": saving_laws,
    "merging": merging_law,
}


NEEDS_A_WRITER = ("chunked loss", "isolation", "serving", "saving", "merging")
"""Laws about the logits of a model that writes."""


@dataclass(frozen=True, slots=True)
class SelftestReport:
    """All outcomes.

    Args:
        outcomes: a row a law. seconds: of all of them. sample: what they were checked on, in words.
    """

    outcomes: tuple[LawOutcome, ...]
    seconds: float
    sample: str

    @property
    def passed(self) -> bool:
        """Whether no law is broken."""
        return not self.broken

    @property
    def broken(self) -> list[str]:
        """Names of the broken laws."""
        return [outcome.name for outcome in self.outcomes if outcome.status is Status.BROKEN]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "passed": self.passed,
            "broken": self.broken,
            "waived": [outcome.name for outcome in self.outcomes if outcome.status is Status.WAIVED],
            "seconds": round(self.seconds, 2),
            "sample": self.sample,
            "laws": [outcome.to_dict() for outcome in self.outcomes],
        }


def check_recipe(
    settings: RunSettings, runtime: Runtime, *, full: bool = False, laws: Sequence[str] | None = None
) -> SelftestReport:
    """Check laws on a recipe's own model, template and data.

    Args:
        runtime: one process; several ranks are simulated.
        full: more rows, more splits.
        laws: keys of `LAWS`; None is all of them.

    Raises:
        UserError: started with several ranks, or the recipe's model or data can't be used.
    """
    if runtime.world_size > 1:
        raise UserError(
            "the selftest runs in one process and simulates the ranks itself",
            place=f"{runtime.world_size} ranks",
            hint="start it without torchrun",
        )
    began = time.perf_counter()
    outcomes: list[LawOutcome] = []
    chosen = tuple(LAWS if laws is None else laws)
    with tempfile.TemporaryDirectory(prefix="chatwright-selftest-") as folder:
        context = Context(settings, runtime, Path(folder), full)
        sample = context.sample
        words = (
            f"{len(sample.conversations):,} conversations rendered; {len(sample.members)} examples of "
            f"{sum(sample.lengths)} tokens computed"
        )
        with progress(len(chosen), "checking", "laws") as bar:
            for name in chosen:
                bar.update(bar.done, name)
                outcomes += _outcomes(name, context)
                bar.advance()
    return SelftestReport(tuple(outcomes), time.perf_counter() - began, words)


def _outcomes(name: str, context: Context) -> list[LawOutcome]:
    """A law's outcomes; where the program itself stops (an error of its own, a failed assertion), the law is broken."""
    if context.settings.stage == "reward" and name in NEEDS_A_WRITER:
        reason = "a reward model scores replies and writes none"
        return [not_applicable(name, "what the model writes", reason)]
    try:
        return LAWS[name](context)
    except (UserError, AssertionError, ValueError) as error:
        return [stopped(name, f"{type(error).__name__}: {error}")]
