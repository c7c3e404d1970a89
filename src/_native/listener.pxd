# Listening sockets. They belong to the keeper, so that a caller who comes while there is no
# front waits in the kernel's queue. A connection is relayed to the front's own socket, which is
# connected to through an O_PATH descriptor: its file is gone by then, so nobody else finds it.

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from fds cimport drop
from linux cimport *
from relay cimport end_stream
from stream cimport FROM_FRONT, TO_FRONT, Relay, relay_add

cdef extern from *:
    """
    #include <stdio.h>
    static inline void ds_descriptor_path(char *path, size_t size, int fd) {
        snprintf(path, size, "/proc/self/fd/%d", fd);
    }
    """
    void ds_descriptor_path(char *path, size_t size, int fd) nogil

cdef enum:
    MOST_LISTENERS = 64
    RESERVED = 64            # descriptors kept for exit and delete when clients take all others

cdef struct Listener:
    uint64_t id
    uint32_t flags           # FRAMES, DOOR
    int socket               # owned
    int front                # owned, O_PATH; -1: nobody serves, callers wait

cdef struct Listeners:
    int epoll
    uint64_t tag
    uint32_t count
    int highest              # descriptors from here on are the reserve
    Listener all[64]


cdef inline int listener_watch(Listeners *listeners, uint32_t index, uint32_t events,
                               int operation) noexcept nogil:
    cdef epoll_event event
    event.events = events | EPOLLET    # no descriptor left to accept with: no endless loop
    event.data.u64 = listeners.tag << 56 | index
    return errno if epoll_ctl(listeners.epoll, operation, listeners.all[index].socket,
                              &event) < 0 else 0


cdef inline int listener_add(Listeners *listeners, uint64_t id, int socket,
                             uint32_t flags) noexcept nogil:
    """Hold a listening socket; takes it. Nobody is accepted before `listener_serve`."""
    cdef Listener *listener = &listeners.all[listeners.count]
    if listeners.count == MOST_LISTENERS:
        return ENFILE
    listener.id = id
    listener.flags = flags
    listener.socket = socket
    listener.front = -1
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK)
    listeners.count += 1
    return listener_watch(listeners, listeners.count - 1, 0, EPOLL_CTL_ADD)


cdef inline int listener_serve(Listeners *listeners, uint64_t id, int front) noexcept nogil:
    """Accept from now on, for the front behind the O_PATH descriptor `front`; takes it."""
    cdef uint32_t i
    if front < 0:
        return EINVAL
    for i in range(listeners.count):
        if listeners.all[i].id == id:
            drop(&listeners.all[i].front)
            listeners.all[i].front = front
            return listener_watch(listeners, i, EPOLLIN, EPOLL_CTL_MOD)
    drop(&front)
    return ESRCH


cdef inline void listeners_pause(Listeners *listeners) noexcept nogil:
    """The front is gone: callers wait until there is one again."""
    cdef uint32_t i
    for i in range(listeners.count):
        drop(&listeners.all[i].front)
        listener_watch(listeners, i, 0, EPOLL_CTL_MOD)


cdef inline void listeners_close(Listeners *listeners) noexcept nogil:
    cdef uint32_t i
    for i in range(listeners.count):
        drop(&listeners.all[i].front)
        drop(&listeners.all[i].socket)
    listeners.count = 0


cdef inline bint may_call(int socket) noexcept nogil:
    """Only root and the shim's own user may: unix(7), SO_PEERCRED."""
    cdef ucred peer
    cdef socklen_t size = sizeof(peer)
    if getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0:
        return False
    return peer.uid == 0 or peer.uid == geteuid()


cdef inline int connect_front(int front) noexcept nogil:
    """A connection to the socket behind an O_PATH descriptor; -1 when the front takes none."""
    cdef sockaddr_un address
    cdef int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if made < 0:
        return -1
    memset(&address, 0, sizeof(address))
    address.sun_family = AF_UNIX
    ds_descriptor_path(address.sun_path, sizeof(address.sun_path), front)
    if connect(made, <sockaddr *>&address, sizeof(address)) < 0:
        drop(&made)
    return made


cdef inline void join(Relay *relay, int client, int front) noexcept nogil:
    """Relay both ways; takes both. Each stream owns descriptors of its own, hence the copies."""
    cdef int client_copy = fcntl(client, F_DUPFD_CLOEXEC, 0)
    cdef int front_copy = fcntl(front, F_DUPFD_CLOEXEC, 0)
    cdef uint32_t slot, back
    if client_copy < 0 or front_copy < 0:
        drop(&client_copy)
        drop(&front_copy)
        drop(&client)
        drop(&front)
        return
    if relay_add(relay, 0, client, front, -1, 0, TO_FRONT, &slot):
        drop(&client_copy)
        drop(&front_copy)
        return
    if relay_add(relay, 0, front_copy, client_copy, -1, 0, FROM_FRONT, &back):
        end_stream(relay, slot, False)


cdef inline void listener_accept(Listeners *listeners, Relay *relay, uint32_t index) noexcept nogil:
    """Take all callers that wait; who may not call, or finds no room, is hung up on."""
    cdef Listener *listener = &listeners.all[index]
    cdef int client, front
    if index >= listeners.count or listener.front < 0:
        return
    while True:
        client = accept4(listener.socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        if client < 0:
            return
        if client >= listeners.highest or not may_call(client):
            drop(&client)
            continue
        front = connect_front(listener.front)
        if front < 0:
            drop(&client)
        else:
            join(relay, client, front)
