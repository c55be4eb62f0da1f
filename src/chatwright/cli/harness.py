"""`chatwright harness`: lm-evaluation-harness over our engine, by lm-eval's own command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from chatwright.errors import UserError


def run_harness(arguments: Sequence[str]) -> None:
    """Run lm-eval's command; `--model chatwright` is added where no model is named.

    Raises:
        UserError: lm-eval isn't installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        hint = 'pip install "chatwright[harness]"'
        raise UserError("lm-evaluation-harness isn't installed", place="chatwright harness", hint=hint)
    from chatwright.recipes.harness_model import run_lm_eval

    run_lm_eval(arguments)
