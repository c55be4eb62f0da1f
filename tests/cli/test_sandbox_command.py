"""`chatwright sandbox` and `chatwright chat --tools` as a user types them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from chatwright.cli import sandbox as command
from chatwright.cli.main import main
from chatwright.inference import sandbox as sandbox_module
from chatwright.inference.sandbox_report import METHODS, SandboxReport, probe

isolated = pytest.mark.skipif(not any(probe(method).isolates for method in METHODS), reason="nothing isolates here")


class Result(NamedTuple):
    """What a command printed, and its exit status."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "200")

    def typed(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["chatwright", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return Result(int(stop.value.code or 0), printed.out, printed.err)

    return typed


@isolated
def test_the_report_says_what_is_enforced(run) -> None:  # type: ignore[no-untyped-def]
    result = run("sandbox")
    assert result.code == 0
    assert "✓ no network, not even this machine's own" in result.out
    assert "512 MiB of memory" in result.out
    plain = json.loads(run("sandbox", "--json").out)
    assert plain["method"] in METHODS
    assert [report["method"] for report in plain["reports"]] == list(METHODS)


def test_a_machine_that_cant_isolate_says_so(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    report = SandboxReport("namespaces", problem="unshare: Operation not permitted")
    monkeypatch.setattr(command, "probe", lambda method: report)
    monkeypatch.setattr(sandbox_module, "best_report", lambda: report)
    result = run("sandbox")
    assert result.code == command.NOT_ISOLATED
    assert "unshare: Operation not permitted" in result.out and "refused" in result.out
    result = run("sandbox", "-c", "print(1)")
    assert result.code == 2 and result.out == ""
    assert "can't isolate untrusted code" in result.err and "--allow-unsafe-code" in result.err
    result = run("sandbox", "-c", "print(1)", "--allow-unsafe-code")
    assert (result.code, result.out) == (0, "1\n")
    assert "it runs as you" in result.err


@isolated
def test_programs_run_with_clear_statuses(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    program = tmp_path / "program.py"
    program.write_text("import sys\nprint('out')\nprint('err', file=sys.stderr)\n", encoding="utf-8")
    assert run("sandbox", str(program)) == (0, "out\n", "err\n")
    assert run("sandbox", "-", stdin="print(1)").out == "1\n"
    assert run("sandbox", "-c", "print(input())", "--stdin", stdin="hey").out == "hey\n"
    assert "EOFError" in run("sandbox", "-c", "print(input())", stdin="hey").err
    failed = run("sandbox", "-c", "1/0")
    assert failed.code == command.PROGRAM_FAILED and "ZeroDivisionError" in failed.err
    cut = run("sandbox", "-c", "while True: pass", "--seconds", "1", "--json")
    assert cut.code == command.CUT_OFF and json.loads(cut.out)["reason"] in ("time", "cpu")


@isolated
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sandbox", "nowhere.py"), "nowhere.py"),
        (("sandbox", "nowhere.py", "-c", "1"), "a file and -c were given"),
        (("chat", "model", "--prompt", "x", "--tools", "shell"), "no tool 'shell'"),
    ],
)
def test_mistakes_get_one_clear_message(run, arguments: tuple[str, ...], words: str) -> None:  # type: ignore[no-untyped-def]
    result = run(*arguments)
    assert result.code == 2 and words in result.err and "Traceback" not in result.err


def test_a_terminal_is_not_steered() -> None:
    assert command._harmless("a\x1b[2Jb\tc\nd\x9b\x07é") == "a␛[2Jb\tc\nd�␇é"


@isolated
def test_chat_offers_tools_only_to_models_that_can_call_them(run, tiny_model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ask = ("--prompt", "Hi", "--max-new-tokens", "2", "--tools")
    assert run("chat", str(tiny_model), *ask, "none").code == 0
    refused = run("chat", str(tiny_model), *ask, "python")
    assert refused.code == 2 and "has no tool calls" in refused.err and "template.tools: add" in refused.err
