"""Probes: prompts with small checks that a program can make, so that two answers can be told apart at a glance.

A check judges form, not worth: brevity, format, tool use, whether the model kept to its own turn and ended it in time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveInt

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.sources import load_conversations
from chatwright.errors import UserError, not_utf8
from chatwright.settings import Settings, build
from chatwright.tasks.grading import final_text, last_number, mentions_any

_WORD = re.compile(r"[A-Za-z0-9À-ÿ]+(?:['’.,-][A-Za-z0-9À-ÿ]+)*|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
"""A word, or one character of a script that puts no spaces between words."""
_ROLE_LINE = re.compile(
    r"^[#*\s<|\[]*(?:user|human|assistant|system|question|instruction|用户|助手|提问|问)[#*>|\]]*\s*(?:[:：].*)?$",
    re.IGNORECASE | re.MULTILINE,
)
"""A line that is the header of another turn: `User:`, `### Question: …`, or `user` alone, as ChatML's reads as text."""
_JSON_VALUE = re.compile(r"[\[{]")


class Probe(Settings):
    """One prompt and its checks; every answer is also checked for ending in time and keeping to its own turn.

    Args:
        name: short, for tables; the prompt's beginning where not given.
        prompt: what the user says.
        system: the system message, or None.
        mentions: one of these must stand in the final text.
        number: the last number of the final text.
        calls: the tool that must have been called and have answered.
        most_words: no longer answer than this. words: exactly so many.
        json_items: the answer holds JSON that names so many things.
        most_functions: no more Python functions than this.
        no_question: the answer isn't another question.
    """

    name: str = ""
    prompt: str = Field(min_length=1)
    system: str | None = None
    mentions: tuple[str, ...] = ()
    number: float | None = None
    calls: str | None = None
    most_words: PositiveInt | None = None
    words: PositiveInt | None = None
    json_items: PositiveInt | None = None
    most_functions: PositiveInt | None = None
    no_question: bool = False

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name or (self.prompt if len(self.prompt) <= 40 else self.prompt[:39] + "…")

    @property
    def conversation(self) -> Conversation:
        """The prompt as a conversation that waits for the reply."""
        system = [] if self.system is None else [Message.of("system", self.system)]
        return Conversation((*system, Message.of("user", self.prompt)))


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply to a probe.

    Args:
        message: its parts. ended: the model ended it itself, within the limit of tokens.
        foreign: control tokens of other turns that it wrote (`<|im_start|>`), by name.
        num_tokens: its length, the end included.
    """

    message: Message
    ended: bool
    foreign: tuple[str, ...] = ()
    num_tokens: int = 0


Check = Callable[[Answer, Any], bool]


def _called(answer: Answer, tool: str) -> bool:
    parts = answer.message.parts
    asked = any(part.kind == "tool_call" and part.tool in (None, tool) for part in parts)
    return asked and any(part.kind == "tool_result" for part in parts)


CHECKS: dict[str, tuple[str, Check]] = {
    "mentions": ("right", lambda answer, words: mentions_any(final_text(answer.message), words)),
    "number": ("right", lambda answer, number: last_number(final_text(answer.message)) == number),
    "calls": ("tool", _called),
    "most_words": ("brief", lambda answer, most: 0 < count_words(final_text(answer.message)) <= most),
    "words": ("format", lambda answer, count: count_words(final_text(answer.message)) == count),
    "json_items": ("format", lambda answer, count: count_json_items(answer.message.text) == count),
    "most_functions": ("to the point", lambda answer, most: len(re.findall(r"\bdef ", answer.message.text)) <= most),
    "no_question": ("answers", lambda answer, _: is_no_question(final_text(answer.message))),
}
"""Field of a probe → the mark's name and its check."""


def marks(probe: Probe, answer: Answer) -> dict[str, bool]:
    """Every check of the probe with its outcome, then the two that all answers get."""
    found: dict[str, bool] = {}
    for name, (mark, check) in CHECKS.items():
        wanted = getattr(probe, name)
        if wanted not in (None, False, ()):
            found[mark] = found.get(mark, True) and check(answer, wanted)
    return {**found, "own turn": keeps_its_turn(answer), "ends": answer.ended}


def keeps_its_turn(answer: Answer) -> bool:
    """Whether the reply neither begins another turn by a control token nor writes another role's header."""
    return not answer.foreign and not _ROLE_LINE.search(answer.message.text)


def count_words(text: str) -> int:
    """Words of Latin script and numbers, and each character of Chinese, Japanese and Korean."""
    return len(_WORD.findall(text))


def count_json_items(text: str) -> int | None:
    """How many things the first JSON object or list in `text` names; None where there is none.

    A list names its items; an object the items of the longest list in it, or where it has none its own fields.
    """
    for match in _JSON_VALUE.finditer(text):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        lists = [value] if isinstance(value, list) else [each for each in value.values() if isinstance(each, list)]
        return max((len(each) for each in lists), default=len(value))
    return None


def is_no_question(text: str) -> bool:
    """Whether there is an answer and it doesn't end as a question."""
    return bool(text.strip()) and not text.rstrip(" \n\"'”’)）*").endswith(("?", "？"))


def built_in_probes() -> tuple[Probe, ...]:
    """The probes that come with the package."""
    text = (files("chatwright.recipes") / "probes.yaml").read_text(encoding="utf-8")
    return _probes(yaml.safe_load(text), "probes.yaml")


def read_probes(path: str | Path) -> tuple[Probe, ...]:
    """Probes of a file: YAML or JSON with `Probe`'s fields, text with a prompt a line, or conversations in any format.

    Of a conversation the last user turn and the system message are asked.

    Raises:
        UserError: there is no such file, or no prompt in it. ConfigError: a probe has an unknown field.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("there is no such file", place=str(path), hint="give a .txt with a prompt a line, or .yaml")
    if file.suffix in (".yaml", ".yml"):
        found = _probes(_read_yaml(file), str(path))
    elif file.suffix == ".txt":
        found = tuple(Probe(prompt=line.strip()) for line in _read_text(file).splitlines() if line.strip())
    else:
        found = tuple(_of_rows(file))
    if not found:
        raise UserError("holds no prompt", place=str(path), hint="write a prompt a line")
    return found


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(error), place=str(file), hint="save it as UTF-8") from None


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(_read_text(file))
    except yaml.YAMLError as error:
        raise UserError(f"is no YAML: {error}", place=str(file), hint="begin each probe with `- prompt: …`") from None


def _probes(plain: Any, place: str) -> tuple[Probe, ...]:
    if not isinstance(plain, Sequence) or isinstance(plain, str) or not all(isinstance(row, dict) for row in plain):
        raise UserError("must be a list of probes", place=place, hint="begin each probe with `- prompt: …`")
    return tuple(build(Probe, row, f"{place}, probe {number}") for number, row in enumerate(plain, 1))


def _of_rows(file: Path) -> list[Probe]:
    """A prompt a conversation: its last user turn, with its system message."""
    found = []
    for row in load_conversations(file).conversations:
        users = [message.text for message in row.messages if message.role == "user" and message.text.strip()]
        system = next((message.text for message in row.messages if message.role == "system"), None)
        if users:
            found.append(Probe(prompt=users[-1], system=system))
    return found
