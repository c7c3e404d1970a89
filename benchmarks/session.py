"""One system at work: containerd in a place of its own, containers, and what they cost."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.accounting import cpu_of
from benchmarks.daemon import Daemon
from benchmarks.place import CONTAINERS, Place, Step
from benchmarks.systems.base import Can, Running, System
from shim.oci.spec import process, spec

# How many calls to containerd are under way at once while many containers are made or removed.
_AT_ONCE: Final = 8


class Container:
    """A container of a session's, told to containerd; `create` makes its task."""

    def __init__(self, session: Session, id: str) -> None:
        self._session = session
        self.id = id
        self.pid = 0  # its init process's, from `create` on

    def create(self, **streams: Any) -> int:
        """Create the task (Api.create); its pid."""
        self.pid = self._session.api.create(self.id, **streams)
        return self.pid

    def start(self) -> int:
        return self._session.api.start(self.id)

    def kill(self, signal: int = 9) -> None:
        self._session.api.kill(self.id, signal)

    def wait(self) -> int:
        return self._session.api.wait(self.id)

    def delete(self) -> int:
        """Delete the task, and forget the container; the exit status."""
        status = self._session.api.delete(self.id)
        self._session.api.delete_container(self.id)
        return status

    def finish(self) -> int:
        """Wait for its end, and delete it; the exit status."""
        self.wait()
        return self.delete()

    def remove(self) -> None:
        """End a running task, and delete it."""
        self.kill()
        self.finish()


class Session:
    """A containerd that serves one system. To be closed, which leaves nothing of it."""

    def __init__(self, system: System, folder: Path, rootfs: Path) -> None:
        """Starts containerd in a place in `folder`; all containers have the directory `rootfs`."""
        self.system = system
        self.rootfs = rootfs
        self.crowd = Crowd(self)
        self._numbers = itertools.count()
        with contextlib.ExitStack() as undo:
            self.place = Place(folder)
            undo.callback(self.place.close)
            self.daemon = Daemon(self.place, system.containerd, system.environment())
            self.api = self.daemon.start()
            undo.callback(lambda: self.api.close())
            undo.callback(self.daemon.stop)
            if Can.OUTPUT in system.can:
                self.run("true").finish()
            self._undo = undo.pop_all()

    def close(self) -> None:
        """End it all."""
        self._undo.close()

    def at_end(self, close: Callable[[], object]) -> None:
        """Call this when the session ends, before anything of it has."""
        self._undo.callback(close)

    def new_id(self) -> str:
        """An id that no other container of this machine has."""
        return f"{self.place.group.name}-{next(self._numbers)}"

    def fifo(self) -> Path:
        """A new FIFO; its path is one of the place: see `place.outside`."""
        path = self.place.folder / f"fifo-{next(self._numbers)}"
        os.mkfifo(self.place.outside(path))
        return path

    def container(self, *args: str, terminal: bool = False) -> Container:
        """A container that will run `args`."""
        id = self.new_id()
        config = self.spec(id, *args, terminal=terminal)
        self.api.create_container(id, self.system.runtime, config)
        return Container(self, id)

    def run(self, *args: str, terminal: bool = False, **streams: str) -> Running:
        """A container that runs `args`; `streams`: stdin, stdout, stderr, paths of FIFOs."""
        return self.system.run(self, args, terminal, **streams)

    def spec(self, id: str, *args: str, terminal: bool = False) -> dict[str, Any]:
        """A container's configuration; without a network, whose end the kernel takes long for."""
        config = spec(id, args, rootfs=str(self.rootfs), terminal=terminal)
        namespaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [row for row in namespaces if row["type"] != "network"]
        config["linux"]["cgroupsPath"] = f"/{CONTAINERS}/{id}"
        return config

    def process(self, *args: str) -> dict[str, Any]:
        """An exec's configuration."""
        return process(args)

    def stop(self) -> None:
        """Stop containerd, and prepare the next one; containers live on."""
        self.api.close()
        self.daemon.stop()
        self.daemon.prepare()

    def start(self) -> None:
        """Start a stopped containerd again; returns when it answers."""
        self.api = self.daemon.start()

    def life(self) -> list[Step]:
        """The commands of a whole container's life, for `place.run`."""
        return self.system.life(self)

    def shims(self) -> set[int]:
        """All processes between containerd and the containers."""
        others = self.place.containers.pids() | self.place.group.below("clients").pids()
        return self.place.group.pids() - others - {self.daemon.pid}

    def cpu(self) -> float:
        """CPU seconds of everything so far: clients, containerd, shims, runtime, containers."""
        return self.place.group.cpu() - cpu_of(self.place.agent_pid)

    def shim_cpu(self) -> float:
        """CPU seconds so far of what is between containerd and containers: shims and runtime.

        Ended processes count. `clients` must be idle meanwhile.
        """
        containers = self.place.containers.cpu()
        return self.cpu() - containers - cpu_of(self.daemon.pid)

    def kernel_memory(self) -> int:
        """Bytes of kernel memory of everything but the containers."""
        return self.place.group.kernel_memory() - self.place.containers.kernel_memory()


class Crowd:
    """Containers that sleep, as many as are asked for; workloads of a stage have it in common."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.containers: list[Running] = []

    def resize(self, count: int) -> None:
        """Start or remove containers, several at once, until there are `count`."""
        more = count - len(self.containers)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            new = [pool.submit(self._session.run, "sleep", "100000") for _ in range(more)]
            self.containers.extend(future.result() for future in new)
            surplus = self.containers[count:]
            del self.containers[count:]
            for _ in pool.map(lambda each: each.remove(), surplus):
                pass

    def bury(self, containers: Iterable[Container]) -> None:
        """Delete containers that have ended, several at once."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(Container.finish, containers):
                pass

    def take(self, count: int) -> list[Container]:
        """These belong to the crowd no more, and are started if need be."""
        self.resize(max(count, len(self.containers)))
        taken = self.containers[:count]
        del self.containers[:count]
        return [each for each in taken if isinstance(each, Container)]
