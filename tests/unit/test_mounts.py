"""Real mounts, each test in a thread that has a mount namespace of its own."""

import contextlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from shim import mounts, syscalls
from shim.errors import FailedPrecondition, InvalidArgument
from shim.model import Mount
from tests.native.harness import wait_until


class Outcome:
    error: BaseException | None = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.error = error
        return True


def in_thread(body, *args):
    """Run `body` in a thread: a mount namespace belongs to a thread."""
    outcome = Outcome()

    def work():
        with outcome:
            body(*args)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if outcome.error:
        raise outcome.error


def isolated(body, *args):
    """Run `body` in a new mount namespace, in which nothing propagates."""

    def work():
        syscalls.unshare_mounts()
        syscalls.mount("", "/", "", syscalls.MS_PRIVATE | syscalls.MS_REC)
        body(*args)

    in_thread(work)


def mountinfo(target):
    """(options, propagation, file system) of each mount at `target`, lowest first."""
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    rows = [line.split(" ") for line in lines]
    return [
        (row[5].split(","), row[6], row[row.index("-") + 1])
        for row in rows
        if row[4] == str(target)
    ]


TMPFS = Mount("tmpfs", "tmpfs", "/", ("size=64k",))
BROKEN = Mount("no-such-file-system", "x", "/")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), (0, 0, "")),
        (("ro", "nosuid"), (syscalls.MS_RDONLY | syscalls.MS_NOSUID, 0, "")),
        (("ro", "rw"), (0, 0, "")),
        (("noatime", "nodiratime", "atime"), (syscalls.MS_NODIRATIME, 0, "")),
        (("rbind",), (syscalls.MS_BIND | syscalls.MS_REC, 0, "")),
        (("bind", "rprivate"), (syscalls.MS_BIND, syscalls.MS_PRIVATE | syscalls.MS_REC, "")),
        (("shared", "rslave"), (0, syscalls.MS_SLAVE | syscalls.MS_REC, "")),
        (("lowerdir=/a:/b", "", "defaults", "index=off"), (0, 0, "lowerdir=/a:/b,index=off")),
    ],
)
def test_options_are_sorted_into_flags_propagation_and_data(options, expected):
    assert mounts.parse_options(options)[:3] == expected


NEGATIONS = {
    "nosuid": "suid", "nodev": "dev", "noexec": "exec", "sync": "async", "mand": "nomand",
    "noatime": "atime", "nodiratime": "diratime", "relatime": "norelatime",
    "strictatime": "nostrictatime", "ro": "rw",
}  # fmt: skip


@pytest.mark.parametrize(("option", "negation"), NEGATIONS.items())
def test_the_later_of_two_contrary_options_counts(option, negation):
    assert mounts.parse_options([option]).flags
    assert mounts.parse_options([option, negation]).flags == 0
    assert mounts.parse_options([negation, option]) == mounts.parse_options([option])


def test_data_must_fit_the_page_that_the_kernel_reads():
    page = os.sysconf("SC_PAGE_SIZE")
    assert len(mounts.parse_options(["x" * (page - 1)]).data) == page - 1
    with pytest.raises(InvalidArgument, match="longer than"):
        mounts.parse_options(["x" * page])


@pytest.mark.parametrize(
    "mount",
    [
        Mount("tmpfs", "a\0b", "/"),
        Mount("tmpfs", "a", "/", ("size=1k\0",)),
        Mount("tmpfs", "a", "/\0"),
    ],
)
def test_nul_is_refused(mount, tmp_path):
    with pytest.raises(InvalidArgument, match="NUL"):
        mounts.mount(mount, tmp_path)


