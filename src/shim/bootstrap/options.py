"""Options of containers and of checkpoints (contract: runtime-v2, Options types).

A runtime whose name containerd does not know gets options of several types. The type that
carries TOML may also hold what no containerd knows: Share and TaskAPI.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from shim._pb.containerd.linux.runc import options_pb2 as linux_pb2
from shim._pb.containerd.runc.v1 import options_pb2 as runc_pb2
from shim._pb.runtimeoptions.v1 import options_pb2 as runtime_pb2
from shim.errors import InvalidArgument
from shim.model import CheckpointRequest, RuntimeOptions

SHARES: Final = ("host", "pod", "container")
TASK_APIS: Final = ("ttrpc", "grpc")

_MAX_FILE: Final = 1 << 20
_MAX_ID: Final = (1 << 32) - 1
_M = TypeVar("_M", bound=Message)
_T = TypeVar("_T", str, int, bool)


@dataclass(frozen=True)
class Options:
    """What a container is created with, beside its bundle.

    `shim_cgroup` is the cgroup that the shim itself is to be in; `share`, of SHARES, who may
    share a shim with the container; `task_api` is of TASK_APIS. Empty: not said.
    """

    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    shim_cgroup: str = ""
    share: str = ""
    task_api: str = ""


def is_options(any: Any) -> bool:
    """Whether `any` is of one of the types that `decode` takes."""
    return _name(any) in _READERS


def decode(any: Any | None) -> Options:
    """The options in `any`; the defaults when there are none.

    Reads the file that options of type runtimeoptions.v1.Options may name. Raises
    InvalidArgument for what cannot be read, and for types and values that we do not take.
    """
    if any is None or _is_empty(any):
        return Options()
    reader = _READERS.get(_name(any))
    if reader is None:
        raise _unknown("options", any, _READERS)
    return reader(any.value)


def decode_checkpoint(any: Any | None, image: str) -> CheckpointRequest:
    """A checkpoint to the directory `image`, or, if that is empty, to the options' own.

    Raises InvalidArgument.
    """
    if any is None or _is_empty(any):
        return CheckpointRequest(_text("path", image))
    kind = _CHECKPOINTS.get(_name(any))
    if kind is None:
        raise _unknown("checkpoint options", any, _CHECKPOINTS)
    options = parsed(kind, any.value)
    return CheckpointRequest(
        image=_text("path", image or options.image_path),
        work=_text("work_path", options.work_path),
        exit=options.exit,
        allow_tcp=options.open_tcp,
        allow_unix_sockets=options.external_unix_sockets,
        allow_terminal=options.terminal,
        file_locks=options.file_locks,
        empty_namespaces=tuple(_text("namespace", name) for name in options.empty_namespaces),
    )


def parsed(kind: type[_M], data: bytes) -> _M:
    """The message of type `kind` in `data`. Raises InvalidArgument."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"not a {kind.DESCRIPTOR.full_name}: {error}") from error


def _is_empty(any: Any) -> bool:
    return not any.type_url and not any.value


def _name(any: Any) -> str:
    """The type's name: containerd writes it bare, others with a host before it."""
    return any.type_url.rpartition("/")[2]


def _unknown(what: str, any: Any, known: Iterable[str]) -> InvalidArgument:
    return InvalidArgument(
        f"{what} of type {any.type_url[:200]!r}; this shim takes {', '.join(sorted(known))}"
    )


def _read_runc(data: bytes) -> Options:
    options = parsed(runc_pb2.Options, data)
    return Options(
        RuntimeOptions(
            runtime=_text("binary_name", options.binary_name),
            root=_text("root", options.root),
            no_pivot=options.no_pivot_root,
            no_new_keyring=options.no_new_keyring,
            systemd_cgroup=options.systemd_cgroup,
            io_uid=options.io_uid,
            io_gid=options.io_gid,
            criu=_text("criu_path", options.criu_path),
            criu_image=_text("criu_image_path", options.criu_image_path),
            criu_work=_text("criu_work_path", options.criu_work_path),
        ),
        shim_cgroup=_text("shim_cgroup", options.shim_cgroup),
    )


