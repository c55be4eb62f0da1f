"""From records to scores: what a subject reached on a task, how sure that is, and how far two subjects are apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chatwright.evals.records import Record
from chatwright.evals.run import TaskResult
from chatwright.evals.selection import CHATCORE
from chatwright.evals.statistics import (
    Difference,
    Estimate,
    centred,
    combined,
    mean_interval,
    paired_difference,
    pass_at_k,
    ratio,
    ratio_difference,
    wilson,
)

LOSS, BITS_PER_BYTE = "loss", "bits per byte"
USUAL_K = (10, 100)
"""pass@k is told for these too, where there are more samples than that."""


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one subject on one task.

    Args:
        metric: `accuracy`, `score`, `pass@k`, `loss` or `bits per byte`.
        estimate: the value with its 95 % interval.
        amounts, units: of each problem, by its number; the value is Σ amounts / Σ units.
        is_share: between 0 and 1, and higher is better; else nats or bits, and lower is better.
        unanswered: problems that got no reply, and why. Of shares they count as wrong; losses leave them out.
    """

    metric: str
    estimate: Estimate
    amounts: Mapping[int, float]
    units: Mapping[int, float]
    is_share: bool = True
    unanswered: Mapping[int, str] = field(default_factory=dict)

    def minus(self, first: Score) -> Difference:
        """How much this is above another subject's score of the same metric, over the problems both have seen."""
        both = [problem for problem in self.amounts if problem in first.amounts]
        amounts, units = ([scores[each] for each in both] for scores in (self.amounts, self.units))
        their_amounts, their_units = ([scores[each] for each in both] for scores in (first.amounts, first.units))
        if self.is_share:
            return paired_difference(their_amounts, amounts)
        return ratio_difference((their_amounts, their_units), (amounts, units))


def is_binary(result: TaskResult) -> bool:
    """Whether every reply was either right or wrong."""
    return all((record.score or 0.0) in (0.0, 1.0) for record in result.records)


def scores_of(result: TaskResult, binary: bool | None = None) -> list[Score]:
    """Every metric of a result: one for one reply a problem, pass@1 and pass@k for several, loss and bits per byte.

    Args:
        binary: whether replies are right or wrong for all subjects that are compared; by this result alone if None.
    """
    binary = is_binary(result) if binary is None else binary
    if result.way == "loss":
        return _losses(result.records)
    by_problem: dict[int, list[float]] = defaultdict(list)
    for record in result.records:
        by_problem[record.key.problem].append(record.score or 0.0)
    unanswered = _unanswered(result.records)
    if result.samples == 1 or not binary:
        means = {problem: sum(scores) / len(scores) for problem, scores in by_problem.items()}
        return [_share("accuracy" if binary else "score", means, unanswered)]
    counts = [len(scores) for scores in by_problem.values()]
    passed = [round(sum(scores)) for scores in by_problem.values()]
    wanted = sorted({1, result.samples, *(k for k in USUAL_K if k < result.samples)})
    chances = {k: dict(zip(by_problem, pass_at_k(counts, passed, k).tolist(), strict=True)) for k in wanted}
    return [_share(f"pass@{k}", found, unanswered) for k, found in chances.items()]


def _unanswered(records: Sequence[Record]) -> dict[int, str]:
    """The problems without any reply, and why the last one is missing."""
    told = {each.key.problem: each.details.get("unanswered") for each in records}
    answered = {each.key.problem for each in records if each.details.get("unanswered") is None}
    return {problem: str(reason) for problem, reason in told.items() if problem not in answered}


def _share(metric: str, amounts: Mapping[int, float], unanswered: Mapping[int, str]) -> Score:
    values = list(amounts.values())
    value = sum(values) / len(values)
    whole = all(each in (0.0, 1.0) for each in values)
    low, high = wilson(sum(values), len(values)) if whole else mean_interval(values)
    return Score(metric, Estimate(value, low, high), amounts, dict.fromkeys(amounts, 1.0), True, unanswered)


def _losses(records: Sequence[Record]) -> list[Score]:
    """Nats a supervised token, and bits a byte of supervised text; see `heldout`."""
    missing = _unanswered(records)
    there = {each.key.problem: each.details for each in records if each.key.problem not in missing}
    scores = []
    for metric, amount, unit in ((LOSS, "nats", "weight"), (BITS_PER_BYTE, "text_bits", "bytes")):
        amounts = {problem: float(told[amount]) for problem, told in there.items()}
        units = {problem: float(told[unit]) for problem, told in there.items()}
        if sum(units.values()) > 0:
            found = ratio(list(amounts.values()), list(units.values()))
            scores.append(Score(metric, found, amounts, units, False, missing))
    return scores


def chatcore(scores: Mapping[str, Score]) -> Estimate | None:
    """nanochat's ChatCORE: the mean over its six tasks of (accuracy − chance) / (1 − chance); None if one is missing.

    Args:
        scores: each task's accuracy, or pass@1, by the task's label.
    """
    if not all(label in scores for label in CHATCORE):
        return None
    parts = [Estimate(*(centred(each, base) for each in scores[label].estimate)) for label, base in CHATCORE.items()]
    return combined(parts, [1 / len(parts)] * len(parts))


def chatcore_difference(first: Mapping[str, Score], second: Mapping[str, Score]) -> Difference:
    """How much the second subject's ChatCORE is above the first's; both must have all tasks."""
    found = [second[label].minus(first[label]) for label in CHATCORE]
    weights = [1 / (1 - base) / len(CHATCORE) for base in CHATCORE.values()]
    total = combined([Estimate(each.value, each.low, each.high) for each in found], weights)
    return Difference.of(total.value, total.interval, sum(each.changed for each in found))
