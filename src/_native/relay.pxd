# The relay: copies streams of bytes between pipes, FIFOs, ptys and sockets, and into files.
#
# Both ends of a stream are registered once, edge-triggered. After a splice that moved less than
# it was asked to, either the source is empty or the sink is full; whichever it is, its change
# brings an edge, and the stream is tried again then. So no call is spent on arming, none on
# asking which side it was, and an idle or hung-up descriptor wakes nobody.
# (A pipe that an epoll set watches reports an edge for every write: fs/pipe.c, poll_usage,
# Linux 5.15. Edges of a pipe's writable side come when it has been full.)
#
# A regular file cannot be watched, and need not be: it takes what it is given. Where its disk is
# full, the bytes are kept and offered again after a while, so that the writer waits and loses
# nothing. A log's file is the same; see log.pxd for what is written there.

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from clock cimport FOREVER, MILLISECOND, SECOND
from fds cimport drop
from linux cimport *
from log cimport GULP, LINE, MORE, TEXT, Log, log_write, text_at
from pace cimport cool_down, forget_grown, maybe_grow, note_moved, rest
from stream cimport *
from table cimport NONE, map_find
from wire cimport GONE, INPUT, OUTPUT, STAY, STDERR

cdef enum:
    TURN = 1 << 20             # bytes a stream may move before the others have their turn
    LINGER_FIRST = 2 * MILLISECOND
    LINGER_LAST = 1 * SECOND
    SPACE_FIRST = 100 * MILLISECOND
    SPACE_LAST = 2 * SECOND


cdef inline bint stays(Stream *stream) noexcept nogil:
    """Whether the source's end is not the stream's yet."""
    return stream.flags & STAY and not stream.finishing and not stream.error


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
            if size < TURN and not stream.hung_up and not stream.finishing:
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
        elif errno == EAGAIN or (stream.file and (errno == ENOSPC or errno == EDQUOT)):
            stream.blocked = True
            return False
        elif errno != EINTR:
            stream.error = errno
            return True
    stream.pause = 0
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
    cdef bint drained = False
    cdef ssize_t size
    cdef int outcome
    while moved < most:
        if not write_rest(relay, stream, rest):
            return IDLE
        if stream.error:
            return OVER
        if drained:
            return IDLE    # an edge will tell; to read on would be to follow the writer, line by line
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
        drained = size < CHUNK and stream.piped and not stream.hung_up and not stream.finishing
    return AGAIN


# ---- into logs

cdef inline void keep_text(Relay *relay, Stream *stream, const char *text,
                           uint32_t size) noexcept nogil:
    """Keep what could not be written yet: mostly the beginning of a line, which is short."""
    cdef char *kept = text_at(&relay.logs, stream.place)
    if stream.pending > <uint32_t>LINE >= size:
        madvise(kept + LINE, TEXT - LINE, MADV_DONTNEED)
    memcpy(kept, text, size)
    stream.pending = size


cdef inline int write_lines(Relay *relay, Stream *stream, char *text, size_t *size) noexcept nogil:
    """Write the whole lines of a text, and move the rest to its beginning; 0, MORE or an errno."""
    cdef const char *name = b"stderr" if stream.flags & STDERR else b"stdout"
    cdef size_t taken = 0
    cdef int error = log_write(&relay.logs, &relay.logs.all[stream.log - 1], name, text, size[0],
                               stream.ending, relay.now, &taken)
    stream.bytes += taken
    size[0] -= taken
    if taken and size[0]:
        memmove(text, text + taken, size[0])
    if error == ENOSPC or error == EDQUOT or error == EAGAIN:
        stream.blocked = True
    elif error > 0:
        stream.error = error
    else:
        stream.pause = 0
    return error


