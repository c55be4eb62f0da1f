"""The scores of several subjects side by side: as rows, as a table for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatwright.evals.run import TaskResult
from chatwright.evals.scores import Score, chatcore, chatcore_difference, is_binary, scores_of
from chatwright.evals.selection import CHATCORE
from chatwright.evals.statistics import Difference, Estimate
from chatwright.inspection.evaluation_texts import compared_split

USUAL_SPLIT = "test"
"""The split that a table needn't name."""
REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Cell:
    """One subject's score in one row.

    Args:
        difference: to the first subject; None for that one.
        contaminated: training rows that hold items of this test set; None where nobody compared them.
        unanswered: problems without a reply. reasons: why, each once.
        cut: replies that ended because their room was used up.
    """

    estimate: Estimate
    difference: Difference | None = None
    contaminated: int | None = None
    unanswered: int = 0
    reasons: tuple[str, ...] = ()
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one task.

    Args:
        problems: how many. samples: replies to each. chance: what guessing gives, 0 where it gives nothing.
        cells: one a subject, in their order.
    """

    label: str
    split: str
    metric: str
    problems: int
    samples: int
    chance: float
    is_share: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Scoreboard:
    """All rows, and the subjects that their cells belong to."""

    subjects: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: shares between 0 and 1, losses in nats, intervals of 95 %."""
        return {"models": list(self.subjects), "rows": [self._plain(row) for row in self.rows]}

    def _plain(self, row: Row) -> dict[str, Any]:
        told = {"task": row.label, "split": row.split, "metric": row.metric, "problems": row.problems}
        scores = []
        for name, cell in zip(self.subjects, row.cells, strict=True):
            value = {"model": name, **cell.estimate._asdict()}
            value |= {"unanswered": cell.unanswered, "cut_off": cell.cut, "contaminated_rows": cell.contaminated}
            if cell.difference is not None:
                value["difference"] = {"to": self.subjects[0], **cell.difference._asdict()}
            scores.append(value)
        return {**told, "samples": row.samples, "chance": row.chance, "scores": scores}


def make_scoreboard(
    results: Sequence[Sequence[TaskResult]], contamination: Sequence[Mapping[str, int]] | None = None
) -> Scoreboard:
    """The board of some subjects' results.

    Args:
        results: of each subject, the same tasks in the same order.
        contamination: of each subject, evaluation → training rows that hold items of it.
    """
    marks = contamination or [{} for _ in results]
    rows: list[Row] = []
    of_core: list[dict[str, Score]] = [{} for _ in results]
    for same in zip(*results, strict=True):
        binary = all(is_binary(result) for result in same)
        scores = [scores_of(result, binary) for result in same]
        for place, board in enumerate(of_core):
            board[same[place].label] = scores[place][0]
        for metric in zip(*scores, strict=False):  # bits per byte may be missing where nothing had bytes
            cells = [_cell(metric, place, same[place], marks[place]) for place in range(len(same))]
            first = same[0]
            told = (first.label, first.split, metric[0].metric, len(metric[0].amounts) + _left_out(metric[0]))
            rows.append(Row(*told, first.samples, first.chance, metric[0].is_share, tuple(cells)))
    names = tuple(each[0].subject for each in results)
    return Scoreboard(names, (*rows, *_core_row(of_core, results, marks)))


def _left_out(score: Score) -> int:
    return 0 if score.is_share else len(score.unanswered)


def _cell(scores: Sequence[Score], place: int, result: TaskResult, marks: Mapping[str, int]) -> Cell:
    difference = scores[place].minus(scores[0]) if place else None
    met = marks.get(result.evaluation) if result.split == compared_split(result.evaluation) else None
    missing = scores[place].unanswered
    cut = sum(record.details.get("finish") == "length" for record in result.records)
    return Cell(scores[place].estimate, difference, met, len(missing), tuple(sorted(set(missing.values()))), cut)


