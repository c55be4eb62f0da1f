"""The code of a reply, and the program that it is put into."""

from __future__ import annotations

import pytest

from chatwright.conversations.schema import Message
from chatwright.conversations.task_formats import convert_humaneval, convert_mbpp
from chatwright.tasks.code_task import code_of
from chatwright.tasks.registry import make_task

CODE = "def f(x):\n    return x + 1"
DOCSTRING = 'def f(x):\n    """Adds.\n\n    ```\n    f(1)\n    ```\n    and ``` here\n    """\n    return x + 1'
FUTURE = "from __future__ import annotations\n"


@pytest.mark.parametrize("label", ["", "python", "Python", "py", "python3", " PY ", "python title=f.py"])
@pytest.mark.parametrize("end", ["\n```", "\n```\nDone: ```x```.\n```\nmore\n```", "\n``` ", ""])
@pytest.mark.parametrize("code", [CODE, DOCSTRING, ""])
def test_the_code_between_fences(label: str, end: str, code: str) -> None:
    reply = f"Here:\n```{label}\n{code}{end}"
    assert code_of(Message.of("assistant", reply)) == code
    assert code_of(Message.of("assistant", reply.replace("\n", "\r\n"))) == code


@pytest.mark.parametrize(
    "reply",
    [
        f"```bash\npip install f\n```\nthen\n```python\n{CODE}\n```",
        f"```bash\npip install f\n```\nthen\n```\n{CODE}\n```",
        f"```\n2\n```\nis what this gives:\n```py\n{CODE}\n```",
        f"```text\n{CODE}\n```\n```bash\nls\n```",
        f"````python\n{CODE}\n````",
        "1. Write:\n   ```python\n   def f(x):\n       return x + 1\n   ```",
        f"```python\n{CODE}\n```\n```python\nprint(f(1))\n```",
        CODE,
    ],
)
def test_the_block_that_is_taken(reply: str) -> None:
    assert code_of(Message.of("assistant", reply)) == CODE


@pytest.mark.parametrize("code", [DOCSTRING, DOCSTRING.replace("\n", "\r\n")])
def test_a_docstrings_backticks_are_no_block(code: str) -> None:
    assert code_of(Message.of("assistant", code)) == DOCSTRING


@pytest.mark.parametrize("future", [FUTURE, "from __future__ import (\n    annotations,\n    division,\n)\n"])
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_future_imports_begin_the_program(name: str, future: str) -> None:
    right = f"import math\n{future.replace(chr(10), chr(13) + chr(10))}{CODE}"
    assert _passes(name, right.replace("import math\n", ""))
    assert _passes(name, f"```python\n{future}{CODE}\n```")
    assert not _passes(name, f"```python\n{future}{CODE.replace('+', '-')}\n```")


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_a_backslash_swallows_no_test(name: str) -> None:
    assert _passes(name, CODE + " \\")
    assert not _passes(name, CODE.replace("+", "-") + "\ny = 1 \\")
    assert not _passes(name, CODE.replace("+", "-") + "\ny = 1; \\")


def _passes(name: str, reply: str) -> bool:
    """Whether a reply to `f(1) == 2` passes; the tests' texts are ours, so they are run here."""
    task = make_task(name).with_executor(_run)  # type: ignore[attr-defined]
    if name == "humaneval":
        row = {"prompt": "def f(x):\n    'adds'\n", "canonical_solution": "    return x + 1\n", "entry_point": "f"}
        problem = convert_humaneval({**row, "test": "def check(f):\n    assert f(1) == 2"}, "rows", 0)
    else:
        problem = convert_mbpp({"text": "Add.", "code": CODE, "test_list": ["assert f(1) == 2"]}, "rows", 0)
    return bool(task.grade(problem, Message.of("assistant", reply)))


def _run(program: str) -> bool:
    try:
        exec(compile(program, "program", "exec", dont_inherit=True), {})  # noqa: S102 - our own words
    except (AssertionError, SyntaxError):
        return False
    return True
