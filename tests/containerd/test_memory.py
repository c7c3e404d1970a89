"""What the host costs: processes, threads and memory, with many containers and many execs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim._pb.containerd.task.v3 import task_pb2
from shim.oci.spec import process
from tests.containerd.caller import TaskCaller
from tests.containerd.containerd import Container, Containerd
from tests.containerd.gate import Runtime
from tests.containerd.host import Host

KIB = 1024
CONTAINERS = 60
# A tenth of what a container costs with a shim process of its own, and thrice what it does here.
MOST_PER_CONTAINER = 150 * KIB
# Until Python's memory has taken its shape.
WARM_UP = 600
EXECS = 300
MOST_GROWTH = 256 * KIB
# In runc's place for exec: starts a program that outlives it for a moment, and tells its pid.
EXEC = """while [ $# -gt 0 ]; do
[ "$1" = --pid-file ] && pid_file=$2
shift
done
sleep 0.02 & echo -n $! > "$pid_file"
exit 0"""


def memory(pid: int) -> int:
    """Bytes of the process's own, files not counted (proc_pid_smaps(5)).

    Its share of files depends on whoever else has them mapped.
    """
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) * KIB for row in rows if row.startswith("Anonymous:"))


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@contextlib.contextmanager
def crowd(daemon: Containerd) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(CONTAINERS):
            stack.enter_context(daemon.living())
        yield


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
            assert sum(map(threads, family)) <= 3 + 32
    assert (after - before) / CONTAINERS < MOST_PER_CONTAINER


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


def test_demand_03_no_growth_per_exec(own_containerd: Containerd, fast: Container) -> None:
    """Past the first ones, execs that are gone cost nothing."""
    host = Host(own_containerd)
    (socket,) = (own_containerd.machine.root / "run/containerd/s").iterdir()
    with TaskCaller(socket) as caller:
        for number in range(WARM_UP):
            run_exec(caller, fast, f"warm-{number}")
        family = host.family()
        before = sum(map(memory, family))
        descriptors = len(list(Path(f"/proc/{host.keeper}/fd").iterdir()))
        for number in range(EXECS):
            run_exec(caller, fast, f"exec-{number}")
        assert host.family() == family
        growth = sum(map(memory, family)) - before
        assert growth < MOST_GROWTH
        assert len(list(Path(f"/proc/{host.keeper}/fd").iterdir())) == descriptors
