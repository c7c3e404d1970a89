"""One process of a container: its init process or an exec."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shim.keeper.client import Child, Held
from shim.model import Exit, ProcessInfo, Status, Stdio, User
from shim.service.stdio import ProcessStdio


@dataclass(frozen=True)
class ProcessSpec:
    """What an OCI process says of itself (OCI runtime specification, config.md, Process)."""

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = ""
    terminal: bool = False
    user: User = field(default_factory=User)

    @classmethod
    def read(cls, process: object, terminal: bool) -> ProcessSpec:
        """Take what is there and of the right type; judging the rest is the runtime's business."""
        found = process if isinstance(process, Mapping) else {}
        user = found.get("user")
        user = user if isinstance(user, Mapping) else {}
        return cls(
            args=_strings(found.get("args")),
            env=_strings(found.get("env")),
            cwd=_text(found["cwd"]) if isinstance(found.get("cwd"), str) else "",
            terminal=terminal,
            user=User(
                _number(user.get("uid")),
                _number(user.get("gid")),
                tuple(_number(gid) for gid in _items(user.get("additionalGids"))),
            ),
        )


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _strings(value: object) -> tuple[str, ...]:
    return tuple(_text(item) for item in _items(value) if isinstance(item, str))


def _text(text: str) -> str:
    """What a message can hold: JSON's escapes may stand for half a character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _number(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 32 else 0


class Process:
    """A process that the keeper follows, has followed to its end, or will follow once started.

    `announced` guards the order of events: an exit that is learned before the process's own
    start has been told waits until then. `over` is set when the exit has been told. `request`
    is the call that has started it.
    """

    def __init__(
        self,
        child_id: int,
        spec: ProcessSpec,
        paths: Stdio,
        stdio: ProcessStdio | None = None,
        exec_id: str = "",
    ) -> None:
        self.child_id = child_id
        self.spec = spec
        self.paths = paths
        self.stdio = stdio or ProcessStdio({}, paths.terminal)
        self.exec_id = exec_id
        self.pid = 0
        self.child: Child | None = None
        self.exit: Exit | None = None
        self.announced = False
        self.request = 0
        self.over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        """Whether it has been started, and no exit has been learned."""
        return self.pid != 0 and self.exit is None

    def status(self, container: Status) -> Status:
        """Its own state, in a container of that state."""
        if self.exit is not None:
            return Status.STOPPED
        return container if self.pid else Status.CREATED

    def info(self, status: Status) -> ProcessInfo:
        """As the State of 2017 reports it, being in a container of this status."""
        return ProcessInfo(
            pid=self.pid,
            status=self.status(status),
            args=self.spec.args,
            env=self.spec.env,
            user=self.spec.user,
            cwd=self.spec.cwd,
            terminal=self.spec.terminal,
            exit_status=0 if self.exit is None else self.exit.status,
            exec_id=self.exec_id,
        )

    def end(self) -> None:
        """Its exit has been told, or there will be none: whoever waits for it learns so."""
        if not self.over.done():
            self.over.set_result(self.exit or Exit(0, 0))

    def to_state(self) -> dict[str, Any]:
        """What a later front needs to know."""
        user = self.spec.user
        return {
            "child": self.child_id,
            "pid": self.pid,
            "exec_id": self.exec_id,
            "args": list(self.spec.args),
            "env": list(self.spec.env),
            "cwd": self.spec.cwd,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": [*user.additional_gids]},
            "paths": vars(self.paths),
            "streams": self.stdio.to_state(),
            "logger": [*self.stdio.logger],
            "input_closed": self.stdio.input_closed,
            "request": self.request,
            "exit": [self.exit.status, self.exit.time] if self.exit and self.over.done() else None,
            "failed": self.over.done() and self.exit is None,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], held: Held) -> Process:
        """The inverse of `to_state`, with what the keeper holds of its streams, without its child.

        Raises KeyError or TypeError for what is not one.
        """
        paths = Stdio(**state["paths"])
        stdio = ProcessStdio(state["streams"], paths.terminal)
        stdio.input_closed = state.get("input_closed", False)
        stdio.adopt(held)
        spec = ProcessSpec.read(state, paths.terminal)
        process = cls(state["child"], spec, paths, stdio, state["exec_id"])
        process.pid = state["pid"]
        process.request = state["request"]
        if state["exit"] is not None:
            process.exit = Exit(*state["exit"])
        if process.exit or state.get("failed"):
            process.end()
        process.announced = True
        return process
