# How often streams are looked at, and how big their pipes are.
#
# Where writes wake the loop too often, whichever streams they come by, all streams of containers are
# looked at together, every GATHER_TIME or less often, while writes add up in their pipes. Too often is
# sooner where each look moves many bytes: nobody waits for a single line of many. A stream that keeps
# filling its pipes gets bigger ones, within a budget: what one user's pipes may have in all is limited
# (pipe(7)).

from libc.stdint cimport uint32_t, uint64_t
from clock cimport FOREVER, MICROSECOND, MILLISECOND, SECOND
from linux cimport *
from stream cimport BIG_PIPE, SMALL_PIPE, SOURCE_TAG, SPLICE, Relay, Stream, watch

cdef enum:
    NEARLY_FULL = 48 << 10     # bytes in a small pipe whose writer may have to wait
    FULL_TURNS = 8             # consecutive turns that filled a small pipe before it grows
    HOT_LOOKS = 50             # looks that are counted together
    HOT_WINDOW = 1667 * MICROSECOND    # in which so many are too many: 30,000 a second
    BULK_WINDOW = 10 * MILLISECOND     # the same, where they move BULK each: 5,000 a second
    BULK = 16 << 10            # bytes
    HOT_TIME = 100 * MILLISECOND    # after which it has to show again
    EMPTY_LOOKS = 2            # consecutive ones, after which looks are not put off any more
    GATHER_TIME = 200 * MICROSECOND
    BULK_TIME = 1 * MILLISECOND    # the longest wait, of bulk, and of what goes to logs only
    ROOM = 4                   # pipes are to be full to that part when they are looked at
    COOL_TIME = 1 * SECOND     # a grown pipe that moved nothing for so long shrinks


# ---- one stream's turn

cdef inline bint is_hot(Relay *relay) noexcept nogil:
    return relay.hot_until > relay.now


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


cdef inline void note_moved(Relay *relay, uint32_t slot, uint64_t moved) noexcept nogil:
    """What a container's stream has moved in its turn, and so how long the next may wait."""
    cdef Stream *stream = &relay.streams[slot]
    cdef uint64_t wait = min(relay.now - relay.last_look, <uint64_t>SECOND)
    if is_hot(relay) and ROOM * moved * BULK_TIME > capacity(stream) * wait:
        grow(relay, slot)
    if moved:
        relay.moved += moved
        relay.patience = min(relay.patience, wait * capacity(stream) // (ROOM * moved))
        relay.attended |= not stream.log
    # What is not a pipe, or is a log's, has no other room than this for its writer.
    if stream.way != SPLICE and moved >= capacity(stream) * 3 // 4:
        relay.patience = 0


# ---- looks

cdef inline bint rests(Relay *relay) noexcept nogil:
    """Whether it is too early for the next look."""
    return relay.look_due > relay.now


cdef inline bint is_bulk(Relay *relay, uint64_t moved, uint64_t looks) noexcept nogil:
    return moved >= looks * BULK or not relay.attended


cdef inline void take_temperature(Relay *relay) noexcept nogil:
    """Hot: looks that move bytes come so fast that waiting costs less than each of them.

    While it waits, nobody knows how fast they would come: so it is hot for a while only.
    """
    cdef uint64_t window = relay.now - relay.window
    if relay.moved:
        relay.empty_looks = 0
        relay.looks += 1
        relay.window_moved += relay.moved
    else:
        relay.empty_looks += 1
    if is_hot(relay):
        if relay.empty_looks >= EMPTY_LOOKS:
            relay.hot_until = 0
    elif relay.looks < HOT_LOOKS:
        return
    elif window < HOT_WINDOW or (window < BULK_WINDOW
                                 and is_bulk(relay, relay.window_moved, relay.looks)):
        relay.hot_until = relay.now + HOT_TIME
    relay.window = relay.now
    relay.looks = 0
    relay.window_moved = 0


cdef inline void looked(Relay *relay) noexcept nogil:
    """After a turn of each stream that had work: when the next look may be."""
    cdef uint64_t most = BULK_TIME if is_bulk(relay, relay.moved, 1) else GATHER_TIME
    take_temperature(relay)
    relay.look_due = 0
    if is_hot(relay) and relay.patience:
        relay.look_due = relay.now + min(max(relay.patience, <uint64_t>GATHER_TIME), most)
    relay.last_look = relay.now
    relay.moved = 0
    relay.patience = FOREVER
    relay.attended = False


# ---- growing pipes

cdef inline bint resize_pipes(Stream *stream, int size) noexcept nogil:
    """Both ends or none: a big pipe beside a small one brings little."""
    if fcntl(stream.source, F_SETPIPE_SZ, size) < 0:
        return False
    if stream.way == SPLICE and fcntl(stream.sink, F_SETPIPE_SZ, size) < 0:
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