def test_a_read_only_bind_is_read_only_and_keeps_the_other_flags(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def body():
        mounts.mount(Mount("bind", str(source), "/", ("rbind", "ro", "nosuid")), target)
        [(options, _, _)] = mountinfo(target)
        assert {"ro", "nosuid"} <= set(options)
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").touch()
        (source / "file").touch()

    isolated(body)


def test_a_propagation_type_is_set_on_the_new_mount(tmp_path):
    def body():
        mounts.mount(Mount("tmpfs", "tmpfs", "/", ("nodev", "shared")), tmp_path)
        [(options, propagation, _)] = mountinfo(tmp_path)
        assert propagation.startswith("shared:")
        assert "nodev" in options

    isolated(body)


def test_mounts_are_stacked_in_order_and_all_go_away(tmp_path):
    def body():
        entries = [TMPFS, Mount("ramfs", "x", "/"), Mount("", "", "/", ("remount", "ro"))]
        count = mounts.mount_all(entries, tmp_path)
        assert count == 2
        assert [kind for _, _, kind in mountinfo(tmp_path)] == ["tmpfs", "ramfs"]
        mounts.unmount_all(tmp_path, count)
        assert mountinfo(tmp_path) == []

    isolated(body)


def test_when_one_fails_those_before_it_are_unmounted(tmp_path):
    def body():
        mounts.mount(TMPFS, tmp_path)
        with pytest.raises(InvalidArgument, match=r"no-such-file-system 'x'.*No such device"):
            mounts.mount_all([TMPFS, BROKEN], tmp_path)
        assert len(mountinfo(tmp_path)) == 1

    isolated(body)


def test_nothing_stays_mounted_when_a_later_call_for_the_same_mount_fails(tmp_path, monkeypatch):
    real = syscalls.mount

    def failing(source, target, kind, flags, data=""):
        if flags & syscalls.MS_REMOUNT:
            raise PermissionError(1, "Operation not permitted", target)
        real(source, target, kind, flags, data)

    def body():
        monkeypatch.setattr(syscalls, "mount", failing)
        with pytest.raises(FailedPrecondition, match="not permitted"):
            mounts.mount(Mount("bind", "/tmp", "/", ("bind", "ro")), tmp_path)
        assert mountinfo(tmp_path) == []

    isolated(body)


def test_a_target_that_is_a_symbolic_link_or_missing_is_refused(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)

    def body():
        for target in (link, tmp_path / "missing"):
            with pytest.raises(InvalidArgument, match=str(target)):
                mounts.mount(TMPFS, target)
        assert mountinfo(real) == []

    isolated(body)


def test_unmounting_what_is_not_mounted_or_not_there_is_fine(tmp_path):
    mounts.unmount_all(tmp_path, 3)
    mounts.unmount_all(tmp_path / "missing", 1)


def test_unmounting_never_follows_a_link(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)

    def body():
        mounts.mount(TMPFS, real)
        mounts.unmount_all(link, 1)
        assert len(mountinfo(real)) == 1

    isolated(body)


def test_a_mount_that_stays_busy_is_detached(tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "BUSY_LIMIT", 0.1)

    def body():
        mounts.mount(TMPFS, tmp_path)
        with open(tmp_path / "held", "w") as held:
            mounts.unmount_all(tmp_path, 1)
            assert mountinfo(tmp_path) == []
            held.write("still there")

    isolated(body)


def test_a_mount_that_is_busy_for_a_moment_is_unmounted(tmp_path, monkeypatch):
    real, seen = syscalls.umount, []

    def body():
        mounts.mount(TMPFS, tmp_path)
        held = open(tmp_path / "held", "w")  # noqa: SIM115

        def watched(target, flags):
            seen.append(flags)
            try:
                real(target, flags)
            except OSError:
                held.close()
                raise

        monkeypatch.setattr(syscalls, "umount", watched)
        mounts.unmount_all(tmp_path, 1)
        assert mountinfo(tmp_path) == []
        assert seen == [syscalls.UMOUNT_NOFOLLOW] * 2

    isolated(body)


def test_what_is_mounted_below_a_slave_root_stays_in_its_namespace(tmp_path):

    def shim():
        syscalls.unshare_mounts()
        mounts.make_slave_root()
        assert mountinfo("/")[-1][1].startswith("master:")
        mounts.mount(TMPFS, tmp_path)

    def daemon():
        syscalls.mount("", "/", "", syscalls.MS_SHARED | syscalls.MS_REC)
        in_thread(shim)
        assert mountinfo(tmp_path) == []

    isolated(daemon)


def test_the_root_is_made_for_what_is_mounted_on_it(tmp_path):
    root = tmp_path / "rootfs"

    def body():
        assert mounts.mount_all([], root) == 0
        assert not root.exists()
        mounts.mount_all([TMPFS], root)
        mounts.unmount_all(root, 1)
        assert root.stat().st_mode & 0o777 == 0o711

    isolated(body)


def test_a_root_that_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(FailedPrecondition, match="cannot make"):
        mounts.mount_all([TMPFS], tmp_path / "missing" / "rootfs")


def test_options_of_containerd_itself_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"X-containerd\.mkdir"):
        mounts.mount(Mount("tmpfs", "tmpfs", "", ("X-containerd.mkdir.path=/x",)), tmp_path)


