"""What the next keeper finds in the directory of a dead one."""

from __future__ import annotations

import json
from pathlib import Path

from shim.orphans import disown, disown_container


def record(directory: Path) -> Path:
    """A container's directory, with events that nobody has had."""
    directory.mkdir(parents=True)
    (directory / "container.json").write_text('{"state": 1}')
    (directory / "events").write_text("told to nobody")
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_containers_of_both_protocols_become_orphans(tmp_path: Path) -> None:
    places = [record(tmp_path / "tasks" / "a"), record(tmp_path / "shims" / "b")]
    disown(tmp_path)
    for place in places:
        assert names(place) == ["orphan.json"]
        assert (place / "orphan.json").read_text() == '{"state": 1}'


def test_the_files_of_an_orphan_that_is_not_yet_removed_stay(tmp_path: Path) -> None:
    """Two keepers may die in a row."""
    place = record(tmp_path / "tasks" / "a")
    disown(tmp_path)
    disown(tmp_path)
    assert names(place) == ["orphan.json"]


def test_listeners_are_forgotten_with_their_sockets(tmp_path: Path) -> None:
    groups, shims = tmp_path / "groups", tmp_path / "shims"
    socket, others = tmp_path / "socket", tmp_path / "other"
    for path in (groups, shims):
        path.mkdir()
    for path in (socket, others):
        path.touch()
    (groups / "1.json").write_text(json.dumps({"state": {"path": str(socket)}}))
    (groups / "gone.json").write_text(json.dumps({"state": {"path": str(tmp_path / "gone")}}))
    for number, text in enumerate(["", "[]", "{}", '{"state": {"path": 7}}', "\xff"]):
        (groups / f"bad{number}.json").write_text(text)
    (shims / "b.json").write_text("{}")
    disown(tmp_path)
    assert (names(groups), names(shims), socket.exists()) == ([], [], False)
    assert others.exists()


def test_a_directory_without_a_container_has_no_orphan(tmp_path: Path) -> None:
    disown_container(tmp_path)
    disown(tmp_path / "missing")
    assert names(tmp_path) == []