def _core_row(
    scores: Sequence[Mapping[str, Score]], results: Sequence[Sequence[TaskResult]], marks: Sequence[Mapping[str, int]]
) -> Iterator[Row]:
    """ChatCORE, where all its tasks are there."""
    found = [chatcore(each) for each in scores]
    cells = []
    for place, estimate in enumerate(found):
        if estimate is None:
            return
        difference = chatcore_difference(scores[0], scores[place]) if place else None
        core = (each for each in results[place] if each.label in CHATCORE)
        ours = [each.evaluation for each in core if each.split == compared_split(each.evaluation)]
        met = [marks[place][each] for each in ours if each in marks[place]]
        cells.append(Cell(estimate, difference, sum(met) if met else None))
    problems = sum(len(scores[0][label].amounts) for label in CHATCORE)
    yield Row("ChatCORE", USUAL_SPLIT, "mean centred accuracy", problems, 1, 0.0, True, tuple(cells))


# For people


def table_columns(board: Scoreboard) -> tuple[str, ...]:
    """The headings; of a model's path the last part, where it tells the models apart."""
    last = [name.rstrip("/").rpartition("/")[2] for name in board.subjects]
    return ("task", "measure", *(last if len(set(last)) == len(last) else board.subjects))


def table_rows(board: Scoreboard) -> list[tuple[str, ...]]:
    """A cell a column; the difference to the first subject stands below each score."""
    return [
        (
            row.label if row.split in (USUAL_SPLIT, "") else f"{row.label} ({row.split})",
            f"{row.metric}, n = {row.problems:,}" + (f"\nchance {row.chance:.0%}" if row.chance else ""),
            *(_shown(row, cell) for cell in row.cells),
        )
        for row in board.rows
    ]


def _shown(row: Row, cell: Cell) -> str:
    estimate, percent = cell.estimate, row.is_share
    mark = "†" if cell.contaminated else ""
    ends = f"[{_number(estimate.low, percent)}, {_number(estimate.high, percent)}]"
    text = f"{_number(estimate.value, percent)}{mark} {ends}"
    if cell.difference is None:
        return text
    value, low, high, _, significant = cell.difference
    ends = f"[{_number(low, percent, '+')}, {_number(high, percent, '+')}]"
    return f"{text}\n{_number(value, percent, '+')} {ends}{' *' if significant else ''}"


def _number(value: float, percent: bool, sign: str = "") -> str:
    return f"{value * 100:{sign}.1f}" if percent else f"{value:{sign}.3f}"


def footnotes(board: Scoreboard, room: str = "--max-new-tokens") -> list[str]:
    """What the table's numbers and marks mean, and what went into them that a reader must know.

    Args:
        room: what gives replies more room, where the table is shown.
    """
    notes = ["n = problems; shares in percent, loss in nats a token; in brackets the 95 % interval"]
    if len(board.subjects) > 1:
        notes.append(
            f"below each score its difference to {board.subjects[0]}, on the same problems; * = the difference is no "
            "chance (95 % level, paired bootstrap)"
        )
    for row in board.rows:
        for name, cell in zip(board.subjects, row.cells, strict=True):
            if cell.contaminated and row.label != "ChatCORE":
                rows = _counted(cell.contaminated, "training row")
                notes.append(f"† {name} has met items of {row.label} in training: {rows}")
            if cell.unanswered:
                counted = "counted as wrong" if row.is_share else "left out"
                without = _counted(cell.unanswered, "problem")
                notes.append(f"{row.label}: {without} without a reply of {name}, {counted}: {_few(cell.reasons)}")
            if cell.cut:
                told = _counted(cell.cut, "reply", "replies")
                notes.append(f"{row.label}: {told} of {name} cut off, with no room left: see {room}")
    return list(dict.fromkeys(notes))


def _few(reasons: Sequence[str]) -> str:
    more = len(reasons) - REASONS_SHOWN
    return "; ".join([*reasons[:REASONS_SHOWN], *([f"{more} other reasons"] if more > 0 else [])])


def _counted(number: int, what: str, several: str | None = None) -> str:
    return f"{number:,} {what if number == 1 else several or what + 's'}"