cdef inline int read_lines(Stream *stream, char *text, size_t *size) noexcept nogil:
    """Read once behind the text; MORE: there may be more to read, else what the turn comes to."""
    cdef ssize_t got = read(stream.source, text + size[0], GULP)
    cdef int outcome = OVER
    if got > 0:
        size[0] += got
        if got < GULP and stream.piped and not stream.hung_up and not stream.finishing:
            return IDLE    # empty: an edge will tell
        return MORE
    if got < 0:
        outcome = read_failed(stream)
    if outcome == AGAIN:
        return MORE
    stream.ending = outcome == OVER and not stays(stream)
    return outcome


cdef inline int move_lines(Relay *relay, Stream *stream, char *text, size_t *size) noexcept nogil:
    """A turn is of TURN bytes written: empty lines become many times as many as have been read."""
    cdef Log *log = &relay.logs.all[stream.log - 1]
    cdef uint64_t before = log.written
    cdef int outcome = MORE
    cdef int error
    while True:
        error = write_lines(relay, stream, text, size)
        if error:
            return AGAIN if error == MORE else OVER if stream.error else IDLE
        if outcome != MORE:
            return outcome
        if stream.ending:
            return OVER
        if log.written - before >= TURN:
            return AGAIN
        outcome = read_lines(stream, text, size)


cdef inline int log_turn(Relay *relay, uint32_t slot) noexcept nogil:
    cdef Stream *stream = &relay.streams[slot]
    cdef char *text = relay.logs.text
    cdef size_t size = stream.pending
    cdef int outcome
    memcpy(text, text_at(&relay.logs, stream.place), size)
    outcome = move_lines(relay, stream, text, &size)
    keep_text(relay, stream, text, <uint32_t>size)
    return outcome


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
    close_end(relay, stream, &stream.source)
    drop(&stream.hold)
    if stream.log:
        keep_text(relay, stream, relay.logs.text, 0)
        leave_log(relay, stream)
    if linger and stream.flags & OUTPUT and not stream.error and not has_reader(stream.sink):
        stream.born = relay.now
        stream.due = relay.now + LINGER_FIRST
        enter(relay, slot, LINGER)
        return
    close_end(relay, stream, &stream.sink)
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


# ---- files on full disks

cdef inline void await_space(Relay *relay, uint32_t slot) noexcept nogil:
    """Offer the bytes again later. Times are rounded up, so that many streams wake us once."""
    cdef Stream *stream = &relay.streams[slot]
    stream.pause = min(max(2 * stream.pause, <uint64_t>SPACE_FIRST), <uint64_t>SPACE_LAST)
    stream.due = relay.now + stream.pause
    stream.due += SPACE_FIRST - stream.due % SPACE_FIRST
    relay.space_due = min(relay.space_due, stream.due)
    enter(relay, slot, SPACE)


cdef inline void try_files(Relay *relay) noexcept nogil:
    """Offer again what is due; the rest tells when to look again."""
    cdef uint32_t slot = relay.first[SPACE]
    cdef uint32_t following
    relay.space_due = FOREVER
    while slot != NONE:
        following = relay.streams[slot].next
        if relay.streams[slot].due <= relay.now:
            relay.streams[slot].blocked = False
            enter(relay, slot, RUN)
        else:
            relay.space_due = min(relay.space_due, relay.streams[slot].due)
        slot = following


cdef inline bint is_closed_yet(Stream *stream) noexcept nogil:
    """Whether nothing may be read yet: an input whose reader may not be there."""
    return stream.flags & STAY and stream.flags & INPUT


# ---- what the keeper calls

cdef inline uint64_t taken_in(Stream *stream) noexcept nogil:
    """The bytes by which a turn is judged: half a line of a log has been read, too."""
    return stream.bytes + stream.pending if stream.log else stream.bytes