def test_targets_lie_in_the_root_and_go_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "BUSY_LIMIT", 0)
    monkeypatch.setattr(syscalls, "MNT_DETACH", 1 << 30)  # no flag that the kernel knows
    below = tmp_path / "a b" / "c"

    def body():
        mounts.mount(TMPFS, tmp_path)
        below.mkdir(parents=True)
        entries = [Mount("tmpfs", "x", "/a b"), Mount("tmpfs", "x", "a b/../a b")]
        count = mounts.mount_all(entries, tmp_path)
        assert (count, len(mountinfo(tmp_path))) == (2, 1)
        assert len(mountinfo(str(below.parent).replace(" ", r"\040"))) == 2
        below.mkdir()
        mounts.mount(Mount("tmpfs", "x", "/a b/c"), tmp_path)
        mounts.unmount_all(tmp_path, 1)
        assert mountinfo(tmp_path) == []
        assert "a\\040b" not in Path("/proc/thread-self/mountinfo").read_text()

    isolated(body)


def test_a_count_of_none_leaves_what_others_have_mounted(tmp_path):
    (tmp_path / "below").mkdir()

    def body():
        mounts.mount(TMPFS, tmp_path / "below")
        mounts.unmount_all(tmp_path, 0)
        assert len(mountinfo(tmp_path / "below")) == 1
        mounts.unmount_below(tmp_path)
        assert mountinfo(tmp_path / "below") == []

    isolated(body)


def test_what_is_mounted_is_found_behind_a_link_and_neighbours_stay(tmp_path):
    (tmp_path / "bundle" / "rootfs").mkdir(parents=True)
    (tmp_path / "bundle" / "rootfs2").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "bundle")

    def body():
        mounts.mount_all([TMPFS, TMPFS], tmp_path / "link" / "rootfs")
        mounts.mount(TMPFS, tmp_path / "bundle" / "rootfs2")
        mounts.unmount_below(tmp_path / "link" / "rootfs")
        assert mountinfo(tmp_path / "bundle" / "rootfs") == []
        assert len(mountinfo(tmp_path / "bundle" / "rootfs2")) == 1

    isolated(body)


def test_a_link_in_the_root_leads_no_target_out_of_it(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "inner").mkdir(parents=True)
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("../../../inner")

    def body():
        with pytest.raises(InvalidArgument, match="No such file"):
            mounts.mount(Mount("tmpfs", "x", "out"), root)
        mounts.mount(Mount("tmpfs", "x", "../up"), root)
        assert len(mountinfo(root / "inner")) == 1
        assert mountinfo(outside) == []

    isolated(body)


def layers(folder, count, name="layer"):
    """So many directories, each with a file of its number; their paths fill more than a page."""
    found = []
    for number in range(count):
        path = folder / ("d" * 40) / f"{name}{number}" / "fs"
        path.mkdir(parents=True)
        (path / str(number)).touch()
        found.append(str(path))
    return found


