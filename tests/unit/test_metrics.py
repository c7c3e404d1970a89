"""Metrics of real cgroups of v1, and of directories that look like those of either version."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from google.protobuf import text_format

from shim import cgroup, metrics
from shim._pb.io.containerd.cgroups.v1 import metrics_pb2 as v1_pb
from shim._pb.io.containerd.cgroups.v2 import metrics_pb2 as v2_pb
from shim.errors import NotFound
from shim.metrics import files, v1, v2

COUNTING = ("cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb", "rdma")


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child.pid
        child.kill()


@pytest.fixture
def container(sleeper):
    """A process with a cgroup of its own in every hierarchy of v1 that counts something."""
    mounts = [each.mount for each in cgroup._hierarchies() if each.options & set(COUNTING)]
    if not mounts:
        pytest.skip("no controllers of v1 here")
    made = []
    for mount in mounts:
        path = Path(mount, f"denseshim-test-{os.getpid()}-metrics")
        path.mkdir()
        made.append(path)
        (path / "cgroup.procs").write_text(str(sleeper))
    yield sleeper
    for path in made:
        if path.exists():
            (path.parent / "cgroup.procs").write_text(str(sleeper))
            path.rmdir()


@pytest.fixture(autouse=True)
def page_sizes(monkeypatch):
    for module in (v1, v2):
        monkeypatch.setattr(module, "huge_page_sizes", lambda: ["1GB", "2MB"])


def read(paths):
    gauges = metrics.Gauges()
    try:
        return gauges.read("box", paths)
    finally:
        gauges.drop("box")


def write(directory, contents):
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (directory / name).write_text(text)


def parsed(text, cls):
    return text_format.Parse(text, cls())


# Real cgroups of v1


def test_every_counting_controller_is_located(container):
    name = f"denseshim-test-{os.getpid()}-metrics"
    mounted = {option for each in cgroup._hierarchies() for option in each.options}
    paths = metrics.locate(container)
    assert set(paths) == mounted & set(COUNTING)
    assert {os.path.basename(path) for path in paths.values()} == {name}
    assert json.loads(json.dumps(paths)) == paths


def test_what_the_kernel_shows_is_what_is_told(container):
    paths = metrics.locate(container)
    memory, pids = Path(paths["memory"]), Path(paths["pids"])
    (memory / "memory.limit_in_bytes").write_text("64M")
    (pids / "pids.max").write_text("7")
    message, url = read(paths)
    assert url == "io.containerd.cgroups.v1.Metrics"
    assert isinstance(message, v1_pb.Metrics)
    assert (message.pids.current, message.pids.limit) == (1, 7)
    assert message.memory.usage.limit == message.memory.hierarchical_memory_limit == 64 << 20
    shown = cgroup.counters((memory / "memory.stat").read_bytes())
    assert message.memory.rss == shown["rss"]
    assert message.memory.total_pg_fault == shown["total_pgfault"]
    assert message.memory.kernel.limit == int((memory / "memory.kmem.limit_in_bytes").read_text())
    assert len(message.cpu.usage.per_cpu) == os.cpu_count()
    assert message.memory_oom_control == v1_pb.MemoryOomControl()


def test_used_processor_time_is_in_nanoseconds(container):
    paths = metrics.locate(container)
    stat, end = Path(paths["cpuacct"], "cpuacct.stat"), time.monotonic() + 20
    burner = subprocess.Popen(["sh", "-c", "read go; while :; do :; done"], stdin=subprocess.PIPE)
    with burner:
        Path(paths["cpuacct"], "cgroup.procs").write_text(str(burner.pid))
        burner.stdin.write(b"\n")
        burner.stdin.flush()
        while cgroup.counters(stat.read_bytes())["user"] < 3 and time.monotonic() < end:
            pass
        burner.kill()
    tick, ticks = 10**9 // os.sysconf("SC_CLK_TCK"), cgroup.counters(stat.read_bytes())
    usage = read(paths)[0].cpu.usage
    assert usage.user == ticks["user"] * tick >= 3 * tick
    assert usage.kernel == ticks["system"] * tick
    assert usage.total == int(Path(paths["cpuacct"], "cpuacct.usage").read_text())
    assert usage.total == sum(usage.per_cpu)


def test_a_process_in_the_shims_own_cgroup_has_none(sleeper):
    assert metrics.locate(sleeper) == {}
    with pytest.raises(NotFound, match="no cgroup"):
        read({})


def test_a_process_that_is_gone_has_none():
    child = subprocess.Popen(["true"])
    child.wait()
    assert metrics.locate(child.pid) == {}


def test_a_cgroup_that_is_gone_is_not_found(container):
    paths = metrics.locate(container)
    for path in set(paths.values()):
        Path(path).parent.joinpath("cgroup.procs").write_text(str(container))
        os.rmdir(path)
    with pytest.raises(NotFound, match="no cgroup"):
        read(paths)


def test_a_part_that_is_gone_is_skipped(container):
    paths = metrics.locate(container)
    Path(paths["pids"]).parent.joinpath("cgroup.procs").write_text(str(container))
    os.rmdir(paths["pids"])
    message, _ = read(paths)
    assert message.pids == v1_pb.PidsStat()
    assert message.memory.hierarchical_memory_limit > 0


# Trees that look like v1

V1_FILES = {
    "pids": {"pids.current": "3\n", "pids.max": "max\n"},
    "cpu": {"cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3\nwait_sum 4\n"},
    "cpuacct": {
        "cpuacct.usage": "100\n",
        "cpuacct.usage_percpu": "40 60 \n",
        "cpuacct.stat": "user 5\nsystem 2\n",
    },
    "memory": {
        "memory.stat": "cache 1\nrss 2\npgpgin 7\npgpgout 8\npgfault 9\npgmajfault 10\nshmem 99\n"
        "hierarchical_memory_limit 16\nhierarchical_memsw_limit 17\ntotal_cache 18\n"
        "total_pgpgin 24\ntotal_pgpgout 25\ntotal_pgfault 26\ntotal_pgmajfault 27\n"
        "total_unevictable 32\n",
        "memory.oom_control": "oom_kill_disable 1\nunder_oom 1\noom_kill 5\n",
        **{
            f"memory.{kind}{name}": f"{number}\n"
            for kind, base in {"": 100, "kmem.": 300, "kmem.tcp.": 400}.items()
            for number, name in enumerate(
                ("limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes", "failcnt"), base
            )
        },
    },
    "blkio": {
        "blkio.throttle.io_service_bytes": "7:0 Read 4096\n7:0 Write 1\n7:0 Total 4097\n"
        "Total 4097\n",
        "blkio.throttle.io_serviced": "9999:1 Read 2\nTotal 2\n",
    },
    "rdma": {
        "rdma.current": "mlx4_0 hca_handle=1 hca_object=20\n",
        "rdma.max": "mlx4_0 hca_handle=2 hca_object=max\n",
    },
    "hugetlb": {
        "hugetlb.2MB.usage_in_bytes": "2097152\n",
        "hugetlb.2MB.max_usage_in_bytes": "4194304\n",
        "hugetlb.2MB.failcnt": "1\n",
    },
}
# No entry for memory and swap: that is what a kernel without accounting of swap shows.
V1_METRICS = """
hugetlb { usage: 2097152 max: 4194304 failcnt: 1 pagesize: "2MB" }
pids { current: 3 }
cpu {
  usage { total: 100 kernel: 20000000 user: 50000000 per_cpu: 40 per_cpu: 60 }
  throttling { periods: 1 throttled_periods: 2 throttled_time: 3 }
}
memory {
  cache: 1 rss: 2 pg_pg_in: 7 pg_pg_out: 8 pg_fault: 9 pg_maj_fault: 10
  hierarchical_memory_limit: 16 hierarchical_swap_limit: 17 total_cache: 18
  total_pg_pg_in: 24 total_pg_pg_out: 25 total_pg_fault: 26 total_pg_maj_fault: 27
  total_unevictable: 32
  usage { limit: 100 usage: 101 max: 102 failcnt: 103 }
  swap {}
  kernel { limit: 300 usage: 301 max: 302 failcnt: 303 }
  kernel_tcp { limit: 400 usage: 401 max: 402 failcnt: 403 }
}
blkio {
  io_service_bytes_recursive { op: "Read" device: "/dev/loop0" major: 7 value: 4096 }
  io_service_bytes_recursive { op: "Write" device: "/dev/loop0" major: 7 value: 1 }
  io_service_bytes_recursive { op: "Total" device: "/dev/loop0" major: 7 value: 4097 }
  io_serviced_recursive { op: "Read" major: 9999 minor: 1 value: 2 }
}
rdma {
  current { device: "mlx4_0" hca_handles: 1 hca_objects: 20 }
  limit { device: "mlx4_0" hca_handles: 2 hca_objects: 4294967295 }
}
memory_oom_control { oom_kill_disable: 1 under_oom: 1 oom_kill: 5 }
"""


def test_all_parts_of_v1(tmp_path, monkeypatch):
    for controller, contents in V1_FILES.items():
        write(tmp_path / controller, contents)
    names = {"7:0": "/dev/loop0", "9999:1": ""}
    monkeypatch.setattr(v1, "_device", lambda number: names[number])
    message, url = read({name: str(tmp_path / name) for name in V1_FILES})
    assert message == parsed(V1_METRICS, v1_pb.Metrics)
    assert url == v1_pb.Metrics.DESCRIPTOR.full_name


def test_controllers_that_the_host_lacks_are_left_out(tmp_path):
    write(tmp_path, V1_FILES["cpu"])
    message, _ = read({"cpu": str(tmp_path)})
    wanted = "cpu { usage {} throttling { periods: 1 throttled_periods: 2 throttled_time: 3 } }"
    assert message == parsed(wanted, v1_pb.Metrics)


def test_a_new_kernel_s_counters_are_no_error(tmp_path):
    write(tmp_path, {"memory.oom_control": "oom_kill 1\noom_new 2\n", "memory.stat": "new 3\n"})
    message, _ = read({"memory": str(tmp_path)})
    assert message.memory_oom_control == v1_pb.MemoryOomControl(oom_kill=1)


def test_a_device_has_a_path_while_it_is_there():
    number = next(iter(sorted(os.listdir("/sys/dev/block"))))
    assert v1._device(number).startswith("/dev/")
    assert v1._device("9999:1") == ""


# Trees that look like v2

V2_FILES = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 1\nuser_usec 2\nsystem_usec 3\ncore_sched.force_idle_usec 9\n"
    "nr_periods 4\nnr_throttled 5\nthrottled_usec 6\nnr_bursts 7\n",
    "cpu.pressure": "some avg10=0.12 avg60=1.00 avg300=99.50 total=5\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "memory.stat": "anon 1\nfile 2\nkernel 9\nkernel_stack 3\nsock 5\nanon_thp 10\npgfault 18\n"
    "workingset_refault_anon 9\nthp_collapse_alloc 31\n",
    "memory.current": "32\n",
    "memory.max": "max\n",
    "memory.swap.current": "34\n",
    "memory.swap.max": "35\n",
    "memory.peak": "36\n",
    "memory.swap.peak": "37\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=6\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
    "io.stat": "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0 \n",
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    "rdma.current": "mlx4_0 hca_handle=1 hca_object=20\nocrdma1 hca_handle=3 hca_object=4\n",
    "rdma.max": "mlx4_0 hca_handle=2 hca_object=max\n",
    "hugetlb.1GB.current": "0\n",
    "hugetlb.1GB.max": "max\n",
}
V2_METRICS = """
pids { current: 3 limit: 18446744073709551615 }
cpu {
  usage_usec: 1 user_usec: 2 system_usec: 3 nr_periods: 4 nr_throttled: 5 throttled_usec: 6
  psi { some { avg10: 0.12 avg60: 1 avg300: 99.5 total: 5 } full {} }
}
memory {
  anon: 1 file: 2 kernel_stack: 3 sock: 5 anon_thp: 10 pgfault: 18 thp_collapse_alloc: 31
  usage: 32 usage_limit: 18446744073709551615 swap_usage: 34 swap_limit: 35 max_usage: 36
  swap_max_usage: 37 psi { some { total: 6 } }
}
rdma {
  current { device: "mlx4_0" hca_handles: 1 hca_objects: 20 }
  current { device: "ocrdma1" hca_handles: 3 hca_objects: 4 }
  limit { device: "mlx4_0" hca_handles: 2 hca_objects: 4294967295 }
}
io {
  usage { major: 8 minor: 16 rbytes: 1 wbytes: 2 rios: 3 wios: 4 }
  usage { major: 254 }
  psi { some { total: 7 } }
}
hugetlb { max: 18446744073709551615 pagesize: "1GB" }
memory_events { low: 1 high: 2 max: 3 oom: 4 oom_kill: 5 }
"""


def test_all_parts_of_v2(tmp_path):
    write(tmp_path, V2_FILES)
    message, url = read({cgroup.UNIFIED: str(tmp_path)})
    assert message == parsed(V2_METRICS, v2_pb.Metrics)
    assert url == v2_pb.Metrics.DESCRIPTOR.full_name


def test_v2_without_any_controller(tmp_path):
    """What is left are the processor's times; the parts are there, for readers that expect them."""
    write(tmp_path, {"cpu.stat": "usage_usec 1\n"})
    message, _ = read({cgroup.UNIFIED: str(tmp_path)})
    assert message == parsed(
        "pids {} cpu { usage_usec: 1 } memory {} rdma {} io {} memory_events {}", v2_pb.Metrics
    )


