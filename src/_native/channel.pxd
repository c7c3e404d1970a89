# The keeper's end of the channel to the front. It never blocks: what the socket does not take
# waits in a ring of fixed size; a front that lets even that fill up is not alive.

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from fds cimport Parcel, drop, send_parcel
from linux cimport *
from table cimport arena
from wire cimport Record

cdef struct Channel:
    int epoll
    int socket               # owned; -1: no front
    uint64_t tag             # of the socket's events
    Record *ring
    uint32_t size            # a power of two
    uint32_t head, tail      # written to, sent from; both only grow
    bint overrun             # the ring was full: the front must go


cdef inline bint channel_open(Channel *channel, int epoll, uint64_t tag, uint32_t most) noexcept nogil:
    """Room for `most` records; False: no memory."""
    memset(channel, 0, sizeof(Channel))
    channel.epoll = epoll
    channel.socket = -1
    channel.tag = tag
    channel.size = 1024
    while channel.size < most:
        channel.size *= 2
    channel.ring = <Record *>arena(channel.size * sizeof(Record))
    return channel.ring != NULL


cdef inline int channel_watch(Channel *channel, int operation, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = channel.tag << 56
    return errno if epoll_ctl(channel.epoll, operation, channel.socket, &event) < 0 else 0


cdef inline int channel_attach(Channel *channel, int socket) noexcept nogil:
    """Begin with a new front; takes the socket."""
    channel.socket = socket
    channel.head = channel.tail = 0
    channel.overrun = False
    return channel_watch(channel, EPOLL_CTL_ADD, EPOLLIN)


cdef inline void channel_detach(Channel *channel) noexcept nogil:
    drop(&channel.socket)
    channel.head = channel.tail = 0


cdef inline bint channel_is_idle(Channel *channel) noexcept nogil:
    """Whether there is a front and nothing waits to be sent to it."""
    return channel.socket >= 0 and channel.tail == channel.head and not channel.overrun


cdef inline void channel_wait(Channel *channel) noexcept nogil:
    """Be told when the socket takes more: what could not be sent is kept elsewhere."""
    channel_watch(channel, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT)


cdef inline void channel_flush(Channel *channel) noexcept nogil:
    """Send what waits; the socket's writability is watched only while something does."""
    cdef Parcel parcel
    cdef int error = 0
    parcel.count = 0
    while channel.tail != channel.head and not error:
        parcel.record = channel.ring[channel.tail & (channel.size - 1)]
        error = send_parcel(channel.socket, &parcel)
        if not error:
            channel.tail += 1
    if channel.tail == channel.head:
        channel_watch(channel, EPOLL_CTL_MOD, EPOLLIN)


cdef inline void channel_send(Channel *channel, Record *record) noexcept nogil:
    """Send or queue; without a front the record is dropped: the next one asks for all there is."""
    cdef Parcel parcel
    if channel.socket < 0 or channel.overrun:
        return
    if channel.tail == channel.head:
        parcel.record = record[0]
        parcel.count = 0
        if send_parcel(channel.socket, &parcel) == 0:
            return
        channel_watch(channel, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT)
    if channel.head - channel.tail == channel.size:
        channel.overrun = True
        return
    channel.ring[channel.head & (channel.size - 1)] = record[0]
    channel.head += 1
