"""What a launcher asks of which pair; and the program in a namespace where a fake host serves."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

import shim
from shim import launching, pair
from shim._pb import ttrpc_pb2 as ttrpc
from shim._pb.containerd.runc.v1.options_pb2 import Options
from shim._pb.containerd.task.v3.task_pb2 import DeleteResponse
from shim._pb.containerd.types.introspection_pb2 import RuntimeInfo
from shim._pb.denseshim.host.v1.host_pb2 import LaunchRequest
from shim.bootstrap import group
from shim.detach import CannotStart
from shim.launching import Outcome, answer_to
from shim.pair import Settings
from tests.fakes.door import HEADER, PATIENCE, Door, Place, answer, refusal

NAME = b"containerd-shim-dense-v2"
OPTIONS = ["-namespace", "ns", "-address", "/c", "-id", "box"]
START = [*OPTIONS, "start"]
POD = {"io.kubernetes.cri.sandbox-id": "pod"}


class Pairs:
    """All pairs: each call meets a new connection that holds the next answer already."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.met: list[tuple[Path, Settings]] = []
        self.ends: list[socket.socket] = []

    def ensure(self, directory: Path, settings: Settings) -> socket.socket:
        self.met.append((directory, settings))
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        if self.answers[0]:
            theirs.sendall(self.answers.pop(0))
        else:
            self.answers.pop(0)
            theirs.shutdown(socket.SHUT_WR)
        return ours

    def request(self) -> LaunchRequest:
        """What the last pair was asked."""
        data = b"".join(iter(lambda: self.ends[-1].recv(1 << 20), b""))
        payload = ttrpc.Request.FromString(data[HEADER.size :]).payload
        return LaunchRequest.FromString(payload)


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pairs]:
    """All pairs, for a launcher in a bundle, of a containerd that is there."""
    found = Pairs()
    monkeypatch.setattr(pair, "ensure", found.ensure)
    monkeypatch.setattr(pair, "STATE", tmp_path / "state")
    monkeypatch.setattr(launching, "_read_stdin", lambda: b"")
    for name in ("DENSESHIM_SHARE", "SCHED_CORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TTRPC_ADDRESS", f"unix://{tmp_path}/c.ttrpc")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "bundle")
    with socket.socket(socket.AF_UNIX) as containerd:
        containerd.bind(f"{tmp_path}/c.ttrpc")
        containerd.listen()
        yield found
    for end in found.ends:
        end.close()


def launch(*arguments: str) -> Outcome:
    return answer_to([NAME, *(os.fsencode(word) for word in arguments)])


def directory_of(owner: str) -> Path:
    """Of the pair that serves a container or pod alone."""
    [key] = group.apart_keys("/c", "ns", owner, owner)
    return pair.apart_directory(key)


def own_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def apart(debug: bool = False, cgroup: str = "", sched_core: bool = False) -> Settings:
    return Settings(True, debug, min(own_score() + 1, 1000), cgroup, sched_core)


# ---- start ----


