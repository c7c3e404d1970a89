"""At its limits the keeper refuses what is new, and goes on with what there is: design, rule 8."""

from __future__ import annotations

import errno
import os
import signal

from shim.keeper.command import Command, pack
from shim.keeper.records import Flag, Kind
from tests.native import harness
from tests.native.support import close_all, read_exactly

HARD = 2000
RESERVED = 64


def add_streams(front: harness.Front) -> tuple[list[tuple[int, int]], int]:
    """Streams with a hold, as outputs have, until one is refused; their ends, and the errno."""
    ends: list[tuple[int, int]] = []
    while True:
        source, inner = os.pipe2(os.O_NONBLOCK)
        outer, sink = os.pipe2(os.O_NONBLOCK)
        error = front.relay(1_000 + len(ends), source, sink, os.dup(outer), Flag.OUTPUT).error
        if error:
            close_all(inner, outer)
            return ends, error
        ends.append((inner, outer))


def test_as_many_streams_as_descriptors() -> None:
    """Three each, up to the reserve; then EMFILE for streams, and all else works."""
    with harness.keeper(files=(256, HARD)) as keeper:
        front = keeper.front
        assert front.spawn(50, "/bin/sleep", "1000").error == 0
        others = keeper.descriptors()
        ends, error = add_streams(front)
        assert error == errno.EMFILE
        assert (HARD - RESERVED - others) // 3 - 1 <= len(ends) <= (HARD - RESERVED) // 3
        for index, (inner, outer) in enumerate(ends):
            os.write(inner, b"%05d" % index)
            assert read_exactly(outer, 5) == b"%05d" % index
        assert front.spawn(51, "/bin/true").error == 0
        assert front.exited(51).status == 0
        assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
        assert front.exited(50).status == 128 + signal.SIGKILL
        for index in range(len(ends)):
            assert front.ask(Kind.CUT, id=1_000 + index).error == 0
            front.report(Kind.ENDED, 1_000 + index)
            assert front.ask(Kind.FORGET, id=1_000 + index).error == 0
        assert keeper.descriptors() == others - 1  # the pidfd of 50
        for pair in ends:
            close_all(*pair)
        again, error = add_streams(front)
        assert (len(again), error) == (len(ends), errno.EMFILE)
        for pair in again:
            close_all(*pair)


def test_a_full_keeper_starts_the_next_front() -> None:
    """Descriptors of clients do not keep it from what it needs itself."""
    with harness.keeper(files=(256, HARD)) as keeper:
        ends, _ = add_streams(keeper.front)
        keeper.front.close()
        keeper.front = keeper.next_front()
        held = [record for record in keeper.front.snapshot() if record.kind == Kind.STREAM]
        assert len(held) == len(ends)
        for pair in ends:
            close_all(*pair)


def test_as_many_exits_as_slots(tiny: str) -> None:
    """Exits that nobody forgets fill the table: ENFILE for more, until one is forgotten."""
    with harness.keeper(files=(300, 300)) as keeper:
        front = keeper.front
        memory = pack(Command((tiny, "exit", "19"), {}))
        ids = iter(range(50, 10_000))
        error = 0
        known = []
        for id in ids:
            error = front.ask(Kind.SPAWN, memory, id=id).error
            if error:
                break
            assert front.report(Kind.EXITED, id).status == 19
            known.append(id)
        assert (len(known), error) == (299, errno.ENFILE)  # the front has the other slot
        front.close()
        front = keeper.front = keeper.next_front()
        assert len(front.snapshot()) == 299
        assert front.ask(Kind.FORGET, id=known[7]).error == 0
        assert front.ask(Kind.SPAWN, memory, id=49).error == 0
        assert front.report(Kind.EXITED, 49).status == 19
        os.close(memory)
