import os
import stat

import pytest

from shim.store import CorruptState, Store


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def store(directory):
    return Store(directory)


def test_what_was_written_is_read_by_another_store(store, directory):
    store.write("init", {"pid": 7, "args": ["a", "\udcff", "ü"]})
    assert Store(directory).read("init") == {"pid": 7, "args": ["a", "\udcff", "ü"]}


def test_what_was_not_written_is_none(store):
    assert store.read("init") is None


def test_the_last_value_counts_and_leaves_no_other_file(store, directory):
    store.write("init", {"pid": 1})
    store.write("init", {"pid": 2})
    assert store.read("init") == {"pid": 2}
    assert os.listdir(directory) == ["init.json"]


def test_names_are_sorted_and_removed_ones_gone(store, directory):
    for name in ("b", "a", "c.d-e_1"):
        store.write(name, {})
    store.remove("b")
    store.remove("b")
    (directory / ".x").touch()
    (directory / "other.txt").touch()
    assert store.names() == ["a", "c.d-e_1"]


def test_destroy_removes_all_and_may_be_repeated(store, directory):
    store.write("a", {})
    store.destroy()
    assert not directory.exists()
    store.destroy()


def test_only_root_may_look(store, directory):
    store.write("a", {})
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "a.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".a", "a\0", "a\n", "x" * 201])
def test_a_name_cannot_leave_the_directory(store, name):
    for call in (store.read, store.remove, lambda name: store.write(name, {})):
        with pytest.raises(ValueError, match="cannot name"):
            call(name)


def test_a_directory_that_is_a_link_is_refused(tmp_path, directory):
    (tmp_path / "real").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "real")
    with pytest.raises(PermissionError, match="not a directory"):
        Store(directory)


def test_a_directory_that_is_another_users_is_refused(directory):
    directory.mkdir(mode=0o700)
    os.chown(directory, 1, 1)
    with pytest.raises(PermissionError, match="open to others"):
        Store(directory)


def test_a_directory_that_is_open_to_others_is_refused(directory):
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(PermissionError, match="open to others"):
        Store(directory)


def test_a_dead_writers_temporary_file_is_no_hindrance(store, directory, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (directory / ".a").symlink_to(victim)
    store.write("a", {"x": 1})
    assert store.read("a") == {"x": 1}
    assert victim.read_text() == "untouched"


def test_when_writing_fails_the_former_value_stays(store, directory):
    store.write("a", {"x": 1})
    with pytest.raises(TypeError):
        store.write("a", {"x": object()})
    (directory / "b.json").mkdir()
    with pytest.raises(IsADirectoryError):
        store.write("b", {})
    assert store.read("a") == {"x": 1}
    assert sorted(os.listdir(directory)) == ["a.json", "b.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"version": 2, "state": {}}',
        b'{"version": 1}',
        b'{"version": 1, "state": []}',
    ],
)
def test_a_corrupt_file_is_named(store, directory, content):
    path = directory / "a.json"
    path.write_bytes(content)
    with pytest.raises(CorruptState, match=str(path)):
        store.read("a")


def test_what_is_not_a_file_is_not_read(store, directory):
    os.mkfifo(directory / "a.json")
    with pytest.raises(CorruptState, match="not a file"):
        store.read("a")
