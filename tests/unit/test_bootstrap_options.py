"""Options of containers and checkpoints, of each type that containerd may send."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from shim._pb.containerd.linux.runc import options_pb2 as linux_pb2
from shim._pb.containerd.runc.v1 import options_pb2 as runc_pb2
from shim._pb.runtimeoptions.v1 import options_pb2 as runtime_pb2
from shim.bootstrap.options import Options, decode, decode_checkpoint, is_options
from shim.errors import InvalidArgument
from shim.model import CheckpointRequest, RuntimeOptions

RUNC = "containerd.runc.v1.Options"
CREATE = "containerd.linux.runc.CreateOptions"
TOML = "runtimeoptions.v1.Options"
CHECKPOINT = "containerd.runc.v1.CheckpointOptions"
OLD_CHECKPOINT = "containerd.linux.runc.CheckpointOptions"


def packed(name: str, message: runc_pb2.Options | runtime_pb2.Options) -> Any:
    return Any(type_url=name, value=message.SerializeToString())


def toml(text: str) -> Any:
    return packed(TOML, runtime_pb2.Options(config_body=text.encode()))


@pytest.mark.parametrize("any", [None, Any(), Any(type_url=RUNC), Any(type_url=TOML)])
def test_no_options_are_the_defaults(any: Any | None) -> None:
    assert decode(any) == Options()


def test_options_of_runc() -> None:
    message = runc_pb2.Options(
        no_pivot_root=True,
        no_new_keyring=True,
        shim_cgroup="/shims",
        io_uid=5,
        io_gid=6,
        binary_name="crun",
        root="/run/r",
        systemd_cgroup=True,
        criu_path="/c",
        criu_image_path="/i",
        criu_work_path="/w",
    )
    runtime = RuntimeOptions("crun", "/run/r", True, True, True, 5, 6, "/c", "/i", "/w")
    for name in (RUNC, f"type.googleapis.com/{RUNC}", f"/{RUNC}"):
        assert decode(packed(name, message)) == Options(runtime, shim_cgroup="/shims")


def test_options_of_old_clients() -> None:
    message = linux_pb2.CreateOptions(
        no_pivot_root=True,
        no_new_keyring=True,
        shim_cgroup="/shims",
        io_uid=5,
        io_gid=6,
        criu_work_path="/w",
        criu_image_path="/i",
    )
    runtime = RuntimeOptions("", "", True, True, False, 5, 6, "", "/i", "/w")
    assert decode(packed(CREATE, message)) == Options(runtime, shim_cgroup="/shims")


FULL = """
BinaryName = 'crun'
Root = "/run/r"
NoPivotRoot = true
NoNewKeyring = true
SystemdCgroup = true
IoUid = 5
IoGid = 6
CriuPath = "/c"
CriuImagePath = "/i"
CriuWorkPath = "/w"
ShimCgroup = "/shims"
Share = "pod"
TaskAPI = "grpc"
Unknown = [1, {a = 2}]
"""


def test_options_of_cri() -> None:
    runtime = RuntimeOptions("crun", "/run/r", True, True, True, 5, 6, "/c", "/i", "/w")
    assert decode(toml(FULL)) == Options(runtime, "/shims", "pod", "grpc")


def test_options_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("BinaryName = 'crun'")
    message = runtime_pb2.Options(type_url="anything", config_path=str(path))
    assert decode(packed(TOML, message)).runtime.runtime == "crun"
    message.config_body = b"Root = '/r'"
    assert decode(packed(TOML, message)).runtime == RuntimeOptions(root="/r")


def test_a_file_that_would_block_or_is_not_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, message in (("fifo", "no regular file"), (".", "cannot read"), ("no", "No such")):
        any = packed(TOML, runtime_pb2.Options(config_path=str(tmp_path / name)))
        with pytest.raises(InvalidArgument, match=message):
            decode(any)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=", "not TOML"),
        ("a=" + "[" * 5000, "not TOML"),
        ("BinaryName = 5", "BinaryName is of type int, not str"),
        ("IoUid = true", "IoUid is of type bool, not int"),
        ("NoPivotRoot = 1", "NoPivotRoot is of type int, not bool"),
        ("IoGid = -1", "IoGid is not between 0 and 4294967295"),
        (f"IoUid = 0x{'f' * 9000}", "IoUid is not between"),
        ('Root = "a\\u0000b"', "Root holds NUL"),
        ("Share = 'all'", "Share is 'all', not one of host, pod, container"),
        ("TaskAPI = 'http'", "TaskAPI is 'http', not one of ttrpc, grpc"),
    ],
)
def test_wrong_toml_is_refused_by_key(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        decode(toml(text))


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(InvalidArgument, match="not TOML"):
        decode(packed(TOML, runtime_pb2.Options(config_body=b"\xff")))


def test_an_unknown_type_is_named_with_those_that_are_known() -> None:
    any = Any(type_url="io.example.Options", value=b"")
    assert not is_options(any)
    with pytest.raises(InvalidArgument) as caught:
        decode(any)
    assert all(name in str(caught.value) for name in ("io.example.Options", RUNC, CREATE, TOML))


def test_a_value_without_a_type() -> None:
    with pytest.raises(InvalidArgument, match="options of type ''"):
        decode(Any(value=b"x"))


def test_a_value_that_is_not_of_its_type() -> None:
    with pytest.raises(InvalidArgument, match=r"not a containerd\.runc\.v1\.Options"):
        decode(Any(type_url=RUNC, value=b"\xff"))


def test_a_path_with_nul() -> None:
    with pytest.raises(InvalidArgument, match="binary_name holds NUL"):
        decode(packed(RUNC, runc_pb2.Options(binary_name="a\0b")))


def test_no_checkpoint_options() -> None:
    for any in (None, Any()):
        assert decode_checkpoint(any, "/image") == CheckpointRequest("/image")


def test_checkpoint_options_of_both_times() -> None:
    values = {
        "exit": True,
        "open_tcp": True,
        "external_unix_sockets": True,
        "terminal": True,
        "file_locks": True,
        "empty_namespaces": ["network"],
        "image_path": "/i",
        "work_path": "/w",
    }
    wanted = CheckpointRequest(
        "/image", True, True, True, True, True, ("network",), work="/w"
    )
    for name, kind in (
        (CHECKPOINT, runc_pb2.CheckpointOptions),
        (OLD_CHECKPOINT, linux_pb2.CheckpointOptions),
    ):
        any = Any(type_url=name, value=kind(**values).SerializeToString())
        assert decode_checkpoint(any, "/image") == wanted
        assert decode_checkpoint(any, "").image == "/i"


def test_the_two_paths_have_changed_places() -> None:
    for name, image in ((CHECKPOINT, b"\x42"), (OLD_CHECKPOINT, b"\x4a")):
        found = decode_checkpoint(Any(type_url=name, value=image + b"\x02/i"), "")
        assert (found.image, found.work) == ("/i", "")


def test_an_unknown_type_of_checkpoint_options() -> None:
    with pytest.raises(InvalidArgument, match="checkpoint options of type"):
        decode_checkpoint(Any(type_url=RUNC), "/image")


@given(
    st.sampled_from([RUNC, CREATE, TOML, CHECKPOINT, OLD_CHECKPOINT, "", "x"]),
    st.one_of(
        st.binary(),
        st.binary().map(lambda body: runtime_pb2.Options(config_body=body).SerializeToString()),
        st.text().map(
            lambda body: runtime_pb2.Options(config_body=body.encode()).SerializeToString()
        ),
    ),
)
def test_whatever_the_bytes_are(name: str, value: bytes) -> None:
    any = Any(type_url=name, value=value)
    for read in (decode, lambda any: decode_checkpoint(any, "/i")):
        try:
            read(any)
        except InvalidArgument:
            continue
