"""Terminals: output, keys, sizes, ends (demands 6 and 15)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.client import StartedShim
from tests.integration.support import (
    Bundle,
    Events,
    Reader,
    Writer,
    children_of,
    exec_spec,
    serving,
    until,
)

Make = Callable[..., Bundle]
# Terminals that run at once.
BATCH = 4
LAST = 1_000_000


async def sleeper(shim: StartedShim, bundle: Bundle) -> int:
    """A running container in which to exec; its pid."""
    pid = await shim.create(bundle.request())
    await shim.start()
    return pid


async def test_a_million_lines_twenty_times(make_bundle: Make) -> None:
    """Demand 6: no line is lost on its way through a terminal, the last ones least of all.

    The first four write each line by itself, the others a few hundred at a time.
    """
    whole = b"".join(b"%d\r\n" % number for number in range(1, LAST + 1))
    expected = (len(whole), hashlib.sha256(whole).hexdigest())
    bundle = make_bundle("sleep", "1000")

    async def run(shim: StartedShim, events: Events, number: int) -> None:
        stdio = bundle.stdio(f"exec{number}", "stdout", terminal=True)
        with Reader(stdio.stdout) as reader:
            script = f"seq {LAST}" if number < BATCH else f"seq {LAST} | cat"
            pid = await shim.exec(exec_spec("sh", "-c", script, terminal=True), stdio)
            assert await reader.digest() == expected
            assert (await events.exit(pid)).status == 0
            await shim.delete(pid)

    async with serving(bundle) as (shim, events):
        await sleeper(shim, bundle)
        for first in range(0, 20, BATCH):
            await asyncio.gather(*(run(shim, events, first + n) for n in range(BATCH)))


@pytest.mark.parametrize("reader_is_late", [False, True])
async def test_the_last_output_comes_before_the_end(
    make_bundle: Make, reader_is_late: bool
) -> None:
    """Demand 6: a short-lived process on a terminal, as init; the exit does not cut its output."""
    bundle = make_bundle("sh", "-c", "seq 500; echo last; exit 3", terminal=True)
    expected = b"".join(b"%d\r\n" % n for n in range(1, 501)) + b"last\r\n"
    async with serving(bundle) as (shim, events):
        request = bundle.request(stdout=True, terminal=True)
        reader = None if reader_is_late else Reader(request.stdio.stdout)
        pid = await shim.create(request)
        await shim.start()
        assert (await events.exit(pid)).status == 3
        with reader or Reader(request.stdio.stdout) as reader:
            assert await reader.rest() == expected


async def test_sizes_are_seen_inside(make_bundle: Make) -> None:
    """Contract: Pty. The size is set before Start, and changes with a signal afterwards."""
    script = "stty size; trap 'stty size' WINCH; echo ready; while :; do read line; done"
    bundle = make_bundle("sh", "-c", script, terminal=True)
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, _):
            pid = await shim.create(bundle.request(stdin=True, stdout=True, terminal=True))
            await shim.pty(pid, 91, 33)
            await shim.start()
            assert await reader.until(b"ready\r\n") == b"33 91\r\nready\r\n"
            await shim.pty(pid, 120, 50)
            assert await reader.until(b"\r\n") == b"50 120\r\n"


async def test_keys_of_a_terminal(make_bundle: Make) -> None:
    """What is typed is echoed and read; ^C interrupts, ^D is the end of input."""
    script = (
        "trap 'echo caught' INT; cat; echo end; while sleep 1000; do :; done; echo over; exit 4"
    )
    bundle = make_bundle("sh", "-c", script, terminal=True)
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await shim.create(bundle.request(stdin=True, stdout=True, terminal=True))
            await shim.start()
            with Writer(bundle.fifo("stdin")) as keys:
                await keys.write(b"hello\n")
                assert await reader.until(b"hello\r\nhello\r\n")
                await keys.write(b"\x04")
                assert await reader.until(b"end\r\n") == b"end\r\n"
                await sleeping(pid)
                await keys.write(b"\x03")
                assert b"caught" in await reader.until(b"over\r\n")
            assert (await events.exit(pid)).status == 4
            assert await reader.rest() == b""


async def sleeping(pid: int) -> None:
    """Return when the shell `pid` has a sleep: a forked shell would catch ^C by itself."""

    def sleeps() -> bool:
        commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children_of(pid)]
        return any(command.startswith(b"sleep") for command in commands)

    await until(sleeps, "the shell's sleep")


async def test_a_long_paste_into_a_terminal(make_bundle: Make) -> None:
    """More than the terminal's input queue takes (4 KiB): the rest waits, nothing is dropped."""
    lines = [b"%06d %s" % (number, b"y" * 60) for number in range(3000)]
    script = "stty -echo; echo ready; head -n 3000"
    bundle = make_bundle("sh", "-c", script, terminal=True)
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, _):
            await shim.create(bundle.request(stdin=True, stdout=True, terminal=True))
            await shim.start()
            await reader.until(b"ready\r\n")
            result = asyncio.create_task(reader.rest())
            with Writer(bundle.fifo("stdin")) as keys:
                await keys.write(b"".join(line + b"\n" for line in lines))
                assert (await result).splitlines() == lines


async def test_a_grandchild_that_holds_the_terminal(make_bundle: Make) -> None:
    """Demand 5, on a terminal: its end is the process's, whoever else has it open."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        await sleeper(shim, bundle)
        stdio = bundle.stdio("exec", "stdout", terminal=True)
        with Reader(stdio.stdout) as reader:
            script = "trap '' HUP; sleep 1000 & echo ok"
            pid = await shim.exec(exec_spec("sh", "-c", script, terminal=True), stdio)
            assert (await events.exit(pid)).status == 0
            begun = time.monotonic()
            assert await reader.rest() == b"ok\r\n"
            await shim.delete(pid)
            assert time.monotonic() - begun < 1