def test_the_host_is_told_all_that_the_launcher_has(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_read_stdin", lambda: Any().SerializeToString())
    monkeypatch.setitem(os.environb, b"ODD", b"\xff")
    umask = os.umask(0o027)
    try:
        pairs.answers = [answer(0, b"unix:///s")]
        assert launch("-debug", *START) == Outcome(0, b"unix:///s")
        assert os.umask(umask) == 0o027
    finally:
        os.umask(umask)
    assert pairs.met == [(pair.host_directory(), Settings(debug=True))]
    asked = pairs.request()
    assert list(asked.argv) == [NAME, b"-debug", *(word.encode() for word in START)]
    assert b"ODD=\xff" in asked.env
    assert asked.cwd == os.getcwdb()
    assert (asked.stdin, asked.umask) == (b"", 0o027)
    assert asked.cgroup == Path("/proc/self/cgroup").read_bytes()
    assert asked.oom_score_adj == own_score()
    limits = {limit.resource: (limit.soft, limit.hard) for limit in asked.limits}
    assert len(limits) == 16
    wanted = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits[resource.RLIMIT_NOFILE] == wanted
    for kind in range(16):
        for ours, theirs in zip(resource.getrlimit(kind), limits[kind], strict=True):
            assert theirs == (2**64 - 1 if ours == resource.RLIM_INFINITY else ours)


@pytest.mark.parametrize("text", [None, "", "[]"])
def test_no_pair_is_started_for_what_is_no_bundle(pairs: Pairs, text: str | None) -> None:
    Path("config.json").unlink()
    if text is not None:
        Path("config.json").write_text(text)
    outcome = launch(*START)
    assert outcome.status == 1
    assert os.fsencode(Path.cwd() / "config.json") in outcome.stderr
    assert pairs.met == []


def test_an_outcome_is_passed_on(pairs: Pairs) -> None:
    pairs.answers = [answer(9, b"\xff", b"why\n")]
    assert launch(*START) == Outcome(9, b"\xff", b"why\n")


def test_a_container_that_wants_no_company(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("config.json").write_text(json.dumps({"annotations": POD}))
    for wish, owner in (("container", "box"), ("pod", "pod")):
        monkeypatch.setenv("DENSESHIM_SHARE", wish)
        pairs.answers, pairs.met = [answer()], []
        assert launch(*START) == Outcome()
        assert pairs.met == [(directory_of(owner), apart())]


def test_a_container_that_the_host_may_not_serve(pairs: Pairs) -> None:
    pairs.answers = [answer(apart=True), answer(0, b"unix:///s")]
    assert launch("-debug", *START) == Outcome(0, b"unix:///s")
    assert pairs.met == [
        (pair.host_directory(), Settings(debug=True)),
        (directory_of("box"), apart(debug=True)),
    ]


def test_a_container_that_nobody_serves(pairs: Pairs) -> None:
    pairs.answers = [answer(apart=True), answer(apart=True)]
    assert launch(*START).stderr.startswith(b"containerd-shim-dense-v2: no shim may serve")


def test_a_cgroup_and_a_cookie_for_the_shim(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(shim_cgroup="/shims").SerializeToString()
    any = Any(type_url="containerd.runc.v1.Options", value=options)
    monkeypatch.setattr(launching, "_read_stdin", any.SerializeToString)
    monkeypatch.setenv("SCHED_CORE", "1")
    pairs.answers = [answer()]
    assert launch(*START) == Outcome()
    assert pairs.met == [(directory_of("box"), apart(cgroup="/shims", sched_core=True))]


@pytest.mark.parametrize("tries", [1, 2])
def test_a_pair_that_ends_before_it_is_asked_is_started_again(pairs: Pairs, tries: int) -> None:
    pairs.answers = [*[b""] * tries, answer(0, b"unix:///s")]
    assert launch(*START) == Outcome(0, b"unix:///s")
    assert len(pairs.met) == tries + 1


def test_a_pair_that_never_answers_is_given_up(pairs: Pairs) -> None:
    pairs.answers = [b""] * 3
    outcome = launch(*START)
    assert (outcome.status, outcome.stdout) == (1, b"")
    assert b"hung up" in outcome.stderr


def test_a_call_that_was_refused_is_not_made_again(pairs: Pairs) -> None:
    pairs.answers = [refusal(14, "the shim's front died twice over\n this request")]
    assert launch(*START) == Outcome(
        1, b"", b"containerd-shim-dense-v2: the shim's front died twice over this request\n"
    )
    assert len(pairs.met) == 1


@pytest.mark.parametrize("address", ["", "/no/such/socket", "unix:///no/such/socket", "/"])
def test_nothing_is_started_for_a_containerd_that_is_not_there(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("TTRPC_ADDRESS", address)
    outcome = launch(*START)
    assert (outcome.status, outcome.stdout, outcome.stderr.count(b"\n")) == (1, b"", 1)
    assert b"TTRPC_ADDRESS" in outcome.stderr
    assert pairs.met == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "is not an action"),
        (["start"], "no namespace is given"),
        (["-namespace", "ns", "-id", "\udcff", "start"], r"the id '\udcff' is not"),
    ],
)
def test_a_wrong_command_line(pairs: Pairs, arguments: list[str], message: str) -> None:
    outcome = launch(*arguments)
    assert (outcome.status, outcome.stdout) == (1, b"")
    assert message in outcome.stderr.decode()
    assert pairs.met == []


def test_a_pair_that_cannot_start(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(directory: Path, settings: Settings) -> socket.socket:
        raise CannotStart("the reason, \udcff")

    monkeypatch.setattr(pair, "ensure", ensure)
    wanted = b"containerd-shim-dense-v2: the reason, \\udcff\n"
    assert launch(*START) == Outcome(1, b"", wanted)


# ---- delete ----


def delete(*more: str) -> Outcome:
    return launch(*OPTIONS, "-bundle", os.getcwd(), *more, "delete")


def is_killed(outcome: Outcome) -> bool:
    found = DeleteResponse.FromString(outcome.stdout)
    recent = abs(found.exited_at.ToSeconds() - os.stat(".").st_mtime) < 600
    return (outcome.status, found.pid, found.exit_status) == (0, 0, 137) and recent


def test_what_no_pair_has_ever_seen_is_gone(pairs: Pairs) -> None:
    assert is_killed(delete())
    assert pairs.met == []


def test_the_host_deletes_what_it_has(pairs: Pairs) -> None:
    pair.host_directory().mkdir(parents=True)
    pairs.answers = [answer(0, b"answer")]
    assert delete("-debug") == Outcome(0, b"answer")
    assert pairs.met == [(pair.host_directory(), Settings(debug=True))]


def test_what_a_pair_apart_has_left(pairs: Pairs) -> None:
    pair.host_directory().mkdir(parents=True)
    Path("config.json").write_text(json.dumps({"annotations": POD}))
    for owner in ("box", "pod"):
        directory_of(owner).mkdir()
        pairs.answers, pairs.met = [answer(0, b"answer")], []
        assert delete() == Outcome(0, b"answer")
        assert pairs.met == [(directory_of(owner), apart())]


def test_what_was_apart_and_is_gone(pairs: Pairs) -> None:
    pair.host_directory().mkdir(parents=True)
    pairs.answers = [answer(apart=True)]
    assert is_killed(delete())


# ---- info and version ----


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime on PATH that knows its features."""
    path = tmp_path / "a-runtime"
    path.write_text('#!/bin/sh\n[ "$*" = features ] && echo \'{"hooks":[]}\'\n')
    path.chmod(0o755)
    options = Options(binary_name=path.name).SerializeToString()
    any = Any(type_url="containerd.runc.v1.Options", value=options)
    monkeypatch.setattr(launching, "_read_stdin", any.SerializeToString)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def test_information_needs_no_pair(pairs: Pairs, runtime: Path) -> None:
    found = RuntimeInfo.FromString(launch("-info").stdout)
    assert found.version.version == shim.__version__
    assert found.features.value == b'{"hooks":[]}\n'
    assert found.options.type_url == "containerd.runc.v1.Options"


def test_a_runtime_without_features(pairs: Pairs, runtime: Path) -> None:
    runtime.write_text("#!/bin/sh\necho no such command\nexit 1\n")
    found = RuntimeInfo.FromString(launch("-info").stdout)
    assert not found.HasField("features")


def test_a_runtime_that_is_not_there(pairs: Pairs, runtime: Path) -> None:
    runtime.unlink()
    outcome = launch("-info")
    assert outcome.status == 1
    assert b'no runtime "a-runtime" on PATH' in outcome.stderr


def test_the_version(pairs: Pairs) -> None:
    wanted = f"containerd-shim-dense-v2 {shim.__version__}\n".encode()
    assert launch("-v") == Outcome(0, wanted)


# ---- The program ----


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


def run(
    place: Place, *arguments: str, stdin: bytes = b"", cwd: Path = Path("/"), **env: str
) -> Outcome:
    command = [sys.executable, "-I", "-m", "shim.launcher", NAME, *arguments]
    done = subprocess.run(
        place.command(command, cwd),
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **env},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_program_asks_the_host_of_its_namespaces(place: Place, tmp_path: Path) -> None:
    address = tmp_path / "c.ttrpc"
    (tmp_path / "config.json").write_text("{}")
    with Door(place) as door, socket.socket(socket.AF_UNIX) as containerd:
        containerd.bind(os.fspath(address))
        containerd.listen()
        door.answers.put(answer(3, b"\xff\0out", b"why\n"))
        outcome = run(place, *START, stdin=b"\n\0", cwd=tmp_path, TTRPC_ADDRESS=str(address))
        assert outcome == Outcome(3, b"\xff\0out", b"why\n")
        asked = door.call().launch
    assert (asked.stdin, asked.cwd) == (b"\n\0", os.fsencode(tmp_path))
    assert list(asked.argv) == [NAME, *(word.encode() for word in START)]


def test_the_program_says_what_is_wrong_and_nothing_else(place: Place) -> None:
    outcome = run(place, *START, TTRPC_ADDRESS="/none")
    assert (outcome.status, outcome.stdout, outcome.stderr.count(b"\n")) == (1, b"", 1)
    assert not (place.state / "starting").exists()


def test_the_program_by_its_name_of_2017() -> None:
    name = "/bin/containerd-shim-dense"
    command = [sys.executable, "-I", "-m", "shim.launcher", name, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == f"{shim.__version__}\n"


# Goes wrong as nothing should, after a warning and words on both streams.
DEFECT = """
import sys, warnings
from shim import launcher, launching
def answer_to(argv):
    warnings.warn("a warning")
    print("noise")
    sys.stdout.flush()
    sys.stderr.write("noise")
    if len(argv) > 1:
        raise AssertionError("a defect")
    return launching.Outcome(5, b"answer", b"error")
launching.answer_to = answer_to
launcher.main()
"""


def defect(*arguments: str) -> Outcome:
    command = [sys.executable, "-c", DEFECT, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_answer_stands_alone() -> None:
    assert defect("name") == Outcome(5, b"answer", b"error")


def test_a_defect_is_told() -> None:
    outcome = defect("name", "more")
    assert (outcome.status, outcome.stdout) == (1, b"")
    assert outcome.stderr.startswith(b"Traceback")
    assert b"noise" not in outcome.stderr
    assert b"AssertionError: a defect" in outcome.stderr
