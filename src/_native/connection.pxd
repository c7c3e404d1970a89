# Connections that speak ttrpc to the keeper, and their requests. Both outlive the front.
#
# A request is kept, with its bytes and descriptors, until it is answered or its caller has gone.
# It is in two lists: its connection's, and the one of all in the order of their arrival, of
# which the present front has been given those before `unsent`.

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from blocks cimport (Chain, Pool, blocks_for, blocks_left, chain_append, chain_drop, chain_free,
                     chain_join, chain_send)
from channel cimport Channel, channel_send
from clock cimport realtime
from fds cimport drop
from framing cimport (HEADER_SIZE, IN_BODY, MOST_MESSAGE, RESOURCE_EXHAUSTED, STATUS_ROOM, Framing,
                      is_between, response_header, status_response)
from linux cimport *
from table cimport NONE, arena
from wire cimport CANCELLED, Record

cdef enum:
    REQUEST_BITS = 17
    MOST_REQUESTS = 1 << 17
    REQUEST_COST = 512           # bytes that a request counts beside its body
    RESERVE = 16384              # blocks that requests leave to answers and events: 8 MiB
    MOST_PASSED = 4              # descriptors that come with one request through a door

    # where the reading of one connection stops
    MOST_OPEN = 64               # unanswered requests that are not replayable
    MOST_BYTES = 8 << 20         # of unanswered requests
    MOST_OUTPUT = 4 << 20        # of answers that the client does not read

cdef enum:    # state of a request
    FRESH = 0                    # the front has said nothing about it: it has had no effect
    PARKED = 1                   # replayable
    STARTED = 2                  # begun: the empty answer is its answer when the front dies

cdef struct Request:
    uint64_t id                  # 0: the slot is free
    uint64_t time                # of its arrival, ns since the epoch
    Chain body
    uint32_t connection          # slot
    uint32_t stream
    uint32_t cost                # what it counts in its connection's `bytes`
    uint32_t previous, next      # in order of arrival; next: free list
    uint32_t above, below        # of the same connection
    int descriptors[4]           # owned
    uint8_t count
    uint8_t state
    uint8_t deaths               # of fronts that had it while it was fresh
    uint8_t sent                 # to the present front

cdef struct Connection:
    int socket                   # owned; -1: the slot is free
    uint32_t generation          # tells a late event of the slot's last tenant
    uint32_t next                # free list
    uint32_t events              # what epoll watches
    uint64_t listener            # id
    int32_t pid                  # who called
    uint32_t uid, gid
    Framing framing
    Chain body                   # of the frame that is being read
    uint32_t promised            # blocks that are set aside for the rest of it
    Chain output
    uint32_t first, last         # its requests
    uint32_t open                # those that are not parked
    uint64_t bytes               # of all of them
    int passed[4]                # descriptors that came with the present frame; owned
    uint8_t count
    uint8_t door                 # takes descriptors
    uint8_t lost                 # some of the present frame's did not arrive
    uint8_t admitted             # the present request has room
    uint8_t starved              # waits for what others hold
    uint8_t ended                # the client says no more; what is answered is still delivered
    uint8_t broken               # is closed when the present events are done with

cdef struct Ttrpc:
    int epoll
    uint64_t tag
    int highest                  # descriptors from here on are the reserve
    Pool *pool
    Channel *channel
    Connection *connections
    uint32_t most, used, free
    Request *requests
    uint32_t requests_used, requests_free
    uint64_t sequence            # of the last request
    uint32_t first, last         # all requests in order of arrival
    uint32_t unsent
    uint32_t starved, broken     # how many connections are
    uint32_t promised            # blocks, to all connections
    char *scratch


cdef inline bint ttrpc_open(Ttrpc *t, int epoll, uint64_t tag, uint32_t most, int highest,
                            Pool *pool, Channel *channel) noexcept nogil:
    """Room for `most` connections; False: no memory."""
    memset(t, 0, sizeof(Ttrpc))
    t.epoll = epoll
    t.tag = tag
    t.highest = highest
    t.pool = pool
    t.channel = channel
    t.most = most
    t.free = t.requests_free = t.first = t.last = t.unsent = NONE
    # A later keeper's requests have other ids, too.
    t.sequence = realtime() >> REQUEST_BITS
    t.connections = <Connection *>arena(most * sizeof(Connection))
    t.requests = <Request *>arena(MOST_REQUESTS * sizeof(Request))
    t.scratch = <char *>arena(SCRATCH)
    return t.connections != NULL and t.requests != NULL and t.scratch != NULL


