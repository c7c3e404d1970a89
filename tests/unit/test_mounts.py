"""Real mounts, each test in a thread that has a mount namespace of its own."""

import os
import threading
from pathlib import Path

import pytest

from shim import mounts, syscalls
from shim.errors import FailedPrecondition, InvalidArgument
from shim.model import Mount


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
    assert mounts.parse_options(options) == expected


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
    "mount", [Mount("tmpfs", "a\0b", "/"), Mount("tmpfs", "a", "/", ("size=1k\0",))]
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


def test_a_busy_mount_is_detached(tmp_path):
    def body():
        mounts.mount(TMPFS, tmp_path)
        with open(tmp_path / "held", "w") as held:
            mounts.unmount_all(tmp_path, 1)
            assert mountinfo(tmp_path) == []
            held.write("still there")

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
