"""Reading the logs that the keeper writes (architecture: Logs)."""

from __future__ import annotations

from shim.logs.place import path_of
from shim.logs.reader import LogReader
from shim.logs.records import STDERR, Record
from shim.logs.since import parse_since
from shim.logs.watch import LogWatch

__all__ = ["STDERR", "LogReader", "LogWatch", "Record", "parse_since", "path_of"]
