"""Snapshots on real file systems: overlay's mounts, copies, full disks."""

import contextlib
import gzip
import io
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from shim import mounts, syscalls
from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from shim.metadata.store import Store
from shim.metadata.values import Container, Kind
from shim.model import Mount, User
from shim.snapshots import overlay
from shim.snapshots.imports import Wishes, import_path, import_tar
from shim.snapshots.snapshotter import Snapshotter
from tests.fakes.archives import (
    ENTRIES,
    LayoutMaker,
    Refused,
    Unclear,
    archive,
    listing,
    member,
    members_of,
    model_apply,
)
from tests.unit.test_mounts import isolated

FORMS = ["overlay", "copies"]


@contextlib.contextmanager
def snapshots(place, form="overlay"):
    """A snapshotter in a directory of its own; at its end nothing is there without a record."""
    with pytest.MonkeyPatch.context() as patch:
        if form == "copies":
            patch.setattr(overlay, "why_not", lambda directory: "the test says so")
        store = Store.open(place / "db")
        try:
            made = Snapshotter.open(place / "snapshots", store)
            assert bool(made.why_copies) == (form == "copies")
            yield made
            assert_sound(made)
        finally:
            store.close()


def assert_sound(made):
    """The directories are those of the records, and no other."""
    recorded = {str(snapshot.directory) for snapshot in made.store.list_snapshots()}
    assert set(os.listdir(made.root)) == recorded | {"form"}
    assert made.store.check() == []


@pytest.fixture(params=FORMS)
def made(request, tmp_path):
    with snapshots(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def stacked(tmp_path):
    """With overlay."""
    with snapshots(tmp_path) as made:
        yield made


def shown(entries, act=listing):
    """What `act` gives for the mounts, in a mount namespace of its own."""
    found = []

    def look():
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            count = mounts.mount_all(entries, Path(place))
            try:
                found.append(act(Path(place)))
            finally:
                mounts.unmount_all(Path(place), count)

    isolated(look)
    return found[0]


def seen(made, name, act=listing):
    """What a view of a committed snapshot shows."""
    entries = made.view("denseshim-view", name)
    try:
        return shown(entries, act)
    finally:
        made.remove("denseshim-view")


def tar_file(path, *members):
    path.write_bytes(archive(*members))
    return path


@pytest.fixture
def base(made, tmp_path):
    """A committed snapshot called base."""
    tar = tar_file(
        tmp_path / "base.tar",
        member(".", "dir", mode=0o1711, uid=3),
        member("d", "dir", mode=0o750),
        member("d/a", content=b"a"),
        member("d/b", content=b"b"),
        member("f", content=b"f" * 5000),
    )
    import_path(made, "base", tar)
    return "base"


BASE = {
    "d": (stat.S_IFDIR, None),
    "d/a": ("file", b"a"),
    "d/b": ("file", b"b"),
    "f": ("file", b"f" * 5000),
}


def change(root):
    (root / "d" / "a").unlink()
    (root / "f").unlink()
    (root / "f").mkdir()
    (root / "new").write_bytes(b"new")
    shutil.rmtree(root / "d")
    (root / "d").mkdir()
    (root / "d" / "c").write_bytes(b"c")


CHANGED = {
    "d": (stat.S_IFDIR, None),
    "d/c": ("file", b"c"),
    "f": (stat.S_IFDIR, None),
    "new": ("file", b"new"),
}


def test_what_is_changed_is_committed_and_what_was_below_is_not(made, base):
    entries = made.prepare("denseshim-1", base)
    shown(entries, change)
    assert shown(made.mounts("denseshim-1")) == CHANGED
    snapshot = made.commit("changed", "denseshim-1")
    assert (snapshot.kind, snapshot.parent) == (Kind.COMMITTED, base)
    assert seen(made, base) == BASE
    assert seen(made, "changed") == CHANGED
    shown(made.prepare("denseshim-2", "changed"), lambda root: (root / "new").unlink())
    made.commit("further", "denseshim-2")
    assert seen(made, "further").keys() == CHANGED.keys() - {"new"}
    for name in ("further", "changed", base):
        made.remove(name)
    assert made.store.list_snapshots() == []


def test_a_root_looks_like_the_one_below(made, base):
    made.prepare("denseshim-1", base)
    found = shown(made.mounts("denseshim-1"), os.stat)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o1711, 3)


