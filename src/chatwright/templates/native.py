"""The native formats: nanochat, ChatML, MiniMind's older shape and `#ROLE:` text, each as data, one outline for all.

Each comes with an equivalent Jinja text that is saved with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from chatwright.conversations.schema import Conversation, Message, Role
from chatwright.errors import TemplateError
from chatwright.templates.base import Delimiters, Template, TemplateSettings, TrainOn
from chatwright.templates.native_jinja import CHATML_JINJA, MINIMIND_JINJA, NANOCHAT_JINJA, ROLE_TEXT_JINJA
from chatwright.templates.outline import Outline, Piece
from chatwright.templates.policy import Turn, arrange_turns, place_of, plain_text
from chatwright.templates.rendered import ExampleKey
from chatwright.templates.replies import ReplyGrammar, ThinkTokens
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tool_grammars import ADDED_TOOL_TOKENS, ToolGrammar
from chatwright.templates.twin import Place


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around a message: control tokens and texts before it, a control token (or nothing: "") behind it."""

    before: tuple[str, ...]
    end: str = ""


@dataclass(frozen=True, slots=True)
class NativeFormat:
    """A format as data.

    Args:
        frames: for each role what stands around its messages.
        jinja: the equivalent chat template.
        bos: the control token that begins a sequence, or None.
        glue: text between the end of a message and the next one.
        merge_system: the system message is put before the first user message's text, with an empty line between.
        tool_tokens: the format's own tool tokens, or None.
    """

    frames: Mapping[Role, Frame]
    jinja: str
    bos: str | None = None
    glue: str = ""
    merge_system: bool = False
    tool_tokens: Mapping[str, str] | None = None
    control: tuple[str, ...] = field(default=())

    def missing(self, tokenizer: TextTokenizer) -> list[str]:
        """The format's control tokens that the tokenizer lacks, its tool tokens included."""
        return [name for name in self.control if name not in tokenizer.control_ids]

    @property
    def delimiters(self) -> Delimiters:
        """`text` where some header is plain text only, which any message can imitate."""
        own = (set(self.control).intersection(frame.before) for frame in self.frames.values())
        return "tokens" if all(own) else "text"


_NANOCHAT_TOOLS = {
    "call_start": "<|python_start|>",
    "call_end": "<|python_end|>",
    "result_start": "<|output_start|>",
    "result_end": "<|output_end|>",
}

NATIVE_FORMATS: dict[str, NativeFormat] = {
    # nanochat, tokenizer.render_conversation (December 2025)
    "nanochat": NativeFormat(
        frames={
            "user": Frame(("<|user_start|>",), "<|user_end|>"),
            "assistant": Frame(("<|assistant_start|>",), "<|assistant_end|>"),
        },
        jinja=NANOCHAT_JINJA,
        bos="<|bos|>",
        merge_system=True,
        tool_tokens=_NANOCHAT_TOOLS,
        control=(
            *("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"),
            *_NANOCHAT_TOOLS.values(),
        ),
    ),
    "chatml": NativeFormat(
        frames={
            "system": Frame(("<|im_start|>", "system\n"), "<|im_end|>"),
            "user": Frame(("<|im_start|>", "user\n"), "<|im_end|>"),
            "assistant": Frame(("<|im_start|>", "assistant\n"), "<|im_end|>"),
        },
        jinja=CHATML_JINJA,
        glue="\n",
        control=("<|im_start|>", "<|im_end|>"),
    ),
    # MiniMind before 2025: begin-of-text before every turn
    "minimind": NativeFormat(
        frames={
            "system": Frame(("<s>", "system\n"), "</s>"),
            "user": Frame(("<s>", "user\n"), "</s>"),
            "assistant": Frame(("<s>", "assistant\n"), "</s>"),
        },
        jinja=MINIMIND_JINJA,
        glue="\n",
        control=("<s>", "</s>"),
    ),
    # MA-RLHF: roles are words, only a reply has an end, and every header begins a text that is encoded on its own
    "role_text": NativeFormat(
        frames={
            "system": Frame(("\n#SYSTEM:",)),
            "user": Frame(("\n#USER:",)),
            "assistant": Frame(("\n#ASSISTANT:",), "<|im_end|>"),
        },
        jinja=ROLE_TEXT_JINJA,
        bos="<|im_start|>",
        control=("<|im_start|>", "<|im_end|>"),
    ),
}


