"""lm-eval's strings ↔ token ids, so that numbers compare with lm-eval's `--model hf`, and no text becomes control.

lm-eval hands prompts over as strings, chat prompts included. Its `hf` model reads control tokens out of any string.
Here a string from a task is text and nothing else; a prompt that this module rendered carries a private mark (around
each control token's name, and twice where a text is encoded apart), so that it comes back as exactly the ids that the
template gives. Messages that hold the mark themselves are refused. Knows templates and tokenizers; not lm-eval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import TemplateError
from chatwright.templates.base import Template
from chatwright.templates.outline import Outline, Piece, encode_ids
from chatwright.templates.rendered import ExampleKey
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place

MARK = "\U0010fffd"


class HarnessText:
    """Encodes what lm-eval asks with, and renders its chat histories.

    Args:
        tokenizer: the template's where there is one.
        template: the model's; or why it has none that can be used, which chat histories then fail with.
        begin: what other programs put before a text by default (`begin_ids`).
        prefix: the token that an empty context stands for; None takes begin-of-text, else end-of-text.
        variables: given to the template, such as `enable_thinking`.

    Raises:
        TemplateError: there is no token to stand for an empty context.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        template: Template | TemplateError,
        begin: Sequence[int] = (),
        prefix: int | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self._template = tokenizer, template
        self.begin, self.variables = list(begin), dict(variables or {})
        names = self.tokenizer.special_names
        usual = next((names[name] for name in ("bos_token", "eos_token") if name in names), None)
        found = prefix if prefix is not None or usual is None else self.tokenizer.token_id(usual)
        if found is None:
            hint = "name the token that an empty context stands for: --model_args prefix_token_id=ID"
            raise TemplateError("has neither a begin-of-text nor an end-of-text token", place="tokenizer", hint=hint)
        self.prefix: int = found

    @property
    def template(self) -> Template:
        """The model's template.

        Raises:
            TemplateError: it has none that can be used.
        """
        if isinstance(self._template, TemplateError):
            raise self._template
        return self._template

    # From lm-eval's strings to ids

    def encode(self, texts: Sequence[str], *, begin: bool = True) -> list[list[int]]:
        """The ids of each string: of a rendered prompt as the template gives them, of any other its text's.

        Args:
            begin: put what other programs put before a text; never before a rendered prompt, whose template decides.
        """
        rendered = {text: pieces for text in texts if MARK in text and (pieces := self._pieces(text)) is not None}
        outlines = [Outline(pieces, ExampleKey("harness", 0, 0)) for pieces in rendered.values()]
        known = dict(zip(rendered, encode_ids(self.tokenizer, outlines), strict=True))
        plain = [text for text in texts if text not in known]
        front = self.begin if begin else []
        encoded = self.tokenizer.encode_placed([(text, Place.START) for text in plain])
        known.update((text, [*front, *ids]) for text, ids in zip(plain, encoded, strict=True))
        return [known[text] for text in texts]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Context and continuation of each pair as ids, by lm-eval's rule.

        Blanks at the end of the context go over to the continuation; then the continuation is what the ids of both
        together have beyond the number of the context's own. An empty context is the prefix token.
        """
        moved = [_move_blanks(*pair) for pair in pairs]
        contexts = self.encode([context for context, _ in moved])
        wholes = self.encode([context + continuation for context, continuation in moved])
        alone = iter(self.encode([pair[1] for pair in pairs if not pair[0]], begin=False))
        result = []
        for (context, _), context_ids, whole_ids in zip(pairs, contexts, wholes, strict=True):
            if context:
                result.append((context_ids or [self.prefix], whole_ids[len(context_ids) :]))
                continue
            ids = next(alone)
            begins = ids[:1] == [self.prefix]
            result.append((ids[:1], ids[1:]) if begins else ([self.prefix], ids))
        return result

    def _pieces(self, text: str) -> tuple[Piece, ...] | None:
        """The pieces of a rendered prompt; None where the marks don't stand as `render` sets them."""
        stretches = text.split(MARK)
        if len(stretches) % 2 == 0 or any(name and name not in self.tokenizer.control_ids for name in stretches[1::2]):
            return None
        pieces: list[Piece] = []
        fresh = False
        for number, stretch in enumerate(stretches):
            if number % 2 == 0:
                pieces += [Piece(stretch, fresh=fresh)] if stretch else []
                fresh = False
            elif stretch:
                pieces.append(Piece(self.tokenizer.control_ids[stretch]))
            else:
                fresh = True
        return tuple(pieces)

    # From chat histories to strings

    def render(self, history: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a chat history, with marks; a last assistant message stays open.

        Raises:
            TemplateError: a message holds a mark, or the template can't render the history.
        """
        messages = tuple(Message.of(each["role"], each["content"]) for each in history)  # type: ignore[arg-type]
        for number, each in enumerate(messages):
            if MARK in each.text:
                hint = "take the private character U+10FFFD out of the data"
                raise TemplateError(
                    "holds the character that marks control tokens", place=f"message {number}", hint=hint
                )
        outline = self.template.prompt_outline(Conversation(messages, variables=self.variables, source="harness"))
        return "".join(self._written(piece) for piece in outline.pieces if piece.content != "")

    def _written(self, piece: Piece) -> str:
        if isinstance(piece.content, int):
            return f"{MARK}{self.tokenizer.control_names[piece.content]}{MARK}"
        return f"{MARK}{MARK}{piece.content}" if piece.fresh else piece.content


def begin_ids(tokenizer: Mapping[str, Any]) -> list[int]:
    """The ids that other programs put before a text by default, as the post-processor of a tokenizer.json says.

    Args:
        tokenizer: the parsed tokenizer.json.
    """
    made = Tokenizer.from_str(json.dumps({**tokenizer, "truncation": None, "padding": None}))
    bare = made.encode("a", add_special_tokens=False).ids
    whole = made.encode("a", add_special_tokens=True).ids
    starts = [start for start in range(len(whole) - len(bare) + 1) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