def test_a_snapshot_of_nothing_is_empty_and_may_be_filled(made):
    entries = made.prepare("denseshim-1")
    shown(entries, lambda root: (root / "a").write_bytes(b"a"))
    made.commit("first", "denseshim-1")
    assert seen(made, "first") == {"a": ("file", b"a")}
    assert shown(made.view("denseshim-2")) == {}


@pytest.mark.parametrize("parent", ["", "base"])
def test_a_view_cannot_be_changed(made, base, parent):
    def attempt(root):
        with pytest.raises(OSError, match="Read-only"):
            (root / "x").touch()

    shown(made.view("denseshim-1", parent), attempt)
    with pytest.raises(FailedPrecondition):
        made.commit("x", "denseshim-1")


def test_errors_leave_nothing(made, base):
    made.prepare("denseshim-1", base)
    with pytest.raises(AlreadyExists):
        made.prepare("denseshim-1", base)
    with pytest.raises(NotFound):
        made.prepare("denseshim-2", "nothing")
    with pytest.raises(FailedPrecondition):
        made.view("denseshim-2", "denseshim-1")
    with pytest.raises(InvalidArgument):
        made.prepare("\n", base)
    with pytest.raises(FailedPrecondition, match="prepare or view"):
        made.mounts(base)
    with pytest.raises(AlreadyExists):
        made.commit(base, "denseshim-1")
    with pytest.raises(FailedPrecondition):
        made.remove(base)
    for call in (made.mounts, made.remove, made.usage):
        with pytest.raises(NotFound):
            call("nothing")
    assert_sound(made)


def test_usage_is_of_the_snapshot_alone(made, base):
    shown(made.prepare("denseshim-1", base), lambda root: (root / "n").write_bytes(b"n" * 99_999))
    alone = made.usage("denseshim-1")
    assert made.usage(base).inodes == 5
    if made.why_copies:
        assert alone.inodes == 6
    else:
        assert alone.inodes == 2
        assert 99_999 <= alone.size < 120_000


def test_a_container_frees_its_snapshot(made, base):
    made.prepare("denseshim-1", base)
    made.store.create_container(Container("denseshim-1", rootfs="denseshim-1"))
    with pytest.raises(FailedPrecondition):
        made.remove("denseshim-1")
    made.discard(made.store.delete_container("denseshim-1", lambda id: False))
    assert [snapshot.key for snapshot in made.store.list_snapshots()] == [base]


def test_a_parent_that_is_replaced_meanwhile_is_noticed(made, base, tmp_path, monkeypatch):
    prepare = made.store.prepare

    def replaced(*args):
        made.remove(base)
        import_path(made, base, tar_file(tmp_path / "other.tar", member("other")))
        return prepare(*args)

    monkeypatch.setattr(made.store, "prepare", replaced)
    with pytest.raises(Exception, match="replaced meanwhile"):
        made.prepare("denseshim-1", base)
    assert [snapshot.key for snapshot in made.store.list_snapshots()] == [base]


def test_a_directory_is_imported(made, tmp_path, rootfs):
    imported = import_path(made, "busybox", rootfs)
    assert imported.lost == 0
    assert seen(made, "busybox") == listing(rootfs)


