"""One process of a container: its init process or an exec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shim.keeper.client import Child
from shim.model import Exit, ProcessInfo, Status, User
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
    """A process that the keeper follows, or has followed to its end.

    `announced` guards the order of events: an exit that is learned before the process's own
    start has been told waits until then.
    """

    def __init__(
        self,
        child_id: int,
        pid: int,
        spec: ProcessSpec,
        stdio: ProcessStdio,
        child: Child | None = None,
        ended: Exit | None = None,
    ) -> None:
        self.child_id = child_id
        self.pid = pid
        self.spec = spec
        self.stdio = stdio
        self.child = child
        self.exit = ended
        self.announced = False

    @property
    def alive(self) -> bool:
        """Whether no exit has been learned."""
        return self.exit is None

    def info(self, status: Status) -> ProcessInfo:
        """As State reports it, being in a container of this status."""
        return ProcessInfo(
            pid=self.pid,
            status=status if self.exit is None else Status.STOPPED,
            args=self.spec.args,
            env=self.spec.env,
            user=self.spec.user,
            cwd=self.spec.cwd,
            terminal=self.spec.terminal,
            exit_status=0 if self.exit is None else self.exit.status,
        )

    def to_state(self) -> dict[str, Any]:
        """What a later front needs to know."""
        user = self.spec.user
        return {
            "child": self.child_id,
            "pid": self.pid,
            "args": list(self.spec.args),
            "env": list(self.spec.env),
            "cwd": self.spec.cwd,
            "terminal": self.spec.terminal,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": [*user.additional_gids]},
            "streams": self.stdio.to_state(),
            "exit": None if self.exit is None else [self.exit.status, self.exit.time],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], stdio: ProcessStdio) -> Process:
        """The inverse of `to_state`, without its child. Raises KeyError for what is not one."""
        process = cls(
            state["child"],
            state["pid"],
            ProcessSpec.read(state, state["terminal"]),
            stdio,
            ended=None if state["exit"] is None else Exit(*state["exit"]),
        )
        process.announced = True
        return process
