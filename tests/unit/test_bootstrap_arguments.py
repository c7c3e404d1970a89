"""Command lines of launchers, as containerd writes them and as anybody might."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.bootstrap.arguments import Action, Invocation, check_identifier, parse
from shim.errors import InvalidArgument

PROGRAM = b"containerd-shim-dense-v2"


def parsed(line: str) -> Invocation:
    return parse([PROGRAM, *(word.encode() for word in shlex.split(line))])


def test_start_as_containerd_asks_for_it() -> None:
    line = (
        "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id box start"
    )
    assert parsed(line) == Invocation(
        Action.START, "k8s.io", "box", "/run/c.sock", "/usr/bin/containerd"
    )


def test_delete_names_its_bundle() -> None:
    line = "-namespace ns -address /c -publish-binary b -id box -bundle /run/box -debug delete"
    assert parsed(line) == Invocation(Action.DELETE, "ns", "box", "/c", "b", "/run/box", True)


@pytest.mark.parametrize("line", ["-info", "--info", "-info=true", "start -info"])
def test_info_needs_nothing_else(line: str) -> None:
    assert parsed(line).action is Action.INFO


@pytest.mark.parametrize("line", ["-v", "-version", "--version", "-v -id x start"])
def test_version_needs_nothing_else(line: str) -> None:
    assert parsed(line).action is Action.VERSION


@pytest.mark.parametrize(
    "line",
    [
        "start -id box -namespace ns",
        "-id=box start --namespace=ns",
        "--id box --namespace ns -- start",
        "-id wrong -id box -namespace ns start",
        "-debug=false -id box -namespace ns start",
        "-new-flag -id box -namespace ns start",
        "-new-flag value -id box -namespace ns start",
        "-id box -namespace ns -new-flag start",
        "-new-flag=value -id box -namespace ns start",
        "-v=0 -info=false -id box -namespace ns start",
    ],
)
def test_order_and_form_of_flags_do_not_matter(line: str) -> None:
    assert parsed(line) == Invocation(Action.START, "ns", "box")


@pytest.mark.parametrize("line", ["-debug", "--debug", "-debug=true", "-debug=1"])
def test_a_boolean_flag_takes_no_word(line: str) -> None:
    assert parsed(f"-id box -namespace ns {line} start").debug


def test_a_value_may_look_like_a_flag() -> None:
    assert parsed("-address -x -id box -namespace ns start").address == "-x"


def test_paths_are_bytes() -> None:
    argv = [PROGRAM, b"-id", b"box", b"-namespace", b"ns", b"-bundle", b"/b\xff", b"delete"]
    assert parse(argv).bundle == "/b\udcff"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "action"),
        ("-id box -namespace ns", "action"),
        ("-id box -namespace ns stop", "'stop' is not an action"),
        ("-id box -namespace ns start delete", "'start delete' is not an action"),
        ("-namespace ns start", "no id is given"),
        ("-namespace ns -id '' start", "no id is given"),
        ("-id box start", "no namespace is given"),
        ("-namespace ns start -id", "no id is given"),
        ("-namespace ns -id ../box start", r"id '../box' is not"),
        ("-namespace a/b -id box start", r"namespace 'a/b' is not"),
    ],
)
def test_what_is_missing_or_wrong_is_named(line: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parsed(line)


def test_nul_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        parse([PROGRAM, b"-id", b"a\0b", b"-namespace", b"ns", b"start"])


@pytest.mark.parametrize("text", ["a", "0", "a.b_c-d", "a" * 76])
def test_identifiers(text: str) -> None:
    assert check_identifier(text, "id") == text


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a-_b", "a\n", "é", "a b", "a" * 77])
def test_what_is_no_identifier(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"the exec's id|no exec's id"):
        check_identifier(text, "exec's id")


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(
    [b"-id", b"-namespace", b"--", b"-", b"-debug", b"start", b"delete", b"box", b"-=", b"--="]
))))  # fmt: skip
def test_whatever_the_words_are(words: list[bytes]) -> None:
    try:
        found = parse([PROGRAM, *words])
    except InvalidArgument:
        return
    if found.action in (Action.START, Action.DELETE):
        assert found.id
        assert found.namespace


def test_no_word_at_all() -> None:
    with pytest.raises(InvalidArgument):
        parse([])
