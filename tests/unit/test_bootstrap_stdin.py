"""The two forms of stdin, which parse as each other."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from shim._pb.containerd.runc.v1.options_pb2 import Options
from shim._pb.containerd.runtime.bootstrap.v1.bootstrap_pb2 import (
    TRACE,
    BootstrapParams,
    Extension,
)
from shim.bootstrap.stdin import Start, read_options, read_start
from shim.errors import InvalidArgument

OPTIONS = Any(type_url="containerd.runc.v1.Options", value=Options(io_uid=5).SerializeToString())
FOREIGN = Any(type_url="io.example.Extension", value=b"x")


def params(*extensions: Any, id: str = "box", namespace: str = "ns") -> BootstrapParams:
    return BootstrapParams(
        instance_id=id,
        namespace=namespace,
        log_level=TRACE,
        containerd_ttrpc_address="/run/c.sock.ttrpc",
        extensions=[Extension(value=any) for any in extensions],
    )


def test_nothing_on_stdin() -> None:
    assert read_start(b"", "box", "ns") == Start()


def test_options_alone() -> None:
    assert read_start(OPTIONS.SerializeToString(), "box", "ns") == Start(OPTIONS)


def test_parameters_with_options_among_their_extensions() -> None:
    found = params(FOREIGN, OPTIONS)
    assert read_start(found.SerializeToString(), "box", "ns") == Start(OPTIONS, found)


def test_parameters_without_options() -> None:
    found = params()
    assert read_start(found.SerializeToString(), "box", "ns") == Start(None, found)


def test_parameters_with_foreign_extensions_alone() -> None:
    """They may be meant as options: whoever decodes them says that they are of no known type."""
    found = params(FOREIGN)
    assert read_start(found.SerializeToString(), "box", "ns") == Start(FOREIGN, found)


def test_parameters_of_another_container_are_none() -> None:
    """Such bytes are an Any whose type is that container: what follows refuses it by name."""
    for other in (params(id="other"), params(namespace="other")):
        found = read_start(other.SerializeToString(), "box", "ns")
        assert found.params is None
        assert found.options is not None
        assert found.options.type_url == other.instance_id


def test_options_that_are_no_text_are_no_parameters() -> None:
    any = Any(type_url="box", value=b"\xff\xfe")
    assert read_start(any.SerializeToString(), "box", "ns") == Start(any)


def test_a_negative_level_is_ten_bytes() -> None:
    data = b"\x0a\x03box\x12\x02ns\x18" + b"\xf8" + b"\xff" * 8 + b"\x01"
    found = read_start(data, "box", "ns").params
    assert found is not None
    assert found.log_level == TRACE


def test_what_is_neither() -> None:
    with pytest.raises(InvalidArgument, match=r"not a google\.protobuf\.Any"):
        read_start(b"\xff", "box", "ns")


def test_options_of_info() -> None:
    assert read_options(b"") is None
    assert read_options(OPTIONS.SerializeToString()) == OPTIONS


@given(st.binary())
def test_whatever_the_bytes_are(data: bytes) -> None:
    try:
        read_start(data, "box", "ns")
    except InvalidArgument:
        return
