"""Output and input over pipes, byte for byte (demands 5, 6, 7 and 14)."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import random
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim.client import StartedShim
from shim.errors import NotFound
from shim.model import EventType
from tests.integration.support import Bundle, Reader, Writer, exec_spec, is_alive, serving, until

Make = Callable[..., Bundle]
MIB = 1 << 20
# More than the client's FIFO takes, but not more than that and the pipe: 64 KiB each (pipe(7)).
STUCK = 120_000
# Seconds: what Delete may take when nobody reads, its pause for readers included.
BOUND = 8.0


def pseudo_random(size: int) -> bytes:
    """The same bytes each time."""
    return random.Random(20170525).randbytes(size)


async def feed(path: str, block: bytes, times: int) -> str:
    """Write a block that often, and give the hash of it all. Changed a little each time."""
    hash = hashlib.sha256()
    with Writer(path) as writer:
        for turn in range(times):
            data = turn.to_bytes(8) + block[8:]
            hash.update(data)
            await writer.write(data)
    return hash.hexdigest()


async def start(shim: StartedShim, bundle: Bundle, *streams: str) -> int:
    """Create with FIFOs for `streams`, and start; the pid."""
    wanted: dict[str, Any] = dict.fromkeys(streams, True)
    pid = await shim.create(bundle.request(**wanted))
    await shim.start()
    return pid


async def test_256_mib_in_and_out(make_bundle: Make) -> None:
    """Demand 6: byte-exact, through stdin and back through stdout."""
    bundle = make_bundle("cat")
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await start(shim, bundle, "stdin", "stdout")
            result = asyncio.create_task(reader.digest())
            sent = await feed(bundle.fifo("stdin"), pseudo_random(MIB), 256)
            await shim.close_stdin(pid)
            assert await result == (256 * MIB, sent)
            assert (await events.exit(pid)).status == 0


async def test_writes_of_one_byte(make_bundle: Make) -> None:
    """Demand 17: small writes are gathered, and none is lost."""
    bundle = make_bundle("sh", "-c", "dd if=/in/data bs=1 2>/dev/null")
    data = pseudo_random(200_000)
    folder = bundle.path / "in"
    folder.mkdir()
    (folder / "data").write_bytes(data)
    bundle.bind(folder, "/in")
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, _):
            await start(shim, bundle, "stdout")
            assert await reader.rest() == data


async def test_streams_are_apart(make_bundle: Make) -> None:
    """What goes to stderr is not in stdout, while both are busy."""
    script = "for i in $(seq 20000); do echo out $i; echo err $i >&2; done"
    bundle = make_bundle("sh", "-c", script)
    with Reader(bundle.fifo("stdout")) as stdout, Reader(bundle.fifo("stderr")) as stderr:
        async with serving(bundle) as (shim, _):
            await start(shim, bundle, "stdout", "stderr")
            out, err = await asyncio.gather(stdout.rest(), stderr.rest())
    assert out == b"".join(b"out %d\n" % i for i in range(1, 20001))
    assert err == b"".join(b"err %d\n" % i for i in range(1, 20001))


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % i for i in range(1, count + 1))


async def test_a_slow_reader_gets_everything(make_bundle: Make) -> None:
    """Demand 6: the process waits for its reader; here one with little bites."""
    bundle = make_bundle("seq", "400000")
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await start(shim, bundle, "stdout")
            found = bytearray()
            while data := await reader.read(1000):
                found += data
            assert found == numbers(400_000)
            assert (await events.exit(pid)).status == 0


async def test_a_reader_that_leaves_and_comes_back_loses_nothing(make_bundle: Make) -> None:
    """Contract: Stdio. No SIGPIPE meanwhile: seq would die of it."""
    bundle = make_bundle("seq", "400000")
    found = bytearray()
    async with serving(bundle) as (shim, events):
        reader = Reader(bundle.fifo("stdout"))
        pid = await start(shim, bundle, "stdout")
        for _ in range(10):
            with reader:
                found += await reader.read(100_000)
            reader = Reader(bundle.fifo("stdout"))
        with reader:
            found += await reader.rest()
        assert (await events.exit(pid)).status == 0
    assert found == numbers(400_000)


async def test_a_reader_that_comes_after_the_exit_gets_everything(make_bundle: Make) -> None:
    """Contract: if no reader is there at the end, the write end stays until one has come."""
    bundle = make_bundle("sh", "-c", "seq 3000; exit 3")
    async with serving(bundle) as (shim, events):
        pid = await start(shim, bundle, "stdout")
        assert (await events.exit(pid)).status == 3
        await asyncio.sleep(2)  # what the demand says: the client may be that late
        with Reader(bundle.fifo("stdout")) as reader:
            assert await reader.rest() == numbers(3000)


async def test_without_a_reader_64_kib_of_lines_are_taken(
    make_bundle: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """Demand 7: the FIFO's fragments do not run out before its bytes; Delete ends all the same."""
    line = "x" * 99
    script = f"i=0; while :; do echo {line}; i=$((i+1)); echo $i > /out/count; done"
    bundle = make_bundle("sh", "-c", script)
    folder = bundle.path / "out"
    folder.mkdir()
    bundle.bind(folder, "/out")
    async with serving(bundle, debug=True) as (shim, events):
        pid = await start(shim, bundle, "stdout")
        await until(lambda: written(folder / "count") * 100 >= 64 << 10, "64 KiB of lines")
        await shim.kill(9)
        await events.exit(pid)
        begun = time.monotonic()
        await shim.delete()
        assert time.monotonic() - begun < BOUND
    assert "output cut" in capfd.readouterr().err


