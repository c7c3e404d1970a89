# Events for containerds. Each destination has a queue, and a connection to a ttrpc server on which
# one event at a time is under way, so that their order is kept. An event leaves the queue when it
# has been answered; until then it is sent again, however often the server comes and goes.
#
# Nothing runs while nothing is queued: the connection stays open, and its end is noted.

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from blocks cimport (VECTORS, Chain, Pool, blocks_for, blocks_left, chain_append, chain_copy,
                     chain_drop, chain_free, chain_join, chain_vector)
from clock cimport FOREVER, MILLISECOND, SECOND
from fds cimport Parcel, drop, take_payload
from framing cimport (HEADER_SIZE, MOST_MESSAGE, TYPE_REQUEST, TYPE_RESPONSE, big_endian,
                      put_big_endian)
from linux cimport *
from listener cimport may_call
from reaper cimport Process, Reaper
from table cimport NONE, arena, map_find

cdef enum:
    MOST_DESTINATIONS = 256
    MOST_QUEUED = 65536          # events of one destination
    MOST_BYTES = 16 << 20        # of one destination's queue
    OTHERS = 49152               # blocks that events leave to requests and answers: 24 MiB
    LAST_STREAM = 0xFFFFFFFD
    LENGTH = 4                   # bytes of the length before each event in a queue
    ATTEMPT_TIME = 5             # seconds for one event's answer
    PAUSE_FIRST = 50             # milliseconds before the next attempt
    PAUSE_LAST = 2000
    MOST_REFUSALS = 3            # answers with an error before an event is given up
    READS = 16                   # of one turn
    COUNTED = 0x8000             # the mark that has a count

cdef struct Destination:
    uint64_t id                  # 0: the slot is free
    uint64_t due                 # of the attempt, or of the next one's begin
    uint64_t pause               # nanoseconds, the last one; 0: the last attempt was answered
    Chain queue                  # of each event its length, 4 bytes as the CPU has them, and itself
    uint32_t queued              # events
    uint32_t lost                # events given up, not reported yet
    uint32_t stream              # the last event's on this connection
    uint32_t size                # of the event under way
    uint32_t sent                # bytes of its frame
    uint32_t got                 # bytes of the frame that is coming
    int socket                   # owned; -1: not connected
    uint8_t busy                 # the first event is under way
    uint8_t blocked              # the socket is full: its writability is watched
    uint8_t refusals             # answers with an error to the first event
    uint8_t leaving              # goes once its queue is empty
    char path[108]
    uint8_t answer[1024]         # the beginning of the frame that is coming

cdef struct Publisher:
    int epoll
    uint64_t tag
    Pool *pool
    Destination *all
    uint32_t used                # slots
    bint lost                    # some destination has given up events


# ---- destinations

cdef inline bint publisher_open(Publisher *publisher, int epoll, uint64_t tag,
                                Pool *pool) noexcept nogil:
    """False: no memory."""
    memset(publisher, 0, sizeof(Publisher))
    publisher.epoll = epoll
    publisher.tag = tag
    publisher.pool = pool
    publisher.all = <Destination *>arena(MOST_DESTINATIONS * sizeof(Destination))
    return publisher.all != NULL


cdef inline Destination *destination_find(Publisher *publisher, uint64_t id) noexcept nogil:
    """The destination, or a free slot for id 0; NULL when there is none."""
    cdef uint32_t i
    for i in range(publisher.used):
        if publisher.all[i].id == id:
            return &publisher.all[i]
    return NULL


cdef inline Destination *destination_new(Publisher *publisher) noexcept nogil:
    cdef Destination *made = destination_find(publisher, 0)
    if made == NULL and publisher.used < MOST_DESTINATIONS:
        made = &publisher.all[publisher.used]
        publisher.used += 1
    if made != NULL:
        memset(made, 0, sizeof(Destination))
        made.socket = -1
    return made


