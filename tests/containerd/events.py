"""The events of a containerd, as `ctr events` prints them."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.containerd.support import PATIENCE

_MARK = "/namespaces/update"


@dataclass(frozen=True)
class Event:
    """One event: its topic, and its fields."""

    topic: str
    fields: dict[str, Any]

    @classmethod
    def parse(cls, line: str) -> Event:
        """From a line: DATE TIME ZONE UTC NAMESPACE TOPIC FIELDS."""
        *_, topic, fields = line.split(" ", 6)[4:]
        return cls(topic, json.loads(fields))

    @property
    def container(self) -> str:
        """The id of the container it is about; "" when it is about none."""
        return str(self.fields.get("container_id", ""))

    @property
    def process(self) -> str:
        """The id of the exec it is about; "" for the container's init process."""
        id = self.fields.get("exec_id", self.fields.get("id", ""))
        return "" if id == self.container else str(id)

    @property
    def status(self) -> int:
        """The exit status: 0 is not printed."""
        return int(self.fields.get("exit_status", 0))


class EventLog:
    """Collects the events from when it is made until it is closed."""

    def __init__(self, command: Sequence[str], mark: Callable[[str], object]) -> None:
        """`command` prints events; `mark(TEXT)` causes one that contains the text.

        Returns when events come.
        """
        self._seen: list[Event] = []
        self._changed = threading.Condition()
        self._mark = mark
        self._marks = itertools.count()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()
        while not self._is_marked(limit=0.05):
            pass

    @property
    def pid(self) -> int:
        """The process that prints the events."""
        return self._process.pid

    def close(self) -> None:
        """Collect no more."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._seen.append(Event.parse(line.rstrip("\n")))
                self._changed.notify_all()

    def _is_marked(self, limit: float) -> bool:
        text = f"mark{next(self._marks)}"
        self._mark(text)

        def is_seen() -> bool:
            return any(e.topic == _MARK and text in str(e.fields) for e in self._seen)

        with self._changed:
            return self._changed.wait_for(is_seen, limit)

    def of(self, container: str) -> list[Event]:
        """The container's events up to now, in order."""
        with self._changed:
            return [event for event in self._seen if event.container == container]

    def wait_for(self, container: str, topic: str, count: int = 1) -> list[Event]:
        """The container's events, once `count` of the topic have come."""

        def are_there() -> bool:
            return sum(e.topic == topic for e in self._seen if e.container == container) >= count

        with self._changed:
            assert self._changed.wait_for(are_there, PATIENCE), f"no {topic}: {self._seen[-20:]}"
        return self.of(container)

    def settled(self, container: str) -> list[Event]:
        """The container's events, up to those that had been published before this call."""
        assert self._is_marked(PATIENCE)
        return self.of(container)
