"""Metrics of a host that has controllers of cgroup v1, each with a directory of its own.

Block IO comes from the throttling layer, which sees every device; the kernels that the shim runs
on have no scheduler that would fill the other counters.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shim._pb.io.containerd.cgroups.v1 import metrics_pb2 as pb
from shim.metrics.files import Files, huge_page_sizes

_TICK: Final = 10**9 // os.sysconf("SC_CLK_TCK")  # nanoseconds

# The kernel's names in memory.stat, where the field is called otherwise.
_RENAMED: Final = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_NO_COUNTS: Final = {"usage", "swap", "kernel", "kernel_tcp"}
_MEMORY: Final = {
    name: name for name in pb.MemoryStat.DESCRIPTOR.fields_by_name if name not in _NO_COUNTS
} | _RENAMED
_OOM: Final = frozenset(pb.MemoryOomControl.DESCRIPTOR.fields_by_name)


def read(files: Files, paths: Mapping[str, str]) -> pb.Metrics:
    """The parts of all controllers that are in `paths`; absent files leave fields out.

    Raises OSError for what is neither readable nor absent.
    """
    at = {controller: f"{path}/" for controller, path in paths.items()}
    metrics = pb.Metrics()
    if "pids" in at:
        metrics.pids.CopyFrom(_pids(files, at["pids"]))
    if "cpu" in at or "cpuacct" in at:
        metrics.cpu.CopyFrom(_cpu(files, at))
    if "memory" in at:
        metrics.memory.CopyFrom(_memory(files, at["memory"]))
        metrics.memory_oom_control.CopyFrom(_oom(files, at["memory"]))
    if "blkio" in at:
        metrics.blkio.CopyFrom(_block_io(files, at["blkio"]))
    if "rdma" in at:
        metrics.rdma.CopyFrom(_rdma(files, at["rdma"]))
    if "hugetlb" in at:
        metrics.hugetlb.extend(_huge_pages(files, at["hugetlb"]))
    return metrics


def _pids(files: Files, at: str) -> pb.PidsStat:
    """Readers of v1 know a missing limit as 0."""
    limit = files.number(at + "pids.max", without_limit=0)
    return pb.PidsStat(current=files.number(at + "pids.current"), limit=limit)


def _cpu(files: Files, at: Mapping[str, str]) -> pb.CPUStat:
    usage, throttling = pb.CPUUsage(), pb.Throttle()
    if "cpuacct" in at:
        usage = _cpu_usage(files, at["cpuacct"])
    if "cpu" in at:
        counts = files.counters(at["cpu"] + "cpu.stat")
        throttling = pb.Throttle(
            periods=counts.get("nr_periods"),
            throttled_periods=counts.get("nr_throttled"),
            throttled_time=counts.get("throttled_time"),
        )
    return pb.CPUStat(usage=usage, throttling=throttling)


def _cpu_usage(files: Files, at: str) -> pb.CPUUsage:
    ticks = files.counters(at + "cpuacct.stat")
    return pb.CPUUsage(
        total=files.number(at + "cpuacct.usage"),
        kernel=ticks.get("system", 0) * _TICK,
        user=ticks.get("user", 0) * _TICK,
        per_cpu=map(int, files.text(at + "cpuacct.usage_percpu").split()),
    )


def _memory(files: Files, at: str) -> pb.MemoryStat:
    counts = files.counters(at + "memory.stat")
    known = {_MEMORY[name]: value for name, value in counts.items() if name in _MEMORY}
    return pb.MemoryStat(
        **known,
        usage=_entry(files, at + "memory."),
        swap=_entry(files, at + "memory.memsw."),
        kernel=_entry(files, at + "memory.kmem."),
        kernel_tcp=_entry(files, at + "memory.kmem.tcp."),
    )


def _entry(files: Files, prefix: str) -> pb.MemoryEntry:
    limit = files.number(prefix + "limit_in_bytes")
    if limit is None:
        return pb.MemoryEntry()  # a kernel that does not count this kind at all
    return pb.MemoryEntry(
        limit=limit,
        usage=files.number(prefix + "usage_in_bytes"),
        max=files.number(prefix + "max_usage_in_bytes"),
        failcnt=files.number(prefix + "failcnt"),
    )


def _oom(files: Files, at: str) -> pb.MemoryOomControl:
    return pb.MemoryOomControl(**files.named(at + "memory.oom_control", _OOM))


def _block_io(files: Files, at: str) -> pb.BlkIOStat:
    return pb.BlkIOStat(
        io_service_bytes_recursive=_blocks(files, at + "blkio.throttle.io_service_bytes"),
        io_serviced_recursive=_blocks(files, at + "blkio.throttle.io_serviced"),
    )


def _blocks(files: Files, path: str) -> list[pb.BlkIOEntry]:
    """Lines MAJOR:MINOR OPERATION NUMBER, and a last one with the total."""
    found = []
    for line in files.text(path).decode().splitlines():
        device, *rest = line.split()
        if device != "Total":
            major, minor = map(int, device.split(":"))
            op, value = rest
            name = _device(device)
            found.append(
                pb.BlkIOEntry(op=op, device=name, major=major, minor=minor, value=int(value))
            )
    return found


def _device(number: str) -> str:
    """The path of a block device, "" when it is gone; a number can mean another one later."""
    try:
        return "/dev/" + Path(f"/sys/dev/block/{number}").readlink().name
    except FileNotFoundError:
        return ""


def _rdma(files: Files, at: str) -> pb.RdmaStat:
    return pb.RdmaStat(
        current=files.rdma(at + "rdma.current", pb.RdmaEntry),
        limit=files.rdma(at + "rdma.max", pb.RdmaEntry),
    )


def _huge_pages(files: Files, at: str) -> list[pb.HugetlbStat]:
    found = []
    for size in huge_page_sizes():
        usage = files.number(f"{at}hugetlb.{size}.usage_in_bytes")
        if usage is not None:
            most = files.number(f"{at}hugetlb.{size}.max_usage_in_bytes")
            failures = files.number(f"{at}hugetlb.{size}.failcnt")
            found.append(pb.HugetlbStat(usage=usage, max=most, failcnt=failures, pagesize=size))
    return found
