"""The console: errors, tables and progress, on a terminal and off it; nothing heavy on import."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from chatwright import console
from chatwright.console import ProgressLine, duration, print_error, progress, table
from chatwright.errors import DataError


class Clock:
    """A clock that moves when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_importing_loads_neither_rich_nor_torch():
    code = "import sys, chatwright.console; print([m for m in ('rich', 'torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_goes_to_stderr_as_it_is(capsys):
    place = "/data/" + "long/" * 40 + "chats[1].jsonl"
    print_error(DataError("found [bold]nothing", source=place, row=3, field="messages", hint="add some"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {place}, row 3, field 'messages': found [bold]nothing\n  → add some\n"


def test_a_table_shows_text_without_markup_and_numbers_with_thousands(capsys):
    console.out().print(table("rows", ("name", "count"), [("[red]x", 12345), ("y", None)]))
    shown = capsys.readouterr().out
    assert "[red]x" in shown and "12,345" in shown and "None" not in shown


def test_progress_off_a_terminal_writes_few_lines(capsys):
    clock = Clock()
    line = ProgressLine("training", clock=clock)
    line.start(done=100, total=300)
    for done in range(101, 201):
        clock.now += 0.25
        line.update(done, f"loss {done}")
    line.stop()
    line.stop()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 140/300 steps · 4.0 steps/s · 40 s left · loss 140",
        "training: 180/300 steps · 4.0 steps/s · 30 s left · loss 180",
        "training: 200/300 steps · 4.0 steps/s · 25 s left · loss 200",
    ]


def test_slow_steps_and_unknown_totals_are_told_too(capsys):
    clock = Clock()
    line = ProgressLine("training", clock=clock)
    line.start()
    clock.now = 40
    line.advance(2)
    assert capsys.readouterr().err == "training: 2 steps · 20.0 s each · after 40 s\n"


def test_the_block_form_ends_with_a_line_and_closes_on_errors(capsys):
    with progress(5, "rendering") as bar:
        for _ in range(5):
            bar.advance()
    shown = capsys.readouterr().err
    assert shown.startswith("rendering: 5/5 rows · ") and shown.count("\n") == 1
    with pytest.raises(KeyError), progress(5, "rendering") as bar:
        bar.advance()
        raise KeyError
    assert "rendering: 1/5 rows" in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    screen = io.StringIO()
    fake = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(console, "err", lambda: fake)
    with progress(4, "rendering [x]") as bar:
        bar.advance(4, note="loss [1]")
    assert "rendering [x]" in screen.getvalue() and "4/4" in screen.getvalue() and "loss [1]" in screen.getvalue()
    assert "━" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_notes_and_warnings_go_to_stderr(capsys):
    console.note("resumed [at] step 3")
    console.warn("2 rows skipped")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "resumed [at] step 3\nwarning: 2 rows skipped\n"
