"""containerd's own shim of today: a process in Go for each container."""

from __future__ import annotations

from benchmarks.systems.base import Can, System


class RuncV2(System):
    """`containerd-shim-runc-v2`."""

    name = "runc_v2"
    title = "containerd-shim-runc-v2"
    can = Can.OUTPUT | Can.TASKS | Can.LIFE | Can.CROWD
    runtime = "io.containerd.runc.v2"
    programs = ("containerd", "containerd-shim-runc-v2", "runc", "ctr")