cdef inline void relay_turn(Relay *relay, uint32_t slot) noexcept nogil:
    """One bounded turn of one stream, which is in no list now."""
    cdef Stream *stream = &relay.streams[slot]
    cdef uint64_t before = taken_in(stream)
    cdef uint64_t moved
    cdef int outcome
    if stream.log:
        outcome = log_turn(relay, slot)
    elif stream.way == SPLICE and not stream.merging and not stream.pending:
        outcome = splice_turn(stream)
    else:
        outcome = copy_turn(relay, slot)
        stream.merging = stream.pending != 0    # what did not fit goes first
    moved = taken_in(stream) - before
    if moved and stream.party == TO_FRONT:
        relay.asked = True
    elif moved and stream.party == FROM_FRONT:
        relay.answered = True
    if outcome == OVER:
        if not stays(stream):
            end_stream(relay, slot, True)
        return
    if stream.party == NOBODY:
        note_moved(relay, slot, moved)
    maybe_grow(relay, slot, moved)
    if outcome == AGAIN:
        enter(relay, slot, RUN)
    else:
        rest(relay, slot)
        if stream.blocked and stream.file:
            await_space(relay, slot)


cdef inline void relay_event(Relay *relay, uint64_t tag, uint32_t slot, uint32_t generation,
                             uint32_t events) noexcept nogil:
    """An edge on one end of a stream."""
    cdef Stream *stream
    if slot >= relay.used:
        return
    stream = &relay.streams[slot]
    if stream.generation & 0xFFFFFF != generation or stream.flags & GONE or stream.where == LINGER:
        return
    if tag == SOURCE_TAG and events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR):
        stream.hung_up = True
    if is_closed_yet(stream):
        return                   # SETTLE looks at both ends; no other edge tells of this end
    if tag == SINK_TAG:
        stream.blocked = False
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
    cdef uint64_t next_due = relay.look_due if relay.look_due else FOREVER
    cdef uint32_t slot = relay.first[LINGER]
    cdef uint32_t following
    while slot != NONE:
        following = relay.streams[slot].next
        if relay.streams[slot].due <= relay.now:
            check_linger(relay, slot)
        if relay.streams[slot].where == LINGER:
            next_due = min(next_due, relay.streams[slot].due)
        slot = following
    if relay.space_due <= relay.now:
        try_files(relay)
    if relay.cool_due <= relay.now:
        cool_down(relay)
    if relay.first[RUN] != NONE:
        return relay.now
    return min(min(next_due, relay.space_due), relay.cool_due)


cdef inline int relay_unhold(Relay *relay, uint64_t id) noexcept nogil:
    """Close the write end that keeps a client's FIFO from its end (CloseStdin)."""
    cdef uint32_t slot = map_find(&relay.ids, id)
    if slot == NONE:
        return ESRCH
    if relay.streams[slot].flags & INPUT:
        drop(&relay.streams[slot].hold)
    return 0


cdef inline int relay_settle(Relay *relay, uint64_t id) noexcept nogil:
    """Let an output's source have its end, which may have come; read an input."""
    cdef uint32_t slot = map_find(&relay.ids, id)
    cdef Stream *stream
    if slot == NONE:
        return ESRCH
    stream = &relay.streams[slot]
    if stream.flags & STAY:
        stream.flags &= ~STAY
        if not stream.flags & GONE and stream.where == NOWHERE:
            enter(relay, slot, RUN)
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


cdef inline int relay_delivered(Relay *relay, uint64_t id, uint64_t *bytes,
                                uint32_t *all, uint32_t *trouble) noexcept nogil:
    """The bytes that the client has read: those moved, less what its FIFO still holds.

    For a file, which may be read at any time, those written to it.

    all: 1 when that is all there will be, and the stream only waits for a reader of its end.
    trouble: of a log, the errno for which it waits for space, or has kept to a file too long.
    """
    cdef uint32_t slot = map_find(&relay.ids, id)
    cdef int queued = 0
    if slot == NONE:
        return ESRCH
    if not relay.streams[slot].file:
        ioctl(relay.streams[slot].sink, FIONREAD, &queued)
    bytes[0] = relay.streams[slot].bytes - <uint64_t>queued
    all[0] = relay.streams[slot].where == LINGER and queued == 0
    if relay.streams[slot].log:
        trouble[0] = relay.logs.all[relay.streams[slot].log - 1].error
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
