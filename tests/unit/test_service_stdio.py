"""The streams that a builder makes, with a real keeper between the programs and the client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import signal
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from shim.blocking import BlockingPool
from shim.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, ShimError
from shim.keeper.client import KeeperClient, Spawn
from shim.keeper.command import Command
from shim.model import Stdio
from shim.service import logger
from shim.service.logger import LogNames
from shim.service.stdio import LOGGER, ProcessStdio, StdioBuilder
from tests.native import harness
from tests.native.harness import PATIENCE, Keeper, wait_until
from tests.native.support import is_gone

NAMES = LogNames("denseshim-box", "test")
# Keeps what it was called with and what it reads; NAME-* beside itself.
PROGRAM = """#!/bin/sh
cp /proc/$$/environ {path}-environ
printf '%s|' "$@" > {path}-arguments
ls /proc/$$/fd > {path}-descriptors
echo $$ > {path}-pid
cat <&3 5>&- > {path}-3 &
cat <&4 5>&- > {path}-4 &
{ready}
exec 3<&- 4<&- 5>&-
wait
"""
READY = {
    "a byte": "echo >&5",
    "closed": "exec 5>&-",
    "never": "exec sleep 1000",
    "fails": "exit 3",
    "deaf": "trap '' TERM; echo >&5; exec sleep 1000 5>&-",
}


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with harness.keeper() as made:
        yield made


@pytest.fixture
async def client(keeper: Keeper) -> AsyncIterator[KeeperClient]:
    client = KeeperClient(keeper.front.channel.dup(), lambda: None)
    await client.begin()
    yield client
    client.close()


@pytest.fixture
async def pool() -> AsyncIterator[BlockingPool]:
    pool = BlockingPool()
    yield pool
    pool.close()


class Box:
    """Starts programs with the streams that a builder makes."""

    def __init__(self, client: KeeperClient, pool: BlockingPool) -> None:
        self.client = client
        self.pool = pool

    def builder(
        self,
        stdio: Stdio,
        owner: tuple[int, int] | None = None,
        names: LogNames | None = NAMES,
    ) -> StdioBuilder:
        return StdioBuilder(self.client, self.pool, stdio, owner, names)

    async def run(
        self, stdio: Stdio, script: str, owner: tuple[int, int] | None = None
    ) -> tuple[Spawn, ProcessStdio]:
        """A shell with these streams."""
        with self.builder(stdio, owner) as builder:
            try:
                child = await self.shell(script, await builder.open())
                builder.stdio.settle()
                return child, builder.stdio
            except BaseException:
                builder.stdio.cut()
                raise

    async def shell(self, script: str, descriptors: dict[int, int]) -> Spawn:
        command = Command(("/bin/sh", "-c", script), {"PATH": os.environ["PATH"]}, "/", descriptors)
        child = await self.client.spawn(command)
        child.release()
        return child

    async def done(self, stdio: Stdio, script: str) -> int:
        """Run it to its end, drain its streams; its status."""
        child, streams = await self.run(stdio, script)
        ended = await asyncio.wait_for(child.wait(), PATIENCE)
        await streams.drain("the test")
        return ended.status


@pytest.fixture
def box(client: KeeperClient, pool: BlockingPool) -> Box:
    return Box(client, pool)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a logging program; `ready` says how it tells that it is."""

    def make(ready: str) -> Path:
        path = tmp_path / "logs to"
        path.write_text(PROGRAM.replace("{ready}", READY[ready]).replace("{path}", f'"{path}"'))
        path.chmod(0o755)
        return path

    return make


def uri(scheme: str, path: Path, query: str = "") -> str:
    return f"{scheme}://{str(path).replace(' ', '%20')}{query}"


def both(text: str, **others: str) -> Stdio:
    return Stdio(stdout=text, stderr=text, **others)


def beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}-{what}")


def pid_of(path: Path) -> int:
    """The logging program's own word."""
    there = beside(path, "pid")
    wait_until(lambda: there.exists() and there.read_text().endswith("\n"), "its pid")
    return int(there.read_text())


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again, while the client goes on."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)


# -- paths


async def test_nothing_wanted_is_a_null_device_that_can_be_read_and_written(box: Box) -> None:
    script = "read x; echo a; echo b >&2; test $(readlink /proc/$$/fd/1) = /dev/null"
    child, streams = await box.run(Stdio(), script + " && exit 7")
    assert (await child.wait()).status == 7
    assert streams.to_state() == {}


