"""Messages in Any: the names that travel, and what is refused."""

import pytest
from google.protobuf.any_pb2 import Any

from shim._pb.containerd.runc.v1 import options_pb2
from shim.api import anys
from shim.errors import InvalidArgument

URL = "containerd.runc.v1.Options"
OPTIONS = options_pb2.Options(binary_name="crun", io_uid=7)


def test_the_type_url_is_bare():
    packed = anys.pack(OPTIONS, URL)
    assert (packed.type_url, packed.value) == (URL, OPTIONS.SerializeToString())
    assert packed.SerializeToString().startswith(b"\x0a\x1acontainerd.runc.v1.Options\x12")


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_the_url_is_read_with_and_without_a_host(prefix):
    packed = Any(type_url=prefix + URL, value=OPTIONS.SerializeToString())
    assert anys.type_url(packed) == URL
    assert anys.unpack(packed, URL, options_pb2.Options) == OPTIONS


def test_what_protobuf_itself_packs_is_read():
    packed = Any()
    packed.Pack(OPTIONS)
    assert anys.unpack(packed, URL, options_pb2.Options) == OPTIONS


def test_a_url_with_a_path_is_no_host():
    packed = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process")
    assert anys.type_url(packed) == packed.type_url


@pytest.mark.parametrize(
    "url", ["", "/" + URL, "example.org/" + URL, "containerd.runc.v1.CheckpointOptions", URL + "x"]
)
def test_another_type_is_refused_by_its_name(url):
    packed = Any(type_url=url, value=OPTIONS.SerializeToString())
    with pytest.raises(InvalidArgument, match=f"type '{url}' where {URL} is wanted"):
        anys.unpack(packed, URL, options_pb2.Options)


def test_bytes_that_are_no_such_message_are_refused():
    with pytest.raises(InvalidArgument, match=f"the value of type {URL} cannot be read"):
        anys.unpack(Any(type_url=URL, value=b"\x32\x7f"), URL, options_pb2.Options)


def test_no_bytes_are_a_message_without_fields():
    assert anys.unpack(Any(type_url=URL), URL, options_pb2.Options) == options_pb2.Options()
