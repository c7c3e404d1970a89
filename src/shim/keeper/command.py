"""What the spawner starts, and the form in which it takes it.

The form is one memfd, sealed, with this layout (little endian; the reader is
`src/_native/spawner.pxd`):

    u32 argc, u32 envc, u32 descriptors, u32 umask, u32 limits, u32 joins
    i32 death_signal, i32 oom_score_adj
    i32 target[MAX_DESCRIPTORS]          the number each passed descriptor gets in the child
    { u32 resource, u32 zero, u64 soft, u64 hard } [MAX_LIMITS]
    cwd NUL, argv[0] NUL … argv[argc-1] NUL, env[0] NUL … env[envc-1] NUL,
    join[0] NUL … join[joins-1] NUL
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shim.keeper.packet import sealed_memory

MAX_DESCRIPTORS = 16
MAX_LIMITS = 16
MAX_SIZE = 16 << 20

_SPAWNERS_SCORE = 0x7FFFFFFF  # as an oom_score_adj: none is written
_HEAD = struct.Struct(f"<6Iii{MAX_DESCRIPTORS}i")
_LIMIT = struct.Struct("<IIQQ")


@dataclass(frozen=True)
class Command:
    """A program to start as the keeper's child.

    argv[0] is the path that is executed: no PATH search. `descriptors` maps the child's
    descriptor numbers to descriptors of the caller, which are borrowed. All others are closed
    in the child. `limits` maps resource numbers (setrlimit(2)) to (soft, hard).
    `death_signal` is sent to the child when the keeper dies (PR_SET_PDEATHSIG); 0 for none.
    `joins` are the cgroup.procs files of cgroups that the child enters before anything else;
    one that cannot be entered is passed over. `oom_score_adj`: of proc(5), -1000 to 1000; None,
    and one that is lower than we may have: the keeper's.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = "/"
    descriptors: Mapping[int, int] = field(default_factory=dict)
    umask: int = 0o022
    limits: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    death_signal: int = 0
    joins: tuple[str, ...] = ()
    oom_score_adj: int | None = None


def pack(command: Command) -> int:
    """Write `command` to a new sealed memfd and return it; the caller owns it.

    Raises ValueError for what cannot be expressed: too many descriptors or limits, a NUL in
    a string, more than MAX_SIZE bytes.
    """
    return sealed_memory("command", _pack_bytes(command))


def pack_program(argv: Sequence[str]) -> int:
    """Write the argv of a keeper to a new sealed memfd and return it; the caller owns it.

    Raises ValueError for a string with NUL.
    """
    strings = [os.fsencode(text) for text in argv]
    if any(b"\0" in text for text in strings):
        raise ValueError("a program's arguments cannot hold NUL")
    return sealed_memory("program", b"".join(text + b"\0" for text in strings))


def _pack_bytes(command: Command) -> bytes:
    targets, limits = tuple(command.descriptors), dict(command.limits)
    if not command.argv:
        raise ValueError("a command needs at least one argument: the program's path")
    if len(targets) > MAX_DESCRIPTORS or len(limits) > MAX_LIMITS:
        raise ValueError(f"at most {MAX_DESCRIPTORS} descriptors and {MAX_LIMITS} limits")
    environment = [f"{name}={value}" for name, value in command.env.items()]
    texts = (command.cwd, *command.argv, *environment, *command.joins)
    strings = [os.fsencode(text) for text in texts]
    if any(b"\0" in text for text in strings):
        raise ValueError("a command's strings cannot hold NUL")
    score = _SPAWNERS_SCORE if command.oom_score_adj is None else command.oom_score_adj
    padded = targets + (-1,) * (MAX_DESCRIPTORS - len(targets))
    head = _HEAD.pack(
        len(command.argv), len(environment), len(targets), command.umask, len(limits),
        len(command.joins), command.death_signal, score, *padded,
    )  # fmt: skip
    rows = [_LIMIT.pack(number, 0, *pair) for number, pair in limits.items()]
    rows += [_LIMIT.pack(0, 0, 0, 0)] * (MAX_LIMITS - len(rows))
    data = head + b"".join(rows) + b"".join(text + b"\0" for text in strings)
    if len(data) > MAX_SIZE:
        raise ValueError(f"a command of {len(data)} bytes is too long (at most {MAX_SIZE})")
    return data
