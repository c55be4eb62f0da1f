"""`chatwright export`: a clean Hugging Face folder, or the file that another system loads."""

from __future__ import annotations

from collections.abc import Callable

from chatwright.checkpoints.export import ExportReport, export_model
from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.checkpoints.minimind_export import MinimindLayout, export_minimind
from chatwright.checkpoints.nanochat_export import export_nanochat
from chatwright.console import note, out
from chatwright.errors import UserError

Exporter = Callable[[ResolvedModel, str, "str | None", bool, "str | None"], ExportReport]


def _hugging_face(
    model: ResolvedModel, folder: str, dtype: str | None, merge: bool, prefix: str | None
) -> ExportReport:
    if prefix is not None:
        raise UserError("a Hugging Face folder has no prefix", place="--prefix", hint="leave it off, or give --to")
    return export_model(model, folder, dtype=dtype or "bfloat16", merge=merge)


def _minimind(layout: MinimindLayout) -> Exporter:
    def export(model: ResolvedModel, folder: str, dtype: str | None, merge: bool, prefix: str | None) -> ExportReport:
        return export_minimind(model, folder, layout=layout, prefix=prefix, dtype=dtype or "float16", merge=merge)

    return export


def _nanochat(model: ResolvedModel, folder: str, dtype: str | None, merge: bool, prefix: str | None) -> ExportReport:
    return export_nanochat(model, folder, source=prefix, dtype=dtype or "float32", merge=merge)


EXPORTERS: dict[str, Exporter] = {
    "huggingface": _hugging_face,
    "minimind": _minimind("minimind"),
    "minimind-notebook": _minimind("minimind-notebook"),
    "nanochat": _nanochat,
}
"""What `--to` names."""


def run_export(
    model: str, folders: tuple[str | None, str | None], to: str, merge: bool, dtype: str | None, prefix: str | None
) -> None:
    """Export a run, a checkpoint or any model.

    Args:
        folders: the one to write, as the second argument or as -o.

    Raises:
        UserError: no folder is named, or two; or `to` is unknown.
    """
    given = [folder for folder in folders if folder is not None]
    if len(given) != 1:
        message = "no folder to write is named" if not given else "two folders to write are named"
        raise UserError(message, place="export", hint=f"chatwright export {model} -o FOLDER")
    if to not in EXPORTERS:
        raise UserError(f"unknown target {to!r}", place="--to", hint=f"one of {', '.join(EXPORTERS)}")
    report = EXPORTERS[to](resolve_model(model), given[0], dtype, merge, prefix)
    for line in report.lines():
        note(line)
    out().print(f"wrote {given[0]}")
