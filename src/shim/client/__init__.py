"""Clients of a shim and of a host, for the command line, benchmarks and other programs."""

from shim.client.calls import EventStream, ShimClient
from shim.client.exits import ExitWatch
from shim.client.follow import follow_events
from shim.client.host import HostClient
from shim.client.start import StartedShim, start_shim
from shim.client.steady import once, steadily
from shim.client.task import TaskClient

__all__ = [
    "EventStream",
    "ExitWatch",
    "HostClient",
    "ShimClient",
    "StartedShim",
    "TaskClient",
    "follow_events",
    "once",
    "start_shim",
    "steadily",
]
