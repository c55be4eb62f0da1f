"""What a trained model has seen of the evaluations: the contamination marks that its checkpoint carries.

Every table of scores reads them here, so that a score never stands without the mark of its own training data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from chatwright.checkpoints.export import MARKER_NAME
from chatwright.checkpoints.manifest import MANIFEST_NAME, read_manifest
from chatwright.checkpoints.store import latest_checkpoint
from chatwright.errors import CheckpointError


def contamination_of(folder: str | Path) -> dict[str, int]:
    """Evaluation → rows trained on that hold items of it.

    0: the rows were compared with it, and none that holds an item was trained on. Absent: they weren't compared, or
    nobody knows, as of a model that wasn't trained here. The names are those of
    `chatwright.inspection.evaluation_texts.evaluation_name`.

    Args:
        folder: a checkpoint, a run (its newest complete checkpoint), an export, or any other model folder.

    Raises:
        CheckpointError: the manifest or the export's record is damaged.
    """
    return _record(Path(folder)) or {}


def marks_after(began: Path, own: Mapping[str, int]) -> dict[str, int]:
    """The marks of a model that began as the one in the folder `began` and was trained on rows with marks of their own.

    Rows add up. Where the model was trained here before, an evaluation that only one of the two was compared with
    stays only if rows were found: that there are none can't be said of both.
    """
    before = _record(began)
    if before is None:
        return dict(own)
    sums = {name: before.get(name, 0) + own.get(name, 0) for name in sorted({*before, *own})}
    return {name: rows for name, rows in sums.items() if rows or (name in before and name in own)}


def _record(folder: Path) -> dict[str, int] | None:
    """None for a model that wasn't trained here."""
    if (folder / MARKER_NAME).is_file():
        return _of_export(folder / MARKER_NAME)
    found = folder if (folder / MANIFEST_NAME).is_file() else latest_checkpoint(folder, on_skip=lambda message: None)
    return dict(read_manifest(found).contamination) if found is not None else None


def _of_export(marker: Path) -> dict[str, int] | None:
    try:
        record = json.loads(marker.read_bytes())
        if record.get("checkpoint") is None:
            return None
        return {str(name): int(rows) for name, rows in record.get("contamination", {}).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"can't be read: {error}", place=str(marker)) from None
