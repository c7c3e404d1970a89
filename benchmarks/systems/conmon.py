"""What podman and CRI-O put between a runtime and a container's output."""

from __future__ import annotations

import json
import os
import shutil
import signal as signals
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.systems.base import Can, Running, System
from benchmarks.waiting import PATIENCE, until

if TYPE_CHECKING:
    from benchmarks.session import Session


class Conmon(System):
    """A process for each container; its log, of the format that Kubernetes has, is the FIFO."""

    name = "conmon"
    title = "conmon"
    can = Can.OUTPUT
    programs = ("containerd", "conmon", "runc")

    def run(
        self, session: Session, args: tuple[str, ...], terminal: bool, **streams: str
    ) -> Running:
        return Conmonned(session, args, terminal, streams.get("stdout", "/dev/null"))


class Conmonned:
    """A bundle, and the conmon that has run it."""

    def __init__(
        self, session: Session, args: tuple[str, ...], terminal: bool, client: str
    ) -> None:
        self._place = session.place
        self._id = session.new_id()
        bundle = session.place.folder / self._id
        self._outside = session.place.outside(bundle)
        self._outside.mkdir()
        config = session.spec(self._id, *args, terminal=terminal)
        (self._outside / "config.json").write_text(json.dumps(config))
        root = str(session.place.folder / "runc")
        self._runc = ["runc", "--root", root]
        self._conmon = self._start(session, bundle, root, client, terminal)
        self.pid = until(self._init_pid, f"the container {self._id}")
        session.place.run([[[*self._runc, "start", self._id]]])

    def _start(
        self, session: Session, bundle: Path, root: str, client: str, terminal: bool
    ) -> subprocess.Popen[bytes]:
        environment = session.system.environment()
        runc = shutil.which("runc", path=environment["PATH"])
        command = ["conmon", "--sync", "--no-sync-log", "--log-level", "warning"]
        command += ["--cid", self._id, "--cuuid", self._id, "--bundle", str(bundle)]
        command += ["--runtime", str(runc), "--runtime-arg", "--root", "--runtime-arg", root]
        command += ["--log-path", f"k8s-file:{client}", "--exit-dir", str(bundle)]
        command += ["--container-pidfile", str(bundle / "init.pid")]
        command += ["--socket-dir-path", str(bundle), *(["--terminal"] if terminal else [])]
        return session.place.start(command, self._outside / "conmon.log", environment)

    def _init_pid(self) -> int:
        """0: there is none yet. Raises ChildProcessError when there will be none."""
        if self._conmon.poll():
            log = (self._outside / "conmon.log").read_text(errors="replace")
            raise ChildProcessError(f"conmon has ended: {log[-500:]}")
        file = self._outside / "init.pid"
        return int(file.read_text() or 0) if file.exists() else 0

    def kill(self, signal: int = signals.SIGKILL) -> None:
        os.kill(self.pid, signal)

    def finish(self) -> int:
        """The exit status is in a file that conmon has written. Raises TimeoutExpired."""
        self._conmon.wait(PATIENCE)
        self._place.run([[[*self._runc, "delete", self._id]]])
        return int((self._outside / self._id).read_text())

    def remove(self) -> None:
        self.kill()
        self.finish()
