"""Python as a tool, and which tools are chosen by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import ModelThatLearnedByHeart, byte_tokenizer

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import UserError
from chatwright.inference.chat_session import ChatSession
from chatwright.inference.python_tool import python_tool
from chatwright.inference.responder import make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.sandbox import Sandbox, SandboxLimits
from chatwright.inference.sandbox_report import METHODS, probe
from chatwright.inference.tool_choice import choose_tools
from chatwright.inference.tools import ToolBox
from chatwright.templates.native import NATIVE_FORMATS
from chatwright.templates.template import TemplateSettings, load_template

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


@isolated
def test_a_chat_runs_the_models_programs(tmp_path: Path) -> None:
    """In nanochat's format a call carries no name: the chosen tool answers it, and the model goes on."""
    tokenizer = byte_tokenizer(tmp_path, NATIVE_FORMATS["nanochat"].control)
    template = load_template(tokenizer, TemplateSettings(format="nanochat"))
    program = "import math\nprint(math.comb(10, 3))"
    parts = (Part("tool_call", program), Part("tool_result", "120"), Part("text", "There are 120."))
    answer = Message("assistant", parts)
    dialogue = Conversation((Message.of("user", "10 over 3?"), answer))
    model = ModelThatLearnedByHeart(template.render(dialogue), tokenizer.vocab_size)
    settings = SamplingSettings(max_new_tokens=200)
    chat = ChatSession(make_engine(model, template), template, ToolBox(), settings=settings)  # type: ignore[arg-type]
    assert chat.ask("10 over 3?") != answer, "the calculator can't run a program"
    chat.reset()
    chosen = choose_tools(["python"])
    assert chosen is not None
    chat.use_tools(chosen.toolbox, chosen.definitions)
    assert chat.ask("10 over 3?") == answer
    chat.reset()
    chat.use_tools(None)
    assert chat.ask("10 over 3?").parts == parts[:1], "without tools the reply ends where it calls"


def test_unknown_tools_are_named() -> None:
    with pytest.raises(UserError, match="no tool 'shell'"):
        choose_tools(["calculator", "shell"])
