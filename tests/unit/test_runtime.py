"""The fake runtime shows what is asked for; the real ones show that they understand it."""

import json
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from shim import stdio
from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
)
from shim.model import CheckpointRequest, Launcher, RuntimeOptions
from shim.runtime import Runtime, read_pid
from tests.fakes.spawner import Spawner

FAKE = Path(__file__).parent.parent / "fakes" / "runtime"
OURSELVES = Launcher(os.environ)


@pytest.fixture
def bundle(tmp_path):
    return tmp_path


@pytest.fixture
def spawner():
    return Spawner()


@pytest.fixture
def fake(bundle, spawner):
    return Runtime(RuntimeOptions(str(FAKE)), bundle, spawner, OURSELVES)


@pytest.fixture
def null():
    with open(os.devnull, "r+b") as file:
        yield dict.fromkeys(range(3), file.fileno())


def behave(bundle, script):
    (bundle / "behaviour").write_text(script)


def argv(bundle):
    """What came after the options that all commands have."""
    words = (bundle / "argv").read_text().splitlines()
    assert words[:4] == ["--log", f"{bundle}/log.json", "--log-format", "json"]
    return words[4:]


SIMPLE = [
    (lambda r: r.start("c1"), ["start", "c1"]),
    (lambda r: r.kill("c1", 9), ["kill", "c1", "9"]),
    (lambda r: r.kill("c1", 15, all=True), ["kill", "--all", "c1", "15"]),
    (lambda r: r.delete("c1"), ["delete", "c1"]),
    (lambda r: r.delete("c1", force=True), ["delete", "--force", "c1"]),
    (lambda r: r.pause("c1"), ["pause", "c1"]),
    (lambda r: r.resume("c1"), ["resume", "c1"]),
]


@pytest.mark.parametrize(("call", "expected"), SIMPLE)
async def test_simple_commands(fake, bundle, spawner, call, expected):
    await call(fake)
    assert argv(bundle) == expected
    assert [child.releases for child in spawner.children] == [1]


@pytest.mark.parametrize(
    ("request_", "flags"),
    [
        (CheckpointRequest("/image"), ["--leave-running"]),
        (CheckpointRequest("/image", exit=True), []),
        (
            CheckpointRequest("/image", True, True, True, True, True, ("network", "ipc")),
            [
                "--tcp-established",
                "--ext-unix-sk",
                "--shell-job",
                "--file-locks",
                "--empty-ns",
                "network",
                "--empty-ns",
                "ipc",
            ],
        ),
    ],
)
async def test_checkpoint(fake, bundle, request_, flags):
    await fake.checkpoint("c1", request_)
    paths = ["--image-path", "/image", "--work-path", f"{bundle}/work"]
    assert argv(bundle) == ["checkpoint", *paths, *flags, "c1"]


async def test_checkpoint_with_a_work_directory_of_the_callers(fake, bundle):
    await fake.checkpoint("c1", CheckpointRequest("/image", exit=True, work="/w"))
    assert argv(bundle) == ["checkpoint", "--image-path", "/image", "--work-path", "/w", "c1"]


async def test_the_work_directory_is_not_containerds(bundle, spawner):
    """It has a link in the bundle, to what is its own."""
    theirs = bundle / "theirs"
    theirs.mkdir()
    (bundle / "work").symlink_to(theirs)
    runtime = Runtime(RuntimeOptions(str(FAKE)), bundle, spawner, OURSELVES)
    assert runtime.work == bundle / "work" / "criu-work"


async def test_update_gives_the_resources_on_stdin(fake, bundle):
    behave(bundle, 'cat >"$bundle/resources"')
    await fake.update("c1", b'{"pids": {"limit": 7}}')
    assert argv(bundle) == ["update", "--resources", "-", "c1"]
    assert (bundle / "resources").read_bytes() == b'{"pids": {"limit": 7}}'


async def test_features_are_about_no_container(fake, bundle):
    behave(bundle, """echo '{"ociVersionMin": "1.0.0"}'""")
    assert json.loads(await fake.features()) == {"ociVersionMin": "1.0.0"}
    assert argv(bundle) == ["features"]


