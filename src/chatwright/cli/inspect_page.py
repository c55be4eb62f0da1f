"""`chatwright inspect --html`: the page of a recipe's data, with losses where a run exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chatwright.checkpoints.store import list_checkpoints
from chatwright.console import note, out, warn
from chatwright.errors import CheckpointError, ModelError, TemplateError
from chatwright.inspection.page import write_page
from chatwright.inspection.page_data import PageFinding
from chatwright.inspection.page_reports import page_findings, page_matches
from chatwright.recipes.data import RunData, build_planned
from chatwright.recipes.looking import LookedEntry, Wanted, look
from chatwright.recipes.page_records import Choice, ChosenExample, chosen_examples, page_data, with_places
from chatwright.recipes.planning import contamination_account
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.token_losses import BeforeAfter, losses_before_and_after
from chatwright.runtime import start_runtime
from chatwright.templates.overflow import Overflow


def write_inspection(settings: RunSettings, wanted: Wanted, page: str, *, title: str, run: str | None) -> None:
    """Read, plan, compute the losses and write the page.

    Raises:
        UserError: as `build_planned`; or the named run has no checkpoint, or another template.
        OSError: the page can't be written.
    """
    _require_writable(Path(page))
    if settings.overflow is Overflow.ERROR:  # the page shows over-long rows in place of stopping at them
        settings = settings.model_copy(update={"overflow": Overflow.DROP})
    data = build_planned(settings)
    compared = contamination_account(settings, data.contamination, data.ledger)
    if compared.warning:
        warn(compared.warning)
    looked = look(settings, wanted)
    findings = _findings(data, looked)
    shown = Choice(tuple(tuple(entry.shown) for entry in looked), wanted.words)
    choice = with_places(shown, [entry.linted for entry in looked], findings)
    chosen = chosen_examples(settings, data, choice)
    losses = _losses(settings, data, chosen, run)
    matches = page_matches(data.contamination) if data.contamination is not None else None
    write_page(
        page,
        page_data(settings, data, title, choice, chosen=chosen, losses=losses, findings=findings, matches=matches),
    )
    size = Path(page).stat().st_size
    out().print(f"{page}: {len(chosen):,} examples, {size / 1e6:.1f} MB; open it in a browser", markup=False)


def _require_writable(page: Path) -> None:
    """Find a place that can't be written before the work, not behind it; leave it as it was.

    Raises:
        OSError: it can't be written.
    """
    fresh = not page.exists()
    page.open("ab").close()
    if fresh:
        page.unlink()


def _findings(data: RunData, looked: Sequence[LookedEntry]) -> tuple[PageFinding, ...]:
    """What lint finds in each entry, with the entry's own mask policy."""
    return page_findings(entry.lint(data.text.template).to_dict() for entry in looked)


def _losses(settings: RunSettings, data: RunData, chosen: list[ChosenExample], run: str | None) -> BeforeAfter | None:
    """Losses under the named run; or under the run in the recipe's own folder, where there is one that fits."""
    examples = [each.example for each in chosen]
    template = data.text.template
    runtime = start_runtime(settings.train.device, settings.train.threads)
    if run is not None:
        return losses_before_and_after(run, template, examples, runtime)
    if not (Path(settings.out) / "recipe.yaml").is_file() or not list_checkpoints(Path(settings.out)):
        return None
    note(f"the run in {settings.out} is shown, too")
    try:
        return losses_before_and_after(settings.out, template, examples, runtime)
    except (CheckpointError, ModelError, TemplateError) as error:
        warn(f"the page shows no losses: {error.full_text()}")
        return None
