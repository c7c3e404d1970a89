"""Calls over ttrpc: what the keeper is told of each, by a front that has just been given it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from shim._pb import ttrpc_pb2
from shim.api import calls
from shim.api.calls import Call, Calls, Method, failure
from shim.errors import NotFound
from shim.keeper.client import Incoming

SECOND = 1_000_000_000
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 3, 4, 5
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 8, 12, 13


class Keeper:
    """Takes the answers; gives the requests."""

    on_request: Callable[[Incoming], None]
    on_cancelled: Callable[[int], None]

    def __init__(self) -> None:
        self.answers: dict[int, ttrpc_pb2.Response] = {}
        self.waiting: list[int] = []  # told to be replayable
        self._changed = asyncio.Event()

    def respond(self, id: int, body: bytes) -> None:
        self.answers[id] = ttrpc_pb2.Response.FromString(body)
        self._changed.set()

    def replayable(self, id: int) -> None:
        self.waiting.append(id)
        self._changed.set()

    def give(
        self,
        method: str,
        message: Message | bytes = b"",
        *,
        id: int = 1,
        service: str = "a.Service",
        timeout: int = 0,
        age: int = 0,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        """A request; its timeout, and how long ago it came, in nanoseconds."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        request = ttrpc_pb2.Request(
            service=service, method=method, payload=payload, timeout_nano=timeout
        )
        body = request.SerializeToString()
        self.give_body(body, id=id, time=time.time_ns() - age, descriptors=descriptors)

    def give_body(self, body: bytes, **fields: Any) -> None:
        known = {"id": 1, "listener": 7, "time": time.time_ns(), "pid": 8, "uid": 0, "gid": 0}
        self.on_request(Incoming(body=body, **{**known, "descriptors": (), **fields}))

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def answer(self, id: int = 1) -> ttrpc_pb2.Response:
        await self.until(lambda: id in self.answers)
        return self.answers[id]

    async def code(self, id: int = 1) -> int:
        """Of an error, which must have no payload: clients read that first."""
        answer = await self.answer(id)
        assert not answer.payload
        return int(answer.status.code)