cdef inline void hang_up(Destination *destination) noexcept nogil:
    """Close the connection: what was under way on it is sent again on the next."""
    drop(&destination.socket)
    destination.busy = destination.blocked = False
    destination.stream = destination.sent = destination.got = 0


cdef inline void leave_if_empty(Destination *destination) noexcept nogil:
    if destination.leaving and destination.queued == 0 and destination.lost == 0:
        hang_up(destination)
        destination.id = 0


cdef inline int destination_set(Publisher *publisher, uint64_t id, const char *path,
                                uint32_t size) noexcept nogil:
    """Events for `id` go to this socket from now on, at once where some wait. 0 or an errno."""
    cdef Destination *destination = destination_find(publisher, id)
    if id == 0 or size == 0 or path[0] != c'/' or memchr(path, 0, size) != NULL:
        return EINVAL
    if size >= sizeof(destination.path):
        return ENAMETOOLONG
    if destination == NULL:
        destination = destination_new(publisher)
        if destination == NULL:
            return ENFILE
        destination.id = id
    destination.leaving = False
    if memcmp(destination.path, path, size) != 0 or destination.path[size] != 0:
        hang_up(destination)
        memset(destination.path, 0, sizeof(destination.path))
        memcpy(destination.path, path, size)
    if not destination.busy:
        destination.due = destination.pause = 0
    return 0


cdef inline int destination_forget(Publisher *publisher, uint64_t id) noexcept nogil:
    """Take no more events for it; it goes once its queue is empty. 0 or ESRCH."""
    cdef Destination *destination = destination_find(publisher, id)
    if id == 0 or destination == NULL or destination.leaving:
        return ESRCH
    destination.leaving = True
    leave_if_empty(destination)
    return 0


# ---- queues

cdef inline bint is_told(Process *process, uint32_t mark, uint32_t number) noexcept nogil:
    """Whether the event of this mark has been queued already, by this front or an earlier one."""
    if mark == COUNTED:
        return number <= process.counted
    return process.told & mark != 0


cdef inline void note_told(Process *process, uint32_t mark, uint32_t number) noexcept nogil:
    process.told |= <uint16_t>mark
    if mark == COUNTED:
        process.counted = number


cdef inline int enqueue(Publisher *publisher, Destination *destination,
                        Parcel *parcel) noexcept nogil:
    """Append an event; 0 or an errno: ENOBUFS, no room; EMSGSIZE, no server would take it."""
    cdef Chain event
    cdef uint32_t size = parcel.size
    cdef int error
    if size > MOST_MESSAGE:
        return EMSGSIZE
    if destination.queued == MOST_QUEUED or destination.queue.size + LENGTH + size > MOST_BYTES:
        return ENOBUFS
    # Many destinations that take nothing must leave callers room for requests and answers.
    if blocks_for(LENGTH + size) + OTHERS > blocks_left(publisher.pool):
        return ENOBUFS
    if parcel.memory < 0:
        # Into the last block's rest: many small events share a block.
        chain_append(publisher.pool, &destination.queue, &size, LENGTH)
        chain_append(publisher.pool, &destination.queue, parcel.payload, size)
    else:
        memset(&event, 0, sizeof(event))
        error = take_payload(parcel, publisher.pool, &event)
        if not error and not chain_append(publisher.pool, &destination.queue, &size, LENGTH):
            error = ENOBUFS
        if error:
            chain_free(publisher.pool, &event)
            return error
        chain_join(publisher.pool, &destination.queue, &event)
    if destination.queued == 0:
        destination.due = 0
    destination.queued += 1
    return 0


cdef inline void give_up(Publisher *publisher, Destination *destination) noexcept nogil:
    """One event will not be delivered; the front is told."""
    destination.lost += 1
    publisher.lost = True


