"""`chatwright chat`: one prompt, a conversation, or two models side by side."""

from __future__ import annotations

from chatwright.console import note, out, print_error, table
from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import TemplateError, UserError
from chatwright.inference.chat_session import ChatSession
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tool_choice import ChosenTools, choose_tools
from chatwright.models.generation_weights import GenerationWeights, generation_weights
from chatwright.recipes.showcase import shown
from chatwright.recipes.talking import talk_to
from chatwright.settings import build

HELP = "/reset begins anew · /quit ends (or Ctrl-D)"
Options = tuple[float, float, int, int, int]


def run_chat(
    model: str,
    prompt: str | None,
    compare: str | None,
    system: str | None,
    options: Options,
    tools: str | None = None,
    allow_unsafe: bool = False,
    weights: str = GenerationWeights.PACKED,
) -> None:
    """Answer one prompt and print only the reply, or talk until the user leaves.

    Args:
        tools: names with commas between, or `none`; None for the calculator, without listing it in the prompt.
        weights: see `GenerationWeights`.
        allow_unsafe: run the Python tool's programs even where nothing isolates them.
    """
    temperature, top_p, top_k, max_new_tokens, seed = options
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k or None}
    settings = build(SamplingSettings, {**drawn, "max_new_tokens": max_new_tokens, "seed": seed}, "chat")
    chosen = None if tools is None else choose_tools(_names(tools), allow_unsafe=allow_unsafe)
    prompt = None if prompt is None else _readable(prompt)
    names = [model, *([compare] if compare else [])]
    kind = generation_weights(weights)
    sessions = [talk_to(name, settings, system=system, weights=kind) for name in names]
    if tools is not None:
        for name, session in zip(names, sessions, strict=True):
            _equip(name, session, chosen)
    if prompt is not None:
        if len(sessions) == 1:
            print(sessions[0].ask(prompt).text)
        else:
            _side_by_side(names, sessions, prompt)
        return
    note(HELP)
    while (line := _read_line()) is not None:
        if line == "/reset":
            for session in sessions:
                session.reset()
            continue
        try:
            _stream(sessions[0], line) if len(sessions) == 1 else _side_by_side(names, sessions, line)
        except KeyboardInterrupt:
            note("stopped; the history is as before this prompt")
        except UserError as error:
            print_error(error)


def _names(tools: str) -> list[str]:
    """`calculator,python` as a list; `none` as an empty one."""
    names = [name.strip() for name in tools.split(",") if name.strip()]
    return [] if names == ["none"] else names


def _equip(name: str, session: ChatSession, chosen: ChosenTools | None) -> None:
    """Give a session the chosen tools, or none."""
    session.use_tools(chosen.toolbox if chosen else None, chosen.definitions if chosen else ())
    try:
        session.responder.template.arranged(Conversation((Message.of("user", "?"),), tools=session.tools))
    except TemplateError:
        raise UserError(
            f"the template of {name} has no tool calls, so this model can't be offered tools",
            place="--tools",
            hint="leave --tools out, or train the model with template.tools: add",
        ) from None


def _readable(text: str) -> str:
    """Bytes that were no UTF-8 become replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_line() -> str | None:
    """The next non-empty line; None when the user leaves."""
    while True:
        try:
            line = _readable(out().input("[bold cyan]you[/] › ").strip())
        except (EOFError, KeyboardInterrupt):
            return None
        if line in ("/quit", "/exit"):
            return None
        if line.startswith("/") and line != "/reset":
            note(f"unknown command {line.split()[0]} · {HELP}")
            continue
        if line:
            return line


def _stream(session: ChatSession, line: str) -> None:
    console = out()
    console.print("[bold green]model[/] › ", end="")
    for event in session.stream_events(line):
        if event.kind == "text":
            console.print(event.text, end="", markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"[{event.kind}: {event.text}]", end=" ", style="dim", markup=False, highlight=False)
    console.print()


def _side_by_side(names: list[str], sessions: list[ChatSession], prompt: str) -> None:
    replies = [shown(session.ask(prompt)) for session in sessions]
    out().print(table(prompt, names, [replies]))
