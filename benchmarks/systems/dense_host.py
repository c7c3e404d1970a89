"""This project: one host for all containers."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.systems.base import Can, System


class DenseHost(System):
    """`containerd-shim-dense-v2` of the environment that runs the harness."""

    name = "dense_host"
    title = "denseshim, host"
    can = Can.OUTPUT | Can.TASKS | Can.LIFE | Can.CROWD
    runtime = "io.containerd.dense.v2"
    programs = ("containerd", "runc", "ctr")
    folders = (Path(sys.executable).parent,)
