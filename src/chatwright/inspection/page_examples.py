"""The examples of the page: every token with its mask, message by message, and what the script needs to tell more."""

from __future__ import annotations

from typing import Any

from chatwright.inspection.cells import Cell, message_blocks
from chatwright.inspection.escaping import escape, shortened, visible
from chatwright.inspection.page_anchors import Anchors
from chatwright.inspection.page_charts import strip_svg
from chatwright.inspection.page_data import MessageText, PageData, ShownExample

MOST_CHARACTERS = 3_000
"""Shown of each part of a message as it was read; a longer one says how many characters are left out."""
MOST_CELL_CHARACTERS = 400
DIGITS = 3


def examples_html(data: PageData, anchors: Anchors) -> str:
    """All shown examples."""
    return "\n".join(_example(anchors, example, at) for at, example in enumerate(data.examples))


def example_facts(example: ShownExample) -> dict[str, Any]:
    """What the script tells of the tokens: ids, where each cell starts, weights and losses of the trained ones."""
    facts: dict[str, Any] = {
        "ids": list(example.ids),
        "starts": [cell.start for cell in example.cells],
        "weights": {cell.start: round(cell.weight, 6) for cell in example.cells if cell.weight not in (0.0, 1.0)},
    }
    for name, losses in (("before", example.losses_before), ("after", example.losses_after)):
        if losses is not None:
            facts[name] = {at: round(loss, DIGITS) for at, loss in losses.items() if at < len(example.ids)}
    return facts


def _example(anchors: Anchors, example: ShownExample, number: int) -> str:
    key, anchor = example.key, anchors.name(number)
    name = f"row {key.row:,}" + (f", part {key.part}" if key.part else "")
    share = example.num_supervised / example.num_tokens if example.num_tokens else 0.0
    facts = [
        f"{example.num_tokens:,} tokens",
        f"{example.num_supervised:,} trained ({share:.0%})",
        *_mean_losses(example),
    ]
    strip = strip_svg(
        example.trained_runs, example.num_tokens, f"where the {example.num_supervised:,} trained tokens are"
    )
    blocks = "".join(_block(example, role, first, last) for role, first, last in _turns(example))
    hidden = example.num_tokens - len(example.ids)
    more = f'<p class="more">… and {hidden:,} more tokens of this example, not shown</p>' if hidden else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in example.notes)
    return (
        f'<article class="example" id="{anchor}" data-source="{example.entry}" data-number="{number}">'
        f'<header><h3><a href="#{anchor}" title="link to this row">{escape(name)}</a> '
        f'<span class="from">{anchors.named(key.source)}</span></h3>'
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>{strip}{notes}'
        f'<div class="tokens" tabindex="0" role="group" aria-label="{escape(f"tokens of {name}; arrow keys walk")}">'
        f"{blocks}</div>{more}{_as_read(example.messages)}</article>"
    )


def _mean_losses(example: ShownExample) -> list[str]:
    before, after = example.losses_before, example.losses_after
    if not before or not after:
        return []
    means = [sum(losses.values()) / len(losses) for losses in (before, after)]
    return [f"loss {means[0]:.2f} → {means[1]:.2f} nats a token"]


def _turns(example: ShownExample) -> list[tuple[str, int, int]]:
    """(role, first cell, last cell) of what is read as one turn: neighbouring messages of one role are."""
    turns: list[tuple[str, int, int]] = []
    for block in message_blocks(example.cells):
        role = "template"
        if 0 <= block.message < len(example.messages):
            role = example.messages[block.message].role
        if turns and turns[-1][0] == role:
            turns[-1] = (role, turns[-1][1], block.last)
        else:
            turns.append((role, block.first, block.last))
    return turns


def _block(example: ShownExample, role: str, first: int, last: int) -> str:
    words = escape(role)
    tokens = _tokens(example.cells[first:last])
    return f'<div class="turn {words}"><b class="role">{words}</b><p dir="auto">{tokens}</p></div>'


def _tokens(cells: tuple[Cell, ...]) -> str:
    """`<u>` trained, `<i>` given, class `c` a control token; a line break shows its sign."""
    made = []
    for cell in cells:
        text, left = shortened(cell.text, MOST_CELL_CHARACTERS)
        text = escape(text).replace("\n", "↵\n") + (f"… ({left:,} more characters)" if left else "")
        tag = "u" if cell.trained else "i"
        made.append(f'<{tag} class="c">{text}</{tag}>' if cell.control else f"<{tag}>{text}</{tag}>")
    return "".join(made)


def _as_read(messages: tuple[MessageText, ...]) -> str:
    if not messages:
        return ""
    rows = []
    for message in messages:
        flag = "" if message.train is None else f" · train: {str(message.train).lower()}"
        for kind, text in message.parts:
            text, left = shortened(text, MOST_CHARACTERS)
            more = f'<span class="more">… {left:,} more characters, not shown</span>' if left else ""
            words = visible(message.role + ("" if kind == "text" else f" · {kind}") + flag)
            rows.append(f'<dt>{escape(words)}</dt><dd dir="auto">{escape(text)}{more}</dd>')
    return f"<details><summary>the row as it was read</summary><dl>{''.join(rows)}</dl></details>"
