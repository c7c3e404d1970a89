"""Fixtures of the native tests: a keeper for each test, and the program it starts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.native import harness
from tests.native.harness import Front, Keeper
from tests.native.support import build_program


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A keeper, which must end in good order after the test."""
    with harness.keeper() as made:
        yield made


@pytest.fixture
def front(keeper: Keeper) -> Front:
    """The keeper's first front: the test."""
    return keeper.front


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that starts fast and ends as its arguments say, see `support.PROGRAM`."""
    return build_program(tmp_path_factory.mktemp("tiny"))
