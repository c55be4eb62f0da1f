"""Replies to conversations, tools in the loop: text in, engine ids between, messages out.

Two kinds of tool grammar, one law: what the model reads after a call is what it was trained to read.
- Token-delimited grammars: the result's tokens are forced into the reply and the model goes on in the same turn.
- JSON grammars of Hugging Face templates: the turn ends with the calls; the results are rendered by the template, and
  the model begins a new turn. Both come back as one message whose parts are text, call, result, text … in order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.inference.engine import Engine
from chatwright.inference.reply_events import ChatEvent, ReplyReader
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.inference.waves import StopReason, StreamedToken
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM
from chatwright.templates.base import Template
from chatwright.templates.replies import named_call
from chatwright.templates.tool_grammars import ToolGrammar

FinishReason = Literal["stop", "length", "tool_calls"]


def make_engine(model: CausalLM | ForeignLM, template: Template, **limits: int) -> Engine:
    """The engine for a model and its template: stops where the template says, draws only ids of its tokenizer.

    The markers of tool results are never drawn, so a model can't make up a tool's answer.

    Args:
        limits: `cache_bytes`, `max_rows`, `prefill_tokens` of `Engine`.
    """
    grammar = template.grammar
    return Engine(
        model,
        stop_ids=template.stop_ids,
        num_tokens=min(template.tokenizer.vocab_size, model.config.vocab_size),
        never_ids=(grammar.result_start, grammar.result_end) if grammar else (),
        **limits,
    )


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A finished reply.

    Args:
        message: all its parts, tool results included.
        finish_reason: `stop`, `length` (out of tokens), or `tool_calls` (ends in calls that were not run).
        prompt_tokens: of the first prompt. reply_tokens: drawn and forced, over all turns of the reply.
    """

    message: Message
    finish_reason: FinishReason
    prompt_tokens: int
    reply_tokens: int


@dataclass(slots=True)
class _Turn:
    """A reply being made: `parts` of its finished rounds, `prompt` and `ids` of the round at work."""

    conversation: Conversation
    prompt: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    calls_run: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    finish_reason: FinishReason | None = None

    def so_far(self) -> Conversation:
        """The conversation with what the reply already holds."""
        if not self.parts:
            return self.conversation
        *before, last = self.conversation.messages
        if last.role == "assistant":  # the reply continues this message
            messages = (*before, replace(last, parts=(*last.parts, *self.parts)))
        else:
            messages = (*before, last, Message("assistant", tuple(self.parts)))
        return replace(self.conversation, messages=messages)

    def reply(self) -> ChatReply:
        assert self.finish_reason is not None
        message = Message("assistant", tuple(self.parts))
        return ChatReply(message, self.finish_reason, self.prompt_tokens, self.reply_tokens)


class Responder:
    """Replies to conversations.

    Args:
        engine: made by `make_engine` for the same template.
        toolbox: runs the calls; None leaves them to the caller: a reply ends where it calls.
        max_tool_calls: a reply that calls more often ends there.
    """

    def __init__(
        self, engine: Engine, template: Template, toolbox: ToolBox | None = None, max_tool_calls: int = 8
    ) -> None:
        self.engine, self.template = engine, template
        self.toolbox, self.max_tool_calls = toolbox, max_tool_calls

    def reply_many(self, conversations: Sequence[Conversation], settings: SamplingSettings) -> list[Message]:
        """One reply to each conversation, generated together.

        Raises:
            TemplateError: a conversation can't be rendered. ModelError: a prompt is too long for the model.
        """
        return [reply.message for reply in self.replies(conversations, settings)]

    def replies(self, conversations: Sequence[Conversation], settings: SamplingSettings) -> list[ChatReply]:
        """As `reply_many`, with the reason why each reply ended and its token counts."""
        turns = [_Turn(conversation) for conversation in conversations]
        for _ in self._tokens(turns, settings):
            pass
        return [turn.reply() for turn in turns]

    def events(self, conversation: Conversation, settings: SamplingSettings) -> Generator[ChatEvent, None, ChatReply]:
        """The events of one reply as they come; the generator's value is the finished reply. Close it to cancel."""
        turn = _Turn(conversation)
        reader: ReplyReader | None = None
        results = 0
        for _, token in self._tokens([turn], settings):
            reader = reader or ReplyReader(self.template, turn.prompt, bool(conversation.tools))
            yield from reader.feed(token.token_id)
            if token.stop_reason is not None:
                yield from reader.finish()
                reader = None
                if self.template.grammar is None:  # results of this round: no tokens of the reply spell them
                    done = [part for part in turn.parts if part.kind == "tool_result"]
                    yield from (ChatEvent(part.kind, part.text, part.tool) for part in done[results:])
                    results = len(done)
        return turn.reply()

    def _tokens(self, turns: list[_Turn], settings: SamplingSettings) -> Iterator[tuple[_Turn, StreamedToken]]:
        """Every token of every round; a turn's round is closed before its last token is given out."""
        open_turns = turns
        while open_turns:
            prompts = [self.template.render_prompt(turn.so_far()) for turn in open_turns]
            for turn, prompt in zip(open_turns, prompts, strict=True):
                turn.prompt, turn.prompt_tokens = prompt, turn.prompt_tokens or len(prompt)
            controller = _InTurnCalls(self, self.template.grammar, open_turns) if self.template.grammar else None
            for token in self.engine.stream(prompts, settings, controller):
                turn = open_turns[token.row]
                turn.ids.append(token.token_id)
                if token.stop_reason is not None:
                    self._close_round(turn, token.stop_reason)
                yield turn, token
            open_turns = [turn for turn in open_turns if turn.finish_reason is None]

    def _close_round(self, turn: _Turn, reason: StopReason) -> None:
        """Read what the round said; with JSON calls run them, else finish the turn."""
        parts = self.template.parse_reply(turn.ids).parts
        turn.parts += parts
        turn.reply_tokens += len(turn.ids)
        turn.ids = []
        calls = [part for part in parts if part.kind == "tool_call"] if self.template.grammar is None else []
        if calls and self.may_run(turn, len(calls)):
            turn.parts += [Part("tool_result", self.run(turn, call), call.tool, call.call_id) for call in calls]
        elif calls or reason == "controller":
            turn.finish_reason = "tool_calls"
        else:
            turn.finish_reason = "length" if reason == "length" else "stop"

    def may_run(self, turn: _Turn, num_calls: int) -> bool:
        """Whether there is a toolbox and the turn's bound allows so many more calls."""
        return self.toolbox is not None and turn.calls_run + num_calls <= self.max_tool_calls

    def run(self, turn: _Turn, call: Part) -> str:
        """The result of a call, counted."""
        assert self.toolbox is not None
        turn.calls_run += 1
        return self.toolbox.run(call.tool, call.text)


class _InTurnCalls:
    """Runs token-delimited calls the moment they end, and forces their results into the reply."""

    def __init__(self, responder: Responder, grammar: ToolGrammar, turns: Sequence[_Turn]) -> None:
        self.responder, self.turns = responder, turns
        self.states = [grammar.start() for _ in turns]

    def on_token(self, row: int, token_id: int) -> list[int] | None:
        """The result's tokens after the end of a call; None where the call is the caller's to run."""
        state, turn = self.states[row], self.turns[row]
        event = state.feed(token_id)
        if event is None:
            return []
        if not self.responder.may_run(turn, 1):
            return None
        call = named_call(self.responder.template.tokenizer.decode(event.code_ids))
        forced = state.forced_result(self.responder.run(turn, call))
        for forced_id in forced:
            state.feed(forced_id)
        return forced