def written(count: Path) -> int:
    return int(count.read_text() or 0) if count.exists() else 0


async def test_delete_with_a_reader_that_never_reads(
    make_bundle: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """Contract: Delete's drain is bounded, and what it cuts is logged."""
    bundle = make_bundle("sh", "-c", f"head -c {STUCK} /dev/zero")
    with Reader(bundle.fifo("stdout")):
        async with serving(bundle, debug=True) as (shim, events):
            pid = await start(shim, bundle, "stdout")
            await events.exit(pid)
            begun = time.monotonic()
            assert (await shim.delete()).status == 0
            assert time.monotonic() - begun < BOUND
    assert f"{bundle.id}: output cut" in capfd.readouterr().err


async def test_delete_of_many_without_readers(make_bundle: Make) -> None:
    """Contract: the drain is bounded, however many processes have written what nobody reads."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        await start(shim, bundle)
        for number in range(12):
            stdio = bundle.stdio(f"exec{number}", "stdout")
            await events.exit(await shim.exec(exec_spec("echo", "unread"), stdio))
        begun = time.monotonic()
        await shim.delete()
        assert time.monotonic() - begun < BOUND


def waits_to_write(pid: int, fifo: int) -> bool:
    """Whether a process sleeps in write(2) to its stdout, and the client's FIFO is full."""
    queued = int.from_bytes(fcntl.ioctl(fifo, termios.FIONREAD, bytes(4)), sys.byteorder)
    call = Path(f"/proc/{pid}/syscall").read_text().split()
    return call[:2] == ["1", "0x1"] and queued > 48 << 10


async def test_delete_waits_for_a_reader_that_reads(make_bundle: Make) -> None:
    """Contract: Delete waits for the output to drain. The reader begins when it is under way."""
    bundle = make_bundle("seq", "400000")
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await start(shim, bundle, "stdout")
            await reader.until(b"1\n")
            await until(lambda: waits_to_write(pid, reader.descriptor), "seq to be blocked")
            await shim.kill(9)  # what it has written, all that fits, is to come
            await events.exit(pid)
            deleting = asyncio.create_task(shim.delete())
            rest = await reader.rest()
            await deleting
    whole = numbers(400_000).removeprefix(b"1\n")
    assert whole.startswith(rest)
    assert len(rest) > 64 << 10


async def test_a_grandchild_that_holds_stdout(make_bundle: Make) -> None:
    """Demand 5: the exit is told at once, the output delivered, Delete bounded, nothing left."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        await start(shim, bundle)
        stdio = bundle.stdio("exec", "stdout")
        with Reader(stdio.stdout) as reader:
            spec = exec_spec("sh", "-c", "sleep 1000 & echo ok")
            pid = await shim.exec(spec, stdio)
            assert await reader.until(b"\n") == b"ok\n"
            begun = time.monotonic()
            assert (await events.exit(pid)).status == 0
            assert time.monotonic() - begun < 1
            assert (await shim.delete(pid)).status == 0
            assert time.monotonic() - begun < BOUND
            assert await reader.read() == b""
        with pytest.raises(NotFound):
            await shim.delete(pid)
        left = [process.pid for process in await shim.processes()]
        assert len(left) == 2
        await shim.kill(9)
        await events.exit((await shim.state()).pid)
        await shim.delete()
        assert not any(map(is_alive, left))


DATA = pseudo_random(3 * MIB)


@pytest.mark.parametrize("moment", ["before open", "before data", "mid-data", "after data"])
async def test_close_stdin_at_any_moment(make_bundle: Make, moment: str) -> None:
    """Demand 14: EOF comes after all data, once the client has closed its end, too."""
    bundle = make_bundle("sh", "-c", "cat; echo end")
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await shim.create(bundle.request(stdin=True, stdout=True))
            late = moment == "before open"
            writer = None if late else Writer(bundle.fifo("stdin"))
            await shim.start()
            if moment in ("before open", "before data"):
                await shim.close_stdin(pid)
            if writer is None:
                # Nobody holds the FIFO's write end any more, so this is the end, without data.
                assert await reader.rest() == b"end\n"
            else:
                result = asyncio.create_task(reader.rest())
                with writer:
                    await writer.write(DATA[:MIB])
                    if moment == "mid-data":
                        await shim.close_stdin(pid)
                    await writer.write(DATA[MIB:])
                    if moment == "after data":
                        await shim.close_stdin(pid)
                    assert events.of(pid).count(EventType.EXIT) == 0
                assert await result == DATA + b"end\n"
            assert (await events.exit(pid)).status == 0


async def test_a_client_that_goes_is_no_end_of_stdin(make_bundle: Make) -> None:
    """Contract: stdin is held open until CloseStdin, and another client may go on writing."""
    bundle = make_bundle("sh", "-c", "cat; echo end")
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await start(shim, bundle, "stdin", "stdout")
            for line in (b"one\n", b"two\n", b"three\n"):
                with Writer(bundle.fifo("stdin")) as writer:
                    await writer.write(line)
                assert await reader.until(b"\n") == line
            assert events.of(pid).count(EventType.EXIT) == 0
            with Writer(bundle.fifo("stdin")) as writer:
                await writer.write(b"four\n")
                await shim.close_stdin(pid)
            assert await reader.rest() == b"four\nend\n"
            assert (await events.exit(pid)).status == 0


async def test_execs_that_write_at_once(make_bundle: Make) -> None:
    """Demand 6, side by side: each stream has its own bytes, whole."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        await start(shim, bundle)

        async def run(number: int) -> None:
            stdio = bundle.stdio(f"exec{number}", "stdout")
            with Reader(stdio.stdout) as reader:
                spec = exec_spec("sh", "-c", f"seq {number}00000; exit {number}")
                pid = await shim.exec(spec, stdio)
                assert await reader.rest() == numbers(number * 100_000)
                assert (await events.exit(pid)).status == number
                await shim.delete(pid)

        await asyncio.gather(*map(run, range(1, 9)))
