"""Which tools a chat or an evaluation offers, chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatwright.errors import UserError
from chatwright.inference.python_tool import PYTHON_DEFINITION, python_tool
from chatwright.inference.sandbox import Sandbox, SandboxLimits
from chatwright.inference.tools import CALCULATOR_DEFINITION, Tool, ToolBox, calculator

_DEFINITIONS: Mapping[str, Mapping[str, Any]] = {"calculator": CALCULATOR_DEFINITION, "python": PYTHON_DEFINITION}
TOOL_NAMES = tuple(_DEFINITIONS)
"""Every tool that can be chosen."""

_TOOL_LIMITS = SandboxLimits(wall_seconds=10, cpu_seconds=5)


@dataclass(frozen=True, slots=True)
class ChosenTools:
    """The tools of a choice: `toolbox` runs them, `definitions` are what a template lists in the prompt."""

    toolbox: ToolBox
    definitions: tuple[Mapping[str, Any], ...]


def choose_tools(names: Sequence[str], *, allow_unsafe: bool = False) -> ChosenTools | None:
    """The tools by these names; None for none of them: calls are then left unanswered.

    Calls without a name go to the first. Where only the calculator is chosen, it answers calls of `python` as well, the
    name that nanochat's data gives it; the real Python runs only for who asks for it.

    Raises:
        UserError: a name is unknown, or Python is chosen and can't be isolated here.
    """
    unknown = [name for name in names if name not in _DEFINITIONS]
    if unknown:
        raise UserError(
            f"there is no tool {unknown[0]!r}", place="tools", hint=f"choose from {', '.join(TOOL_NAMES)}, or none"
        )
    if not names:
        return None
    tools: dict[str, Tool] = {"calculator": calculator} if "calculator" in names else {}
    if "python" in names:
        tools["python"] = python_tool(Sandbox(_TOOL_LIMITS, allow_unsafe=allow_unsafe))
    else:
        tools["python"] = calculator
    return ChosenTools(ToolBox(tools, names[0]), tuple(_DEFINITIONS[name] for name in names))
