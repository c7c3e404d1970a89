"""The floor: the runtime alone, called by nobody but the harness."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.systems.base import Can, System

if TYPE_CHECKING:
    from benchmarks.place import Step
    from benchmarks.session import Session


class Bare(System):
    """`runc create`, `start`, `delete`, with the options that a shim gives it."""

    name = "bare"
    title = "runc alone"
    can = Can.LIFE | Can.BARE
    programs = ("containerd", "runc", "ctr")

    def life(self, session: Session) -> list[Step]:
        """A client's least, `ctr version`, and the runtime's part."""
        address = str(session.daemon.address)
        return [["ctr", "--address", address, "version"], *self.calls(session)]

    def calls(self, session: Session) -> list[Step]:
        """The runtime's part alone."""
        id = session.new_id()
        bundle = session.place.folder / id
        outside = session.place.outside(bundle)
        outside.mkdir()
        (outside / "config.json").write_text(json.dumps(session.spec(id, "true")))
        runc = ["runc", "--root", str(session.place.folder / "runc")]
        runc += ["--log", str(bundle / "log.json"), "--log-format", "json"]
        pid_file = str(bundle / "init.pid")
        return [
            [*runc, "create", "--bundle", str(bundle), "--pid-file", pid_file, id],
            [*runc, "start", id],
            {"reap": pid_file},
            [*runc, "delete", id],
        ]
