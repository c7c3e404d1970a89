"""Messages inside `google.protobuf.Any`, by the bare type names that containerd uses.

containerd compares type URLs as text and writes them without a host. Any's own Pack and Unpack
cannot do without one, so the URL is set and compared here.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from shim.errors import InvalidArgument

_HOST: Final = "type.googleapis.com/"

Content = TypeVar("Content", bound=Message)


def pack(message: Message, url: str) -> Any:
    """`message` under the type URL `url`, as it is."""
    return Any(type_url=url, value=message.SerializeToString())


def type_url(any: Any) -> str:
    """The type URL without the host that other programs put before it."""
    return any.type_url.removeprefix(_HOST)


def unpack(any: Any, url: str, cls: type[Content]) -> Content:
    """The `cls` in `any`, whose type URL must be `url`.

    Raises InvalidArgument for another type, and for bytes that are no `cls`.
    """
    if type_url(any) != url:
        raise InvalidArgument(f"type {any.type_url!r} where {url} is wanted")
    try:
        return cls.FromString(any.value)
    except DecodeError as error:
        raise InvalidArgument(f"the value of type {url} cannot be read: {error}") from error
