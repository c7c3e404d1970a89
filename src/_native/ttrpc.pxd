# ttrpc: takes requests from connections, gives them to the front, and sends its answers.
#
# When the front dies, a request that has begun gets the empty answer, one that
# waits (replayable) is given to the next front, and so is one of which nothing is known, but
# only once: what has killed two fronts is refused.

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from blocks cimport Chain, chain_append, chain_free
from channel cimport channel_is_idle, channel_wait
from clock cimport realtime
from connection cimport *
from fds cimport Parcel, drop, send_payload, take_payload
from framing cimport (INVALID_ARGUMENT, RESOURCE_EXHAUSTED, STEP_BEGIN, STEP_DATA, STEP_MORE,
                      STEP_PIECE, STEP_REFUSE, STEP_WHOLE, UNAVAILABLE, Step, framing_next,
                      framing_skip, framing_wants)
from linux cimport *
from table cimport NONE
from wire cimport REQUEST, Record

cdef enum:
    READS = 64                   # of one connection before the others have their turn
    MOST_DEATHS = 2              # fronts that may die over a request


# ---- frames

cdef inline void refuse_frame(Ttrpc *t, Connection *c, int code, const char *reason) noexcept nogil:
    forget_frame(t, c)
    framing_skip(&c.framing)
    send_status(t, c, c.framing.stream, code, reason)


cdef inline void take_piece(Ttrpc *t, Connection *c, Step *step) noexcept nogil:
    cdef uint32_t before = c.body.blocks
    cdef uint32_t grown
    if not chain_append(t.pool, &c.body, step.piece, step.size):
        refuse_frame(t, c, RESOURCE_EXHAUSTED, "the shim has no room for this request")
        return
    grown = min(c.body.blocks - before, c.promised)
    c.promised -= grown
    t.promised -= grown


cdef inline void take_request(Ttrpc *t, Connection *c) noexcept nogil:
    """A request is complete."""
    cdef Request *request
    if c.lost:
        refuse_frame(t, c, RESOURCE_EXHAUSTED, "the request's descriptors found no room")
        return
    if not has_request_slot(t):
        refuse_frame(t, c, RESOURCE_EXHAUSTED, "the shim has too many unanswered requests")
        return
    request = request_add(t, <uint32_t>(c - t.connections))
    request.time = realtime()
    request.stream = c.framing.stream
    request.cost = REQUEST_COST + c.body.size
    c.bytes += request.cost
    request.body = c.body
    request.count = c.count
    memcpy(request.descriptors, c.passed, sizeof(c.passed))
    memset(&c.body, 0, sizeof(Chain))
    c.count = 0
    forget_frame(t, c)


cdef inline bint has_stream(Ttrpc *t, Connection *c, uint32_t stream) noexcept nogil:
    """Whether a request of that number is unanswered."""
    cdef uint32_t slot = c.first
    while slot != NONE and t.requests[slot].stream != stream:
        slot = t.requests[slot].below
    return slot != NONE


cdef inline void take_bytes(Ttrpc *t, Connection *c, const char *data, size_t size) noexcept nogil:
    cdef Step step
    framing_next(&c.framing, &data, &size, &step)
    while step.kind != STEP_MORE:
        if step.kind == STEP_BEGIN:
            c.admitted = c.framing.left == 0
        elif step.kind == STEP_PIECE:
            take_piece(t, c, &step)
        elif step.kind == STEP_WHOLE:
            take_request(t, c)
        elif step.kind == STEP_REFUSE:
            refuse_frame(t, c, step.code, step.reason)
        elif not has_stream(t, c, c.framing.stream):
            refuse_frame(t, c, INVALID_ARGUMENT, "no such stream")
        framing_next(&c.framing, &data, &size, &step)
    if is_between(&c.framing):
        drop_passed(c)


