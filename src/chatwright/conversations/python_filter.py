"""A user's own function as a row filter, named by its dotted path."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from chatwright.conversations.code_identity import code_identity
from chatwright.conversations.row_filters import RowFilter
from chatwright.conversations.schema import Conversation
from chatwright.errors import ConfigError, DataError

_PLACE = "filters: python"
_CONTRACT = (
    "gets a Conversation (with .messages, .extra) and returns True to keep the row, False or a reason to drop it"
)


class PythonFilter(RowFilter):
    """Asks a function `f(conversation) -> bool | str`: True keeps the row, False drops it, words drop it and say why.

    The function is imported by name in every worker process, so it must be a pure function of the conversation. Give
    a few reasons that hold for many rows: the ledger counts each. Tokens are made anew when its module, or one of yours
    that this imports, has changed; not for a change of a file that it reads.

    Args:
        function: `package.module:function`.
    """

    kind: Literal["python"] = "python"
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")

    def prepare(self) -> None:
        """Import the function."""
        find_function(self.function)

    def identity(self) -> str:
        """A hash of its code."""
        find_function(self.function)
        return code_identity(self.function.partition(":")[0])

    def reason(self, conversation: Conversation) -> str | None:
        """The function's answer.

        Raises:
            DataError: it failed, or gave neither a bool nor words; names function and row.
        """
        function = find_function(self.function)
        try:
            answer = function(conversation)
        except Exception as error:  # a user's code may raise anything: it is named, and goes on as their error
            raise self._error(conversation, f"raised {_what(error)}", f"repair the function: it {_CONTRACT}") from error
        if answer is True:
            return None
        if answer is False:
            return f"{self.function} says no"
        if isinstance(answer, str) and answer.strip():
            return answer
        raise self._error(
            conversation,
            f"returned {answer!r:.80}",
            f"the function {_CONTRACT}",
        )

    def _error(self, conversation: Conversation, what: str, hint: str) -> DataError:
        return DataError(f"{self.function} {what}", source=conversation.source, row=conversation.row, hint=hint)


def _what(error: Exception) -> str:
    """`KeyError: 'a' (line 12 of my_filters.py)`."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    where = f" (line {last.lineno} of {last.filename})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {error}{where}"


@cache
def find_function(path: str) -> Callable[[Conversation], Any]:
    """The function at `package.module:function`.

    Raises:
        ConfigError: there is no such module or function, it can't be imported, or it can't be called.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        top = module_name.split(".")[0]
        hint = f"; put {top}.py into {Path.cwd()}, or set PYTHONPATH to its folder" if error.name == top else ""
        raise ConfigError([f"function: {path!r}: {error}{hint}"], source=_PLACE) from error
    except Exception as error:  # importing runs a user's code, which may raise anything
        raise ConfigError([f"function: importing {module_name!r} raised {_what(error)}"], source=_PLACE) from error
    for attribute in name.split("."):
        if not hasattr(found, attribute):
            raise ConfigError([f"function: {module_name!r} has no {name!r}"], source=_PLACE)
        found = getattr(found, attribute)
    if not callable(found):
        raise ConfigError([f"function: {path!r} is no function, but {type(found).__name__}"], source=_PLACE)
    return found  # type: ignore[no-any-return]