CONSOLE = ["--console-socket", "/run/c"]


@pytest.mark.parametrize(
    ("socket", "options", "flags"),
    [
        (None, {}, []),
        (Path("/run/c"), {"no_pivot": True}, [*CONSOLE, "--no-pivot"]),
        (None, {"no_new_keyring": True}, ["--no-new-keyring"]),
    ],
)
async def test_create_and_restore(bundle, spawner, null, socket, options, flags):
    fake = Runtime(RuntimeOptions(str(FAKE), **options), bundle, spawner, OURSELVES)
    paths = ["--bundle", str(bundle), "--pid-file", f"{bundle}/init.pid", *flags]
    assert await fake.create("c1", null, socket) is spawner.children[0]
    assert argv(bundle) == ["create", *paths, "c1"]
    await fake.restore("c1", Path("/image"), null, socket)
    image = ["--image-path", "/image", "--work-path", f"{bundle}/work", "--detach"]
    assert argv(bundle) == ["restore", *image, *paths, "c1"]
    assert [child.releases for child in spawner.children] == [0, 0]


@pytest.mark.parametrize(("socket", "flags"), [(None, []), (Path("/run/c"), CONSOLE)])
async def test_exec(fake, bundle, spawner, null, socket, flags):
    await fake.exec("c1", Path("/p.json"), Path("/x.pid"), null, socket)
    options = ["--detach", "--process", "/p.json", "--pid-file", "/x.pid", *flags]
    assert argv(bundle) == ["exec", *options, "c1"]
    assert spawner.children[0].releases == 0


async def test_a_process_gets_the_descriptors_it_is_given(fake, bundle, null):
    behave(bundle, "cat; echo out; echo err >&2")
    ours = [stdio.pipe_for_input(), stdio.pipe_for_output(), stdio.pipe_for_output()]
    os.write(ours[0].ours, b"in ")
    os.close(ours[0].ours)
    await fake.create("c1", {number: pipe.theirs for number, pipe in enumerate(ours)})
    assert os.read(ours[1].ours, 100) == b"in out\n"
    assert os.read(ours[2].ours, 100) == b"err\n"
    stdio.close_all([ours[0].theirs, *ours[1], *ours[2]])


async def test_the_runtime_has_what_the_launcher_has_handed_down(bundle, spawner):
    launcher = Launcher(os.environ, umask=0o027, limits={7: (100, 200)}, oom_score_adj=9)
    joins = ("/sys/fs/cgroup/of/the/launcher/cgroup.procs",)
    await Runtime(RuntimeOptions(str(FAKE)), bundle, spawner, launcher, joins).start("c1")
    [command] = spawner.commands
    assert (command.umask, command.limits, command.joins) == (0o027, {7: (100, 200)}, joins)
    assert (command.env, command.oom_score_adj, command.death_signal) == (os.environ, 9, 9)


async def test_one_that_is_expected_back_is_refused_by_its_commands(bundle, spawner):
    options = RuntimeOptions("bin/runc")
    runtime = Runtime(options, bundle, spawner, OURSELVES, expected=True)
    with pytest.raises(InvalidArgument, match=f"{bundle}/bin/runc: No such file"):
        await runtime.start("c1")
    (bundle / "bin").mkdir()
    shutil.copy(FAKE, bundle / "bin" / "runc")
    await runtime.start("c1")


async def test_another_spawner_takes_the_same_commands(fake, bundle, spawner):
    other = Spawner()
    await fake.using(other).start("c1")
    assert ([command.argv[-1] for command in other.commands], spawner.commands) == (["c1"], [])
    await fake.start("c2")
    assert [command.argv[-1] for command in spawner.commands] == ["c2"]


