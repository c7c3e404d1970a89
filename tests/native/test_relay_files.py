"""Streams into files: every byte is appended once; a full disk stops the writer, nothing more."""

from __future__ import annotations

import errno
import hashlib
import os
import pty
import random
import resource
import subprocess
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.keeper.records import Kind, Record
from tests.native.harness import Front, Keeper, wait_until
from tests.native.support import (
    background,
    close_all,
    cpu_ticks,
    fill,
    fill_for_good,
    wake_ups,
    write_all,
)

OUT, OTHER = 50, 51
MIB = 1 << 20
BLOCK = random.Random(5).randbytes(MIB + 7)  # no multiple of a read's size
LINE = 64


def open_file(path: Path) -> int:
    """As the shim opens a file for a container's output."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


def into_file(front: Front, id: int, path: Path, non_blocking: bool = False) -> int:
    """Relay a new pipe to the file; the pipe's write end."""
    source, inner = os.pipe()
    os.set_blocking(source, False)
    os.set_blocking(inner, not non_blocking)
    assert front.relay(id, source, open_file(path)).error == 0
    return inner


def ended(front: Front, id: int = OUT) -> Record:
    """The report of the stream's end, which is then forgotten."""
    report = front.report(Kind.ENDED, id)
    assert front.ask(Kind.FORGET, id=id).error == 0
    return report


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def write_blocks(descriptor: int, count: int) -> str:
    """Write BLOCK that often and close; the digest of all."""
    digest = hashlib.blake2b()
    for _ in range(count):
        write_all(descriptor, BLOCK)
        digest.update(BLOCK)
    os.close(descriptor)
    return digest.hexdigest()


def files_of(keeper: Keeper, path: Path) -> int:
    """How many descriptors of the file the keeper has."""
    folder = Path(f"/proc/{keeper.pid}/fd")
    return sum(os.readlink(link) == str(path) for link in folder.iterdir())


