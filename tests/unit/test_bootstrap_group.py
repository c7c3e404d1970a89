"""Which containers share a socket, and which a shim."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.bootstrap.group import (
    Kind,
    Scope,
    annotations_of,
    apart_keys,
    group_key,
    share,
    socket_path,
)
from shim.bootstrap.options import Options
from shim.errors import InvalidArgument

GROUP = "io.containerd.runc.v2.group"
SANDBOX = "io.kubernetes.cri.sandbox-id"


def scope(
    options: Options | None = None, group: str = "box", *, alone: bool = False, **env: str
) -> Scope:
    return share(
        options or Options(), env, address="/c", namespace="ns", id="box", group=group, alone=alone
    )


@pytest.mark.parametrize(
    ("annotations", "key"),
    [
        ({}, "box"),
        ({SANDBOX: "pod"}, "pod"),
        ({GROUP: "group"}, "group"),
        ({SANDBOX: "pod", GROUP: "group"}, "group"),
        ({SANDBOX: "pod", GROUP: ""}, "pod"),
        ({"other": "pod"}, "box"),
    ],
)
def test_the_key_of_a_group(annotations: dict[str, str], key: str) -> None:
    assert group_key(annotations, "box") == key


def test_annotations_of_a_bundle() -> None:
    assert annotations_of({"annotations": {"a": "b", "c": 5}}) == {"a": "b"}
    for found in (None, [1], 1, "x"):
        assert annotations_of({"annotations": found}) == {}
    assert annotations_of({}) == {}


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("/run/c.sock", "ns", "box"), "/run/c.sock/ns/box"),
        (("unix:///run/c.sock", "ns", "box"), "unix:/run/c.sock/ns/box"),
        (("//run//./c.sock/", "ns", "box"), "/run/c.sock/ns/box"),
        (("", "ns", "box"), "ns/box"),
        (("c.sock", "ns", "../box"), "c.sock/box"),
        (("/run", "..", "../../box"), "/box"),
        (("/é", "ns", "\udcff"), "/é/ns/\udcff"),
    ],
)
def test_the_socket_is_where_others_look_for_it(parts: tuple[str, str, str], joined: str) -> None:
    name = hashlib.sha256(joined.encode(errors="surrogateescape")).hexdigest()
    assert socket_path(*parts) == f"/run/containerd/s/{name}"


def test_the_directory_of_sockets() -> None:
    name = socket_path("/c", "ns", "box").rpartition("/")[2]
    assert socket_path("/c", "ns", "box", "/run/other/") == f"/run/other/{name}"


def test_a_socket_has_at_most_106_bytes() -> None:
    directory = "/" + "d" * 40
    assert len(socket_path("/c", "ns", "box", directory)) == 106
    for wrong in (directory + "d", "relative", "", "/nul\0"):
        with pytest.raises(InvalidArgument, match="path"):
            socket_path("/c", "ns", "box", wrong)


@pytest.mark.parametrize("group", ["a\0b", "\ud800"])
def test_a_key_that_no_path_can_hold(group: str) -> None:
    with pytest.raises(InvalidArgument, match="part of a path"):
        socket_path("/c", "ns", group)
    with pytest.raises(InvalidArgument, match="part of a path"):
        apart_keys("/c", "ns", "box", group)


def test_all_share_with_the_host_unless_something_else_is_said() -> None:
    for found in (scope(), scope(DENSESHIM_SHARE="host"), scope(Options(share="host"))):
        assert found == Scope(Kind.HOST, "box")
    assert scope(group="pod") == Scope(Kind.HOST, "pod")


def test_options_go_before_the_environment() -> None:
    assert scope(Options(share="host"), DENSESHIM_SHARE="pod").kind is Kind.HOST
    assert scope(Options(share="container"), DENSESHIM_SHARE="pod").kind is Kind.CONTAINER
    assert scope(DENSESHIM_SHARE="pod").kind is Kind.POD


def test_a_wrong_wish_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="DENSESHIM_SHARE is 'all'"):
        scope(DENSESHIM_SHARE="all")


def test_a_pod_shares_one_pair_and_a_container_has_its_own() -> None:
    pod = scope(Options(share="pod"), "pod")
    assert (pod.kind, pod.group) == (Kind.POD, "pod")
    container = scope(Options(share="container"), "pod")
    assert (container.kind, container.group) == (Kind.CONTAINER, "box")
    assert len({pod.key, container.key, ""}) == 3


@pytest.mark.parametrize(
    ("options", "alone", "env"),
    [
        (Options(shim_cgroup="/c"), False, {}),
        (Options(share="host", shim_cgroup="/c"), False, {}),
        (None, False, {"SCHED_CORE": "1"}),
        (None, True, {}),
    ],
)
def test_what_only_a_pair_apart_can_have(
    options: Options | None, alone: bool, env: dict[str, str]
) -> None:
    assert scope(options, alone=alone, **env).kind is Kind.CONTAINER
    assert scope(options, "pod", alone=alone, **env).kind is Kind.POD


def test_a_deleted_container_is_found_by_its_names_alone() -> None:
    keys = apart_keys("/c", "ns", "box", "pod")
    assert {scope(Options(share=kind), "pod").key for kind in ("pod", "container")} == set(keys)
    assert apart_keys("/c", "ns", "box", "box") == (scope(alone=True).key,)


def test_keys_are_of_one_containerd_and_namespace() -> None:
    of = [("/c", "ns", "box"), ("/d", "ns", "box"), ("/c", "os", "box"), ("/c", "ns", "fox")]
    assert len({apart_keys(*names, names[2]) for names in of}) == 4


@given(st.text(), st.text(), st.text(), st.text())
def test_whatever_the_names_are(address: str, namespace: str, group: str, directory: str) -> None:
    try:
        path = socket_path(address, namespace, group, directory)
    except InvalidArgument:
        return
    assert path.startswith("/")
    assert len(path.encode()) <= 106