def test_a_directory_with_the_snapshots_in_it_is_imported_without_them(made, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    import_path(made, "all", tmp_path)
    found = seen(made, "all")
    assert found["file"] == ("file", b"x")
    assert [name for name in found if name.startswith("snapshots")] == ["snapshots"]


def test_overlays_own_files_are_not_imported(made, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    os.mknod(source / "gone", stat.S_IFCHR, os.makedev(0, 0))
    with pytest.raises(InvalidArgument, match="import what is mounted"):
        import_path(made, "x", source)


def test_mounts_and_sockets_are_left_out(made, tmp_path):
    source = tmp_path / "source"
    (source / "mounted").mkdir(parents=True)
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)

    def work():
        mounts.mount(Mount("tmpfs", "tmpfs", "/"), source / "mounted")
        (source / "mounted" / "secret").touch()
        import_path(made, "x", source)

    isolated(work)
    assert seen(made, "x") == {"mounted": (stat.S_IFDIR, None)}


@pytest.mark.parametrize("option", ["", "--gzip", "--bzip2", "--xz", "--zstd"])
def test_what_tar_packs_is_imported(stacked, tmp_path, rootfs, option):
    tar = tmp_path / "busybox"
    command = ["tar", "--create", *option.split(), "--file", str(tar), "--directory", str(rootfs)]
    subprocess.run([*command, "."], check=True)
    import_path(stacked, "busybox", tar)
    assert seen(stacked, "busybox") == listing(rootfs)


def test_a_tar_may_come_from_anywhere(made):
    imported = import_tar(made, "x", io.BytesIO(archive(member("a"))))
    assert imported.snapshot == made.store.stat("x")


@pytest.mark.parametrize("name", ["nothing", "fifo"])
def test_what_is_neither_is_refused(made, tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidArgument):
        import_path(made, "x", tmp_path / name)


def test_a_hostile_tar_leaves_nothing(made, tmp_path):
    tar = tar_file(tmp_path / "tar", member("d/e/f"), member("../x"))
    with pytest.raises(InvalidArgument, match="leads out"):
        import_path(made, "x", tar)
    assert made.store.list_snapshots() == []
    assert_sound(made)


def test_devices_are_imported_unless_told_otherwise(made, tmp_path):
    tar = tar_file(tmp_path / "tar", member("null", "char", devmajor=1, devminor=3))
    with pytest.raises(InvalidArgument, match="not allowed"):
        import_path(made, "x", tar, Wishes(devices=False))
    import_path(made, "x", tar)
    assert seen(made, "x") == {"null": (stat.S_IFCHR, None)}


def test_a_name_is_checked_before_anything_is_read(made, base, tmp_path):
    with pytest.raises(AlreadyExists):
        import_path(made, base, tmp_path / "nothing")
    with pytest.raises(InvalidArgument, match="key"):
        import_path(made, "", tmp_path / "nothing")


LAYERS = (
    (member("etc/passwd", content=b"web:x:7:8:::\n"), member("a"), member("d/x"), member("d/y")),
    (member(".wh.a"), member("d/.wh..wh..opq"), member("d/z"), member("etc/group")),
    (member("e/deep/file", mode=0o4755), member("a", "dir")),
)


def make_layout(path, layers=LAYERS, **options):
    maker = LayoutMaker(path)
    maker.image([archive(*members) for members in layers], **options)
    return maker


def test_a_layout_is_imported(made, tmp_path):
    layout = make_layout(tmp_path / "layout", config={"User": "web", "Cmd": ["run"]}).write()
    told = []
    wishes = Wishes(progress=lambda *facts: told.append(facts))
    imported = import_path(made, "image", layout, wishes)
    assert imported.snapshot == made.store.stat("image")
    assert imported.defaults.user == User(7, 8)
    assert imported.defaults.to_bytes() == made.store.image_config("image")
    assert told[-1][0] == "layer 3 of 3"
    assert told[-1][1] == told[-1][2]
    found = seen(made, "image")
    assert sorted(found) == [
        "a", "d", "d/z", "e", "e/deep", "e/deep/file", "etc", "etc/group", "etc/passwd",
    ]  # fmt: skip
    assert found["a"] == (stat.S_IFDIR, None)
    made.remove("image")
    assert made.store.list_snapshots() == []


@pytest.mark.parametrize("ending", ["", "etc/.wh.passwd", ".wh.etc", "etc/.wh..wh..opq"])
def test_a_user_is_looked_up_in_what_the_image_shows(made, tmp_path, ending):
    layers = [*LAYERS, [member(ending)]] if ending else LAYERS
    layout = make_layout(tmp_path / "layout", layers, config={"User": "web"}).write()
    found = import_path(made, "image", layout).defaults
    assert found.user == (None if ending else User(7, 8))


def test_layers_are_shared(stacked, tmp_path):
    import_path(stacked, "one", make_layout(tmp_path / "1", LAYERS[:2]).write())
    count = len(stacked.store.list_snapshots())
    import_path(stacked, "two", make_layout(tmp_path / "2").write())
    assert len(stacked.store.list_snapshots()) == count + 2, "a layer, and the name"
    stacked.remove("one")
    assert "d/z" in seen(stacked, "two")
    stacked.remove("two")
    assert stacked.store.list_snapshots() == []


def test_a_layout_may_be_in_a_tar(made, tmp_path):
    layout = make_layout(tmp_path / "layout").write()
    subprocess.run(["tar", "-czf", tmp_path / "tar", "-C", layout, "."], check=True)
    import_path(made, "image", tmp_path / "tar")
    assert "e/deep/file" in seen(made, "image")


def damage(maker, layer):
    """Change what packed it: gzip does not mind."""
    path = maker.path / "blobs" / layer["digest"].replace(":", "/")
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["blob", "config"])
def test_a_damaged_layer_leaves_nothing(made, tmp_path, what):
    maker = LayoutMaker(tmp_path / "layout")
    layers = [archive(member("a")), archive(member("b"))]
    if what == "blob":
        maker.image(layers)
        damage(maker, maker.packed[-1])
    else:
        maker.image(layers, diff_ids=[layers[0], b"other"])
    with pytest.raises(InvalidArgument, match="another content"):
        import_path(made, "image", maker.write())
    assert made.store.list_snapshots() == []
    assert_sound(made)