cdef inline int publish(Publisher *publisher, Reaper *reaper, Parcel *parcel) noexcept nogil:
    """Queue an event, unless the mark says that it has been; 0 or an errno.

    ESRCH: no such destination or owner. EINVAL: no event, or a mark that is none. ENOBUFS and
    EMSGSIZE: it is given up.
    """
    cdef Destination *destination = destination_find(publisher, parcel.record.id)
    cdef uint32_t mark = parcel.record.flags
    cdef uint32_t slot = map_find(&reaper.ids, parcel.record.owner)
    cdef int error
    if parcel.record.id == 0 or destination == NULL or destination.leaving:
        return ESRCH
    if parcel.record.owner and slot == NONE:
        return ESRCH
    if parcel.size == 0 or mark & (mark - 1) or mark > COUNTED or (mark and slot == NONE):
        return EINVAL
    if mark and is_told(&reaper.processes[slot], mark, parcel.record.number):
        return EALREADY
    error = enqueue(publisher, destination, parcel)
    if error:
        give_up(publisher, destination)
    elif mark:
        note_told(&reaper.processes[slot], mark, parcel.record.number)
    return error


cdef inline void next_event(Publisher *publisher, Destination *destination) noexcept nogil:
    """The first event is delivered, or given up."""
    cdef uint32_t size = 0
    chain_copy(publisher.pool, &destination.queue, 0, &size, LENGTH)
    chain_drop(publisher.pool, &destination.queue, LENGTH + size)
    destination.queued -= 1
    destination.refusals = 0
    leave_if_empty(destination)


# ---- sending

cdef inline void rest_until(Destination *destination, uint64_t now) noexcept nogil:
    """Before the next attempt: ever longer until one is answered."""
    destination.pause = min(max(2 * destination.pause, <uint64_t>PAUSE_FIRST * MILLISECOND),
                            <uint64_t>PAUSE_LAST * MILLISECOND)
    destination.due = now + destination.pause


cdef inline void lose_connection(Destination *destination, uint64_t now) noexcept nogil:
    """It failed or was closed; where nothing is queued, nothing follows."""
    hang_up(destination)
    rest_until(destination, now)


