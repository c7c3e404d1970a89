"""This project: a pair of processes for each container."""

from __future__ import annotations

from benchmarks.systems.base import Can
from benchmarks.systems.dense_host import DenseHost


class DenseDedicated(DenseHost):
    """Share = container (docs/containerd.md), by containerd's environment."""

    name = "dense_dedicated"
    title = "denseshim, dedicated"
    can = Can.OUTPUT | Can.TASKS | Can.LIFE
    most = 10  # each is three processes and some 40 MB
    slow = 10  # which are started for each

    def environment(self) -> dict[str, str]:
        return super().environment() | {"DENSESHIM_SHARE": "container"}
