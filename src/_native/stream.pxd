# A stream of bytes from one descriptor to another or to a log, and the relay that holds them all.
#
# A stream is in at most one list: RUN (has work), LINGER (ended, its FIFO has no reader yet), SPACE
# (its file's disk is full) or ENDED (the keeper has not looked at it yet).
#
# The streams of containers have an epoll set of their own, which is looked at as often as `pace`
# finds right. Those between clients and the front are in the keeper's, which is always heard.

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from clock cimport FOREVER
from fds cimport drop
from linux cimport *
from log cimport Log, Logs, give_place, log_join, log_leave, logs_open, take_place
from table cimport NONE, Map, arena, map_find, map_open, map_put, map_remove
from wire cimport GONE, INPUT, OUTPUT, STAY, STDERR

cdef enum:
    CHUNK = 16 << 10           # bytes of one read(2)
    SMALL_PIPE = 64 << 10      # a pipe's size when it is made
    BIG_PIPE = 1 << 20         # what a busy pipe grows to: the most root without CAP_SYS_RESOURCE gets
    MOST_GROWN = 512

cdef enum:    # List
    NOWHERE, RUN, LINGER, SPACE, ENDED_LIST, LISTS

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
    uint64_t due               # LINGER, SPACE: when to look again
    uint64_t born              # LINGER: since when
    uint64_t ticked            # bytes at the last cool-down tick
    uint64_t pause             # SPACE: the last wait; 0 when the file has taken something since
    int source, sink, hold     # owned
    int error
    uint32_t generation        # tells a late event of the slot's last tenant
    uint32_t previous, next
    uint32_t pending, offset   # what read(2) gave and write(2) has not taken, in `rest`; of a
                               # log's stream, from its beginning, in `logs.kept`
    uint32_t log               # its slot and 1; 0: there is a sink
    uint32_t place             # a log's: in `logs.kept`
    uint8_t flags              # OUTPUT, INPUT, GONE, STAY, STDERR
    uint8_t where              # List
    uint8_t way
    uint8_t party
    uint8_t full_turns
    uint8_t grown
    uint8_t hung_up            # the source's last writer has gone: read on to the end
    uint8_t blocked            # the sink is full: the source's events mean nothing
    uint8_t finishing          # the end is where nothing more can be read now
    uint8_t merging            # small fragments filled the sink's slots: copy, to merge them
    uint8_t muted              # the source's events are off, for the sink is full
    uint8_t stuck              # its pipes cannot grow
    uint8_t file               # the sink is a file: never full but for its disk, and unwatched
    uint8_t piped              # not SPLICE, but the source is a pipe
    uint8_t ending             # a log's: all has been read