async def test_what_all_commands_are_told(bundle, spawner):
    options = RuntimeOptions(str(FAKE), root="/run/containerd/runc/k8s.io", systemd_cgroup=True)
    await Runtime(options, bundle, spawner, OURSELVES).start("c1")
    [command] = spawner.commands
    assert command.argv[1:] == (
        "--root", "/run/containerd/runc/k8s.io", "--log", f"{bundle}/log.json",
        "--log-format", "json", "--systemd-cgroup", "start", "c1",
    )  # fmt: skip


async def test_the_criu_that_checkpoint_and_restore_are_to_use(bundle, spawner, tmp_path):
    fake = Runtime(RuntimeOptions(str(FAKE), criu="/opt/criu"), bundle, spawner, OURSELVES)
    await fake.start("c1")
    await fake.checkpoint("c1", CheckpointRequest(str(tmp_path)))
    start, checkpoint = (command.argv for command in spawner.commands)
    assert "--criu" not in start
    assert checkpoint[5:8] == ("--criu", "/opt/criu", "checkpoint")


async def test_state_is_what_the_runtime_prints_on_stdout(fake, bundle):
    behave(bundle, """echo warning >&2; echo '{"status": "running", "pid": 7}'""")
    assert await fake.state("c1") == {"status": "running", "pid": 7}
    assert argv(bundle) == ["state", "c1"]


async def test_a_long_state_is_read_to_its_end(fake, bundle):
    (bundle / "long").write_text(json.dumps({"annotations": "x" * 1_000_000}))
    behave(bundle, 'cat "$bundle/long"')
    assert len((await fake.state("c1"))["annotations"]) == 1_000_000


@pytest.mark.parametrize("printed", ["", "{", "[]"])
async def test_a_state_that_is_not_json_is_the_runtimes_failure(fake, bundle, printed):
    behave(bundle, f"echo '{printed}'")
    with pytest.raises(RuntimeFailed, match="JSON"):
        await fake.state("c1")


MEANINGS = [
    ("container does not exist", NotFound),
    ("container c1 does not exist", NotFound),
    ("error opening file `/run/crun/c1/status`: No such file or directory", NotFound),
    ("cannot open directory '/run/crun/c1': No such file or directory", NotFound),
    ("runc create failed: container with given ID already exists", AlreadyExists),
    ("container `c1` already exists", AlreadyExists),
    ("container not running", FailedPrecondition),
    ("the container `c1` is not running", FailedPrecondition),
    ("container not paused", FailedPrecondition),
    ("the container `c1` is paused", FailedPrecondition),
    ("cannot start an already running container", FailedPrecondition),
    ("cannot start a container that has stopped", FailedPrecondition),
    ("exec failed: cannot exec in a stopped container", FailedPrecondition),
    ("cannot exec in a paused container (use --ignore-paused to override)", FailedPrecondition),
    ("cannot delete container c1 that is not stopped: running", FailedPrecondition),
    ("the container `c1` is not in `created` or `stopped` state", FailedPrecondition),
    ("os: process already finished", FailedPrecondition),
    ("something else", RuntimeFailed),
    ("exec: 'container does not exist': executable file not found in $PATH", RuntimeFailed),
    ("exec: 'container not running': no such file", RuntimeFailed),
]


@pytest.mark.parametrize(("message", "error"), MEANINGS)
async def test_what_the_runtime_says_decides_the_error(fake, bundle, spawner, message, error):
    # Shell quoting: the fake gets the message from a file.
    (bundle / "message").write_text(message)
    behave(bundle, 'log "$(cat "$bundle/message")"; exit 1')
    with pytest.raises(error) as caught:
        await fake.start("c1")
    assert type(caught.value) is error
    assert str(caught.value) == f"OCI runtime start failed: {message}"
    assert spawner.children[0].releases == 1


WORDINGS = [
    (lambda r: r.delete("c1"), "failed to delete task: broken"),
    (lambda r: r.kill("c1", 9, all=True), "OCI runtime killall failed: broken"),
    (lambda r: r.pause("c1"), "OCI runtime pause failed: broken"),
]


@pytest.mark.parametrize(("call", "message"), WORDINGS)
async def test_clients_know_the_wording_of_failures(fake, bundle, call, message):
    behave(bundle, "log broken; exit 1")
    with pytest.raises(RuntimeFailed, match=f"^{message}$"):
        await call(fake)


