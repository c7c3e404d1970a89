"""What a workload is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from benchmarks.claims import Claim
from benchmarks.systems.base import Can

if TYPE_CHECKING:
    from benchmarks.session import Session
    from benchmarks.systems.base import System

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Figure:
    """What is measured: less is better."""

    name: str  # in results and claims
    title: str
    unit: str
    # Figures of one series are one line in the plot, by `at`.
    series: str = ""
    at: int = 0


class Workload(ABC):
    """Made for a run, with its sizes; runs one round on one system at a time."""

    name: ClassVar[str]  # in results and --workload
    title: ClassVar[str]
    needs: ClassVar[Can] = Can.TASKS
    # "rounds", and whatever the workload asks for. Rounds are what a figure is the median of.
    full: ClassVar[Sizes]
    quick: ClassVar[Sizes]
    # Workloads of one stage share a session, and its crowd, which is a new one for each round.
    stage: ClassVar[str] = ""
    # Its place among the others, in runs and reports.
    order: ClassVar[int] = 1000

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def runs_on(self, system: System) -> bool:
        """Whether the system can do it."""
        return self.needs in system.can

    @abstractmethod
    def figures(self) -> Sequence[Figure]:
        """What a round measures."""

    def claims(self) -> Sequence[Claim]:
        """What it must show."""
        return ()

    @abstractmethod
    def run(self, session: Session) -> Mapping[str, float]:
        """One round: the figures' values, by name; one that the system has not may be left out.

        Whatever it has started must have ended when it returns, but for the session's crowd. May
        raise anything: that is this system's failure, and its session is given up.
        """
