"""`chatwright export`: a clean Hugging Face folder."""

from __future__ import annotations

from chatwright.checkpoints.export import export_model
from chatwright.checkpoints.imports import resolve_model
from chatwright.console import note, out


def run_export(model: str, out_folder: str, merge: bool, dtype: str) -> None:
    """Export a run, a checkpoint or any model."""
    report = export_model(resolve_model(model), out_folder, dtype=dtype, merge=merge)
    for line in report.lines():
        note(line)
    out().print(f"wrote {out_folder}")