def test_a_long_output_is_exact(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """256 MiB from a pipe; and at its end the file is closed."""
    path = tmp_path / "log"
    inner = into_file(front, OUT, path)
    assert files_of(keeper, path) == 1
    digest = write_blocks(inner, 256)
    report = ended(front)
    assert (report.moved, report.error) == (256 * len(BLOCK), 0)
    assert digest_of(path) == digest
    assert files_of(keeper, path) == 0
    path.unlink()


def test_a_long_output_of_a_terminal_is_exact(front: Front, tmp_path: Path) -> None:
    """256 MiB from a pty, which ends by FINISH."""
    path = tmp_path / "log"
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    assert front.relay(OUT, master, open_file(path)).error == 0
    digest = write_blocks(slave, 256)
    assert front.ask(Kind.FINISH, id=OUT).error == 0
    assert ended(front).moved == 256 * len(BLOCK)
    assert digest_of(path) == digest
    path.unlink()


def test_what_is_there_is_kept(front: Front, tmp_path: Path) -> None:
    """The bytes are appended."""
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    inner = into_file(front, OUT, path)
    os.write(inner, b"after\n")
    os.close(inner)
    assert ended(front).moved == 6
    assert path.read_bytes() == b"before\nafter\n"


def test_two_streams_into_one_file(front: Front, tmp_path: Path) -> None:
    """stdout and stderr of one container: no write of the one is in the middle of the other's."""
    path = tmp_path / "log"
    ends = {b"o": into_file(front, OUT, path), b"e": into_file(front, OTHER, path)}
    count = 4_000

    def write_lines(name: bytes) -> None:
        for number in range(count):
            write_all(ends[name], name + b"%0*d\n" % (LINE - 2, number))
        os.close(ends[name])

    with background(lambda: write_lines(b"o")), background(lambda: write_lines(b"e")):
        assert ended(front, OUT).moved == ended(front, OTHER).moved == count * LINE
    lines = path.read_bytes().splitlines()
    for name in ends:
        numbers = [int(line[1:]) for line in lines if line.startswith(name)]
        assert numbers == list(range(count))


def test_counts_of_bytes(front: Front, tmp_path: Path) -> None:
    """What has been written has been delivered, whatever others append to the file."""
    path = tmp_path / "log"
    inner = into_file(front, OUT, path)
    os.write(inner, b"12345")
    wait_until(lambda: path.read_bytes() == b"12345", "the bytes to be written")
    with path.open("ab") as file:
        file.write(b"of another")
    reply = front.ask(Kind.STREAM, id=OUT)
    assert (reply.error, reply.moved, reply.number) == (0, 5, 0)
    os.close(inner)
    assert ended(front).moved == 5


def test_an_idle_stream_wakes_nobody(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """The file is not watched, and no timer runs."""
    path = tmp_path / "log"
    inner = into_file(front, OUT, path)
    os.write(inner, b"x")
    wait_until(lambda: path.read_bytes() == b"x", "the byte to be written")
    assert front.ask(Kind.PONG).error == 0
    before, ticks = wake_ups(keeper.pid), cpu_ticks(keeper.pid)
    subprocess.run(["/bin/sleep", "0.5"], check=True)  # the time in which nothing may happen
    assert wake_ups(keeper.pid) - before <= 1
    assert cpu_ticks(keeper.pid) - ticks <= 1
    os.close(inner)
    ended(front)


def test_a_file_that_takes_no_more_ends_the_stream(
    keeper: Keeper, front: Front, tmp_path: Path
) -> None:
    """An error that time does not heal is reported, and the writer learns that nobody reads."""
    path = tmp_path / "log"
    inner = into_file(front, OUT, path)
    resource.prlimit(keeper.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    os.write(inner, b"x" * 3000)
    report = ended(front)
    assert (report.error, report.moved) == (errno.EFBIG, 1000)
    assert path.stat().st_size == 1000
    assert files_of(keeper, path) == 0
    with pytest.raises(BrokenPipeError):
        os.write(inner, b"x")
    os.close(inner)


def test_a_file_that_cannot_be_written_ends_the_stream(front: Front, tmp_path: Path) -> None:
    """Opened for reading only."""
    path = tmp_path / "log"
    path.touch()
    source, inner = os.pipe()
    os.set_blocking(source, False)
    assert front.relay(OUT, source, os.open(path, os.O_RDONLY)).error == 0
    os.write(inner, b"x")
    assert ended(front).error == errno.EBADF
    os.close(inner)


@pytest.mark.parametrize("reading", [True, False])
def test_what_may_block_is_refused(front: Front, tmp_path: Path, reading: bool) -> None:
    """A file is no source, and a sink that may block is none because a file may be one."""
    path = tmp_path / "log"
    path.touch()
    source, inner = os.pipe()
    if reading:
        assert front.relay(OUT, os.open(path, os.O_RDONLY), inner).error == errno.EINVAL
        os.close(source)
    else:
        os.set_blocking(source, False)
        assert front.relay(OUT, source, os.dup(inner)).error == errno.EINVAL
        os.close(inner)


# ---- full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "denseshim-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill_disk(folder: Path, leave: int = 0) -> Path:
    """A file that takes all space but `leave` bytes."""
    path = folder / "ballast"
    path.write_bytes(b"")
    os.truncate(path, 0)
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, MIB - leave)
    return path


def test_a_full_disk_stops_the_writer_and_loses_nothing(
    keeper: Keeper, front: Front, disk: Path
) -> None:
    """Its pipe stays full until there is space again, and then all arrives."""
    path = disk / "log"
    ballast = fill_disk(disk, leave=8 << 10)
    inner = into_file(front, OUT, path, non_blocking=True)
    piece = BLOCK[:4096]
    written = fill_for_good(inner, piece, lambda: path.stat().st_size == 8 << 10)
    assert written > 64 << 10
    assert front.ask(Kind.STREAM, id=OUT).moved == 8 << 10
    assert fill(inner, piece) == 0
    ballast.unlink()
    wait_until(lambda: path.stat().st_size == written, "the bytes to be written")
    os.set_blocking(inner, True)
    os.write(inner, b"the end")
    os.close(inner)
    assert ended(front).moved == written + 7
    text = path.read_bytes()
    assert text[:-7] == piece * (written // len(piece))
    assert text[-7:] == b"the end"


def test_a_terminal_on_a_full_disk(front: Front, disk: Path) -> None:
    """Its last words wait, too, although all that had it open have gone: FINISH changes nothing."""
    path = disk / "log"
    ballast = fill_disk(disk)
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    assert front.relay(OUT, master, open_file(path)).error == 0
    os.write(slave, b"last words")
    os.close(slave)
    assert front.ask(Kind.FINISH, id=OUT).error == 0
    assert front.ask(Kind.FORGET, id=OUT).error == errno.EBUSY
    ballast.unlink()
    assert ended(front).moved == 10
    assert path.read_bytes() == b"last words"


def test_waiting_for_space_costs_next_to_nothing(keeper: Keeper, front: Front, disk: Path) -> None:
    """A hundred streams of one full disk wait together, ever longer, up to 2 s."""
    ballast = fill_disk(disk)
    inner = [into_file(front, 100 + number, disk / f"{number}") for number in range(100)]
    for descriptor in inner:
        os.write(descriptor, b"x")
    assert front.ask(Kind.PONG).error == 0
    before, ticks = wake_ups(keeper.pid), cpu_ticks(keeper.pid)
    subprocess.run(["/bin/sleep", "3"], check=True)  # the time in which little may happen
    assert wake_ups(keeper.pid) - before <= 20
    assert cpu_ticks(keeper.pid) - ticks <= 10
    ballast.unlink()
    close_all(*inner)
    for number in range(100):
        assert ended(front, 100 + number).moved == 1
        assert (disk / f"{number}").read_bytes() == b"x"


def test_cut_while_waiting_for_space(keeper: Keeper, front: Front, disk: Path) -> None:
    """The stream ends at once, and the writer learns of it."""
    path = disk / "log"
    fill_disk(disk)
    inner = into_file(front, OUT, path)
    os.write(inner, b"lost")
    assert front.ask(Kind.PONG).error == 0
    assert front.ask(Kind.CUT, id=OUT).error == 0
    assert ended(front).moved == 0
    assert files_of(keeper, path) == 0
    with pytest.raises(BrokenPipeError):
        os.write(inner, b"x")
    os.close(inner)
    assert front.ask(Kind.STREAM, id=OUT).error == errno.ESRCH


def test_an_end_while_waiting_for_space(front: Front, disk: Path) -> None:
    """The writer has gone; its bytes stay until there is space."""
    path = disk / "log"
    ballast = fill_disk(disk)
    inner = into_file(front, OUT, path)
    os.write(inner, BLOCK[: 48 << 10])
    os.close(inner)
    assert front.ask(Kind.FORGET, id=OUT).error == errno.EBUSY
    ballast.unlink()
    assert ended(front).moved == 48 << 10
    assert path.read_bytes() == BLOCK[: 48 << 10]


def test_the_next_front_finds_a_stream_that_waits_for_space(keeper: Keeper, disk: Path) -> None:
    """It is the keeper's, like any other."""
    path = disk / "log"
    ballast = fill_disk(disk)
    inner = into_file(keeper.front, OUT, path)
    os.write(inner, b"text")
    keeper.front.close()
    front = keeper.front = keeper.next_front()
    (held,) = front.snapshot()
    assert (held.id, held.moved, held.flags) == (OUT, 0, 0)
    ballast.unlink()
    os.close(inner)
    assert ended(front).moved == 4
    assert path.read_bytes() == b"text"


def test_stop_does_not_wait_for_space(keeper: Keeper, front: Front, disk: Path) -> None:
    """What waits for a full disk is not delivered when the keeper ends."""
    fill_disk(disk)
    inner = into_file(front, OUT, disk / "log")
    os.write(inner, b"lost")
    keeper.stop()
    with pytest.raises(BrokenPipeError):
        os.write(inner, b"x")
    os.close(inner)
