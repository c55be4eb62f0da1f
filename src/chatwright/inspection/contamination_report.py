"""What contamination was found: full counts, every row that was hit, and the most telling hits side by side.

Reports of parts of the data merge into the report of the whole, in any order, to the same result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chatwright.console import table
from chatwright.conversations.schema import Conversation
from chatwright.inspection.contamination import ContaminationIndex, ContaminationSettings, Match, too_short
from chatwright.inspection.contamination_sides import Hit, Side, make_hit, order_of
from chatwright.inspection.evaluation_texts import Evaluations
from chatwright.inspection.viewer import printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

LOOK = "bold red"
"""How the words that both sides have are shown."""


CONTAMINATED = "contaminated by "
"""How the ledger's reasons for rows begin that were left out."""


def drop_reason(index: ContaminationIndex, matches: Sequence[Match]) -> str:
    """The reason in the ledger for a row that is left out: `contaminated by gsm8k`; the task that it shows most of."""
    best = min(matches, key=lambda match: (match.kind != "ngram", -match.share, match.text))
    return f"{CONTAMINATED}{index.items[best.text].task}"


class ContaminationReport:
    """Counts and hits, of all rows or of a part of them.

    Args:
        evaluations: evaluation → how many items the rows were compared with.
        unchecked: evaluation → why it wasn't compared with.
        too_short: evaluation → how many of its items say too little to be found.
        shown: hits kept for show, of each evaluation and kind.
    """

    def __init__(
        self,
        evaluations: Mapping[str, int] | None = None,
        unchecked: Mapping[str, str] | None = None,
        too_short: Mapping[str, int] | None = None,
        shown: int = 20,
    ) -> None:
        self.evaluations, self.unchecked, self.shown = dict(evaluations or {}), dict(unchecked or {}), shown
        self.too_short = dict(too_short or {})
        self.checked: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.rows: dict[tuple[str, int], tuple[str, ...]] = {}
        self.items: dict[str, set[tuple[str, int]]] = {}
        self.hits: dict[tuple[str, str], list[Hit]] = {}

    @staticmethod
    def of(evaluations: Evaluations, settings: ContaminationSettings) -> ContaminationReport:
        """An empty report of a comparison with these evaluations."""
        short = too_short(evaluations.texts, settings)
        return ContaminationReport(evaluations.items, evaluations.unchecked, short, settings.shown)

    @property
    def num_checked(self) -> int:
        """Rows compared."""
        return self.checked.total()

    @property
    def num_contaminated(self) -> int:
        """Rows that hold an evaluation item."""
        return len(self.rows)

    def add(
        self, index: ContaminationIndex, conversations: Sequence[Conversation], matches: Iterable[Sequence[Match]]
    ) -> None:
        """Count the rows and what `index.matches` found in them; sides are made only for the hits that are kept."""
        for conversation, found in zip(conversations, matches, strict=True):
            self.checked[conversation.source] += 1
            if not found:
                continue
            tasks = tuple(dict.fromkeys(index.items[match.text].task for match in found))
            self.rows[conversation.source, conversation.row] = tasks
            for task in tasks:
                of_task = [match for match in found if index.items[match.text].task == task]
                kind = "ngram" if any(match.kind == "ngram" for match in of_task) else "near_duplicate"
                self.counts[conversation.source, task, kind] += 1
                for match in of_task:
                    item = index.items[match.text]
                    self.items.setdefault(task, set()).add((item.source, item.row))
                    self._keep(index, conversation, match)

    def merge(self, other: ContaminationReport) -> None:
        """Add the report of other rows."""
        self.evaluations |= other.evaluations
        self.unchecked |= other.unchecked
        self.too_short |= other.too_short
        self.checked += other.checked
        self.counts += other.counts
        self.rows |= other.rows
        for task, items in other.items.items():
            self.items.setdefault(task, set()).update(items)
        for key, hits in other.hits.items():
            self._set_hits(key, [*self.hits.get(key, []), *hits])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in an order that depends on nothing but the content."""
        return {
            "evaluations": dict(sorted(self.evaluations.items())),
            "unchecked": dict(sorted(self.unchecked.items())),
            "too_short": dict(sorted(self.too_short.items())),
            "shown": self.shown,
            "checked": dict(sorted(self.checked.items())),
            "counts": [[*key, count] for key, count in sorted(self.counts.items())],
            "rows": [[*key, list(tasks)] for key, tasks in sorted(self.rows.items())],
            "items": {task: [list(item) for item in sorted(items)] for task, items in sorted(self.items.items())},
            "hits": [asdict(hit) for key in sorted(self.hits) for hit in self.hits[key]],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ContaminationReport:
        """What `to_dict` gave, as a report again."""
        report = ContaminationReport(data["evaluations"], data["unchecked"], data["too_short"], data["shown"])
        report.checked.update(data["checked"])
        report.counts.update({(source, task, kind): count for source, task, kind, count in data["counts"]})
        report.rows = {(source, row): tuple(tasks) for source, row, tasks in data["rows"]}
        report.items = {task: {(source, row) for source, row in items} for task, items in data["items"].items()}
        for fields in data["hits"]:
            sides = {side: _read_side(fields[side]) for side in ("train", "evaluation")}
            report.hits.setdefault((fields["task"], fields["kind"]), []).append(Hit(**{**fields, **sides}))
        return report

    def table(self, title: str = "contamination") -> Table:
        """Rows that were hit, by source and evaluation."""
        lines: dict[tuple[str, str], Counter[str]] = {}
        for (source, task, kind), count in sorted(self.counts.items()):
            lines.setdefault((source, task), Counter())[kind] = count
        rows = [
            (source, task, kinds["ngram"], kinds["near_duplicate"], f"{kinds.total() / self.checked[source]:.2%}")
            for (source, task), kinds in lines.items()
        ]
        return table(title, ("source", "evaluation", "same words", "near duplicates", "of its rows"), rows)

    def renderable(self, most: int | None = None) -> Group:
        """All of it for the terminal: counts, and hits side by side with the shared words in colour.

        Args:
            most: hits shown of each evaluation; None for all that were kept.
        """
        from rich.console import Group

        shown = [show_hit(hit) for key in sorted(self.hits) for hit in self.hits[key][:most]]
        counts = [self.table()] if self.counts else []
        return Group(*counts, *shown)

    def _keep(self, index: ContaminationIndex, conversation: Conversation, match: Match) -> None:
        item = index.items[match.text]
        kept = self.hits.get((item.task, match.kind), [])
        if len(kept) < self.shown or order_of(conversation, item, match) < kept[-1].order:
            self._set_hits((item.task, match.kind), [*kept, make_hit(index, conversation, match)])

    def _set_hits(self, key: tuple[str, str], hits: list[Hit]) -> None:
        self.hits[key] = sorted(hits, key=lambda hit: hit.order)[: self.shown]


def _read_side(fields: Mapping[str, Any]) -> Side:
    spans = tuple((start, end) for start, end in fields["spans"])
    return Side(**{**fields, "spans": spans})


def show_hit(hit: Hit) -> Table:
    """A hit for the terminal: the training row left, the evaluation right, shared words in colour."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    unit = "n-grams" if hit.kind == "ngram" else "shingles"
    what = "same words" if hit.kind == "ngram" else "near duplicate"
    title = Text(f"{hit.task} {hit.field}: {what}, {hit.share:.0%} of it ({hit.grams:,} {unit})")
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    heads = ((hit.source, hit.row), (f"{hit.eval_source} ({hit.split})", hit.eval_row))
    for source, row in heads:
        made.add_column(Text(printable(f"{source}, row {row}")), ratio=1, overflow="fold")
    made.add_row(show_side(hit.train), show_side(hit.evaluation))
    return made


def show_side(side: Side) -> Text:
    """An excerpt with its shared words in colour; `…` where text was cut off."""
    from rich.text import Text

    text = Text("… " if side.cut_before else "")
    done = 0
    for start, end in side.spans:
        text.append(printable(side.text[done:start]))
        text.append(printable(side.text[start:end]), style=LOOK)
        done = end
    text.append(printable(side.text[done:]))
    return text.append(" …") if side.cut_after else text
