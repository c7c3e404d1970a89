# The relay: copies streams of bytes between pipes, FIFOs, ptys and sockets.
#
# Both ends of a stream are registered once, edge-triggered. After a splice that moved less than
# it was asked to, either the source is empty or the sink is full; whichever it is, its change
# brings an edge, and the stream is tried again then. So no call is spent on arming, none on
# asking which side it was, and an idle or hung-up descriptor wakes nobody.
# (A pipe that an epoll set watches reports an edge for every write: fs/pipe.c, poll_usage,
# Linux 5.15. Edges of a pipe's writable side come when it has been full.)
#
# A stream is in at most one list: RUN (has work), GATHER (waits for small writes to add up),
# LINGER (ended, its FIFO has no reader yet) or ENDED (the keeper has not looked at it yet).

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from clock cimport FOREVER, MICROSECOND, MILLISECOND, SECOND
from fds cimport drop
from linux cimport *
from table cimport NONE, Map, arena, map_find, map_open, map_put, map_remove
from wire cimport GONE, INPUT, OUTPUT

cdef enum:
    TURN = 1 << 20             # bytes a stream may move before the others have their turn
    CHUNK = 16 << 10           # bytes of one read(2)
    SMALL_PIPE = 64 << 10      # a pipe's size when it is made
    BIG_PIPE = 1 << 20         # what a busy pipe grows to: the most root without CAP_SYS_RESOURCE gets
    NEARLY_FULL = 48 << 10     # bytes in a small pipe whose writer may have to wait
    FULL_TURNS = 8             # consecutive turns that filled a small pipe before it grows
    EMPTY_TURNS = 2            # of a hot stream, after which it is not hot any more
    HOT_TURNS = 50             # turns in HOT_WINDOW that make a stream hot: 5,000 a second
    HOT_WINDOW = 10 * MILLISECOND
    GATHER_TIME = 200 * MICROSECOND
    COOL_TIME = 1 * SECOND     # a grown pipe that moved nothing for so long shrinks
    LINGER_FIRST = 2 * MILLISECOND
    LINGER_LAST = 1 * SECOND
    MOST_GROWN = 512

cdef enum:    # List
    NOWHERE, RUN, GATHER, LINGER, ENDED_LIST, LISTS

cdef enum:    # Way
    SPLICE = 0                 # pipe to pipe: no byte enters user space
    TERMINAL = 1               # from a pty master: read and write, EIO is a hang-up, not the end
    COPY = 2                   # anything else: read and write

cdef enum:    # Outcome
    IDLE, AGAIN, OVER

cdef enum:    # Party
    NOBODY = 0
    TO_FRONT = 1               # a client's bytes for the front
    FROM_FRONT = 2             # the front's answer

cdef struct Stream:
    uint64_t id                # 0: a connection's half, which nobody asks for
    uint64_t bytes
    uint64_t window            # when the present HOT_WINDOW began
    uint64_t window_bytes
    uint64_t due               # GATHER, LINGER: when to look again
    uint64_t born              # LINGER: since when
    uint64_t ticked            # bytes at the last cool-down tick
    int source, sink, hold     # owned
    int error
    uint32_t generation        # tells a late event of the slot's last tenant
    uint32_t previous, next
    uint32_t window_turns
    uint32_t pending, offset   # what read(2) gave and write(2) has not taken, in `rest`
    uint8_t flags              # OUTPUT, INPUT, GONE
    uint8_t where              # List
    uint8_t way
    uint8_t party
    uint8_t full_turns
    uint8_t grown
    uint8_t hung_up            # the source's last writer has gone: read on to the end
    uint8_t blocked            # the sink is full: the source's events mean nothing
    uint8_t finishing          # the end is where nothing more can be read now
    uint8_t merging            # small fragments filled the sink's slots: copy, to merge them
    uint8_t muted              # the source's events are off: it is hot, or the sink is full
    uint8_t hot                # small writes come so fast that they are gathered
    uint8_t empty_turns        # consecutive, while hot
    uint8_t stuck              # its pipes cannot grow

cdef struct Relay:
    int epoll
    uint32_t most, used, free  # slots; ever used; head of the free list
    Stream *streams
    char *rest                 # CHUNK bytes for each slot
    char *scratch              # CHUNK bytes
    Map ids
    uint32_t first[5]          # of each List
    uint32_t last[5]
    uint32_t runnable          # streams in RUN
    uint32_t grown[512]
    uint32_t grown_count, grown_most
    uint64_t cool_due
    uint64_t now
    bint asked, answered       # bytes went to the front, came from it


