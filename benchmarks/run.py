"""What a run has measured: kept as JSON, from which all else is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.claims import Claim, Values, Verdict, judge
from benchmarks.workloads.base import Figure, Sizes

FILE: Final = "run.json"
_VERSION: Final = 1


@dataclass(frozen=True)
class Round:
    """One round of a workload on one system: its figures, or why there are none."""

    system: str
    turn: int
    figures: Mapping[str, float]
    error: str = ""
    seconds: float = 0.0


@dataclass
class Record:
    """A workload in a run."""

    name: str
    title: str
    sizes: Sizes
    figures: Sequence[Figure]
    claims: Sequence[Claim]
    rounds: list[Round] = field(default_factory=list)

    def values(self, figure: str) -> Values:
        """A figure's values by system and round."""
        found: dict[str, dict[int, float]] = {}
        for row in self.rounds:
            if figure in row.figures:
                found.setdefault(row.system, {})[row.turn] = row.figures[figure]
        return found

    def failures(self) -> list[Round]:
        return [row for row in self.rounds if row.error]

    def verdicts(self) -> list[Verdict]:
        return [judge(claim, self.values(claim.figure)) for claim in self.claims]


@dataclass
class Run:
    """All of a run. `systems`: titles by name, in the order of tables."""

    machine: Mapping[str, str]
    systems: Mapping[str, str]
    quick: bool
    seconds: float = 0.0
    records: list[Record] = field(default_factory=list)

    def failures(self) -> list[Round]:
        return [row for record in self.records for row in record.failures()]

    def save(self, folder: Path) -> None:
        """Write it to `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=1)
        (folder / FILE).write_text(text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` has written. Raises OSError, ValueError."""
        fields: dict[str, Any] = json.loads((folder / FILE).read_text())
        if fields.pop("version") != _VERSION:
            raise ValueError(f"{folder / FILE} is of another version of the harness")
        records = [_record(row) for row in fields.pop("records")]
        return cls(**fields, records=records)


def _record(fields: dict[str, Any]) -> Record:
    return Record(
        name=fields["name"],
        title=fields["title"],
        sizes=fields["sizes"],
        figures=[Figure(**row) for row in fields["figures"]],
        claims=[Claim.from_json(row) for row in fields["claims"]],
        rounds=[Round(**row) for row in fields["rounds"]],
    )
