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
        return [version(session), *self.calls(session)]

    def calls(self, session: Session) -> list[Step]:
        """The runtime's part alone."""
        made = Bundle(session, "true")
        return [*made.begin(), {"reap": made.pid_file}, made.delete()]


def version(session: Session) -> list[str]:
    """The command with which a client does the least."""
    return ["ctr", "--address", str(session.daemon.address), "version"]


class Bundle:
    """A container for runc, and the command lines of what is done with it."""

    def __init__(self, session: Session, *args: str) -> None:
        self.id = session.new_id()
        self.folder = session.place.folder / self.id
        self.pid_file = str(self.folder / "init.pid")
        outside = session.place.outside(self.folder)
        outside.mkdir()
        (outside / "config.json").write_text(json.dumps(session.spec(self.id, *args)))
        (outside / "process.json").write_text(json.dumps(session.process("true")))
        self._runc = ["runc", "--root", str(session.place.folder / "runc")]
        self._runc += ["--log", str(self.folder / "log.json"), "--log-format", "json"]

    def begin(self) -> list[Step]:
        create = ["create", "--bundle", str(self.folder), "--pid-file", self.pid_file, self.id]
        return [[*self._runc, *create], [*self._runc, "start", self.id]]

    def exec(self) -> list[Step]:
        """Run `true` in it."""
        pid_file = str(self.folder / "exec.pid")
        process = str(self.folder / "process.json")
        options = ["--process", process, "--detach", "--pid-file", pid_file]
        return [[*self._runc, "exec", *options, self.id], {"reap": pid_file}]

    def delete(self, *options: str) -> list[str]:
        return [*self._runc, "delete", *options, self.id]