async def test_a_failed_create_is_released_once(fake, bundle, spawner, null):
    behave(bundle, "log broken; exit 3")
    with pytest.raises(RuntimeFailed, match=r"^OCI runtime create failed: broken$"):
        await fake.create("c1", null)
    assert spawner.children[0].releases == 1


async def test_only_what_this_command_logged_counts(fake, bundle):
    behave(bundle, "log old; exit 1")
    with pytest.raises(RuntimeFailed, match="old"):
        await fake.start("c1")
    behave(bundle, "exit 1")
    with pytest.raises(RuntimeFailed, match="exit status 1, logging nothing"):
        await fake.start("c1")


async def test_the_last_error_counts_whatever_else_is_in_the_log(fake, bundle):
    behave(
        bundle,
        """log first; log last
        echo '{"level":"warning","msg":"careful"}' >>"$log_file"
        printf '%s\n' '{' '[]' '{"level":"error"}' '{"level":"error","msg":7}' >>"$log_file"
        head -c 1000 /dev/urandom >>"$log_file"
        exit 1""",
    )
    with pytest.raises(RuntimeFailed, match=r": last$"):
        await fake.start("c1")


async def test_a_huge_log_is_read_from_its_end(fake, bundle):
    (bundle / "huge").write_text("x" * 10_000_000 + "\n")
    behave(bundle, 'cat "$bundle/huge" >>"$log_file"; log last; exit 1')
    with pytest.raises(RuntimeFailed, match=r": last$"):
        await fake.start("c1")


async def test_a_log_that_is_no_file_does_not_hang(fake, bundle):
    os.mkfifo(bundle / "log.json")
    behave(bundle, "exit 1")
    with pytest.raises(RuntimeFailed, match="cannot be read"):
        await fake.start("c1")


async def test_a_long_message_is_cut(fake, bundle):
    behave(bundle, 'log "$(head -c 50000 /dev/zero | tr "\\0" x)"; exit 1')
    with pytest.raises(RuntimeFailed) as caught:
        await fake.start("c1")
    assert len(str(caught.value)) < 2200


async def test_stderr_speaks_when_the_log_does_not(fake, bundle):
    behave(bundle, "echo 'flag provided but not defined' >&2; exit 1")
    with pytest.raises(RuntimeFailed, match="flag provided"):
        await fake.start("c1")


async def test_a_runtime_that_is_killed(fake, bundle):
    behave(bundle, "kill -9 $$")
    with pytest.raises(RuntimeFailed, match="signal 9, Killed"):
        await fake.start("c1")


async def test_a_runtime_that_cannot_be_executed(bundle, spawner):
    broken = bundle / "broken"
    broken.write_text("#!/missing/interpreter\n")
    broken.chmod(0o755)
    runtime = Runtime(RuntimeOptions(str(broken)), bundle, spawner, OURSELVES)
    with pytest.raises(InvalidArgument, match=f"{broken}.*No such file"):
        await runtime.start("c1")
    assert spawner.children[0].releases == 1


@pytest.mark.parametrize("id", ["", "--help", "-f", "a/b", "a b", "a\0", "a\n", "é", "."])
async def test_what_could_be_taken_for_something_else_is_no_id(fake, spawner, id):
    with pytest.raises(InvalidArgument, match="cannot be a container's id"):
        await fake.delete(id)
    assert spawner.commands == []


async def test_nul_is_refused_before_anything_starts(fake, spawner):
    with pytest.raises(InvalidArgument, match="NUL"):
        await fake.checkpoint("c1", CheckpointRequest("/a\0b"))
    assert spawner.commands == []


