import asyncio
import os
import subprocess
import sys
import threading

import pytest

from shim import blocking
from shim.blocking import BlockingPool
from shim.errors import DeadlineExceeded, ResourceExhausted

SOON = 0.01
NEVER = 60


@pytest.fixture
def pool():
    pool = BlockingPool()
    yield pool
    pool.close()


class Gate:
    """A call that hangs until it is let go, and says that it has begun."""

    def __init__(self):
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, result=None):
        self.begun.set()
        self.open.wait()
        return result


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


async def test_the_result_comes_back(pool):
    assert await pool.run("add", NEVER, lambda a, b: a + b, 1, 2) == 3


async def test_it_runs_in_a_daemon_thread(pool):
    thread = await pool.run("look", NEVER, threading.current_thread)
    assert thread.daemon
    assert thread is not threading.current_thread()


async def test_what_the_function_raises_is_raised_here(pool):
    with pytest.raises(FileNotFoundError):
        await pool.run("open it", NEVER, os.open, "/missing", os.O_RDONLY)


async def test_one_after_another_takes_one_thread(pool):
    threads = {await pool.run("look", NEVER, threading.get_ident) for _ in range(5)}
    assert len(threads) == 1


async def test_a_late_result_goes_to_late_in_a_thread(pool, gate):
    loop, taken = asyncio.get_running_loop(), asyncio.Event()
    given = []

    def late(result):
        given.append((result, threading.current_thread() is threading.main_thread()))
        loop.call_soon_threadsafe(taken.set)

    with pytest.raises(DeadlineExceeded, match="cannot open the path"):
        await pool.run("open the path", SOON, gate, 42, late=late)
    assert given == []
    gate.open.set()
    await taken.wait()
    assert given == [(42, False)]


async def test_a_result_in_time_does_not_go_to_late(pool):
    given = []
    await pool.run("get 1", NEVER, int, "1", late=given.append)
    await pool.run("wait for the thread", NEVER, int)
    assert given == []


async def test_the_result_of_a_cancelled_call_goes_to_late(pool, gate):
    loop, given = asyncio.get_running_loop(), asyncio.Queue()
    late = lambda result: loop.call_soon_threadsafe(given.put_nowait, result)  # noqa: E731
    task = asyncio.create_task(pool.run("wait", NEVER, gate, 7, late=late))
    await asyncio.sleep(0)
    gate.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    assert await given.get() == 7


async def test_a_result_that_is_there_when_the_task_is_cancelled_is_not_lost(pool, gate):
    loop, given = asyncio.get_running_loop(), asyncio.Queue()
    late = lambda result: loop.call_soon_threadsafe(given.put_nowait, result)  # noqa: E731
    task = asyncio.create_task(pool.run("wait", NEVER, gate, 7, late=late))
    await asyncio.sleep(0)
    finish = pool._finish

    def finish_and_cancel(call):
        finish(call)
        task.cancel()

    pool._finish = finish_and_cancel
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await given.get() == 7


async def test_a_late_failure_is_logged(pool, gate, caplog):
    def fail():
        gate()
        raise OSError("gone wrong")

    with pytest.raises(DeadlineExceeded):
        await pool.run("do it", SOON, fail)
    gate.open.set()
    while "gone wrong" not in caplog.text:
        await pool.run("take a turn", NEVER, int)


async def test_more_calls_than_threads_wait_for_each_other(pool):
    """A crowd that comes at once is no sign that anything hangs."""
    calls = [pool.run("look", NEVER, threading.get_ident) for _ in range(5 * blocking.SIZE)]
    assert len(set(await asyncio.gather(*calls))) <= blocking.SIZE


async def test_a_call_without_a_thread_is_refused_at_its_limit(pool, gate):
    stuck = [asyncio.create_task(pool.run("wait", NEVER, gate, n)) for n in range(blocking.SIZE)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="cannot open another"):
        await pool.run("open another", SOON, int)
    waiting = asyncio.create_task(pool.run("wait for its turn", NEVER, int))
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(*stuck) == list(range(blocking.SIZE))
    assert await waiting == 0


async def test_when_all_threads_are_stuck_calls_are_refused_at_once(pool, gate):
    calls = [pool.run("wait", SOON, gate) for _ in range(blocking.SIZE)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {DeadlineExceeded}
    with pytest.raises(ResourceExhausted):
        await pool.run("go on", NEVER, int)


def test_a_stuck_thread_does_not_keep_the_process_alive():
    program = """
import asyncio, threading
from shim.blocking import BlockingPool
from shim.errors import DeadlineExceeded
async def main():
    try:
        await BlockingPool().run("wait", 0.01, threading.Event().wait)
    except DeadlineExceeded:
        print("over")
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("over\n", "")


async def test_close_ends_idle_threads():
    pool = BlockingPool()
    thread = await pool.run("look", NEVER, threading.current_thread)
    pool.close()
    thread.join(NEVER)
    assert not thread.is_alive()
