"""The tokens of a recipe: in this machine's cache, in a store that all machines reach, or made now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chatwright.checkpoints.imports import cache_folder
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.cache import read_rendered
from chatwright.preparation.crew import Crew
from chatwright.preparation.remote_cache import RemoteCache
from chatwright.preparation.rows import require_fitting
from chatwright.recipes.pair_settings import overflow_choices
from chatwright.recipes.rendering import data_fingerprint, render_entries
from chatwright.recipes.run_settings import RunSettings
from chatwright.templates.overflow import Overflow
from chatwright.templates.template import Template

Origin = Literal["made", "cache", "store"]


@dataclass(frozen=True, slots=True)
class RecipeTokens:
    """What a recipe's data became.

    Args:
        origin: made now, found in this machine's cache, or fetched from `preparation.store`.
        folder: where they are kept; None where their data has no fingerprint to keep them by.
        seconds: how long it took to find or make them, without the upload.
        uploaded: they are in `preparation.store` now.
    """

    rendered: Rendered
    origin: Origin
    folder: Path | None = None
    seconds: float = 0.0
    uploaded: bool = False


def find_tokens(
    settings: RunSettings,
    template: Template,
    text_folder: Path,
    sources: Mapping[str, Any] | None = None,
    crew: Crew | None = None,
    *,
    upload_found: bool = False,
    lenient: bool = False,
) -> RecipeTokens:
    """The tokens, from where the same data, tokenizer, template and policy were seen before, or made.

    Args:
        text_folder: the tokenizer's files. sources: see `chatwright.recipes.data.build_data`.
        crew: the processes that need them; each machine makes or fetches them once.
        upload_found: put tokens that this machine's cache holds into the store, too.
        lenient: leave examples over `max_tokens` out, whatever `overflow` says: to look at the rest.

    Raises:
        DataError: see `render_entries`; or examples are too long, and `overflow` is `error`. The tokens are kept first.
    """
    began, crew = time.monotonic(), crew or Crew()
    key = None if sources is not None else crew.found_alike(lambda: data_fingerprint(settings, template))
    if key is None:
        rendered = crew.together(lambda: render_entries(settings, template, sources))
        _require_fitting(settings, rendered, lenient)
        return RecipeTokens(rendered, "made", seconds=time.monotonic() - began)
    folder = cache_folder() / "tokens" / key[:32]
    url = settings.preparation.store
    remote = RemoteCache(url, key) if url else None
    origin: Origin = "cache"
    found = read_rendered(folder, key)
    if remote:
        if not crew.machine_has(found is not None):
            origin = "store"
            if crew.is_first:
                remote.fetch(folder)
        crew.meet(set())
        found = found or read_rendered(folder, key)
    if not crew.all_of(found is not None) or found is None:
        origin = "made"
        where = {"text_folder": text_folder, "folder": folder}
        found = render_entries(settings, template, None, **where, key=key, crew=crew)
    _require_fitting(settings, found, lenient)
    seconds, uploaded = time.monotonic() - began, False
    if remote and crew.is_main and folder.is_dir() and (origin == "made" or upload_found):
        uploaded = origin == "store" or remote.upload(folder)
    crew.meet(set())
    return RecipeTokens(found, origin, folder, seconds, uploaded)


def _require_fitting(settings: RunSettings, rendered: Rendered, lenient: bool) -> None:
    """Refuse examples over `max_tokens` where the recipe says so; every process of a crew has the same."""
    if settings.overflow is Overflow.ERROR and not lenient:
        require_fitting(
            (*rendered.entries, *rendered.heldout_entries), settings.max_tokens, overflow_choices(settings.stage)
        )