cdef inline void keep_passed(Ttrpc *t, Connection *c, msghdr *message) noexcept nogil:
    """Take the descriptors that came with some bytes of the present frame."""
    cdef cmsghdr *header = CMSG_FIRSTHDR(message)
    cdef int found[MOST_PASSED]
    cdef int count = 0
    cdef int i
    if message.msg_flags & MSG_CTRUNC:
        c.lost = True
    if header != NULL and header.cmsg_level == SOL_SOCKET and header.cmsg_type == SCM_RIGHTS:
        count = <int>((header.cmsg_len - CMSG_LEN(0)) // sizeof(int))
        memcpy(found, CMSG_DATA(header), count * sizeof(int))
    for i in range(count):
        if c.count == MOST_PASSED or found[i] >= t.highest:
            drop(&found[i])
            c.lost = True
        else:
            c.passed[c.count] = found[i]
            c.count += 1


cdef inline ssize_t receive_some(Ttrpc *t, Connection *c) noexcept nogil:
    """Read at most to the end of the present header or body, so that descriptors belong to it.

    Those that nobody takes are closed by the kernel.
    """
    cdef msghdr message
    cdef iovec vector
    cdef char control[64]
    cdef ssize_t size
    memset(&message, 0, sizeof(message))
    vector.iov_base = t.scratch
    vector.iov_len = min(framing_wants(&c.framing), <uint32_t>SCRATCH)
    message.msg_iov = &vector
    message.msg_iovlen = 1
    if c.door:
        message.msg_control = control
        message.msg_controllen = CMSG_LEN(MOST_PASSED * sizeof(int))
    size = recvmsg(c.socket, &message, MSG_CMSG_CLOEXEC)
    if size > 0 and c.door:
        keep_passed(t, c, &message)
    return size


cdef inline void connection_read(Ttrpc *t, Connection *c) noexcept nogil:
    cdef ssize_t size
    cdef int i
    for i in range(READS):
        if not may_read(t, c):
            return
        size = receive_some(t, c)
        if size > 0:
            take_bytes(t, c, t.scratch, size)
        elif size == 0:
            connection_end(t, c)
        elif errno == EAGAIN:
            return
        elif errno != EINTR:
            connection_break(t, c)


# ---- events

cdef inline void ttrpc_accept(Ttrpc *t, int client, uint64_t listener, bint door,
                              ucred *peer) noexcept nogil:
    """A new connection; takes the socket, and hangs up where there is no room."""
    cdef uint32_t slot = t.free
    cdef Connection *c
    cdef epoll_event event
    if slot != NONE:
        t.free = t.connections[slot].next
    elif t.used < t.most:
        slot = t.used
        t.used += 1
    else:
        drop(&client)
        return
    c = &t.connections[slot]
    c.socket = client
    c.listener = listener
    c.door = door
    c.pid, c.uid, c.gid = peer.pid, peer.uid, peer.gid
    c.first = c.last = NONE
    event.events = 0
    event.data.u64 = t.tag << 56 | <uint64_t>(c.generation & 0xFFFFFF) << 32 | slot
    if epoll_ctl(t.epoll, EPOLL_CTL_ADD, client, &event) < 0:
        connection_break(t, c)
    connection_watch(t, c)


cdef inline void ttrpc_event(Ttrpc *t, uint32_t slot, uint32_t generation,
                             uint32_t events) noexcept nogil:
    cdef Connection *c = &t.connections[slot]
    if c.socket < 0 or (c.generation & 0xFFFFFF) != generation:
        return
    if events & EPOLLOUT:
        connection_flush(t, c)
    if events & c.events & EPOLLIN:
        connection_read(t, c)
    elif events & (EPOLLHUP | EPOLLERR):
        connection_break(t, c)
    connection_watch(t, c)


cdef inline void close_broken(Ttrpc *t) noexcept nogil:
    cdef uint32_t slot
    for slot in range(t.used if t.broken else 0):
        if t.connections[slot].broken:
            connection_close(t, slot)


cdef inline void ttrpc_run(Ttrpc *t) noexcept nogil:
    """Close what is broken; let those that were starved look again."""
    cdef uint32_t slot
    close_broken(t)
    for slot in range(t.used if t.starved else 0):
        if t.connections[slot].starved:
            connection_watch(t, &t.connections[slot])
    close_broken(t)


cdef inline bint ttrpc_is_quiet(Ttrpc *t) noexcept nogil:
    """Whether all that was answered is delivered."""
    cdef uint32_t slot
    for slot in range(t.used):
        if t.connections[slot].output.size:
            return False
    return True


# ---- the front

cdef inline int give(Ttrpc *t, Request *request) noexcept nogil:
    """Send a request to the front; 0, or the errno."""
    cdef Connection *c = &t.connections[request.connection]
    cdef Record record
    memset(&record, 0, sizeof(record))
    record.kind = REQUEST
    record.id = request.id
    record.owner = c.listener
    record.time = request.time
    record.pid = c.pid
    record.status = c.uid
    record.number = c.gid
    return send_payload(t.channel.socket, &record, t.pool, &request.body, request.descriptors,
                        request.count)


cdef inline bint ttrpc_deliver(Ttrpc *t) noexcept nogil:
    """Give the front what it has not got, as far as the channel takes it; whether it got any.

    What does not go through the channel for want of memory or descriptors is refused.
    """
    cdef Request *request
    cdef Connection *c
    cdef bint any = False
    cdef int error
    while t.unsent != NONE and channel_is_idle(t.channel):
        request = &t.requests[t.unsent]
        error = give(t, request)
        if error == EAGAIN:
            channel_wait(t.channel)
        if error == EAGAIN or error == EPIPE or error == ECONNRESET:
            return any
        t.unsent = request.next
        any = True
        if error:
            c = &t.connections[request.connection]
            send_status(t, c, request.stream, RESOURCE_EXHAUSTED, "the shim cannot pass this on")
            request_free(t, request)
            connection_watch(t, c)
        else:
            request.sent = True
    return any


cdef inline void settle(Ttrpc *t, Request *request, bint blamed) noexcept nogil:
    """The front has died over this request; it is blamed for that unless the keeper meant it."""
    cdef Connection *c = &t.connections[request.connection]
    cdef Chain empty
    if blamed and request.state == FRESH and request.sent:
        request.deaths += 1
    if request.state == STARTED:
        memset(&empty, 0, sizeof(empty))
        send_response(t, c, request.stream, &empty)
    elif request.deaths >= MOST_DEATHS:
        send_status(t, c, request.stream, UNAVAILABLE,
                    "the shim's front died twice over this request")
    else:
        request.sent = False
        return
    request_free(t, request)
    connection_watch(t, c)


cdef inline void ttrpc_front_gone(Ttrpc *t, bint blamed) noexcept nogil:
    """Answer what has begun; the next front gets the rest, in order of arrival."""
    cdef uint32_t slot = t.first
    cdef uint32_t following
    while slot != NONE:
        following = t.requests[slot].next
        settle(t, &t.requests[slot], blamed)
        slot = following
    t.unsent = t.first


cdef inline int ttrpc_replayable(Ttrpc *t, uint64_t id) noexcept nogil:
    """0; ESRCH: no such request; EINVAL: it has begun."""
    cdef Request *request = request_find(t, id)
    if request == NULL:
        return ESRCH
    if request.state == STARTED:
        return EINVAL
    if request.state == FRESH:
        request.state = PARKED
        t.connections[request.connection].open -= 1
        connection_watch(t, &t.connections[request.connection])
    return 0


cdef inline void ttrpc_signalled(Ttrpc *t, uint64_t id) noexcept nogil:
    """The signal that the request asks for has been sent: it has begun, if it is still there."""
    cdef Request *request = request_find(t, id)
    if request == NULL:
        return
    if request.state == PARKED:
        t.connections[request.connection].open += 1
    request.state = STARTED


cdef inline int ttrpc_respond(Ttrpc *t, Parcel *parcel) noexcept nogil:
    """Answer a request; 0; ESRCH: no such request; ENOBUFS: no room, its client is hung up on."""
    cdef Request *request = request_find(t, parcel.record.id)
    cdef Connection *c
    cdef Chain body
    cdef int error
    if request == NULL:
        return ESRCH
    c = &t.connections[request.connection]
    memset(&body, 0, sizeof(body))
    error = take_payload(parcel, t.pool, &body)
    if error:
        chain_free(t.pool, &body)
        connection_break(t, c)
    else:
        send_response(t, c, request.stream, &body)
    request_free(t, request)
    connection_watch(t, c)
    return error
