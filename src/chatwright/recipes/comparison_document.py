"""A comparison of models as a page: every probe with each model's answer and its marks."""

from __future__ import annotations

from collections.abc import Sequence

from chatwright.evals.scoreboard import footnotes, table_columns, table_rows
from chatwright.recipes.comparing import AS_TEXT, Column, asked, scoreboard_of
from chatwright.recipes.probes import Answer, Probe
from chatwright.recipes.showcase import shown
from chatwright.reports.document import Document, Section, Table

GOOD, BAD = "✓", "✗"


def marks_text(marks: dict[str, bool]) -> str:
    """`✓ right ✗ brief`."""
    return "  ".join(f"{GOOD if good else BAD} {name}" for name, good in marks.items())


def answer_text(answer: Answer) -> str:
    """The answer as a reader sees it, with the control tokens of other turns that it wrote."""
    text = shown(answer.message) or "(nothing)"
    return f"{text} {' '.join(answer.foreign)}".strip()


def totals_table(columns: Sequence[Column], probes: Sequence[Probe]) -> Table:
    """For each kind of mark, how many of each model's answers have it."""
    kinds = dict.fromkeys(kind for column in columns for marks in column.marks for kind in marks)
    rows = [("how it was asked", *(column.asked_by for column in columns))]
    for kind in kinds:
        judged = [[marks[kind] for marks in column.marks if kind in marks] for column in columns]
        rows.append((kind, *(f"{sum(each)} of {len(each)}" for each in judged)))
    lengths = [sum(answer.num_tokens for answer in column.answers) / len(probes) for column in columns]
    rows.append(("tokens an answer", *(f"{each:.0f}" for each in lengths)))
    return Table(("mark", *(column.name for column in columns)), tuple(rows))


def comparison_document(probes: Sequence[Probe], columns: Sequence[Column]) -> Document:
    """The page: marks counted, scores of tasks where there are any, then every probe."""
    names, sums = [column.name for column in columns], [column.passed for column in columns]
    tiles = tuple((f"{good}/{total}", f"marks of {name}") for name, (good, total) in zip(names, sums, strict=True))
    sections = [
        Section("result", "Marks", MARKS_LEAD, (totals_table(columns, probes),), notes=_notes(columns)),
    ]
    board = scoreboard_of(columns)
    if board is not None:
        rows = tuple(tuple("" if cell is None else str(cell) for cell in row) for row in table_rows(board))
        table = Table(table_columns(board), rows)
        sections.append(Section("scores", "Scores", "", (table,), notes=tuple(footnotes(board))))
    sections += [_probe_section(number, probe, columns) for number, probe in enumerate(probes)]
    return Document(
        title=" · ".join(names),
        subtitle=f"{len(probes)} prompts, {len(columns)} models",
        tiles=tiles,
        sections=tuple(sections),
        about="what each model answers",
        made_with=("chatwright compare --html", "from the models' own replies"),
    )


MARKS_LEAD = (
    "What a program can judge of an answer. own turn: it wrote no other role's header or control token; "
    "ends: the model ended it itself, within the limit."
)


def _notes(columns: Sequence[Column]) -> tuple[str, ...]:
    """What must be known of models without a chat template."""
    base = [column.name for column in columns if column.asked_by == AS_TEXT]
    if not base:
        return ()
    return (f"{', '.join(base)}: no chat template, so the prompt alone was given as plain text, to be gone on with.",)


def _probe_section(number: int, probe: Probe, columns: Sequence[Column]) -> Section:
    rows = tuple(
        (column.name, answer_text(column.answers[number]), marks_text(column.marks[number])) for column in columns
    )
    return Section(f"probe-{number}", probe.title, asked(probe), (Table(("model", "answer", "marks"), rows),))
