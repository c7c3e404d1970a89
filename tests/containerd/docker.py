"""dockerd over a containerd, and what `docker` does with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.containerd.containerd import Containerd, Result, finish
from tests.containerd.daemon import Daemon
from tests.containerd.support import is_alive, new_id, until
from tests.containerd.terminal import Terminal

IMAGE = "denseshim"


class Docker(Daemon):
    """dockerd without networks of its own; its containers outlive it."""

    NAME = "dockerd"

    def __init__(self, containerd: Containerd, folder: Path) -> None:
        super().__init__(containerd.machine, folder)
        self.containerd = containerd
        # The cgroup above all containers'.
        self.cgroup = new_id()

    def command(self) -> Sequence[str]:
        return [
            "dockerd",
            "--live-restore",
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            f"--containerd={self.containerd.address}",
            f"--cgroup-parent=/{self.cgroup}",
            f"--data-root={self.folder}/docker",
            f"--exec-root={self.folder}/docker-exec",
            f"--pidfile={self.folder}/dockerd.pid",
            f"--host=unix://{self.address}",
        ]

    def is_ready(self) -> bool:
        return self.docker("version").returncode == 0

    def line(self, *args: str) -> list[str]:
        """The command line of a docker."""
        return ["docker", "--host", f"unix://{self.address}", *args]

    def run_line(self, *command: str, options: Sequence[str] = ("--rm",)) -> list[str]:
        """The command line of a `docker run`."""
        return self.line("run", "--network=none", *options, IMAGE, *command)

    def docker(self, *args: str) -> Result:
        """Run docker to its end, whatever its status."""
        return finish(self.line(*args))

    def do(self, *args: str) -> str:
        """What docker prints, without the line's end; it must succeed."""
        done = self.docker(*args)
        assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr.decode()}"
        return done.stdout.decode().rstrip("\n")

    def run(self, *command: str, options: Sequence[str] = ()) -> Result:
        """Run a container to its end, and remove it."""
        return finish(self.run_line(*command, options=["--rm", *options]))

    def terminal(self, *command: str) -> Terminal:
        """Run a container on a terminal."""
        return Terminal(self.run_line(*command, options=["--rm", "-it"]))

    @contextlib.contextmanager
    def living(self, *command: str, options: Sequence[str] = ()) -> Iterator[str]:
        """The id of a container in the background, which is gone after the block."""
        line = self.run_line(*(command or ("sleep", "1000")), options=["--detach", *options])
        done = finish(line)
        assert done.returncode == 0, done.stderr.decode()
        id = done.stdout.decode().strip()
        try:
            yield id
        finally:
            self.do("rm", "--force", id)

    def inspect(self, id: str) -> dict[str, Any]:
        """All that docker knows of a container."""
        found = json.loads(self.do("inspect", id))
        return dict(found[0])

    def state(self, id: str) -> dict[str, Any]:
        """How a container is."""
        return dict(self.inspect(id)["State"])

    def wait_exited(self, id: str) -> dict[str, Any]:
        """The container's state once it has ended for good."""
        until(lambda: self.state(id)["Status"] == "exited", f"{id} has exited")
        return self.state(id)

    def remove_all(self) -> None:
        """Remove the containers that a failed test has left."""
        for id in self.do("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", id)

    def cgroup_file(self, id: str, v1: str, v2: str) -> str:
        """What the container's cgroup says: in controller/file `v1`, or in `v2`."""
        old = Path("/sys/fs/cgroup", v1.split("/")[0], self.cgroup, id, v1.split("/")[-1])
        new = Path("/sys/fs/cgroup", self.cgroup, id, v2)
        return (old if old.exists() else new).read_text().strip()


@contextlib.contextmanager
def serving(containerd: Containerd, folder: Path) -> Iterator[Docker]:
    """A dockerd over `containerd` that has the image."""
    docker = Docker(containerd, folder)
    docker.start()
    try:
        layer = str(containerd.rootfs.layer)
        docker.do("import", "--change", "ENV PATH=/bin", layer, IMAGE)
        # What a first container leaves for the next ones, such as its cgroup's parent, is made.
        assert docker.run("true").returncode == 0
        yield docker
        docker.remove_all()
    finally:
        pid = docker.pid
        docker.stop()
        assert not is_alive(pid)
