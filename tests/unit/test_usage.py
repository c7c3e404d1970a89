"""What a task uses, by files that look like those of either version of cgroups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shim.standalone.usage import Usage, usage


class Streams:
    def __init__(self, count: int) -> None:
        self._count = count

    async def written(self) -> int:
        return self._count


def task(cgroups: dict[str, str], *counts: int) -> Any:
    """A container whose init and execs have written so much."""
    init, *execs = [SimpleNamespace(stdio=Streams(count)) for count in counts or (0,)]
    facts = SimpleNamespace(id="box", cgroups=cgroups)
    return SimpleNamespace(facts=facts, init=init, execs=SimpleNamespace(all=lambda: execs))


def write(folder: Path, **files: str) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return str(folder)


@pytest.mark.parametrize(("most", "limit"), [("max\n", 0), ("65536\n", 65536)])
async def test_version_2_has_one_directory(tmp_path: Path, most: str, limit: int) -> None:
    path = write(
        tmp_path / "box",
        cpu_stat="usage_usec 1234\nuser_usec 1000\n", memory_current="4096\n", memory_max=most,
        pids_current="3\n",
    )  # fmt: skip
    assert await usage([task({"unified": path})]) == [Usage("box", 1234000, 4096, limit, 3, 0)]


@pytest.mark.parametrize(("most", "limit"), [("9223372036854771712\n", 0), ("65536\n", 65536)])
async def test_version_1_has_one_for_each_controller(tmp_path: Path, most: str, limit: int) -> None:
    paths = {
        "cpuacct": write(tmp_path / "cpu", cpuacct_usage="1234\n"),
        "memory": write(tmp_path / "mem", memory_usage_in_bytes="4096\n",
                        memory_limit_in_bytes=most),
        "pids": write(tmp_path / "pids", pids_current="3\n"),
    }  # fmt: skip
    assert await usage([task(paths)]) == [Usage("box", 1234, 4096, limit, 3, 0)]


async def test_what_is_not_counted_is_nothing(tmp_path: Path) -> None:
    gone = [task({}), task({"unified": f"{tmp_path}/gone"}), task({"memory": f"{tmp_path}/gone"})]
    assert await usage(gone) == [Usage("box")] * 3


async def test_all_processes_write() -> None:
    assert await usage([task({}, 1, 20, 300)]) == [Usage("box", output=321)]
