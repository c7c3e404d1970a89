"""Runtimes that are runc, but for one of its commands."""

from __future__ import annotations

from pathlib import Path

from tests.containerd.support import until


class Runtime:
    """A script that runs `commands` in runc's place when it is to do `command`."""

    def __init__(self, folder: Path, command: str, script: str) -> None:
        self.path = folder / "runtime"
        self.path.write_text(
            f'#!/bin/sh\ncase " $* " in\n*" {command} "*)\n{script}\n;;\nesac\nexec runc "$@"\n'
        )
        self.path.chmod(0o755)

    @property
    def options(self) -> list[str]:
        """ctr's options that make the shim call it."""
        config = self.path.with_suffix(".toml")
        config.write_text(f"BinaryName = '{self.path}'\n")
        return ["--runtime-config-path", str(config)]


class Gate(Runtime):
    """It stops once: before its command `command`, or after it."""

    def __init__(self, folder: Path, command: str, moment: str = "before") -> None:
        self._armed, self._reached, self._opened = (
            folder / f"runtime.{name}" for name in ("armed", "reached", "opened")
        )
        self._armed.touch()
        stop = (
            f"rm {self._armed}; : > {self._reached}; "
            f"until [ -e {self._opened} ]; do sleep 0.01; done"
        )
        before, after = (stop, "") if moment == "before" else ("", stop)
        super().__init__(
            folder,
            command,
            f'if [ -e {self._armed} ]; then\n{before}\nrunc "$@"\nstatus=$?\n{after}\n'
            "exit $status\nfi",
        )

    def reached(self) -> None:
        """Return when the command has stopped."""
        until(self._reached.exists, "the runtime's command")

    def open(self) -> None:
        """Let it go on."""
        self._opened.touch()
