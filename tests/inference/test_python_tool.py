"""Python as a tool, and which tools are chosen by name."""

from __future__ import annotations

import pytest

from chatwright.errors import UserError
from chatwright.inference.python_tool import python_tool
from chatwright.inference.sandbox import Sandbox, SandboxLimits
from chatwright.inference.sandbox_report import METHODS, probe
from chatwright.inference.tool_choice import choose_tools
from chatwright.inference.tools import ToolBox

isolated = pytest.mark.skipif(not any(probe(method).isolates for method in METHODS), reason="nothing isolates here")


@isolated
@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("print(12 * 12)", "144"),
        ("12 / 60", "0.2"),
        ('{"code": "print(\\"a\\\\nb\\")"}', "a\nb"),
        ("x = 3\nx ** 2", "9"),
        ("x = 3", ""),
        ("import sys\nprint('x')\nsys.exit(0)", "x"),
        ("1 / 0", "error: ZeroDivisionError: division by zero"),
        ("print(", "error: SyntaxError: '(' was never closed"),
        ("import sys\nsys.exit(2)", "error: ended with status 2"),
        ("import os\nos.kill(os.getpid(), 9)", "error: ended with status -9"),
        ("while True: pass", "error: took longer than 1 s"),
        ("while True: print('x' * 1000)", "error: printed more than 1,048,576 bytes"),
        ("open('/etc/passwd')", "error: FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd'"),
    ],
)
def test_answers_are_what_was_printed_or_the_errors_last_line(program: str, answer: str) -> None:
    limits = SandboxLimits(wall_seconds=1 if answer.endswith("1 s") else 60)
    box = ToolBox({"python": python_tool(Sandbox(limits))}, "python")
    assert box.run(None, program) == answer


@isolated
def test_long_answers_are_cut() -> None:
    box = ToolBox({"python": python_tool(Sandbox())}, "python")
    answer = box.run("python", "print('x' * 100_000)")
    assert len(answer) < 5000 and answer.endswith("…")


@isolated
def test_the_real_python_runs_only_for_who_asks() -> None:
    program = "import math\nprint(math.factorial(20))"
    calculator = choose_tools(["calculator"])
    assert calculator is not None
    assert calculator.toolbox.run("python", "1+1") == "2"
    assert calculator.toolbox.run("python", program).startswith("error: ")
    assert [definition["function"]["name"] for definition in calculator.definitions] == ["calculator"]
    python = choose_tools(["python"])
    assert python is not None and python.toolbox.run(None, program) == "2432902008176640000"
    assert python.toolbox.run("calculator", "1+1").startswith("error: unknown tool")
    both = choose_tools(["calculator", "python"])
    assert both is not None and both.toolbox.run("python", program) == "2432902008176640000"
    assert both.toolbox.run(None, "0.1+0.2") == "0.3", "calls without a name go to the first"
    assert len(both.definitions) == 2
    assert choose_tools([]) is None


def test_unknown_tools_are_named() -> None:
    with pytest.raises(UserError, match="no tool 'shell'"):
        choose_tools(["calculator", "shell"])
