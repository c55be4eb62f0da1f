"""Tools that a model may call while it replies: a name, a function from text to text, and a default.

Knows text only: neither tokens nor templates. A tool's failure is an answer too (`error: …`), since the model
has to read it and go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chatwright.inference.calculator import CalculatorError, calculate

Tool = Callable[[str], str]


class ToolError(Exception):
    """Raised by a tool that can't do what it was asked; its text goes to the model as `error: …`."""


def calculator(text: str) -> str:
    """The calculator as a tool.

    Raises:
        ToolError: for an expression that can't be worked out.
    """
    try:
        return calculate(text)
    except CalculatorError as error:
        raise ToolError(str(error)) from None


CALCULATOR_DEFINITION: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": 'Works out arithmetic such as 12/60 or (3+4)*5, and letter counts such as "berry".count("r").',
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "The expression."}},
            "required": ["expression"],
        },
    },
}
"""The calculator in OpenAI's schema, for templates that list the tools in the prompt."""

_MAX_RESULT_CHARACTERS = 4000


def _default_tools() -> dict[str, Tool]:
    """The calculator, also under the name that nanochat's data gives it."""
    return {"calculator": calculator, "python": calculator}


@dataclass(frozen=True)
class ToolBox:
    """The tools at hand.

    Args:
        tools: name → function of the call's text. A function raises `ToolError` for what it can't do;
            any other exception is a bug in the tool and is not hidden.
        default: the tool for calls that carry no name (token-delimited grammars).
    """

    tools: Mapping[str, Tool] = field(default_factory=_default_tools)
    default: str = "calculator"

    def run(self, tool: str | None, text: str) -> str:
        """Run a call and give its output, or `error: …` for an unknown tool or a call that failed.

        `text` may be a JSON object of arguments: one with a single argument is unwrapped
        (`{"expression": "1+1"}` → `1+1`), others reach the tool as written.
        """
        name = tool or self.default
        function = self.tools.get(name)
        if function is None:
            return f"error: unknown tool {name!r}; known: {', '.join(sorted(self.tools))}"
        try:
            result = function(single_argument(text))
        except ToolError as error:
            return f"error: {error}"
        return result if len(result) <= _MAX_RESULT_CHARACTERS else result[:_MAX_RESULT_CHARACTERS] + "…"


def single_argument(text: str) -> str:
    """The one value of a JSON object of arguments as text; any other text as it is."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(arguments, dict) or len(arguments) != 1:
        return text
    (value,) = arguments.values()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
