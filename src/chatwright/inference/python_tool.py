"""Python as a tool: a call's program runs in the sandbox, and the model reads what it printed."""

from __future__ import annotations

from typing import Any

from chatwright.inference.sandbox import Sandbox, SandboxLimits, SandboxResult
from chatwright.inference.tools import Tool, ToolError

PYTHON_DEFINITION: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs a Python program with the standard library, without files or network, and gives what it "
        "prints; the value of a last line that is an expression is printed, too. Each call begins anew.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The program."}},
            "required": ["code"],
        },
    },
}
"""The tool in OpenAI's schema, for templates that list the tools in the prompt."""


def python_tool(sandbox: Sandbox) -> Tool:
    """A tool that runs each call's text in the sandbox.

    It answers with what the program printed, without the line break at its end, or fails with the last line of the
    error, such as `ZeroDivisionError: division by zero`.
    """

    def python(text: str) -> str:
        result = sandbox.run(text, show_value=True)
        if not result.ok:
            raise ToolError(_complaint(result, sandbox.limits))
        return result.stdout.rstrip("\n")

    return python


def _complaint(result: SandboxResult, limits: SandboxLimits) -> str:
    """Why a run failed, in one line for the model to read."""
    bounds = {
        "time": f"took longer than {limits.wall_seconds:g} s",
        "cpu": f"computed longer than {limits.cpu_seconds} s",
        "memory": f"used more than {limits.memory_bytes // 2**20} MiB of memory",
        "output": f"printed more than {limits.output_bytes:,} bytes",
    }
    if result.reason in bounds:
        return bounds[result.reason]
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with status {result.exit_code}"
