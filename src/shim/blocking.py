"""Calls that may block for ever, kept away from the event loop.

A system call that hangs in the kernel cannot be interrupted: its thread is lost until the
kernel lets go. So threads are bounded, nothing waits for ever in a queue behind a stuck one, and
they are daemon threads: `concurrent.futures` joins its threads at exit and would hang there.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar, TypeVarTuple

from shim.errors import DeadlineExceeded, ResourceExhausted

SIZE = 32

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class BlockingPool:
    """At most SIZE threads, started as needed. All methods are for one event loop's thread."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._free = asyncio.Semaphore(SIZE)
        self._busy = 0  # calls whose function has not returned; each occupies a thread
        self._stuck = 0  # those of them for which nobody waits any more
        self._threads = 0

    async def run(
        self,
        what: str,
        limit_seconds: float,
        func: Callable[[*Ts], T],
        *args: *Ts,
        late: Callable[[T], object] | None = None,
    ) -> T:
        """Call `func(*args)` in a thread and return its result, or raise what it raised.

        `what` completes the sentence "cannot …" in errors. When nobody waits any more (the
        limit has passed, or the awaiting task was cancelled), a result that comes after all
        is given to `late`, in a thread as well, which owns it from then on.

        Many calls at once wait for each other. Raises DeadlineExceeded after `limit_seconds`;
        ResourceExhausted when no thread has become free by then, at once if all are stuck.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_seconds
        await self._reserve_thread(what, limit_seconds)
        call = _Call(what, functools.partial(func, *args), late)
        timer = loop.call_at(end, call.wake)
        self._submit(call)
        try:
            await call.awaited
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        finally:
            timer.cancel()
        if not call.ended:
            self._abandon(call)
            raise DeadlineExceeded(f"cannot {what}: no answer within {limit_seconds:g} s")
        return call.unwrap()

    def close(self) -> None:
        """Let idle threads end; those that are stuck end when the kernel lets go."""
        for _ in range(self._threads):
            self._work.put(None)
        self._threads = 0

    async def _reserve_thread(self, what: str, limit: float) -> None:
        if not self._free.locked():
            await self._free.acquire()  # at once
        else:
            await self._await_thread(what, limit)
        if self._threads <= self._busy and self._threads < SIZE:
            self._add_thread(what)

    async def _await_thread(self, what: str, limit: float) -> None:
        try:
            async with asyncio.timeout(limit if self._stuck < SIZE else 0):
                await self._free.acquire()
        except TimeoutError as error:
            raise ResourceExhausted(
                f"cannot {what}: all {SIZE} threads for blocking calls are waiting for the "
                "kernel; look for a file system that hangs"
            ) from error

    def _add_thread(self, what: str) -> None:
        try:
            threading.Thread(target=self._serve, name="blocking", daemon=True).start()
        except RuntimeError as error:
            self._free.release()
            raise ResourceExhausted(f"cannot {what}: {error}") from error
        self._threads += 1

    def _submit(self, call: _Call[T]) -> None:
        self._busy += 1
        self._work.put(functools.partial(self._perform, call))

    def _serve(self) -> None:
        """What a thread does."""
        while (work := self._work.get()) is not None:
            work()

    def _perform(self, call: _Call[T]) -> None:
        with call:
            call.value = call.func()
        try:
            call.loop.call_soon_threadsafe(self._finish, call)
        except RuntimeError:
            # The loop is closed, so nobody can be waiting.
            _log.warning("%s ended after the event loop", call.what)

    def _finish(self, call: _Call[T]) -> None:
        self._busy -= 1
        self._stuck -= call.stuck
        if call.reserved:
            self._free.release()
        call.ended = True
        call.wake()
        if call.abandoned:
            self._dispose(call)

    def _abandon(self, call: _Call[T]) -> None:
        call.abandoned = True
        if call.ended:
            self._dispose(call)
        else:
            call.stuck = True
            self._stuck += 1

    def _dispose(self, call: _Call[T]) -> None:
        """Nobody takes the outcome: clean up in a thread, for cleaning up may block as well.

        It is not refused when all threads are occupied, but then it waits for one.
        """
        if call.error is not None:
            _log.warning("%s failed after its caller had left: %s", call.what, call.error)
        elif call.late is not None:
            cleaning = functools.partial(call.late, call.unwrap())
            self._submit(_Call(f"clean up after: {call.what}", cleaning, None, reserved=False))


class _Call(Generic[T]):
    """One function on its way to a thread and back.

    As a context manager it takes the function's exception to whoever awaits the outcome;
    there is nobody else above a thread's function to take it. `value` and `error` belong to
    the thread until `ended` is set, all other fields to the loop.
    """

    def __init__(
        self,
        what: str,
        func: Callable[[], T],
        late: Callable[[T], object] | None,
        reserved: bool = True,
    ) -> None:
        self.what = what
        self.func = func
        self.late = late
        self.reserved = reserved  # a thread; otherwise nobody waits for it, either
        self.abandoned = not reserved
        self.stuck = False
        self.loop = asyncio.get_running_loop()
        self.ended = False
        self.awaited: asyncio.Future[None] = self.loop.create_future()
        self.value: T
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.error = error
        return True

    def wake(self) -> None:
        """Wake whoever waits, if anybody does."""
        if not self.awaited.done():
            self.awaited.set_result(None)

    def unwrap(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value
