"""A daemon in a machine: started, waited for, stopped, killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.containerd.machine import Machine
from tests.containerd.support import PATIENCE, until


class Daemon:
    """A program that serves a unix socket and logs to a file in `folder`."""

    NAME = ""

    def __init__(self, machine: Machine, folder: Path, path: Sequence[Path] = ()) -> None:
        """`path`: directories that come first in the daemon's PATH."""
        self.machine = machine
        self.folder = folder
        self.address = folder / f"{self.NAME}.sock"
        self._log = folder / f"{self.NAME}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._path = ":".join([*map(str, path), os.environ["PATH"]])

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self._process is not None, f"{self.NAME} does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the daemon has logged, in all its lives."""
        return self._log.read_text(errors="replace")

    def command(self) -> Sequence[str]:
        """The daemon's command line."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether a client gets an answer."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """The daemon's environment: this process's, but for PATH."""
        return os.environ | {"PATH": self._path}

    def start(self) -> None:
        """Start it, and return when it answers."""
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.machine.inside("setpriv", "--pdeathsig", "KILL", *self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )
        until(lambda: self._has_ended() or self.is_ready(), f"{self.NAME} answers")
        assert not self._has_ended(), f"{self.NAME} has ended: {self.log[-2000:]}"

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """End it in good order; nothing happens when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without notice."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it and start it again; containers live on."""
        self.stop()
        self.start()

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
            self._process = None
