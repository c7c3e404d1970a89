"""Metrics of a host with cgroup v2 alone: one directory has everything."""

from __future__ import annotations

from typing import Final

from shim._pb.io.containerd.cgroups.v2 import metrics_pb2 as pb
from shim.metrics.files import Files, huge_page_sizes

# Fields that the kernel calls by the same names.
_CPU: Final = frozenset(pb.CPUStat.DESCRIPTOR.fields_by_name) - {"psi"}
_MEMORY: Final = frozenset(pb.MemoryStat.DESCRIPTOR.fields_by_name) - {"psi"}
_EVENTS: Final = frozenset(pb.MemoryEvents.DESCRIPTOR.fields_by_name)
_IO: Final = ("rbytes", "wbytes", "rios", "wios")


def read(files: Files, directory: str) -> pb.Metrics:
    """Every part is set, as containerd's own command line expects; absent files leave fields out.

    Raises OSError for what is neither readable nor absent.
    """
    at = f"{directory}/"
    return pb.Metrics(
        pids=pb.PidsStat(
            current=files.number(at + "pids.current"), limit=files.number(at + "pids.max")
        ),
        cpu=pb.CPUStat(
            **files.named(at + "cpu.stat", _CPU), psi=_pressure(files, at + "cpu.pressure")
        ),
        memory=_memory(files, at),
        rdma=pb.RdmaStat(
            current=files.rdma(at + "rdma.current", pb.RdmaEntry),
            limit=files.rdma(at + "rdma.max", pb.RdmaEntry),
        ),
        io=pb.IOStat(usage=_io(files, at), psi=_pressure(files, at + "io.pressure")),
        hugetlb=_huge_pages(files, at),
        memory_events=pb.MemoryEvents(**files.named(at + "memory.events", _EVENTS)),
    )


def _memory(files: Files, at: str) -> pb.MemoryStat:
    return pb.MemoryStat(
        **files.named(at + "memory.stat", _MEMORY),
        usage=files.number(at + "memory.current"),
        usage_limit=files.number(at + "memory.max"),
        swap_usage=files.number(at + "memory.swap.current"),
        swap_limit=files.number(at + "memory.swap.max"),
        max_usage=files.number(at + "memory.peak"),
        swap_max_usage=files.number(at + "memory.swap.peak"),
        psi=_pressure(files, at + "memory.pressure"),
    )


def _io(files: Files, at: str) -> list[pb.IOEntry]:
    found = []
    for device, values in files.nested(at + "io.stat"):
        major, minor = map(int, device.split(":"))
        counts = {name: int(values[name]) for name in _IO if name in values}
        found.append(pb.IOEntry(major=major, minor=minor, **counts))
    return found


def _huge_pages(files: Files, at: str) -> list[pb.HugeTlbStat]:
    found = []
    for size in huge_page_sizes():
        current = files.number(f"{at}hugetlb.{size}.current")
        if current is not None:
            limit = files.number(f"{at}hugetlb.{size}.max")
            found.append(pb.HugeTlbStat(current=current, max=limit, pagesize=size))
    return found


def _pressure(files: Files, path: str) -> pb.PSIStats | None:
    """None on a kernel that measures no pressure."""
    found = {kind: _stalled(values) for kind, values in files.nested(path)}
    return pb.PSIStats(some=found.get("some"), full=found.get("full")) if found else None


def _stalled(values: dict[str, str]) -> pb.PSIData:
    return pb.PSIData(
        avg10=float(values["avg10"]),
        avg60=float(values["avg60"]),
        avg300=float(values["avg300"]),
        total=int(values["total"]),
    )
