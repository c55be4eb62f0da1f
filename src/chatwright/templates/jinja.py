"""The model's own Jinja chat template: rendered with escaped contents, split at control tokens, weighted by structure.

Where the supervised text of turn i lies follows from three renderings, never from searching for markers:
P = the messages before it with the generation prompt, F = the messages up to it, and F must begin with P.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import TemplateError
from chatwright.templates.base import Template, TemplateSettings, TrainOn
from chatwright.templates.control_split import ControlSplitter, Cut, end_of_turn
from chatwright.templates.jinja_features import Features, not_a_prefix, probe
from chatwright.templates.jinja_program import JinjaProgram
from chatwright.templates.jinja_replies import JinjaReplies
from chatwright.templates.json_grammars import JSON_GRAMMARS
from chatwright.templates.labels import label_cuts
from chatwright.templates.native import newly_used_ids
from chatwright.templates.outline import Outline, Piece
from chatwright.templates.policy import Turn, arrange_turns, place_of, plain_text
from chatwright.templates.rendered import ExampleKey
from chatwright.templates.replies import ReplyGrammar, ThinkTokens
from chatwright.templates.scene import Scene, strings_of, tool_dict, with_call_ids
from chatwright.templates.sentinels import SentinelMaker
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tool_grammars import ADDED_TOOL_TOKENS, ToolGrammar


@dataclass(frozen=True, slots=True)
class Reply:
    """Where turn `index` lies in a rendering: the model writes `[start, end)`, `[end, after)` is glue."""

    index: int
    start: int
    end: int
    after: int
    text: str

    def stands_in(self, text: str) -> bool:
        """Whether a rendering begins with this turn's prompt and reply."""
        return text.startswith(self.text[: self.end])


