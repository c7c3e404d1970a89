"""What the host costs: processes, threads and memory, with many containers and many execs."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim._pb.containerd.task.v3 import task_pb2
from shim.oci.spec import process
from tests.containerd.caller import TaskCaller
from tests.containerd.containerd import Container, Containerd
from tests.containerd.gate import Runtime
from tests.containerd.host import Host, socket_of
from tests.containerd.sizes import sized

KIB = 1024
CONTAINERS = sized(60, 1000)
# A tenth of what a container costs with a shim process of its own, and thrice what it does here.
MOST_PER_CONTAINER = 150 * KIB
# Until Python's memory has taken its shape.
WARM_UP = sized(600, 2000)
# A million, which users have asked for, would take hours: each starts two processes.
EXECS = sized(300, 20_000)
CALLERS = sized(1, 24)
MOST_GROWTH = sized(256 * KIB, 1024 * KIB)
# Execs of the last quarter cost as much CPU time as those of the first, but for noise.
MOST_SLOWER = sized(1.5, 1.2)
# Seconds. Were it to end before the shell, the shell would collect its exit: many at once are slow.
LIFE = sized(0.02, 0.5)
# In runc's place for exec: starts a program that outlives it for a moment, and tells its pid.
EXEC = f"""while [ $# -gt 0 ]; do
[ "$1" = --pid-file ] && pid_file=$2
shift
done
sleep {LIFE} & echo -n $! > "$pid_file"
exit 0"""


def memory(pid: int) -> int:
    """Bytes of the process's own, files not counted (proc_pid_smaps(5)).

    Its share of files depends on whoever else has them mapped.
    """
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) * KIB for row in rows if row.startswith("Anonymous:"))


def cpu_time(pid: int) -> float:
    """Seconds that the process has run for, in user space and in the kernel (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@contextlib.contextmanager
def crowd(daemon: Containerd) -> Iterator[None]:
    """CONTAINERS of them."""
    with ThreadPoolExecutor(4) as pool:
        start = partial(daemon.start_container, "sleep", "1000000")
        started = [one.result() for one in [pool.submit(start) for _ in range(CONTAINERS)]]
        try:
            yield
        finally:
            list(pool.map(Container.remove, started))


def test_demand_02_memory_and_processes(own_containerd: Containerd) -> None:
    """More containers are no more processes and threads, and little memory."""
    host = Host(own_containerd)
    family = host.family()
    with own_containerd.living():
        before = sum(map(memory, family))
        with crowd(own_containerd):
            after = sum(map(memory, family))
            assert host.family() == family
            assert own_containerd.shims().keys() == family
            # The blocking calls of one front have a bounded pool.
            all_threads = sum(map(threads, family))
            assert all_threads <= 3 + 32
    each = (after - before) / CONTAINERS
    print(
        f"{CONTAINERS} containers: {after / KIB:.0f} KiB and {all_threads} threads in all, "
        f"{each / KIB:.1f} KiB each"
    )
    assert each < MOST_PER_CONTAINER


@pytest.fixture
def fast(own_containerd: Containerd, tmp_path: Path) -> Iterator[Container]:
    """A container whose runtime starts execs in no time."""
    runtime = Runtime(tmp_path, "exec", EXEC)
    with own_containerd.living(options=["--null-io", *runtime.options]) as container:
        yield container


def run_exec(caller: TaskCaller, container: Container, name: str) -> None:
    """From Exec to Delete."""
    spec = AnyMessage(value=json.dumps(process(["true"])).encode())
    id = container.id
    caller.call("Exec", task_pb2.ExecProcessRequest(id=id, exec_id=name, spec=spec))
    started = caller.call("Start", task_pb2.StartRequest(id=id, exec_id=name))
    assert started.of(task_pb2.StartResponse).pid
    ended = caller.call("Wait", task_pb2.WaitRequest(id=id, exec_id=name))
    assert ended.of(task_pb2.WaitResponse).exit_status == 0
    caller.call("Delete", task_pb2.DeleteRequest(id=id, exec_id=name)).of(task_pb2.DeleteResponse)


def run_execs(pool: ThreadPoolExecutor, container: Container, count: int) -> None:
    """`count` of them, by CALLERS callers, each of which runs one after the other."""

    def call(name: str) -> None:
        with TaskCaller(socket_of(container)) as caller:
            for number in range(count // CALLERS):
                run_exec(caller, container, f"{name}-{number}")

    list(pool.map(call, [f"exec-{number}" for number in range(CALLERS)]))


def test_demand_03_no_growth_per_exec(own_containerd: Containerd, fast: Container) -> None:
    """Past the first ones, execs that are gone cost nothing."""
    host = Host(own_containerd)
    with ThreadPoolExecutor(CALLERS) as pool:
        run_execs(pool, fast, WARM_UP)
        family = host.family()
        before = sum(map(memory, family))
        descriptors = len(list(Path(f"/proc/{host.keeper}/fd").iterdir()))
        cpu = [sum(map(cpu_time, family))]
        for _ in range(4):
            run_execs(pool, fast, EXECS // 4)
            cpu.append(sum(map(cpu_time, family)))
        assert host.family() == family
        growth = sum(map(memory, family)) - before
        took = [(end - begin) / (EXECS // 4) for begin, end in itertools.pairwise(cpu)]
        print(f"{EXECS} execs: {growth / KIB:.0f} KiB more; {took} s of CPU each")
        assert growth < MOST_GROWTH
        assert took[-1] < MOST_SLOWER * took[0]
        assert len(list(Path(f"/proc/{host.keeper}/fd").iterdir())) == descriptors