cdef struct Relay:
    int epoll                  # owned: the streams of containers
    int front_epoll            # the keeper's: the streams of the front
    uint32_t most, used, free  # slots; ever used; head of the free list
    Stream *streams
    char *rest                 # CHUNK bytes for each slot
    char *scratch              # CHUNK bytes
    Logs logs
    Map ids
    uint32_t first[5]          # of each List
    uint32_t last[5]
    uint32_t runnable          # streams in RUN
    uint32_t grown[512]
    uint32_t grown_count, grown_most
    uint64_t cool_due
    uint64_t space_due         # no stream in SPACE is due before
    uint64_t now
    bint asked, answered       # bytes went to the front, came from it

    # how often the streams of containers are looked at, see `pace`
    uint64_t look_due          # not before; 0: whenever one has work
    uint64_t last_look
    uint64_t window            # since when `looks` and `window_moved` are counted
    uint64_t window_moved      # bytes
    uint32_t looks             # that moved bytes
    uint32_t empty_looks       # consecutive
    uint64_t moved             # bytes, by the present look
    uint64_t patience          # nanoseconds that the fullest pipe bears; 0: its writer may stand
    bint attended              # not only logs have moved bytes
    uint64_t hot_until         # looks have come so fast that they are put off so long


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
    """Room for `most` streams; pipes grow by at most `budget` bytes in all. False: no memory.

    epoll: the keeper's set, which tells of the streams of the front.
    """
    cdef int i
    memset(relay, 0, sizeof(Relay))
    relay.epoll = epoll_create1(EPOLL_CLOEXEC)
    relay.front_epoll = epoll
    relay.most = most
    relay.free = NONE
    relay.cool_due = relay.space_due = relay.patience = FOREVER
    relay.grown_most = <uint32_t>min(<uint64_t>MOST_GROWN, budget // (2 * BIG_PIPE))
    for i in range(LISTS):
        relay.first[i] = relay.last[i] = NONE
    relay.streams = <Stream *>arena(most * sizeof(Stream))
    relay.rest = <char *>arena(<size_t>most * CHUNK)
    relay.scratch = <char *>arena(CHUNK)
    if relay.streams == NULL or relay.rest == NULL or relay.scratch == NULL or relay.epoll < 0:
        return False
    return logs_open(&relay.logs, most) and map_open(&relay.ids, most)


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


cdef inline int epoll_of(Relay *relay, Stream *stream) noexcept nogil:
    return relay.epoll if stream.party == NOBODY else relay.front_epoll


cdef inline int watch(Relay *relay, int operation, int fd, uint64_t tag, uint32_t slot,
                      uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events | EPOLLET
    event.data.u64 = tag << 56 | <uint64_t>(relay.streams[slot].generation & 0xFFFFFF) << 32 | slot
    if epoll_ctl(epoll_of(relay, &relay.streams[slot]), operation, fd, &event) < 0:
        return errno
    return 0


cdef inline int way_of(int source, int sink) noexcept nogil:
    cdef stat_t first, second
    if fstat(source, &first) < 0 or fstat(sink, &second) < 0:
        return COPY
    if S_ISFIFO(first.st_mode) and S_ISFIFO(second.st_mode):
        return SPLICE
    return TERMINAL if S_ISCHR(first.st_mode) else COPY


cdef inline bint is_pipe(int fd) noexcept nogil:
    cdef stat_t facts
    return fstat(fd, &facts) == 0 and S_ISFIFO(facts.st_mode)


cdef inline bint is_file(int fd) noexcept nogil:
    """A regular file. epoll refuses most of them (EPERM), but not all: FUSE's it takes."""
    cdef stat_t facts
    return fstat(fd, &facts) == 0 and S_ISREG(facts.st_mode)


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
    stream.flags = flags & (OUTPUT | INPUT | STAY)
    stream.party = party
    stream.way = way_of(source, sink)
    stream.piped = stream.way == COPY and is_pipe(source)
    stream.file = is_file(sink)
    stream.where = NOWHERE
    if id:
        map_put(&relay.ids, id, slot)
    error = watch(relay, EPOLL_CTL_ADD, source, SOURCE_TAG, slot, EPOLLIN | EPOLLRDHUP)
    if not error and not stream.file:
        error = watch(relay, EPOLL_CTL_ADD, sink, SINK_TAG, slot, EPOLLOUT)
    if error:
        close_end(relay, stream, &stream.source)
        drop(&stream.hold)
        close_end(relay, stream, &stream.sink)
        free_slot(relay, slot)
        return error
    made[0] = slot
    return 0


cdef inline int relay_add_log(Relay *relay, uint64_t id, int source, Log *wanted,
                              int flags) noexcept nogil:
    """Begin a stream into a log, see log_join; takes the descriptors, as relay_add does."""
    cdef uint32_t slot
    cdef uint32_t log = 0
    cdef Stream *stream
    cdef int error = log_join(&relay.logs, wanted, &log)
    if error:
        drop(&source)
        return error
    if map_find(&relay.ids, id) != NONE:
        error = EEXIST
    slot = NONE if error else new_slot(relay)
    if slot == NONE:
        drop(&source)
        log_leave(&relay.logs, log)
        return error if error else EMFILE
    stream = &relay.streams[slot]
    stream.id = id
    stream.source = source
    stream.sink = stream.hold = -1
    stream.log = log + 1
    stream.place = take_place(&relay.logs)
    stream.flags = flags & (STAY | STDERR)
    stream.way = way_of(source, source)
    stream.piped = stream.way == SPLICE
    if stream.piped:
        stream.way = COPY
    stream.file = True
    stream.where = NOWHERE
    map_put(&relay.ids, id, slot)
    if stream.place == NONE:
        error = EMFILE
    else:
        error = watch(relay, EPOLL_CTL_ADD, source, SOURCE_TAG, slot, EPOLLIN | EPOLLRDHUP)
    if error:
        close_end(relay, stream, &stream.source)
        leave_log(relay, stream)
        free_slot(relay, slot)
    return error


cdef inline void leave_log(Relay *relay, Stream *stream) noexcept nogil:
    if stream.place != NONE:
        give_place(&relay.logs, stream.place)
    log_leave(&relay.logs, stream.log - 1)
    stream.log = 0


cdef inline void close_end(Relay *relay, Stream *stream, int *fd) noexcept nogil:
    """Close a watched descriptor. epoll(7): its entry would stay while another one is open."""
    if fd[0] >= 0:
        epoll_ctl(epoll_of(relay, stream), EPOLL_CTL_DEL, fd[0], NULL)
    drop(fd)