class JinjaTemplate(Template):
    """A tokenizer with its own chat template.

    Raises:
        TemplateError: there is no chat template, or it can't be trained and served alike.
    """

    def __init__(self, tokenizer: TextTokenizer, settings: TemplateSettings) -> None:
        if not tokenizer.chat_template:
            raise TemplateError(
                "the tokenizer has no chat template",
                place="template.format",
                hint="use template.format: chatml (or auto), or put a chat_template.jinja into the model folder",
            )
        added = [*settings.add_tokens, *(ADDED_TOOL_TOKENS.values() if settings.tools == "add" else ())]
        before = tokenizer
        self.tokenizer = tokenizer = tokenizer.add_control_tokens(added)
        self.settings = settings
        self.jinja = before.chat_template or ""
        tools = ADDED_TOOL_TOKENS if settings.tools == "add" else settings.tools
        self.grammar = ToolGrammar.from_names(tokenizer, tools) if isinstance(tools, dict) else None
        self.trained_token_ids = newly_used_ids(before, tokenizer, self.grammar, settings)
        self._program = JinjaProgram(self.jinja)
        self._splitter = ControlSplitter(tokenizer)
        self.features = self._probe()
        self.delimiters = self.features.delimiters
        self.stop_ids = tuple(sorted({*self.features.ends, *tokenizer.stop_ids}))
        think = ThinkTokens.of(tokenizer)
        place = self.features.place
        inline = ReplyGrammar(tokenizer, self.grammar, think, self.stop_ids, place)
        self._replies = JinjaReplies(self.features, inline, tokenizer)
        marked = [
            *(self.grammar.token_ids().values() if self.grammar else ()),
            *((think.open, think.close) if think else ()),
        ]
        self._maker = SentinelMaker(tokenizer.control_ids, marked)

    def _probe(self) -> Features:
        def render(messages: Sequence[Mapping[str, Any]], tools: Any, generation: bool) -> str:
            maker = SentinelMaker((), ())
            thinking = self.settings.model_writes_thinking
            scene = Scene(self._program, messages, tools, self._variables({}), maker.for_texts(()), "", thinking)
            return scene.prompt(len(messages)) if generation else scene.upto(len(messages))

        features = probe(render, self.tokenizer, self._splitter, "chat template")
        return replace(features, tools="none") if self.settings.tools == "none" else features

    def _variables(self, more: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.tokenizer.special_names, **self.settings.variables, **more}

    # From a conversation to a scene

    def _turns(self, conversation: Conversation, train_on: TrainOn) -> list[Turn]:
        fold = self.grammar is not None
        system = self.settings.default_system
        turns = arrange_turns(conversation, fold=fold, default_system=system, train_on=train_on)
        if not fold and conversation.tools and self.features.tools not in JSON_GRAMMARS:
            names = ", ".join(str(tool.get("function", tool).get("name")) for tool in conversation.tools)
            raise TemplateError(
                f"offers the tools {names}, but this template has no tool grammar that can be read back",
                place=place_of(conversation),
                hint="set template.tools to add or to a mapping, or remove the tools from the data",
            )
        return turns if fold else with_call_ids(turns)

    def _scene(self, turns: Sequence[Turn], conversation: Conversation) -> Scene:
        sentinels = self._maker.for_texts(strings_of(turns, conversation, self.settings.variables))
        where = place_of(conversation)
        messages: list[dict[str, Any]] = []
        for turn in turns:
            role = turn.message.role
            if role == "assistant":
                messages.append(self._replies.message(turn.message.parts, sentinels, where))
            elif role == "tool" and (self.grammar or self.features.tools not in JSON_GRAMMARS):
                raise TemplateError(
                    f"message {turn.origin} is a tool's, and this template can't render it there",
                    place=where,
                    hint="a tool message must follow the assistant's call; templates without tools need template.tools",
                )
            elif role == "tool":
                messages.append(tool_dict(turn.message, plain_text(turn, conversation), sentinels))
            else:
                messages.append({"role": role, "content": sentinels.escape(plain_text(turn, conversation))})
        variables = self._variables(sentinels.escape_all({**self.settings.variables, **conversation.variables}))
        tools = None if self.grammar else sentinels.escape_all(conversation.tools)
        thinking = self.settings.model_writes_thinking
        return Scene(self._program, messages, tools or None, variables, sentinels, where, thinking)

    # From a scene to outlines

    def outline(self, conversation: Conversation, train_on: TrainOn) -> list[Outline]:
        """One outline where all trained turns stand in the full rendering; else one for each trained turn."""
        turns = self._turns(conversation, train_on)
        scene = self._scene(turns, conversation)
        replies = self._found_replies(scene, turns, conversation, strict=train_on is not TrainOn.EVERYTHING)
        trained = [reply for reply in replies if turns[reply.index].weight > 0]
        full = scene.upto(len(turns))
        key = ExampleKey(conversation.source, conversation.row, 0)
        if train_on is TrainOn.EVERYTHING or all(reply.stands_in(full) for reply in trained):
            weights = {reply.index: turns[reply.index].weight for reply in replies}
            given = 1.0 if train_on is TrainOn.EVERYTHING else 0.0
            return [Outline(self._pieces(full, scene, turns, replies, weights, given), key)]
        outlines = []
        for reply in trained:
            weights = {reply.index: turns[reply.index].weight}
            before = replies[: replies.index(reply) + 1]
            pieces = self._pieces(reply.text, scene, turns, before, weights)
            outlines.append(Outline(pieces, key._replace(part=reply.index)))
        return outlines

    def prompt_outline(self, conversation: Conversation) -> Outline:
        """The rendering with the generation prompt; a last assistant message stays open."""
        turns = self._turns(conversation, TrainOn.ASSISTANT)
        scene = self._scene(turns, conversation)
        replies = self._found_replies(scene, turns, conversation, strict=False)
        if turns and turns[-1].message.role == "assistant":
            last = self._reply(scene, len(turns) - 1, turns, conversation)
            end = self._end(scene, last.text[last.start :], last.start, turns[-1], conversation)
            text, replies = last.text[: end.start], [*replies[:-1], last]
        else:
            text = scene.prompt(len(turns))
            replies = [*replies, Reply(len(turns), len(text), len(text), len(text), text)]
        pieces = self._pieces(text, scene, turns, replies, {})
        return Outline(pieces, ExampleKey(conversation.source, conversation.row, 0))

    def _found_replies(
        self, scene: Scene, turns: Sequence[Turn], conversation: Conversation, *, strict: bool
    ) -> list[Reply]:
        """Each assistant turn's place. One that doesn't begin with its prompt is left out, or refused if `strict`."""
        found = []
        for index, turn in enumerate(turns):
            if turn.message.role != "assistant":
                continue
            if (strict and turn.weight > 0) or scene.upto(index + 1).startswith(scene.prompt(index)):
                found.append(self._reply(scene, index, turns, conversation))
        return found

    def _reply(self, scene: Scene, index: int, turns: Sequence[Turn], conversation: Conversation) -> Reply:
        prompt, full = scene.prompt(index), scene.upto(index + 1)
        if not full.startswith(prompt):
            raise not_a_prefix(scene.sentinels.unescape(prompt), scene.sentinels.unescape(full), place_of(conversation))
        end = self._end(scene, full[len(prompt) :], len(prompt), turns[index], conversation)
        name = self.tokenizer.control_names[end.content if isinstance(end.content, int) else -1]
        start = full.find(name, end.start)
        return Reply(index, len(prompt), start + len(name), len(full), full)

    def _end(self, scene: Scene, completion: str, offset: int, turn: Turn, conversation: Conversation) -> Cut:
        cuts = self._splitter.split(completion, scene.sentinels.marks, offset)
        end = end_of_turn(cuts, self.features.ends) or end_of_turn(cuts, self.stop_ids)
        if end is None:
            raise TemplateError(
                f"message {turn.origin}: no end of turn behind the reply, so the model would never learn to stop",
                place=place_of(conversation),
                hint="the template must end every reply with its end-of-turn token",
            )
        return end

    def _pieces(
        self,
        text: str,
        scene: Scene,
        turns: Sequence[Turn],
        replies: Sequence[Reply],
        weights: Mapping[int, float],
        given: float = 0.0,
    ) -> tuple[Piece, ...]:
        """A rendering as pieces.

        Args:
            replies: the assistant turns; text is split where each one's generation begins.
            weights: turn → weight; turns that aren't here are given.
            given: the weight of everything that the model doesn't write.
        """
        cuts = list(self._cuts(text, scene, replies))
        inside = [reply for reply in replies if reply.stands_in(text)]
        places = label_cuts([cut for cut, _ in cuts], turns, scene.sentinels, inside)
        pieces: list[Piece] = []
        state = self.grammar.start() if self.grammar else None
        current: Reply | None = None
        for (cut, fresh), (message, part) in zip(cuts, places, strict=True):
            reply = next((item for item in inside if item.start <= cut.start < self._written_end(item, text)), None)
            if reply is not current:
                state, current = (self.grammar.start() if self.grammar else None), reply
            weight = given if reply is None else weights.get(reply.index, given)
            content = cut.content
            if reply is not None and state:
                state.feed(content if isinstance(content, int) else -1)
                weight = given if state.given else weight
            content = scene.sentinels.unescape(content) if isinstance(content, str) else content
            pieces.append(Piece(content, weight, message, part, fresh))
        return tuple(pieces)

    def _written_end(self, reply: Reply, text: str) -> int:
        """Where the model stops writing: behind its end of turn, or behind the line break that is trained too."""
        with_glue = self.settings.train_line_break_after_end and text.startswith(reply.text)
        return reply.after if with_glue else reply.end

    def _cuts(self, text: str, scene: Scene, replies: Sequence[Reply]) -> Iterator[tuple[Cut, bool]]:
        """The rendering cut at control tokens, and before that where generation begins; and whether a cut is fresh."""
        borders = {reply.start for reply in replies if text.startswith(reply.text[: reply.start])}
        if self.settings.train_line_break_after_end:
            borders |= {reply.after for reply in replies if text.startswith(reply.text)}
        edges = [0, *sorted(border for border in borders if 0 < border < len(text)), len(text)]
        for start, end in itertools.pairwise(edges):
            for number, cut in enumerate(self._splitter.split(text[start:end], scene.sentinels.marks, start)):
                yield cut, start > 0 and number == 0

    # Replies

    def arranged(self, conversation: Conversation) -> Conversation:
        """The conversation as this template renders it: tool results inline, or as tool messages with call ids."""
        turns = self._turns(conversation, TrainOn.EVERYTHING)
        return replace(conversation, messages=tuple(turn.message for turn in turns))

    def parse_reply(self, ids: Sequence[int]) -> Message:
        """Text, thinking and calls, as far as the template's grammar is known."""
        return self._replies.parse(ids)

    def canonical_reply(self, message: Message) -> Message:
        """The reply as the template keeps it."""
        return self._replies.canonical(message)

    def expected_bos(self, conversation: Conversation) -> int:
        """How often the template itself writes begin-of-text for this conversation."""
        turns = self._turns(conversation, TrainOn.EVERYTHING)
        scene = self._scene(turns, conversation)
        cuts = self._splitter.split(scene.upto(len(turns)), scene.sentinels.marks)
        return sum(cut.content == self.tokenizer.bos_id for cut in cuts)
