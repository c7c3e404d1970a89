"""The formats that files of cgroups have (the kernel's cgroup-v2 document, "Interface Files")."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import cache
from typing import Final, TypeVar

from google.protobuf.message import Message

from shim.cgroup import ABSENT, LARGEST, content, counters

NO_LIMIT: Final = 2**64 - 1
_NO_RDMA_LIMIT: Final = 2**32 - 1
_RDMA_FIELDS: Final = {"hca_handle": "hca_handles", "hca_object": "hca_objects"}

Entry = TypeVar("Entry", bound=Message)


class Files:
    """Reads files; an absent one is like an empty one, but `found` tells if all were absent."""

    def __init__(self) -> None:
        self.found = False

    def text(self, path: str) -> bytes:
        """Raises OSError for what is neither readable nor absent, as all methods do."""
        text = self._read(path)
        if text:
            self.found = True
        return text

    def _read(self, path: str) -> bytes:
        return content(path)

    def number(self, path: str, without_limit: int = NO_LIMIT) -> int | None:
        """The one number in a file, `without_limit` for "max", None for no file."""
        text = self.text(path)
        if not text:
            return None
        return without_limit if text == b"max\n" else int(text)

    def counters(self, path: str) -> dict[str, int]:
        """A file of lines NAME NUMBER; {} for no file."""
        return counters(self.text(path))

    def named(self, path: str, fields: Collection[str]) -> dict[str, int]:
        """Those lines of such a file whose names are in `fields`."""
        return {name: value for name, value in self.counters(path).items() if name in fields}

    def nested(self, path: str) -> Iterator[tuple[str, dict[str, str]]]:
        """A file of lines KEY NAME=VALUE...: each key and its values."""
        for line in self.text(path).decode().splitlines():
            key, *pairs = line.split()
            yield key, dict(pair.split("=", 1) for pair in pairs)

    def rdma(self, path: str, cls: type[Entry]) -> list[Entry]:
        """The lines of rdma.current or rdma.max, which are the same in both versions."""
        return [
            cls(device=device, **{field: _handles(values[name]) for name, field in _known(values)})
            for device, values in self.nested(path)
        ]


class OpenFiles(Files):
    """Reads the same files again and again, and keeps them open: opening takes most of the time.

    The owner closes it. The cgroup can be removed all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._descriptors: dict[str, int] = {}

    def close(self) -> None:
        """Close all; they are opened again when they are read."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _read(self, path: str) -> bytes:
        try:
            descriptor = self._descriptors.get(path)
            if descriptor is None:
                descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY)
            return os.pread(descriptor, LARGEST, 0)
        except OSError as error:
            if error.errno in ABSENT:
                return b""
            raise


def _known(values: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, field) for name, field in _RDMA_FIELDS.items() if name in values]


def _handles(text: str) -> int:
    return _NO_RDMA_LIMIT if text == "max" else int(text)


@cache
def huge_page_sizes() -> list[str]:
    """The sizes in names of hugetlb files, such as 2MB; they change at boot only."""
    try:
        folders = sorted(os.listdir("/sys/kernel/mm/hugepages"))
    except FileNotFoundError:
        return []
    return [_size(int(name.removeprefix("hugepages-").removesuffix("kB"))) for name in folders]


def _size(kib: int) -> str:
    for shift, unit in ((20, "GB"), (10, "MB")):
        if kib >> shift:
            return f"{kib >> shift}{unit}"
    return f"{kib}KB"
