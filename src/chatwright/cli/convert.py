"""`chatwright convert`: any source as one file of a named format."""

from __future__ import annotations

from collections.abc import Sequence

from chatwright.console import note, out, progress, warn
from chatwright.conversations.converting import Conversion, convert_files


def run_convert(
    sources: Sequence[str],
    out_file: str,
    to: str,
    file_format: str | None,
    format: str,
    on_bad_row: str,
    lossy: bool,
    force: bool,
) -> None:
    """Write the file, and say what it holds and what it couldn't."""
    with progress(None, "converting") as bar:
        result = convert_files(
            sources,
            out_file,
            to=to,
            file_format=file_format,
            format=format,
            on_bad_row=on_bad_row,
            lossy=lossy,
            force=force,
            watch=lambda result: bar.update(result.read),
        )
    _report(result, out_file, to)


def _report(result: Conversion, out_file: str, to: str) -> None:
    for source, format in result.formats.items():
        note(f"{source}: format {format}")
    if result.changed:
        warn(f"{result.changed:,} rows lost what {to} can't hold:")
    for line in result.lines("changed"):
        note(f"  - {line}")
    if left_out := result.skipped + result.dropped + result.refused:
        warn(f"{left_out:,} rows were left out:")
    for line in result.lines("skipped", "dropped", "refused"):
        note(f"  - {line}")
    out().print(f"wrote {out_file}: {result.written:,} of {result.read:,} rows", markup=False, soft_wrap=True)