@pytest.mark.parametrize("prefix", ["", "fifo://"])
async def test_fifos_carry_all_three_streams(box: Box, tmp_path: Path, prefix: str) -> None:
    for name in ("in", "out", "err"):
        os.mkfifo(tmp_path / name)
    paths = (f"{prefix}{tmp_path / name}" for name in ("in", "out", "err"))
    child, streams = await box.run(Stdio(False, *paths), "cat; echo err >&2")
    readers = [os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK) for name in ("out", "err")]
    writer = os.open(tmp_path / "in", os.O_WRONLY)
    os.write(writer, b"through")
    os.close(writer)
    streams.close_stdin()
    assert (await child.wait()).status == 0
    await streams.drain("the test")
    assert [os.read(reader, 100) for reader in readers] == [b"through", b"err\n"]
    for reader in readers:
        os.close(reader)


async def test_an_empty_stderr_beside_a_stdout_is_skipped(box: Box, tmp_path: Path) -> None:
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert await box.done(Stdio(stdout=str(fifo)), "echo no >&2 && echo yes") == 0
    assert os.read(reader, 100) == b"yes\n"
    os.close(reader)


async def test_a_peer_that_never_comes_holds_nobody_up(box: Box, tmp_path: Path) -> None:
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    child, streams = await box.run(both(str(fifo)), "echo lost")
    assert (await child.wait()).status == 0
    assert await box.done(Stdio(), "exit 5") == 5
    streams.cut()


async def test_an_input_is_read_once_it_is_settled(box: Box, tmp_path: Path) -> None:
    """A front may die before the process is started: what its client has written is not lost."""
    fifo = tmp_path / "in"
    os.mkfifo(fifo)
    with box.builder(Stdio(stdin=str(fifo))) as former:
        await former.open()
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"words\n")
    with box.builder(Stdio(stdin=str(fifo))) as builder:
        child = await box.shell("read line; test $line = words", await builder.open())
    former.stdio.cut()
    builder.stdio.settle()
    assert (await child.wait()).status == 0
    builder.stdio.cut()
    os.close(writer)


async def test_an_input_that_is_not_there_is_refused_before_anything_begins(
    box: Box, tmp_path: Path
) -> None:
    with box.builder(Stdio(stdin=str(tmp_path / "none"))) as builder:
        with pytest.raises(InvalidArgument, match="none"):
            await builder.open()
        builder.stdio.cut()


async def test_an_output_does_not_end_before_it_is_settled(box: Box, tmp_path: Path) -> None:
    """Its process may be about to be started again, by another front: no client sees an end."""
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with box.builder(Stdio(stdout=str(fifo))) as builder:
        child = await box.shell("echo first", await builder.open())
    assert (await child.wait()).status == 0
    assert events_of(reader, PATIENCE) == select.POLLIN
    assert os.read(reader, 100) == b"first\n"
    assert events_of(reader, 0.2) == 0  # an end would be there by now
    builder.stdio.settle()
    assert events_of(reader, PATIENCE) == select.POLLHUP
    os.close(reader)


def events_of(reader: int, limit: float) -> int:
    """What poll(2) says within so many seconds."""
    waiting = select.poll()
    waiting.register(reader, select.POLLIN)
    return sum(events for _, events in waiting.poll(limit * 1000))


async def test_streams_are_whole_when_the_keeper_has_all_of_them(
    keeper: Keeper, pool: BlockingPool, tmp_path: Path
) -> None:
    """What a front leaves that dies between two streams cannot be completed."""
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    first = KeeperClient(keeper.front.channel.dup(), lambda: None)
    await first.begin()
    stdio = Stdio(stdin=str(tmp_path / "in"), stdout=str(tmp_path / "out"))
    box = Box(first, pool)
    with box.builder(stdio) as builder:
        await box.shell("read line", await builder.open())
        whole = builder.stdio.to_state()
    states = [whole, {**whole, "stderr": first.new_id()}]
    first.close()
    keeper.front.close()
    keeper.front = keeper.next_front()
    second = KeeperClient(keeper.front.channel.dup(), lambda: None)
    held = await second.begin()
    adopted = [ProcessStdio(state, terminal=False) for state in states]
    for one in adopted:
        one.adopt(held)
    assert [one.is_whole() for one in adopted] == [True, False]
    for one in adopted:
        one.cut()
    second.close()


async def test_the_ends_of_the_process_are_the_owners(box: Box, tmp_path: Path) -> None:
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    stdio = Stdio(stdin=str(tmp_path / "in"), stdout=str(tmp_path / "out"))
    with box.builder(stdio, owner=(1234, 4321)) as builder:
        found = await builder.open()
        ends = [os.fstat(found[number]) for number in (0, 1)]
        assert {(end.st_uid, end.st_gid) for end in ends} == {(1234, 4321)}
        builder.stdio.cut()


