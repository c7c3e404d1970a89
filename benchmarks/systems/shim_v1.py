"""containerd's shim of before, which 1.6 still has."""

from __future__ import annotations

from benchmarks.systems.base import Can, System


class ShimV1(System):
    """`containerd-shim`."""

    name = "shim_v1"
    title = "containerd-shim"
    can = Can.OUTPUT | Can.TASKS | Can.LIFE | Can.CROWD
    runtime = "io.containerd.runtime.v1.linux"
    programs = ("containerd", "containerd-shim", "runc", "ctr")