class Stop(Exception):
    """Raised where an import is to end."""


def zeros(path, layered):
    """16 MiB in a few KiB."""
    members = [member("zeros", content=bytes(16 << 20))]
    if layered:
        return make_layout(path, [members]).write()
    path.write_bytes(gzip.compress(archive(*members)))
    assert path.stat().st_size < 1 << 16
    return path


def many(path, layered):
    """Empty files, many of which fit in little."""
    members = [member(str(number)) for number in range(3000)]
    if layered:
        return make_layout(path, [members]).write()
    path.write_bytes(gzip.compress(archive(*members)))
    return path


def files_in_directory(path, layered):
    path.mkdir()
    for number in range(3000):
        (path / str(number)).touch()
    return path


@pytest.mark.parametrize(
    ("make", "layered"),
    [(zeros, False), (zeros, True), (many, False), (many, True), (files_in_directory, False)],
    ids=["zeros in a tar", "zeros in a layer", "many in a tar", "many in a layer", "a directory"],
)
def test_an_import_may_be_broken_off_soon(made, tmp_path, make, layered):
    """However little is read of it: what has been made by then is no more than a few steps."""
    source = make(tmp_path / "source", layered)
    most = []

    def progress(what, done, total):
        most.append(taken(made.root))
        raise Stop

    with pytest.raises(Stop):
        import_path(made, "x", source, Wishes(progress=progress))
    files, size = most[0]
    assert files < 100
    assert size <= 4 << 20
    assert_sound(made)


def taken(root):
    """How many files and bytes the directory without a record has in it."""
    found = [path.lstat() for path in root.glob("[0-9]*/fs/**/*")]
    return len(found), sum(facts.st_size for facts in found)


# Both forms show the same, and what a simple model says.


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(ENTRIES, min_size=1, max_size=3))
def test_layers_show_what_a_simple_model_says(layers):
    with tempfile.TemporaryDirectory(prefix="denseshim-", dir="/dev/shm") as place:
        packed = [list(members_of(entries)) for entries in layers]
        layout = make_layout(Path(place) / "layout", packed).write()
        try:
            expected = {}
            for entries in layers:
                expected = model_apply(expected, entries)
        except Refused:
            expected = None
        except Unclear:
            reject()
        for form in FORMS:
            folder = Path(place) / form
            folder.mkdir()
            with snapshots(folder, form) as made:
                check_layers(made, layout, expected, form)


def check_layers(made, layout, expected, form):
    if expected is None and form == "overlay":
        with pytest.raises(InvalidArgument):
            import_path(made, "image", layout)
    elif expected is not None:
        import_path(made, "image", layout)
        found = {path: what for path, (_, what) in seen(made, "image").items()}
        assert found == expected, form


@pytest.fixture
def small(tmp_path):
    """A function that runs a body on a file system of 5 MiB, in a mount namespace of its own."""
    place = tmp_path / "small"
    place.mkdir()

    def run(body, form="overlay"):
        def work():
            mounts.mount(Mount("tmpfs", "tmpfs", "/", ("size=5m",)), place)
            try:
                with snapshots(place, form) as made:
                    body(made, place)
                    assert_sound(made)
            finally:
                mounts.unmount_all(place, 1)

        isolated(work)

    return run


BIG = os.urandom(3 << 20)


@pytest.mark.parametrize("kind", ["tar", "directory", "layout"])
def test_a_full_disk_during_an_import_leaves_nothing(small, tmp_path, kind):
    members = [member("d/a", content=BIG), member("d/b", content=BIG)]
    path = tmp_path / kind
    if kind == "tar":
        tar_file(path, *members)
    elif kind == "layout":
        make_layout(path, [members[:1], members[1:]]).write()
    else:
        path.mkdir()
        for name in "ab":
            (path / name).write_bytes(BIG)

    def body(made, place):
        free = shutil.disk_usage(place).free
        with pytest.raises(ResourceExhausted, match="free some space, and try again"):
            import_path(made, "x", path)
        assert made.store.list_snapshots() == []
        assert free - shutil.disk_usage(place).free < 1 << 18, "only the store may have grown"
        import_tar(made, "x", io.BytesIO(archive(members[0])))

    small(body)


