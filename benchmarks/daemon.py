"""A containerd with directories, a socket, cgroups and mounts of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import grpc

from benchmarks.api import Api
from benchmarks.place import Place, go
from benchmarks.waiting import PATIENCE, until

_CONFIG: Final = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{address}"
[debug]
  level = "warn"
"""


class Daemon:
    """Paths are those inside the place; its directories are on a tmpfs: no disk is measured."""

    def __init__(self, place: Place, program: str, environment: Mapping[str, str]) -> None:
        self._place = place
        self._program = program
        self._environment = environment
        self.address = place.folder / "containerd.sock"
        self.state = place.folder / "state"
        self._config = place.folder / "containerd.toml"
        text = _CONFIG.format(folder=place.folder, address=self.address)
        place.outside(self._config).write_text(text)
        self._log = place.outside(place.folder / "containerd.log")
        self._prepared: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """containerd's."""
        assert self._process is not None
        return self._process.pid

    def prepare(self) -> None:
        """Do before `start` what is no part of containerd's own start."""
        command = [self._program, "--config", str(self._config)]
        self._prepared = self._place.prepare(command, self._log, self._environment)

    def start(self) -> Api:
        """Start it; a connection, once it answers. Raises NotInTime, ChildProcessError."""
        if self._prepared is None:
            self.prepare()
        assert self._prepared is not None
        self._process, self._prepared = go(self._prepared), None
        socket = self._place.outside(self.address)
        until(lambda: self._has_ended() or socket.exists(), "containerd's socket")
        api = Api(socket)
        until(lambda: self._has_ended() or _answers(api), "containerd's answer")
        if self._has_ended():
            api.close()
            log = self._log.read_text(errors="replace")[-2000:]
            raise ChildProcessError(f"{self._program} has ended: {log}")
        return api

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """End it in good order; shims and containers live on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE)
            self._process = None
            self._place.outside(self.address).unlink(missing_ok=True)


def _answers(api: Api) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bool(api.version())
    return False


def path_with(*folders: Path) -> dict[str, str]:
    """This process's environment with these directories first in PATH."""
    return os.environ | {"PATH": ":".join([*map(str, folders), os.environ["PATH"], "/usr/sbin"])}


def program_version(program: str) -> str:
    """What `program --version` prints first; "" when there is none."""
    if not shutil.which(program):
        return ""
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().splitlines()[0]
