"""A container's life, as the daemon of 2017 leads it."""

from __future__ import annotations

import os
from collections.abc import Callable

from shim.model import EventType, Status
from tests.integration.support import Bundle, serving


async def test_a_container_is_created_started_and_deleted(
    make_bundle: Callable[..., Bundle],
) -> None:
    """Contract: the order of calls. The output is whole, the events are in order."""
    bundle = make_bundle("sh", "-c", "echo hello; exit 7")
    request = bundle.request(stdout=True)
    reader = os.open(request.stdio.stdout, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with serving(bundle) as (shim, events):
            pid = await shim.create(request)
            assert (await shim.state()).status is Status.CREATED
            await shim.start()
            assert (await events.exit(pid)).status == 7
            state = await shim.state()
            assert (state.status, state.processes[0].exit_status) == (Status.STOPPED, 7)
            ended = await shim.delete()
            assert ended.status == 7
            assert os.read(reader, 100) == b"hello\n"
            assert os.read(reader, 100) == b""
            assert events.of(pid) == [EventType.CREATE, EventType.START, EventType.EXIT]
    finally:
        os.close(reader)
