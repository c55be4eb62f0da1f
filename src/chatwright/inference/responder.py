"""Replies to conversations, tools in the loop: text in, engine ids between, messages out.

Two kinds of tool grammar, one law: what the model reads after a call is what it was trained to read.
- Token-delimited grammars: the result's tokens are forced into the reply and the model goes on in the same turn.
- JSON grammars of Hugging Face templates: the turn ends with the calls; the results are rendered by the template, and
  the model begins a new turn. Both come back as one message whose parts are text, call, result, text … in order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.inference.batch import Batch
from chatwright.inference.engine import Engine, evaluating, requests_for
from chatwright.inference.reply_events import ChatEvent, ReplyReader, cut_at
from chatwright.inference.requests import Request, StopReason, StreamedToken
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM
from chatwright.templates.base import Template
from chatwright.templates.replies import named_call

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
class Round:
    """What the engine was given and made at one go; a reply with JSON calls takes several.

    Args:
        prompt: ids. ids: what follows. logprobs: of each of those, None where it was forced.
    """

    prompt: Sequence[int]
    ids: Sequence[int]
    logprobs: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A finished reply.

    Args:
        message: all its parts, tool results included.
        finish_reason: `stop`, `length` (out of tokens), or `tool_calls` (ends in calls that were not run).
        prompt_tokens: of the first prompt. reply_tokens: drawn and forced, over all turns of the reply.
        rounds: the engine's own ids of all of it.
    """

    message: Message
    finish_reason: FinishReason
    prompt_tokens: int
    reply_tokens: int
    rounds: tuple[Round, ...] = field(default=(), compare=False)