cdef enum:
    SCRATCH = 64 << 10           # bytes of one recvmsg(2)


# ---- requests

cdef inline Request *request_find(Ttrpc *t, uint64_t id) noexcept nogil:
    """The unanswered request of that id; NULL: its caller has gone, or has its answer."""
    cdef uint32_t slot = <uint32_t>(id & (MOST_REQUESTS - 1))
    cdef Request *request = &t.requests[slot]
    if id == 0 or slot >= t.requests_used or request.id != id:
        return NULL
    return NULL if t.connections[request.connection].broken else request


cdef inline bint has_request_slot(Ttrpc *t) noexcept nogil:
    return t.requests_free != NONE or t.requests_used < MOST_REQUESTS


cdef inline void request_link(Ttrpc *t, uint32_t slot) noexcept nogil:
    """Make it the last of both lists: of all, and of its connection's."""
    cdef Request *request = &t.requests[slot]
    cdef Connection *c = &t.connections[request.connection]
    request.next = request.below = NONE
    request.previous = t.last
    if t.last == NONE:
        t.first = slot
    else:
        t.requests[t.last].next = slot
    t.last = slot
    request.above = c.last
    if c.last == NONE:
        c.first = slot
    else:
        t.requests[c.last].below = slot
    c.last = slot
    if t.unsent == NONE:
        t.unsent = slot
    c.open += 1


cdef inline Request *request_add(Ttrpc *t, uint32_t connection) noexcept nogil:
    """A new request, last in both lists. There must be a slot."""
    cdef uint32_t slot = t.requests_free
    cdef Request *request
    if slot != NONE:
        t.requests_free = t.requests[slot].next
    else:
        slot = t.requests_used
        t.requests_used += 1
    request = &t.requests[slot]
    memset(request, 0, sizeof(Request))
    t.sequence += 1
    request.id = t.sequence << REQUEST_BITS | slot
    request.connection = connection
    request_link(t, slot)
    return request


cdef inline void request_free(Ttrpc *t, Request *request) noexcept nogil:
    """Its answer is on the way, or nobody waits for one."""
    cdef Connection *c = &t.connections[request.connection]
    cdef uint32_t slot = <uint32_t>(request.id & (MOST_REQUESTS - 1))
    cdef int i
    for i in range(request.count):
        drop(&request.descriptors[i])
    chain_free(t.pool, &request.body)
    if t.unsent == slot:
        t.unsent = request.next
    if request.previous == NONE:
        t.first = request.next
    else:
        t.requests[request.previous].next = request.next
    if request.next == NONE:
        t.last = request.previous
    else:
        t.requests[request.next].previous = request.previous
    if request.above == NONE:
        c.first = request.below
    else:
        t.requests[request.above].below = request.below
    if request.below == NONE:
        c.last = request.above
    else:
        t.requests[request.below].above = request.above
    if request.state != PARKED:
        c.open -= 1
    c.bytes -= request.cost
    request.id = 0
    request.next = t.requests_free
    t.requests_free = slot


cdef inline void cancel_requests(Ttrpc *t, Connection *c) noexcept nogil:
    """Their caller has gone: who works on them is told."""
    cdef Record report
    cdef Request *request
    while c.first != NONE:
        request = &t.requests[c.first]
        if request.sent:
            memset(&report, 0, sizeof(report))
            report.kind = CANCELLED
            report.id = request.id
            channel_send(t.channel, &report)
        request_free(t, request)


# ---- connections

cdef inline void drop_passed(Connection *c) noexcept nogil:
    """Close the present frame's descriptors."""
    cdef int i
    for i in range(c.count):
        drop(&c.passed[i])
    c.count = 0
    c.lost = False


cdef inline void connection_break(Ttrpc *t, Connection *c) noexcept nogil:
    """Nothing more is said or heard; it is closed when the present events are done with."""
    if not c.broken:
        c.broken = True
        t.broken += 1