@pytest.mark.parametrize("stdio", [both("{}"), Stdio(stdout="{}", stderr="{}-2")])
async def test_files_that_are_there_are_appended_to(box: Box, tmp_path: Path, stdio: Stdio) -> None:
    paths = [Path(text.format(tmp_path / "log")) for text in (stdio.stdout, stdio.stderr)]
    for path in paths:
        path.write_text("old\n")
    stdio = Stdio(stdout=str(paths[0]), stderr=str(paths[1]))
    assert await box.done(stdio, "echo out; echo err >&2") == 0
    expected = {"old", "out", "err"}
    assert {line for path in paths for line in path.read_text().split()} == expected
    assert paths[0].read_text().startswith("old\nout\n") or paths[0] == paths[1]


async def test_a_path_without_anything_there_is_refused(box: Box, tmp_path: Path) -> None:
    builder = box.builder(both(str(tmp_path / "log")))
    with builder, pytest.raises(InvalidArgument, match="No such file"):
        await builder.open()
    assert not (tmp_path / "log").exists()


async def test_without_names_only_fifos_will_do(box: Box, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    for text in (str(path), uri("fifo", path), uri("file", path), uri("binary", path)):
        builder = box.builder(both(text), names=None)
        with builder, pytest.raises(InvalidArgument, match="is not"):
            await builder.open()


# -- files


async def test_a_file_is_made_with_its_directories_and_takes_both_streams(
    box: Box, tmp_path: Path
) -> None:
    log = tmp_path / "a" / "b" / "the log"
    assert await box.done(both(uri("file", log)), "echo out; echo err >&2") == 0
    assert sorted(log.read_text().split()) == ["err", "out"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o644
    made = (log.parent, log.parent.parent)
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o755}
    assert await box.done(both(uri("file", log)), "echo more") == 0
    assert log.read_text().endswith("more\n")


async def test_only_the_wanted_streams_go_to_a_file(box: Box, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert await box.done(Stdio(stdout=uri("file", log)), "echo out; echo err >&2") == 0
    assert log.read_text() == "out\n"


# -- logs


def log_of(path: Path) -> dict[str, list[str]]:
    """The texts of a log's records by their stream."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        _, stream, _, text = line.split(" ", 3)
        found.setdefault(stream, []).append(text)
    return found


async def test_a_log_takes_both_streams_of_every_process(
    box: Box, tmp_path: Path, keeper: Keeper
) -> None:
    path, descriptors = tmp_path / "id" / "the log", keeper.descriptors()
    assert await box.done(both(uri("log", path)), "echo out; echo err >&2") == 0
    assert log_of(path) == {"stdout": ["out"], "stderr": ["err"]}
    assert await box.done(both(uri("log", path)), "echo more; printf half") == 0
    assert log_of(path)["stdout"] == ["out", "more", "half"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await until(lambda: keeper.descriptors() == descriptors)


async def test_a_log_s_files_are_as_large_and_as_many_as_asked(box: Box, tmp_path: Path) -> None:
    path = tmp_path / "log"
    stdio = both(uri("log", path, "?max_size=32768&max_files=3"))
    assert await box.done(stdio, "yes 0123456789 | head -10000") == 0
    sizes = {name: (tmp_path / name).stat().st_size for name in os.listdir(tmp_path)}
    assert sizes.keys() == {"log", "log.1", "log.2"}
    assert max(sizes.values()) in range(32700, 32769)


async def test_only_the_wanted_streams_go_to_a_log(box: Box, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert await box.done(Stdio(stdout=uri("log", path)), "echo out; echo err >&2") == 0
    assert log_of(path) == {"stdout": ["out"]}


async def test_a_terminal_goes_to_a_log_and_can_be_typed_on(box: Box, tmp_path: Path) -> None:
    path, fifo = tmp_path / "log", tmp_path / "in"
    os.mkfifo(fifo)
    stdio = Stdio(terminal=True, stdin=str(fifo), stdout=uri("log", path))
    with box.builder(stdio) as builder, terminal() as (master, slave):
        await builder.open()
        script = "stty -opost -echo; echo ready; read line; stty size; echo $line"
        child = await box.shell(script, dict.fromkeys(range(3), slave))
        await builder.attach(master)
        builder.stdio.settle()
        await builder.stdio.resize(80, 24)
        await until(lambda: "ready" in log_of(path).get("stdout", ()))
        fifo.write_text("words\n")
        await child.wait()
    builder.stdio.process_ended()
    await builder.stdio.drain("the test")
    assert log_of(path) == {"stdout": ["ready", "24 80", "words"]}


async def test_what_a_log_has_taken_is_told(box: Box, tmp_path: Path) -> None:
    path, fifo = tmp_path / "log", tmp_path / "in"
    os.mkfifo(fifo)
    stdio = Stdio(stdin=str(fifo), stdout=uri("log", path), stderr=uri("log", path))
    child, streams = await box.run(stdio, "echo 12345; echo 678 >&2; read line")
    await until(lambda: path.exists() and len(path.read_text().splitlines()) == 2)
    assert await streams.written() == 10
    assert streams.is_open()
    fifo.write_text("\n")
    await child.wait()
    await streams.drain("the test")
    assert await streams.written() == 0
    assert not streams.is_open()


async def test_a_log_over_a_link_is_refused(box: Box, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    builder = box.builder(both(uri("log", tmp_path / "link" / "log")))
    with builder, pytest.raises(InvalidArgument, match="directory of the log"):
        await builder.open()


async def test_a_log_that_is_no_file_is_refused_and_leaves_nothing(
    box: Box, tmp_path: Path, keeper: Keeper
) -> None:
    (tmp_path / "log").mkdir()
    descriptors = keeper.descriptors()
    with pytest.raises(FailedPrecondition, match="writing the log log"):
        await box.run(both(uri("log", tmp_path / "log")), "exit 0")
    assert keeper.descriptors() == descriptors


# -- refusals


@pytest.mark.parametrize(
    ("stdio", "says"),
    [
        (both("ttrpc+unix:///x"), r"ttrpc\+unix:// is not known.*fifo://, file://, binary://"),
        (both("file://host/x"), "absolute path"),
        (both("file:x"), "absolute path"),
        (both("binary:///x?a=%00"), "NUL"),
        (Stdio(stdout="/x", stderr="file:///x"), "stderr cannot be file://"),
        (Stdio(stdin="binary:///x"), "stdin cannot be binary://"),
        (Stdio(stdin="log:///x"), "stdin cannot be log://"),
        (Stdio(stdout="/x", stderr="log:///x"), "stderr cannot be log://"),
        (both("log:///x?max_files=0"), "max_files"),
        (Stdio(terminal=True, stdout="file:///x"), "terminal"),
    ],
)
async def test_what_cannot_be_is_refused_at_once(box: Box, stdio: Stdio, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        box.builder(stdio)


async def test_a_relative_path_is_refused(box: Box) -> None:
    with box.builder(both("x")) as builder, pytest.raises(InvalidArgument, match="absolute"):
        await builder.open()


# -- logging programs


@pytest.mark.parametrize(
    ("scheme", "ready"), [("binary", "a byte"), ("binary", "closed"), ("binary-v2", "a byte")]
)
async def test_a_logging_program_gets_both_streams(
    box: Box, program: Callable[[str], Path], scheme: str, ready: str
) -> None:
    path = program(ready)
    text = uri(scheme, path, "?k=v%20w&empty&k=second&plus=a+b")
    assert await box.done(both(text, stdin="/not/looked/at"), "cat; echo out; echo err >&2") == 0
    assert beside(path, "3").read_text() == "out\n"
    assert beside(path, "4").read_text() == "err\n"
    assert beside(path, "arguments").read_text() == "k|v w|empty||plus|a b|"
    environ = b"CONTAINER_ID=denseshim-box\0CONTAINER_NAMESPACE=test\0"
    assert beside(path, "environ").read_bytes() == environ
    assert {"0", "1", "2", "3", "4", "5"} <= set(beside(path, "descriptors").read_text().split())
    assert is_gone(pid_of(path))


async def test_an_empty_stderr_is_skipped_beside_a_logging_program(
    box: Box, program: Callable[[str], Path]
) -> None:
    path = program("a byte")
    assert await box.done(Stdio(stdout=uri("binary", path)), "echo out; echo no >&2") == 0
    assert (beside(path, "3").read_text(), beside(path, "4").read_text()) == ("out\n", "")


async def test_the_last_line_reaches_a_program_that_is_slow(box: Box, tmp_path: Path) -> None:
    """Demand 6: it is not asked to end before it has read what is there."""
    path = tmp_path / "slow"
    path.write_text(f"#!/bin/sh\necho $$ > {path}-pid; echo >&5\nexec cat <&3 >{path}-3 5>&-\n")
    path.chmod(0o755)
    with box.builder(both(uri("binary", path))) as builder:
        descriptors = await builder.open()
        os.kill(pid_of(path), signal.SIGSTOP)
        child = await box.shell("seq 10000", descriptors)
        builder.stdio.settle()
    assert (await child.wait()).status == 0
    draining = asyncio.ensure_future(builder.stdio.drain("the test"))
    await asyncio.wait((draining,), timeout=0.2)  # a SIGTERM would be there by now
    os.kill(pid_of(path), signal.SIGCONT)
    await draining
    assert beside(path, "3").read_text().split() == [str(number) for number in range(1, 10001)]
    assert is_gone(pid_of(path))


@pytest.mark.parametrize(
    ("scheme", "ready", "error", "says"),
    [
        ("binary", "never", DeadlineExceeded, "not ready within"),
        ("binary-v2", "never", DeadlineExceeded, "not ready within"),
        ("binary", "fails", FailedPrecondition, "status 3"),
        ("binary-v2", "fails", FailedPrecondition, "status 3"),
        ("binary-v2", "closed", FailedPrecondition, "closed descriptor 5"),
    ],
)
async def test_a_program_that_is_not_ready_is_named_and_leaves_nothing(
    box: Box,
    program: Callable[[str], Path],
    keeper: Keeper,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    ready: str,
    error: type[ShimError],
    says: str,
) -> None:
    monkeypatch.setattr(logger, "READY_LIMIT", 0.5)
    children, descriptors = keeper.children(), keeper.descriptors()
    path = program(ready)
    with pytest.raises(error, match=f"logs to.*{says}"):
        await box.run(both(uri(scheme, path)), "exit 0")
    await until(lambda: keeper.children() == children)
    await until(lambda: keeper.descriptors() == descriptors)


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
async def test_a_program_that_cannot_be_executed_is_refused(
    box: Box, tmp_path: Path, keeper: Keeper, scheme: str
) -> None:
    children = keeper.children()
    (tmp_path / "plain").write_text("no program")
    for name, says in (("missing", "No such file"), ("plain", "Permission denied")):
        for _ in range(20):  # the end of the pipe comes before the exit
            with pytest.raises(InvalidArgument, match=f"{name}.*{says}"):
                await box.run(both(uri(scheme, tmp_path / name)), "exit 0")
    await until(lambda: keeper.children() == children)


async def test_a_program_that_ignores_everything_is_killed(
    box: Box, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "END_PAUSE", 0.1)
    monkeypatch.setattr(logger, "TERM_LIMIT", 0.2)
    path = program("deaf")
    begin = time.monotonic()
    assert await box.done(both(uri("binary", path)), "exit 4") == 4
    assert time.monotonic() - begin > 0.3
    await until(lambda: is_gone(pid_of(path)))


async def test_cutting_kills_the_program(box: Box, program: Callable[[str], Path]) -> None:
    path = program("a byte")
    with box.builder(both(uri("binary", path))) as builder:
        await builder.open()
        builder.stdio.cut()
        await until(lambda: is_gone(pid_of(path)))


async def test_a_later_front_ends_the_program(
    keeper: Keeper,
    pool: BlockingPool,
    program: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logger, "END_PAUSE", 0.1)
    monkeypatch.setattr(logger, "TERM_LIMIT", 0.1)
    path = program("deaf")
    first = KeeperClient(keeper.front.channel.dup(), lambda: None)
    await first.begin()
    child, streams = await Box(first, pool).run(both(uri("binary", path)), "exec sleep 1000")
    state = streams.to_state()
    assert set(state) == {LOGGER}
    first.close()
    keeper.front.close()
    keeper.front = keeper.next_front()
    second = KeeperClient(keeper.front.channel.dup(), lambda: None)
    adopted = ProcessStdio(state, terminal=False)
    held = await second.begin()
    adopted.adopt(held)
    assert not is_gone(pid_of(path))
    await held.children[child.id].signal(signal.SIGKILL)
    await adopted.drain("the test")
    await until(lambda: is_gone(pid_of(path)))
    await until(lambda: len(keeper.children()) == 2)  # spawner and front
    second.close()


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """The master, non-blocking and to be taken, and the slave."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    try:
        yield master, slave
    finally:
        os.close(slave)


async def test_a_terminal_can_be_logged(box: Box, program: Callable[[str], Path]) -> None:
    path = program("a byte")
    stdio = Stdio(terminal=True, stdout=uri("binary", path))
    with box.builder(stdio) as builder, terminal() as (master, slave):
        await builder.open()
        child = await box.shell("stty -opost; echo typed", dict.fromkeys(range(3), slave))
        await builder.attach(master)
        builder.stdio.settle()
        await builder.stdio.resize(80, 24)
        await child.wait()
    builder.stdio.process_ended()
    await builder.stdio.drain("the test")
    assert beside(path, "3").read_text().endswith("typed\n")
    assert is_gone(pid_of(path))