class Service:
    """A few methods, and what was asked of them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = asyncio.Event()
        self.gate = asyncio.Event()
        self.begun = asyncio.Semaphore(0)

    def methods(self) -> dict[str, Method]:
        return {
            "Echo": Method(StringValue, self.echo),
            "Fail": Method(StringValue, self.fail),
            "Break": Method(StringValue, self.break_),
            "Large": Method(StringValue, self.large),
            "Early": Method(StringValue, self.early),
            "Work": Method(StringValue, self.work),
            "Wait": Method(StringValue, self.work, parks=True),
        }

    async def echo(self, call: Call, request: StringValue) -> StringValue:
        self.calls.append(call)
        return request

    async def fail(self, call: Call, request: StringValue) -> StringValue:
        raise NotFound(request.value)

    async def break_(self, call: Call, request: StringValue) -> StringValue:
        raise ZeroDivisionError("of mine")

    async def large(self, call: Call, request: StringValue) -> BytesValue:
        return BytesValue(value=bytes(4 << 20))

    async def early(self, call: Call, request: StringValue) -> StringValue:
        call.answer(StringValue(value="early"))
        await self.gate.wait()
        raise NotFound("late")

    async def work(self, call: Call, request: StringValue) -> StringValue:
        self.begun.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return StringValue(value="done")


@pytest.fixture
async def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
async def service(keeper: Keeper) -> Service:
    made = Service()
    made.serving = Calls(keeper, {"a.Service": made.methods()})  # type: ignore[attr-defined,arg-type]
    return made


TEXT = StringValue(value="text")


async def test_a_call_is_answered(keeper: Keeper, service: Service) -> None:
    keeper.give("Echo", TEXT, id=5)
    assert StringValue.FromString((await keeper.answer(5)).payload) == TEXT
    [call] = service.calls
    assert (call.id, call.listener, call.pid) == (5, 7, 8)


async def test_an_empty_answer_has_no_bytes(keeper: Keeper, service: Service) -> None:
    keeper.give("Echo")
    assert (await keeper.answer()).ByteSize() == 0


async def test_errors_have_codes(
    keeper: Keeper, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    keeper.give("Fail", TEXT, id=1)
    assert await keeper.code(1) == NOT_FOUND
    assert keeper.answers[1].status.message == "text"
    keeper.give("Break", id=2)
    assert await keeper.code(2) == INTERNAL
    assert "of mine" in caplog.text
    keeper.give("Large", id=3)
    assert await keeper.code(3) == RESOURCE_EXHAUSTED
    assert str((4 << 20) + 5) in keeper.answers[3].status.message


@pytest.mark.parametrize(("service_name", "method"), [("a.Service", "No"), ("b.Service", "Echo")])
async def test_what_is_unknown_is_unimplemented(
    keeper: Keeper, service: Service, service_name: str, method: str
) -> None:
    keeper.give(method, service=service_name)
    assert await keeper.code() == UNIMPLEMENTED


async def test_what_is_no_message_is_refused(keeper: Keeper, service: Service) -> None:
    keeper.give("Echo", b"\xff", id=1)
    assert await keeper.code(1) == INVALID_ARGUMENT
    keeper.give_body(b"\xff", id=2)
    assert await keeper.code(2) == INVALID_ARGUMENT


async def test_descriptors_that_nobody_takes_are_closed(keeper: Keeper, service: Service) -> None:
    for method in ("Echo", "Fail", "None"):
        reading, writing = os.pipe()
        keeper.answers.clear()
        keeper.give(method, TEXT, descriptors=(writing,))
        await keeper.answer()
        await asyncio.sleep(0)
        assert os.read(reading, 1) == b""
        os.close(reading)


async def test_an_early_answer_is_the_only_one(keeper: Keeper, service: Service) -> None:
    """Whatever becomes of what is still to be done."""
    keeper.give("Early")
    early = await keeper.answer()
    service.gate.set()
    await asyncio.sleep(0.01)  # another would be there by now
    assert keeper.answers[1] is early
    assert StringValue.FromString(early.payload).value == "early"


async def test_at_its_deadline_a_call_that_works_goes_on(keeper: Keeper, service: Service) -> None:
    keeper.give("Work", timeout=SECOND // 100)
    assert await keeper.code() == DEADLINE_EXCEEDED
    assert not service.cancelled.is_set()
    service.gate.set()


async def test_at_its_deadline_a_call_that_waits_ends(keeper: Keeper, service: Service) -> None:
    keeper.give("Wait", timeout=SECOND // 100)
    assert await keeper.code() == DEADLINE_EXCEEDED
    await asyncio.wait_for(service.cancelled.wait(), 20)


async def test_a_deadline_counts_from_the_first_arrival(keeper: Keeper, service: Service) -> None:
    """An earlier front had the call for an hour."""
    keeper.give("Wait", timeout=3600 * SECOND, age=3600 * SECOND)
    assert await keeper.code() == DEADLINE_EXCEEDED


async def test_who_hangs_up_ends_a_wait_but_no_work(keeper: Keeper, service: Service) -> None:
    keeper.give("Wait", id=1)
    keeper.give("Work", id=2)
    for _ in range(2):
        await service.begun.acquire()
    for id in (1, 2, 3):
        keeper.on_cancelled(id)
    await asyncio.wait_for(service.cancelled.wait(), 20)
    service.gate.set()
    await keeper.answer(2)
    assert 1 not in keeper.answers


async def test_what_a_front_survives_is_replayable(
    keeper: Keeper, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that takes long is not what kills fronts; a short one need not be told of."""
    monkeypatch.setattr(calls, "PROVEN", 0.05)
    keeper.give("Echo", TEXT, id=1)
    keeper.give("Work", id=2)
    await keeper.until(lambda: keeper.waiting)
    assert keeper.waiting == [2]
    service.gate.set()
    await keeper.answer(2)
    assert keeper.waiting == [2]


async def test_what_only_waits_is_replayable_at_once(keeper: Keeper, service: Service) -> None:
    """Before its handler has run: fronts may be killed as soon as they have taken it."""
    keeper.give("Wait", id=1)
    assert keeper.waiting == [1]
    assert service.begun.locked()


def test_an_error_may_have_what_no_message_can_hold() -> None:
    """Half a character of a path, of which Python's file names have some: the caller is told."""
    response = ttrpc_pb2.Response.FromString(failure(3, "cannot read /b\udcff/config.json"))
    assert (response.status.code, response.payload) == (3, b"")
    assert response.status.message == "cannot read /b?/config.json"
