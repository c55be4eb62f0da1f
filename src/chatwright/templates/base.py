"""What every template can do, and the settings that choose one.

Nobody outside this folder knows a control token: rendering, prompts and parsing all go through `Template`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator

from chatwright.conversations.schema import Conversation, Message
from chatwright.settings import Settings
from chatwright.templates.outline import Outline, encode_ids, encode_outlines
from chatwright.templates.plain_text import render_documents
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tool_grammars import TOOL_ROLES, ToolGrammar

RENDERER_VERSION = 1
"""Part of a template's identity: raised whenever the same settings would give other tokens."""


Delimiters = Literal["tokens", "text"]
"""What tells messages apart: control tokens, which no text can forge, or plain text such as `[INST]`, which any can."""


class TrainOn(StrEnum):
    """Which tokens the model is trained to produce.

    `assistant`: every assistant turn. `last`: the last one. `flags`: only messages with `train: true`.
    `everything`: all tokens but the first, as in mid-training. A message's own `train` overrides the first two.
    """

    ASSISTANT = "assistant"
    LAST = "last"
    EVERYTHING = "everything"
    FLAGS = "flags"


class TemplateSettings(Settings):
    """How conversations become tokens.

    Args:
        format: `auto` (the model's own chat template, else a native format whose control tokens the tokenizer has, else
            ChatML with added tokens), `jinja` (the model's own), `nanochat`, `chatml`, `minimind`, or `role_text`
            (MA-RLHF's `#USER:`; roles are plain text there, so that a message can imitate another one's header).
        tools: how tool calls are written. `auto`: as the template does itself. `none`: tool conversations are refused.
            `add`: add four control tokens to the tokenizer. Or a mapping of `call_start`, `call_end`, `result_start`
            and `result_end` to control tokens that the tokenizer has (base models keep unused ones in reserve).
        train_on: which tokens are trained.
        train_line_break_after_end: train what the template writes behind the end of turn, too (MiniMind does;
            generation stops before it, so the default doesn't).
        model_writes_thinking: the model writes the thinking block that the template's generation prompt would give it
            (MiniMind trains it).
        variables: given to the template, such as `enable_thinking: false`; `now: 2025-06-01` is the date it sees.
        default_system: the system message of conversations that have none.
        add_tokens: further control tokens to add to the tokenizer, such as `<think>` and `</think>`.
        add_missing_tokens: a native format adds its own control tokens where the tokenizer lacks them.
    """

    format: Literal["auto", "jinja", "nanochat", "chatml", "minimind", "role_text"] = "auto"
    tools: Literal["auto", "none", "add"] | dict[str, str] = "auto"
    train_on: TrainOn = TrainOn.ASSISTANT
    train_line_break_after_end: bool = False
    model_writes_thinking: bool = False
    variables: dict[str, Any] = Field(default_factory=dict)
    default_system: str | None = None
    add_tokens: tuple[str, ...] = ()
    add_missing_tokens: bool = True

    @field_validator("tools")
    @classmethod
    def _four_roles(cls, value: Any) -> Any:
        if isinstance(value, dict) and set(value) != set(TOOL_ROLES):
            raise ValueError(
                f"needs exactly the roles {', '.join(TOOL_ROLES)}; found {', '.join(sorted(value)) or 'none'}"
            )
        if isinstance(value, dict) and len(set(value.values())) != len(value):
            raise ValueError("each role needs a control token of its own")
        return value


class Template(ABC):
    """Renders training examples and prompts, and parses replies.

    Attributes:
        tokenizer: with any control token the template added.
        settings: as given.
        stop_ids: where generation stops.
        grammar: the token-delimited tool grammar, or None.
        jinja: the equivalent chat template, to save with a model.
        trained_token_ids: control tokens that the base model never learned (mapped or added): their rows need training.
        delimiters: `text` where roles are plain text, so that a message can imitate another one's header.
    """

    tokenizer: TextTokenizer
    settings: TemplateSettings
    stop_ids: tuple[int, ...]
    grammar: ToolGrammar | None
    jinja: str
    trained_token_ids: tuple[int, ...]
    delimiters: Delimiters

    # What a template defines

    @abstractmethod
    def outline(self, conversation: Conversation, train_on: TrainOn) -> list[Outline]:
        """The conversation as weighted pieces; several outlines where one sequence can't train all turns."""

    @abstractmethod
    def prompt_outline(self, conversation: Conversation) -> Outline:
        """The pieces up to where the engine begins to generate."""

    @abstractmethod
    def arranged(self, conversation: Conversation) -> Conversation:
        """The conversation with tool turns in the shape that this template renders: inline, or as tool messages.

        Raises:
            TemplateError: it uses tools or thinking that the template can't render.
        """

    @abstractmethod
    def parse_reply(self, ids: Sequence[int]) -> Message:
        """The assistant message that these generated ids spell; reading ends at the first stop token."""

    @abstractmethod
    def canonical_reply(self, message: Message) -> Message:
        """The reply as it comes back after rendering and parsing: parts joined and trimmed as the template does."""

    @abstractmethod
    def expected_bos(self, conversation: Conversation) -> int:
        """How many begin-of-text tokens the template declares for a conversation."""

    # What every template does alike

    def render(self, conversation: Conversation, train_on: TrainOn | None = None) -> list[RenderedExample]:
        """The conversation's training examples.

        Raises:
            TemplateError: the template can't render it faithfully; names source and row.
        """
        return self.render_many([conversation], train_on)[0]

    def render_many(
        self, conversations: Sequence[Conversation], train_on: TrainOn | None = None
    ) -> list[list[RenderedExample]]:
        """The examples of many conversations, encoded in one batch; documents stand whole and without a template."""
        policy = self.settings.train_on if train_on is None else train_on
        groups = [[] if each.document else self.outline(each, policy) for each in conversations]
        examples = iter(encode_outlines(self.tokenizer, [outline for group in groups for outline in group]))
        texts = iter(render_documents(self.tokenizer, [each for each in conversations if each.document]))
        return [
            [next(texts)] if conversation.document else [next(examples) for _ in group]
            for conversation, group in zip(conversations, groups, strict=True)
        ]

    def render_prompt(self, conversation: Conversation) -> list[int]:
        """The ids that the engine holds when it begins to generate.

        A conversation that ends in an assistant message is continued within that message.
        """
        return encode_ids(self.tokenizer, [self.prompt_outline(conversation)])[0]

    @property
    def identity(self) -> str:
        """sha256 of template text, variables, token map and renderer version: what a checkpoint was trained with."""
        facts = {
            "template": self.jinja,
            "settings": self.settings.model_dump(mode="json", exclude={"train_on"}),
            "tokens": self._token_map(),
            "renderer": RENDERER_VERSION,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def _token_map(self) -> Mapping[str, Any]:
        grammar = self.grammar.token_ids() if self.grammar else {}
        return {"control": self.tokenizer.control_ids, "tools": grammar, "stop": list(self.stop_ids)}