@dataclass(slots=True, eq=False)
class _Turn:
    """A reply being made: `parts` of its finished `rounds`; `prompt`, `ids`, `logprobs` of the round at work.

    `number` is its place among the conversations, `copy` its place among equal ones.
    """

    number: int
    conversation: Conversation
    settings: SamplingSettings
    copy: int = 0
    prompt: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
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
        return ChatReply(message, self.finish_reason, self.prompt_tokens, self.reply_tokens, tuple(self.rounds))


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
        self._resting: Batch | None = None  # keeps the last conversation's keys and values

    def reply_many(
        self, conversations: Sequence[Conversation], settings: SamplingSettings | Sequence[SamplingSettings]
    ) -> list[Message]:
        """One reply to each conversation, generated together.

        Raises:
            TemplateError: a conversation can't be rendered. ModelError: a prompt is too long for the model.
        """
        return [reply.message for reply in self.replies(conversations, settings)]

    def replies(
        self, conversations: Sequence[Conversation], settings: SamplingSettings | Sequence[SamplingSettings]
    ) -> list[ChatReply]:
        """As `reply_many`, with the reason why each reply ended and its token counts."""
        found = dict(self.finished(conversations, settings))
        return [found[number] for number in range(len(conversations))]

    def finished(
        self, conversations: Sequence[Conversation], settings: SamplingSettings | Sequence[SamplingSettings]
    ) -> Iterator[tuple[int, ChatReply]]:
        """The place of a conversation and its reply, as each one is finished.

        Args:
            settings: for all, or one for each. Equal conversations with equal seeds draw different replies.
        """
        many = [settings] * len(conversations) if isinstance(settings, SamplingSettings) else settings
        turns = [_Turn(number, *pair) for number, pair in enumerate(zip(conversations, many, strict=True))]
        for turn, token in self._tokens(turns, self.engine.open()):
            if token.stop_reason is not None and turn.finish_reason is not None:
                yield turn.number, turn.reply()

    def events(self, conversation: Conversation, settings: SamplingSettings) -> Generator[ChatEvent, None, ChatReply]:
        """The events of one reply as they come; the generator's value is the finished reply. Close it to cancel.

        What the last call left in the cache is not computed again where this conversation goes on from it: the weights
        must not have changed in between.
        """
        turn = _Turn(0, conversation, settings)
        batch, self._resting = self._resting or self.engine.open(), None  # a second stream gets one of its own
        try:
            with closing(self._tokens([turn], batch)) as tokens:
                yield from self._shown(turn, tokens)
        except GeneratorExit:  # cancelled: the batch is as good as ever; after an error it isn't
            self._resting = batch
            raise
        self._resting = batch
        return turn.reply()

    def _shown(self, turn: _Turn, tokens: Iterator[tuple[_Turn, StreamedToken]]) -> Iterator[ChatEvent]:
        """The events that a turn's tokens make."""
        reader: ReplyReader | None = None
        results = 0
        for _, token in tokens:
            reader = reader or ReplyReader(
                self.template, turn.prompt, bool(turn.conversation.tools), turn.settings.stop
            )
            yield from reader.feed(token.token_id)
            if token.stop_reason is not None:
                yield from reader.finish()
                reader = None
                if self.template.grammar is None:  # results of this round: no tokens of the reply spell them
                    done = [part for part in turn.parts if part.kind == "tool_result"]
                    yield from (ChatEvent(part.kind, part.text, part.tool) for part in done[results:])
                    results = len(done)

    def _tokens(self, turns: list[_Turn], batch: Batch) -> Generator[tuple[_Turn, StreamedToken], None, None]:
        """Every token of every round; a turn's next round is queued behind its last token."""
        at_work: dict[int, _Turn] = {}
        prompts = [self.template.render_prompt(turn.so_far()) for turn in turns]
        first = requests_for(prompts, [turn.settings for turn in turns])
        try:
            with evaluating(self.engine.model):
                for turn, request in zip(turns, first, strict=True):
                    turn.prompt, turn.prompt_tokens, turn.copy = list(request.prompt), len(request.prompt), request.copy
                    at_work[batch.submit(replace(request, controller=_TurnController(self, turn)))] = turn
                batch.sort_waiting()
                while not batch.idle:
                    for token in batch.step():
                        turn = at_work[token.row]
                        turn.ids.append(token.token_id)
                        turn.logprobs.append(token.logprob)
                        if token.stop_reason is not None:
                            del at_work[token.row]
                            self._close_round(turn, token.stop_reason)
                        yield turn, token
                        if token.stop_reason is not None and turn.finish_reason is None:
                            at_work[batch.submit(self._next_round(turn))] = turn
        finally:
            for number in at_work:  # closed before the end
                batch.cancel(number)
            batch.forget_events()

    def _next_round(self, turn: _Turn) -> Request:
        """What follows the results of a round's calls; checked by `_goes_on`."""
        left = turn.settings.model_copy(update={"max_new_tokens": turn.settings.max_new_tokens - turn.reply_tokens})
        return Request(turn.prompt, left, turn.copy, _TurnController(self, turn))

    def _goes_on(self, turn: _Turn) -> bool:
        """Render the next round's prompt; whether it leaves room in the reply's bound and in the model's context."""
        turn.prompt = self.template.render_prompt(turn.so_far())
        left = turn.settings.max_new_tokens - turn.reply_tokens
        return left > 0 and self.engine.has_room(len(turn.prompt), left)

    def _close_round(self, turn: _Turn, reason: StopReason) -> None:
        """Read what the round said; with JSON calls run them, else finish the turn."""
        parts = list(self.template.parse_reply(turn.ids).parts)
        kept = cut_at(parts, turn.settings.stop, self.template.grammar is None)
        met_stop_text = kept != parts
        turn.parts += kept
        turn.reply_tokens += len(turn.ids)
        turn.rounds.append(Round(turn.prompt, turn.ids, turn.logprobs))
        turn.ids, turn.logprobs = [], []
        calls = [part for part in kept if part.kind == "tool_call"] if self.template.grammar is None else []
        if met_stop_text:
            turn.finish_reason = "stop"
        elif reason == "length":
            turn.finish_reason = "length"
        elif calls and self.may_run(turn, len(calls)):
            turn.parts += [Part("tool_result", self.run(turn, call), call.tool, call.call_id) for call in calls]
            turn.finish_reason = None if self._goes_on(turn) else "length"
        elif calls or reason == "controller":
            turn.finish_reason = "tool_calls"
        else:
            turn.finish_reason = "stop"

    def may_run(self, turn: _Turn, num_calls: int) -> bool:
        """Whether there is a toolbox and the turn's bound allows so many more calls."""
        return self.toolbox is not None and turn.calls_run + num_calls <= self.max_tool_calls

    def run(self, turn: _Turn, call: Part) -> str:
        """The result of a call, counted."""
        assert self.toolbox is not None
        turn.calls_run += 1
        return self.toolbox.run(call.tool, call.text)


class _TurnController:
    """Runs token-delimited calls the moment they end and forces their results in; ends the reply at a stop text."""

    def __init__(self, responder: Responder, turn: _Turn) -> None:
        grammar = responder.template.grammar
        self.responder, self.turn = responder, turn
        self.state = grammar.start() if grammar else None
        self.reader: ReplyReader | None = None  # reads what is visible, as a stream does
        if turn.settings.stop:
            expects = bool(turn.conversation.tools)
            self.reader = ReplyReader(responder.template, turn.prompt, expects, turn.settings.stop)

    def on_token(self, row: int, token_id: int) -> list[int] | None:
        """The result's tokens after the end of a call; None where the reply ends."""
        forced = self._after_call(token_id)
        if self.reader is not None and forced is not None:
            for each in (token_id, *forced):
                self.reader.feed(each)
            if self.reader.met_stop:
                return None
        return forced

    def _after_call(self, token_id: int) -> list[int] | None:
        """The result's tokens where a call ends; None where the call is the caller's to run."""
        event = self.state.feed(token_id) if self.state else None
        if self.state is None or event is None:
            return []
        if not self.responder.may_run(self.turn, 1):
            return None
        call = named_call(self.responder.template.tokenizer.decode(event.code_ids))
        forced = self.state.forced_result(self.responder.run(self.turn, call))
        for forced_id in forced:
            self.state.feed(forced_id)
        return forced
