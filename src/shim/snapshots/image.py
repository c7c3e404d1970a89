"""What an image says about running it (image-spec: config.md, conversion.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from shim.errors import InvalidArgument
from shim.model import User

_ID_LIMIT: Final = (1 << 32) - 1
_PREFIX: Final = "org.opencontainers.image."
_TOLD: Final = {
    "os": "os",
    "architecture": "architecture",
    "variant": "variant",
    "author": "author",
    "created": "created",
}


@dataclass(frozen=True)
class Defaults:
    """What a container of an image is run with unless its user says otherwise.

    `user` is None for a name that the image itself does not know: `user_name`.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: User | None = field(default_factory=User)
    user_name: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """For the metadata."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Defaults:
        """What `to_bytes` gave; nothing stands for an image without a config.

        Raises ValueError, TypeError, KeyError for anything else.
        """
        if not data:
            return cls()
        state = json.loads(data)
        user = state["user"]
        if user is not None:
            groups = tuple(user["additional_gids"])
            user = User(**{**user, "additional_gids": groups})
        lists = {key: tuple(state[key]) for key in ("entrypoint", "cmd", "env", "volumes")}
        return cls(**{**state, **lists, "user": user})

    def args(self, command: Sequence[str]) -> list[str]:
        """The command line; `command` takes the place of the image's own arguments.

        Raises InvalidArgument when there is none.
        """
        args = [*self.entrypoint, *(command or self.cmd)]
        if not args:
            raise InvalidArgument("the image has no command of its own: give one")
        return args

    def apply(self, spec: Mapping[str, Any], command: Sequence[str] = ()) -> dict[str, Any]:
        """A copy of an OCI spec with what the image says put in.

        Raises InvalidArgument without a command, and for a user that the image does not have.
        """
        if self.user is None:
            raise InvalidArgument(
                f"the image's user {self.user_name!r} is not in its /etc/passwd: add "
                "it there and import the image again"
            )
        process = dict(spec["process"])
        process["args"] = self.args(command)
        process["cwd"] = self.cwd
        process["env"] = _merged(process.get("env", ()), self.env)
        process["user"] = {
            "uid": self.user.uid,
            "gid": self.user.gid,
            "additionalGids": list(self.user.additional_gids),
        }
        annotations = {**spec.get("annotations", {}), **self.annotations}
        return {**spec, "process": process, "annotations": annotations}


def defaults(config: Mapping[str, Any], passwd: str = "", group: str = "") -> Defaults:
    """What an image's config says; its user is looked up in its own /etc/passwd and /etc/group.

    Raises InvalidArgument for a config that is not as it should be.
    """
    run = config.get("config") or {}
    if not isinstance(run, dict):
        raise InvalidArgument("the image's config is no object")
    cwd = _text(run, "WorkingDir") or "/"
    name = _text(run, "User")
    return Defaults(
        entrypoint=_texts(run, "Entrypoint"),
        cmd=_texts(run, "Cmd"),
        env=tuple(entry for entry in _texts(run, "Env") if entry.partition("=")[0]),
        cwd=cwd if cwd.startswith("/") else f"/{cwd}",
        user=find_user(name, passwd, group),
        user_name=name,
        stop_signal=_text(run, "StopSignal"),
        volumes=tuple(sorted(_keys(run, "Volumes"))),
        annotations=_annotations(config, run),
    )


def find_user(text: str, passwd: str, group: str) -> User | None:
    """USER, UID, USER:GROUP and so on as numbers; None for what is not in the files."""
    name, colon, group_name = text.partition(":")
    rows = list(_rows(passwd, 4))
    row = next((row for row in rows if name and name in (row[0], row[2])), None)
    uid = 0 if not name else _id(row[2] if row else name)
    if colon:
        gid = _group(group_name, group)
        return None if uid is None or gid is None else User(uid, gid)
    if not name:
        return User()
    gid = _id(row[3]) if row else 0
    if uid is None or gid is None:
        return None
    return User(uid, gid, _groups_of(row[0], gid, group) if row else ())


def _group(name: str, group: str) -> int | None:
    row = next((row for row in _rows(group, 3) if row[0] == name), None)
    return _id(row[2] if row else name)


def _groups_of(user: str, but: int, group: str) -> tuple[int, ...]:
    rows = [row for row in _rows(group, 4) if user in row[3].split(",")]
    found = {gid for row in rows if (gid := _id(row[2])) is not None}
    return tuple(sorted(found - {but}))


def _rows(text: str, fields: int) -> Iterator[list[str]]:
    """The lines of passwd(5) or group(5) that have so many fields."""
    rows = (line.split(":") for line in text.splitlines())
    return (row for row in rows if len(row) >= fields)


def _id(text: str) -> int | None:
    fits = text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _ID_LIMIT
    return int(text) if fits else None


def _annotations(config: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    told = {_PREFIX + name: _text(config, key) for key, name in _TOLD.items()}
    told[f"{_PREFIX}stopSignal"] = _text(run, "StopSignal")
    told[f"{_PREFIX}exposedPorts"] = ",".join(sorted(_keys(run, "ExposedPorts")))
    labels = run.get("Labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise InvalidArgument("the image's labels are not as they should be")
    return {key: value for key, value in told.items() if value} | labels


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if text is None:
        return ""
    if not isinstance(text, str) or "\0" in text:
        raise InvalidArgument(f"the image's {key} is no text")
    return text


def _texts(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    texts = value.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(t, str) and "\0" not in t for t in texts):
        raise InvalidArgument(f"the image's {key} is no list of texts")
    return tuple(texts)


def _keys(value: Mapping[str, Any], key: str) -> Sequence[str]:
    keys = value.get(key) or {}
    if not isinstance(keys, dict):
        raise InvalidArgument(f"the image's {key} is no object")
    return list(keys)


def _merged(first: Sequence[str], then: Sequence[str]) -> list[str]:
    """NAME=VALUE of both; the second ones count."""
    return list({entry.partition("=")[0]: entry for entry in (*first, *then)}.values())