# ---- lists

cdef inline void leave(Relay *relay, uint32_t slot) noexcept nogil:
    cdef Stream *stream = &relay.streams[slot]
    cdef int where = stream.where
    if where == NOWHERE:
        return
    if stream.previous == NONE:
        relay.first[where] = stream.next
    else:
        relay.streams[stream.previous].next = stream.next
    if stream.next == NONE:
        relay.last[where] = stream.previous
    else:
        relay.streams[stream.next].previous = stream.previous
    stream.where = NOWHERE
    if where == RUN:
        relay.runnable -= 1


cdef inline void enter(Relay *relay, uint32_t slot, int where) noexcept nogil:
    """Append the stream to a list; it leaves the one it is in."""
    cdef Stream *stream = &relay.streams[slot]
    leave(relay, slot)
    stream.previous = relay.last[where]
    stream.next = NONE
    if stream.previous == NONE:
        relay.first[where] = slot
    else:
        relay.streams[stream.previous].next = slot
    relay.last[where] = slot
    stream.where = where
    if where == RUN:
        relay.runnable += 1


# ---- set-up

cdef inline bint relay_open(Relay *relay, int epoll, uint32_t most, uint64_t budget) noexcept nogil:
    """Room for `most` streams; pipes grow by at most `budget` bytes in all. False: no memory."""
    cdef int i
    memset(relay, 0, sizeof(Relay))
    relay.epoll = epoll
    relay.most = most
    relay.free = NONE
    relay.cool_due = FOREVER
    relay.grown_most = <uint32_t>min(<uint64_t>MOST_GROWN, budget // (2 * BIG_PIPE))
    for i in range(LISTS):
        relay.first[i] = relay.last[i] = NONE
    relay.streams = <Stream *>arena(most * sizeof(Stream))
    relay.rest = <char *>arena(<size_t>most * CHUNK)
    relay.scratch = <char *>arena(CHUNK)
    if relay.streams == NULL or relay.rest == NULL or relay.scratch == NULL:
        return False
    return map_open(&relay.ids, most)


cdef inline uint32_t new_slot(Relay *relay) noexcept nogil:
    cdef uint32_t slot = relay.free
    if slot != NONE:
        relay.free = relay.streams[slot].next
    elif relay.used < relay.most:
        slot = relay.used
        relay.used += 1
    return slot


cdef inline void free_slot(Relay *relay, uint32_t slot) noexcept nogil:
    """Give the slot back; its stream is closed and in no list."""
    cdef Stream *stream = &relay.streams[slot]
    cdef uint32_t generation = stream.generation + 1
    if stream.id:
        map_remove(&relay.ids, stream.id)
    memset(stream, 0, sizeof(Stream))
    stream.source = stream.sink = stream.hold = -1
    stream.flags = GONE
    stream.generation = generation
    stream.next = relay.free
    relay.free = slot


cdef inline int watch(Relay *relay, int operation, int fd, uint64_t tag, uint32_t slot,
                      uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events | EPOLLET
    event.data.u64 = tag << 56 | <uint64_t>(relay.streams[slot].generation & 0xFFFFFF) << 32 | slot
    if epoll_ctl(relay.epoll, operation, fd, &event) < 0:
        return errno
    return 0


cdef inline int way_of(int source, int sink) noexcept nogil:
    cdef stat_t first, second
    if fstat(source, &first) < 0 or fstat(sink, &second) < 0:
        return COPY
    if S_ISFIFO(first.st_mode) and S_ISFIFO(second.st_mode):
        return SPLICE
    return TERMINAL if S_ISCHR(first.st_mode) else COPY


cdef enum:    # Tag
    SOURCE_TAG = 1
    SINK_TAG = 2


cdef inline int relay_add(Relay *relay, uint64_t id, int source, int sink, int hold, int flags,
                          int party, uint32_t *made) noexcept nogil:
    """Begin a stream; takes the descriptors. On an errno they are closed, nothing is left."""
    cdef uint32_t slot
    cdef Stream *stream
    cdef int error = 0
    if source < 0 or sink < 0 or ((flags & (OUTPUT | INPUT)) != 0) != (hold >= 0):
        error = EINVAL
    elif id and map_find(&relay.ids, id) != NONE:
        error = EEXIST
    slot = NONE if error else new_slot(relay)
    if slot == NONE:
        drop(&source)
        drop(&sink)
        drop(&hold)
        return error if error else EMFILE
    stream = &relay.streams[slot]
    stream.id = id
    stream.source, stream.sink, stream.hold = source, sink, hold
    stream.flags = flags & (OUTPUT | INPUT)
    stream.party = party
    stream.way = way_of(source, sink)
    stream.where = NOWHERE
    if id:
        map_put(&relay.ids, id, slot)
    error = watch(relay, EPOLL_CTL_ADD, source, SOURCE_TAG, slot, EPOLLIN | EPOLLRDHUP)
    if not error:
        error = watch(relay, EPOLL_CTL_ADD, sink, SINK_TAG, slot, EPOLLOUT)
    if error:
        close_end(relay, &stream.source)
        drop(&stream.hold)
        close_end(relay, &stream.sink)
        free_slot(relay, slot)
        return error
    made[0] = slot
    return 0


cdef inline void close_end(Relay *relay, int *fd) noexcept nogil:
    """Close a watched descriptor. epoll(7): its entry would stay while another one is open."""
    if fd[0] >= 0:
        epoll_ctl(relay.epoll, EPOLL_CTL_DEL, fd[0], NULL)
    drop(fd)


# ---- moving bytes

cdef inline bint writable(int fd) noexcept nogil:
    cdef pollfd asked
    asked.fd = fd
    asked.events = POLLOUT
    return poll(&asked, 1, 0) > 0


cdef inline bint readable(int fd) noexcept nogil:
    """Whether there is something to read, or the end."""
    cdef pollfd asked
    asked.fd = fd
    asked.events = POLLIN
    return poll(&asked, 1, 0) > 0


cdef inline bint has_reader(int fd) noexcept nogil:
    """Whether anyone has the read end of this FIFO's write end open: pipe(7), POLLERR."""
    cdef pollfd asked
    asked.fd = fd
    asked.events = 0
    asked.revents = 0
    poll(&asked, 1, 0)
    return not asked.revents & POLLERR


cdef inline bint is_fragmented(int sink) noexcept nogil:
    """Whether short fragments hold all slots of a pipe that has room for their bytes."""
    cdef int queued = SMALL_PIPE
    ioctl(sink, FIONREAD, &queued)
    return queued < SMALL_PIPE // 4 and not writable(sink)    # still: nobody has read meanwhile


cdef inline int waits(Stream *stream) noexcept nogil:
    """Nothing moved: EAGAIN. Find out which side it was, for splice(2) does not say."""
    if writable(stream.sink):
        if (stream.finishing or stream.hung_up) and readable(stream.source):
            return AGAIN              # the client has read since: the sink was full
        if stream.finishing:
            return OVER
        stream.hung_up = False    # a FIFO's writer may have come back
        return IDLE
    if is_fragmented(stream.sink):
        stream.merging = True
        return AGAIN
    stream.blocked = True
    return IDLE


cdef inline int splice_turn(Stream *stream) noexcept nogil:
    cdef uint64_t moved = 0
    cdef ssize_t size
    while moved < TURN:
        size = splice(stream.source, NULL, stream.sink, NULL, TURN,
                      SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if size > 0:
            moved += size
            stream.bytes += size
            if not stream.hung_up and not stream.finishing:
                return IDLE    # empty or full: an edge will tell
        elif size == 0:
            return OVER
        elif errno == EAGAIN:
            return waits(stream)
        elif errno != EINTR:
            stream.error = errno
            return OVER
    return AGAIN


cdef inline bint write_rest(Relay *relay, Stream *stream, char *rest) noexcept nogil:
    """Write what is pending; True when nothing is left or the sink has failed."""
    cdef ssize_t size
    while stream.pending:
        size = write(stream.sink, rest + stream.offset, stream.pending)
        if size > 0:
            stream.offset += size
            stream.pending -= size
            stream.bytes += size
        elif errno == EAGAIN:
            stream.blocked = True
            return False
        elif errno != EINTR:
            stream.error = errno
            return True
    return True


cdef inline int read_failed(Stream *stream) noexcept nogil:
    if errno == EINTR:
        return AGAIN
    if errno == EIO and stream.way == TERMINAL:
        # No slave is open now; one may be opened again while the process lives.
        return OVER if stream.finishing else IDLE
    if errno == EAGAIN:
        return OVER if stream.finishing else IDLE
    stream.error = errno
    return OVER


cdef inline int copy_turn(Relay *relay, uint32_t slot) noexcept nogil:
    cdef Stream *stream = &relay.streams[slot]
    cdef char *rest = relay.rest + <size_t>slot * CHUNK
    cdef uint64_t moved = 0
    cdef uint64_t most = CHUNK if stream.merging else TURN
    cdef ssize_t size
    cdef int outcome
    while moved < most:
        if not write_rest(relay, stream, rest):
            return IDLE
        if stream.error:
            return OVER
        size = read(stream.source, rest, CHUNK)
        if size == 0:
            return OVER
        if size < 0:
            outcome = read_failed(stream)
            if outcome != AGAIN:
                return outcome
            continue
        moved += size
        stream.offset = 0
        stream.pending = <uint32_t>size
    return AGAIN


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
    """Look at this stream again in GATHER_TIME, and hear nothing of it until then."""
    mute(relay, slot)
    relay.streams[slot].due = relay.now + GATHER_TIME
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
    """Both ends or none: a big pipe beside a small one brings little."""
    if fcntl(stream.source, F_SETPIPE_SZ, size) < 0:
        return False
    if fcntl(stream.sink, F_SETPIPE_SZ, size) < 0:
        fcntl(stream.source, F_SETPIPE_SZ, SMALL_PIPE)
        return False
    return True


cdef inline bint may_grow(Relay *relay, Stream *stream) noexcept nogil:
    return (stream.way == SPLICE and not stream.grown and not stream.stuck
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


# ---- ends

cdef inline void finish_sockets(Stream *stream) noexcept nogil:
    """Half-close: the sink's peer reads EOF; the source's peer learns that nobody reads."""
    shutdown(stream.sink, SHUT_WR)     # ENOTSOCK where it is none
    if stream.error:
        shutdown(stream.source, SHUT_RD)


cdef inline void end_stream(Relay *relay, uint32_t slot, bint linger) noexcept nogil:
    """Close the stream, at once or, where its FIFO has no reader yet, when one has come."""
    cdef Stream *stream = &relay.streams[slot]
    forget_grown(relay, slot)
    if stream.way == COPY:
        finish_sockets(stream)
    close_end(relay, &stream.source)
    drop(&stream.hold)
    if linger and stream.flags & OUTPUT and not stream.error and not has_reader(stream.sink):
        stream.born = relay.now
        stream.due = relay.now + LINGER_FIRST
        enter(relay, slot, LINGER)
        return
    close_end(relay, &stream.sink)
    stream.flags |= GONE
    if stream.id:
        enter(relay, slot, ENDED_LIST)
    else:
        leave(relay, slot)
        free_slot(relay, slot)


cdef inline void check_linger(Relay *relay, uint32_t slot) noexcept nogil:
    """The wait grows with the stream's age, so that a late reader waits a fifth longer at most."""
    cdef Stream *stream = &relay.streams[slot]
    cdef uint64_t wait
    if has_reader(stream.sink):
        end_stream(relay, slot, False)
        return
    wait = (relay.now - stream.born) // 5
    stream.due = relay.now + min(max(wait, <uint64_t>LINGER_FIRST), <uint64_t>LINGER_LAST)


# ---- what the keeper calls

cdef inline void relay_turn(Relay *relay, uint32_t slot) noexcept nogil:
    """One bounded turn of one stream, which is in no list now."""
    cdef Stream *stream = &relay.streams[slot]
    cdef uint64_t before = stream.bytes
    cdef uint64_t moved
    cdef int outcome
    if stream.way == SPLICE and not stream.merging and not stream.pending:
        outcome = splice_turn(stream)
    else:
        outcome = copy_turn(relay, slot)
        stream.merging = stream.pending != 0    # what did not fit goes first
    moved = stream.bytes - before
    if moved and stream.party == TO_FRONT:
        relay.asked = True
    elif moved and stream.party == FROM_FRONT:
        relay.answered = True
    if outcome == OVER:
        end_stream(relay, slot, True)
        return
    maybe_grow(relay, slot, moved)
    if outcome == AGAIN:
        enter(relay, slot, RUN)
    else:
        rest(relay, slot, moved)


cdef inline void relay_event(Relay *relay, uint64_t tag, uint32_t slot, uint32_t generation,
                             uint32_t events) noexcept nogil:
    """An edge on one end of a stream."""
    cdef Stream *stream
    if slot >= relay.used:
        return
    stream = &relay.streams[slot]
    if stream.generation & 0xFFFFFF != generation or stream.flags & GONE or stream.where == LINGER:
        return
    if tag == SINK_TAG:
        stream.blocked = False
    elif events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR):
        stream.hung_up = True
    if tag == SINK_TAG and events & EPOLLERR and stream.way == SPLICE:
        stream.error = EPIPE     # the last reader has gone: nothing can be delivered any more
        end_stream(relay, slot, False)
    elif not stream.blocked and stream.where == NOWHERE:
        enter(relay, slot, RUN)


cdef inline void relay_run(Relay *relay) noexcept nogil:
    """One round: a turn for each stream that has work now."""
    cdef uint32_t turns = relay.runnable
    cdef uint32_t slot
    while turns and relay.first[RUN] != NONE:
        turns -= 1
        slot = relay.first[RUN]
        leave(relay, slot)
        relay_turn(relay, slot)


cdef inline uint64_t relay_timers(Relay *relay) noexcept nogil:
    """Do what is due at relay.now; gives the time of the next, or FOREVER."""
    cdef uint64_t next_due
    cdef uint32_t slot = relay.first[GATHER]
    cdef uint32_t following
    while slot != NONE and relay.streams[slot].due <= relay.now:
        enter(relay, slot, RUN)
        slot = relay.first[GATHER]
    next_due = FOREVER if slot == NONE else relay.streams[slot].due
    slot = relay.first[LINGER]
    while slot != NONE:
        following = relay.streams[slot].next
        if relay.streams[slot].due <= relay.now:
            check_linger(relay, slot)
        if relay.streams[slot].where == LINGER:
            next_due = min(next_due, relay.streams[slot].due)
        slot = following
    if relay.cool_due <= relay.now:
        cool_down(relay)
    if relay.first[RUN] != NONE:
        return relay.now
    return min(next_due, relay.cool_due)


cdef inline int relay_unhold(Relay *relay, uint64_t id) noexcept nogil:
    """Close the write end that keeps a client's FIFO from its end (CloseStdin)."""
    cdef uint32_t slot = map_find(&relay.ids, id)
    if slot == NONE:
        return ESRCH
    if relay.streams[slot].flags & INPUT:
        drop(&relay.streams[slot].hold)
    return 0


cdef inline int relay_finish(Relay *relay, uint64_t id) noexcept nogil:
    cdef uint32_t slot = map_find(&relay.ids, id)
    cdef Stream *stream
    if slot == NONE:
        return ESRCH
    stream = &relay.streams[slot]
    if not stream.flags & GONE and stream.where != LINGER:
        stream.finishing = True
        stream.blocked = False
        enter(relay, slot, RUN)
    return 0


cdef inline int relay_cut(Relay *relay, uint64_t id) noexcept nogil:
    cdef uint32_t slot = map_find(&relay.ids, id)
    if slot == NONE:
        return ESRCH
    if not relay.streams[slot].flags & GONE:
        end_stream(relay, slot, False)
    return 0


cdef inline int relay_delivered(Relay *relay, uint64_t id, uint64_t *bytes) noexcept nogil:
    """The bytes that the client has read: those moved, less what its FIFO still holds."""
    cdef uint32_t slot = map_find(&relay.ids, id)
    cdef int queued = 0
    if slot == NONE:
        return ESRCH
    ioctl(relay.streams[slot].sink, FIONREAD, &queued)
    bytes[0] = relay.streams[slot].bytes - <uint64_t>queued
    return 0


cdef inline int relay_resize(Relay *relay, uint64_t id, uint32_t size) noexcept nogil:
    """Set the window of the terminal that is the stream's source; ioctl_tty(2), TIOCSWINSZ."""
    cdef uint32_t slot = map_find(&relay.ids, id)
    cdef winsize window
    if slot == NONE or relay.streams[slot].source < 0:
        return ESRCH
    memset(&window, 0, sizeof(window))
    window.ws_row = <unsigned short>(size >> 16)
    window.ws_col = <unsigned short>(size & 0xFFFF)
    return errno if ioctl(relay.streams[slot].source, TIOCSWINSZ, &window) < 0 else 0


cdef inline int relay_forget(Relay *relay, uint64_t id) noexcept nogil:
    """Free an ended stream; EBUSY while it lives."""
    cdef uint32_t slot = map_find(&relay.ids, id)
    if slot == NONE:
        return ESRCH
    if not relay.streams[slot].flags & GONE:
        return EBUSY
    leave(relay, slot)
    free_slot(relay, slot)
    return 0


cdef inline void relay_drop_front(Relay *relay) noexcept nogil:
    """The front is gone: no byte of a client can reach it; what it had said is delivered."""
    cdef uint32_t slot
    cdef Stream *stream
    for slot in range(relay.used):
        stream = &relay.streams[slot]
        if stream.flags & GONE or stream.party == NOBODY:
            continue
        if stream.party == TO_FRONT:
            end_stream(relay, slot, False)
        else:
            stream.finishing = True
            enter(relay, slot, RUN)
