"""Which containers the kernel has killed something in for want of memory.

One watcher serves all containers of a front, with few descriptors and no timer. cgroup v2 shares
one inotify instance, whose watches say which memory.events has changed. cgroup v1 has eventfds
(the kernel's memory document, "OOM Control"), which do not say who rang; a few cgroups share
each, and all of them are looked at. The kernel's count of kills is cumulative, so that whoever
keeps what was told misses nothing while no front is there. v1 does not count, for a container,
kills in cgroups that it has made inside its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Final

from shim import syscalls
from shim.cgroup import UNIFIED, content, counters

_EVENT: Final = struct.Struct("=iIII")  # inotify(7): watch, mask, cookie, length of a name
_QUEUE: Final = 65536  # bytes; a read gives whole events
# Eventfds, at most. A cgroup's removal rings, too, and costs those that share the eventfd a look.
_BELLS: Final = 64
# Seconds from a ring to the first further look, and from one to the next.
_LOOKS: Final = (0.01, 0.1, 0.5, 2.0)
_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})

Told = Callable[[Hashable, int], None]
Look = Callable[[Collection[Hashable], int], None]


class OomWatcher:
    """Tells of kills in all containers that are watched; belongs to the running event loop.

    `told(key, count)` is called on the loop with the number of kills since the cgroup was made,
    whenever that is more than was known.
    """

    def __init__(self, told: Told) -> None:
        self._told = told
        self._watched: dict[Hashable, _Watched] = {}
        self._bells: list[_Bell] = []
        self._inotify: _Inotify | None = None

    def watch(self, key: Hashable, paths: Mapping[str, str], known: int) -> None:
        """Watch the cgroup at `paths` (see `cgroup.locate`), of which `known` kills were told.

        What is more is told before this returns. A cgroup that is gone, or has no memory
        controller, is never told of. Raises OSError when the kernel refuses: ENOSPC and EMFILE
        are the user's limits of inotify, EMFILE also the process's of descriptors.
        """
        self.unwatch(key)
        if UNIFIED in paths:
            watched, listen = _Watched(f"{paths[UNIFIED]}/memory.events", known), self._listen_v2
        elif "memory" in paths:
            watched, listen = (
                _Watched(f"{paths['memory']}/memory.oom_control", known),
                self._listen_v1,
            )
        else:
            return
        self._watched[key] = watched
        try:
            listen(key, watched)
        except OSError as error:
            if error.errno not in _GONE:
                self.unwatch(key)
                raise
        self._look([key])

    def check(self, key: Hashable) -> int:
        """How many kills there have been until now; 0 if the cgroup is gone, or not watched.

        Tells nothing. Raises OSError if the counter cannot be read.
        """
        watched = self._watched.get(key)
        return watched.count() if watched else 0

    def unwatch(self, key: Hashable) -> None:
        """Forget `key`, if it is watched."""
        watched = self._watched.pop(key, None)
        if watched is None:
            return
        if watched.bell is not None:
            watched.bell.keys.discard(key)
            if not watched.bell.keys:
                self._bells.remove(watched.bell)
                watched.bell.close()
        elif watched.number is not None and self._inotify is not None:
            self._inotify.unwatch(key, watched.number)

    def close(self) -> None:
        """Watch nothing any more; every descriptor is closed."""
        for key in list(self._watched):
            self.unwatch(key)
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _listen_v2(self, key: Hashable, watched: _Watched) -> None:
        if self._inotify is None:
            self._inotify = _Inotify(self._look)
        watched.number = self._inotify.watch(key, watched.path)

    def _listen_v1(self, key: Hashable, watched: _Watched) -> None:
        if len(self._bells) < _BELLS:
            self._bells.append(_Bell(self._look))
        watched.bell = min(self._bells, key=lambda bell: len(bell.keys))
        watched.bell.keys.add(key)
        watched.bell.listen_to(watched.path)

    def _look(self, keys: Collection[Hashable], uncounted: int = 0) -> None:
        for key in list(keys):  # who is told may stop watching
            watched = self._watched.get(key)
            count = watched.count(uncounted) if watched else 0
            if watched and count > watched.known:
                watched.known = count
                self._told(key, count)


@dataclass
class _Watched:
    """A container's counting file, what was told of it, and what tells of changes, if anything."""

    path: str
    known: int
    bell: _Bell | None = None
    number: int | None = None  # of an inotify watch

    def count(self, uncounted: int = 0) -> int:
        """Kills since the cgroup was made; 0 if it, or the controller, is gone.

        A kernel before 4.14 does not count for v1: then `uncounted` are added to what is known.
        """
        text = content(self.path)
        return counters(text).get("oom_kill", self.known + uncounted) if text else 0


class _Bell:
    """An eventfd that several cgroups of v1 ring, until it is closed.

    The kernel rings when it is about to kill, and counts when it has: after each ring there are
    some further looks.
    """

    def __init__(self, look: Look) -> None:
        self.keys: set[Hashable] = set()
        self._look = look
        self._further: asyncio.TimerHandle | None = None
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def listen_to(self, path: str) -> None:
        """Be rung by the cgroup whose memory.oom_control is at `path`. Raises OSError."""
        control = os.open(path, os.O_RDONLY)
        try:
            orders = os.open(f"{os.path.dirname(path)}/cgroup.event_control", os.O_WRONLY)
            try:
                os.write(orders, f"{self._descriptor} {control}".encode())
            finally:
                os.close(orders)
        finally:
            os.close(control)

    def close(self) -> None:
        if self._further is not None:
            self._further.cancel()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        os.eventfd_read(self._descriptor)
        self._look_further(0)
        self._look(self.keys, 1)  # last: it may close this bell

    def _look_further(self, turn: int) -> None:
        if self._further is not None:
            self._further.cancel()
        if turn < len(_LOOKS):
            self._further = self._loop.call_later(_LOOKS[turn], self._look_again, turn)

    def _look_again(self, turn: int) -> None:
        self._look_further(turn + 1)
        self._look(self.keys, 0)


class _Inotify:
    """The one inotify instance, and who each watch is for."""

    def __init__(self, changed: Look) -> None:
        self._changed = changed
        self._keys: dict[int, set[Hashable]] = {}  # by the watch's number; a cgroup has one watch
        self._descriptor = syscalls.inotify()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def watch(self, key: Hashable, path: str) -> int:
        """Return the watch's number. Raises OSError."""
        number = syscalls.inotify_watch(self._descriptor, path, syscalls.IN_MODIFY)
        self._keys.setdefault(number, set()).add(key)
        return number

    def unwatch(self, key: Hashable, number: int) -> None:
        keys = self._keys.get(number)
        if keys is None:
            return  # it has ended with its file
        keys.discard(key)
        if not keys:
            del self._keys[number]
            self._end(number)

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _end(self, number: int) -> None:
        try:
            syscalls.inotify_unwatch(self._descriptor, number)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it has ended with its file, and this is unread yet
                raise

    def _read(self) -> None:
        changed: set[Hashable] = set()
        # The watched files are no directories: events come without names.
        for number, mask, _, _ in _EVENT.iter_unpack(os.read(self._descriptor, _QUEUE)):
            if mask & syscalls.IN_Q_OVERFLOW:
                changed.update(*self._keys.values())
            elif mask & syscalls.IN_IGNORED:
                self._keys.pop(number, None)
            else:
                changed |= self._keys.get(number, set())
        self._changed(changed, 0)
