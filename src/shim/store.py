"""Small state files that outlive the process which wrote them.

One JSON file per name, replaced as a whole by rename(2). Nothing is synced to disk: the state
has to survive processes, not a power loss, and lives where a reboot clears it (/run).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)
_SUFFIX = ".json"
_SIZE_LIMIT = 64 << 20


class CorruptState(Exception):
    """A state file holds what this version of the shim has not written; names the file."""


# What a state of another shape than the one that was written leads to.
MISSHAPEN = (CorruptState, AttributeError, KeyError, TypeError, ValueError)


class Store:
    """The state files in one directory.

    create: make it (mode 0700) if it is not there; who only reads what another one writes does
        not, since it may be removed at any moment.

    One writer at a time. Raises PermissionError for a directory that is a symbolic link, is not
    ours or is open to others, and OSError if it is not there or cannot be made; its parent must
    exist.
    """

    def __init__(self, directory: Path, *, create: bool = True) -> None:
        if create:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
        _check_private(directory)
        self._directory = directory

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Put `value`, made of what JSON has, in the place of what was there, or fail.

        Raises OSError (the former value is then still there), ValueError for a name that is
        not [A-Za-z0-9][A-Za-z0-9_.-]*, TypeError for what JSON cannot hold.
        """
        path = self._path(name)
        data = json.dumps({"version": VERSION, "state": value}).encode()
        temporary = f"{self._directory}/.{name}"
        try:
            _write_new(temporary, data)
            os.rename(temporary, path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def read(self, name: str) -> dict[str, Any] | None:
        """The value last written, or None.

        Raises CorruptState, OSError, ValueError for a wrong name.
        """
        path = Path(self._path(name))
        try:
            data = _read_regular(path)
        except FileNotFoundError:
            return None
        return _decode(data, path)

    def names(self) -> list[str]:
        """The names that have a value, sorted. Raises OSError."""
        stems = [name.removesuffix(_SUFFIX) for name in os.listdir(self._directory)
                 if name.endswith(_SUFFIX)]  # fmt: skip
        return sorted(stem for stem in stems if _NAME.fullmatch(stem))

    def remove(self, name: str) -> None:
        """Forget the value, if there is one. Raises OSError, ValueError for a wrong name."""
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def destroy(self) -> None:
        """Remove the directory with all that is in it, if it is still there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory)

    def _path(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a state file")
        return f"{self._directory}/{name}{_SUFFIX}"


def _check_private(directory: Path) -> None:
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"the state directory {directory} is not a directory")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"the state directory {directory} is open to others than uid {os.geteuid()}; "
            "remove it, or name another one"
        )


def _write_new(path: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
    except FileExistsError:  # a dead writer's
        os.unlink(path)
        file = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    finally:
        os.close(file)


def _read_regular(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > _SIZE_LIMIT:
            raise CorruptState(
                f"the state file {path} is not a file of at most {_SIZE_LIMIT} bytes"
            )
        return file.read()


def _decode(data: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptState(f"the state file {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise CorruptState(f"the state file {path} is not of version {VERSION}")
    state = content.get("state")
    if not isinstance(state, dict):
        raise CorruptState(f"the state file {path} holds no state")
    return state
