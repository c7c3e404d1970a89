# How often streams are looked at, and how big their pipes are.
#
# Where small writes wake the loop too often, whichever streams they come by, all streams of
# containers are looked at together, every GATHER_TIME, while writes add up in their pipes. A stream
# that keeps filling its pipes gets bigger ones, within a budget: what one user's pipes may have in
# all is limited (pipe(7)).

from libc.stdint cimport uint32_t, uint64_t
from clock cimport FOREVER, MICROSECOND, MILLISECOND, SECOND
from linux cimport *
from stream cimport BIG_PIPE, SMALL_PIPE, SOURCE_TAG, SPLICE, Relay, Stream, watch

cdef enum:
    NEARLY_FULL = 48 << 10     # bytes in a small pipe whose writer may have to wait
    FULL_TURNS = 8             # consecutive turns that filled a small pipe before it grows
    HOT_LOOKS = 50             # in HOT_WINDOW that are too many: 5,000 a second
    HOT_WINDOW = 10 * MILLISECOND
    EMPTY_LOOKS = 2            # consecutive ones, after which they are not put off any more
    GATHER_TIME = 200 * MICROSECOND
    LINES_TIME = 1 * MILLISECOND    # when there are but logs: nobody waits for their lines
    LINES_ROOM = 8             # a log's pipe has room for so many times what a look has found
    COOL_TIME = 1 * SECOND     # a grown pipe that moved nothing for so long shrinks


# ---- one stream's turn

cdef inline void listen(Relay *relay, uint32_t slot) noexcept nogil:
    """Turn the source's events on again; the kernel reports at once what is there already."""
    cdef Stream *stream = &relay.streams[slot]
    if stream.muted:
        stream.muted = False
        watch(relay, EPOLL_CTL_MOD, stream.source, SOURCE_TAG, slot, EPOLLIN | EPOLLRDHUP)


cdef inline void mute(Relay *relay, uint32_t slot) noexcept nogil:
    """Turn the source's events off: every write would bring one."""
    cdef Stream *stream = &relay.streams[slot]
    if not stream.muted:
        stream.muted = True
        watch(relay, EPOLL_CTL_MOD, stream.source, SOURCE_TAG, slot, 0)


cdef inline void rest(Relay *relay, uint32_t slot) noexcept nogil:
    """After a turn that emptied the source or filled the sink."""
    if relay.streams[slot].blocked:
        mute(relay, slot)
    else:
        listen(relay, slot)


cdef inline uint64_t capacity(Stream *stream) noexcept nogil:
    return BIG_PIPE if stream.grown else SMALL_PIPE


cdef inline void note_lines(Relay *relay, uint32_t slot, uint64_t moved) noexcept nogil:
    """A log waits for longer, if its pipe has the room."""
    cdef Stream *stream = &relay.streams[slot]
    if LINES_ROOM * moved > capacity(stream):
        grow(relay, slot)
    if LINES_ROOM * moved > capacity(stream):
        relay.brisk = True


cdef inline void note_moved(Relay *relay, uint32_t slot, uint64_t moved) noexcept nogil:
    """What a container's stream has moved in its turn, and so how long the next may wait."""
    cdef Stream *stream = &relay.streams[slot]
    relay.moved += moved
    if stream.log and relay.hot:
        note_lines(relay, slot, moved)
    elif moved:
        relay.brisk = True
    # What is not a pipe, or is a log's, has no other room than this for its writer.
    if stream.way != SPLICE and moved >= capacity(stream) * 3 // 4:
        relay.eager = True


# ---- looks

cdef inline bint rests(Relay *relay) noexcept nogil:
    """Whether it is too early for the next look."""
    return relay.look_due > relay.now


cdef inline void take_temperature(Relay *relay) noexcept nogil:
    """Hot: looks that move bytes come so fast that waiting costs less than each of them."""
    if relay.moved:
        relay.empty_looks = 0
        relay.looks += 1
    else:
        relay.empty_looks += 1
    if relay.hot and relay.empty_looks >= EMPTY_LOOKS:
        relay.hot = False
        relay.looks = HOT_LOOKS    # a new window begins
    elif relay.looks >= HOT_LOOKS and relay.now - relay.window < HOT_WINDOW:
        relay.hot = True
    if relay.looks >= HOT_LOOKS:
        relay.window = relay.now
        relay.looks = 0


cdef inline void looked(Relay *relay) noexcept nogil:
    """After a turn of each stream that had work: when the next look may be."""
    take_temperature(relay)
    relay.look_due = 0
    if relay.hot and not relay.eager:
        relay.look_due = relay.now + (GATHER_TIME if relay.brisk else LINES_TIME)
    relay.moved = 0
    relay.brisk = relay.eager = False


# ---- growing pipes

cdef inline bint resize_pipes(Stream *stream, int size) noexcept nogil:
    """Both ends or none: a big pipe beside a small one brings little. A log has one only."""
    if fcntl(stream.source, F_SETPIPE_SZ, size) < 0:
        return False
    if not stream.log and fcntl(stream.sink, F_SETPIPE_SZ, size) < 0:
        fcntl(stream.source, F_SETPIPE_SZ, SMALL_PIPE)
        return False
    return True


cdef inline bint may_grow(Relay *relay, Stream *stream) noexcept nogil:
    return ((stream.way == SPLICE or stream.piped) and not stream.grown and not stream.stuck
            and relay.grown_count < relay.grown_most)


cdef inline void maybe_grow(Relay *relay, uint32_t slot, uint64_t moved) noexcept nogil:
    """Grow the pipes of a stream that keeps filling them."""
    cdef Stream *stream = &relay.streams[slot]
    if moved < <uint64_t>NEARLY_FULL or not may_grow(relay, stream):
        stream.full_turns = 0
        return
    stream.full_turns += 1
    if stream.full_turns < FULL_TURNS:
        return
    stream.full_turns = 0
    grow(relay, slot)


cdef inline void grow(Relay *relay, uint32_t slot) noexcept nogil:
    cdef Stream *stream = &relay.streams[slot]
    if not may_grow(relay, stream):
        return
    stream.grown = resize_pipes(stream, BIG_PIPE)
    stream.stuck = not stream.grown    # EPERM, EBUSY: leave it as it is
    if stream.grown:
        stream.ticked = stream.bytes
        relay.grown[relay.grown_count] = slot
        relay.grown_count += 1
        relay.cool_due = min(relay.cool_due, relay.now + COOL_TIME)


cdef inline void ungrow(Relay *relay, uint32_t index) noexcept nogil:
    relay.streams[relay.grown[index]].grown = False
    relay.grown_count -= 1
    relay.grown[index] = relay.grown[relay.grown_count]


cdef inline void forget_grown(Relay *relay, uint32_t slot) noexcept nogil:
    cdef uint32_t index
    if not relay.streams[slot].grown:
        return
    for index in range(relay.grown_count):
        if relay.grown[index] == slot:
            ungrow(relay, index)
            return


cdef inline void cool_down(Relay *relay) noexcept nogil:
    """Shrink what moved nothing since the last look. A pipe too full to shrink stays (EBUSY)."""
    cdef uint32_t index = relay.grown_count
    cdef Stream *stream
    while index > 0:
        index -= 1
        stream = &relay.streams[relay.grown[index]]
        if stream.ticked != stream.bytes:
            stream.ticked = stream.bytes
        elif resize_pipes(stream, SMALL_PIPE):
            ungrow(relay, index)
    relay.cool_due = relay.now + COOL_TIME if relay.grown_count else FOREVER
