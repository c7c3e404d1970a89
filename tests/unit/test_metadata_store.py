import os
import sqlite3
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from shim.metadata.schema import MIGRATIONS
from shim.metadata.store import Store
from shim.metadata.values import Container, Kind, Layer, Orphans, Snapshot
from shim.store import CorruptState


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metadata.db"


@pytest.fixture
def store(path):
    store = Store.open(path)
    yield store
    store.close()


def idle(id):
    return False


def plain(container):
    """Without the times, which the store sets."""
    return replace(container, created_at=0, updated_at=0)


def image(store, *keys, config=b""):
    layers = [Layer(key, store.allocate()) for key in keys]
    assert store.add_image(layers, config) == ()
    return [layer.directory for layer in layers]


def prepare(store, key, parent="", readonly=False):
    return store.prepare(key, parent, readonly, store.allocate())


FULL = Container(
    "web-1", {"tier": "front", "ü": ""}, "docker.io/library/x", "runc", b"\0\xff", ""
)  # fmt: skip


# Opening


def test_a_new_store_is_empty_sound_and_private(store, path):
    assert store.list_containers() == store.list_snapshots() == store.check() == []
    store.create_container(FULL)
    for name in os.listdir(path.parent):
        assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600


def test_the_log_is_written_ahead_and_synced(store, path):
    store.create_container(FULL)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert path.with_name("metadata.db-wal").stat().st_size > 0


def test_what_was_stored_is_there_after_opening_again(store, path):
    image(store, "busybox", config=b"{}")
    prepare(store, "root", "busybox")
    container = store.create_container(replace(FULL, rootfs="root"))
    snapshots = store.list_snapshots()
    store.close()
    again = Store.open(path)
    assert again.list_containers() == [container]
    assert again.list_snapshots() == snapshots
    assert again.image_config("root") == b"{}"
    assert again.allocate() == 3
    again.close()


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_what_is_no_database_is_refused_and_left_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises(CorruptState, match=str(path)):
        Store.open(path)
    assert path.read_bytes() == content


