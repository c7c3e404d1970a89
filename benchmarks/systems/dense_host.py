"""This project: one host for all containers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.accounting import command_of, parent_of
from benchmarks.systems.base import Can, System

if TYPE_CHECKING:
    from benchmarks.session import Session

_FRONT: Final = "shim.front"


class DenseHost(System):
    """`containerd-shim-dense-v2` of the environment that runs the harness."""

    name = "dense_host"
    title = "denseshim, host"
    can = Can.OUTPUT | Can.TASKS | Can.LIFE | Can.CROWD
    runtime = "io.containerd.dense.v2"
    programs = ("containerd", "runc", "ctr")
    folders = (Path(sys.executable).parent,)

    def keeper(self, session: Session) -> set[int]:
        """The fronts' parent."""
        return {parent_of(pid) for pid in session.shims() if _FRONT in command_of(pid)}
