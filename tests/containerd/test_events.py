"""The order of events, and what becomes of exits while containerd is down."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.containerd.containerd import Container, Containerd, Result
from tests.containerd.gate import Gate
from tests.containerd.sizes import sized
from tests.containerd.support import PATIENCE, client, is_alive, new_id, until

LIFE = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
EXEC = ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]


def test_a_container_s_events_in_order(containerd: Containerd) -> None:
    """Its execs' too, and with the right ids, pids and statuses."""
    with containerd.events() as events:
        container = containerd.start_container("sleep", "1000")
        pid = container.pid
        for number in range(3):
            assert (
                container.exec("sh", "-c", f"exit {number}", id=f"e{number}").returncode == number
            )
        container.remove()
        seen = events.wait_for(container.id, "/tasks/delete")
    assert [e.topic for e in seen] == [*LIFE[:2], *EXEC, *EXEC, *EXEC, *LIFE[2:]]
    for number in range(3):
        own = [e for e in seen if e.process == f"e{number}"]
        assert [e.topic for e in own] == EXEC
        assert own[2].status == number
        assert own[1].fields["pid"] == own[2].fields["pid"] != pid
    init = [e for e in seen if not e.process]
    assert [e.topic for e in init] == LIFE
    assert {e.fields["pid"] for e in init} == {pid}
    assert [e.status for e in init] == [0, 0, 137, 137]
    assert init[2].fields["exited_at"] == init[3].fields["exited_at"]


def test_pause_and_resume_are_told(containerd: Containerd) -> None:
    with containerd.events() as events:
        container = containerd.start_container("sleep", "1000")
        containerd.do("tasks", "pause", container.id)
        containerd.do("tasks", "resume", container.id)
        container.remove()
        seen = [e.topic for e in events.wait_for(container.id, "/tasks/delete")]
    assert seen == [*LIFE[:2], "/tasks/paused", "/tasks/resumed", *LIFE[2:]]


def test_oom_is_told_after_the_start(containerd: Containerd, tmp_path: Path) -> None:
    """Programs are killed, and that is known, before the runtime has come back from its start."""
    gate, id = Gate(tmp_path, "start", "after"), new_id()
    hog = ("sh", "-c", "for i in 1 2 3; do dd if=/dev/zero of=/dev/null bs=100M; done; exit 3")
    options = ["--rm", "--memory-limit", "16000000", *gate.options]
    with containerd.events() as events, client(containerd.run_line(id, *hog, options=options)) as c:
        gate.reached()
        pid = Container(containerd, id).pid
        until(lambda: not is_alive(pid), "the kills")
        assert Container(containerd, id).pid == pid  # a call that comes after the news of it
        gate.open()
        c.communicate(timeout=PATIENCE)
        assert c.returncode == 3
        seen = [e.topic for e in events.wait_for(id, "/tasks/delete")]
    assert seen == [*LIFE[:2], "/tasks/oom", *LIFE[2:]]


def test_the_shortest_lives(containerd: Containerd) -> None:
    """Each is told whole, and in order, when 40 come and go at once."""
    ids = [new_id() for _ in range(40)]
    with containerd.events() as events, ThreadPoolExecutor(8) as pool:
        assert all(d.returncode == 7 for d in pool.map(lambda id: _exit_7(containerd, id), ids))
        for id in ids:
            seen = events.wait_for(id, "/tasks/delete")
            assert [e.topic for e in seen] == LIFE
            assert [e.status for e in seen] == [0, 0, 7, 7]


def _exit_7(containerd: Containerd, id: str) -> Result:
    return containerd.run("sh", "-c", "exit 7", id=id)


def test_execs_exit_before_their_container(containerd: Containerd) -> None:
    """When the init process is killed, those that die with it come first, each once."""
    with containerd.events() as events, ThreadPoolExecutor(5) as pool:
        container = containerd.start_container("sleep", "1000")
        execs = [pool.submit(container.exec, "sleep", "1001") for _ in range(5)]
        until(lambda: len(container.pids()) == 6, "five execs")
        container.kill("KILL")
        assert [e.result().returncode for e in execs] == [137] * 5
        container.wait_stopped()
        container.remove()
        exits = [e for e in events.wait_for(container.id, "/tasks/delete") if e.topic == LIFE[2]]
    assert [e.status for e in exits] == [137] * 6
    assert exits[-1].process == ""
    assert len({e.process for e in exits}) == 6


# In seconds, beyond what the containers take to end.
DOWN = sized(0.0, 60.0)


def test_demand_12_exits_while_containerd_is_down(
    own_containerd: Containerd, tmp_path: Path
) -> None:
    """Fifty containers end meanwhile; afterwards each is stopped, with its status."""
    script = "until [ -e /shared/go ]; do sleep 0.2; done; exit $0"
    mount = f"type=bind,src={tmp_path},dst=/shared,options=rbind:ro"
    options = ["--null-io", "--mount", mount]

    def start(number: int) -> Container:
        return own_containerd.start_container("sh", "-c", script, str(number), options=options)

    with ThreadPoolExecutor(8) as pool:
        containers = list(pool.map(start, range(1, 51)))
        pids = own_containerd.pids().values()
        own_containerd.kill()
        (tmp_path / "go").touch()
        until(lambda: not any(map(is_alive, pids)), "the containers end")
        time.sleep(DOWN)  # what is tested
        own_containerd.start()
        assert set(own_containerd.states().values()) == {"STOPPED"}
        for number, container in enumerate(containers, 1):
            done = own_containerd.ctr("tasks", "rm", container.id)
            assert f"exit with non-zero exit code {number}".encode() in done.stderr
            own_containerd.do("containers", "rm", container.id)
