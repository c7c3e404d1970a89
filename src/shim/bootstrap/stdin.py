"""What containerd gives a launcher on stdin (contract: runtime-v2, stdin of start)."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from shim._pb.containerd.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapParams
from shim.bootstrap.options import is_options, parsed


@dataclass(frozen=True)
class Start:
    """What came with start: `params` since containerd 2.3, else None; the container's options."""

    options: Any | None = None
    params: BootstrapParams | None = None


def read_start(stdin: bytes, id: str, namespace: str) -> Start:
    """What `stdin` says of the start of container `id` in `namespace`.

    The two forms parse as each other: BootstrapParams names the same container as the command
    line does, or it is none. Raises InvalidArgument for what is neither.
    """
    params = _params(stdin, id, namespace)
    if params is None:
        return Start(options=read_options(stdin))
    given = [extension.value for extension in params.extensions]
    # Where none is of a type that we take, whoever reads the first one says so.
    found = next(filter(is_options, given), given[0] if given else None)
    return Start(options=found, params=params)


def read_options(stdin: bytes) -> Any | None:
    """The options that are all there is on `stdin`, as with -info. Raises InvalidArgument."""
    return parsed(Any, stdin) if stdin else None


def _params(stdin: bytes, id: str, namespace: str) -> BootstrapParams | None:
    try:
        params = BootstrapParams.FromString(stdin)
    except DecodeError:
        return None
    return params if (params.instance_id, params.namespace) == (id, namespace) else None
