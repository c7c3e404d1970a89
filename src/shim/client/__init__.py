"""A client of the Shim service, for the command line, benchmarks and other programs."""

from shim.client.calls import EventStream, ShimClient
from shim.client.exits import ExitWatch
from shim.client.follow import follow_events
from shim.client.start import StartedShim, start_shim
from shim.client.steady import steadily

__all__ = [
    "EventStream",
    "ExitWatch",
    "ShimClient",
    "StartedShim",
    "follow_events",
    "start_shim",
    "steadily",
]