class NativeTemplate(Template):
    """A native format with one tokenizer.

    Raises:
        TemplateError: the tokenizer lacks control tokens of the format and may not get them.
    """

    def __init__(self, name: str, tokenizer: TextTokenizer, settings: TemplateSettings) -> None:
        self.format = NATIVE_FORMATS[name]
        missing = self.format.missing(tokenizer)
        if missing and not settings.add_missing_tokens:
            raise TemplateError(
                f"the {name} format needs control tokens that the tokenizer lacks: {', '.join(missing)}",
                place="template.format",
                hint="set template.add_missing_tokens: true to add them, or choose another format",
            )
        tool_names, added = _tool_names(self.format, settings)
        before = tokenizer
        self.tokenizer = tokenizer = tokenizer.add_control_tokens([*missing, *added, *settings.add_tokens])
        self.settings = settings
        self.delimiters = self.format.delimiters
        self.grammar = ToolGrammar.from_names(tokenizer, tool_names) if tool_names else None
        self.jinja = self.format.jinja
        self._end = tokenizer.control_ids[self.format.frames["assistant"].end]
        self.stop_ids = tuple(sorted({self._end, *tokenizer.stop_ids}))
        self.trained_token_ids = newly_used_ids(before, tokenizer, self.grammar, settings)
        header = self.format.frames["assistant"].before
        place = Place.AFTER_CONTROL if header[-1] in self.format.control else Place.INSIDE
        self._reply = ReplyGrammar(tokenizer, self.grammar, ThinkTokens.of(tokenizer), self.stop_ids, place)

    def outline(self, conversation: Conversation, train_on: TrainOn) -> list[Outline]:
        """One outline: native formats never rewrite history."""
        pieces = self._pieces(self._turns(conversation, train_on), conversation, train_on)
        return [Outline(tuple(pieces), ExampleKey(conversation.source, conversation.row, 0))]

    def prompt_outline(self, conversation: Conversation) -> Outline:
        """All turns and the header of the reply; a last assistant message stays open."""
        turns = self._turns(conversation, TrainOn.ASSISTANT)
        pieces = self._pieces(turns, conversation, TrainOn.ASSISTANT)
        if turns and turns[-1].message.role == "assistant":
            last_end = max(index for index, piece in enumerate(pieces) if piece.content == self._end)
            pieces = pieces[:last_end]
        else:
            pieces += self._header("assistant", -1, 0.0)
        return Outline(tuple(pieces), ExampleKey(conversation.source, conversation.row, 0))

    def arranged(self, conversation: Conversation) -> Conversation:
        """The conversation with tool results inside the assistant's messages."""
        turns = self._turns(conversation, TrainOn.EVERYTHING)
        return replace(conversation, messages=tuple(turn.message for turn in turns))

    def parse_reply(self, ids: Sequence[int]) -> Message:
        """Text, thinking, calls and results by their control tokens."""
        return self._reply.parse(ids)

    def canonical_reply(self, message: Message) -> Message:
        """Parts joined, bare calls without names."""
        return self._reply.canonical(message)

    def expected_bos(self, conversation: Conversation) -> int:
        """One where the format begins with begin-of-text, one a turn where its headers have it, else none."""
        name = self.tokenizer.control_names.get(self.tokenizer.bos_id if self.tokenizer.bos_id is not None else -1)
        turns = self._turns(conversation, TrainOn.EVERYTHING)
        in_headers = sum(self.format.frames[turn.message.role].before.count(name or "") for turn in turns)
        return in_headers + (self.format.bos is not None and self.format.bos == name)

    def _turns(self, conversation: Conversation, train_on: TrainOn) -> list[Turn]:
        system = self.settings.default_system
        turns = arrange_turns(conversation, fold=True, default_system=system, train_on=train_on)
        if self.format.merge_system:
            turns = _merge_system(turns, conversation)
        for turn in turns:
            if turn.message.role not in self.format.frames:
                raise TemplateError(
                    f"message {turn.origin} from {turn.message.role!r} can't stand there in this format",
                    place=place_of(conversation),
                    hint="a tool message must follow an assistant message; a merged system message must come first",
                )
        return turns

    def _pieces(self, turns: Sequence[Turn], conversation: Conversation, train_on: TrainOn) -> list[Piece]:
        given = 1.0 if train_on is TrainOn.EVERYTHING else 0.0
        pieces = [] if self.format.bos is None else [Piece(self.tokenizer.control_ids[self.format.bos], given)]
        for turn in turns:
            pieces += self._header(turn.message.role, turn.origin, given)
            if turn.message.role == "assistant":
                pieces += self._reply_pieces(turn, conversation, given)
            else:
                end = self.format.frames[turn.message.role].end
                part = turn.origins[-1][1] if turn.origins else -1
                pieces.append(Piece(plain_text(turn, conversation), given, turn.origin, part))
                if end:
                    pieces.append(Piece(self.tokenizer.control_ids[end], given, turn.origin))
                pieces.append(Piece(self.format.glue, given))
        return [piece for piece in pieces if piece.content != ""]

    def _header(self, role: Role, origin: int, weight: float) -> list[Piece]:
        """A header that begins as text is encoded apart from the message before it: nothing else parts the two."""
        control = self.tokenizer.control_ids
        return [
            Piece(control[item], weight, origin)
            if item in self.format.control
            else Piece(item, weight, origin, fresh=not place)
            for place, item in enumerate(self.format.frames[role].before)
        ]

    def _reply_pieces(self, turn: Turn, conversation: Conversation, given: float) -> list[Piece]:
        """What the model writes, results forced between; the first text stands apart from the header."""
        state = self.grammar.start() if self.grammar else None
        pieces: list[Piece] = []
        for item, part in self._reply.write(turn.message.parts, place_of(conversation)):
            if state:
                state.feed(item if isinstance(item, int) else -1)
            weight = given if state and state.given else turn.weight
            pieces.append(Piece(item, weight, *turn.origins[part], fresh=not pieces))
        glue = turn.weight if self.settings.train_line_break_after_end else given
        return [*pieces, Piece(self._end, turn.weight, turn.origin), Piece(self.format.glue, glue, turn.origin)]