@pytest.mark.parametrize("name", ["layer", "a:b\\c"])
def test_more_layers_than_a_page_has_room_for(tmp_path, name):
    """Seen from the directory they have in common, by this thread alone."""
    root = tmp_path / "root"
    root.mkdir()
    lower = [path.replace("\\", "\\\\").replace(":", r"\:") for path in layers(tmp_path, 120, name)]
    option = f"lowerdir={':'.join(lower)}"
    assert len(option) > os.sysconf("SC_PAGE_SIZE")
    before, mine = os.getcwd(), threading.Event()

    def body():
        mounts.mount(Mount("overlay", "overlay", "", (option,)), root)
        assert {path.name for path in root.iterdir()} == {str(number) for number in range(120)}
        assert Path("/proc/thread-self/cwd").resolve() == Path(before)
        with pytest.raises(InvalidArgument):
            mounts.mount(Mount("overlay", "overlay", "", (f"{option}:/missing",)), root)
        assert Path("/proc/thread-self/cwd").resolve() == Path(before)
        mine.set()

    isolated(body)
    assert mine.is_set()
    assert os.getcwd() == before


def test_only_the_mounting_thread_changes_its_directory(tmp_path, monkeypatch):
    seen, before = [], os.getcwd()

    def look(source, target, kind, flags, data):
        seen.append((os.readlink("/proc/thread-self/cwd"), os.readlink("/proc/self/cwd")))

    monkeypatch.setattr(syscalls, "mount", look)
    option = f"lowerdir={':'.join(layers(tmp_path, 120))}"
    in_thread(mounts.mount, Mount("overlay", "overlay", "", (option,)), tmp_path)
    assert seen == [(str(tmp_path / ("d" * 40)), before)]


def test_layers_are_shortened_only_when_they_must_be():
    few = ("lowerdir=/a/1/fs:/a/2/fs", "index=off")
    assert mounts.parse_options(few)[2:4] == ("lowerdir=/a/1/fs:/a/2/fs,index=off", "")
    many = [f"/a/{'b' * 50}/{number}/fs" for number in range(90)]
    found = mounts.parse_options([f"lowerdir={':'.join(many)}", "index=off"])
    assert found.base == f"/a/{'b' * 50}"
    assert found.data.startswith("lowerdir=0/fs:1/fs:")
    assert found.data.endswith("89/fs,index=off")


@pytest.fixture
def disk(tmp_path):
    """A file with a file system in it."""
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    return path


def loops():
    """The files that are shown as devices."""
    found = set()
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(FileNotFoundError):
            found.add(entry.read_text().strip())
    return found


@pytest.mark.parametrize("options", [("loop",), ("loop", "ro")])
def test_a_file_is_mounted_through_a_loop_device_which_goes_with_it(disk, tmp_path, options):
    root = tmp_path / "root"

    def body():
        count = mounts.mount_all([Mount("ext4", str(disk), "", options)], root)
        assert (root / "lost+found").is_dir()
        assert os.access(root, os.W_OK) == ("ro" not in options)
        assert str(disk) in loops()
        mounts.unmount_all(root, count)

    isolated(body)
    wait_until(lambda: str(disk) not in loops(), "the device's end")


def test_a_failed_mount_leaves_no_loop_device(tmp_path):
    disk, root = tmp_path / "disk", tmp_path / "root"
    disk.write_bytes(bytes(1 << 20))

    def body():
        with pytest.raises(InvalidArgument, match="Invalid argument"):
            mounts.mount_all([Mount("ext4", str(disk), "", ("loop",))], root)
        with pytest.raises(InvalidArgument, match="No such file"):
            mounts.mount_all([Mount("ext4", str(tmp_path / "missing"), "", ("loop",))], root)

    isolated(body)
    wait_until(lambda: str(disk) not in loops(), "the device's end")


