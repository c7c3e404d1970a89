"""Guards that hold for every test."""

from __future__ import annotations

from collections.abc import Iterator

import grpc.aio
import pytest

from tests.guard import nothing_left


@pytest.fixture(scope="session", autouse=True)
def grpc_threads() -> Iterator[None]:
    """grpc's poller starts once, before the guards look: it is this process's own."""
    grpc.aio.init_grpc_aio()
    yield
    grpc.aio.shutdown_grpc_aio()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No test may leave a descriptor, thread, process, mount, cgroup or state behind."""
    with nothing_left():
        yield