def test_a_full_disk_during_a_copy_leaves_nothing(small):
    def body(made, place):
        import_tar(made, "x", io.BytesIO(archive(member("a", content=BIG))))
        with pytest.raises(ResourceExhausted):
            made.prepare("denseshim-1", "x")
        assert [snapshot.key for snapshot in made.store.list_snapshots()] == ["x"]

    small(body, "copies")


def fill(path):
    """Take what is left on the file system."""
    with pytest.raises(OSError, match="No space"):
        path.write_bytes(bytes(8 << 20))


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_during_a_commit_changes_nothing(small, form):
    def body(made, place):
        keys = [f"denseshim-{number}" for number in range(150)]
        for key in keys:
            made.prepare(key)
        fill(place / "ballast")
        refused = next(key for key in keys if not committed(made, key))
        assert made.store.stat(refused).kind is Kind.ACTIVE
        assert refused in [snapshot.key for snapshot in made.store.list_snapshots()]
        (place / "ballast").unlink()
        assert made.commit("finally", refused).kind is Kind.COMMITTED

    small(body, form)


def committed(made, key):
    """False when there was no room for it."""
    try:
        made.commit(f"c-{key}", key)
    except ResourceExhausted:
        return False
    return True


def test_how_snapshots_are_kept_is_decided_once(tmp_path):
    with snapshots(tmp_path, "copies") as made:
        import_tar(made, "x", io.BytesIO(archive(member("a"))))
    store = Store.open(tmp_path / "db")
    try:
        made = Snapshotter.open(tmp_path / "snapshots", store)
        assert "when they were begun" in made.why_copies
        assert shown(made.prepare("denseshim-1", "x")) == {"a": ("file", b"")}
    finally:
        store.close()


def test_overlays_snapshots_are_not_served_without_overlay(tmp_path, monkeypatch):
    with snapshots(tmp_path):
        pass
    monkeypatch.setattr(overlay, "why_not", lambda directory: "no such device")
    store = Store.open(tmp_path / "db")
    try:
        with pytest.raises(FailedPrecondition, match="no such device"):
            Snapshotter.open(tmp_path / "snapshots", store)
    finally:
        store.close()


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b"])
def test_a_path_that_mounts_cannot_name_is_refused(tmp_path, name):
    store = Store.open(tmp_path / "db")
    try:
        with pytest.raises(InvalidArgument, match="comma"):
            Snapshotter.open(tmp_path / name, store)
        with pytest.raises(InvalidArgument, match="absolute"):
            Snapshotter.open(Path("relative"), store)
    finally:
        store.close()


def test_the_probe_says_why_overlay_does_not_work(tmp_path, monkeypatch):
    (tmp_path / "probe").mkdir()  # of one that was killed
    assert overlay.why_not(tmp_path) == ""
    assert os.listdir(tmp_path) == []

    def refuse(source, target, type, flags, data=""):
        if type == "overlay":
            raise OSError(19, "mount: No such device")

    monkeypatch.setattr(syscalls, "mount", refuse)
    assert "No such device" in overlay.why_not(tmp_path)
    assert os.listdir(tmp_path) == []


def test_overlay_upon_overlay_is_tried_and_not_assumed(tmp_path):
    """An overlay is no place for the upper directory of another."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()

    def work():
        options = [f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work")]
        mounts.mount(Mount("overlay", "overlay", "/", tuple(options)), tmp_path / "merged")
        try:
            assert overlay.why_not(tmp_path / "merged") != ""
        finally:
            mounts.unmount_all(tmp_path / "merged", 1)

    isolated(work)


def test_more_layers_than_overlay_takes_are_refused(stacked, base_of_many):
    with pytest.raises(FailedPrecondition, match="overlay takes"):
        stacked.prepare("denseshim-1", base_of_many)


@pytest.fixture
def base_of_many(stacked, monkeypatch):
    monkeypatch.setattr(overlay, "LAYERS_LIMIT", 3)
    below = ""
    for number in range(4):
        stacked.prepare("denseshim-1", below)
        below = stacked.commit(f"c{number}", "denseshim-1").key
    return below


def test_many_layers_are_shown(stacked):
    below = ""
    for number in range(120):
        stacked.prepare("denseshim-1", below)
        directory = stacked.files(stacked.store.stat("denseshim-1").directory)
        (directory / f"f{number}").touch()
        below = stacked.commit(f"c{number}", "denseshim-1").key
    assert len(shown(stacked.prepare("denseshim-1", below))) == 120