def test_a_link_is_not_followed(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptState, match="not a file"):
        Store.open(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Store.open(tmp_path / "none" / "metadata.db")


def alter(path, *statements):
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_another_programs_database_is_refused(path):
    alter(path, "CREATE TABLE snapshots (x)")
    with pytest.raises(CorruptState, match="another program"):
        Store.open(path)


def test_a_newer_versions_database_is_refused(store, path):
    store.close()
    alter(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(CorruptState, match="use the newer one"):
        Store.open(path)


def test_an_older_versions_database_is_brought_up_to_date(store, path, monkeypatch):
    store.create_container(FULL)
    store.close()
    steps = (*MIGRATIONS, ("CREATE TABLE more (x)", "INSERT INTO more VALUES (1)"))
    monkeypatch.setattr("shim.metadata.database.MIGRATIONS", steps)
    again = Store.open(path)
    assert [plain(container) for container in again.list_containers()] == [FULL]
    again.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT * FROM more").fetchall() == [(1,)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(steps),)
    connection.close()


def test_a_migration_that_fails_changes_nothing(store, path, monkeypatch):
    store.close()
    steps = (*MIGRATIONS, ("CREATE TABLE more (x)", "INSERT INTO none VALUES (1)"))
    monkeypatch.setattr("shim.metadata.database.MIGRATIONS", steps)
    with pytest.raises(Unavailable, match="no such table: none"):
        Store.open(path)
    monkeypatch.undo()
    again = Store.open(path)
    assert again.check() == []
    again.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'more'").fetchall() == []
    connection.close()


def test_check_says_what_refers_to_nothing(store, path):
    alter(path, "PRAGMA foreign_keys = OFF", "INSERT INTO labels VALUES ('none', 'a', 'b')")
    (problem,) = store.check()
    assert "labels" in problem
    assert "containers" in problem


def test_check_says_what_is_damaged(store, path):
    for number in range(100):
        store.create_container(Container(f"c{number}", spec=bytes(2000)))
    store.close()
    data = bytearray(path.read_bytes())
    (page,) = sqlite_value(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'labels'")
    # A cell pointer that leads out of the page.
    start = (page - 1) * 4096
    data[start + 3 : start + 5] = (1).to_bytes(2, "big")
    data[start + 8 : start + 10] = b"\xff\xff"
    path.write_bytes(data)
    again = Store.open(path)
    assert any(f"{page}" in problem for problem in again.check())
    with pytest.raises(CorruptState, match="damaged"):
        again.list_containers()
    again.close()


def sqlite_value(path, statement):
    connection = sqlite3.connect(path)
    row = connection.execute(statement).fetchone()
    connection.close()
    return row


# Containers


def test_a_container_comes_back_as_it_was_created(store):
    created = store.create_container(replace(FULL, created_at=5, updated_at=6))
    assert plain(created) == FULL
    assert created.created_at == created.updated_at > 1_500_000_000 * 10**9
    assert store.get_container("web-1") == created
    assert store.list_containers() == [created]


def test_an_id_is_one_containers(store):
    store.create_container(FULL)
    with pytest.raises(AlreadyExists, match="web-1"):
        store.create_container(Container("web-1"))
    assert plain(store.get_container("web-1")) == FULL


@pytest.mark.parametrize("id", ["", ".", "../x", "a/b", "a\n", "x" * 201, "ü"])
def test_an_id_that_cannot_be_one_is_refused(store, id):
    with pytest.raises(InvalidArgument, match="container id"):
        store.create_container(Container(id))


@pytest.mark.parametrize(
    "container",
    [
        Container("c", {"": "x"}),
        Container("c", {"k" * 4000: "v" * 97}),
        Container("c", {"k": "ü" * 2048}),
        Container("c", image="i" * 4097),
        Container("c", runtime="r" * 4097),
    ],
)
def test_what_is_too_long_is_refused_and_nothing_stays(store, container):
    with pytest.raises(InvalidArgument):
        store.create_container(container)
    assert store.list_containers() == []
    store.create_container(Container("c"))
    with pytest.raises(InvalidArgument):
        store.update_container(container)
    assert plain(store.get_container("c")) == Container("c")


def test_a_root_that_is_not_there_is_refused(store):
    with pytest.raises(NotFound, match="snapshot 'none'"):
        store.create_container(Container("c", rootfs="none"))
    assert store.list_containers() == []


def test_an_unknown_container_is_not_found(store):
    for call in (
        store.get_container,
        lambda id: store.update_container(Container(id)),
        lambda id: store.delete_container(id, idle),
    ):
        with pytest.raises(NotFound, match="container 'none'"):
            call("none")


def test_containers_are_listed_by_id_and_filtered(store):
    for id in ("b", "a", "c"):
        store.create_container(Container(id, {"even": str(id == "b")}))
    assert [container.id for container in store.list_containers()] == ["a", "b", "c"]
    assert [c.id for c in store.list_containers("labels.even==False,id!=c")] == ["a"]
    with pytest.raises(InvalidArgument, match="character 3"):
        store.list_containers("id=c")


NEW = Container("web-1", {"new": "1"}, "image", "kata", b"spec", "root")


@pytest.mark.parametrize("field", ["labels", "image", "runtime", "spec", "rootfs"])
def test_an_update_changes_the_fields_of_its_mask(store, field):
    prepare(store, "root")
    store.create_container(FULL)
    updated = store.update_container(NEW, [field])
    assert plain(updated) == replace(FULL, **{field: getattr(NEW, field)})
    assert store.get_container("web-1") == updated
    assert updated.updated_at > updated.created_at


def test_an_empty_mask_means_all_fields(store):
    prepare(store, "root")
    created = store.create_container(FULL)
    updated = store.update_container(replace(NEW, created_at=1))
    assert plain(updated) == NEW
    assert updated.created_at == created.created_at


def test_a_mask_may_name_labels(store):
    store.create_container(replace(FULL, labels={"a": "1", "b.c": "2", "d": "3"}))
    new = replace(FULL, labels={"a": "x", "b.c": "y", "e": "z"})
    updated = store.update_container(new, ["labels.b.c", "labels.d", "labels.e", "labels.none"])
    assert updated.labels == {"a": "1", "b.c": "y", "e": "z"}
    assert store.update_container(new, ["labels.b.c", "labels"]).labels == new.labels


@pytest.mark.parametrize("field", ["id", "", "created_at", "labels.", "spec.value", "Image"])
def test_other_paths_are_refused(store, field):
    store.create_container(FULL)
    with pytest.raises(InvalidArgument, match="id cannot" if field == "id" else "no field"):
        store.update_container(replace(NEW, rootfs=""), ["image", field])
    assert plain(store.get_container("web-1")) == FULL


def test_an_update_to_a_root_that_is_not_there_changes_nothing(store):
    store.create_container(FULL)
    with pytest.raises(NotFound, match="snapshot 'root'"):
        store.update_container(NEW)
    assert plain(store.get_container("web-1")) == FULL


def test_a_container_with_a_task_is_not_deleted(store):
    prepare(store, "root")
    container = store.create_container(replace(FULL, rootfs="root"))
    asked = []
    with pytest.raises(FailedPrecondition, match="has a task"):
        store.delete_container("web-1", lambda id: asked.append(id) is None)
    assert asked == ["web-1"]
    assert store.get_container("web-1") == container
    assert store.stat("root").key == "root"


# Snapshots


def test_a_snapshot_is_prepared_committed_and_used(store):
    active = prepare(store, "root")
    assert active == Snapshot("root", "", Kind.ACTIVE, False, 1)
    committed = store.commit("base", "root")
    assert committed == Snapshot("base", "", Kind.COMMITTED, True, 1)
    view = prepare(store, "look", "base", readonly=True)
    assert view == Snapshot("look", "base", Kind.ACTIVE, True, 2)
    assert store.list_snapshots() == [committed, view]
    assert store.stat("look") == view
    assert store.chain("look") == (2, 1)
    with pytest.raises(NotFound):
        store.stat("root")


def test_a_key_is_one_snapshots(store):
    prepare(store, "a")
    prepare(store, "b")
    with pytest.raises(AlreadyExists, match="'a'"):
        prepare(store, "a")
    with pytest.raises(AlreadyExists, match="'b'"):
        store.commit("b", "a")
    with pytest.raises(AlreadyExists, match="'a'"):
        store.commit("a", "a")
    assert [snapshot.kind for snapshot in store.list_snapshots()] == [Kind.ACTIVE] * 2


@pytest.mark.parametrize("key", ["", "a\0", "a\n", "\x1b[2J", "\udcff", "k" * 513])
def test_a_key_that_cannot_be_one_is_refused(store, key):
    prepare(store, "root")
    for call in (
        lambda: prepare(store, key),
        lambda: store.commit(key, "root"),
        lambda: image(store, "bottom", key),
        lambda: image(store, key, "top"),
    ):
        with pytest.raises(InvalidArgument, match="snapshot key"):
            call()
    assert [snapshot.key for snapshot in store.list_snapshots()] == ["root"]


def test_an_unknown_snapshot_is_not_found(store):
    for call in (
        store.stat,
        store.chain,
        store.image_config,
        store.remove,
        lambda key: store.commit("base", key),
        lambda key: prepare(store, "root", key),
    ):
        with pytest.raises(NotFound, match="snapshot 'none'"):
            call("none")
    assert store.list_snapshots() == []


def test_only_what_is_committed_may_be_a_parent(store):
    prepare(store, "active")
    with pytest.raises(FailedPrecondition, match="not committed"):
        prepare(store, "root", "active")


def test_what_is_read_only_cannot_be_committed(store):
    image(store, "base")
    prepare(store, "view", "base", readonly=True)
    for key in ("base", "view"):
        with pytest.raises(FailedPrecondition, match="read-only"):
            store.commit("new", key)


def test_a_containers_root_is_neither_committed_nor_removed(store):
    prepare(store, "root")
    store.create_container(Container("c", rootfs="root"))
    with pytest.raises(FailedPrecondition, match="container 'c'"):
        store.commit("base", "root")
    with pytest.raises(FailedPrecondition, match="container 'c'"):
        store.remove("root")
    store.update_container(Container("c"), ["rootfs"])
    assert store.commit("base", "root").kind is Kind.COMMITTED
    assert store.remove("base") == (1,)


def test_a_parent_is_not_removed(store):
    image(store, "base")
    prepare(store, "root", "base")
    with pytest.raises(FailedPrecondition, match="'root' is made from it"):
        store.remove("base")
    assert store.remove("root") == (2,)
    assert store.remove("base") == (1,)
    assert store.list_snapshots() == []


def test_a_number_is_never_given_twice(store, path):
    assert [store.allocate(), store.allocate()] == [1, 2]
    store.prepare("root", "", False, 2)
    store.remove("root")
    store.close()
    again = Store.open(path)
    assert again.allocate() == 3
    again.close()


# What is freed


def test_a_container_takes_its_root_along_but_not_the_image(store):
    image(store, "bottom", "image")
    prepare(store, "root", "image")
    store.create_container(Container("c", rootfs="root"))
    assert store.delete_container("c", idle) == (3,)
    assert [snapshot.key for snapshot in store.list_snapshots()] == ["bottom", "image"]


def test_a_root_goes_with_its_last_container(store):
    prepare(store, "root")
    for id in ("a", "b"):
        store.create_container(Container(id, rootfs="root"))
    assert store.delete_container("a", idle) == ()
    assert store.delete_container("b", idle) == (1,)


def test_a_container_without_a_root_frees_nothing(store):
    prepare(store, "root")
    store.create_container(Container("c"))
    assert store.delete_container("c", idle) == ()
    assert store.stat("root").key == "root"


def test_a_committed_root_stays(store):
    image(store, "image")
    store.create_container(Container("c", rootfs="image"))
    assert store.delete_container("c", idle) == ()
    assert store.stat("image").kind is Kind.COMMITTED


def test_inner_layers_go_with_the_last_image_on_them(store):
    assert image(store, "sha256:a", "sha256:b", "one") == [1, 2, 3]
    layers = [Layer("sha256:a", 4), Layer("sha256:b", 5), Layer("two", 6)]
    for _ in layers:
        store.allocate()
    assert store.add_image(layers) == (4, 5)
    assert store.chain("two") == (6, 2, 1)
    assert store.remove("one") == (3,)
    prepare(store, "root", "two")
    store.create_container(Container("c", rootfs="root"))
    assert store.delete_container("c", idle) == (7,)
    assert store.remove("two") == (6, 2, 1)
    assert store.list_snapshots() == []


def test_an_inner_layer_that_was_committed_by_name_stays(store):
    prepare(store, "root")
    store.commit("base", "root")
    assert store.add_image([Layer("base", store.allocate()), Layer("top", store.allocate())]) == (
        2,
    )
    assert store.remove("top") == (3,)
    assert store.remove("base") == (1,)


def test_nobody_chooses_a_layers_name(store):
    """What is there by a digest is what the digest says."""
    for name in ("sha256:" + "0" * 64, "sha512:x"):
        with pytest.raises(InvalidArgument, match="no digest"):
            prepare(store, name)
        with pytest.raises(InvalidArgument, match="no digest"):
            image(store, "inner", name)
        prepare(store, "active")
        with pytest.raises(InvalidArgument, match="no digest"):
            store.commit(name, "active")
        store.remove("active")
    assert store.list_snapshots() == []


def test_a_layer_is_shared_on_the_same_parent_only(store):
    image(store, "a", "b", "one")
    with pytest.raises(AlreadyExists, match="'b'"):
        image(store, "b", "two")
    with pytest.raises(AlreadyExists, match="'one'"):
        image(store, "a", "one")
    prepare(store, "active")
    with pytest.raises(AlreadyExists, match="'active'"):
        image(store, "active", "two")
    assert len(store.list_snapshots()) == 4


def test_an_inner_layer_that_a_container_has_had_can_be_removed(store):
    image(store, "inner", "image")
    store.create_container(Container("c", rootfs="inner"))
    assert store.remove("image") == (2,)
    store.update_container(Container("c"), ["rootfs"])
    assert [snapshot.key for snapshot in store.list_snapshots()] == ["inner"]
    assert store.remove("inner") == (1,)


def test_an_inner_layer_goes_with_the_container_that_had_it_last(store):
    image(store, "inner", "image")
    store.create_container(Container("c", rootfs="inner"))
    assert store.remove("image") == (2,)
    assert store.delete_container("c", idle) == (1,)


def test_an_image_has_a_layer(store):
    with pytest.raises(InvalidArgument, match="needs a layer"):
        store.add_image([])


def test_the_config_is_the_nearest_ancestors(store):
    image(store, "bottom", "image", config=b"config")
    prepare(store, "root", "image")
    assert store.image_config("root") == store.image_config("image") == b"config"
    assert store.image_config("bottom") == b""
    store.commit("mine", "root")
    prepare(store, "again", "mine")
    assert store.image_config("again") == b"config"


# The start-up pass


def test_the_pass_finds_orphans_in_both_directions(store, path):
    image(store, "bottom", "image")
    prepare(store, "used", "image")
    store.create_container(Container("c", rootfs="used"))
    prepare(store, "unused")
    store.allocate()
    store.close()
    again = Store.open(path)
    assert again.free_orphans({1, 2, 3, 4, 5}) == Orphans((5,), (), ())
    assert again.free_orphans({1, 2}) == Orphans((), ("unused",), ("used",))
    assert again.free_orphans({1}) == Orphans((), (), ("image", "used"))
    assert again.delete_container("c", idle) == (3,)
    assert again.free_orphans({1}) == Orphans((1,), ("image", "bottom"), ())
    assert again.list_snapshots() == []
    again.close()


def test_the_pass_frees_whole_chains_that_are_gone(store, path):
    prepare(store, "root")
    prepare(store, "late")
    store.commit("base", "late")
    store.prepare("child", "base", False, store.allocate())
    store.close()
    again = Store.open(path)
    assert set(again.free_orphans(set()).forgotten) == {"root", "base", "child"}
    again.close()


def test_the_pass_leaves_alone_what_has_begun_since(store):
    number = store.allocate()
    assert store.free_orphans({number}) == Orphans((), (), ())
    store.prepare("root", "", False, number)
    assert store.free_orphans(set()) == Orphans((), (), ())
    assert store.stat("root").directory == number


def test_a_number_that_was_not_given_away_is_an_orphans(store):
    assert store.free_orphans({0, 1}) == Orphans((0, 1), (), ())
    assert store.allocate() == 1


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "denseshim-test", mounted], check=True
    )
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


def fill(path):
    free = os.statvfs(path.parent)
    path.write_bytes(bytes(free.f_bavail * free.f_bsize))


def test_a_full_disk_is_said_and_changes_nothing(small_disk):
    store = Store.open(small_disk / "metadata.db")
    prepare(store, "root")
    container = store.create_container(Container("c", rootfs="root"))
    fill(small_disk / "filler")
    large = Container("d", spec=bytes(40_000))
    with pytest.raises(ResourceExhausted, match="disk"):
        store.create_container(large)
    assert store.list_containers() == [container]
    (small_disk / "filler").unlink()
    assert plain(store.create_container(large)) == large
    assert store.check() == []
    store.close()


def reserve_of(disk):
    return (disk / "metadata.db-reserve").stat().st_blocks * 512


def test_on_a_full_disk_things_can_be_removed(small_disk):
    """And again, when what was removed has made no room at all."""
    store = Store.open(small_disk / "metadata.db")
    image(store, "image")
    roots = [f"root{number}" for number in range(12)]
    for root in roots:
        prepare(store, root, "image")
        store.create_container(Container(root, rootfs=root))
    for number, root in enumerate(roots):
        fill(small_disk / f"filler{number}")
        assert store.delete_container(root, idle) == (number + 2,)
    fill(small_disk / "last")
    assert store.remove("image") == (1,)
    assert store.list_snapshots() == store.list_containers() == store.check() == []
    with pytest.raises(ResourceExhausted, match="remove containers or snapshots"):
        prepare_many(store)
    for filler in small_disk.glob("filler*"):
        filler.unlink()
    store.make_reserve()
    assert reserve_of(small_disk) >= 512 << 10, "as much as before, or nearly"
    store.close()


def prepare_many(store):
    for number in range(1000):
        prepare(store, f"more{number}")


def test_a_store_on_a_full_disk_is_opened_to_remove_things(small_disk):
    """SQLite makes its log, and an index of it, before anything can be read."""
    store = Store.open(small_disk / "metadata.db")
    prepare(store, "root")
    store.close()
    fill(small_disk / "filler")
    again = Store.open(small_disk / "metadata.db")
    assert again.remove("root") == (1,)
    again.close()


@pytest.mark.parametrize("left", [None, b"", b"x" * 10_000])
def test_a_reserve_is_made_again_of_what_a_dead_process_has_left(store, path, left):
    reserve = path.with_name("metadata.db-reserve")
    store.close()
    reserve.unlink()
    if left is not None:
        reserve.write_bytes(left)
    Store.open(path).close()
    assert reserve.stat().st_blocks * 512 >= 1 << 20
    assert stat.S_IMODE(reserve.stat().st_mode) == 0o600 or left is not None


def test_a_full_disk_at_the_start_is_said(small_disk):
    (small_disk / "metadata.db").touch()
    fill(small_disk / "filler")
    with pytest.raises((ResourceExhausted, Unavailable), match=r"metadata\.db"):
        Store.open(small_disk / "metadata.db")
    (small_disk / "filler").unlink()
    Store.open(small_disk / "metadata.db").close()


# Threads


def test_calls_may_come_from_any_thread(store):
    image(store, "image")

    def live(number):
        key, id = f"root-{number}", f"c{number}"
        directory = store.allocate()
        store.prepare(key, "image", False, directory)
        store.create_container(Container(id, {"n": str(number)}, rootfs=key))
        store.update_container(Container(id, {"m": "x"}), ["labels.m"])
        assert store.list_containers(f"id=={id}")[0].labels == {"n": str(number), "m": "x"}
        assert store.chain(key) == (directory, 1)
        return store.delete_container(id, idle)

    with ThreadPoolExecutor(8) as pool:
        freed = list(pool.map(live, range(80)))
    assert sorted(freed) == [(number,) for number in range(2, 82)]
    assert [snapshot.key for snapshot in store.list_snapshots()] == ["image"]
    assert store.check() == []


def test_of_many_at_once_one_creates_and_one_frees(store):
    barrier = threading.Barrier(8)

    def race(call):
        def attempt(_):
            barrier.wait()
            try:
                return call()
            except (AlreadyExists, NotFound) as error:
                return type(error)

        return list(pool.map(attempt, range(8)))

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            directory = prepare(store, "root").directory
            created = race(lambda: store.create_container(Container("c", rootfs="root")).id)
            assert sorted(created, key=str) == [AlreadyExists] * 7 + ["c"]
            freed = race(lambda: store.delete_container("c", idle))
            assert sorted(freed, key=str) == sorted([(directory,)] + [NotFound] * 7, key=str)


def test_another_process_that_goes_on_writing_is_said(store, path, monkeypatch):
    store.close()
    monkeypatch.setattr("shim.metadata.database._BUSY_SECONDS", 0.01)
    again = Store.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        again.allocate()
    other.close()
    assert again.allocate() == 1
    again.close()