def test_a_v2_cgroup_that_is_gone_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="no cgroup"):
        read({cgroup.UNIFIED: str(tmp_path / "gone")})


def test_what_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "pids.current").mkdir()
    with pytest.raises(IsADirectoryError):
        read({cgroup.UNIFIED: str(tmp_path)})


# Which version the host has

V2_AT_THE_TOP = cgroup._Hierarchy(frozenset({""}), "/", "/sys/fs/cgroup")
V2_BESIDE = cgroup._Hierarchy(frozenset({""}), "/", "/sys/fs/cgroup/unified")
PIDS = cgroup._Hierarchy(frozenset({"rw", "pids"}), "/", "/sys/fs/cgroup/pids")
CPU = cgroup._Hierarchy(frozenset({"rw", "cpu", "cpuacct"}), "/", "/sys/fs/cgroup/cpu,cpuacct")
SYSTEMD = cgroup._Hierarchy(frozenset({"rw", "name=systemd"}), "/", "/sys/fs/cgroup/systemd")


@pytest.mark.parametrize(
    ("mounted", "wanted"),
    [
        ([V2_AT_THE_TOP], {"unified": "/sys/fs/cgroup/c"}),
        ([V2_AT_THE_TOP, PIDS], {"unified": "/sys/fs/cgroup/c"}),
        ([V2_BESIDE, PIDS, SYSTEMD], {"pids": "/sys/fs/cgroup/pids/c"}),
        ([PIDS], {"pids": "/sys/fs/cgroup/pids/c"}),
        (
            [CPU, SYSTEMD],
            {"cpu": "/sys/fs/cgroup/cpu,cpuacct/c", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/c"},
        ),
        ([], {}),
    ],
)
def test_the_host_s_mode_decides(mounted, wanted, monkeypatch):
    controllers = [{""}, {"pids"}, {"cpu", "cpuacct"}, {"name=systemd"}]
    of = {"self": "/own", "7": "/c"}
    monkeypatch.setattr(cgroup, "_hierarchies", lambda: mounted)
    monkeypatch.setattr(
        cgroup, "_memberships", lambda pid: {frozenset(names): of[pid] for names in controllers}
    )
    assert metrics.locate(7) == wanted


def test_huge_pages_are_named_as_in_cgroups(monkeypatch):
    names = ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB"]
    monkeypatch.setattr(files.os, "listdir", lambda path: names)
    files.huge_page_sizes.cache_clear()
    assert files.huge_page_sizes() == ["1GB", "2MB", "64KB"]
    files.huge_page_sizes.cache_clear()


# ---- files that stay open


def open_files():
    return len(os.listdir("/proc/self/fd"))


def pids(folder, number):
    write(folder, {"pids.current": f"{number}\n", "pids.max": "max\n"})
    return {"pids": str(folder)}


def test_what_is_asked_for_again_is_read_again(tmp_path):
    gauges, paths = metrics.Gauges(), pids(tmp_path, 7)
    assert gauges.read("box", paths)[0].pids.current == 7
    before = open_files()
    pids(tmp_path, 8)
    assert gauges.read("box", paths)[0].pids.current == 8
    assert open_files() == before
    gauges.drop("box")
    gauges.drop("box")
    assert open_files() == before - 2


def test_the_files_of_few_stay_open(tmp_path):
    """Those that were asked for last."""
    gauges, before = metrics.Gauges(), open_files()
    made = {name: pids(tmp_path / str(name), name) for name in range(40)}
    for _ in range(2):
        for name, paths in made.items():
            assert gauges.read(name, paths)[0].pids.current == name
    assert open_files() == before + 2 * 16
    for name in made:
        gauges.drop(name)
    assert open_files() == before


def test_nothing_stays_open_of_what_is_gone(container):
    gauges, before = metrics.Gauges(), open_files()
    paths = {"pids": metrics.locate(container)["pids"]}
    made = Path(paths["pids"])
    assert gauges.read("box", paths)[0].pids.current == 1
    (made.parent / "cgroup.procs").write_text(str(container))
    made.rmdir()
    with pytest.raises(NotFound):
        gauges.read("box", paths)
    assert open_files() == before


def test_nothing_stays_open_of_what_cannot_be_read(tmp_path):
    gauges, before = metrics.Gauges(), open_files()
    paths = pids(tmp_path, 7)
    (tmp_path / "pids.max").unlink()
    (tmp_path / "pids.max").mkdir()
    with pytest.raises(IsADirectoryError):
        gauges.read("box", paths)
    assert open_files() == before
