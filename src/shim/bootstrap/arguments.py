"""The command line of a launcher (contract: runtime-v2, Invocations)."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shim.errors import InvalidArgument

USAGE: Final = "-namespace NS -id ID [-address PATH] [-bundle DIR] [-debug] start|delete, or -info"

_MAX_IDENTIFIER: Final = 76
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_BOOLEAN: Final = frozenset({b"debug", b"h", b"help", b"info", b"v", b"version"})
_VALUED: Final = frozenset({b"namespace", b"id", b"address", b"publish-binary", b"bundle"})
_FALSE: Final = frozenset({b"0", b"f", b"F", b"false", b"FALSE", b"False"})


class Action(enum.Enum):
    """What a launcher is to do."""

    START = "start"
    DELETE = "delete"
    INFO = "info"
    VERSION = "version"


_WORDS: Final = {b"start": Action.START, b"delete": Action.DELETE}


@dataclass(frozen=True)
class Invocation:
    """A launcher's command line. INFO and VERSION have an empty id and namespace.

    Paths are as os.fsdecode gives them; `address` is containerd's own, as it was written.
    """

    action: Action
    namespace: str = ""
    id: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    debug: bool = False


def parse(argv: Sequence[bytes]) -> Invocation:
    """What the command line `argv`, the program's name first, asks for.

    Flags are as Go's: one dash or two, the value beside `=` or as the next word; their order
    does not matter, and those that we do not know are passed over. Raises InvalidArgument.
    """
    if any(b"\0" in word for word in argv):
        raise InvalidArgument("the command line holds NUL")
    flags: dict[bytes, bytes] = {}
    words: list[bytes] = []
    for name, value in _items(argv[1:]):
        if name:
            flags[name] = value
        else:
            words.append(value)
    action = _action(flags, words)
    if action in (Action.INFO, Action.VERSION):
        return Invocation(action, debug=_is_set(flags, b"debug"))
    return Invocation(
        action,
        namespace=check_identifier(_text(flags, b"namespace"), "namespace"),
        id=check_identifier(_text(flags, b"id"), "id"),
        address=_text(flags, b"address"),
        publish_binary=_text(flags, b"publish-binary"),
        bundle=_text(flags, b"bundle"),
        debug=_is_set(flags, b"debug"),
    )


def check_identifier(text: str, what: str) -> str:
    """`text`, when it may be the name of a container, an exec or a namespace.

    Raises InvalidArgument, which calls it `what`.
    """
    if not text:
        raise InvalidArgument(f"no {what} is given")
    if len(text) > _MAX_IDENTIFIER:
        raise InvalidArgument(f"the {what} {text[:20]!r}… is longer than {_MAX_IDENTIFIER} bytes")
    if _IDENTIFIER.fullmatch(text) is None:
        raise InvalidArgument(
            f"the {what} {text!r} is not made of letters and digits, joined by single '.', '_', '-'"
        )
    return text


def _items(words: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Each flag with its value; what is none has an empty name."""
    rest = iter(enumerate(words, 1))
    for following, word in rest:
        if word == b"--":
            yield from ((b"", word) for _, word in rest)
        elif not _is_flag(word):
            yield b"", word
        else:
            name, equals, value = word.removeprefix(b"-").removeprefix(b"-").partition(b"=")
            if not equals and _takes(name, words[following : following + 1]):
                value = next(rest)[1]
            yield name, value


def _is_flag(word: bytes) -> bool:
    return word.startswith(b"-") and word != b"-"


def _takes(name: bytes, following: Sequence[bytes]) -> bool:
    """Whether the word after flag `name` is its value; of a flag that we do not know: likely."""
    if not following or name in _BOOLEAN:
        return False
    return name in _VALUED or not (_is_flag(following[0]) or following[0] in _WORDS)


def _action(flags: dict[bytes, bytes], words: list[bytes]) -> Action:
    if _is_set(flags, b"v") or _is_set(flags, b"version"):
        return Action.VERSION
    if _is_set(flags, b"info"):
        return Action.INFO
    if len(words) != 1 or words[0] not in _WORDS:
        given = " ".join(os.fsdecode(word) for word in words)
        raise InvalidArgument(f"{given!r} is not an action; the arguments are {USAGE}")
    return _WORDS[words[0]]


def _is_set(flags: dict[bytes, bytes], name: bytes) -> bool:
    return name in flags and flags[name] not in _FALSE


def _text(flags: dict[bytes, bytes], name: bytes) -> str:
    return os.fsdecode(flags.get(name, b""))