def test_a_loop_device_that_another_has_taken_meanwhile_is_left_to_it(disk, tmp_path, monkeypatch):
    real, taken = syscalls.loop_configure, []

    def beaten(device, *arguments):
        if len(taken) < 2:
            taken.append(device)
            raise OSError(16, "Device or resource busy")
        real(device, *arguments)

    monkeypatch.setattr(syscalls, "loop_configure", beaten)

    def body():
        mounts.mount_all([Mount("ext4", str(disk), "", ("loop",))], tmp_path / "root")

    isolated(body)
    assert len(taken) == 2
    wait_until(lambda: str(disk) not in loops(), "the device's end")


MAPS = ("uidmap=0:100000:1000,5000:105000:10", "gidmap=0:200000:65536")


def owned(path, uid, gid):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.chown(path, uid, gid)
    return path


def owner(path):
    return path.stat().st_uid, path.stat().st_gid


def test_a_bind_shows_mapped_owners(tmp_path):
    owned(tmp_path / "source" / "file", 1, 2)
    owned(tmp_path / "source" / "below" / "far", 5003, 0)
    owned(tmp_path / "source" / "stranger", 2000, 0)
    root = tmp_path / "root"
    nobody = int(Path("/proc/sys/fs/overflowuid").read_text())

    def body():
        mount = Mount("bind", str(tmp_path / "source"), "", ("rbind", "ro", *MAPS))
        count = mounts.mount_all([mount], root)
        assert owner(root / "file") == (100001, 200002)
        assert owner(root / "below" / "far") == (105003, 200000)
        assert owner(root / "stranger") == (nobody, 200000)
        assert owner(tmp_path / "source" / "file") == (1, 2)
        assert "ro" in mountinfo(root)[0][0]
        mounts.unmount_all(root, count)
        assert mountinfo(root) == []

    isolated(body)


@pytest.mark.parametrize("count", [2, 120])
def test_overlay_shows_its_layers_with_mapped_owners(tmp_path, count):
    lower = layers(tmp_path, count)
    for number, layer in enumerate(lower):
        os.chown(Path(layer) / str(number), number, number)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    root, before = tmp_path / "root", set(os.listdir("/run"))
    options = (
        f"lowerdir={':'.join(lower)}",
        f"upperdir={tmp_path / 'upper'}",
        f"workdir={tmp_path / 'work'}",
    )

    def body():
        made = mounts.mount_all([Mount("overlay", "overlay", "", (*options, *MAPS))], root)
        found = {path.name: owner(path) for path in root.iterdir()}
        assert found == {str(n): (100000 + n, 200000 + n) for n in range(count)}
        (root / "new").touch()
        assert (tmp_path / "upper" / "new").exists()
        assert "denseshim-" not in Path("/proc/thread-self/mountinfo").read_text()
        mounts.unmount_all(root, made)

    isolated(body)
    assert set(os.listdir("/run")) == before


def test_a_layer_on_a_mount_of_its_own_cannot_be_mapped(tmp_path):
    lower = layers(tmp_path, 2)

    def body():
        mounts.mount(Mount("bind", lower[0], "", ("bind",)), Path(lower[1]))
        options = (f"lowerdir={':'.join(lower)}", *MAPS)
        with pytest.raises(InvalidArgument, match=r"layer1.*not on the same mount"):
            mounts.mount_all([Mount("overlay", "overlay", "", options)], tmp_path / "root")

    isolated(body)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (MAPS[:1], "need each other"),
        (("uidmap=0:1", "gidmap=0:0:1"), "INSIDE:OUTSIDE:COUNT"),
        (("uidmap=0:0:1\n", "gidmap=0:0:1"), "INSIDE:OUTSIDE:COUNT"),
        (MAPS, "bind and overlay mounts only"),
        (("bind", "uidmap=0:0:10,5:5:10", "gidmap=0:0:1"), "Invalid argument"),
    ],
)
def test_mappings_that_cannot_be_are_refused(tmp_path, options, says):
    def body():
        with pytest.raises(InvalidArgument, match=says):
            mounts.mount(Mount("tmpfs", "/tmp", "", options), tmp_path)
        assert mountinfo(tmp_path) == []

    isolated(body)