def _read_create(data: bytes) -> Options:
    options = parsed(linux_pb2.CreateOptions, data)
    return Options(
        RuntimeOptions(
            no_pivot=options.no_pivot_root,
            no_new_keyring=options.no_new_keyring,
            io_uid=options.io_uid,
            io_gid=options.io_gid,
            criu_image=_text("criu_image_path", options.criu_image_path),
            criu_work=_text("criu_work_path", options.criu_work_path),
        ),
        shim_cgroup=_text("shim_cgroup", options.shim_cgroup),
    )


def _read_toml(data: bytes) -> Options:
    options = parsed(runtime_pb2.Options, data)
    body = options.config_body
    if not body and options.config_path:
        body = _file(_text("config_path", options.config_path))
    try:
        table = tomllib.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the runtime's options are not TOML: {error}") from error
    return _of_table(table)


def _of_table(table: Mapping[str, object]) -> Options:
    return Options(
        RuntimeOptions(
            runtime=_text("BinaryName", _get(table, "BinaryName", "")),
            root=_text("Root", _get(table, "Root", "")),
            no_pivot=_get(table, "NoPivotRoot", False),
            no_new_keyring=_get(table, "NoNewKeyring", False),
            systemd_cgroup=_get(table, "SystemdCgroup", False),
            io_uid=_number("IoUid", _get(table, "IoUid", 0)),
            io_gid=_number("IoGid", _get(table, "IoGid", 0)),
            criu=_text("CriuPath", _get(table, "CriuPath", "")),
            criu_image=_text("CriuImagePath", _get(table, "CriuImagePath", "")),
            criu_work=_text("CriuWorkPath", _get(table, "CriuWorkPath", "")),
        ),
        shim_cgroup=_text("ShimCgroup", _get(table, "ShimCgroup", "")),
        share=choice("Share", _get(table, "Share", ""), SHARES),
        task_api=choice("TaskAPI", _get(table, "TaskAPI", ""), TASK_APIS),
    )


def choice(what: str, value: str, choices: tuple[str, ...]) -> str:
    """`value` when it is one of `choices`, or empty. Raises InvalidArgument, naming `what`."""
    if value and value not in choices:
        raise InvalidArgument(f"{what} is {value!r}, not one of {', '.join(choices)}")
    return value


def _get(table: Mapping[str, object], key: str, default: _T) -> _T:
    value = table.get(key, default)
    if type(value) is not type(default):
        found, wanted = type(value).__name__, type(default).__name__
        raise InvalidArgument(f"the option {key} is of type {found}, not {wanted}")
    return value


def _number(key: str, value: int) -> int:
    if not 0 <= value <= _MAX_ID:
        raise InvalidArgument(f"the option {key} is not between 0 and {_MAX_ID}")
    return value


def _text(key: str, value: str) -> str:
    if "\0" in value:
        raise InvalidArgument(f"the option {key} holds NUL")
    return value


def _file(path: str) -> bytes:
    """A regular file's content: nothing else, as it might block. Raises InvalidArgument."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgument(f"the options' file {path} is no regular file")
            return file.read(_MAX_FILE)
    except OSError as error:
        raise InvalidArgument(f"cannot read the options' file: {error}") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


_READERS: Final[Mapping[str, Callable[[bytes], Options]]] = {
    "containerd.runc.v1.Options": _read_runc,
    "containerd.linux.runc.CreateOptions": _read_create,
    "runtimeoptions.v1.Options": _read_toml,
}
_CHECKPOINTS: Final[
    Mapping[str, type[runc_pb2.CheckpointOptions] | type[linux_pb2.CheckpointOptions]]
] = {
    "containerd.runc.v1.CheckpointOptions": runc_pb2.CheckpointOptions,
    "containerd.linux.runc.CheckpointOptions": linux_pb2.CheckpointOptions,
}
