"""What strangers' archives become in a directory, and that nothing becomes of them elsewhere."""

import contextlib
import io
import os
import stat

import pytest
from hypothesis import given, settings

from shim.errors import InvalidArgument
from shim.snapshots import unpack, walk
from shim.snapshots.entry import Entry, Type
from shim.snapshots.inflate import Exact
from shim.snapshots.layers import OPAQUE
from shim.snapshots.limits import Budget, Limits, Meter
from shim.snapshots.tree import Tree
from tests.fakes.archives import (
    ENTRIES,
    Refused,
    archive,
    listing,
    member,
    members_of,
    model_apply,
)


@contextlib.contextmanager
def opened(*paths):
    descriptors = []
    try:
        for path in paths:
            path.mkdir(exist_ok=True)
            descriptors.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def extract(root, *members, how=unpack.unpack, lowers=(), budget=None, **options):
    """Unpack into `root`; returns how many attributes were lost."""
    with opened(root, *lowers) as (own, *below):
        tree = Tree(own, budget or Budget(), below, **options)
        how(Exact(io.BytesIO(archive(*members))), tree)
        tree.finish()
        return tree.lost


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path):
    """A directory that must stay as it is."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").write_bytes(b"untouched")
    yield path
    assert listing(path) == {"file": ("file", b"untouched")}
    assert stat.S_IMODE((path / "file").stat().st_mode) == 0o644
    assert set(os.listdir(tmp_path)) <= {"outside", "root", "lower"}


@pytest.mark.parametrize(
    "members",
    {
        "dots": [member("../outside/file")],
        "dots within": [member("a/../../outside/file")],
        "absolute": [member("/outside/file")],
        "a hard link by dots": [member("l", "link", linkname="../outside/file")],
        "a hard link by root": [member("l", "link", linkname="/outside/file")],
        "a hard link to nothing": [member("l", "link", linkname="outside/file")],
        "a hard link to a directory": [member("d", "dir"), member("l", "link", linkname="d")],
        "a hard link to the root": [member("l", "link", linkname=".")],
        "a symlink by dots": [member("s", "symlink", linkname="../outside/file")],
        "a symlink by dots within": [member("d/s", "symlink", linkname="x/../../../outside")],
        "a symlink over /": [member("s", "symlink", linkname="/../outside")],
        "the root as a file": [member(".")],
        "the root as a link": [member("./", "symlink", linkname="../outside")],
        "through a file": [member("f"), member("f/x")],
        "through a dangling link": [member("s", "symlink", linkname="/gone"), member("s/x")],
        "through a loop": [member("s", "symlink", linkname="s"), member("s/x")],
        "a long name": [member("a" * 256)],
        "a long path": [member("a/" * 2100 + "b")],
        "overlay's device": [member("c", "char", devmajor=0, devminor=0)],
        "overlay's attribute": [member("f", pax_headers={f"SCHILY.xattr.{OPAQUE}": "y"})],
        "a long attribute": [member("f", pax_headers={f"SCHILY.xattr.user.{'x' * 300}": ""})],
    }.items(),
    ids=lambda row: row[0],
)  # fmt: skip
def test_what_leads_out_is_refused(root, outside, members):
    with pytest.raises(InvalidArgument):
        extract(root, *members[1])


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "link"])
def test_what_is_written_through_a_link_stays_inside(root, outside, kind):
    extract(
        root,
        member("real", content=b"inside"),
        member(str(outside).lstrip("/"), "dir"),
        member("s", "symlink", linkname=str(outside)),
        member("s/file", kind, b"inside" if kind == "file" else b"", linkname="real"),
    )
    assert (root / str(outside).lstrip("/") / "file").lstat()


def test_a_link_that_is_there_is_replaced_and_not_followed(root, outside):
    target = outside / "file"
    extract(
        root,
        member("s", "symlink", linkname=str(target)),
        member("s", content=b"inside"),
        member("t", "symlink", linkname=str(target)),
        member("t", "dir", mode=0o700),
        member("u", "symlink", linkname=str(target)),
        member("h", "link", linkname="u"),
    )
    assert listing(root) == {
        "s": ("file", b"inside"),
        "t": (stat.S_IFDIR, None),
        "u": ("symlink", str(target)),
        "h": ("symlink", str(target)),
    }


def test_attributes_are_kept(root):
    data = b"\x01\0\0\x02" + bytes(16)  # a capability set (capabilities(7), vfs_cap_data)
    extract(
        root,
        member(".", "dir", mode=0o1777, uid=3, gid=4, mtime=5.5),
        member("d", "dir", mode=0o2750, uid=1, gid=2, mtime=123456789.25),
        member("d/f", content=b"x", mode=0o6755, uid=2**32 - 2, gid=7, mtime=-1.5),
        member("d/n\udcff", content=b""),
        member("l", "symlink", linkname="/d/f", uid=8, gid=9, mtime=77),
        member("p", "fifo", mode=0o622, uid=5),
        member("c", "char", mode=0o666, devmajor=1, devminor=3),
        member("b", "block", mode=0o660, devmajor=7, devminor=300),
        member("x", pax_headers={
            "SCHILY.xattr.user.a": "v", "SCHILY.xattr.security.capability": data.decode(),
        }, uid=6),
    )  # fmt: skip

    def facts(name):
        found = (root / name).lstat()
        return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns)

    assert facts(".") == (0o1777, 3, 4, 5_500_000_000)
    assert facts("d") == (0o2750, 1, 2, 123456789_250_000_000)
    assert facts("d/f") == (0o6755, 2**32 - 2, 7, -1_500_000_000)
    assert facts("l")[1:] == (8, 9, 77 * 10**9)
    assert facts("p")[:2] == (0o622, 5)
    assert (root / "c").lstat().st_rdev == os.makedev(1, 3)
    assert (root / "b").lstat().st_rdev == os.makedev(7, 300)
    assert facts("b")[0] == 0o660
    assert b"n\xff" in os.listdir(os.fsencode(root / "d"))
    assert os.getxattr(root / "x", "user.a") == b"v"
    assert os.getxattr(root / "x", "security.capability") == data


def test_devices_are_refused_when_told_so(root):
    for kind in ("char", "block"):
        with pytest.raises(InvalidArgument, match="is a device, which is not allowed"):
            extract(root, member("d", kind, devmajor=1, devminor=3), devices=False)
    assert listing(root) == {}


def test_the_last_of_several_entries_counts(root):
    extract(
        root,
        member("a", content=b"first, and long"),
        member("b", "link", linkname="a"),
        member("a", content=b"second"),
        member("d", "dir", mode=0o700),
        member("d/inner/file"),
        member("d", "dir", mode=0o755, mtime=9),
        member("e/inner/file"),
        member("e", content=b"no directory any more"),
        member("b", "link", linkname="b"),
    )
    assert listing(root) == {
        "a": ("file", b"second"),
        "b": ("file", b"first, and long"),
        "d": (stat.S_IFDIR, None),
        "d/inner": (stat.S_IFDIR, None),
        "d/inner/file": ("file", b""),
        "e": ("file", b"no directory any more"),
    }
    assert (root / "d").stat().st_mtime == 9
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("limits", "members"),
    [
        (Limits(bytes=10), [member("a", content=b"123456"), member("b", content=b"12345")]),
        (Limits(entries=3), [member(name) for name in "abcd"]),
        (Limits(entries=3), [member("a/b/c/d")]),
        (Limits(entries=3), [member("a")] * 4),
        (Limits(bytes=1 << 20), [
            member("bomb", pax_headers={"GNU.sparse.size": str(1 << 50), "GNU.sparse.map": ""})
        ]),
    ],
    ids=["bytes", "files", "directories that are not mentioned", "one file", "holes"],
)  # fmt: skip
def test_an_import_is_bounded(root, limits, members):
    with pytest.raises(InvalidArgument, match="the limit"):
        extract(root, *members, budget=Budget(limits))


def test_holes_stay_holes(root):
    sparse = {"GNU.sparse.size": str(1 << 30), "GNU.sparse.map": f"{1 << 29},3"}
    extract(root, member("f", content=b"abc", pax_headers=sparse))
    found = (root / "f").stat()
    assert found.st_size == 1 << 30
    assert found.st_blocks * 512 < 1 << 20
    with (root / "f").open("rb") as file:
        file.seek((1 << 29) - 1)
        assert file.read(5) == b"\0abc\0"


def layer(root, *members, lowers=()):
    return extract(root, *members, how=unpack.unpack_layer, lowers=lowers)


@pytest.fixture
def lower(tmp_path):
    """A layer below."""
    path = tmp_path / "lower"
    layer(
        path,
        member(".", "dir", mode=0o711, uid=5),
        member("d", "dir", mode=0o1750, uid=1, gid=2, mtime=44),
        member("d/old", content=b"old"),
        member("f", content=b"f"),
    )
    return path


def is_whiteout(path):
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(path):
    return OPAQUE in os.listxattr(path)


def test_a_whiteout_becomes_a_device_and_its_directory_looks_as_below(root, lower):
    layer(root, member("d/.wh.old"), member(".wh.f"), lowers=[lower])
    assert is_whiteout(root / "d" / "old")
    assert is_whiteout(root / "f")
    found = (root / "d").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o1750, 1, 2)
    assert found.st_mtime == 44
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid) == (0o711, 5)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_layers_own_files_stay_beside_its_whiteouts(root, lower, swapped):
    own = [member("d", "dir"), member("d/new"), member("f", content=b"new")]
    hiding = [member(".wh.d"), member(".wh.f")]
    layer(root, *(hiding + own if swapped else own + hiding), lowers=[lower])
    assert is_opaque(root / "d")
    assert listing(root)["f"] == ("file", b"new")
    assert os.listdir(root / "d") == ["new"]


def test_a_file_may_come_into_a_directory_that_was_hidden(root, lower):
    layer(root, member(".wh.d"), member("d/e/new"), lowers=[lower])
    assert is_opaque(root / "d")
    assert not is_opaque(root / "d" / "e")


def test_a_directory_in_the_place_of_a_file_shows_nothing_from_below(root, lower):
    layer(root, member("d", "dir"), member("d"), member("d", "dir"), lowers=[lower])
    assert is_opaque(root / "d")


def test_an_opaque_directory_is_marked(root, lower):
    layer(root, member("d/.wh..wh..opq"), member("e/.wh..wh..opq"), lowers=[lower])
    assert is_opaque(root / "d")
    assert os.listdir(root) == ["d"], "there is nothing to be hidden in e"


@pytest.mark.parametrize("swapped", [False, True])
def test_no_whiteout_is_where_it_would_be_seen(root, lower, swapped):
    """Overlay shows whiteouts in a directory that shows nothing from below."""
    members = [member("d/.wh.old"), member("d/.wh..wh..opq")]
    layer(root, *(members[::-1] if swapped else members), member("e/.wh.x"), lowers=[lower])
    assert listing(root) == {"d": (stat.S_IFDIR, None)}


def test_an_opaque_root_hides_all(root, lower):
    layer(root, member("f", content=b"own"), member(".wh..wh..opq"), lowers=[lower])
    assert is_whiteout(root / "d")
    assert listing(root)["f"] == ("file", b"own")


def test_without_anything_below_whiteouts_mean_nothing(root):
    layer(root, member(".wh.a"), member("d/.wh..wh..opq"), member(".wh..wh.plnk"), member("b"))
    assert listing(root) == {"b": ("file", b"")}


def test_a_plain_archive_has_no_whiteouts(root):
    extract(root, member(".wh.a"), member(".wh..wh..opq"))
    assert sorted(listing(root)) == [".wh..wh..opq", ".wh.a"]


@pytest.mark.parametrize(
    "name", [".wh.", ".wh..", ".wh...", "../.wh.f", "/.wh.f", "d/../../.wh.f", "/.wh..wh..opq"]
)
@pytest.mark.parametrize("how", [unpack.unpack_layer, unpack.remove_hidden])
def test_a_whiteout_may_not_lead_out(root, lower, outside, name, how):
    with opened(root, lower) as (own, below):
        tree = Tree(own, Budget(), [below])
        with pytest.raises(InvalidArgument):
            how(Exact(io.BytesIO(archive(member(name)))), tree)


def test_a_whiteout_through_a_link_removes_nothing_outside(tmp_path, root, outside):
    extract(root, member("s", "symlink", linkname=str(outside)), member("t/f"))
    extract(
        root, member("s/.wh.file"), member("s/.wh..wh..opq"), member("t/.wh..wh..opq"),
        how=unpack.remove_hidden,
    )  # fmt: skip
    assert listing(root) == {"s": ("symlink", str(outside)), "t": (stat.S_IFDIR, None)}


@settings(max_examples=250, deadline=None)
@given(ENTRIES)
def test_an_archive_becomes_what_a_simple_model_says(tmp_path_factory, entries):
    root = tmp_path_factory.mktemp("model")
    entries = [entry for entry in entries if entry[0] not in ("hide", "empty")]
    try:
        expected = model_apply({}, entries)
    except Refused:
        with pytest.raises(InvalidArgument):
            extract(root, *members_of(entries))
        return
    extract(root, *members_of(entries))
    found = {path: what for path, (_, what) in listing(root).items()}
    assert found == expected


def test_a_tree_is_copied_as_it_is(tmp_path, root):
    source = tmp_path / "source"
    extract(
        source,
        member(".", "dir", mode=0o1777, mtime=3),
        member("d", "dir", mode=0o2750, uid=1, mtime=1.5),
        member("d/f", content=b"x" * 300_000, mode=0o4755, gid=3, mtime=2.5),
        member("d/g", "link", linkname="d/f"),
        member("n\udcff", pax_headers={"SCHILY.xattr.user.a": "v"}),
        member("up", "symlink", linkname="d/../f"),
        member("p", "fifo"),
        member("c", "char", devmajor=1, devminor=3),
        member("s", pax_headers={"GNU.sparse.size": str(1 << 24), "GNU.sparse.map": ""}),
    )
    (source / "d" / "climbs").symlink_to("../../../x")  # harmless where nobody has packed it
    told = []
    with opened(source, root) as (old, new):
        tree = Tree(new, Budget())
        unpack.copy_tree(old, tree, Meter(lambda *facts: told.append(facts), "x", 0))
        tree.finish()
        usage = walk.usage(new)
    assert listing(root).keys() == listing(source).keys()
    for name in (".", *listing(source)):
        facts = [os.lstat(path / name) for path in (source, root)]
        kept = [
            (f.st_mode, f.st_uid, f.st_gid, f.st_mtime_ns, f.st_nlink, f.st_rdev)
            + ((f.st_size,) if stat.S_ISREG(f.st_mode) else ())
            for f in facts
        ]
        assert kept[0] == kept[1], name
    assert os.getxattr(os.fsencode(root) + b"/n\xff", "user.a") == b"v"
    assert os.path.samefile(root / "d" / "f", root / "d" / "g")
    assert (root / "s").stat().st_blocks < 100
    assert usage.inodes == 1 + len(listing(root)) - 1, "a hard link counts once"


def test_usage_is_what_du_says(tmp_path, root):
    extract(root, member("a/b", content=b"x" * 100_000), member("c", "link", linkname="a/b"))
    with opened(root) as (own,):
        found = walk.usage(own)
    blocks = sum(p.lstat().st_blocks for p in (root, root / "a", root / "a" / "b"))
    assert found == walk.Usage(blocks * 512, 3)


def make_deep(root, depth):
    """Nested beyond what a path can name."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_depth_stops_neither_usage_nor_removal(tmp_path, root):
    root.mkdir()
    make_deep(root, 3000)
    with opened(root) as (own,):
        assert walk.usage(own).inodes == 6001
    with opened(tmp_path) as (above,):
        walk.remove(above, "root")
        walk.remove(above, "root")
    assert not root.exists()


