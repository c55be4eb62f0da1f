"""The processes that prepare the same data together: who does what, and how a mistake of one ends all of them.

Every method that meets must be called by all processes in the same order; then none of them waits alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from chatwright.errors import UserError

T = TypeVar("T")
Meet = Callable[[set[str]], list[str]]
"""Waits for all processes (of all machines); gives the union of what they bring, sorted."""


class Ranks(Protocol):
    """What a crew needs of the `Runtime`."""

    @property
    def rank(self) -> int:
        """This process's number over all machines."""

    @property
    def local_rank(self) -> int:
        """Its number on this machine."""

    def meeting(self) -> Meet:
        """`Runtime.meeting`."""


def _alone(brought: set[str]) -> list[str]:
    return sorted(brought)


@dataclass(frozen=True, slots=True)
class Crew:
    """One process among those that prepare together; by default the only one.

    Args:
        rank: its number on its machine. size: how many processes that machine has.
        meet: see `Meet`.
        machine: the machine's number. machines: how many there are.
    """

    rank: int = 0
    size: int = 1
    meet: Meet = _alone
    machine: int = 0
    machines: int = 1

    @staticmethod
    def of(ranks: Ranks) -> Crew:
        """The crew of a run's ranks; all of them must ask. A machine is where ranks count up from local rank 0."""
        meet = ranks.meeting()
        first = ranks.rank - ranks.local_rank
        firsts = [int(text.split("+")[0]) for text in meet({f"{first}+{ranks.local_rank}"})]
        machines = sorted(set(firsts))
        return Crew(ranks.local_rank, firsts.count(first), meet, machines.index(first), len(machines))

    @property
    def alone(self) -> bool:
        """Whether there is no other process anywhere."""
        return self.size * self.machines == 1

    @property
    def is_first(self) -> bool:
        """True on one process of each machine, which does what has to be done once there."""
        return self.rank == 0

    @property
    def is_main(self) -> bool:
        """True on one process of all."""
        return self.rank == 0 and self.machine == 0

    def together(self, action: Callable[[], T]) -> T:
        """Run something here; if it fails in one process, it fails in all, and with the same kind of error.

        Raises:
            UserError: what `action` raised, or that another process found a mistake.
            OSError: the same for a file that can't be read or written, where no process found a mistake.
        """
        problem: UserError | OSError | None = None
        try:
            result = action()
        except (UserError, OSError) as error:
            problem = error
        kind = "mistake " if isinstance(problem, UserError) else "trouble "
        said = self.meet({f"{kind}{problem}"} if problem else set())
        mistakes = [text.removeprefix("mistake ") for text in said if text.startswith("mistake ")]
        if problem and (isinstance(problem, UserError) or not mistakes):
            raise problem
        if mistakes:
            raise UserError(f"stopped, since another process did: {mistakes[0]}", place="preparation")
        if said:
            raise OSError(f"stopped, since another process did: {said[0].removeprefix('trouble ')}")
        return result

    def all_of(self, here: bool) -> bool:
        """Whether something is so in every process."""
        return not self.meet(set() if here else {"not here"})

    def machine_has(self, here: bool) -> bool:
        """Whether something is so in every process of this machine."""
        return str(self.machine) not in self.meet(set() if here else {str(self.machine)})

    def found_alike(self, action: Callable[[], str | None]) -> str | None:
        """What the first process of each machine finds; all machines must find the same.

        Raises:
            UserError: what `action` raised, or that the machines differ.
        """
        found = self.together(lambda: action() if self.is_first else None)
        said = self.meet({found or ""} if self.is_first else set())
        if len(said) > 1:
            raise UserError(
                "the machines don't have the same data, tokenizer or program",
                place="preparation",
                hint="give every machine the same files under the same paths, and the same version of chatwright",
            )
        return said[0] or None
