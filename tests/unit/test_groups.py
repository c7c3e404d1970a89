"""What a front makes of the groups that an earlier one has left."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shim.keeper.client import KeeperClient
from shim.model import Launcher
from shim.service.groups import Group, Groups
from tests.native import harness
from tests.native.harness import Keeper


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with harness.keeper() as made:
        yield made


@pytest.fixture
async def client(keeper: Keeper) -> AsyncIterator[KeeperClient]:
    made = KeeperClient(keeper.front.channel.dup(), lambda: None)
    yield made
    made.close()


def make_group(folder: Path, id: int) -> Group:
    path = str(folder / f"{id}.sock")
    launcher = Launcher({"PATH": "/bin"})
    return Group(id, "/containerd.sock", "/containerd.ttrpc", "box", path, launcher)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1, "state": {"odd": 1}}'])
async def test_one_that_cannot_be_read_harms_no_other(
    client: KeeperClient, tmp_path: Path, text: str
) -> None:
    """It is forgotten; so then will be its listener."""
    held = await client.begin()
    groups = Groups(client, tmp_path / "groups")
    for id in (7, 8):
        await groups.open(make_group(tmp_path, id))
    (tmp_path / "groups" / "7.json").write_text(text)
    (tmp_path / "groups" / "odd.json").write_text(text)
    held.listeners.update(dict.fromkeys((7, 8), 0))  # type: ignore[arg-type]
    found = Groups(client, tmp_path / "groups")
    await found.recover(held)
    assert (list(found), held.claimed) == ([make_group(tmp_path, 8)], {8})
    assert os.listdir(tmp_path / "groups") == ["8.json"]
    for group in list(groups):
        await groups.close(group)


async def test_what_the_keeper_does_not_hold_was_never_made_known(
    client: KeeperClient, tmp_path: Path
) -> None:
    held = await client.begin()
    groups = Groups(client, tmp_path / "groups")
    group = await groups.open(make_group(tmp_path, 7))
    found = Groups(client, tmp_path / "groups")
    await found.recover(held)
    assert (list(found), os.listdir(tmp_path / "groups")) == ([], [])
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(group.path)
    await groups.close(group)
