"""Who shares a shim under today's containerd: launchers started by hand, each way to ask for it."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any as Anything

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from shim._pb.containerd.runc.v1 import options_pb2 as runc
from shim._pb.containerd.task.v3 import task_pb2 as task
from shim._pb.runtimeoptions.v1 import options_pb2 as runtime
from tests.containerd.ttrpc import ShimCaller
from tests.fakes.containerd import Containerd
from tests.fakes.node import Node, command_of, listening, names, wait_for_end, wait_until
from tests.integration.support import Bundle, front_of, is_alive

NAMESPACE = "ns"
SANDBOX = "io.kubernetes.cri.sandbox-id"
MakeBundle = Callable[..., Bundle]


@pytest.fixture
def node() -> Iterator[Node]:
    """Where shims may be; nothing of them is left afterwards."""
    made = Node()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def containerd(tmp_path: Path, node: Node) -> Iterator[Containerd]:
    """Outlives no shim."""
    with Containerd(tmp_path) as made:
        yield made
        if (node.state / "door").exists():
            assert node.host("--stop", "--force").returncode == 0


def words(containerd: Containerd, bundle: Bundle, action: str) -> list[str]:
    return [
        *("-namespace", NAMESPACE, "-address", containerd.address, "-publish-binary", "/bin/true"),
        *("-id", bundle.id, "-bundle", str(bundle.path), action),
    ]


def packed(name: str, message: Message) -> bytes:
    """Options as containerd writes them to stdin."""
    return Any(type_url=name, value=message.SerializeToString()).SerializeToString()


def toml(text: str) -> bytes:
    return packed("runtimeoptions.v1.Options", runtime.Options(config_body=text.encode()))


def start(
    node: Node, containerd: Containerd, bundle: Bundle, options: bytes = b"", **more: Anything
) -> Path:
    """Run `start`; the path of the socket that it names, as we reach it."""
    env = {**os.environ, "TTRPC_ADDRESS": str(containerd.ttrpc), **more.pop("env", {})}
    arguments = words(containerd, bundle, "start")
    done = node.launch(bundle.path, *arguments, input=options, env=env, **more)
    assert (done.returncode, done.stderr) == (0, b"")
    address = done.stdout.decode()
    assert (bundle.path / "address").read_text() == address
    assert address.startswith("unix:///run/")
    return node.run_folder / address.removeprefix("unix:///run/")


def live(socket: Path, bundle: Bundle) -> int:
    """Create and start the container; its pid."""
    with ShimCaller(socket) as shim:
        created = ask(shim, "Create", task.CreateTaskRequest(id=bundle.id, bundle=str(bundle.path)))
        pid = task.CreateTaskResponse.FromString(created).pid
        ask(shim, "Start", task.StartRequest(id=bundle.id))
        state = task.StateResponse.FromString(ask(shim, "State", task.StateRequest(id=bundle.id)))
        assert (state.pid, state.id) == (pid, bundle.id)
    assert is_alive(pid)
    return pid


def end(node: Node, containerd: Containerd, socket: Path, bundle: Bundle) -> None:
    """Kill and delete the container as containerd does, the launcher's `delete` included."""
    with ShimCaller(socket) as shim:
        ask(shim, "Kill", task.KillRequest(id=bundle.id, signal=signal.SIGKILL))
        waited = task.WaitResponse.FromString(ask(shim, "Wait", task.WaitRequest(id=bundle.id)))
        assert waited.exit_status == 137
        deleted = ask(shim, "Delete", task.DeleteRequest(id=bundle.id))
        assert task.DeleteResponse.FromString(deleted).exit_status == 137
        ask(shim, "Shutdown", task.ShutdownRequest(id=bundle.id))
    done = node.launch(bundle.path, *words(containerd, bundle, "delete"), input=b"")
    assert (done.returncode, done.stderr) == (0, b"")


def ask(shim: ShimCaller, method: str, request: Message) -> bytes:
    shim.ask(method, request)
    response = shim.answer()
    assert response.status.code == 0, response.status.message
    return response.payload


def in_pod(bundle: Bundle, sandbox: str) -> Bundle:
    """The bundle, as of a container of that pod."""
    path = bundle.path / "config.json"
    config = json.loads(path.read_text())
    config["annotations"] = {SANDBOX: sandbox}
    path.write_text(json.dumps(config))
    return bundle


