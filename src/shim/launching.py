"""What a launcher does: it finds the pair that serves the container, or starts it, and asks it."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shim import __version__, door, pair
from shim._pb.denseshim.host.v1 import host_pb2
from shim.bootstrap import answer, group
from shim.bootstrap.arguments import Action, Invocation, parse
from shim.bootstrap.options import Options, decode
from shim.bootstrap.stdin import read_options, read_start
from shim.detach import CannotStart
from shim.errors import FailedPrecondition, InvalidArgument, ShimError, Unavailable
from shim.service.bundle import read_config

NAME: Final = "containerd-shim-dense-v2"

_MAX_STDIN: Final = 4 << 20
_LIMITS: Final = range(16)  # getrlimit(2)
_UNLIMITED: Final = (1 << 64) - 1
# A pair that was empty may end between being found and being asked; once more is likely a defect.
_TRIES: Final = 3


@dataclass(frozen=True)
class Outcome:
    """What a launcher exits with and prints."""

    status: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


def answer_to(argv: Sequence[bytes]) -> Outcome:
    """Do what the command line `argv` says. What goes wrong is an outcome, too."""
    try:
        invocation = parse(argv)
        return _ACTIONS[invocation.action](invocation, argv)
    except (ShimError, CannotStart, OSError) as error:
        line = " ".join(str(error).split())
        return Outcome(1, stderr=f"{NAME}: {line}\n".encode(errors="backslashreplace"))


def make_request(argv: Sequence[bytes], stdin: bytes = b"") -> host_pb2.LaunchRequest:
    """The command line `argv` and what this process has inherited. Raises OSError."""
    umask = os.umask(0o077)
    os.umask(umask)
    return host_pb2.LaunchRequest(
        argv=argv,
        env=[name + b"=" + value for name, value in os.environb.items()],
        cwd=os.getcwdb(),
        stdin=stdin,
        umask=umask,
        limits=[_limit(number) for number in _LIMITS],
        cgroup=Path("/proc/self/cgroup").read_bytes(),
        oom_score_adj=_oom_score_adj(),
    )


def ask(
    directory: Path,
    settings: pair.Settings,
    request: host_pb2.LaunchRequest,
    descriptors: Sequence[int] = (),
) -> host_pb2.LaunchResponse:
    """Have the pair in `directory`, started with `settings` if there is none, do `request`.

    Raises CannotStart, OSError, ShimError.
    """
    for _ in range(_TRIES):
        with pair.ensure(directory, settings) as opened:
            try:
                return door.call(opened, "Launch", request, host_pb2.LaunchResponse, descriptors)
            except door.HungUp as error:
                failure = error
    raise failure


def _start(invocation: Invocation, argv: Sequence[bytes]) -> Outcome:
    _check_containerd(os.environ.get("TTRPC_ADDRESS", ""))
    stdin = _read_stdin()
    options = decode(read_start(stdin, invocation.id, invocation.namespace).options)
    request = make_request(argv, stdin)
    key = _group(Path.cwd(), invocation.id)
    scope = _scope(invocation, options, key, alone=group.stands_apart(_oom_score_adj()))
    response = _ask_scope(invocation, options, scope, request)
    if response.apart:
        scope = _scope(invocation, options, key, alone=True)
        response = _ask_scope(invocation, options, scope, request)
    return _outcome(response)


def _scope(invocation: Invocation, options: Options, key: str, alone: bool) -> group.Scope:
    return group.share(
        options,
        os.environ,
        address=invocation.address,
        namespace=invocation.namespace,
        id=invocation.id,
        group=key,
        alone=alone,
    )


def _group(bundle: Path, id: str) -> str:
    """The group key of the container in `bundle`. Raises InvalidArgument for what is none."""
    return group.group_key(group.annotations_of(read_config(bundle)), id)


def _ask_scope(
    invocation: Invocation,
    options: Options,
    scope: group.Scope,
    request: host_pb2.LaunchRequest,
) -> host_pb2.LaunchResponse:
    if scope.kind is group.Kind.HOST:
        directory = pair.host_directory()
        settings = pair.Settings(debug=invocation.debug)
    else:
        directory = pair.apart_directory(scope.key)
        settings = _apart(invocation.debug, options.shim_cgroup, bool(os.environ.get("SCHED_CORE")))
    return ask(directory, settings, request)


def _apart(debug: bool, cgroup: str = "", sched_core: bool = False) -> pair.Settings:
    score = group.score_of_shims(_oom_score_adj())
    return pair.Settings(True, debug, score, cgroup, sched_core)


def _delete(invocation: Invocation, argv: Sequence[bytes]) -> Outcome:
    """Ask the pair that has, or had, the container; one that is dead is started for it."""
    host, apart = pair.host_directory(), _apart_directory(invocation)
    if apart is not None:
        return _outcome(ask(apart, _apart(invocation.debug), make_request(argv)))
    if host.exists():
        response = ask(host, pair.Settings(debug=invocation.debug), make_request(argv))
        if not response.apart:
            return _outcome(response)
    # A pair apart removes its directory after its last container: there is nothing left.
    return Outcome(stdout=answer.deleted(0, answer.KILLED, time.time_ns()))


def _apart_directory(invocation: Invocation) -> Path | None:
    bundle = Path(invocation.bundle or Path.cwd().parent / invocation.id)
    try:
        key = _group(bundle, invocation.id)
    except InvalidArgument:
        key = invocation.id  # its bundle may be gone
    keys = group.apart_keys(invocation.address, invocation.namespace, invocation.id, key)
    directories = (pair.apart_directory(key) for key in keys)
    return next((directory for directory in directories if directory.exists()), None)


def _info(invocation: Invocation, argv: Sequence[bytes]) -> Outcome:
    options = read_options(_read_stdin())
    runtime = decode(options).runtime.runtime or "runc"
    return Outcome(stdout=answer.info(__version__, options, _features(runtime)))


def _features(runtime: str) -> bytes:
    """What `runtime` says it can; empty of one that has no such command."""
    if shutil.which(runtime) is None:
        raise FailedPrecondition(f'there is no runtime "{runtime}" on PATH; install it')
    done = subprocess.run(
        [runtime, "features"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return done.stdout if done.returncode == 0 else b""


def _version(invocation: Invocation, argv: Sequence[bytes]) -> Outcome:
    return Outcome(stdout=f"{NAME} {__version__}\n".encode())


def _outcome(response: host_pb2.LaunchResponse) -> Outcome:
    if response.apart:
        raise FailedPrecondition("no shim may serve this container: each says, another one")
    return Outcome(response.status, response.stdout, response.stderr)


def _check_containerd(address: str) -> None:
    """Nothing is to be started for a containerd that nobody can send events to."""
    path = address.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            raise Unavailable(f"TTRPC_ADDRESS {path!r} cannot be reached: {error}") from error


def _read_stdin() -> bytes:
    """What containerd has written; it types nothing."""
    if os.isatty(0):
        return b""
    with os.fdopen(os.dup(0), "rb") as stdin:
        data = stdin.read(_MAX_STDIN + 1)
    if len(data) > _MAX_STDIN:
        raise InvalidArgument(f"more than {_MAX_STDIN} bytes on stdin")
    return data


def _limit(number: int) -> host_pb2.Limit:
    soft, hard = (value & _UNLIMITED for value in resource.getrlimit(number))
    return host_pb2.Limit(resource=number, soft=soft, hard=hard)


def _oom_score_adj() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


_ACTIONS: Final = {
    Action.START: _start,
    Action.DELETE: _delete,
    Action.INFO: _info,
    Action.VERSION: _version,
}
