"""What is read of a bundle's spec."""

from __future__ import annotations

from typing import Any

import pytest

from shim.service.bundle import has_private_pids


@pytest.mark.parametrize(
    ("namespaces", "private"),
    [
        ([{"type": "pid"}], True),
        ([{"type": "pid", "path": ""}], True),
        ([{"type": "mount"}, {"type": "pid"}], True),
        ([{"type": "pid", "path": "/proc/7/ns/pid"}], False),
        ([{"type": "mount"}], False),
        ([], False),
        (["pid", 7, None, {}], False),
        ({"type": "pid"}, False),
        (None, False),
    ],
)
def test_a_pid_namespace_is_private_when_it_is_made_for_the_container(
    namespaces: Any, private: bool
) -> None:
    assert has_private_pids({"linux": {"namespaces": namespaces}}) is private


@pytest.mark.parametrize("config", [{}, {"linux": None}, {"linux": []}, {"linux": {}}])
def test_a_spec_that_says_nothing_of_namespaces_has_none(config: dict[str, Any]) -> None:
    assert has_private_pids(config) is False