def test_a_deep_tree_is_not_copied_but_refused(tmp_path, root):
    source = tmp_path / "source"
    source.mkdir()
    make_deep(source, 30)
    with opened(source, root) as (old, new):
        tree = Tree(new, Budget())
        with pytest.raises(InvalidArgument, match="too long"):
            unpack.copy_tree(old, tree, Meter(None, "", 0))
    with opened(tmp_path) as (above,):
        walk.remove(above, "source")


def test_removal_follows_no_link(root, outside):
    extract(root, member("s", "symlink", linkname=str(outside)), member("d/e/f"))
    (root / "d" / "t").symlink_to(outside)
    with opened(root.parent) as (above,):
        walk.remove(above, "root")
    assert not root.exists()


def test_a_walk_notices_what_is_moved_away(tmp_path, root):
    extract(root, member("a/b/c"), member("z"))
    with opened(root) as (own,), contextlib.closing(walk.walk(own)) as files:
        while next(files).names != ["a", "b", "c"]:
            pass
        (root / "a" / "b").rename(tmp_path / "elsewhere")
        with pytest.raises(walk.Unavailable, match="moved"):
            list(files)


def test_what_vanishes_during_a_walk_is_left_out(root):
    extract(root, member("a/b"), member("c"), member("d"))
    with opened(root) as (own,), contextlib.closing(walk.walk(own)) as files:
        assert next(files).names == ["a"]
        (root / "c").unlink()
        assert [list(found.names) for found in files] == [["a", "b"], ["d"]]


def test_an_entry_names_what_is_wrong_with_it(root):
    with opened(root) as (own,):
        tree = Tree(own, Budget())
        with pytest.raises(InvalidArgument, match=r"cannot import 'a/b'.*range"):
            tree.add(Entry("a/b", Type.FILE, uid=-1))