async def test_no_descriptor_stays_open(fake, bundle):
    await fake.start("c1")
    before = len(os.listdir("/proc/self/fd"))
    await fake.start("c1")
    behave(bundle, "exit 1")
    with pytest.raises(RuntimeFailed):
        await fake.start("c1")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_name_is_searched_in_path_and_a_relative_path_in_the_bundle(bundle, spawner):
    (bundle / "bin").mkdir()
    shutil.copy(FAKE, bundle / "bin" / "runc")
    launcher = Launcher({"PATH": f"/missing:{bundle}/bin:{os.environ['PATH']}"})
    for command in ("runc", "", "bin/runc", f"{bundle}/bin/runc"):
        await Runtime(RuntimeOptions(command), bundle, spawner, launcher).start("c1")
    assert {command.argv[0] for command in spawner.commands} == {f"{bundle}/bin/runc"}


REFUSED = {name: f'no runtime "{name}"' for name in ("no-such", "/missing/runc", "./plain", ".")}
REFUSED["a\0"] = r"the runtime 'a\x00' holds NUL"


@pytest.mark.parametrize(("command", "message"), REFUSED.items())
def test_a_runtime_that_is_not_there_is_refused_by_name(bundle, spawner, command, message):
    (bundle / "plain").touch(mode=0o644)
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        Runtime(RuntimeOptions(command), bundle, spawner, Launcher({"PATH": "/usr/bin"}))


@pytest.mark.parametrize(("text", "pid"), [("1", 1), ("4194304", 4194304), ("77\n", 77)])
def test_a_pid_file(tmp_path, text, pid):
    (tmp_path / "pid").write_text(text)
    assert read_pid(tmp_path / "pid") == pid


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "4194305", "1 2", "1.0", "x", "9" * 5000, "٣", "1" + " " * 70000 + "2"]
)
def test_a_pid_file_without_a_pid(tmp_path, text):
    (tmp_path / "pid").write_text(text)
    with pytest.raises(RuntimeFailed, match="no pid"):
        read_pid(tmp_path / "pid")


def test_a_pid_file_that_is_not_there_or_no_file(tmp_path):
    with pytest.raises(RuntimeFailed, match="No such file"):
        read_pid(tmp_path / "pid")
    os.mkfifo(tmp_path / "pid")
    with pytest.raises(RuntimeFailed, match="not a regular file"):
        read_pid(tmp_path / "pid")


@pytest.fixture(params=["runc", "crun"])
def real(request, bundle, spawner):
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return Runtime(RuntimeOptions(request.param), bundle, spawner, OURSELVES)


@pytest.mark.parametrize("command", ["start", "delete", "pause", "resume", "state"])
async def test_real_runtimes_do_not_find_a_missing_container(real, command):
    with pytest.raises(NotFound):
        await getattr(real, command)(f"missing-{uuid.uuid4().hex}")


async def test_real_runtimes_refuse_a_bundle_without_a_configuration(real, null):
    with pytest.raises(RuntimeFailed, match="config"):
        await real.create("c1", null)


async def test_a_real_container_from_create_to_delete(bundle, spawner, null):
    runtime = Runtime(RuntimeOptions(), bundle, spawner, OURSELVES)
    id = f"denseshim-test-{uuid.uuid4().hex[:8]}"
    make_bundle(bundle)
    await runtime.create(id, null)
    try:
        state = await runtime.state(id)
        assert (state["status"], state["pid"]) == ("created", read_pid(runtime.pid_file))
        with pytest.raises(AlreadyExists):
            await runtime.create(id, null)
        await runtime.start(id)
        with pytest.raises(FailedPrecondition):
            await runtime.start(id)
        with pytest.raises(FailedPrecondition):
            await runtime.delete(id)
        await runtime.kill(id, 9)
    finally:
        await runtime.delete(id, force=True)
    with pytest.raises(NotFound):
        await runtime.state(id)


def make_bundle(bundle):
    """A container that waits, of a static busybox alone."""
    busybox = shutil.which("busybox")
    if busybox is None or shutil.which("runc") is None:
        pytest.skip("needs busybox and runc")
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy(busybox, bundle / "rootfs" / "bin" / "busybox")
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/bin/busybox", "sleep", "1000"]}
    (bundle / "config.json").write_text(json.dumps(spec))