def pairs(node: Node) -> list[str]:
    """The directories of the pairs that are there."""
    return [name for name in names(node.run_folder / "denseshim") if not name.startswith(".")]


def keeper_of(node: Node, socket: Path) -> int:
    """The keeper of the pair that has this group."""
    records = (node.run_folder / "denseshim").glob("*/groups/*.json")
    [pair] = [path.parent.parent.name for path in records if socket.name in path.read_text()]
    [front] = [pid for pid in node.processes() if f"/{pair} " in command_of(pid)]
    return int(Path(f"/proc/{front}/stat").read_text().rpartition(")")[2].split()[1])


TOPICS = [f"/tasks/{name}" for name in ("create", "start", "exit", "delete")]


# ---- The host ----


def test_the_host_serves_what_nobody_asks_to_keep_apart(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    bundles = [make_bundle("sleep", "1000") for _ in range(3)]
    sockets = [start(node, containerd, bundle) for bundle in bundles]
    assert len(set(sockets)) == 3
    assert pairs(node) == [node.state.name]
    for socket, bundle in zip(sockets, bundles, strict=True):
        live(socket, bundle)
    assert node.status()["containers"] == 3
    keeper = node.keeper
    for socket, bundle in zip(sockets, bundles, strict=True):
        end(node, containerd, socket, bundle)
    assert node.status() == {**node.status(), "containers": 0, "keeper_pid": keeper}
    assert names(node.run_folder / "containerd/s") == []
    wait_until(lambda: len(containerd.topics) == 12, lambda: str(containerd.topics))


def test_containers_of_a_pod_share_a_socket(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    first, second = (in_pod(make_bundle("sleep", "1000"), "pod") for _ in range(2))
    sockets = [start(node, containerd, bundle) for bundle in (first, second)]
    assert sockets[0] == sockets[1]
    for bundle in (first, second):
        live(sockets[0], bundle)
    end(node, containerd, sockets[0], first)
    end(node, containerd, sockets[0], second)


def test_a_socket_that_comes_with_start_is_closed(
    node: Node, containerd: Containerd, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Neither the launcher nor the host takes descriptor 3 from today's containerd."""
    first, second = make_bundle("sleep", "1000"), make_bundle("sleep", "1000")
    with listening(tmp_path / "stray.sock") as stray:
        given = {"close_fds": False, "preexec_fn": partial(os.dup2, stray.fileno(), 3)}
        for bundle in (first, second):  # by way of Python, which starts the host; and by the host
            start(node, containerd, bundle, **given)
        inode = f"socket:[{os.fstat(stray.fileno()).st_ino}]"
        for pid in node.processes():
            assert inode not in [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    for bundle in (first, second):
        done = node.launch(bundle.path, *words(containerd, bundle, "delete"), input=b"")
        assert done.returncode == 0
    assert node.status()["containers"] == 0


def test_a_container_ignores_no_signal_of_the_launcher_that_starts_the_host(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    """`start` ignores SIGINT, SIGTERM and SIGPIPE, also while Python goes on with it."""
    bundle = make_bundle("sleep", "1000")
    socket = start(node, containerd, bundle, before="trap '' USR1 PIPE")
    pid = live(socket, bundle)
    keeper = node.keeper
    ignored = {one: ignored_by(one) for one in (pid, keeper, *node.processes())}
    assert ignored.pop(pid) == 0
    python = {signal.SIGPIPE, signal.SIGXFSZ}  # it always does
    asked = sum(1 << one - 1 for one in signal.valid_signals() - python)
    assert {found & asked for found in ignored.values()} == {0}
    end(node, containerd, socket, bundle)


def ignored_by(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("SigIgn:")[2].split()[0], 16)


def test_other_namespaces_have_another_host(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    other = Node()
    try:
        bundles = [make_bundle("sleep", "1000") for _ in range(2)]
        start(node, containerd, bundles[0])
        start(other, containerd, bundles[1])
        assert node.keeper != other.keeper
        assert node.state.name != other.state.name
        assert (pairs(node), pairs(other)) == ([node.state.name], [other.state.name])
    finally:
        other.close()


# ---- Apart ----


def shares(share: str) -> list[Anything]:
    return [
        pytest.param({"options": toml(f"Share = '{share}'")}, id=f"{share} by options"),
        pytest.param({"env": {"DENSESHIM_SHARE": share}}, id=f"{share} by environment"),
    ]


@pytest.mark.parametrize("asked", shares("pod"))
def test_a_pod_of_its_own(
    node: Node, containerd: Containerd, make_bundle: MakeBundle, asked: dict[str, Anything]
) -> None:
    first, second, other = (make_bundle("sleep", "1000") for _ in range(3))
    in_pod(first, "pod")
    in_pod(second, "pod")
    in_pod(other, "another")
    sockets = {bundle.id: start(node, containerd, bundle, **asked) for bundle in (first, second)}
    assert len(set(sockets.values())) == len(pairs(node)) == 1
    sockets[other.id] = start(node, containerd, other, **asked)
    assert [name.partition("-")[0] for name in pairs(node)] == ["apart", "apart"]
    for bundle in (first, second, other):
        live(sockets[bundle.id], bundle)
    shared, alone = (keeper_of(node, sockets[bundle.id]) for bundle in (first, other))
    end(node, containerd, sockets[first.id], first)
    assert is_alive(shared)
    end(node, containerd, sockets[other.id], other)
    wait_for_end(alone)
    end(node, containerd, sockets[second.id], second)
    wait_for_end(shared)
    node.settled()
    assert sorted(containerd.topics) == sorted(TOPICS * 3)


@pytest.mark.parametrize("asked", shares("container"))
def test_a_container_of_its_own(
    node: Node, containerd: Containerd, make_bundle: MakeBundle, asked: dict[str, Anything]
) -> None:
    """In a pod, too. Its front may die as any other."""
    first, second = (in_pod(make_bundle("sleep", "1000"), "pod") for _ in range(2))
    sockets = [start(node, containerd, bundle, **asked) for bundle in (first, second)]
    assert len(set(sockets)) == len(pairs(node)) == 2
    for socket, bundle in zip(sockets, (first, second), strict=True):
        live(socket, bundle)
    mine, others = (keeper_of(node, socket) for socket in sockets)
    os.kill(front_of(mine), signal.SIGKILL)
    end(node, containerd, sockets[0], first)
    wait_for_end(mine)
    assert is_alive(others)
    end(node, containerd, sockets[1], second)
    wait_for_end(others)
    node.settled()
    assert sorted(containerd.topics) == sorted(TOPICS * 2)


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup for shims, in one hierarchy."""
    name = f"denseshim-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    root = Path("/sys/fs/cgroup/pids")
    path = (root if root.exists() else root.parent) / name
    path.mkdir()
    yield f"/{name}"
    # The keeper's spawner and front end a moment after it.
    wait_until(lambda: not (path / "cgroup.procs").read_text(), lambda: f"{name} is in use")
    path.rmdir()


def test_a_cgroup_for_the_shim(
    node: Node, containerd: Containerd, make_bundle: MakeBundle, cgroup: str
) -> None:
    bundle = make_bundle("sleep", "1000")
    options = packed("containerd.runc.v1.Options", runc.Options(shim_cgroup=cgroup))
    socket = start(node, containerd, bundle, options)
    live(socket, bundle)
    keeper = keeper_of(node, socket)
    assert f":{cgroup}\n" in Path(f"/proc/{keeper}/cgroup").read_text()
    assert pairs(node)[0].startswith("apart-")
    end(node, containerd, socket, bundle)
    wait_for_end(keeper)
    node.settled()


def test_a_containerd_that_is_to_be_killed_early(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    """Its shims go after it, not with the host, which others may need."""
    bundle = make_bundle("sleep", "1000")
    socket = start(node, containerd, bundle, before="echo 500 >/proc/self/oom_score_adj")
    live(socket, bundle)
    keeper = keeper_of(node, socket)
    assert Path(f"/proc/{keeper}/oom_score_adj").read_text() == "501\n"
    assert pairs(node)[0].startswith("apart-")
    end(node, containerd, socket, bundle)
    wait_for_end(keeper)
    node.settled()


def scores(socket: Path, bundle: Bundle, folder: Path) -> list[int]:
    """The oom_score_adj of a new container's init, and of an exec in it."""
    folder.mkdir()
    bundle.bind(folder, "/mnt")
    pid = live(socket, bundle)
    with ShimCaller(socket) as shim:
        argv = ["sh", "-c", "cat /proc/self/oom_score_adj >/mnt/score"]
        text = json.dumps({"args": argv, "cwd": "/", "env": ["PATH=/bin"], "user": {}}).encode()
        spec = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=text)
        ids = {"id": bundle.id, "exec_id": "score"}
        ask(shim, "Exec", task.ExecProcessRequest(**ids, spec=spec))
        ask(shim, "Start", task.StartRequest(**ids))
        ended = task.WaitResponse.FromString(ask(shim, "Wait", task.WaitRequest(**ids)))
        assert ended.exit_status == 0
        ask(shim, "Delete", task.DeleteRequest(**ids))
    files = [Path(f"/proc/{pid}/oom_score_adj"), folder / "score"]
    return [int(file.read_text()) for file in files]


def test_the_score_of_containers(
    node: Node, containerd: Containerd, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """As from a shim of containerd's: its own plus 1, and not the host's; or what the spec says.

    Which runc gives to execs, too.
    """
    launchers = int(Path("/proc/self/oom_score_adj").read_text())
    plain, chosen, early = (make_bundle("sleep", "1000") for _ in range(3))
    path = chosen.path / "config.json"
    config = json.loads(path.read_text())
    config["process"]["oomScoreAdj"] = launchers + 123
    path.write_text(json.dumps(config))
    sockets = [
        start(node, containerd, plain),
        start(node, containerd, chosen),
        start(node, containerd, early, before="echo 500 >/proc/self/oom_score_adj"),
    ]
    wanted = [launchers + 1, launchers + 123, 501]
    for socket, bundle, score in zip(sockets, (plain, chosen, early), wanted, strict=True):
        assert scores(socket, bundle, tmp_path / bundle.id) == [score, score]
        end(node, containerd, socket, bundle)


def test_a_start_without_a_bundle_starts_nothing(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle("true")
    (bundle.path / "config.json").unlink()
    env = {**os.environ, "TTRPC_ADDRESS": str(containerd.ttrpc)}
    done = node.launch(bundle.path, *words(containerd, bundle, "start"), input=b"", env=env)
    assert done.returncode == 1
    assert os.fsencode(bundle.path / "config.json") in done.stderr
    assert not pairs(node)
    node.settled()


def test_a_start_that_is_refused_leaves_no_address(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    """An answer that is one address alone cannot say that gRPC is spoken there."""
    first, bundle = make_bundle("true"), make_bundle("true")
    start(node, containerd, first)
    env = {**os.environ, "TTRPC_ADDRESS": str(containerd.ttrpc)}
    argv = words(containerd, bundle, "start")
    done = node.launch(bundle.path, *argv, input=toml("TaskAPI = 'grpc'"), env=env)
    assert done.returncode == 1
    assert b"TaskAPI" in done.stderr
    assert not (bundle.path / "address").exists()


def test_apart_beside_a_host(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    """The host is asked first, and says that another one is to serve; so it does at the end."""
    common, alone = make_bundle("sleep", "1000"), make_bundle("sleep", "1000")
    sockets = [
        start(node, containerd, common),
        start(node, containerd, alone, toml("Share = 'container'")),
    ]
    live(sockets[0], common)
    live(sockets[1], alone)
    assert len(pairs(node)) == 2
    host, apart = (keeper_of(node, socket) for socket in sockets)
    assert host == node.keeper
    end(node, containerd, sockets[1], alone)
    wait_for_end(apart)
    assert pairs(node) == [node.state.name]
    end(node, containerd, sockets[0], common)
    assert node.keeper == host


def test_the_launchers_delete_alone_ends_a_pair_apart(
    node: Node, containerd: Containerd, make_bundle: MakeBundle
) -> None:
    """As containerd does it with a shim that it cannot reach."""
    bundle = make_bundle("sleep", "1000")
    socket = start(node, containerd, bundle, env={"DENSESHIM_SHARE": "container"})
    pid = live(socket, bundle)
    keeper = keeper_of(node, socket)
    done = node.launch(bundle.path, *words(containerd, bundle, "delete"), input=b"")
    assert (done.returncode, done.stderr) == (0, b"")
    deleted = task.DeleteResponse.FromString(done.stdout)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    assert not is_alive(pid)
    wait_for_end(keeper)
    node.settled()
