"""The law of resuming: killed and resumed = never killed, bit for bit."""

from __future__ import annotations

from chatwright.runtime import compute_dtype
from chatwright.selftest.context import Context
from chatwright.selftest.outcome import LawOutcome, judged, waived
from chatwright.selftest.sample import RESUME_STEPS
from chatwright.selftest.short_run import HALF, short_run, whole_run

MEASURED = f"{HALF} steps, checkpoint, resume, {RESUME_STEPS - HALF} steps = {RESUME_STEPS} steps, bit for bit"


def resume_law(context: Context) -> list[LawOutcome]:
    """Weights, moments and losses of the resumed run against those of the whole one, in the recipe's own dtype."""
    whole = whole_run(context)
    resumed = short_run(context, resume=True)
    dtype = str(compute_dtype(context.settings.train.dtype, context.runtime.device)).removeprefix("torch.")
    differing = whole.differing(resumed)
    if resumed.started_at != HALF:
        differing.append(f"it began at step {resumed.started_at}, not at {HALF}")
    detail = f"{len(whole.state)} tensors and {len(resumed.losses)} losses, {dtype} on {context.runtime.device}"
    if differing:
        again = whole.differing(short_run(context, name="again"))
        if again:
            reason = f"two equal runs without any break differ on this device already ({len(again)} tensors; {dtype})"
            return [waived("resume", MEASURED, reason)]
        detail += f"; first: {differing[0]}"
    return [judged("resume", MEASURED, len(differing), "tensors that differ", 0, detail)]
