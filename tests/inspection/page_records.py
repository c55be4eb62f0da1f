"""Records for tests of the page: one of everything, made by hand."""

from __future__ import annotations

import numpy as np

from chatwright.inspection.cells import token_cells
from chatwright.inspection.ledger import Ledger
from chatwright.inspection.page_data import (
    Histogram,
    MessageText,
    PageData,
    PageFinding,
    PageMatch,
    PageSide,
    Place,
    PlanFigures,
    RunFigures,
    ShownExample,
    ShownPack,
    ShownSegment,
    SourceFigures,
    length_edges,
    stretches,
)
from chatwright.inspection.viewer import trained_mask
from chatwright.templates import twin
from chatwright.templates.rendered import ExampleKey, RenderedExample, Span

SOURCE = "data/my chats.jsonl"


class ByteReader:
    """Ids below 256 are UTF-8 bytes; 256 and 257 are control tokens."""

    control_names = {256: "<|user|>", 257: "<|end|>"}  # noqa: RUF012 - a fake

    def decode(self, ids, *, place=twin.Place.AFTER_CONTROL):
        return bytes(ids).decode("utf-8", errors="replace")

    def token_text(self, index):
        return self.control_names.get(index, f"<{index:02X}>")


def rendered(question: str, answer: str, row: int = 0, part: int = 0) -> RenderedExample:
    """`<|user|>question<|end|>answer<|end|>`, the answer and its end trained."""
    first = list(question.encode("utf-8", errors="surrogatepass"))
    second = list(answer.encode("utf-8", errors="surrogatepass"))
    ids = [256, *first, 257, *second, 257]
    weights = [0.0] * (len(first) + 2) + [1.0] * (len(second) + 1)
    middle = len(first) + 2
    spans = (Span(0, middle, 0, 0), Span(middle, len(ids), 1, 0))
    return RenderedExample(np.array(ids, np.int32), np.array(weights, np.float32), spans, ExampleKey(SOURCE, row, part))


def shown(question: str, answer: str, row: int = 0, part: int = 0, most: int = 2000, **more: object) -> ShownExample:
    """The record of such an example."""
    example = rendered(question, answer, row, part)
    messages = (MessageText("user", (("text", question),)), MessageText("assistant", (("text", answer),)))
    return ShownExample(
        key=example.key,
        entry=0,
        ids=tuple(example.ids[:most].tolist()),
        cells=tuple(token_cells(example, ByteReader(), most)),
        num_tokens=len(example.ids),
        num_supervised=example.num_supervised,
        trained_runs=stretches(trained_mask(example)),
        messages=messages,
        **more,
    )


def ledger_of(count: int, tokens: int) -> Ledger:
    """`count` rows kept of two more that were read."""
    ledger = Ledger()
    ledger.count(SOURCE, "read", count + 2)
    ledger.count(SOURCE, "skipped", 1, reason="bad <line>")
    ledger.count(SOURCE, "converted", count + 1)
    ledger.count(SOURCE, "rendered", count + 1, tokens + 900)
    ledger.count(SOURCE, "dropped", 1, 900, "longer than 800 tokens")
    ledger.count(SOURCE, "kept", count, tokens)
    ledger.count(SOURCE, "packed", count, tokens)
    ledger.check()
    return ledger


def page_of(*examples: ShownExample, **changes: object) -> PageData:
    """A page of these examples, all in one pack."""
    lengths = np.array([example.num_tokens for example in examples])
    supervised = np.array([example.num_supervised for example in examples])
    starts = np.cumsum([0, *lengths]).tolist()
    segments = tuple(
        ShownSegment(start, example.num_tokens, example.key, example.num_supervised, example.trained_runs)
        for start, example in zip(starts, examples, strict=False)
    )
    tokens = int(lengths.sum())
    source = SourceFigures(
        name=SOURCE,
        format="messages",
        rows=len(examples) + 2,
        examples=len(examples),
        tokens=tokens,
        supervised=int(supervised.sum()),
        lengths=Histogram.of(lengths, length_edges(int(lengths.max()))),
        shares=Histogram.of(supervised / lengths, [0.0, 0.5, 1.0]),
    )
    given: dict[str, object] = {
        "title": "my chats",
        "model": "tiny",
        "template": "chatml",
        "identity": "0123456789abcdef",
        "sources": (source,),
        "examples": examples,
        "num_examples": len(examples),
        "choice": "rows 0:5 of every source",
        "packs": (ShownPack(1, 1, 1, tokens, tokens + 40, segments),),
        "plan": PlanFigures(1, 1, 1, tokens + 40, tokens, 40),
        "ledger": tuple(ledger_of(len(examples), tokens).to_dict()["entries"]),
        "recipe": "model: tiny\n",
        "findings": (
            PageFinding(
                "empty_reply",
                "warning",
                "replies are empty",
                2,
                "remove the row",
                (Place(SOURCE, 0, "is empty"), Place("x", 9)),
            ),
        ),
        "matches": (
            PageMatch(Place(SOURCE, 0), PageSide("the same words", ((4, 8),)), "gsm8k row 3", PageSide("same"), "80%"),
        ),
    }
    return PageData(**{**given, **changes})  # type: ignore[arg-type]


def with_run(example: ShownExample) -> dict[str, object]:
    """Losses that fall by half, as keywords of `shown` and the figures of the page."""
    places = [at for a, b in example.trained_runs for at in range(a, b)]
    before = {at: 1.0 + at / 10 for at in places}
    return {"losses_before": before, "losses_after": {at: loss / 2 for at, loss in before.items()}}


RUN = RunFigures("base", "runs/x (step-000010)", 2.0, 1.0, 12)