cdef inline int watch_destination(Publisher *publisher, Destination *destination, int operation,
                                  uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = publisher.tag << 56 | <uint32_t>(destination - publisher.all)
    return epoll_ctl(publisher.epoll, operation, destination.socket, &event)


cdef inline bint connect_destination(Publisher *publisher, Destination *destination) noexcept nogil:
    """Connect to a server of root or our own user, at once or not at all: unix(7)."""
    cdef sockaddr_un address
    cdef ucred peer
    destination.socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if destination.socket < 0:
        return False
    memset(&address, 0, sizeof(address))
    address.sun_family = AF_UNIX
    memcpy(address.sun_path, destination.path, sizeof(address.sun_path))
    return (connect(destination.socket, <sockaddr *>&address, sizeof(address)) == 0
            and may_call(destination.socket, &peer)
            and watch_destination(publisher, destination, EPOLL_CTL_ADD, EPOLLIN) == 0)


cdef inline int gather_frame(Publisher *publisher, Destination *destination, uint8_t *head,
                             iovec *vectors) noexcept nogil:
    """Point vectors at what is not sent of the frame under way; how many."""
    cdef uint32_t body = 0
    cdef int count = 0
    if destination.sent < HEADER_SIZE:
        put_big_endian(head, destination.size)
        put_big_endian(head + 4, destination.stream)
        head[8] = TYPE_REQUEST
        head[9] = 0
        vectors[0].iov_base = head + destination.sent
        vectors[0].iov_len = HEADER_SIZE - destination.sent
        count = 1
    else:
        body = destination.sent - HEADER_SIZE
    return count + chain_vector(publisher.pool, &destination.queue, LENGTH + body,
                                destination.size - body, vectors + count, VECTORS - count)


cdef inline void send_event(Publisher *publisher, Destination *destination,
                            uint64_t now) noexcept nogil:
    """Send on; what the socket does not take waits until it does."""
    cdef iovec vectors[VECTORS]
    cdef uint8_t head[HEADER_SIZE]
    cdef msghdr message
    cdef ssize_t size
    memset(&message, 0, sizeof(message))
    message.msg_iov = vectors
    while destination.sent < HEADER_SIZE + destination.size:
        message.msg_iovlen = gather_frame(publisher, destination, head, vectors)
        size = sendmsg(destination.socket, &message, MSG_NOSIGNAL)
        if size >= 0:
            destination.sent += <uint32_t>size
        elif errno == EAGAIN:
            destination.blocked = True
            watch_destination(publisher, destination, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT)
            return
        elif errno != EINTR:
            lose_connection(destination, now)
            return
    if destination.blocked:
        destination.blocked = False
        watch_destination(publisher, destination, EPOLL_CTL_MOD, EPOLLIN)


cdef inline void begin_event(Publisher *publisher, Destination *destination,
                             uint64_t now) noexcept nogil:
    """An attempt to deliver the first event."""
    if destination.stream >= <uint32_t>LAST_STREAM:
        hang_up(destination)
    if destination.socket < 0 and not connect_destination(publisher, destination):
        lose_connection(destination, now)
        return
    destination.stream += 2 if destination.stream else 1
    chain_copy(publisher.pool, &destination.queue, 0, &destination.size, LENGTH)
    destination.sent = 0
    destination.busy = True
    destination.due = now + <uint64_t>ATTEMPT_TIME * SECOND
    send_event(publisher, destination, now)


# ---- answers

cdef inline uint8_t *read_varint(uint8_t *at, uint8_t *end, uint64_t *value) noexcept nogil:
    """What follows the number; NULL: it is cut short or too long."""
    cdef int shift = 0
    cdef uint8_t digit
    value[0] = 0
    while at < end and shift < 64:
        digit = at[0]
        value[0] |= <uint64_t>(digit & 0x7F) << shift
        shift += 7
        at += 1
        if not digit & 0x80:
            return at
    return NULL


cdef inline uint8_t *find_field(uint8_t *at, uint8_t *end, uint64_t wanted, uint64_t *value,
                                bint *broken) noexcept nogil:
    """The protobuf field with the tag `wanted`: where it begins, and how many bytes of it are
    there or, for a varint, its value.

    NULL: there is none; broken: up to where the bytes are no message.
    """
    cdef uint64_t tag, size
    broken[0] = True
    while at < end:
        at = read_varint(at, end, &tag)
        if at == NULL:
            return NULL
        value[0] = size = 0
        if tag & 7 == 0:
            at = read_varint(at, end, value)
        elif tag & 7 == 2:
            at = read_varint(at, end, &size)
        elif tag & 7 == 1:
            size = 8
        elif tag & 7 == 5:
            size = 4
        else:
            return NULL
        if at == NULL:
            return NULL
        if tag == wanted:
            if tag & 7:
                value[0] = min(size, <uint64_t>(end - at))
            broken[0] = False
            return at
        if size > <uint64_t>(end - at):
            return NULL
        at += size
    broken[0] = False
    return NULL


cdef inline bint read_status(uint8_t *body, uint32_t size, uint64_t *code) noexcept nogil:
    """The code in a ttrpc Response (0: it went well); False when the bytes are none."""
    cdef uint64_t length
    cdef bint broken
    cdef uint8_t *status = find_field(body, body + size, 1 << 3 | 2, &length, &broken)
    code[0] = 0
    if status != NULL and find_field(status, status + length, 1 << 3, code, &broken) == NULL:
        code[0] = 0
    return not broken


cdef inline void take_answer(Publisher *publisher, Destination *destination, uint32_t size,
                             uint64_t now) noexcept nogil:
    """The answer to the event under way, of `size` bytes: delivered, or refused."""
    cdef uint64_t code = 0
    cdef bint whole = destination.sent == HEADER_SIZE + destination.size
    size = min(size, <uint32_t>(sizeof(destination.answer) - HEADER_SIZE))
    if not read_status(destination.answer + HEADER_SIZE, size, &code):
        lose_connection(destination, now)
        return
    destination.busy = False
    if code == 0 and whole:
        destination.pause = destination.due = 0
        next_event(publisher, destination)
        return
    destination.refusals += 1
    if not whole:
        hang_up(destination)     # the rest of its frame would be taken for another
    rest_until(destination, now)
    if destination.refusals == MOST_REFUSALS:
        destination.pause = destination.due = 0
        give_up(publisher, destination)
        next_event(publisher, destination)


cdef inline void take_frame(Publisher *publisher, Destination *destination,
                            uint64_t now) noexcept nogil:
    """A whole frame has come. What does not answer the event under way is passed over."""
    cdef uint32_t size = big_endian(destination.answer)
    cdef uint32_t stream = big_endian(destination.answer + 4)
    destination.got = 0
    if destination.busy and stream == destination.stream:
        if destination.answer[8] == TYPE_RESPONSE:
            take_answer(publisher, destination, size, now)


cdef inline uint32_t frame_size(Destination *destination) noexcept nogil:
    """Bytes of the frame that is coming, as far as is known."""
    if destination.got < HEADER_SIZE:
        return HEADER_SIZE
    return HEADER_SIZE + big_endian(destination.answer)


cdef inline void read_answers(Publisher *publisher, Destination *destination,
                              uint64_t now) noexcept nogil:
    """Take what the server has sent; of a long frame only the beginning is kept."""
    cdef uint8_t rest[4096]
    cdef uint8_t *room
    cdef uint32_t most
    cdef ssize_t size
    cdef int i
    for i in range(READS):
        most = frame_size(destination) - destination.got
        room = rest
        if destination.got < sizeof(destination.answer):
            room = destination.answer + destination.got
            most = min(most, <uint32_t>(sizeof(destination.answer) - destination.got))
        size = read(destination.socket, room, min(most, <uint32_t>sizeof(rest)))
        if size < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if size <= 0:
            lose_connection(destination, now)
            return
        destination.got += <uint32_t>size
        if frame_size(destination) > HEADER_SIZE + MOST_MESSAGE:
            lose_connection(destination, now)
        elif destination.got >= HEADER_SIZE and destination.got == frame_size(destination):
            take_frame(publisher, destination, now)
        if destination.socket < 0:
            return


# ---- what the keeper calls

cdef inline void publisher_event(Publisher *publisher, uint32_t index, uint32_t events,
                                 uint64_t now) noexcept nogil:
    cdef Destination *destination = &publisher.all[index]
    if events & EPOLLOUT and destination.socket >= 0 and destination.blocked:
        send_event(publisher, destination, now)
    if events & (EPOLLIN | EPOLLHUP | EPOLLERR) and destination.socket >= 0:
        read_answers(publisher, destination, now)


cdef inline uint64_t publisher_timers(Publisher *publisher, uint64_t now) noexcept nogil:
    """Begin and give up attempts that are due; gives the time of the next, or FOREVER."""
    cdef uint64_t next_due = FOREVER
    cdef Destination *destination
    cdef uint32_t i
    for i in range(publisher.used):
        destination = &publisher.all[i]
        if destination.queued == 0:
            continue
        if destination.due <= now:
            if destination.busy:
                lose_connection(destination, now)
            else:
                begin_event(publisher, destination, now)
        next_due = min(next_due, destination.due)
    return next_due


cdef inline bint publisher_idle(Publisher *publisher) noexcept nogil:
    """Whether every event has been delivered or given up."""
    cdef uint32_t i
    for i in range(publisher.used):
        if publisher.all[i].queued:
            return False
    return True
