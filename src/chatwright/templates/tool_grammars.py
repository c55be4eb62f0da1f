"""Token-delimited tool calls: one state machine for the loss mask, for decoding and for parsing.

A reply such as `<|python_start|>12/60<|python_end|><|output_start|>0.2<|output_end|>It is 0.2` is one turn: the model
writes the call, the engine forces the result's tokens, and the model goes on. What the engine forces is not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from chatwright.errors import TemplateError
from chatwright.templates.outline import Outline, Piece, encode_ids
from chatwright.templates.rendered import ExampleKey
from chatwright.templates.tokenizer import TextTokenizer

TOOL_ROLES = ("call_start", "call_end", "result_start", "result_end")
ADDED_TOOL_TOKENS = {
    "call_start": "<|tool_call_start|>",
    "call_end": "<|tool_call_end|>",
    "result_start": "<|tool_result_start|>",
    "result_end": "<|tool_result_end|>",
}
"""What `tools: add` adds to the tokenizer."""


@dataclass(frozen=True, slots=True)
class ToolEvent:
    """A finished call: `code_ids` are the ids between call start and call end."""

    kind: str
    code_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """The four control tokens of a token-delimited grammar.

    Args:
        call_start, call_end, result_start, result_end: control ids.
        tokenizer: encodes the results that are forced.
    """

    call_start: int
    call_end: int
    result_start: int
    result_end: int
    tokenizer: TextTokenizer = field(repr=False, compare=False)

    @staticmethod
    def from_names(tokenizer: TextTokenizer, names: Mapping[str, str]) -> ToolGrammar:
        """The grammar that maps the four roles to control tokens by name.

        Raises:
            TemplateError: a name is no control token of this tokenizer.
        """
        missing = [name for name in names.values() if name not in tokenizer.control_ids]
        if missing:
            raise TemplateError(
                f"the tokenizer has no control token {', '.join(map(repr, missing))}",
                place="template.tools",
                hint="map the roles to tokens it has, or use tools: add to add new ones",
            )
        return ToolGrammar(**{role: tokenizer.control_ids[names[role]] for role in TOOL_ROLES}, tokenizer=tokenizer)

    def token_ids(self) -> dict[str, int]:
        """role → control id."""
        return {role: getattr(self, role) for role in TOOL_ROLES}

    def call_items(self, code: str) -> tuple[str | int, ...]:
        """A call as text and control ids."""
        return self.call_start, code, self.call_end

    def result_items(self, text: str) -> tuple[str | int, ...]:
        """A result as text and control ids: what training shows as given, and decoding forces."""
        return self.result_start, text, self.result_end

    def start(self) -> ToolState:
        """The state at the beginning of a reply."""
        return ToolState(self)

    def given_mask(self, ids: Sequence[int]) -> list[bool]:
        """For each id of a reply whether the engine forced it (a tool's result) rather than the model wrote it."""
        state = self.start()
        mask = []
        for index in ids:
            state.feed(index)
            mask.append(state.given)
        return mask


class Mode(Enum):
    """Where in a reply the state machine stands."""

    TEXT = "text"
    CALL = "call"
    RESULT = "result"


class ToolState:
    """Follows one reply token by token.

    Attributes:
        mode: what the *next* token belongs to.
        given: whether the last token fed was forced by the engine (part of a result).
    """

    def __init__(self, grammar: ToolGrammar) -> None:
        self.grammar = grammar
        self.mode = Mode.TEXT
        self.given = False
        self._code: list[int] = []

    def feed(self, token_id: int) -> ToolEvent | None:
        """Take one token; the event when it completes a call.

        A control token out of order does no harm: a second call start begins the call anew, a stray end is text.
        """
        grammar = self.grammar
        self.given = self.mode is Mode.RESULT or token_id == grammar.result_start
        if self.mode is Mode.RESULT:
            if token_id == grammar.result_end:
                self.mode = Mode.TEXT
        elif token_id == grammar.result_start:
            self.mode = Mode.RESULT
        elif token_id == grammar.call_start:
            self.mode, self._code = Mode.CALL, []
        elif self.mode is Mode.CALL and token_id == grammar.call_end:
            self.mode = Mode.TEXT
            return ToolEvent("call", tuple(self._code))
        elif self.mode is Mode.CALL:
            self._code.append(token_id)
        return None

    def forced_result(self, result_text: str) -> list[int]:
        """The ids the engine must append after a call: the result, encoded as training examples are."""
        pieces = tuple(Piece(item) for item in self.grammar.result_items(result_text))
        return encode_ids(self.grammar.tokenizer, [Outline(pieces, ExampleKey("", 0, 0))])[0]
