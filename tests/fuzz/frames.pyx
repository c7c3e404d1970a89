# cython: language_level=3
"""libFuzzer: whatever a client sends, and however it is cut, the keeper's parser of frames tells
what a plain reading of all bytes tells, and touches nothing else. See scripts/fuzz.

The first byte of an input is no part of the frames: it says how they are cut.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abort
from libc.string cimport memset
from framing cimport *

cdef enum:
    EXACTLY = 0x3F           # in the first byte: read as the keeper does
    GIVE_UP = 0x80           # skip the requests whose stream has the bit GIVEN_UP
    GIVEN_UP = 8


cdef void tell(uint64_t *seen, uint64_t value) noexcept nogil:
    """Add one fact to a digest of all (FNV-1a)."""
    seen[0] = (seen[0] ^ value) * 0x100000001B3ULL


cdef void tell_body(uint64_t *seen, const uint8_t *data, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        tell(seen, data[i])


cdef uint64_t plain_reading(const uint8_t *data, size_t size, bint gives_up) noexcept nogil:
    """What is to be told of these bytes."""
    cdef uint64_t seen = 0
    cdef uint64_t length, stream, body
    cdef uint64_t last = 0
    while size >= 10:
        length = (<uint64_t>data[0] * 256 + data[1]) * 65536 + <uint64_t>data[2] * 256 + data[3]
        stream = (<uint64_t>data[4] * 256 + data[5]) * 65536 + <uint64_t>data[6] * 256 + data[7]
        body = min(length, <uint64_t>size - 10)
        if length > 4194304:
            tell(&seen, 1000 + 8)
        elif stream % 2 == 0 or (data[8] == 1 and stream <= last):
            tell(&seen, 1000 + 3)
        elif data[8] == 3:
            tell(&seen, 2000)
        elif data[8] == 1:
            last = stream
            tell(&seen, 3000)
            tell(&seen, stream)
            if not (gives_up and stream & GIVEN_UP):
                tell_body(&seen, data + 10, body)
                if body == length:
                    tell(&seen, 4000)
        data += 10 + body
        size -= 10 + body
    return seen


cdef void check_refusal(Framing *framing, Step *step) noexcept nogil:
    """The answer fits where the keeper puts it."""
    cdef unsigned char frame[HEADER_SIZE + STATUS_ROOM]
    cdef size_t size = status_response(frame + HEADER_SIZE, step.code, step.reason)
    response_header(frame, framing.stream, <uint32_t>size)
    if size > STATUS_ROOM or frame[HEADER_SIZE + 1] + 2 != <int>size or frame[3] != size:
        abort()


cdef void take(Framing *framing, uint64_t *seen, const char *data, size_t size,
               bint gives_up) noexcept nogil:
    cdef const char *begin = data
    cdef const char *end = data + size
    cdef Step step
    framing_next(framing, &data, &size, &step)
    while step.kind != STEP_MORE:
        if data < begin or data + size != end:
            abort()
        if step.kind == STEP_BEGIN:
            tell(seen, 3000)
            tell(seen, framing.stream)
            if gives_up and framing.stream & GIVEN_UP:
                framing_skip(framing)
        elif step.kind == STEP_PIECE:
            if step.size == 0 or step.piece < begin or step.piece + step.size > end:
                abort()
            tell_body(seen, <const uint8_t *>step.piece, step.size)
        elif step.kind == STEP_WHOLE:
            tell(seen, 4000)
        elif step.kind == STEP_DATA:
            tell(seen, 2000)
        else:
            tell(seen, 1000 + step.code)
            check_refusal(framing, &step)
        framing_next(framing, &data, &size, &step)
    if size:
        abort()


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef Framing framing
    cdef uint64_t expected
    cdef uint64_t seen = 0
    cdef uint32_t chance
    cdef size_t piece
    cdef bint gives_up, exactly
    if size == 0:
        return 0
    chance = data[0]
    exactly = data[0] & 0x3F == EXACTLY
    gives_up = data[0] & GIVE_UP
    data += 1
    size -= 1
    expected = plain_reading(data, size, gives_up)
    memset(&framing, 0, sizeof(framing))
    while size:
        if framing_wants(&framing) == 0:
            abort()
        chance = chance * 1103515245 + 12345
        piece = framing_wants(&framing) if exactly else 1 + (chance >> 16) % 40
        piece = min(piece, size)
        take(&framing, &seen, <const char *>data, piece, gives_up)
        data += piece
        size -= piece
    if seen != expected:
        abort()
    return 0