cdef inline void forget_frame(Ttrpc *t, Connection *c) noexcept nogil:
    """What has come of the present request is freed."""
    chain_free(t.pool, &c.body)
    drop_passed(c)
    t.promised -= c.promised
    c.promised = 0


cdef inline void connection_end(Ttrpc *t, Connection *c) noexcept nogil:
    """The client says no more: it takes nothing but what has been answered."""
    c.ended = True
    forget_frame(t, c)
    cancel_requests(t, c)
    if c.output.size == 0:
        connection_break(t, c)


cdef inline void connection_close(Ttrpc *t, uint32_t slot) noexcept nogil:
    """Close it and give its slot back."""
    cdef Connection *c = &t.connections[slot]
    cdef uint32_t generation = c.generation + 1
    cancel_requests(t, c)
    forget_frame(t, c)
    chain_free(t.pool, &c.output)
    drop(&c.socket)
    if c.broken:
        t.broken -= 1
    if c.starved:
        t.starved -= 1
    memset(c, 0, sizeof(Connection))
    c.socket = -1
    c.generation = generation
    c.next = t.free
    t.free = slot


cdef inline bint may_read(Ttrpc *t, Connection *c) noexcept nogil:
    """Whether the next bytes of the client are welcome; what others hold is waited for."""
    cdef uint32_t wanted
    cdef bint room = True
    if c.ended or c.broken:
        return False
    if is_between(&c.framing):
        if c.open >= MOST_OPEN or c.bytes >= MOST_BYTES or c.output.size > MOST_OUTPUT:
            return False
        room = has_request_slot(t)
    elif c.framing.state == IN_BODY and not c.admitted:
        wanted = blocks_for(c.framing.left)
        room = wanted + RESERVE + t.promised <= blocks_left(t.pool)
        if room:
            c.admitted = True
            c.promised = wanted
            t.promised += wanted
    if c.starved == room:
        c.starved = not room
        t.starved += 1 if c.starved else -1
    return room


cdef inline void connection_watch(Ttrpc *t, Connection *c) noexcept nogil:
    """Have epoll watch for what is of use now."""
    cdef epoll_event event
    cdef uint32_t slot = <uint32_t>(c - t.connections)
    if c.broken:
        return
    event.events = (EPOLLIN if may_read(t, c) else 0) | (EPOLLOUT if c.output.size else 0)
    if event.events == c.events:
        return
    c.events = event.events
    event.data.u64 = t.tag << 56 | <uint64_t>(c.generation & 0xFFFFFF) << 32 | slot
    if epoll_ctl(t.epoll, EPOLL_CTL_MOD, c.socket, &event) < 0:
        connection_break(t, c)


cdef inline void connection_flush(Ttrpc *t, Connection *c) noexcept nogil:
    """Send as much of the output as the client takes."""
    cdef ssize_t sent
    while c.output.size and not c.broken:
        sent = chain_send(t.pool, &c.output, 0, c.socket)
        if sent > 0:
            chain_drop(t.pool, &c.output, sent)
        elif errno == EAGAIN:
            return
        else:
            connection_break(t, c)
    if c.ended:
        connection_break(t, c)


cdef inline void send_status(Ttrpc *t, Connection *c, uint32_t stream, int code,
                             const char *reason) noexcept nogil:
    """A Response that no front has made."""
    cdef unsigned char frame[HEADER_SIZE + STATUS_ROOM]
    cdef size_t size = status_response(frame + HEADER_SIZE, code, reason)
    response_header(frame, stream, <uint32_t>size)
    if not chain_append(t.pool, &c.output, frame, HEADER_SIZE + size):
        connection_break(t, c)
    connection_flush(t, c)


cdef inline void send_response(Ttrpc *t, Connection *c, uint32_t stream,
                               Chain *body) noexcept nogil:
    """Send a Response and take its bytes; too long a one would be its client's end."""
    cdef unsigned char header[HEADER_SIZE]
    if body.size > MOST_MESSAGE:
        chain_free(t.pool, body)
        send_status(t, c, stream, RESOURCE_EXHAUSTED, "the answer has more than 4 MiB")
        return
    response_header(header, stream, body.size)
    if not chain_append(t.pool, &c.output, header, HEADER_SIZE):
        connection_break(t, c)
    chain_join(t.pool, &c.output, body)
    connection_flush(t, c)
