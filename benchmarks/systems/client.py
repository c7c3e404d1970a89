"""A client that has nothing done: what of a life's floor is neither a shim's nor the runtime's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.systems.bare import version
from benchmarks.systems.base import Can, System

if TYPE_CHECKING:
    from benchmarks.place import Step
    from benchmarks.session import Session


class Client(System):
    """`ctr version`."""

    name = "client"
    title = "ctr version"
    can = Can.LIFE
    programs = ("containerd", "ctr")

    def life(self, session: Session) -> list[Step]:
        """No container, and no runtime."""
        return [version(session)]