def _merge_system(turns: Sequence[Turn], conversation: Conversation) -> list[Turn]:
    """The turns with a leading system message put before the first user message's text."""
    if not turns or turns[0].message.role != "system":
        return list(turns)
    if len(turns) < 2 or turns[1].message.role != "user":
        raise TemplateError(
            "the system message isn't followed by a user message, which this format puts it into",
            place=place_of(conversation),
        )
    system, user = turns[0], turns[1]
    text = f"{plain_text(system, conversation)}\n\n{plain_text(user, conversation)}"
    return [Turn(Message.of("user", text), user.origins[:1] or ((-1, -1),), user.weight), *turns[2:]]


def _tool_names(form: NativeFormat, settings: TemplateSettings) -> tuple[Mapping[str, str] | None, list[str]]:
    """The tool tokens by role, or None, and those of them to add to the tokenizer."""
    if isinstance(settings.tools, dict):
        return settings.tools, []
    if settings.tools == "add":
        return ADDED_TOOL_TOKENS, list(ADDED_TOOL_TOKENS.values())
    return (form.tool_tokens if settings.tools == "auto" else None), []


def newly_used_ids(
    before: TextTokenizer, after: TextTokenizer, grammar: ToolGrammar | None, settings: TemplateSettings
) -> tuple[int, ...]:
    """Control ids whose rows the base model never learned: added ones, and those a recipe maps to tool roles."""
    added = set(after.control_ids.values()) - set(before.control_ids.values())
    mapped = set(grammar.token_ids().values()) if grammar and isinstance(settings.tools, dict) else set()
    return tuple(sorted(added | mapped))
