"""The folder of a chain holds a run for each of its stages and is no model itself: which models are in it."""

from __future__ import annotations

import json
from pathlib import Path

from chatwright.checkpoints.store import list_checkpoints

_RECIPE, _RECORD = "chain.yaml", "chain.json"


def chain_hint(folder: Path) -> str | None:
    """Where the models of a chain's folder are, in words; None where the folder isn't a chain's."""
    if not (folder / _RECIPE).is_file():
        return None
    models = ", ".join(map(_shown, _models(folder)))
    if models:
        return f"this is a chain; its models are {models}"
    return f"this is a chain, and no stage of it has saved a model yet: chatwright train {_shown(folder)} --resume"


def _models(folder: Path) -> list[Path]:
    """The runs of a chain that have saved something, in the order in which they were trained."""
    places = _recorded(folder)
    known = {place.name for place in places}
    places += [each for each in sorted(folder.iterdir()) if each.is_dir() and each.name not in known]
    return [place for place in places if list_checkpoints(place)]


def _recorded(folder: Path) -> list[Path]:
    """The stages' folders by the chain's record, in its own folder or taken from another chain's."""
    try:
        stages = json.loads((folder / _RECORD).read_bytes())["stages"]
        places = [(folder / name, Path(each["folder"])) for name, each in stages.items()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # it's told by `chatwright train`
        return []
    return [own if own.is_dir() else there for own, there in places]


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
