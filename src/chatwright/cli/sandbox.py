"""`chatwright sandbox`: what the sandbox enforces on this machine, and programs run in it."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

from chatwright.console import note, out, warn
from chatwright.errors import UserError
from chatwright.inference.sandbox import Sandbox, SandboxLimits, SandboxResult
from chatwright.inference.sandbox_report import METHODS, SandboxReport, probe

PROGRAM_FAILED, NOT_ISOLATED, CUT_OFF = 1, 3, 4
"""Exit statuses: the program failed; this machine can't isolate; the program went beyond a limit."""


def run_sandbox(
    file: str | None, code: str | None, *, pass_stdin: bool, as_json: bool, seconds: float, allow_unsafe: bool
) -> int:
    """Run a program, or print the report.

    Args:
        file: the program's, `-` for standard input. code: the program itself.
        pass_stdin: the program reads this command's standard input; else its own is empty.

    Returns:
        The exit status: 0, or one of those above.
    """
    if file is not None and code is not None:
        raise UserError("a file and -c were given", place="sandbox", hint="give one of them")
    if file is None and code is None:
        return _report(as_json)
    limits = SandboxLimits(wall_seconds=seconds, cpu_seconds=max(1, round(seconds)))
    sandbox = Sandbox(limits, allow_unsafe=allow_unsafe)
    if sandbox.method == "none":
        warn("nothing isolates this program: it runs as you, with your files and network in reach")
    program = code if code is not None else _read(file or "")
    result = sandbox.run(program, stdin=sys.stdin.read() if pass_stdin else "")
    return _show(result, as_json)


def _read(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError("is not UTF-8", place=path, hint="save the program as UTF-8") from None


def _show(result: SandboxResult, as_json: bool) -> int:
    status = 0 if result.ok else PROGRAM_FAILED if result.reason in ("error", "signal") else CUT_OFF
    if as_json:
        names = ("ok", "reason", "exit_code", "seconds", "stdout", "stderr")
        print(json.dumps({name: getattr(result, name) for name in names}, ensure_ascii=False))
        return status
    for stream, text in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
        stream.write(_harmless(text) if stream.isatty() else text)
    if not result.ok:
        note(f"the program ended by {result.reason} after {result.seconds:.2f} s (status {result.exit_code})")
    return status


def _harmless(text: str) -> str:
    """For a terminal: control characters, which could move its cursor or change its title, become visible ones."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) != "Cc":
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 32 else "\ufffd"


def _report(as_json: bool) -> int:
    reports = [probe(method) for method in METHODS]
    chosen = next((report for report in reports if report.isolates), None)
    if as_json:
        method = chosen.method if chosen else None
        print(json.dumps({"method": method, "reports": [_plain(report) for report in reports]}, indent=2))
        return 0 if chosen else NOT_ISOLATED
    for report in reports:
        _print_report(report, report is chosen or chosen is None)
    if chosen is None:
        out().print("untrusted code is refused on this machine", style="bold red")
        return NOT_ISOLATED
    _print_limits(SandboxLimits())
    return 0


def _plain(report: SandboxReport) -> dict[str, object]:
    broken = [{"claim": words, "found": found} for words, found in report.broken]
    return {
        **{"method": report.method, "isolates": report.isolates, "problem": report.problem},
        **{"held": report.held, "broken": broken},
    }


def _print_report(report: SandboxReport, in_full: bool) -> None:
    """Every claim of the method in use, one line of the others."""
    if report.problem is not None:
        out().print(f"{report.method}: not on this machine ({report.problem})", style="dim", markup=False)
    elif not in_full:
        words = "isolates, too" if report.isolates else report.why_not()
        out().print(f"{report.method}: {words}", style="dim", markup=False)
    else:
        out().print(f"{report.method}: tried on this machine", style="bold")
        for words in report.held:
            out().print(f"  ✓ {words}", style="green", markup=False)
        for words, found in report.broken:
            out().print(f"  ✗ not enforced: {words} ({found})", style="yellow", markup=False)


def _print_limits(limits: SandboxLimits) -> None:
    mebibytes = {name: getattr(limits, name) // 2**20 for name in ("memory_bytes", "file_bytes", "temp_bytes")}
    out().print(
        f"limits by default: {limits.wall_seconds:g} s, {limits.cpu_seconds} s of processor time, "
        f"{mebibytes['memory_bytes']} MiB of memory, {limits.processes} processes, files up to "
        f"{mebibytes['file_bytes']} MiB, {limits.temp_files:,} files and {mebibytes['temp_bytes']} MiB in /tmp, "
        f"{limits.open_files} open files, {limits.output_bytes // 2**20} MiB of output",
        soft_wrap=True,
    )
