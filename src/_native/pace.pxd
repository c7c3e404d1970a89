# How often a stream is looked at, and how big its pipes are.
#
# A stream whose small writes wake the loop too often is hot: its source is muted and looked at
# every GATHER_TIME, while writes add up in the pipe. A stream that keeps filling its pipes gets
# bigger ones, within a budget: what one user's pipes may have in all is limited (pipe(7)).

from libc.stdint cimport uint32_t, uint64_t
from clock cimport FOREVER, MICROSECOND, MILLISECOND, SECOND
from linux cimport *
from stream cimport (BIG_PIPE, GATHER, GATHER_LINES, NOBODY, RUN, SMALL_PIPE, SOURCE_TAG, SPLICE,
                     Relay, Stream, enter, watch)

cdef enum:
    NEARLY_FULL = 48 << 10     # bytes in a small pipe whose writer may have to wait
    FULL_TURNS = 8             # consecutive turns that filled a small pipe before it grows
    EMPTY_TURNS = 2            # of a hot stream, after which it is not hot any more
    HOT_TURNS = 50             # turns in HOT_WINDOW that make a stream hot: 5,000 a second
    HOT_WINDOW = 10 * MILLISECOND
    GATHER_TIME = 200 * MICROSECOND
    LINES_TIME = 1 * MILLISECOND    # of a log whose pipe is big: nobody waits for its lines
    COOL_TIME = 1 * SECOND     # a grown pipe that moved nothing for so long shrinks


# ---- hot streams

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


cdef inline void gather(Relay *relay, uint32_t slot) noexcept nogil:
    """Look at this stream again in a while, and hear nothing of it until then."""
    cdef Stream *stream = &relay.streams[slot]
    mute(relay, slot)
    if stream.log:
        grow(relay, slot)
    if stream.log and stream.grown:
        stream.due = relay.now + LINES_TIME
        enter(relay, slot, GATHER_LINES)
    else:
        stream.due = relay.now + GATHER_TIME
        enter(relay, slot, GATHER)


cdef inline uint64_t capacity(Stream *stream) noexcept nogil:
    return BIG_PIPE if stream.grown else SMALL_PIPE


cdef inline void take_temperature(Relay *relay, Stream *stream, uint64_t moved) noexcept nogil:
    """Hot: turns that leave room come so fast that waiting costs less than each of them."""
    stream.window_turns += 1
    stream.window_bytes += moved
    if stream.window_turns >= HOT_TURNS:
        stream.hot = (relay.now - stream.window < HOT_WINDOW
                      and stream.window_bytes < stream.window_turns * capacity(stream) // 2)
        stream.window = relay.now
        stream.window_turns = 0
        stream.window_bytes = 0
        stream.empty_turns = 0


cdef inline void gather_on(Relay *relay, uint32_t slot, uint64_t moved) noexcept nogil:
    """A hot stream has had its turn: wait again, unless it has cooled or its pipe was full."""
    cdef Stream *stream = &relay.streams[slot]
    stream.empty_turns = 0 if moved else stream.empty_turns + 1
    if stream.empty_turns >= EMPTY_TURNS:
        stream.hot = False
        listen(relay, slot)
    elif moved >= capacity(stream) * 3 // 4 and not may_grow(relay, stream):
        enter(relay, slot, RUN)    # the writer may stand before it
    else:
        gather(relay, slot)


cdef inline void rest(Relay *relay, uint32_t slot, uint64_t moved) noexcept nogil:
    """After a turn that emptied the source or filled the sink."""
    cdef Stream *stream = &relay.streams[slot]
    if stream.blocked:
        mute(relay, slot)
    elif stream.party != NOBODY or stream.hung_up:
        listen(relay, slot)
    elif stream.hot:
        gather_on(relay, slot, moved)
    else:
        take_temperature(relay, stream, moved)
        listen(relay, slot)


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
