"""A chat template as a program: Jinja in an immutable sandbox, its output and its time bounded.

The environment follows transformers' (`utils/chat_template_utils.py`): block trimming, `tojson` without escapes,
`raise_exception`, `strftime_now`, loop controls and the `generation` tag.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from chatwright.errors import TemplateError

MAX_CHARACTERS = 20_000_000
MAX_SECONDS = 10.0
MAX_ROUNDS = 2_000_000
FIXED_NOW = "2025-01-01"
"""The date that templates see unless `variables` has `now`: training and serving must agree on it."""


class _TooMuch(Exception):
    """A template ran too long or wrote too much."""


class _Raised(Exception):
    """A template called `raise_exception`, or asked for something that can't be done faithfully."""


class _Generation(jinja2.ext.Extension):
    """Tolerates `{% generation %}`: weights come from structure, so the tag changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The body of the tag as a call block, with the scope that transformers gives it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


_PLAIN = frozenset({str, dict, list, jinja2.runtime.LoopContext})
_SAFE: dict[tuple[type, str], bool] = {}


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with arithmetic bounded and every loop counted."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """The sandbox's own answer, remembered for plain types, where it depends on type and name only."""
        kind = type(obj)
        if kind not in _PLAIN:
            return super().is_safe_attribute(obj, attr, value)
        known = _SAFE.get((kind, attr))
        if known is None:
            known = _SAFE[kind, attr] = super().is_safe_attribute(obj, attr, value)
        return known

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiplication and powers can make huge values in one step: bounded by size."""
        sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right) if side is not None]
        if operator == "**" and max(sizes, default=0) > 1000:
            raise _TooMuch("a power of a large number")
        if operator == "*" and any(hasattr(side, "__len__") for side in (left, right)):
            product = sizes[0] * sizes[-1]
            if product > MAX_CHARACTERS:
                raise _TooMuch(f"a repetition of {product} items")
        if operator == "%" and isinstance(left, str):
            _bounded_format(left)
        return super().call_binop(context, operator, left, right)


def _count_rounds(loop: jinja2.nodes.For, environment: jinja2.Environment) -> None:
    """Make a loop count its rounds: all at its start, or one by one where it is recursive."""

    def call(name: str, *arguments: Any) -> jinja2.nodes.Call:
        return jinja2.nodes.Call(jinja2.nodes.Name(name, "load"), list(arguments), [], None, None)

    added: jinja2.nodes.Node
    if loop.recursive:
        added = jinja2.nodes.ExprStmt(call("__tick"))
        loop.body.insert(0, added)
    else:
        added = loop.iter = call("__counted", loop.iter)
    added.set_environment(environment)
    for node in (added, *added.find_all(jinja2.nodes.Node)):
        if node.lineno is None:
            node.lineno = loop.lineno


def _bounded_format(pattern: str) -> None:
    if any(int(width) > 10_000 for width in re.findall(r"\d+", pattern) if len(width) < 20):
        raise _TooMuch("a format with a huge width")


class _Run(threading.local):
    """What one render, on one thread, has used up."""

    now: str = FIXED_NOW
    rounds: int = 0
    deadline: float = float("inf")


class JinjaProgram:
    """One chat template, compiled.

    Args:
        text: the Jinja text.
        name: what to call it in errors.

    Raises:
        TemplateError: it isn't valid Jinja.
    """

    def __init__(self, text: str, name: str = "chat template") -> None:
        self.text = text
        self.name = name
        self._run = _Run()
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        for filter_name in ("e", "escape", "forceescape", "xmlattr", "urlize"):
            environment.filters[filter_name] = _guarded(environment.filters[filter_name], filter_name)
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.fromisoformat(self._run.now).strftime(form),
            "__tick": self._tick,
            "__counted": self._counted,
        }
        try:
            tree = environment.parse(text)
            for loop in tree.find_all(jinja2.nodes.For):
                _count_rounds(loop, environment)
            code = environment.compile(tree, name=name)
            self._template = environment.template_class.from_code(environment, code, environment.globals)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"isn't valid Jinja: {error.message}", place=f"{name}, line {error.lineno}") from None

    def _tick(self, rounds: int = 1) -> str:
        self._run.rounds += rounds
        if self._run.rounds > MAX_ROUNDS:
            raise _TooMuch(f"more than {MAX_ROUNDS} rounds of loops")
        if time.monotonic() > self._run.deadline:
            raise _TooMuch(f"more than {MAX_SECONDS:g} s")
        return ""

    def _counted(self, items: Any) -> Any:
        """What a loop runs over, its rounds counted beforehand; generators become lists."""
        if not hasattr(items, "__len__"):
            items = list(itertools.islice(items, MAX_ROUNDS + 1))
        self._tick(len(items))
        return items

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
        place: str | None = None,
    ) -> str:
        """The text that the template makes.

        Args:
            messages: dicts in OpenAI's shape. tools: schemas, or None.
            variables: further names; `now` is the date that `strftime_now` shows.
            place: what to call the conversation in errors.

        Raises:
            TemplateError: the template fails, refuses the conversation, or runs too long.
        """
        context = {
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **{key: value for key, value in variables.items() if key != "now"},
        }
        run = self._run
        run.now, run.rounds, run.deadline = str(variables.get("now", FIXED_NOW)), 0, time.monotonic() + MAX_SECONDS
        chunks: list[str] = []
        size = 0
        with _errors(place or self.name):
            for chunk in self._template.generate(context):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_CHARACTERS:
                    raise _TooMuch(f"more than {MAX_CHARACTERS} characters")
                if time.monotonic() > run.deadline:
                    raise _TooMuch(f"more than {MAX_SECONDS:g} s")
        return "".join(chunks)


@contextmanager
def _errors(place: str) -> Iterator[None]:
    """Whatever goes wrong inside a template as a `TemplateError`."""
    try:
        yield
    except _TooMuch as error:
        raise TemplateError(f"was stopped after {error}", place=place) from None
    except _Raised as error:
        raise TemplateError(f"refuses the conversation: {error}", place=place) from None
    except (
        *(jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError),
        *(OverflowError, ZeroDivisionError, RecursionError, MemoryError),
    ) as error:
        raise TemplateError(f"fails: {type(error).__name__}: {error}", place=place) from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if ensure_ascii:
        _refuse_stand_ins(value, "tojson(ensure_ascii=True)")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _guarded(function: Any, name: str) -> Any:
    """An escaping filter that refuses text holding stand-ins: it would not escape what they stand for."""
    positions = getattr(function, "jinja_pass_arg", None)

    def checked(*arguments: Any, **options: Any) -> Any:
        _refuse_stand_ins(arguments[1] if positions is not None else arguments[0], name)
        return function(*arguments, **options)

    if positions is not None:
        checked.jinja_pass_arg = positions  # type: ignore[attr-defined]
    return checked


def _refuse_stand_ins(value: Any, name: str) -> None:
    if re.search("[\ue000-\uf8ff]", str(value)):
        raise _Raised(f"its filter {name!r} would rewrite characters of a message that must come out unchanged")


def _raise_exception(message: str) -> None:
    raise _Raised(message)
